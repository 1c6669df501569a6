"""What is trained: AlexNet's weights in their order, all scaled down by one factor.

`Asleep` computes on a device that the CPU only waits for: each layer sleeps as long as its share of AlexNet's multiply-adds, forward once
and backward twice, and its gradients have the right shapes. To the rest of minidl it is a model like any other. `narrow` is AlexNet itself
with narrower layers, which the CPU computes.

Krizhevsky, Sutskever and Hinton, NIPS 2012.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from minidl import nn
from minidl.autograd import Function
from minidl.nn import Module, Parameter


@dataclass(frozen=True)
class Layer:
    """A layer of AlexNet: how many weights and biases it has, and the multiply-adds of one image."""

    name: str
    weights: int
    biases: int
    multiply_adds: int


def convolution(name: str, outputs: int, inputs: int, kernel: int, size: int) -> Layer:
    """inputs: channels that each filter sees. size: height and width of the output."""
    weights = outputs * inputs * kernel * kernel
    return Layer(name, weights, outputs, weights * size * size)


def affine(name: str, inputs: int, outputs: int) -> Layer:
    return Layer(name, inputs * outputs, outputs, inputs * outputs)


LAYERS = (
    convolution("conv1", 96, 3, 11, 55),
    convolution("conv2", 256, 48, 5, 27),           # in two groups, as conv4 and conv5
    convolution("conv3", 384, 256, 3, 13),
    convolution("conv4", 384, 192, 3, 13),
    convolution("conv5", 256, 192, 3, 13),
    affine("fc6", 9216, 4096),
    affine("fc7", 4096, 4096),
    affine("fc8", 4096, 1000),
)
NUMBERS = sum(layer.weights + layer.biases for layer in LAYERS)         # 60,965,224
FORWARD = 1 / 3         # of a step's computation; backward is twice as much


def scaled(factor: float) -> list[tuple[str, int, int]]:
    """Name, number of weights and number of biases of each layer, all times a factor; at least 1 of each."""
    return [(layer.name, max(1, round(layer.weights * factor)), max(1, round(layer.biases * factor))) for layer in LAYERS]


def shares() -> list[float]:
    """What part of the computation is each layer's."""
    total = sum(layer.multiply_adds for layer in LAYERS)
    return [layer.multiply_adds / total for layer in LAYERS]


class Sleep(Function):
    """y = x, after a while; so are the gradients.

    seconds: of the forward pass, and of each product of the backward pass; of the gradient by w twice that where x needs none.
    gw, gb: the gradients that are found.
    """

    seconds: float = 0.0
    first: bool = False
    gw: Any = None
    gb: Any = None

    def forward(self, x, w, b):
        time.sleep(self.seconds)
        return x.copy()

    def grad_x(self, gy):
        time.sleep(self.seconds)
        return gy

    def grad_w(self, gy):
        time.sleep(self.seconds * (2 if self.first else 1))
        return self.gw

    def grad_b(self, gy):
        return self.gb


class Rest(Module):
    """A layer that sleeps. forward: seconds of its forward pass. first: nothing below it wants a gradient."""

    def __init__(self, weights: int, biases: int, forward: float, first: bool, draw: np.random.Generator):
        self.w, self.b = (Parameter(0.01 * draw.standard_normal(n, np.float32)) for n in (weights, biases))
        gw, gb = (1e-3 * draw.standard_normal(n, np.float32) for n in (weights, biases))
        self.sleep = Sleep(forward, first, gw, gb)

    def forward(self, x: Any) -> Any:
        return self.sleep(x, self.w, self.b)


class Asleep(Module):
    """AlexNet whose computation is sleep. factor: of all sizes. seconds: a step's, forward and backward. The input is (N, 1)."""

    def __init__(self, factor: float, seconds: float):
        draw = np.random.default_rng(0)
        self.layers = {name: Rest(weights, biases, seconds * FORWARD * share, i == 0, draw)
                       for i, ((name, weights, biases), share) in enumerate(zip(scaled(factor), shares()))}

    def forward(self, x: Any) -> Any:
        for layer in self.layers.values():
            x = layer(x)
        return x


def narrow(factor: float) -> Module:
    """AlexNet for images (3, 227, 227) with about so many times its weights: the layers are narrower by the root of it."""
    draw = np.random.default_rng(0)

    def width(channels: int) -> int:
        return max(2, 2 * round(channels * factor ** 0.5 / 2))          # even: there are two groups

    c1, c2, c3, c4, c5 = (width(channels) for channels in (96, 256, 384, 384, 256))
    return nn.Sequential(
        nn.Conv2d(3, c1, 11, stride=4, generator=draw), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(c1, c2, 5, padding=2, groups=2, generator=draw), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(c2, c3, 3, padding=1, generator=draw), nn.ReLU(),
        nn.Conv2d(c3, c4, 3, padding=1, groups=2, generator=draw), nn.ReLU(),
        nn.Conv2d(c4, c5, 3, padding=1, groups=2, generator=draw), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Flatten(),
        nn.Affine(c5 * 36, width(4096), generator=draw), nn.ReLU(),
        nn.Affine(width(4096), width(4096), generator=draw), nn.ReLU(),
        nn.Affine(width(4096), width(1000), generator=draw))
