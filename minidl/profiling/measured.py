"""profile(): a block whose time and memory are measured, and the Profile that tells of them.

While the block runs tuples are appended to lists, and that is all. Everything else (paths of layers, operations a second, shares) is
found out when somebody asks, once the block is over.
"""

from __future__ import annotations

import json
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, astuple, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from minidl import kernels, pool
from minidl.errors import ArgumentError, layer_path
from minidl.modes import mode
from minidl.profiler import Recorder, counting, peak_memory, settled
from minidl.profiling import ranks, rows, table
from minidl.profiling.events import Event, Kept, events_of
from minidl.profiling.trace import trace


def profile() -> Profile:
    """Measure where time and memory go, in whatever is done in a block: `with minidl.profile() as p:`.

    After it `print(p)` shows a table whose first line names the bottleneck; `p.phases`, `p.layers` and `p.operations` are its rows, and
    `p.trace("trace.json")` writes a file for Perfetto. What is measured is this thread, and threads that are started in the block with its
    context (contextvars.copy_context), as minidl's own are. Let a first pass go before: kernels may be compiled in it.

    >>> from minidl import functions as F, nn
    >>> model = nn.Sequential(nn.Affine(4, 8, generator=0), nn.ReLU(), nn.Affine(8, 2, generator=0))
    >>> with profile() as p:
    ...     F.softmax_cross_entropy(model(np.ones((3, 4), np.float32)), np.zeros(3, int)).backward()
    >>> [(row.layer, row.name, row.calls) for row in p.operations if row.direction == "forward"][0][2]
    1
    """
    return Profile()


@dataclass
class Found:
    """What one process has measured. begun: when, in nanoseconds by its own clock."""

    begun: int
    seconds: float
    recorded: float                                     # of these, seconds in which operations were written down
    phases: dict[str, float]
    hidden: dict[str, float]
    memory: dict[str, tuple[int, int]] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)
    tops: dict[str, int] = field(default_factory=dict)  # by layer: the most bytes of a device that arrays took while it ran
    full: bool = False                                  # whether no more were written down, because there were too many


@dataclass
class Counts:
    """How the clock stood at a moment: seconds of each phase, and of what is hidden. place: how many phases had been written down.

    threads: the names of those that there were.
    """

    at: int
    phases: dict[str, float]
    hidden: dict[str, float]
    place: int
    threads: dict[int, str]


