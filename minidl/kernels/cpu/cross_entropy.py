"""Softmax cross-entropy and its gradient: each row is read, and stays in the cache until it is done.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minidl.kernels.cpu.compiled import address, compiled, run
from minidl.kernels.cpu.exponential import exponential
from minidl.kernels.cpu.lanes import first, greatest, load, splat, store, total, where
from minidl.kernels.cpu.vector import LANES, entry, number, put, take

PIECE = 2**12           # numbers in the rows of a piece, about


# Compiled


@compiled
def rows_of(counter, pieces, scratch, x, rows, classes, tall, labels, smoothing, each, by_each, out):
    """For each row its loss, where the address `each` is 0; or else the gradient by the row, times the number at `each`.

    by_each: bytes from one such number to the next. A piece is `tall` rows.
    """
    zero, lowest = splat(np.float32(0)), splat(np.float32(-np.inf))
    spread = smoothing / np.float32(classes)
    sharp = np.float32(1) - smoothing
    while True:
        piece = take(counter)
        if piece >= pieces:
            return
        for row in range(piece * tall, min((piece + 1) * tall, rows)):
            at = x + row * classes * 4
            top = lowest
            for c in range(0, classes, LANES):
                value = where(first(classes - c), load(at + c * 4, classes - c), lowest)
                top = where(value > top, value, top)
            largest = greatest(top)
            top = splat(largest)
            powers, sums, to = zero, zero, out + row * classes * 4
            for c in range(0, classes, LANES):
                z = load(at + c * 4, classes - c) - top
                e = where(first(classes - c), exponential(z), zero)
                powers, sums = powers + e, sums + where(first(classes - c), z, zero)
                if each:
                    store(to + c * 4, classes - c, e)
            partition = total(powers)
            label = entry(labels + row * 8)
            if each:
                g = number(each + row * by_each)
                share, less, times = np.float32(1) / partition, splat(spread), splat(g)
                its_share = number(to + label * 4) * share
                for c in range(0, classes, LANES):
                    store(to + c * 4, classes - c, (load(to + c * 4, classes - c) * splat(share) - less) * times)
                put(to + label * 4, (its_share - spread - sharp) * g)
            else:
                loss = np.float32(math.log(partition))
                if smoothing != np.float32(1):
                    loss -= (number(at + label * 4) - largest) * sharp
                if smoothing != np.float32(0):
                    loss -= total(sums) * spread
                put(out + row * 4, loss)


# For arrays


def softmax_cross_entropy(x: np.ndarray, labels: np.ndarray, smoothing: float) -> Any:
    """See reference_layers.softmax_cross_entropy."""
    return _by_row(x, labels, smoothing, None, np.empty(len(x), np.float32))


def softmax_cross_entropy_gradient(x: np.ndarray, labels: np.ndarray, smoothing: float, each: np.ndarray) -> Any:
    """See reference_layers.softmax_cross_entropy_gradient."""
    if each.dtype != np.float32 or not each.flags.aligned:
        return NotImplemented
    return _by_row(x, labels, smoothing, each, np.empty(x.shape, np.float32))


def _by_row(x: np.ndarray, labels: np.ndarray, smoothing: float, each: np.ndarray | None, out: np.ndarray) -> Any:
    x, labels = np.ascontiguousarray(x), np.ascontiguousarray(labels, np.int64)
    if x.size:
        tall = max(1, PIECE // x.shape[1])
        where_each, by_each = (0, 0) if each is None else (address(each), each.strides[0])
        run(rows_of, -(-len(x) // tall), 16 * x.size, 0, address(x), *x.shape, tall, address(labels), np.float32(smoothing), where_each,
            by_each, address(out))
    return out
