"""The reference kernels: array in, array out, written to be read. They run on NumPy and on CuPy.

Convolution is here as it is taught: lay out every patch of the image as a column (im2col), then multiply one matrix by another. The
columns repeat each number of the image KH * KW times, so they are made and used in pieces that fit in a cache. Nothing here knows of
gradients' rules or of parameters.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from minidl import backend
from minidl.backend import Array
from minidl.kernels.window import Pair, Window

PIECE = 2**18           # numbers in a piece of columns: 1 MB in float32


# Convolution


def im2col(x: Array, window: Window) -> Array:
    """Every patch that a filter will see, laid out as a column.

        x        (N, C, H, W)
        columns  (N, C * KH * KW, OH * OW)

    Column j of image n holds the C * KH * KW numbers under the filter at output position j, so that a convolution becomes one matrix
    product an image: w.reshape(O, -1) @ columns. Overlapping patches repeat their numbers: the buffer is about KH * KW / (SH * SW)
    times the size of x. Chellapilla, Puri and Simard, 2006.

        x:  1 2 3 4      the six 2x2 patches, a column each, left to right and top to bottom
            5 6 7 8  ->    1  2  3  5  6  7      a row holds the same corner of every patch:
            9 . . .        2  3  4  6  7  8      here the upper right one
                           5  6  7  9 10 11
                           6  7  8 10 11 12

    A convolution of many images goes through this a piece at a time: see conv2d, below, and columns_of.

    >>> im2col(np.arange(1, 13).reshape(1, 1, 3, 4), Window((2, 2)))[0]
    array([[ 1,  2,  3,  5,  6,  7],
           [ 2,  3,  4,  6,  7,  8],
           [ 5,  6,  7,  9, 10, 11],
           [ 6,  7,  8, 10, 11, 12]])
    """
    patches = patches_of(x, window)
    n, c, kh, kw, oh, ow = patches.shape
    return patches.reshape(n, c * kh * kw, oh * ow)


def col2im(columns: Array, size: Pair, window: Window) -> Array:
    """The way back of im2col: every column is put where its patch was, and numbers that fall on the same place are added.

    columns: (N, C * KH * KW, OH * OW). size: (H, W) of the image. Gives (N, C, H, W).

    >>> col2im(np.ones((1, 4, 4)), (3, 3), Window((2, 2)))[0, 0]
    array([[1., 2., 1.],
           [2., 4., 2.],
           [1., 2., 1.]])
    """
    n = columns.shape[0]
    image = backend.of(columns).zeros((n, columns.shape[1] // math.prod(window.kernel), *window.padded(size)), columns.dtype)
    parts = columns.reshape(n, image.shape[1], math.prod(window.kernel), *window.out(size))
    for k, offset in enumerate(window.offsets()):
        image[(..., *window.under(offset, size))] += parts[:, :, k]
    return without_padding(image, size, window)


def conv2d(x: Array, w: Array, window: Window, groups: int = 1) -> Array:
    """Convolution: each filter times the patch under it, at every position.

    x: (N, C, H, W). w: (O, C / groups, KH, KW); the channels are dealt out to the groups in order. Gives (N, O, OH, OW).
    As everywhere in this field the filter is not flipped: y[i, j] = sum over a, b of w[a, b] x[i + a, j + b].
    """
    xp = backend.of(x)
    patches = patches_of(x, window)
    filters = w.reshape(groups, w.shape[0] // groups, -1)
    y = xp.empty((len(x), groups, filters.shape[1], *patches.shape[-2:]), x.dtype)
    for images, rows in pieces(patches):
        columns = columns_of(patches[images, ..., rows, :], groups)
        part = y[images, ..., rows, :]
        part[...] = (filters @ columns).reshape(part.shape)
    return y.reshape(len(x), w.shape[0], *patches.shape[-2:])


def conv2d_input(gy: Array, w: Array, size: Pair, window: Window, groups: int = 1) -> Array:
    """The gradient of a convolution by its input: each output's gradient times the filter, added up where the patch was.

    gy: (N, O, OH, OW). w: (O, C / groups, KH, KW). size: (H, W) of the input. Gives (N, C, H, W).
    """
    xp = backend.of(gy)
    filters = w.reshape(groups, w.shape[0] // groups, -1).swapaxes(1, 2)
    per_image = filters.shape[1] * groups * gy.shape[2] * gy.shape[3]
    gx = xp.empty((len(gy), w.shape[1] * groups, *size), gy.dtype)
    step = max(1, PIECE // max(per_image, 1))
    for start in range(0, len(gy), step):
        part = gy[start:start + step]
        columns = filters @ part.reshape(len(part), groups, w.shape[0] // groups, -1)
        gx[start:start + step] = col2im(columns.reshape(len(part), -1, columns.shape[-1]), size, window)
    return gx


def conv2d_weights(x: Array, gy: Array, window: Window, groups: int = 1) -> Array:
    """The gradient of a convolution by its filters: every patch times the gradient of the output that it went into, summed.

    x: (N, C, H, W). gy: (N, O, OH, OW). Gives (O, C / groups, KH, KW).
    """
    xp = backend.of(x)
    patches = patches_of(x, window)
    n, o = gy.shape[:2]
    gys = gy.reshape(n, groups, o // groups, *gy.shape[2:])
    gw = xp.zeros((groups, o // groups, x.shape[1] // groups * math.prod(window.kernel)), x.dtype)
    for images, rows in pieces(patches):
        columns = columns_of(patches[images, ..., rows, :], groups)
        part = gys[images, ..., rows, :]
        part = part.reshape(*part.shape[:3], -1)
        gw += (part @ columns.swapaxes(-1, -2)).sum(axis=0)
    return gw.reshape(o, x.shape[1] // groups, *window.kernel)


def patches_of(x: Array, window: Window, fill: float = 0.0) -> Array:
    """(N, C, KH, KW, OH, OW): for each number under the window its values over all positions. A view of the padded x, not a copy."""
    oh, ow = window.out(x.shape[2:])
    x = with_padding(x, window, fill)
    n, c, h, w = x.strides
    strides = (n, c, h * window.dilation[0], w * window.dilation[1], h * window.stride[0], w * window.stride[1])
    return backend.of(x).lib.stride_tricks.as_strided(x, (*x.shape[:2], *window.kernel, oh, ow), strides)


def columns_of(patches: Array, groups: int) -> Array:
    """A piece of patches as columns, copied: (N, groups, C / groups * KH * KW, positions)."""
    n, c, kh, kw, rows, ow = patches.shape
    return patches.reshape(n, groups, c // groups * kh * kw, rows * ow)


def pieces(patches: Array) -> Iterator[tuple[slice, slice]]:
    """Cut patches so that the columns of a piece stay within PIECE: by images, or by rows of an image that is too large."""
    n, c, kh, kw, oh, ow = patches.shape
    per_row = c * kh * kw * ow
    images = max(1, PIECE // max(per_row * oh, 1))
    rows = oh if images > 1 else min(oh, max(1, PIECE // max(per_row, 1)))
    for image in range(0, n, images):
        for row in range(0, oh, max(rows, 1)):
            yield slice(image, image + images), slice(row, row + rows)


def with_padding(x: Array, window: Window, fill: float = 0.0) -> Array:
    """Images with their padding around them; x itself if there is none."""
    size = x.shape[2:]
    if window.padded(size) == size:
        return x
    padded = backend.of(x).full((*x.shape[:2], *window.padded(size)), fill, x.dtype)
    without_padding(padded, size, window)[...] = x
    return padded


def without_padding(x: Array, size: Pair, window: Window) -> Array:
    """The view of a padded image that is the image."""
    top, left = window.padding
    return x[:, :, top:top + size[0], left:left + size[1]]


# Pooling: a loop over the KH * KW numbers under the window, each step over all positions at once


def max_pool2d(x: Array, window: Window) -> tuple[Array, Array]:
    """The largest number under the window at every position, and which one it was.

    x: (N, C, H, W). Gives y (N, C, OH, OW), and its number under the window, row by row, as small integers of the same shape. The
    first of equal ones is chosen; a NaN wins. Padding never does, not even over -infinity.
    """
    xp = backend.of(x)
    size = x.shape[2:]
    x = with_padding(x, window, -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min)
    y = x[(..., *window.under((0, 0), size))]
    place = xp.empty(y.shape, "uint8" if math.prod(window.kernel) <= 256 else "int32")
    place[...] = xp.asarray(np.array(window.first_inside(size), place.dtype)) if any(window.padding) else 0
    for k, offset in enumerate(window.offsets()):
        larger = xp.maximum(y, x[(..., *window.under(offset, size))])
        xp.copyto(place, k, where=(larger != y) & (y == y))       # a NaN, once found, keeps its place
        y = larger
    return y, place


def max_pool2d_scatter(gy: Array, place: Array, size: Pair, window: Window) -> Array:
    """Put each number back where the largest one was, and add where windows overlap: (N, C, OH, OW) to (N, C, H, W)."""
    image = backend.of(gy).zeros((*gy.shape[:2], *window.padded(size)), gy.dtype)
    for k, offset in enumerate(window.offsets()):
        image[(..., *window.under(offset, size))] += gy * (place == k)
    return without_padding(image, size, window)


def max_pool2d_gather(x: Array, place: Array, window: Window) -> Array:
    """Pick from x the numbers at the places of another image's largest ones: (N, C, H, W) to (N, C, OH, OW)."""
    size = x.shape[2:]
    x = with_padding(x, window)
    y = backend.of(x).zeros(place.shape, x.dtype)
    for k, offset in enumerate(window.offsets()):
        y += x[(..., *window.under(offset, size))] * (place == k)
    return y


