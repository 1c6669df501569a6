"""What a side gives for a workload: its passes, ready to be called, and numbers by which it is known to compute the same as the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


def nothing() -> None:
    pass


@dataclass
class Ready:
    """passes: by name, what is timed. before: what a pass wants done once, before it is called again and again (train(), eval()).

    check: gives the numbers to compare, by name. flops: gives the floating-point operations of each pass, where the side counts them.
    """

    passes: dict[str, Callable[[], object]]
    check: Callable[[], dict[str, float]]
    before: dict[str, Callable[[], object]] = field(default_factory=dict)
    flops: Callable[[], dict[str, int]] = dict
