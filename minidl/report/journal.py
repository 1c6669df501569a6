"""Journal: what a run writes down for who wants to look at it, beside what record.py keeps to go on.

    steps.csv       a line for each update: step, epoch, seconds (of training, of the whole run), loss, learning_rate
    tests.npz       of the last test: see findings.py
    model.json      what the model is made of: nn.summary
    status.json     whether the run goes on, and how it ended; when it was last known to live
    report.html     the page that is made of all of it

Nothing here is needed to go on with a run, and nothing here ends one: what cannot be written is told once.
"""

from __future__ import annotations

import copy
import io
import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from minidl.backend import Array
from minidl.errors import RankLost
from minidl.loop import Callback
from minidl.nn import summary
from minidl.optim.schedule import value_at
from minidl.report.findings import Findings
from minidl.run import Run

HEAD = "step,epoch,seconds,loss,learning_rate\n"
LINES, SECONDS = 2000, 5.0          # steps are written when there are so many, or after so long
SHARE = 0.1                         # of the run's time that pages may take
FIRST = 0.8                         # seconds that the first page with curves takes, in which Matplotlib is loaded, as a guess
BETWEEN = 30.0                      # seconds from one page to the next within a long epoch
FILES = ("steps.csv", "tests.npz", "model.json", "status.json", "report.html")


