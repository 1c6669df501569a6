"""The numbers that weights start from.

Each initialiser takes a shape and gives a NumPy array: the spread is chosen so that signals keep their size from layer to layer, forward
(by fan-in, the number of inputs that one output adds up) or also backward (by fan-out). Numbers are drawn on the CPU and in float64,
then rounded, so that every device and every dtype starts from the same ones. Layers take any function of this form as `init=`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minidl import backend
from minidl.errors import ArgumentError, DtypeError, ShapeError

Shape = tuple[int, ...]
Source = int | np.random.Generator | np.random.SeedSequence | None      # what backend.generator takes


def float_type(dtype: Any, caller: str) -> np.dtype:
    """A float dtype by its name or class. DtypeError for any other."""
    if isinstance(dtype, str) and dtype == "bfloat16":
        return backend.dtype_named(dtype)
    try:
        found = np.dtype(dtype)
    except TypeError:
        found = None
    if found is None or not backend.is_float(found):
        raise DtypeError(f"{caller}: dtype {dtype!r} is not a float type", hint='Use "float32", "float64", "float16" or "bfloat16".')
    return found


def fans(shape: Shape) -> tuple[int, int]:
    """Fan-in and fan-out of a weight: how many inputs one output adds up, and how many outputs one input goes to.

    shape: (inputs, outputs) of an affine layer, or (O, C / groups, KH, KW) of filters, where each position of the window counts.
    ShapeError for another number of axes.

    >>> fans((784, 10)), fans((16, 3, 5, 5))
    ((784, 10), (75, 400))
    """
    if len(shape) == 2:
        return shape[0], shape[1]
    if len(shape) == 4:
        window = shape[2] * shape[3]
        return shape[1] * window, shape[0] * window
    raise ShapeError(f"a weight of shape {shape} has no fan-in", hint="Give (inputs, outputs), or filters (O, C, KH, KW).")


def he_normal(shape: Shape, generator: Source = None, dtype: Any = "float32", gain: float = math.sqrt(2)) -> np.ndarray:
    """Normal numbers of standard deviation gain / sqrt(fan-in), for layers followed by a ReLU, which is why gain is sqrt(2).

    shape: as `fans` takes it. generator: a NumPy Generator, a seed, or None. He et al., ICCV 2015.

    >>> he_normal((2, 3), generator=0).shape
    (2, 3)
    """
    return _normal(shape, gain / math.sqrt(_some(shape, fans(shape)[0])), generator, dtype)


def he_uniform(shape: Shape, generator: Source = None, dtype: Any = "float32", gain: float = math.sqrt(2)) -> np.ndarray:
    """Uniform numbers with the standard deviation of `he_normal`, between -gain sqrt(3 / fan-in) and as much above 0.

    shape: as `fans` takes it. generator: a NumPy Generator, a seed, or None. He et al., ICCV 2015.

    >>> bool((abs(he_uniform((6, 50), generator=0)) <= 1).all())
    True
    """
    return _uniform(shape, gain * math.sqrt(3 / _some(shape, fans(shape)[0])), generator, dtype)


def xavier_normal(shape: Shape, generator: Source = None, dtype: Any = "float32", gain: float = 1.0) -> np.ndarray:
    """Normal numbers of standard deviation gain sqrt(2 / (fan-in + fan-out)), for layers followed by tanh or nothing.

    shape: as `fans` takes it. generator: a NumPy Generator, a seed, or None. Glorot and Bengio, AISTATS 2010.

    >>> xavier_normal((2, 3), generator=0).dtype
    dtype('float32')
    """
    return _normal(shape, gain * math.sqrt(2 / _some(shape, sum(fans(shape)))), generator, dtype)


def xavier_uniform(shape: Shape, generator: Source = None, dtype: Any = "float32", gain: float = 1.0) -> np.ndarray:
    """Uniform numbers with the standard deviation of `xavier_normal`, between -gain sqrt(6 / (fan-in + fan-out)) and as much above 0.

    shape: as `fans` takes it. generator: a NumPy Generator, a seed, or None. Glorot and Bengio, AISTATS 2010.

    >>> bool((abs(xavier_uniform((3, 3), generator=0)) <= 1).all())
    True
    """
    return _uniform(shape, gain * math.sqrt(6 / _some(shape, sum(fans(shape)))), generator, dtype)


def normal(shape: Shape, generator: Source = None, dtype: Any = "float32", deviation: float = 1.0) -> np.ndarray:
    """Normal numbers of mean 0 and a fixed standard deviation, whatever the shape.

    >>> normal((2, 3), generator=0).shape
    (2, 3)
    """
    return _normal(shape, deviation, generator, dtype)


def zeros(shape: Shape, generator: Source = None, dtype: Any = "float32") -> np.ndarray:
    """Zeros, in the form of an initialiser: the generator is not asked.

    >>> zeros((2,))
    array([0., 0.], dtype=float32)
    """
    return np.zeros(shape, float_type(dtype, "init"))


def ones(shape: Shape, generator: Source = None, dtype: Any = "float32") -> np.ndarray:
    """Ones, in the form of an initialiser: the generator is not asked.

    >>> ones((2,))
    array([1., 1.], dtype=float32)
    """
    return np.ones(shape, float_type(dtype, "init"))


def _normal(shape: Shape, deviation: float, generator: Source, dtype: Any) -> np.ndarray:
    return (backend.generator(generator).standard_normal(shape) * deviation).astype(float_type(dtype, "init"))


def _uniform(shape: Shape, bound: float, generator: Source, dtype: Any) -> np.ndarray:
    return backend.generator(generator).uniform(-bound, bound, shape).astype(float_type(dtype, "init"))


def _some(shape: Shape, fan: int) -> int:
    if fan < 1:
        raise ArgumentError(f"a weight of shape {shape} has nothing to draw", hint="Every axis must have at least one element.")
    return fan
