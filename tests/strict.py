"""The strict device: NumPy behind a counter, as strict as a GPU, so that the GPU path stays honest on machines without one.

A StrictArray holds a NumPy array. Like a CuPy array it refuses to be mixed with NumPy arrays, or to become one unasked; reductions and
indexing give 0-d arrays, never scalars; and it has only the methods, functions and arguments that CuPy has, which are listed in
cupy_names.txt. So an `np.` where an `xp.` belongs fails on every machine. In one thing it is stricter than CuPy, which answers
`numpy.sum(x)` where it can: here no NumPy function takes a StrictArray.

Importing this file makes the devices "strict:0", "strict:1", ... known to minidl. The package emulated builds upon it: an array class of
its own, given to what is here as `kind`, which does more where this one only counts.
"""

import functools
import operator
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from minidl import backend


def _read_names():
    """What CuPy has: each name with the names of its arguments, or None for what is not called."""
    names = {}
    for line in (Path(__file__).parent / "cupy_names.txt").read_text().splitlines():
        if not line.startswith("#"):
            name, bracket, arguments = line.rstrip(")").partition("(")
            names[name] = [a for a in arguments.split(", ") if a] if bracket else None
    return names


NAMES = _read_names()
EXPLICIT = {"array", "asarray", "asanyarray"}              # these copy a NumPy array to the device, because they are asked to


