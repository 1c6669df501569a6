"""Function: one operation with a gradient rule per argument, and Node: what stays in the graph of one call of it.

    class Mul(Function):
        def forward(self, a, b):            # arrays in, array out
            return a * b

        # d(ab)/da = b, d(ab)/db = a
        def grad_a(self, gy, b):
            return gy * b

        def grad_b(self, gy, a):
            return gy * a

What a rule names is what is kept: `Mul` keeps b for the gradient of a, and nothing if only constants are multiplied. A rule may name
`gy` (the gradient of the output y), any input, any output, and any method of the class, which is then computed once a pass. Rules are
written with operators and minidl's functions only, so that they run on arrays and on Tensors alike: on Tensors the result can be
differentiated again. `self` holds constants: options, shapes, indices. How signatures are read is in plan.py, the walk backward in
walk.py; no operation is defined here.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import perf_counter_ns
from typing import Any, ClassVar, dataclass_transform

import numpy as np

from minidl import backend
from minidl.backend import Array
from minidl.errors import (
    DefinitionError,
    DeviceError,
    DtypeError,
    GraphError,
    LabelError,
    MinidlError,
    ShapeError,
    layer_path,
    running,
)
from minidl.modes import Mode, check_finite, checksum, line_of_caller, mode
from minidl.plan import Plan
from minidl.shortage import shortage
from minidl.tensor import Tensor, make
from minidl.watchers import Watchers, arriving

PASSING = frozenset({*backend.SCALARS, type(None)})     # arguments that have no device and go through as they are


@dataclass_transform(eq_default=False)
class Function:
    """The base of every operation. Options are fields at the head of the class: `axis: int = 0`, given as `Softmax(axis=1)(x)`.

    Calling it with arrays gives arrays. With Tensors among them it gives Tensors, and a Node if one of them requires a gradient.
    Arrays beside Tensors are constants. A tuple comes back where `outputs` names several.
    """

    outputs: ClassVar[tuple[str, ...]] = ("y",)
    name: ClassVar[str] = "function"
    multiply_adds: ClassVar[Callable[..., int] | None] = None       # of a product, from the shapes of y and of its two factors
    in_float32: ClassVar[bool] = False      # forward and rules get float32 copies of arrays of 16 bits: it sums, or rounds many times
    stays_wide: ClassVar[bool] = False      # what forward makes of such arrays is not rounded to their 16 bits: a loss, say
    plan: ClassVar[Plan]
    _called = False

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        if cls.__annotations__:                             # it has options of its own
            dataclass(eq=False, repr=False)(cls)
        if "name" not in vars(cls):
            cls.name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).lower()
        if cls.forward is not Function.forward:             # a base that several operations share has no forward of its own
            cls.plan = Plan(cls)

    def forward(self, *xs: Any, **unused: Any) -> Any:
        """Compute the output, or a tuple of them, from arrays (and Python numbers, and None for an optional argument not given)."""
        raise DefinitionError(f"{type(self).__name__} has no forward")

    def __call__(self, *xs: Any) -> Any:
        if self._called:                                    # what forward keeps on self belongs to one call: another has its own
            self = copy.copy(self)
        self._called = True
        arrays = []
        tensors = False
        wanted = 0
        library: Any = None
        first: Any = None                                   # dtype of the first array
        for i, x in enumerate(xs):
            if isinstance(x, Tensor):
                tensors = True
                if arriving and (wait := arriving.get(id(x))) is not None:
                    wait()                                  # for a weight that is on its way: see watchers.py
                if x._requires_grad:
                    wanted |= 1 << i
                x = x._data
            kind = type(x)
            if kind is not library and kind not in PASSING:
                if library is None and kind in backend._by_type:
                    library, first = kind, x.dtype
                elif isinstance(x, np.generic):
                    x = x.item()                            # a NumPy scalar takes the dtype of the array beside it, as a Python one does
                else:
                    library = self._admit(i, x, library, xs)
                    first = x.dtype if first is None else first
            arrays.append(x)
        if library is not np.ndarray:
            if library is None:                             # numbers only: NumPy's are arrays without axes, as its reductions give them
                arrays = [np.asarray(x) if isinstance(x, np.generic) else x for x in xs]
            else:
                self._check_devices(arrays)

        on = mode.get()
        recorder, record = on.recorder, None
        if recorder is not None:
            started = perf_counter_ns() if library is np.ndarray else recorder.now(library)
        given = [backend.wide(x) for x in arrays] if self.in_float32 and first is not None and first.itemsize == 2 else arrays
        try:
            y = self.forward(*given)
        except MinidlError:
            raise
        except (ValueError, TypeError, IndexError) as error:
            raise self._translated(error, arrays) from error
        except MemoryError as error:
            nodes = [x.node for x in xs if isinstance(x, Tensor) and x.node is not None]
            raise shortage(error, self.name, next(filter(backend.is_array, arrays), None), nodes, self._seen(arrays)) from None
        if first is not None and getattr(y, "dtype", first) is not first and not self.stays_wide:
            y = _rounded(y, arrays)
        if recorder is not None:
            record = recorder.operation(started, self, arrays, y, library)

        if not self.plan.single and (type(y) is not tuple or len(y) != len(self.outputs)):
            raise self._wrong_result(y)
        if on.numerics:
            for k, name in enumerate(self.outputs):
                check_finite(y if self.plan.single else y[k], f"{self.name}: the output {name}", running.get(), line_of_caller())
        if not tensors:
            return y
        if self.plan.single:
            if type(y) is not library:
                if y is None or isinstance(y, tuple | list | Tensor):
                    raise self._wrong_result(y)
                y = _as_array(y, arrays)
            node = Node(self, xs, arrays, (y,), wanted, on, record) if wanted and on.grad and backend.is_float(y.dtype) else None
            return make(y, node)
        y = tuple(part if type(part) is library else _as_array(part, arrays) for part in y)
        node = Node(self, xs, arrays, y, wanted, on, record) if wanted and on.grad else None
        return tuple(make(part, node if backend.is_float(part.dtype) else None, k) for k, part in enumerate(y))

    # What can be wrong with an argument, away from the path that every call takes

    def label(self, i: int) -> str:
        """What argument number i is called."""
        return f"{self.plan.args[0]}[{i}]" if self.plan.variadic else self.plan.args[i] if i < len(self.plan.args) else f"argument {i}"

    def _admit(self, i: int, x: Any, library: Any, xs: Any) -> Any:
        try:
            kind = backend.library_of(x).array              # a library that was not asked for yet, or a subclass of its array
        except DeviceError:
            raise DtypeError(f"{self.name}: {self.label(i)} is a {type(x).__name__}, and must be an array, a Tensor or a number",
                             hint="Make an array of it first: numpy.asarray(x), or minidl.Tensor(x).") from None
        if library is None or kind is library:
            return kind
        raise self._device_error([x.data if isinstance(x, Tensor) else x for x in xs])

    def _check_devices(self, arrays: list[Any]) -> None:
        devices = {backend.device_of(x) for x in arrays if type(x) not in PASSING}
        if len(devices) > 1:
            raise self._device_error(arrays)

    def _device_error(self, arrays: list[Any]) -> DeviceError:
        places = {self.label(i): backend.device_of(x) for i, x in enumerate(arrays) if backend.is_array(x)}
        (first, there), *others = places.items()
        other, elsewhere = next((name, device) for name, device in others if device != there)
        return DeviceError(f"{self.name}: {first} is on {there}, {other} is on {elsewhere}",
                           hint=f"Bring one to the other: {other} = {other}.to({there!r}), or minidl.backend.asarray({other}, {there!r}).",
                           **places)

    def _wrong_result(self, y: Any) -> DefinitionError:
        given = f"{len(y)} results" if isinstance(y, tuple | list) else f"a {type(y).__name__}"
        wanted = "one array" if self.plan.single else f"a tuple of {len(self.outputs)} arrays"
        return DefinitionError(f"{self.name}: forward gave {given}, and must give {wanted}", outputs=self.outputs,
                               hint='Several outputs are named at the head of the class: outputs = ("q", "r").' if self.plan.single else "")

    def _translated(self, error: Exception, arrays: list[Any]) -> MinidlError:
        """An error that the array library raised, as one of ours that names the operation and its arguments."""
        kind = ShapeError if isinstance(error, ValueError) else DtypeError if isinstance(error, TypeError) else LabelError
        return kind(f"{self.name}: {error}", **self._seen(arrays))

    def _seen(self, arrays: list[Any]) -> dict[str, str]:
        return {self.label(i): f"{x.shape} {x.dtype}" if backend.is_array(x) else repr(x) for i, x in enumerate(arrays)}


def _as_array(y: Any, arrays: list[Any]) -> Array:
    """A result as an array: NumPy's reductions give scalars."""
    if backend.is_array(y):
        return y
    xp = next((backend.of(x) for x in arrays if type(x) not in PASSING), np)
    return xp.asarray(y)


