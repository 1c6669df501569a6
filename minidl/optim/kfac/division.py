"""Dividing the gradient of a layer by the damped Kronecker product L (x) R of its factors: three ways.

    cholesky    (L + pi c I) (x) (R + c / pi I), c^2 the damping: two inverses, and two products for each step. The default
    eigen       L (x) R + damping I exactly, in the eigenvectors of L and R: four products for each step
    ekfac       as eigen, but with the second moments of the gradient in place of the products of eigenvalues (George et al.,
                arXiv:1806.03884): the best diagonal in that basis

A gradient is a stack of matrices M (blocks, l, r), L and R are stacks (blocks, l, l) and (blocks, r, r); a factor that is diagonal is
(blocks, l). Each way keeps what it needs between steps in `arrays`, by name, and nothing else: a checkpoint takes that.
"""

from __future__ import annotations

from typing import Any

from minidl import backend, kernels
from minidl.backend import Array
from minidl.optim.kfac.inverses import Report, eigen, split

LEAST = 1e-6            # of the mean curvature: what is divided by is no less


class Cholesky:
    """Inverses of the two damped factors."""

    def __init__(self) -> None:
        self.arrays: dict[str, Array] = {}      # "left" and "right"

    def to_invert(self, left: Array, right: Array, damping: float) -> dict[str, tuple[Array, Array]]:
        """The factors that must be inverted, each with what is added to its diagonal; those that are diagonal are done at once."""
        extra = split(damping, left, right)
        wanted = {}
        for name, factor, more in zip(("left", "right"), (left, right), extra):
            if factor.ndim == 2:
                self.arrays[name] = 1 / at_least(factor + more[:, :, 0], factor)
            else:
                wanted[name] = (factor, more)
        return wanted

    def take(self, inverses: dict[str, Array | None]) -> None:
        """Take new inverses. None stands for one that could not be made: that of before stays."""
        self.arrays |= {name: inverse for name, inverse in inverses.items() if inverse is not None}

    def divide(self, m: Array, damping: float) -> Array | None:
        """M divided by the damped product; None if there is nothing yet to divide by."""
        if len(self.arrays) < 2:
            return None
        return product(self.arrays["left"], m, self.arrays["right"])


class Eigen:
    """The eigenvectors of the two factors, and what M is divided by in their basis."""

    def __init__(self) -> None:
        self.arrays: dict[str, Array] = {}      # "left" and "right": eigenvectors, for a diagonal factor none; "curvature": (blocks, l, r)

    def find(self, left: Array, right: Array, sound: dict[str, bool], damping: float, names: dict[str, str],
             report: Report) -> Array | None:
        """Find the eigenvectors. Where that fails, those of before stay. sound: which sides are finite.

        Gives a flag whether directions without curvature are damped by LEAST of the mean; None where that is known not to be.
        """
        found: dict[str, Array] = {}
        values = []
        for side, factor in zip(("left", "right"), (left, right)):
            if factor.ndim == 2:
                values.append(factor)
                continue
            pair = eigen(names[side], factor, sound[side], "curvature" in self.arrays, report)
            if pair is None:
                return None
            values.append(pair[0])
            found[side] = pair[1]
        curvature = values[0][:, :, None] * values[1][:, None, :]
        self.turn(found, curvature)
        return curvature.min() + damping < LEAST * curvature.mean()

    def turn(self, vectors: dict[str, Array], curvature: Array) -> None:
        """Take a new basis and the products of eigenvalues in it."""
        self.arrays = {**vectors, "curvature": curvature}

    def divide(self, m: Array, damping: float) -> Array | None:
        """M divided by the damped product; None if there is nothing yet to divide by."""
        if "curvature" not in self.arrays:
            return None
        v = self.turned(m)
        v /= at_least(self.arrays["curvature"] + damping, self.arrays["curvature"])
        left, right = self.arrays.get("left"), self.arrays.get("right")
        return product(left, v, None if right is None else right.swapaxes(-1, -2))

    def turned(self, m: Array) -> Array:
        """M in the basis: Q_l^T M Q_r."""
        left, right = self.arrays.get("left"), self.arrays.get("right")
        v = product(None if left is None else left.swapaxes(-1, -2), m, right)
        return v.copy() if v is m else v


class Ekfac(Eigen):
    """The same with the scales E[(Q_l^T M_n Q_r)^2], M_n the gradient of one example."""

    def turn(self, vectors: dict[str, Array], curvature: Array) -> None:
        """Take a new basis. The scales of before are kept as they look in it: the diagonal of R diag(s) R^T, R the new vectors by the
        old, is (R * R) s. At first they are the products of eigenvalues."""
        before = self.arrays
        if "curvature" in before:
            left, right = [vectors[side].swapaxes(-1, -2) @ before[side] for side in ("left", "right")]
            curvature = (left * left) @ before["curvature"] @ (right * right).swapaxes(-1, -2)
        self.arrays = {**before, **vectors, "curvature": curvature}

    def rescale(self, squares: Array, share: float) -> None:
        """Take in the mean squares that a minibatch shows, with a share of the whole."""
        self.arrays["curvature"] = self.arrays["curvature"] + share * (squares - self.arrays["curvature"])


INVERSIONS: dict[str, Any] = {"cholesky": Cholesky, "eigen": Eigen, "ekfac": Ekfac}


def at_least(curvature: Array, like: Array) -> Array:
    """What is divided by: no less than LEAST of the mean, or nearly nothing where that is 0 too."""
    xp = backend.of(like)
    return xp.maximum(curvature, LEAST * like.mean() + xp.finfo(like.dtype).tiny)


def product(left: Array | None, m: Array, right: Array | None) -> Array:
    """left M right for stacks; None is the identity, and (blocks, k) a diagonal."""
    for side, factor in ((0, left), (1, right)):
        if factor is None:
            continue
        if factor.ndim == 2:
            m = m * (factor[:, None, :] if side else factor[:, :, None])
        elif len(factor) == 1:                              # the kernel has threads
            m = kernels.matmul(*((m[0], factor[0]) if side else (factor[0], m[0])))[None]
        else:
            m = m @ factor if side else factor @ m
    return m
