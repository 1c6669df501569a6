"""In NumPy alone, for scale: minidl's reference kernels for the networks, and for the layers the textbook's convolution.

The textbook lays out the patches of the whole minibatch as one matrix, and multiplies once. Chellapilla, Puri and Simard, 2006.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from threadpoolctl import threadpool_limits

from bench import ours
from bench.ours import about, libraries, norm  # noqa: F401     a side has these
from bench.side import Ready
from bench.workloads import PRODUCT, Layer, Model
from minidl import kernels, memory

MODES = ("numpy",)


@contextlib.contextmanager
def settings(threads: int) -> Iterator[None]:
    """All threads for the linear algebra library: nobody else here can use them."""
    memory.tune_allocator()
    with threadpool_limits(threads), kernels.using("reference"):
        yield


def product():
    a, b = (np.random.default_rng(i).random((PRODUCT, PRODUCT), np.float32) for i in range(2))
    return lambda: a @ b


def model(workload: Model, mode: str, weights: str | None = None) -> Ready:
    return ours.model(workload, mode)


def im2col(x: np.ndarray, kernel: int, stride: int, padding: int) -> np.ndarray:
    """(N, C, H, W) to (C * K * K, N * OH * OW): every patch of every image as a column."""
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    patches = sliding_window_view(x, (kernel, kernel), axis=(2, 3))[:, :, ::stride, ::stride]
    return patches.transpose(1, 4, 5, 0, 2, 3).reshape(x.shape[1] * kernel * kernel, -1)


def col2im(columns: np.ndarray, shape: tuple[int, ...], kernel: int, stride: int, padding: int) -> np.ndarray:
    """The way back: columns are put where their patches were, and added. shape: (N, C, H, W) of the images."""
    n, c, h, w = shape
    image = np.zeros((n, c, h + 2 * padding, w + 2 * padding), columns.dtype)
    oh, ow = ((size + 2 * padding - kernel) // stride + 1 for size in (h, w))
    parts = columns.reshape(c, kernel, kernel, n, oh, ow)
    for i in range(kernel):
        for j in range(kernel):
            image[:, :, i:i + stride * oh:stride, j:j + stride * ow:stride] += parts[:, i, j].transpose(1, 0, 2, 3)
    return image[:, :, padding:padding + h, padding:padding + w]


def forward(x: np.ndarray, w: np.ndarray, b: np.ndarray | None, stride: int, padding: int) -> tuple[np.ndarray, np.ndarray]:
    """y (N, O, OH, OW), and the columns, which the backward pass needs."""
    columns = im2col(x, w.shape[2], stride, padding)
    y = w.reshape(len(w), -1) @ columns
    if b is not None:
        y += b[:, None]
    oh, ow = ((size + 2 * padding - w.shape[2]) // stride + 1 for size in x.shape[2:])
    return y.reshape(len(w), len(x), oh, ow).transpose(1, 0, 2, 3), columns


def backward(gy: np.ndarray, columns: np.ndarray, w: np.ndarray, shape: tuple[int, ...], stride: int, padding: int,
             wants_x: bool = True) -> tuple[np.ndarray | None, np.ndarray, np.ndarray]:
    """The gradients by x (of the given shape), w and b."""
    rows = gy.transpose(1, 0, 2, 3).reshape(len(w), -1)
    gx = col2im(w.reshape(len(w), -1).T @ rows, shape, w.shape[2], stride, padding) if wants_x else None
    return gx, (rows @ columns.T).reshape(w.shape), rows.sum(axis=1)


def layer(workload: Layer, mode: str, weights: str | None = None) -> Ready:
    x, w, b, gy = workload.arrays()

    def once():
        return forward(x, w, b, workload.stride, workload.padding)[0]

    def both():
        _, columns = forward(x, w, b, workload.stride, workload.padding)
        return backward(gy, columns, w, x.shape, workload.stride, workload.padding, not workload.first)

    def check() -> dict[str, float]:
        gx, gw, _ = both()
        return {"y": norm(once()), "gw": norm(gw)} | ({} if gx is None else {"gx": norm(gx)})

    return Ready({"forward": once, "both": both}, check)
