"""Profiler: where time goes, written down while it goes.

A Clock counts the seconds of each phase of training. Only the innermost phase's clock runs, so that the seconds of all phases add up to
the time that has passed, whatever happens. The training loop always has one. A Recorder writes down, while somebody wants to know, every
operation, phase and exchange as a small tuple. Nothing is computed here, and nothing shown: that is done afterwards, in profiling/.

A Clock is of one thread, and of the context that made it: ranks may be threads. What another thread does meanwhile (an exchange, the
making of the next minibatch) takes no time of the loop's, and is told by `hide`.
"""

from __future__ import annotations

import functools
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import get_ident
from time import perf_counter_ns
from typing import Any, TypeVar, cast

import numpy as np

from minidl import backend
from minidl.errors import running

resource: Any
try:
    import resource
except ImportError:                             # Windows
    resource = None

PHASES = ("data", "forward", "backward", "normalization", "gradient exchange", "update", "step", "curvature", "curvature exchange", "idle",
          "evaluation", "saving", "other")              # step: a whole one that was replayed, see capture.py
WHOLE = frozenset({"evaluation", "saving"})     # phases that keep for themselves what happens in them, all but idle
MOST = 200_000                                  # tuples of one kind that a Recorder holds, of about 400 bytes each

SCALARS = (int, float, bool, type(None))
OFTEN = 8                                       # of so many passes backward one is looked at for its memory, and the first ones
LONG = 100_000                                  # nanoseconds: after shorter phases the system is not asked for the peak

F = TypeVar("F", bound=Callable[..., Any])


class Clock:
    """The seconds of each phase. now: gives nanoseconds.

    A name may have a part after a slash, "curvature/inverses", whose seconds are also the phase's.
    """

    def __init__(self, now: Callable[[], int] = perf_counter_ns):
        self.now = now
        self.thread = get_ident()
        self.nanoseconds: dict[str, int] = defaultdict(int)
        self.since = now()
        self.stack = [("other", self.since)]
        self.hidden: dict[str, float] = defaultdict(float)          # seconds of communication beside computation
        self.recorder: Recorder | None = None
        self.users = 0                          # blocks that count with it: the last one to end takes it away
        self.outer: Clock | None = None         # of the thread that has started this one

    def enter(self, name: str) -> int:
        """From now on it is this phase's time. Gives what `leave` must be told."""
        stack = self.stack
        now, (top, _), depth = self._read(), stack[-1], len(stack)
        self.nanoseconds[top] += now - self.since
        self.since = now
        stack.append((top if top in WHOLE and name != "idle" else name, now))
        return depth

    def leave(self, depth: int) -> None:
        """Back to the phase that was before; whatever was entered since and not left, because of an error, is left too."""
        stack = self.stack
        now = self._read()
        self.nanoseconds[stack[-1][0]] += now - self.since
        self.since = now
        if self.recorder is not None and depth < len(stack):
            name, started = stack[depth]
            if self.recorder.takes(self.recorder.phases) or started < self.recorder.full:
                peak = self.recorder.peak() if self.recorder.looking and now - started > LONG else 0
                self.recorder.phases.append((started, now, self.thread, name, depth, peak))
        del stack[depth:]

    def _read(self) -> int:
        if self.recorder is not None and self.recorder.devices:
            self.recorder.settle()              # what was begun in a phase is its own
        return self.now()

    def read(self, parts: bool = False) -> dict[str, float]:
        """The seconds of each phase so far, the present one's too. parts: under their names with the part, too."""
        found: dict[str, float] = defaultdict(float)
        present = {self.stack[-1][0]: self.now() - self.since}
        for name in [*self.nanoseconds, *(name for name in present if name not in self.nanoseconds)]:
            seconds = (self.nanoseconds.get(name, 0) + present.get(name, 0)) / 1e9
            found[name.partition("/")[0]] += seconds
            if parts and "/" in name:
                found[name] += seconds
        return dict(found)

    def move(self, seconds: float, source: str, to: str) -> None:
        """So many seconds, and no more than there are, were another phase's, as is known only now."""
        moved = min(int(seconds * 1e9), self.nanoseconds[source])
        self.nanoseconds[source] -= moved
        self.nanoseconds[to] += moved


_clock: ContextVar[Clock | None] = ContextVar("clock", default=None)


def clock() -> Clock | None:
    """The Clock of this thread and context."""
    found = _clock.get()
    return found if found is not None and found.thread == get_ident() else None


@contextmanager
def counting(now: Callable[[], int] = perf_counter_ns) -> Iterator[Clock]:
    """Within the block there is a Clock: the one that is there, or a new one. As a decorator, for each call of a function."""
    found = clock()
    if found is None:
        found = Clock(now)
        found.outer = _clock.get()
        if found.outer is not None:             # who writes down the work of that thread writes down this one's too
            found.recorder = found.outer.recorder
        _clock.set(found)
    found.users += 1
    try:
        yield found
    finally:
        found.users -= 1
        if not found.users:
            _clock.set(found.outer)


