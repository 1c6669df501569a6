"""Running averages of second moments, and when each of them is next renewed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from minidl import backend
from minidl.backend import Array

STEADY = 0.1            # a factor that moves by less, relative to its norm, is renewed less often
LONGEST = 1024          # steps between two renewals, at most


@dataclass
class Timing:
    """When factors are renewed: at each step of the warm-up, then every `interval` steps, or as often as each needs it ("adaptive")."""

    interval: int | str
    warm_up: int

    @property
    def adaptive(self) -> bool:
        """Whether each factor finds its own interval."""
        return self.interval == "adaptive"

    def due(self, step: int) -> bool:
        """Whether a fixed interval ends at this step, counted from 0."""
        return step < max(self.warm_up, 1) or (not self.adaptive and step % int(self.interval) == 0)


class Average:
    """A running average of what a minibatch shows of a matrix, corrected for its start: of equal matrices it is that matrix at once.

        M_t = sum over s <= t of decay^(t - s) X_s / (the sum of the weights)

    t counts renewals; in adaptive timing, steps, so that what was seen long ago counts little however seldom one looks. There the interval
    is doubled when M has moved by less than STEADY of its norm, and halved when it has moved by more; intervals are powers of two, so that
    the factors that are due are due together. After Osawa et al., arXiv:2002.06015, who compare single minibatches.
    """

    def __init__(self) -> None:
        self.value: Any = None          # an Array once there was a minibatch
        self.weight = 0.0               # the sum of the weights, which begins at 0 and goes to 1
        self.latest = 0                 # the step of the last renewal
        self.interval = 1               # and in adaptive timing the steps to the next
        self.next = 0

    def due(self, step: int, timing: Timing) -> bool:
        """Whether it is to be renewed at this step."""
        return timing.due(step) or (timing.adaptive and step >= self.next) or self.value is None

    def add(self, x: Array, decay: float, step: int, adaptive: bool = False) -> Array | None:
        """Take in what a minibatch shows. x: an array that is the average's from now on.

        In adaptive timing gives a flag whether it has hardly moved, for `adapt`; at first there is nothing to compare with.
        """
        kept = min(decay ** (max(step - self.latest, 1) if adaptive and self.value is not None else 1), 1 - 1e-9)
        self.weight = kept * self.weight + (1 - kept)
        self.latest = step
        if self.value is None:
            self.value = x
            self.put_off(step)
            return None
        x -= self.value                                             # M <- M + share (X - M)
        x *= (1 - kept) / self.weight
        steady = norm(x) < STEADY * norm(self.value) if adaptive else None
        self.value += x
        return steady

    def adapt(self, steady: bool, step: int) -> None:
        """Find a new interval."""
        self.interval = min(self.interval * 2, LONGEST) if steady else max(1, self.interval // 2)
        self.put_off(step)

    def put_off(self, step: int) -> None:
        """In adaptive timing: it is next due when its interval ends."""
        self.next = (step // self.interval + 1) * self.interval

    def state(self) -> dict[str, Any]:
        """What a checkpoint takes beside the value."""
        return {"weight": self.weight, "latest": self.latest, "interval": self.interval, "next": self.next}

    def load(self, value: Array, state: dict[str, Any]) -> None:
        """Go back to a state."""
        self.value, self.weight = value, float(state["weight"])
        for name in ("latest", "interval", "next"):
            setattr(self, name, int(state[name]))


def norm(x: Array) -> Any:
    """The root of the sum of all squares; where that is no number, infinity."""
    total = (x * x).sum()
    return backend.of(x).where(total == total, total, math.inf) ** 0.5
