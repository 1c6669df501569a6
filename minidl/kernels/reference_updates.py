"""The reference kernels for what an optimizer does to a parameter: they write into the weights and into the optimizer's memory.

Each is the rule of a class in optim/, where it stands in mathematics. A rule of several operations would go through memory once for
each: large arrays are taken a piece at a time, so that the other operations find the piece in the cache.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

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
