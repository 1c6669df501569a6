"""Pooling: each channel made smaller, by the largest or the mean number under a sliding window.

Once it is known where the largest numbers were, max pooling only picks numbers out; the way back puts them in, and the way back of
that picks them out again. Summing under a window and spreading to the places under it are each other's way back in the same manner.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minidl import backend, kernels
from minidl.errors import ArgumentError, ShapeError
from minidl.functions.reduction import mean
from minidl.functions.shape import check_arrays
from minidl.graph import Function
from minidl.kernels import Pair, Window, pair
from minidl.tensor import Tensor


class MaxPool2d(Function):
    name = "max_pool2d"
    window: Window

    def forward(self, x):
        self.size = x.shape[2:]
        y, self.place = kernels.max_pool2d(x, self.window)
        return y

    # the gradient goes to the number that was the largest
    def grad_x(self, gy):
        return PutBack(self.window, self.place, self.size)(gy)


class PutBack(Function):
    window: Window
    place: Any
    size: Pair

    def forward(self, x):
        return kernels.max_pool2d_scatter(x, self.place, self.size, self.window)

    def grad_x(self, gy):
        return PickOut(self.window, self.place)(gy)


class PickOut(Function):
    window: Window
    place: Any

    def forward(self, x):
        self.size = x.shape[2:]
        return kernels.max_pool2d_gather(x, self.place, self.window)

    def grad_x(self, gy):
        return PutBack(self.window, self.place, self.size)(gy)


class SumPool2d(Function):
    window: Window

    def forward(self, x):
        self.size = x.shape[2:]
        return kernels.sum_pool2d(x, self.window)

    # every number under a window counts once
    def grad_x(self, gy):
        return Spread(self.window, self.size)(gy)


class Spread(Function):
    window: Window
    size: Pair

    def forward(self, x):
        return kernels.sum_pool2d_spread(x, self.size, self.window)

    def grad_x(self, gy):
        return SumPool2d(self.window)(gy)


class AvgPool2d(Function):
    name = "avg_pool2d"
    in_float32 = True
    window: Window
    share: Any                      # 1 / how many numbers each window counts: a number, or an array (OH, OW)

    def forward(self, x):
        self.size = x.shape[2:]
        return kernels.sum_pool2d(x, self.window) * self.share

    def grad_x(self, gy):
        return Spread(self.window, self.size)(gy * self.share)


def max_pool2d(x: Any, kernel: int | Pair, stride: int | Pair | None = None, padding: int | Pair = 0, dilation: int | Pair = 1,
               ceil_mode: bool = False) -> Any:
    """The largest number under a window that slides over each channel.

    x: (N, C, H, W). kernel, stride, padding, dilation: an int, or a pair (height, width); the stride is the kernel unless given;
    padding at most half the kernel. Gives (N, C, OH, OW), where OH = (H + 2 padding - dilation (KH - 1) - 1) // stride + 1, rounded up
    with ceil_mode. Of equal numbers the first one gets the gradient. Padding is never the largest.

    >>> max_pool2d(np.array([[1, 2, 4, 2], [0, 1, 2, 3], [3, 0, 1, 0], [2, 4, 0, 2.]])[None, None], 2)[0, 0]
    array([[2., 4.], [4., 2.]])
    """
    return MaxPool2d(_window("max_pool2d", x, kernel, stride, padding, dilation, ceil_mode))(x)


def avg_pool2d(x: Any, kernel: int | Pair, stride: int | Pair | None = None, padding: int | Pair = 0, ceil_mode: bool = False,
               count_include_pad: bool = True) -> Any:
    """The mean of the numbers under a window that slides over each channel.

    As `max_pool2d`. count_include_pad: whether zeros of the padding count in the mean.

    >>> avg_pool2d(np.arange(16.0).reshape(1, 1, 4, 4), 2)[0, 0]
    array([[ 2.5,  4.5], [10.5, 12.5]])
    """
    window = _window("avg_pool2d", x, kernel, stride, padding, 1, ceil_mode)
    size = x.shape[2:]
    share: Any = 1 / (window.kernel[0] * window.kernel[1])
    if (any(window.padding) and not count_include_pad) or window.padded(size) != tuple(n + 2 * p for n, p in zip(size, window.padding)):
        share = _shares(x, window, count_include_pad)
    return AvgPool2d(window, share)(x)


def _shares(x: Any, window: Window, count_include_pad: bool) -> Any:
    """1 / the numbers that count under each window, (OH, OW). What sticks out beyond the padding never counts."""
    counts = []
    for length, positions, k, s, p in zip(x.shape[2:], window.out(x.shape[2:]), window.kernel, window.stride, window.padding):
        first, last = (-p, length + p) if count_include_pad else (0, length)
        counts.append([min(i * s - p + k, last) - max(i * s - p, first) for i in range(positions)])
    dtype = "float32" if backend.is_float(x.dtype) and x.dtype.itemsize < 8 else "float64"
    shares = np.array([[1 / (rows * columns) for columns in counts[1]] for rows in counts[0]], dtype)
    return backend.asarray(shares, x.device if isinstance(x, Tensor) else backend.device_of(x))


def global_avg_pool2d(x: Any) -> Any:
    """The mean of each channel: (N, C, H, W) gives (N, C). Lin, Chen and Yan, arXiv:1312.4400.

    >>> global_avg_pool2d(np.arange(8.0).reshape(1, 2, 2, 2))
    array([[1.5, 5.5]])
    """
    _check_images("global_avg_pool2d", x)
    return mean(x, axis=(2, 3))


def _window(operation: str, x: Any, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool) -> Window:
    _check_images(operation, x)
    window = Window(pair(operation, "kernel", kernel), pair(operation, "stride", kernel if stride is None else stride),
                    pair(operation, "padding", padding), pair(operation, "dilation", dilation), ceil_mode)
    if any(2 * p > k for p, k in zip(window.padding, window.kernel)):
        raise ArgumentError(f"{operation}: padding {window.padding} is more than half of the kernel {window.kernel}",
                            hint="A window would lie in the padding alone. Pad the images with minidl.functions.pad first.")
    window.check(operation, x.shape[2:])
    return window


def _check_images(operation: str, x: Any) -> None:
    check_arrays(operation, x=x)
    if len(x.shape) != 4:
        raise ShapeError(f"{operation}: images have four axes", x=f"{x.shape} (N, C, H, W)",
                         hint="One image is a batch too: x[None]. A grey one has a channel too: x[:, None].")
