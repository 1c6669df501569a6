"""Minibatches on a device: made while the last step runs, and copied there beside it.

A small data set lies on the device: of a minibatch only the numbers of its samples travel, and what the transform has drawn. Of a larger
one the samples travel as they lie in memory, bytes as bytes. Either way they become float32 there and are transformed there, with the
bits that the CPU would have given; only a transform that knows NumPy alone has all done on the CPU. Which samples form a minibatch is the
loader's business.

What travels is written to page-locked memory and copied on a stream of its own, in a few slots that are used in turn. Three waits keep it
right, and the training thread makes none of them:
    the copy stream waits until the training stream has read the slot, before it copies something new to it,
    the thread that makes minibatches waits until the slot's last copy is over, before it writes there,
    the training stream waits for the copy, before it reads.
What the training loop gets is made on its own stream, in memory of its own. So a minibatch may be kept or let go at any time, although
CuPy's pool gives memory that was let go to the next array on that stream at once, and asks no other stream whether it has done with it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from minidl import backend
from minidl.backend import Array
from minidl.data.dataset import Dataset
from minidl.data.loader import Loader, checked, timed
from minidl.data.prefetch import Prefetch
from minidl.data.transforms import on_devices
from minidl.library import Streams
from minidl.profiler import phase

Batch = tuple[Array, Array]
SMALL = 2**28                   # bytes of a data set that lies on a device of which it is not known how much it has
PART = 10                       # else it may take one part in so many of what is free
ALIGNED = 256                   # bytes, from one array of a slot to the next


class Rows(NamedTuple):
    """Rows of an array, to be gathered where they are written."""

    x: np.ndarray
    numbers: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what is gathered."""
        return (len(self.numbers), *self.x.shape[1:])

    @property
    def dtype(self) -> np.dtype:
        """Of the numbers."""
        return self.x.dtype


Parcel = list[np.ndarray | Rows]


class Feed:
    """The minibatches of Loaders, on a device, for one run: what lies there is let go with the Feed.

    device: "cpu", "cuda:0", ... resident: bytes that data sets may take on it; by default a tenth of what is free when they are first
    asked for; 0 where each is gone through once only.
    """

    def __init__(self, device: str, resident: int | None = None):
        self.device = backend.named_device(device)
        self.resident = resident
        self.there: dict[int, tuple[Dataset, Batch | None]] = {}        # data sets by id, with their arrays on the device

    def epoch(self, loader: Loader, number: int, start: int = 0) -> Iterator[Batch]:
        """What loader.epoch(number, start) gives, bit for bit; on the device, if the loader's way to make it is known.

        That is so for a Loader, and not for a class of its own that has changed `epoch`: its minibatches come as it makes them.
        """
        known = all(getattr(type(loader), name, None) is getattr(Loader, name) for name in ("epoch", "picks", "take"))
        if self.device == "cpu" or not known:
            return loader.epoch(number, start)
        return self._epoch(loader, *loader.checked(number, start))

    def close(self) -> None:
        """Let go of what lies on the device."""
        self.there.clear()

    def bytes(self) -> int:
        """What data sets take on the device."""
        return sum(x.nbytes + y.nbytes for _, arrays in self.there.values() if arrays is not None for x, y in [arrays])

    def _epoch(self, loader: Loader, number: int, start: int) -> Iterator[Batch]:
        parcels = packed(loader, self._way(loader), number, start)
        first = next(parcels, None)
        if first is None:
            return
        slots = Slots(self.device, loader.prefetch + 2, first[1])
        loads = (slots.load(*each) for each in chain([first], parcels))
        ahead = Prefetch(loads, loader.prefetch) if loader.prefetch else timed(loads)
        try:
            for load in ahead:
                yield slots.take(load)                  # which no variable of this function keeps
        finally:
            ahead.close()
            slots.close()

    def _way(self, loader: Loader) -> Way:
        """How the minibatches of a loader come to the device."""
        data, transform = loader.data, loader.transform
        if type(data).__getitem__ is not Dataset.__getitem__ or not travels(data.x) or not (transform is None or on_devices(transform)):
            return Way(loader)
        if id(data) not in self.there:
            self.there[id(data)] = data, self._brought(data)
        arrays = self.there[id(data)][1]
        return Samples(loader) if arrays is None else Numbers(loader, *arrays)

    def _brought(self, data: Dataset) -> Batch | None:
        """The arrays of a data set on the device, if it is small enough."""
        memory = backend.memory(self.device)
        room = self.resident if self.resident is not None else SMALL if memory is None else memory.room // PART
        if data.x.nbytes + data.y.nbytes <= room - self.bytes():
            with suppress(MemoryError):                 # there may be no piece of that size
                return backend.asarray(data.x, self.device), backend.asarray(data.y, self.device)
        return None


