"""Which version of a kernel runs: the reference, or a faster twin of the same name and signature.

A twin is taken where it can be: for float32 arrays on the CPU the compiled ones of kernels/cpu, if Numba is there. A twin may decline a
call by giving NotImplemented. The choice depends on what is installed and on the arrays, never on the clock; `using` narrows it.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar, cast

import numpy as np

from minidl.errors import ArgumentError

Kernel = TypeVar("Kernel", bound=Callable[..., Any])

FLOAT32 = np.dtype(np.float32)
LARGE = 2**16           # numbers of an array with which it is worth saying that twins are missing

_allowed: ContextVar[str] = ContextVar("kernels", default="fastest")


@contextmanager
def using(which: str) -> Iterator[None]:
    """Inside a `with` block run the kernels named, to compare, to learn, or for the last bit of accuracy.

    "reference": the pages to read. "direct": compiled ones, but no convolution by Winograd's algorithm, whose rounding errors are some
    ten times larger. "fastest": what runs anyway. ArgumentError for another name.

    >>> with using("reference"):
    ...     compiled()
    False
    """
    if which not in ("reference", "direct", "fastest"):
        raise ArgumentError(f"using: {which!r} is not known", hint='Known are "reference", "direct" and "fastest".')
    token = _allowed.set(which)
    try:
        yield
    finally:
        _allowed.reset(token)


def winograd_allowed() -> bool:
    """Whether a convolution may take Winograd's algorithm without being asked to."""
    return _allowed.get() == "fastest"


def compiled() -> bool:
    """Whether compiled kernels run here, on float32 arrays on the CPU."""
    return _allowed.get() != "reference" and bool(_cpu())


def twinned(slow: Kernel) -> Kernel:
    """A reference kernel that lets a twin of its name take the call."""
    name = slow.__name__

    @functools.wraps(slow)
    def kernel(x: Any, *others: Any, **options: Any) -> Any:
        if type(x) is np.ndarray and x.dtype == FLOAT32 and _allowed.get() != "reference":
            fast = _cpu(x.size).get(name)
            if fast is not None:
                y = fast(x, *others, **options)
                if y is not NotImplemented:
                    return y
        return slow(x, *others, **options)

    return cast(Kernel, kernel)


_twins: dict[str, Callable[..., Any]] | None = None
_missing = ""               # why there are none
_said = False


def _cpu(size: int = 0) -> dict[str, Callable[..., Any]]:
    """The twins for the CPU, by name; none without Numba, which is said once, when there is something to gain."""
    global _twins, _missing, _said
    if _twins is None:
        try:
            from minidl.kernels import cpu
            _twins = cpu.TWINS
        except ImportError as error:
            _twins, _missing = {}, str(error)
    if not _twins and not _said and size >= LARGE:
        _said = True
        warnings.warn(f"minidl would be several times faster with compiled kernels: pip install 'minidl[fast]' ({_missing})", stacklevel=4)
    return _twins
