"""ResNet-18 in its form for small images: a 3x3 stem, no pooling before the blocks. He et al., CVPR 2016."""

from __future__ import annotations

from typing import Any

from minidl import backend, nn
from minidl import functions as F
from minidl.models.registry import image_shape, register
from minidl.nn.init import Source


class Block(nn.Module):
    """Two 3x3 convolutions and a way around them: y = relu(f(x) + x), where x is itself brought to f's shape if that is another."""

    def __init__(self, inputs: int, outputs: int, stride: int, generator: Source, dtype: Any):
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False, generator=generator, dtype=dtype)
        self.norm1 = nn.BatchNorm(outputs, activation="relu", dtype=dtype)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False, generator=generator, dtype=dtype)
        self.norm2 = nn.BatchNorm(outputs, dtype=dtype)
        self.around = None if stride == 1 and inputs == outputs else nn.Sequential(
            nn.Conv2d(inputs, outputs, 1, stride, bias=False, generator=generator, dtype=dtype),
            nn.BatchNorm(outputs, dtype=dtype),
        )

    def forward(self, x: Any) -> Any:
        y = self.norm1(self.conv1(x))
        y = self.norm2(self.conv2(y))
        return F.relu(y + (x if self.around is None else self.around(x)))


@register("resnet18")
class ResNet18(nn.Module):
    """(N, C, H, W) to (N, classes): a convolution, four stages of two blocks, the mean of each channel, an affine layer.

    Stages have 64, 128, 256 and 512 channels; from the second on each halves the image, so that any size will do.
    """

    def __init__(self, input_shape: tuple[int, int, int], classes: int, generator: Source = None, dtype: Any = "float32"):
        inputs, _, _ = image_shape("resnet18", input_shape)
        rng = backend.generator(generator)
        self.stem = nn.Sequential(nn.Conv2d(inputs, 64, 3, padding=1, bias=False, generator=rng, dtype=dtype),
                                  nn.BatchNorm(64, activation="relu", dtype=dtype))
        self.stages = nn.Sequential()
        inputs = 64
        for outputs, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
            self.stages.append(nn.Sequential(Block(inputs, outputs, stride, rng, dtype), Block(outputs, outputs, 1, rng, dtype)))
            inputs = outputs
        self.classifier = nn.Affine(512, classes, generator=rng, dtype=dtype)

    def forward(self, x: Any) -> Any:
        return self.classifier(F.global_avg_pool2d(self.stages(self.stem(x))))
