"""Pooling: a thread for each number that is written; the window's geometry goes along as numbers."""

from __future__ import annotations

import functools
import math
from typing import Any

from minidl import backend
from minidl.backend import Array
from minidl.kernels.cuda import source
from minidl.kernels.cuda.elementwise import takes
from minidl.kernels.window import Pair, Window

THREADS = 256
PLACES = {"uint8": "unsigned char", "int32": "int"}


def max_pool2d(x: Array, window: Window) -> Any:
    """See reference.max_pool2d."""
    x, out = source.dense(x), window.out(x.shape[2:])
    if not takes(x) or min(out) < 1:
        return NotImplemented
    xp, shape, kind = backend.of(x), (*x.shape[:2], *out), "uint8" if math.prod(window.kernel) <= 256 else "int32"
    y, place = xp.empty(shape, x.dtype), xp.empty(shape, kind)
    _launch(x, y, "max_pool2d", y.size, x, y.size, *_under(x.shape[2:], window), y, place, P=PLACES[kind])
    return y, place


def max_pool2d_scatter(gy: Array, place: Array, size: Pair, window: Window) -> Any:
    """See reference.max_pool2d_scatter."""
    return _sum_over(gy, place, size, window)


def max_pool2d_gather(x: Array, place: Array, window: Window) -> Any:
    """See reference.max_pool2d_gather."""
    return _sum_under(x, place, window)


def sum_pool2d(x: Array, window: Window) -> Any:
    """See reference.sum_pool2d."""
    return _sum_under(x, None, window)


def sum_pool2d_spread(gy: Array, size: Pair, window: Window) -> Any:
    """See reference.sum_pool2d_spread."""
    return _sum_over(gy, None, size, window)


def _sum_under(x: Array, place: Array | None, window: Window) -> Any:
    x, out = source.dense(x), window.out(x.shape[2:])
    if not takes(x) or min(out) < 1:
        return NotImplemented
    y = backend.of(x).empty((*x.shape[:2], *out), x.dtype)
    place, kind = _places(place)
    _launch(x, y, "sum_under", y.size, x, place, y.size, *_under(x.shape[2:], window), y, P=kind)
    return y


def _sum_over(gy: Array, place: Array | None, size: Pair, window: Window) -> Any:
    gy = source.dense(gy)
    if not takes(gy) or min(size) < 1:
        return NotImplemented
    gx = backend.of(gy).empty((*gy.shape[:2], *size), gy.dtype)
    across = _across(size[1], gy.dtype.itemsize)
    groups = gx.size // size[1] * across
    place, kind = _places(place)
    _launch(gy, gx, "sum_over", groups, gy, place, groups, *source.divisor(across), *_over(size, window), gx, P=kind)
    return gx


def _places(place: Array | None) -> tuple[Array | None, str]:
    return (None, "unsigned char") if place is None else (source.dense(place), PLACES[source.named(place.dtype)])


def _across(width: int, itemsize: int) -> int:
    """Threads for a row: each writes 16 bytes, if all rows begin at a multiple of that, or else a number."""
    wide = 16 // itemsize
    return width // wide if width % wide == 0 else width


@functools.lru_cache(maxsize=256)
def _under(size: Pair, window: Window) -> tuple[Any, ...]:
    """What a kernel must know about windows in which it looks."""
    out = window.out(size)
    return (*size, *window.kernel, *window.stride, *window.padding, *window.dilation, *source.divisor(out[0]), *source.divisor(out[1]))


@functools.lru_cache(maxsize=256)
def _over(size: Pair, window: Window) -> tuple[Any, ...]:
    """And about windows that lie over a number."""
    reach = ((span - 1) // stride + 1 for span, stride in zip(window.span, window.stride))
    return (*source.divisor(size[0]), size[1], *window.kernel, *source.divisor(window.stride[0]), *source.divisor(window.stride[1]),
            *window.padding, *window.dilation, *window.out(size), *reach)


def _launch(x: Array, y: Array, name: str, count: int, *args: Any, P: str) -> None:
    source.launch(x, "pooling", name, -(-count // THREADS), THREADS, *args, far=source.far(x, y), P=P)
