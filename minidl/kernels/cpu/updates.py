"""What optimizers do to a parameter, in one pass over its memory: read and write each array once.

Numbers that are the same for the whole array are worked out before, in double precision. Arrays are gone through as one row of numbers,
so they must all lie alike.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minidl.kernels.cpu.compiled import address, compiled, run
from minidl.kernels.cpu.lanes import WIDE, load_wide, root, splat_wide, store
from minidl.kernels.cpu.vector import take

PIECE = 2**14           # numbers of a piece
FEW = 2**12             # numbers for which NumPy is done before a compiled kernel has begun


# Compiled


@compiled
def sgd(counter, pieces, scratch, w, g, v, size, lr, momentum, nesterov, weight_decay):
    """See reference_updates.sgd_update. v: 0 if there is no velocity."""
    rate, inertia, decay = splat_wide(lr), splat_wide(momentum), splat_wide(weight_decay)
    while True:
        piece = take(counter)
        if piece >= pieces:
            return
        for i in range(piece * PIECE, min((piece + 1) * PIECE, size), WIDE):
            at, n = i * 4, size - i
            weights, d = load_wide(w + at, n), load_wide(g + at, n)
            if weight_decay != np.float32(0):
                d = d + decay * weights
            if v:
                velocity = inertia * load_wide(v + at, n) + d
                store(v + at, n, velocity)
                d = d + inertia * velocity if nesterov else velocity
            store(w + at, n, weights - rate * d)


@compiled
def adam(counter, pieces, scratch, w, g, m, v, size, rate, beta1, beta2, rest1, rest2, scale, eps, keep, weight_decay):
    """See reference_updates.adam_update. rest1, rest2: 1 - beta. keep: the part of w that decoupled weight decay leaves."""
    mean, square, new_mean, new_square = splat_wide(beta1), splat_wide(beta2), splat_wide(rest1), splat_wide(rest2)
    rates, scales, least, kept, decay = splat_wide(rate), splat_wide(scale), splat_wide(eps), splat_wide(keep), splat_wide(weight_decay)
    while True:
        piece = take(counter)
        if piece >= pieces:
            return
        for i in range(piece * PIECE, min((piece + 1) * PIECE, size), WIDE):
            at, n = i * 4, size - i
            weights, d = load_wide(w + at, n) * kept, load_wide(g + at, n)
            if weight_decay != np.float32(0):
                d = d + decay * weights
            its_mean = mean * load_wide(m + at, n) + new_mean * d
            its_square = square * load_wide(v + at, n) + new_square * d * d
            store(m + at, n, its_mean)
            store(v + at, n, its_square)
            store(w + at, n, weights - rates * its_mean / (root(its_square) * scales + least))


# For arrays


def sgd_update(w: np.ndarray, g: np.ndarray, v: np.ndarray | None, lr: float, momentum: float, nesterov: bool, weight_decay: float) -> Any:
    """See reference_updates.sgd_update."""
    if w.size < FEW or not alike(w, g, *([] if v is None else [v])):
        return NotImplemented
    run(sgd, -(-w.size // PIECE), 8 * w.size, 0, address(w), address(g), 0 if v is None else address(v), w.size, np.float32(lr),
        np.float32(momentum), int(nesterov), np.float32(weight_decay))
    return None


def adam_update(w: np.ndarray, g: np.ndarray, m: np.ndarray, v: np.ndarray, t: int, lr: float, beta1: float, beta2: float, eps: float,
                weight_decay: float, decoupled: bool) -> Any:
    """See reference_updates.adam_update."""
    if w.size < FEW or not alike(w, g, m, v):
        return NotImplemented
    keep, decay = (1 - lr * weight_decay, 0.0) if decoupled else (1.0, weight_decay)
    scales = lr / (1 - beta1 ** t), beta1, beta2, 1 - beta1, 1 - beta2, 1 / math.sqrt(1 - beta2 ** t), eps, keep, decay
    run(adam, -(-w.size // PIECE), 16 * w.size, 0, address(w), address(g), address(m), address(v), w.size, *map(np.float32, scales))
    return None


def alike(*arrays: np.ndarray) -> bool:
    """Whether these are float32 arrays of one shape, each contiguous, that may be written to."""
    return all(x.dtype == np.float32 and x.shape == arrays[0].shape and x.flags.c_contiguous and x.flags.aligned and x.flags.writeable
               for x in arrays)
