"""What users call: backward, grad, hvp, and the switches around them. How gradients walk is in walk.py, what an operation is in graph.py.

All three start the same walk: `backward` leaves gradients in the leaves, `grad` gives them back, `hvp` differentiates them again, and
`observe` only shows layers to observers on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from minidl import backend
from minidl.backend import Array
from minidl.errors import ArgumentError, DeviceError, GraphError, ShapeError
from minidl.graph import Function, Node
from minidl.modes import switched
from minidl.profiler import phase
from minidl.tensor import Tensor, make
from minidl.walk import Edge, Observer, Walk, reached
from minidl.watchers import watched

__all__ = ["Function", "Node", "Observer", "backward", "check_numerics", "check_saved", "grad", "hvp", "no_grad", "observe"]


@phase("backward")
def backward(loss: Tensor, grad: Any = None, create_graph: bool = False, retain_graph: bool = False) -> None:
    """Compute the gradient of this Tensor by every leaf it came from, and add it to their `.grad`.

    grad: the gradient by this Tensor itself, of its shape; may be left out for a single number, and is then 1.
    create_graph: record the pass, so that the gradients can be differentiated again. Implies retain_graph. A leaf's `.grad` then leads
    back to the leaf: set it to None when done, or use `grad`, so that memory is freed at once.
    retain_graph: keep what the graph holds, for another pass over it; otherwise this pass frees it as it goes.
    GraphError if nothing was recorded, or another pass has freed the graph. ShapeError if `grad` does not fit.

    >>> w = Tensor([3.0], requires_grad=True)
    >>> (w * w).backward()
    >>> w.grad
    Tensor([6.], dtype=float32)
    """
    edge, seed = _edge(loss, "backward"), _seed(loss, grad, "backward")
    start = seed.data if isinstance(seed, Tensor) else seed
    observers = [observer for observer in _wanting(edge) if observer.before_backward(loss, start) is not False]
    Walk(create_graph=create_graph, retain=retain_graph, observers=observers).run([(edge, seed)])


@phase("backward")
def grad(ys: Tensor | Sequence[Tensor], xs: Tensor | Sequence[Tensor], grad_ys: Any = None, create_graph: bool = False,
         retain_graph: bool = False) -> tuple[Tensor | None, ...]:
    """The gradients of ys (summed) by each of xs, as a tuple; None for an x that ys does not depend on. No `.grad` is touched.

    ys, xs: one Tensor or several; an x may also be the result of an operation.
    grad_ys: a gradient for each y, of its shape; may be left out where each y is a single number.
    create_graph, retain_graph: as in `Tensor.backward`.

    >>> x = Tensor([2.0], requires_grad=True)
    >>> (first,) = grad(x * x * x, x, create_graph=True)
    >>> grad(first, x)
    (Tensor([12.], dtype=float32),)
    """
    ys, xs = _sequence(ys), _sequence(xs)
    given = [None] * len(ys) if grad_ys is None else _sequence(grad_ys)
    if len(given) != len(ys):
        raise ArgumentError(f"grad: {len(ys)} ys, and {len(given)} grad_ys", hint="Give one gradient a y, or None for a single number.")
    targets = [_edge(x, "grad") for x in xs]
    walk = Walk(create_graph=create_graph, retain=retain_graph, only=targets)
    walk.run([(_edge(y, "grad"), _seed(y, gy, "grad")) for y, gy in zip(ys, given)])
    return tuple(_result(walk.found.get(target)) for target in targets)


def hvp(loss: Tensor, params: Tensor | Sequence[Tensor], vectors: Any) -> tuple[Tensor, ...]:
    """The Hessian of a loss times a vector, without the Hessian: the gradient of (gradient . vector).

    loss: a single number. params: the leaves, or one. vectors: an array or Tensor for each, of its shape. Gives a tuple of a Tensor for
    each; the graph of the loss is kept, so that it can be called again. Pearlmutter, Neural Computation 1994.

    >>> x = Tensor([1.0, 2.0], requires_grad=True)
    >>> hvp((x * x * x).sum(), [x], [np.array([1, 0], np.float32)])
    (Tensor([6., 0.], dtype=float32),)
    """
    params, vectors = ([params], [vectors]) if isinstance(params, Tensor) else (params, vectors)
    if len(vectors) != len(params):
        raise ArgumentError(f"hvp: {len(params)} params, and {len(vectors)} vectors")
    firsts = grad(loss, params, create_graph=True)
    pairs = [(g, _seed(g, v, "hvp")) for g, v in zip(firsts, vectors) if g is not None and g.requires_grad]
    seconds: tuple[Tensor | None, ...] = (None,) * len(params)
    if pairs:
        seconds = grad([g for g, _ in pairs], params, [v for _, v in pairs], retain_graph=True)
    return tuple(make(backend.of(p.data).zeros_like(p.data)) if h is None else h for p, h in zip(params, seconds))


def observe(starts: Tensor | Sequence[Tensor], seeds: Array | Sequence[Array], observers: Sequence[Observer]) -> None:
    """Walk back from any Tensors with any seeds, only to show layers to observers: no `.grad`, no hook, and the graph stays whole.

    starts: a Tensor in the graph, for example the logits under a loss, or several. seeds: the gradient at each, of its shape.
    """
    pairs = zip(_sequence(starts), _sequence(seeds), strict=True)
    Walk(retain=True, observers=observers, observe_only=True).run([(_edge(y, "observe"), _seed(y, gy, "observe")) for y, gy in pairs])


def no_grad(function: Callable | None = None) -> Any:
    """Record nothing: `with no_grad():`, or `@no_grad()` over a function, also without the parentheses."""
    return switched(grad=False) if function is None else switched(grad=False)(function)


def check_numerics() -> AbstractContextManager[None]:
    """Stop at the first NaN or infinity, forward or backward, with the operation, the layer and the line. Slow; for debugging."""
    return switched(numerics=True)


def check_saved() -> AbstractContextManager[None]:
    """Take a checksum of every array kept for the backward pass, so that one that was overwritten is named. Slow; for debugging."""
    return switched(saved=True)


def _wanting(edge: Edge) -> list[Observer]:
    """The observers that the pass from here will reach and that want to take part, each once, in the order of the layers."""
    if not watched:
        return []
    asked: list[Observer] = []
    for node in reached([edge]):
        for leaf in node.edges:
            if isinstance(leaf, Tensor) and leaf.watchers is not None:
                asked += [observer for observer in leaf.watchers.observers if not any(observer is other for other in asked)]
    return [observer for observer in asked if observer.wants()]


def _edge(x: Any, caller: str) -> Edge:
    if not isinstance(x, Tensor):
        raise GraphError(f"{caller}: a {type(x).__name__} has no graph", hint="Only a Tensor records what happened to it.")
    if not x._requires_grad:
        raise GraphError(f"{caller}: a Tensor of shape {x.shape} requires no gradient, so nothing was recorded for it",
                         hint="Make an input with requires_grad=True, and compute outside no_grad().")
    return x if x.node is None else (x.node, x.index)


def _seed(y: Tensor, given: Any, caller: str) -> Any:
    """The gradient to start from: the one given, checked, or 1."""
    array = given.data if isinstance(given, Tensor) else given
    if given is None:
        if y.size != 1:
            raise GraphError(f"{caller}: a Tensor of shape {y.shape} is not one number, so it has no gradient of its own",
                             hint="Use sum() or mean(), or give the gradient by it, an array of its shape.")
        return backend.of(y.data).ones_like(y.data)
    if isinstance(array, backend.SCALARS):
        array = backend.of(y.data).full(y.shape, array, y.dtype)       # made on the device
    elif not backend.is_array(array):
        array = backend.asarray(np.asarray(array, dtype=y.dtype), y.device)
    if array.shape != y.shape:
        raise ShapeError(f"{caller}: the gradient given has shape {array.shape}, and the Tensor has {y.shape}")
    device = backend.device_of(array)
    if device != y.device:
        raise DeviceError(f"{caller}: the gradient given is on {device}, and the Tensor on {y.device}",
                          hint=f"Bring it there: minidl.backend.asarray(gradient, {y.device!r}).")
    if isinstance(given, Tensor):
        return given if given.dtype == y.dtype else given.astype(y.dtype)
    return array.astype(y.dtype, copy=False)


def _sequence(x: Any) -> Sequence[Any]:
    return x if isinstance(x, list | tuple) else [x]


def _result(gradient: Any) -> Tensor | None:
    return gradient if gradient is None or isinstance(gradient, Tensor) else make(gradient)


Tensor.bind(backward=backward)