def packed(loader: Loader, way: Way, number: int, start: int) -> Iterator[tuple[Way, Parcel, Any]]:
    """What travels of each minibatch, and how it is unpacked. A rank's part of no samples is made on the CPU."""
    for index, drawn in loader.picks(number, start):
        chosen = way if len(index) else Way(loader)
        yield chosen, chosen.pack(index, drawn), drawn


class Way:
    """How minibatches come to a device. Here they are made on the CPU, and copied; Samples and Numbers leave more to the device."""

    def __init__(self, loader: Loader):
        self.loader = loader

    def pack(self, index: np.ndarray, drawn: Any) -> Parcel:
        """What travels, of the samples of these numbers, for which this was drawn."""
        return list(self.loader.take(index, drawn))

    def unpack(self, arrays: list[Array], drawn: Any) -> Batch:
        """The minibatch, in memory of its own, of what has come. drawn: as it was on the CPU."""
        x, y = arrays
        return x.copy(), y.copy()

    def finish(self, x: Array, y: Array, arrays: list[Array], drawn: Any) -> Batch:
        """x as new float32, transformed. arrays: what was drawn, on the device."""
        transform = self.loader.transform
        x = x.astype(np.float32)
        if self.loader.data.peak != 1:
            x /= np.float32(self.loader.data.peak)
        if transform is not None:
            x = checked(transform.apply(x, rebuilt(drawn, iter(arrays))), len(y), transform)
        return x, y


class Samples(Way):
    """The samples travel, as they lie in memory."""

    def pack(self, index: np.ndarray, drawn: Any) -> Parcel:
        data = self.loader.data
        return [Rows(data.x, index), Rows(data.y, index), *leaves(drawn)]

    def unpack(self, arrays: list[Array], drawn: Any) -> Batch:
        x, y, *rest = arrays
        return self.finish(x, y.copy(), rest, drawn)


class Numbers(Way):
    """The numbers of the samples travel; the samples lie on the device, as x and y."""

    def __init__(self, loader: Loader, x: Array, y: Array):
        super().__init__(loader)
        self.x, self.y = x, y

    def pack(self, index: np.ndarray, drawn: Any) -> Parcel:
        return [index, *leaves(drawn)]

    def unpack(self, arrays: list[Array], drawn: Any) -> Batch:
        index, *rest = arrays
        return self.finish(self.x.take(index, axis=0), self.y.take(index, axis=0), rest, drawn)


def travels(x: np.ndarray) -> bool:
    """Whether samples go as they are: every library knows their type, and they are no larger than in float32."""
    return x.dtype.itemsize <= 4 and x.dtype.isnative


def leaves(drawn: Any) -> list[np.ndarray]:
    """The arrays in what a transform drew: an array, None, or a tuple of such."""
    return [leaf for each in drawn for leaf in leaves(each)] if isinstance(drawn, tuple) else [] if drawn is None else [drawn]


def rebuilt(drawn: Any, arrays: Iterator[Array]) -> Any:
    """The same with other arrays in their places."""
    return tuple(rebuilt(each, arrays) for each in drawn) if isinstance(drawn, tuple) else None if drawn is None else next(arrays)


@dataclass
class Slot:
    """Page-locked memory, and as much on the device. copied: the last copy is over; read: the device has read what had come."""

    host: np.ndarray
    there: Array
    copied: Any
    read: Any


