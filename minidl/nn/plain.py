"""Layers that learn nothing: activations, pooling, flatten and dropout, so that they can stand in a Sequential.

Each only holds the options of one function of `minidl.functions`, where the mathematics and the papers stand.
"""

from __future__ import annotations

from typing import Any

from minidl import backend
from minidl import functions as F
from minidl.errors import ArgumentError
from minidl.kernels import Pair
from minidl.nn.init import Source
from minidl.nn.module import Module
from minidl.nn.options import number, shown, sizes
from minidl.nn.part import note, present
from minidl.recording import present as recorded


class ReLU(Module):
    """max(x, 0) of each number; any shape.

    >>> from minidl import nn
    >>> nn.ReLU()(np.array([-1.0, 2.0]))
    array([0., 2.])
    """

    def forward(self, x: Any) -> Any:
        return F.relu(x)


class LeakyReLU(Module):
    """x where it is positive, slope * x elsewhere; any shape."""

    def __init__(self, slope: float = 0.01):
        self.slope = number("LeakyReLU", "slope", slope, 0)

    def forward(self, x: Any) -> Any:
        return F.leaky_relu(x, self.slope)

    def describe(self) -> str:
        return f"{self.slope:g}"


class ELU(Module):
    """x where it is positive, alpha (e^x - 1) elsewhere; any shape."""

    def __init__(self, alpha: float = 1.0):
        self.alpha = number("ELU", "alpha", alpha, 0)

    def forward(self, x: Any) -> Any:
        return F.elu(x, self.alpha)

    def describe(self) -> str:
        return f"{self.alpha:g}"


class GELU(Module):
    """x times the probability that a standard normal variable is below x, or with `approximate` nearly that; any shape."""

    def __init__(self, approximate: bool = False):
        if not isinstance(approximate, bool):
            raise ArgumentError(f"GELU: approximate is {approximate!r}, and must be True or False")
        self.approximate = approximate

    def forward(self, x: Any) -> Any:
        return F.gelu(x, self.approximate)

    def describe(self) -> str:
        return shown("", approximate=(self.approximate, False))


class Sigmoid(Module):
    """1 / (1 + e^-x) of each number; any shape."""

    def forward(self, x: Any) -> Any:
        return F.sigmoid(x)


class Tanh(Module):
    """The hyperbolic tangent of each number; any shape."""

    def forward(self, x: Any) -> Any:
        return F.tanh(x)


class Softplus(Module):
    """log(1 + e^x) of each number; any shape."""

    def forward(self, x: Any) -> Any:
        return F.softplus(x)


class Softmax(Module):
    """e^x divided by its sum along an axis; any shape. A classifier that is trained ends before it: the loss has it inside."""

    def __init__(self, axis: int = -1):
        self.axis = _axis("Softmax", axis)

    def forward(self, x: Any) -> Any:
        return F.softmax(x, self.axis)

    def describe(self) -> str:
        return shown("", axis=(self.axis, -1))


class LogSoftmax(Module):
    """The logarithm of the softmax along an axis; any shape."""

    def __init__(self, axis: int = -1):
        self.axis = _axis("LogSoftmax", axis)

    def forward(self, x: Any) -> Any:
        return F.log_softmax(x, self.axis)

    def describe(self) -> str:
        return shown("", axis=(self.axis, -1))


class MaxPool2d(Module):
    """The largest number under a window: (N, C, H, W) to (N, C, OH, OW).

    kernel, stride (the kernel unless given), padding, dilation: an int, or a pair (height, width). ceil_mode: a last window may stick out.

    >>> from minidl import nn
    >>> nn.MaxPool2d(2)(np.arange(16.0).reshape(1, 1, 4, 4))[0, 0]
    array([[ 5.,  7.], [13., 15.]])
    """

    def __init__(self, kernel: int | Pair, stride: int | Pair | None = None, padding: int | Pair = 0, dilation: int | Pair = 1,
                 ceil_mode: bool = False):
        self.kernel, self.stride, self.padding = _pooling("MaxPool2d", kernel, stride, padding)
        (self.dilation,) = sizes("MaxPool2d", dilation=dilation)
        self.ceil_mode = bool(ceil_mode)

    def forward(self, x: Any) -> Any:
        return F.max_pool2d(x, self.kernel, self.stride, self.padding, self.dilation, self.ceil_mode)

    def describe(self) -> str:
        return shown("", kernel=(self.kernel, None), stride=(self.stride, self.kernel), padding=(self.padding, 0),
                     dilation=(self.dilation, 1), ceil_mode=(self.ceil_mode, False))


