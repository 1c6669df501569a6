"""Python compiled to machine code, kept on disk, and run on the pool.

`compiled` is Numba's njit with a cache of its own: Numba alone would not notice that a kernel is out of date when the change is in
another file from which it takes a part. Here the cache carries a hash of all files of this folder. Several processes may compile at
once: each writes to a file of its own and renames it. A kernel is compiled when it is first called, for the CPU that it runs on.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import hashlib
import os
import shutil
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import llvmlite
import numba
import numpy as np
from numba.core import caching
from numba.core.runtime import rtsys

from minidl import pool
from minidl.kernels.cpu.vector import glance

if numba.config.DISABLE_JIT:
    raise ImportError("Numba is there, but NUMBA_DISABLE_JIT forbids it to compile")

ALONE = 2**21           # multiply-adds, or numbers moved times four, that are done before another thread is under way

KEPT = 30 * 86400       # seconds for which kernels that were compiled from other files stay on disk

OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": {"contract", "nsz"}}


def folder() -> Path:
    """Where compiled kernels are kept: kernels/ in the folder that MINIDL_CACHE names, or else in ~/.cache/minidl."""
    return Path(os.environ.get("MINIDL_CACHE") or "~/.cache/minidl").expanduser() / "kernels"


@functools.cache
def sources() -> str:
    """A hash of everything that the kernels are made from."""
    digest = hashlib.sha256(f"{numba.__version__} {llvmlite.__version__}".encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


class _Place:
    """Tells Numba where the compiled code of a function lies, and from what it was made."""

    def __init__(self, function: Callable[..., Any], path: str):
        self.name = Path(path).stem
        self._py_file = path                                # for what Numba says of a function that it cannot keep

    @classmethod
    def from_function(cls, function: Callable[..., Any], path: str) -> _Place | None:
        place = cls(function, path)
        try:
            place.ensure_cache_path()
        except OSError:
            return None                                     # a home that cannot be written to: compile anew in each process
        return place

    def ensure_cache_path(self) -> None:
        if not os.path.isdir(self.get_cache_path()):
            os.makedirs(self.get_cache_path(), exist_ok=True)
            _clear_away(folder())
        if not os.access(self.get_cache_path(), os.W_OK | os.X_OK):
            raise PermissionError(self.get_cache_path())

    def get_cache_path(self) -> str:
        return str(folder() / sources())

    def get_source_stamp(self) -> str:
        return sources()

    def get_disambiguator(self) -> str:
        return self.name


def _clear_away(kept: Path) -> None:
    """Remove what was compiled from files that have changed since, once nobody has written there for long."""
    for path in kept.iterdir():
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > KEPT:
                shutil.rmtree(path, ignore_errors=True)


class _Files(caching.CompileResultCacheImpl):
    _locator_classes: ClassVar = [_Place]


class _Cache(caching.FunctionCache):
    _impl_class = _Files

    def save_overload(self, sig: Any, data: Any) -> None:
        with contextlib.suppress(OSError):                  # a full disk: the next process compiles anew
            super().save_overload(sig, data)

    def load_overload(self, signature: Any, target: Any) -> Any:
        """What is on disk for a signature, if it can be read. Unlike Numba's own this does not first load all that Numba could compile."""
        rtsys.initialize(target)
        try:
            return self._load_overload(signature, target)
        except Exception:                                   # a file that was cut off or changed can be wrong in any way
            with contextlib.suppress(OSError):
                self.flush()
            return None


def compiled(function: Callable[..., Any]) -> Any:
    """Compile a function when it is first called, and keep the result on disk. It runs without Python's lock.

    Arguments are ints (addresses, sizes, strides) and floats, so that one compiled form serves all shapes and layouts.
    """
    dispatcher = numba.njit(no_cfunc_wrapper=True, **OPTIONS)(function)
    with contextlib.suppress(RuntimeError):                 # where there is no place to keep it
        dispatcher._cache = _Cache(function)
    return dispatcher


def variant(kernel: Any, name: str, **parts: Any) -> Any:
    """The same kernel under another name and made of other parts, such as other register tiles."""
    source = kernel.py_func
    function = types.FunctionType(source.__code__, {**source.__globals__, **parts}, name)
    function.__qualname__, function.__module__ = name, source.__module__
    return compiled(function)


def inlined(function: Callable[..., Any]) -> Any:
    """The same, written out where it is called before it is compiled: for what is short, or called in one place."""
    return numba.njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, inline="always", **OPTIONS)(function)


def inner(function: Callable[..., Any]) -> Any:
    """Compile a part of kernels: it is built into each kernel that calls it."""
    return numba.njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, **OPTIONS)(function)


def run(kernel: Any, pieces: int, work: float, room: int, *arguments: Any) -> None:
    """Call a kernel on the threads of the pool: kernel(counter, pieces, scratch, *arguments).

    The kernel takes the numbers of its pieces from the counter, 0 ... pieces - 1, with `take(counter)`. work: about how many
    multiply-adds it does in all; a small one stays on this thread. room: float32 numbers of scratch memory for each thread.
    """
    counter, where = pool.counter()

    def job() -> None:
        kernel(where, pieces, pool.scratch(room), *arguments)

    with contextlib.nullcontext() if kernel.overloads else _without_collector():
        counter[0] = 0
        pool.together(job, min(pieces, pool.usable()) if work > ALONE else 1)


@contextlib.contextmanager
def _without_collector() -> Iterator[None]:
    """While a kernel is compiled: a compiler makes many objects, and to look through them again and again takes time."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


@compiled
def linger(flag, turns):
    """Wait, without Python's lock, for a flag to become other than 0; whether it has, after so many looks."""
    for _ in range(turns):              # noqa: SIM110   compiled code has no any()
        if glance(flag) != 0:
            return True
    return False


def address(x: np.ndarray) -> int:
    """Where an array's first number lies."""
    return x.__array_interface__["data"][0]


pool.linger = linger
