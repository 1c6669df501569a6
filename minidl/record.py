"""What a run leaves in its folder, and how it is found again.

    config.json         the options, and what is needed to use the model: classes, input shape, normalisation
    metrics.jsonl       one JSON object an epoch
    checkpoint/         the newest checkpoints, a file each

The journal (report/journal.py) adds what is only looked at. All three are written whole or not at all, so that they can be read at any
moment, and a folder belongs to one process at a time.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from minidl import backend
from minidl.backend import Array
from minidl.checkpoint import Checkpoints, write
from minidl.errors import CheckpointError, ConfigError, NumericsError
from minidl.loop import Callback
from minidl.run import Run

CONFIG = {"options": dict, "classes": list, "input_shape": list, "normalise": dict | None, "commands": list}      # what must be in it


class Record(Callback):
    """Keeps a run's metrics and checkpoints: at the start, every so many steps, at the end of each epoch, and when the run stops."""

    def __init__(self, folder: Path, config: Mapping[str, Any], keep: int = 2, every: int | None = None):
        self.folder, self.config, self.every = folder, config, every
        self.checkpoints = Checkpoints(folder / "checkpoint", keep)

    def start(self, run: Run) -> None:
        """The config, a checkpoint of the beginning, and the metrics: those of a run that is resumed are cut back to where it stands."""
        if not run.team.leads:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        for leftover in (*self.folder.glob(".*.tmp"), *self.checkpoints.folder.glob(".*.tmp")):     # of a process killed while writing
            leftover.unlink(missing_ok=True)
        write(self.folder / "config.json", (json.dumps(self.config, indent=2) + "\n").encode())
        if run.step not in self.checkpoints.files():            # otherwise it was resumed from there
            self.write(run, {})                     # the exchange owes nothing yet; where another process led before, it is not known here
        self.write_metrics(run)

    def step(self, run: Run, loss: float) -> None:
        """A checkpoint where one is due within the epoch."""
        if self.every and run.step % self.every == 0 and run.minibatch < len(run.loader):
            self.save(run)

    def epoch(self, run: Run, metrics: dict[str, Any]) -> None:
        """A checkpoint, then the metrics, which are thus never of an epoch that would be lost."""
        self.save(run)
        self.write_metrics(run)

    def end(self, run: Run) -> None:
        """A checkpoint of the very last update."""
        if run.minibatch:                           # otherwise that of the epoch is
            self.save(run)

    def save(self, run: Run) -> None:
        """Write a checkpoint; every rank brings what its exchange owes, the first one writes. NumericsError as `write`."""
        owed = run.team.state()
        if run.team.leads:
            self.write(run, owed)

    def write(self, run: Run, owed: Mapping[str, Array]) -> None:
        """The checkpoint itself. NumericsError, and nothing is written, if anything in it is no longer finite."""
        arrays, rest = run.state()
        arrays |= {f"exchange.{name}": x for name, x in owed.items()}
        for name, x in arrays.items():
            if backend.is_float(x.dtype) and not bool(backend.of(x).isfinite(x).all()):
                raise NumericsError(f"{name} is no longer finite after step {run.step}",
                                    hint="The weights have run away. Try a smaller learning rate, or clip the gradient.")
        self.checkpoints.save(run.step, arrays, rest)

    def saved(self, run: Run) -> int | None:
        """The step of the last checkpoint on the way to where a run stands, whichever process wrote it; None if none is there."""
        return max((step for step in self.checkpoints.files() if step <= run.step), default=None)

    def discard(self) -> None:
        """Remove what `start` wrote, and the folder if nothing else is in it: the run never got anywhere."""
        with contextlib.suppress(OSError):
            for file in (self.folder / "config.json", self.folder / "metrics.jsonl", *self.checkpoints.files().values()):
                file.unlink(missing_ok=True)
            for folder in (self.checkpoints.folder, self.folder):
                if folder.is_dir():
                    folder.rmdir()

    def write_metrics(self, run: Run) -> None:
        """One object an epoch."""
        if not run.team.leads:
            return
        write(self.folder / "metrics.jsonl", "".join(json.dumps(metrics, allow_nan=False) + "\n" for metrics in run.history).encode())


def new_folder(out: Path | None, name: str) -> Path:
    """The folder that was asked for, or the next free one under runs/, made. ConfigError if it cannot be."""
    try:
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            return out
        for count in range(1, 100_000):
            folder = Path("runs") / (name if count == 1 else f"{name}-{count}")
            with contextlib.suppress(FileExistsError):
                folder.mkdir(parents=True)          # of two processes that try, one succeeds
                return folder
    except OSError as error:
        raise ConfigError(f"the folder for the run, {out or 'runs/' + name}, cannot be made: {error.strerror or error}",
                          hint="Choose another with --out.") from error
    raise ConfigError(f"there is no free name for {name} under runs/", hint="Choose a folder with --out.")


@contextlib.contextmanager
def claimed(folder: Path, empty: bool = False) -> Iterator[None]:
    """Within the block, however it ends, the folder is this process's alone.

    ConfigError if another process has it, or if it should be empty and is not.
    """
    handle = os.open(folder, os.O_RDONLY) if os.name == "posix" else None          # elsewhere a folder cannot be locked
    try:
        if handle is not None:
            import fcntl

            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(f"{folder}: another process is training in this folder", hint="Wait until it has ended.") from None
            except OSError:                         # a file system without locks
                pass
        if empty and any(folder.iterdir()):
            raise ConfigError(f"--out {folder}: the folder is not empty", hint="Choose another, or go on with the run in it: --resume.")
        yield
    finally:
        if handle is not None:
            os.close(handle)


def read_config(folder: Path) -> dict[str, Any]:
    """A run's config.json. CheckpointError if the folder is not a run's, or the file is damaged."""
    file = folder / "config.json"
    try:
        config = json.loads(file.read_bytes())
        wrong = [key for key, kind in CONFIG.items() if not isinstance(config[key], kind)]
    except (FileNotFoundError, NotADirectoryError):
        why = "it has no config.json" if folder.is_dir() else "it is a file" if folder.exists() else "it does not exist"
        raise CheckpointError(f"{folder} is not the folder of a run: {why}", hint="It is named when a run begins and ends.") from None
    except KeyError as error:
        raise CheckpointError(f"{file} is not the config of a run: it has no {error}") from None
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from None
    if wrong:
        raise CheckpointError(f"{file} is not the config of a run: {wrong[0]} is {config[wrong[0]]!r:.60}")
    return config


def command(module: str, *arguments: str | Path) -> str:
    """What to type at a shell to run a command of minidl with the Python that runs now."""
    words = ("-m", f"minidl.{module}", *map(str, arguments))
    for name in ("python", "python3"):
        found = os.path.abspath(shutil.which(name) or "")
        if os.path.dirname(found) == os.path.dirname(sys.executable) and os.path.realpath(found) == os.path.realpath(sys.executable):
            return shlex.join([name, *words])
    inside = sys.executable.startswith(os.getcwd() + os.sep)
    return shlex.join([os.path.relpath(sys.executable) if inside else sys.executable, *words])
