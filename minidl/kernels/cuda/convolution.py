"""Convolution and its two gradients on a GPU: which algorithm does a call.

`choose` is the table: the time that each algorithm would take for a shape, by the bytes it moves and the products it makes, at rates that
are fixed, so that the same call is always done in the same way. im2col.py, implicit.py and depthwise.py do the work.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from minidl.backend import Array
from minidl.kernels.choice import tf32_allowed
from minidl.kernels.cuda import depthwise, im2col, implicit
from minidl.kernels.cuda.source import dense, taken
from minidl.kernels.window import Pair, Window

# What a large GPU (an H200) does in a second, as its data sheet and the kinds of instructions let expect. These are estimates and not
# measurements: scripts/gpu_check times every algorithm by name on every shape, and what it finds is to replace them. What counts is
# how they compare.
LIBRARY = {"16 bits": 3.0e14, "TF32": 1.5e14, "float32": 2.5e13, "float64": 2.5e13}     # multiply-adds in cuBLAS
IMPLICIT = {"16 bits": 1.0e14, "TF32": 7e13, "float32": 2.0e13, "float64": 8e12}      # and in implicit.cu
CACHE = 5e12            # bytes to or from the second-level cache
LAUNCH = 3e-6           # seconds that go by from one kernel to the next

FORWARD, INPUT, WEIGHTS = range(3)


def conv2d(x: Array, w: Array, window: Window, groups: int = 1, b: Array | None = None, activation: str | None = None,
           algorithm: str | None = None) -> Any:
    """See reference.conv2d."""
    out = window.out(x.shape[2:])
    if not takes(x, w, groups, out) or x.shape[1] != w.shape[1] * groups:
        return NotImplemented
    chosen = algorithm or choose(FORWARD, kind_of(x), len(x), len(w), w.shape[1] * groups, window, groups, out)
    x, w, b = dense(x), dense(w), b if b is None else dense(b)
    if chosen == "depthwise":
        return depthwise.conv2d(x, w, window, b, activation)
    if chosen in MODULES:
        return MODULES[chosen].conv2d(x, w, window, groups, b, activation)
    return NotImplemented


def conv2d_input(gy: Array, w: Array, size: Pair, window: Window, groups: int = 1, b: Array | None = None,
                 algorithm: str | None = None) -> Any:
    """See reference.conv2d_input."""
    if not takes(gy, w, groups, size) or gy.shape[1] != len(w):
        return NotImplemented
    chosen = algorithm or choose(INPUT, kind_of(gy), len(gy), len(w), w.shape[1] * groups, window, groups, gy.shape[2:])
    gy, w, b = dense(gy), dense(w), b if b is None else dense(b)
    if chosen == "depthwise":
        return depthwise.conv2d_input(gy, w, size, window, groups, b)
    if chosen in MODULES:
        return MODULES[chosen].conv2d_input(gy, w, size, window, groups, b)
    return NotImplemented


def conv2d_weights(x: Array, gy: Array, window: Window, groups: int = 1, algorithm: str | None = None) -> Any:
    """See reference.conv2d_weights; float32 for 16-bit arrays."""
    if not takes(x, gy, groups, window.kernel) or x.shape[1] % groups or gy.dtype != x.dtype:
        return NotImplemented
    chosen = algorithm or choose(WEIGHTS, kind_of(x), len(x), gy.shape[1], x.shape[1], window, groups, gy.shape[2:])
    x, gy = dense(x), dense(gy)
    if chosen == "depthwise":
        return depthwise.conv2d_weights(x, gy, window)
    if chosen in MODULES:
        return MODULES[chosen].conv2d_weights(x, gy, window, groups)
    return NotImplemented


def conv2d_patch_moments(x: Array, window: Window, groups: int = 1, bias: bool = False) -> Any:
    """See reference.conv2d_patch_moments; float32 for 16-bit images."""
    if not taken(x.dtype) or not x.size or min(window.out(x.shape[2:])) < 1 or x.shape[1] % groups:
        return NotImplemented
    return im2col.conv2d_patch_moments(dense(x), window, groups, bias)


MODULES = {"im2col": im2col, "implicit": implicit}


def takes(x: Array, other: Array, groups: int, result: Pair) -> bool:
    """Whether these kernels can do a call: floats, nothing empty, x of the other's type or of 16 bits beside float32."""
    alike = other.dtype == x.dtype or (x.dtype.itemsize == 2 and other.dtype == np.float32)
    return taken(x.dtype) and alike and x.size > 0 and other.size > 0 and min(result) > 0


def kind_of(x: Array) -> str:
    """How numbers of x are multiplied: a name in the tables above."""
    size = x.dtype.itemsize
    return "16 bits" if size == 2 else "float64" if size == 8 else "TF32" if tf32_allowed() else "float32"


@functools.lru_cache(maxsize=1024)
def choose(way: int, kind: str, n: int, filters: int, channels: int, window: Window, groups: int, out: Pair) -> str:
    """The algorithm for a call that leaves it open. out: (OH, OW)."""
    positions, places = math.prod(out), math.prod(window.kernel)
    if groups == channels > 1:
        return "depthwise"
    if max(groups, math.prod(window.stride)) > im2col.LIMIT:
        return "im2col"
    o, c = filters // groups, channels // groups
    products = n * positions * filters * c * places
    rows, columns, tall, wide = {FORWARD: (o, n * positions, o, positions), INPUT: (c, n * positions, c * places, positions),
                                 WEIGHTS: (o, c * places, o, c * places)}[way]
    by_implicit = products * waste(rows, implicit.height(rows)) * waste(columns, implicit.COLUMNS) / IMPLICIT[kind] + LAUNCH
    by_library = products * waste(tall, 64) * waste(wide, 64) / LIBRARY[kind] + groups * LAUNCH
    if kind == "16 bits" and positions % 8 and way != WEIGHTS:      # rows that do not begin at multiples of 16 bytes
        by_library *= 2
    if not im2col.pointwise(window) or way == WEIGHTS:
        size = 8 if kind == "float64" else 2 if kind == "16 bits" and way != INPUT else 4
        moved = n * positions * (channels * places + (filters if way == WEIGHTS else 0)) * size
        by_library += 2 * moved / CACHE + groups * LAUNCH * -(-moved // im2col.PIECE)
    return "im2col" if by_library < by_implicit else "implicit"


def waste(length: int, tile: int) -> float:
    """How much longer an axis gets by filling up its last tile."""
    return -(-length // tile) * tile / length
