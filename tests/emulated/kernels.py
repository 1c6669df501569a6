"""RawModule as CuPy has it: CUDA source is compiled for the CPU, and its kernels run in the emulated GPU of runtime.cpp.

Every argument is held against the kernel's signature. On a GPU one too many or one of another size goes unnoticed, and all that follow
are wrong.
"""

import ctypes
import re
from contextlib import contextmanager

import numpy as np

from emulated import compile, memory, streams
from emulated.device import EmulatedArray
from emulated.memory import CUDADriverError

CHECKS = "alignment,bounds,signed-integer-overflow,shift,integer-divide-by-zero"
FLAGS = ("-Og", "-fvisibility=hidden", "-fno-gnu-unique", f"-fsanitize={CHECKS}", "-Wno-unused")
BOUNDS = r"__launch_bounds__(\([^)]*\))"
KERNEL = re.compile(rf'extern\s+"C"\s+__global__\s+(?:void\s+{BOUNDS}|{BOUNDS}\s+void|void)\s+(\w+)\s*\(')
DYNAMIC = re.compile(r"extern\s+__shared__\s+(?:__align__\(\d+\)\s+|alignas\(\d+\)\s+)?([\w:]+(?:\s+\w+)*?)\s+(\w+)\s*\[\s*\]\s*;")
MACRO = re.compile(r"^#define (\w+) (.+)$", re.MULTILINE)
PTX = re.compile(r'^#line 1 "ptx.cuh"$.*?^(?=#line)', re.MULTILINE | re.DOTALL)

_count = 0
_backwards = False


def launches():
    """How many kernels have been launched so far, by RawModule."""
    return _count


@contextmanager
def backwards():
    """Inside a `with` block the last block and thread run first: what depends on who comes first gives another result then."""
    global _backwards
    before, _backwards = _backwards, True
    try:
        yield
    finally:
        _backwards = before


class Parameter(ctypes.Structure):
    _fields_ = (("kind", ctypes.c_char), ("size", ctypes.c_int), ("under", ctypes.c_char), ("under_size", ctypes.c_int))


class About(ctypes.Structure):
    _fields_ = (("call", ctypes.c_void_p), ("count", ctypes.c_int), ("parameters", ctypes.POINTER(Parameter)), ("most", ctypes.c_int))


def translated(code, macros):
    """CUDA source as C++ that g++ takes, in a namespace of its own, with the signature of every kernel in it. macros: (name, value)s."""
    kernels = [(found[3], found[1] or found[2] or "()") for found in KERNEL.finditer(code)]
    code = PTX.sub("", code)
    code = DYNAMIC.sub(r"\1* const \2 = (\1*)emulated_shared;", re.sub(r'extern\s+"C"\s+(?=__global__)', "", code))
    shim, signature = ((compile.HERE / name).read_text() for name in ("cuda.h", "signature.h"))
    most = "\n".join(f"constexpr int most_{name} = inside::first{bounds};" for name, bounds in kernels)
    table = "\n".join(f"KERNEL({name})" for name, _ in kernels)
    given = "\n".join(f"#define {name} {value}" for name, value in macros)
    taken = "\n".join(f"#undef {name}" for name, _ in macros)
    return f'namespace device {{\n{shim}\n{given}\n#line 1 "source"\n{code}\n{most}\n}}\n{taken}\n{signature}\n{table}\n'


class RawModule:
    """CUDA source, compiled when it is made."""

    def __init__(self, *, code, options=(), backend="nvrtc"):
        for option in options:
            if not option.startswith(("-D", "--std=", "-std=", "--use_fast_math")):
                raise ValueError(f"the emulated compiler does not know the option {option}")
        macros = [option[2:].partition("=")[::2] for option in options if option.startswith("-D")]
        macros += MACRO.findall(code.partition("#line")[0])
        compile.runtime()
        self.library = ctypes.PyDLL(str(compile.built(translated(code, macros), *FLAGS)))

    def get_function(self, name):
        try:
            about = About.in_dll(self.library, f"about_{name}")
        except ValueError:
            raise CUDADriverError(f"CUDA_ERROR_NOT_FOUND: named symbol not found ({name})") from None
        return RawKernel(name, about, ctypes.cast(self.library.shared_mark, ctypes.c_void_p))


