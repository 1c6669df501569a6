"""Several runs on one page: their curves in the same pictures, what differs in their options, and what came of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minidl.pictures import curves
from minidl.pictures.curves import look
from minidl.report.embed import COLOURS, inline
from minidl.report.folder import Found, find
from minidl.report.page import SIZE, WORDS, clock, kept, memory, phases, quietly, shared, template, worded

CHARTS = {"test loss": "test_loss", "test accuracy": "test_accuracy", "training loss": "train_loss", "training accuracy": "train_accuracy"}


def compare(folders: Sequence[str | Path], out: str | Path = "report.html") -> Path:
    """Make a page of several runs; gives its file.

    CheckpointError if one is not the folder of a run, ConfigError if the file cannot be written, MissingExtra without Matplotlib and
    Jinja2.
    """
    with quietly():
        text = page([find(Path(folder)) for folder in folders])
    return kept(text, Path(out))


def page(runs: Sequence[Found]) -> str:
    """The page of several runs."""
    names = distinct([run.folder for run in runs])
    return template("compare.html").render(
        **shared(), runs=runs, names=names, title=title(names), words=WORDS, now=clock(time.time()),
        lines=lines(len(runs)),
        charts=charts(dict(zip(names, runs))), results=results(runs), goal=goal(runs), options=differences(runs), phases=beside(runs))


def lines(count: int) -> list[tuple[str, str]]:
    """How the curves of so many runs look: colours, and patterns of dashes."""
    looks = [look(i) for i in range(count)]
    return [(COLOURS[colour], "none" if dash == "-" else " ".join(str(2 * x) for x in dash[1])) for colour, dash in looks]


def title(names: Sequence[str]) -> str:
    """The runs, as one would name them."""
    return " and ".join(names) if len(names) == 2 else ", ".join(names) if len(names) <= 3 else f"{len(names)} runs"


def distinct(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of paths that tell them apart.

    >>> distinct([Path("/a/sgd/1"), Path("/a/kfac/1"), Path("/a/adam")])
    ['sgd/1', 'kfac/1', 'adam']
    """
    parts = [folder.resolve().parts for folder in folders]
    lengths = [1] * len(parts)
    while True:
        names = ["/".join(each[-length:]) for each, length in zip(parts, lengths)]
        longer = [names.count(name) > 1 and length < len(each) for name, length, each in zip(names, lengths, parts)]
        if not any(longer):
            return [f"{name} ({names[:i].count(name) + 1})" if names.count(name) > 1 else name for i, name in enumerate(names)]
        lengths = [length + more for length, more in zip(lengths, longer)]


def charts(runs: dict[str, Found]) -> dict[str, list[tuple[str, str]]]:
    """The same curve of every run in each picture."""
    if not any(run.metrics for run in runs.values()):
        return {}
    known = all(run.steps or not np.isnan(run.last_steps()).any() for run in runs.values())
    drawn: dict[str, list[tuple[str, str]]] = {}
    for over in ("step" if known else "epoch", "seconds"):
        for word, key in CHARTS.items():
            series: dict[str, Any] = {name: run.series(key, over) for name, run in runs.items()}
            if key == "train_loss" and over != "epoch":
                series |= {name: (run.steps[over], run.steps["loss"]) for name, run in runs.items() if run.steps}
            add(drawn, over, word, series, percent="accuracy" in key)
        if over != "epoch":
            rates: dict[str, Any] = {name: (run.steps.get(over, []), run.steps.get("learning_rate", [])) for name, run in runs.items()}
            add(drawn, over, "learning rate", rates)
    return drawn


def add(drawn: dict[str, list[tuple[str, str]]], over: str, word: str, series: dict[str, Any], percent: bool = False) -> None:
    """A picture, if there is something to be seen on it. A run that has nothing keeps its place, and so the others their colours."""
    if any(value is not None for _, values in series.values() for value in values):
        picture = curves(series, x=over, y=word, percent=percent, legend=False, log=False if word == "learning rate" else None, **SIZE)
        drawn.setdefault(over, []).append((word, inline(picture, f"{over}-{word.replace(' ', '-')}")))


def goal(runs: Sequence[Found]) -> float | None:
    """A test accuracy that all runs have reached, but for those that have none: the lowest of their best. None if none has any."""
    best = [max((each.get("test_accuracy") or 0.0 for each in run.metrics), default=0.0) for run in runs]
    return min(filter(None, best), default=None)


def results(runs: Sequence[Found]) -> list[dict[str, Any]]:
    """What came of each run."""
    wanted = goal(runs)
    rows = []
    for run in runs:
        last = run.metrics[-1] if run.metrics else {}
        tested = [each["test_accuracy"] for each in run.metrics if each.get("test_accuracy") is not None]
        there = next((i for i, each in enumerate(run.metrics) if wanted and (each.get("test_accuracy") or 0) >= wanted), None)
        rows.append({"state": run.state, "epochs": len(run.metrics), "accuracy": tested[-1] if tested else None,
                     "best": max(tested, default=None), "loss": last.get("test_loss"), "training": last.get("train_loss"),
                     "seconds": run.seconds()[-1] if run.metrics else None, "speed": last.get("images_per_second"), "memory": memory(run),
                     "until": None if there is None else (run.numbers()[there], run.seconds()[there])})
    return rows


def differences(runs: Sequence[Found]) -> list[tuple[str, list[Any]]]:
    """The options in which the runs differ, with the value in each; so many processes count as one."""
    names = list(dict.fromkeys(name for run in runs for name in run.options))
    rows = [(name.replace("_", "-"), [run.options.get(name) for run in runs]) for name in names]
    rows.append(("processes", [run.status.get("ranks", 1) for run in runs]))
    rows += [(name, [run.config.get(name) for run in runs]) for name in ("minidl", "numpy")]
    return [(name, [worded(value) for value in values]) for name, values in rows if any(v != values[0] for v in values)]


def beside(runs: Sequence[Found]) -> dict[str, Any] | None:
    """The seconds of each phase of each run, and their share of it; None if no run has measured them."""
    found = [phases(run) for run in runs]
    if not any(found):
        return None
    of = [{} if each is None else {name: (seconds, share) for name, seconds, share, _ in each["rows"]} for each in found]
    names = list(dict.fromkeys(name for each in of for name in each))
    most = max(seconds for each in of for seconds, _ in each.values())
    return {"rows": [(name, [each.get(name) for each in of]) for name in names], "most": most,
            "whole": [None if each is None else each["whole"] for each in found]}
