"""What was measured, as a section of the README."""

from __future__ import annotations

from typing import Any

from exchange.results import HEADS, circumstances, notes, rows, title


def markdown(results: dict[str, Any], picture: str = "") -> str:
    """The picture, a table a group, and where it was measured."""
    lines = [f"![Time of a serial step over that of one whose exchange is hidden, for two exchanges]({picture})", ""] if picture else []
    for group in results["groups"]:
        lines += [f"**{title(group)}**", "", "| | " + " | ".join(HEADS) + " |", "|---|" + "---:|" * len(HEADS),
                  *("| " + " | ".join(row) + " |" for row in rows(group)), ""]
    return "\n".join([*lines, *notes(results), "", *(f"{line}." for line in circumstances(results))]).strip() + "\n"
