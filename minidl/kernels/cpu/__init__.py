"""Faster kernels for the CPU, compiled by Numba: twins of the reference, of the same names and signatures, for float32 arrays.

    vector.py           what Python cannot say: vectors, and the register tile that everything that multiplies is made of
    compiled.py         compiling, keeping the result on disk, running on the pool
    convolution.py      convolution and its two gradients: which algorithm does what
    direct.py           straight from the image; winograd.py, with a quarter of the multiplications
    plans.py            where everything lies; strips.py, how it gets there
"""

from collections.abc import Callable
from typing import Any

from minidl.kernels.cpu import convolution

TWINS: dict[str, Callable[..., Any]] = {
    "conv2d": convolution.conv2d,
    "conv2d_input": convolution.conv2d_input,
    "conv2d_weights": convolution.conv2d_weights,
}
