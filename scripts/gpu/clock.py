"""Sides that take turns on one device, timed by its own events.

A block of passes lies between two events, and before the second one everything is waited for, on all streams: so a pass takes the time
that the host or the device needs, whichever is longer, as it does in a training loop.
"""

from __future__ import annotations

import importlib
import statistics
import time
from collections.abc import Callable
from typing import Any

WARM = 3                    # passes before anything counts: kernels are compiled, algorithms chosen, memory taken
MOST = 2000                 # passes in a block


class Clock:
    """Times blocks of passes on a device; on the CPU, where a rehearsal runs, by the system's clock."""

    def __init__(self, device: str):
        self.cuda = importlib.import_module("cupy").cuda if device.startswith("cuda") else None

    def block(self, work: Callable[[], Any], count: int) -> float:
        """Seconds of one pass, the mean over a block of so many."""
        if self.cuda is None:
            start = time.perf_counter()
            for _ in range(count):
                work()
            return (time.perf_counter() - start) / count
        first, last = self.cuda.Event(), self.cuda.Event()
        self.cuda.runtime.deviceSynchronize()
        first.record(self.cuda.Stream.null)
        for _ in range(count):
            work()
        self.cuda.runtime.deviceSynchronize()
        last.record(self.cuda.Stream.null)
        last.synchronize()
        return float(self.cuda.get_elapsed_time(first, last)) / 1000 / count


def compete(clock: Clock, sides: dict[str, Callable[[], Any]], rounds: int, seconds: float) -> dict[str, list[float]]:
    """Seconds of a pass of each side, by round: the sides alternate, in turned order every second round.

    seconds: how long a block is to last, about.
    """
    counts = {}
    for name, work in sides.items():
        for _ in range(WARM):
            work()
        counts[name] = min(MOST, max(1, round(seconds / max(clock.block(work, 3), 1e-7))))
    found: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds):
        for name in list(sides) if turn % 2 == 0 else list(sides)[::-1]:
            found[name].append(clock.block(sides[name], counts[name]))
    return found


def ratio(theirs: list[float], ours: list[float]) -> float:
    """The median over the rounds of their time over ours: above 1, ours is faster.

    >>> ratio([3.0, 2.0, 4.0], [1.0, 1.0, 1.0])
    3.0
    """
    return statistics.median(t / o for t, o in zip(theirs, ours))
