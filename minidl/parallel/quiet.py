"""With one voice: of many ranks only the first prints, and each may keep a log.

Told apart are what a rank prints, its warnings, and its tracebacks, which always reach stderr. Who prints the traceback of an error that
ends all ranks is ending.py's business.
"""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from io import TextIOBase
from pathlib import Path
from typing import Any, TextIO

from minidl.errors import ConfigError
from minidl.parallel.communicator import Communicator

COLUMNS = "MINIDL_COLUMNS"              # set by launch: how wide its terminal is; 0 where it prints to a file or a pipe


@contextmanager
def quiet(communicator: Communicator, log_dir: Path | None = None) -> Iterator[Callable[[], None]]:
    """Within the block only rank 0 prints. What other ranks print goes nowhere, their warnings too; tracebacks still reach stderr.
    Gives a function by which another rank takes over, when the first one has died.

    log_dir: a folder, made if need be, in which each rank keeps what it prints, warnings and tracebacks included: rank-0.log, ... They
    are added to where they exist. ConfigError if that cannot be.
    """
    rank = communicator.rank
    file = None if log_dir is None else open_log(Path(log_dir), rank)
    log = Log(file, sys.stderr)
    out, err, width = sys.stdout, sys.stderr, columns()
    before = {name: os.environ.get(name) for name in ("COLUMNS", "FORCE_COLOR")}               # what Rich goes by
    heard = {**before, **({"COLUMNS": str(width)} if width else {})}
    if rank:
        sys.stdout = sys.stderr = log
    else:
        if file or width == 0:
            sys.stdout = Both(out, log, out.isatty() if width is None else width > 0)
        if file:
            sys.stderr = Both(err, log, err.isatty())
    change({**before, "FORCE_COLOR": None} if rank else heard)

    def speak() -> None:
        change(heard)
        sys.stdout, sys.stderr = Both(out, log, out.isatty() if width is None else width > 0), Both(err, log, err.isatty())

    try:
        yield speak
    except BaseException as error:
        if not isinstance(error, SystemExit):
            log.write("".join(traceback.format_exception(error)))
        raise
    finally:
        sys.stdout, sys.stderr = out, err
        change(before)
        if file:
            log.finish()


def change(variables: Mapping[str, str | None]) -> None:
    """Set variables of the environment, or take them out of it."""
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def open_log(folder: Path, rank: int) -> TextIO:
    """The file in which a rank keeps what it prints."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return open(folder / f"rank-{rank}.log", "a", encoding="utf-8", errors="replace")
    except OSError as error:
        raise ConfigError(f"--log-dir {folder}: {error.strerror}") from None


class Log(TextIOBase):
    """A stream that keeps whole lines in a file, as a terminal would have shown them in the end: no colours, no bar that was overwritten.

    file: None keeps nothing. beneath: the stderr that tracebacks still go to.
    """

    encoding = "utf-8"
    OVER, UP = "\x1b[2K", "\x1b[1A"         # empties the line it stands in; goes back to the one before
    CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")

    def __init__(self, file: TextIO | None, beneath: TextIO):
        self.file = file
        self.beneath = beneath
        self.line = ""                          # that has no end yet
        self.held: str | None = None            # a line with an end, which may be taken back: it stood where another one had been

    def write(self, text: str) -> int:
        if self.file is not None:
            *lines, last = (self.line + text).split("\n")
            for line in lines:
                self.settle(line)
                line = line.rstrip("\r").rpartition("\r")[2]
                self.held = self.CONTROL.sub("", line) + "\n"
                if self.OVER not in line:
                    self.settle()
            if last:
                self.settle(last)
            self.line = last[last.rfind("\r", 0, -1) + 1:]
        return len(text)

    def settle(self, following: str = "") -> None:
        """Write the line that was held, unless what follows takes it back."""
        if self.held is not None and self.file is not None and self.UP not in following:
            self.file.write(self.held)
            self.file.flush()
        self.held = None

    def finish(self) -> None:
        """The last line, if it has no end, and the file's end."""
        if self.file is not None:
            if self.CONTROL.sub("", self.line).strip():
                self.write("\n")
            self.settle()
            self.file.close()


class Both:
    """A stream beside which a log is kept. terminal: whether it takes itself for one."""

    def __init__(self, stream: TextIO, log: Log, terminal: bool):
        self.stream, self.log, self.terminal = stream, log, terminal
        self.beneath = stream

    def write(self, text: str) -> int:
        self.log.write(text)
        return self.stream.write(text)

    def isatty(self) -> bool:
        return self.terminal

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def columns() -> int | None:
    """How wide the terminal is that rank 0's output will be seen on; 0 if there is none, None if stdout itself knows.

    mpiexec gives every rank a terminal of its own for stdout, whatever its own is. So it is asked of launch or, on the same host, looked
    up at mpiexec's.
    """
    if COLUMNS in os.environ:
        return int(os.environ[COLUMNS])
    if "PRTE_LAUNCHED" not in os.environ:
        return None
    try:
        stream = os.open(f"/proc/{os.getppid()}/fd/1", os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK)
    except OSError:
        return 0
    try:
        return os.get_terminal_size(stream).columns or 80
    except OSError:
        return 0
    finally:
        os.close(stream)
