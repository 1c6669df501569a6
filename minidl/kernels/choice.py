"""Which kernels may run, and how far they may round, as whoever calls says: to compare, to learn, or for the last bit of accuracy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from minidl.errors import ArgumentError

_allowed: ContextVar[str] = ContextVar("kernels", default="fastest")
_tf32: ContextVar[bool] = ContextVar("tf32", default=False)


@contextmanager
def using(which: str) -> Iterator[None]:
    """Inside a `with` block run the kernels named, to compare, to learn, or for the last bit of accuracy.

    "reference": the pages to read. "direct": compiled ones, but no convolution by Winograd's algorithm, whose rounding errors are some
    ten times larger. "fastest": what runs anyway. ArgumentError for another name.

    >>> with using("reference"):
    ...     twins_allowed()
    False
    """
    if which not in ("reference", "direct", "fastest"):
        raise ArgumentError(f"using: {which!r} is not known", hint='Known are "reference", "direct" and "fastest".')
    token = _allowed.set(which)
    try:
        yield
    finally:
        _allowed.reset(token)


def twins_allowed() -> bool:
    """Whether a faster twin may take a call."""
    return _allowed.get() != "reference"


def winograd_allowed() -> bool:
    """Whether a convolution may take Winograd's algorithm without being asked to."""
    return _allowed.get() == "fastest"


@contextmanager
def allow_tf32(allowed: bool = True) -> Iterator[None]:
    """Inside a `with` block products and convolutions of float32 arrays on a GPU may round their factors to TF32; outside they do not.

    A TF32 number has float32's range and 10 bits of its fraction instead of 23: a product's relative error is some 5e-4 where
    float32's is 6e-8. Sums stay in float32. Tensor cores then do what the other units would, several times faster. On a CPU, and for
    other dtypes, nothing changes. NVIDIA A100 Tensor Core GPU Architecture, 2020.

    >>> with allow_tf32():
    ...     tf32_allowed()
    True
    """
    token = _tf32.set(allowed)
    try:
        yield
    finally:
        _tf32.reset(token)


def tf32_allowed() -> bool:
    """Whether factors of float32 may be rounded to TF32 on a GPU."""
    return _tf32.get()