class StrictArray:
    """An array of the strict device. `get()` gives its numbers back as a NumPy array."""

    __slots__ = ("__weakref__", "_array", "_base", "_number")
    __array_ufunc__ = None
    __hash__ = None

    def __init__(self, array, number=0, base=None):
        if array.dtype.char not in "?bhilqBHILQefdFD" and array.dtype.name != "bfloat16":
            raise ValueError(f"Unsupported dtype {array.dtype}")
        self._array, self._number, self._base = array, number, base

    @classmethod
    def _new(cls, array, number):
        """What has just been computed, as an array on a device."""
        return cls(array, number)

    @classmethod
    def _here(cls):
        """The number of the device on which something is made from nothing."""
        return 0

    @classmethod
    def _call(cls, name, real, args, kwargs):
        """Everything that a device does is one of these: what NumPy calls `real`, with arrays of the device in and out."""
        refuse_bfloat16(name, args, kwargs)
        y = real(*unwrap(cls, args, name in EXPLICIT), **unwrap(cls, kwargs, name in EXPLICIT))
        return wrap(cls, y, *args, *kwargs.values())

    def _read(self):
        """The numbers, for the host to look at."""
        return self._array

    base = property(lambda self: self._base)
    T = property(lambda self: self._call("ndarray.T", operator.attrgetter("T"), (self,), {}))

    @property
    def flags(self):
        flags = self._array.flags
        return SimpleNamespace(c_contiguous=flags.c_contiguous, f_contiguous=flags.f_contiguous, owndata=self._base is None)

    def get(self):
        return self._read().copy()

    def __getitem__(self, key):
        return self._call("ndarray.__getitem__", _item, (self, key), {})

    def __setitem__(self, key, value):
        self._call("ndarray.__setitem__", operator.setitem, (self, key, value), {})

    def __len__(self):
        return len(self._array)

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def __bool__(self):
        return bool(self._read())

    def __int__(self):
        return int(self._read())

    def __float__(self):
        return float(self._read())

    def __repr__(self):
        return f"{type(self).__name__}{repr(self._array).removeprefix('array')}"

    def __copy__(self):
        return self.copy()

    def __deepcopy__(self, memo):
        return self.copy()

    def __reduce__(self):
        return type(self), (self._read(), self._number)

    def __array__(self, dtype=None, copy=None):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()` to construct a NumPy array explicitly.")

    def __array_function__(self, function, types, args, kwargs):
        raise TypeError(f"numpy.{function.__name__} was given a {type(self).__name__}: the library of an array is backend.of(x)")


def _attribute(name):
    return property(lambda self: getattr(self._array, name))


def _method(name):
    def method(self, *args, **kwargs):
        call = _find(type(self), f"ndarray.{name}")
        call.check(args, kwargs)
        return self._call(call.name, call.real, (self, *args), kwargs)
    return method


def _operator(name):
    real = getattr(np.ndarray, name)

    def method(self, *others):
        for other in others:
            if not isinstance(other, type(self)) and getattr(type(other), "__array_ufunc__", real) is None:
                return NotImplemented                       # a Tensor: it knows better
        return self._call(f"ndarray.{name}", real, (self, *others), {})
    return method


def _item(array, key):
    found = array[key]
    if isinstance(found, np.generic):                       # CuPy gives a view of the one number
        found = array[(*key, ...) if isinstance(key, tuple) else (key, ...)]
    return found


class Call:
    """A function of CuPy: only arguments that CuPy takes go in, and arrays of the strict device come out."""

    def __init__(self, kind, name, real):
        self.kind, self.name, self.real, self.arguments = kind, name, ADAPTED.get(name, real), NAMES[name]
        self.__name__ = self.__qualname__ = name

    def __call__(self, *args, **kwargs):
        self.check(args, kwargs)
        return self.kind._call(self.name, self.real, args, kwargs)

    def __getattr__(self, method):
        return _find(self.kind, f"{self.name}.{method}")

    def check(self, args, kwargs):
        named = [a.lstrip("*") for a in self.arguments]
        for unknown in set(kwargs) - set(named) if "**kwargs" not in self.arguments else ():
            raise TypeError(f"cupy.{self.name} has no argument {unknown!r}")
        if len(args) > len(named) and not any(a.startswith("*") for a in self.arguments):
            raise TypeError(f"cupy.{self.name} takes {len(named)} arguments, and {len(args)} are given")
        for argument, x in zip(named, args):
            if argument in ("a", "x", "x1", "x2") and isinstance(x, list | tuple) and self.name not in EXPLICIT:
                raise TypeError(f"Unsupported type {type(x)}")


def _broadcast_to(array, shape):
    """CuPy's can be written to."""
    y = np.broadcast_to(array, shape)
    return np.lib.stride_tricks.as_strided(array, y.shape, y.strides)


ADAPTED = {
    "broadcast_to": _broadcast_to,
    "count_nonzero": lambda *args, **kwargs: np.asarray(np.count_nonzero(*args, **kwargs)),     # a Python number from older NumPys
}


NOT_OF_BFLOAT16 = {"add.at", "argpartition", "argsort", "cumprod", "cumsum", "lexsort", "partition", "sort", "subtract.at"}


def refuse_bfloat16(name, args, kwargs):
    """TypeError where CuPy cannot do something with bfloat16, though it can with other types."""
    if any(x.dtype.name == "bfloat16" for x in arrays_in(args)):
        plain = name.removeprefix("ndarray.")
        bounds = [*args[1:3], *(kwargs.get(word) for word in ("a_min", "a_max", "min", "max") if word in kwargs)]
        if plain in NOT_OF_BFLOAT16 or (plain == "clip" and (len(bounds) < 2 or None in bounds)):
            raise TypeError(f"cupy.{name} does not take bfloat16" + ", with one bound" * (plain == "clip"))


def unwrap(kind, x, numpy_too=False):
    """The NumPy arrays inside arrays of a kind, also in lists, tuples and dictionaries; TypeError for an array of another kind."""
    if isinstance(x, kind):
        return x._array
    if isinstance(x, np.ndarray | StrictArray) and not (numpy_too and isinstance(x, np.ndarray)):
        raise TypeError(f"Unsupported type {type(x)}")
    if isinstance(x, list | tuple):
        return type(x)(unwrap(kind, item, numpy_too) for item in x)
    if isinstance(x, dict):
        return {name: unwrap(kind, item, numpy_too) for name, item in x.items()}
    return x


def wrap(kind, y, *givers):
    """A result as an array of a kind: one of the givers where it is theirs, or a view with its base, or a new array on their device."""
    if isinstance(y, list | tuple):
        parts = [wrap(kind, part, *givers) for part in y]
        return type(y)(*parts) if hasattr(y, "_fields") else type(y)(parts)
    if not isinstance(y, np.ndarray | np.generic):
        return y
    givers = list(arrays_in(givers))
    number = the_device(kind, givers)
    for giver in givers:
        if y is giver._array:
            return giver
    y = np.asarray(y)
    owner = next((giver for giver in givers if root(y) is root(giver._array)), None)
    if owner is None:
        return kind._new(y, number)
    return kind(y, number, owner if owner._base is None else owner._base)


def the_device(kind, givers):
    """The number of the device on which all the givers are."""
    numbers = {giver._number for giver in givers} or {kind._here()}
    if len(numbers) > 1:
        raise ValueError(f"Arrays of several strict devices in one call: {sorted(numbers)}")
    return numbers.pop()


def arrays_in(xs):
    """The arrays of a device among these, also in lists and tuples."""
    for x in xs:
        if isinstance(x, StrictArray):
            yield x
        elif isinstance(x, list | tuple):
            yield from arrays_in(x)


def root(array):
    """The object that owns an array's memory, at the end of the chain of views."""
    while getattr(array, "base", None) is not None:
        array = array.base
    return array


@functools.cache
def _find(kind, name):
    """What CuPy calls `name`, made of what NumPy calls so, for arrays of a kind."""
    if name not in NAMES:
        raise AttributeError(f"CuPy has no {name}")
    real = operator.attrgetter(name)(np)
    return kind if real is np.ndarray else real if NAMES[name] is None else Call(kind, name, real)


class Module:
    """The module that `backend.of` gives for an array of a kind, or a part of it, such as linalg."""

    __name__ = "strict"

    def __init__(self, kind, place=""):
        self._kind, self._place = kind, place

    def __getattr__(self, name):
        full = self._place + name
        if name.startswith("__"):
            raise AttributeError(name)
        return Module(self._kind, full + ".") if any(known.startswith(full + ".") for known in PARTS) else _find(self._kind, full)


PARTS = ("fft.", "linalg.", "lib.", "lib.stride_tricks.")

for _name, _arguments in NAMES.items():
    _of, _, _short = _name.partition(".")
    if _of == "ndarray" and _short and not hasattr(StrictArray, _short):
        setattr(StrictArray, _short, _attribute(_short) if _arguments is None else _method(_short))
for _name in ["add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "divmod", "matmul", "and", "or", "xor", "lshift", "rshift"]:
    setattr(StrictArray, f"__{_name}__", _operator(f"__{_name}__"))
    setattr(StrictArray, f"__r{_name}__", _operator(f"__r{_name}__"))
    if _name not in ("divmod", "matmul"):
        setattr(StrictArray, f"__i{_name}__", _operator(f"__i{_name}__"))
for _name in ["neg", "pos", "abs", "invert", "eq", "ne", "lt", "le", "gt", "ge"]:
    setattr(StrictArray, f"__{_name}__", _operator(f"__{_name}__"))


def _asarray(x, device):
    number = int(device.partition(":")[2] or 0)
    return StrictArray((x._array if isinstance(x, StrictArray) else np.asarray(x)).copy(), number)


xp = Module(StrictArray)
backend.register(backend.Library("strict", xp, StrictArray, lambda x: f"strict:{x._number}", _asarray, StrictArray.get, lambda: None))
