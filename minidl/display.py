"""What a run looks like on a terminal, and, as plain lines, in a file or a pipe.

A Display is a callback of the loop: it says first what will be done, shows a line for each epoch and below them a bar for the whole run,
and ends with a table. How errors of a command look is here too. Nothing is computed or decided here.
"""

from __future__ import annotations

import contextlib
import io
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from minidl.errors import ConfigError, MemoryShortage, MinidlError
from minidl.loop import Callback
from minidl.run import Run

HEADS = (("", "epoch", 5), ("training", "loss", 10), ("", "accuracy", 10), ("test", "loss", 10), ("", "accuracy", 10), ("", "images/s", 10),
         ("", "seconds", 9))            # of the epochs' columns, two lines, with their widths; where there is no room the last are left out


def percent(share: float | None) -> str:
    """0.9917 as '99.17 %'; '-' for None."""
    return "-" if share is None else f"{100 * share:.2f} %"


def number(x: float | None) -> str:
    """A loss in four digits; '-' for None."""
    return "-" if x is None else f"{x:.4f}" if abs(x) < 1000 else f"{x:.3g}"


class Display(Callback):
    """Shows a run.

    plan: what will be done, as (word, text) pairs. console: of Rich; the standard output's unless given. With a terminal there is a live
    bar; otherwise only lines.
    """

    def __init__(self, plan: Sequence[tuple[str, str]], console: Console | None = None):
        self.plan = plan
        self.console = console or make_console()
        self.bar: Progress | None = None
        self.began, self.began_at = time.perf_counter(), 0

    def start(self, run: Run) -> None:
        """The plan, then the head of the epochs' lines, and those that are done already."""
        self.begin(run)
        self.show_plan()
        if not run.finished or run.history:
            self.line([above for above, _, _ in HEADS], "bold")
            self.line([head for _, head, _ in HEADS], "bold")
        for metrics in run.history:
            self.epoch(run, metrics, "dim")
        self.show_bar(run)

    def begin(self, run: Run) -> None:
        """From here on updates and seconds are counted."""
        self.began, self.began_at = time.perf_counter(), run.step

    def take_over(self, run: Run) -> None:
        """Go on below the lines of another process, which has died."""
        self.console = make_console()
        self.show_bar(run)

    def show_bar(self, run: Run) -> None:
        """How far the run is, if there is a terminal."""
        if self.console.is_terminal and not run.finished:
            room = self.console.width - 70          # beside the words, and what a terminal writes for Ctrl-C
            bar = [BarColumn(min(room, 40))] if room >= 8 else []
            self.bar = Progress(TextColumn("  [bold]{task.description}"), *bar, TextColumn("{task.fields[now]}"),
                                TimeRemainingColumn(compact=True), console=self.console, transient=True)
            total = run.epochs * len(run.loader)
            self.task = self.bar.add_task(f"epoch {run.epoch + 1}/{run.epochs}", total=total, completed=run.step, now="")
            self.bar.start()

    def show_plan(self) -> None:
        """What will be done."""
        self.console.print()
        for word, text in self.plan:
            self.console.print(Text.assemble((f"  {word:<11}", "bold cyan"), self.wrapped(text, 13)), soft_wrap=True)
        self.console.print()

    def wrapped(self, text: str, indent: int) -> str:
        """A text in lines that fit, all but the first of them indented."""
        lines = textwrap.wrap(text, max(20, self.console.width - indent - 1), break_long_words=False, break_on_hyphens=False)
        return ("\n" + " " * indent).join(lines)

    def step(self, run: Run, loss: float) -> None:
        """Move the bar."""
        if self.bar is not None:
            word = "accuracy " if self.console.width >= 70 else ""
            accuracy = "" if run.right is None else f"{word}{percent(run.right / run.seen)}  "
            now = f"loss {number(run.loss / run.seen)}  {accuracy}{run.seen / max(run.seconds, 1e-9):,.0f} images/s"
            self.bar.update(self.task, description=f"epoch {run.epoch + 1}/{run.epochs}", completed=run.step, now=now)

    def epoch(self, run: Run, metrics: dict[str, Any], style: str = "") -> None:
        """A line for the epoch."""
        self.line([str(metrics["epoch"]), number(metrics["train_loss"]), percent(metrics["train_accuracy"]), number(metrics["test_loss"]),
                   percent(metrics["test_accuracy"]), f"{metrics['images_per_second']:,.0f}", f"{metrics['seconds']:.2f}"], style)

    def line(self, cells: Sequence[str], style: str = "") -> None:
        """A line of the epochs' table."""
        text = "  "
        for cell, (_, _, width) in zip(cells, HEADS):
            if len(text) + width <= self.console.width:
                text += f"{cell:>{width}}"
        self.console.print(text.rstrip(), style=style, highlight=False)

    def stopping(self) -> None:
        """Say in the place of the bar that the run was asked to stop; it does after the present minibatch."""
        if self.bar is not None:
            self.bar.update(self.task, now="stopping after this minibatch")

    def stop(self) -> None:
        """Take the bar away."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def summary(self, run: Run) -> None:
        """The last epoch's loss and accuracy in training and test, and the best accuracy in the test; how long it took."""
        self.stop()
        if run.history:
            self.console.print()
            for cells, style in closing_table(run.history):
                self.console.print(("  {:<10}{:>8}{:>11}   {}".format(*cells)).rstrip(), style=style, highlight=False)
            self.console.print()
        if run.step > self.began_at:
            self.say(f"{run.step - self.began_at:,} updates in {duration(time.perf_counter() - self.began)}")

    def say(self, text: str, style: str = "") -> None:
        """A sentence between the lines."""
        self.console.print("  " + text, style=style, highlight=False, markup=False, soft_wrap=True)

    def remark(self, text: str) -> None:
        """Something to know, between the lines: longer than a line perhaps."""
        self.say(self.wrapped(text, 2), "yellow")


