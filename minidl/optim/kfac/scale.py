"""The scale of everything in K-FAC, in one place: what the losses of a backward pass weigh, in nats an example.

The Fisher matrix is the mean over the examples of E[s s^T], s the gradient of -log p(target | outputs) of one example. It knows no
reduction. The gradient, though, comes from a loss that is a mean or a sum, over examples or over more, and may be multiplied by anything.
So each pass is read once, here: which losses went into the total, how many examples they have, what the gradient must be divided by.

    unit        what a mean gives to -log p of an example, times the number of examples: 1 for class ids, 1 / D where the mean is taken
                over D numbers of an example too, 2 / D for the squared error. The gradient is divided by it, so that of every mean the
                step of length 1 is the natural one. The gradient of a sum over N examples stays N times that of the mean.
    weight      of a term of one loss relative to the others: in cross-entropy + 0.1 squared error, what is learned from the second counts
                less. Scores are multiplied by its root, so that their products are weighted.
    gain        what turns a gradient of the total, at a layer's output, into an example's own, in nats
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from minidl import backend
from minidl.backend import Array
from minidl.errors import ArgumentError, GraphError, nearest
from minidl.functions.likelihood import KINDS, Likelihood
from minidl.functions.loss import SquaredError, distributions
from minidl.tensor import Tensor

FACTORS = {"mse": SquaredError.factor}
NAMES = {"softmax_cross_entropy": "categorical", "binary_cross_entropy_with_logits": "bernoulli", "mse": "gaussian"}


@dataclass(frozen=True)
class Part:
    """One loss of a total. root: of the weight of its terms, a number or an array that broadcasts to the logits."""

    likelihood: Likelihood
    logits: Tensor
    root: Any


@dataclass(frozen=True)
class Reading:
    """What one backward pass is about."""

    parts: list[Part]
    examples: int
    unit: float
    gain: float


def read(total: Tensor, seed: Array) -> Reading | None:
    """The losses of minidl's that went into a total, and their scale; None if there are none. seed: the gradient by the total."""
    found = []
    for told, outer in distributions(total, seed):
        weights = abs(outer) * told.scale                           # of each term's -log p in the total; a single number, mostly
        found.append((told, weights, float(weights.mean())))
    heaviest = max((mean for _, _, mean in found), default=0.0)
    if not heaviest > 0:
        return None
    chief = next(told for told, _, mean in found if mean == heaviest)
    parts = []
    for told, weights, _ in found:
        if weights.size == 1:
            root: Any = (float(weights.sum()) / heaviest) ** 0.5
        else:
            root = backend.of(weights).sqrt(weights / heaviest)
            root = backend.of(weights).expand_dims(root, 1) if root.ndim < told.logits.ndim else root
        parts.append(Part(KINDS[told.kind], told.logits, root))
    return Reading(parts, len(chief.logits), chief.unit, 1 / heaviest)


def named(name: str, outputs: list[Tensor], seed: Array) -> Reading:
    """The same for a loss written by hand, which equals the mean that minidl's loss of this name gives for these outputs."""
    kind, factor = NAMES[name], FACTORS.get(name, 1)
    examples = sum(len(z) for z in outputs)
    terms = sum(z.size if kind != "categorical" else z.size // z.shape[1] for z in outputs)
    weight = factor * abs(float(seed.sum())) / terms                # of a term's -log p in the total
    parts = [Part(KINDS[kind], z, 1.0) for z in outputs]
    return Reading(parts, len(outputs[0]), factor * examples / terms, 1 / max(weight, 1e-30))


def check_name(name: str | None) -> None:
    """ArgumentError for a loss that is not known by name."""
    if name is not None and name not in NAMES:
        raise ArgumentError(f"KFAC: the loss {name!r} is not known{nearest(str(name), NAMES)}", hint=f"Known are {', '.join(NAMES)}.")


def no_logits() -> GraphError:
    return GraphError("KFAC: the model's output did not go into this loss, so that nothing is known of its distribution",
                      hint="With loss= the model that KFAC was given is called as a whole, and its output is what the loss takes.")
