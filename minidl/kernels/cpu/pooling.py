"""Pooling: every number is written once, and rows of them are shared out, so that no two threads meet in one.

`largest` and `look` go over what is written: an output looks at the pixels under its window, or a pixel, on the way back, at the
windows that lie over it, in the order of their taps. Where windows do not overlap, `deal` goes over the windows instead, and each deals
its gradient out. Which taps a row or a column has is worked out once per shape, in tables. What a NaN or an infinity spoils is what it
spoils in the reference: numbers that were not the largest are multiplied by 0, not left out.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np

from minidl.kernels.cpu.compiled import address, compiled, run
from minidl.kernels.cpu.lanes import load, load_bytes, splat, store, store_bytes, where
from minidl.kernels.cpu.strips import aligned, empty
from minidl.kernels.cpu.vector import LANES, entry, take
from minidl.kernels.window import Pair, Window

PIECE = 2**14           # numbers in the rows of a piece, about


class Windows(NamedTuple):
    """The windows over images, and what each has under it. Steps in bytes count from one tap to the next."""

    rows: int               # of windows, of all images together
    height: int
    width: int
    channels: int
    per_piece: int          # rows
    kernel_w: int
    step_h: int
    step_w: int
    row_table: int          # for each row and column of windows, from this address on: where in the image the first tap is that is in it,
    column_table: int       # in bytes; its number in the row or column of taps; and how many are in the image


class Plan(NamedTuple):
    """Rows and columns of numbers to write, and what each of them looks at: in tables, of which these are the addresses."""

    rows: int               # of all images together
    height: int
    width: int
    channels: int
    per_piece: int          # rows
    row_starts: int         # for each row the number of its first entry, and at the end that of the last row's end
    row_entries: int        # pairs: a row of the other images, and the number of the window's first tap in that row
    column_starts: int
    column_entries: int     # pairs: a column, and the number of the tap in its row of the window


class Lying(NamedTuple):
    """Where images lie: the first number's address, and bytes from one image, row, column to the next. Channels are side by side."""

    first: int
    along_n: int
    along_h: int
    along_w: int


NOWHERE = Lying(0, 0, 0, 0)

# Compiled


@compiled
def largest(counter, pieces, scratch, plan, x, along_n, y, place):
    """The largest number under each window, and its tap: the first of equal ones, but a NaN before all, and the first of these."""
    one, lowest = splat(np.float32(1)), splat(np.float32(-np.inf))
    while True:
        piece = take(counter)
        if piece >= pieces:
            return
        for row in range(piece * plan.per_piece, min((piece + 1) * plan.per_piece, plan.rows)):
            its = plan.row_table + row % plan.height * 24
            image, first_row, tall = x + row // plan.height * along_n + entry(its), entry(its + 8), entry(its + 16)
            for column in range(plan.width):
                its = plan.column_table + column * 24
                corner, first, wide = image + entry(its), first_row * plan.kernel_w + entry(its + 8), entry(its + 16)
                if tall == 0 or wide == 0:                      # nothing but padding: the first tap stands for it
                    first = 0
                at = (row * plan.width + column) * plan.channels
                for c in range(0, plan.channels, LANES):
                    count = plan.channels - c
                    best, tap = lowest, splat(np.float32(first))
                    for i in range(tall):
                        here, this = corner + i * plan.step_h + c * 4, splat(np.float32(first + i * plan.kernel_w))
                        for _ in range(wide):
                            value = load(here, count)
                            better = ~(value <= best) & (best == best)
                            best, tap = where(better, value, best), where(better, this, tap)
                            here, this = here + plan.step_w, this + one
                    store(y + (at + c) * 4, count, best)
                    store_bytes(place + at + c, count, tap)


