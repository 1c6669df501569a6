"""Products of matrices, and the affine layer, cut over the threads of the pool.

The product itself is the linear algebra library's. Inside `pool.threads` the library is held to one thread, and each thread of the pool
is given a share of the result: columns or rows, whichever there are more of.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from minidl import pool
from minidl.backend import Array
from minidl.kernels.reference_layers import activation as activate

SHARED = 2**22          # multiply-adds of a product that is worth sharing: some 40 microseconds of one core


def matmul(a: Array, b: Array, dtype: str | None = None) -> Array:
    """The product of matrices, for every matrix of a batch.

    a: (..., I, K). b: (..., K, J). dtype: of the result: "float32" where factors of 16 bits shall not give 16 bits.
    """
    if dtype is not None:
        return matmul(a, b).astype(dtype, copy=False)
    count = pool.usable()
    if count == 1 or a.ndim != 2 or b.ndim != 2 or type(a) is not np.ndarray or type(b) is not np.ndarray or a.size * b.shape[1] < SHARED:
        return a @ b
    y = np.empty((a.shape[0], b.shape[1]), np.result_type(a, b))
    if b.shape[1] >= a.shape[0]:
        pool.each(lambda part: np.matmul(a, b[:, part], out=y[:, part]), shares(b.shape[1], count))
    else:
        pool.each(lambda part: np.matmul(a[part], b, out=y[part]), shares(a.shape[0], count))
    return y


def affine(x: Array, w: Array, b: Array | None = None, activation: str | None = None) -> Array:
    """The affine layer: f(x w + b).

    x: (..., inputs). w: (inputs, outputs). b: (outputs,) or None. activation: "relu", "tanh", "sigmoid" or None.
    """
    y = matmul(x, w)
    if b is not None:
        y += b
    return y if activation is None else activate(y, activation)


def affine_weights(x: Array, gy: Array) -> Array:
    """The gradient of the affine layer by its weights: every input times every output's gradient, summed over the examples.

    x: (N, inputs). gy: (N, outputs). Gives (inputs, outputs); in float32 where x and gy have 16 bits.
    """
    return matmul(x.T, gy)


def shares(length: int, count: int) -> list[slice]:
    """A length cut into so many parts, at multiples of 16."""
    edges = [length * i // count // 16 * 16 for i in range(count)] + [length]
    return [slice(start, end) for start, end in pairwise(edges) if end > start]
