"""Arrivals: weights on their way, while the next forward pass has begun.

Each weight is updated as soon as the sum of its gradients is there, or what others have made of it has come; an operation that needs it
waits for that one (watchers.arriving), and so does whoever looks at it. Who is sent what is the team's business.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping

from minidl.parallel.engine import Engine, Job
from minidl.parallel.layout import Chunk, Layout
from minidl.profiler import phase
from minidl.tensor import Tensor
from minidl.watchers import arriving


class Gate:
    """Stands before the weights of a step until its backward pass is over, which may still need them.

    early, landed: chunks that were summed, or whose new weights had come, before.
    """

    def __init__(self) -> None:
        self.open = False
        self.early: list[Chunk] = []
        self.landed: list[Chunk] = []


class Arrivals:
    """The weights of one rank, step after step.

    update: changes a parameter by the sum of its gradients; None on a rank that leaves that to others. spread: begins to bring a chunk of
    weights to those; None where there are none. land: sets a parameter to weights that have come. All three are called in the engine's
    thread. settled: whether a weight that was updated here is as all will have it, before it is spread.
    """

    def __init__(self, learned: Mapping[str, Tensor], layout: Layout, engine: Engine, update: Callable[[str], None] | None,
                 spread: Callable[[Chunk], None] | None, land: Callable[[str], None], settled: bool):
        self.learned, self.layout, self.engine = learned, layout, engine
        self.update, self.spread, self.land, self.settled = update, spread, land, settled
        self.changed = threading.Condition()            # guards `arriving` and the gate
        self.gate = Gate()
        self.waited = 0.0                               # seconds in which operations waited for weights

    def begin(self) -> None:
        """Before the first gradient of a step."""
        self.gate = Gate()

    def open(self) -> Job:
        """The backward pass is over: from here on weights change. Gives a job that catches up with what was summed before."""
        self.missing = {path: len(self.layout.holding[path]) for path in self.learned}         # chunks of its sum, or of its weights
        self.unfilled = {chunk.index: len(chunk.names) for chunk in self.layout.chunks}        # weights of it that are not updated yet
        for path, p in self.learned.items():
            if self.missing[path]:
                arriving[id(p)] = lambda path=path: self.until(path)                           # type: ignore[misc]
            elif self.update is not None:
                self.update(path)                       # it has no numbers, and is in no chunk
        with self.changed:
            self.gate.open = True
        return self._catch_up(*(sorted(chunks, key=lambda chunk: chunk.index) for chunks in (self.gate.early, self.gate.landed)))

    def _catch_up(self, early: Iterable[Chunk], landed: Iterable[Chunk]) -> Job:
        yield ()
        for chunk in early:
            self._summed(chunk)
        for chunk in landed:
            self._landed(chunk)

    def summed(self, chunk: Chunk, gate: Gate) -> None:
        """The sum of a chunk is there. gate: of its step."""
        with self.changed:
            if not gate.open:
                gate.early.append(chunk)
                return
        self._summed(chunk)

    def _summed(self, chunk: Chunk) -> None:
        for path in chunk.names:
            self.missing[path] -= 1
            if self.missing[path]:
                continue
            if self.update is not None:
                self.update(path)
            if self.spread is None:
                self._arrived(path)
                continue
            self.missing[path] = len(self.layout.holding[path])
            for held in self.layout.holding[path]:
                self.unfilled[held.index] -= 1
                if not self.unfilled[held.index]:
                    self.spread(held)
            if self.settled:
                self._arrived(path)

    def landed(self, chunk: Chunk, gate: Gate | None) -> None:
        """The weights of a chunk are those that all ranks will have. gate: of their step, unless it is known to be open."""
        if self.update is not None and self.settled:
            return                                      # this rank had them before
        with self.changed:
            if gate is not None and not gate.open:
                gate.landed.append(chunk)
                return
        self._landed(chunk)

    def _landed(self, chunk: Chunk) -> None:
        for path in chunk.names:
            self.missing[path] -= 1
            if not self.missing[path]:
                self.land(path)
                self._arrived(path)

    def _arrived(self, path: str) -> None:
        with self.changed:
            arriving.pop(id(self.learned[path]), None)
            self.changed.notify_all()

    def until(self, path: str) -> None:
        """Come back when a parameter's weights are there. Raises what went wrong on their way."""
        if threading.current_thread() is self.engine.thread:
            return
        started = time.perf_counter()
        with phase("gradient exchange"), self.engine.somebody_waits(), self.changed:
            while id(self.learned[path]) in arriving and self.engine.error is None:
                self.changed.wait(0.5)
        self.waited += time.perf_counter() - started
        if self.engine.error is not None:
            raise self.engine.error

    def clear(self) -> None:
        """Nobody waits any more."""
        with self.changed:
            for p in self.learned.values():
                arriving.pop(id(p), None)
            self.changed.notify_all()
