"""CuPy behind minidl's seam: what must be known of it beside its NumPy-like face.

Devices, streams, page-locked memory and the memory pool are here, as the Library and the Streams that library.py describes. CuPy comes
in as an argument, so that whatever has its names can stand in its place. No mathematics here.
"""

from __future__ import annotations

import gc
import importlib
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np

from minidl.library import Array, Library, Memory, ordinal


def library(cupy: Any, name: str = "cuda") -> Library:
    """The Library of a module with CuPy's names, whose devices are called `name`:0, `name`:1, ..."""
    pool = Pool(cupy)

    def asarray(x: Any, device: str) -> Array:
        cupy.cuda.Device(ordinal(device)).use()          # what is made beside x, and done with it, is on its device too
        return cupy.asarray(x)

    def synchronize() -> None:
        cupy.cuda.get_current_stream().synchronize()

    def event() -> Any:
        mark = cupy.cuda.Event()
        mark.record()
        return mark

    def elapsed(first: Any, last: Any) -> float:
        last.synchronize()
        return float(cupy.cuda.get_elapsed_time(first, last))

    def solve_triangular(lower: Array, b: Array) -> Array:
        return importlib.import_module("cupyx.scipy.linalg").solve_triangular(lower, b, lower=True)

    return Library(name, cupy, cupy.ndarray, lambda x: f"{name}:{x.device.id}", asarray, cupy.asnumpy, synchronize, event, elapsed,
                   kernels="cuda", streams=Streams(cupy), memory=pool.memory, limit=pool.limit, pool=pool.another, watch=pool.watch,
                   solve_triangular=solve_triangular)


class Streams:
    """Work beside the current stream. Every call is for the thread that makes it: CuPy's current device and stream are a thread's own."""

    def __init__(self, cupy: Any):
        self.cupy = cupy

    def on(self, device: str) -> AbstractContextManager:
        """Within the block this is the thread's device."""
        return self.cupy.cuda.Device(ordinal(device))

    def new(self, device: str) -> Any:
        """A stream that does not wait for the others."""
        with self.on(device):
            return self.cupy.cuda.Stream(non_blocking=True)

    def current(self, device: str) -> Any:
        """The stream on which this thread's operations run."""
        with self.on(device):
            return self.cupy.cuda.get_current_stream()

    def event(self, device: str) -> Any:
        """A mark for streams to wait for, or for a thread, which sleeps meanwhile; not for measuring time."""
        with self.on(device):
            return self.cupy.cuda.Event(block=True, disable_timing=True)

    def pinned(self, shape: int | tuple[int, ...], dtype: Any) -> np.ndarray:
        """An array in page-locked host memory, its numbers not set: only such memory is copied while the host does something else."""
        dtype, shape = np.dtype(dtype), (shape,) if isinstance(shape, int) else shape
        count = int(np.prod(shape, dtype=np.int64))
        memory = self.cupy.cuda.alloc_pinned_memory(max(count * dtype.itemsize, 1))
        return np.frombuffer(memory, np.uint8, count * dtype.itemsize).view(dtype).reshape(shape)

    def copy(self, x: Array, out: Array, stream: Any) -> None:
        """Begin to copy x to out, both contiguous and alike, one of them pinned and the other on the stream's device.

        Neither may be changed or let go before the stream has come by.
        """
        if isinstance(out, np.ndarray):
            x.get(out=out, stream=stream, blocking=False)
        else:
            out.set(x, stream=stream)


class Pool:
    """CuPy's memory pool: what it holds, and where it must stop. There is one for all devices, each with numbers of its own."""

    def __init__(self, cupy: Any):
        self.cupy = cupy
        self.most: dict[int, int] = {}                  # bytes held, by device
        self.limits: dict[int, int] = {}                # of it and the others together
        self.others: weakref.WeakSet = weakref.WeakSet()                # pools beside it

    def memory(self, device: str | None) -> Memory:
        """How much of a device's memory is taken, now; None: of the thread's device."""
        with self.cupy.cuda.Device(None if device is None else ordinal(device)) as chosen:
            pool = self.cupy.get_default_memory_pool()
            pools, (free, total) = [pool, *self.others], chosen.mem_info
            used, held = sum(each.used_bytes() for each in pools), sum(each.total_bytes() for each in pools)
            self.most[chosen.id] = max(self.most.get(chosen.id, 0), held)
            return Memory(used, held, self.most[chosen.id], self.limits.get(chosen.id, pool.get_limit()), free, total)

    def another(self, device: str) -> Any:
        """A pool of one's own, for what must not lie among the rest. It may take what the limit leaves when it is made; what it takes, the
        rest may not.
        """
        class Another(self.cupy.cuda.MemoryPool):               # type: ignore[name-defined]    # which can be referred to weakly
            pass

        found, pool = Another(), self.cupy.get_default_memory_pool()
        with self.cupy.cuda.Device(ordinal(device)):
            if pool.get_limit():
                pool.free_all_blocks()
                found.set_limit(size=max(pool.get_limit() - pool.total_bytes(), 1))
        self.others.add(found)
        return found

    def limit(self, device: str, size: int) -> None:
        """Hold no more than so many bytes on a device; 0: as many as there are."""
        with self.cupy.cuda.Device(ordinal(device)) as chosen:
            self.limits[chosen.id] = size
            self.cupy.get_default_memory_pool().set_limit(size=size)
        if size:
            self.cupy.cuda.set_allocator(self._within_limits)

    def _within_limits(self, size: int) -> Any:
        """An allocation. At its limit CuPy's pool gives up at once, also where what it holds is free, in pieces that are too small."""
        pool, limit = self.cupy.get_default_memory_pool(), self.limits.get(self.cupy.cuda.Device().id)
        if limit:
            pool.set_limit(size=max(limit - sum(other.total_bytes() for other in self.others), 1))
        try:
            return pool.malloc(size)
        except self.cupy.cuda.memory.OutOfMemoryError:
            gc.collect()
            self.memory(None)                           # which sees the most that was held
            pool.free_all_blocks()
            return pool.malloc(size)

    @contextmanager
    def watch(self, device: str | None) -> Iterator[Callable[..., int]]:
        """A function that tells how many bytes this thread's arrays have taken since; with most=True, the most since it was last asked."""
        hook = _hook(self.cupy, self.cupy.cuda.Device().id if device is None else ordinal(device))
        with hook:
            yield hook.now


def _hook(cupy: Any, device: int) -> Any:
    """A counter that CuPy's pool tells of every array, in the thread and in the block in which it is entered."""
    class Counter(cupy.cuda.MemoryHook):                # whose base is only there with CuPy
        used = most = 0

        def __init__(self) -> None:
            self.name = f"minidl {id(self)}"            # several may be open at a time, by different names

        def malloc_postprocess(self, *, device_id: int, mem_size: int, mem_ptr: int, **rest: Any) -> None:
            if device_id == device and mem_ptr:         # 0 where there was no room
                self.used += mem_size
                self.most = max(self.most, self.used)

        def free_postprocess(self, *, device_id: int, mem_size: int, **rest: Any) -> None:
            self.used -= mem_size if device_id == device else 0

        def now(self, most: bool = False) -> int:
            found = self.most if most else self.used
            if most:
                self.most = self.used
            return found

    return Counter()
