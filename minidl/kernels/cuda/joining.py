"""Joining arrays, by CuPy's own kernel, a few at a time: of so many the places are arguments of the launch. Of more CuPy brings a table
from the host, which cannot be recorded (minidl/recording.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minidl import backend
from minidl.backend import Array

TOGETHER = 8            # arrays whose places are arguments


def concatenate(arrays: Sequence[Array], axis: int) -> Any:
    """See reference_layers.concatenate."""
    if len(arrays) <= TOGETHER:
        return NotImplemented
    join = backend.of(arrays[0]).concatenate
    while len(arrays) > 1:
        arrays = [join(arrays[i:i + TOGETHER], axis=axis) for i in range(0, len(arrays), TOGETHER)]
    return arrays[0]
