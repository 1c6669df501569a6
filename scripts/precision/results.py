"""From runs to figures: how many epochs each kind of numbers needs until the target, and how many of its runs diverge."""

from __future__ import annotations

import statistics
from typing import Any

from rich.table import Table

HEADS = ("epochs to target", "reached", "diverged", "best", "skipped steps")


def rows(problem: dict[str, Any]) -> list[tuple[str, ...]]:
    """A row a kind of numbers: its name, epochs until the target (median, least and most of the runs that reached it), how many did, how
    many diverged, the best value (median), and the steps that loss scaling left out (median).
    """
    found = []
    for kind in problem["numbers"].values():
        runs = kind["runs"]
        epochs = [run["epochs"] for run in runs if run["reached"]]
        best = [run["best"] for run in runs if run["best"] is not None]
        spread = f" ({min(epochs)}-{max(epochs)})" if len(set(epochs)) > 1 else ""
        skipped = f"{statistics.median(run['skipped'] for run in runs):g}" if kind["scaled"] else "-"
        found.append((kind["title"], f"{statistics.median(epochs):g}{spread}" if epochs else "-", f"{len(epochs)} of {len(runs)}",
                      f"{sum(bool(run['diverged']) for run in runs)}", f"{statistics.median(best):.3f}" if best else "-", skipped))
    return found


def head(problem: dict[str, Any]) -> str:
    wanted = f"{problem['words']} {problem['target']:g} within {problem['limit']} epochs"
    return f"{problem['title']}: {wanted}; {problem['settings']}, minibatches of {problem['batch']}"


def table(problem: dict[str, Any]) -> Table:
    shown = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, title=head(problem), title_justify="left", title_style="bold")
    shown.add_column("")
    for name in HEADS:
        shown.add_column(name, justify="right")
    for row in rows(problem):
        shown.add_row(*row)
    return shown


def circumstances(results: dict[str, Any]) -> list[str]:
    """Where, with what and how it was measured, a line each."""
    m, n = results["machine"], len(results["seeds"])
    return [f"{m['processor']}, {m['cores']} cores, {m['system']}; {m['date']}",
            ", ".join(f"{name} {version}" for name, version in results["versions"].items()) +
            (f"; minidl's commit {m['commit']}" if m["commit"] else ""),
            f"{results['data']}; {n} seed{'s' * (n > 1)}; on a {results['device']}" +
            (", where 16 bits are computed in float32 and rounded wherever an array is stored" if results["device"] == "cpu" else "")]


def markdown(results: dict[str, Any]) -> str:
    """As a section of a page of docs."""
    lines = []
    for problem in results["problems"].values():
        lines += [f"**{head(problem)}.**", "", f"| | {' | '.join(HEADS)} |", "|---|" + "---:|" * len(HEADS),
                  *(f"| {' | '.join(row)} |" for row in rows(problem)), ""]
    return "\n".join([*lines, *(f"{line}." for line in circumstances(results))]) + "\n"
