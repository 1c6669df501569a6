"""The strict device: NumPy behind a counter, as strict as a GPU, so that the GPU path stays honest on machines without one.

A StrictArray holds a NumPy array. Like a CuPy array it refuses to be mixed with NumPy arrays, or to become one unasked; reductions and
indexing give 0-d arrays, never scalars; and it has only the methods, functions and arguments that CuPy has, which are listed in
cupy_names.txt. So an `np.` where an `xp.` belongs fails on every machine. In one thing it is stricter than CuPy, which answers
`numpy.sum(x)` where it can: here no NumPy function takes a StrictArray.

Importing this file makes the devices "strict:0", "strict:1", ... known to minidl.
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
        if array.dtype.char not in "?bhilqBHILQefdFD":
            raise ValueError(f"Unsupported dtype {array.dtype}")
        self._array, self._number, self._base = array, number, base

    base = property(lambda self: self._base)
    T = property(lambda self: wrap(self._array.T, self))

    @property
    def flags(self):
        flags = self._array.flags
        return SimpleNamespace(c_contiguous=flags.c_contiguous, f_contiguous=flags.f_contiguous, owndata=self._base is None)

    def get(self):
        return self._array.copy()

    def __getitem__(self, key):
        key = unwrap(key)
        found = self._array[key]
        if isinstance(found, np.generic):                   # CuPy gives a view of the one number
            found = self._array[(*key, ...) if isinstance(key, tuple) else (key, ...)]
        return wrap(found, self)

    def __setitem__(self, key, value):
        self._array[unwrap(key)] = unwrap(value)

    def __len__(self):
        return len(self._array)

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def __bool__(self):
        return bool(self._array)

    def __int__(self):
        return int(self._array)

    def __float__(self):
        return float(self._array)

    def __repr__(self):
        return f"Strict{self._array!r}"

    def __copy__(self):
        return self.copy()

    def __deepcopy__(self, memo):
        return self.copy()

    def __reduce__(self):
        return StrictArray, (self._array, self._number)

    def __array__(self, dtype=None, copy=None):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()` to construct a NumPy array explicitly.")

    def __array_function__(self, function, types, args, kwargs):
        raise TypeError(f"numpy.{function.__name__} was given a StrictArray: the library of an array is backend.of(x)")


def _attribute(name):
    return property(lambda self: getattr(self._array, name))


def _method(name):
    call = Call(f"ndarray.{name}", getattr(np.ndarray, name))

    def method(self, *args, **kwargs):
        call.check(args, kwargs)
        return call.run((self, *args), kwargs)
    return method


def _operator(name):
    real = getattr(np.ndarray, name)

    def method(self, *others):
        for other in others:
            if not isinstance(other, StrictArray) and getattr(type(other), "__array_ufunc__", real) is None:
                return NotImplemented                       # a Tensor: it knows better
        return wrap(real(self._array, *unwrap(others)), self, *others)
    return method


class Call:
    """A function of CuPy: only arguments that CuPy takes go in, and arrays of the strict device come out."""

    def __init__(self, name, real):
        self.name, self.real, self.arguments = name, real, NAMES[name]
        self.__name__ = self.__qualname__ = name

    def __call__(self, *args, **kwargs):
        self.check(args, kwargs)
        return self.run(args, kwargs)

    def __getattr__(self, method):
        return _find(f"{self.name}.{method}")

    def check(self, args, kwargs):
        named = [a.lstrip("*") for a in self.arguments]
        for unknown in set(kwargs) - set(named) if "**kwargs" not in self.arguments else ():
            raise TypeError(f"cupy.{self.name} has no argument {unknown!r}")
        if len(args) > len(named) and not any(a.startswith("*") for a in self.arguments):
            raise TypeError(f"cupy.{self.name} takes {len(named)} arguments, and {len(args)} are given")
        for argument, x in zip(named, args):
            if argument in ("a", "x", "x1", "x2") and isinstance(x, list | tuple) and self.name not in EXPLICIT:
                raise TypeError(f"Unsupported type {type(x)}")

    def run(self, args, kwargs):
        take = functools.partial(unwrap, numpy_too=self.name in EXPLICIT)
        y = self.real(*take(args), **take(kwargs))
        if self.name == "count_nonzero":                        # a Python number from older NumPys
            y = np.asarray(y)
        if self.name == "broadcast_to":                         # CuPy's can be written to
            y = np.lib.stride_tricks.as_strided(take(args)[0], y.shape, y.strides)
        return wrap(y, *args, *kwargs.values())


def unwrap(x, numpy_too=False):
    """The NumPy arrays inside StrictArrays, also in lists, tuples and dictionaries; TypeError for a bare NumPy array."""
    if isinstance(x, StrictArray):
        return x._array
    if isinstance(x, np.ndarray) and not numpy_too:
        raise TypeError(f"Unsupported type {type(x)}")
    if isinstance(x, list | tuple):
        return type(x)(unwrap(item, numpy_too) for item in x)
    if isinstance(x, dict):
        return {name: unwrap(item, numpy_too) for name, item in x.items()}
    return x


def wrap(y, *givers):
    """A result as a StrictArray: one of the givers where it is theirs, or a view with its base, or a new array on their device."""
    if isinstance(y, list | tuple):
        parts = [wrap(part, *givers) for part in y]
        return type(y)(*parts) if hasattr(y, "_fields") else type(y)(parts)
    if not isinstance(y, np.ndarray | np.generic):
        return y
    givers = list(_arrays(givers))
    numbers = {giver._number for giver in givers} or {0}
    if len(numbers) > 1:
        raise ValueError(f"Arrays of several strict devices in one call: {sorted(numbers)}")
    for giver in givers:
        if y is giver._array:
            return giver
    y = np.asarray(y)
    owner = next((giver for giver in givers if _root(y) is _root(giver._array)), None)
    if owner is not None and owner._base is not None:
        owner = owner._base
    return StrictArray(y, numbers.pop(), owner)


def _arrays(xs):
    for x in xs:
        if isinstance(x, StrictArray):
            yield x
        elif isinstance(x, list | tuple):
            yield from _arrays(x)


def _root(array):
    """The object that owns an array's memory, at the end of the chain of views."""
    while getattr(array, "base", None) is not None:
        array = array.base
    return array


@functools.cache
def _find(name):
    """What CuPy calls `name`, made of what NumPy calls so."""
    if name not in NAMES:
        raise AttributeError(f"CuPy has no {name}")
    real = operator.attrgetter(name)(np)
    return StrictArray if real is np.ndarray else real if NAMES[name] is None else Call(name, real)


class Module:
    """The module that `backend.of` gives for a StrictArray, or a part of it, such as linalg."""

    __name__ = "strict"

    def __init__(self, place=""):
        self._place = place

    def __getattr__(self, name):
        full = self._place + name
        if name.startswith("__"):
            raise AttributeError(name)
        return Module(full + ".") if any(known.startswith(full + ".") for known in PARTS) else _find(full)


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


xp = Module()
backend.register(backend.Library("strict", xp, StrictArray, lambda x: f"strict:{x._number}", _asarray, StrictArray.get, lambda: None))
