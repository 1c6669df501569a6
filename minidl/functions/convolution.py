"""Convolution and its transpose, as differentiable functions.

Convolution is linear in the image x and linear in the filters w. So there are three maps, each the gradient of the others:

    Conv2d           x, w  -> y       what everyone calls convolution
    ConvTranspose2d  y, w  -> x       its gradient by x, and a layer of its own
    Conv2dWeights    x, g  -> w       its gradient by w, from the gradient g at y

and the rules of each are calls of the other two: that is why they can be differentiated as often as one likes. How the numbers are
crunched stands in kernels/reference.py; `algorithm` goes along to each of the three.
"""

from __future__ import annotations

import math
from typing import Any

from minidl import kernels
from minidl.errors import ArgumentError, ShapeError, nearest
from minidl.functions.activation import activation_gradient, check_activation
from minidl.functions.linear import check_dtypes
from minidl.functions.shape import pad
from minidl.functions.steps import channel_sums
from minidl.graph import Function
from minidl.kernels import Pair, Window, pair


class Conv2d(Function):
    window: Window
    groups: int = 1
    algorithm: str | None = None

    def forward(self, x, w, b=None):
        self.size = x.shape[2:]
        return kernels.conv2d(x, w, self.window, self.groups, b, None, self.algorithm)

    @staticmethod
    def multiply_adds(y, x, w):
        return math.prod(y) * math.prod(w[1:])                  # each number of the result is a sum over a filter

    # y = w * x + b: gx and gw are the other two maps, gb is the sum of gy over batch and positions
    def before(self, gy):
        return gy

    def grad_x(self, before, w):
        return ConvTranspose2d(self.window, self.size, self.groups, self.algorithm)(before, w)

    def grad_w(self, before, x):
        return Conv2dWeights(self.window, self.groups, self.algorithm)(x, before)

    def grad_b(self, before):
        return channel_sums(before)


class ActivatedConv2d(Conv2d):
    name = "conv2d"
    activation: str = "relu"

    def forward(self, x, w, b=None):
        self.size = x.shape[2:]
        return kernels.conv2d(x, w, self.window, self.groups, b, self.activation, self.algorithm)

    # y = f(z), z = w * x + b: the rules above with gz = gy f'(z), found from y
    def before(self, gy, y, *, out=None):
        return activation_gradient(gy, y, self.activation, out)


class ConvTranspose2d(Function):
    name = "conv_transpose2d"
    window: Window
    size: Pair                      # (H, W) of the result
    groups: int = 1
    algorithm: str | None = None

    def forward(self, x, w, b=None):
        return kernels.conv2d_input(x, w, self.size, self.window, self.groups, b, self.algorithm)

    @staticmethod
    def multiply_adds(y, x, w):
        return math.prod(x) * math.prod(w[1:])                  # each number of x is multiplied with a filter

    # every number of x is multiplied by the filter and added where it belongs; the way back is a convolution
    def grad_x(self, gy, w):
        return Conv2d(self.window, self.groups, self.algorithm)(gy, w)

    def grad_w(self, gy, x):
        return Conv2dWeights(self.window, self.groups, self.algorithm)(gy, x)

    def grad_b(self, gy):
        return channel_sums(gy)


class Conv2dWeights(Function):
    name = "conv2d_weights"
    stays_wide = True
    window: Window
    groups: int = 1
    algorithm: str | None = None

    def forward(self, x, g):
        self.size = x.shape[2:]
        return kernels.conv2d_weights(x, g, self.window, self.groups, self.algorithm)

    @staticmethod
    def multiply_adds(y, x, g):
        return math.prod(g) * math.prod(y[1:])

    # the result has the shape of filters, and so has its gradient gy, which takes their place
    def grad_x(self, gy, g):
        return ConvTranspose2d(self.window, self.size, self.groups, self.algorithm)(g, gy)

    def grad_g(self, gy, x):
        return Conv2d(self.window, self.groups, self.algorithm)(x, gy)


def conv2d(x: Any, w: Any, b: Any = None, stride: int | Pair = 1, padding: int | Pair = 0, dilation: int | Pair = 1, groups: int = 1,
           activation: str | None = None, algorithm: str | None = None) -> Any:
    """Convolution of images with filters (not flipped, as everywhere in this field), plus a bias, through an activation.

    x: (N, C, H, W). w: (O, C / groups, KH, KW). b: (O,) or None. Gives (N, O, OH, OW), where
    OH = (H + 2 padding - dilation (KH - 1) - 1) // stride + 1. stride, padding, dilation: an int, or a pair (height, width).
    groups: channels and filters are cut into so many parts that do not see each other. activation: "relu", "tanh", "sigmoid" or None.
    y has x's dtype; w and b may be float32 beside an x of 16 bits. algorithm: how it and its gradients are computed; None takes what is
    fastest here. By name: "im2col", the textbook's way, and "fft", both for every array; compiled for CPUs "direct" and "winograd", which
    has 3 x 3 filters with stride 1 only; for GPUs "implicit". ShapeError, DtypeError, ArgumentError if something does not fit.
    LeCun et al., Proceedings of the IEEE, 1998.

    >>> x = np.array([[1, 1, 2, 0], [0, 2, 1, 3], [2, 0, 1, 2], [3, 2, 0, 1]], float).reshape(1, 1, 4, 4)
    >>> w = np.array([[2, 0, 1], [0, 2, 1], [1, 0, 1]], float).reshape(1, 1, 3, 3)
    >>> conv2d(x, w, np.array([3.0]))[0, 0]
    array([[15., 12.], [ 8., 17.]])
    """
    window = _window("conv2d", x, w, b, stride, padding, dilation, groups)
    check_activation("conv2d", activation)
    check_algorithm("conv2d", algorithm)
    if x.shape[1] != w.shape[1] * groups:
        raise ShapeError(f"conv2d: x has {x.shape[1]} channels, w expects {w.shape[1] * groups}", **_shapes(x, w, groups),
                         hint=f"Give the layer inputs={x.shape[1]}" +
                              (f", or select the channels: x[:, :{w.shape[1]}]" if x.shape[1] > w.shape[1] and groups == 1 else ""))
    if w.shape[0] % groups:
        raise ShapeError(f"conv2d: {w.shape[0]} filters do not divide into {groups} groups", **_shapes(x, w, groups))
    if b is not None and b.shape != w.shape[:1]:
        raise ShapeError(f"conv2d: b has shape {b.shape}, and there are {w.shape[0]} filters", b=f"{b.shape} (O,)", **_shapes(x, w, groups))
    window.check("conv2d", x.shape[2:])
    return (Conv2d(window, groups, algorithm) if activation is None else ActivatedConv2d(window, groups, algorithm, activation))(x, w, b)


