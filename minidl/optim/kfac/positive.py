"""Inverses of positive definite matrices on a GPU: few calls, and no look at any number.

    m = L L^T           Cholesky, by cuSOLVER: small matrices of one size in one call, larger ones one by one
    m^-1 = L^-T L^-1    L^-1 by a triangular solve, then a product

CuPy does not say whether a matrix was positive definite, and to look would be to wait. So each inverse comes with a flag, which whoever
asks for many reads once. What is written into L where there is no factor is not documented; but the squares of a row of a true factor
add up to the number on the diagonal of m, however near to singular m may be. Matrices of many rows are cut into four as on the CPU
(inverses.py): most of the work is then products, which are what a GPU is best at, and 2/3 k^3 multiplications in place of 5/3 k^3.
"""

from __future__ import annotations

import numpy as np

from minidl import backend
from minidl.backend import Array

TOGETHER = 256          # rows up to which matrices of one size are factored in one call: a call takes longer than the work for one
WHOLE = 2048            # rows up to which a matrix is not cut: below, the calls of the parts cost more than their products save
CLOSE = 1e-3            # how near the squares of a row come to the diagonal, relative to it; rounding leaves about k eps


def inverses(m: Array) -> tuple[Array, Array]:
    """The inverses of a stack (blocks, k, k) on a device, and flags (blocks,): whether each is one. What is flagged False is anything."""
    k = m.shape[1]
    if k > WHOLE:
        return _quartered(m)
    if k <= TOGETHER or len(m) == 1:
        return _whole(m)
    xp = backend.of(m)
    found = [_whole(m[i:i + 1]) for i in range(len(m))]
    return xp.concatenate([inverse for inverse, _ in found]), xp.concatenate([sound for _, sound in found])


def _quartered(m: Array) -> tuple[Array, Array]:
    """By the inverses of two halves: the formula is in inverses.py."""
    xp, h = backend.of(m), m.shape[1] // 32 * 16
    p, sound_p = inverses(m[:, :h, :h])
    q = m[:, h:, :h]
    w = q @ p
    s, sound_s = inverses(m[:, h:, h:] - w @ q.swapaxes(-1, -2))
    t = s @ w
    result = xp.empty_like(m)
    result[:, :h, :h] = w.swapaxes(-1, -2) @ t
    result[:, :h, :h] += p
    result[:, h:, :h] = -t
    result[:, :h, h:] = result[:, h:, :h].swapaxes(-1, -2)
    result[:, h:, h:] = s
    return result, sound_p & sound_s


def _whole(m: Array) -> tuple[Array, Array]:
    """By Cholesky, all matrices of the stack in one call."""
    xp, alone = backend.of(m), m[0] if len(m) == 1 else m           # of a single one, by the routines for large ones
    solve = backend.library_of(m).solve_triangular or xp.linalg.solve
    try:
        lower = xp.linalg.cholesky(alone)
        root = solve(lower, xp.broadcast_to(xp.eye(m.shape[1], dtype=m.dtype), alone.shape).copy())
    except np.linalg.LinAlgError:                           # where CuPy was told to raise; nobody knows which one it was
        return m, xp.zeros(len(m), bool)
    inverse = (root.swapaxes(-1, -2) @ root).reshape(m.shape)
    lower, diagonal = lower.reshape(m.shape), xp.diagonal(m, axis1=1, axis2=2)
    off = abs((lower * lower).sum(axis=-1) - diagonal)      # NaN is not near to anything
    rows = (off <= CLOSE * diagonal) & (xp.diagonal(lower, axis1=1, axis2=2) > 0)
    return inverse, rows.all(axis=1) & xp.isfinite(xp.diagonal(inverse, axis1=1, axis2=2)).all(axis=1)
