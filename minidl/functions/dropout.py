"""Dropout: numbers set to zero at random, the others made larger so that the mean stays.

Which ones is not drawn from a generator but hashed from (seed, step, layer, element), so that every device, any number of workers and
a resumed run drop the same ones. Who counts steps and layers is the layer's business (nn).
"""

from __future__ import annotations

from typing import Any, TypeVar

from minidl import kernels
from minidl.errors import ArgumentError
from minidl.functions.steps import by_kernel
from minidl.graph import Function

X = TypeVar("X")


@by_kernel("dropout_gradient")
def dropout_gradient(gy, mask, scale):
    return gy * mask * scale


class Dropout(Function):
    p: float
    key: tuple[int, Any, int]
    first: int = 0

    def forward(self, x):
        y, self.mask = kernels.dropout(x, self.p, *self.key, self.first)
        return y

    # what was dropped gets nothing, the rest is scaled alike
    def grad_x(self, gy):
        return dropout_gradient(gy, self.mask, 1 / (1 - self.p))


def dropout(x: X, p: float = 0.5, seed: int = 0, step: Any = 0, layer: int = 0, first: int = 0) -> X:
    """Zeros in place of a fraction p of the numbers, and the others divided by 1 - p.

    x: any shape. seed, step, layer: the same three give the same zeros. first: the number of x's first element, where x is the part of
    a larger minibatch that this worker has. step may be an array of one integer on x's device, so that no launch need know its value.
    ArgumentError for p outside [0, 1). Srivastava et al., JMLR 2014.

    >>> dropout(np.ones(8), p=0.5, seed=1)
    array([2., 0., 0., 0., 2., 2., 2., 0.])
    """
    if not 0 <= p < 1:
        raise ArgumentError(f"dropout: p is {p}, and must be at least 0 and less than 1")
    return Dropout(float(p), (int(seed), step if hasattr(step, "dtype") else int(step), int(layer)), first)(x)
