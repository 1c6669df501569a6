"""Which version of a kernel runs: the reference, or a faster twin of the same name and signature.

A twin is taken where it can be: for float32 arrays on the CPU the compiled ones of kernels/cpu, if Numba is there; for arrays on a GPU
those of kernels/cuda. A twin may decline a call by giving NotImplemented. The choice depends on what is installed and on the arrays,
never on the clock; choice.py may narrow it.

Numbers of 16 bits, float16 and bfloat16, are how numbers are stored: everything is computed in float32. A kernel that has no twin for
them runs on float32 copies, and what it gives is rounded.
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


def twinned(slow: Kernel, *, rounded: int = 1, product: bool = False) -> Kernel:
    """A reference kernel that lets a twin of its name take the call.

    rounded: how many of its results, from the first on, have x's dtype where that has 16 bits; sums over many examples stay float32.
    product: whether x is multiplied by the second argument, which then is rounded to x's dtype first.
    """
    name = slow.__name__

    @functools.wraps(slow)
    def kernel(x: Any, *others: Any, **options: Any) -> Any:
        if twins_allowed():
            fast = on_device(x).get(name) if type(x) is not np.ndarray else _cpu(x.size).get(name) if x.dtype == FLOAT32 else None
            if fast is not None:
                y = fast(x, *others, **options)
                if y is not NotImplemented:
                    return y
        if x.dtype.itemsize == 2 and backend.is_half(x.dtype):
            return _in_float32(kernel, x, others, options, rounded, product)
        return slow(x, *others, **options)

    return cast(Kernel, kernel)


def _in_float32(kernel: Callable[..., Any], x: Any, others: tuple[Any, ...], options: dict[str, Any], rounded: int, product: bool) -> Any:
    """What a kernel gives for float32 copies of the arrays of 16 bits among its arguments: see `twinned`."""
    if product:
        others = (others[0].astype(x.dtype), *others[1:])
    given = (x, *others)
    copies = [backend.wide(each) for each in given]
    dtype = options.pop("dtype", None) or x.dtype                   # of the results that are rounded
    results = kernel(*copies, **{name: backend.wide(each) for name, each in options.items()})
    if results is None:                                             # it writes into its arguments, but for the gradient, the second
        for each, copy in zip(given, copies):
            if copy is not each and each is not given[1]:
                each[...] = copy
        return None
    several = isinstance(results, tuple)
    ys = [y.astype(dtype, copy=False) if k < rounded else y for k, y in enumerate(results if several else [results])]
    return tuple(ys) if several else ys[0]


def on_device(x: Any) -> dict[str, Callable[..., Any]]:
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