def settled(seconds: dict[str, float]) -> dict[str, float]:
    """The seconds of each phase between two readings of a Clock, where `move` may have moved some that were counted before the first."""
    short = -min(seconds.get("gradient exchange", 0.0), 0.0)
    return seconds | {"gradient exchange": 0.0, "idle": seconds.get("idle", 0.0) - short} if short else seconds


class phase:
    """Within the block it is this phase's time, if somebody counts: `with phase("update"):`, or as a decorator."""

    __slots__ = ("clock", "depth", "name")

    def __init__(self, name: str):
        self.name = name

    def __enter__(self) -> None:
        self.clock = clock()
        if self.clock is not None:
            self.depth = self.clock.enter(self.name)

    def __exit__(self, *error: Any) -> None:
        if self.clock is not None:
            self.clock.leave(self.depth)

    def __call__(self, function: F) -> F:
        @functools.wraps(function)
        def inside(*args: Any, **kwargs: Any) -> Any:
            with phase(self.name):
                return function(*args, **kwargs)

        return cast(F, inside)


def hide(name: str, seconds: float) -> None:
    """So many seconds of communication went on beside the computation of this thread."""
    found = clock()
    if found is not None:
        found.hidden[name] += seconds


def recorder() -> Recorder | None:
    """Who writes down what this thread does, if anybody."""
    found = clock()
    return None if found is None else found.recorder


def peak_memory(device: str = "cpu") -> int:
    """The most bytes that this process has had so far: in main memory, or of a GPU's, as far as its array library knows; 0 if unknown."""
    if device != "cpu":
        return backend.peak_memory(device)
    if resource is None:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@contextmanager
def unwatched() -> Iterator[None]:
    """Within the block nobody writes down what this thread does."""
    found = clock()
    before = None if found is None else found.recorder
    if found is not None:
        found.recorder = None
    try:
        yield
    finally:
        if found is not None:
            found.recorder = before


