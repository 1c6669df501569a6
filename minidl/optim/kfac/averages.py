"""Running averages of second moments, and when each of them is next renewed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from minidl import backend
from minidl.backend import Array

STEADY = 0.1            # a factor that moves by less, relative to its norm, is renewed less often
LONGEST = 1000          # steps between two renewals, at most


@dataclass
class Timing:
    """When factors are renewed: at each step of the warm-up, then every `interval` steps, or as often as each needs it ("adaptive")."""

    interval: int | str
    warm_up: int

    def due(self, step: int) -> bool:
        """Whether a fixed interval ends at this step, counted from 0."""
        return step < max(self.warm_up, 1) or (self.interval != "adaptive" and step % int(self.interval) == 0)


class Average:
    """A running average of what a minibatch shows of a matrix, corrected for its start: of equal matrices it is that matrix at once.

        M_t = sum over s <= t of decay^(t - s) X_s / (the sum of the weights)

    In adaptive timing the steps to the next renewal grow as the Fibonacci numbers do while M moves by less than STEADY of its norm, and are
    halved when it moves by more. Osawa et al., arXiv:2002.06015 (which compares single minibatches: the average is steadier).
    """

    def __init__(self) -> None:
        self.value: Any = None          # an Array once there was a minibatch
        self.count = 0
        self.interval, self.before = 1, 0
        self.next = 0                   # the step at which it is due, in adaptive timing

    def due(self, step: int, timing: Timing) -> bool:
        """Whether it is to be renewed at this step."""
        return timing.due(step) or (timing.interval == "adaptive" and step >= self.next) or self.value is None

    def add(self, x: Array, decay: float, step: int, adaptive: bool = False) -> None:
        """Take in what a minibatch shows. x: an array that is the average's from now on."""
        self.count += 1
        if self.value is None:
            self.value = x
            self.next = step + 1
            return
        x -= self.value                                             # M <- M + share (X - M)
        x *= share_of_new(decay, self.count)
        if adaptive:
            self.plan(step, float(norm(x)), float(norm(self.value)))
        self.value += x

    def plan(self, step: int, moved: float, size: float) -> None:
        """Set when it is next due."""
        if moved < STEADY * size:
            self.before, self.interval = self.interval, min(self.interval + self.before, LONGEST)
        else:
            self.before, self.interval = 0, max(1, self.interval // 2)
        self.next = step + self.interval

    def state(self) -> dict[str, Any]:
        """What a checkpoint takes beside the value."""
        return {"count": self.count, "interval": self.interval, "before": self.before, "next": self.next}

    def load(self, value: Array, state: dict[str, Any]) -> None:
        """Go back to a state."""
        self.value = value
        for name in ("count", "interval", "before", "next"):
            setattr(self, name, int(state[name]))


def share_of_new(decay: float, count: int) -> float:
    """What the last of `count` minibatches has of their average."""
    return (1 - decay) / (1 - decay ** count) if decay < 1 else 1 / count


def norm(x: Array) -> Any:
    """The root of the sum of all squares; NaN and infinity come out as infinity."""
    total = (x * x).sum()
    return backend.of(x).where(total == total, total, math.inf) ** 0.5
