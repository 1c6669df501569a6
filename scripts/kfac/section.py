"""What was measured, as a section of a page of docs."""

from __future__ import annotations

from typing import Any

from kfac.results import LAYER_HEADS, STEP_HEADS, circumstances, figures, heads, layer_rows, settings, step_rows, verdicts


def markdown(results: dict[str, Any], picture: str = "") -> str:
    """The picture, who wins, the figures, the steps, the settings, and where it was measured."""
    lines = [f"![Loss and accuracy over steps and over CPU time, for SGD, Adam and K-FAC]({picture})", ""] if picture else []
    for w in results["workloads"].values():
        lines += [f"**{w['title']}**, {w['measure']}, minibatches of {w['batch']}.", *verdicts(w), ""]
        for target, rows in figures(w):
            lines += table(f"until {target:g}", heads(w), rows)
    if results["steps"]:
        interval = next(iter(results["steps"].values()))["interval"]
        lines += [f"A step in the mean, where K-FAC renews its factors and inverses every {interval}, and what it adds by parts; the rest "
                  "is what its step takes above SGD's and these:", ""]
        for s in results["steps"].values():
            lines += table(s["title"], list(STEP_HEADS), step_rows(s))
        for s in results["steps"].values():
            lines += [f"{s['title']}, millions of multiply-adds a step: SGD's, what K-FAC adds, and the least ratio that comes of it:", ""]
            lines += table("layer", list(LAYER_HEADS), layer_rows(s))
        lines += ["A step that uses old inverses costs at least 1 + (2/3) d / B times SGD's in square layers of width d with minibatches "
                  "of B.", ""]
    for w in results["workloads"].values():
        lines += [f"Settings, {w['title']}: " + ". ".join(settings(w)) + ".", ""]
    if results["workloads"]:
        lines += ["Learning rates are constant. Settings are tuned on training images set aside, as many tries for each method; one is cut "
                  f"off where it cannot be the best any more. Then each method runs with {len(results['seeds'])} seeds, by turns: given "
                  "are median, least and most. Only training is timed.", ""]
    return "\n".join([*lines, *(f"{line}." for line in circumstances(results))]).strip() + "\n"


def table(corner: str, columns: list[str], rows: list[tuple[str, ...]]) -> list[str]:
    """A table whose numbers stand to the right."""
    return [f"| {corner} | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns),
            *("| " + " | ".join(row) + " |" for row in rows), ""]
