"""One pool of threads, which all kernels share.

`threads(n)` says how many threads work, inside it and nowhere else; the linear algebra library is held to one thread meanwhile, because
two pools that do not know of each other cost more than they bring. Work comes in pieces whose number and order depend on the shapes
alone, so that the same call gives the same bits on any number of threads. Threads that wait for more than a moment sleep. What a piece is,
the kernels know.
"""

from __future__ import annotations

import _thread
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
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
    algebra library on as many as it likes; while a block is open anywhere in the process, that works on one. ArgumentError for a count
    that makes no sense, MissingExtra without threadpoolctl.

    >>> with threads(2) as count:
    ...     count, usable()
    (2, 2)
    """
    if count is not None and (isinstance(count, bool) or not hasattr(count, "__index__") or count < 1):
        raise ArgumentError(f"threads: count is {count!r}, and must be an int of at least 1")
    count = cores() if count is None else int(count)
    with _blas_on_one_thread():
        token = _threads.set(count)
        try:
            yield count
        finally:
            _threads.reset(token)


_limit: list[Any] = []                                      # one entry for each block that is open; the first one restores
_later: list[Any] = []                                      # of libraries that were loaded within
_limiting = threading.Lock()


@contextmanager
def _blas_on_one_thread() -> Iterator[None]:
    """Hold the linear algebra library to one thread, from the first block that is entered to the last one that is left."""
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        raise MissingExtra("threads: needs threadpoolctl", hint="Install it: pip install 'minidl[fast]'") from None
    with _limiting:
        _limit.append(_limit[0] if _limit else threadpool_limits(1))
    try:
        yield
    finally:
        with _limiting:
            last = _limit.pop()
            if not _limit:
                while _later:
                    _later.pop().restore_original_limits()
                last.restore_original_limits()


def loaded() -> None:
    """To be called when another linear algebra library has just been loaded: inside a `threads` block it is held to one thread too."""
    with _limiting:
        if _limit:
            from threadpoolctl import threadpool_limits

            _later.append(threadpool_limits(1))


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
    warnings = np.geterr()                                  # a thread of its own would have NumPy's defaults

    def job() -> None:
        with np.errstate(**warnings):
            for piece in waiting:
                work(piece)

    together(job, min(len(pieces), usable()))


_owner: dict[str, object] = {}                              # whose call the pool is at work for


def together(job: Callable[[], None], count: int) -> None:
    """Call job() on so many threads at once, this one among them, and come back when all are done.

    The job takes its pieces of work from a counter that all share. Where the pool is at work for another thread of this process, the
    job is called on this thread alone, and takes all pieces. The first error that a job raised is raised here. A job calls nothing
    that uses the pool itself.
    """
    me = object()
    try:
        if count < 2 or _owner.setdefault("pool", me) is not me:
            job()
        else:
            _run(job, count)
    finally:
        if "pool" in _owner and _owner["pool"] is me:       # no call here: Ctrl-C comes after calls
            del _owner["pool"]


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
    """A thread that waits until there is a job. Woken without one it ends."""

    def __init__(self) -> None:
        self.job: Callable[[], None] | None = None          # None again when it is done
        self.error: BaseException | None = None
        self.wake, self.done = Signal(), Signal()
        _thread.start_new_thread(self.loop, ())             # threading's start() waits for the thread, and Ctrl-C then may break its locks

    def loop(self) -> None:
        while True:
            self.wake.wait()
            if self.job is None:
                return
            try:
                self.job()
            except BaseException as error:                  # raised again by the thread that waits
                self.error = error
            self.job = None
            self.done.tell()


_workers: list[Worker] = []


def _run(job: Callable[[], None], count: int) -> None:
    while len(_workers) < count - 1:
        _workers.append(Worker())
    helping = _workers[:count - 1]
    try:
        for worker in helping:
            worker.job = job
            worker.wake.tell()
        job()
        for worker in helping:
            worker.done.wait()
    except BaseException:
        _see_out(helping)
        raise
    errors = [worker.error for worker in helping if worker.error is not None]
    for worker in helping:
        worker.error = None
    if errors:
        raise errors[0]


def _see_out(helping: list[Worker]) -> None:
    """After an error or Ctrl-C, which may have come anywhere: until no worker writes to the arrays of this call any more.

    Nobody knows then what was told and heard, so these workers are not used again: told once more, they end.
    """
    _workers.clear()
    working = True
    while working:
        try:
            working = any(worker.job is not None for worker in helping)
            for worker in helping:
                with suppress(RuntimeError):                # it was told, and has not heard it yet
                    worker.wake.tell()
            time.sleep(0.001)
        except BaseException:                               # another Ctrl-C: the first one is under way already
            working = True


def _forget() -> None:
    """In a forked process: its parent's threads are not in it."""
    _owner.clear()
    _workers.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


class _Own(threading.local):
    """What each thread has of its own."""

    def __init__(self) -> None:
        self.counter = np.zeros(8, np.int64)
        self.counts_at = self.counter.__array_interface__["data"][0]
        self.room = np.empty(0, np.float32)
        self.starts_at = 0


_own = _Own()


def counter() -> tuple[np.ndarray, int]:
    """A counter of this thread's, for pieces of work that are handed out one by one, and its address."""
    return _own.counter, _own.counts_at


def scratch(numbers: int) -> int:
    """The address of room for so many float32 numbers, which is this thread's own until it asks again. It lies on a cache line."""
    if _own.room.size < numbers + 16:
        _own.room = np.empty(numbers + 16, np.float32)
        _own.starts_at = -(-_own.room.__array_interface__["data"][0] // 64) * 64
    return _own.starts_at
