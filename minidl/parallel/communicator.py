"""Communicator: ranks that send arrays to each other, and nothing else.

There are two kinds: mpi.py stands on mpi4py and is what trains across processes and hosts; local.py makes ranks of the threads of one
process, for tests and for looking on. Both send raw memory, never pickled objects. Nothing here knows of gradients: what is sent when
is the exchange's business.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable

import numpy as np

from minidl import backend
from minidl.backend import Array
from minidl.errors import ExchangeError

LARGEST = 64 << 20          # bytes in one message: larger arrays go in several
NAP = 1e-4                  # seconds between two looks at what has not arrived; a thread that spins takes the core from those that compute
MOST_TAGS = 1 << 28         # of the MPIs in use some have fewer, and say so themselves


class Request(ABC):
    """Something that was begun and may not be over: `done` looks, and never waits. Until it is done the array belongs to it."""

    @abstractmethod
    def done(self) -> bool:
        """Whether it is over. RankLost if it never will be, because a process has died."""


class Communicator(ABC):
    """A group of `size` ranks, of which this process is number `rank`.

    Arrays are C-contiguous, of any dtype; who receives knows shape and dtype beforehand, ExchangeError where they do not fit. They are
    NumPy's; or a device's, which then go through the host's memory at once, unless the communicator is `direct`.
    Between two ranks, messages of the same tag arrive in the order in which they were sent. Tags are whole numbers from 0 on.
    A collective operation (all but isend and irecv) is called by every rank, in the same order; it does not matter what messages are
    under way meanwhile. One thread at a time uses a Communicator; another one takes a `duplicate`.
    RankLost, from any operation but agree and shrink, if a process that it needs has died, or if somebody has called `revoke`; when it is
    begun or when its request is looked at. Others may see the same operation succeed: only agree is the same for all.
    """

    rank: int
    size: int
    direct = False              # whether messages are sent from, and received in, the memory of devices

    # Messages

    @abstractmethod
    def isend(self, x: Array, to: int, tag: int = 0) -> Request:
        """Begin to send x. It must not be written to until the request is done."""

    @abstractmethod
    def irecv(self, x: Array, source: int, tag: int = 0) -> Request:
        """Begin to receive into x."""

    @abstractmethod
    def ibroadcast(self, x: Array, root: int = 0) -> Request:
        """Begin to bring the root's x into everyone's."""

    @abstractmethod
    def iallgather(self, x: Array, out: Array) -> Request:
        """Begin to bring everyone's x into out (size, *x.shape), in the order of the ranks."""

    # Groups

    @abstractmethod
    def duplicate(self) -> Communicator:
        """The same ranks, whose messages are never taken for those of this one. Each is revoked by itself.

        Where ranks may die, agree before it is used, as after `split`: some may have got it, and others RankLost.
        """

    @abstractmethod
    def split(self, color: int | None, key: int) -> Communicator | None:
        """Ranks of one color become a group, in the order of their keys (of their ranks here where these are equal). None: in no group."""

    # When something goes wrong

    @abstractmethod
    def abort(self, status: int = 1) -> None:
        """End all processes of the job at once. Never comes back."""

    @abstractmethod
    def revoke(self) -> None:
        """Let everything that is under way here, on every rank, end with RankLost; afterwards only agree and shrink are possible."""

    @abstractmethod
    def agree(self, yes: bool) -> bool:
        """Whether all ranks said yes and none has died: the same answer for everyone who lives. Works after revoke."""

    @abstractmethod
    def shrink(self) -> Communicator:
        """Those who live, in the same order. Works after revoke; what was under way where it was revoked leaves its arrays alone now."""

    # In terms of these

    def wait(self, requests: Iterable[Request], nap: float = NAP) -> None:
        """Come back when all are done. nap: seconds between two looks."""
        wait(requests, nap)

    def broadcast(self, x: Array, root: int = 0) -> Array:
        """Bring the root's x into everyone's, and give it."""
        self.wait([self.ibroadcast(x, root)])
        return x

    def allgather(self, x: Array) -> Array:
        """Everyone's x, (size, *x.shape), in the order of the ranks, where x lies."""
        xp = backend.of(x)
        out = xp.empty((self.size, *x.shape), x.dtype)
        self.wait([self.iallgather(xp.ascontiguousarray(x), out)])
        return out

    def gather_bytes(self, content: bytes) -> list[bytes]:
        """Everyone's bytes, of whatever lengths, in the order of the ranks."""
        lengths = self.allgather(np.array(len(content), np.int64)).tolist()
        longest = np.zeros(max(lengths), np.uint8)
        longest[:len(content)] = np.frombuffer(content, np.uint8)
        return [row[:length].tobytes() for row, length in zip(self.allgather(longest), lengths)] if len(longest) else [b""] * self.size

    def broadcast_bytes(self, content: bytes | None, root: int = 0) -> bytes:
        """The root's bytes."""
        length = self.broadcast(np.array(len(content or b""), np.int64), root)
        x = np.frombuffer(content, np.uint8).copy() if self.rank == root else np.empty(int(length), np.uint8)     # type: ignore[arg-type]
        return self.broadcast(x, root).tobytes() if len(x) else b""

    def barrier(self) -> None:
        """Wait for everyone."""
        self.allgather(np.zeros(1, np.uint8))


def wait(requests: Iterable[Request], nap: float = NAP) -> None:
    """Come back when all requests are done."""
    left = list(requests)
    looks = 0
    while left:
        left = [request for request in left if not request.done()]
        looks += 1
        if left:
            time.sleep(0 if looks < 20 else nap)            # what comes from the same host is there at once


def memory(x: Array, operation: str, *, written: bool = False) -> Array:
    """The bytes of x as they lie, (bytes,) of uint8: for the kinds of Communicator, which send nothing else.

    written: whether something will be written there. ExchangeError if x is not made of plain, contiguous (and writable) memory.
    """
    if not backend.is_array(x) or x.dtype.hasobject:
        kind = f"an array of {x.dtype}" if isinstance(x, np.ndarray) else f"a {type(x).__module__}.{type(x).__qualname__}"
        raise ExchangeError(f"{operation}: only arrays of plain numbers travel, NumPy's or CuPy's, got {kind}",
                            hint="np.asarray(x) makes one of a number or a list")
    if not x.flags.c_contiguous or (written and not getattr(x.flags, "writeable", True)):
        fault = "written to" if x.flags.c_contiguous else "sent: its rows do not lie one after the other"
        raise ExchangeError(f"{operation}: the array cannot be {fault}", shape=x.shape, dtype=x.dtype, strides=x.strides,
                            hint="" if x.flags.c_contiguous else f"{backend.of(x).__name__}.ascontiguousarray(x) makes a copy that can")
    return x.reshape(-1).view("uint8")


def check_peer(operation: str, peer: int, size: int, tag: int = 0) -> None:
    """ExchangeError unless there is such a rank, and such a tag."""
    if not 0 <= peer < size:
        raise ExchangeError(f"{operation}: there is no rank {peer}", ranks=f"0 to {size - 1}")
    if not 0 <= tag <= MOST_TAGS:
        raise ExchangeError(f"{operation}: there is no tag {tag}", tags=f"0 to {MOST_TAGS}")


def fill(into: np.ndarray, part: np.ndarray, who: str, rank: int) -> None:
    """Bytes that came, to where they belong. ExchangeError if they are more or fewer."""
    if len(into) != len(part):
        raise ExchangeError(f"{who} brings {len(part)} bytes, and rank {rank} has room for {len(into)}")
    into[:] = part
