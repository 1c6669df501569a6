"""minidl's side. Its best settings: its own pool of threads, its allocator settings, and images in the memory order of its kernels."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np

import minidl
from bench.side import Ready
from bench.workloads import CLASSES, LR, MOMENTUM, PRODUCT, Layer, Model
from minidl import functions as F
from minidl import memory, models, nn, no_grad, optim

MODES = ("minidl",)


@contextlib.contextmanager
def settings(threads: int) -> Iterator[None]:
    memory.tune_allocator()
    with minidl.threads(threads):
        yield


def about() -> dict:
    """Versions, and which kernels of linear algebra are active."""
    from threadpoolctl import threadpool_info

    versions = {"minidl": minidl.__version__, "NumPy": np.__version__}
    with contextlib.suppress(ImportError):
        import numba
        versions["Numba"] = numba.__version__
    blas = [f"{pool['internal_api']} {pool['version']} {pool.get('architecture', '')}".strip() for pool in threadpool_info()
            if pool["user_api"] == "blas"]
    return {"versions": versions, "blas": ", ".join(blas) or "unknown to threadpoolctl"}


def libraries() -> None:
    """Load what is loaded at first use: memory is counted above the libraries. Numba brings most of itself with its first function."""
    F.conv2d(np.zeros((1, 1, 8, 8), np.float32), np.zeros((1, 1, 5, 5), np.float32))


def product():
    """A large matrix product, to be timed."""
    a, b = (np.random.default_rng(i).random((PRODUCT, PRODUCT), np.float32) for i in range(2))
    return lambda: F.matmul(a, b)


def model(workload: Model, mode: str, weights: str | None = None) -> Ready:
    """weights: where its first weights are to be kept, for the others to start from."""
    net = models.create(workload.name, input_shape=workload.shape, classes=CLASSES, generator=0)
    if weights is not None:
        np.savez(weights, **{path: p.data for path, p in net.named_parameters()})
    x, labels = workload.arrays()
    optimizer = optim.SGD(net, lr=LR, momentum=MOMENTUM)

    def step():
        optimizer.zero_grad()
        y = net(x)
        loss = F.binary_cross_entropy_with_logits(y, F.flatten(x)) if workload.reconstructs else F.softmax_cross_entropy(y, labels)
        loss.backward()
        optimizer.step()
        return loss

    @no_grad()
    def inference():
        return net(x)

    def check() -> dict[str, float]:
        net.train()
        losses = [step().item() for _ in range(3)]
        net.eval()
        return {"first loss": losses[0], "third loss": losses[2], "outputs": norm(inference())}

    return Ready({"step": step, "inference": inference}, check, {"step": net.train, "inference": net.eval},
                 lambda: flops(net, workload))


def flops(net: nn.Module, workload: Model) -> dict[str, int]:
    """Two for each multiply-add; a step has three products a layer, but for the first, whose input wants no gradient."""
    counts = [row.multiply_adds for row in nn.summary(net, workload.shape).rows if row.multiply_adds]
    return {"inference": 2 * workload.batch * sum(counts), "step": 2 * workload.batch * (3 * sum(counts) - counts[0])}


def layer(workload: Layer, mode: str, weights: str | None = None) -> Ready:
    x, w, b, gy = workload.arrays()
    x, gy = channels_last(x), channels_last(gy)
    inputs = minidl.Tensor(x, requires_grad=not workload.first)
    learned = [minidl.Tensor(p, requires_grad=True) for p in (w, b) if p is not None]

    def forward():
        return F.conv2d(x, w, b, workload.stride, workload.padding)

    def both():
        for p in (inputs, *learned):
            p.grad = None
        y = F.conv2d(inputs, learned[0], learned[1] if workload.bias else None, workload.stride, workload.padding)
        y.backward(gy)

    def check() -> dict[str, float]:
        both()
        return {"y": norm(forward()), "gw": norm(learned[0].grad)} | ({} if workload.first else {"gx": norm(inputs.grad)})

    products = 2 if workload.first else 3
    return Ready({"forward": forward, "both": both}, check,
                 flops=lambda: {"forward": 2 * workload.multiply_adds, "both": 2 * products * workload.multiply_adds})


def channels_last(x: np.ndarray) -> np.ndarray:
    """The same images with the channels of a pixel side by side in memory, as they lie between two of our convolutions."""
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


def norm(x) -> float:
    return float(np.linalg.norm((x.data if isinstance(x, minidl.Tensor) else x).astype(np.float64)))
