"""The emulated device: a GPU as CuPy shows it, on the CPU, so that CUDA kernels and what is around them run on machines without a GPU.

Its arrays are as strict as those of the strict device, and beside that there is what minidl uses of CuPy: RawModule, whose source is
compiled by g++; streams, events and graphs that capture them; memory pools; and cuBLAS. Where a GPU would silently give wrong numbers,
there is an error or a NaN: see runtime.cpp, kernels.py, streams.py and memory.py.

Importing this package makes the devices "emulated:0" and "emulated:1" known to minidl. It needs g++ and Linux; WHY_NOT says what is
missing, or nothing.
"""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np

from emulated import blas, memory, runtime_api, streams
from emulated.compile import WHY_NOT
from emulated.device import Device, EmulatedArray
from emulated.kernels import RawModule, backwards, launches
from minidl import backend, backend_cupy
from strict import Module

__all__ = ["WHY_NOT", "EmulatedArray", "backwards", "launches", "xp"]

cuda = SimpleNamespace(
    Device=Device, Stream=streams.Stream, Event=streams.Event, Graph=streams.Graph, get_current_stream=streams.get_current_stream,
    get_elapsed_time=streams.get_elapsed_time, runtime=runtime_api, is_available=lambda: True,
    driver=SimpleNamespace(CUDADriverError=memory.CUDADriverError), memory=memory, **{name: getattr(memory, name) for name in (
        "MemoryHook", "MemoryPointer", "MemoryPool", "PinnedMemoryPool", "alloc", "alloc_pinned_memory", "get_allocator", "set_allocator",
        "set_pinned_memory_allocator", "using_allocator")})
runtime_api.CUDARuntimeError = memory.CUDARuntimeError


class EmulatedModule(Module):
    """The module that `backend.of` gives for an EmulatedArray."""

    __name__ = "emulated"
    cuda, RawModule, cublas_library = cuda, RawModule, blas.library

    def __init__(self):
        super().__init__(EmulatedArray)

    @staticmethod
    def asnumpy(a, stream=None, order="C", out=None, *, blocking=True):
        return a.get(stream, order, out, blocking) if isinstance(a, EmulatedArray) else np.asarray(a)

    @staticmethod
    def get_default_memory_pool():
        return memory.default_pool

    @staticmethod
    def get_default_pinned_memory_pool():
        return memory.default_pinned_pool


xp = EmulatedModule()
backend.register(replace(backend_cupy.library(xp, "emulated"), solve_triangular=None))       # which is cupyx's
