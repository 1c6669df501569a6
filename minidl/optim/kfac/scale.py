"""The scale of everything in K-FAC, in one place: what the losses of a backward pass weigh, in nats an example.

The Fisher matrix is the mean over the examples of E[s s^T], s the gradient of -log p(target | outputs) of one example. It knows no
reduction. The gradient comes from a loss that is a mean or a sum, over examples or over more, and may be multiplied by anything. So each
pass is read once, here:

    weight      that all examples together have in the total, each counted in -log p: 1 where the loss is a mean over examples, N where it
                is a sum, 1 / D where it is a mean over D numbers of each example too, twice that for the squared error
    root        of the weight of one loss's terms relative to another's: in cross-entropy + 0.1 squared error, what is learned from the
                second counts less. Scores are multiplied by it, so that their products are weighted
    gain        what turns a gradient of the total, at a layer's output, into an example's own, in nats

What the gradient is divided by is the weight, as long as that is no more than a mean's (`unit`). So of every mean the step of length 1 is
the natural one, whatever it is taken over; and of a sum over N examples it is N times as long, as the gradient is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from minidl import backend
from minidl.backend import Array
from minidl.errors import ArgumentError, GraphError, nearest
from minidl.functions.likelihood import KINDS, Likelihood
from minidl.functions.loss import BinaryCrossEntropy, ClassCrossEntropy, Loss, SquaredError, distributions
from minidl.graph import Function
from minidl.tensor import Tensor
from minidl.walk import reached

NAMES: dict[str, type[Loss]] = {loss.name: loss for loss in (ClassCrossEntropy, BinaryCrossEntropy, SquaredError)}
FACTORS = {loss.kind: loss.factor for loss in NAMES.values()}       # the losses by these names are so many times -log p


@dataclass(frozen=True)
class Part:
    """One loss of a total. root: a number, or an array that broadcasts to the logits."""

    likelihood: Likelihood
    logits: Tensor
    root: Any


@dataclass(frozen=True)
class Reading:
    """What one backward pass is about. full: the weight of a mean over examples of the loss that counts most."""

    parts: list[Part]
    examples: int
    weight: float
    full: float

    @property
    def gain(self) -> float:
        """See above."""
        return self.examples / self.weight


class Prediction(Function):
    """The output of a model whose loss is written by hand: it marks the place, and changes nothing."""

    kind: str

    def forward(self, x):
        return x

    def grad_x(self, gy, x):                            # naming x keeps it, for whoever looks for this Node
        return gy


def read(total: Tensor, seed: Array, name: str | None = None) -> Reading | None:
    """The losses that went into a total, and their scale; None if there are none.

    seed: the gradient by the total. name: of the loss of minidl's whose mean a loss written by hand equals; then its logits are where
    `Prediction` stands. GraphError if that is nowhere.
    """
    if name is not None:
        return _named(NAMES[name], total, seed)
    found = []
    for told, outer in distributions(total, seed):
        weights = abs(outer) * told.scale                               # of each term's -log p in the total; a single number, mostly
        found.append((told, weights, float(weights.mean())))
    heaviest = max((mean for _, _, mean in found), default=0.0)
    if not heaviest > 0:
        return None
    chief = next(told for told, _, mean in found if mean == heaviest)
    parts = []
    for told, weights, mean in found:
        root: Any = (mean / heaviest) ** 0.5
        if weights.size > 1:
            root = backend.of(weights).sqrt(weights / heaviest)
            root = backend.of(weights).expand_dims(root, 1) if root.ndim < told.logits.ndim else root
        parts.append(Part(KINDS[told.kind], told.logits, root))
    examples = len(chief.logits)
    return Reading(parts, examples, heaviest * examples, FACTORS[chief.kind])


def _named(loss: type[Loss], total: Tensor, seed: Array) -> Reading:
    nodes = reached([(total.node, total.index)]) if total.node is not None else []
    outputs = [z for node in nodes if isinstance(node.function, Prediction) and (z := node.argument("x")) is not None]
    if not outputs:
        raise GraphError("KFAC: the model's output did not go into this loss, so that nothing is known of its distribution",
                         hint="With loss= the model that KFAC was given is called as a whole, and its output is what the loss takes.")
    examples = sum(len(z) for z in outputs)
    terms = sum(z.size // z.shape[1] if loss.kind == "categorical" else z.size for z in outputs)
    weight = loss.factor * max(abs(float(seed.sum())), 1e-30) * examples / terms
    return Reading([Part(KINDS[loss.kind], z, 1.0) for z in outputs], examples, weight, loss.factor)


def unit(weight: float, full: float) -> float:
    """What the gradient is divided by. weight: of all examples of a step; full: of a mean over them."""
    return min(weight, full)


def check_name(name: str | None) -> None:
    """ArgumentError for a loss that is not known by name."""
    if name is not None and name not in NAMES:
        raise ArgumentError(f"KFAC: the loss {name!r} is not known{nearest(str(name), NAMES)}", hint=f"Known are {', '.join(NAMES)}.")
