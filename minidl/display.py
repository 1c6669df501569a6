"""What a run looks like on a terminal, and, as plain lines, in a file or a pipe.

A Display is a callback of the loop: it says first what will be done, shows each epoch as a line and the present one as a bar, and ends
with a table. It computes nothing and decides nothing.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from minidl.loop import Callback, Run


def percent(share: float | None) -> str:
    """0.9917 as '99.17 %'; '-' for None."""
    return "-" if share is None else f"{100 * share:.2f} %"


def number(x: float | None) -> str:
    """A loss in four digits; '-' for None."""
    return "-" if x is None else f"{x:.4f}"


class Display(Callback):
    """Shows a run.

    plan: what will be done, as (word, text) pairs. folder: where the results will lie. console: of Rich; the standard output's unless
    given. With a terminal there is a live bar; otherwise a line at the start, one an epoch, and the end.
    """

    def __init__(self, plan: list[tuple[str, str]], folder: str, console: Console | None = None):
        self.plan, self.folder = plan, folder
        self.console = console or make_console()
        self.bar: Progress | None = None

    def start(self, run: Run) -> None:
        """The plan, then the head of the epochs' lines."""
        self.run = run
        self.console.print()
        for word, text in self.plan:
            self.console.print(Text.assemble(("  " + word.ljust(11), "bold cyan"), text))
        self.console.print()
        width = len(f"{run.epochs}")
        self.layout = f"  {{:>{max(5, width)}}}  {{:>10}} {{:>9}}  {{:>9}} {{:>9}}  {{:>7}}  {{:>8}}"
        if not run.finished:
            self.console.print(self.layout.format("epoch", "train loss", "accuracy", "test loss", "accuracy", "seconds", "images/s"),
                               style="bold", highlight=False)
        for metrics in run.history:                             # of a run that was resumed
            self.line(metrics, "dim")
        self.started = time.perf_counter()
        self.begun_at = run.step
        if self.console.is_terminal and not run.finished:
            self.bar = Progress(TextColumn("  [bold]{task.description}"), BarColumn(bar_width=30), TextColumn("{task.fields[now]}"),
                                TimeRemainingColumn(), console=self.console, transient=True)
            self.task = self.bar.add_task("", total=run.minibatches, now="")
            self.bar.start()

    def step(self, run: Run, loss: float) -> None:
        """Move the bar."""
        if self.bar is not None:
            accuracy = f"accuracy {percent(run.right / run.seen)}  " if run.right else ""
            now = f"loss {number(run.loss / run.seen)}  {accuracy}{run.seen / max(run.seconds, 1e-9):,.0f} images/s"
            self.bar.update(self.task, description=f"epoch {run.epoch + 1}/{run.epochs}", completed=run.minibatch, now=now)

    def epoch(self, run: Run, metrics: dict[str, Any]) -> None:
        """A line for the epoch."""
        self.line(metrics)
        if self.bar is not None:
            self.bar.reset(self.task, total=run.minibatches, now="")

    def line(self, metrics: dict[str, Any], style: str = "") -> None:
        """One epoch's metrics."""
        self.console.print(self.layout.format(
            metrics["epoch"], number(metrics["train_loss"]), percent(metrics["train_accuracy"]), number(metrics["test_loss"]),
            percent(metrics["test_accuracy"]), f"{metrics['seconds']:.2f}", f"{metrics['images_per_second']:,.0f}"),
            style=style, highlight=False)

    def stop(self) -> None:
        """Take the bar away."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def close(self) -> None:
        """The table at the end, and where things are."""
        self.stop()
        run = self.run
        self.console.print()
        if run.history:
            self.console.print(closing_table(run))
        updates = run.step - self.begun_at
        self.console.print(f"  {updates:,} updates in {time.perf_counter() - self.started:.1f} s", highlight=False)
        self.console.print(Text.assemble("  Results: ", (self.folder, "bold")))
        self.console.print(f"  To classify images: python -m minidl.predict {self.folder} IMAGE...", highlight=False, soft_wrap=True)

    def say(self, text: str, style: str = "") -> None:
        """A sentence between the lines."""
        self.console.print("  " + text, style=style, highlight=False, soft_wrap=True)


def closing_table(run: Run) -> Table:
    """The last epoch's loss and accuracy in training and test, and the best accuracy in the test."""
    last = run.history[-1]
    table = Table(box=None, padding=(0, 2), show_edge=False)
    table.add_column("")
    for head in ("loss", "accuracy", "best accuracy"):
        table.add_column(head, justify="right")
    table.add_row("training", number(last["train_loss"]), percent(last["train_accuracy"]), "")
    if last["test_loss"] is not None:
        best = max((m for m in run.history if m["test_accuracy"] is not None), key=lambda m: m["test_accuracy"], default=None)
        note = "" if best is None else f"{percent(best['test_accuracy'])} in epoch {best['epoch']}"
        table.add_row("test", number(last["test_loss"]), percent(last["test_accuracy"]), note, style="bold")
    return table


def make_console(stderr: bool = False) -> Console:
    """A console that writes whole lines where there is no terminal to wrap them."""
    console = Console(stderr=stderr)
    if not console.is_terminal:
        console = Console(file=sys.stderr if stderr else sys.stdout, width=200)
    return console
