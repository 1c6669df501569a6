"""Losses: one number that says how far the outputs are from what they should be.

Each loss is the negative log-likelihood of a distribution that the model predicts, and its node knows which: softmax cross-entropy
a categorical one, binary cross-entropy Bernoulli ones, the squared error a Gaussian of unit variance. `distribution(loss)` and
`distributions(total)` tell; natural-gradient methods ask. What can be done with a distribution is in likelihood.py. Labels and
reductions are checked here, at the edge.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from minidl import backend, kernels
from minidl.backend import Array
from minidl.errors import ArgumentError, DtypeError, LabelError, ShapeError
from minidl.functions.activation import sigmoid, softmax
from minidl.functions.shape import broadcast_to, check_arrays
from minidl.functions.steps import by_kernel
from minidl.graph import Function, Node
from minidl.recording import present
from minidl.tensor import Tensor
from minidl.walk import Walk

REDUCTIONS = ("mean", "sum", "none")


@dataclass(frozen=True)
class Distribution:
    """What a model predicts, as its loss sees it: loss = sum over examples of scale * -log p(target | logits), but for a constant.

    kind: "categorical" (softmax of the logits over axis 1), "bernoulli" (sigmoid of each logit) or "gaussian" (mean the logits,
    variance 1). logits: the Tensor in the graph that the loss was computed from. scale: the weight of one example in the loss.
    """

    kind: str
    logits: Tensor
    scale: float


class Loss(Function):
    """What all losses share: the reduction of many losses to one, and the gradient of that. They are float32 for outputs of 16 bits."""

    stays_wide = True
    kind: ClassVar[str]
    factor: ClassVar[int] = 1               # the loss is so many times -log p
    reduction: str

    def reduced(self, losses):
        """Sum, mean, or each loss on its own."""
        self.shape = losses.shape
        self.scale = 1 / (losses.size or 1) if self.reduction == "mean" else 1.0
        return losses if self.reduction == "none" else kernels.scaled_sum(losses, self.scale)

    def each(self, gy):
        """The gradient of every loss before the reduction."""
        return gy if self.reduction == "none" else broadcast_to(gy * self.scale, self.shape)


# loss = -t . log softmax(x), t the smoothed one-hot row of a label: gx = softmax(x) - t
@by_kernel("softmax_cross_entropy_gradient")
def softmax_cross_entropy_gradient(x, labels, smoothing, each):
    x = backend.wide(x)
    return (softmax(x, axis=1) - _target(x.data, labels, smoothing)) * each.reshape(-1, 1)


class ClassCrossEntropy(Loss):
    """The usual case: a row of logits an example, and class ids."""

    name = "softmax_cross_entropy"
    kind = "categorical"
    label_smoothing: float = 0.0

    def forward(self, x, labels):
        self.labels = labels
        return self.reduced(kernels.softmax_cross_entropy(x, labels, self.label_smoothing))

    def grad_x(self, each, x):
        return softmax_cross_entropy_gradient(x, self.labels, self.label_smoothing, each)


class SoftmaxCrossEntropy(Loss):
    """Any case: probabilities for labels, and more axes."""

    in_float32 = True
    kind = "categorical"
    label_smoothing: float = 0.0

    def forward(self, x, labels):
        xp = backend.of(x)
        self.target = _target(x, labels, self.label_smoothing)
        self.mass = self.target.sum(axis=1, keepdims=True)
        top = x.max(axis=1, keepdims=True)
        log_p = x - top
        log_p -= xp.log(xp.exp(log_p).sum(axis=1, keepdims=True))
        log_p = xp.where(self.target != 0, log_p, 0)            # 0 times the -inf of a class that is masked out is 0
        return self.reduced(-(self.target * log_p).sum(axis=1))

    # loss = -t . log softmax(x): gx = (sum of t) softmax(x) - t, and t adds up to 1 for class ids
    def grad_x(self, each, x):
        n = each.shape
        return (softmax(x, axis=1) * self.mass - self.target) * each.reshape(n[0], 1, *n[1:])


class SquaredError(Loss):
    in_float32 = True
    name = "mse"
    kind = "gaussian"
    factor = 2

    def forward(self, x, target):
        d = x - target
        return self.reduced(d * d)

    # d(x - t)^2 = 2 (x - t) (dx - dt)
    def grad_x(self, each, x, target):
        return each * 2 * (x - target)

    def grad_target(self, each, x, target):
        return each * 2 * (target - x)


class BinaryCrossEntropy(Loss):
    in_float32 = True
    name = "binary_cross_entropy_with_logits"
    kind = "bernoulli"

    def forward(self, x, target):
        xp = backend.of(x)
        # -t log s(x) - (1 - t) log(1 - s(x)) = max(x, 0) - t x + log(1 + e^-|x|): no overflow, no log of 0
        return self.reduced(xp.maximum(x, 0) - target * x + xp.log1p(xp.exp(-abs(x))))

    def grad_x(self, each, x, target):
        return each * (sigmoid(x) - target)

    def grad_target(self, each, x):
        return -each * x


def _target(x, labels, smoothing):
    """Labels as probabilities of x's shape: class ids as one-hot rows, with a part of each spread over all classes."""
    if not backend.is_float(labels.dtype):
        xp = backend.of(x)
        labels = xp.arange(x.shape[1]).reshape(-1, *[1] * (x.ndim - 2)) == xp.expand_dims(labels, 1)
    return labels.astype(x.dtype) * (1 - smoothing) + smoothing / x.shape[1]


