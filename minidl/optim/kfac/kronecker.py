"""Blocks that are Kronecker products: what affine layers, convolutions and embeddings have in common.

For an affine layer the gradient of one example is a g^T: a its input with a 1 appended for the bias, g the gradient at its output. Of
w with b as its last row, (inputs + 1, outputs), flattened row by row, the Fisher matrix is E[a a^T (x) g g^T], and K-FAC takes for it

    F  =  A (x) G,      A = E[a a^T],      G = E[g g^T]

To divide by it, the inverses of the two small matrices are enough: u = A^-1 M G^-1, for M the gradient as a matrix.
In the literature weights are stored (outputs, inputs): flattened row by row that is G (x) A, and column by column, as the papers flatten,
again A (x) G. Ours are (inputs, outputs) in affine layers and (outputs, inputs) in filters; `left` says which factor stands on the left
of M, and everything else is the same. Martens and Grosse, arXiv:1503.05671.

Where a layer is applied at T positions of an example (a convolution, an affine layer on sequences), the gradient is sum_t a_t g_t^T, and

    expand      A = E[sum_t a_t a_t^T],  G = E[sum_t g_t g_t^T] / T         each position for itself: KFC, arXiv:1602.01407
    reduce      A = E[a a^T], a = mean_t a_t;   G = E[g g^T], g = sum_t g_t     exact where all a_t are equal: arXiv:2311.00636

Another call of the same layer in a step is further positions. The layers themselves are in layers.py, the division in division.py.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np

from minidl import backend
from minidl.backend import Array
from minidl.errors import DefinitionError
from minidl.graph import Node
from minidl.optim.kfac.blocks import Block, Doubt, Gradients, Pass, Settings, wide
from minidl.optim.kfac.division import INVERSIONS, LEAST, Cholesky, Ekfac, product
from minidl.optim.kfac.reads import finite

PIECE = 2**22           # numbers of single examples that stand in memory together


class KroneckerBlock(Block):
    """F = A (x) G, or G (x) A, as the weights are stored. Matrices are stacks: (blocks, k, k)."""

    roles = ("w", "b")
    factors = ("A", "G")
    left: ClassVar[str]             # "A" where weights are (inputs, outputs), "G" where they are (outputs, inputs)

    def __init__(self, paths: dict[str, str], options: dict[str, Any], settings: Settings):
        super().__init__(paths, options, settings)
        self.division = INVERSIONS[self.inversion]()
        self.refined = 0                                        # EKFAC: how often the scales were taken in

    @property
    def inversion(self) -> str:
        """How it is divided by."""
        return self.settings.inversion

    @property
    def sharing(self) -> str:
        """What is made of positions: "expand" or "reduce"."""
        return self.settings.sharing

    # What differs between layers

    @abstractmethod
    def moments_of_inputs(self, x: Array, function: Any) -> Array:
        """The sum of a a^T over examples and, in expand, positions: float32 at least. On a device x may be of 16 bits."""

    @abstractmethod
    def moments_of_gradients(self, gy: Array) -> Array:
        """The sum of g g^T."""

    def positions(self, gy: Array) -> int:
        """How many positions there are in all examples."""
        return gy.size // gy.shape[-1]

    def single(self, x: Array, gy: Array, function: Any) -> tuple[Array, Array]:
        """a and g of each example: (examples, blocks, k, T) each. EKFAC asks for it."""
        raise DefinitionError(f"{type(self).__name__} has no gradients of single examples", hint="Let its inversion be another one.")

    @abstractmethod
    def matrix(self, gradients: Gradients) -> Array:
        """Gradients as a stack M (blocks, left, right)."""

    @abstractmethod
    def parts(self, m: Array) -> Gradients:
        """The way back."""

    # Statistics

    def clear(self) -> None:
        super().clear()
        self.shown: list[tuple[Array, Array, Any, Pass]] = []      # EKFAC looks at it again, when there is a basis

    def observe(self, x: Array, gy: Array, op: Node, shown: Pass, fresh: bool, step: int) -> None:
        if fresh:
            self.rows += len(gy) if self.sharing == "reduce" else self.positions(gy)
            if self.due("A", step):                                 # a GPU multiplies 16-bit numbers faster, and adds up in float32
                self.add("A", self.moments_of_inputs(wide(x) if isinstance(x, np.ndarray) else x, op.function))
        if shown.gradients and self.due("G", step):
            self.add("G", self.moments_of_gradients(gy))
            if self.inversion == "ekfac":
                self.shown.append((wide(x), gy, op.function, shown))

    def divisor(self, name: str) -> float:
        each_position = "A" if self.sharing == "reduce" else "G"
        return self.rows if name == each_position else self.examples

    # Division

    @property
    def sides(self) -> tuple[str, str]:
        """The factor on the left, and that on the right."""
        return ("A", "G") if self.left == "A" else ("G", "A")

    @property
    def side_names(self) -> dict[str, str]:
        return {side: f"factor {name} of {self.name}" for side, name in zip(("left", "right"), self.sides)}

    def to_invert(self, damping: float) -> dict[str, tuple[Array, Array]]:
        if not isinstance(self.division, Cholesky):
            return {}
        left, right = (self.averages[name].value for name in self.sides)
        return self.division.to_invert(left, right, damping)

    def unsure(self) -> dict[str, Array]:
        if isinstance(self.division, Cholesky):
            return {}                                               # who inverts the factors sees it
        return {side: finite(self.averages[name].value) for side, name in zip(("left", "right"), self.sides)}

    def renew(self, inverses: dict[str, Array | None], sound: dict[str, bool], damping: float) -> Doubt | None:
        super().renew(inverses, sound, damping)
        if isinstance(self.division, Cholesky):
            self.division.take(inverses)
            return None
        left, right = (self.averages[name].value for name in self.sides)
        flag = self.division.find(left, right, sound, damping, self.side_names, self.settings.report)
        names = " and ".join(self.side_names.values())
        return None if flag is None else (flag, f"{names}: directions without curvature are damped by {LEAST:g} of its mean")

    def unrefined(self) -> bool:
        return isinstance(self.division, Ekfac) and "curvature" in self.division.arrays and "G" in self.sums

    def squares(self, first: float) -> Array:
        """EKFAC: the sum over the examples shown of (Q_l^T M Q_r)^2, M the example's gradient."""
        total: Any = None
        for tally in dict.fromkeys(shown.tally for *_, shown in self.shown):                        # part by part
            part = self.squares_of([each for each in self.shown if each[3].tally is tally])
            relative = tally.relative(first)
            part = part if relative == 1 else part * relative
            total = part if total is None else total + part
        return backend.of(self.division.arrays["curvature"]).zeros_like(self.division.arrays["curvature"]) if total is None else total

    def squares_of(self, calls_shown: list[tuple[Array, Array, Any, Pass]]) -> Array:
        """The same for the calls of one part of the minibatch."""
        bases = [self.division.arrays[side] for side in ("left", "right")]
        total: Any = 0
        for which in dict.fromkeys((id(shown), len(gy)) for _, gy, _, shown in calls_shown):        # pass by pass, all calls together
            calls = [(x, gy, function) for x, gy, function, shown in calls_shown if (id(shown), len(gy)) == which]
            room = max(x[:1].size + gy[:1].size for x, gy, _ in calls) + math.prod(self.division.arrays["curvature"].shape)
            for some in pieces(which[1], room):
                turned = []
                for x, gy, function in calls:
                    a, g = self.single(x[some], gy[some], function)
                    turned.append([in_basis(q, each) for q, each in zip(bases, (a, g) if self.left == "A" else (g, a))])
                if len(turned) == 1 and turned[0][0].shape[-1] == 1:            # (l r^T)^2 = l^2 (r^2)^T, for all at once
                    left, right = [backend.of(each).moveaxis(each[..., 0] ** 2, 0, -1) for each in turned[0]]
                    total = total + left @ right.swapaxes(-1, -2)
                else:
                    m = sum(left @ right.swapaxes(-1, -2) for left, right in turned)
                    total = total + (m * m).sum(axis=0)
        return total

    def refine(self, squares: Array, decay: float) -> None:
        self.refined += 1
        share = (1 - decay) / (1 - decay ** self.refined) if decay < 1 else 1 / self.refined
        self.division.rescale(squares * (1 / max(self.examples, 1)), share)

    def directions(self, gradients: Gradients, damping: float) -> Gradients | None:
        u = self.division.divide(self.matrix(gradients), damping)
        return None if u is None else self.parts(u)

    def bend(self, moved: Gradients) -> Array:
        m = self.matrix(moved)
        if isinstance(self.division, Ekfac) and "curvature" in self.division.arrays:
            turned = self.division.turned(m)
            return (turned * turned * self.division.arrays["curvature"]).sum()
        left, right = (self.averages[name].value for name in self.sides)
        return (product(left, m, right) * m).sum()

    def dense(self) -> Array:
        left, right = (full(self.averages[name].value) for name in self.sides)
        xp = backend.of(left)
        if isinstance(self.division, Ekfac):
            arrays = self.division.arrays
            whole = []
            for k, scales in enumerate(arrays["curvature"]):
                q = xp.kron(arrays["left"][k], arrays["right"][k])
                whole.append((q * scales.reshape(-1)) @ q.T)
        else:
            whole = [xp.kron(each, other) for each, other in zip(left, right)]
        size = sum(len(each) for each in whole)
        f = xp.zeros((size, size), left.dtype)
        for k, each in enumerate(whole):
            here = slice(k * len(each), (k + 1) * len(each))
            f[here, here] = each
        # the numbers of M as the parameters have them: w first, then b
        parts = self.parts(xp.arange(size).reshape(len(whole), left.shape[1], right.shape[1]))
        order = xp.concatenate([parts[role].reshape(-1) for role in self.roles if role in parts])
        return f[order][:, order]

    # State

    def arrays(self) -> dict[str, Array]:
        return super().arrays() | {f"division.{name}": x for name, x in self.division.arrays.items()}

    def description(self) -> dict[str, Any]:
        return super().description() | {"refined": self.refined, "inversion": self.inversion}

    def load(self, arrays: dict[str, Array], description: dict[str, Any]) -> None:
        super().load(arrays, description)
        self.refined = int(description["refined"])
        if description["inversion"] == self.inversion:
            self.division.arrays = {name.removeprefix("division."): x for name, x in arrays.items() if name.startswith("division.")}
        else:
            self.damping, self.changed = None, True             # another way of dividing: it begins anew from the averages

    def shapes(self, parameters: Gradients) -> dict[str, tuple[int, ...]]:
        blocks, left, right = self.matrix(parameters).shape
        return dict(zip(self.sides, ((blocks, left, left), (blocks, right, right))))

    def check(self, parameters: Gradients) -> None:
        super().check(parameters)
        blocks, left, right = self.matrix(parameters).shape
        for name, x in self.division.arrays.items():
            wanted = {"left": (blocks, left, left), "right": (blocks, right, right), "curvature": (blocks, left, right)}[name]
            if x.shape not in (wanted, wanted[:2]):
                raise ValueError(f"{name} of {self.name} has shape {x.shape}, and must have {wanted}")

    def move(self, device: str, dtype: Any) -> None:
        super().move(device, dtype)
        self.division.arrays = {name: backend.asarray(x.astype(dtype, copy=False), device) for name, x in self.division.arrays.items()}


def in_basis(q: Array, x: Array) -> Array:
    """Q^T x for a stack Q (blocks, k, k) and each of x (examples, blocks, k, T)."""
    if x.shape[-1] > 1:
        return q.swapaxes(-1, -2) @ x
    return (x[..., 0].swapaxes(0, 1) @ q).swapaxes(0, 1)[..., None]         # one product for all examples


def pieces(count: int, numbers: int) -> Iterator[slice]:
    """A minibatch in pieces, of which each needs so many numbers an example."""
    step = max(1, PIECE // max(numbers, 1))
    for start in range(0, count, step):
        yield slice(start, start + step)


def full(factor: Array) -> Array:
    """A factor as a stack of matrices, where it is only their diagonal."""
    return factor if factor.ndim == 3 else factor[:, :, None] * backend.of(factor).eye(factor.shape[1], dtype=factor.dtype)