class Profile:
    """What was measured: see `profile`. Times are in seconds, sizes in bytes.

    A `with` block measures all of itself. `pause` and `resume` within it say when operations are written down; phases are counted
    always. steps: training steps that were written down, skipped: seconds before that are not counted, if whoever measures says so.
    """

    def __init__(self) -> None:
        self.steps, self.skipped = 0, 0.0
        self.facts: dict[str, Any] = {}                         # how it was done, as far as that says what can be tried
        self.ranks = 1
        self.alignment: list[tuple[float, float]] = []          # of each rank: how far its clock is ahead, and how wrong that may be
        self.others: list[Found] = []                           # what other processes have measured, on this one's clock
        self._recorder: Recorder | None = None
        self._found: Found | None = None
        self._begun = self._opened = self._ended = 0            # nanoseconds
        self._last: Counts | None = None                        # when it was over
        self._closing = ExitStack()

    # While it is measured

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.stop()

    def start(self) -> None:
        """Begin to measure."""
        if self._begun:
            raise ArgumentError("profile: this one has been begun already", hint="Make another one: minidl.profile().")
        self._clock = self._closing.enter_context(counting())
        around = mode.get().recorder                            # of a profile around this one
        if around is not None and around.thread == self._clock.thread and around.users and not around.full:
            self._recorder = around
        else:
            self._recorder = Recorder()
            self._recorder.outer = around
        self.facts |= {"compiled": kernels.compiled(), "threads": pool.usable(), "cores": pool.cores()}
        self._peak = peak_memory()
        self._phases, self._hidden = self._clock.read(parts=True), dict(self._clock.hidden)
        self._begun = time.perf_counter_ns()
        self._windows: list[tuple[int, int]] = []
        self._place = len(self._recorder.phases)
        self.resume()

    def resume(self) -> None:
        """Write operations down from here on."""
        if not self._opened and self._recorder is not None:
            self._recorder.users += 1
            if self._recorder.users == 1:
                for library in self._recorder.devices.values():
                    self._recorder.watch(library)
            self._write_to(self._recorder)
            self._opened = time.perf_counter_ns()

    def pause(self) -> None:
        """Write no operations down until `resume`."""
        if self._opened and self._recorder is not None:
            self._recorder.settle()
            now = time.perf_counter_ns()
            for depth, (name, started) in enumerate(self._clock.stack[1:], 1):          # phases that are not over
                self._recorder.phases.append((max(started, self._opened), now, self._clock.thread, name, depth, self._recorder.peak()))
            self._windows.append((self._opened, now))
            self._opened = 0
            self._recorder.users -= 1
            if not self._recorder.users:
                self._recorder.unwatch()
                around = self._recorder.outer
                self._write_to(around if around is not None and around.users else None)

    def _write_to(self, recorder: Recorder | None) -> None:
        """From here on this one writes down what is done."""
        if threading.get_ident() != self._clock.thread:
            raise ArgumentError("profile: it was begun in another thread", hint="A block ends in the thread in which it has begun.")
        mode.set(replace(mode.get(), recorder=recorder))
        self._clock.recorder = recorder

    def stop(self) -> None:
        """It is over."""
        if self._begun and not self._ended:
            with self._closing:
                try:
                    self.pause()
                finally:
                    self._last = self._count()
                    self._ended = self._last.at

    def _count(self) -> Counts:
        """How the clock stands."""
        names = {thread.ident: thread.name for thread in threading.enumerate() if thread.ident is not None}
        return Counts(time.perf_counter_ns(), self._clock.read(parts=True), dict(self._clock.hidden),
                      len(self._recorder.phases) if self._recorder is not None else 0, names)

    def _find(self) -> Found:
        """What there is so far."""
        if self._recorder is None:
            raise ArgumentError("profile: nothing was measured", hint="Use it as a block: with minidl.profile() as p: ...")
        recorder, now = self._recorder, self._last or self._count()
        last = min(now.at, recorder.full or now.at)
        windows = [*self._windows, *([(self._opened, now.at)] if self._opened else [])]
        events, kept = events_of(recorder, self._begun, last, self._clock.thread, 0, now.threads)
        phases = settled({name: seconds - self._phases.get(name, 0.0) for name, seconds in now.phases.items()})
        recognised(phases, events)
        return Found(self._begun, sum(seconds for name, seconds in phases.items() if "/" not in name),
                     sum(max(min(end, last) - start, 0) for start, end in windows) / 1e9, phases,
                     {name: seconds - self._hidden.get(name, 0.0) for name, seconds in now.hidden.items()},
                     risen(recorder.phases[self._place:now.place], self._clock.thread, self._peak), events, kept, highest(recorder),
                     last < now.at)

    # What was measured

    @property
    def found(self) -> Found:
        """What this process has measured; so far, if it is not over."""
        if self._found is None:
            found = self._find()
            if self._last is None:
                return found
            self._found, self._recorder = found, None   # what it holds has been read
        return self._found

    def __getstate__(self) -> dict[str, Any]:
        assert self.found is not None                   # which can be copied to another process, as what it is found from cannot
        return {name: value for name, value in vars(self).items() if name not in ("_clock", "_closing")}

    @property
    def begun(self) -> float:
        """When it began: a moment of `time.perf_counter`, from which the seconds of events are counted."""
        return self.found.begun / 1e9

    @property
    def seconds(self) -> float:
        """All time that was measured: the sum of the phases that are not hidden."""
        return self.found.seconds

    @property
    def recorded(self) -> float:
        """Of that, seconds in which operations were written down."""
        return self.found.recorded

    @property
    def phases(self) -> list[rows.Phase]:
        """A row for each phase, what costs most first, and below them those of hidden communication."""
        found = self.found
        return rows.phases(found.phases, found.hidden, found.memory)

    @property
    def operations(self) -> list[rows.Operation]:
        """A row for each layer, operation and direction, what costs most first."""
        found = self.found
        return rows.operations(found.events, found.kept, found.recorded)

    @property
    def layers(self) -> list[rows.Layer]:
        """A row for each layer, what costs most first."""
        return rows.layers(self.operations, self.found.tops)

    @property
    def gaps(self) -> dict[str, float]:
        """Seconds of each phase in which no operation ran, of those that are `recorded`."""
        found = self.found
        return between(found.events, found.recorded)

    def events(self) -> Iterator[Event]:
        """Everything that was written down, of all ranks, in seconds from the beginning: to draw from."""
        yield from self.found.events
        for other in self.others:
            yield from other.events

    def bottleneck_found(self) -> rows.Bottleneck:
        """What costs most, with what can be tried."""
        return rows.bottleneck(self.phases, self.operations, self.gaps, self.recorded, self.facts)

    def bottleneck(self) -> str:
        """What costs most, in one sentence."""
        return str(self.bottleneck_found())

    # How it is shown

    def table(self, width: int = 80, most: int = table.MOST) -> str:
        """The bottleneck, the phases, and the `most` operations that cost most, as text."""
        return "\n".join(line for line, _ in table.lines(self, width, most))

    def __str__(self) -> str:
        return self.table()

    def _repr_html_(self) -> str:
        import html

        return f"<pre>{html.escape(self.table(100))}</pre>"

    def data(self) -> dict[str, Any]:
        """All rows, as JSON can hold them."""
        most = self.bottleneck_found()
        every = [self.found, *self.others]
        return {
            "bottleneck": str(most), "hint": most.hint, "seconds": self.seconds, "recorded": self.recorded, "steps": self.steps,
            "skipped": self.skipped,
            "phases": [asdict(row) for row in self.phases],
            "layers": [asdict(row) for row in self.layers],
            "operations": [asdict(row) | {"gflops": row.gflops, "gbytes": row.gbytes} for row in self.operations],
            "gaps": self.gaps,
            "ranks": [{"rank": rank, "seconds": each.seconds, "phases": each.phases, "hidden": each.hidden}
                      for rank, each in enumerate(every)],
            "clocks": [{"ahead": ahead, "error": error} for ahead, error in self.alignment],
        }

    def trace(self, path: str | Path) -> None:
        """Write a file for Perfetto (ui.perfetto.dev) and Chrome (chrome://tracing)."""
        try:
            Path(path).write_text(json.dumps(self.traced()) + "\n")
        except OSError as error:
            raise ArgumentError(f"profile: {path} could not be written: {error.strerror or error}",
                                hint="Give a file in a folder that is there.") from error

    def traced(self) -> dict[str, Any]:
        """What is in that file."""
        return trace(self.events(), {"bottleneck": self.bottleneck(), "seconds": self.seconds,
                                     "clock errors, seconds": [error for _, error in self.alignment]})

    # Many processes

    def gather(self, communicator: Any) -> None:
        """Bring everyone's profile to the first rank, on its clock. Every rank calls it, when its own is over."""
        begun = ranks.offsets(communicator)
        mine = self.found
        told = json.dumps([asdict(replace(mine, events=[], kept=[])), [astuple(event) for event in mine.events]]).encode()
        everyones = communicator.gather_bytes(told)
        if communicator.rank:
            return
        self.ranks = communicator.size
        self.alignment = [(ahead / 1e9, error / 1e9) for ahead, error in begun]
        self.others = []
        for rank, (each, (ahead, _)) in enumerate(zip(everyones, begun)):
            if rank:
                about, events = json.loads(each)
                other = Found(**about)
                later = (other.begun - ahead - mine.begun) / 1e9
                other.events = [moved(Event(*event), rank, later) for event in events]
                self.others.append(other)


