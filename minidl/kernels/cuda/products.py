"""Products of matrices on a GPU: cuBLAS does them (see cublas.py), and one launch after it adds a bias and applies an activation.

16-bit factors are multiplied in their type and summed in float32; a float32 weight beside a 16-bit input is rounded to the input's type.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minidl import backend
from minidl.backend import Array
from minidl.kernels.cuda import cublas, source
from minidl.kernels.cuda.elementwise import bias_activation, cast


def matmul(a: Array, b: Array, dtype: Any = None) -> Any:
    """See kernels.products.matmul."""
    return product(a, b, dtype)


def affine(x: Array, w: Array, b: Array | None = None, activation: str | None = None) -> Any:
    """See kernels.products.affine."""
    y = product(x, w)
    if y is not NotImplemented and (b is not None or activation is not None):
        bias_activation(y, b, activation, axis=-1)
    return y


def affine_weights(x: Array, gy: Array) -> Any:
    """See kernels.products.affine_weights."""
    return product(x.T, gy, "float32" if x.dtype.itemsize == 2 else None)


def product(a: Array, b: Array, dtype: Any = None) -> Any:
    """a b of a's dtype, or of another; NotImplemented for what cuBLAS does not multiply: integers, empty arrays, vectors."""
    if a.ndim < 2 or b.ndim < 2 or a.shape[-1] != b.shape[-2] or not a.size or not b.size:
        return NotImplemented
    if not source.taken(a.dtype) or not source.taken(b.dtype):
        return NotImplemented
    half = a.dtype.itemsize == 2
    out = a.dtype if dtype is None else np.dtype(dtype)
    if b.dtype != a.dtype:
        if not half:
            return NotImplemented
        b = cast(b.T, a.dtype).T if b.ndim == 2 and b.T.flags.c_contiguous else cast(b, a.dtype)
    if out != a.dtype and not (half and out == np.float32):
        return NotImplemented
    xp = backend.of(a)
    rows, columns = a.shape[-2], b.shape[-1]
    if b.ndim == 2:                                     # rows of all matrices of a batch are rows of one
        y = xp.empty((*a.shape[:-1], columns), out)
        left = a if a.ndim == 2 else a.reshape(-1, a.shape[-1])
        cublas.multiply(left, b, y.reshape(-1, columns))
        return y
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    y = xp.empty((*batch, rows, columns), out)
    cublas.multiply(flat(a, batch), flat(b, batch), y.reshape(-1, rows, columns))
    return y


def flat(x: Array, batch: tuple[int, ...]) -> Array:
    """Matrices of a batch in a row, (B, rows, columns); a single one, which goes with all, stays single."""
    if x.ndim == 2 or x.size == x.shape[-2] * x.shape[-1]:
        return x.reshape(x.shape[-2:])
    if x.shape[:-2] != batch:
        x = backend.of(x).broadcast_to(x, (*batch, *x.shape[-2:]))
    return x if x.ndim == 3 else x.reshape(-1, *x.shape[-2:])
