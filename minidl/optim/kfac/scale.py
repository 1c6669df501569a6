"""The scale of everything in K-FAC, in one place: what the losses of a backward pass weigh, in nats an example.

The Fisher matrix is the mean over the examples of E[s s^T], s the gradient of -log p(target | outputs) of one example. It knows no
reduction. The gradient comes from a loss that is a mean or a sum, over examples or over more, and may be multiplied by anything. So each
pass is read once, here:

    weight      that all examples together have in the total, each counted in -log p: 1 where the loss is a mean over examples, N where it
                is a sum, 1 / D where it is a mean over D numbers of each example too, twice that for the squared error
    root        of the weight of one loss's terms relative to another's: in cross-entropy + 0.1 squared error, what is learned from the
                second counts less. Scores are multiplied by it, so that their products are weighted
    gain        what turns a gradient of the total, at a layer's output, into an example's own, in nats

What the gradient is divided by is the weight, as long as that is no more than a mean's (`unit`). So of every mean, and of any part of
one, the step of length 1 is the natural one, whatever it is taken over; of a sum over N examples it is N times as long, as the gradient
is. (A loss that is half of a mean is minimised by the same weights; its steps are those of the mean, as Adam's would be.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from minidl import backend
from minidl.autograd import hvp
from minidl.backend import Array
from minidl.errors import ArgumentError, GraphError, MinidlError, ShapeError, nearest
from minidl.functions.likelihood import KINDS, Likelihood
from minidl.functions.loss import BinaryCrossEntropy, ClassCrossEntropy, Distribution, Loss, SquaredError, distributions
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

    def forward(self, x):
        return x

    def grad_x(self, gy, x):                            # naming x keeps it, for whoever looks for this Node
        return gy


NOTHING = Reading([], 0, 0.0, 1.0)      # a pass that says nothing of a prediction


def read(total: Tensor, seed: Array, name: str | None = None) -> Reading | None:
    """The losses that went into a total, and their scale; None if there is none that is known.

    seed: the gradient by the total. name: of the loss of minidl's that one written by hand is like, but for a factor; then its logits are
    where `Prediction` stands, and a total without one says nothing.
    """
    found = _named(NAMES[name], total, seed) if name is not None else _known(total, seed)
    if not found:
        return None if name is None else NOTHING
    chief, _, heaviest = max(found, key=lambda each: each[2])
    # of a loss written by hand the outputs are different examples; of several losses they are the same ones
    examples = len(chief.logits) if name is None else sum(len(told.logits) for told, _, _ in found)
    if not examples:                                                    # an empty minibatch, or an empty part of one
        return Reading([Part(KINDS[told.kind], told.logits, 1.0) for told, _, _ in found], 0, 0.0, 1.0)
    if not heaviest > 0:
        return NOTHING
    parts = []
    for told, weights, mean in found:
        root: Any = (mean / heaviest) ** 0.5
        if weights.size > 1:
            root = backend.of(weights).sqrt(weights / heaviest)
            root = backend.of(weights).expand_dims(root, 1) if root.ndim < told.logits.ndim else root
        parts.append(Part(KINDS[told.kind], told.logits, root))
    return Reading(parts, examples, heaviest * examples, FACTORS[chief.kind])


Found = list[tuple[Distribution, Array, float]]     # with the weights of each term's -log p in the total, and their mean


def _known(total: Tensor, seed: Array) -> Found:
    weighed = [(told, abs(outer) * told.scale) for told, outer in distributions(total, seed)]
    return [(told, weights, float(weights.mean()) if weights.size else 0.0) for told, weights in weighed]


def _named(loss: type[Loss], total: Tensor, seed: Array) -> Found:
    nodes = reached([(total.node, total.index)]) if total.node is not None else []
    outputs = [z for node in nodes if isinstance(node.function, Prediction) and (z := node.argument("x")) is not None]
    if loss.kind == "categorical" and any(z.ndim < 2 for z in outputs):
        raise ShapeError(f"KFAC: with loss={loss.name!r} the model's output has an axis of classes", output=f"{outputs[0].shape}")
    if not outputs:
        return []
    weights = abs(seed) * _curvature(KINDS[loss.kind], total, outputs)
    mean = float(weights.mean())
    return [(Distribution(loss.kind, z, mean), weights, mean) for z in outputs]


def _curvature(likelihood: Likelihood, total: Tensor, outputs: list[Tensor]) -> float:
    """How many times -log p a loss is, term by term: its second derivative by the outputs, over that of -log p, along a random direction.

    Where the loss cannot be differentiated twice, it is taken to be a mean over the terms.
    """
    rng = np.random.default_rng(0)
    along = [backend.asarray(rng.standard_normal(z.shape).astype(z.dtype), z.device) for z in outputs]
    ours = sum(float((v * likelihood.product(z.data, v)).sum()) for z, v in zip(outputs, along))
    try:
        its = sum(float((v * hv.data).sum()) for v, hv in zip(along, hvp(total, outputs, along)))
    except MinidlError:
        its = 0.0
    terms = sum(z.size if likelihood.name != "categorical" else z.size // z.shape[1] for z in outputs)
    return its / ours if its > 0 and ours > 0 else FACTORS[likelihood.name] / max(terms, 1)


def unit(weight: float, full: float) -> float:
    """What the gradient is divided by. weight: of all examples of a step; full: of a mean over them."""
    return min(weight, full)


def check_name(name: str | None) -> None:
    """ArgumentError for a loss that is not known by name."""
    if name is not None and name not in NAMES:
        raise ArgumentError(f"KFAC: the loss {name!r} is not known{nearest(str(name), NAMES)}", hint=f"Known are {', '.join(NAMES)}.")


def no_prediction() -> GraphError:
    return GraphError("KFAC: the model's output did not go into this loss, so that nothing is known of its distribution",
                      hint="With loss= the model that KFAC was given is called as a whole, and its output is what the loss takes.")