def highest(recorder: Recorder) -> dict[str, int]:
    """By layer, the most bytes of a device that arrays took while it ran, forward or backward."""
    found: dict[str, int] = {}
    for (stack, _), most in recorder.tops.items():
        path = layer_path(stack)
        found[path] = max(found.get(path, 0), most)
    return found


def moved(event: Event, rank: int, later: float) -> Event:
    """An event of another rank, on this one's clock."""
    event.rank, event.start, event.end = rank, event.start + later, event.end + later
    return event


def recognised(phases: dict[str, float], events: list[Event]) -> None:
    """In code that names no phases an operation that is called is part of a forward pass."""
    spent = sum(event.seconds for event in events
                if event.category == "operation" and event.outer and event.phase == "other" and event.thread == "computation")
    spent = min(spent, phases.get("other", 0.0))
    if spent:
        phases["other"] -= spent
        phases["forward"] = phases.get("forward", 0.0) + spent


def between(events: list[Event], recorded: float) -> dict[str, float]:
    """Seconds of each phase in which no operation ran."""
    own: dict[str, float] = defaultdict(float)
    own["other"] = recorded
    stack: list[Event] = []
    for event in events:
        if event.thread != "computation" or event.category == "layer" or not event.outer:
            continue
        while stack and stack[-1].end <= event.start:
            stack.pop()
        parent = stack[-1].name.partition("/")[0] if stack else "other"
        own[parent] -= event.seconds
        if event.category == "phase":
            own[event.name.partition("/")[0]] += event.seconds
            stack.append(event)
    return {name: seconds for name, seconds in own.items() if seconds > 1e-9}


def risen(left: list[tuple], thread: int, before: int) -> dict[str, tuple[int, int]]:
    """The most bytes that the process had had at the end of each phase, and by how much they rose in it."""
    found: dict[str, tuple[int, int]] = {}
    for _, _, owner, name, _, peak in left:
        if owner == thread and peak:
            name = name.partition("/")[0]
            found[name] = peak, found.get(name, (0, 0))[1] + max(peak - before, 0)
            before = max(before, peak)
    return found
