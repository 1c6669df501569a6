"""Normalization: numbers shifted and scaled to mean 0 and variance 1, then by a learned gamma and beta.

Batch normalization does it for each channel over the batch and the positions, layer normalization for each example over its last
axes. The mean and the variance are outputs, because they depend on x: a rule that names them stays right when it is differentiated
again. All three gradients come out of the same sums, and so of one step that the rules share. Running statistics are the layer's
business (nn), not this file's.
"""

from __future__ import annotations

import math
from typing import Any

from minidl import kernels
from minidl.errors import ShapeError
from minidl.functions.activation import activation_gradient, check_activation
from minidl.functions.arithmetic import sqrt
from minidl.functions.linear import check_dtypes
from minidl.functions.reduction import mean as mean_
from minidl.functions.reduction import sum as sum_
from minidl.functions.shape import check_arrays
from minidl.functions.steps import by_kernel, channel_sums
from minidl.graph import Function


# y = gamma u + beta, u = (x - mean) r, r = 1 / sqrt(var + eps), means and sums over all axes but the channels':
# gbeta = sum gy, ggamma = sum gy u, gx = gamma r (gy - mean(gy) - u mean(gy u)) + gmean / n + 2 gvar (x - mean) / n
@by_kernel("batch_norm_gradient")
def batch_norm_gradient(gy, x, gamma, mean, var, eps, gmean, gvar):
    n, wide = x.size // x.shape[1], _beside(x)
    r = 1 / sqrt(var + eps)
    centred = x - mean.reshape(wide)
    u = centred * r.reshape(wide)
    gbeta, ggamma = channel_sums(gy), channel_sums(gy * u)
    direct = (gamma * r).reshape(wide) * (gy - (gbeta * (1 / n)).reshape(wide) - u * (ggamma * (1 / n)).reshape(wide))
    return direct + (gmean.reshape(wide) + gvar.reshape(wide) * 2 * centred) * (1 / n), ggamma, gbeta


class BatchNorm(Function):
    outputs = ("y", "mean", "var")
    eps: float

    def forward(self, x, gamma, beta):
        return kernels.batch_norm(x, gamma, beta, self.eps)

    def before(self, gy):
        return gy

    def gradients(self, before, x, gamma, mean, var, gmean, gvar):
        return batch_norm_gradient(before, x, gamma, mean, var, self.eps, gmean, gvar)

    def grad_x(self, before, gradients):
        return gradients[0]

    def grad_gamma(self, before, gradients):
        return gradients[1]

    def grad_beta(self, before, gradients):
        return gradients[2]


class ActivatedBatchNorm(BatchNorm):
    name = "batch_norm"
    activation: str

    def forward(self, x, gamma, beta):
        return kernels.batch_norm(x, gamma, beta, self.eps, self.activation)

    # y = f(z): the rules above with gz = gy f'(z), found from y
    def before(self, gy, y, *, out=None):
        return activation_gradient(gy, y, self.activation, out)


class BatchNormInference(Function):
    eps: float

    def forward(self, x, gamma, beta, mean, var):
        return kernels.batch_norm_inference(x, gamma, beta, mean, var, self.eps)

    # y = gamma (x - mean) r + beta with a mean and a variance that do not depend on x
    def before(self, gy):
        return gy

    def r(self, var):
        return 1 / sqrt(var + self.eps)

    def grad_x(self, before, gamma, r):
        return before * (gamma * r).reshape(_beside(before))

    def grad_gamma(self, before, x, mean, r):
        return channel_sums(before * (x - mean.reshape(_beside(x)))) * r

    def grad_beta(self, before):
        return channel_sums(before)


class ActivatedBatchNormInference(BatchNormInference):
    name = "batch_norm_inference"
    activation: str

    def forward(self, x, gamma, beta, mean, var):
        return kernels.batch_norm_inference(x, gamma, beta, mean, var, self.eps, self.activation)

    def before(self, gy, y, *, out=None):
        return activation_gradient(gy, y, self.activation, out)


