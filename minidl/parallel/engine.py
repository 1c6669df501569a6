"""Engine: runs what exchanges describe, several chunks at a time, in the caller's thread or beside it.

A job is a generator that yields lists of Requests and is resumed once they are all done; it sends, adds up and sends on. So while one
chunk is on the wire another is being summed and a third copied: a pipeline, with no queue for any stage. Jobs have numbers, and the
lowest is the most urgent.

With a thread, jobs are taken as they come in, the most urgent first. Every rank must run them in one order, or two ranks could each wait
for what the other has put off: so rank 0 names the next one, as soon as it is ready there, and the others follow. What a job does is the
exchange's business (exchange.py), and when it comes in is the team's (team.py).

The same numbers come in again at every step. A rank that is ahead may have begun the next one; what it has put off of the last comes first
all the same, because others may wait for it before they begin.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from contextvars import copy_context

import numpy as np

from minidl.errors import ExchangeError
from minidl.parallel.communicator import NAP, Communicator, Request
from minidl.profiler import Recorder, recorder

Job = Iterator[Iterable[Request]]
About = tuple[Recorder, str, int]
WINDOW = 2                  # jobs under way at a time, at rank 0: one is summed while another is sent, and an urgent one waits for two
WIDE = 8                    # where nothing is more urgent than anything else
STAGES = 2                  # further ones, that come from a device or go back to it meanwhile
NAP_BESIDE = 2e-4           # seconds between two looks while another thread computes
NAMES = 0                   # the tag of the messages that name jobs; those of exchanges have others
NO_MORE = -1
PATIENCE = 2.0              # seconds for which those who end wait for one another


class Engine:
    """Runs jobs. communicator: its own, for the names of jobs. beside: in a thread; otherwise whenever somebody waits.

    window: how many jobs may be under way at a time. small: jobs of numbers below this one wait for nothing. within: what jobs run in.
    """

    def __init__(self, communicator: Communicator, beside: bool = False, window: int = WINDOW, small: int = 0,
                 within: Callable[[], AbstractContextManager] = nullcontext):
        self.communicator, self.beside, self.window, self.small, self.within = communicator, beside, window, small, within
        self.waiting: dict[int, Job] = {}               # by number
        self.rounds: Counter[int] = Counter()           # how many times each number was given
        self.active: dict[int, Running] = {}
        self.unfinished: set[int] = set()               # of both
        self.changed = threading.Condition()            # guards `waiting` and `unfinished`
        self.error: BaseException | None = None
        self.busy = 0.0                                 # seconds in which any job was unfinished
        self.hidden = 0.0                               # of these, seconds in which nobody waited
        self.waiters = 0                                # threads that wait for a job
        self.watching: Recorder | None = None           # who writes down what the thread that submits does
        self.about: dict[int, About] = {}               # of jobs that are written down, by number
        self.named: deque[int] = deque()                # that rank 0 has named and that have not begun
        self.sending: list[Request] = []
        self.next_name: tuple[np.ndarray, Request] | None = None
        self.no_more = False                            # whether rank 0 has said that there will be none
        self.closing = self.dropped = False
        self.thread: threading.Thread | None = None
        if beside:
            context = copy_context()
            self.thread = threading.Thread(target=context.run, args=(self._serve,), name="minidl-exchange", daemon=True)
            self.thread.start()

    # What others call

    def submit(self, number: int, job: Job, name: str = "", size: int = 0) -> None:
        """Have a job run. A number that is unfinished cannot be given again. name, size: what it is, and its bytes, for a profile."""
        if threading.current_thread() is not self.thread:
            self.watching = recorder()
        with self.changed:
            if number in self.unfinished:
                raise ExchangeError(f"engine: job {number} is not over, and cannot be begun again")
            self.unfinished.add(number)
            self.rounds[number] += 1
            self.waiting[number] = job
            if self.watching is not None:
                self.about[number] = self.watching, name, size
            self.changed.notify_all()

    def wait(self, numbers: Iterable[int] | None = None) -> None:
        """Come back when these jobs are over; all, unless any are named. Whatever error a job raised is raised here."""
        wanted = None if numbers is None else set(numbers)
        if not self.beside:
            if wanted is None or self.unfinished & wanted:
                with self.within():
                    self._run_here()
            return
        with self.changed, self.somebody_waits():
            while self.error is None and (self.unfinished if wanted is None else self.unfinished & wanted):
                self.changed.wait(1.0)
            if self.error is not None:
                raise self.error

    @contextmanager
    def somebody_waits(self) -> Iterator[None]:
        """Within the block what the thread does is not hidden behind computation."""
        self.waiters += 1
        try:
            yield
        finally:
            self.waiters -= 1

    def close(self) -> None:
        """End the thread; jobs that are not over are dropped."""
        with self.changed:
            self.closing = True
            self.changed.notify_all()
        if self.thread is not None and self.thread is not threading.current_thread():
            self.thread.join(10)

    def drop(self) -> None:
        """End at once, without a word to the others: somebody has died. Jobs are forgotten; errors too."""
        with self.changed:
            self.dropped = self.closing = True
            self.changed.notify_all()
        if self.thread is not None:
            self.thread.join(10)
        self.waiting, self.active, self.unfinished, self.error = {}, {}, set(), None

    # Without a thread: in the order of the numbers, which is the same on every rank

    def _run_here(self) -> None:
        try:
            looks = 0
            while self.waiting or self.active:
                while self.waiting and len(self.active) < self.window:
                    self._begin(self._most_urgent())
                looks = 0 if self._look() else looks + 1
                if looks > 20:
                    time.sleep(NAP)
        except BaseException:
            self.waiting, self.active, self.unfinished = {}, {}, set()
            raise

    # With one

    def _serve(self) -> None:
        try:
            with self.within():
                self._run_beside()
        except BaseException as error:                  # raised again by the thread that waits
            with self.changed:
                self.error = error
                self.changed.notify_all()
        else:
            if not self.dropped:
                self._part()
        finally:
            self.active = {}

    def _run_beside(self) -> None:
        while True:
            with self.changed:
                while not self.closing and not self.unfinished:
                    self.changed.wait()
                if self.closing:
                    break
            started = time.perf_counter()
            moved = self._name() if self.communicator.rank == 0 else self._follow()
            if not self._look() and not moved:
                time.sleep(NAP_BESIDE)
            spent = time.perf_counter() - started
            self.busy += spent
            self.hidden += 0 if self.waiters else spent

    def _part(self) -> None:
        """Say, or hear, that no more will be named: no message is left behind for whoever frees the communicator."""
        until = time.monotonic() + PATIENCE
        with suppress(ExchangeError):
            if self.communicator.rank == 0:
                name = np.array(NO_MORE, np.int64)
                self.sending += [self.communicator.isend(name, rank, NAMES) for rank in range(1, self.communicator.size)]
            elif self.next_name is None and not self.no_more:
                name = np.empty((), np.int64)
                self.next_name = name, self.communicator.irecv(name, 0, NAMES)
            left = self.sending if self.next_name is None else [*self.sending, self.next_name[1]]
            while left and time.monotonic() < until:
                left = [request for request in left if not request.done()]
                time.sleep(NAP)

    def _name(self) -> bool:
        """At rank 0: begin the most urgent job that has come in, and tell the others."""
        self.sending = [request for request in self.sending if not request.done()]
        moved = False
        while self.waiting:
            number = self._most_urgent()
            if number >= self.small and len(self.active) >= self.window:
                break
            name = np.array(number, np.int64)
            self.sending += [self.communicator.isend(name, rank, NAMES) for rank in range(1, self.communicator.size)]
            self._begin(number)
            moved = True
        return moved

    def _follow(self) -> bool:
        """Elsewhere: begin those that rank 0 has named, in its order, as they come in."""
        moved = False
        if self.next_name is None and not self.no_more:
            name = np.empty((), np.int64)
            self.next_name = name, self.communicator.irecv(name, 0, NAMES)
        if self.next_name is not None and self.next_name[1].done():
            self.no_more = int(self.next_name[0]) == NO_MORE
            if not self.no_more:
                self.named.append(int(self.next_name[0]))
            self.next_name = None
            moved = True
        for number in list(self.named):
            if number in self.waiting and number not in self.active:
                self.named.remove(number)
                self._begin(number)
                moved = True
        return moved

    # Both

    def _most_urgent(self) -> int:
        """The lowest number, of the earliest round."""
        with self.changed:
            return min(self.waiting, key=lambda number: (self.rounds[number], number))

    def _begin(self, number: int) -> None:
        with self.changed:
            job = self.waiting.pop(number)
        self.active[number] = Running(job)
        if number in self.about:
            self.active[number].started = time.perf_counter_ns()

    def _look(self) -> bool:
        """Let every job go on that can; gives whether any did."""
        moved = False
        for number, running in list(self.active.items()):
            if running.went_on():
                moved = True
            if running.over:
                del self.active[number]
                about = self.about.pop(number, None) if running.started else None
                if about is not None:
                    watching, name, size = about
                    watching.job(running.started, name, size)
                with self.changed:
                    self.unfinished.discard(number)
                    self.changed.notify_all()
        return moved


class Running:
    """A job under way, and what it waits for."""

    def __init__(self, job: Job):
        self.job = job
        self.requests: list[Request] = []
        self.over = False
        self.started = 0                                # in nanoseconds, if somebody writes it down

    def went_on(self) -> bool:
        """Resume it, as often as it has nothing to wait for; whether that was once at least."""
        moved = False
        while not self.over:
            self.requests = [request for request in self.requests if not request.done()]
            if self.requests:
                break
            moved = True
            try:
                self.requests = list(next(self.job))
            except StopIteration:
                self.over = True
        return moved

