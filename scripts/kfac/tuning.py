"""The settings tried for a method: as many for each, ranked by one rule, and cut off by one rule.

The tries are ranked by how many targets they reached, then by the steps to all of them together, then by the last value. One that
cannot come before the best any more is cut off. Steps, not seconds: a method's steps take the same time with all its settings, and what
else the machine does has no say.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kfac.methods import Method
from kfac.runs import Run
from kfac.workloads import Problem

SEED = 0                    # the runs that count have others


def tune(problem: Problem, method: Method, tries: int, limit: int, told: Callable[[str], None] = lambda text: None) -> list[dict[str, Any]]:
    """What became of each try, the best one first. told: hears what goes on."""
    found: list[tuple[tuple, dict[str, Any]]] = []
    for number, settings in enumerate(method.draw(problem.workload.name, tries)):
        told(f"{method.title}, try {number + 1} of {tries}: {said(settings)}")
        run = Run(problem, method, settings, SEED, limit)
        best = min((place for place, _ in found), default=None)
        cut = False
        while not run.over and not cut:
            run.go_on()
            cut = best is not None and not run.over and hopeless(run, best)
        found.append((rank(run, cut), {"settings": settings, "end": "failed" if run.failed else "cut off" if cut else "ran", "why": run.why,
                                       "steps": run.step, "reached": run.reached, "value": run.curve.values[-1]}))
    return [result for _, result in sorted(found, key=lambda pair: pair[0])]


def rank(run: Run, cut: bool = False) -> tuple:
    """Of two runs, the better one has the smaller."""
    last = run.curve.values[-1]
    return run.failed, cut, run.reached.count(None), total(run, 0), last if run.problem.workload.falls else -last


def total(run: Run, otherwise: int) -> float:
    """The steps to all targets together, where one that is not reached counts as `otherwise`."""
    return sum(each["step"] if each else otherwise for each in run.reached)


def hopeless(run: Run, best: tuple) -> bool:
    """Whether a run is behind the best, even if it reached all that is missing at its next measurement."""
    _, _, missing, steps, _ = best
    return not missing and total(run, run.problem.measured_at(len(run.curve.steps))) >= steps


def said(settings: dict[str, Any]) -> str:
    """Settings as a phrase.

    >>> said({"lr": 0.001, "kl_clip": 0.1})
    'lr 0.001, kl_clip 0.1'
    """
    return ", ".join(f"{name} {value:g}" for name, value in settings.items())
