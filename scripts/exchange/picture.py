"""The ratios to look at: for each exchange the techniques, at each ratio of communication to computation, under the limit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.picture import INK, QUIET
from exchange.cells import OVERLAPS, TECHNIQUES

COLOURS = {"backward": "#8250df", "forward": "#1f6feb", "both": "#e8590c"}


def draw(results: dict[str, Any], file: Path) -> None:
    """Write the picture; the ending of the file's name says which kind. ValueError if no overlap was measured."""
    from matplotlib.figure import Figure

    measured = [group for group in results["groups"] if group["kind"] in ("overlap", "numpy")]
    exchanges = list(dict.fromkeys(group["exchange"] for group in measured))
    if not exchanges:
        raise ValueError("no overlap was measured: there is nothing to draw")
    figure = Figure(figsize=(9.6, 0.9 + 3.2), layout="constrained", facecolor="white")
    panels = figure.subplots(1, len(exchanges), sharey=True, squeeze=False)[0]
    for exchange, panel in zip(exchanges, panels):
        bars(panel, [group for group in measured if group["exchange"] == exchange])
        panel.set_title(exchange, loc="left", fontsize=11, color=INK, fontweight="bold")
    panels[0].set_ylabel("time of a serial step / of this one", fontsize=9, color=INK)
    handles = [panels[0].bar([0], [0], color=colour, label=TECHNIQUES[name].title) for name, colour in COLOURS.items()]
    handles.append(panels[0].plot([], [], color=INK, linewidth=1.4, label="limit")[0])
    figure.legend(handles=handles, loc="outside upper right", ncols=4, frameon=False, fontsize=9, labelcolor=INK)
    net, machine = results["network"], results["machine"]
    figure.supxlabel("Below: communication / computation. Medians, whiskers over all rounds. "
                     f"{net['ranks']} hosts, {net['rate']} both ways; {machine['processor']}, {machine['date'][:10]}",
                     fontsize=8, color=QUIET, x=0.01, ha="left")
    figure.savefig(file, dpi=160)


def bars(panel: Any, groups: list[dict[str, Any]]) -> None:
    """Fill a panel: a cluster a group."""
    for i, group in enumerate(groups):
        cells = {cell["technique"]: cell["ratio"] for cell in group["cells"] if cell["compress"] == "none"}
        shown = [name for name in OVERLAPS if name in COLOURS and name in cells]
        for k, name in enumerate(shown):
            x, ratio = i + (k - (len(shown) - 1) / 2) * 0.27, cells[name]
            panel.bar(x, ratio["median"], width=0.25, color=COLOURS[name], zorder=2, error_kw={"elinewidth": 1, "ecolor": INK, "zorder": 3},
                      yerr=[[ratio["median"] - ratio["low"]], [ratio["high"] - ratio["median"]]])
            panel.annotate(f"{ratio['median']:.2f}", (x, 0.04), ha="center", fontsize=8.5, color="white", zorder=4)
        panel.plot([i - 0.43, i + 0.43], [group["limit"]] * 2, color=INK, linewidth=1.4, zorder=5)
    panel.axhline(1, color=QUIET, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    panel.set_xticks(range(len(groups)), [f"{group['ratio']:g}" + ("\nNumPy" if group["kind"] == "numpy" else "") for group in groups],
                     fontsize=9.5, color=INK)
    panel.grid(axis="y", color="#d8dee4", linewidth=0.7, zorder=0)
    panel.tick_params(length=0, labelcolor=INK, labelsize=9)
    for side in ("top", "right", "left", "bottom"):
        panel.spines[side].set_visible(False)
