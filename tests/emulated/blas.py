"""cuBLAS by its C names, as ctypes would show it: the products run in blas.cpp, on the stream that the handle has been given.

Where a stream captures they are noted; alpha and beta are read when they are called, as by the real library.
"""

import ctypes
import functools
import itertools

from emulated import compile, memory, streams

SUCCESS, NOT_INITIALIZED, INVALID_VALUE = 0, 1, 7
WIDE = 70                               # CUBLAS_COMPUTE_64F: alpha and beta are doubles
BYTES = {0: 4, 1: 8, 2: 2, 14: 2}       # of the numbers of a type


@functools.cache
def _gemm():
    function = ctypes.PyDLL(str(compile.built((compile.HERE / "blas.cpp").read_text(), "-O2"))).gemm
    i, p, w = ctypes.c_int, ctypes.c_void_p, ctypes.c_longlong
    function.argtypes = [i, i, i, i, i, p, p, i, i, w, p, i, i, w, p, p, i, i, w, i, i]
    return function


class Function:
    """One of the functions; argtypes is kept to, as ctypes does."""

    def __init__(self, call):
        self.call, self.argtypes, self.restype = call, None, ctypes.c_int

    def __call__(self, *args):
        if self.argtypes is not None:
            if len(args) != len(self.argtypes):
                raise TypeError(f"this function takes {len(self.argtypes)} arguments ({len(args)} given)")
            for kind, arg in zip(self.argtypes, args):
                kind.from_param(arg)                    # TypeError for what ctypes does not take
        return self.call(*args)


class Library:
    """What ctypes.CDLL("libcublas.so") would give."""

    def __init__(self):
        self._streams, self._next = {}, itertools.count(1)
        for name in ("Create_v2", "Destroy_v2", "SetStream_v2", "SetWorkspace_v2", "SetMathMode", "GetVersion_v2", "GemmEx",
                     "GemmStridedBatchedEx"):
            setattr(self, f"cublas{name}", Function(getattr(self, f"_{name}")))

    def _Create_v2(self, handle):
        if streams.get_current_stream().capture:
            return NOT_INITIALIZED
        number = next(self._next)
        ctypes.c_void_p.from_address(_address(handle)).value = number
        self._streams[number] = 0
        return SUCCESS

    def _Destroy_v2(self, handle):
        return SUCCESS if self._streams.pop(_address(handle), None) is not None else NOT_INITIALIZED

    def _SetStream_v2(self, handle, stream):
        if _address(handle) not in self._streams:
            return NOT_INITIALIZED
        self._streams[_address(handle)] = _address(stream)
        return SUCCESS

    def _SetWorkspace_v2(self, handle, workspace, size):
        fits = _address(workspace) % 256 == 0 and memory.room(_address(workspace)) >= size
        return SUCCESS if fits or not size else INVALID_VALUE

    def _SetMathMode(self, handle, mode):
        return SUCCESS

    def _GetVersion_v2(self, handle, version):
        ctypes.c_int.from_address(_address(version)).value = 130000
        return SUCCESS

    def _GemmEx(self, handle, ta, tb, m, n, k, alpha, a, at, lda, b, bt, ldb, beta, c, ct, ldc, compute, algo):
        return self._GemmStridedBatchedEx(handle, ta, tb, m, n, k, alpha, a, at, lda, 0, b, bt, ldb, 0, beta, c, ct, ldc, 0, 1, compute,
                                          algo)

    def _GemmStridedBatchedEx(self, handle, ta, tb, m, n, k, alpha, a, at, lda, sa, b, bt, ldb, sb, beta, c, ct, ldc, sc, batch, compute,
                              algo):
        if _address(handle) not in self._streams:
            return NOT_INITIALIZED
        kind = ctypes.c_double if compute == WIDE else ctypes.c_float
        alpha, beta = (kind(kind.from_address(_address(x)).value) for x in (alpha, beta))
        matrices = ((_address(a), at, lda, sa), (_address(b), bt, ldb, sb), (_address(c), ct, ldc, sc))

        def gemm(batch):
            return _gemm()(ta, tb, m, n, k, ctypes.addressof(alpha), *matrices[0], *matrices[1], ctypes.addressof(beta), *matrices[2],
                           batch, compute)

        def run():
            gemm(batch)
            wrong = memory.edges()
            if wrong:
                raise RuntimeError(f"cublas: {wrong}")
        status = gemm(0)                                # computes nothing, and looks at everything but the numbers
        if status == SUCCESS:
            for matrix, size in zip(matrices, ((k, m) if ta else (m, k), (n, k) if tb else (k, n), (m, n))):
                _must_lie_in_an_array(*matrix, *size, batch)
            streams.enqueue(run, stream=streams.by_ptr(self._streams[_address(handle)]))
        return status


def _must_lie_in_an_array(place, kind, leading, stride, rows, columns, batch):
    """ValueError for a matrix of which a part is elsewhere."""
    last = (batch - 1) * stride + (columns - 1) * leading + rows
    if rows * columns * batch and memory.room(place) < last * BYTES[kind]:
        raise ValueError(f"cublas: a matrix of {rows} x {columns}, leading dimension {leading}, does not lie in an array")


def _address(x):
    """An argument that is an address: a number, a ctypes pointer or what byref gives."""
    if x is None:
        return 0
    if isinstance(x, int):
        return x
    if isinstance(x, ctypes.c_void_p):
        return x.value or 0
    return ctypes.cast(x, ctypes.c_void_p).value or 0


library = Library()
