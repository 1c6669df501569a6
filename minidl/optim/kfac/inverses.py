"""Inverting the Kronecker factors: damping, Cholesky, eigenvectors, and what is done when a factor does not let itself be inverted.

Matrices come in stacks (blocks, k, k): a convolution in groups has a block for each. Large ones are cut into four until they are small;
the inverse of a small one is made from its Cholesky factor by LAPACK's potri where SciPy is there, which takes a fifth of the time of
`inv`; otherwise, and on a GPU, by solving with the factor.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from minidl import backend, pool
from minidl.backend import Array

Report = Callable[[str], None]

SMALL = 64              # matrices up to this size are inverted together, those of one size in one call
WHOLE = 128             # matrices up to this size are left to LAPACK as they are
JITTERS = (1e-6, 1e-5, 1e-4)        # of the mean of the diagonal, added to it where a factor is not positive definite


def split(damping: float, a: Array, g: Array) -> tuple[Array, Array]:
    """Damping shared out over two factors: pi sqrt(damping) for A, sqrt(damping) / pi for G, each (blocks, 1, 1).

    a, g: (blocks, k, k), or (blocks, k) for a diagonal. pi^2 = (tr A / dim A) / (tr G / dim G) makes (A + ..) (x) (G + ..) as near to
    A (x) G + damping as such a product can be, as the trace norm measures it. Martens and Grosse, arXiv:1503.05671, section 6.3.
    """
    xp = backend.of(a)
    means = [x.mean(axis=1) if x.ndim == 2 else xp.trace(x, axis1=1, axis2=2) / x.shape[1] for x in (a, g)]
    sound = (means[0] > 0) & (means[1] > 0)                         # a layer that nothing reaches has a factor of zeros
    pi = xp.sqrt(xp.where(sound, means[0], 1) / xp.where(sound, means[1], 1)).reshape(-1, 1, 1)
    return pi * damping ** 0.5, damping ** 0.5 / pi


def plus_diagonal(m: Array, extra: Array) -> Array:
    """A copy of a stack of matrices with a number added to each diagonal. extra: (blocks, 1, 1), or (1, 1, 1) for all."""
    m = m.copy()
    numbers = diagonals(m)
    numbers += extra.reshape(-1, 1)
    return m


def diagonals(m: Array) -> Array:
    """The diagonals of a stack of matrices as a view (blocks, k); of diagonal matrices, kept as such, they themselves.

    A second moment has nothing larger than what is there: it is finite if they are, and so is the inverse of one.
    """
    return m if m.ndim == 2 else m.reshape(len(m), -1)[:, ::m.shape[1] + 1]


@functools.lru_cache(maxsize=64)
def above(k: int) -> np.ndarray:
    """Which numbers of a matrix stand on or above its diagonal."""
    return np.triu(np.ones((k, k), bool))


def cholesky_inverse(m: Array) -> Array | None:
    """The inverses of a stack of positive definite matrices; None if one of them is none."""
    xp = backend.of(m)
    if not bool(xp.isfinite(diagonals(m)).all()):
        return None
    if m.shape[1] <= SMALL and len(m) > 1:
        return _small(m)
    found = [inverse(each) for each in m]
    if any(each is None for each in found):
        return None
    return found[0][None] if len(found) == 1 else xp.stack(found)       # type: ignore[index]   # none is None


# (P  Q^T)^-1     (P^-1 + W^T T   -T^T)
# (Q  R  )     =  (-T             S^-1),    W = Q P^-1,  S = R - W Q^T (the Schur complement),  T = S^-1 W
def inverse(m: Array) -> Array | None:
    """The inverse of a positive definite matrix; None if it is none. Down to WHOLE rows it is cut into four.

    Most of the work is then done by products of matrices, which run at twice the speed of LAPACK.
    """
    k = len(m)
    if k <= WHOLE:
        return _whole(m)
    h = k // 32 * 16
    p = inverse(m[:h, :h])
    if p is None:
        return None
    q = m[h:, :h]
    w = q @ p
    s = inverse(m[h:, h:] - w @ q.T)
    if s is None:
        return None
    t = s @ w
    result = backend.of(m).empty_like(m)
    result[:h, :h] = w.T @ t
    result[:h, :h] += p
    result[h:, :h] = -t
    result[:h, h:] = result[h:, :h].T
    result[h:, h:] = s
    return result


def _whole(m: Array) -> Array | None:
    """The inverse of one matrix by LAPACK's potrf and potri."""
    routines = lapack(str(m.dtype)) if backend.of(m) is np else None
    if routines is None:
        found = _small(m[None])
        return None if found is None else found[0]
    m = np.array(m)
    size, info, at = ctypes.c_int(len(m)), ctypes.c_int(0), m.__array_interface__["data"][0]
    for routine in routines:                                        # what Fortran calls lower is what stands above the diagonal here
        routine(b"L", ctypes.byref(size), at, ctypes.byref(size), ctypes.byref(info))
        if info.value != 0:
            return None
    m = np.where(above(len(m)), m, m.T)
    return m if bool(np.isfinite(diagonals(m[None])).all()) else None