@compiled
def look(counter, pieces, scratch, plan, x, place, over, y):
    """For each number to write the sum of those that it looks at.

    place: for each window the tap that counts; or all do, where its address is 0. over: 1 where windows are what is looked at, and 0
    where they are what is written.
    """
    zero, one = splat(np.float32(0)), splat(np.float32(1))
    while True:
        piece = take(counter)
        if piece >= pieces:
            return
        for row in range(piece * plan.per_piece, min((piece + 1) * plan.per_piece, plan.rows)):
            image, h = row // plan.height, row % plan.height
            starts = plan.row_starts + 8 * h
            top, bottom = plan.row_entries + 16 * entry(starts), plan.row_entries + 16 * entry(starts + 8)
            for column in range(plan.width):
                starts = plan.column_starts + 8 * column
                left, right = plan.column_entries + 16 * entry(starts), plan.column_entries + 16 * entry(starts + 8)
                for c in range(0, plan.channels, LANES):
                    count, total = plan.channels - c, zero
                    for i in range(top, bottom, 16):
                        line = x.first + image * x.along_n + entry(i) * x.along_h + c * 4
                        for j in range(left, right, 16):
                            value = load(line + entry(j) * x.along_w, count)
                            if place.first:
                                window_row, window_column = (entry(i), entry(j)) if over else (h, column)
                                its = place.first + image * place.along_n + window_row * place.along_h + window_column * place.along_w
                                tap = splat(np.float32(entry(i + 8) + entry(j + 8)))
                                value = value * where(load_bytes(its + c, count) == tap, one, zero)
                            total = total + value
                    store(y + ((row * plan.width + column) * plan.channels + c) * 4, count, total)


@compiled
def deal(counter, pieces, scratch, plan, gy, place, gx, along_n):
    """Each window writes its number to the tap that counts, and zeros to the others. For windows that do not overlap."""
    zero, one = splat(np.float32(0)), splat(np.float32(1))
    while True:
        piece = take(counter)
        if piece >= pieces:
            return
        for row in range(piece * plan.per_piece, min((piece + 1) * plan.per_piece, plan.rows)):
            n, h = row // plan.height, row % plan.height
            its = plan.row_table + h * 24
            image, first_row, tall = gx + n * along_n + entry(its), entry(its + 8), entry(its + 16)
            for column in range(plan.width):
                its = plan.column_table + column * 24
                corner, first, wide = image + entry(its), first_row * plan.kernel_w + entry(its + 8), entry(its + 16)
                at = gy.first + n * gy.along_n + h * gy.along_h + column * gy.along_w
                its_place = place.first + n * place.along_n + h * place.along_h + column * place.along_w
                for c in range(0, plan.channels, LANES):
                    count = plan.channels - c
                    value, chosen = load(at + c * 4, count), load_bytes(its_place + c, count)
                    for i in range(tall):
                        here, this = corner + i * plan.step_h + c * 4, splat(np.float32(first + i * plan.kernel_w))
                        for _ in range(wide):
                            store(here, count, value * where(chosen == this, one, zero))
                            here, this = here + plan.step_w, this + one


# Plans. They are kept together with the tables that they name; both are small, and few.


