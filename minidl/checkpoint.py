"""A run on disk: all its arrays and numbers in one file, written so that a crash at any moment leaves a whole file behind.

A checkpoint is a safetensors file: the arrays by name, and everything else as JSON in its metadata, with a checksum over both. It is
written under a temporary name, flushed to the disk, and renamed into place; the folder is flushed too. So what stands under the right
name is always complete, and a byte that the disk lost later is noticed. What goes into a checkpoint is decided by whoever calls
(run.py, record.py); how arrays lie in memory comes back as it was, because bits depend on it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minidl import backend
from minidl.backend import Array
from minidl.errors import ArgumentError, CheckpointError, DtypeError

SUFFIX = ".safetensors"


def write(file: str | Path, content: bytes) -> None:
    """Put a file where another one may be, in one step that either happens or does not.

    CheckpointError if it cannot be written, for example because the disk is full; what was there before is then still there.
    """
    file = Path(file)
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file)
        flush_folder(file.parent)
    except OSError as error:
        raise CheckpointError(f"checkpoint: {file} could not be written: {error.strerror or error}", size=f"{len(content):,} bytes",
                              hint="What was written before is as it was. Make room, or choose another folder.") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def flush_folder(folder: Path) -> None:
    """Make a rename inside a folder last through a power cut; file systems that cannot are left alone."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def save(file: str | Path, arrays: Mapping[str, Array], rest: Mapping[str, Any] | None = None) -> None:
    """Write arrays and JSON values to a file, as `write` does.

    file: its folder must exist. arrays: real numbers of up to 64 bits by name, on any device. rest: what JSON can hold; no NaN.
    CheckpointError if something cannot be held, or the file cannot be written.
    """
    from safetensors.numpy import save as to_bytes

    stored, orders = {}, {}
    for name, x in arrays.items():
        x = backend.to_numpy(x)
        if not (x.dtype.kind in "biu" or backend.is_float(x.dtype)) or x.dtype.itemsize > 8:
            raise CheckpointError(f"checkpoint: {name} is {x.dtype}, which safetensors cannot hold")
        order = memory_order(x)
        stored[name] = np.asarray(x.transpose(order), x.dtype.newbyteorder("="), order="C")
        if order != tuple(range(x.ndim)):
            orders[name] = order
    about = {"orders": orders, "rest": rest or {}}
    try:
        text = json.dumps({"checksum": checksum(stored, about), **about}, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"checkpoint: {file}: the rest is not what JSON can hold: {error}") from error
    write(file, to_bytes(stored, {"minidl": text}))


def load(file: str | Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read what `save` wrote: the arrays, in the memory order they had, and the rest.

    Any other safetensors file gives its arrays and an empty rest. CheckpointError if the file is missing, damaged, or no such file.
    """
    from safetensors import SafetensorError, safe_open

    file = Path(file)
    if not file.is_file():
        raise CheckpointError(f"checkpoint: there is no file {file}")
    size = f"{file.stat().st_size:,} bytes"
    with contextlib.suppress(DtypeError):                              # NumPy then knows bfloat16, which the file may hold
        backend.dtype_named("bfloat16")
    try:
        with safe_open(file, framework="numpy") as content:
            metadata = content.metadata() or {}
            arrays = {name: content.get_tensor(name) for name in content.keys()}        # noqa: SIM118   (not a dict)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"checkpoint: {file} cannot be read: {error}", size=size,
                              hint="It is cut off, or is not a safetensors file.") from error
    except (TypeError, AttributeError) as error:            # what NumPy says to bfloat16 and the like
        raise CheckpointError(f"checkpoint: {file} holds numbers that NumPy does not have: {error}",
                              hint="For bfloat16 install minidl[precision]; else convert it to float32 first.") from error
    ours = [text for key, text in metadata.items() if key == "minidl" or text.startswith('{"checksum"')]     # whichever is damaged
    if not ours:
        return arrays, {}
    try:
        about = json.loads(ours[0])
        whole = about.pop("checksum") == checksum(arrays, about)
    except (ValueError, AttributeError, KeyError, TypeError):
        whole = False
    if not whole:
        raise CheckpointError(f"checkpoint: {file} is damaged: its content is not what was written", size=size)
    for name, order in about["orders"].items():
        arrays[name] = arrays[name].transpose(np.argsort(order))
    return arrays, about["rest"]


def memory_order(x: np.ndarray) -> tuple[int, ...]:
    """The axes from the one with the longest step in memory to the one with the shortest; (0, 1, ...) for an ordinary array."""
    if x.flags.c_contiguous:
        return tuple(range(x.ndim))
    return tuple(sorted(range(x.ndim), key=lambda axis: (x.shape[axis] > 1, -abs(x.strides[axis]) * (x.shape[axis] > 1), axis)))


def checksum(arrays: Mapping[str, np.ndarray], about: Any) -> str:
    """A CRC-32 over names, types, shapes and numbers of arrays, and what JSON says about them: 8 hexadecimal digits."""
    crc = zlib.crc32(json.dumps(about).encode())
    for name in sorted(arrays):
        x = arrays[name]
        crc = zlib.crc32(f"{name} {x.dtype} {x.shape}".encode(), crc)
        crc = zlib.crc32(x.reshape(-1).view(np.uint8).data, crc)
    return f"{crc:08x}"


class Found(NamedTuple):
    """A checkpoint that was read, and what was newer and could not be."""

    file: Path
    arrays: dict[str, np.ndarray]
    rest: dict[str, Any]
    damaged: list[Path]


class Checkpoints:
    """The checkpoints of one run: a folder with a file for each, named by the step, of which the newest few are kept.

    keep: how many; older ones are removed once a newer one is safe.
    """

    def __init__(self, folder: str | Path, keep: int = 2):
        if keep < 1:
            raise ArgumentError(f"Checkpoints: keep is {keep}, and must be at least 1")
        self.folder = Path(folder)
        self.keep = keep

    def files(self) -> dict[int, Path]:
        """The checkpoints there are, by step, the oldest first."""
        named = ((re.fullmatch(r"step-(\d+)", file.stem), file) for file in self.folder.glob(f"step-*{SUFFIX}"))
        return dict(sorted((int(name[1]), file) for name, file in named if name))

    def save(self, step: int, arrays: Mapping[str, Array], rest: Mapping[str, Any]) -> Path:
        """Write the checkpoint of a step, then remove all but the newest `keep`. CheckpointError as `save`."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"checkpoint: the folder {self.folder} could not be made: {error.strerror or error}") from error
        file = self.folder / f"step-{step:09d}{SUFFIX}"
        save(file, arrays, rest)
        there = self.files()
        kept = [number for number in there if number <= step][-self.keep:]      # a later one was damaged, so that the run fell back
        for number, other in there.items():
            if number not in kept:
                with contextlib.suppress(OSError):
                    other.unlink()
        return file

    def latest(self) -> Found | None:
        """The newest checkpoint that can be read; None if there is no file at all. CheckpointError if none can be read."""
        errors: dict[Path, CheckpointError] = {}
        for file in reversed(self.files().values()):
            try:
                return Found(file, *load(file), list(errors))
            except CheckpointError as error:                    # a disk can lose what was written; the one before may be whole
                errors[file] = error
        if errors:
            raise CheckpointError(f"checkpoint: none of those in {self.folder} can be read\n  " + "\n  ".join(map(str, errors.values())))
        return None
