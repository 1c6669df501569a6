"""Activations: what a layer does to each number on its own, and the softmax, which does it to a row.

Each function shows its forward and, straight under it, its derivative. A rule asks for the output y where it can, so that the input
need not be kept. `SLOPES` holds the derivatives of those that a convolution or an affine layer can do itself: for them y is enough.
"""

from __future__ import annotations

import math
from typing import TypeVar

from minidl import backend, kernels
from minidl.errors import ArgumentError
from minidl.functions.arithmetic import exp, where
from minidl.functions.reduction import sum as sum_
from minidl.functions.steps import by_kernel
from minidl.graph import Function
from minidl.tensor import Tensor

X = TypeVar("X")

# f'(z), from y = f(z)
SLOPES = {
    "relu": lambda y: y > 0,
    "tanh": lambda y: 1 - y * y,
    "sigmoid": lambda y: y * (1 - y),
}


@by_kernel("activation_gradient")
def activation_gradient(gy, y, name, out=None):
    """gz = gy f'(z), from y = f(z). out: an array to write it into."""
    return gy * SLOPES[name](y)


class ReLU(Function):
    name = "relu"

    def forward(self, x):
        return backend.of(x).maximum(x, 0)

    # dy/dx = 1 where y > 0, else 0
    def grad_x(self, gy, y, *, out=None):
        return activation_gradient(gy, y, "relu", out)


class LeakyReLU(Function):
    name = "leaky_relu"
    slope: float

    def forward(self, x):
        self.positive = x > 0
        return backend.of(x).where(self.positive, x, x * self.slope)

    # dy/dx = 1 where x > 0, else the slope
    def grad_x(self, gy):
        return where(self.positive, gy, gy * self.slope)


class ELU(Function):
    in_float32 = True
    alpha: float

    def forward(self, x):
        xp = backend.of(x)
        self.positive = x > 0
        return xp.where(self.positive, x, xp.expm1(xp.minimum(x, 0)) * self.alpha)

    # dy/dx = 1 where x > 0, else alpha e^x = y + alpha
    def grad_x(self, gy, y):
        return where(self.positive, gy, gy * (y + self.alpha))


class Sigmoid(Function):
    in_float32 = True

    def forward(self, x):
        return backend.of(x).tanh(x * 0.5) * 0.5 + 0.5          # no overflow at either end

    # dy/dx = y (1 - y)
    def grad_x(self, gy, y, *, out=None):
        return activation_gradient(gy, y, "sigmoid", out)


class Tanh(Function):
    def forward(self, x):
        return backend.of(x).tanh(x)

    # dy/dx = 1 - y^2
    def grad_x(self, gy, y, *, out=None):
        return activation_gradient(gy, y, "tanh", out)


class Softplus(Function):
    in_float32 = True

    def forward(self, x):
        xp = backend.of(x)
        return xp.maximum(x, 0) + xp.log1p(xp.exp(-abs(x)))     # log(1 + e^x) without overflow

    # dy/dx = sigmoid x
    def grad_x(self, gy, x):
        return gy * sigmoid(x)


class Erf(Function):
    in_float32 = True

    def forward(self, x):
        return kernels.erf(x)

    # dy/dx = 2 / sqrt(pi) e^(-x^2)
    def grad_x(self, gy, x):
        return gy * exp(-(x * x)) * (2 / math.sqrt(math.pi))


class GELU(Function):
    in_float32 = True

    def forward(self, x):
        return x * (kernels.erf(x * math.sqrt(0.5)) + 1) * 0.5

    # y = x P(x) with P the normal distribution function; dy/dx = P(x) + x p(x)
    def grad_x(self, gy, x):
        distribution = (erf(x * math.sqrt(0.5)) + 1) * 0.5
        density = exp(x * x * -0.5) * (1 / math.sqrt(2 * math.pi))
        return gy * (distribution + x * density)


class TanhGELU(Function):
    name = "gelu"
    in_float32 = True

    def forward(self, x):
        return x * (backend.of(x).tanh(self.inner(x)) + 1) * 0.5

    def inner(self, x):
        return (x + x * x * x * 0.044715) * math.sqrt(2 / math.pi)

    # y = x (1 + tanh u) / 2; dy/dx = (1 + tanh u) / 2 + x (1 - tanh^2 u) u' / 2
    def grad_x(self, gy, x, inner):
        t = tanh(inner)
        slope = (x * x * (3 * 0.044715) + 1) * math.sqrt(2 / math.pi)
        return gy * (t + 1 + x * (1 - t * t) * slope) * 0.5


