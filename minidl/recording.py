"""Recording: a step that is written down as a graph of launches, to be done again and again without Python in between.

While it is, nothing is computed: kernels are noted, with the places and the numbers that they are given. So what takes part in a step
asks `present()`, and if that gives a Recording

    reads no value of a device's array, because there is none yet;
    takes a number that changes from step to step from `fresh`, which gives a place on the device where it will stand at each replay;
    writes what lasts beyond the step (weights, running statistics) into the arrays that are there, unless `report` says no.

Who records and replays is capture.py. Where nothing is recorded this file does nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np

from minidl import backend
from minidl.backend import Array

ALIGNED = 16            # bytes
PAGE = 2**16            # bytes that go to the device at once


@dataclass
class Buffer:
    """Page-locked memory and as much on the device, to which it goes before a replay where it has changed."""

    host: np.ndarray
    device: Array
    used: int = 0
    changed: bool = False


class Recording:
    """A step of a model on this device, while it is recorded and for its replays.

    numbers: how many the step tells of itself. report: (1 + numbers,) float64 on the device: first whether the step may change
    anything, 1 or 0, then these numbers.
    """

    def __init__(self, device: str, numbers: int):
        self.device = device
        self.library = backend.library_named(device)
        self.streams: Any = self.library.streams
        self.report = self.library.xp.zeros(1 + numbers, "float64")
        self.buffers: list[Buffer] = []
        self.growing = False                                # page-locked memory is being taken
        self.sources: list[tuple[Callable[[], Any], np.ndarray, Buffer]] = []      # what is asked before a replay, and where it goes
        self.afterwards: list[Callable[[], None]] = []      # what is counted on the host after a replay that has changed something
        self.counts: dict[tuple[int, str], int] = {}        # of modules, as they were before the step: by id and name
        self._add(PAGE)

    def moved(self, module: Any, name: str) -> int:
        """By how much a count that a module keeps has moved in the step so far."""
        return getattr(module, name) - self.counts[id(module), name]

    def fresh(self, value: Callable[[], Any], dtype: Any = None) -> Array:
        """An array on the device that holds at each replay what `value` gives then, a number or an array of fixed shape and dtype.

        value is asked before the replay, and changes nothing.
        """
        content = np.asarray(value(), dtype)
        buffer = self.buffers[-1]
        if buffer.used + content.nbytes > buffer.host.nbytes:
            buffer = self._add(max(PAGE, content.nbytes))
        here = slice(buffer.used, buffer.used + content.nbytes)
        buffer.used = -(-here.stop // ALIGNED) * ALIGNED
        place = buffer.host[here].view(content.dtype).reshape(content.shape)
        place[...] = content
        buffer.changed = True
        self.sources.append((value, place, buffer))
        return buffer.device[here].view(content.dtype).reshape(content.shape)

    def _add(self, size: int) -> Buffer:
        self.growing = True
        buffer = Buffer(self.streams.pinned(size, np.uint8), self.library.xp.empty(size, "uint8"))
        self.growing = False
        self.buffers.append(buffer)
        return buffer

    def refresh(self) -> None:
        """Bring to the device what has changed. The replay before is over, so that nobody reads these places any more."""
        for value, place, buffer in self.sources:
            content = value()
            if not np.array_equal(place, content):
                place[...] = content
                buffer.changed = True
        stream = self.streams.current(self.device)
        for buffer in self.buffers:
            if buffer.changed:
                self.streams.copy(buffer.host[:buffer.used], buffer.device[:buffer.used], stream)
                buffer.changed = False

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """Within the block this is `present`."""
        token = _present.set(self)
        try:
            yield
        finally:
            _present.reset(token)


_present: ContextVar[Recording | None] = ContextVar("recording", default=None)          # ranks may be threads


def present() -> Recording | None:
    """The step that is being recorded; None where operations are done at once."""
    return _present.get()
