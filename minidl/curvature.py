"""Curvature: the Fisher matrix of a model, whole for a small one, and its product with a vector for any.

This is what natural-gradient methods approximate, computed plainly and exactly, to look at and to hold approximations against:

    F = E[s s^T]        the Fisher matrix: s the gradient of -log p(t | model(x)) by the parameters, the target t drawn from p itself
    G = J^T H J         the Gauss-Newton matrix: J the derivative of the outputs by the parameters, H the second derivative of the loss
                        by the outputs

For the distributions of functions/likelihood.py H is the Fisher matrix at the outputs, and so F = G (Martens, arXiv:1412.1193).

The parameters stand one after another in the order of `named_parameters()`, each flattened in C order. The gradient x^T gy of an affine
layer's w, (inputs, outputs), then flattens to the Kronecker product of x and gy, and the layer's block of F is the mean over the examples
of kron(x^T x, E[gy^T gy]); with b, whose row follows those of w, x has a 1 appended. K-FAC puts kron(A, G) in its place, A and G being
the means of the two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from minidl import backend
from minidl.autograd import grad
from minidl.backend import Array
from minidl.errors import ArgumentError, DeviceError, GraphError, ShapeError, nearest
from minidl.functions.likelihood import KINDS
from minidl.functions.loss import binary_cross_entropy_with_logits, distributions, mse, softmax_cross_entropy
from minidl.modes import switched
from minidl.names import matching
from minidl.nn.init import Source
from minidl.nn.module import Module
from minidl.tensor import Tensor, make

LOSSES: dict[str, Callable] = {"categorical": softmax_cross_entropy, "bernoulli": binary_cross_entropy_with_logits, "gaussian": mse}
NEEDS = {"exact": None, "sampled": "generator", "empirical": "y"}           # which argument a kind of Fisher matrix cannot do without
LARGEST = 20_000                                                            # parameters; their matrix takes 1.6 GB in float32


def fisher(model: Module, x: Any, loss: str = "softmax_cross_entropy", *, kind: str = "exact", y: Any = None, generator: Source = None,
           parameters: str | Sequence[str] | None = None) -> Array:
    """The Fisher matrix of a model on a minibatch: (P, P) for P numbers in its parameters, the mean of E[s s^T] over the examples.

    x: what the model takes; the first axis of its output is the examples. loss: names the distribution: "softmax_cross_entropy",
    "binary_cross_entropy_with_logits" or "mse", or the kinds "categorical", "bernoulli" or "gaussian" (of variance 1: its -log p is half
    the squared error). -log p is in nats and has no reduction. parameters: the paths of those that the matrix is of, or patterns such as
    "*.w"; all that are not frozen, unless given.

    kind: "exact", the expectation over the model's own prediction; "sampled", one target for each example drawn from it by `generator`
    (a NumPy Generator or a seed); "empirical", the targets y of the data, as the loss takes them.

    An example's score s goes through all that its outputs depend on. Where that is the whole minibatch (batch normalization in
    training), the exact matrix is that of the minibatch's likelihood divided by N: targets are independent given the outputs, and the
    mean of a score is 0, so that products of two examples' scores vanish. The model runs once in its present mode, and its buffers and
    gradients stay as they are; hooks on a gradient (`register_hook`) run, as in every `grad`. It takes a backward pass for each number of
    the output, or for each example where the target is one.

    ArgumentError for a name or an argument that does not fit, no parameters, or more numbers in them than 20,000.

    >>> from minidl import nn
    >>> fisher(nn.Affine(2, 1, bias=False), np.array([[1.0, 2.0]], np.float32), "mse")
    array([[1., 2.], [2., 4.]], dtype=float32)
    """
    if kind not in NEEDS:
        raise ArgumentError(f"fisher: kind {kind!r} is not known{nearest(kind, NEEDS)}", hint=f"Known are {', '.join(NEEDS)}.")
    for name, value, what in (("y", y, "the targets of the data"), ("generator", generator, "a NumPy Generator or a seed")):
        if (value is not None) != (NEEDS[kind] == name):
            raise ArgumentError(f"fisher: kind={kind!r} needs {name}, {what}" if value is None else
                                f"fisher: {name} would not be used with kind={kind!r}")
    told = _kind("fisher", loss)
    leaves = list(_chosen("fisher", model, parameters).values())
    size = sum(p.size for p in leaves)
    if size > LARGEST:
        raise ArgumentError(f"fisher: {size:,} numbers in the parameters make a matrix of {size ** 2:,}",
                            hint="Choose some of them with parameters=, or use fisher_product, which never makes the matrix.")

    z = _outputs("fisher", model, x, told)
    if kind == "exact":
        scores = list(KINDS[told].roots(z.data))
    elif kind == "sampled":
        scores = [KINDS[told].sampled(z.data, backend.generator(generator))]
    else:
        scores = [_score(told, z.data, y)]
    xp = backend.of(z.data)
    matrix = xp.zeros((size, size), np.result_type(*[p.dtype for p in leaves]))
    for n in range(len(z)):
        rows = xp.stack([_of_example(n, z, score, leaves) for score in scores])
        matrix += rows.T @ rows
    return matrix / len(z)


def fisher_product(model: Module, x: Any, vectors: Any, loss: str = "softmax_cross_entropy") -> Any:
    """The exact Fisher matrix of a model on a minibatch times a vector, F v, without F: as `fisher(model, x, loss) @ v`.

    vectors: v, an array for each parameter that is not frozen, of its shape, in the order of `named_parameters()`; or a dictionary by
    path, and then the matrix is of these parameters alone. Comes back in the same form, a list or a dictionary of arrays.
    It takes three backward passes. x, loss and what happens to the model: as in `fisher`. ArgumentError, ShapeError, DeviceError if
    something does not fit. Schraudolph, Neural Computation 2002.

    >>> from minidl import nn
    >>> fisher_product(nn.Affine(2, 1, bias=False), np.array([[1.0, 2.0]], np.float32), {"w": [[1], [0]]}, "mse")
    {'w': array([[1.], [2.]], dtype=float32)}
    """
    told = _kind("fisher_product", loss)
    free, by_path = _chosen("fisher_product", model), isinstance(vectors, Mapping)
    for path in vectors if by_path else ():
        if path not in free:
            raise ArgumentError(f"fisher_product: the model has no parameter {path!r} that is not frozen{nearest(path, free)}",
                                hint=f"There are {', '.join(free)}.")
    paths = list(vectors if by_path else free)
    leaves = [free[path] for path in paths]
    v = _vectors("fisher_product", paths, leaves, list(vectors.values() if by_path else vectors))
    z = _outputs("fisher_product", model, x, told)
    (moved,) = _moved([z], leaves, v)
    results = grad(z, leaves, KINDS[told].product(z.data, moved) / len(z))
    arrays = [_or_zeros(result, p) for result, p in zip(results, leaves)]
    return dict(zip(paths, arrays)) if by_path else arrays


def ggn_product(loss: Tensor, parameters: Tensor | Sequence[Tensor], vectors: Any) -> tuple[Tensor, ...]:
    """The Gauss-Newton matrix of a loss times a vector, without the matrix: G v, G = J^T (d^2 loss / dz^2) J, z the outputs.

    Like the Hessian of `hvp`, but as if the outputs were linear in the parameters: never negative along any direction.

    loss: a single number, computed from one or several losses of minidl.functions, as their sum, mean or multiple: G is of this very
    number, with its reductions and weights. Targets count as constants, labels as probabilities that add up to 1, and terms of another
    kind, such as a penalty on the weights, add nothing to G. parameters: the leaves, or one. vectors: an array or Tensor for each, of
    its shape. Gives a tuple of a Tensor for each; the graph of the loss is kept. GraphError where no such loss is found.
    Schraudolph, Neural Computation 2002; J v by two backward passes instead of the forward one of Pearlmutter, ibid. 1994.

    >>> w = Tensor([1.0, 2.0], requires_grad=True)
    >>> ggn_product(mse(w * w, np.zeros(2), reduction="sum"), w, [1, 0])        # J = 2w, and H = 2
    (Tensor([8., 0.], dtype=float32),)
    """
    leaves, vectors = ([parameters], [vectors]) if isinstance(parameters, Tensor) else (list(parameters), list(vectors))
    if not isinstance(loss, Tensor) or loss.size != 1:
        what = f"a Tensor of shape {loss.shape}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
        raise GraphError(f"ggn_product: the loss is {what}, and must be one number in a graph", hint="Use sum() or mean().")
    v = _vectors("ggn_product", [f"parameters[{i}]" for i in range(len(leaves))], leaves, vectors)
    found = distributions(loss, backend.of(loss.data).ones_like(loss.data))
    if not found:
        raise GraphError("ggn_product: no loss of a known distribution is in the graph of this number",
                         hint=f"Known are {', '.join(f.__name__ for f in LOSSES.values())}, before a backward pass has freed them. "
                              "For any other, hvp gives products with the Hessian.")
    zs = [told.logits for told, _ in found]
    seeds = []
    for (told, weight), moved in zip(found, _moved(zs, leaves, v)):
        if 0 < weight.ndim < moved.ndim:                    # each loss has a weight of its own, but cross-entropy no axis of classes
            weight = backend.of(weight).expand_dims(weight, 1)
        seeds.append(KINDS[told.kind].product(told.logits.data, moved) * (weight * told.scale))
    return tuple(make(_or_zeros(result, p)) for result, p in zip(grad(zs, leaves, seeds, retain_graph=True), leaves))


def _of_example(n: int, z: Tensor, score: Array, leaves: list[Tensor]) -> Array:
    """From the scores of all examples at the outputs z to that of example n at the leaves: all their numbers on one axis."""
    xp = backend.of(score)
    seed = xp.zeros_like(score)
    seed[n] = score[n]
    gradients = grad(z, leaves, seed, retain_graph=True)
    return xp.concatenate([_or_zeros(g, p).reshape(-1) for g, p in zip(gradients, leaves)])


def _moved(zs: list[Tensor], leaves: list[Tensor], vectors: list[Array]) -> list[Array]:
    """J v for each z: how it moves when the leaves move along the vectors. The graph stays."""
    # J^T u is linear in u, so its derivative by u along v is J v, wherever u is
    us = [Tensor(backend.of(z.data).zeros_like(z.data), requires_grad=True) for z in zs]
    pairs = [(g, v) for g, v in zip(grad(zs, leaves, us, create_graph=True), vectors) if g is not None and g.requires_grad]
    moved = grad([g for g, _ in pairs], us, [v for _, v in pairs]) if pairs else (None,) * len(us)
    return [_or_zeros(m, u) for m, u in zip(moved, us)]


def _score(kind: str, z: Array, y: Any) -> Array:
    """The gradient of -log p(y | z) by z, for each example."""
    leaf = Tensor(z, requires_grad=True)
    with switched(grad=True):
        loss = LOSSES[kind](leaf, y, reduction="sum")
    ((told, one),) = distributions(loss, backend.of(z).ones_like(loss.data))
    (score,) = grad(loss, leaf, one / told.scale)           # the squared error is twice -log p
    return _or_zeros(score, leaf)


def _or_zeros(gradient: Tensor | None, leaf: Tensor) -> Array:
    """The array of a gradient; zeros where none arrived."""
    return backend.of(leaf.data).zeros_like(leaf.data) if gradient is None else gradient.data


# What is given


def _outputs(caller: str, model: Module, x: Any, kind: str) -> Tensor:
    """The outputs of a model in their graph, in its present mode."""
    with _buffers_kept(model), switched(grad=True):         # also where the caller records nothing
        z = model(x)
    if not isinstance(z, Tensor) or not z.requires_grad:
        raise GraphError(f"{caller}: the model gave {'a Tensor without a graph' if isinstance(z, Tensor) else f'a {type(z).__name__}'}",
                         hint="It must give one Tensor that it computes from its parameters.")
    if z.ndim < (2 if kind == "categorical" else 1) or not len(z):
        raise ShapeError(f"{caller}: the first axis of the output is the examples, at least one, and classes are the second",
                         output=f"{z.shape}", loss=kind)
    return z


@contextmanager
def _buffers_kept(model: Module) -> Iterator[None]:
    """Put running statistics and the like back to what they were."""
    owners = dict(model.named_modules())
    before = [(path, value.copy() if backend.is_array(value) else value) for path, value in model.named_buffers()]
    try:
        yield
    finally:
        for path, value in before:
            owner, _, name = path.rpartition(".")
            setattr(owners[owner], name, value)


def _chosen(caller: str, model: Module, patterns: str | Sequence[str] | None = None) -> dict[str, Tensor]:
    """The parameters that are not frozen, by path; with patterns, those that match one."""
    if not isinstance(model, Module):
        raise ArgumentError(f"{caller}: a {type(model).__name__} is no model", hint="Give the model itself, a Module.")
    free: dict[str, Tensor] = {path: p for path, p in model.named_parameters() if p.requires_grad}
    if not free:
        raise ArgumentError(f"{caller}: the model has no parameters" + (", or all are frozen" if model.parameters() else ""),
                            hint="Free them with requires_grad_(True)." if model.parameters() else "")
    if patterns is None:
        return free
    matched = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        found = matching(pattern, free)
        if not found:
            raise ArgumentError(f"{caller}: no parameter that is not frozen matches {pattern!r}{nearest(pattern, free)}",
                                hint=f"There are {', '.join(free)}.")
        matched.update(found)
    if not matched:
        raise ArgumentError(f"{caller}: parameters is empty", hint="Leave it out for all of them.")
    return {path: p for path, p in free.items() if path in matched}


def _kind(caller: str, loss: str) -> str:
    """The kind of distribution that a name stands for."""
    names = {kind: kind for kind in LOSSES} | {function.__name__: kind for kind, function in LOSSES.items()}
    if loss not in names:
        raise ArgumentError(f"{caller}: the loss {loss!r} is not known{nearest(str(loss), names)}", hint=f"Known are {', '.join(names)}.")
    return names[loss]


def _vectors(caller: str, paths: list[str], leaves: list[Tensor], vectors: list[Any]) -> list[Array]:
    """Vectors as arrays of their leaves' shapes, on their devices; `grad` takes any dtype."""
    if len(vectors) != len(leaves):
        raise ArgumentError(f"{caller}: {len(leaves)} parameters, and {len(vectors)} vectors", parameters=", ".join(paths))
    arrays = []
    for path, p, vector in zip(paths, leaves, vectors):
        v = vector.data if isinstance(vector, Tensor) else vector
        if not backend.is_array(v):
            v = backend.asarray(np.asarray(v, dtype=p.dtype), p.device)
        if v.shape != p.shape:
            raise ShapeError(f"{caller}: the vector for {path} has shape {v.shape}, and the parameter has {p.shape}")
        if backend.device_of(v) != p.device:
            raise DeviceError(f"{caller}: the vector for {path} is on {backend.device_of(v)}, and the parameter on {p.device}",
                              hint=f"Bring it there: minidl.backend.asarray(vector, {p.device!r}).")
        arrays.append(v)
    return arrays