def conv_transpose2d(x: Any, w: Any, b: Any = None, stride: int | Pair = 1, padding: int | Pair = 0, output_padding: int | Pair = 0,
                     dilation: int | Pair = 1, groups: int = 1, algorithm: str | None = None) -> Any:
    """The transpose of a convolution, which makes images larger: every number of x is spread out through a filter.

    x: (N, C, H, W). w: (C, O / groups, KH, KW). b: (O,) or None. Gives (N, O, OH, OW), where
    OH = (H - 1) stride - 2 padding + dilation (KH - 1) + output_padding + 1.
    output_padding: rows (columns) more at the lower (right) edge; less than stride or dilation. The other options, the algorithm too,
    are those of the convolution that leads back. ShapeError, DtypeError, ArgumentError if something does not fit.
    Zeiler et al., CVPR 2010.

    >>> conv_transpose2d(np.ones((1, 1, 2, 2)), np.ones((1, 1, 2, 2)), stride=2)[0, 0].shape
    (4, 4)
    """
    window = _window("conv_transpose2d", x, w, b, stride, padding, dilation, groups)
    check_algorithm("conv_transpose2d", algorithm)
    extra = pair("conv_transpose2d", "output_padding", output_padding)
    if x.shape[1] != w.shape[0]:
        raise ShapeError(f"conv_transpose2d: x has {x.shape[1]} channels, w expects {w.shape[0]}", x=f"{x.shape} (N, C, H, W)",
                         w=f"{w.shape} (C, O / groups, KH, KW)", groups=groups)
    if x.shape[1] % groups:
        raise ShapeError(f"conv_transpose2d: {x.shape[1]} channels do not divide into {groups} groups", x=f"{x.shape} (N, C, H, W)")
    if b is not None and b.shape != (w.shape[1] * groups,):
        raise ShapeError(f"conv_transpose2d: b has shape {b.shape}, and there are {w.shape[1] * groups} outputs", b=f"{b.shape} (O,)")
    if any(e < 0 or e >= max(s, d) for e, s, d in zip(extra, window.stride, window.dilation)):
        raise ArgumentError(f"conv_transpose2d: output_padding is {extra}, and must be less than stride or dilation",
                            stride=window.stride, dilation=window.dilation)
    lengths = [(n - 1) * s - 2 * p + span + e for n, s, p, span, e in zip(x.shape[2:], window.stride, window.padding, window.span, extra)]
    if min(lengths) < 1:
        raise ShapeError("conv_transpose2d: the padding is larger than the result", x=f"{x.shape} (N, C, H, W)", padding=window.padding)
    if any(e >= s for e, s in zip(extra, window.stride)):       # room for another position of the window: it holds zeros
        x = pad(x, [(0, 0), (0, 0), *((0, e // s) for e, s in zip(extra, window.stride))])
    return ConvTranspose2d(window, (lengths[0], lengths[1]), groups, algorithm)(x, w, b)


def check_algorithm(operation: str, algorithm: str | None) -> None:
    """ArgumentError for a name that is none of an algorithm. Whether one can do a call is known where it is computed."""
    if algorithm is not None and algorithm not in kernels.ALGORITHMS:
        raise ArgumentError(f"{operation}: algorithm {algorithm!r} is not known{nearest(str(algorithm), kernels.ALGORITHMS)}",
                            hint=f"Known are {', '.join(kernels.ALGORITHMS)}, and None for the default.")


def _window(operation: str, x: Any, w: Any, b: Any, stride: Any, padding: Any, dilation: Any, groups: int) -> Window:
    """The geometry of a call, after the checks that both directions share."""
    check_dtypes(operation, x=x, w=w, b=b)
    if len(x.shape) != 4 or len(w.shape) != 4:
        raise ShapeError(f"{operation}: images and filters have four axes", x=f"{x.shape} (N, C, H, W)", w=f"{w.shape}",
                         hint="One image is a batch too: x[None]. A grey one has a channel too: x[:, None]." if len(x.shape) < 4 else "")
    if groups < 1:
        raise ArgumentError(f"{operation}: groups is {groups}, and must be at least 1")
    window = Window(w.shape[2:], pair(operation, "stride", stride), pair(operation, "padding", padding),
                    pair(operation, "dilation", dilation))
    for name, least in (("kernel", 1), ("stride", 1), ("dilation", 1), ("padding", 0)):
        if min(getattr(window, name)) < least:
            raise ArgumentError(f"{operation}: {name} is {getattr(window, name)}, and must be at least {least}")
    return window


def _shapes(x: Any, w: Any, groups: int) -> dict[str, Any]:
    return {"x": f"{x.shape} (N, C, H, W)", "w": f"{w.shape} (O, C / groups, KH, KW)", "groups": groups}
