"""Codecs: how a run of numbers becomes fewer bytes, and numbers again.

Each codec is one class and one format: fp16, int8, topk, and none. What a lossy one leaves out is remembered elsewhere, in compression.py.

Where numbers of a run are not finite, the whole run arrives as NaN (in int8 its block of 256), never as something that looks sound.
"""

from __future__ import annotations

import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np

from minidl.errors import ArgumentError, ConfigError, DtypeError, ExchangeError, ShapeError, nearest

BLOCK = 256                     # numbers that share a scale in int8
PASS = 255                      # a byte that says: pass over so many numbers


class Scratch(threading.local):
    """Memory for what a codec works on, kept from call to call; each thread has its own."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, np.dtype], np.ndarray] = {}

    def __call__(self, name: str, n: int, dtype: Any) -> np.ndarray:
        """n numbers, of whatever values, that are valid until this name and dtype are asked for again."""
        key = name, np.dtype(dtype)
        if key not in self.kept or len(self.kept[key]) < n:
            self.kept[key] = np.empty(n, dtype)
        return self.kept[key][:n]


class Codec(ABC):
    """How a run of n floating-point numbers becomes a parcel of bytes, and back.

    The same numbers give the same bytes, and the same bytes the same numbers, on every machine. Several threads may use a codec.
    name: as it stands behind --compress. lossy: whether the numbers come back changed.
    """

    name: str
    lossy = True

    def __init__(self) -> None:
        self.scratch = Scratch()

    @property
    def down(self) -> Codec:
        """The codec for what comes back from whoever adds up: sums, or new weights."""
        return self

    @abstractmethod
    def room(self, n: int, dtype: Any = np.float32) -> int:
        """How many bytes n numbers become, scales and indices included."""

    @abstractmethod
    def write(self, x: np.ndarray, parcel: np.ndarray) -> None:
        """Fill the parcel; there is at least one number."""

    @abstractmethod
    def read(self, parcel: np.ndarray, out: np.ndarray) -> None:
        """Fill out."""

    def encode(self, x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """The parcel of numbers: uint8, of `room` bytes, in out or in new memory.

        x: float16, float32 or float64 (n,), contiguous; DtypeError or ShapeError if not. ExchangeError for an out of another size.
        """
        parcel = self.fitting(np.empty(self.room(len(x), x.dtype), np.uint8) if out is None else out, x)
        if len(x):
            self.write(x, parcel)
        return parcel

    def decode(self, parcel: np.ndarray, out: np.ndarray) -> None:
        """Write the numbers of a parcel into out (n,), of the dtype that they had. ExchangeError if it is not a parcel of so many."""
        if len(self.fitting(parcel, out)):
            self.read(parcel, out)

    def add(self, parcel: np.ndarray, into: np.ndarray) -> None:
        """Add the numbers of a parcel to others."""
        sent = self.scratch("sent", len(into), into.dtype)
        self.decode(parcel, sent)
        np.add(into, sent, out=into)

    def left(self, x: np.ndarray, parcel: np.ndarray, out: np.ndarray) -> None:
        """Write into out what of x is not in its parcel; nothing is left of what arrives as NaN."""
        self.decode(parcel, out)
        np.subtract(x, out, out=out)
        if len(out) and np.isnan(out.max()):
            out[np.isnan(out)] = 0

    def fitting(self, parcel: np.ndarray, x: np.ndarray) -> np.ndarray:
        """The parcel itself, if x can be compressed to a parcel of its size."""
        if x.ndim != 1 or not x.flags.c_contiguous:
            raise ShapeError(f"{self.name}: a run is a contiguous vector", shape=x.shape, strides=x.strides)
        if self.lossy and x.dtype not in (np.float16, np.float32, np.float64):
            raise DtypeError(f"{self.name}: {x.dtype} is not float16, float32 or float64")
        room = self.room(len(x), x.dtype)
        if parcel.shape != (room,) or parcel.dtype != np.uint8:
            raise ExchangeError(f"{self.name}: a parcel of {len(x)} numbers has {room} bytes", parcel=f"{parcel.dtype} {parcel.shape}")
        return parcel

    def __repr__(self) -> str:
        return f"codec({self.name!r})"


class Whole(Codec):
    """The numbers as they are: the parcel is their own memory, which must not change until it is sent."""

    name, lossy = "none", False

    def room(self, n: int, dtype: Any = np.float32) -> int:
        return n * np.dtype(dtype).itemsize

    def encode(self, x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        return x.view(np.uint8) if out is None else super().encode(x, out)

    def write(self, x: np.ndarray, parcel: np.ndarray) -> None:
        np.copyto(parcel, x.view(np.uint8))

    def read(self, parcel: np.ndarray, out: np.ndarray) -> None:
        np.copyto(out.view(np.uint8), parcel)


class Half(Codec):
    """Numbers of 16 bits (IEEE 754 binary16), brought into their range by a power of two for the run.

        parcel      n halves, then the power as int16

    The largest magnitude m of the run comes to lie in [2^14, 2^15). Errors are at most 2^-11 |x|, or 2^-39 m where that is more.
    The halves are made by whole-number arithmetic: NumPy's own conversion takes ten times as long. Scaling as in Micikevicius et al.,
    Mixed precision training, ICLR 2018.
    """

    name = "fp16"
    NAN = 0x7fff                # in place of a power
    BIAS = 112                  # a float32 has this much more added to its exponent than a half; below, numbers are kept so much smaller

    def room(self, n: int, dtype: Any = np.float32) -> int:
        return 2 * n + 2 if n else 0

    def write(self, x: np.ndarray, parcel: np.ndarray) -> None:
        work = working(x.dtype)
        y = self.scratch("y", len(x), work)
        m = float(np.abs(x, out=y).max())
        power = parcel[-2:].view(np.int16)
        if not math.isfinite(m):
            parcel.fill(0)
            power[0] = self.NAN
            return
        power[0] = 15 - math.frexp(m)[1] if m else 0
        most = float(np.finfo(work).max)
        if m > most * (1 - 2.0 ** -12):                     # would be rounded up to infinity
            x = np.clip(x, -most * (1 - 2.0 ** -11), most * (1 - 2.0 ** -11))
        small = self.scratch("small", len(x), np.float32)
        shifted(x, int(power[0]) - self.BIAS, y)
        np.copyto(small, y, casting="same_kind")
        # Now the exponent of a half stands where a float32 has its own, and the half is bits 13 to 27, to be rounded at bit 13.
        bits, other = small.view(np.int32), self.scratch("other", len(x), np.int32)
        np.right_shift(bits, 13, out=other)
        np.bitwise_and(other, 1, out=other)
        np.add(other, 0xfff, out=other)                     # just under one half, or one half for an odd number: to nearest, ties to even
        np.add(bits, other, out=bits)
        np.right_shift(bits, 16, out=other)
        np.bitwise_and(other, 0x8000, out=other)            # the sign
        np.right_shift(bits, 13, out=bits)
        np.bitwise_and(bits, 0x7fff, out=bits)
        np.bitwise_or(bits, other, out=bits)
        np.copyto(parcel[:-2].view(np.uint16), bits, casting="unsafe")

    def read(self, parcel: np.ndarray, out: np.ndarray) -> None:
        power = int(parcel[-2:].view(np.int16)[0])
        if power == self.NAN:
            out.fill(np.nan)
            return
        small = self.scratch("small", len(out), np.float32)
        bits, other = small.view(np.int32), self.scratch("other", len(out), np.int32)
        np.copyto(bits, parcel[:-2].view(np.int16))         # the sign goes to all of the upper bits
        np.bitwise_and(bits, 0x7fff, out=other)
        np.left_shift(other, 13, out=other)
        np.bitwise_and(bits, -1 << 31, out=bits)
        np.bitwise_or(bits, other, out=bits)
        y = out if out.dtype == working(out.dtype) else self.scratch("y", len(out), working(out.dtype))
        np.copyto(y, small)
        shifted(y, self.BIAS - power, y)
        if y is not out:
            np.copyto(out, y, casting="same_kind")


class Int8(Codec):
    """Whole numbers from -127 to 127, with a scale for each block of 256.

        parcel      a scale a block (float32; float64 for float64 numbers), then n int8

    The scale is the largest magnitude of the block over 127; numbers are rounded to the nearest, ties to even, so errors are at most half
    a scale. Scales are never subnormal: numbers below 2^-127 may become 0. Dettmers, 8-bit approximations for parallelism, ICLR 2016.
    """

    name = "int8"

    def room(self, n: int, dtype: Any = np.float32) -> int:
        return working(dtype).itemsize * -(-n // BLOCK) + n

    def write(self, x: np.ndarray, parcel: np.ndarray) -> None:
        n, work = len(x), working(x.dtype)
        scales, numbers = self.parts(parcel, n, work)
        y = self.scratch("y", len(scales) * BLOCK, work)
        y[n:] = 0                                           # fills the last block
        rows = y.reshape(-1, BLOCK)
        np.abs(x, out=y[:n])
        info = np.finfo(work)
        scale = rows.max(axis=1)
        scale[np.isinf(scale)] = np.nan
        scale /= 127
        np.clip(scale, info.smallest_normal, info.max / 127 * (1 - info.eps), out=scale)       # 127 scales, and 1 / scale, are finite
        scales[:] = scale
        lost = np.isnan(scale)
        np.copyto(y[:n], x)
        if lost.any():
            rows[lost] = 0                                  # what these are does not matter: they will be multiplied by NaN
            scale[lost] = 1
        np.multiply(rows, (1 / scale)[:, None], out=rows)
        np.rint(y, out=y)
        np.copyto(numbers, y[:n], casting="unsafe")

    def read(self, parcel: np.ndarray, out: np.ndarray) -> None:
        n, work = len(out), working(out.dtype)
        scales, numbers = self.parts(parcel, n, work)
        whole = n // BLOCK * BLOCK
        np.multiply(numbers[:whole].reshape(-1, BLOCK), scales[:n // BLOCK, None], out=out[:whole].reshape(-1, BLOCK), casting="same_kind")
        if whole < n:
            np.multiply(numbers[whole:], scales[-1], out=out[whole:], casting="same_kind")

    @staticmethod
    def parts(parcel: np.ndarray, n: int, work: np.dtype) -> tuple[np.ndarray, np.ndarray]:
        """Scales and numbers of a parcel, as views."""
        cut = len(parcel) - n
        return parcel[:cut].view(work), parcel[cut:].view(np.int8)


class TopK(Codec):
    """The k = ceil(fraction n) largest magnitudes of the run, and zeros for the rest.

        parcel      k numbers, as int8 sends them, then k + n // 255 bytes that say where they are

    Of equal magnitudes the first are taken. A byte below 255 says how many numbers are passed over before the next that is sent, a byte
    of 255 that so many are passed over, and no more. Aji and Heafield, Sparse communication for distributed gradient descent, EMNLP 2017.
    """

    WIDER = 4.5                 # so many times as much on the way down: at topk:0.01 this is 4.5 % of the numbers, in 2.4 % of the bytes

    def __init__(self, fraction: float):
        super().__init__()
        if not 0 < fraction <= 1:
            raise ArgumentError(f"TopK: fraction is {fraction!r}, and must be more than 0, and at most 1")
        self.fraction = float(fraction)
        self.name = f"topk:{self.fraction}"
        self.int8 = Int8()

    @cached_property
    def down(self) -> Codec:
        """Each rank picks numbers of its own, so that their sum, and by momentum the change of the weights, has many more of them."""
        return TopK(min(self.WIDER * self.fraction, 1))

    def count(self, n: int) -> int:
        """How many of n numbers are sent."""
        return min(max(math.ceil(round(self.fraction * n, 6)), 1), n)           # 0.07 * 100 is 7.000000000000001

    def room(self, n: int, dtype: Any = np.float32) -> int:
        k = self.count(n)
        return self.int8.room(k, dtype) + k + n // PASS

    def write(self, x: np.ndarray, parcel: np.ndarray) -> None:
        values, steps = self.parts(parcel, x)
        # Bits of floating-point numbers without their signs are ordered as the numbers are, and infinity and NaN are above all others.
        whole = np.dtype(f"i{x.itemsize}")
        magnitudes = self.scratch("magnitudes", len(x), whole)
        np.bitwise_and(x.view(whole), np.iinfo(whole).max, out=magnitudes)
        found = self.largest(magnitudes, self.count(len(x)))
        self.int8.encode(x[found], values)
        passes, rest = np.divmod(np.diff(found, prepend=-1) - 1, PASS)
        steps.fill(PASS)
        steps[np.cumsum(passes) + np.arange(len(found))] = rest

    def read(self, parcel: np.ndarray, out: np.ndarray) -> None:
        out.fill(0)
        self.change(np.add, parcel, out)

    def add(self, parcel: np.ndarray, into: np.ndarray) -> None:
        if len(self.fitting(parcel, into)):
            self.change(np.add, parcel, into)

    def left(self, x: np.ndarray, parcel: np.ndarray, out: np.ndarray) -> None:
        np.copyto(out, x)
        if len(self.fitting(parcel, x)):
            self.change(np.subtract, parcel, out)
            if np.isnan(out[0]):
                out.fill(0)

    def change(self, how: Callable[..., np.ndarray], parcel: np.ndarray, numbers: np.ndarray) -> None:
        """Put how(number, sent) in place of each number of which something was sent, and NaN everywhere if something of that is NaN."""
        values, steps = self.parts(parcel, numbers)
        sent = self.scratch("sent", self.count(len(numbers)), numbers.dtype)
        self.int8.decode(values, sent)
        if np.isnan(sent).any():
            numbers.fill(np.nan)
            return
        where = np.cumsum(steps, dtype=np.intp)[steps != PASS] + np.arange(len(sent))
        numbers[where] = how(numbers[where], sent)

    def largest(self, magnitudes: np.ndarray, k: int) -> np.ndarray:
        """Where the k largest are, in rising order."""
        n = len(magnitudes)
        order = self.scratch("order", n, magnitudes.dtype)
        np.copyto(order, magnitudes)
        order.partition(n - k)
        least = order[n - k]
        found = np.flatnonzero(np.greater_equal(magnitudes, least, out=self.scratch("mask", n, bool)))
        if len(found) > k:
            found = np.delete(found, np.flatnonzero(magnitudes[found] == least)[k - len(found):])
        return found

    def parts(self, parcel: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Values and places of a parcel of x, as views."""
        cut = self.int8.room(self.count(len(x)), x.dtype)
        return parcel[:cut], parcel[cut:]


