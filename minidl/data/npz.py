"""Your own arrays as a data set: an .npz file, as numpy.savez writes it.

    x_train, y_train, x_test, y_test        or x and y, of which the test is drawn here, always the same one
    classes                                 the names of the classes, if they have any

Nothing is ever unpickled: a file that holds Python objects is refused, because reading it could run any program.
"""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

from minidl.data.dataset import Dataset, set_aside
from minidl.errors import DataError

BROKEN = (OSError, EOFError, ValueError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error)    # as NumPy and zipfile please
PARTS = ("x_train", "y_train", "x_test", "y_test")


def read_npz(path: Path) -> tuple[Dataset, Dataset]:
    """The training and test data of an .npz file.

    x: images (N, C, H, W) or (N, H, W), which become (N, 1, H, W), or vectors (N, D); bytes count from 0 to 255, other numbers are taken
    as they are. y: class ids (N,), integers from 0. classes: K strings; without them the classes are called 0, 1, 2, ...
    With x and y alone a fifth is the test, each class having its share.
    DataError, with file and key, for a file that is no whole .npz, for keys that are missing, and for arrays that do not fit.
    """
    arrays = _arrays(path)
    pairs = [PARTS[:2], PARTS[2:]] if "x_train" in arrays else [("x", "y")]
    xs = [_samples(path, key, arrays[key]) for key, _ in pairs]
    ys = [_labels(path, key, arrays[key]) for _, key in pairs]
    for (x_key, y_key), x, y in zip(pairs, xs, ys):
        if len(x) != len(y):
            raise DataError(f"npz: {x_key} has {len(x)} samples, {y_key} has {len(y)}", file=path,
                            hint="Give one label for each sample.")
    if xs[0].shape[1:] != xs[-1].shape[1:] or (xs[0].dtype == np.uint8) != (xs[-1].dtype == np.uint8):
        raise DataError("npz: x_train and x_test do not go together", file=path, x_train=f"{xs[0].shape} {xs[0].dtype}",
                        x_test=f"{xs[1].shape} {xs[1].dtype}", hint="Make them of one shape and one number type.")

    if "classes" in arrays:
        classes = _names(path, arrays["classes"])
    else:           # as many as the labels say, but not more than samples: a stray id is not to be taken for a million classes
        classes = tuple(map(str, range(max(1, min(int(ys[0].max()) + 1, len(ys[0]))))))
    for (_, key), y in zip(pairs, ys):
        wrong = np.flatnonzero((y < 0) | (y >= len(classes)))
        if len(wrong):
            raise DataError(f"npz: {key} has a label that is no class", file=path, index=int(wrong[0]), found=int(y[wrong[0]]),
                            expected=f"0 to {len(classes) - 1}",
                            hint="Count classes from 0, as numpy.unique(y, return_inverse=True) does, or name them all: classes=[...].")
    sets = [Dataset(x, y, classes, path.stem) for x, y in zip(xs, ys)]
    return (sets[0], sets[1]) if len(sets) == 2 else set_aside(sets[0])


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """What is read of a file: the four arrays, or x and y; and classes, if they are there. Other keys are not looked at."""
    key = ""
    try:
        with path.open("rb") as file:           # opened here, since NumPy forgets to close a damaged file
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("it is one array, not an archive of several")
            there = set(archive.files)
            wanted = {"x", "y"} if {"x", "y"} <= there and not there & set(PARTS) else set(PARTS)
            if not wanted <= there:
                raise DataError("npz: the keys are not those of a data set", file=path, found=", ".join(archive.files) or "none",
                                expected=f"{', '.join(PARTS)}; or x, y",
                                hint="numpy.savez(FILE, x_train=..., y_train=..., x_test=..., y_test=...)")
            arrays = {}
            for key in sorted(wanted | {"classes"} & there):
                arrays[key] = archive[key]
                if not isinstance(arrays[key], np.ndarray):
                    raise ValueError("it is no array")
            return arrays
    except DataError:
        raise
    except BROKEN as error:
        facts = {"key": key} if key else {}
        hint = "Was it written whole, with numpy.savez? Write it again."
        if "allow_pickle" in str(error) and key:
            hint = "Python objects are not read, because that could run any program. Save numbers: x.astype(numpy.float32)."
        raise DataError("npz: the file cannot be read", file=path, **facts, reason=error, hint=hint) from None


def _samples(path: Path, key: str, x: np.ndarray) -> np.ndarray:
    if x.dtype.kind not in "buif":
        raise DataError(f"npz: {key} does not hold real numbers", file=path, found=x.dtype, hint="x.astype(numpy.float32)")
    if x.ndim not in (2, 3, 4) or not x.size:
        raise DataError(f"npz: {key} has a shape that is not one of samples", file=path, found=x.shape,
                        expected="(N, C, H, W), (N, H, W) or (N, D), none of them 0")
    if x.ndim == 4 and x.shape[3] in (1, 3) and x.shape[1] not in (1, 3):
        raise DataError(f"npz: {key} has its channels last", file=path, found=x.shape, expected="(N, C, H, W)",
                        hint="x.transpose(0, 3, 1, 2)")
    if x.dtype.kind == "f" and not np.isfinite(x).all():
        where = tuple(map(int, np.argwhere(~np.isfinite(x))[0]))
        raise DataError(f"npz: {key} holds a number that is not finite", file=path, index=where, found=x[where])
    return x[:, None] if x.ndim == 3 else x


def _labels(path: Path, key: str, y: np.ndarray) -> np.ndarray:
    if y.dtype.kind not in "ui" or y.ndim != 1:
        hint = "y.argmax(axis=1), if y is one-hot; y.ravel(), if it is (N, 1)" if y.ndim == 2 else "y.astype(int)"
        raise DataError(f"npz: {key} does not hold class ids", file=path, found=f"{y.dtype} {y.shape}",
                        expected="integers (N,)", hint=hint)
    return y


def _names(path: Path, names: np.ndarray) -> tuple[str, ...]:
    if names.dtype.kind != "U" or names.ndim != 1:
        raise DataError("npz: classes does not hold names", file=path, found=f"{names.dtype} {names.shape}",
                        expected="strings (K,)", hint='numpy.array(["cat", "dog"])')
    return tuple(map(str, names))
