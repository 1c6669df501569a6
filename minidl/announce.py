"""Announce: how a model will learn, in words, before it does: optimizer, processes, epochs, and where the run is kept.

What stands above these lines is said by whoever made it: data and model by task.py, the device by train.py.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from minidl import optim, report
from minidl.checkpoint import Found
from minidl.optim.scaling import loss_scale_for
from minidl.optim.schedule import value_at
from minidl.options import Plan
from minidl.parallel import Communicator, exchange
from minidl.parallel.device_staging import why_not_direct
from minidl.run import part
from minidl.task import Task


def announced(options: SimpleNamespace, optimizer: optim.Optimizer, task: Task, folder: Path, found: Found | None,
              world: Communicator | None) -> Plan:
    """How the model will learn, in words."""
    lr = f"learning rate {options.lr:g}" + ("" if options.schedule == "constant" else f", {options.schedule}")
    if found is not None:
        lr += f", now {value_at(optimizer.options['lr'], found.rest.get('optimizer', {}).get('steps', 0)):.3g}"
    place = [("run", str(folder))]
    if options.resume is not None:
        place = [("run", f"{folder}, resumed from {found.file.name}" if found else f"{folder}, from the start: it has no checkpoint yet")]
        place += [("", f"{file.name} is damaged and was passed over") for file in (found.damaged if found else ())]
        if found and part(found.arrays, "exchange.") and (world is None or options.compress == "none"):
            place += [("", "what compression had not sent yet is dropped")]
    return [
        ("optimizer", f"{options.optimizer}, {lr}"),
        *([("", kfac_described(options))] if options.optimizer == "kfac" else []),
        *(exchange_described(options, world.size, world.direct) if world is not None else []),
        ("epochs", f"{options.epochs}, each of {len(task.loader):,} minibatches of {options.batch_size}"),
        *place,
        *([("report", f"none: {report.missing()}; pip install 'minidl[viz]'")] if report.missing() else []),
    ]


def precision(options: SimpleNamespace) -> Plan:
    """How numbers are stored; nothing where it is as usual."""
    if options.dtype == "float32":
        return [("precision", "factors of products rounded to TF32")] if options.tf32 else []
    scaling = loss_scale_for(options.dtype, options.loss_scale)
    how = "dynamically" if scaling is None or scaling.dynamic else f"by {scaling.scale:g}"
    scaled = "" if scaling is None or options.eval_only else f", loss scaled {how}"
    return [("precision", f"{options.dtype}, weights float32{scaled}")]


def kfac_described(options: SimpleNamespace) -> str:
    """What K-FAC divides by, and how often it looks."""
    def every(count: int | str) -> str:
        return "when they change" if count == "adaptive" else "every step" if count == 1 else f"every {count} steps"

    factors, inverses = every(options.factor_interval), every(options.inverse_interval)
    often = f"factors and inverses {factors}" if factors == inverses else f"factors {factors}, inverses {inverses}"
    return f"damping {options.damping:g}, KL clip {options.kl_clip:g}, {options.fisher} Fisher, {often}"


def exchange_described(options: SimpleNamespace, processes: int, cuda_aware: bool = False) -> Plan:
    """Who trains, and how they exchange what they have learned. cuda_aware: whether MPI takes arrays of GPUs."""
    places = processes - options.spares
    learning = places - (not options.master_computes)
    scaled = loss_scale_for(options.dtype, options.loss_scale) is not None
    entire = "kfac" if options.optimizer == "kfac" else "--clip" if options.clip is not None else "loss scaling" if scaled else None
    lasting = f", and {options.spares} to stand in" if options.spares else " as long as one lives" if options.elastic else ""
    words = [f"{places}{lasting}", options.exchange + ("" if options.master_computes else " whose master only adds up")]
    if options.overlap != "none":
        words.append(f"overlap {'backward' if entire else options.overlap}")
    if options.compress != "none":
        words.append(options.compress + ("" if options.feedback else " without feedback"))
    if options.sync_batch_norm:
        words.append("batch normalization over all")
    lines = [("processes", ", ".join(words))]
    if options.device != "cpu":
        why_not = why_not_direct(cuda_aware, exchange.kind(options.exchange), options.compress != "none")
        way = f"through pinned host memory: {why_not}" if why_not else "from GPU to GPU: this MPI is CUDA-aware"
        each = "each has a GPU of its host's; " if options.asked_device == "cuda" else ""
        lines.append(("", f"{each}gradients go {way}"))
    if entire and options.overlap == "forward":
        lines.append(("", f"not overlap forward: {entire} needs all of the gradient before any weight changes"))
    if learning > options.batch_size:
        lines.append(("", f"{learning - options.batch_size} of them will be idle: there are {options.batch_size} examples in a minibatch"))
    return lines