class Softmax(Function):
    in_float32 = True
    axis: int

    def forward(self, x):
        e = backend.of(x).exp(x - x.max(axis=self.axis, keepdims=True))
        e /= e.sum(axis=self.axis, keepdims=True)
        return e

    # dy_i/dx_j = y_i (1[i=j] - y_j), so gx = y (gy - gy . y)
    def grad_x(self, gy, y):
        return y * (gy - sum_(gy * y, self.axis, keepdims=True))


class LogSoftmax(Function):
    in_float32 = True
    axis: int

    def forward(self, x):
        xp = backend.of(x)
        y = x - x.max(axis=self.axis, keepdims=True)
        y -= xp.log(xp.exp(y).sum(axis=self.axis, keepdims=True))
        return y

    # dy_i/dx_j = 1[i=j] - softmax_j, so gx = gy - e^y sum gy
    def grad_x(self, gy, y):
        return gy - exp(y) * sum_(gy, self.axis, keepdims=True)


def relu(x: X) -> X:
    """Rectified linear unit, max(x, 0), elementwise.

    x: array or Tensor of any shape; the result has its shape and dtype. The gradient at 0 is 0.
    Nair and Hinton, ICML 2010.

    >>> relu(np.array([-1.0, 0.0, 2.0]))
    array([0., 0., 2.])
    """
    return ReLU()(x)


def leaky_relu(x: X, slope: float = 0.01) -> X:
    """x where it is positive, slope * x elsewhere. Maas, Hannun and Ng, ICML 2013.

    >>> leaky_relu(np.array([-1.0, 2.0]))
    array([-0.01,  2.  ])
    """
    return LeakyReLU(float(slope))(x)


def elu(x: X, alpha: float = 1.0) -> X:
    """x where it is positive, alpha (e^x - 1) elsewhere. Clevert, Unterthiner and Hochreiter, arXiv:1511.07289.

    >>> elu(np.array([-1.0, 2.0]))
    array([-0.63212056,  2.        ])
    """
    return ELU(float(alpha))(x)


def sigmoid(x: X) -> X:
    """1 / (1 + e^-x), without overflow at either end.

    >>> sigmoid(np.array([-1000.0, 0.0, 1000.0]))
    array([0. , 0.5, 1. ])
    """
    return Sigmoid()(x)


def tanh(x: X) -> X:
    """The hyperbolic tangent.

    >>> tanh(np.array([0.0, 1.0]))
    array([0.        , 0.76159416])
    """
    return Tanh()(x)


def softplus(x: X) -> X:
    """log(1 + e^x), a smooth ReLU. Dugas et al., NIPS 2000.

    >>> softplus(np.array([0.0, 1000.0]))
    array([6.93147181e-01, 1.00000000e+03])
    """
    return Softplus()(x)


def erf(x: X) -> X:
    """The error function, 2/sqrt(pi) times the integral of e^(-t^2) from 0 to x.

    >>> erf(np.array([0.0, 1.0]))
    array([0.        , 0.84270079])
    """
    return Erf()(x)


def gelu(x: X, approximate: bool = False) -> X:
    """x times the probability that a standard normal variable is below x.

    approximate: by a tanh, as in the first GPT models, instead of exactly. Hendrycks and Gimpel, arXiv:1606.08415.

    >>> gelu(np.array([-1.0, 0.0, 1.0]))
    array([-0.15865525,  0.        ,  0.84134475])
    """
    return (TanhGELU() if approximate else GELU())(x)


def softmax(x: X, axis: int = -1) -> X:
    """e^x divided by its sum along the axis: positive numbers that add up to 1.

    >>> softmax(np.array([0.0, 1000.0]))
    array([0., 1.])
    """
    return Softmax(axis)(x)


def log_softmax(x: X, axis: int = -1) -> X:
    """The logarithm of the softmax, without overflow.

    >>> log_softmax(np.array([0.0, 1000.0]))
    array([-1000.,     0.])
    """
    return LogSoftmax(axis)(x)


def check_activation(operation: str, activation: str | None) -> None:
    """ArgumentError if a layer cannot do this activation itself."""
    if activation is not None and activation not in SLOPES:
        raise ArgumentError(f"{operation}: activation {activation!r} is not one that can be fused ({', '.join(SLOPES)})",
                            hint="Leave it out, and call the function on the result.")


Tensor.bind(tanh=tanh, sigmoid=sigmoid)