class RawKernel:
    """One kernel."""

    def __init__(self, name, about, mark):
        self.name, self.about, self.mark = name, about, mark
        self.max_dynamic_shared_size_bytes = 48 * 1024

    def __call__(self, grid, block, args, *, shared_mem=0):
        global _count
        _count += 1
        if self.max_dynamic_shared_size_bytes > 227 * 1024:
            raise CUDADriverError("CUDA_ERROR_INVALID_VALUE: no block has more than 227 KB of shared memory")
        grid, block = ((*(int(n) for n in sizes), *[1] * (3 - len(sizes))) for sizes in (grid, block))
        for sizes, most in ((grid, (2**31 - 1, 65535, 65535)), (block, (1024, 1024, 64))):
            if any(not 1 <= n <= limit for n, limit in zip(sizes, most)):
                raise CUDADriverError(f"CUDA_ERROR_INVALID_VALUE: {self.name}: grid {grid}, block {block}")
        if block[0] * block[1] * block[2] > self.about.most:
            raise CUDADriverError(f"CUDA_ERROR_INVALID_VALUE: {self.name}: blocks of {block}, but at most {self.about.most} threads")
        if shared_mem > self.max_dynamic_shared_size_bytes:
            raise CUDADriverError(f"CUDA_ERROR_INVALID_VALUE: {self.name}: {shared_mem} bytes of shared memory")
        if len(args) != self.about.count:
            raise TypeError(f"{self.name} has {self.about.count} parameters, and is given {len(args)} arguments")
        values = [self._value(i, arg, self.about.parameters[i]) for i, arg in enumerate(args)]
        arrays = [arg for arg in args if isinstance(arg, EmulatedArray)]
        order = _backwards

        def run():
            pointers = (ctypes.c_void_p * max(len(values), 1))(*(value.ctypes.data for value in values))
            sizes = (ctypes.c_uint * 3)(*grid), (ctypes.c_uint * 3)(*block)
            wrong = _launch(self.about.call, pointers, *sizes, shared_mem, self.mark, order)
            if wrong:
                raise RuntimeError(f"{self.name}: {wrong.decode()}")
        streams.enqueue(run, arrays)

    def _value(self, i, arg, parameter):
        """An argument as the bytes that CuPy would give, in a NumPy array of one number."""
        kind, size, where = parameter.kind.decode(), parameter.size, f"{self.name}: argument {i}"
        if isinstance(arg, np.ndarray):
            raise TypeError(f"{where} is a NumPy array")
        if isinstance(arg, EmulatedArray):
            if kind != "p":
                raise TypeError(f"{where} is an array, the parameter is a number of {size} bytes")
            if not arg.flags.c_contiguous:
                raise ValueError(f"{where}, of shape {arg.shape} and strides {arg.strides}, is not contiguous")
            if arg.device.id != memory.device():
                raise ValueError(f"{where} is on device {arg.device.id}, the current one is {memory.device()}")
            under, bytes_under = parameter.under.decode(), parameter.under_size
            mine = {"bfloat16": "b", "float16": "h"}.get(arg.dtype.name, {"u": "i", "b": "i"}.get(arg.dtype.kind, arg.dtype.kind))
            if under not in "vs" and (mine, arg.dtype.itemsize) != (under, bytes_under):
                raise TypeError(f"{where} is an array of {arg.dtype}, the parameter points to {_named(under, bytes_under)}")
            return np.array([arg.data.ptr], np.uint64)
        if isinstance(arg, bool | int | float | np.generic):
            value = np.array([arg], {bool: np.bool_, int: np.int64, float: np.float64}.get(type(arg)))
            mine = {"u": "i", "b": "i"}.get(value.dtype.kind, value.dtype.kind)
            if value.itemsize != size or mine != ("i" if kind == "p" else kind) or (kind == "p" and value.dtype != np.uint64):
                raise TypeError(f"{where} is {value.dtype}, the parameter is {_named(kind, size)}")
            if kind == "p" and value[0] and not memory.room(int(value[0])):
                raise ValueError(f"{where} is an address outside all arrays")
            return value
        raise TypeError(f"Unsupported type {type(arg)}")


def _named(kind, size):
    names = {"p": "a pointer", "f": f"float{8 * size}", "i": f"an integer of {8 * size} bits", "h": "half_t", "b": "bfloat_t"}
    return names.get(kind, kind)


def _launch(*args):
    function = compile.runtime().emulated_launch
    function.restype = ctypes.c_char_p
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_int]
    return function(*args)
