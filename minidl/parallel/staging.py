"""Staging: between the device where gradients are made and the memory from which they are sent.

A chunk goes from the device to the host, is exchanged and summed there, and goes back. Each way is a Request like a message on the wire,
so the engine runs the three stages as a pipeline: one chunk comes off the device while another is on the wire. What the stages are is a
Staging's business. Here: none, for the CPU, and one that only takes time; those of real devices are in device_staging.py.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from minidl import backend
from minidl.backend import Array
from minidl.parallel.communicator import Request
from minidl.parallel.layout import Buffers, Chunk, Layout


class Staging:
    """No device: what is computed lies where it is sent from. (Of a device without streams it is copied there at once, and back.)"""

    def buffers(self, layout: Layout) -> Staged:
        """Memory for the arrays of a layout, where the model computes, and where their numbers are sent from."""
        near = layout.buffers()
        return Staged(self, near, near)

    def gathered(self, x: Array) -> Array:
        """An array of the model's, to be written into the near buffers."""
        return backend.to_numpy(x)

    def mark(self) -> Any:
        """In the thread that computes: the moment at which everything that was asked of the device so far will be done."""
        return None

    def to_host(self, x: Array, out: Array, mark: Any = None) -> Iterable[Request]:
        """Begin to bring the numbers x of a device to out, from where they are sent, once the device has come by the mark."""
        return ()

    def to_device(self, x: Array, out: Array) -> Iterable[Request]:
        """Begin to bring the numbers x back to out. What is computed inside `computing` finds them there."""
        return ()

    def computing(self) -> AbstractContextManager:
        """Within the block this thread computes where, and in the order in which, the thread does that makes gradients."""
        return nullcontext()

    def exchanging(self) -> AbstractContextManager:
        """Within the block this thread adds up what has come."""
        return nullcontext()

    def close(self) -> None:
        """Come back when no copy is under way any more."""


class Staged:
    """The arrays of a layout, twice: near the model, and far, where they are exchanged. Without a device between them they are one."""

    def __init__(self, staging: Staging, near: Buffers, far: Buffers):
        self.staging, self.near, self.far, self.layout = staging, near, far, near.layout

    def gather(self, name: str, x: Array | float) -> None:
        """Write an array of the model's, or a number all over, to its place near the model."""
        self.near[name][...] = x if isinstance(x, float) else self.staging.gathered(x)

    def gather_part(self, chunk: Chunk, name: str, x: Array) -> None:
        """The same for those of its numbers that are in a chunk."""
        place = self.layout.places[name]
        first, stop = max(place.start, chunk.start), min(place.stop, chunk.stop)
        part = self.staging.gathered(x).reshape(-1)[first - place.start:stop - place.start]
        self.near.chunk(chunk)[first - chunk.start:stop - chunk.start] = part

    def to_host(self, chunk: Chunk, mark: Any) -> Iterable[Request]:
        """Begin to bring a chunk to where it is exchanged."""
        return self.staging.to_host(self.near.chunk(chunk), self.far.chunk(chunk), mark)

    def to_device(self, chunk: Chunk) -> Iterable[Request]:
        """Begin to bring it back."""
        return self.staging.to_device(self.far.chunk(chunk), self.near.chunk(chunk))


class EmulatedDevice(Staging):
    """A device whose copies take as long as its bus would: for tests and measurements on a machine that has none.

    rate: bytes a second, each way; a way has one copy at a time. together: whether the ways share the bus.
    """

    def __init__(self, rate: float, together: bool = False):
        self.rate = rate
        self.ways = [Way(rate)] * 2 if together else [Way(rate), Way(rate)]

    def to_host(self, x: Array, out: Array, mark: Any = None) -> Iterable[Request]:
        return [self.ways[0].copy(x.nbytes)]

    def to_device(self, x: Array, out: Array) -> Iterable[Request]:
        return [self.ways[1].copy(x.nbytes)]


class Way:
    """One direction of a bus."""

    def __init__(self, rate: float):
        self.rate = rate
        self.free_at = 0.0
        self.lock = threading.Lock()

    def copy(self, size: int) -> Request:
        """Begin a copy, after those that were begun before."""
        with self.lock:
            self.free_at = max(self.free_at, time.perf_counter()) + size / self.rate
            return Until(self.free_at)


class Until(Request):
    """Done at a time."""

    def __init__(self, moment: float):
        self.moment = moment

    def done(self) -> bool:
        return time.perf_counter() >= self.moment
