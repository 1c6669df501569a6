"""The reference kernels for images: array in, array out, written to be read. They run on NumPy and on CuPy.

Convolution is here as it is taught: lay out every patch of the image as a column (im2col), then multiply one matrix by another. The
columns repeat each number of the image KH * KW times, so they are made and used in pieces that fit in a cache. Pooling follows. The
other way to convolve, by Fourier transforms, is in reference_fft.py, and what layers do beside is in reference_layers.py. Nothing here
knows of gradients' rules or of parameters.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from minidl import backend
from minidl.backend import Array
from minidl.errors import ArgumentError
from minidl.kernels import reference_fft as fft
from minidl.kernels.reference_layers import activated
from minidl.kernels.window import Pair, Window

PIECE = 2**18           # numbers in a piece of columns: 1 MB in float32

# How a convolution can be computed. The first two are here, for every array; the others are compiled, the next two for the CPU and the
# last for GPUs, and not for every shape.
ALGORITHMS = ("im2col", "fft", "direct", "winograd", "implicit")


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
    image = backend.of(columns).zeros((len(columns), columns.shape[1] // math.prod(window.kernel), *window.padded(size)), columns.dtype)
    add_columns(image, columns, size, window, slice(0, window.out(size)[0]))
    return without_padding(image, size, window)


def conv2d(x: Array, w: Array, window: Window, groups: int = 1, b: Array | None = None, activation: str | None = None,
           algorithm: str | None = None) -> Array:
    """Convolution: each filter times the patch under it, at every position; then plus the bias, and through the activation.

    x: (N, C, H, W). w: (O, C / groups, KH, KW); the channels are dealt out to the groups in order. b: (O,). Gives (N, O, OH, OW).
    As everywhere in this field the filter is not flipped: y[i, j] = sum over a, b of w[a, b] x[i + a, j + b].
    """
    out = window.out(x.shape[2:])
    if by_fourier(algorithm):
        y = fft.conv2d(with_padding(x, window), w, x.shape[2:], window, groups)
        return finished(y, b, activation)
    filters = w.reshape(groups, w.shape[0] // groups, -1)
    patches = patches_of(x, window)
    y = backend.of(x).empty((len(x), w.shape[0], *out), x.dtype)
    for images, rows in pieces(len(x), math.prod(patches.shape[1:4]), out):
        product = filters @ columns_of(patches[images, ..., rows, :], groups)
        y[images, :, rows] = finished(product.reshape(len(product), w.shape[0], -1, out[1]), b, activation)
    return y


def conv2d_input(gy: Array, w: Array, size: Pair, window: Window, groups: int = 1, b: Array | None = None,
                 algorithm: str | None = None) -> Array:
    """The gradient of a convolution by its input: each output's gradient times the filter, added up where the patch was.

    gy: (N, O, OH, OW). w: (O, C / groups, KH, KW). size: (H, W) of the input. Gives (N, C, H, W).
    b: (C,), added at the end: what is a gradient here is the output of a transposed convolution, which has a bias.
    """
    xp = backend.of(gy)
    if by_fourier(algorithm):
        return finished(without_padding(fft.conv2d_input(gy, w, size, window, groups), size, window), b)
    filters = w.reshape(groups, w.shape[0] // groups, -1).swapaxes(1, 2)
    channels = w.shape[1] * groups
    gx = xp.empty((len(gy), channels, *size), gy.dtype)
    for images, rows in pieces(len(gy), channels * math.prod(window.kernel), gy.shape[2:]):
        part = gy[images, :, rows]
        columns = filters @ part.reshape(len(part), groups, w.shape[0] // groups, -1)
        if rows.start == 0:
            image = xp.zeros((len(part), channels, *window.padded(size)), gy.dtype)
        add_columns(image, columns, size, window, rows)
        if rows.stop == gy.shape[2]:
            gx[images] = finished(without_padding(image, size, window), b)
    return gx


def conv2d_weights(x: Array, gy: Array, window: Window, groups: int = 1, algorithm: str | None = None) -> Array:
    """The gradient of a convolution by its filters: every patch times the gradient of the output that it went into, summed.

    x: (N, C, H, W). gy: (N, O, OH, OW). Gives (O, C / groups, KH, KW).
    """
    if by_fourier(algorithm):
        return fft.conv2d_weights(with_padding(x, window), gy, window, groups)
    patches = patches_of(x, window)
    n, o = gy.shape[:2]
    gys = gy.reshape(n, groups, o // groups, *gy.shape[2:])
    gw = backend.of(x).zeros((groups, o // groups, x.shape[1] // groups * math.prod(window.kernel)), x.dtype)
    for images, rows in pieces(n, math.prod(patches.shape[1:4]), gy.shape[2:]):
        part = gys[images, ..., rows, :]
        columns = columns_of(patches[images, ..., rows, :], groups)
        gw += (part.reshape(*part.shape[:3], -1) @ columns.swapaxes(-1, -2)).sum(axis=0)
    return gw.reshape(o, x.shape[1] // groups, *window.kernel)


def conv2d_patch_moments(x: Array, window: Window, groups: int = 1, bias: bool = False) -> Array:
    """Every patch times itself, summed over images and positions: the second moments of what a filter sees, times their number.

    x: (N, C, H, W). Gives (groups, K, K), K = C / groups * KH * KW in the order of w.reshape(O, -1); zeros of the padding count.
    bias: a 1 is added at the end of each patch, which makes K one larger: what a bias sees. The columns never stand in memory as a
    whole. Divided by N this is the factor A of a convolution in K-FAC (Martens and Grosse, arXiv:1503.05671; for convolution Grosse and
    Martens, arXiv:1602.01407).

    >>> conv2d_patch_moments(np.array([[[[1.0, 2.0, 3.0]]]]), Window((1, 2)), bias=True)[0]      # patches (1, 2, 1) and (2, 3, 1)
    array([[ 5.,  8.,  3.],
           [ 8., 13.,  5.],
           [ 3.,  5.,  2.]])
    """
    patches = patches_of(x, window)
    n, c, kh, kw, oh, ow = patches.shape
    k = c // groups * kh * kw
    moments = backend.of(x).zeros((groups, k + bias, k + bias), x.dtype)
    for images, rows in pieces(n, c * kh * kw, (oh, ow)):
        columns = columns_of(patches[images, ..., rows, :], groups)
        moments[:, :k, :k] += (columns @ columns.swapaxes(-1, -2)).sum(axis=0)
        if bias:
            moments[:, k, :k] += columns.sum(axis=(0, 3))
    if bias:
        moments[:, :k, k] = moments[:, k, :k]
        moments[:, k, k] = n * oh * ow
    return moments


def by_fourier(algorithm: str | None) -> bool:
    """Whether this algorithm is the one by Fourier transforms. ArgumentError for one that the reference does not know."""
    if algorithm == "implicit":
        raise ArgumentError("convolution: algorithm 'implicit' needs the kernels for GPUs: float arrays on a CUDA device",
                            hint='Leave algorithm out, or use "im2col" or "fft", which every array has.')
    if algorithm in ("direct", "winograd"):
        raise ArgumentError(f"convolution: algorithm {algorithm!r} needs the compiled kernels: float32 arrays on a CPU and Numba "
                            '(pip install "minidl[fast]")', hint='Leave algorithm out, or use "im2col" or "fft", which every array has.')
    return algorithm == "fft"


def finished(y: Array, b: Array | None, activation: str | None = None) -> Array:
    """Images y plus a bias a channel, through an activation. Writes into y."""
    if b is not None:
        y += b.reshape(-1, 1, 1)
    return y if activation is None else activated(y, activation)


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


def add_columns(image: Array, columns: Array, size: Pair, window: Window, rows: slice) -> None:
    """Add columns of some rows of output positions to a padded image, each where its patch was."""
    parts = columns.reshape(*image.shape[:2], math.prod(window.kernel), -1, window.out(size)[1])
    for k, offset in enumerate(window.offsets()):
        under = image[(..., *window.under(offset, size))]
        under[:, :, rows] += parts[:, :, k]


def pieces(images: int, numbers: int, out: Pair) -> Iterator[tuple[slice, slice]]:
    """Cut output positions so that the columns of a piece stay near PIECE: by images, or by rows of an image that is too large.

    numbers: how many are under the window at a position, in all channels. out: (OH, OW).
    """
    per_row = max(numbers * out[1], 1)
    at_once = max(1, PIECE // max(per_row * out[0], 1))
    rows = -(-out[0] // max(1, per_row * out[0] // PIECE))      # pieces of one size: an image that is just too large stays whole
    for image in range(0, images, at_once):
        for row in range(0, out[0], max(rows, 1)):
            yield slice(image, image + at_once), slice(row, min(row + rows, out[0]))


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
    x = with_padding(x, window, -np.inf if backend.is_float(x.dtype) else np.iinfo(x.dtype).min)
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
