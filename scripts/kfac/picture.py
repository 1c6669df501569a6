"""The curves to look at: a row a workload, over what was counted and over CPU time."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from bench.picture import INK, QUIET
from bench.results import digits
from kfac.results import PEER, median, numbers

COLOURS = {"sgd": "#8250df", "adam": "#1f6feb", "kfac": "#e8590c", "kfac-1": "#f5a97f"}
WIDER = 1.5             # the time that is shown, over what Adam needs: what comes later is told, not shown


def draw(results: dict[str, Any], file: Path) -> None:
    """Write the picture; the ending of the file's name says which kind. ValueError if there are no curves."""
    from matplotlib.figure import Figure

    workloads = list(results["workloads"].values())
    if not workloads:
        raise ValueError("no workload was run: there is nothing to draw")
    figure = Figure(figsize=(10, 0.7 + 3.6 * len(workloads)), layout="constrained", facecolor="white")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
    rows = figure.subplots(len(workloads), 2, squeeze=False, sharey="row")
    titles: dict[str, str] = {}
    for w, row in zip(workloads, rows):
        for panel, what, label in zip(row, ("counted", "cpu"), (w["counted"], "seconds of CPU time")):
            curves(panel, w, what)
            panel.set_xlabel(label, fontsize=9.5, color=INK)
        row[0].set_title(f"{w['title']}: {w['measure']}", loc="left", fontsize=11, color=INK, fontweight="bold")
        titles |= {name: m["title"] for name, m in w["methods"].items()}
    handles = [rows[0][0].plot([], [], color=COLOURS[name], linewidth=2.4, label=title)[0] for name, title in titles.items()]
    figure.legend(handles=handles, loc="outside upper right", ncols=len(handles), frameon=False, fontsize=10, labelcolor=INK)
    machine, seeds = results["machine"], len(results["seeds"])
    figure.supxlabel(f"Line: the median of {seeds} seeds; band: all of them; dot: target reached (median).  {machine['processor']}, "
                     f"threads: {results['threads']}, {machine['date'][:10]}", fontsize=8, color=QUIET, x=0.01, ha="left")
    figure.savefig(file, dpi=160)


def curves(panel: Any, w: dict[str, Any], what: str) -> None:
    """Fill a panel."""
    lines = {name: spread(m["runs"], what, w) for name, m in w["methods"].items()}
    right = edge(w, what, lines)
    for target in w["targets"]:
        panel.axhline(target, color=QUIET, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
        side = "right" if w["falls"] else "left"            # where no curve is
        panel.annotate(f"{target:g}", (side == "right", target), xycoords=("axes fraction", "data"), annotation_clip=True, in_layout=False,
                       xytext=(-3 if side == "right" else 3, 3), textcoords="offset points", ha=side, fontsize=8.5, color=QUIET)
    late = 0
    for name, (x, low, middle, high) in lines.items():
        behind = name != "kfac"
        panel.fill_between(x, low, high, color=COLOURS[name], alpha=0.18, linewidth=0, zorder=2 + (not behind))
        panel.plot(x, middle, color=COLOURS[name], linewidth=1.8 if behind else 2.2, zorder=4 + (not behind))
        for i, target in enumerate(w["targets"]):
            at = median(numbers(w, name, i, what))
            if at <= right:
                panel.plot([at], [target], "o", color=COLOURS[name], markersize=6.5, markeredgecolor="white", markeredgewidth=1,
                           zorder=7 + (not behind))
            elif i == len(w["targets"]) - 1:
                text = f"{w['methods'][name]['title']}: {target:g} " + (f"at {digits(at)} →" if at < math.inf else "not reached")
                panel.annotate(text, (1, 0.5), xycoords="axes fraction", xytext=(-4, 13 * late), textcoords="offset points", ha="right",
                               fontsize=8.5, color=COLOURS[name], zorder=8, in_layout=False)
                late += 1
    panel.set_xlim(0, right)
    panel.set_ylim(*heights(w, lines))
    panel.grid(color="#e6eaef", linewidth=0.7, zorder=0)
    panel.tick_params(length=0, labelcolor=INK, labelsize=9)
    for side in ("top", "right", "left", "bottom"):
        panel.spines[side].set_visible(False)


def spread(runs: list[dict[str, Any]], what: str, w: dict[str, Any]) -> tuple[np.ndarray, ...]:
    """Of several runs, as far as all of them go: where, and the least, median and greatest value there."""
    length = min(len(run["curve"]["values"]) for run in runs)
    values = np.array([run["curve"]["values"][:length] for run in runs])
    at = np.array([run["curve"]["cpu" if what == "cpu" else "steps"][:length] for run in runs])
    if what == "counted" and w["counted"] == "epochs":
        at = at / w["epoch"]
    return np.median(at, axis=0), values.min(axis=0), np.median(values, axis=0), values.max(axis=0)


def edge(w: dict[str, Any], what: str, lines: dict[str, tuple[np.ndarray, ...]]) -> float:
    """Where a panel ends on the right."""
    longest = max(float(x[-1]) for x, *_ in lines.values())
    peer = median(numbers(w, PEER, len(w["targets"]) - 1, what)) if PEER in w["methods"] else math.inf
    return min(longest, WIDER * peer) or 1.0


def heights(w: dict[str, Any], lines: dict[str, tuple[np.ndarray, ...]]) -> tuple[float, float]:
    """From what to what a panel shows: all that is good, and of what is bad as much as lies between the first target and the start."""
    values = np.concatenate([np.concatenate([low, high]) for _, low, _, high in lines.values()])
    first, last = w["targets"][0], w["targets"][-1]
    if w["falls"]:
        best = min(float(values.min()), last)
        return best - 0.06 * (first - best), min(float(values.max()), first + 2.2 * max(first - best, 15))
    best = max(float(values.max()), last)
    return max(float(values.min()), last - 0.085), best + 0.008
