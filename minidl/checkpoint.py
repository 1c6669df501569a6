"""A run on disk: all its arrays and numbers in one file, written so that a crash at any moment leaves a whole file behind.

A checkpoint is a safetensors file: the arrays by name, and everything else as JSON in its metadata. It is written under a temporary
name, flushed to the disk, and renamed into place; the folder is flushed too. So the newest file under its right name is always
complete, whatever happens. What goes into a checkpoint is decided by whoever calls (train.py); where arrays live in memory comes back
as it was, because bits depend on it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from minidl import backend
from minidl.backend import Array
from minidl.errors import CheckpointError

SUFFIX = ".safetensors"


def save(file: str | Path, arrays: dict[str, Array], rest: dict[str, Any] | None = None) -> None:
    """Write arrays and JSON values to a file, in one step that either happens or does not.

    file: its folder must exist. arrays: by name, on any device. rest: what JSON can hold.
    CheckpointError if it cannot be written, for example because the disk is full; what was at `file` before is then still there.
    """
    from safetensors.numpy import save as to_bytes

    file = Path(file)
    stored, orders = {}, {}
    for name, x in arrays.items():
        x = backend.to_numpy(x)
        order = memory_order(x)
        stored[name] = np.ascontiguousarray(x.transpose(order))
        if order != tuple(range(x.ndim)):
            orders[name] = order
    content = to_bytes(stored, {"minidl": json.dumps({"orders": orders, "rest": rest or {}})})
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file)
        flush_folder(file.parent)
    except OSError as error:
        raise CheckpointError(f"checkpoint: {file} could not be written: {error.strerror}", hint="Earlier checkpoints are as they were. "
                              "Make room or choose another folder, then resume from the last one.") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def load(file: str | Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read what `save` wrote: the arrays, in the memory order they had, and the rest.

    Any other safetensors file gives its arrays and an empty rest. CheckpointError if the file is missing, truncated or no such file.
    """
    from safetensors import SafetensorError, safe_open

    file = Path(file)
    if not file.is_file():
        raise CheckpointError(f"checkpoint: there is no file {file}")
    try:
        with safe_open(file, framework="numpy") as content:
            about = json.loads((content.metadata() or {}).get("minidl", "{}"))
            arrays = {name: content.get_tensor(name) for name in content.keys()}        # noqa: SIM118   (not a dict)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"checkpoint: {file} cannot be read: {error}", size=f"{file.stat().st_size:,} bytes",
                              hint="It is cut off or not a safetensors file. Use an earlier checkpoint.") from error
    for name, order in about.get("orders", {}).items():
        arrays[name] = arrays[name].transpose(np.argsort(order))
    return arrays, about.get("rest", {})


def memory_order(x: np.ndarray) -> tuple[int, ...]:
    """The axes from the one with the longest step in memory to the one with the shortest; (0, 1, ...) for an ordinary array."""
    return tuple(sorted(range(x.ndim), key=lambda axis: (-abs(x.strides[axis]), axis))) if x.size else tuple(range(x.ndim))


def flush_folder(folder: Path) -> None:
    """Make a rename inside a folder last through a power cut; file systems that cannot are left alone."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


class Checkpoints:
    """The checkpoints of one run: a folder with a file for each, named by the step, of which the newest few are kept.

    keep: how many; older ones are removed once a newer one is safe.
    """

    def __init__(self, folder: str | Path, keep: int = 2):
        self.folder = Path(folder)
        self.keep = keep

    def files(self) -> list[Path]:
        """The checkpoints there are, the oldest first."""
        return sorted(f for f in self.folder.glob(f"step-*{SUFFIX}") if re.fullmatch(r"step-\d+", f.stem))

    def save(self, step: int, arrays: dict[str, Array], rest: dict[str, Any]) -> Path:
        """Write the checkpoint of a step, then remove what is older than the newest `keep`. CheckpointError as `save`."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"checkpoint: the folder {self.folder} could not be made: {error.strerror}") from error
        file = self.folder / f"step-{step:09d}{SUFFIX}"
        save(file, arrays, rest)
        for old in [f for f in self.files() if f != file][:-(self.keep - 1) or None]:
            old.unlink(missing_ok=True)
        for leftover in self.folder.glob(".step-*.tmp"):        # of a process that was killed while it wrote
            leftover.unlink(missing_ok=True)
        return file

    def latest(self) -> tuple[Path, dict[str, np.ndarray], dict[str, Any]]:
        """The newest checkpoint that can be read: file, arrays, rest. CheckpointError if there is none."""
        broken: list[CheckpointError] = []
        for file in reversed(self.files()):
            try:
                return (file, *load(file))
            except CheckpointError as error:                    # a disk can lose what was written; the one before may be whole
                broken.append(error)
        if broken:
            raise broken[0]
        raise CheckpointError(f"checkpoint: there is none in {self.folder}", hint="The run was stopped before it wrote its first one.")
