"""How long a step takes: SGD, Adam and K-FAC by turns in many short rounds, and where K-FAC's time goes.

A round asks each method for as many steps, a multiple of K-FAC's interval, so that each sample holds as many renewals; the order is
turned round from round to round. A step is all that a training loop does, but for making the minibatch, which lies ready.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Sequence
from typing import Any

from bench.results import ratio
from kfac import flops
from kfac.methods import INTERVAL, Method
from kfac.workloads import Problem

WARM = 3                # intervals before anything is timed, at least: K-FAC's own warm-up is over by then
BLOCK = 0.4             # seconds of a sample, or one interval
LIKE = "sgd"            # what the others are compared with


class Stepper:
    """A training that goes on by so many steps whenever it is asked to."""

    def __init__(self, problem: Problem, method: Method, minibatches: list):
        self.loss = problem.workload.loss
        self.model = problem.model(0)
        self.model.train()
        self.optimizer = method.make(self.model, method.usual[problem.workload.name], 0)
        self.minibatches = itertools.cycle(minibatches)
        self.cpu: list[float] = []              # seconds a step, in each round
        self.wall: list[float] = []
        self.phases: list[dict[str, float]] = []

    def go_on(self, steps: int) -> tuple[float, float]:
        """Seconds of CPU time and by the clock."""
        cpu, wall = time.process_time(), time.perf_counter()
        for x, labels in itertools.islice(self.minibatches, steps):
            self.optimizer.zero_grad()
            self.loss(self.model, x, labels).backward()
            self.optimizer.step()
        return time.process_time() - cpu, time.perf_counter() - wall

    def sample(self, steps: int) -> None:
        """One round's."""
        before = dict(getattr(self.optimizer, "seconds", {}))
        cpu, wall = self.go_on(steps)
        self.cpu.append(cpu / steps)
        self.wall.append(wall / steps)
        self.phases.append({name: (seconds - before.get(name, 0)) / steps
                            for name, seconds in getattr(self.optimizer, "seconds", {}).items()})


def measured(problem: Problem, methods: Sequence[Method], rounds: int, block: float = BLOCK) -> dict[str, Any]:
    """Seconds a step, ratios to SGD's by round, K-FAC's seconds by phase, and the multiply-adds of each layer."""
    stream = problem.minibatches(0)
    minibatches = [next(stream) for _ in range(2 * INTERVAL)]
    steppers = {method.name: Stepper(problem, method, minibatches) for method in methods}
    for method in methods:
        warm_up = int(method.fixed.get("warm_up", 0) or 0)
        steppers[method.name].go_on(-(-max(WARM * INTERVAL, warm_up) // INTERVAL) * INTERVAL)
    _, slow = max(stepper.go_on(INTERVAL) for stepper in steppers.values())
    steps = max(1, round(block / slow)) * INTERVAL
    for k in range(rounds):
        for stepper in list(steppers.values())[::1 if k % 2 else -1]:
            stepper.sample(steps)
    by_method = {}
    for method in methods:
        own, base = steppers[method.name], steppers[LIKE]
        by_method[method.name] = {
            "title": method.title, "wall": statistics.median(own.wall), "cpu": statistics.median(own.cpu),
            "ratio": ratio(own.wall, base.wall), "cpu_ratio": ratio(own.cpu, base.cpu),
            "phases": {name: statistics.median(phases[name] for phases in own.phases) for name in own.phases[0]}}
    workload = problem.workload
    drawn = all(method.fixed.get("fisher", "sampled") == "sampled" for method in methods if method.kind == "KFAC")
    return {"title": workload.title, "batch": workload.batch, "steps": steps, "rounds": rounds, "interval": INTERVAL, "methods": by_method,
            "layers": flops.table(problem.model(0), problem.train[0].shape[1:], workload.batch, INTERVAL, drawn)}