def working(dtype: Any) -> np.dtype:
    """What a codec computes in: float64 for float64, else float32."""
    return np.dtype(np.float64 if np.dtype(dtype) == np.float64 else np.float32)


def shifted(x: np.ndarray, power: int, out: np.ndarray) -> None:
    """Write x 2^power into out, rounded at most once."""
    most = 126 if out.dtype == np.float32 else 1022
    first = power if abs(power) <= most else power // 2                 # 2^power may be no number of this kind
    np.multiply(x, 2.0 ** first, out=out, dtype=out.dtype)              # of halves too: 2^power need not be one
    if first != power:
        np.multiply(out, 2.0 ** (power - first), out=out)


CODECS: dict[str, Callable[[], Codec]] = {"none": Whole, "fp16": Half, "int8": Int8}


def codec(text: str) -> Codec:
    """The codec that --compress asks for: none, fp16, int8, or topk:FRACTION. ConfigError for anything else.

    >>> codec("topk:0.01").room(100_000)            # bytes, of 400,000
    2408
    """
    name, colon, fraction = text.partition(":")
    hint = f"Known are {', '.join(CODECS)} and topk:FRACTION, as in topk:0.01 for the largest hundredth."
    if name in CODECS and not colon:
        return CODECS[name]()
    if name in CODECS:
        raise ConfigError(f"--compress {text}: {name} takes no number", hint=f"Give --compress {name}.")
    if name != "topk":
        raise ConfigError(f"--compress {text} is not known{nearest(name, [*CODECS, 'topk'])}", hint=hint)
    try:
        return TopK(float(fraction))
    except ValueError:                              # ArgumentError is one
        raise ConfigError(f"--compress {text}: the fraction must be a number above 0, and at most 1", hint=hint) from None
