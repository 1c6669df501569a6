"""Blocks of normalization layers: each unit for itself, its gamma and beta together.

A channel of batch normalization, or a position of layer normalization, has y = gamma u + beta, u normalized. Of the Fisher matrix the
2 x 2 block of (gamma, beta) is kept, E[(dgamma, dbeta) (dgamma, dbeta)^T] over the examples. What couples one unit with another is left
out ("unit-wise": Osawa et al., arXiv:2002.06015), and, where a layer is used twice, one use with the other. The damped inverse of such a
block is a formula.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

from minidl import backend
from minidl.backend import Array
from minidl.graph import Node
from minidl.optim.kfac.blocks import Block, Gradients, Pass, wide


class UnitBlock(Block):
    """F = one matrix a unit, (units, p, p), p = 2, or 1 where gamma or beta is not there or frozen."""

    roles = ("gamma", "beta")
    factors = ("F",)

    def observe(self, x: Array, gy: Array, op: Node, shown: Pass, fresh: bool, step: int) -> None:
        if shown.gradients and self.due("F", step):
            by = dict(zip(self.roles, self.single(wide(x), gy, op)))
            rows = [by[role] for role in self.roles if role in self.paths]
            p = len(rows)
            f = backend.of(gy).empty((rows[0].shape[1], p, p), gy.dtype)
            for i in range(p):
                for j in range(p):
                    f[:, i, j] = (rows[i] * rows[j]).sum(axis=0)
            self.add("F", f)

    @abstractmethod
    def single(self, x: Array, gy: Array, op: Node) -> tuple[Any, Array]:
        """The gradients of single examples by gamma (None if it is not wanted) and by beta, (N, units) each."""

    # ((a, b), (b, d))^-1 = ((d, -b), (-b, a)) / (a d - b^2)
    def directions(self, gradients: Gradients, damping: float, trusted: bool = False) -> Gradients | None:
        f = self.averages["F"].value
        xp = backend.of(f)
        roles = [role for role in self.roles if role in self.paths]
        g = [gradients[role].reshape(-1) for role in roles]
        a = f[:, 0, 0] + damping
        least = xp.finfo(f.dtype).tiny
        if len(roles) == 1:
            u = [g[0] / xp.maximum(a, least)]
        else:
            b, d = f[:, 0, 1], f[:, 1, 1] + damping
            determinant = xp.maximum(a * d - b * b, a * d * xp.finfo(f.dtype).eps + least)
            u = [(d * g[0] - b * g[1]) / determinant, (a * g[1] - b * g[0]) / determinant]
        return {role: each.reshape(gradients[role].shape) for role, each in zip(roles, u)}

    def bend(self, moved: Gradients) -> Array:
        f = self.averages["F"].value
        d = [moved[role].reshape(-1) for role in self.roles if role in self.paths]
        return sum((f[:, i, j] * d[i] * d[j]).sum() for i in range(len(d)) for j in range(len(d)))

    def dense(self) -> Array:
        f = self.averages["F"].value
        xp = backend.of(f)
        units, p, _ = f.shape
        whole = xp.zeros((p, units, p, units), f.dtype)
        each = xp.arange(units)
        for i in range(p):
            for j in range(p):
                whole[i, each, j, each] = f[:, i, j]
        return whole.reshape(p * units, p * units)

    def shapes(self, parameters: Gradients) -> dict[str, tuple[int, ...]]:
        return {"F": (next(iter(parameters.values())).size, len(parameters), len(parameters))}


class BatchNormBlock(UnitBlock):
    """A unit is a channel; an example's gradient is summed over its positions."""

    kind = "batch_norm"

    def single(self, x: Array, gy: Array, op: Node) -> tuple[Any, Array]:
        over = tuple(range(2, gy.ndim))
        beta = gy.sum(axis=over) if over else gy
        if "gamma" not in self.paths:
            return None, beta
        beside = (-1, *[1] * (gy.ndim - 2))
        mean, r = op.saved["mean"].reshape(beside), (1 / backend.of(gy).sqrt(op.saved["var"] + op.function.eps)).reshape(beside)
        by_gamma = gy * ((x - mean) * r)
        return by_gamma.sum(axis=over) if over else by_gamma, beta


class LayerNormBlock(UnitBlock):
    """A unit is a position on the normalized axes; what stands between them and the first axis is summed over."""

    kind = "layer_norm"

    def single(self, x: Array, gy: Array, op: Node) -> tuple[Any, Array]:
        axes = op.function.axes
        mean, var = op.saved["mean"], op.saved["var"]
        beside = (*mean.shape, *[1] * axes)
        u = (x - mean.reshape(beside)) / backend.of(x).sqrt(var.reshape(beside) + op.function.eps)
        count = len(x) if x.ndim > axes else 1
        by_gamma, by_beta = [each.reshape(count, -1, math.prod(x.shape[x.ndim - axes:])).sum(axis=1) for each in (gy * u, gy)]
        return by_gamma, by_beta
