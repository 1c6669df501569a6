"""LeNet: two convolutions with pooling, then three affine layers. LeCun et al., Proceedings of the IEEE, 1998 (here with ReLU)."""

from __future__ import annotations

from typing import Any

from minidl import backend, nn
from minidl.models.registry import image_shape, register
from minidl.nn.init import Source


@register("lenet")
class LeNet(nn.Module):
    """(N, C, H, W) to (N, classes).

    Images of 28 x 28 or more get the classical filters: 6 of 5 x 5 with padding 2, and 16 of 5 x 5. Smaller ones, down to 4 x 4, get 16
    and 32 of 3 x 3 with padding 1, so that something is left for the affine layers.
    """

    def __init__(self, input_shape: tuple[int, int, int], classes: int, generator: Source = None, dtype: Any = "float32"):
        channels, height, width = image_shape("lenet", input_shape, smallest=4)
        rng = backend.generator(generator)
        if min(height, width) >= 28:
            first, second, kernel, paddings = 6, 16, 5, (2, 0)
            rows, columns = (height // 2 - 4) // 2, (width // 2 - 4) // 2       # what the second pooling leaves
        else:
            first, second, kernel, paddings = 16, 32, 3, (1, 1)
            rows, columns = height // 4, width // 4
        self.features = nn.Sequential(
            nn.Conv2d(channels, first, kernel, padding=paddings[0], activation="relu", generator=rng, dtype=dtype),
            nn.MaxPool2d(2),
            nn.Conv2d(first, second, kernel, padding=paddings[1], activation="relu", generator=rng, dtype=dtype),
            nn.MaxPool2d(2),
            nn.Flatten(),
        )
        self.classifier = nn.Sequential(
            nn.Affine(second * rows * columns, 120, activation="relu", generator=rng, dtype=dtype),
            nn.Affine(120, 84, activation="relu", generator=rng, dtype=dtype),
            nn.Affine(84, classes, generator=rng, dtype=dtype),
        )

    def forward(self, x: Any) -> Any:
        return self.classifier(self.features(x))
