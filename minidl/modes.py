"""What can be switched on or off around a piece of code: recording the graph, two ways to look for what went wrong,
and writing down what is done.

The switches belong to the context, not to the process: threads have their own. None of them changes a result. What they are called
for users stands in autograd.py; here is also how a NaN is looked for and how an overwritten array is noticed.
"""

from __future__ import annotations

import functools
import os
import sys
import zlib
from collections.abc import Callable
from contextvars import ContextVar, Token
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np

from minidl import backend
from minidl.backend import Array
from minidl.errors import NumericsError, layer_path, running
from minidl.profiler import Recorder
from minidl.tensor import Tensor

F = TypeVar("F", bound=Callable[..., Any])
HOME = str(Path(__file__).parent) + os.sep


@dataclass(frozen=True)
class Mode:
    """What is on in this context. None of it changes a result."""

    grad: bool = True               # record the graph
    numerics: bool = False          # look for NaN and infinity after every operation
    saved: bool = False             # take checksums of what is kept for the backward pass
    recorder: Recorder | None = None            # who writes down what is done


mode: ContextVar[Mode] = ContextVar("mode", default=Mode())     # noqa: B039   (frozen)


class switched:
    """Run a block, or each call of a function, in another mode: `with switched(grad=False):`, or as a decorator. It can be used again."""

    def __init__(self, **changes: Any):
        self.changes = changes
        self.tokens: list[Token[Mode]] = []

    def __enter__(self) -> None:
        self.tokens.append(mode.set(replace(mode.get(), **self.changes)))

    def __exit__(self, *error: Any) -> None:
        mode.reset(self.tokens.pop())

    def __call__(self, function: F) -> F:
        @functools.wraps(function)
        def inside(*args: Any, **kwargs: Any) -> Any:
            with switched(**self.changes):
                return function(*args, **kwargs)

        return cast(F, inside)


def checksum(x: Array) -> int:
    """A number that changes when the array does."""
    return zlib.crc32(np.ascontiguousarray(backend.to_numpy(x)).view(np.uint8).reshape(-1))     # type: ignore[arg-type]


def check_finite(x: Any, what: str, stack: Any, line: str) -> None:
    """NumericsError if x holds a NaN or an infinity; the words say which output or gradient x is."""
    x = np.asarray(backend.to_numpy(x.data if isinstance(x, Tensor) else x))
    if not backend.is_float(x.dtype) or np.isfinite(x).all():
        return
    bad = ~np.isfinite(x)
    first = tuple(int(i) for i in np.argwhere(bad)[0])
    layer = layer_path(stack)
    raise NumericsError(f"{what} is {x[first]} at {first}" + (f", in layer {layer}" if layer and stack is not running.get() else ""),
                        not_finite=f"{int(bad.sum()):,} of {x.size:,} numbers", **({"line": line} if line else {}))


def line_of_caller() -> str:
    """The line outside minidl from which this operation was called: 'train.py:12'."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(HOME):
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
