"""A slow network between ranks of one process: to see, and to measure, what a wire does to training.

Between threads a message is there at once. Here each rank has a wire of its own, which takes so many bytes a second each way, and every
message is written down. What arrives is what was sent, bit for bit; only later. Messages alone are slowed: collective operations and very
short messages, for which long ones make room on real wires too, pass at once.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from minidl.errors import ArgumentError
from minidl.parallel.communicator import Communicator, Request
from minidl.profiling.events import Event

SHORT = 256                 # bytes: shorter messages pass at once
NAP = 5e-4                  # seconds between two looks


class EmulatedWire:
    """A wire for each of some ranks that are threads. rate: bytes a second that each carries out, and as many in at the same time.

    ArgumentError for a rate that is not above 0.

    >>> from minidl.parallel import local
    >>> wire = EmulatedWire(rate=1e5)
    >>> def send(communicator):
    ...     slow, x = wire.of(communicator), np.zeros(1000, np.uint8)
    ...     slow.wait([slow.isend(x, to=1) if slow.rank == 0 else slow.irecv(x, source=0)])
    >>> started = time.perf_counter(); unused = local.run(send, 2)
    >>> time.perf_counter() - started > 0.01, dict(wire.bytes_sent)
    (True, {0: 1000})
    """

    def __init__(self, rate: float):
        if not rate > 0:
            raise ArgumentError(f"EmulatedWire: rate is {rate!r}, and must be a number of bytes a second above 0")
        self.rate = rate
        self.lock = threading.Lock()
        self.free_at: dict[tuple[int, str], float] = defaultdict(float)            # by rank and way
        self.arrivals: dict[tuple, list[float]] = defaultdict(list)                 # of the messages from one rank to another, with one tag
        self.transfers: list[Event] = []
        self.bytes_sent: Counter[int] = Counter()                                   # by rank

    def of(self, communicator: Communicator) -> Communicator:
        """The same ranks, over this wire."""
        return _OverWire(self, communicator, (), range(communicator.size))

    def events(self, since: float = 0.0) -> list[Event]:
        """All transfers, in the order in which they began, for `pictures.timeline`.

        since: a moment of `time.perf_counter`, from which seconds are counted. An event's rank is that of the wire, its thread
        "sends" or "receives", its name who is at the other end, its category "transfer".
        """
        with self.lock:
            found = sorted(self.transfers, key=lambda each: each.start)
        return [replace(each, start=each.start - since, end=each.end - since) for each in found]

    def forget(self) -> None:
        """Forget transfers and counts."""
        with self.lock:
            self.transfers.clear()
            self.bytes_sent.clear()

    def carry(self, size: int, sender: int, receiver: int, key: tuple) -> float:
        """Put a message on both wires. Gives when it has left; when it arrives is for the receiver to find."""
        with self.lock:
            now = time.perf_counter()
            self.bytes_sent[sender] += size
            if size < SHORT:
                self.arrivals[key].append(now)
                return now
            left = arrived = now
            for rank, way, name in ((sender, "sends", f"to rank {receiver}"), (receiver, "receives", f"from rank {sender}")):
                start = max(now, self.free_at[rank, way])
                self.free_at[rank, way] = end = start + size / self.rate
                self.transfers.append(Event(rank, way, name, "transfer", start, end, bytes=size))
                left, arrived = (end, end) if way == "sends" else (left, max(left, end))
            self.arrivals[key].append(arrived)
            return left


class _OverWire(Communicator):
    """See `Communicator`. key: tells the messages of one group from those of another. members: whose wires the ranks have."""

    def __init__(self, wire: EmulatedWire, inner: Communicator, key: tuple, members: Iterable[int]):
        self.wire, self.inner, self.key, self.members = wire, inner, key, list(members)
        self.rank, self.size, self.direct = inner.rank, inner.size, inner.direct
        self.received: Counter[tuple] = Counter()
        self.groups = 0                                 # made of this one so far: the same number on every rank

    def isend(self, x: np.ndarray, to: int, tag: int = 0) -> Request:
        left = self.wire.carry(x.nbytes, self.members[self.rank], self.members[to], (self.key, self.rank, to, tag))
        return _Later(self.inner.isend(x, to, tag), left)

    def irecv(self, x: np.ndarray, source: int, tag: int = 0) -> Request:
        key = (self.key, source, self.rank, tag)
        self.received[key] += 1
        return _Coming(self.inner.irecv(x, source, tag), self.wire, key, self.received[key] - 1)

    def ibroadcast(self, x: np.ndarray, root: int = 0) -> Request:
        return self.inner.ibroadcast(x, root)

    def iallgather(self, x: np.ndarray, out: np.ndarray) -> Request:
        return self.inner.iallgather(x, out)

    def duplicate(self) -> Communicator:
        return self._over(self.inner.duplicate())

    def split(self, color: int | None, key: int) -> Communicator | None:
        found = self.inner.split(color, key)
        self.groups += found is None
        return None if found is None else self._over(found, color)

    def shrink(self) -> Communicator:
        return self._over(self.inner.shrink())

    def _over(self, inner: Communicator, color: int | None = None) -> Communicator:
        """Another group, over the same wires."""
        self.groups += 1
        members = inner.allgather(np.array(self.members[self.rank]))
        return _OverWire(self.wire, inner, (*self.key, self.groups, color), members.tolist())

    def abort(self, status: int = 1) -> None:
        self.inner.abort(status)

    def revoke(self) -> None:
        self.inner.revoke()

    def agree(self, yes: bool) -> bool:
        return self.inner.agree(yes)

    def wait(self, requests: Iterable[Request], nap: float = NAP) -> None:
        super().wait(requests, nap)


class _Later(Request):
    """Done when the inner one is, and not before a moment."""

    def __init__(self, inner: Request, moment: float):
        self.inner, self.moment = inner, moment

    def done(self) -> bool:
        return time.perf_counter() >= self.moment and self.inner.done()


class _Coming(Request):
    """A message that is received: done when it is there, and has had its time on the wire."""

    def __init__(self, inner: Request, wire: EmulatedWire, key: tuple, number: int):
        self.inner, self.wire, self.key, self.number = inner, wire, key, number
        self.there = False

    def done(self) -> bool:
        self.there = self.there or self.inner.done()
        return self.there and time.perf_counter() >= self.wire.arrivals[self.key][self.number]
