"""Batch and layer normalization, and sums over channels: one pass over memory for sums and one for the result, each way.

Images lie as (N, H, W, C), so that a channel is a column of a matrix. Where there are few channels, several pixels make one row, along
which what belongs to the channels is repeated: so vectors are full. Sums over a piece of rows are kept apart, and added at the end in
double precision. For a variance each piece has a mean of its own, and then, while it is in the cache, squared distances from that;
Chan, Golub and LeVeque, 1979, say how two pieces become one. So a mean that is large beside the deviation takes no digits away.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minidl.kernels.cpu.compiled import address, compiled, run
from minidl.kernels.cpu.elementwise import activation as activate
from minidl.kernels.cpu.lanes import WIDE, load_wide, splat_wide, store, where
from minidl.kernels.cpu.vector import take

PIECE = 2**13           # numbers of a piece, about: a second-level cache holds it
FULL = 64               # numbers that a row of several pixels has, if it can be done
PARTS = 16              # sums over rows that layer normalization keeps apart

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


# For arrays: columns


class Matrix:
    """Images or rows (N, C) as a matrix of `rows` x `width`, where a row is so many pixels, one after the other.

    x: the array with its channels last, contiguous; a copy if it did not lie so.
    """

    def __init__(self, x: np.ndarray):
        self.x = np.ascontiguousarray(x.transpose(0, *range(2, x.ndim), 1))
        self.channels = x.shape[1]
        self.rows, self.width = x.size // self.channels, self.channels
        while self.width < FULL and self.rows % 2 == 0:
            self.rows, self.width = self.rows // 2, self.width * 2
        self.tall = max(1, PIECE // self.width)
        self.pieces = -(-self.rows // self.tall)
        self.counts = np.minimum(self.tall, self.rows - self.tall * np.arange(self.pieces)).reshape(-1, 1)

    def along(self, a: np.ndarray) -> np.ndarray:
        """A number a channel, repeated along a row."""
        return np.tile(np.asarray(a, np.float32), self.width // self.channels)

    def sums(self, count: int) -> np.ndarray:
        """Room for so many sums for each piece and column."""
        return np.empty((count, self.pieces, self.width), np.float32)

    def by_channel(self, sums: np.ndarray) -> np.ndarray:
        """Sums for each column, or for each piece and column, added to one for each channel."""
        return sums.reshape(-1, self.channels).sum(axis=0, dtype=np.float64)

    def run(self, kernel: Any, *arguments: Any) -> None:
        run(kernel, self.pieces, 4 * self.x.size, 0, *arguments)


def channel_sums(gy: np.ndarray) -> Any:
    """See reference_layers.channel_sums."""
    if not gy.size:
        return np.zeros(gy.shape[1], np.float32)
    m = Matrix(gy)
    sums = m.sums(1)
    m.run(sum_columns, address(m.x), m.rows, m.width, m.tall, address(sums))
    return m.by_channel(sums).astype(np.float32)


def batch_norm(x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, eps: float, activation: str | None = None) -> Any:
    """See reference_layers.batch_norm."""
    if not x.size or not gamma.dtype == beta.dtype == np.float32:
        return NotImplemented
    m = Matrix(x)
    means, squares = m.sums(2)
    m.run(moments, address(m.x), m.rows, m.width, m.tall, address(means), address(squares))
    count = m.rows * m.width // m.channels
    mean = m.by_channel(m.counts * means) / count
    off = means - m.along(mean)
    var = m.by_channel(squares + m.counts * off * off) / count
    mean, var = mean.astype(np.float32), var.astype(np.float32)
    return _scaled(m, mean, gamma / np.sqrt(var + np.float32(eps)), beta, activation), mean, var


def batch_norm_inference(x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, mean: np.ndarray, var: np.ndarray, eps: float,
                         activation: str | None = None) -> Any:
    """See reference_layers.batch_norm_inference."""
    if not x.size or not gamma.dtype == beta.dtype == mean.dtype == var.dtype == np.float32:
        return NotImplemented
    return _scaled(Matrix(x), mean, gamma / np.sqrt(var + np.float32(eps)), beta, activation)


def _scaled(m: Matrix, mean: np.ndarray, factor: np.ndarray, shift: np.ndarray, activation: str | None) -> np.ndarray:
    y = np.empty_like(m.x)
    mean, factor, shift = m.along(mean), m.along(factor), m.along(shift)
    m.run(scale, address(m.x), m.rows, m.width, m.tall, address(mean), address(factor), address(shift), int(activation == "relu"),
          address(y))
    if activation not in (None, "relu"):
        y = activate(y, activation)
    return _channels_second(y)


def batch_norm_gradient(gy: np.ndarray, x: np.ndarray, gamma: np.ndarray, mean: np.ndarray, var: np.ndarray, eps: float,
                        gmean: np.ndarray | None = None, gvar: np.ndarray | None = None) -> Any:
    """See reference_layers.batch_norm_gradient."""
    if not x.size or any(a.dtype != np.float32 for a in (x, gamma, mean, var)):
        return NotImplemented
    m, its_gy = Matrix(x), Matrix(gy)
    sums, products = m.sums(2)
    center = m.along(mean)
    m.run(sum_products, address(its_gy.x), address(m.x), m.rows, m.width, m.tall, address(center), address(sums), address(products))
    n = m.rows * m.width // m.channels
    r = 1 / np.sqrt(var + np.float32(eps))
    gbeta, ggamma = m.by_channel(sums), m.by_channel(products) * r
    slope, shift = gamma * r * r * ggamma * (-1 / n), gamma * r * gbeta * (-1 / n)
    if gmean is not None:
        shift += gmean * (1 / n)
    if gvar is not None:
        slope += gvar * (2 / n)
    factor, slope, shift, gx = m.along(gamma * r), m.along(slope), m.along(shift), np.empty_like(m.x)
    m.run(combine, address(its_gy.x), address(m.x), m.rows, m.width, m.tall, address(center), address(factor), address(slope),
          address(shift), address(gx))
    return _channels_second(gx), ggamma.astype(np.float32), gbeta.astype(np.float32)


def _channels_second(y: np.ndarray) -> np.ndarray:
    return y.transpose(0, -1, *range(1, y.ndim - 1))