# gu = gy gamma, ggamma and gbeta as above over the other axes; gx = r (gu - mean(gu) - u mean(gu u)) + gmean / n + 2 gvar (x - mean) / n
@by_kernel("layer_norm_gradient")
def layer_norm_gradient(gy, x, gamma, mean, var, axes, eps, gmean, gvar):
    over, others = tuple(range(x.ndim - axes, x.ndim)), tuple(range(x.ndim - axes))
    n, wide = math.prod(x.shape[-axes:]), (*mean.shape, *[1] * axes)
    r = (1 / sqrt(var + eps)).reshape(wide)
    centred = x - mean.reshape(wide)
    u = centred * r
    gu = gy if gamma is None else gy * gamma
    direct = r * (gu - mean_(gu, over, keepdims=True) - u * mean_(gu * u, over, keepdims=True))
    return direct + (gmean.reshape(wide) + gvar.reshape(wide) * 2 * centred) * (1 / n), sum_(gy * u, others), sum_(gy, others)


class LayerNorm(Function):
    outputs = ("y", "mean", "var")
    axes: int                       # how many, the last ones, are normalized over
    eps: float

    def forward(self, x, gamma=None, beta=None):
        return kernels.layer_norm(x, gamma, beta, self.axes, self.eps)

    def gradients(self, gy, x, gamma, mean, var, gmean, gvar):
        return layer_norm_gradient(gy, x, gamma, mean, var, self.axes, self.eps, gmean, gvar)

    def grad_x(self, gy, gradients):
        return gradients[0]

    def grad_gamma(self, gy, gradients):
        return gradients[1]

    def grad_beta(self, gy, gradients):
        return gradients[2]


def batch_norm(x: Any, gamma: Any, beta: Any, eps: float = 1e-5, activation: str | None = None) -> tuple[Any, Any, Any]:
    """Normalize each channel over the batch; gives (y, mean, var).

    x: (N, C) or (N, C, H, W). gamma, beta: (C,). y has x's shape; mean and var are (C,), var the mean squared distance from the mean
    (divided by the count, not by one less). eps: added to var under the root. activation: of y, fused: "relu", "tanh", "sigmoid" or
    None. ShapeError, DtypeError, ArgumentError if something does not fit. Ioffe and Szegedy, ICML 2015.

    >>> y, mean, var = batch_norm(np.array([[1.0], [3.0]]), np.ones(1), np.zeros(1), eps=0)
    >>> y.ravel(), mean, var
    (array([-1.,  1.]), array([2.]), array([1.]))
    """
    _check_channels("batch_norm", x, gamma=gamma, beta=beta)
    check_activation("batch_norm", activation)
    if x.size == 0:
        raise ShapeError("batch_norm: an empty batch has no mean", x=f"{x.shape}")
    return (BatchNorm(float(eps)) if activation is None else ActivatedBatchNorm(float(eps), activation))(x, gamma, beta)


def batch_norm_inference(x: Any, gamma: Any, beta: Any, mean: Any, var: Any, eps: float = 1e-5, activation: str | None = None) -> Any:
    """Batch normalization by a mean and a variance that are known: y = gamma (x - mean) / sqrt(var + eps) + beta.

    x: (N, C) or (N, C, H, W). gamma, beta, mean, var: (C,). mean and var are constants: they get no gradient. activation: of y, fused.

    >>> batch_norm_inference(np.array([[3.0]]), np.ones(1), np.zeros(1), np.array([1.0]), np.array([4.0]), eps=0)
    array([[1.]])
    """
    _check_channels("batch_norm_inference", x, gamma=gamma, beta=beta, mean=mean, var=var)
    check_activation("batch_norm_inference", activation)
    operation = BatchNormInference(float(eps)) if activation is None else ActivatedBatchNormInference(float(eps), activation)
    return operation(x, gamma, beta, mean, var)


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
    return LayerNorm(count, float(eps))(x, gamma, beta)[0]


def _beside(x: Any) -> tuple[int, ...]:
    """The shape that a number a channel has beside x."""
    return (-1, *[1] * (x.ndim - 2))


def _check_channels(operation: str, x: Any, **parameters: Any) -> None:
    """ShapeError or DtypeError if the parameters are not a number a channel."""
    check_arrays(operation, x=x, **parameters)
    check_dtypes(operation, x=x, **parameters)
    if len(x.shape) < 2:
        raise ShapeError(f"{operation}: x has no axis of channels", x=f"{x.shape} (N, C) or (N, C, H, W)")
    for name, p in parameters.items():
        if p.shape != x.shape[1:2]:
            raise ShapeError(f"{operation}: x has {x.shape[1]} channels, {name} has shape {p.shape}", x=f"{x.shape} (N, C, ...)",
                             hint=f"Give the layer channels={x.shape[1]}.")
