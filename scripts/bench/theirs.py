"""PyTorch's side: the same networks, eager, with images in its usual memory order or in channels_last.

Its best settings: in-place ReLU as torchvision writes it, the fused SGD, inference_mode. Its process may be given other settings of the
C library's allocator; which of the two is faster is tried for each workload by who starts it.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from bench.side import Ready
from bench.workloads import CLASSES, LR, MOMENTUM, PRODUCT, Layer, Model

MODES = ("eager", "channels_last")


@contextlib.contextmanager
def settings(threads: int) -> Iterator[None]:
    torch.set_num_threads(threads)
    yield


def about() -> dict:
    built = torch.__config__.show()
    libraries = [match.group(0) for pattern in (r"oneAPI Math Kernel Library Version [\d.]+", r"MKL-DNN v[\d.]+", r"OpenBLAS")
                 if (match := re.search(pattern, built))]
    return {"versions": {"PyTorch": torch.__version__}, "blas": ", ".join([*libraries, torch.backends.cpu.get_cpu_capability()])}


def libraries() -> None:
    """Load what is loaded at first use: memory is counted above the libraries."""
    F.conv2d(torch.zeros(1, 1, 8, 8, requires_grad=True), torch.zeros(1, 1, 5, 5)).sum().backward()


def product():
    a, b = (torch.rand(PRODUCT, PRODUCT) for _ in range(2))
    return lambda: torch.mm(a, b)


class Block(nn.Module):
    """ResNet's, with the parameters in the order of minidl's."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.norm2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.around = None if stride == 1 and inputs == outputs else nn.Sequential(
            nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
        y += x if self.around is None else self.around(x)
        return self.relu(y)


def affine(widths, activation=None) -> list[nn.Module]:
    """Affine layers from width to width, with an activation on all but the last."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), activation() if activation else nn.ReLU(inplace=True)]
    return layers[:-1]


def convolution(inputs: int, outputs: int, kernel: int, padding: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, kernel, padding=padding), nn.ReLU(inplace=True)]


def mlp():
    return nn.Sequential(nn.Flatten(), *affine((784, 512, 256, CLASSES)))


def lenet():
    return nn.Sequential(*convolution(1, 6, 5, 2), nn.MaxPool2d(2), *convolution(6, 16, 5, 0), nn.MaxPool2d(2), nn.Flatten(),
                         *affine((400, 120, 84, CLASSES)))


def cnn():
    return nn.Sequential(*convolution(3, 32, 3, 1), *convolution(32, 32, 3, 1), nn.MaxPool2d(2),
                         *convolution(32, 64, 3, 1), *convolution(64, 64, 3, 1), nn.MaxPool2d(2), nn.Flatten(),
                         *affine((64 * 8 * 8, 256, CLASSES)))


def resnet18():
    blocks, inputs = [], 64
    for outputs, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        blocks += [Block(inputs, outputs, stride), Block(outputs, outputs, 1)]
        inputs = outputs
    return nn.Sequential(nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True), *blocks,
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, CLASSES))


def autoencoder():
    widths = (784, 1000, 500, 250, 30)
    return nn.Sequential(nn.Flatten(), *affine(widths, nn.Tanh), *affine(widths[::-1], nn.Tanh))


BUILD = {"mlp": mlp, "lenet": lenet, "cnn": cnn, "resnet18": resnet18, "autoencoder": autoencoder}


def load(net: nn.Module, path: str) -> None:
    """Take minidl's weights, which come in the same order; those of an affine layer lie the other way round."""
    with np.load(path) as state, torch.no_grad():
        parameters = list(net.parameters())
        if len(parameters) != len(state.files):
            raise ValueError(f"minidl's network has {len(state.files)} parameters, PyTorch's {len(parameters)}: they are not the same")
        for p, name in zip(parameters, state.files):
            values = state[name].T if state[name].ndim == 2 else state[name]
            if p.shape != values.shape:
                raise ValueError(f"{name} has shape {values.shape}, PyTorch's parameter in its place {tuple(p.shape)}")
            p.copy_(torch.from_numpy(np.ascontiguousarray(values)))


def model(workload: Model, mode: str, weights: str | None = None) -> Ready:
    """weights: minidl's, to start from; its own for None."""
    net = BUILD[workload.name]()
    if weights is not None:
        load(net, weights)
    x, labels = map(torch.from_numpy, workload.arrays())
    if mode == "channels_last":
        net, x = net.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(net.parameters(), lr=LR, momentum=MOMENTUM, fused=True)

    def step():
        optimizer.zero_grad()
        y = net(x)
        loss = F.binary_cross_entropy_with_logits(y, x) if workload.reconstructs else F.cross_entropy(y, labels)
        loss.backward()
        optimizer.step()
        return loss

    @torch.inference_mode()
    def inference():
        return net(x)

    def check() -> dict[str, float]:
        net.train()
        losses = [step().item() for _ in range(3)]
        net.eval()
        return {"first loss": losses[0], "third loss": losses[2], "outputs": norm(inference())}

    return Ready({"step": step, "inference": inference}, check, {"step": net.train, "inference": net.eval})


def layer(workload: Layer, mode: str, weights: str | None = None) -> Ready:
    x, w, b, gy = (None if a is None else torch.from_numpy(a) for a in workload.arrays())
    if mode == "channels_last":
        x, w, gy = (a.contiguous(memory_format=torch.channels_last) for a in (x, w, gy))
    x.requires_grad_(not workload.first)
    for p in (w, b):
        if p is not None:
            p.requires_grad_()

    @torch.inference_mode()
    def forward():
        return F.conv2d(x, w, b, workload.stride, workload.padding)

    def both():
        for p in (x, w, b):
            if p is not None:
                p.grad = None
        F.conv2d(x, w, b, workload.stride, workload.padding).backward(gy)

    def check() -> dict[str, float]:
        both()
        return {"y": norm(forward()), "gw": norm(w.grad)} | ({} if workload.first else {"gx": norm(x.grad)})

    return Ready({"forward": forward, "both": both}, check)


def norm(x: torch.Tensor) -> float:
    return float(x.double().norm())