class AvgPool2d(Module):
    """The mean of the numbers under a window: (N, C, H, W) to (N, C, OH, OW).

    As `MaxPool2d`, without dilation. count_include_pad: whether zeros of the padding count in the mean.
    """

    def __init__(self, kernel: int | Pair, stride: int | Pair | None = None, padding: int | Pair = 0, ceil_mode: bool = False,
                 count_include_pad: bool = True):
        self.kernel, self.stride, self.padding = _pooling("AvgPool2d", kernel, stride, padding)
        self.ceil_mode, self.count_include_pad = bool(ceil_mode), bool(count_include_pad)

    def forward(self, x: Any) -> Any:
        return F.avg_pool2d(x, self.kernel, self.stride, self.padding, self.ceil_mode, self.count_include_pad)

    def describe(self) -> str:
        return shown("", kernel=(self.kernel, None), stride=(self.stride, self.kernel), padding=(self.padding, 0),
                     ceil_mode=(self.ceil_mode, False), count_include_pad=(self.count_include_pad, True))


class GlobalAvgPool2d(Module):
    """The mean of each channel: (N, C, H, W) to (N, C)."""

    def forward(self, x: Any) -> Any:
        return F.global_avg_pool2d(x)


class Flatten(Module):
    """Images as vectors: (N, ...) to (N, all the rest)."""

    def forward(self, x: Any) -> Any:
        return F.flatten(x)


class Dropout(Module):
    """In training, zeros in place of a fraction p of the numbers and the others divided by 1 - p; in evaluation nothing.

    x: any shape. p: at least 0 and less than 1. generator: draws `seed`, so that layers differ. `seed` and `step`, the number of
    training passes so far, are state: a run that is resumed drops the numbers that it would have dropped. Srivastava et al., JMLR 2014.

    In a part of a minibatch it drops what it would drop of these examples in the whole: see part.py.
    """

    buffers = ("seed", "step")

    def __init__(self, p: float = 0.5, *, generator: Source = None):
        self.p = number("Dropout", "p", p, 0, 1)
        self.seed = int(backend.generator(generator).integers(2 ** 63))
        self.step = 0

    def forward(self, x: Any) -> Any:
        if not self.training or self.p == 0:
            return x
        part, recording, ahead, first = present(), recorded(), 0, 0
        if part is not None:
            ahead = part.calls(self)
            if part.count and len(x) % part.count == 0:                 # the first axis is the examples, or positions in them
                first = part.first * (x.size // part.count)
        step = self.step + ahead
        y = F.dropout(x, self.p, self.seed, step if recording is None else recording.fresh(lambda: self.step + ahead, "int64"), first=first)
        note(self, step + 1)
        return y

    def apply_note(self, step: Any) -> None:
        """Go on to a step; all parts of a minibatch name the same ones."""
        self.step = max(self.step, int(step))

    def describe(self) -> str:
        return f"{self.p:g}"


def _axis(layer: str, axis: Any) -> int:
    if isinstance(axis, bool) or not hasattr(axis, "__index__"):
        raise ArgumentError(f"{layer}: axis is {axis!r}, and must be an int")
    return int(axis)


def _pooling(layer: str, kernel: Any, stride: Any, padding: Any) -> tuple[Pair, ...]:
    kernel, stride, padding = sizes(layer, kernel=kernel, stride=kernel if stride is None else stride, padding=padding)
    if any(2 * p > k for p, k in zip(padding, kernel)):
        raise ArgumentError(f"{layer}: padding {padding} is more than half of the kernel {kernel}",
                            hint="A window would lie in the padding alone. Pad the images with minidl.functions.pad first.")
    return kernel, stride, padding