def closing_table(history: Sequence[dict[str, Any]]) -> list[tuple[tuple[str, str, str, str], str]]:
    """The cells of the lines of the table at the end, and the style of each line."""
    last = history[-1]
    rows = [(("", "loss", "accuracy", ""), "bold"),
            (("training", number(last["train_loss"]), percent(last["train_accuracy"]), ""), "")]
    if last["test_loss"] is not None:
        tested = [metrics for metrics in history if metrics["test_accuracy"] is not None]
        best = max(tested, key=lambda metrics: metrics["test_accuracy"], default=last)
        better = best["test_accuracy"] != last["test_accuracy"]
        note = f"(best: {percent(best['test_accuracy'])} in epoch {best['epoch']})" if better else ""
        rows.append((("test", number(last["test_loss"]), percent(last["test_accuracy"]), note), ""))
    return rows


def duration(seconds: float) -> str:
    """5.25 as '5.2 s', 75 as '1 min 15 s', 3700 as '1 h 1 min'."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def make_console(stderr: bool = False) -> Console:
    """A console that writes whole lines where there is no terminal to wrap them, and text as it is: no picture for the x of topk:x:."""
    console = Console(stderr=stderr, emoji=False)
    return console if console.is_terminal else Console(stderr=stderr, emoji=False, width=200)


@contextlib.contextmanager
def errors_told() -> Iterator[None]:
    """Around a command: an error of minidl's is told in its own words, on stderr, and ends it with status 1, or 2 if an option is wrong.

    Ctrl-C ends it with status 130. Any other error is a fault in a program, and shows where.
    """
    for stream in (sys.stdout, sys.stderr):         # a name that the terminal cannot show is no reason to end a run
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        with memory_told():
            yield
    except MinidlError as error:
        tell(error)
        raise SystemExit(2 if isinstance(error, ConfigError) else 1) from None
    except KeyboardInterrupt as error:                  # with the number of the signal, if it was not Ctrl-C
        tell(error, "Stopped at once.")
        raise SystemExit(128 + (error.args or (2,))[0]) from None


@contextlib.contextmanager
def memory_told() -> Iterator[None]:
    """Within the block too little memory is an error of minidl's, which says what to try."""
    try:
        yield
    except MemoryShortage:
        raise
    except MemoryError as error:
        short = MinidlError(f"Out of memory: {error}",
                            hint="Use a smaller --batch-size, or send each minibatch through in parts: --accumulate 4.")
        short.__notes__ = getattr(error, "__notes__", [])
        raise short from None


def tell(error: BaseException | None = None, text: str = "") -> None:
    """An error on stderr, or another text: what is wrong in red, below it the rest and the error's notes."""
    first, *rest = (text or f"Error: {error}").split("\n") + [line for note in getattr(error, "__notes__", ()) for line in note.split("\n")]
    console = make_console(stderr=True)
    console.print(first, style="red", highlight=False, markup=False, soft_wrap=True)
    for line in rest:
        console.print("  " + line.strip(), highlight=False, markup=False, soft_wrap=True)
