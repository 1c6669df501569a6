"""What is timed: five networks, and single convolutions of VGG-16 and ResNet-50, with inputs that every side draws alike.

No side's code is here. A training step is zero_grad, forward, loss, backward and an update by SGD; inference is a forward pass without
a graph. A layer is timed forward, and forward and backward.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LR, MOMENTUM = 1e-3, 0.9
CLASSES = 10
PRODUCT = 2048          # rows and columns of the matrices whose product shows the machine's peak


@dataclass(frozen=True)
class Model:
    """A network of minidl.models by its name, and the minibatch that it is given."""

    name: str
    title: str
    shape: tuple[int, ...]          # of one example
    batch: int
    reconstructs: bool = False      # learns its own input

    kind = "model"
    passes = ("step", "inference")

    @property
    def images(self) -> bool:
        """Whether there are channels, whose place in memory can be chosen."""
        return len(self.shape) == 3

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """A minibatch (x, labels); x lies in [0, 1] where it is to be reconstructed."""
        draw = np.random.default_rng(1)
        shape = (self.batch, *self.shape)
        x = draw.random(shape, np.float32) if self.reconstructs else draw.standard_normal(shape, np.float32)
        return x, draw.integers(CLASSES, size=self.batch)


@dataclass(frozen=True)
class Layer:
    """One convolution: (batch, inputs, size, size), square filters, padded by half a filter."""

    network: str
    inputs: int
    outputs: int
    kernel: int
    size: int
    stride: int = 1
    batch: int = 8

    kind = "layer"
    passes = ("forward", "both")
    images = True

    @property
    def name(self) -> str:
        stride = f"-s{self.stride}" if self.stride > 1 else ""
        return f"{self.network}-{self.kernel}x{self.kernel}-{self.inputs}-{self.outputs}-{self.size}{stride}"

    @property
    def title(self) -> str:
        stride = f" /{self.stride}" if self.stride > 1 else ""
        return f"{self.kernel}x{self.kernel}{stride} {self.inputs}→{self.outputs}, {self.size}²"

    @property
    def padding(self) -> int:
        return self.kernel // 2

    @property
    def bias(self) -> bool:
        return self.network == "vgg16"          # in ResNet-50 batch normalization follows, and shifts by itself

    @property
    def first(self) -> bool:
        """Whether its input is an image, which wants no gradient."""
        return self.inputs == 3

    @property
    def out(self) -> int:
        return (self.size + 2 * self.padding - self.kernel) // self.stride + 1

    @property
    def multiply_adds(self) -> int:
        return self.batch * self.outputs * self.out ** 2 * self.inputs * self.kernel ** 2

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray]:
        """x, w, b and the gradient at the output."""
        draw = np.random.default_rng(1)
        x = draw.standard_normal((self.batch, self.inputs, self.size, self.size), np.float32)
        w = draw.standard_normal((self.outputs, self.inputs, self.kernel, self.kernel), np.float32)
        w *= np.float32((2 / w[0].size) ** 0.5)
        gy = draw.standard_normal((self.batch, self.outputs, self.out, self.out), np.float32)
        return x, w, draw.standard_normal(self.outputs, np.float32) if self.bias else None, gy


MODELS = (
    Model("mlp", "MLP", (784,), 128),
    Model("lenet", "LeNet", (1, 28, 28), 128),
    Model("cnn", "cnn (small VGG)", (3, 32, 32), 64),
    Model("resnet18", "ResNet-18", (3, 32, 32), 32),
    Model("autoencoder", "autoencoder", (784,), 500, reconstructs=True),
)
LAYERS = (
    Layer("vgg16", 3, 64, 3, 224),
    Layer("vgg16", 64, 128, 3, 112),
    Layer("vgg16", 128, 256, 3, 56),
    Layer("vgg16", 256, 512, 3, 28),
    Layer("vgg16", 512, 512, 3, 14),
    Layer("resnet50", 3, 64, 7, 224, stride=2),
    Layer("resnet50", 64, 256, 1, 56),
    Layer("resnet50", 256, 64, 1, 56),
    Layer("resnet50", 64, 64, 3, 56),
    Layer("resnet50", 128, 128, 3, 56, stride=2),
    Layer("resnet50", 128, 128, 3, 28),
    Layer("resnet50", 256, 256, 3, 14),
    Layer("resnet50", 1024, 256, 1, 14),
    Layer("resnet50", 512, 512, 3, 7),
)
BY_NAME: dict[str, Model | Layer] = {workload.name: workload for workload in (*MODELS, *LAYERS)}


def chosen(only: list[str] | None, layers: bool = True) -> list[Model | Layer]:
    """The workloads that were asked for: by name, "models", "layers", "vgg16" or "resnet50"; all of them for None.

    ValueError for a name that is none, with those that are.
    """
    networks = {network: [layer for layer in LAYERS if layer.network == network] for network in ("vgg16", "resnet50")}
    groups: dict[str, list] = {"models": list(MODELS), "layers": list(LAYERS)} | networks
    if only is None:
        return [*MODELS, *(LAYERS if layers else ())]
    wanted: set[str] = set()
    for name in only:
        if name not in groups and name not in BY_NAME:
            raise ValueError(f"{name!r} is no workload. There are {', '.join([*(m.name for m in MODELS), *groups])}, and of layers "
                             f"{', '.join(layer.name for layer in LAYERS)}")
        wanted |= {workload.name for workload in groups.get(name, [])} | {name}
    return [workload for name, workload in BY_NAME.items() if name in wanted]
