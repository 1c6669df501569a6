"""The reference kernels for what an optimizer does to a parameter: they write into the weights and into the optimizer's memory.

Each is the rule of a class in optim/, where it stands in mathematics. A rule of several operations would go through memory once for
each: large arrays are taken a piece at a time, so that the other operations find the piece in the cache.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from minidl import backend
from minidl.backend import Array

PIECE = 2**15           # numbers of which all the arrays of an update fit into a core's cache together


def sgd_update(w: Array, g: Array, v: Array | None, lr: float, momentum: float, nesterov: bool, weight_decay: float) -> None:
    """Stochastic gradient descent, in place: w, and v, its velocity, which is None without momentum. g is not written to."""
    for w_, g_, *velocity in in_pieces(w, g, *([] if v is None else [v])):
        if weight_decay:
            g_ = g_ + weight_decay * w_
        if velocity:
            (v_,) = velocity
            v_ *= momentum
            v_ += g_
            g_ = g_ + momentum * v_ if nesterov else v_
        w_ -= lr * g_


def adam_update(w: Array, g: Array, m: Array, v: Array, t: int, lr: float, beta1: float, beta2: float, eps: float, weight_decay: float,
                decoupled: bool) -> None:
    """Adam, in place: w, and m and v, the running means of gradients and of their squares. g is not written to.

    t: the number of this update, from 1. decoupled: AdamW's weight decay, which is no part of the gradient.
    """
    for w_, g_, m_, v_ in in_pieces(w, g, m, v):
        if decoupled:
            w_ *= 1 - lr * weight_decay
        elif weight_decay:
            g_ = g_ + weight_decay * w_
        m_ *= beta1
        m_ += (1 - beta1) * g_
        v_ *= beta2
        v_ += (1 - beta2) * g_ * g_
        root = backend.of(v_).sqrt(v_) * (1 / math.sqrt(1 - beta2 ** t)) + eps
        w_ -= (lr / (1 - beta1 ** t)) * m_ / root


def in_pieces(w: Array, *others: Array) -> Iterator[tuple[Array, ...]]:
    """Arrays of one shape a piece at a time: views, flat and in order. All at once if they are small, on a GPU, or not stored alike."""
    arrays = (w, *others)
    if w.size <= PIECE or backend.device_of(w) != "cpu" or not all(x.flags.c_contiguous and x.shape == w.shape for x in arrays):
        yield arrays
        return
    flat = [x.reshape(-1) for x in arrays]
    for start in range(0, w.size, PIECE):
        yield tuple(x[start:start + PIECE] for x in flat)


# All gradients at a time


def clip_many(gradients: Sequence[Array], most: float) -> Array:
    """Scale all gradients so that their norm together is at most so much; they stay as they are where it is not finite.

    Gives (2 + n,) float64: the norm that they had, what they were multiplied by, and the sum of squares of each of the n.
    """
    squares = [float((g.astype("float64", order="C") ** 2).sum()) for g in gradients]      # the same bits, however g is stored
    norm = math.sqrt(sum(squares))
    factor = min(most / (norm + 1e-6), 1.0) if math.isfinite(norm) else 1.0
    if factor < 1:
        for g in gradients:
            g *= factor
    return np.array([norm, factor, *squares])


def unscale_many(gradients: Sequence[Array], factor: float) -> Array:
    """Multiply all gradients; gives whether all numbers in them are finite then, one boolean on their device."""
    xp = backend.of(gradients[0])
    for g in gradients:
        g *= factor
    return xp.stack([xp.isfinite(g).all() for g in gradients]).all()


def running_statistics(mean: Array, var: Array, x_mean: Array, x_var: Array, rate: float, n: int) -> tuple[Array, Array]:
    """The running mean and variance (C,), moved by a fraction towards those of a batch of n numbers a channel, as new arrays.

    The batch's variance is a mean of squares; the running one is unbiased.
    """
    return ((mean * (1 - rate) + x_mean * rate).astype(mean.dtype, copy=False),
            (var * (1 - rate) + x_var * (rate * n / (n - 1))).astype(var.dtype, copy=False))