def softmax_cross_entropy(x: Any, labels: Any, label_smoothing: float = 0.0, reduction: str = "mean") -> Any:
    """Cross-entropy between the softmax of x and the labels.

    x: logits (N, C), or (N, C, ...) with labels (N, ...). labels: integer class ids, or probabilities of x's shape.
    label_smoothing: the part of a label that is spread evenly over all classes (Szegedy et al., CVPR 2016).
    reduction: "mean" over the labels, "sum", or "none" for each.
    LabelError for a class id outside 0 ... C - 1; ShapeError, DtypeError, ArgumentError if something does not fit.

    >>> softmax_cross_entropy(np.array([[0.0, 0.0], [0.0, 2.0]]), np.array([0, 1]), reduction="none").round(4)
    array([0.6931, 0.1269])
    """
    name = "softmax_cross_entropy"
    labels = _beside(x, labels, name)
    _check(name, x, reduction)
    if len(x.shape) < 2:
        raise ShapeError(f"{name}: logits have an axis of classes", x=f"{x.shape} (N, C)")
    if not 0 <= label_smoothing <= 1:
        raise ArgumentError(f"{name}: label_smoothing is {label_smoothing}, and must lie between 0 and 1")
    classes = x.shape[1]
    if backend.is_float(labels.dtype):
        if labels.shape != x.shape:
            raise ShapeError(f"{name}: probabilities must have the shape of the logits", x=f"{x.shape} (N, C)", labels=f"{labels.shape}",
                             hint="Class ids are integers: labels.astype('int64').")
    elif labels.dtype.kind not in "iu":
        raise DtypeError(f"{name}: labels are {labels.dtype}, and must be integer class ids", hint="Use labels.astype('int64').")
    elif labels.shape != (x.shape[0], *x.shape[2:]):
        raise ShapeError(f"{name}: {x.shape[0]} examples and labels of shape {labels.shape}", x=f"{x.shape} (N, C)",
                         labels=f"{labels.shape} (N,)", hint="Labels are class ids, not one-hot rows." if labels.shape == x.shape else "")
    elif present() is None:             # a step that is being recorded has no values; a wrong label will make its loss NaN
        array = labels.data if isinstance(labels, Tensor) else labels
        if array.size and (int(array.min()) < 0 or int(array.max()) >= classes):
            raise LabelError(f"{name}: labels run from {int(array.min())} to {int(array.max())}, and there are {classes} classes",
                             hint=f"Class ids are 0 ... {classes - 1}.")
    usual = not backend.is_float(labels.dtype) and len(x.shape) == 2
    return (ClassCrossEntropy if usual else SoftmaxCrossEntropy)(reduction, float(label_smoothing))(x, labels)


