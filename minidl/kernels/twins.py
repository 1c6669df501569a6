"""Which version of a kernel runs: the reference, or a faster twin of the same name and signature.

A twin is taken where it can be: for float32 arrays on the CPU the compiled ones of kernels/cpu, if Numba is there; for arrays on a GPU
those of kernels/cuda. A twin may decline a call by giving NotImplemented. The choice depends on what is installed and on the arrays,
never on the clock; choice.py may narrow it.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np

from minidl import backend
from minidl.kernels.choice import twins_allowed

Kernel = TypeVar("Kernel", bound=Callable[..., Any])

FLOAT32 = np.dtype(np.float32)
LARGE = 2**16           # numbers of an array with which it is worth saying that twins are missing


def compiled() -> bool:
    """Whether compiled kernels run here, on float32 arrays on the CPU."""
    return twins_allowed() and bool(_cpu())


def twinned(slow: Kernel) -> Kernel:
    """A reference kernel that lets a twin of its name take the call."""
    name = slow.__name__

    @functools.wraps(slow)
    def kernel(x: Any, *others: Any, **options: Any) -> Any:
        if twins_allowed():
            fast = _on_device(x).get(name) if type(x) is not np.ndarray else _cpu(x.size).get(name) if x.dtype == FLOAT32 else None
            if fast is not None:
                y = fast(x, *others, **options)
                if y is not NotImplemented:
                    return y
        return slow(x, *others, **options)

    return cast(Kernel, kernel)


def _on_device(x: Any) -> dict[str, Callable[..., Any]]:
    """The twins for an array that is not NumPy's, by name: none unless its library says whose it takes."""
    if backend.library_of(x).kernels != "cuda":
        return {}
    from minidl.kernels import cuda
    return cuda.TWINS


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
        except (ImportError, OSError) as error:             # OSError: a library that LLVM needs cannot be loaded
            _twins, _missing = {}, str(error)
    if not _twins and not _said and size >= LARGE:
        _said = True
        warnings.warn(f"minidl would be several times faster with compiled kernels: pip install 'minidl[fast]' ({_missing})", stacklevel=4)
    return _twins
