"""What is done to each number on its own: bias and activation, their gradients, dropout, another dtype. One pass over memory."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minidl import backend
from minidl.backend import Array
from minidl.kernels import reference_layers as reference
from minidl.kernels.cuda import source

KINDS = {None: 0, "relu": 1, "tanh": 2, "sigmoid": 3}           # activations, as packs.cuh knows them
THREADS = 256


def activation(z: Array, name: str) -> Any:
    """See reference_layers.activation."""
    return bias_activation(z, None, name)


def bias_activation(y: Array, b: Array | None, activation: str | None, axis: int = 1) -> Any:
    """y + b, then through an activation: written into y, which is given back.

    y: contiguous. b: a number for each place along that axis, of any float type, or None. NotImplemented where y is not one for it.
    """
    if not takes(y):
        return NotImplemented
    if b is None and activation is None:
        return y
    channels, inner = (1, 1) if b is None else (y.shape[axis], math.prod(y.shape[axis % y.ndim + 1:]))
    _launch(y, "bias_activation", y, y.size, None if b is None else source.dense(b), *source.divisor(inner), *source.divisor(channels),
            KINDS[activation], B=source.NUMBERS[source.named(y.dtype if b is None else b.dtype)])
    return y


def activation_gradient(gy: Array, y: Array, name: str, out: Array | None = None) -> Any:
    """See reference_layers.activation_gradient."""
    if out is None:
        gy = source.dense(gy)
        out = backend.of(gy).empty(gy.shape, gy.dtype)
    if not takes(out, gy, y):
        return NotImplemented
    _launch(gy, "activation_gradient", source.dense(gy), source.dense(y), gy.size, KINDS[name], out)
    return out


def dropout(x: Array, p: float, seed: int, step: int | Array, layer: int, first: int = 0) -> Any:
    """See reference_layers.dropout. Elements may be numbered beyond 32 bits; of a step on the device the lower ones are read."""
    x, steps = source.dense(x), None if isinstance(step, int) else step
    if not takes(x) or (steps is not None and (steps.dtype.kind not in "iu" or steps.dtype.itemsize < 4)):
        return NotImplemented
    xp = backend.of(x)
    y, mask = xp.empty(x.shape, x.dtype), xp.empty(x.shape, bool)
    keys = reference.keys(seed, step if isinstance(step, int) else 0, layer)
    low, upper, its_step, its_layer = (np.uint32(reference.mix_number(key)) for key in keys)
    _launch(x, "dropout", x, x.size, np.uint64(first), low, upper, its_step, None if steps is None else steps.reshape(1).view("uint32"),
            its_layer, np.uint32(reference.threshold(p)), 1 / (1 - p), y, mask)
    return y, mask


def dropout_gradient(gy: Array, mask: Array, scale: float) -> Any:
    """See reference_layers.dropout_gradient."""
    gy, mask = source.dense(gy), source.dense(mask)
    if not takes(gy) or mask.dtype != bool or mask.shape != gy.shape:
        return NotImplemented
    gx = backend.of(gy).empty(gy.shape, gy.dtype)
    _launch(gy, "dropout_gradient", gy, mask, gy.size, float(scale), gx)
    return gx


def cast(x: Array, dtype: Any) -> Any:
    """x in another float type, rounded to the nearest: a new array."""
    x, y = source.dense(x), backend.of(x).empty(x.shape, dtype)
    if not takes(x) or not source.taken(y.dtype):
        return NotImplemented
    _launch(x, "cast", x, x.size, y, B=source.NUMBERS[source.named(y.dtype)])
    return y


def takes(x: Array, *others: Array) -> bool:
    """Whether the kernels take x: contiguous floats, and some; and others of its shape and dtype, which may be strided."""
    if not x.size or not source.taken(x.dtype) or not x.flags.c_contiguous:
        return False
    return not [other for other in others if other.shape != x.shape or other.dtype != x.dtype]


def _launch(x: Array, name: str, *args: Any, B: str = "float") -> None:
    numbers = THREADS * (8 if x.dtype.itemsize == 8 else 16)    # of a block: MINE a thread
    source.launch(x, "elementwise", name, -(-x.size // numbers), THREADS, *args, far=source.far(x), B=B)
