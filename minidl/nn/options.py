"""What layers ask of their options when they are made, so that a wrong one is told then and not in the middle of a pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from minidl.errors import ArgumentError
from minidl.kernels import Pair, pair
from minidl.nn.init import Shape, Source, float_type
from minidl.nn.module import Parameter

Init = Callable[[Shape, Source, Any], np.ndarray]       # an initialiser, as init.py has them


def count(layer: str, name: str, value: Any) -> int:
    """An option that counts something. ArgumentError if it is not an int of at least 1."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or int(value) < 1:
        raise ArgumentError(f"{layer}: {name} is {value!r}, and must be an int of at least 1")
    return int(value)


def number(layer: str, name: str, value: Any, low: float, high: float = float("inf")) -> float:
    """An option that is a number. ArgumentError outside low <= value < high."""
    if not isinstance(value, int | float | np.number) or not low <= value < high:
        limit = "" if high == float("inf") else f" and less than {high:g}"
        raise ArgumentError(f"{layer}: {name} is {value!r}, and must be a number of at least {low:g}{limit}")
    return float(value)


def sizes(layer: str, **options: Any) -> tuple[Pair, ...]:
    """kernel, stride, padding or dilation as pairs. ArgumentError if one is no pair, or less than 1 (padding: less than 0)."""
    pairs = {name: pair(layer, name, value) for name, value in options.items()}
    for name, value in pairs.items():
        least = 0 if "padding" in name else 1
        if min(value) < least:
            raise ArgumentError(f"{layer}: {name} is {value}, and must be at least {least}")
    return tuple(pairs.values())


def drawn(layer: str, init: Init, shape: Shape, generator: Source, dtype: Any) -> Parameter:
    """A Parameter that an initialiser has filled. ArgumentError if it gave another shape."""
    kind = float_type(dtype, layer)
    w = init(shape, generator, kind)
    if not isinstance(w, np.ndarray) or w.shape != shape:
        raise ArgumentError(f"{layer}: the initialiser gave {getattr(w, 'shape', type(w).__name__)}, and was asked for {shape}",
                            hint="An initialiser is called with (shape, generator, dtype) and gives a NumPy array of that shape.")
    return Parameter(w.astype(kind, copy=False))


def shown(first: str, **options: Any) -> str:
    """What stands in the parentheses of the repr: each option is given as (value, default), and left out if they are the same."""
    parts = [first] if first else []
    parts += [f"{name}={_short(value)!r}" for name, (value, default) in options.items() if _short(value) != _short(default)]
    return ", ".join(parts)


def _short(value: Any) -> Any:
    """A pair of two equal ints as one int, the way one writes it."""
    return value[0] if isinstance(value, tuple) and len(set(value)) == 1 else value
