"""Schedules: numbers that change while training.

A schedule is any callable from the number of steps done so far (0 at the first step) to a number, and may stand wherever an optimizer
takes a number: `SGD(model, lr=cosine(0.1, steps=1000))`. A lambda does as well; these show what they are, and can be pickled.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from minidl.errors import ArgumentError, NumericsError

Schedule = Callable[[int], float]
Number = float | Schedule               # what an optimizer takes as an option


def value_at(option: Any, step: int) -> Any:
    """What an option is at a step: a schedule's value, or the option itself. NumericsError if a schedule gives no finite number."""
    if not callable(option):
        return option.item() if hasattr(option, "item") else option     # NumPy's float64 would make float32 arrays float64
    value = float(option(step))
    if not math.isfinite(value):
        raise NumericsError(f"schedule: {option!r} is {value} at step {step}")
    return value


@dataclass(frozen=True)
class constant:
    """The same number at every step.

    >>> constant(0.1)(1000)
    0.1
    """

    lr: float

    def __call__(self, step: int) -> float:
        return self.lr


@dataclass(frozen=True)
class step_decay:
    """lr, multiplied by `factor` after every `every` steps.

    >>> [step_decay(1.0, every=2, factor=0.5)(step) for step in range(5)]
    [1.0, 1.0, 0.5, 0.5, 0.25]
    """

    lr: float
    every: int
    factor: float = 0.1

    def __post_init__(self) -> None:
        _check_steps("step_decay", "every", self.every)

    def __call__(self, step: int) -> float:
        return self.lr * self.factor ** (step // self.every)


@dataclass(frozen=True)
class cosine:
    """From lr down to `final` over `steps` steps along half a cosine, and `final` from there on. Loshchilov and Hutter, ICLR 2017.

    >>> [round(cosine(1.0, steps=4)(step), 3) for step in range(6)]
    [1.0, 0.854, 0.5, 0.146, 0.0, 0.0]
    """

    lr: float
    steps: int
    final: float = 0.0

    def __post_init__(self) -> None:
        _check_steps("cosine", "steps", self.steps)

    def __call__(self, step: int) -> float:
        return self.final + (self.lr - self.final) * (1 + math.cos(math.pi * min(step / self.steps, 1))) / 2


@dataclass(frozen=True)
class polynomial:
    """From lr down to `final` over `steps` steps as (1 - step / steps) ** power: a straight line for power 1; `final` from there on.

    >>> [polynomial(1.0, steps=4, power=2)(step) for step in range(6)]
    [1.0, 0.5625, 0.25, 0.0625, 0.0, 0.0]
    """

    lr: float
    steps: int
    power: float = 1.0
    final: float = 0.0

    def __post_init__(self) -> None:
        _check_steps("polynomial", "steps", self.steps)
        if not self.power > 0:
            raise ArgumentError(f"polynomial: power is {self.power!r}, and must be more than 0")

    def __call__(self, step: int) -> float:
        return self.final + (self.lr - self.final) * max(1 - step / self.steps, 0) ** self.power


@dataclass(frozen=True)
class warm_up:
    """Up in `steps` equal parts to where `then` begins, and then `then`, which counts its own steps from 0. Goyal et al., arXiv:1706.02677.

    then: a schedule, or a number.

    >>> [warm_up(3, then=0.8)(step) for step in range(5)]
    [0.2, 0.4, 0.6..., 0.8, 0.8]
    """

    steps: int
    then: Number

    def __post_init__(self) -> None:
        _check_steps("warm_up", "steps", self.steps)

    def __call__(self, step: int) -> float:
        if step < self.steps:
            return value_at(self.then, 0) * (step + 1) / (self.steps + 1)
        return value_at(self.then, step - self.steps)


def _check_steps(schedule: str, name: str, steps: Any) -> None:
    if isinstance(steps, bool) or not hasattr(steps, "__index__") or steps < 1:
        raise ArgumentError(f"{schedule}: {name} is {steps!r}, and must be a number of steps, at least 1")
