"""The binary version of CIFAR-10: records of one label and 3 x 32 x 32 pixels, one after the other, and nothing else.

    offset 0        label, 0 to 9
    offset 1        1,024 red bytes row by row, then 1,024 green, then 1,024 blue
    offset 3073     the next record

There is no header, so the length of the file and the labels are all that can be checked. A file may hold any number of records.
Krizhevsky, "Learning multiple layers of features from tiny images", 2009.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from minidl.errors import DataError

RECORD = 1 + 3 * 32 * 32
HINT = "Is it a file of the 'CIFAR-10 binary version', and whole? Delete it and get it again."


def read_cifar(path: str | os.PathLike[str]) -> tuple[np.ndarray, np.ndarray]:
    """The images and labels of one file: uint8 (N, 3, 32, 32), 0 to 255, and uint8 (N,), 0 to 9.

    DataError, with file, offset, expected and found, for a file that is missing, empty or cut off, or has a label above 9.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "test_batch.bin"
    >>> path.write_bytes(bytes([6]) + bytes(3072)) // RECORD
    1
    >>> images, labels = read_cifar(path)
    >>> images.shape, labels
    ((1, 3, 32, 32), array([6], dtype=uint8))
    """
    try:
        data = np.frombuffer(Path(path).read_bytes(), np.uint8)
    except OSError as error:
        raise DataError("cifar: the file cannot be read", file=path, found=error.strerror or error) from None
    over = len(data) % RECORD
    if over or not len(data):
        raise DataError("cifar: the file does not end with a whole record", file=path, offset=len(data) - over,
                        expected=f"{RECORD} bytes, or the end of the file" if len(data) else f"{RECORD} bytes",
                        found=f"{over} bytes", hint=HINT)
    records = data.reshape(-1, RECORD)
    labels = records[:, 0]
    wrong = np.flatnonzero(labels > 9)
    if len(wrong):
        raise DataError("cifar: a record has a label that is no class", file=path, offset=int(wrong[0]) * RECORD,
                        expected="0 to 9", found=int(labels[wrong[0]]), hint=HINT)
    return records[:, 1:].copy().reshape(-1, 3, 32, 32), labels.copy()
