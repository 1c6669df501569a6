"""Second moments of the rows of a matrix: most of what the factors of affine layers, and G of convolutions, cost.

Those of patches are a kernel, conv2d_patch_moments.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minidl import backend, kernels, pool
from minidl.backend import Array

NARROW = 64             # columns that a product should have
SHARED = 2**22          # multiplications of which it is worth to give half to another thread


def moments(rows: Array, bias: bool = False) -> Array:
    """Products of the columns of rows, summed over the rows; with `bias` a 1 is thought at the end of each row.

    >>> moments(np.array([[1.0, 2.0], [3.0, 4.0]]), bias=True)
    array([[10., 14.,  4.],
           [14., 20.,  6.],
           [ 4.,  6.,  2.]])
    """
    n, k = rows.shape
    if pool.usable() > 1 and n * k * k > SHARED and backend.of(rows) is np:
        halves: list[Any] = [None, None]
        pool.each(lambda part: halves.__setitem__(part, second_moments(rows[part * n // 2:(part + 1) * n // 2])), (0, 1))
        products = halves[0]
        products += halves[1]
    else:
        products = second_moments(rows)
    if not bias:
        return products
    m = backend.of(rows).empty((k + 1, k + 1), products.dtype)
    m[:k, :k] = products
    m[k, :k] = m[:k, k] = rows.sum(axis=0, dtype=products.dtype)
    m[k, k] = n
    return m


def second_moments(rows: Array) -> Array:
    """rows^T rows; of 16-bit rows in float32. NumPy sees that this is symmetric, and computes half of it.

    Products of narrow matrices are slow on a CPU: some rows are then thought to be one, and of its moments the blocks on the diagonal are
    added. On a GPU it is the kernel's product, in whatever precision is allowed there.
    """
    n, k = rows.shape
    if not isinstance(rows, np.ndarray):
        return product(rows.T, rows)
    several = NARROW // k if rows.flags.c_contiguous else 1
    if several < 2 or n < several * NARROW:
        return rows.T @ rows
    whole = n // several * several
    joined = rows[:whole].reshape(-1, several * k)
    blocks = (joined.T @ joined).reshape(several, k, several, k)
    total = np.einsum("ijik->jk", blocks)
    return total if whole == n else total + rows[whole:].T @ rows[whole:]


def product(a: Array, b: Array) -> Array:
    """a b on a device; of 16-bit numbers added up, and given, in float32."""
    return kernels.matmul(a, b, dtype="float32") if a.dtype.itemsize < 4 else kernels.matmul(a, b)
