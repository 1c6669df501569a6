"""NVIDIA's library of matrix products, cuBLAS, called directly: y = a b and y = a b + y, for every matrix of a batch.

CuPy's own products are not used, for three reasons: they refuse to be recorded in a CUDA graph, they leave no say over TF32, and their
16-bit results cannot be float32. A handle and its workspace belong to a thread and a device: products of one thread run on one
stream at a time, CuPy's current one. Where a factor is a transposed view it is read as it lies, with a flag.

Numbers of enumerations are those of cublas_api.h and library_types.h.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import threading
from ctypes import c_double, c_float, c_int, c_longlong, c_size_t, c_void_p
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minidl import backend
from minidl.backend import Array
from minidl.errors import DeviceError, ShapeError
from minidl.kernels.choice import tf32_allowed

WORKSPACE = 2**25                       # bytes; what NVIDIA advises for an H100 or H200
LARGEST = 2**31 - 1                     # of a length and of a step from row to row
TYPES = {"float32": 0, "float64": 1, "float16": 2, "bfloat16": 14}
FLOAT32, FLOAT64, TF32 = 68, 70, 77     # in which to multiply and add
FULL_SUMS = 16                          # math mode: 16-bit products, too, are summed in float32 from first to last
DEFAULT_ALGORITHM = -1
FACES = {
    "cublasCreate_v2": (c_void_p,),
    "cublasSetStream_v2": (c_void_p, c_void_p),
    "cublasSetWorkspace_v2": (c_void_p, c_void_p, c_size_t),
    "cublasSetMathMode": (c_void_p, c_int),
    "cublasGemmEx": (c_void_p, *[c_int] * 5, c_void_p, *[c_void_p, c_int, c_int] * 2, c_void_p, c_void_p, *[c_int] * 4),
    "cublasGemmStridedBatchedEx": (c_void_p, *[c_int] * 5, c_void_p, *[c_void_p, c_int, c_int, c_longlong] * 2, c_void_p, c_void_p, c_int,
                                   c_int, c_longlong, *[c_int] * 3),
}
STATUS = {1: "not initialized", 3: "allocation failed", 7: "invalid value", 8: "architecture mismatch", 11: "mapping error",
          13: "execution failed", 14: "internal error", 15: "not supported", 16: "license error"}
NUMBERS = {compute: (kind(0), kind(1)) for compute, kind in ((FLOAT32, c_float), (TF32, c_float), (FLOAT64, c_double))}
ADDRESSES = {compute: tuple(map(ctypes.addressof, both)) for compute, both in NUMBERS.items()}      # of 0 and 1, as cuBLAS wants them
_of_thread = threading.local()


class Matrix(NamedTuple):
    """A matrix, or a batch, as cuBLAS takes it: steps count numbers."""

    array: Array                        # kept, because it may be a copy
    turned: bool                        # whether it lies in memory by columns
    row: int                            # from one row (if turned: column) to the next
    step: int                           # from one matrix to the next


class Handle:
    """cuBLAS on one device for one thread, with memory of our own to work in, so that it can be recorded."""

    def __init__(self, xp: Any):
        self.library = library(xp)
        self.handle = c_void_p()
        check("cublasCreate", self.library.cublasCreate_v2(ctypes.addressof(self.handle)))
        check("cublasSetMathMode", self.library.cublasSetMathMode(self.handle, FULL_SUMS))
        self.workspace = xp.empty(WORKSPACE, "uint8")
        self.stream: int | None = None

    def on(self, stream: int) -> c_void_p:
        """The handle for a stream. A new stream takes the workspace away: it is given again."""
        if stream != self.stream:
            check("cublasSetStream", self.library.cublasSetStream_v2(self.handle, stream))
            check("cublasSetWorkspace", self.library.cublasSetWorkspace_v2(self.handle, self.workspace.data.ptr, WORKSPACE))
            self.stream = stream
        return self.handle


def multiply(a: Array, b: Array, y: Array, add: bool = False) -> None:
    """y = a b, or y += a b.

    a: (I, K), b: (K, J), y: (I, J) with J contiguous; or each with an axis of B matrices in front. a and b have one dtype; y has it too,
    or is float32 where a and b are of 16 bits. float32 is rounded to TF32 where that is allowed; sums are float32, float64 for float64.
    ShapeError for what does not fit into 32 bits.
    """
    xp = backend.of(y)
    left, right, out = matrix(xp, a), matrix(xp, b), matrix(xp, y)
    (rows, inner), columns = a.shape[-2:], b.shape[-1]
    batch = len(y) if y.ndim == 3 else 1
    if max(rows, inner, columns, batch, left.row, right.row, out.row) > LARGEST:
        raise ShapeError("a matrix product: cuBLAS counts rows, columns and steps in 32 bits", a=f"{a.shape}", b=f"{b.shape}",
                         hint="Multiply a part at a time.")
    compute = FLOAT64 if a.dtype.itemsize == 8 else TF32 if a.dtype.itemsize == 4 and tf32_allowed() else FLOAT32
    zero, one = ADDRESSES[compute]
    beta = one if add else zero
    factor, result = type_of(a.dtype), type_of(y.dtype)
    current = handle_of(y)
    handle = current.on(xp.cuda.get_current_stream().ptr)
    # cuBLAS counts by columns, so that what it takes for b, a and y are their transposes: y^T = b^T a^T
    if batch == 1:
        status = current.library.cublasGemmEx(
            handle, right.turned, left.turned, columns, rows, inner, one, right.array.data.ptr, factor, right.row, left.array.data.ptr,
            factor, left.row, beta, y.data.ptr, result, out.row, compute, DEFAULT_ALGORITHM)
    else:
        status = current.library.cublasGemmStridedBatchedEx(
            handle, right.turned, left.turned, columns, rows, inner, one, right.array.data.ptr, factor, right.row, right.step,
            left.array.data.ptr, factor, left.row, left.step, beta, y.data.ptr, result, out.row, out.step, batch, compute,
            DEFAULT_ALGORITHM)
    check("a matrix product", status)


@functools.cache
def type_of(dtype: np.dtype) -> int:
    """What cuBLAS calls a dtype."""
    return TYPES[str(dtype)]


def matrix(xp: Any, x: Array) -> Matrix:
    """How a matrix lies: by rows, or by columns; a contiguous copy where it is neither."""
    size = x.itemsize
    rows, columns = x.shape[-2:]
    down, across = x.strides[-2:]
    step = x.strides[0] if x.ndim == 3 else 0
    if step % size == 0:
        if (across == size or columns == 1) and down % size == 0 and (down >= columns * size or rows == 1):
            return Matrix(x, False, max(down // size, columns) if rows > 1 else columns, step // size)
        if (down == size or rows == 1) and across % size == 0 and (across >= rows * size or columns == 1):
            return Matrix(x, True, max(across // size, rows) if columns > 1 else rows, step // size)
    return Matrix(xp.ascontiguousarray(x), False, columns, rows * columns)


def handle_of(x: Array) -> Handle:
    """This thread's handle for the device of x, made when first asked for."""
    handles = _of_thread.__dict__
    device = backend.device_of(x)
    if device not in handles:
        with backend.on(device):
            handles[device] = Handle(backend.of(x))
    return handles[device]


