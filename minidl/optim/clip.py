"""Gradients kept from growing too large, between `backward()` and `step()`."""

from __future__ import annotations

import math
from typing import Any

from minidl import backend, kernels
from minidl.backend import Array
from minidl.errors import ArgumentError, GraphError, NumericsError
from minidl.optim.optimizer import Parameters, parameters_of
from minidl.profiler import phase
from minidl.recording import present


@phase("normalization")
def clip_grad_norm(model: Parameters, max_norm: float) -> float:
    """Scale all gradients so that their norm together is at most max_norm, and give the norm that they had.

    model: a Module, or a dictionary of Parameters by path. The norm is the root of the sum of all squares. NumericsError, which names
    the parameters, if it is not finite; GraphError if there is no gradient. In a step that is being recorded the norm is not known: NaN.
    Pascanu, Mikolov and Bengio, ICML 2013.

    >>> w = minidl.nn.Parameter(np.array([0.0, 0.0]))
    >>> w.grad = np.array([3.0, 4.0])
    >>> clip_grad_norm({"w": w}, 1.0), w.grad.data.round(5)
    (5.0, array([0.6, 0.8]))
    """
    if not max_norm > 0:
        raise ArgumentError(f"clip_grad_norm: max_norm is {max_norm!r}, and must be more than 0")
    gradients = _gradients("clip_grad_norm", model)
    found = kernels.clip_many(list(gradients.values()), float(max_norm))
    if present() is not None:
        return math.nan
    norm, _, *squares = backend.to_numpy(found).tolist()        # a GPU is waited for once
    if not math.isfinite(norm):
        bad = [path for path, square in zip(gradients, squares) if not math.isfinite(square)]
        raise NumericsError(f"clip_grad_norm: the gradient's norm is {norm}", parameters=", ".join(bad[:8]),
                            hint="Find where it begins: run the step under minidl.check_numerics().")
    return norm


@phase("normalization")
def clip_grad_value(model: Parameters, value: float) -> None:
    """Bring every number of all gradients into -value ... value.

    model: a Module, or a dictionary of Parameters by path. GraphError if there is no gradient.

    >>> w = minidl.nn.Parameter(np.array([0.0, 0.0]))
    >>> w.grad = np.array([3.0, -0.5])
    >>> clip_grad_value({"w": w}, 1.0); w.grad.data
    array([ 1. , -0.5])
    """
    if not value > 0:
        raise ArgumentError(f"clip_grad_value: value is {value!r}, and must be more than 0")
    for g in _gradients("clip_grad_value", model).values():
        backend.of(g).clip(g, -value, value, out=g)


def _gradients(caller: str, model: Any) -> dict[str, Array]:
    """The arrays of all gradients of parameters that are not frozen, by path."""
    due = {path: p.grad for path, p in parameters_of(caller, model).items() if p.requires_grad and p.grad is not None}
    if not due:
        raise GraphError(f"{caller}: no parameter has a gradient", hint="Call loss.backward() first.")
    for path, grad in due.items():
        if not grad.is_leaf:
            raise GraphError(f"{caller}: the gradient of {path} is part of a graph, which writing into it would falsify",
                             hint="Clip gradients of a backward pass without create_graph.")
    return {path: grad.data for path, grad in due.items()}
