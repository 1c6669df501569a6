"""Normalization: numbers shifted and scaled to mean 0 and variance 1, then by a learned gamma and beta.

Batch normalization does it for each channel over the batch and the positions, layer normalization for each example over its last
axes. The mean and the variance are outputs, because they depend on x: a rule that names them stays right when it is differentiated
again. All three gradients come out of the same sums, and so of one step that the rules share. Running statistics are the layer's
business (nn), not this file's.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

from minidl import backend, kernels
from minidl.errors import ShapeError
from minidl.functions.activation import activation_gradient, check_activation, relu, sigmoid, tanh
from minidl.functions.arithmetic import sqrt
from minidl.functions.linear import check_dtypes
from minidl.functions.reduction import mean as mean_
from minidl.functions.reduction import sum as sum_
from minidl.functions.shape import check_arrays, concatenate
from minidl.functions.steps import by_kernel, channel_sums
from minidl.graph import Function

ACTIVATIONS: dict[str, Callable] = {"relu": relu, "sigmoid": sigmoid, "tanh": tanh}
COUNT = 4096                            # counts are sent as two numbers, which float32 holds exactly up to 2^36
Reduce = Callable[[Any], Any]

# y = gamma u + beta, u = (x - mean) r, r = 1 / sqrt(var + eps), means and sums over all axes but the channels':
# gbeta = sum gy, ggamma = sum gy u, gx = gamma r (gy - mean(gy) - u mean(gy u)) + gmean / n + 2 gvar (x - mean) / n
# Where the batch is spread over ranks, n is the count of all, and gx takes everyone's sums; gamma and beta get this rank's.
def gradients_of_batch_norm(gy, x, gamma, mean, var, eps, gmean, gvar, n, reduce=None):
    gy, x, wide = backend.wide(gy), backend.wide(x), _beside(x)
    r = 1 / sqrt(var + eps)
    centred = x - mean.reshape(wide)
    u = centred * r.reshape(wide)
    gbeta, ggamma = channel_sums(gy), channel_sums(gy * u)
    all_gbeta, all_ggamma, gmean, gvar = everywhere(reduce, gbeta, ggamma, gmean, gvar)
    direct = (gamma * r).reshape(wide) * (gy - (all_gbeta * (1 / n)).reshape(wide) - u * (all_ggamma * (1 / n)).reshape(wide))
    return direct + (gmean.reshape(wide) + gvar.reshape(wide) * 2 * centred) * (1 / n), ggamma, gbeta


@by_kernel("batch_norm_gradient")
def batch_norm_gradient(gy, x, gamma, mean, var, eps, gmean, gvar):
    return gradients_of_batch_norm(gy, x, gamma, mean, var, eps, gmean, gvar, x.size // x.shape[1])


def joint_batch_norm(x, gamma, beta, eps, activation, reduce):
    """What kernels.batch_norm does, with sums over all ranks: y, mean, var, and the count of numbers a channel."""
    xp, over, wide = backend.of(x), (0, *range(2, x.ndim)), _beside(x)
    dtype, x = x.dtype, backend.wide(x)
    here = x.size // x.shape[1]
    total, counted = everywhere(reduce, x.sum(axis=over), xp.asarray(divmod(here, COUNT), x.dtype))
    n = int(counted[0]) * COUNT + int(counted[1])
    if n == 0:
        raise _empty(x)
    mean = total * (1 / n)
    y = x - mean.reshape(wide)
    (squares,) = everywhere(reduce, (y * y).sum(axis=over))         # a second look: a large mean does not swallow the variance
    var = squares * (1 / n)
    y *= (gamma / xp.sqrt(var + eps)).reshape(wide)
    y += beta.reshape(wide)
    return (y if activation is None else ACTIVATIONS[activation](y)).astype(dtype, copy=False), mean, var, n


def everywhere(reduce, *sums):
    """Sums over all ranks, of arrays or Tensors (n,): all in one message. reduce: None where there is one process."""
    if reduce is None:
        return sums
    whole, ends = reduce(concatenate(sums)), list(itertools.accumulate(len(each) for each in sums))
    return [whole[start:end] for start, end in zip([0, *ends], ends)]


class BatchNorm(Function):
    outputs = ("y", "mean", "var")
    activation = None
    eps: float
    reduce: Any = None

    def forward(self, x, gamma, beta):
        if self.reduce is None:
            return kernels.batch_norm(x, gamma, beta, self.eps, self.activation)
        y, mean, var, self.count = joint_batch_norm(x, gamma, beta, self.eps, self.activation, self.reduce)
        return y, mean, var

    def before(self, gy):
        return gy

    def gradients(self, before, x, gamma, mean, var, gmean, gvar):
        if self.reduce is None:
            return batch_norm_gradient(before, x, gamma, mean, var, self.eps, gmean, gvar)
        return gradients_of_batch_norm(before, x, gamma, mean, var, self.eps, gmean, gvar, self.count, self.reduce)

    def grad_x(self, before, gradients):
        return gradients[0]

    def grad_gamma(self, before, gradients):
        return gradients[1]

    def grad_beta(self, before, gradients):
        return gradients[2]


class ActivatedBatchNorm(BatchNorm):
    name = "batch_norm"
    activation: str = "relu"                # type: ignore[assignment]      # the base has none

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
    gy, x = backend.wide(gy), backend.wide(x)
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


def batch_norm(x: Any, gamma: Any, beta: Any, eps: float = 1e-5, activation: str | None = None, reduce: Reduce | None = None) -> Any:
    """Normalize each channel over the batch; gives (y, mean, var).

    x: (N, C) or (N, C, H, W). gamma, beta: (C,). y has x's shape; mean and var are (C,), var the mean squared distance from the mean
    (divided by the count, not by one less). Where x has 16 bits, mean and var are float32, and gamma and beta may be. eps: added to var
    under the root. activation: of y, fused: "relu", "tanh", "sigmoid" or None. ShapeError, DtypeError, ArgumentError if something does
    not fit. Ioffe and Szegedy, ICML 2015.

    reduce: where x is this rank's part of a batch, gives the sum over all ranks of a vector, an array or, where it is to be
    differentiated, a Tensor; all ranks call it equally often, also with an empty x. Then mean and var are of the whole batch, and a
    fourth result is the count of numbers a channel in it.

    >>> y, mean, var = batch_norm(np.array([[1.0], [3.0]]), np.ones(1), np.zeros(1), eps=0)
    >>> y.ravel(), mean, var
    (array([-1.,  1.]), array([2.]), array([1.]))
    """
    _check_channels("batch_norm", x, gamma=gamma, beta=beta)
    check_activation("batch_norm", activation)
    if x.size == 0 and reduce is None:
        raise _empty(x)
    operation = BatchNorm(float(eps), reduce) if activation is None else ActivatedBatchNorm(float(eps), reduce, activation)
    results = operation(x, gamma, beta)
    return results if reduce is None else (*results, operation.count)


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


def _empty(x: Any) -> ShapeError:
    return ShapeError("batch_norm: an empty batch has no mean", x=f"{x.shape}")


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
