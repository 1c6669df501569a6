"""Convolution without columns in memory, on a GPU: how implicit.cu is launched.

Tensor cores multiply 16-bit arrays, and float32 rounded to TF32 where that is allowed; float32 and float64 are multiplied as they are, and
so are 16 bits on a GPU older than sm_80.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np

from minidl import backend
from minidl.backend import Array
from minidl.errors import ArgumentError
from minidl.kernels.choice import tf32_allowed
from minidl.kernels.cuda import source
from minidl.kernels.cuda.elementwise import KINDS
from minidl.kernels.cuda.im2col import LIMIT, geometry
from minidl.kernels.window import Pair, Window

FORWARD, INPUT, WEIGHTS = range(3)
COLUMNS, THREADS = 128, 256
BLOCKS = 264                        # that a large GPU does at a time: sums are cut until there are so many. Fixed: so are then the bits
PARTS = 2**24                       # numbers of all the parts of a cut sum together
SHORTEST = 8                        # steps of a part


def conv2d(x: Array, w: Array, window: Window, groups: int = 1, b: Array | None = None, activation: str | None = None) -> Array:
    """See reference.conv2d. x and w are contiguous."""
    y = backend.of(x).empty((len(x), len(w), *window.out(x.shape[2:])), x.dtype)
    launch(FORWARD, w, x, y, window, groups, y.shape[2:], b, activation)
    return y


def conv2d_input(gy: Array, w: Array, size: Pair, window: Window, groups: int = 1, b: Array | None = None) -> Array:
    """See reference.conv2d_input. gy and w are contiguous."""
    gx = backend.of(gy).empty((len(gy), w.shape[1] * groups, *size), gy.dtype)
    launch(INPUT, w, gy, gx, window, groups, size, b)
    return gx


def conv2d_weights(x: Array, gy: Array, window: Window, groups: int = 1) -> Array:
    """See reference.conv2d_weights; float32 for 16-bit arrays. x and gy are contiguous."""
    gw = backend.of(x).empty((gy.shape[1], x.shape[1] // groups, *window.kernel), source.computed_in(x))
    launch(WEIGHTS, gy, x, gw, window, groups, gy.shape[2:])
    return gw


def launch(way: int, factor: Array, image: Array, y: Array, window: Window, groups: int, positions: Pair, b: Array | None = None,
           activation: str | None = None) -> None:
    """y from the factor that is read as it lies and the image whose patches are. positions: what implicit.cu calls down and across."""
    kind, far = KINDS[activation], source.far(factor, image, y)
    plan = plan_of(way, image.shape, y.shape, tuple(positions), window, groups, image.dtype, factor.dtype, y.dtype,
                   None if b is None else b.dtype, on_tensor_cores(image), far)
    parts = backend.of(y).empty((plan.splits, *y.shape), source.computed_in(image)) if plan.splits > 1 else None
    source.launch(image, "implicit", "implicit", plan.blocks, THREADS, factor, image, y, parts, b, kind, in_pairs(way, factor, image),
                  plan.splits, y.size, *plan.shape, far=far, **plan.types)
    if parts is not None:
        inner, channels = (1, 1) if way == WEIGHTS else (math.prod(y.shape[2:]), y.shape[1])
        source.launch(image, "implicit", "finish", -(-y.size // THREADS), THREADS, parts, plan.splits, y.size, b, inner, channels, kind, y,
                      far=far, **plan.types)


class Plan(NamedTuple):
    """What is the same for all calls of one shape."""

    blocks: tuple[int, int, int]
    splits: int                     # into how many parts the sums are cut
    shape: tuple[Any, ...]          # as the kernel takes it
    types: dict[str, Any]           # macros


@functools.lru_cache(maxsize=1024)
def plan_of(way: int, image: tuple[int, ...], y: tuple[int, ...], positions: Pair, window: Window, groups: int, dtype: np.dtype,
            factor_dtype: np.dtype, y_dtype: np.dtype, b_dtype: np.dtype | None, tensor_cores: bool, far: bool) -> Plan:
    """How a call is cut into blocks. image, y: their shapes."""
    n, channels, places = image[0], image[1] // groups, math.prod(window.kernel)
    rows = (y[0] if way == WEIGHTS else y[1]) // groups
    strides = window.stride if way == INPUT else (1, 1)
    classes, seen = math.prod(strides), n * math.prod(-(-length // stride) for length, stride in zip(positions, strides))
    columns, depth = (channels * places, seen) if way == WEIGHTS else (seen, channels * -(-places // classes))
    tall = height(rows) if dtype.itemsize < 8 else min(height(rows), 64)        # a taller tile of float64 has no room in the registers
    tiles = -(-rows // tall) * -(-columns // COLUMNS)
    splits = parts_of(tiles * classes * groups, -(-depth // (64 // dtype.itemsize)), math.prod(y))
    if max(classes, groups * splits) > LIMIT:
        raise ArgumentError(f"convolution: algorithm 'implicit' is for at most {LIMIT:,} groups, and as many places in a stride",
                            hint='Leave algorithm out, or use "im2col".', groups=groups, stride=window.stride)
    period = [stride // math.gcd(stride, dilation) for stride, dilation in zip(window.stride, window.dilation)]
    bias = b_dtype or (np.dtype("float64") if dtype.itemsize == 8 else np.dtype("float32"))
    types = {"WAY": str(way), "ROWS": str(tall), "TENSOR": str(int(tensor_cores)),
             **{name: source.NUMBERS[str(its)] for name, its in (("M", factor_dtype), ("Y", y_dtype), ("B", bias))}}
    shape = (n, groups, rows, channels, *image[2:], *positions, *geometry(window), *period)
    return Plan((tiles, classes, groups * splits), splits, tuple(map(np.int64 if far else np.int32, shape)), types)


def height(rows: int) -> int:
    """The rows of a tile: few are less efficient, many that are not needed too."""
    return min((128, 64, 32), key=lambda tall: -(-rows // tall) * tall * {128: 1.0, 64: 1.2, 32: 1.6}[tall])


def parts_of(tiles: int, steps: int, size: int) -> int:
    """Into how many parts the sums are cut, so that there is enough to do at a time."""
    return max(1, min(BLOCKS // tiles, steps // SHORTEST, PARTS // size))


def on_tensor_cores(x: Array) -> bool:
    """Whether tensor cores may multiply numbers of x, and can."""
    return (x.itemsize == 2 or (x.itemsize == 4 and tf32_allowed())) and capable(backend.of(x), backend.device_of(x))


@functools.cache
def capable(xp: Any, device: str) -> bool:
    """Whether a device's tensor cores know the instructions of ptx.cuh: from sm_80 on. On older ones the other units multiply."""
    return int(xp.cuda.Device(int(device.rpartition(":")[2])).compute_capability) >= 80


def in_pairs(way: int, factor: Array, image: Array) -> bool:
    """Whether neighbouring terms of a sum, of which two make a word, can be read together from the factor."""
    if image.itemsize != 2 or way == INPUT or factor.data.ptr % (2 * factor.itemsize):
        return False
    return math.prod(factor.shape[1:] if way == FORWARD else factor.shape[2:]) % 2 == 0
