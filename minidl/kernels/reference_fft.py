"""Convolution by Fourier transforms: a sliding sum over places is a plain product at every frequency.

The transform of a correlation, sum over i of w[i] x[j + i], is the transform of x times the conjugate of that of w: the convolution
theorem. So images and filters are brought to frequencies, multiplied there, a small matrix product for the channels at each frequency,
and brought back. Sines repeat: a period as long as the padded image is just enough that nothing wraps around onto a number that is
wanted. A stride throws results away, a dilation puts zeros between the numbers of a filter.

What it costs: each filter becomes as large as the image, together O * C / groups * H * W / 2 complex numbers, all held at once. A number
of the result then takes about 2 C multiplications whatever the kernel, and not KH * KW * C; the transforms come on top. Against im2col in
reference.py, on images of 32 x 32 and 64 x 64 with 1 to 32 channels, it wins from 9 x 9 filters on (by 2 at 15 x 15), in the gradient by
the images from 5 x 5; with 3 x 3 it takes 3 to 8 times as long, and strides make it worse. Errors are relative to an image's largest
numbers. Mathieu, Henaff and LeCun, "Fast training of convolutional networks through FFTs", arXiv:1312.5851.

Images come with their padding around them, and gradients of images go so; all else is as in reference.py. With the groups in front,
G = groups, images are (G, N, C / G, H, W) here and filters (G, O / G, C / G, KH, KW), and at frequencies (F, G, N, C / G) and so on.
"""

from __future__ import annotations

from collections.abc import Iterator

from minidl import backend
from minidl.backend import Array
from minidl.kernels.window import Pair, Window

PIECE = 2**20           # numbers of images that are at frequencies at once


def conv2d(x: Array, w: Array, size: Pair, window: Window, groups: int) -> Array:
    """Padded images and filters to the output, (N, O, OH, OW). size: (H, W) of the images without padding."""
    period = x.shape[2:]
    filters = to_frequencies(filters_of(w, window, groups), period)
    y = backend.of(x).empty((len(x), len(w), *window.out(size)), x.dtype)
    for images in parts(x):
        at_output = to_frequencies(grouped(x[images], groups), period) @ filters.conj().swapaxes(-1, -2)        # (N, C) times (C, O)
        y[images] = ungrouped(from_frequencies(at_output, period))[(..., *window.under((0, 0), size))]
    return y


def conv2d_input(gy: Array, w: Array, size: Pair, window: Window, groups: int) -> Array:
    """The gradient by the padded images, from the gradient at the output and the filters."""
    period = window.padded(size)
    filters = to_frequencies(filters_of(w, window, groups), period)
    gx = backend.of(gy).empty((len(gy), w.shape[1] * groups, *period), gy.dtype)
    for images in parts(gx):
        at_input = to_frequencies(grouped(spread(gy[images], window.stride), groups), period) @ filters         # (N, O) times (O, C)
        gx[images] = ungrouped(from_frequencies(at_input, period))
    return gx


def conv2d_weights(x: Array, gy: Array, window: Window, groups: int) -> Array:
    """The gradient by the filters, from padded images and the gradient at the output."""
    period = x.shape[2:]
    gw = backend.of(x).zeros((groups, gy.shape[1] // groups, x.shape[1] // groups, *window.kernel), x.dtype)
    for images in parts(x):
        at_output = to_frequencies(grouped(spread(gy[images], window.stride), groups), period)
        at_filters = at_output.conj().swapaxes(-1, -2) @ to_frequencies(grouped(x[images], groups), period)     # (O, N) times (N, C)
        under = from_frequencies(at_filters, period)[..., :window.span[0]:window.dilation[0], :window.span[1]:window.dilation[1]]
        gw += under.astype(gw.dtype, copy=False)
    return gw.reshape(-1, *gw.shape[2:])


def to_frequencies(x: Array, period: Pair) -> Array:
    """(G, A, B, H, W), with zeros up to the period, to (F, G, A, B): half of all frequencies, because x is real."""
    at = backend.of(x).fft.rfft2(x, period)
    return at.reshape(*at.shape[:3], -1).transpose(3, 0, 1, 2)


def from_frequencies(at: Array, period: Pair) -> Array:
    """The way back: (F, G, A, B) to (G, A, B, H, W)."""
    at = at.transpose(1, 2, 3, 0)
    return backend.of(at).fft.irfft2(at.reshape(*at.shape[:3], period[0], -1), period)


def filters_of(w: Array, window: Window, groups: int) -> Array:
    """(O, C / G, KH, KW) as (G, O / G, C / G, height, width), with the gaps of the dilation."""
    return spread(w.reshape(groups, -1, *w.shape[1:]), window.dilation)


def spread(x: Array, steps: Pair) -> Array:
    """Zeros between the numbers, so that each is `steps` (height, width) from the next."""
    if steps == (1, 1):
        return x
    wide = backend.of(x).zeros((*x.shape[:-2], *((n - 1) * step + 1 for n, step in zip(x.shape[-2:], steps))), x.dtype)
    wide[..., ::steps[0], ::steps[1]] = x
    return wide


def grouped(x: Array, groups: int) -> Array:
    """(N, C, H, W) as (G, N, C / G, H, W)."""
    return x.reshape(len(x), groups, -1, *x.shape[2:]).swapaxes(0, 1)


def ungrouped(x: Array) -> Array:
    """(G, N, C / G, H, W) as (N, C, H, W)."""
    return x.swapaxes(0, 1).reshape(x.shape[1], -1, *x.shape[3:])


def parts(x: Array) -> Iterator[slice]:
    """As many images at once as have PIECE numbers."""
    at_once = max(1, PIECE // max(x[:1].size, 1))
    for image in range(0, len(x), at_once):
        yield slice(image, image + at_once)
