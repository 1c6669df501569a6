"""How much memory a training step takes at its peak, predicted from steps of a few examples.

What a step holds at any one moment grows by the same number of bytes with every example. So a step of a few examples and one of some
more are run on a copy of the model, with the engine, the kernels and the optimizer that training itself will use, and each moment is
drawn out in a straight line to the batch that was asked for; the highest is the peak. Nothing is said here about what a rule or a
kernel keeps, so nothing here can go stale. Counted is what the array library allocates: NumPy, or CuPy on the device of the model, where
no other memory tells; not the interpreter, the libraries, or the data set.
"""

from __future__ import annotations

import copy
import math
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minidl import backend
from minidl.backend import Array
from minidl.nn.module import Module
from minidl.tensor import Tensor
from minidl.walk import reached

ENOUGH = 2**25          # bytes of activations with which small steps stop: kernels then cut their work as they do in large steps


@dataclass(frozen=True)
class Footprint:
    """Bytes in a training step of `batch` examples.

    peak: at the moment when they are the most. parameters: with buffers. state: what the optimizer remembers. minibatch: the inputs.
    The rest of the peak are activations, gradients, and what the kernels need for themselves.
    """

    batch: int
    peak: int
    parameters: int
    state: int
    minibatch: int
    moments: tuple[tuple[float, float], ...] = field(default=(), repr=False)       # of each: bytes, and bytes more with every example

    def most(self, room: float) -> int:
        """How many examples at a time need no more than so many bytes; 0 if not one."""
        return max(0, min((int((room - fixed) / each) if each > 0 else self.batch if fixed <= room else 0 for fixed, each in self.moments),
                          default=0))


def footprint(model: Module, shape: tuple[int, ...], dtype: Any, batch: int, activations: int,
              optimizer: Callable[[Any], Any] | None = None, loss: Callable[[Any, Any], Any] | None = None) -> Footprint:
    """Predict the memory of a training step of `batch` examples, each of this shape and dtype, on the model's device if that tells how
    much it has given, else on the CPU.

    activations: bytes for one example, about. optimizer, loss: see `summary`.
    """
    device = next((p.device for p in model.parameters()), "cpu")
    watch = backend.watched(device)
    if watch is None:
        device, watch = "cpu", traced()

    def zeros(n: int) -> Array:
        return backend.asarray(np.zeros((n, *shape), dtype), device)

    most = max(2, min(batch, ENOUGH // max(activations, 1)))
    few = most if most == batch else max(2, most - max(1, most // 4))
    more = few + 1 if few == most != batch else most
    for n in {few, more}:                                           # what is compiled or cached on first use is none of a step's memory
        Training(model, optimizer, loss, device).step(zeros(n))
    with watch as now:
        training = Training(model, optimizer, loss, device)
        training.step(zeros(few))                                   # optimizers may make their memory in the first step
        training.model.zero_grad()
        parameters = sum(x.nbytes for x in training.model.state_dict().values())
        state = now() - parameters if optimizer is not None else 0
        low, high = (training.step(zeros(n), now) for n in (few, more))
    if len(low) != len(high):                                       # the model does something else with another batch
        low, high = [max(low)], [max(high)]
    slopes = [(b - a) / (more - few) if more > few else 0.0 for a, b in zip(low, high)]
    moments = tuple((b - slope * more, slope) for b, slope in zip(high, slopes))
    peak = max(fixed + each * batch for fixed, each in moments)
    return Footprint(batch, round(peak), parameters, state, batch * math.prod(shape) * np.dtype(dtype).itemsize, moments)


class Training:
    """A copy of a model that makes training steps."""

    def __init__(self, model: Module, optimizer: Callable[[Any], Any] | None, loss: Callable[[Any, Any], Any] | None, device: str):
        self.model = copy.deepcopy(model).to(device).train()
        self.optimizer = None if optimizer is None else optimizer(self.model)
        self.loss = loss or half_squares

    def step(self, x: Array, now: Callable[..., int] = lambda most: 0) -> list[int]:
        """One step; the most bytes between each two moments of it, if `now` counts them."""
        self.model.zero_grad()
        now(most=True)
        found: list[int] = []
        handles = [module.register_forward_hook(lambda *_: found.append(now(most=True))) for _, module in self.model.named_modules()]
        outputs = self.model(x)
        for handle in handles:
            handle.remove()
        loss = self.loss(outputs, x)
        if isinstance(loss, Tensor) and loss.requires_grad:
            for node in reached([(loss.node, loss.index)]):
                node.watch(0).hooks.append(lambda _: found.append(now(most=True)))
            loss.backward()
            found.append(now(most=True))
            if self.optimizer is not None:
                self.optimizer.step()
        return [*found, now(most=True)]


def half_squares(outputs: Any, x: Any) -> Tensor:
    """A loss for any model."""
    outputs = outputs[0] if isinstance(outputs, tuple | list) else outputs
    return (outputs * outputs).sum() * 0.5


@contextmanager
def traced() -> Iterator[Callable[..., int]]:
    """A function that tells how many bytes Python and NumPy have allocated since; with most=True the most since it was asked last."""
    was_on = tracemalloc.is_tracing()
    if not was_on:
        tracemalloc.start()
    start = tracemalloc.get_traced_memory()[0]

    def now(most: bool = False) -> int:
        found = tracemalloc.get_traced_memory()[most] - start
        if most:
            tracemalloc.reset_peak()
        return found

    try:
        yield now
    finally:
        if not was_on:
            tracemalloc.stop()
