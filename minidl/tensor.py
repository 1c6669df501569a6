"""A Tensor: an array and its place in the computation graph.

A *leaf* is a Tensor that a person made (an input, a parameter); every other one came out of an operation and remembers which (`node`)
and as which of its outputs (`index`). There is no mathematics here: the operators and methods are bound by `functions/`, the
backward pass by `autograd.py`. They are declared below, so that readers and type checkers find them.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import ref

import numpy as np

from minidl import backend
from minidl.backend import Array
from minidl.errors import ArgumentError, DeviceError, DtypeError, GraphError, ShapeError
from minidl.watchers import Handle, Watchers, arriving, awaited, watched

if TYPE_CHECKING:
    from minidl.graph import Node

Self = TypeVar("Self", bound="Tensor")

class Tensor:
    """An array that operations are recorded on.

    x: a NumPy or CuPy array, which is shared and not copied; or numbers and lists of them, which become float32 (or integers).
    requires_grad: whether backward passes leave a gradient in `.grad`. DtypeError if x is not of a float type.

    Arithmetic is NumPy's, with broadcasting; comparisons give plain boolean arrays.

    >>> x = Tensor([1.0, 2.0], requires_grad=True)
    >>> (x * x).sum().backward()
    >>> x.grad
    Tensor([2., 4.], dtype=float32)
    """

    _data: Array
    __slots__ = ("__weakref__", "_data", "_grad", "_requires_grad", "index", "node", "version", "watchers")

    __array_ufunc__ = None              # NumPy then leaves `array * tensor` to Tensor.__rmul__, and refuses numpy.exp(tensor)

    def __init__(self, x: Any, requires_grad: bool = False):
        if isinstance(x, Tensor):
            x = x.data
        elif not backend.is_array(x):
            x = np.asarray(x)
            if x.dtype == np.float64:
                x = x.astype(np.float32)
        if x.dtype.kind not in "fiub" and not backend.is_float(x.dtype):
            raise DtypeError(f"Tensor: an array of dtype {x.dtype} has no gradient and no arithmetic here",
                             hint="Give real numbers: float16, float32, float64, integers or booleans.")
        self._data = x
        self._grad: Tensor | None = None
        self._requires_grad = False
        self.node: Node | None = None
        self.index = 0
        self.version = 0
        self.watchers: Watchers | None = None
        if requires_grad:
            self.requires_grad = True

    # The array

    @property
    def data(self) -> Array:
        """The array itself. On a leaf another one can be assigned, of the same shape if the leaf requires a gradient.

        A backward pass that needs the old numbers notices an assignment. Writing *into* the array, `t.data[0] = 1`, or into a detached
        Tensor that shares it, goes unnoticed; `check_saved` finds it.
        """
        if arriving and (wait := arriving.get(id(self))) is not None:
            wait()
        return self._data

    @data.setter
    def data(self, x: Any) -> None:
        if self.node is not None:
            raise GraphError("Tensor.data: only a leaf's array can be assigned, and this Tensor is the result of "
                             f"{self.node.name}", hint="Make a new Tensor, or assign to t.detach().")
        x, old = x.data if isinstance(x, Tensor) else x, self.data          # which waits until nothing is on its way there
        if not backend.is_array(x):
            x = backend.asarray(np.asarray(x, dtype=old.dtype), self.device)
        if self._requires_grad and x.shape != old.shape:
            raise ShapeError(f"Tensor.data: a leaf that requires a gradient has shape {self.shape}, and keeps it; the array has {x.shape}",
                             hint="Make a new Tensor, or a new Parameter of the layer.")
        if self._requires_grad and not backend.is_float(x.dtype):
            raise DtypeError(f"Tensor.data: a leaf that requires a gradient cannot hold {x.dtype}", hint="Use x.astype('float32').")
        self._data = x
        self.version += 1
        grad = self._grad
        if grad is not None and (grad.dtype != x.dtype or grad.device != self.device):
            self._grad = None               # it does not fit any more

    @property
    def shape(self) -> tuple[int, ...]:
        """The length of each axis."""
        return self._data.shape

    @property
    def dtype(self) -> np.dtype:
        """The type of the numbers."""
        return self._data.dtype

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return self._data.ndim

    @property
    def size(self) -> int:
        """The number of numbers."""
        return self._data.size

    @property
    def device(self) -> str:
        """Where the array lies: "cpu", "cuda:0", ..."""
        return backend.device_of(self._data)

    def numpy(self) -> np.ndarray:
        """The array as a NumPy array, copied if it lies on a GPU. GraphError for a Tensor with a graph: `detach()` it first."""
        if self._requires_grad:
            raise GraphError("Tensor.numpy: this Tensor requires a gradient, which NumPy would lose",
                             hint="Use t.detach().numpy(), or t.data for the array on its own device.")
        return backend.to_numpy(self.data)

    def item(self) -> Any:
        """The single number in it, as a Python number. ShapeError if there are several."""
        if self.size != 1:
            raise ShapeError(f"item: a Tensor of shape {self.shape} is not one number", hint="Use t.data, or sum() or mean() first.")
        return self.data.item()

    def detach(self) -> Tensor:
        """The same array without the graph: a leaf that shares memory with this Tensor."""
        return make(self.data)

    # Its place in the graph

    @property
    def requires_grad(self) -> bool:
        """Whether a backward pass comes by here. Set it on a leaf to freeze or free a parameter."""
        return self._requires_grad

    @requires_grad.setter
    def requires_grad(self, wanted: bool) -> None:
        if self.node is not None and not wanted:
            raise GraphError(f"requires_grad: this Tensor is the result of {self.node.name} and part of a graph",
                             hint="Use t.detach(), or compute it under minidl.no_grad().")
        if wanted and not backend.is_float(self._data.dtype):
            raise DtypeError(f"requires_grad: a Tensor of dtype {self.dtype} cannot have a gradient",
                             hint="Only float types can: use x.astype('float32') first.")
        self._requires_grad = bool(wanted)

    @property
    def is_leaf(self) -> bool:
        """Whether a person made it, rather than an operation that was recorded."""
        return self.node is None

    @property
    def grad(self) -> Tensor | None:
        """The gradient that backward passes have summed up here; None before. Assign None to start anew."""
        return self._grad

    @grad.setter
    def grad(self, value: Any) -> None:
        if value is not None:
            value = value if isinstance(value, Tensor) else Tensor(value)
            if value.shape != self.shape:
                raise ShapeError(f"grad: a gradient of shape {value.shape} does not belong to a Tensor of shape {self.shape}")
            if value.device != self.device:
                raise DeviceError(f"grad: a gradient on {value.device} does not belong to a Tensor on {self.device}",
                                  hint=f"Bring it there: gradient.to({self.device!r}).")
            if value.dtype != self.dtype:
                value = value.astype(self.dtype)
        self._grad = value

    def _watch(self, frozen: bool = False) -> Watchers:
        if not self._requires_grad and not frozen:
            raise GraphError("a hook or an observer waits for a gradient, and this Tensor requires none",
                             hint="Set t.requires_grad = True first.")
        if self.node is not None:
            return self.node.watch(self.index)
        if self.watchers is None:
            self.watchers = Watchers()
        return self.watchers

    def retain_grad(self) -> None:
        """Ask that backward passes leave the gradient of this inner Tensor in its `.grad` too."""
        if self.node is not None:
            self._watch().retain = ref(self)

    def register_hook(self, hook: Callable[[Tensor], Any]) -> Handle:
        """Have `hook(grad)` called in each backward pass, once the gradient of this Tensor is complete.

        hook: gets the gradient as a Tensor and may give another one in its place. Returns a Handle with `remove()`.
        """
        hooks = self._watch().hooks
        hooks.append(hook)
        return Handle(hooks, hook)

    def register_ready_hook(self, hook: Callable[[Tensor], None]) -> Handle:
        """Have `hook(tensor)` called as soon as a leaf's `.grad` is final, while the pass goes on elsewhere.

        Exchange between processes starts from here. It is called exactly once a pass, and only if the pass reaches the leaf.
        """
        return self._register(hook, "ready")

    def register_observer(self, observer: Any) -> Handle:
        """Let an observer (see walk.Observer) see the input and the output gradient of the layers that use this leaf.

        A leaf that requires no gradient now may do so later.
        """
        return self._register(observer, "observers")

    def _register(self, entry: Any, kind: str) -> Handle:
        if self.node is not None:
            raise GraphError(f"only a leaf has {kind} hooks, and this Tensor is the result of {self.node.name}",
                             hint="Use register_hook, which inner Tensors have too.")
        entries = getattr(self._watch(frozen=kind == "observers"), kind)
        entries.append(entry)
        watched[id(self)] = self
        if kind == "ready":
            awaited[id(self)] = self
        return Handle(entries, entry)

    # What Python and NumPy ask of it

    def __repr__(self) -> str:
        shown = np.array2string(backend.to_numpy(self.data), separator=", ", prefix="Tensor(", threshold=100)
        dtype = "" if self.dtype.kind in "ib" else f", dtype={self.dtype}"
        device = "" if self.device == "cpu" else f", device={self.device!r}"
        place = f", from={self.node.name}" if self.node is not None else ", requires_grad=True" if self._requires_grad else ""
        return f"{type(self).__name__}({shown}{dtype}{device}{place})"

    def __len__(self) -> int:
        if not self.shape:
            raise ShapeError("len: a Tensor of shape () is one number", hint="Use t.item() for its value.")
        return self.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))

    def __bool__(self) -> bool:
        if self.size != 1:
            raise ShapeError(f"a Tensor of shape {self.shape} is neither true nor false", hint="Compare it, then use .any() or .all().")
        return bool(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __index__(self) -> int:
        if self.dtype.kind not in "iu":
            raise DtypeError(f"a Tensor of dtype {self.dtype} cannot be an index")
        return int(self.item())

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if spec else repr(self)

    __hash__ = object.__hash__          # by identity: two Tensors with equal numbers are two places

    def __eq__(self, other: Any) -> Array:                       # an array, as in NumPy
        return _compared(operator.eq, self, other)

    def __ne__(self, other: Any) -> Array:
        return _compared(operator.ne, self, other)

    def __lt__(self, other: Any) -> Array:
        return _compared(operator.lt, self, other)

    def __le__(self, other: Any) -> Array:
        return _compared(operator.le, self, other)

    def __gt__(self, other: Any) -> Array:
        return _compared(operator.gt, self, other)

    def __ge__(self, other: Any) -> Array:
        return _compared(operator.ge, self, other)

    def __setitem__(self, key: Any, value: Any) -> None:
        if self.node is not None or self._requires_grad:
            raise GraphError("a Tensor in a graph cannot be written to: its old numbers may be needed for a gradient",
                             hint="Build a new one: where(mask, new, t), concatenate or stack. A parameter, between two steps: "
                                  "t.data[key] = value.")
        self._data[_other(key)] = _other(value)
        self.version += 1

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if self.device != "cpu":
            raise DeviceError(f"a Tensor on {self.device} is not made a NumPy array by accident", hint="Use t.detach().to('cpu').numpy().")
        return np.array(self.numpy(), dtype=dtype, copy=copy)

    def __array_function__(self, func: Callable, types: Any, args: Any, kwargs: Any) -> Any:
        name = func.__name__
        raise ArgumentError(f"numpy.{name} does not record what it does to a Tensor",
                            hint=f"Use minidl.functions.{name} if there is one, or give numpy.{name} the array: t.data.")

    def __reduce__(self) -> Any:
        if self.node is not None:
            raise GraphError(f"a Tensor that is the result of {self.node.name} cannot be copied or pickled with its graph",
                             hint="Use t.detach().")
        return type(self), (self.data, self._requires_grad)

    def __deepcopy__(self: Self, memo: dict) -> Self:
        make_anew, (data, requires_grad) = self.__reduce__()
        return memo.setdefault(id(self), make_anew(data.copy(), requires_grad))

    @classmethod
    def bind(cls, **methods: Any) -> None:
        """Give Tensors methods and operators that are defined on a later floor."""
        for name, method in methods.items():
            setattr(cls, name, method)

    if TYPE_CHECKING:                   # bound by autograd.py
        def backward(self, grad: Any = None, create_graph: bool = False, retain_graph: bool = False) -> None: ...

        # bound by functions/
        def __add__(self, b: Any) -> Tensor: ...
        def __radd__(self, b: Any) -> Tensor: ...
        def __sub__(self, b: Any) -> Tensor: ...
        def __rsub__(self, b: Any) -> Tensor: ...
        def __mul__(self, b: Any) -> Tensor: ...
        def __rmul__(self, b: Any) -> Tensor: ...
        def __truediv__(self, b: Any) -> Tensor: ...
        def __rtruediv__(self, b: Any) -> Tensor: ...
        def __pow__(self, b: Any) -> Tensor: ...
        def __rpow__(self, b: Any) -> Tensor: ...
        def __matmul__(self, b: Any) -> Tensor: ...
        def __rmatmul__(self, b: Any) -> Tensor: ...
        def __neg__(self) -> Tensor: ...
        def __abs__(self) -> Tensor: ...
        def __getitem__(self, key: Any) -> Tensor: ...
        def sum(self, axis: Any = None, keepdims: bool = False) -> Tensor: ...
        def mean(self, axis: Any = None, keepdims: bool = False) -> Tensor: ...
        def var(self, axis: Any = None, ddof: int = 0, keepdims: bool = False) -> Tensor: ...
        def max(self, axis: Any = None, keepdims: bool = False) -> Tensor: ...
        def min(self, axis: Any = None, keepdims: bool = False) -> Tensor: ...
        def argmax(self, axis: int | None = None) -> Array: ...
        def clip(self, low: Any = None, high: Any = None) -> Tensor: ...
        def exp(self) -> Tensor: ...
        def log(self) -> Tensor: ...
        def sqrt(self) -> Tensor: ...
        def tanh(self) -> Tensor: ...
        def reshape(self, *shape: Any) -> Tensor: ...
        def transpose(self, *axes: Any) -> Tensor: ...
        def swapaxes(self, a: int, b: int) -> Tensor: ...
        def squeeze(self, axis: Any = None) -> Tensor: ...
        def flatten(self) -> Tensor: ...
        def astype(self, dtype: Any) -> Tensor: ...
        def to(self, device: str) -> Tensor: ...
        @property
        def T(self) -> Tensor: ...


def make(data: Array, node: Node | None = None, index: int = 0) -> Tensor:
    """A Tensor without the constructor's questions: what the engine makes of every result."""
    tensor = Tensor.__new__(Tensor)
    tensor._data = data
    tensor._grad = None
    tensor._requires_grad = node is not None
    tensor.node = node
    tensor.index = index
    tensor.version = 0
    tensor.watchers = None
    return tensor


def _compared(compare: Callable, a: Tensor, b: Any) -> Array:
    b = _other(b)
    try:
        return compare(a.data, b)
    except (ValueError, TypeError) as error:
        shown = f"{b.shape} on {backend.device_of(b)}" if backend.is_array(b) else type(b).__name__
        kind = ShapeError if isinstance(error, ValueError) else DtypeError
        raise kind(f"{compare.__name__}: {error}", left=f"{a.shape} on {a.device}", right=shown) from error


def _other(x: Any) -> Any:
    """The other side of a comparison or an assignment, without its Tensor."""
    if isinstance(x, tuple):
        return tuple(_other(item) for item in x)
    return x.data if isinstance(x, Tensor) else x