def sum_pool2d(x: Array, window: Window) -> Array:
    """The sum of the numbers under the window at every position: (N, C, H, W) to (N, C, OH, OW)."""
    size = x.shape[2:]
    x = with_padding(x, window)
    y = backend.of(x).zeros((*x.shape[:2], *window.out(size)), x.dtype)
    for offset in window.offsets():
        y += x[(..., *window.under(offset, size))]
    return y


def sum_pool2d_spread(gy: Array, size: Pair, window: Window) -> Array:
    """Add each number to all the places under its window: (N, C, OH, OW) to (N, C, H, W)."""
    image = backend.of(gy).zeros((*gy.shape[:2], *window.padded(size)), gy.dtype)
    for offset in window.offsets():
        image[(..., *window.under(offset, size))] += gy
    return without_padding(image, size, window)


# Elementwise


def dropout_mask(xp: Any, shape: tuple[int, ...], p: float, seed: int, step: int, layer: int, first: int = 0) -> Array:
    """Booleans, false with probability p: a hash of (seed, step, layer, number of the element), so the same on every device.

    xp: the array library. first: the number of the first element, where the array is a part of a larger one.
    The hash is a multiply-and-shift mixer of 32 bits (C. Wellons, "Prospecting for hash functions", 2018), once a key.
    """
    size = math.prod(shape)
    low = xp.arange(first % 2**32, first % 2**32 + size, dtype="uint64")
    element = low.astype("uint32")
    if first + size > 2**32:                                    # the upper half of the element's number, where there is one
        element = element ^ mix(((low >> 32) + (first >> 32)).astype("uint32"))
    h = mix(element ^ xp.asarray(mix_number(seed % 2**32), "uint32"))
    for key in (seed // 2**32, step, layer):
        h = mix(h ^ xp.asarray(mix_number((key + 0x9E3779B9) % 2**32), "uint32"))
    return (h >= xp.asarray(min(int(p * 2**32), 2**32 - 1), "uint32")).reshape(shape)


def mix(h: Array) -> Array:
    """Spread every bit of 32 over all the others."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        h = (h ^ (h >> shift)) * h.dtype.type(factor)
    return h ^ (h >> 16)


def mix_number(h: int) -> int:
    """The same for one Python number."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        h = (h ^ (h >> shift)) * factor % 2**32
    return h ^ (h >> 16)


def erf(x: Array) -> Array:
    """The error function, to the precision of x's dtype (neither NumPy nor the standard library has it for arrays).

    Near 0 the Taylor series; elsewhere 1 - erfc, with erfc(z) = t exp(-z^2 + P(t)), t = 2 / (2 + z), and P a polynomial of t
    (Press et al., Numerical Recipes, section 6.2), here fitted through Chebyshev's points.
    """
    xp = backend.of(x)
    z = xp.minimum(abs(x), 30)                                  # far beyond, where erf is 1 in any dtype, z * z would overflow
    t = 2 / (2 + z)
    u = t * 2 - 1
    last, before = xp.zeros_like(x), xp.zeros_like(x)
    coefficients = _erfc_polynomial()[:16 if x.dtype.itemsize <= 4 else None]
    for c in reversed(coefficients[1:]):                        # Clenshaw's recurrence
        last, before = u * 2 * last - before + c, last
    outer = 1 - t * xp.exp(-z * z + u * last - before + coefficients[0])
    near = xp.minimum(z, 1)
    square = near * near
    series = xp.zeros_like(x)
    for n in range(18, -1, -1):
        series = series * square + (-1) ** n / (math.factorial(n) * (2 * n + 1))
    return xp.copysign(xp.where(z < 1, near * series * (2 / math.sqrt(math.pi)), outer), x)


@functools.cache
def _erfc_polynomial(count: int = 32) -> list[float]:
    """Chebyshev coefficients of P(t) = log(erfc(z) e^(z^2) / t) over t in [0, 1], by interpolation."""
    def scaled_erfc(z: float) -> float:
        if z < 4:
            return math.erfc(z) * math.exp(z * z)
        fraction = z
        for k in range(200, 0, -1):                             # Laplace's continued fraction
            fraction = z + k / 2 / fraction
        return 1 / (fraction * math.sqrt(math.pi))

    angles = [math.pi * (k + 0.5) / count for k in range(count)]
    ts = [(math.cos(a) + 1) / 2 for a in angles]
    values = [math.log(scaled_erfc(2 / t - 2) / t) for t in ts]
    sums = [sum(v * math.cos(j * a) for v, a in zip(values, angles)) for j in range(count)]
    return [sums[0] / count] + [2 * s / count for s in sums[1:]]
