"""Convolution as it is taught, on a GPU: patches as columns, then cuBLAS. The columns are made and used in pieces that stay in the cache.

A 1 x 1 filter with stride 1 and no padding sees its columns in x itself. Pieces are whole images, or a part of the output's rows; for the
gradient by the input a part of the channels, so that each number of it is one sum.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from minidl import backend
from minidl.backend import Array
from minidl.kernels.cuda import cublas, source
from minidl.kernels.cuda.elementwise import bias_activation, cast
from minidl.kernels.window import Pair, Window

PIECE = 2**25           # bytes of columns at a time: well within the second-level cache of a large GPU
THREADS = 256
LIMIT = 65535           # blocks along the second and third axis of a grid


def conv2d(x: Array, w: Array, window: Window, groups: int = 1, b: Array | None = None, activation: str | None = None) -> Array:
    """See reference.conv2d. x and w are contiguous."""
    xp, out, filters = backend.of(x), window.out(x.shape[2:]), w.shape[0] // groups
    positions, terms = math.prod(out), math.prod(w.shape[1:])
    w = matching(w, x).reshape(groups, filters, terms)
    y = xp.empty((len(x), groups, filters, positions), x.dtype)
    if pointwise(window):
        for group in range(groups):
            cublas.multiply(w[group], x.reshape(len(x), groups, terms, positions)[:, group], y[:, group])
    else:
        for images, places in pieces(len(x), positions, terms * x.itemsize):
            count, wide = images.stop - images.start, places.stop - places.start
            step = -(-wide // 8) * 8                            # rows at multiples of 16 bytes, which tensor cores want
            columns = xp.empty((count, terms, step), x.dtype)
            for group in range(groups):
                to_columns(x[images], columns, window, groups, group, places, terms * step, step)
                cublas.multiply(w[group], columns[:, :, :wide], y[images, group, :, places])
    y = y.reshape(len(x), -1, *out)
    if b is not None or activation is not None:
        bias_activation(y, b, activation)
    return y


def conv2d_input(gy: Array, w: Array, size: Pair, window: Window, groups: int = 1, b: Array | None = None) -> Array:
    """See reference.conv2d_input. gy and w are contiguous."""
    xp, filters, channels, places = backend.of(gy), w.shape[0] // groups, w.shape[1], math.prod(window.kernel)
    n, positions = len(gy), math.prod(gy.shape[2:])
    w = matching(w, gy).reshape(groups, filters, channels * places)
    gys = gy.reshape(n, groups, filters, positions)
    gx = xp.empty((n, groups * channels, *size), gy.dtype)
    sums = np.dtype(source.computed_in(gy))
    if pointwise(window):
        for group in range(groups):
            cublas.multiply(w[group].T, gys[:, group], gx.reshape(n, groups, channels, -1)[:, group])
    else:
        for images, part in pieces(n, channels, places * positions * sums.itemsize):
            count, some = images.stop - images.start, part.stop - part.start
            columns = xp.empty((count, some * places, positions), sums)
            for group in range(groups):
                cublas.multiply(w[group, :, part.start * places:part.stop * places].T, gys[images, group], columns)
                to_image(columns, gx[images], window, group * channels + part.start, some)
    if b is not None:
        bias_activation(gx, b, None)
    return gx


def conv2d_weights(x: Array, gy: Array, window: Window, groups: int = 1) -> Array:
    """See reference.conv2d_weights; float32 for 16-bit arrays. x and gy are contiguous."""
    xp, filters = backend.of(x), gy.shape[1] // groups
    terms, positions = x.shape[1] // groups * math.prod(window.kernel), math.prod(gy.shape[2:])
    gw = xp.empty((groups, filters, terms), source.computed_in(x))
    gys = gy.reshape(len(gy), groups, filters, positions)
    for group in range(groups):
        for images, places in pieces(len(x), positions, terms * x.itemsize):
            columns = beside_each_other(x[images], window, groups, group, places, terms)
            gradients = gys[images, group, :, places].swapaxes(0, 1).reshape(filters, -1)       # a copy: images beside each other
            cublas.multiply(gradients, columns.T, gw[group], add=images.start + places.start > 0)
    return gw.reshape(-1, x.shape[1] // groups, *window.kernel)


def conv2d_patch_moments(x: Array, window: Window, groups: int = 1, bias: bool = False) -> Array:
    """See reference.conv2d_patch_moments; float32 for 16-bit images. x is contiguous."""
    terms, positions = x.shape[1] // groups * math.prod(window.kernel) + bias, math.prod(window.out(x.shape[2:]))
    moments = backend.of(x).empty((groups, terms, terms), source.computed_in(x))
    for group in range(groups):
        for images, places in pieces(len(x), positions, terms * x.itemsize):
            columns = beside_each_other(x[images], window, groups, group, places, terms, bias)
            cublas.multiply(columns, columns.T, moments[group], add=images.start + places.start > 0)
    return moments


def beside_each_other(x: Array, window: Window, groups: int, group: int, places: slice, terms: int, ones: bool = False) -> Array:
    """Columns of all these images in one matrix: (terms, images times positions)."""
    wide = places.stop - places.start
    columns = backend.of(x).empty((terms, len(x) * wide), x.dtype)
    to_columns(x, columns, window, groups, group, places, wide, len(x) * wide, ones)
    return columns


def to_columns(x: Array, columns: Array, window: Window, groups: int, group: int, places: slice, image_step: int, row_step: int,
               ones: bool = False) -> None:
    """Write the columns of one group of channels at some positions. image_step, row_step: numbers from image to image, row to row."""
    channels, positions = x.shape[1] // groups, places.stop - places.start
    source.launch(x, "im2col", "im2col", *grid(positions, channels, len(x)), x, columns, len(x), image_step, row_step, places.start,
                  positions, ones, x.shape[1], group * channels, channels, *x.shape[2:], window.out(x.shape[2:])[1], *geometry(window),
                  far=source.far(x, columns))


def to_image(columns: Array, gx: Array, window: Window, start: int, channels: int) -> None:
    """Add up columns (N, channels times places of the filter, positions) where they were read from, in channels of gx from `start` on."""
    size = gx.shape[2:]
    source.launch(gx, "im2col", "col2im", *grid(math.prod(size), channels, len(gx)), columns, gx, len(gx), gx.shape[1], start,
                  channels, *size, *window.out(size), *window.kernel, *window.padding, *window.dilation, *source.divisor(window.stride[0]),
                  *source.divisor(window.stride[1]), far=source.far(columns, gx))


def pieces(images: int, parts: int, size: int) -> Iterator[tuple[slice, slice]]:
    """Cut images, and the parts of one where it is too large, so that a piece takes about PIECE bytes. size: bytes of a part."""
    at_once = max(1, PIECE // max(parts * size, 1))
    share = parts if parts * size <= PIECE else max(1, PIECE // size)
    for image in range(0, images, at_once):
        for part in range(0, parts, share):
            yield slice(image, min(image + at_once, images)), slice(part, min(part + share, parts))


def pointwise(window: Window) -> bool:
    """Whether the patches of an image are the image."""
    return window.kernel == (1, 1) and window.stride == (1, 1) and window.padding == (0, 0)


def matching(w: Array, x: Array) -> Array:
    """Weights rounded to the type of what they multiply."""
    return w if w.dtype == x.dtype else cast(w, x.dtype)


def geometry(window: Window) -> tuple[int, ...]:
    """A window as kernels take it."""
    return (*window.kernel, *window.stride, *window.padding, *window.dilation)


def grid(places: int, channels: int, images: int) -> tuple[tuple[int, int, int], int]:
    """Blocks for places, channels and images, of the last two a block may have several; and threads, whole warps: few for small images."""
    threads = min(-(-places // 32) * 32, THREADS)
    return (-(-places // threads), min(channels, LIMIT), min(images, LIMIT)), threads
