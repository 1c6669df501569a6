"""Layers that learn: an operation together with its weights.

The weights are `w` and `b`, or `gamma` and `beta` where they scale and shift. They are drawn on the CPU from `generator` (a NumPy
Generator, a seed, or None) by `init`, He's normal numbers unless another is given; biases start at zero. What the operation does
stands in functions/; layers that learn nothing are in plain.py. `then` names an activation that follows and is done in the same pass:
see Sequential.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minidl import backend, kernels
from minidl import functions as F
from minidl.errors import ArgumentError, ShapeError
from minidl.functions import convolution, linear
from minidl.functions.activation import check_activation
from minidl.functions.convolution import check_algorithm
from minidl.functions.normalization import Reduce
from minidl.kernels import Pair
from minidl.nn.init import Shape, Source, float_type, he_normal, normal, ones, zeros
from minidl.nn.module import Module, Parameter
from minidl.nn.options import Init, count, drawn, number, shown, sizes
from minidl.nn.part import note, present
from minidl.recording import present as recorded


class Affine(Module):
    """The fully connected layer: (N, inputs) to (N, outputs), y = f(x w + b), with w (inputs, outputs) and b (outputs,).

    bias: False for none. activation: f, fused: "relu", "tanh", "sigmoid" or None.

    >>> from minidl import nn
    >>> nn.Affine(784, 10, generator=0)(np.zeros((32, 784), np.float32)).shape
    (32, 10)
    """

    def __init__(self, inputs: int, outputs: int, *, bias: bool = True, activation: str | None = None, init: Init = he_normal,
                 generator: Source = None, dtype: Any = "float32"):
        check_activation("Affine", activation)
        self.inputs, self.outputs = count("Affine", "inputs", inputs), count("Affine", "outputs", outputs)
        self.activation = activation
        self.w = drawn("Affine", init, (self.inputs, self.outputs), generator, dtype)
        self.b = Parameter(zeros((self.outputs,), dtype=dtype)) if bias else None

    def forward(self, x: Any, then: str | None = None) -> Any:
        return F.affine(x, self.w, self.b, activation=self.activation or then)

    def multiply_adds(self, x: Shape, y: Shape) -> int:
        """How many for one example, where the input has shape x and the output y, without the batch axis."""
        return linear.Affine.multiply_adds(y, x, self.w.shape)

    def describe(self) -> str:
        return shown(f"{self.inputs}, {self.outputs}", bias=(self.b is not None, True), activation=(self.activation, None))


class Conv2d(Module):
    """Convolution: (N, inputs, H, W) to (N, outputs, OH, OW), with filters w (outputs, inputs / groups, KH, KW) and b (outputs,).

    kernel, stride, padding, dilation: an int, or a pair (height, width). groups: channels and filters are cut into so many parts that
    do not see each other. bias: False for none. activation: fused: "relu", "tanh", "sigmoid" or None. algorithm: as for `conv2d`.

    >>> from minidl import nn
    >>> nn.Conv2d(3, 16, 3, padding=1, generator=0)(np.zeros((2, 3, 8, 8), np.float32)).shape
    (2, 16, 8, 8)
    """

    def __init__(self, inputs: int, outputs: int, kernel: int | Pair, stride: int | Pair = 1, padding: int | Pair = 0,
                 dilation: int | Pair = 1, groups: int = 1, *, bias: bool = True, activation: str | None = None,
                 algorithm: str | None = None, init: Init = he_normal, generator: Source = None, dtype: Any = "float32"):
        check_activation("Conv2d", activation)
        check_algorithm("Conv2d", algorithm)
        self.inputs, self.outputs, self.groups = _channels("Conv2d", inputs, outputs, groups)
        self.kernel, self.stride, self.padding, self.dilation = sizes("Conv2d", kernel=kernel, stride=stride, padding=padding,
                                                                      dilation=dilation)
        self.activation, self.algorithm = activation, algorithm
        self.w = drawn("Conv2d", init, (self.outputs, self.inputs // self.groups, *self.kernel), generator, dtype)
        self.b = Parameter(zeros((self.outputs,), dtype=dtype)) if bias else None

    def forward(self, x: Any, then: str | None = None) -> Any:
        return F.conv2d(x, self.w, self.b, self.stride, self.padding, self.dilation, self.groups, self.activation or then, self.algorithm)

    def multiply_adds(self, x: Shape, y: Shape) -> int:
        """How many for one example: each number of the output is a sum over a filter."""
        return convolution.Conv2d.multiply_adds(y, x, self.w.shape)

    def describe(self) -> str:
        return shown(f"{self.inputs}, {self.outputs}", kernel=(self.kernel, None), stride=(self.stride, 1), padding=(self.padding, 0),
                     dilation=(self.dilation, 1), groups=(self.groups, 1), bias=(self.b is not None, True),
                     activation=(self.activation, None), algorithm=(self.algorithm, None))


class ConvTranspose2d(Module):
    """Transposed convolution: (N, inputs, H, W) to (N, outputs, OH, OW), OH = (H - 1) stride - 2 padding + dilation (KH - 1) + 1 + extra.

    w has shape (inputs, outputs / groups, KH, KW), b (outputs,). output_padding: the extra rows and columns at the lower and right edge.
    The rest as in `Conv2d`; fans for `init` are taken from the shape of w as it stands.

    >>> from minidl import nn
    >>> nn.ConvTranspose2d(16, 3, 2, stride=2, generator=0)(np.zeros((2, 16, 4, 4), np.float32)).shape
    (2, 3, 8, 8)
    """

    def __init__(self, inputs: int, outputs: int, kernel: int | Pair, stride: int | Pair = 1, padding: int | Pair = 0,
                 output_padding: int | Pair = 0, dilation: int | Pair = 1, groups: int = 1, *, bias: bool = True,
                 algorithm: str | None = None, init: Init = he_normal, generator: Source = None, dtype: Any = "float32"):
        check_algorithm("ConvTranspose2d", algorithm)
        self.inputs, self.outputs, self.groups = _channels("ConvTranspose2d", inputs, outputs, groups)
        self.kernel, self.stride, self.padding, self.output_padding, self.dilation = sizes(
            "ConvTranspose2d", kernel=kernel, stride=stride, padding=padding, output_padding=output_padding, dilation=dilation)
        if any(extra >= max(s, d) for extra, s, d in zip(self.output_padding, self.stride, self.dilation)):
            raise ArgumentError(f"ConvTranspose2d: output_padding is {self.output_padding}, and must be less than stride or dilation",
                                stride=self.stride, dilation=self.dilation)
        self.algorithm = algorithm
        self.w = drawn("ConvTranspose2d", init, (self.inputs, self.outputs // self.groups, *self.kernel), generator, dtype)
        self.b = Parameter(zeros((self.outputs,), dtype=dtype)) if bias else None

    def forward(self, x: Any) -> Any:
        return F.conv_transpose2d(x, self.w, self.b, self.stride, self.padding, self.output_padding, self.dilation, self.groups,
                                  self.algorithm)

    def multiply_adds(self, x: Shape, y: Shape) -> int:
        """How many for one example: each number of the input is multiplied with a filter."""
        return convolution.ConvTranspose2d.multiply_adds(y, x, self.w.shape)

    def describe(self) -> str:
        return shown(f"{self.inputs}, {self.outputs}", kernel=(self.kernel, None), stride=(self.stride, 1), padding=(self.padding, 0),
                     output_padding=(self.output_padding, 0), dilation=(self.dilation, 1), groups=(self.groups, 1),
                     bias=(self.b is not None, True), algorithm=(self.algorithm, None))


class Embedding(Module):
    """A learned row for each id: integers of any shape to shape + (size,), with w (ids, size) of standard normal numbers.

    >>> from minidl import nn
    >>> nn.Embedding(100, 8, generator=0)(np.array([[1, 2, 99]])).shape
    (1, 3, 8)
    """

    def __init__(self, ids: int, size: int, *, init: Init = normal, generator: Source = None, dtype: Any = "float32"):
        self.ids, self.size = count("Embedding", "ids", ids), count("Embedding", "size", size)
        self.w = drawn("Embedding", init, (self.ids, self.size), generator, dtype)

    def forward(self, ids: Any) -> Any:
        return F.embedding(ids, self.w)

    def describe(self) -> str:
        return f"{self.ids}, {self.size}"


class BatchNorm(Module):
    """Normalize each channel: (N, C) or (N, C, H, W) to the same shape, then scale by gamma (C,) and shift by beta (C,).

    In training by the mean and variance of the batch, which also move `running_mean` and `running_var` (the unbiased variance) by the
    fraction `momentum`; with momentum None these are the mean over all batches so far. In evaluation by the running ones.
    activation: fused: "relu", "tanh", "sigmoid" or None. ShapeError in training for a single number a channel, which has no variance.
    Ioffe and Szegedy, ICML 2015.

    `reduce` is None, or what sums over all ranks that have a part of the batch, as for `batch_norm`: minidl.parallel sets it. Then the
    statistics are the whole batch's. Copies and pickles leave it out.

    >>> from minidl import nn
    >>> nn.BatchNorm(1)(np.array([[1.0], [3.0]], np.float32)).data.round(2).ravel()
    array([-1.,  1.], dtype=float32)
    """

    buffers = ("running_mean", "running_var", "steps")
    reduce: Reduce | None = None

    def __init__(self, channels: int, momentum: float | None = 0.1, eps: float = 1e-5, *, activation: str | None = None,
                 dtype: Any = "float32"):
        check_activation("BatchNorm", activation)
        self.channels = count("BatchNorm", "channels", channels)
        self.momentum = None if momentum is None else number("BatchNorm", "momentum", momentum, 0, 1 + 1e-12)
        self.eps = number("BatchNorm", "eps", eps, 0)
        self.activation = activation
        shape, kind = (self.channels,), float_type(dtype, "BatchNorm")
        self.gamma, self.beta = Parameter(ones(shape, dtype=kind)), Parameter(zeros(shape, dtype=kind))
        self.running_mean, self.running_var = np.zeros(shape, kind), np.ones(shape, kind)
        self.steps = 0

    def forward(self, x: Any, then: str | None = None) -> Any:
        activation = self.activation or then
        if not self.training:
            return F.batch_norm_inference(x, self.gamma, self.beta, self.running_mean, self.running_var, self.eps, activation)
        if self.reduce is None:
            n = x.size // self.channels
            if n != 1:
                y, mean, var = F.batch_norm(x, self.gamma, self.beta, self.eps, activation)
        else:
            y, mean, var, n = F.batch_norm(x, self.gamma, self.beta, self.eps, activation, self.reduce)
        if n == 1:
            raise ShapeError("batch_norm: one number a channel has no variance", x=f"{x.shape} (N, C, ...)",
                             hint="Train with larger minibatches (drop a last one of one example), or switch to evaluation: model.eval().")
        if present() is None or getattr(self.reduce, "leads", True):        # of ranks that know the same, one notes it
            note(self, mean.data, var.data, n)
        return y

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "reduce"}

    def apply_note(self, mean: Any, var: Any, n: Any) -> None:
        """Move the running statistics by those of a batch, of n numbers a channel."""
        device, n, recording = backend.device_of(self.running_mean), int(n), recorded()
        mean, var = backend.asarray(mean, device), backend.asarray(var, device)
        self.steps += 1
        rate: Any = 1 / self.steps if self.momentum is None else self.momentum
        if recording is not None and self.momentum is None:
            moved = recording.moved(self, "steps")
            rate = recording.fresh(lambda: 1 / (self.steps + moved), "float64")
        # new arrays, because a graph may still hold the old ones; but for a step that is being recorded
        self.running_mean, self.running_var = kernels.running_statistics(self.running_mean, self.running_var, mean, var, rate, n)

    def describe(self) -> str:
        return shown(f"{self.channels}", momentum=(self.momentum, 0.1), eps=(self.eps, 1e-5), activation=(self.activation, None))


class LayerNorm(Module):
    """Normalize each example over its last axes, then scale by gamma and shift by beta, which have the shape of these axes.

    shape: the lengths of these axes, or an int for one axis. bias: False for no beta. Ba, Kiros and Hinton, arXiv:1607.06450.

    >>> from minidl import nn
    >>> nn.LayerNorm(2)(np.array([[1.0, 3.0]], np.float32)).data.round(2)
    array([[-1.,  1.]], dtype=float32)
    """

    def __init__(self, shape: int | Shape, eps: float = 1e-5, *, bias: bool = True, dtype: Any = "float32"):
        lengths = tuple(shape) if isinstance(shape, tuple | list) else (shape,)
        if not lengths:
            raise ArgumentError("LayerNorm: shape is empty, and must name at least one axis")
        self.shape = tuple(count("LayerNorm", "shape", n) for n in lengths)
        self.eps = number("LayerNorm", "eps", eps, 0)
        kind = float_type(dtype, "LayerNorm")
        self.gamma = Parameter(ones(self.shape, dtype=kind))
        self.beta = Parameter(zeros(self.shape, dtype=kind)) if bias else None

    def forward(self, x: Any) -> Any:
        return F.layer_norm(x, self.gamma, self.beta, eps=self.eps)

    def describe(self) -> str:
        first = f"{self.shape[0]}" if len(self.shape) == 1 else f"{self.shape}"
        return shown(first, eps=(self.eps, 1e-5), bias=(self.beta is not None, True))


def _channels(layer: str, inputs: Any, outputs: Any, groups: Any) -> tuple[int, int, int]:
    inputs, outputs, groups = count(layer, "inputs", inputs), count(layer, "outputs", outputs), count(layer, "groups", groups)
    for name, value in (("inputs", inputs), ("outputs", outputs)):
        if value % groups:
            raise ArgumentError(f"{layer}: {name}={value} does not divide into groups={groups}")
    return inputs, outputs, groups