class Journal(Callback):
    """Keeps a run's journal, and from time to time has its page written.

    config: as in config.json. page: writes the page of a folder; None: there is none. remark: is told what went wrong.
    The page is written at the start, after each epoch and every BETWEEN seconds within a long one, but so rarely that it takes no more
    than SHARE of the time; and at the end.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any], page: Callable[[Path], Any] | None = None,
                 remark: Callable[[str], Any] = print):
        self.folder, self.config, self.page, self.remark = folder, config, page, remark
        self.rows: list[tuple[int, int, float, float, float]] = []
        self.last = 0                   # step that was noted, or written
        self.epochs, self.before = -1, 0.0                  # seconds of training before the present epoch
        self.written = self.began = self.paged = time.monotonic()
        self.spent, self.cost = 0.0, FIRST
        self.findings: Findings | None = None
        self.run: Run | None = None
        self.failed = False

    def start(self, run: Run) -> None:
        """The files, those of a run that is resumed cut back to where it stands."""
        self.run = run
        if not run.team.leads:
            return
        self.began = self.paged = time.monotonic()
        self.attempt(self.tidy, run)
        self.status("running")
        if not run.history:                                 # without curves, that costs little
            self.write_page(cost=False)

    def step(self, run: Run, loss: float) -> None:
        """Note an update. Every process does, so that one which takes the place of the first knows what that one had not yet written."""
        if run.step <= self.last:                           # processes were lost, and these are done again
            self.attempt(self.cut, run.step - 1, run.team.leads)
        if run.epoch != self.epochs:
            self.epochs, self.before = run.epoch, sum(metrics["seconds"] for metrics in run.history)
        optimizer = run.optimizer
        self.rows.append((run.step, run.epoch + 1, self.before + run.seconds, loss,
                          value_at(optimizer.options.get("lr", 0.0), optimizer.steps - 1)))
        self.last = run.step
        if not run.team.leads:
            if len(self.rows) > 2 * LINES:
                del self.rows[:LINES]
        elif len(self.rows) >= LINES or time.monotonic() - self.written > SECONDS:
            self.flush()
            self.status("running")
            if time.monotonic() - self.paged > BETWEEN:
                self.page_if_due()

    def test(self, run: Run) -> Callable[[Array, Array, Array], Any] | None:
        """Look at a test, from its beginning."""
        shape, rebuilds = tuple(self.config["input_shape"]), bool(getattr(run.model, "reconstructs", False))
        self.findings = Findings(shape, len(self.config["classes"]), self.config["normalise"], rebuilds)
        return self.findings

    def epoch(self, run: Run, metrics: Mapping[str, Any]) -> None:
        """What the test has shown, of all ranks; and the page, if it is time for it."""
        found, self.findings = self.findings, None
        if found is not None and len(found.counts):
            found.counts = np.array(run.team.sums(found.counts.ravel())).astype(np.int64).reshape(found.counts.shape)
        if not run.team.leads:
            return
        self.flush()
        if found is not None:
            self.attempt(self.keep, found, run, metrics["epoch"])
        self.status("running")
        self.page_if_due()

    def close(self, error: BaseException | None = None) -> Path | None:
        """The run is over, or an error has ended it: the last page. Gives it, if it could be written.

        An error is told by the process in which it was, if that can see the folder; whoever hears of it only by the other's end does not
        contradict.
        """
        run, heard = self.run, isinstance(error, RankLost)
        if run is None or (not run.team.leads and (error is None or heard or not self.content("status.json"))):
            return None
        if heard and b'"failed"' in self.content("status.json"):
            return None
        self.rows = [row for row in self.rows if row[0] > self.written_last()]
        self.flush()
        if error is None:
            self.status("finished" if run.finished else "stopped")
        elif not isinstance(error, Exception):
            self.status("stopped", "Stopped at once: what came after the last checkpoint is lost.")
        else:
            self.status("failed", f"{type(error).__name__}: {error}")
        return self.folder / "report.html" if self.write_page() else None

    def discard(self) -> None:
        """Remove all of it: the run never got anywhere."""
        self.run = None
        with suppress(OSError):
            for name in FILES:
                (self.folder / name).unlink(missing_ok=True)

    # Files

    def tidy(self, run: Run) -> None:
        """What the files are to be before the first update, or that after which the run is resumed."""
        for leftover in self.folder.glob(".*.part"):        # of a process killed while writing
            leftover.unlink(missing_ok=True)
        self.cut(run.step)
        self.rows = [row for row in self.rows if row[0] > self.written_last()]
        if not (self.folder / "model.json").exists():
            put(self.folder / "model.json", json.dumps(made_of(run, self.config)).encode())

    def flush(self) -> None:
        """Write down the steps that were noted."""
        self.written = time.monotonic()
        rows, self.rows = self.rows, []
        if rows:
            self.attempt(self.append, "".join([f"{step},{epoch},{seconds:.4f},{loss:.6g},{lr:.6g}\n"
                                               for step, epoch, seconds, loss, lr in rows]))

    def append(self, lines: str) -> None:
        """Write lines at the end of steps.csv."""
        with open(self.folder / "steps.csv", "a", encoding="ascii") as file:
            file.write(lines)

    def keep(self, found: Findings, run: Run, epoch: int) -> None:
        """Write down what a test has shown."""
        content = io.BytesIO()
        arrays = found.arrays(run.model) | {"epoch": np.array(epoch), "ranks": np.array(run.team.ranks)}
        np.savez(content, allow_pickle=False, **arrays)
        put(self.folder / "tests.npz", content.getvalue())

    def written_last(self) -> int:
        """The last step in the file."""
        return number_of(self.content("steps.csv").rstrip().rpartition(b"\n")[2])

    def content(self, name: str) -> bytes:
        """What is in a file of the folder; nothing if that cannot be read."""
        try:
            return (self.folder / name).read_bytes()
        except OSError:
            return b""

    def cut(self, step: int, file_too: bool = True) -> None:
        """Forget the steps after this one."""
        file = self.folder / "steps.csv"
        self.rows = [row for row in self.rows if row[0] <= step]
        self.last = step
        if not file_too:
            return
        lines = file.read_bytes().splitlines(keepends=True)[1:] if file.exists() else []
        kept = [line for line in lines if line.endswith(b"\n") and 0 < number_of(line) <= step]
        if len(kept) < len(lines) or not file.exists():
            put(file, b"".join([HEAD.encode(), *kept]))

    def status(self, state: str, message: str = "") -> None:
        """How the run stands: "running", "finished", "stopped" or "failed"."""
        run = self.run
        if run is None:
            return
        now = {"state": state, "message": message, "step": run.step, "epoch": run.epoch, "epochs": run.epochs,
               "minibatches": len(run.loader), "ranks": run.team.ranks, "pid": os.getpid(), "host": platform.node(), "seen": time.time()}
        self.attempt(put, self.folder / "status.json", json.dumps(now).encode())

    # The page

    def page_if_due(self) -> None:
        """Write the page, if all pages together then still take little of the run's time."""
        if self.spent + self.cost <= SHARE * (time.monotonic() - self.began):
            self.write_page()

    def write_page(self, cost: bool = True) -> bool:
        """Write the page; gives whether it has worked. cost: whether this one tells what the next will take."""
        if self.page is None:
            return False
        started = time.monotonic()
        worked = self.attempt(self.page, self.folder)
        self.paged = time.monotonic()
        self.spent += self.paged - started
        if cost:
            self.cost = self.paged - started
        return worked

    def attempt(self, action: Callable[..., Any], *args: Any) -> bool:
        """Do something that must not end the run: gives whether it has worked. The first error is told."""
        try:
            action(*args)
        except Exception as error:
            if not self.failed:
                self.failed = True
                self.remark(f"The report cannot be kept, and the run goes on without: {str(error) or type(error).__name__}")
            return False
        return True


def put(file: Path, content: bytes) -> None:
    """Put a file where another one may be, in one step. Unlike a checkpoint it need not outlast a power cut."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def number_of(line: bytes) -> int:
    """The step of a line of steps.csv; 0 if it is damaged."""
    word = line.partition(b",")[0]
    return int(word) if word.isdigit() else 0


def made_of(run: Run, config: Mapping[str, Any]) -> dict[str, Any]:
    """The summary of a run's model, as JSON can hold it; looked for on a copy, so that the model does not notice."""
    try:
        found = summary(copy.deepcopy(run.model), tuple(config["input_shape"]))
    except Exception as error:                              # a model of somebody's own may need more than zeros
        return {"error": str(error) or type(error).__name__}
    return {"model": found.model, "input_shape": found.input_shape, "parameters": found.parameters, "trainable": found.trainable,
            "multiply_adds": found.multiply_adds, "activation_bytes": found.activation_bytes, "rows": [vars(row) for row in found.rows]}
