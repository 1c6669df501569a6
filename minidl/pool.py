"""One pool of threads, which all kernels share.

`threads(n)` says how many threads work, inside it and nowhere else; the linear algebra library is held to one thread meanwhile, because
two pools that do not know of each other cost more than they bring. Work comes in pieces whose number and order depend on the shapes
alone, so that the same call gives the same bits on any number of threads. Threads that wait for more than a moment sleep. What a piece is,
the kernels know.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np

from minidl.errors import ArgumentError, MissingExtra

LOOKS = 5000            # at a flag before a thread that waits for it goes to sleep, about a fifth of a millisecond: to be woken takes long

# linger(address, looks): look at the flag there, without Python's lock, until it is not 0. The compiled kernels bring it.
linger: Callable[[int, int], bool] | None = None

_threads: ContextVar[int] = ContextVar("threads", default=1)


@contextmanager
def threads(count: int | None = None) -> Iterator[int]:
    """Let kernels work on so many threads inside a `with` block; gives the number.

    count: at least 1; None for one a core that this process may use. Outside of such a block kernels work on one thread, and the linear
    algebra library on as many as it likes. ArgumentError for a count that makes no sense, MissingExtra without threadpoolctl.

    >>> with threads(2) as count:
    ...     count, usable()
    (2, 2)
    """
    if count is not None and (isinstance(count, bool) or not hasattr(count, "__index__") or count < 1):
        raise ArgumentError(f"threads: count is {count!r}, and must be an int of at least 1")
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        raise MissingExtra("threads: needs threadpoolctl", hint="Install it: pip install 'minidl[fast]'") from None
    count = cores() if count is None else int(count)
    with threadpool_limits(1):
        token = _threads.set(count)
        try:
            yield count
        finally:
            _threads.reset(token)


def usable() -> int:
    """How many threads kernels work on here."""
    return _threads.get()


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def each(work: Callable[[Any], Any], pieces: Iterable[Any]) -> None:
    """Call work(piece) for every piece, on the threads of the pool. Whoever is free takes the next one."""
    pieces = list(pieces)
    waiting = iter(pieces)                                  # next() of it is one step under Python's lock

    def job() -> None:
        for piece in waiting:
            work(piece)

    together(job, min(len(pieces), usable()))


def together(job: Callable[[], None], count: int) -> None:
    """Call job() on so many threads at once, this one among them, and come back when all are done.

    The job takes its pieces of work from a counter that all share. Where the pool is at work for another thread of this process, the
    job is called on this thread alone, and takes all pieces. The first error that a job raised is raised here.
    """
    if count < 2 or not _busy.acquire(blocking=False):
        job()
        return
    try:
        _run(job, count)
    finally:
        _busy.release()


class Signal:
    """Something that one thread waits for and another one tells. Who waits looks for a while, and then sleeps."""

    def __init__(self) -> None:
        self.flag = np.zeros(8, np.int64)                   # a cache line of its own
        self.address = self.flag.__array_interface__["data"][0]
        self.lock = threading.Lock()
        self.lock.acquire()

    def tell(self) -> None:
        self.flag[0] = 1
        self.lock.release()

    def wait(self) -> None:
        if linger is not None:
            linger(self.address, LOOKS)
        self.lock.acquire()
        self.flag[0] = 0


class Worker:
    """A thread that waits until there is a job."""

    def __init__(self) -> None:
        self.job: Callable[[], None] | None = None
        self.error: BaseException | None = None
        self.wake, self.done = Signal(), Signal()
        threading.Thread(target=self.loop, name="minidl-pool", daemon=True).start()

    def loop(self) -> None:
        while True:
            self.wake.wait()
            try:
                self.job()                                  # type: ignore[misc]   # whoever wakes it has set one
            except BaseException as error:                  # raised again by the thread that waits
                self.error = error
            self.job = None
            self.done.tell()


_busy = threading.Lock()
_workers: list[Worker] = []


def _run(job: Callable[[], None], count: int) -> None:
    while len(_workers) < count - 1:
        _workers.append(Worker())
    helping = _workers[:count - 1]
    for worker in helping:
        worker.job = job
        worker.wake.tell()
    stopped: BaseException | None = None
    try:
        job()
    except BaseException as error:
        stopped = error
    for worker in helping:
        stopped = _wait(worker) or stopped                  # also after an error: they still write to the arrays of this call
    errors = [error for error in [stopped, *(worker.error for worker in helping)] if error is not None]
    for worker in helping:
        worker.error = None
    if errors:
        raise errors[0]


def _wait(worker: Worker) -> BaseException | None:
    """Until the worker is done; gives the Ctrl-C that came meanwhile."""
    stopped = None
    while True:
        try:
            worker.done.wait()
            return stopped
        except BaseException as error:
            stopped = error


def _forget() -> None:
    """In a forked process: its parent's threads are not in it."""
    global _busy
    _busy = threading.Lock()
    _workers.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


class _Own(threading.local):
    buffer = np.empty(0, np.float32)


_own = _Own()


def scratch(numbers: int) -> np.ndarray:
    """Room for at least so many float32 numbers, that is this thread's own until it asks again. It lies on a cache line."""
    if _own.buffer.size < numbers:
        room = np.empty(numbers + 16, np.float32)
        start = -room.__array_interface__["data"][0] % 64 // 4
        _own.buffer = room[start:start + numbers]
    return _own.buffer
