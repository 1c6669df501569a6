"""One training, cut into pieces from one measurement to the next.

Several runs can take turns, so that what happens to the machine meanwhile happens to all of them alike. Only the time of training
counts, minibatches included; measuring does not.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from kfac.methods import Method
from kfac.workloads import Problem
from minidl.errors import NumericsError


@dataclass
class Curve:
    """What was measured after so many steps, and after how many seconds of CPU time and by the clock."""

    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)


class Run:
    """A training by one method with one seed, which draws the first weights and the order of the images.

    settings: of the method. It is over when it has reached every target and is past `shown`, at the limit, or when a number is no longer
    finite: then it has failed.
    """

    def __init__(self, problem: Problem, method: Method, settings: dict[str, float], seed: int, limit: int, shown: int = 0):
        self.problem, self.method, self.settings, self.seed = problem, method, settings, seed
        self.limit, self.shown = limit, shown
        self.model = problem.model(seed)
        self.optimizer = method.make(self.model, settings, seed)
        self.minibatches = problem.minibatches(seed)
        self.step, self.cpu, self.wall, self.why = 0, 0.0, 0.0, ""
        self.curve = Curve()
        self.reached: list[dict[str, float] | None] = [None] * len(problem.workload.targets)
        self.measure()

    @property
    def failed(self) -> bool:
        return bool(self.why)

    @property
    def over(self) -> bool:
        return self.failed or self.step >= self.limit or (None not in self.reached and self.step >= self.shown)

    def go_on(self) -> None:
        """Train as far as the next measurement, and measure."""
        until = min(self.problem.measured_at(len(self.curve.steps)), self.limit)
        self.model.train()
        cpu, wall = time.process_time(), time.perf_counter()
        try:
            for x, labels in islice(self.minibatches, until - self.step):
                self.optimizer.zero_grad()
                loss = self.problem.workload.loss(self.model, x, labels)
                loss.backward()
                self.optimizer.step()
        except (NumericsError, np.linalg.LinAlgError) as error:
            self.why = str(error).splitlines()[0]
        self.cpu += time.process_time() - cpu
        self.wall += time.perf_counter() - wall
        self.step = until
        if not self.failed and not math.isfinite(loss.item()):
            self.why = "the loss is no longer finite"
        if not self.failed:
            self.measure()

    def measure(self) -> None:
        self.model.eval()
        workload = self.problem.workload
        value = workload.value(self.model, self.problem.measured)
        if not math.isfinite(value):
            self.why = f"{workload.measure} is no longer finite"
            return
        for name, number in (("steps", self.step), ("values", value), ("cpu", self.cpu), ("wall", self.wall)):
            getattr(self.curve, name).append(number)
        for i, target in enumerate(workload.targets):
            if self.reached[i] is None and workload.reaches(value, target):
                self.reached[i] = {"step": self.step, "counted": self.problem.counted(self.step), "cpu": self.cpu, "wall": self.wall}

    def result(self) -> dict[str, Any]:
        """As it is kept."""
        return {"seed": self.seed, "steps": self.step, "reached": self.reached, "failed": self.why, "curve": asdict(self.curve)}
