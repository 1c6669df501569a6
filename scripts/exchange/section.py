"""What was measured, as a section of a page of docs."""

from __future__ import annotations

from typing import Any

from exchange.results import HEADS, circumstances, notes, rows, title

LIMITS = """What is left at a ratio of 1: the gradients of the first layers come last, and their weights are needed first. So a step waits
for the exchange of a few chunks, behind those that are under way already, and for the facts of the step. Backward overlap alone leaves
visible what is still on the wire when the pass is over: nearly all gradients are those of the affine layers, which come at its beginning,
but they take longer than the rest of the pass. Forward overlap alone has only a third of the computation to hide behind. Above a ratio
of 1 the wire is never idle, and only compression helps; that the limit is passed a little there is because what a serial step does between
computation and exchange, copies and updates, is hidden too. The sum is a hundred times faster than the wire; the loop that adds number
by number is Python's."""


def markdown(results: dict[str, Any], picture: str = "") -> str:
    """The picture, a table a group, and where it was measured."""
    lines = [f"![Time of a serial step over that of one whose exchange is hidden, for two exchanges]({picture})", ""] if picture else []
    for group in results["groups"]:
        lines += [f"**{title(group)}**", "", "| | " + " | ".join(HEADS) + " |", "|---|" + "---:|" * len(HEADS),
                  *("| " + " | ".join(row) + " |" for row in rows(group)), ""]
    lines += [LIMITS, ""] if results["groups"] else []
    return "\n".join([*lines, *notes(results), "", *(f"{line}." for line in circumstances(results))]).strip() + "\n"
