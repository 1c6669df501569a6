"""Dataset: samples and labels side by side, and how to cut them in two.

Images stay the bytes that they were on disk, a quarter of the memory of float32, and become float32 in [0, 1] when a minibatch is taken
out. Where the arrays come from is the readers' business; in which order they are used, the loader's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from minidl import backend
from minidl.errors import ArgumentError, DataError, DtypeError, LabelError, ShapeError


@dataclass(eq=False, repr=False)
class Dataset:
    """Samples x and labels y, with the names of the classes.

    x: images (N, C, H, W) or vectors (N, D), of any real number type. y: class ids (N,), kept as int64, or real targets of any shape
    (N, ...), kept as float32. peak: the number in x that stands for 1.0; by default 255 for uint8, else 1, that is, x as it is.
    Indexing with an integer, slice or array of indices gives (x / peak as float32, y), always copies. ShapeError if x and y differ in
    length, DtypeError if they are not real numbers, LabelError for an index outside.

    >>> data = Dataset(np.array([[0], [51], [255]], np.uint8), np.array([0, 1, 1]), classes=("dark", "bright"))
    >>> data[1:]
    (array([[0.2], [1. ]], dtype=float32), array([1, 1]))
    """

    x: np.ndarray
    y: np.ndarray
    classes: tuple[str, ...] = ()
    name: str = "own data"
    peak: float = 0.0                   # 0: decided by the type of x

    def __post_init__(self) -> None:
        self.x, self.y = backend.to_numpy(self.x), backend.to_numpy(self.y)
        for name, array in (("x", self.x), ("y", self.y)):
            if array.dtype.kind not in "buif":
                raise DtypeError(f"Dataset: {name} is {array.dtype}, not a real number",
                                 hint="Give every sample as numbers, and every class as an integer.")
            if array.ndim == 0:
                raise ShapeError(f"Dataset: {name} has no axes", hint="Its first axis counts the samples.")
        if len(self.x) != len(self.y):
            raise ShapeError(f"Dataset: x has {len(self.x)} samples, y has {len(self.y)}", x=self.x.shape, y=self.y.shape,
                             hint="Give one label for each sample.")
        self.y = self.y.astype(np.int64 if self.y.dtype.kind in "bui" else np.float32, copy=False)
        self.classes = tuple(self.classes)
        if not self.peak:
            self.peak = 255.0 if self.x.dtype == np.uint8 else 1.0

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: Any) -> tuple[np.ndarray, np.ndarray]:
        try:
            x, y = self.x[index], self.y[index]
        except IndexError as error:
            raise LabelError(f"Dataset: {error}", samples=len(self)) from None
        if self.peak != 1:
            return np.divide(x, np.float32(self.peak), dtype=np.float32), np.array(y)[()]
        # an array of indices has copied x already, a slice has not
        return x.astype(np.float32, copy=np.may_share_memory(x, self.x)), np.array(y)[()]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample: (C, H, W), or (D,)."""
        return self.x.shape[1:]

    def __repr__(self) -> str:
        return f"Dataset({self.name}: {len(self):,} samples of shape {self.shape}, {len(self.classes)} classes)"


def stratified(labels: np.ndarray, test: int, seed: int) -> np.ndarray:
    """Which samples to keep for the test, drawn at random, with each class in it as often as in the whole: bool (N,).

    labels: class ids (N,). test: how many in all; what does not divide evenly goes to the classes that lost most by rounding down.
    A class never gives its last sample. ArgumentError if that makes `test` impossible.

    >>> chosen = stratified(np.array([0, 0, 0, 0, 1, 1]), test=3, seed=0)
    >>> chosen[:4].sum(), chosen[4:].sum()
    (np.int64(2), np.int64(1))
    """
    classes, members, counts = np.unique(labels, return_inverse=True, return_counts=True)
    if not 0 <= test <= len(labels) - len(classes):
        raise ArgumentError(f"split: {test} of {len(labels)} samples cannot be set aside for the test",
                            hint="Each class must keep a sample to learn from.", classes=len(classes))
    share = counts * test / max(len(labels), 1)
    wanted = np.minimum(share.astype(int), counts - 1)
    while wanted.sum() < test:
        wanted[np.argmax(np.where(wanted < counts - 1, share - wanted, -np.inf))] += 1
    generator = np.random.default_rng(seed)
    chosen = np.zeros(len(labels), bool)
    for k, number in enumerate(wanted):
        chosen[generator.permutation(np.flatnonzero(members == k))[:number]] = True
    return chosen


def set_aside(data: Dataset) -> tuple[Dataset, Dataset]:
    """Training and test parts of a data set that came as one: a fifth, drawn with a fixed seed, each class having its share, is the test.

    The samples keep their order. DataError where there are too few samples to have both.

    >>> set_aside(Dataset(np.arange(20).reshape(10, 2), np.arange(10) % 2, name="ten"))
    (Dataset(ten: 8 samples of shape (2,), 0 classes), Dataset(ten: 2 samples of shape (2,), 0 classes))
    """
    test = max(1, round(len(data) / 5))
    if test > len(data) - len(np.unique(data.y)):
        raise DataError(f"{data.name}: {len(data)} samples are too few to set some aside for the test",
                        hint="Add samples, so that each class has several, or give the test yourself (x_test, or a folder test).")
    chosen = stratified(data.y, test, seed=0)
    train, held = (Dataset(data.x[part], data.y[part], data.classes, data.name, data.peak) for part in (~chosen, chosen))
    return train, held