@functools.lru_cache(maxsize=128)
def windows(n: int, channels: int, size: Pair, along_h: int, along_w: int, window: Window) -> tuple[Windows, list[np.ndarray]]:
    """The windows over images of this size, whose rows and columns lie so many bytes apart."""
    tables = []
    for (length, positions, k, s, p, d, _), along in zip(_axes(size, window), (along_h, along_w)):
        inside = [[i for i in range(k) if 0 <= o * s - p + i * d < length] or [0, -1] for o in range(positions)]
        tables.append(np.array([((o * s - p + taps[0] * d) * along, taps[0], taps[-1] - taps[0] + 1) for o, taps in enumerate(inside)],
                               np.int64))
    out = window.out(size)
    per_piece = max(1, PIECE // max(out[1] * channels, 1))
    return Windows(n * out[0], *out, channels, per_piece, window.kernel[1], window.dilation[0] * along_h, window.dilation[1] * along_w,
                   address(tables[0]), address(tables[1])), tables


@functools.lru_cache(maxsize=128)
def under(n: int, channels: int, size: Pair, window: Window) -> tuple[Plan, list[np.ndarray]]:
    """What each window has under it, of images of this size."""
    axes = []
    for length, positions, k, s, p, d, step in _axes(size, window):
        axes.append([[(o * s - p + i * d, i * step) for i in range(k) if 0 <= o * s - p + i * d < length] for o in range(positions)])
    return _planned(n, channels, window.out(size), *axes)


@functools.lru_cache(maxsize=128)
def over(n: int, channels: int, size: Pair, window: Window) -> tuple[Plan, list[np.ndarray]]:
    """Which windows each pixel has over it."""
    axes = []
    for length, positions, k, s, p, d, step in _axes(size, window):
        starts = [[(y + p - i * d, i * step) for i in range(k)] for y in range(length)]
        axes.append([[(start // s, tap) for start, tap in row if start % s == 0 and 0 <= start // s < positions] for row in starts])
    return _planned(n, channels, size, *axes)


def _axes(size: Pair, window: Window) -> Any:
    """For each axis its length and its number of positions; kernel, stride, padding and dilation; and from one tap to the next."""
    return zip(size, window.out(size), window.kernel, window.stride, window.padding, window.dilation, (window.kernel[1], 1))


def _planned(n: int, channels: int, size: Pair, *axes: list[list[Pair]]) -> tuple[Plan, list[np.ndarray]]:
    tables = []
    for entries in axes:
        tables.append(np.cumsum([0, *(len(pairs) for pairs in entries)], dtype=np.int64))
        tables.append(np.array([pair for pairs in entries for pair in pairs], np.int64))
    per_piece = max(1, PIECE // max(size[1] * channels, 1))
    return Plan(n * size[0], *size, channels, per_piece, *(address(table) for table in tables)), tables


# The kernels' public face


def max_pool2d(x: np.ndarray, window: Window) -> Any:
    """See reference.max_pool2d."""
    if math.prod(window.kernel) > 256:
        return NotImplemented
    x = pixels(x)
    plan, _ = windows(len(x), x.shape[1], x.shape[2:], x.strides[2], x.strides[3], window)
    y, place = (empty(len(x), x.shape[1], (plan.height, plan.width), dtype) for dtype in (np.float32, np.uint8))
    if y.size:
        run(largest, _pieces(plan), 4 * x.size, 0, plan, address(x), x.strides[0], address(y), address(place))
    return y, place


def max_pool2d_scatter(gy: np.ndarray, place: np.ndarray, size: Pair, window: Window) -> Any:
    """See reference.max_pool2d_scatter."""
    if place.dtype != np.uint8:
        return NotImplemented
    gy, place = pixels(gy), pixels(place)
    if any(s < reach for s, reach in zip(window.stride, window.span)):
        return _looked(*over(len(gy), gy.shape[1], size, window), gy, lying(place), 1)
    gx = empty(len(gy), gy.shape[1], size)
    if window.kernel != window.stride or any(window.padding) or any(n * s != m for n, s, m in zip(gy.shape[2:], window.stride, size)):
        gx[...] = 0                                             # there are pixels with no window over them
    if gx.size:
        plan, _ = windows(len(gx), gx.shape[1], size, gx.strides[2], gx.strides[3], window)
        run(deal, _pieces(plan), 4 * gx.size, 0, plan, lying(gy), lying(place), address(gx), gx.strides[0])
    return gx


def max_pool2d_gather(x: np.ndarray, place: np.ndarray, window: Window) -> Any:
    """See reference.max_pool2d_gather."""
    if place.dtype != np.uint8:
        return NotImplemented
    x, place = pixels(x), pixels(place)
    return _looked(*under(len(x), x.shape[1], x.shape[2:], window), x, lying(place), 0)


def sum_pool2d(x: np.ndarray, window: Window) -> Any:
    """See reference.sum_pool2d."""
    x = pixels(x)
    return _looked(*under(len(x), x.shape[1], x.shape[2:], window), x)


def sum_pool2d_spread(gy: np.ndarray, size: Pair, window: Window) -> Any:
    """See reference.sum_pool2d_spread."""
    gy = pixels(gy)
    return _looked(*over(len(gy), gy.shape[1], size, window), gy)


def _looked(plan: Plan, tables: list[np.ndarray], x: np.ndarray, place: Lying = NOWHERE, over: int = 0) -> np.ndarray:
    y = empty(len(x), x.shape[1], (plan.height, plan.width))
    if y.size:
        run(look, _pieces(plan), 4 * max(x.size, y.size), 0, plan, lying(x), place, over, address(y))
    return y


def _pieces(plan: Windows | Plan) -> int:
    return -(-plan.rows // plan.per_piece)


def pixels(x: np.ndarray) -> np.ndarray:
    """Images, or a copy of them where a pixel's channels do not lie side by side."""
    if x.shape[1] == 1 or x.strides[1] == x.itemsize:
        return aligned(x)
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


def lying(x: np.ndarray) -> Lying:
    n, _, h, w = x.strides
    return Lying(address(x), n, h, w)
