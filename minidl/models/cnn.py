"""A small VGG: pairs of 3x3 convolutions between poolings. After Simonyan and Zisserman, ICLR 2015."""

from __future__ import annotations

from typing import Any

from minidl import backend, nn
from minidl.models.registry import image_shape, register, widths_of
from minidl.nn.init import Source


@register("cnn")
class CNN(nn.Module):
    """(N, C, H, W) to (N, classes): for each of `channels` two 3x3 convolutions and a 2x2 pooling, then affine layers.

    channels: filters of each pair. width: units of the affine layer between them and the classes.
    """

    def __init__(self, input_shape: tuple[int, int, int], classes: int, channels: tuple[int, ...] = (32, 64), width: int = 256,
                 generator: Source = None, dtype: Any = "float32"):
        filters = widths_of("cnn", channels)
        inputs, height, wide = image_shape("cnn", input_shape, smallest=2 ** len(filters))
        rng = backend.generator(generator)
        self.features = nn.Sequential()
        for outputs in filters:
            for _ in range(2):
                self.features.append(nn.Conv2d(inputs, outputs, 3, padding=1, activation="relu", generator=rng, dtype=dtype))
                inputs = outputs
            self.features.append(nn.MaxPool2d(2))
            height, wide = height // 2, wide // 2
        self.features.append(nn.Flatten())
        self.classifier = nn.Sequential(
            nn.Affine(inputs * height * wide, width, activation="relu", generator=rng, dtype=dtype),
            nn.Affine(width, classes, generator=rng, dtype=dtype),
        )

    def forward(self, x: Any) -> Any:
        return self.classifier(self.features(x))
