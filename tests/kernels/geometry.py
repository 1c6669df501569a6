"""Drawn images and windows for the tests of kernels."""

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

import cases
from minidl.kernels import Window

few = settings(max_examples=60, deadline=None)          # no limit of time on an example: the machine may be busy
sizes = st.tuples(st.integers(1, 6), st.integers(1, 6))
orders = st.sampled_from(["as it is", *(order.__name__ for order in cases.ORDERS)])


def pairs(low, high=3):
    return st.tuples(st.integers(low, high), st.integers(low, high))


@st.composite
def windows(draw, pooling=False):
    """Small windows, with all that is strange: strides beyond the kernel, gaps, more padding than numbers under the window.

    pooling: padding is at most half the kernel, and ceil_mode may be on.
    """
    kernel, stride, padding, dilation = draw(pairs(1)), draw(pairs(1)), draw(pairs(0)), draw(pairs(1))
    if pooling:
        padding = tuple(min(p, k // 2) for p, k in zip(padding, kernel))
    return Window(kernel, stride, padding, dilation, pooling and draw(st.booleans()))


@st.composite
def sliding(draw, pooling=False):
    """(H, W) of an image and a window that fits into it with its padding; often just so."""
    size, window = draw(sizes), draw(windows(pooling))
    return tuple(max(n, s - 2 * p) for n, s, p in zip(size, window.span, window.padding)), window


def plain(window):
    """The same window as the tests know it, which has its own way to find the places under it."""
    return cases.Window(window.kernel, window.stride, window.padding, window.dilation)


def numbers(*shape, dtype="float64", order="as it is"):
    """Normal numbers, in one of several memory orders."""
    x = np.random.default_rng(shape).standard_normal(shape).astype(dtype)
    return x if order == "as it is" else getattr(cases, order)(x)
