"""CUDA files: read, compiled for the types that a call has, and launched.

A file is compiled when it is first needed, by CuPy's RawModule, once for each set of types; CuPy keeps the result on disk. What a
kernel computes stands in the .cu files and how many blocks it gets in the .py file beside it; this file knows none of them.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import numpy as np

from minidl import backend
from minidl.backend import Array

HERE = Path(__file__).parent
NUMBERS = {"float16": "half_t", "bfloat16": "bfloat_t", "float32": "float", "float64": "double"}     # how numbers lie in memory
LABELS = {"int64": "long long", "int32": "int", "uint8": "unsigned char"}       # and class ids
INCLUDE = re.compile(r'^#include "([^"]+)"$', re.MULTILINE)
OPTIONS = ("--std=c++17",)
NULL = np.uint64(0)         # a pointer
SINGLE, DOUBLE = np.dtype(np.float32), np.dtype(np.float64)
FAR = 2**31 - 2**24         # from this many numbers on, places are counted in 64 bits (below, a last block may look a little beyond)


def launch(x: Array, file: str, name: str, blocks: int | tuple[int, ...], threads: int | tuple[int, ...], *args: Any, shared: int = 0,
           far: bool = False, **types: str) -> None:
    """Run the kernel `name` of `file`.cu on the device and in the dtype of x, after whatever was launched there before.

    args: arrays (their pointers go, so they must be contiguous), None (a null pointer), int and bool (as I), float (as A), or NumPy
    scalars as they are. shared: bytes of dynamic shared memory. far: whether I, which counts places, is 64 bits wide.
    types: further macros. T, the type of x's numbers, and A, in which they are computed, are given to every file.
    """
    kernel, number, place = compiled(backend.of(x), backend.device_of(x), file, name, x.dtype, far, tuple(types.items()))
    kernel(blocks if isinstance(blocks, tuple) else (blocks,), threads if isinstance(threads, tuple) else (threads,),
           tuple([_argument(arg, number, place) for arg in args]), shared_mem=shared)


def _argument(arg: Any, number: Any, place: Any) -> Any:
    if isinstance(arg, int):
        return place(arg)
    if isinstance(arg, float):
        return number(arg)
    return NULL if arg is None else arg


@functools.cache
def compiled(xp: Any, device: str, file: str, name: str, dtype: np.dtype, far: bool, types: tuple[tuple[str, str], ...]) -> Any:
    """A kernel for the types of a call, and in which types numbers and places are given to it; kept, as a launch is to take no time."""
    own = {"T": NUMBERS[str(dtype)], "A": "double" if dtype == DOUBLE else "float", "I": "long long" if far else "int"}
    kernel = function(xp, device, file, name, tuple(sorted((own | dict(types)).items())))
    return kernel, DOUBLE.type if dtype == DOUBLE else SINGLE.type, _int64 if far else _int32


# sizes come again and again, and to make a NumPy scalar takes longer than to find it
_int32, _int64 = functools.lru_cache(maxsize=2**12)(np.int32), functools.lru_cache(maxsize=2**12)(np.int64)


@functools.cache
def function(xp: Any, device: str, file: str, name: str, macros: tuple[tuple[str, str], ...]) -> Any:
    """A compiled kernel, loaded on a device."""
    return module(xp, device, file, macros).get_function(name)


@functools.cache
def module(xp: Any, device: str, file: str, macros: tuple[tuple[str, str], ...]) -> Any:
    """A compiled file."""
    return xp.RawModule(code=text(file, macros), options=OPTIONS)


def text(file: str, macros: tuple[tuple[str, str], ...]) -> str:
    """A CUDA file, after its macros and what all files share, with the files that it includes by name in their places."""
    # not as options -D: the compiler reads headers of its own first, in which T is a name like any other
    return "".join(f"#define {name} {value}\n" for name, value in macros) + _file("common.cuh") + _file(f"{file}.cu")


@functools.cache
def _file(name: str) -> str:
    """One file of this folder; messages of the compiler name it, and the line in it."""
    lines = (HERE / name).read_text()

    def included(found: re.Match[str]) -> str:
        return _file(found[1]) + f'#line {lines.count(chr(10), 0, found.end()) + 2} "{name}"'
    return f'#line 1 "{name}"\n' + INCLUDE.sub(included, lines)


@functools.cache
def named(dtype: np.dtype) -> str:
    """A dtype's name, which NumPy works out anew each time."""
    return str(dtype)


def taken(dtype: np.dtype) -> bool:
    """Whether the kernels have numbers of a dtype."""
    return named(dtype) in NUMBERS


def computed_in(x: Array) -> np.dtype:
    """The dtype in which numbers of x's are computed and summed: what A stands for."""
    return DOUBLE if x.dtype.char == "d" else SINGLE


def dense(x: Array) -> Array:
    """x contiguous: itself, or a copy."""
    return x if x.flags.c_contiguous else backend.of(x).ascontiguousarray(x)


def divisor(d: int) -> tuple[int, np.uint32, int]:
    """What a kernel takes as a Divisor (packs.cuh): d, m and s, such that i // d is i * m >> (31 + s) for 0 <= i < 2^31.

    With 2^s >= d and m = ceil(2^(31 + s) / d), m exceeds the quotient by less than 1, and so i m / 2^(31 + s) exceeds i / d by less than
    1 / d: both have the same whole part.

    >>> d, m, s = divisor(7)
    >>> (2**31 - 1) * int(m) >> (31 + s) == (2**31 - 1) // 7
    True
    """
    s = (d - 1).bit_length()
    return d, np.uint32(-(-2**(31 + s) // d)), s


def far(*arrays: Array) -> bool:
    """Whether one of these has so many numbers that places in it are counted in 64 bits."""
    return max([x.size for x in arrays]) >= FAR
