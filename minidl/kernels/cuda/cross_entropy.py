"""Softmax cross-entropy with class ids and its gradient: one launch each, in which a row is read once."""

from __future__ import annotations

from typing import Any

from minidl import backend
from minidl.backend import Array
from minidl.kernels.cuda import source
from minidl.kernels.cuda.elementwise import takes
from minidl.kernels.cuda.rows import dealt


def softmax_cross_entropy(x: Array, labels: Array, smoothing: float) -> Any:
    """See reference_layers.softmax_cross_entropy. The loss of a label that is no class is NaN."""
    x = source.dense(x)
    if not takes(x):
        return NotImplemented
    losses = backend.of(x).empty(len(x), source.computed_in(x))
    _launch(x, labels, smoothing, losses, None, False, None)
    return losses


def softmax_cross_entropy_gradient(x: Array, labels: Array, smoothing: float, each: Array) -> Any:
    """See reference_layers.softmax_cross_entropy_gradient. A label that is no class makes a row of NaN."""
    x = source.dense(x)
    if not takes(x) or each.dtype != source.computed_in(x) or each.shape != x.shape[:1]:
        return NotImplemented
    gx, repeated = backend.of(x).empty(x.shape, x.dtype), each.strides[0] == 0
    _launch(x, labels, smoothing, None, each[:1] if repeated else source.dense(each), not repeated, gx)
    return gx


def _launch(x: Array, labels: Array, smoothing: float, losses: Array | None, each: Array | None, stride: bool, gx: Array | None) -> None:
    if source.named(labels.dtype) not in source.LABELS:
        labels = labels.astype("int64")
    its = dealt(*x.shape)
    source.launch(x, "cross_entropy", "softmax_cross_entropy", its.blocks, its.threads, x, *its[:3], source.dense(labels), float(smoothing),
                  losses, each, stride, gx, far=source.far(x), L=source.LABELS[source.named(labels.dtype)])
