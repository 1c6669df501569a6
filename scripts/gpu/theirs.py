"""PyTorch's side on the GPU: the same networks, eager and as a CUDA graph, and single convolutions.

Its best settings: in-place ReLU, the fused SGD, cuDNN's own search for the fastest algorithm, TF32 and 16 bits by autocast where ours
has them too. Gradients of float16 are scaled by a constant, as ours are between two changes of the scale.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from bench.theirs import BUILD, load
from bench.workloads import LR, MOMENTUM, Layer, Model

SCALE = 1024.0              # of the loss, in float16
WARM = 5                    # steps before one is captured


@contextlib.contextmanager
def settings(precision: str) -> Any:
    """A block in which products run in this precision, and cuDNN looks for its fastest algorithm."""
    tf32 = precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = True
    yield


def autocast(device: str, precision: str) -> Any:
    """A block in which layers compute in 16 bits, if that is the precision."""
    dtype = {"float16": torch.float16, "bfloat16": torch.bfloat16}.get(precision)
    return torch.autocast(device.partition(":")[0], dtype=dtype) if dtype else contextlib.nullcontext()


def eager(workload: Model, device: str, precision: str, weights: str) -> Callable[[], Any]:
    """A training step, from minidl's weights. Gives a function that gives the loss as a Tensor."""
    net = BUILD[workload.name]()
    load(net, weights)
    net.to(device)
    x, labels = (torch.from_numpy(a).to(device) for a in workload.arrays())
    optimizer = torch.optim.SGD(net.parameters(), lr=LR, momentum=MOMENTUM, fused=True)
    scale = SCALE if precision == "float16" else 1.0

    def step() -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        with autocast(device, precision):
            y = net(x)
            loss = F.binary_cross_entropy_with_logits(y, x) if workload.reconstructs else F.cross_entropy(y, labels)
        (loss * scale).backward() if scale != 1 else loss.backward()
        if scale != 1:
            torch._foreach_mul_([p.grad for p in net.parameters()], 1 / scale)
        optimizer.step()
        return loss

    return step


def graphed(step: Callable[[], Any]) -> Callable[[], Any]:
    """The same step as a CUDA graph: after a few ordinary ones on a stream of their own it is captured, and from then on replayed."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step()

    def replay() -> torch.Tensor:
        graph.replay()
        return loss

    return replay


def layer(workload: Layer, device: str, precision: str) -> Callable[[], Any]:
    """One convolution, forward and both gradients."""
    dtype = {"float16": torch.float16, "bfloat16": torch.bfloat16}.get(precision, torch.float32)
    x, w, b, gy = (None if a is None else torch.from_numpy(a).to(device, dtype) for a in workload.arrays())
    x.requires_grad_(not workload.first)
    for p in (w, b):
        if p is not None:
            p.requires_grad_()

    def both() -> None:
        for p in (x, w, b):
            if p is not None:
                p.grad = None
        F.conv2d(x, w, b, workload.stride, workload.padding).backward(gy)

    return both
