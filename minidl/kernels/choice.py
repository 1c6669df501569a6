"""Which kernels may run, as whoever calls says: to compare, to learn, or for the last bit of accuracy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from minidl.errors import ArgumentError

_allowed: ContextVar[str] = ContextVar("kernels", default="fastest")


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
