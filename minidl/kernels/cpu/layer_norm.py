"""Layer normalization: each row is read, and stays in the cache until it is done.

On the way back what goes to gamma and beta is summed over rows: a piece of the rows has sums of its own, which are added at the end.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minidl.kernels.cpu.compiled import address, compiled, run
from minidl.kernels.cpu.lanes import WIDE, first_wide, load_wide, splat_wide, store, total, where
from minidl.kernels.cpu.vector import clear, number, put, take

PARTS = 16              # pieces of the rows, whose sums are kept apart


# Compiled


@compiled
def normalize(counter, pieces, scratch, x, rows, width, tall, gamma, beta, eps, y, means, variances):
    """y = (x - mean) / sqrt(variance + eps) gamma + beta for each row. gamma, beta: 0 if there is none. A piece is `tall` rows."""
    zero, share = splat_wide(np.float32(0)), np.float32(1) / np.float32(width)
    while True:
        piece = take(counter)
        if piece >= pieces:
            return
        for row in range(piece * tall, min((piece + 1) * tall, rows)):
            at, to = x + row * width * 4, y + row * width * 4
            sums, squares = zero, zero
            for j in range(0, width, WIDE):
                sums = sums + load_wide(at + j * 4, width - j)
            mean = total(sums) * share
            center = splat_wide(mean)
            for j in range(0, width, WIDE):
                d = where(first_wide(width - j), load_wide(at + j * 4, width - j) - center, zero)
                squares = squares + d * d
            variance = total(squares) * share
            factor = splat_wide(np.float32(1) / np.float32(math.sqrt(variance + eps)))
            for j in range(0, width, WIDE):
                value = (load_wide(at + j * 4, width - j) - center) * factor
                if gamma:
                    value = value * load_wide(gamma + j * 4, width - j)
                if beta:
                    value = value + load_wide(beta + j * 4, width - j)
                store(to + j * 4, width - j, value)
            put(means + row * 4, mean)
            put(variances + row * 4, variance)


@compiled
def turn_back(counter, pieces, scratch, gy, x, rows, width, tall, gamma, means, variances, eps, gmeans, gvariances, gx, ggammas, gbetas):
    """See reference_layers.layer_norm_gradient. gamma, gmeans, gvariances: 0 if there is none. ggammas, gbetas: sums for each piece."""
    zero, share = splat_wide(np.float32(0)), np.float32(1) / np.float32(width)
    while True:
        piece = take(counter)
        if piece >= pieces:
            return
        ggamma, gbeta = ggammas + piece * width * 4, gbetas + piece * width * 4
        clear(ggamma, width * 4)
        clear(gbeta, width * 4)
        for row in range(piece * tall, min((piece + 1) * tall, rows)):
            at = row * width * 4
            r = np.float32(1) / np.float32(math.sqrt(number(variances + row * 4) + eps))
            center, factor = splat_wide(number(means + row * 4)), splat_wide(r)
            sums, along = zero, zero
            for j in range(0, width, WIDE):
                n = width - j
                g, u = load_wide(gy + at + j * 4, n), (load_wide(x + at + j * 4, n) - center) * factor
                store(gbeta + j * 4, n, load_wide(gbeta + j * 4, n) + g)
                store(ggamma + j * 4, n, load_wide(ggamma + j * 4, n) + g * u)
                if gamma:
                    g = g * load_wide(gamma + j * 4, n)
                sums, along = sums + g, along + where(first_wide(n), g * u, zero)
            slope, shift = total(along) * share * -r, total(sums) * share * -r
            if gmeans:
                shift += number(gmeans + row * 4) * share
            if gvariances:
                slope += number(gvariances + row * 4) / r * np.float32(2) * share
            slopes, shifts = splat_wide(slope), splat_wide(shift)
            for j in range(0, width, WIDE):
                n = width - j
                g, u = load_wide(gy + at + j * 4, n), (load_wide(x + at + j * 4, n) - center) * factor
                if gamma:
                    g = g * load_wide(gamma + j * 4, n)
                store(gx + at + j * 4, n, g * factor + u * slopes + shifts)


# For arrays


def layer_norm(x: np.ndarray, gamma: np.ndarray | None, beta: np.ndarray | None, axes: int, eps: float) -> Any:
    """See reference_layers.layer_norm."""
    if not x.size or not _float32(gamma, beta):
        return NotImplemented
    x, gamma, beta = np.ascontiguousarray(x), _contiguous(gamma), _contiguous(beta)
    mean, var, y = np.empty(x.shape[:-axes], np.float32), np.empty(x.shape[:-axes], np.float32), np.empty_like(x)
    rows, width, tall = _cut(x, axes)
    run(normalize, -(-rows // tall), 4 * x.size, 0, address(x), rows, width, tall, _address(gamma), _address(beta), np.float32(eps),
        address(y), address(mean), address(var))
    return y, mean, var


def layer_norm_gradient(gy: np.ndarray, x: np.ndarray, gamma: np.ndarray | None, mean: np.ndarray, var: np.ndarray, axes: int, eps: float,
                        gmean: np.ndarray | None = None, gvar: np.ndarray | None = None) -> Any:
    """See reference_layers.layer_norm_gradient."""
    if not x.size or not _float32(x, gamma, mean, var, gmean, gvar):
        return NotImplemented
    gy, x, mean, var = (np.ascontiguousarray(a) for a in (gy, x, mean, var))
    gamma, gmean, gvar = _contiguous(gamma), _contiguous(gmean), _contiguous(gvar)
    rows, width, tall = _cut(x, axes)
    pieces = -(-rows // tall)
    gx, sums = np.empty_like(x), np.empty((2, pieces, width), np.float32)
    run(turn_back, pieces, 8 * x.size, 0, address(gy), address(x), rows, width, tall, _address(gamma), address(mean), address(var),
        np.float32(eps), _address(gmean), _address(gvar), address(gx), address(sums[0]), address(sums[1]))
    ggamma, gbeta = sums.sum(axis=1).reshape(2, *x.shape[-axes:])
    return gx, ggamma, gbeta


def _cut(x: np.ndarray, axes: int) -> tuple[int, int, int]:
    """Rows, numbers in each, and rows of a piece."""
    width = math.prod(x.shape[-axes:])
    return x.size // width, width, -(-x.size // width // PARTS)


def _float32(*arrays: np.ndarray | None) -> bool:
    return all(a is None or a.dtype == np.float32 for a in arrays)


def _contiguous(a: np.ndarray | None) -> np.ndarray | None:
    return None if a is None else np.ascontiguousarray(a)


def _address(a: np.ndarray | None) -> int:
    return 0 if a is None else address(a)
