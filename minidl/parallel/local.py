"""Ranks that are threads of one process: for tests, for notebooks, and for looking on while many work as one.

`run(function, 4)` calls function(communicator) in four threads. Who receives what depends on ranks and tags alone, never on which thread
is faster, so that the same call gives the same bits. Nothing waits for ever: whoever waits for a rank that has returned, or too long
altogether, learns who waits for what. A rank can be made to die, as a process can, and what the others see is what MPI's ULFM shows
(Bland et al., "Post-failure recovery of MPI communication capability", 2013): RankLost where the dead rank is needed, then revoke, agree
and shrink. No process is started here.
"""

from __future__ import annotations

import contextvars
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, NoReturn, TypeVar
from weakref import WeakSet

import numpy as np

from minidl.errors import ArgumentError, ExchangeError, RankLost
from minidl.parallel.communicator import NAP, Communicator, Request, check_peer, fill, memory
from minidl.parallel.on_device import through_host

PATIENCE = 60.0             # seconds in which no rank sends, receives or returns, until those who wait give up

T = TypeVar("T")


class Killed(BaseException):
    """Raised inside a rank, it ends the rank as if its process had been killed: no error, no result, and the others see RankLost."""


def run(function: Callable[[Communicator], T], ranks: int, *, on_call: Callable[[int, int], object] | None = None,
        patience: float = PATIENCE) -> list[T | None]:
    """What function(communicator) gives on each of so many ranks, in their order; None for one that was killed.

    Each rank is a thread with a copy of the caller's context (NumPy's error settings, no_grad). If one raises, the others are ended with
    RankLost, and its error is raised here, with a note of its rank.
    on_call(rank, n): called before a rank's n-th operation (from 0), whatever communicator it is on; it may raise Killed.
    patience: seconds; if the ranks wait while none sends, receives or returns for so long, ExchangeError says who waits for what.

    >>> run(lambda communicator: communicator.allgather(np.array(communicator.rank)).sum().item(), 4)
    [6, 6, 6, 6]
    """
    if ranks < 1:
        raise ArgumentError(f"run: at least one rank, got {ranks}")
    world = _World(ranks, on_call, patience)
    group = _Group(world, tuple(range(ranks)))
    threads = [threading.Thread(target=contextvars.copy_context().run, args=(world.live, function, LocalCommunicator(group, rank)),
                                name=f"rank {rank}", daemon=True) for rank in range(ranks)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    except BaseException as error:                      # Ctrl-C: each rank ends at its next operation
        world.fail(None, error)
        for thread in threads:
            if thread.ident:
                thread.join(1)
        raise
    if world.error is not None:
        raise world.error
    return [world.results.get(rank) for rank in range(ranks)]


class _World:
    """What all ranks of a run share. Everything in here is read and changed by who holds the lock."""

    def __init__(self, ranks: int, on_call: Callable[[int, int], object] | None, patience: float):
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        self.on_call, self.patience = on_call, patience
        self.calls = [0] * ranks
        self.dead: set[int] = set()
        self.results: dict[int, Any] = {}
        self.error: BaseException | None = None         # the first
        self.broken = ""                                # by whom
        self.moved = time.monotonic()
        self.waiting: list[WeakSet[_Request]] = [WeakSet() for _ in range(ranks)]

    def live(self, function: Callable[[Communicator], Any], communicator: LocalCommunicator) -> None:
        """A rank's whole life, in its thread."""
        rank = communicator.rank
        try:
            result = function(communicator)
            with self.lock:
                if rank not in self.dead:
                    self.results[rank] = result
        except Killed:
            with self.lock:
                self.dead.add(rank)
        except BaseException as error:
            self.fail(rank, error)
        self.move()

    def fail(self, rank: int | None, error: BaseException) -> None:
        """Everybody ends, for this reason; the first reason is the one that is told."""
        with self.lock:
            if self.error is None:
                self.error = error
                self.broken = "the run was interrupted" if rank is None else f"rank {rank} ended with {type(error).__name__}"
                if rank is not None:
                    error.add_note(f"in rank {rank}")
        self.move()

    def move(self) -> None:
        """Something has happened that somebody may wait for."""
        with self.lock:
            self.moved = time.monotonic()
            self.changed.notify_all()

    def stuck(self) -> str:
        """Who waits for what, a line a rank."""
        lines = []
        for rank, requests in enumerate(self.waiting):
            state = "was killed" if rank in self.dead else "has returned" if rank in self.results else \
                "; ".join(sorted(request.what for request in requests)) or "does not communicate"
            lines.append(f"rank {rank}: {state}")
        return "\n  ".join(lines)


class _Group:
    """The ranks of a communicator, and what is on its way between them. A rank has a number here, and one in the world."""

    def __init__(self, world: _World, members: tuple[int, ...]):
        self.world, self.members = world, members
        self.revoked = False
        self.messages: dict[tuple[int, int, int], deque[np.ndarray]] = {}       # sent, not yet asked for: (source, to, tag)
        self.receives: dict[tuple[int, int, int], deque[_Receive]] = {}         # asked for, not yet sent
        self.meetings: dict[tuple[bool, int], _Meeting] = {}                    # collective operations by number: agreements have their own

    def dead(self, ranks: Iterable[int]) -> list[int]:
        return [rank for rank in ranks if self.members[rank] in self.world.dead]

    def returned(self, ranks: Iterable[int]) -> list[int]:
        return [rank for rank in ranks if self.members[rank] in self.world.results]


class _Meeting:
    """A collective operation: what each rank has brought, and what came of it."""

    def __init__(self, kind: str, first: int):
        self.kind, self.first = kind, first
        self.parts: dict[int, Any] = {}
        self.result: Any = None
        self.decided = False
        self.left = 0


class _Request(Request):
    """Over once `finish` says so."""

    over = False
    agreement = False       # whether it goes on although the communicator was revoked
    what = ""               # in words, what is waited for

    def __init__(self, communicator: LocalCommunicator):
        self.communicator = communicator

    def begun(self) -> _Request:
        """Itself, and from now on its rank waits for it."""
        self.communicator.world.waiting[self.communicator.me].add(self)
        return self

    def done(self) -> bool:
        group, world = self.communicator.group, self.communicator.world
        with world.lock:
            if self.over:
                return True
            self.communicator.check(self.what, self.agreement)
            if not self.finish():
                if missing := group.dead(self.needed()):
                    self.lost(missing)
                if gone := group.returned(self.needed()):
                    raise ExchangeError(f"rank {self.communicator.rank} waits for ever: {self.what}, and rank {gone[0]} has returned")
                if time.monotonic() - world.moved > world.patience:
                    raise ExchangeError(f"all wait: nothing has moved for {world.patience:g} s\n  {world.stuck()}")
                return False
            self.over = True
            world.waiting[self.communicator.me].discard(self)
            return True

    def finish(self) -> bool:
        """Try to end it. The lock is held."""
        return True

    def needed(self) -> Iterable[int]:
        """Without whom it cannot end."""
        return ()

    def lost(self, missing: list[int]) -> None:
        raise RankLost(f"{self.what}: rank {missing[0]} has died")


class _Sent(_Request):
    over = True             # it was copied


class _Receive(_Request):
    def __init__(self, communicator: LocalCommunicator, into: np.ndarray, source: int, tag: int):
        super().__init__(communicator)
        self.into, self.source, self.tag = into, source, tag
        self.arrived = False
        self.size = len(into)
        self.what = f"a message of rank {source} with tag {tag} ({len(into)} bytes)"

    def take(self, message: np.ndarray) -> None:
        self.arrived, self.size = True, len(message)
        if self.size == len(self.into):
            self.into[:] = message

    def finish(self) -> bool:
        if self.size != len(self.into):
            raise ExchangeError(f"irecv: rank {self.source} sent {self.size} bytes, and rank {self.communicator.rank} has room for "
                                f"{len(self.into)}", tag=self.tag)
        return self.arrived

    def needed(self) -> Iterable[int]:
        return (self.source,)


class _Collective(_Request):
    """Over when those who are needed have brought their parts: then `end` gets the meeting."""

    def __init__(self, communicator: LocalCommunicator, kind: str, part: Any, end: Callable[[_Meeting], Any],
                 needed: Iterable[int] | None = None, agreement: bool = False):
        super().__init__(communicator)
        self.end, self.agreement = end, agreement
        self.need = range(communicator.size) if needed is None else needed
        self.number = (agreement, communicator.meetings[agreement])
        communicator.meetings[agreement] += 1
        self.meeting = communicator.group.meetings.setdefault(self.number, _Meeting(kind, communicator.rank))
        if self.meeting.kind != kind:
            raise ExchangeError(f"the ranks are not at the same operation: rank {communicator.rank} calls {kind}, "
                                f"rank {self.meeting.first} called {self.meeting.kind}",
                                hint="All ranks call the collective operations in the same order")
        self.meeting.parts[communicator.rank] = part
        self.what = f"{kind}, collective operation {self.number[1]}"

    def finish(self) -> bool:
        meeting, group = self.meeting, self.communicator.group
        if any(rank not in meeting.parts for rank in self.needed()):
            return False
        self.result = self.end(meeting)
        meeting.left += 1
        if meeting.left == len(group.members):
            del group.meetings[self.number]
        return True

    def needed(self) -> Iterable[int]:
        """An agreement needs those who live; once it has come to a result, it is the same for all."""
        if not self.agreement:
            return [rank for rank in self.need if rank not in self.meeting.parts]
        dead = self.communicator.group.dead(self.need)
        return [] if self.meeting.decided else [rank for rank in self.need if rank not in dead and rank not in self.meeting.parts]


class LocalCommunicator(Communicator):
    """See `Communicator`; and a rank can `die`."""

    def __init__(self, group: _Group, rank: int):
        self.group, self.world = group, group.world
        self.rank, self.size = rank, len(group.members)
        self.me = group.members[rank]                   # the rank in the world: whose thread it is
        self.meetings = [0, 0]                          # collective operations so far; agreements so far

    def check(self, operation: str, agreement: bool = False) -> None:
        """Raise if it makes no sense to begin or go on with an operation."""
        if self.me in self.world.dead:                  # a thread that the dead rank had beside its own
            raise Killed
        if self.world.broken:
            raise RankLost(f"{operation}: {self.world.broken}")
        if self.group.revoked and not agreement:
            raise RankLost(f"{operation}: the communicator was revoked")

    def call(self, operation: str, *, collective: bool = False, agreement: bool = False) -> None:
        """Before each operation."""
        with self.world.lock:
            number = self.world.calls[self.me]
            self.world.calls[self.me] += 1
            self.check(operation, agreement)
        if self.world.on_call is not None:
            try:
                self.world.on_call(self.me, number)
            except Killed:
                self.die()
        with self.world.lock:
            self.check(operation, agreement)
            if collective and (missing := self.group.dead(range(self.size))):
                raise RankLost(f"{operation}: rank {missing[0]} has died")

    @through_host
    def isend(self, x: np.ndarray, to: int, tag: int = 0) -> Request:
        content = memory(x, "isend").copy()
        check_peer("isend", to, self.size, tag)
        self.call("isend")
        with self.world.lock:
            if self.group.dead([to]):
                raise RankLost(f"isend: rank {to} has died", tag=tag)
            key = (self.rank, to, tag)
            if self.group.receives.get(key):
                self.group.receives[key].popleft().take(content)
            else:
                self.group.messages.setdefault(key, deque()).append(content)
            self.world.move()
        return _Sent(self)

    @through_host
    def irecv(self, x: np.ndarray, source: int, tag: int = 0) -> Request:
        into = memory(x, "irecv", written=True)
        check_peer("irecv", source, self.size, tag)
        self.call("irecv")
        with self.world.lock:
            request = _Receive(self, into, source, tag)
            key = (source, self.rank, tag)
            if self.group.messages.get(key):
                request.take(self.group.messages[key].popleft())
                self.world.move()
            else:
                self.group.receives.setdefault(key, deque()).append(request)
            return request.begun()

    @through_host
    def ibroadcast(self, x: np.ndarray, root: int = 0) -> Request:
        mine = memory(x, "ibroadcast", written=self.rank != root)
        check_peer("ibroadcast", root, self.size)

        def end(meeting: _Meeting) -> None:
            if self.rank != root:
                fill(mine, meeting.parts[root], f"ibroadcast: rank {root}", self.rank)

        return self.meet(f"ibroadcast from {root}", mine.copy() if self.rank == root else None, end, [root])

    @through_host
    def iallgather(self, x: np.ndarray, out: np.ndarray) -> Request:
        mine, rows = memory(x, "iallgather").copy(), memory(out, "iallgather", written=True)
        if len(rows) != self.size * len(mine):
            raise ExchangeError("iallgather: out is not as large as everyone's x", out=out.shape, x=x.shape, ranks=self.size)

        def end(meeting: _Meeting) -> None:
            for rank, row in enumerate(rows.reshape(self.size, -1) if len(mine) else [rows] * self.size):
                fill(row, meeting.parts[rank], f"iallgather: rank {rank}", self.rank)

        return self.meet("iallgather", mine, end)

    def duplicate(self) -> Communicator:
        def end(meeting: _Meeting) -> _Group:
            meeting.result = meeting.result or _Group(self.world, self.group.members)
            return meeting.result

        return LocalCommunicator(self.settled("duplicate", None, end), self.rank)

    def split(self, color: int | None, key: int) -> Communicator | None:
        def end(meeting: _Meeting) -> Any:
            if meeting.result is None:
                colors = {part[0] for part in meeting.parts.values() if part[0] is not None}
                ranks = {one: [rank for _, rank in sorted((part[1], rank) for rank, part in meeting.parts.items() if part[0] == one)]
                         for one in colors}
                meeting.result = {one: (_Group(self.world, tuple(self.group.members[rank] for rank in ranks[one])), ranks[one])
                                  for one in colors}
            return meeting.result.get(color)

        found = self.settled("split", (color, key), end)
        return None if found is None else LocalCommunicator(found[0], found[1].index(self.rank))

    def die(self) -> NoReturn:
        """End this rank as if its process were killed."""
        with self.world.lock:
            self.world.dead.add(self.me)
            self.world.move()
        raise Killed

    def abort(self, status: int = 1) -> NoReturn:
        error = ExchangeError(f"abort: rank {self.rank} has ended the run, with status {status}")
        self.world.fail(self.me, error)
        raise error

    def revoke(self) -> None:
        self.call("revoke", agreement=True)
        with self.world.lock:
            self.group.revoked = True
            self.group.messages.clear()
            self.group.receives.clear()
            self.world.move()

    def agree(self, yes: bool) -> bool:
        def end(meeting: _Meeting) -> bool:
            if not meeting.decided:
                meeting.result = all(meeting.parts.values()) and not self.group.dead(range(self.size))
                meeting.decided = True
            return meeting.result

        return self.settled("agree", bool(yes), end, agreement=True)

    def shrink(self) -> Communicator:
        def end(meeting: _Meeting) -> tuple[_Group, list[int]]:
            if not meeting.decided:
                dead = self.group.dead(range(self.size))
                living = [rank for rank in range(self.size) if rank not in dead]
                meeting.result = _Group(self.world, tuple(self.group.members[rank] for rank in living)), living
                meeting.decided = True
            return meeting.result

        group, living = self.settled("shrink", None, end, agreement=True)
        return LocalCommunicator(group, living.index(self.rank))

    def meet(self, kind: str, part: Any, end: Callable[[_Meeting], Any], needed: Iterable[int] | None = None,
             agreement: bool = False) -> _Collective:
        """Begin a collective operation."""
        self.call(kind, collective=not agreement, agreement=agreement)
        with self.world.lock:
            request = _Collective(self, kind, part, end, needed, agreement)
            self.world.move()
            request.begun()
            return request

    def settled(self, kind: str, part: Any, end: Callable[[_Meeting], Any], agreement: bool = False) -> Any:
        """What a collective operation gives, once it is over."""
        request = self.meet(kind, part, end, agreement=agreement)
        self.wait([request])
        return request.result

    def wait(self, requests: Iterable[Request], nap: float = NAP) -> None:
        left = list(requests)
        if not all(isinstance(request, _Request) for request in left):
            return super().wait(left, nap)              # something else is among them, which nobody will announce
        with self.world.lock:
            while left := [request for request in left if not request.done()]:
                self.world.changed.wait(min(self.world.patience, PATIENCE))
