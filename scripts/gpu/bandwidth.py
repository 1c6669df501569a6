"""Kernels that only move numbers: bytes a second, as a share of what a plain copy moves on this device.

Counted are the fewest bytes that the result needs: every array that is read, once, and every one that is written, once. What a kernel
reads a second time (batch normalization its images) shows as a smaller share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gpu.ceilings import best
from gpu.clock import Clock
from gpu.machine import free_memory
from minidl import backend, kernels
from minidl.kernels import Window

IMAGES, ROWS, CLASSES, WEIGHTS = (64, 256, 56, 56), (2**17, 768), (2**16, 1000), 2**25
DTYPES = ("float32", "float16")


def measure(device: str, clock: Clock, ceiling: float, small: bool = False) -> list[dict[str, Any]]:
    """A row for each kernel and dtype. ceiling: bytes a second of a copy."""
    rows = []
    for dtype in DTYPES:
        for name, work, moved in passes(device, dtype, small):
            row: dict[str, Any] = {"kernel": name, "dtype": dtype, "bytes": moved}
            try:
                row["seconds"] = best(clock, work)
                row |= {"bytes a second": moved / row["seconds"], "share": moved / row["seconds"] / ceiling}
            except Exception as trouble:                    # told in the row; the others are measured all the same
                row["error"] = f"{type(trouble).__name__}: {trouble}"[:300]
            rows.append(row)
        free_memory(device)
    return rows


def passes(device: str, dtype: str, small: bool) -> Iterator[tuple[str, Callable[[], Any], int]]:
    """Each kernel's name, a call of it, and the bytes that it must move."""
    draw = np.random.default_rng(0)

    def normal(shape: Any, kind: str = dtype) -> Any:
        return backend.asarray(draw.standard_normal(shape, np.float32), device).astype(backend.dtype_named(kind))

    images, rows, classes = ((2, 4, 6, 6), (8, 40), (8, 10)) if small else (IMAGES, ROWS, CLASSES)
    yield from of_images(normal, images)
    yield from of_rows(normal, rows)
    labels = backend.asarray(draw.integers(classes[1], size=classes[0]), device)
    yield from of_losses(normal(classes), labels, normal(classes[0], "float32"))
    if dtype == "float32":
        w, g, m, v = (abs(normal(100 if small else WEIGHTS)) for _ in range(4))
        yield "adam", lambda: kernels.adam_update_many(lambda: [(w, g, m, v, 3, 1e-3, 0.9, 0.999, 1e-8, 0.0, False)]), 7 * w.nbytes


def of_images(normal: Callable[..., Any], shape: tuple[int, ...]) -> Iterator[tuple[str, Callable[[], Any], int]]:
    x, gy, gamma = normal(shape), normal(shape), normal(shape[1], "float32")
    mean, var = normal(shape[1], "float32"), abs(normal(shape[1], "float32"))
    window = Window((2, 2), (2, 2))
    y, place = kernels.max_pool2d(x, window)
    pooled = x.nbytes + y.nbytes + place.nbytes
    yield "relu", lambda: kernels.activation(y, "relu"), 2 * y.nbytes
    yield "relu gradient", lambda: kernels.activation_gradient(gy, x, "relu"), 3 * x.nbytes
    yield "dropout", lambda: kernels.dropout(x, 0.5, 1, 2, 3), 2 * x.nbytes + x.size
    yield "channel sums", lambda: kernels.channel_sums(gy), x.nbytes
    yield "max pooling", lambda: kernels.max_pool2d(x, window), pooled
    yield "max pooling gradient", lambda: kernels.max_pool2d_scatter(y, place, shape[2:], window), pooled
    yield "batch norm", lambda: kernels.batch_norm(x, gamma, gamma, 1e-5, "relu"), 2 * x.nbytes
    yield "batch norm gradient", lambda: kernels.batch_norm_gradient(gy, x, gamma, mean, var, 1e-5), 3 * x.nbytes


def of_rows(normal: Callable[..., Any], shape: tuple[int, ...]) -> Iterator[tuple[str, Callable[[], Any], int]]:
    x, gy, gamma = normal(shape), normal(shape), normal(shape[1], "float32")
    _, mean, var = kernels.layer_norm(x, gamma, gamma, 1, 1e-5)
    yield "layer norm", lambda: kernels.layer_norm(x, gamma, gamma, 1, 1e-5), 2 * x.nbytes
    yield "layer norm gradient", lambda: kernels.layer_norm_gradient(gy, x, gamma, mean, var, 1, 1e-5), 3 * x.nbytes


def of_losses(x: Any, labels: Any, each: Any) -> Iterator[tuple[str, Callable[[], Any], int]]:
    yield "cross-entropy", lambda: kernels.softmax_cross_entropy(x, labels, 0.0), x.nbytes
    yield "cross-entropy gradient", lambda: kernels.softmax_cross_entropy_gradient(x, labels, 0.0, each), 2 * x.nbytes
