"""Batch normalization, and sums over channels: one pass over memory for sums and one for the result, each way.

Images lie as (N, H, W, C), so that a channel is a column of a matrix. Where there are few channels, several pixels make one row, along
which what belongs to the channels is repeated: so vectors are full. Sums over a piece of rows are kept apart, and added at the end in
double precision. For a variance each piece has a mean of its own, and then, while it is in the cache, squared distances from that;
Chan, Golub and LeVeque, 1979, say how two pieces become one. So a mean that is large beside the deviation takes no digits away.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from minidl.kernels.cpu.compiled import address, compiled, run
from minidl.kernels.cpu.elementwise import activation as activate
from minidl.kernels.cpu.lanes import WIDE, load_wide, splat_wide, store, where
from minidl.kernels.cpu.vector import take

PIECES = 32             # pieces to have, about, if they are neither too small
SMALL = 2**14           # numbers
LARGE = 2**16           # nor too large for a second-level cache
FULL = 64               # numbers that a row of several pixels has, if it can be done
FEW = 2**17             # numbers of a matrix whose columns NumPy adds as fast

# Compiled: a matrix of `rows` x `width`, where a piece is `tall` rows. A vector of columns at a time goes down the piece.


@compiled
def moments(counter, pieces, scratch, x, rows, width, tall, means, squares):
    """For each piece and column the mean, and the sum of squared distances from it."""
    by_row = width * 4
    while True:
        piece = take(counter)
        if piece >= pieces:
            return
        begin, end = x + piece * tall * by_row, x + min((piece + 1) * tall, rows) * by_row
        count = splat_wide(np.float32(min(tall, rows - piece * tall)))
        for j in range(0, width, WIDE):
            n = width - j
            sums = splat_wide(np.float32(0))
            for at in range(begin + j * 4, end, by_row):
                sums = sums + load_wide(at, n)
            mean, square = sums / count, splat_wide(np.float32(0))
            for at in range(begin + j * 4, end, by_row):
                d = load_wide(at, n) - mean
                square = square + d * d
            store(means + piece * by_row + j * 4, n, mean)
            store(squares + piece * by_row + j * 4, n, square)


@compiled
def scale(counter, pieces, scratch, x, rows, width, tall, mean, factor, shift, relu, y):
    """y = (x - mean) factor + shift, with a number of each for every column; then max(y, 0) if relu is 1, NaN staying NaN."""
    zero = splat_wide(np.float32(0))
    by_row = width * 4
    while True:
        piece = take(counter)
        if piece >= pieces:
            return
        begin, end = piece * tall * by_row, min((piece + 1) * tall, rows) * by_row
        for j in range(0, width, WIDE):
            n = width - j
            its_mean, its_factor, its_shift = load_wide(mean + j * 4, n), load_wide(factor + j * 4, n), load_wide(shift + j * 4, n)
            for at in range(begin + j * 4, end, by_row):
                value = (load_wide(x + at, n) - its_mean) * its_factor + its_shift
                if relu:
                    value = where(value < zero, zero, value)
                store(y + at, n, value)


@compiled
def sum_columns(counter, pieces, scratch, gy, rows, width, tall, sums):
    """For each piece and column the sum."""
    by_row = width * 4
    while True:
        piece = take(counter)
        if piece >= pieces:
            return
        begin, end = gy + piece * tall * by_row, gy + min((piece + 1) * tall, rows) * by_row
        for j in range(0, width, WIDE):
            its_sum = splat_wide(np.float32(0))
            for at in range(begin + j * 4, end, by_row):
                its_sum = its_sum + load_wide(at, width - j)
            store(sums + piece * by_row + j * 4, width - j, its_sum)


@compiled
def sum_products(counter, pieces, scratch, gy, x, rows, width, tall, mean, sums, products):
    """For each piece and column the sum of gy, and that of gy (x - mean)."""
    by_row = width * 4
    while True:
        piece = take(counter)
        if piece >= pieces:
            return
        begin, end = piece * tall * by_row, min((piece + 1) * tall, rows) * by_row
        for j in range(0, width, WIDE):
            n = width - j
            its_mean, its_sum, product = load_wide(mean + j * 4, n), splat_wide(np.float32(0)), splat_wide(np.float32(0))
            for at in range(begin + j * 4, end, by_row):
                g = load_wide(gy + at, n)
                its_sum = its_sum + g
                product = product + g * (load_wide(x + at, n) - its_mean)
            store(sums + piece * by_row + j * 4, n, its_sum)
            store(products + piece * by_row + j * 4, n, product)


@compiled
def combine(counter, pieces, scratch, gy, x, rows, width, tall, mean, factor, slope, shift, gx):
    """gx = gy factor + (x - mean) slope + shift, with a number of each for every column."""
    by_row = width * 4
    while True:
        piece = take(counter)
        if piece >= pieces:
            return
        begin, end = piece * tall * by_row, min((piece + 1) * tall, rows) * by_row
        for j in range(0, width, WIDE):
            n = width - j
            its_mean, its_factor = load_wide(mean + j * 4, n), load_wide(factor + j * 4, n)
            its_slope, its_shift = load_wide(slope + j * 4, n), load_wide(shift + j * 4, n)
            for at in range(begin + j * 4, end, by_row):
                store(gx + at, n, load_wide(gy + at, n) * its_factor + (load_wide(x + at, n) - its_mean) * its_slope + its_shift)


# For arrays


class Cut(NamedTuple):
    """A matrix for numbers with so many channels, which lie side by side, and pieces of it."""

    rows: int
    width: int
    tall: int           # rows of a piece
    pieces: int
    channels: int
    depth: int          # numbers a channel
    counts: np.ndarray  # rows of each piece: (pieces, 1)


@functools.lru_cache(maxsize=512)
def cut(size: int, channels: int) -> Cut:
    rows, width = size // channels, channels
    while width < FULL and rows % 2 == 0:
        rows, width = rows // 2, width * 2
    tall = max(1, min(max(size // PIECES, SMALL), LARGE) // width)
    pieces = -(-rows // tall)
    return Cut(rows, width, tall, pieces, channels, size // channels,
               np.minimum(tall, rows - tall * np.arange(pieces, dtype=np.float32)).reshape(-1, 1))


def channel_sums(gy: np.ndarray) -> Any:
    """See reference_layers.channel_sums."""
    if not gy.size:
        return np.zeros(gy.shape[1], np.float32)
    if gy.ndim == 2 and gy.size < FEW:
        return NotImplemented
    gy, its = _last(gy), cut(gy.size, gy.shape[1])
    sums = np.empty((its.pieces, its.width), np.float32)
    _run(sum_columns, its, address(gy), its.rows, its.width, its.tall, address(sums))
    return _by_channel(sums, its).astype(np.float32)


def batch_norm(x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, eps: float, activation: str | None = None) -> Any:
    """See reference_layers.batch_norm."""
    if not x.size or not gamma.dtype == beta.dtype == np.float32:
        return NotImplemented
    x, its = _last(x), cut(x.size, x.shape[1])
    means, squares = np.empty((2, its.pieces, its.width), np.float32)
    _run(moments, its, address(x), its.rows, its.width, its.tall, address(means), address(squares))
    mean = _by_channel(its.counts * means, its) / its.depth
    off = means - _along(mean, its)
    var = _by_channel(squares + its.counts * off * off, its) / its.depth
    mean, var = mean.astype(np.float32), var.astype(np.float32)
    return _scaled(x, its, mean, gamma / np.sqrt(var + np.float32(eps)), beta, activation), mean, var


def batch_norm_inference(x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, mean: np.ndarray, var: np.ndarray, eps: float,
                         activation: str | None = None) -> Any:
    """See reference_layers.batch_norm_inference."""
    if not x.size or not gamma.dtype == beta.dtype == mean.dtype == var.dtype == np.float32:
        return NotImplemented
    return _scaled(_last(x), cut(x.size, x.shape[1]), mean, gamma / np.sqrt(var + np.float32(eps)), beta, activation)


def batch_norm_gradient(gy: np.ndarray, x: np.ndarray, gamma: np.ndarray, mean: np.ndarray, var: np.ndarray, eps: float,
                        gmean: np.ndarray | None = None, gvar: np.ndarray | None = None) -> Any:
    """See reference_layers.batch_norm_gradient."""
    if not x.size or not x.dtype == gamma.dtype == mean.dtype == var.dtype == np.float32:
        return NotImplemented
    gy, x, its = _last(gy), _last(x), cut(x.size, x.shape[1])
    sums, products = np.empty((2, its.pieces, its.width), np.float32)
    center = _along(mean, its)
    _run(sum_products, its, address(gy), address(x), its.rows, its.width, its.tall, address(center), address(sums), address(products))
    r = 1 / np.sqrt(var + np.float32(eps))
    factor = gamma * r
    gbeta, ggamma = _by_channel(sums, its).astype(np.float32), (_by_channel(products, its) * r).astype(np.float32)
    slope, shift = factor * r * ggamma * np.float32(-1 / its.depth), factor * gbeta * np.float32(-1 / its.depth)
    if gmean is not None:
        shift += gmean * (1 / its.depth)
    if gvar is not None:
        slope += gvar * (2 / its.depth)
    factor, slope, shift, gx = _along(factor, its), _along(slope, its), _along(shift, its), np.empty_like(x)
    _run(combine, its, address(gy), address(x), its.rows, its.width, its.tall, address(center), address(factor), address(slope),
         address(shift), address(gx))
    return _second(gx), ggamma, gbeta


def _scaled(x: np.ndarray, its: Cut, mean: np.ndarray, factor: np.ndarray, shift: np.ndarray, activation: str | None) -> np.ndarray:
    mean, factor, shift, y = _along(mean, its), _along(factor, its), _along(shift, its), np.empty_like(x)
    _run(scale, its, address(x), its.rows, its.width, its.tall, address(mean), address(factor), address(shift),
         int(activation == "relu"), address(y))
    return _second(y if activation in (None, "relu") else activate(y, activation))


def _run(kernel: Any, its: Cut, *arguments: Any) -> None:
    run(kernel, its.pieces, 4 * its.rows * its.width, 0, *arguments)


def _last(x: np.ndarray) -> np.ndarray:
    """x with its channels last, contiguous."""
    return np.ascontiguousarray(x.transpose(0, *range(2, x.ndim), 1))


def _second(y: np.ndarray) -> np.ndarray:
    return y.transpose(0, -1, *range(1, y.ndim - 1))


def _along(a: np.ndarray, its: Cut) -> np.ndarray:
    """A number a channel, repeated along a row of the matrix."""
    a = np.ascontiguousarray(a, np.float32)
    return a if its.width == its.channels else np.tile(a, its.width // its.channels)


def _by_channel(sums: np.ndarray, its: Cut) -> np.ndarray:
    """Sums for each piece and column, added to one for each channel."""
    return sums.reshape(-1, its.channels).sum(axis=0, dtype=np.float64)
