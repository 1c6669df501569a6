"""A multilayer perceptron: affine layers with ReLU on the flattened input."""

from __future__ import annotations

from typing import Any

from minidl import backend, nn
from minidl.models.registry import register, size_of, widths_of
from minidl.nn.init import Source


@register("mlp")
class MLP(nn.Module):
    """(N, ...) to (N, classes): flatten, then affine layers of `widths` with ReLU, then an affine layer of `classes` outputs."""

    def __init__(self, input_shape: tuple[int, ...], classes: int, widths: tuple[int, ...] = (512, 256), generator: Source = None,
                 dtype: Any = "float32"):
        rng = backend.generator(generator)
        self.layers = nn.Sequential(nn.Flatten())
        inputs = size_of("mlp", input_shape)
        for width in widths_of("mlp", widths):
            self.layers.append(nn.Affine(inputs, width, activation="relu", generator=rng, dtype=dtype))
            inputs = width
        self.layers.append(nn.Affine(inputs, classes, generator=rng, dtype=dtype))

    def forward(self, x: Any) -> Any:
        return self.layers(x)
