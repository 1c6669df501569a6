"""A run's folder as it is found: whole or half-written, of a run that goes on, was cut off or is over, of this version or an older one."""

from __future__ import annotations

import io
import json
import os
import platform
import time
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from minidl.record import read_config

COLUMNS = ("step", "epoch", "seconds", "loss", "learning_rate")
SILENT = 120.0              # seconds without a sign of life after which a run on another machine is taken for dead


@dataclass
class Found:
    """What a run's folder holds. Anything but the config may be missing: then it is empty."""

    folder: Path
    config: dict[str, Any]
    metrics: list[dict[str, Any]] = field(default_factory=list)
    steps: dict[str, np.ndarray] = field(default_factory=dict)      # columns of steps.csv
    status: dict[str, Any] = field(default_factory=dict)
    tests: dict[str, np.ndarray] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    profile: Any = None                                             # of profile.json
    damaged: list[str] = field(default_factory=list)                # what could not be read

    @property
    def name(self) -> str:
        """What the run is called: its folder's name."""
        return self.folder.resolve().name

    @property
    def options(self) -> dict[str, Any]:
        """The options that it was trained with."""
        return self.config["options"]

    @property
    def state(self) -> str:
        """"running", "finished", "stopped", "failed", "killed", or "unknown" in a folder that does not say."""
        state = self.status.get("state")
        if state == "running":
            return "running" if lives(self.status) else "killed"
        if state in ("finished", "stopped", "failed"):
            return state
        return "finished" if self.metrics and self.metrics[-1].get("epoch", 0) >= (self.options.get("epochs") or 1) else "unknown"

    @property
    def epochs(self) -> int:
        """How many epochs were wanted."""
        return self.status.get("epochs") or self.options.get("epochs") or 0

    def series(self, key: str, over: str) -> tuple[list[float], list[Any]]:
        """A number of every epoch, and where it stands: over "step", "seconds" or "epoch"."""
        ends = {"step": self.last_steps, "seconds": self.seconds, "epoch": self.numbers}[over]()
        return ends, [each.get(key) for each in self.metrics]

    def numbers(self) -> list[float]:
        """The number of each epoch."""
        return [each.get("epoch", i + 1) for i, each in enumerate(self.metrics)]

    def last_steps(self) -> list[float]:
        """The last step of each epoch; NaN where nothing says it."""
        def of(metrics: dict[str, Any]) -> float:
            if isinstance(metrics.get("step"), int):
                return metrics["step"]
            here = self.steps["step"][self.steps["epoch"] == metrics.get("epoch")] if self.steps else np.zeros(0)
            return float(here[-1]) if len(here) else metrics.get("epoch", np.nan) * self.status.get("minibatches", np.nan)

        return [of(metrics) for metrics in self.metrics]

    def seconds(self) -> list[float]:
        """The seconds of training until the end of each epoch."""
        return np.cumsum([each.get("seconds") or 0.0 for each in self.metrics]).tolist()


def find(folder: Path) -> Found:
    """All that a run's folder holds. CheckpointError if it is not a run's; what else is damaged or missing is left out."""
    found = Found(folder, read_config(folder))
    found.metrics = lines(found, folder / "metrics.jsonl")
    found.steps = columns(found, folder / "steps.csv")
    for name in ("status", "model"):
        value = parsed(found, folder / f"{name}.json")
        setattr(found, name, value if isinstance(value, dict) else {})
    found.profile = parsed(found, folder / "profile.json")
    found.tests = arrays(found, folder / "tests.npz")
    return found


def content(found: Found, file: Path) -> bytes:
    """What is in a file; nothing where there is none."""
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        found.damaged.append(f"{file.name}: {error.strerror or error}")
        return b""


def parsed(found: Found, file: Path) -> Any:
    """A JSON file; None where there is none."""
    try:
        return json.loads(content(found, file) or b"null")
    except ValueError as error:
        found.damaged.append(f"{file.name}: {error}")
        return None


def lines(found: Found, file: Path) -> list[dict[str, Any]]:
    """The objects of metrics.jsonl, but for lines that are damaged, such as a last one that is half written."""
    objects, damaged = [], 0
    for line in content(found, file).splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            value = None
        if isinstance(value, dict):
            objects.append(value)
        else:
            damaged += 1
    if damaged:
        found.damaged.append(f"{file.name}: {damaged} line{'s' * (damaged > 1)} left out")
    return objects


def columns(found: Found, file: Path) -> dict[str, np.ndarray]:
    """The columns of steps.csv; a last line that is half written is left out, as is any other that is damaged."""
    text = content(found, file)
    rows = text[:text.rfind(b"\n") + 1].splitlines()[1:]
    if not rows:
        return {}
    try:
        table = np.loadtxt(rows, delimiter=",", ndmin=2, encoding="latin-1")
        if table.shape[1] != len(COLUMNS):
            raise ValueError
    except ValueError:
        good = [row for row in rows if is_row(row)]
        found.damaged.append(f"{file.name}: {len(rows) - len(good)} lines left out")
        if not good:
            return {}
        table = np.loadtxt(good, delimiter=",", ndmin=2, encoding="latin-1")
    last = dict(zip(table[:, 0], range(len(table))))           # a step that was noted twice, by processes that failed together, counts once
    return dict(zip(COLUMNS, table[[last[step] for step in sorted(last)]].T if len(last) < len(table) else table.T))


def is_row(line: bytes) -> bool:
    """Whether a line is one of steps.csv."""
    try:
        return len([float(word) for word in line.split(b",")]) == len(COLUMNS)
    except ValueError:
        return False


def arrays(found: Found, file: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file."""
    archive = content(found, file)
    if not archive:
        return {}
    try:
        with np.load(io.BytesIO(archive), allow_pickle=False) as loaded:
            return dict(loaded)
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        found.damaged.append(f"{file.name}: {error}")
        return {}


def lives(status: dict[str, Any]) -> bool:
    """Whether the process that wrote a status is still there; on another machine, whether it has been heard of lately."""
    pid, host, seen = status.get("pid"), status.get("host"), status.get("seen")
    if os.name == "posix" and host == platform.node() and isinstance(pid, int):
        try:
            os.kill(pid, 0)                         # asks only
        except ProcessLookupError:
            return False
        except OSError:                             # it is somebody else's
            return True
        return True
    return isinstance(seen, int | float) and time.time() - seen < SILENT
