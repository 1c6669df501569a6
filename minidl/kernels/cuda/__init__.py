"""Faster kernels for NVIDIA GPUs, written in CUDA: twins of the reference, of the same names and signatures, for CuPy's arrays.

Beside each Python file, which decides what is launched, lies the CUDA file of the same name.

    source.py, common.cuh       compiling for the types of a call, launching; what all CUDA files share

CuPy is not imported here: the array that is given brings its library along.
"""

from collections.abc import Callable
from typing import Any

TWINS: dict[str, Callable[..., Any]] = {}
