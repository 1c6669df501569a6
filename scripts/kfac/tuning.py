"""The settings tried for a method: as many for each, ranked by one rule, and cut off by one rule.

Each try is two runs, so that no method is left with settings that are fast with one seed and fail with the next. The tries are ranked by
how many targets they missed, then by the steps to all that they reached together, then by the last values. One that cannot come before
the best any more is cut off. Steps, not seconds: a method's steps take the same time with all its settings, and what else the machine
does has no say.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kfac.methods import Method
from kfac.runs import Run
from kfac.workloads import Problem

SEEDS = (101, 102)          # the runs that count have others


def tune(problem: Problem, method: Method, tries: int, limit: int, told: Callable[[str], None] = lambda text: None) -> list[dict[str, Any]]:
    """What became of each try, the best one first. told: hears what goes on."""
    found: list[tuple[tuple, dict[str, Any]]] = []
    for number, settings in enumerate(method.draw(problem.workload.name, tries)):
        told(f"{method.title}, try {number + 1} of {tries}: {said(settings)}")
        runs = [Run(problem, method, settings, seed, limit) for seed in SEEDS]
        best = min((place for place, _ in found), default=None)
        cut = False
        while not cut and not any(run.failed for run in runs) and (going := [run for run in runs if not run.over]):
            for run in going:
                run.go_on()
            cut = best is not None and hopeless(runs, best)
        why = next((run.why for run in runs if run.failed), "")
        found.append((rank(runs, cut), {
            "settings": settings, "end": "failed" if why else "cut off" if cut else "ran", "why": why, "steps": [run.step for run in runs],
            "reached": [run.reached for run in runs], "values": [run.curve.values[-1] for run in runs]}))
    return [result for _, result in sorted(found, key=lambda pair: pair[0])]


def rank(runs: list[Run], cut: bool = False) -> tuple:
    """Of two tries, the better one has the smaller."""
    last = sum(run.curve.values[-1] for run in runs)
    return any(run.failed for run in runs), cut, missing(runs), total(runs), last if runs[0].problem.workload.falls else -last


def missing(runs: list[Run]) -> int:
    return sum(run.reached.count(None) for run in runs)


def total(runs: list[Run]) -> float:
    """The steps to all targets together, where one that is missing counts as if it came at the next measurement."""
    return sum(each["step"] if each else run.problem.measured_at(len(run.curve.steps)) for run in runs for each in run.reached)


def hopeless(runs: list[Run], best: tuple) -> bool:
    """Whether a try is no better than the best, even if it reached all that is missing at its next measurement."""
    failed, _, missed, steps, _ = best
    return not failed and not missed and missing(runs) > 0 and total(runs) >= steps


def said(settings: dict[str, Any]) -> str:
    """Settings as a phrase.

    >>> said({"lr": 0.001, "kl_clip": 0.1})
    'lr 0.001, kl_clip 0.1'
    """
    return ", ".join(f"{name} {value:g}" for name, value in settings.items())
