"""How fast this very device copies and multiplies: what is achieved is told as a share of that, not of a data sheet."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpu.clock import Clock
from minidl import backend, kernels

PRECISIONS = ("float32", "tf32", "float16", "bfloat16")
COPIED = 2**30              # bytes, many times what a cache holds
SIZE = 8192                 # rows and columns of the matrices


def measure(device: str, clock: Clock, small: bool = False) -> dict[str, Any]:
    """"copy", in bytes read and written a second, and "products", operations a second by precision."""
    xp = backend.of(backend.asarray(np.zeros(1, np.float32), device))
    x = xp.ones((2**20 if small else COPIED) // 4, "float32")
    y = xp.empty_like(x)

    def copy() -> None:
        y[...] = x

    size, draw = 256 if small else SIZE, np.random.default_rng(0)
    numbers = draw.standard_normal((size, size), np.float32)
    found: dict[str, Any] = {"copy": 2 * x.nbytes / best(clock, copy), "products": {}}
    for precision in PRECISIONS:
        a = backend.asarray(numbers.astype(backend.dtype_named(dtype_of(precision))), device)
        with in_precision(precision):
            found["products"][precision] = 2 * size**3 / best(clock, lambda a=a: kernels.matmul(a, a))
    return found


def best(clock: Clock, work: Any) -> float:
    """The least seconds of a few short blocks: a ceiling is what it can do."""
    work()
    return min(clock.block(work, 5) for _ in range(4))


def dtype_of(precision: str) -> str:
    """In what dtype minibatches enter a network in this precision."""
    return "float32" if precision == "tf32" else precision


def in_precision(precision: str) -> Any:
    """A block in which products of float32 run as this precision says."""
    return kernels.allow_tf32(precision == "tf32")
