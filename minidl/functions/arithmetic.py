"""Arithmetic, number by number, with NumPy's broadcasting.

Each class shows its forward and, straight under it, a rule for each argument. The rules know nothing of broadcasting: the engine sums
a gradient back to its argument's shape. At the end the functions become Tensor's operators. Functions that a layer uses as its
activation are in activation.py.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np

from minidl import backend
from minidl.errors import ArgumentError
from minidl.graph import Function
from minidl.tensor import Tensor

X = TypeVar("X")        # arrays give arrays, Tensors give Tensors


class Add(Function):
    def forward(self, a, b):
        return a + b

    # d(a + b)/da = d(a + b)/db = 1
    def grad_a(self, gy):
        return gy

    def grad_b(self, gy):
        return gy


class Subtract(Function):
    def forward(self, a, b):
        return a - b

    # d(a - b)/da = 1, d(a - b)/db = -1
    def grad_a(self, gy):
        return gy

    def grad_b(self, gy):
        return -gy


class Multiply(Function):
    def forward(self, a, b):
        return a * b

    # d(ab)/da = b, d(ab)/db = a
    def grad_a(self, gy, b):
        return gy * b

    def grad_b(self, gy, a):
        return gy * a


class Divide(Function):
    def forward(self, a, b):
        return a / b

    # d(a/b)/da = 1/b, d(a/b)/db = -(a/b)/b
    def grad_a(self, gy, b):
        return gy / b

    def grad_b(self, gy, b, y):
        return -gy * y / b


class Negative(Function):
    def forward(self, x):
        return -x

    # d(-x)/dx = -1
    def grad_x(self, gy):
        return -gy


class Power(Function):
    in_float32 = True

    def forward(self, a, b):
        return a ** b

    # d(a^b)/da = b a^(b-1), which is 0 for b = 0, also at a = 0
    def grad_a(self, gy, a, b):
        if isinstance(b, backend.SCALARS):
            return gy * 0 if b == 0 else gy * (b * a ** (b - 1))
        return gy * (b * a ** where(b == 0, 1.0, b - 1))

    # d(a^b)/db = a^b log a, which tends to 0 as a does
    def grad_b(self, gy, a, y):
        if isinstance(a, backend.SCALARS):
            return gy * y * (np.log(a).item() if a else 0.0)
        return gy * y * log(where(a == 0, 1.0, a))


class Exp(Function):
    def forward(self, x):
        return backend.of(x).exp(x)

    # d(e^x)/dx = e^x
    def grad_x(self, gy, y):
        return gy * y


class Log(Function):
    def forward(self, x):
        return backend.of(x).log(x)

    # d(log x)/dx = 1/x
    def grad_x(self, gy, x):
        return gy / x


class Sqrt(Function):
    def forward(self, x):
        return backend.of(x).sqrt(x)

    # d(sqrt x)/dx = 1 / (2 sqrt x)
    def grad_x(self, gy, y):
        return gy * 0.5 / y


class Abs(Function):
    def forward(self, x):
        return abs(x)

    # d|x|/dx = sign x, 0 at 0
    def grad_x(self, gy, x):
        return gy * (x > 0) - gy * (x < 0)


class Maximum(Function):
    def forward(self, a, b):
        return _library(a, b).maximum(a, b)

    # the larger one gets the gradient; where they are equal each gets half
    def grad_a(self, gy, a, b):
        return gy * (a > b) + gy * 0.5 * (a == b)

    def grad_b(self, gy, a, b):
        return gy * (a < b) + gy * 0.5 * (a == b)


class Minimum(Function):
    def forward(self, a, b):
        return _library(a, b).minimum(a, b)

    # the smaller one gets the gradient; where they are equal each gets half
    def grad_a(self, gy, a, b):
        return gy * (a < b) + gy * 0.5 * (a == b)

    def grad_b(self, gy, a, b):
        return gy * (a > b) + gy * 0.5 * (a == b)


class Clip(Function):
    in_float32 = True                                           # of bfloat16 CuPy's clip wants both bounds
    low: Any = None
    high: Any = None

    def forward(self, x):
        self.inside = (x >= (-np.inf if self.low is None else self.low)) & (x <= (np.inf if self.high is None else self.high))
        return x.clip(self.low, self.high)

    # 1 inside and at the bounds, 0 outside
    def grad_x(self, gy):
        return gy * self.inside


class Where(Function):
    def forward(self, mask, a, b):
        xp = _library(mask, a, b)                               # the mask of an array without axes is a plain boolean in NumPy
        return xp.where(xp.asarray(mask), a, b)

    # each side gets the gradient where it was chosen; chosen, not multiplied, so that a NaN on the other side stays there
    def grad_a(self, gy, mask):
        return where(mask, gy, 0.0)

    def grad_b(self, gy, mask):
        return where(mask, 0.0, gy)


def add(a: Any, b: Any) -> Any:
    """a + b, with broadcasting.

    >>> add(np.array([1.0, 2.0]), 1)
    array([2., 3.])
    """
    return Add()(a, b)


def subtract(a: Any, b: Any) -> Any:
    """a - b, with broadcasting.

    >>> subtract(np.array([1.0, 2.0]), 1)
    array([0., 1.])
    """
    return Subtract()(a, b)


def multiply(a: Any, b: Any) -> Any:
    """a times b, with broadcasting.

    >>> multiply(np.array([1.0, 2.0]), 3)
    array([3., 6.])
    """
    return Multiply()(a, b)


def divide(a: Any, b: Any) -> Any:
    """a / b, with broadcasting.

    >>> divide(np.array([1.0, 2.0]), 2)
    array([0.5, 1. ])
    """
    return Divide()(a, b)


def negative(x: X) -> X:
    """-x.

    >>> negative(np.array([1.0, -2.0]))
    array([-1.,  2.])
    """
    return Negative()(x)


def power(a: Any, b: Any) -> Any:
    """a to the power b, with broadcasting.

    The gradient by a is 0 where b is 0, and the gradient by b is 0 where a is 0.

    >>> power(np.array([1.0, 2.0]), 3)
    array([1., 8.])
    """
    return Power()(a, b)


def exp(x: X) -> X:
    """e to the power x.

    >>> exp(np.array([0.0, 1.0]))
    array([1.        , 2.71828183])
    """
    return Exp()(x)


def log(x: X) -> X:
    """The natural logarithm.

    >>> log(np.array([1.0, np.e]))
    array([0., 1.])
    """
    return Log()(x)


def sqrt(x: X) -> X:
    """The square root.

    >>> sqrt(np.array([4.0, 9.0]))
    array([2., 3.])
    """
    return Sqrt()(x)


def abs_(x: X) -> X:
    """The absolute value; its gradient at 0 is 0. Named `abs` in minidl.functions.

    >>> abs_(np.array([-1.0, 2.0]))
    array([1., 2.])
    """
    return Abs()(x)


def maximum(a: Any, b: Any) -> Any:
    """The larger of two numbers, with broadcasting; equal ones share the gradient.

    >>> maximum(np.array([1.0, 3.0]), 2.0)
    array([2., 3.])
    """
    return Maximum()(a, b)


def minimum(a: Any, b: Any) -> Any:
    """The smaller of two numbers, with broadcasting; equal ones share the gradient.

    >>> minimum(np.array([1.0, 3.0]), 2.0)
    array([1., 2.])
    """
    return Minimum()(a, b)


def clip(x: X, low: float | None = None, high: float | None = None) -> X:
    """x, but no less than low and no more than high; None is no bound.

    The gradient is 1 inside and at the bounds, 0 outside.

    >>> clip(np.array([-1.0, 0.5, 2.0]), 0, 1)
    array([0. , 0.5, 1. ])
    """
    if low is None and high is None:
        raise ArgumentError("clip: neither a lower nor an upper bound is given", hint="Give low, high, or both.")
    return Clip(_plain(low), _plain(high))(x)


def where(mask: Any, a: Any, b: Any) -> Any:
    """a where the mask is true, b elsewhere, with broadcasting.

    mask: booleans: an array, a Tensor, or a single one.

    >>> where(np.array([True, False]), np.array([1.0, 2.0]), 0.0)
    array([1., 0.])
    """
    return Where()(mask, a, b)


def _library(*xs: Any) -> Any:
    """The array library of the first argument that is not a number."""
    return next((backend.of(x) for x in xs if not isinstance(x, backend.SCALARS)), np)


def _plain(number: Any) -> Any:
    """A NumPy scalar as a Python number, which takes the dtype of the array beside it."""
    return number.item() if isinstance(number, np.generic) else number


def _reflected(function: Any) -> Any:
    return lambda b, a: function(a, b)


Tensor.bind(
    __add__=add, __radd__=_reflected(add), __sub__=subtract, __rsub__=_reflected(subtract),
    __mul__=multiply, __rmul__=_reflected(multiply), __truediv__=divide, __rtruediv__=_reflected(divide),
    __pow__=power, __rpow__=_reflected(power), __neg__=negative, __abs__=abs_,
    exp=exp, log=log, sqrt=sqrt, clip=clip,
)
