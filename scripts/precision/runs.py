"""What is learned, in which numbers it is stored, and one training of it: until the target, or as far as it gets.

The problems, in which 16 bits show in different ways:

    lenet           the digits as `python -m minidl.train` learns them, with constant learning rate: nothing is special
    small-steps     a learning rate so small that an update is often less than half the distance from a weight to the next number of 16 bits
    small-gradients an autoencoder whose loss has a weight as if it were a mean over all numbers of an image of 3 x 224 x 224: its
                    gradients are about the smallest numbers of float16

All numbers train with the same settings, which do well in float32.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from minidl import data, models, optim
from minidl import functions as F
from minidl.errors import NumericsError
from minidl.loop import Callback, Objective, classification, fit

PIXELS = 3 * 224 * 224


@dataclass(frozen=True)
class Numbers:
    """How a run stores its numbers. masters: weights and the optimizer's memory are float32, whatever activations are."""

    name: str
    title: str
    dtype: str
    masters: bool = True
    scaled: bool = False


NUMBERS = (
    Numbers("float32", "float32", "float32"),
    Numbers("float16", "float16", "float16", scaled=True),
    Numbers("float16-unscaled", "float16, no loss scaling", "float16"),
    Numbers("float16-pure", "float16, no master weights", "float16", masters=False, scaled=True),
    Numbers("float16-pure-unscaled", "float16, neither", "float16", masters=False),
    Numbers("bfloat16", "bfloat16", "bfloat16"),
    Numbers("bfloat16-pure", "bfloat16, no master weights", "bfloat16", masters=False),
)


@dataclass(frozen=True)
class Problem:
    """measure: the name of what is measured after each epoch. falls: whether a good value is a low one. limit: epochs after which a run
    ends. weight: of the loss, given the numbers of an image; what is measured is divided by it.
    """

    name: str
    title: str
    model: str
    measure: str
    words: str
    falls: bool
    target: float
    limit: int
    batch: int
    optimizer: Callable[[Any], optim.Optimizer]
    settings: str
    weight: Callable[[int], float] | None = None

    def objective(self, size: int) -> Objective:
        if self.weight is None:
            return classification()
        weight = self.weight(size)
        return Objective(lambda outputs, x, y: F.binary_cross_entropy_with_logits(outputs, F.flatten(x)) * weight)

    def reaches(self, value: float) -> bool:
        return value <= self.target if self.falls else value >= self.target


PROBLEMS = (
    Problem("lenet", "LeNet", "lenet", "test_accuracy", "test accuracy", False, 0.97, 30, 32,
            lambda model: optim.SGD(model, lr=0.05, momentum=0.9), "SGD, lr 0.05, momentum 0.9"),
    Problem("small-steps", "MLP, small steps", "mlp", "test_accuracy", "test accuracy", False, 0.95, 40, 32,
            lambda model: optim.SGD(model, lr=5e-4, momentum=0.9), "SGD, lr 0.0005, momentum 0.9"),
    Problem("small-gradients", "Autoencoder, small gradients", "autoencoder", "test_loss", "test loss, nats a pixel", True, 0.25, 15, 128,
            lambda model: optim.Adam(model, lr=1e-3, eps=1e-12), "Adam, lr 0.001, eps 1e-12", lambda size: size / PIXELS),
)


class UntilTarget(Callback):
    """Ends a run at its target, and keeps what was measured. unit: what that is divided by."""

    def __init__(self, problem: Problem, unit: float):
        self.problem, self.unit = problem, unit
        self.values: list[float] = []
        self.skipped = 0

    def step(self, run: Any, loss: float) -> None:
        self.skipped = run.scaling.skipped if run.scaling is not None else 0

    def epoch(self, run: Any, metrics: dict[str, Any]) -> None:
        self.values.append(float(metrics[self.problem.measure]) / self.unit)
        run.stop = self.problem.reaches(self.values[-1])


def trained(problem: Problem, numbers: Numbers, seed: int, train: Any, test: Any, limit: int | None = None) -> dict[str, Any]:
    """One training, as it is kept. seed: of the first weights and of the order of the images. limit: epochs; the problem's unless given."""
    shape = train.shape
    model = models.create(problem.model, input_shape=shape, classes=len(train.classes), generator=seed)
    if not numbers.masters:
        model.to(dtype=numbers.dtype)
    size = math.prod(shape)
    watch, why, began = UntilTarget(problem, 1.0 if problem.weight is None else problem.weight(size)), "", time.perf_counter()
    try:
        fit(model, data.Loader(train, batch_size=problem.batch, seed=seed), data.Loader(test, batch_size=256, shuffle=False),
            problem.optimizer(model), limit or problem.limit, [watch], objective=problem.objective(size), dtype=numbers.dtype,
            loss_scale="dynamic" if numbers.scaled else 1)
    except NumericsError as error:
        why = str(error).splitlines()[0]
    values, best = watch.values, min if problem.falls else max
    return {"seed": seed, "epochs": len(values), "reached": bool(values) and problem.reaches(values[-1]), "diverged": why,
            "best": best(values) if values else None, "skipped": watch.skipped, "seconds": round(time.perf_counter() - began, 2),
            "values": [float(f"{value:.5g}") for value in values]}
