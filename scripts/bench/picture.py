"""The ratios to look at: a bar a network and PyTorch mode, with a line where both sides are equally fast."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.results import PASSES, threads_of

INK, QUIET = "#24292f", "#8c959f"
COLOURS = {"eager": "#1f6feb", "channels_last": "#f0883e"}


def draw(results: dict[str, Any], file: Path) -> None:
    """Write the picture of the networks' ratios; the ending of the file's name says which kind. ValueError if there are none."""
    from matplotlib.figure import Figure

    rows = [r for r in results["rows"] if r["kind"] == "model"]
    if not rows:
        raise ValueError("no network was timed: there is nothing to draw")
    threads = sorted({r["threads"] for r in rows}, reverse=True)
    titles = list(dict.fromkeys(r["title"] for r in rows))
    longest = max(1.0, *(ratio["median"] for r in rows for ratio in r["ratios"].values())) * 1.3       # a wild quartile may be cut off
    figure = Figure(figsize=(9.6, 0.9 + len(threads) * (0.75 + 0.5 * len(titles))), layout="constrained", facecolor="white")
    panels = figure.subplots(len(threads), 2, sharex=True, sharey=True, squeeze=False)
    for count, pair in zip(threads, panels):
        for name, panel in zip(("step", "inference"), pair):
            panel.set_title(f"{PASSES[name]}, {threads_of(count)}", loc="left", fontsize=10.5, color=INK, fontweight="bold")
            bars(panel, [r for r in rows if r["threads"] == count and r["pass"] == name], titles, longest)
    for panel in panels[-1]:
        panel.set_xlabel("PyTorch's time / minidl's: right of the line, minidl is faster", fontsize=9, color=INK)
    handles = [panels[0][0].barh([0], [0], color=colour, label=f"against PyTorch {mode}") for mode, colour in COLOURS.items()]
    figure.legend(handles=handles, loc="outside upper right", ncols=2, frameon=False, fontsize=9, labelcolor=INK)
    machine = results["machine"]
    figure.supxlabel(f"{machine['processor']}, PyTorch {results['versions']['PyTorch']}, {machine['date'][:10]}; medians of "
                     f"{results['rounds']} rounds, whiskers at the quartiles", fontsize=8, color=QUIET, x=0.01, ha="left")
    figure.savefig(file, dpi=160)


def bars(panel: Any, rows: list[dict[str, Any]], titles: list[str], longest: float) -> None:
    """Fill a panel. titles: from top to bottom. longest: where it ends."""
    panel.set_xlim(0, longest)
    for r in rows:
        for i, (mode, ratio) in enumerate(r["ratios"].items()):
            y = titles.index(r["title"]) + (0 if len(r["ratios"]) == 1 else (i - 0.5) * 0.38)
            median = ratio["median"]
            panel.barh(y, median, height=0.34, color=COLOURS[mode], zorder=2,
                       xerr=[[max(median - ratio["low"], 0)], [max(ratio["high"] - median, 0)]],
                       error_kw={"elinewidth": 1, "ecolor": INK, "capsize": 2, "zorder": 3})
            panel.annotate(f"{median:.2f}", (min(max(median, ratio["high"]), longest / 1.13), y), xytext=(5, 0), textcoords="offset points",
                           va="center", fontsize=8.5, color=INK, zorder=5,
                           bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8})
    panel.axvline(1, color=INK, linewidth=1.2, zorder=4)
    panel.set_yticks(range(len(titles)), titles, fontsize=9.5, color=INK)
    panel.set_ylim(len(titles) - 0.5, -0.5)
    panel.grid(axis="x", color="#d8dee4", linewidth=0.7, zorder=0)
    panel.tick_params(length=0, labelcolor=INK, labelsize=9)
    for side in ("top", "right", "left", "bottom"):
        panel.spines[side].set_visible(False)
