"""The loader: which samples form which minibatch, and how they reach the model.

Everything random is a function of a few whole numbers, and of nothing that happened before: the order of (seed, epoch), the
augmentation of (seed, epoch, minibatch). So any epoch can be replayed, a run can go on in the middle of one, and the minibatches are the
same on one process as on many, each of which takes its contiguous part of them. Randomness of the model is not made here.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any

import numpy as np

from minidl import backend
from minidl.backend import Array
from minidl.data.dataset import Dataset
from minidl.data.prefetch import Prefetch
from minidl.data.transforms import Transform, rows, whole
from minidl.errors import ArgumentError, DataError, DtypeError, ShapeError
from minidl.profiler import phase

Batch = tuple[np.ndarray, np.ndarray]
ORDER, AUGMENT = 0, 1                   # two streams of random numbers from one seed


class Loader:
    """Minibatches (x, y) of a data set: x float32, (n, C, H, W) in [0, 1] for images, and y int64, (n,).

    data: a Dataset, or a pair of arrays (x, y), which is made one (bytes are divided by 255, other numbers are taken as they are).
    batch_size: samples a minibatch, over all ranks together. shuffle: a new order each epoch. seed: 0 or more.
    transform: None, or a Transform, applied to each minibatch.
    rank, ranks: this process is number `rank` of `ranks`. It gets a contiguous part of each minibatch; the parts differ by at most one
    sample, the first ranks getting the longer ones. Where a minibatch has fewer samples than there are ranks, the last ranks get an
    empty part, so that every rank makes the same number of steps. rank None gets an empty part of each: it takes part otherwise.
    prefetch: how many minibatches are made ahead of time, in a thread in which the transform runs too; 0 makes each when it is asked
    for. The bits are the same.
    drop_last: leave out the last minibatch of an epoch if it is smaller than the others.
    A `for` over the loader itself runs through epoch 0 the first time, epoch 1 the next, and so on.
    ShapeError for x and y of different lengths, ArgumentError for a value that makes no sense, DataError for no samples.

    >>> loader = Loader((np.eye(5), np.arange(5)), batch_size=2, seed=1)
    >>> [y.tolist() for x, y in loader.epoch(0)] == [y.tolist() for x, y in loader.epoch(0)]
    True
    """

    def __init__(self, data: Dataset | tuple[Any, Any], batch_size: int = 64, shuffle: bool = True, seed: int = 0,
                 transform: Transform | None = None, rank: int | None = 0, ranks: int = 1, prefetch: int = 2, drop_last: bool = False):
        self.data = _dataset(data)
        self.batch_size = whole("Loader", "batch_size", batch_size, 1)
        self.shuffle, self.drop_last = shuffle, drop_last
        self.seed = whole("Loader", "seed", seed, 0)
        self.transform = transform
        self.ranks = whole("Loader", "ranks", ranks, 1)
        self.rank = None if rank is None else whole("Loader", "rank", rank, 0)
        self.prefetch = whole("Loader", "prefetch", prefetch, 0)
        self.next_epoch = 0             # the one that the next `for` over the loader runs through
        if self.rank is not None and self.rank >= self.ranks:
            raise ArgumentError(f"Loader: there is no rank {rank} of {ranks}", hint=f"Ranks count from 0: the last is {ranks - 1}.")
        if transform is not None and not (hasattr(transform, "draw") and hasattr(transform, "apply")):
            raise ArgumentError(f"Loader: transform is {transform!r}, not a Transform",
                                hint="Derive a class from minidl.data.Transform and give it apply(self, x, drawn).")
        if not len(self.data):
            raise DataError("Loader: the data set has no samples")
        if not len(self):
            raise ArgumentError("Loader: drop_last leaves no minibatch at all", samples=len(self.data), batch_size=batch_size,
                                hint="Make batch_size smaller, or keep the last minibatch.")

    def __len__(self) -> int:
        """How many minibatches an epoch has, the same on every rank."""
        full, rest = divmod(len(self.data), self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def size(self, minibatch: int) -> int:
        """How many samples a minibatch has, over all ranks together. ArgumentError if an epoch has no such minibatch."""
        if not 0 <= minibatch < len(self):
            raise ArgumentError(f"Loader: there is no minibatch {minibatch}", hint=f"An epoch has {len(self)}, counted from 0.")
        return min(self.batch_size, len(self.data) - minibatch * self.batch_size)

    def order(self, epoch: int) -> np.ndarray:
        """The indices of all samples in the order of an epoch: int64 (N,)."""
        if not self.shuffle:
            return np.arange(len(self.data))
        return self._generator(ORDER, epoch).permutation(len(self.data))

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """The minibatches of epoch `number`, from minibatch `start` on: bit for bit those that a run from the beginning sees.

        ArgumentError for a negative number, or a start that the epoch does not reach (its very end is allowed, and has no minibatches).
        """
        batches = (self.take(*pick) for pick in self.picks(*self.checked(number, start)))
        return Prefetch(batches, self.prefetch) if self.prefetch else timed(batches)

    def checked(self, number: int, start: int) -> tuple[int, int]:
        """The numbers of an epoch and of the minibatch where it starts. ArgumentError: see `epoch`."""
        number, start = whole("Loader", "epoch", number, 0), whole("Loader", "start", start, 0)
        if start > len(self):
            raise ArgumentError(f"Loader: epoch {number} has no minibatch {start}, it has {len(self)}",
                                hint="Was the run that is resumed begun with another batch_size or other data?")
        return number, start

    def __iter__(self) -> Iterator[Batch]:
        self.next_epoch += 1
        return self.epoch(self.next_epoch - 1)

    def picks(self, epoch: int, start: int = 0) -> Iterator[tuple[np.ndarray, Any]]:
        """Of each minibatch: the numbers of this rank's samples, and what the transform has drawn for them. `take` makes it of that."""
        order = self.order(epoch)
        for k in range(start, len(self)):
            size = self.size(k)
            part = slice(0, 0) if self.rank is None else share(size, self.rank, self.ranks)
            first = k * self.batch_size
            # drawn for the samples of all ranks, of which this one takes its rows
            drawn = None if self.transform is None else self.transform.draw(self._generator(AUGMENT, epoch, k), size)
            yield order[first + part.start:first + part.stop], rows(drawn, part)

    def take(self, index: np.ndarray, drawn: Any) -> Batch:
        """The minibatch of the samples of these numbers, for which this was drawn."""
        x, y = self.data[index]
        return (x if self.transform is None else checked(self.transform.apply(x, drawn), len(y), self.transform)), y

    def _generator(self, *stream: int) -> np.random.Generator:
        # spawn_key and not a longer list of seeds: SeedSequence([1, 2]) and SeedSequence([1, 2, 0]) are the same
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=stream))


