"""Inverting the Kronecker factors: damping, Cholesky, eigenvectors, and what is done when a factor does not let itself be inverted.

Matrices come in stacks (blocks, k, k): a convolution in groups has a block for each. How they are inverted on a GPU stands in positive.py.
On a CPU large ones are cut into four until they are small; the inverse of a small one is made from its Cholesky factor by LAPACK's potri
where SciPy is there, which takes a fifth of the time of `inv`; otherwise by solving with the factor.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from minidl import backend, pool
from minidl.backend import Array
from minidl.optim.kfac import positive
from minidl.optim.kfac.reads import finite, truths

Report = Callable[[str], None]
Item = tuple[str, Array, Array]         # a factor's name, a stack of matrices, and what is added to their diagonals

SMALL = 64              # matrices up to this size are inverted together, those of one size in one call: on a CPU
WHOLE = 128             # matrices up to this size are left to LAPACK as they are
JACOBI = 32             # and on a GPU up to this size the eigenvectors of a stack are found in one call
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
    if not isinstance(m, np.ndarray):
        found, sound = positive.inverses(m)
        return found if truths([sound.all()])[0] else None
    if not np.isfinite(diagonals(m)).all():
        return None
    if m.shape[1] <= SMALL and len(m) > 1:
        return _small(m)
    each = [inverse(one) for one in m]
    if any(one is None for one in each):
        return None
    return each[0][None] if len(each) == 1 else np.stack(each)          # type: ignore[index, arg-type]   # none is None


# (P  Q^T)^-1     (P^-1 + W^T T   -T^T)
# (Q  R  )     =  (-T             S^-1),    W = Q P^-1,  S = R - W Q^T (the Schur complement),  T = S^-1 W
def inverse(m: np.ndarray) -> np.ndarray | None:
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
    result = np.empty_like(m)
    result[:h, :h] = w.T @ t
    result[:h, :h] += p
    result[h:, :h] = -t
    result[:h, h:] = result[h:, :h].T
    result[h:, h:] = s
    return result


def _whole(m: np.ndarray) -> np.ndarray | None:
    """The inverse of one matrix by LAPACK's potrf and potri."""
    routines = lapack(str(m.dtype))
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


def _small(m: np.ndarray) -> np.ndarray | None:
    """The inverses of a stack by NumPy's Cholesky factors: L^-T L^-1."""
    try:
        root = np.linalg.solve(np.linalg.cholesky(m), np.broadcast_to(np.eye(m.shape[1], dtype=m.dtype), m.shape))
    except np.linalg.LinAlgError:
        return None
    m = root.swapaxes(-1, -2) @ root
    return m if bool(np.isfinite(diagonals(m)).all()) else None


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


def inverted(items: Sequence[Item], report: Report) -> list[Array | None]:
    """The inverses of damped factors.

    A factor that is not positive definite gets more damping, ten times more each of three times; then it is tried in float64. If that
    fails too, or it is not finite, None says that the inverse of before is to be kept. All of this is reported.
    """
    results: list[Array | None] = [None] * len(items)
    if items:
        (_on_cpu if all(isinstance(m, np.ndarray) for _, m, _ in items) else _on_device)(items, results)
    return [_rescued(*items[i], report) if result is None else result for i, result in enumerate(results)]


def _alike(items: Sequence[Item], limit: int) -> list[list[int]]:
    """Which matrices are inverted together: those of one size, dtype and device up to a limit, others each for itself; large ones first."""
    together: dict[Any, list[int]] = {}
    for i, (_, m, _) in enumerate(items):
        together.setdefault((m.shape[1], m.dtype, backend.device_of(m), i if m.shape[1] > limit else None), []).append(i)
    return sorted(together.values(), key=lambda members: -items[members[0]][1].shape[1])


def _damped(items: Sequence[Item], members: list[int]) -> Array:
    """Matrices of one size as one stack, with what is added to their diagonals."""
    if len(members) == 1:
        return plus_diagonal(*items[members[0]][1:])
    matrices, extras = zip(*[items[i][1:] for i in members])
    xp = backend.of(matrices[0])
    stack = xp.concatenate(matrices)
    numbers = diagonals(stack)
    numbers += xp.concatenate([xp.broadcast_to(extra.reshape(-1, 1), (len(m), 1)) for m, extra in zip(matrices, extras)])
    return stack


def _parted(items: Sequence[Item], members: list[int]) -> list[tuple[int, slice]]:
    """Where each of them lies in that stack."""
    ends = [sum(len(items[i][1]) for i in members[:k + 1]) for k in range(len(members))]
    return [(i, slice(end - len(items[i][1]), end)) for i, end in zip(members, ends)]


def _on_cpu(items: Sequence[Item], results: list[Array | None]) -> None:
    """On the threads of the pool; no result for all of one call where one of them has none."""
    def work(members: list[int]) -> None:
        found = cholesky_inverse(_damped(items, members))
        for i, place in _parted(items, members) if found is not None else ():
            results[i] = found[place]                                   # type: ignore[index]   # it is not None

    for _, m, _ in items:
        lapack(str(m.dtype))            # loaded by one thread, before several of them use it
    pool.each(work, _alike(items, SMALL))                               # the large ones first, a thread for each


def _on_device(items: Sequence[Item], results: list[Array | None]) -> None:
    """Everything is asked of the device before anything is read: which have an inverse is one look for all."""
    found: dict[int, tuple[Array, Array]] = {}
    for members in _alike(items, positive.TOGETHER):
        inverse, sound = positive.inverses(_damped(items, members))
        found |= {i: (inverse[place], sound[place].all()) for i, place in _parted(items, members)}
    for (i, (inverse, _)), sound in zip(found.items(), truths(flag for _, flag in found.values())):
        results[i] = inverse if sound else None


def _rescued(name: str, m: Array, extra: Array, report: Report) -> Array | None:
    """The inverse of one damped factor, by hook or by crook."""
    xp = backend.of(m)
    if not truths([finite(m)])[0]:
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


def eigen(name: str, m: Array, sound: bool, before: bool, report: Report) -> tuple[Array, Array] | None:
    """Eigenvalues (blocks, k), none below 0, and eigenvectors (blocks, k, k), in columns, of a stack of symmetric matrices.

    sound: whether it is finite. before: whether there are some already, which stay if None comes back; that is reported.
    """
    xp = backend.of(m)
    problem = "is not finite"
    if sound:
        try:
            if xp is np or m.shape[1] <= JACOBI:
                values, vectors = xp.linalg.eigh(m)
            else:                                           # of a stack CuPy would find them by rotations, which is for small matrices
                values, vectors = (xp.stack(each) for each in zip(*[xp.linalg.eigh(one) for one in m]))
            return xp.maximum(values, 0), vectors
        except np.linalg.LinAlgError as error:
            problem = f"has no eigenvectors ({error})"
    report(f"{name} {problem}: " + ("the eigenvectors of before are used" if before else "the plain gradient is used instead"))
    return None
