"""Single convolutions of VGG-16 and ResNet-50 at 224 x 224, forward and both gradients: each algorithm by name, and PyTorch.

Which algorithm is taken by itself is a table in kernels/cuda; here is what that table should say on this device.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import minidl
from bench.workloads import LAYERS, Layer
from gpu.ceilings import dtype_of, in_precision
from gpu.clock import Clock, compete, ratio
from gpu.machine import free_memory
from minidl import backend
from minidl import functions as F

BATCH = 32
ALGORITHMS = (None, "im2col", "implicit")
PRECISIONS = ("tf32", "float16", "float32")
MUST = 0.6                  # PyTorch eager's time over ours
SECONDS, ROUNDS = 0.02, 3


def workloads(small: bool) -> list[Layer]:
    """The layers; of a rehearsal, a few small ones."""
    return [replace(layer, batch=1, size=14, inputs=min(layer.inputs, 16), outputs=16) for layer in LAYERS[4:9:2]] if small else \
        [replace(layer, batch=BATCH) for layer in LAYERS]


def measure(workload: Layer, precision: str, device: str, clock: Clock, ceilings: dict[str, Any], with_torch: bool) -> dict[str, Any]:
    """One row: seconds by side, the ratio to PyTorch, operations a second and their share of the ceiling."""
    row: dict[str, Any] = {"layer": workload.name, "title": workload.title, "network": workload.network, "batch": workload.batch,
                           "precision": precision, "pass": "forward and gradients", "must": MUST, "errors": {}}
    sides: dict[str, Callable[[], Any]] = {}
    for algorithm in ALGORITHMS:
        name = algorithm or "minidl"
        try:
            sides[name] = inside(precision, ours(workload, precision, device, algorithm))
            sides[name]()
        except Exception as trouble:                        # told in the row; the others are measured all the same
            row["errors"][name] = f"{type(trouble).__name__}: {trouble}"[:300]
            sides.pop(name, None)
    if with_torch:
        from gpu import theirs

        with theirs.settings(precision):
            sides["eager"] = theirs.layer(workload, device, precision)
            times = compete(clock, sides, ROUNDS, SECONDS)
    else:
        times = compete(clock, sides, ROUNDS, SECONDS)
    row["seconds"] = {name: statistics.median(each) for name, each in times.items()}
    if "minidl" in times:
        products = 2 if workload.first else 3
        rate = 2 * products * workload.multiply_adds / row["seconds"]["minidl"]
        moved = fewest_bytes(workload, dtype_of(precision)) / row["seconds"]["minidl"]
        row |= {"tflops": rate / 1e12, "share": rate / ceilings["products"][precision], "bytes a second": moved,
                "share of a copy": moved / ceilings["copy"]}
        if "eager" in times:
            row["ratio"] = ratio(times["eager"], times["minidl"])
    free_memory(device)
    return row


def fewest_bytes(workload: Layer, dtype: str) -> int:
    """What a pass must move: each of its products reads two of image, filters and output (or their gradients), and writes the third."""
    image = workload.batch * workload.inputs * workload.size**2
    output = workload.batch * workload.outputs * workload.out**2
    filters = workload.outputs * workload.inputs * workload.kernel**2
    return (2 if workload.first else 3) * ((image + output) * backend.dtype_named(dtype).itemsize + filters * 4)


def ours(workload: Layer, precision: str, device: str, algorithm: str | None) -> Callable[[], Any]:
    """Our side: a function that does one pass."""
    dtype = backend.dtype_named(dtype_of(precision))
    x, w, b, gy = (None if a is None else backend.asarray(a, device) for a in workload.arrays())
    x, gy = x.astype(dtype), gy.astype(dtype)
    inputs = minidl.Tensor(x, requires_grad=not workload.first)
    learned = [minidl.Tensor(p, requires_grad=True) for p in (w, b) if p is not None]

    def both() -> None:
        for p in (inputs, *learned):
            p.grad = None
        y = F.conv2d(inputs, learned[0], learned[1] if workload.bias else None, workload.stride, workload.padding, algorithm=algorithm)
        y.backward(gy)

    return both


def inside(precision: str, work: Callable[[], Any]) -> Callable[[], Any]:
    """The same, with products in this precision."""
    def done() -> Any:
        with in_precision(precision):
            return work()
    return done
