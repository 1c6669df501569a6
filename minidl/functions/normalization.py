"""Normalization: numbers shifted and scaled to mean 0 and variance 1, then by a learned gamma and beta.

Batch normalization does it for each channel over the batch and the positions, layer normalization for each example over its last
axes. Both are one operation over different axes. The mean and the variance are outputs, because they depend on x: a rule that names
them stays right when it is differentiated again. Running statistics are the layer's business (nn), not this file's.
"""

from __future__ import annotations

import math
from typing import Any

from minidl import backend
from minidl.errors import ShapeError
from minidl.functions.arithmetic import sqrt
from minidl.functions.linear import check_dtypes
from minidl.functions.reduction import mean as mean_
from minidl.functions.reduction import sum as sum_
from minidl.functions.shape import check_arrays
from minidl.graph import Function


class Normalize(Function):
    outputs = ("y", "mean", "var")
    axes: tuple[int, ...]           # over which mean and variance are taken
    shared: tuple[int, ...]         # over which gamma and beta are
    eps: float

    def forward(self, x, gamma=None, beta=None):
        mean = x.mean(axis=self.axes, keepdims=True)
        centred = x - mean
        var = (centred * centred).mean(axis=self.axes, keepdims=True)
        y = centred / backend.of(x).sqrt(var + self.eps)
        self.wide = tuple(1 if i in self.shared else n for i, n in enumerate(x.shape))      # gamma's shape beside x
        if gamma is not None:
            y *= gamma.reshape(self.wide)
        if beta is not None:
            y += beta.reshape(self.wide)
        return y, mean, var

    # y = gamma u + beta, u = (x - mean) r, r = 1 / sqrt(var + eps)
    def r(self, var):
        return 1 / sqrt(var + self.eps)

    def u(self, x, mean, r):
        return (x - mean) * r

    # gbeta = sum gy, ggamma = sum gy u
    def grad_beta(self, gy, beta):
        return sum_(gy, self.shared).reshape(beta.shape)

    def grad_gamma(self, gy, u, gamma):
        return sum_(gy * u, self.shared).reshape(gamma.shape)

    # gu = gy gamma; gx = r (gu - mean(gu) - u mean(gu u)) + gmean / n + 2 gvar (x - mean) / n, means and sums over the axes
    def grad_x(self, gy, gmean, gvar, x, gamma, mean, r, u):
        gu = gy if gamma is None else gy * gamma.reshape(self.wide)
        n = math.prod(x.shape[a] for a in self.axes)
        direct = r * (gu - mean_(gu, self.axes, keepdims=True) - u * mean_(gu * u, self.axes, keepdims=True))
        return direct + (gmean + gvar * 2 * (x - mean)) * (1 / n)


class BatchNorm(Normalize):
    pass


class LayerNorm(Normalize):
    pass


class BatchNormInference(Function):
    shared: tuple[int, ...]
    eps: float

    def forward(self, x, gamma, beta, mean, var):
        self.wide = tuple(1 if i in self.shared else n for i, n in enumerate(x.shape))
        scale = gamma / backend.of(x).sqrt(var + self.eps)
        return x * scale.reshape(self.wide) + (beta - mean * scale).reshape(self.wide)

    # y = gamma (x - mean) r + beta with a mean and a variance that do not depend on x
    def r(self, var):
        return 1 / sqrt(var + self.eps)

    def grad_x(self, gy, gamma, r):
        return gy * (gamma * r).reshape(self.wide)

    def grad_gamma(self, gy, x, mean, r):
        return sum_(gy * (x - mean.reshape(self.wide)), self.shared) * r

    def grad_beta(self, gy):
        return sum_(gy, self.shared)


def batch_norm(x: Any, gamma: Any, beta: Any, eps: float = 1e-5) -> tuple[Any, Any, Any]:
    """Normalize each channel over the batch; gives (y, mean, var).

    x: (N, C) or (N, C, H, W). gamma, beta: (C,). y has x's shape; mean and var are (C,), var the mean squared distance from the mean
    (divided by the count, not by one less). eps: added to var under the root. ShapeError, DtypeError if something does not fit.
    Ioffe and Szegedy, ICML 2015.

    >>> y, mean, var = batch_norm(np.array([[1.0], [3.0]]), np.ones(1), np.zeros(1), eps=0)
    >>> y.ravel(), mean, var
    (array([-1.,  1.]), array([2.]), array([1.]))
    """
    axes = _check_channels("batch_norm", x, gamma=gamma, beta=beta)
    if x.size == 0:
        raise ShapeError("batch_norm: an empty batch has no mean", x=f"{x.shape}")
    y, mean, var = BatchNorm(axes, axes, float(eps))(x, gamma, beta)
    return y, mean.reshape(-1), var.reshape(-1)


def batch_norm_inference(x: Any, gamma: Any, beta: Any, mean: Any, var: Any, eps: float = 1e-5) -> Any:
    """Batch normalization by a mean and a variance that are known: y = gamma (x - mean) / sqrt(var + eps) + beta.

    x: (N, C) or (N, C, H, W). gamma, beta, mean, var: (C,). mean and var are constants: they get no gradient.

    >>> batch_norm_inference(np.array([[3.0]]), np.ones(1), np.zeros(1), np.array([1.0]), np.array([4.0]), eps=0)
    array([[1.]])
    """
    axes = _check_channels("batch_norm_inference", x, gamma=gamma, beta=beta, mean=mean, var=var)
    return BatchNormInference(axes, float(eps))(x, gamma, beta, mean, var)


def layer_norm(x: Any, gamma: Any = None, beta: Any = None, axes: int = 1, eps: float = 1e-5) -> Any:
    """Normalize each example over its last axes.

    x: (N, ...). gamma, beta: of the shape of the axes that are normalized, or None. axes: how many these are, where neither is given.
    ShapeError, DtypeError if something does not fit. Ba, Kiros and Hinton, arXiv:1607.06450.

    >>> layer_norm(np.array([[1.0, 3.0], [0.0, 0.0]]), eps=1e-12)
    array([[-1.,  1.], [ 0.,  0.]])
    """
    check_dtypes("layer_norm", x=x, gamma=gamma, beta=beta)
    given = gamma if gamma is not None else beta
    count = axes if given is None else len(given.shape)
    if not 0 < count <= len(x.shape) or any(p is not None and p.shape != x.shape[-count:] for p in (gamma, beta)):
        raise ShapeError("layer_norm: gamma and beta must have the shape of x's last axes", x=f"{x.shape}", axes=count,
                         **{name: f"{p.shape}" for name, p in (("gamma", gamma), ("beta", beta)) if p is not None})
    first = len(x.shape) - count
    return LayerNorm(tuple(range(first, len(x.shape))), tuple(range(first)), float(eps))(x, gamma, beta)[0]


def _check_channels(operation: str, x: Any, **parameters: Any) -> tuple[int, ...]:
    """The axes of x other than the channels, once everything is known to fit."""
    check_arrays(operation, x=x, **parameters)
    check_dtypes(operation, x=x, **parameters)
    if len(x.shape) < 2:
        raise ShapeError(f"{operation}: x has no axis of channels", x=f"{x.shape} (N, C) or (N, C, H, W)")
    for name, p in parameters.items():
        if p.shape != x.shape[1:2]:
            raise ShapeError(f"{operation}: x has {x.shape[1]} channels, {name} has shape {p.shape}", x=f"{x.shape} (N, C, ...)",
                             hint=f"Give the layer channels={x.shape[1]}.")
    return (0, *range(2, len(x.shape)))
