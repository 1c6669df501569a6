"""What is done to each number on its own: activations, their gradients, dropout. One pass over memory.

Arrays are gone through in the order in which they lie, images as (N, H, W, C); of two that lie differently one is copied. NumPy's own
tanh is as fast as compiled code, and only gets its numbers a piece at a time, on every thread.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minidl import pool
from minidl.kernels import reference_layers as reference
from minidl.kernels.cpu.compiled import address, compiled, inner, run
from minidl.kernels.cpu.exponential import exponential
from minidl.kernels.cpu.lanes import WIDE, load, load_bytes, load_wide, splat, splat_wide, store, store_bytes, where
from minidl.kernels.cpu.vector import LANES, numbers, take

PIECE = 2**14           # numbers of a piece
OWN = 2**16             # and of one that NumPy gets
KINDS = ("relu", "tanh", "sigmoid")


# Compiled


@compiled
def cut_off(counter, pieces, scratch, z, size, y):
    """y = max(z, 0), a NaN staying one."""
    zero = splat_wide(np.float32(0))
    while True:
        piece = take(counter)
        if piece >= pieces:
            return
        for i in range(piece * PIECE, min((piece + 1) * PIECE, size), WIDE):
            value = load_wide(z + i * 4, size - i)
            store(y + i * 4, size - i, where(value < zero, zero, value))


@compiled
def logistic(counter, pieces, scratch, z, size, y):
    """y = 1 / (1 + e^-z), for z < 0 as e^z / (1 + e^z): the power is never above 1."""
    zero, one = splat(np.float32(0)), splat(np.float32(1))
    while True:
        piece = take(counter)
        if piece >= pieces:
            return
        for i in range(piece * PIECE, min((piece + 1) * PIECE, size), LANES):
            value = load(z + i * 4, size - i)
            e = exponential(where(value < zero, value, zero - value))
            store(y + i * 4, size - i, where(value < zero, e, one) / (one + e))


@compiled
def slope(counter, pieces, scratch, gy, y, size, kind, gz):
    """gz = gy f'(z), from y = f(z). kind: the number of f in KINDS."""
    zero, one = splat_wide(np.float32(0)), splat_wide(np.float32(1))
    while True:
        piece = take(counter)
        if piece >= pieces:
            return
        for i in range(piece * PIECE, min((piece + 1) * PIECE, size), WIDE):
            n = size - i
            g, value = load_wide(gy + i * 4, n), load_wide(y + i * 4, n)
            if kind == 0:
                g = g * where(value > zero, one, zero)
            elif kind == 1:
                g = g * (one - value * value)
            else:
                g = g * value * (one - value)
            store(gz + i * 4, n, g)


@inner
def spread(h):
    """See reference_layers.mix. Numba makes 64 bits of every result: they are cut off again at once, or vectors would be half as long."""
    h = np.uint32((h ^ (h >> np.uint32(16))) * np.uint32(0x7FEB352D))
    h = np.uint32((h ^ (h >> np.uint32(15))) * np.uint32(0x846CA68B))
    return np.uint32(h ^ (h >> np.uint32(16)))


@inner
def draw(to, count, element, step, seed, upper, its_step, layer, limit):
    """1 for what is kept and 0 for what is dropped, of elements with numbers `step` apart."""
    kept = numbers(to, count)
    for i in range(count):
        h = spread(np.uint32(np.uint32(element + i * step) ^ np.uint32(seed)))
        h = spread(np.uint32(h ^ np.uint32(upper)))
        h = spread(np.uint32(h ^ np.uint32(its_step)))
        h = spread(np.uint32(h ^ np.uint32(layer)))
        kept[i] = np.float32(h >= np.uint32(limit))


