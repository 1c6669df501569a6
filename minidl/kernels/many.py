"""Kernels for many arrays at a time: an optimizer updates every parameter of a model, and on a GPU one launch does.

A twin for many calls of a kernel is called like it with "_many" after it. Without one the calls are made one after the other.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from minidl import backend
from minidl.backend import Array
from minidl.errors import GraphError
from minidl.kernels.choice import twins_allowed
from minidl.kernels.twins import on_device
from minidl.recording import present


def launched(x: Array) -> bool:
    """Whether kernels for an array are launched on a device: then it pays to make many calls one."""
    return bool(backend.library_of(x).kernels)


def many(kernel: Callable[..., None]) -> Callable[[Callable[[], list[tuple]]], None]:
    """All calls of a kernel that writes into its first argument. calls: gives the arguments of each, at least of one.

    It changes nothing, because it is asked again before each replay of a step that is being recorded: see minidl/recording.py.
    """
    name = f"{kernel.__name__}_many"

    def kernel_many(calls: Callable[[], list[tuple]]) -> None:
        found = calls()
        fast = on_device(found[0][0]).get(name) if twins_allowed() else None
        if fast is None or fast(found, calls) is NotImplemented:
            if present() is not None:
                raise GraphError(f"{name}: these arrays are updated one by one, with numbers that a recorded step would not see change",
                                 dtypes=", ".join(sorted({str(x.dtype) for call in found for x in call[:2]})),
                                 hint="Gradients must have the dtype of their weights, and both be stored in order.")
            for call in found:
                kernel(*call)

    kernel_many.__name__ = kernel_many.__qualname__ = name
    return kernel_many


def of_all(slow: Callable[..., Any]) -> Callable[..., Any]:
    """A reference kernel whose first argument is a list of arrays; the twin of its name for the first of them may take the call."""
    @functools.wraps(slow)
    def kernel(arrays: Sequence[Array], *others: Any) -> Any:
        fast = on_device(arrays[0]).get(slow.__name__) if twins_allowed() else None
        y = NotImplemented if fast is None else fast(arrays, *others)
        return slow(arrays, *others) if y is NotImplemented else y

    return kernel