def mse(x: Any, target: Any, reduction: str = "mean") -> Any:
    """The squared error (x - target)^2, its mean over all numbers, its sum, or each.

    x, target: of one shape.

    >>> float(mse(np.array([1.0, 3.0]), np.array([1.0, 1.0])))
    2.0
    """
    target = _beside(x, target, "mse")
    _check("mse", x, reduction, target)
    return SquaredError(reduction)(x, _as_floats(target, x.dtype))


def binary_cross_entropy_with_logits(x: Any, target: Any, reduction: str = "mean") -> Any:
    """Cross-entropy between sigmoid(x) and targets in [0, 1], number by number, without overflow.

    x, target: of one shape. reduction: "mean" over all numbers, "sum", or "none".

    >>> binary_cross_entropy_with_logits(np.array([0.0, 1000.0]), np.array([1.0, 0.0]), reduction="none")
    array([6.93147181e-01, 1.00000000e+03])
    """
    target = _beside(x, target, "binary_cross_entropy_with_logits")
    _check("binary_cross_entropy_with_logits", x, reduction, target)
    return BinaryCrossEntropy(reduction)(x, _as_floats(target, x.dtype))


def distribution(loss: Tensor) -> Distribution | None:
    """The distribution that a loss is the negative log-likelihood of; None for anything else.

    loss: what a function of this file gave, before its backward pass has freed it.
    """
    return _told(loss.node) if isinstance(loss, Tensor) and loss.node is not None else None


def distributions(total: Tensor, seed: Array) -> list[tuple[Distribution, Array]]:
    """The distributions of all losses of this file that went into a total, each with the gradient of the total by the loss's value.

    total: a loss, or what was computed from losses: a sum of two of them, a mean of unreduced ones, a multiple. seed: the gradient by
    the total. The graph stays as it is. A list without entries if there is no such loss.
    """
    if total.node is None:
        return []
    found: list[tuple[Node, Distribution]] = []
    todo, seen = [total.node], {total.node}
    while todo:
        node = todo.pop()
        told = _told(node)
        if told is not None:
            found.append((node, told))
            continue
        inner = [edge[0] for edge in node.edges if type(edge) is tuple and edge[0] not in seen]
        seen.update(inner)
        todo += inner
    found.sort(key=lambda pair: pair[0].order)
    if [node for node, _ in found] == [total.node]:
        return [(found[0][1], seed)]
    walk = Walk(retain=True, only=[(node, 0) for node, _ in found])
    walk.run([((total.node, total.index), seed)])
    return [(told, walk.found[node, 0]) for node, told in found if (node, 0) in walk.found]


def _told(node: Node) -> Distribution | None:
    function = node.function
    logits = node.argument("x") if isinstance(function, Loss) else None
    if logits is None:
        return None
    return Distribution(function.kind, logits, function.scale * function.factor)


def _beside(x: Any, target: Any, operation: str) -> Any:
    """Targets as an array or Tensor beside x: lists are made arrays on its device."""
    check_arrays(operation, x=x)
    if isinstance(target, Tensor) or backend.is_array(target):
        return target
    array = x.data if isinstance(x, Tensor) else x
    made = np.asarray(target)
    return backend.asarray(made.astype(array.dtype) if backend.is_float(made.dtype) else made, backend.device_of(array))


def _as_floats(target: Any, dtype: Any) -> Any:
    """Integers and booleans in x's dtype: beside float32 NumPy would make float64 of them."""
    return target if backend.is_float(target.dtype) else target.astype(dtype)


def _check(operation: str, x: Any, reduction: str, target: Any = None) -> None:
    if reduction not in REDUCTIONS:
        raise ArgumentError(f"{operation}: reduction {reduction!r} is not known", hint=f"Known are {', '.join(REDUCTIONS)}.")
    if not backend.is_float(x.dtype):
        raise DtypeError(f"{operation}: x is {x.dtype}, and must be of a float type", hint="Use x.astype('float32').")
    if target is not None and target.shape != x.shape:
        raise ShapeError(f"{operation}: x and target must have one shape", x=f"{x.shape}", target=f"{target.shape}")
