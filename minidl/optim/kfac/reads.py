"""What the host must know of numbers on a device, asked for together.

Each look at a device waits until it has done everything before. So whoever needs to know something of many arrays makes a flag of each,
and all flags come in one read.
"""

from __future__ import annotations

from collections.abc import Iterable

from minidl import backend
from minidl.backend import Array


def truths(flags: Iterable[Array]) -> list[bool]:
    """Whether each flag is set: arrays of one truth value, with one read for all that lie on a device.

    >>> truths([np.array(True), np.array([False])])
    [True, False]
    """
    return [bool(x) for x in backend.fetched(list(flags))]


def finite(x: Array) -> Array:
    """A flag: whether all numbers are finite."""
    return backend.of(x).isfinite(x).all()
