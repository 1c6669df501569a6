"""Reductions: many numbers become fewer, along the axes that are named (None: all of them).

A rule spreads the gradient back over the axes that were reduced. `axis` is an int or a tuple of ints, negative ones count from the
end; with `keepdims` the reduced axes stay, with length 1. cumsum, which reduces along the way, is here too.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np

from minidl import backend
from minidl.backend import Array
from minidl.errors import ShapeError
from minidl.functions.arithmetic import exp, where
from minidl.functions.shape import broadcast_to, flip
from minidl.graph import Function
from minidl.tensor import Tensor

X = TypeVar("X")
Axis = int | tuple[int, ...] | None


class Reduction(Function):
    """What all reductions share: the axes, and the way back to x's shape."""

    in_float32 = True
    axis: Any = None
    keepdims: bool = False

    def remember(self, x):
        """Note, before reducing x, the shape to spread back to."""
        self.shape = x.shape
        named = range(x.ndim) if self.axis is None else self.axis if isinstance(self.axis, tuple) else (self.axis,)
        if any(not -x.ndim <= a < x.ndim for a in named):
            raise ShapeError(f"{self.name}: axis {self.axis} does not exist", x=f"{x.shape}")
        axes = {a % x.ndim for a in named}
        self.kept_shape = tuple(1 if i in axes else n for i, n in enumerate(x.shape))
        self.count = int(np.prod([x.shape[a] for a in axes]))

    def with_axes(self, y):
        """The output or its gradient with the reduced axes as axes of length 1."""
        return y.reshape(self.kept_shape)


class Sum(Reduction):
    def forward(self, x):
        self.remember(x)
        return x.sum(axis=self.axis, keepdims=self.keepdims)

    # every number counts once
    def grad_x(self, gy):
        return broadcast_to(self.with_axes(gy), self.shape)


class Mean(Reduction):
    def forward(self, x):
        self.remember(x)
        return x.mean(axis=self.axis, keepdims=self.keepdims)

    # every number counts 1/n
    def grad_x(self, gy):
        return broadcast_to(self.with_axes(gy) * (1 / (self.count or 1)), self.shape)


class Var(Reduction):
    ddof: int = 0

    def forward(self, x):
        self.remember(x)
        if self.count <= self.ddof:
            raise ShapeError(f"var: {self.count} numbers along axis {self.axis}, and ddof is {self.ddof}", x=f"{x.shape}",
                             hint="A variance needs more numbers than ddof.")
        return x.var(axis=self.axis, ddof=self.ddof, keepdims=self.keepdims)

    # d/dx_i of sum (x - m)^2 / (n - ddof) = 2 (x_i - m) / (n - ddof); the mean moves too, but the sum of x - m is 0
    def grad_x(self, gy, x):
        centred = x - x.mean(axis=self.axis, keepdims=True)
        return centred * self.with_axes(gy) * (2 / (self.count - self.ddof))


class Max(Reduction):
    in_float32 = False

    def forward(self, x):
        self.remember(x)
        return x.max(axis=self.axis, keepdims=self.keepdims)

    # the gradient goes to the number chosen; equal ones share it
    def grad_x(self, gy, x, y):
        chosen = x == self.with_axes(y)
        share = (chosen / chosen.sum(axis=self.axis, keepdims=True)).astype(gy.dtype)
        return self.with_axes(gy) * share


class Min(Max):
    def forward(self, x):
        self.remember(x)
        return x.min(axis=self.axis, keepdims=self.keepdims)


class LogSumExp(Reduction):
    name = "logsumexp"

    def forward(self, x):
        self.remember(x)
        xp = backend.of(x)
        top = x.max(axis=self.axis, keepdims=True)
        shift = xp.where(xp.isfinite(top), top, 0).astype(x.dtype)      # the largest term becomes e^0: no overflow
        total = xp.exp(x - shift).sum(axis=self.axis, keepdims=True)
        y = xp.log(xp.where(total == 0, 1, total)) + top                # nothing but -inf gives -inf
        return y if self.keepdims else y.squeeze(axis=self.axis)

    # d/dx_i log sum e^x = e^x_i / sum e^x, and 0 where nothing is summed
    def grad_x(self, gy, x, y):
        return self.with_axes(gy) * exp(x - self.with_axes(where(y == -np.inf, 0.0, y)))


class Argmax(Function):
    axis: int | None

    def forward(self, x):
        return x.argmax(axis=self.axis)


class CumSum(Function):
    name = "cumsum"
    in_float32 = True
    axis: int

    def forward(self, x):
        return backend.of(x).cumsum(x, axis=self.axis)

    # x_i is in the sums i, i + 1, ...: sum the gradient from the other end
    def grad_x(self, gy):
        return flip(cumsum(flip(gy, self.axis), self.axis), self.axis)


def sum(x: Any, axis: Axis = None, keepdims: bool = False) -> Any:
    """The sum along the axes.

    >>> sum(np.array([[1.0, 2.0], [3.0, 4.0]]), axis=0)
    array([4., 6.])
    """
    return Sum(axis, keepdims)(x)


def mean(x: Any, axis: Axis = None, keepdims: bool = False) -> Any:
    """The mean along the axes.

    >>> mean(np.array([[1.0, 2.0], [3.0, 4.0]]), axis=0)
    array([2., 3.])
    """
    return Mean(axis, keepdims)(x)


def var(x: Any, axis: Axis = None, ddof: int = 0, keepdims: bool = False) -> Any:
    """The variance along the axes: the mean of the squared distance from the mean.

    ddof: subtracted from the count that is divided by: 0 as in NumPy, 1 for the unbiased estimate.

    >>> var(np.array([[1.0, 2.0], [3.0, 4.0]]), axis=0)
    array([1., 1.])
    """
    return Var(axis, keepdims, ddof)(x)


def max(x: Any, axis: Axis = None, keepdims: bool = False) -> Any:
    """The largest number along the axes; equal ones share the gradient.

    >>> max(np.array([[1.0, 2.0], [3.0, 4.0]]), axis=0)
    array([3., 4.])
    """
    return Max(axis, keepdims)(x)


def min(x: Any, axis: Axis = None, keepdims: bool = False) -> Any:
    """The smallest number along the axes; equal ones share the gradient.

    >>> min(np.array([[1.0, 2.0], [3.0, 4.0]]), axis=0)
    array([1., 2.])
    """
    return Min(axis, keepdims)(x)


def argmax(x: Any, axis: int | None = None) -> Array:
    """Where the largest number is: an integer array, never a Tensor. The first of equal ones; in the flattened x without an axis.

    >>> argmax(np.array([[1.0, 5.0], [7.0, 4.0]]), axis=1)
    array([1, 0])
    """
    return Argmax(axis)(x.data if isinstance(x, Tensor) else x)


def logsumexp(x: Any, axis: Axis = None, keepdims: bool = False) -> Any:
    """log(sum(exp(x))) along the axes, without overflow.

    >>> logsumexp(np.array([[1000.0, 1000.0]]), axis=1)
    array([1000.69314718])
    """
    return LogSumExp(axis, keepdims)(x)


def cumsum(x: X, axis: int) -> X:
    """The running sum along an axis: y_i = x_0 + ... + x_i.

    >>> cumsum(np.array([1.0, 2.0, 3.0]), axis=0)
    array([1., 3., 6.])
    """
    return CumSum(axis)(x)


Tensor.bind(sum=sum, mean=mean, var=var, max=max, min=min, argmax=argmax)