def _rounded(y: Any, arrays: list[Any]) -> Any:
    """A result in the 16 bits of the arrays that it was made of, if they are all of one such dtype: what has come in beside them is
    float32 copies, and Python numbers, of which NumPy makes float32 beside bfloat16."""
    dtypes = {x.dtype for x in arrays if type(x) not in PASSING and backend.is_float(x.dtype)}
    if len(dtypes) == 1 and y.dtype.itemsize > 2 and backend.is_float(y.dtype) and backend.is_half(dtype := dtypes.pop()):
        return y.astype(dtype)
    return y


_order = itertools.count()


class Node:
    """One call of a Function in the graph: its edges to where the inputs came from, and the arrays that its rules name.

    An edge is the leaf Tensor itself, or (node, number of its output), or None where no gradient goes. A Node keeps arrays and never
    its output Tensor, so that a graph has no reference cycle and is gone with the last Tensor that leads to it.
    """

    __slots__ = ("checksums", "due", "edges", "function", "like", "line", "name", "order", "record", "saved", "stack", "versions",
                 "watchers")

    def __init__(self, function: Function, xs: tuple, arrays: list[Any], ys: tuple, wanted: int, on: Mode, record: Any = None):
        plan = function.plan
        due, inputs, outputs = plan.kept(wanted)
        edges: list[Any] = [None] * len(xs)
        largest, ascending = 0, True
        for i in due:
            x = xs[i]
            edges[i] = x if x.node is None else (x.node, x.index)
            size = arrays[i].size
            ascending = ascending and size >= largest
            largest = size
        saved: dict[str, Any] = {}
        leaves: list[Tensor] = []                           # that must still be the same when the rules run:
        for i, name in inputs:
            saved[name] = arrays[i] if i < len(arrays) else None
            if i < len(xs) and isinstance(xs[i], Tensor) and xs[i].node is None:
                leaves.append(xs[i])                        # those that are kept,
        if ys[0].base is not None:
            leaves += [x for x in edges if isinstance(x, Tensor)]       # and those that the output is a view of
        if plan.variadic and inputs:
            saved = {plan.args[0]: arrays}
        for k, name in outputs:
            saved[name] = ys[k]
        self.saved = saved                                  # what the rules name, by name
        self.function: Any = function                       # None once freed
        self.name = function.name
        self.edges = edges
        # whose gradients are wanted, in the order of their rules: see plan.py
        self.due = due if ascending else tuple(sorted(due, key=lambda i: arrays[i].size))
        self.like = ((ys[0].shape, ys[0].dtype),) if plan.single else tuple([(y.shape, y.dtype) for y in ys])
        self.versions = [(x, x.version) for x in leaves] if leaves else None
        self.order = next(_order)
        self.stack = running.get()
        self.watchers: dict[int, Watchers] | None = None
        self.record = record                                # what a profile has written down of the call
        self.line = line_of_caller() if on.numerics or on.saved else ""
        self.checksums: dict[str, int] | None = {name: checksum(x) for name, x in self.kept()} if on.saved else None
        if on.recorder is not None:
            on.recorder.keeps(self, xs)

    def kept(self) -> Iterator[tuple[str, Array]]:
        """The arrays that are kept for the rules, by name."""
        for name, x in self.saved.items():
            if isinstance(x, list):
                yield from ((f"{name}[{i}]", each) for i, each in enumerate(x) if type(each) not in PASSING)
            elif type(x) not in PASSING:
                yield name, x

    def watch(self, index: int) -> Watchers:
        """The watchers of one output, made on first use."""
        self.watchers = self.watchers or {}
        return self.watchers.setdefault(index, Watchers())

    def where(self) -> str:
        """For errors: which operation, in which layer, at which line if that is known."""
        layer = layer_path(self.stack)
        return self.name + (f" in layer {layer}" if layer else "") + (f" ({self.line})" if self.line else "")

    def argument(self, name: str) -> Tensor | None:
        """An input by its name: the leaf itself, or a Tensor at the same place in the graph. None where it was not given.

        GraphError if it is no leaf and no rule that will run names it, or if the Node was freed.
        """
        if self.function is None:
            raise freed(self)
        if name not in self.function.plan.args:
            raise GraphError(f"{self.where()} has no argument {name!r}", arguments=", ".join(self.function.plan.args))
        i = self.function.plan.args.index(name)
        edge = self.edges[i] if i < len(self.edges) else None
        if isinstance(edge, Tensor):
            return edge
        if name in self.saved:
            return self.at(i, self.saved[name])
        if edge is not None:
            raise GraphError(f"{self.where()}: the input {name} is not kept, because no rule that will run names it")
        return None

    def at(self, i: int, x: Any) -> Any:
        """The array x of input number i as a Tensor at the input's place in the graph; a number or None as it is."""
        if type(x) in PASSING:
            return x
        edge = self.edges[i]
        return edge if isinstance(edge, Tensor) else make(x) if edge is None else make(x, *edge)

    def check_kept(self) -> None:
        """GraphError if a leaf has changed since the call, or, under check_saved, any array that was kept."""
        for leaf, version in self.versions or ():
            if leaf.version != version:
                raise GraphError(f"{self.where()}: a leaf of shape {leaf.shape} was changed between the forward and the backward pass",
                                 hint="Run backward() before the optimizer's step() or an assignment to .data, or compute the loss anew.")
        checksums = self.checksums or {}
        for name, x in self.kept() if checksums else ():
            if checksum(x) != checksums[name]:
                raise GraphError(f"{self.where()}: the array kept for {name} was overwritten before the backward pass",
                                 hint="Work on a copy of it, or compute the loss anew.", **{name: f"{x.shape} {x.dtype}"})

    def release(self) -> None:
        """Free what was kept. The edges stay, so that the graph can still be drawn."""
        self.function = None
        self.saved = {}
        self.versions = self.checksums = None


def freed(node: Node) -> GraphError:
    return GraphError(f"{node.where()}: a backward pass has been here and has freed what it needed",
                      hint="Give retain_graph=True to the first backward(), or compute the loss anew.")