def timed(batches: Iterator[Any]) -> Generator[Any, None, None]:
    """The same, where whoever takes one waits until it is made."""
    while True:
        with phase("data"):
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


def share(size: int, rank: int, ranks: int) -> slice:
    """The part of `size` samples that a rank gets: contiguous, in the order of the ranks, longer by one for the first size % ranks.

    >>> [share(7, rank, 3) for rank in range(3)]
    [slice(0, 3, None), slice(3, 5, None), slice(5, 7, None)]
    """
    each, over = divmod(size, ranks)
    first = rank * each + min(rank, over)
    return slice(first, first + each + (rank < over))


def _dataset(data: Any) -> Dataset:
    if isinstance(data, Dataset):
        return data
    if not isinstance(data, (tuple, list)) or len(data) != 2 or isinstance(data[0], Dataset):
        raise ArgumentError(f"Loader: data is {type(data).__name__}, neither a Dataset nor a pair of arrays (x, y)",
                            hint='Give one part of what load gave: train, test = minidl.data.load("digits"); Loader(train).')
    return Dataset(*data)


def checked(x: Array, samples: int, transform: Any) -> Array:
    """What a transform gave, if it is as many float32 images as it got."""
    if not backend.is_array(x) or x.dtype != np.float32:
        raise DtypeError(f"Loader: {transform!r} gave {getattr(x, 'dtype', type(x).__name__)}, not a float32 array",
                         hint="End its apply with .astype(np.float32, copy=False).")
    if len(x) != samples:
        raise ShapeError(f"Loader: {transform!r} gave {len(x)} images for {samples}", hint="A transform keeps the number of images.")
    return x
