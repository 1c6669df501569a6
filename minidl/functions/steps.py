"""Steps of gradient rules that have a kernel of their own.

A rule is called with arrays in an ordinary pass, and with Tensors where its result shall be differentiated again. For Tensors the
formula of a step is written out, as everywhere in functions/. For arrays a kernel does it in one go. `by_kernel` puts the two together,
so that a rule is still written once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from minidl import backend, kernels
from minidl.functions.reduction import sum as sum_
from minidl.tensor import Tensor


def by_kernel(name: str) -> Callable[[Callable], Callable]:
    """`@by_kernel("channel_sums")` over a formula for Tensors: where the first argument is an array, the kernel of that name is called.

    Both take the same arguments and give the same numbers; what has 16 bits is rounded in fewer places by a kernel.
    """
    def decorate(formula: Callable) -> Callable:
        @functools.wraps(formula)
        def step(x: Any, *others: Any) -> Any:
            return formula(x, *others) if isinstance(x, Tensor) else getattr(kernels, name)(x, *others)
        return step
    return decorate


@by_kernel("channel_sums")
def channel_sums(gy: Any) -> Any:
    """The sum over all axes but the second: the gradient of a bias a channel."""
    return sum_(backend.wide(gy), (0, *range(2, gy.ndim)))


@by_kernel("affine_weights")
def affine_weights(x: Any, gy: Any) -> Any:
    """x^T gy: the gradient of an affine layer by its weights."""
    return backend.wide(x).T @ backend.wide(gy)


@by_kernel("matmul")
def product(a: Any, b: Any) -> Any:
    """The product of matrices whose shapes are known to fit."""
    return a @ b
