"""Shape: numbers are moved, repeated, picked out, joined or stored otherwise, but not computed with.

Every rule here is the way back: what was reshaped is reshaped again, what was repeated is summed, what was picked out is put back
into zeros. Integer indices that repeat add up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np

from minidl import backend, kernels
from minidl.errors import ArgumentError, DtypeError, ShapeError
from minidl.graph import Function
from minidl.tensor import Tensor

X = TypeVar("X")


class Reshape(Function):
    shape: tuple

    def forward(self, x):
        self.old = x.shape
        return x.reshape(self.shape)

    def grad_x(self, gy):
        return gy.reshape(self.old)


class Transpose(Function):
    axes: tuple

    def forward(self, x):
        return x.transpose(self.axes)

    # the inverse permutation
    def grad_x(self, gy):
        return gy.transpose(tuple(self.axes.index(i) for i in range(len(self.axes))))


class BroadcastTo(Function):
    shape: tuple

    def forward(self, x):
        return backend.of(x).broadcast_to(x, self.shape)

    # the engine sums a gradient back to its argument's shape
    def grad_x(self, gy):
        return gy


class GetItem(Function):
    name = "getitem"
    key: Any

    def forward(self, x):
        self.shape = x.shape
        return x[self.key]

    def grad_x(self, gy):
        return Scatter(self.key, self.shape)(gy)


class Scatter(Function):
    """Zeros of a shape, with x added at the places that the key picks out."""

    key: Any
    shape: tuple

    def forward(self, x):
        xp = backend.of(x)
        if not is_basic(self.key):
            x = backend.wide(x)                             # places may repeat, and then it is a sum
        y = xp.zeros(self.shape, x.dtype)
        if is_basic(self.key):
            y[self.key] = x
        else:
            xp.add.at(y, self.key, x)
        return y

    def grad_x(self, gy):
        return gy[self.key]


class Concatenate(Function):
    axis: int

    def forward(self, *xs):
        axis = numbered("concatenate", xs[0], self.axis)
        ends = np.cumsum([x.shape[axis] for x in xs]).tolist()
        self.parts = [(slice(None),) * axis + (slice(start, end),) for start, end in zip([0, *ends], ends)]
        return kernels.concatenate(xs, axis)

    # each gets its own part back
    def grad_xs(self, gy, i):
        return gy[self.parts[i]]


class Pad(Function):
    widths: tuple
    value: float = 0.0

    def forward(self, x):
        self.inner = tuple(slice(before, before + n) for (before, _), n in zip(self.widths, x.shape))
        return backend.of(x).pad(x, self.widths, mode="constant", constant_values=self.value)

    def grad_x(self, gy):
        return gy[self.inner]


class Flip(Function):
    axis: int

    def forward(self, x):
        return backend.of(x).flip(x, self.axis)

    def grad_x(self, gy):
        return flip(gy, self.axis)


class AsType(Function):
    name = "astype"
    stays_wide = True
    dtype: Any

    def forward(self, x):
        return x.astype(self.dtype)

    # the engine gives a gradient its argument's dtype
    def grad_x(self, gy):
        return gy


class ToDevice(Function):
    name = "to"
    device: str

    def forward(self, x):
        self.home = backend.device_of(x)
        return backend.asarray(x, self.device)

    def grad_x(self, gy):
        return to(gy, self.home)


def is_basic(key: Any) -> bool:
    """Whether an index is made of ints, slices, None and ... only, so that it picks no place twice."""
    parts = key if isinstance(key, tuple) else (key,)
    return all(part is None or part is Ellipsis or (isinstance(part, int | slice) and not isinstance(part, bool)) for part in parts)


def check_arrays(operation: str, **arguments: Any) -> None:
    """DtypeError if one is neither an array nor a Tensor."""
    for name, x in arguments.items():
        if not hasattr(x, "dtype"):
            raise DtypeError(f"{operation}: {name} is a {type(x).__name__}, and must be an array or a Tensor",
                             hint="Make an array of it first: numpy.asarray(x, dtype='float32'), or minidl.Tensor(x).")


def numbered(operation: str, x: Any, axis: int) -> int:
    """The number of an axis, counted from the first. ShapeError if x has none of this number."""
    check_arrays(operation, x=x)
    if not -x.ndim <= axis < x.ndim:
        raise ShapeError(f"{operation}: axis {axis} does not exist", x=f"{x.shape}")
    return axis % x.ndim


def reshape(x: X, *shape: Any) -> X:
    """The same numbers in another shape, in the order of the last axis first; one length may be -1.

    >>> reshape(np.arange(4.0), 2, 2)
    array([[0., 1.], [2., 3.]])
    """
    return Reshape(_given(shape))(x)


def transpose(x: Any, *axes: Any) -> Any:
    """The axes in another order: reversed, or as given.

    >>> transpose(np.zeros((2, 3, 4)), 1, 0, 2).shape
    (3, 2, 4)
    """
    check_arrays("transpose", x=x)
    order = _given(axes) if axes and axes != (None,) else tuple(reversed(range(x.ndim)))
    if sorted(a % x.ndim if -x.ndim <= a < x.ndim else -1 for a in order) != list(range(x.ndim)):
        raise ShapeError(f"transpose: {order} does not name each axis once", x=f"{x.shape}")
    return Transpose(tuple(a % x.ndim for a in order))(x)


def swapaxes(x: Any, a: int, b: int) -> Any:
    """Two axes exchanged.

    >>> swapaxes(np.zeros((2, 3, 4)), -1, -2).shape
    (2, 4, 3)
    """
    a, b = numbered("swapaxes", x, a), numbered("swapaxes", x, b)
    axes = list(range(x.ndim))
    axes[a], axes[b] = axes[b], axes[a]
    return transpose(x, *axes)


def squeeze(x: Any, axis: int | tuple[int, ...] | None = None) -> Any:
    """Without axes of length 1: all of them, or those named. ShapeError if one that is named is longer.

    >>> squeeze(np.zeros((2, 1, 3, 1)), axis=1).shape
    (2, 3, 1)
    """
    check_arrays("squeeze", x=x)
    named = (i for i, n in enumerate(x.shape) if n == 1) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    axes = [numbered("squeeze", x, a) for a in named]
    if any(x.shape[a] != 1 for a in axes):
        raise ShapeError(f"squeeze: axis {axis} is longer than 1", x=f"{x.shape}")
    return reshape(x, tuple(n for i, n in enumerate(x.shape) if i not in axes))


def expand_dims(x: Any, axis: int) -> Any:
    """With a new axis of length 1 at this place.

    >>> expand_dims(np.zeros((2, 3)), -1).shape
    (2, 3, 1)
    """
    check_arrays("expand_dims", x=x)
    if not -x.ndim - 1 <= axis <= x.ndim:
        raise ShapeError(f"expand_dims: there is no place {axis} for a new axis", x=f"{x.shape}")
    axis %= x.ndim + 1
    return reshape(x, x.shape[:axis] + (1,) + x.shape[axis:])


def flatten(x: Any) -> Any:
    """(N, ...) as (N, all the rest): images as vectors, in the order C, H, W whatever the memory order.

    >>> flatten(np.zeros((2, 3, 4, 5))).shape
    (2, 60)
    """
    check_arrays("flatten", x=x)
    if not x.shape:
        raise ShapeError("flatten: x has no axis of examples", x=f"{x.shape} (N, ...)")
    return reshape(x, x.shape[0], math.prod(x.shape[1:]))


def broadcast_to(x: Any, shape: tuple[int, ...]) -> Any:
    """x repeated to a shape, by NumPy's rules of broadcasting. The result may be a view that cannot be written to.

    >>> broadcast_to(np.array([1.0, 2.0]), (2, 2))
    array([[1., 2.], [1., 2.]])
    """
    return BroadcastTo(_given((shape,)))(x)


def getitem(x: X, key: Any) -> X:
    """x[key], with all of NumPy's indexing; the gradient of a number that is picked out twice is the sum of both.

    >>> getitem(np.array([1.0, 2.0, 3.0]), [2, 2])
    array([3., 3.])
    """
    def plain(part: Any) -> Any:
        if isinstance(part, Tensor):
            return part.data
        if isinstance(part, list):                              # an array library takes a list of indices only as an array of its own
            return backend.asarray(np.asarray(part, None if part else int), backend.device_of(x.data if isinstance(x, Tensor) else x))
        return part.item() if isinstance(part, np.integer) else part

    return GetItem(tuple(plain(part) for part in key) if isinstance(key, tuple) else plain(key))(x)


def concatenate(xs: Sequence[Any], axis: int = 0) -> Any:
    """Several arrays joined along an axis; they agree in all others.

    >>> concatenate([np.array([1.0]), np.array([2.0, 3.0])])
    array([1., 2., 3.])
    """
    if len(xs) == 0:
        raise ArgumentError("concatenate: nothing to join", hint="Give at least one array.")
    return Concatenate(axis)(*xs)


def stack(xs: Sequence[Any], axis: int = 0) -> Any:
    """Several arrays of one shape, joined along a new axis.

    >>> stack([np.array([1.0, 2.0]), np.array([3.0, 4.0])], axis=1)
    array([[1., 3.], [2., 4.]])
    """
    if len(xs) == 0:
        raise ArgumentError("stack: nothing to join", hint="Give at least one array.")
    check_arrays("stack", **{f"xs[{i}]": x for i, x in enumerate(xs)})
    if any(x.shape != xs[0].shape for x in xs):
        raise ShapeError("stack: the arrays must have one shape", **{f"xs[{i}]": f"{x.shape}" for i, x in enumerate(xs)})
    return concatenate([expand_dims(x, axis) for x in xs], axis)


def split(x: Any, sections: int | Sequence[int], axis: int = 0) -> list[Any]:
    """Cut along an axis: into so many equal parts, or before each of the positions given.

    ShapeError if the axis is not a multiple of the number of parts.

    >>> split(np.arange(4.0), 2)
    [array([0., 1.]), array([2., 3.])]
    """
    axis = numbered("split", x, axis)
    length = x.shape[axis]
    if isinstance(sections, int | np.integer):
        if sections < 1 or length % sections:
            raise ShapeError(f"split: an axis of length {length} cannot be cut into {sections} equal parts", x=f"{x.shape}",
                             hint="Give the positions of the cuts instead: split(x, [2, 5], axis).")
        cuts = list(range(0, length + 1, length // sections)) if length else [0] * (sections + 1)
    else:
        cuts = [0, *sections, length]
    return [getitem(x, (slice(None),) * axis + (slice(start, end),)) for start, end in pairwise(cuts)]


def pad(x: Any, widths: Any, value: float = 0.0) -> Any:
    """x with a border of a constant value.

    widths: (before, after) for each axis, one such pair for all, or one int for all sides.

    >>> pad(np.array([1.0, 2.0]), (1, 0))
    array([0., 1., 2.])
    """
    check_arrays("pad", x=x)
    if isinstance(widths, int | np.integer):
        widths = (widths, widths)
    if isinstance(widths[0], int | np.integer):
        widths = [widths] * x.ndim
    widths = tuple((int(before), int(after)) for before, after in widths)
    if len(widths) != x.ndim or any(n < 0 for pair in widths for n in pair):
        raise ShapeError(f"pad: widths {widths} do not fit", x=f"{x.shape}", hint="Give (before, after), neither negative, for each axis.")
    return Pad(widths, value)(x)


def flip(x: X, axis: int) -> X:
    """The other way round along an axis.

    >>> flip(np.array([1.0, 2.0, 3.0]), 0)
    array([3., 2., 1.])
    """
    return Flip(axis)(x)


def astype(x: Any, dtype: Any) -> Any:
    """The same numbers in another dtype; the gradient comes back in x's own.

    >>> astype(np.array([1.0, 2.0]), np.float32).dtype
    dtype('float32')
    """
    check_arrays("astype", x=x)
    try:
        dtype = np.dtype(dtype)
    except TypeError:
        raise DtypeError(f"astype: {dtype!r} is no dtype", hint="Give one of 'float16', 'float32', 'float64', 'int64', 'bool'.") from None
    return x if x.dtype == dtype else AsType(dtype)(x)


def to(x: Any, device: str) -> Any:
    """The same numbers on another device ("cpu", "cuda:0"); the gradient comes back to x's own.

    >>> to(np.array([1.0]), "cpu")
    array([1.])
    """
    check_arrays("to", x=x)
    device = backend.named_device(device)
    there = x.device if isinstance(x, Tensor) else backend.device_of(x)
    return x if there == device else ToDevice(device)(x)


def _given(numbers: tuple) -> tuple[int, ...]:
    """f(2, 3) and f((2, 3)) mean the same."""
    return tuple(numbers[0]) if len(numbers) == 1 and isinstance(numbers[0], tuple | list) else numbers


Tensor.bind(
    __getitem__=getitem, reshape=reshape, transpose=transpose, swapaxes=swapaxes, squeeze=squeeze, astype=astype, to=to,
    flatten=flatten, T=property(transpose),
)