class Recorder:
    """What happens, as tuples, in the order in which it ends. Times are nanoseconds, or what a device makes of the moment.

        operations  (start, end, thread, Function class, layers, shapes of a product's factors, shape of the result, bytes of each
                     argument, of the result or of each, whether the result only looks at an argument's memory)
        rules       (start, end, thread, the operation whose rule it is, Step, whether the result is in an argument's memory)
        updates     (start, end, thread, Optimizer class, path of the parameter, its bytes, how many arrays are remembered of it); without
                     a path of all parameters together
        phases      (start, end, thread, name, depth, peak memory, or 0)
        jobs        (start, end, thread, name, bytes): of the exchange
        kept        (layers, Function class, bytes): for the backward pass
        tops        (layers, whether backward) -> the most bytes of a device that arrays have taken meanwhile; not a list

    `layers` is the stack of modules that were running (see errors.running); their paths are looked up afterwards. It belongs to the
    Profiles of one thread. Once there are MOST tuples of a kind nothing is written down any more, so that memory has a bound.
    """

    def __init__(self) -> None:
        self.operations: list[tuple] = []
        self.rules: list[tuple] = []
        self.updates: list[tuple] = []
        self.phases: list[tuple] = []
        self.jobs: list[tuple] = []
        self.kept: list[tuple] = []
        self.tops: dict[tuple[Any, bool], int] = {}
        self.inside = 0                                     # the most while operations ran that are in no layer, since one that is
        self.watches: list[tuple[Any, Callable[..., int], int]] = []        # open, of devices that tell: what was taken when it was opened
        self.devices: dict[type, backend.Library] = {}      # libraries of arrays whose work goes on while Python does
        self.zeros: dict[type, tuple[int, Any]] = {}        # of each, a moment by both clocks
        self.passes, self.looking = 0, True                 # backward passes so far; whether memory is looked at until the next
        self.users, self.full = 0, 0                        # Profiles that are open now; since when it is full, or 0
        self.thread = get_ident()                           # whose Profiles they are
        self.outer: Recorder | None = None                  # who writes down, of the thread that has started this one
        self.seen: set[int] = set()                         # arrays that are kept already, by id, until the next backward pass is over

    def now(self, library: Any) -> Any:
        """This moment, on the device of the arrays of this type."""
        if library is np.ndarray or library is None:
            return perf_counter_ns()
        found = self.devices.get(library)
        if found is None:
            known = backend._by_type.get(library)
            if known is None or known.event is None:
                return perf_counter_ns()
            found = self.devices[library] = known
            found.synchronize()
            self.watch(found)
            self.zeros[library] = perf_counter_ns(), found.event()         # type: ignore[misc]   # it has one
        return library, found.event()                       # type: ignore[misc]

    def watch(self, library: backend.Library) -> None:
        """From here on see how much the arrays of this thread take on its device, if that tells."""
        if library.watch is not None and library.memory is not None and get_ident() == self.thread:
            context = library.watch(None)
            self.watches.append((context, context.__enter__(), library.memory(None).used))

    def unwatch(self) -> None:
        """See it no more, until `watch`. In the thread that has begun it."""
        while self.watches:
            self.watches.pop()[0].__exit__(None, None, None)

    def top(self, stack: Any, backward: bool) -> None:
        """An operation of a layer is over: remember the most that arrays took meanwhile. What a rule calls, in no layer, is its own."""
        if get_ident() == self.thread:
            most = sum(used + now(most=True) for _, now, used in self.watches)
            if backward:
                most = max(most, self.inside)
            self.inside = max(most, self.inside) if stack is None and not backward else 0
            if most > self.tops.get((stack, backward), 0):
                self.tops[stack, backward] = most

    def takes(self, kind: list[tuple]) -> bool:
        """Whether one more of this kind is written down."""
        if len(kind) >= MOST and not self.full:
            self.full = perf_counter_ns()
        return not self.full and self.users > 0             # threads that outlive the block go on with it

    def settle(self) -> None:
        """Wait for the devices."""
        for library in self.devices.values():
            library.synchronize()

    def peak(self) -> int:
        """The most bytes so far: of the devices, if there are any, else in main memory."""
        known = [library.memory(None) for library in self.devices.values() if library.memory is not None]
        return sum(each.peak for each in known) if self.devices else peak_memory()

    def nanoseconds(self, moment: Any) -> int:
        """A moment that `now` gave, on this process's clock."""
        if type(moment) is not tuple:
            return moment
        library, event = moment
        at, zero = self.zeros[library]
        return at + int(1e6 * self.devices[library].elapsed(zero, event))       # type: ignore[misc]

    # What the engine tells

    def operation(self, started: Any, function: Any, arrays: list[Any], y: Any, library: Any) -> tuple | None:
        """A Function was called, and is over. Gives what was written down, for the Node."""
        ended = self.now(library) if self.devices else perf_counter_ns()
        if not self.takes(self.operations):
            return None
        if self.watches:
            self.top(running.get(), False)
        if type(y) is library:
            shape, looks = y.shape, y.base is not None and _among(y, arrays)
            made: Any = y.nbytes
        else:
            parts = [part for part in (y if type(y) is tuple else (y,)) if hasattr(part, "nbytes")]       # NumPy's numbers have it too
            shape, looks, made = (parts[0].shape if parts else ()), False, [part.nbytes for part in parts]
        found = (started, ended, get_ident(), type(function), running.get(),
                 [getattr(x, "shape", ()) for x in arrays[:2]] if function.multiply_adds is not None else None,
                 shape, [x.nbytes if type(x) is library else 0 for x in arrays], made, looks)
        self.operations.append(found)
        return found

    def rule(self, started: Any, node: Any, function: Any, step: Any, args: list[Any], result: Any) -> None:
        """A gradient rule, or a method that rules share, is over."""
        ended = self.now(type(args[0])) if self.devices else perf_counter_ns()
        if self.takes(self.rules):
            if self.watches:
                self.top(node.stack, True)
            looks = result is args[0] or (getattr(result, "base", None) is not None and _among(result, args))
            self.rules.append((started, ended, get_ident(), node.record or unknown(function, node), step, looks))

    def job(self, started: int, name: str, size: int) -> None:
        """The exchange has finished a job."""
        if self.takes(self.jobs):
            self.jobs.append((started, perf_counter_ns(), get_ident(), name, size))

    def update(self, started: Any, rule: Any, weights: dict[str, Any]) -> None:
        """An optimizer has changed a parameter, and what it remembers of it; or several, by path, in one launch."""
        paths = list(weights)
        ended = self.now(type(weights[paths[0]])) if self.devices else perf_counter_ns()
        if self.takes(self.updates):
            self.updates.append((started, ended, get_ident(), type(rule), paths[0] if len(paths) == 1 else "",
                                 sum(w.nbytes for w in weights.values()), len(rule.state.get(paths[0], ()))))

    def keeps(self, node: Any, xs: tuple) -> None:
        """A Node keeps arrays. Parameters are there anyway, and what another Node keeps is counted there."""
        saved = node.saved
        if not (self.looking and saved and self.takes(self.kept)):
            return
        seen, total = self.seen, 0
        for x in xs:
            if type(x) not in SCALARS and getattr(x, "_requires_grad", False) and x.node is None:
                seen.add(id(x._data if x._data.base is None else x._data.base))
        for _, x in node.kept() if node.function.plan.variadic else saved.items():
            base = getattr(x, "base", x)
            whole = id(x if base is None else base)
            if whole not in seen:
                seen.add(whole)
                total += getattr(x, "nbytes", 0)
        if total:
            self.kept.append((node.stack, type(node.function), total))

    def walked(self) -> None:
        """A backward pass is over, and what was kept for it is gone. Memory is seldom used otherwise in the next: some are looked at."""
        self.seen.clear()
        self.passes += 1
        self.looking = self.passes < OFTEN or self.passes % OFTEN == 0


def unknown(function: Any, node: Any) -> tuple:
    """An operation that was not written down."""
    return 0, 0, 0, type(function), node.stack, None, node.like[0][0], (), 0, False


def _among(y: Any, xs: list[Any]) -> bool:
    """Whether y is one of these arrays, or a view of what one of them is or views."""
    base = y.base
    return any(y is x or (base is not None and (base is x or base is getattr(x, "base", None))) for x in xs)
