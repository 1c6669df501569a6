"""What a step tells of itself: right answers, counted in one launch, and the report of a recorded step: see minidl/recording.py."""

from __future__ import annotations

from typing import Any

from minidl import backend
from minidl.backend import Array
from minidl.kernels.cuda.source import NUMBERS, launch

MANY = 2**16                # numbers beyond which one block takes too long for a sum
LABELS = {"int64": "long long", "int32": "int", "uint8": "unsigned char"}


def right_answers(x: Array, labels: Array) -> Any:
    """See reference_layers.right_answers."""
    if x.ndim != 2 or not x.size or str(x.dtype) not in NUMBERS or str(labels.dtype) not in LABELS or labels.shape != x.shape[:1]:
        return NotImplemented
    xp = backend.of(x)
    count = xp.empty((), "int64")
    launch(x, "report", "right_answers", 1, 1024, xp.ascontiguousarray(x), xp.ascontiguousarray(labels), len(x), x.shape[1], count,
           far=x.size >= 2**31, L=LABELS[str(labels.dtype)])
    return count


def scaled_sum(x: Array, factor: float) -> Any:
    """See reference_layers.scaled_sum. One launch where one block is enough: for the losses of a minibatch."""
    if str(x.dtype) not in NUMBERS or not 0 < x.size <= MANY:
        return NotImplemented
    y = backend.of(x).empty((), x.dtype)
    launch(x, "report", "scaled_sum", 1, 1024, backend.of(x).ascontiguousarray(x), x.size, float(factor), y)
    return y


def tell(loss: Array, right: Array | None, place: int, report: Array) -> None:
    """Write a loss, of one number, and right answers, an int64, to a place of the report; the first one is at 1."""
    launch(loss, "report", "tell", 1, 1, loss, right, place, report)
