"""The layers that K-FAC knows as Kronecker products, and what differs between them: how inputs and gradients become a and g."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from minidl import backend, kernels
from minidl.backend import Array
from minidl.graph import Node
from minidl.kernels import Window
from minidl.nn.part import cut
from minidl.optim.kfac.averages import norm
from minidl.optim.kfac.blocks import Gradients, Pass, Settings, wide
from minidl.optim.kfac.kronecker import KroneckerBlock, pieces
from minidl.optim.kfac.moments import moments


class AffineBlock(KroneckerBlock):
    """w (inputs, outputs) and b (outputs,): M = [w; b], A on the left. Axes of x between the first and the last are positions."""

    kind = "affine"
    left = "A"
    small = False                       # whether a minibatch has so few rows that it is cheaper to divide these

    def __init__(self, paths: dict[str, str], options: dict[str, Any], settings: Settings):
        super().__init__(paths, options, settings)
        self.rows_seen: list[tuple[Array, Array]] = []              # x and gy of the ordinary passes of this step

    def forget(self) -> None:
        self.rows_seen = []

    def observe(self, x: Array, gy: Array, op: Node, shown: Pass, fresh: bool, step: int) -> None:
        super().observe(x, gy, op, shown, fresh, step)
        self.small = self.inversion == "cholesky" and not cut() and cheaper(self.positions(gy), x.shape[-1], gy.shape[-1])

    def wants(self) -> bool:
        return self.small

    def remember(self, x: Array, gy: Array) -> None:
        self.rows_seen.append((wide(x).reshape(-1, x.shape[-1]), wide(gy).reshape(-1, gy.shape[-1])))

    def trusts(self, gradients: Gradients) -> Array | None:
        if not self.rows_seen or len(self.division.arrays) < 2:
            return None
        if not cheaper(sum(len(x) for x, _ in self.rows_seen), *gradients["w"].shape):
            return None
        return self.unchanged(*self.remembered(), gradients)

    def remembered(self) -> tuple[Array, Array]:
        """All of x and gy that were remembered."""
        x, gy = (backend.of(each[0]).concatenate(each) if len(each) > 1 else each[0] for each in zip(*self.rows_seen))
        return x, gy

    def directions(self, gradients: Gradients, damping: float, trusted: bool = False) -> Gradients | None:
        if not trusted:
            return super().directions(gradients, damping)
        (x, gy), divisors = self.remembered(), self.division.arrays
        xp = backend.of(x)
        x = xp.concatenate((x, xp.ones((len(x), 1), x.dtype)), axis=1) if "b" in self.paths else x
        left, right = kernels.matmul(x, divisors["left"][0]), kernels.matmul(gy, divisors["right"][0])
        return self.parts(kernels.matmul(left.T, right)[None])

    # The gradient is X^T Gy, X with a 1 at the end of each row. So A^-1 (X^T Gy) G^-1 = (X A^-1)^T (Gy G^-1), which takes fewer
    # multiplications where there are fewer rows than inputs and outputs. It is right only as long as nobody has changed the gradient:
    # clipped it, say. That is looked at along one random direction. Where minibatches are cut the rows of other parts are elsewhere.
    def unchanged(self, x: Array, gy: Array, gradients: Gradients) -> Array:
        """A flag: whether the gradients are what comes from these rows."""
        xp = backend.of(x)
        along = backend.asarray(probe(gy.shape[1]).astype(gy.dtype), backend.device_of(gy))
        weights = gy @ along
        wanted = x.T @ weights
        off = norm(gradients["w"] @ along - wanted)
        if "b" in self.paths:
            off = off + abs(gradients["b"] @ along - weights.sum())
        return off <= 256 * xp.finfo(gy.dtype).eps * (norm(wanted) + abs(weights.sum()))

    def description(self) -> dict[str, Any]:
        return super().description() | {"small": self.small}

    def load(self, arrays: dict[str, Array], description: dict[str, Any]) -> None:
        super().load(arrays, description)
        self.small = bool(description["small"])

    def moments_of_inputs(self, x: Array, function: Any) -> Array:
        if self.sharing == "reduce":
            x = wide(x).reshape(len(x), -1, x.shape[-1]).mean(axis=1)
        return moments(x.reshape(-1, x.shape[-1]), "b" in self.paths)[None]

    def moments_of_gradients(self, gy: Array) -> Array:
        if self.sharing == "reduce":
            gy = gy.reshape(len(gy), -1, gy.shape[-1]).sum(axis=1)
        return moments(gy.reshape(-1, gy.shape[-1]))[None]

    def single(self, x: Array, gy: Array, function: Any) -> tuple[Array, Array]:
        a = x.reshape(len(x), 1, -1, x.shape[-1]).swapaxes(-1, -2)
        return with_one(a, "b" in self.paths), gy.reshape(len(gy), 1, -1, gy.shape[-1]).swapaxes(-1, -2)

    def matrix(self, gradients: Gradients) -> Array:
        w = gradients["w"]
        return w[None] if "b" not in self.paths else backend.of(w).concatenate((w, gradients["b"][None]))[None]

    def parts(self, m: Array) -> Gradients:
        return {"w": m[0]} if "b" not in self.paths else {"w": m[0, :-1], "b": m[0, -1]}


class Conv2dBlock(KroneckerBlock):
    """w (O, C / groups, KH, KW) and b (O,): M = [w b] for each group, with the filters as rows; a is a patch. G is on the left."""

    kind = "conv2d"
    left = "G"

    @classmethod
    def read(cls, op: Node) -> dict[str, Any]:
        leaf = op.argument("w")
        return {"groups": op.function.groups, "shape": list(leaf.shape) if leaf is not None else []}

    @property
    def groups(self) -> int:
        """Of channels and filters that do not see each other."""
        return int(self.options["groups"])

    def moments_of_inputs(self, x: Array, function: Any) -> Array:
        window, bias = function.window, "b" in self.paths
        if self.sharing == "expand":
            return kernels.conv2d_patch_moments(x, window, self.groups, bias)
        x = wide(x)
        patches = backend.of(x).concatenate([self.patches(x[some], window).mean(axis=-1, keepdims=True)
                                             for some in pieces(len(x), x[:1].size * window.kernel[0] * window.kernel[1])])
        rows = with_one(patches, bias)[..., 0].swapaxes(0, 1)                               # (groups, N, K)
        return rows.swapaxes(-1, -2) @ rows

    def moments_of_gradients(self, gy: Array) -> Array:
        if self.sharing == "reduce":
            gy = gy.sum(axis=(2, 3), keepdims=True)
        rows = backend.of(gy).moveaxis(gy, 1, -1).reshape(-1, self.groups, gy.shape[1] // self.groups)
        if self.groups == 1:
            return moments(rows[:, 0])[None]
        rows = rows.swapaxes(0, 1)
        return rows.swapaxes(-1, -2) @ rows

    def positions(self, gy: Array) -> int:
        return gy.size // gy.shape[1]

    def patches(self, x: Array, window: Window) -> Array:
        """(N, groups, K, positions)."""
        columns = kernels.im2col(x, window)
        return columns.reshape(len(x), self.groups, -1, columns.shape[-1])

    def single(self, x: Array, gy: Array, function: Any) -> tuple[Array, Array]:
        g = gy.reshape(len(gy), self.groups, gy.shape[1] // self.groups, -1)
        return with_one(self.patches(x, function.window), "b" in self.paths), g

    def check(self, parameters: Gradients) -> None:
        if parameters["w"].shape != tuple(self.options["shape"]):
            raise ValueError(f"{self.name} has shape {parameters['w'].shape}, and the state is of {tuple(self.options['shape'])}")
        super().check(parameters)

    def matrix(self, gradients: Gradients) -> Array:
        w = gradients["w"]
        m = w.reshape(self.groups, len(w) // self.groups, -1)
        if "b" not in self.paths:
            return m
        return backend.of(w).concatenate((m, gradients["b"].reshape(self.groups, -1, 1)), axis=2)

    def parts(self, m: Array) -> Gradients:
        shape = self.options["shape"]
        if "b" not in self.paths:
            return {"w": m.reshape(shape)}
        return {"w": m[..., :-1].reshape(shape), "b": m[..., -1].reshape(-1)}


class EmbeddingBlock(KroneckerBlock):
    """w (count, size): a is a one-hot row, so that A is diagonal: how often an example uses each id. Always as in expand."""

    kind = "embedding"
    left = "A"

    @classmethod
    def read(cls, op: Node) -> dict[str, Any]:
        return {"count": op.function.shape[0], "dtype": str(wide(op.argument("w").data).dtype)}         # type: ignore[union-attr]

    @property
    def inversion(self) -> str:
        return "eigen" if self.settings.inversion == "ekfac" else self.settings.inversion       # the diagonal of A is its eigenvalues

    def moments_of_inputs(self, x: Array, function: Any) -> Array:
        ids = function.key
        return backend.of(ids).bincount(ids.reshape(-1), minlength=self.options["count"])[None].astype(self.options["dtype"])

    def moments_of_gradients(self, gy: Array) -> Array:
        return moments(gy.reshape(-1, gy.shape[-1]))[None]

    @property
    def sharing(self) -> str:
        return "expand"

    def matrix(self, gradients: Gradients) -> Array:
        return gradients["w"][None]

    def parts(self, m: Array) -> Gradients:
        return {"w": m[0]}

    def shapes(self, parameters: Gradients) -> dict[str, tuple[int, ...]]:
        return super().shapes(parameters) | {"A": (1, self.options["count"])}


def cheaper(rows: int, inputs: int, outputs: int) -> bool:
    """Whether it takes fewer multiplications to divide the rows of a minibatch than their product, the gradient."""
    return rows * (inputs * inputs + outputs * outputs + inputs * outputs) < inputs * outputs * (inputs + outputs)


@functools.lru_cache(maxsize=64)
def probe(length: int) -> np.ndarray:
    """A random direction, always the same one."""
    return np.random.default_rng(0).standard_normal(length)


def with_one(a: Array, bias: bool) -> Array:
    """(N, blocks, k, T) with a row of ones below, if there is a bias."""
    if not bias:
        return a
    xp = backend.of(a)
    return xp.concatenate((a, xp.ones((*a.shape[:2], 1, a.shape[3]), a.dtype)), axis=2)
