"""What the host must know of numbers on a device, asked for together.

Each look at a device waits until it has done everything before. So whoever needs to know something of many arrays makes a flag of each,
and all flags come in one read.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from minidl import backend
from minidl.backend import Array


def truths(flags: Iterable[Array]) -> list[bool]:
    """Whether each flag is set: arrays of one truth value, with one read for all that lie on a device.

    >>> truths([np.array(True), np.array([False])])
    [True, False]
    """
    flags = list(flags)
    found = [False] * len(flags)
    by_device: dict[str, list[int]] = {}
    for k, flag in enumerate(flags):
        if isinstance(flag, np.ndarray | np.generic):
            found[k] = bool(flag)
        else:
            by_device.setdefault(backend.device_of(flag), []).append(k)
    for members in by_device.values():
        row = backend.of(flags[members[0]]).stack([flags[k].reshape(()) for k in members])
        for k, truth in zip(members, backend.to_numpy(row).tolist()):
            found[k] = truth
    return found


def finite(x: Array) -> Array:
    """A flag: whether all numbers are finite."""
    return backend.of(x).isfinite(x).all()