class Load(NamedTuple):
    """A minibatch under way. slot: None where arrays are on the CPU still; else `places` says where each of them begins."""

    way: Way
    drawn: Any
    arrays: Parcel
    slot: Slot | None = None
    places: Sequence[int] = ()


class Slots:
    """Memory for some minibatches under way, used in turn: for each that is made ahead of time, one that is being made, one being taken.

    All is made and let go by the training thread, whose stream it belongs to. parcel: of the first minibatch, and none is larger.
    """

    def __init__(self, device: str, count: int, parcel: Parcel):
        self.device, self.count = device, 0             # of minibatches so far
        self.streams = backend.library_named(device).streams
        self.slots: list[Slot] = []
        if self.streams is not None:
            self._make(self.streams, count, placed(parcel)[1])

    def _make(self, streams: Streams, count: int, size: int) -> None:
        xp, now = backend.library_named(self.device).xp, streams.current(self.device)
        with streams.on(self.device):
            self.stream = streams.new(self.device)
            for _ in range(count):
                host, there = streams.pinned(size, np.uint8), xp.empty(size, np.uint8)
                slot = Slot(host, there, streams.event(self.device), streams.event(self.device))
                now.record(slot.read)                   # whatever had this memory before may still be at work
                self.stream.record(slot.copied)
                self.slots.append(slot)

    def load(self, way: Way, parcel: Parcel, drawn: Any) -> Load:
        """Begin to copy what travels of a minibatch. In whatever thread, in the order in which they will be taken."""
        places, size = placed(parcel)
        if not self.slots or not 0 < size <= len(self.slots[0].host):
            return Load(way, drawn, [np.take(*each, axis=0) if isinstance(each, Rows) else each for each in parcel])
        slot = self.slots[self.count % len(self.slots)]
        self.count += 1
        slot.copied.synchronize()
        for place, each in zip(places, parcel):
            write(each, part(slot.host, place, each))
        with self.streams.on(self.device):              # type: ignore[union-attr]   # there are slots
            self.stream.wait_event(slot.read)
            self.streams.copy(slot.host[:size], slot.there[:size], self.stream)         # type: ignore[union-attr]
            self.stream.record(slot.copied)
        return Load(way, drawn, parcel, slot, places)

    def take(self, load: Load) -> Batch:
        """The minibatch, for the training thread and its stream."""
        way, drawn, arrays, slot, places = load
        with phase("data"):
            if slot is None:
                return way.unpack([backend.asarray(each, self.device) for each in arrays], drawn)
            now = self.streams.current(self.device)     # type: ignore[union-attr]
            now.wait_event(slot.copied)
            try:
                return way.unpack([part(slot.there, place, each) for place, each in zip(places, arrays)], drawn)
            finally:
                now.record(slot.read)

    def close(self) -> None:
        """The memory is let go when nothing works on it: also copies that nobody will take, and reads on whatever streams they were."""
        for slot in self.slots:
            self.stream.wait_event(slot.read)
        if self.slots:
            self.stream.synchronize()


def placed(parcel: Parcel) -> tuple[list[int], int]:
    """Where each array of a parcel begins in a slot, and where the last one ends."""
    places, end = [], 0
    for each in parcel:
        places.append(-(-end // ALIGNED) * ALIGNED)
        end = places[-1] + math.prod(each.shape) * each.dtype.itemsize
    return places, end


def part(memory: Array, place: int, like: np.ndarray | Rows) -> Array:
    """The bytes from a place on as an array of this shape and dtype."""
    return memory[place:place + math.prod(like.shape) * like.dtype.itemsize].view(like.dtype).reshape(like.shape)


def write(x: np.ndarray | Rows, out: np.ndarray) -> None:
    """Write an array, or gather rows, into memory."""
    if isinstance(x, Rows):
        np.take(x.x, x.numbers, axis=0, out=out, mode="clip")         # any other mode gathers them elsewhere first
    else:
        np.copyto(out, x)
