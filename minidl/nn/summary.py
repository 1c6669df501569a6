"""What a model is made of, as a table: output shapes, parameters, multiply-adds, memory of the activations and of a training step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from minidl import backend
from minidl.autograd import no_grad
from minidl.errors import ArgumentError
from minidl.nn.footprint import Footprint, footprint
from minidl.nn.module import Module
from minidl.nn.options import count
from minidl.tensor import Tensor


@dataclass(frozen=True)
class Row:
    """One call of one layer.

    output_shape: without the batch axis; None if the layer was not called. parameters: its own, counted at its first call only.
    multiply_adds, activation_bytes: for one example; an output that shares its input's memory takes no bytes.
    """

    path: str
    layer: str
    output_shape: tuple[int, ...] | None
    parameters: int
    multiply_adds: int
    activation_bytes: int


@dataclass(frozen=True)
class Summary:
    """What `summary` found. `print` shows it as a table; the numbers are in its fields."""

    model: str
    input_shape: tuple[int, ...]
    rows: tuple[Row, ...]
    parameters: int
    trainable: int
    multiply_adds: int
    activation_bytes: int
    step: Footprint | None = None           # the memory of a training step, if a batch was given

    def __str__(self) -> str:
        head = ("path", "layer", "output", "parameters", "multiply-adds", "activations")
        body = [(row.path or "(model)", row.layer, _shape(row.output_shape), _count(row.parameters), _count(row.multiply_adds),
                 _bytes(row.activation_bytes)) for row in self.rows]
        total = ("total", "", "", _count(self.parameters), _count(self.multiply_adds), _bytes(self.activation_bytes))
        widths = [max(len(row[i]) for row in (head, *body, total)) for i in range(len(head))]
        rule = "─" * (sum(widths) + 2 * (len(widths) - 1))

        def line(cells: tuple[str, ...]) -> str:
            left = [cell.ljust(width) for cell, width in zip(cells[:3], widths)]
            right = [cell.rjust(width) for cell, width in zip(cells[3:], widths[3:])]
            return "  ".join(left + right).rstrip()

        frozen = self.parameters - self.trainable
        title = f"{self.model} on {_shape(self.input_shape)}" + (f", {frozen:,} of its parameters frozen" if frozen else "")
        lines = [title, rule, line(head), rule, *map(line, body), rule, line(total)]
        if self.step is not None:
            parts = {"parameters": self.step.parameters, "optimizer": self.step.state, "minibatch": self.step.minibatch}
            lines.append(f"a training step of {self.step.batch:,}: about {_bytes(self.step.peak)} at its peak, with "
                         + ", ".join(f"{_bytes(n)} of {what}" for what, n in parts.items() if n > 1024))
        return "\n".join(lines)


def summary(model: Module, input_shape: tuple[int, ...], dtype: Any = None, *, batch: int | None = None,
            optimizer: Callable[[Any], Any] | None = None, loss: Callable[[Any, Any], Any] | None = None) -> Summary:
    """Run a model once on zeros and say what it is made of: one row for each layer that has no layers inside, or parameters of its own.

    input_shape: of one example, without the batch axis: (C, H, W). dtype: of the input; that of the first parameter unless given (ids
    for an embedding need "int64"). Multiply-adds are counted for layers that have a method `multiply_adds`: affine, convolution and
    its transpose; numbers are for one example. The model is left as it was. ShapeError, with the layer, if the shape does not fit.

    batch: of a training step, whose memory is then predicted too, from steps of a few examples on a copy: on the model's GPU, or on the
    CPU. Counted is all that the array library allocates: parameters, gradients, activations, the inputs, what kernels need meanwhile, and
    what the optimizer remembers, if it is told how to make one: `optimizer=minidl.optim.Adam`, or
    `lambda model: optim.SGD(model, lr=0.1, momentum=0.9)`.
    loss(outputs, x): the loss as a Tensor; squares of the outputs unless given, which need less than a loss over many outputs.

    >>> from minidl import nn
    >>> print(nn.summary(nn.Sequential(nn.Affine(4, 8), nn.ReLU(), nn.Affine(8, 2)), (4,)))
    Sequential on (N, 4)
    ─────────────────────────────────────────────────────────────
    path   layer   output  parameters  multiply-adds  activations
    ─────────────────────────────────────────────────────────────
    0      Affine  (N, 8)          40             32         32 B
    1      ReLU    (N, 8)           -              -         32 B
    2      Affine  (N, 2)          18             16          8 B
    ─────────────────────────────────────────────────────────────
    total                          58             48         72 B
    """
    if not isinstance(input_shape, tuple | list) or not all(hasattr(n, "__index__") and n > 0 for n in input_shape):
        raise ArgumentError(f"summary: input_shape is {input_shape!r}, and must be a tuple such as (3, 32, 32), without the batch axis")
    modules = list(model.named_modules())
    paths = {id(module): path for path, module in modules}
    owned = _own_parameters(model)
    rows: list[Row] = []
    counted: set[str] = set()

    def record(module: Module, inputs: tuple, y: Any) -> None:
        path = paths[id(module)]
        outputs = [_array(part) for part in (y if isinstance(y, tuple | list) else [y])]
        takes = [_array(x) for x in inputs]
        shape = outputs[0].shape[1:] if outputs[0] is not None else None
        multiply_adds = getattr(module, "multiply_adds", None)
        known = multiply_adds is not None and shape is not None and takes and takes[0] is not None
        rows.append(Row(path, type(module).__name__, shape, 0 if path in counted else owned.get(path, 0),
                        multiply_adds(takes[0].shape[1:], shape) if known else 0,       # type: ignore[misc]
                        sum(out.nbytes for out in outputs if out is not None and not any(_same_memory(out, x) for x in takes))))
        counted.add(path)

    watched = [module for path, module in modules if not module.children() or path in owned]
    training = [module.training for _, module in modules]
    first = next(iter(model.parameters()), None)
    kind = dtype if dtype is not None else first.dtype if first is not None else "float32"
    x = backend.asarray(np.zeros((1, *input_shape), kind), first.device if first is not None else "cpu")
    handles = [module.register_forward_hook(record) for module in watched]
    try:
        with no_grad():
            model.eval()(x)
    finally:
        for handle in handles:
            handle.remove()
        for (_, module), mode in zip(modules, training):
            module.training = mode
    rows += [Row(path, type(module).__name__, None, owned[path], 0, 0) for path, module in modules if path in owned and path not in counted]
    sizes = [(parameter.size, parameter.requires_grad) for parameter in model.parameters()]
    activations = sum(row.activation_bytes for row in rows)
    step = None if batch is None else footprint(model, tuple(input_shape), x.dtype, count("summary", "batch", batch), activations,
                                                optimizer, loss)
    return Summary(type(model).__name__, tuple(input_shape), tuple(rows), sum(size for size, _ in sizes),
                   sum(size for size, free in sizes if free), sum(row.multiply_adds for row in rows), activations, step)


def _own_parameters(model: Module) -> dict[str, int]:
    """How many numbers each Module learns itself, by its path, where it learns any; what is shared counts where it comes first."""
    owned: dict[str, int] = {}
    paths = {path for path, _ in model.named_modules()}
    for path, parameter in model.named_parameters():
        owner = path
        while owner not in paths:
            owner = owner.rpartition(".")[0]
        owned[owner] = owned.get(owner, 0) + parameter.size
    return owned


def _array(x: Any) -> Any:
    x = x.data if isinstance(x, Tensor) else x
    return x if backend.is_array(x) else None


def _same_memory(y: Any, x: Any) -> bool:
    """Whether y is x or a view of what x is or views."""
    return x is not None and (y is x or (x if x.base is None else x.base) is (y if y.base is None else y.base))


def _shape(shape: tuple[int, ...] | None) -> str:
    return "not run" if shape is None else f"({', '.join(['N', *map(str, shape)])})"


def _count(n: int) -> str:
    return f"{n:,}" if n else "-"


def _bytes(n: int) -> str:
    if not n:
        return "-"
    power = min(int(math.log2(n)) // 10, 3)
    return f"{n} B" if power == 0 else f"{n / 1024 ** power:.1f} {('KiB', 'MiB', 'GiB')[power - 1]}"