@compiled
def drop(counter, pieces, scratch, x, size, pixels, channels, tall, first, seed, upper, its_step, layer, limit, factor, mask, drawn, y):
    """Numbers times the mask and a factor. drawn: 0 if the mask has to be made first.

    The memory is rows of `channels` numbers, `pixels` of which make an image: an element is counted as in (N, C, H, W). A piece is
    `tall` rows; the last row may be shorter.
    """
    factors = splat(factor)
    while True:
        piece = take(counter)
        if piece >= pieces:
            return
        for row in range(piece * tall, min((piece + 1) * tall, (size + channels - 1) // channels)):
            at = row * channels
            count = min(channels, size - at)
            if not drawn:
                draw(scratch, count, first + row // pixels * pixels * channels + row % pixels, pixels, seed, upper, its_step, layer, limit)
            for i in range(0, count, LANES):
                if not drawn:
                    kept = load(scratch + i * 4, count - i)
                    store_bytes(mask + at + i, count - i, kept)
                else:
                    kept = load_bytes(mask + at + i, count - i)
                store(y + (at + i) * 4, count - i, load(x + (at + i) * 4, count - i) * kept * factors)


# For arrays


def activation(z: np.ndarray, name: str) -> Any:
    """See reference_layers.activation."""
    if not z.flags.writeable:
        return NotImplemented
    z, last = as_it_lies(z)
    if name == "tanh":
        flat = z.reshape(-1)
        pool.each(lambda start: np.tanh(flat[start:start + OWN], out=flat[start:start + OWN]), range(0, z.size, OWN))
    else:
        run(cut_off if name == "relu" else logistic, _pieces(z.size), 4 * z.size, 0, address(z), z.size, address(z))
    return channels_second(z, last)


def activation_gradient(gy: np.ndarray, y: np.ndarray, name: str, out: np.ndarray | None = None) -> Any:
    """See reference_layers.activation_gradient."""
    if y.dtype != np.float32 or y.shape != gy.shape:
        return NotImplemented
    if out is not None and out.strides != y.strides:
        out = None
    y, last = as_it_lies(y)
    gy = lying(gy, last)
    gz = np.empty_like(y) if out is None else lying(out, last)  # each number is read before it is written over
    run(slope, _pieces(y.size), 4 * y.size, 0, address(gy), address(y), y.size, KINDS.index(name), address(gz))
    return channels_second(gz, last)


def dropout(x: np.ndarray, p: float, seed: int, step: int, layer: int, first: int = 0) -> Any:
    """See reference_layers.dropout."""
    if first + x.size > 2**32 or not isinstance(step, int):
        return NotImplemented
    x, last = as_it_lies(x)
    mask = np.empty(x.shape, np.bool_)
    hashed = (first, *(reference.mix_number(key) for key in reference.keys(seed, step, layer)), reference.threshold(p))
    y = _dropped(x, last, hashed, 1 / (1 - p), mask, False)
    return channels_second(y, last), channels_second(mask, last)


def dropout_gradient(gy: np.ndarray, mask: np.ndarray, scale: float) -> Any:
    """See reference_layers.dropout_gradient."""
    if mask.dtype != np.bool_:
        return NotImplemented
    mask, last = as_it_lies(mask)
    return channels_second(_dropped(lying(gy, last), last, (0,) * 6, scale, mask, True), last)


def _dropped(x: np.ndarray, last: bool, hashed: tuple[int, ...], factor: float, mask: np.ndarray, drawn: bool) -> np.ndarray:
    y = np.empty_like(x)
    pixels, channels = (math.prod(x.shape[1:-1]), x.shape[-1]) if last else (1, PIECE)
    if x.size:
        tall = max(1, PIECE // channels)
        run(drop, -(-x.size // (tall * channels)), (4 if drawn else 16) * x.size, channels, address(x), x.size, pixels, channels, tall,
            *hashed, np.float32(factor), address(mask), int(drawn), address(y))
    return y


def as_it_lies(x: np.ndarray) -> tuple[np.ndarray, bool]:
    """x contiguous, and whether its channels were brought last for that. A copy only if it is contiguous in neither way."""
    last = x.ndim == 4 and not x.flags.c_contiguous
    return lying(x, last), last


def lying(x: np.ndarray, last: bool) -> np.ndarray:
    """x contiguous, its channels last or not."""
    return np.asarray(x.transpose(0, 2, 3, 1) if last else x, order="C")


def channels_second(x: np.ndarray, last: bool) -> np.ndarray:
    return x.transpose(0, 3, 1, 2) if last else x


def _pieces(size: int) -> int:
    return -(-size // PIECE)
