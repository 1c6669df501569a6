"""Damping that finds its own size, after Levenberg and Marquardt.

The quadratic model that a step follows foretells how much the loss will fall. Where the loss falls about as much as was foretold, the
model is good and the damping is made smaller; where it falls much less, larger:

    M(d) = gradient . d + 1/2 d^T (F + damping) d       d: what the step changed, momentum and all; F + damping in the scale of the loss
    rho  = (loss after - loss before) / M(d)

    rho > 3/4:  damping <- damping (19/20)^5        rho < 1/4:  damping <- damping / (19/20)^5          looked at every 5 steps

All in all it stays within a factor of FARTHEST of where it began. The closure runs the model twice more: batch normalization in training
sees these passes too, and dropout draws anew.

Martens and Grosse, arXiv:1503.05671, section 6.5.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from minidl import backend
from minidl.autograd import no_grad
from minidl.backend import Array
from minidl.errors import ArgumentError, GraphError
from minidl.optim.kfac.blocks import Block
from minidl.tensor import Tensor

EVERY = 5               # steps
POOR, GOOD = 1 / 4, 3 / 4
FACTOR = (19 / 20) ** EVERY
FARTHEST = 1e4


@dataclass(frozen=True)
class Foretold:
    """Where a step began, and the slope there."""

    loss: float
    weights: dict[str, Array]
    gradients: dict[str, Array]


def begin(closure: Callable[[], Any], parameters: Mapping[str, Tensor]) -> Foretold:
    """To be called before the update."""
    due = {path: p for path, p in parameters.items() if p.requires_grad and p.grad is not None}
    gradients = {path: p.grad.data for path, p in due.items()}              # type: ignore[union-attr]   # due says so
    return Foretold(value(closure), {path: p.data.copy() for path, p in due.items()}, gradients)


def factor(start: Foretold, closure: Callable[[], Any], parameters: Mapping[str, Tensor], blocks: Iterable[Block], damping: float,
           weight: float) -> float:
    """To be called after the update: what the damping is to be multiplied by.

    weight: of the examples in the loss, all together: what F is to be multiplied by to be the loss's own curvature.
    """
    moved = {path: parameters[path].data - w for path, w in start.weights.items()}
    slope: Any = sum(_dot(start.gradients[path], d) for path, d in moved.items())
    bend: Any = damping * sum(_dot(d, d) for d in moved.values())
    for block in blocks:
        if block.ready and all(path in moved for path in block.paths.values()):
            bend = bend + block.bend({role: moved[path] for role, path in block.paths.items()})
    foretold = float(slope + weight * bend / 2)
    fell = value(closure) - start.loss
    if not math.isfinite(fell):
        return 1 / FACTOR
    rho = fell / foretold if foretold < 0 else 0.0              # a step that even the model calls bad, as momentum can make it
    return FACTOR if rho > GOOD else 1 / FACTOR if rho < POOR else 1.0


def value(closure: Callable[[], Any]) -> float:
    """The loss that a closure gives."""
    hint = "Let it compute the loss of this minibatch and return it; zero_grad() and backward() are called before step()."
    try:
        with no_grad():
            loss = closure()
    except GraphError as error:
        raise ArgumentError("KFAC.step: the closure calls backward(), and must only compute the loss", hint=hint) from error
    try:
        return float(loss)
    except (TypeError, ValueError):
        raise ArgumentError(f"KFAC.step: the closure gave {loss!r:.60}, and must give the loss, a single number", hint=hint) from None


def _dot(a: Array, b: Array) -> Array:
    return backend.of(a).vdot(a, b)
