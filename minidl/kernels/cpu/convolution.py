"""Convolution and its two gradients, compiled: which algorithm does a call, and what it is given.

`choose` is the table of algorithms: the time that each would take for a shape, by what was measured, so that the same call is always
done in the same way. direct.py, winograd.py and winograd_weights.py do the work.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minidl.errors import ArgumentError
from minidl.kernels import reference
from minidl.kernels.choice import winograd_allowed
from minidl.kernels.cpu import direct, winograd, winograd_weights
from minidl.kernels.cpu.elementwise import activation as activate
from minidl.kernels.cpu.strips import empty
from minidl.kernels.window import Pair, Window

# Nanoseconds on one core of a Zen 5 with AVX-512, by scripts/bench_cpu: what counts is how they compare
PRODUCT = 1 / 105           # a multiply-add in a register tile
TRANSFORM = 0.33            # a number of an image or an output among a tile's 36
FILTER = 0.4                # a number of a transformed filter


def conv2d(x: np.ndarray, w: np.ndarray, window: Window, groups: int = 1, b: np.ndarray | None = None, activation: str | None = None,
           algorithm: str | None = None) -> Any:
    """See reference.conv2d."""
    chosen = choose("conv2d", algorithm, w, window, groups, len(x), window.out(x.shape[2:]))
    if chosen is None or x.shape[1] != w.shape[1] * groups:
        return NotImplemented
    if not x.size or not w.size:
        return reference.conv2d(x, w, window, groups, b, activation)
    y = empty(len(x), len(w), window.out(x.shape[2:]))
    relu = activation == "relu"
    if chosen == "winograd":
        winograd.slide(x, w, y, window.padding, False, b, relu)
    else:
        direct.forward(x, w, y, window, groups, b, relu)
    return y if activation is None or relu else activate(y, activation)


def conv2d_input(gy: np.ndarray, w: np.ndarray, size: Pair, window: Window, groups: int = 1, b: np.ndarray | None = None,
                 algorithm: str | None = None) -> Any:
    """See reference.conv2d_input."""
    chosen = choose("conv2d_input", algorithm, w, window, groups, len(gy), size)
    if chosen is None or gy.shape[1] != len(w):
        return NotImplemented
    if not gy.size or not w.size:
        return reference.conv2d_input(gy, w, size, window, groups, b)
    gx = empty(len(gy), w.shape[1] * groups, size)
    if chosen == "winograd":
        winograd.slide(gy, w, gx, (2 - window.padding[0], 2 - window.padding[1]), True, b, False)
    else:
        direct.backward(gy, w, gx, window, groups, b)
    return gx


def conv2d_weights(x: np.ndarray, gy: np.ndarray, window: Window, groups: int = 1, algorithm: str | None = None) -> Any:
    """See reference.conv2d_weights."""
    gw = np.empty((gy.shape[1], x.shape[1] // groups, *window.kernel), np.float32)
    chosen = choose("conv2d_weights", algorithm, gw, window, groups, len(x), gy.shape[2:])
    if chosen is None or gy.dtype != np.float32:
        return NotImplemented
    if not x.size or not gy.size or not gw.size:
        gw[...] = 0
        return gw
    if chosen == "winograd":
        winograd_weights.weights(x, gy, gw, window.padding)
    else:
        direct.weights(x, gy, gw, window, groups)
    return gw


def choose(operation: str, algorithm: str | None, w: np.ndarray, window: Window, groups: int, n: int, out: Pair) -> str | None:
    """The algorithm for a call, "direct" or "winograd"; None if it is not for compiled kernels.

    ArgumentError if Winograd is asked for where it cannot be done.
    """
    if algorithm not in (None, "direct", "winograd") or w.dtype != np.float32:
        return None
    possible = (window.kernel == (3, 3) and window.stride == (1, 1) and window.dilation == (1, 1) and groups == 1
                and max(window.padding) <= 2)
    if algorithm == "winograd" and not possible:
        raise ArgumentError(f"{operation}: algorithm 'winograd' is for filters of 3 x 3 with stride 1, dilation 1, one group, and padding "
                            "of at most 2", hint='Use "direct", or leave the choice to minidl.', kernel=window.kernel,
                            stride=window.stride, dilation=window.dilation, groups=groups, padding=window.padding)
    if algorithm is not None or not possible or not winograd_allowed():
        return algorithm or "direct"
    filters = w.shape[0] * w.shape[1]
    tiles = n * -(-out[0] // 4) * -(-out[1] // 4)
    by_winograd = 36 * (tiles * filters * PRODUCT + tiles * (w.shape[0] + w.shape[1]) * TRANSFORM + filters * FILTER)
    return "winograd" if by_winograd < 0.9 * 9 * n * out[0] * out[1] * filters * PRODUCT else "direct"
