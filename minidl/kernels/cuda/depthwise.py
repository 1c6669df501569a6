"""Convolution where each filter sees one channel (groups is the number of channels), on a GPU: see depthwise.cu."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from minidl import backend
from minidl.backend import Array
from minidl.kernels.cuda import source
from minidl.kernels.cuda.elementwise import KINDS
from minidl.kernels.cuda.im2col import LIMIT, THREADS, geometry
from minidl.kernels.window import Pair, Window


def conv2d(x: Array, w: Array, window: Window, b: Array | None = None, activation: str | None = None) -> Array:
    """See reference.conv2d. x and w are contiguous."""
    y = backend.of(x).empty((len(x), len(w), *window.out(x.shape[2:])), x.dtype)
    source.launch(x, "depthwise", "depthwise", -(-y.size // THREADS), THREADS, x, w, b, KINDS[activation], y, y.size, *x.shape[2:],
                  *geometry(window), *divisors(len(w), len(w) // x.shape[1], *y.shape[2:]), far=source.far(x, y), **types(w, b))
    return y


def conv2d_input(gy: Array, w: Array, size: Pair, window: Window, groups: int, b: Array | None = None) -> Array:
    """See reference.conv2d_input. gy and w are contiguous."""
    gx = backend.of(gy).empty((len(gy), groups, *size), gy.dtype)
    source.launch(gy, "depthwise", "depthwise_input", -(-gx.size // THREADS), THREADS, gy, w, b, gx, gx.size, len(w) // groups,
                  *gy.shape[2:], *window.kernel, *window.padding, *window.dilation, *divisors(groups, *size, *window.stride),
                  far=source.far(gx, gy), **types(w, b))
    return gx


def conv2d_weights(x: Array, gy: Array, window: Window) -> Array:
    """See reference.conv2d_weights; float32 for 16-bit arrays. x and gy are contiguous."""
    filters = gy.shape[1]
    gw = backend.of(x).empty((filters, 1, *window.kernel), source.computed_in(x))
    source.launch(x, "depthwise", "depthwise_weights", (window.kernel[0] * window.kernel[1], min(filters, LIMIT)), THREADS, x, gy, gw,
                  len(x), filters, filters // x.shape[1], *x.shape[2:], gy.shape[2], window.kernel[1], *window.stride, *window.padding,
                  *window.dilation, *divisors(gy.shape[3]), far=source.far(x, gy), **types(x, None))
    return gw


@functools.lru_cache(maxsize=256)
def divisors(*numbers: int) -> tuple[Any, ...]:
    """What kernels take to divide by each of these."""
    return tuple(part for d in numbers for part in source.divisor(d))


def types(w: Array, b: Array | None) -> dict[str, Any]:
    """Macros: the types of the filters' numbers and of the bias's."""
    return macros(w.dtype, None if b is None else b.dtype)


@functools.cache
def macros(w: np.dtype, b: np.dtype | None) -> dict[str, Any]:
    """The same, of dtypes."""
    return {"M": source.NUMBERS[str(w)], "B": source.NUMBERS[str(b)] if b is not None else "double" if w.itemsize == 8 else "float"}
