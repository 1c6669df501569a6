"""Training steps of whole networks: minidl, also captured, beside PyTorch, eager and as a CUDA graph.

Both sides begin with the same weights and must compute the same losses, or nothing is timed.
"""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.workloads import BY_NAME, CLASSES, LR, MOMENTUM, Model
from gpu.ceilings import dtype_of
from gpu.clock import Clock, compete, ratio
from gpu.layers import inside
from gpu.machine import free_memory
from minidl import backend, models, nn, optim
from minidl import functions as F
from minidl.capture import Capture
from minidl.data import Loader
from minidl.loop import classification, learn
from minidl.nn.streams import Streams
from minidl.optim.scaling import loss_scale_for
from minidl.run import Run

BATCHES = {"mlp": 128, "lenet": 128, "cnn": 256, "resnet18": 128}
PRECISIONS = ("float32", "tf32", "float16", "bfloat16")
# (network, precision, side): PyTorch eager's time over ours, at least
MUST = {("mlp", "float32", "captured"): 3.0, ("lenet", "float32", "captured"): 3.0} | {
    (name, precision, "minidl"): 0.9 for name in ("cnn", "resnet18") for precision in ("float32", "tf32")}
MUST_HALF = 1.6             # our float32 over our float16, on cnn
CLOSE = {"float32": 1e-3, "tf32": 2e-2, "float16": 5e-2, "bfloat16": 5e-2}         # relative, of the loss after three steps
SECONDS, ROUNDS = 0.15, 5


def workloads(small: bool) -> list[Model]:
    """The networks with the minibatches of this check; of a rehearsal, two with few images."""
    return [replace(BY_NAME[name], batch=8 if small else batch) for name, batch in BATCHES.items() if not small or name in ("mlp", "lenet")]


def measure(workload: Model, precision: str, device: str, clock: Clock, ceilings: dict[str, Any], with_torch: bool) -> dict[str, Any]:
    """One row: seconds by side, ratios to PyTorch eager, operations a second and their share of the ceiling."""
    row: dict[str, Any] = {"network": workload.name, "title": workload.title, "batch": workload.batch, "precision": precision, "errors": {},
                           "losses": {}}
    sides: dict[str, Callable[[], Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        weights = str(Path(folder) / "weights.npz")
        makers = {"minidl": lambda: inside(precision, ours(workload, device, precision, weights)),
                  "captured": lambda: inside(precision, ours_captured(workload, device, precision, weights))}
        if with_torch:
            from gpu import theirs

            makers |= {"eager": lambda: theirs.eager(workload, device, precision, weights),
                       "graphed": lambda: theirs.graphed(theirs.eager(workload, device, precision, weights))}
            with theirs.settings(precision):
                times = timed(makers, sides, row, clock)
        else:
            times = timed(makers, sides, row, clock)
    row["seconds"] = {name: statistics.median(each) for name, each in times.items()}
    if "eager" in times:
        row["ratios"] = {name: ratio(times["eager"], times[name]) for name in times if name != "eager"}
    best = min((row["seconds"][name] for name in ("minidl", "captured") if name in times), default=math.nan)
    rate = flops(workload) / best
    row |= {"tflops": rate / 1e12, "share": rate / ceilings["products"][precision],
            "must": {side: must for (name, kind, side), must in MUST.items() if (name, kind) == (workload.name, precision)}}
    free_memory(device)
    return row


def timed(makers: dict[str, Callable], sides: dict[str, Callable], row: dict[str, Any], clock: Clock) -> dict[str, list[float]]:
    """Make every side, compare their third losses, and let those that agree compete."""
    for name, make in makers.items():
        try:
            step = make()
            if name != "graphed":                           # which has made some steps already
                row["losses"][name] = [float(step()) for _ in range(3)]
            sides[name] = step
        except Exception as trouble:                        # told in the row; the others are measured all the same
            row["errors"][name] = f"{type(trouble).__name__}: {trouble}"[:300]
    wanted = row["losses"].get("eager", row["losses"].get("minidl", [math.nan] * 3))[2]
    for name, losses in row["losses"].items():
        if not abs(losses[2] - wanted) <= CLOSE[row["precision"]] * max(abs(wanted), 0.1):
            row["errors"][name] = f"the third loss is {losses[2]:.6g}, and {wanted:.6g} was wanted: not timed"
            sides.pop(name, None)
    return compete(clock, sides, ROUNDS, SECONDS)


def ours(workload: Model, device: str, precision: str, weights: str) -> Callable[[], Any]:
    """A training step as one writes it, and first of all the weights with which the others begin."""
    net = network(workload, weights).to(device)
    x, labels = (backend.asarray(a, device) for a in workload.arrays())
    x = x.astype(backend.dtype_named(dtype_of(precision)))
    optimizer, scaling = optim.SGD(net, lr=LR, momentum=MOMENTUM), loss_scale_for(dtype_of(precision))

    def step() -> Any:
        optimizer.zero_grad()
        y = net(x)
        loss = F.binary_cross_entropy_with_logits(y, F.flatten(x)) if workload.reconstructs else F.softmax_cross_entropy(y, labels)
        loss.backward(1.0 if scaling is None else scaling.scale)
        overflow = scaling is not None and not scaling.unscale(optimizer.parameters)
        if not overflow:
            optimizer.step()
        if scaling is not None:
            scaling.take(overflow)
        return loss

    return step


def ours_captured(workload: Model, device: str, precision: str, weights: str) -> Callable[[], Any]:
    """The training loop's step, captured: it also reads the loss and counts right answers, every time."""
    net = network(workload, weights).to(device)
    x, labels = workload.arrays()
    run = Run(net, optim.SGD(net, lr=LR, momentum=MOMENTUM), Loader((x, labels), len(x), shuffle=False), epochs=1,
              scaling=loss_scale_for(dtype_of(precision)))
    run.team.bind(net, run.optimizer)
    x, labels = (backend.asarray(a, device) for a in (x, labels))
    x = x.astype(backend.dtype_named(dtype_of(precision)))
    captured, objective, streams = Capture(run, learn, device), classification(), Streams(net, cut=False)
    backend.synchronize(device)                             # the stream of the steps waits for no other

    def step() -> float:
        with captured.stream:
            return captured(run, x, labels, objective, 1, None, streams).loss

    return step


def network(workload: Model, weights: str) -> nn.Module:
    """The network with minidl's first weights, which are kept for the others."""
    net = models.create(workload.name, input_shape=workload.shape, classes=CLASSES, generator=0)
    np.savez(weights, **{path: p.data for path, p in net.named_parameters()})
    return net


def flops(workload: Model) -> int:
    """Operations of a step: two for each multiply-add, three products a layer, but for the first, whose input wants no gradient."""
    net = models.create(workload.name, input_shape=workload.shape, classes=CLASSES, generator=0)
    counts = [row.multiply_adds for row in nn.summary(net, workload.shape).rows if row.multiply_adds]
    return 2 * workload.batch * (3 * sum(counts) - counts[0])