def check(call: str, status: int) -> None:
    """DeviceError if cuBLAS says that something went wrong."""
    if status:
        raise DeviceError(f"cuBLAS: {call} has failed: {STATUS.get(status, 'status')} ({status})",
                          hint="An allocation that failed, or a call that did, mostly comes of too little memory: use smaller minibatches.")


@functools.cache
def library(xp: Any) -> Any:
    """cuBLAS: the one that the array library brings itself, or the shared library, with the types of its arguments set."""
    found = getattr(xp, "cublas_library", None) or load(xp)
    for name, types in FACES.items():
        function = getattr(found, name)
        function.argtypes, function.restype = list(types), c_int
    return found


def load(xp: Any) -> Any:
    """The shared library: the one that CuPy takes, or the one of its CUDA version, from the system or beside the installed packages."""
    try:
        return ctypes.CDLL(importlib.import_module("cuda.pathfinder").load_nvidia_dynamic_lib("cublas").abs_path)
    except Exception:                   # it is not installed, or has not found anything: of many kinds
        pass
    name = f"libcublas.so.{xp.cuda.runtime.runtimeGetVersion() // 1000}"
    for place in (name, *map(str, beside(name))):
        try:
            return ctypes.CDLL(place)
        except OSError:
            pass
    raise DeviceError(f"cuBLAS, NVIDIA's library of matrix products, is not found: {name}",
                      hint="Install it with pip install nvidia-cublas (for CUDA 12 nvidia-cublas-cu12), or put CUDA's lib64 folder into "
                           "LD_LIBRARY_PATH.")


def beside(name: str) -> list[Path]:
    """Where pip packages of NVIDIA keep it: nvidia/<package>/lib in any folder of packages. cublasLt, which it needs, is loaded first."""
    try:
        roots = list(importlib.import_module("nvidia").__path__)
    except ImportError:
        return []
    places = [place for root in roots for place in sorted(Path(root).glob(f"*/lib/{name}"))]
    for place in places:
        for needed in place.parent.glob("libcublasLt.so.*"):
            ctypes.CDLL(str(needed), mode=ctypes.RTLD_GLOBAL)
    return places