def _small(m: Array) -> Array | None:
    """The inverses of a stack by NumPy's or CuPy's Cholesky factors: L^-T L^-1."""
    xp = backend.of(m)
    try:
        lower = xp.linalg.cholesky(m)
        if not bool((diagonals(lower) > 0).all()):                  # CuPy raises nothing
            return None
        root = xp.linalg.solve(lower, xp.broadcast_to(xp.eye(m.shape[1], dtype=m.dtype), m.shape))
    except np.linalg.LinAlgError:
        return None
    m = root.swapaxes(-1, -2) @ root
    return m if bool(xp.isfinite(diagonals(m)).all()) else None


@functools.cache
def lapack(dtype: str) -> tuple[Any, Any] | None:
    """SciPy's potrf and potri for a dtype; None without the extra `fast`.

    Called as C functions, which leaves Python's lock to others: the functions of scipy.linalg.lapack hold it.
    """
    letter = {"float32": "s", "float64": "d"}.get(dtype)
    try:
        from scipy.linalg import cython_lapack
    except ImportError:
        return None
    pool.loaded()
    if letter is None:
        return None
    name, pointer = ctypes.pythonapi.PyCapsule_GetName, ctypes.pythonapi.PyCapsule_GetPointer
    name.restype, name.argtypes = ctypes.c_char_p, [ctypes.py_object]
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    number = ctypes.POINTER(ctypes.c_int)
    kind = ctypes.CFUNCTYPE(None, ctypes.c_char_p, number, ctypes.c_void_p, number, number)
    capsules = [cython_lapack.__pyx_capi__[letter + routine] for routine in ("potrf", "potri")]
    potrf, potri = [kind(pointer(capsule, name(capsule))) for capsule in capsules]
    return potrf, potri


def inverted(items: Sequence[tuple[str, Array, Array]], report: Report) -> list[Array | None]:
    """The inverses of damped factors. items: for each its name, a stack of matrices, and what is added to their diagonals.

    A factor that is not positive definite gets more damping, ten times more each of three times; then it is tried in float64. If that
    fails too, or it is not finite, None says that the inverse of before is to be kept. All of this is reported.
    """
    together: dict[Any, list[int]] = {}
    for i, (_, m, _) in enumerate(items):
        together.setdefault((m.shape[1], m.dtype, backend.device_of(m), i if m.shape[1] > SMALL else None), []).append(i)
    results: list[Array | None] = [None] * len(items)

    def work(members: list[int]) -> None:
        damped = [plus_diagonal(*items[i][1:]) for i in members]
        found = cholesky_inverse(damped[0] if len(damped) == 1 else backend.of(damped[0]).concatenate(damped))
        at = 0
        for i in members:
            results[i] = None if found is None else found[at:at + len(items[i][1])]
            at += len(items[i][1])

    groups = sorted(together.values(), key=lambda members: -items[members[0]][1].shape[1])
    if all(backend.of(m) is np for _, m, _ in items):
        pool.each(work, groups)                                     # the large ones first, a thread for each
    else:
        for members in groups:
            work(members)
    return [_rescued(*items[i], report) if result is None else result for i, result in enumerate(results)]


def _rescued(name: str, m: Array, extra: Array, report: Report) -> Array | None:
    """The inverse of one damped factor, by hook or by crook."""
    xp = backend.of(m)
    if not bool(xp.isfinite(m).all()):
        report(f"{name} is not finite: the inverse of before is used, or the plain gradient if there is none")
        return None
    found = cholesky_inverse(plus_diagonal(m, extra))               # it may have been a neighbour's fault
    if found is not None:
        return found
    mean = xp.trace(m, axis1=1, axis2=2).reshape(-1, 1, 1) / m.shape[1]
    for jitter in JITTERS:
        found = cholesky_inverse(plus_diagonal(m, extra + mean * jitter))
        if found is not None:
            report(f"{name} is not positive definite: {jitter:g} of its mean was added to its diagonal")
            return found
    found = None if m.dtype == "float64" else cholesky_inverse(plus_diagonal(m.astype("float64"), extra.astype("float64")))
    if found is not None:
        report(f"{name} is not positive definite in {m.dtype}: it was inverted in float64")
        return found.astype(m.dtype)
    report(f"{name} is not positive definite: the inverse of before is used, or the plain gradient if there is none")
    return None


def eigen(name: str, m: Array, before: bool, report: Report) -> tuple[Array, Array] | None:
    """Eigenvalues (blocks, k), none below 0, and eigenvectors (blocks, k, k), in columns, of a stack of symmetric matrices.

    before: whether there are some already, which stay if None comes back; that is reported.
    """
    xp = backend.of(m)
    problem = "is not finite"
    if bool(xp.isfinite(m).all()):
        try:
            values, vectors = xp.linalg.eigh(m)
            return xp.maximum(values, 0), vectors
        except np.linalg.LinAlgError as error:
            problem = f"has no eigenvectors ({error})"
    report(f"{name} {problem}: " + ("the eigenvectors of before are used" if before else "the plain gradient is used instead"))
    return None
