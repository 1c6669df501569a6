"""Staging: between the device where gradients are made and the memory from which they are sent.

A chunk goes from the device to the host, is exchanged and summed there, and goes back. Each way is a Request like a message on the wire,
so the engine runs the three stages as a pipeline: one chunk comes off the device while another is on the wire.
On the CPU there is nothing to do.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable

from minidl.parallel.communicator import Request


class Staging:
    """No device: what is computed lies where it is sent from."""

    def to_host(self, size: int) -> Iterable[Request]:
        """Begin to bring so many bytes to the host."""
        return ()

    def to_device(self, size: int) -> Iterable[Request]:
        """Begin to bring so many bytes back."""
        return ()


class EmulatedDevice(Staging):
    """A device whose copies take as long as its bus would: for tests and measurements on a machine that has none.

    rate: bytes a second, each way; a way has one copy at a time. together: whether the ways share the bus.
    """

    def __init__(self, rate: float, together: bool = False):
        self.rate = rate
        self.ways = [Way(rate)] * 2 if together else [Way(rate), Way(rate)]

    def to_host(self, size: int) -> Iterable[Request]:
        return [self.ways[0].copy(size)]

    def to_device(self, size: int) -> Iterable[Request]:
        return [self.ways[1].copy(size)]


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
