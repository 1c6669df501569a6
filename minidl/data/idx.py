"""The IDX format, in which MNIST and Fashion-MNIST are published: how large the array is, then its numbers.

    offset 0    two zero bytes, one byte for the type of number, one byte for the number of axes
    offset 4    the length of each axis, a big-endian uint32 each
    then        the numbers, big-endian, the last axis fastest

A file may be gzipped: its first bytes tell, not its name. Every offset in an error counts unzipped bytes. What the numbers mean
is the catalogue's business. LeCun, Cortes and Burges, "The MNIST database of handwritten digits", 1998.
"""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from minidl.errors import DataError

TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
IMAGES = bytes([0, 0, 0x08, 3])         # the magic of uint8 images, (N, H, W)
LABELS = bytes([0, 0, 0x08, 1])         # the magic of uint8 labels, (N,)
GZIP = b"\x1f\x8b"
BROKEN = (EOFError, gzip.BadGzipFile, zlib.error)       # what unzipping raises for a file that is cut off or changed
AGAIN = "Delete it and get it again."


def read_idx(path: str | os.PathLike[str], magic: bytes | None = None) -> np.ndarray:
    """The array of an IDX file, plain or gzipped.

    magic: the four bytes that the file must begin with, such as IMAGES or LABELS; None takes every kind.
    The result has the file's shape and number type, in the machine's byte order. DataError, with file, offset, expected and found,
    for a file that is missing, has another magic, ends too early or goes on too long.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "labels"
    >>> path.write_bytes(LABELS + bytes([0, 0, 0, 2]) + bytes([7, 5]))
    10
    >>> read_idx(path)
    array([7, 5], dtype=uint8)
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            zipped = file.read(2) == GZIP
            file.seek(0)
            if zipped:
                with gzip.GzipFile(fileobj=file) as unzipped:
                    return _read(unzipped, path, magic)
            return _read(file, path, magic, size=os.fstat(file.fileno()).st_size)
    except OSError as error:
        raise DataError("idx: the file cannot be read", file=path, found=error.strerror or error) from None


def read_images(path: str | os.PathLike[str]) -> np.ndarray:
    """The images of an IDX file: uint8, (N, H, W), 0 to 255. DataError as in `read_idx`, also for a file of labels."""
    return read_idx(path, IMAGES)


def read_labels(path: str | os.PathLike[str], classes: int) -> np.ndarray:
    """The labels of an IDX file: uint8 class ids, (N,). DataError as in `read_idx`, also for a label that is not below `classes`."""
    labels = read_idx(path, LABELS)
    wrong = np.flatnonzero(labels >= classes)
    if len(wrong):
        raise DataError("idx: a label is no class of this data set", file=path, offset=8 + int(wrong[0]),
                        expected=f"0 to {classes - 1}", found=int(labels[wrong[0]]))
    return labels


def _read(stream: Any, path: Path, magic: bytes | None, size: int | None = None) -> np.ndarray:
    head = bytes(_take(stream, path, 0, 4, "the magic number"))
    if magic is not None and head != magic:
        raise DataError("idx: wrong magic number", file=path, offset=0, expected=_describe(magic), found=_describe(head),
                        hint="Is this a file of another kind under this name?")
    if head[:2] != b"\0\0" or head[2] not in TYPES:
        raise DataError("idx: wrong magic number", file=path, offset=0, found=_describe(head),
                        expected="00 00, a type of number (08, 09, 0b, 0c, 0d or 0e), the number of axes")

    axes = head[3]
    shape = struct.unpack(f">{axes}I", _take(stream, path, 4, 4 * axes, f"the lengths of {axes} axes"))
    start = 4 + 4 * axes
    dtype = np.dtype(TYPES[head[2]])
    count = math.prod(shape) * dtype.itemsize
    what = f"the numbers of shape {shape}"
    if size is not None and size < start + count:       # known at once, whatever lengths the header claims
        raise _too_short(path, start, what, count, size - start)
    data = _take(stream, path, start, count, what)
    end: dict[str, Any] = {"file": path, "offset": start + count, "expected": f"the end of the file, after {what}"}
    try:
        rest = stream.read(1)           # of a gzipped file, this also compares its check sum
    except BROKEN as error:
        raise DataError("idx: the gzipped file is damaged", **end, found=error, hint=AGAIN) from None
    if rest:
        raise DataError("idx: the file goes on after its last number", **end, found="more bytes", hint=AGAIN)
    try:
        return np.frombuffer(data, dtype).reshape(shape).astype(dtype.newbyteorder("="), copy=False)
    except ValueError as error:         # no numbers, but lengths beyond all bounds; or more than 64 axes
        raise DataError("idx: no array has this shape", file=path, offset=3, expected="a shape that NumPy can make",
                        found=f"{axes} axes: {error}", hint=AGAIN) from None


def _take(stream: Any, path: Path, offset: int, count: int, what: str) -> bytearray:
    """`count` bytes, read a piece at a time, so that a header which claims too much costs no memory."""
    data = bytearray()
    reason = ""
    try:
        while len(data) < count and (piece := stream.read(min(count - len(data), 1 << 20))):
            data += piece
    except BROKEN as error:
        reason = f", then: {error}"
    if len(data) < count:
        raise _too_short(path, offset, what, count, len(data), reason)
    return data


def _too_short(path: Path, start: int, what: str, expected: int, found: int, reason: str = "") -> DataError:
    return DataError("idx: the file ends too early", file=path, offset=start + found,
                     expected=f"{expected:,} bytes from offset {start}: {what}", found=f"{found:,} bytes{reason}", hint=AGAIN)


def _describe(magic: bytes) -> str:
    known = {IMAGES: " (uint8 images)", LABELS: " (uint8 labels)"}
    text = f" ({magic.decode()!r})" if magic.isascii() and magic.decode().isprintable() else ""
    return magic.hex(" ") + known.get(magic, text)
