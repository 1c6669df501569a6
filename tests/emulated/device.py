"""Arrays of the emulated GPU: those of the strict device, in memory of their own, on streams.

What NumPy computes is computed on the current stream; where that one captures, it is noted, and computed when the graph is launched.
"""

import functools
from types import SimpleNamespace

import numpy as np

from emulated import memory, streams
from emulated.memory import CUDARuntimeError
from strict import EXPLICIT, StrictArray, arrays_in, refuse_bfloat16, the_device, unwrap

# While a stream captures, CuPy cannot do these: the host must know what comes out, or they are cuBLAS's or cuSOLVER's
WAIT = {"argwhere", "bincount", "compress", "extract", "flatnonzero", "histogram", "ndarray.item", "ndarray.nonzero", "ndarray.tolist",
        "nonzero", "unique"}
MASKED = ("ndarray.__getitem__", "ndarray.__setitem__")         # with a mask CuPy counts what is chosen, also where it writes one number
TOGETHER = 8                            # arrays whose places are arguments of a launch: where more are joined, a table is copied there
PRODUCTS = {"dot", "einsum", "inner", "matmul", "ndarray.__matmul__", "ndarray.__rmatmul__", "ndarray.dot", "tensordot", "vdot"}


class EmulatedArray(StrictArray):
    """An array of the emulated device."""

    __slots__ = ("_memory",)
    __module__ = "emulated"                                 # the package, as CuPy's says of itself

    def __init__(self, array, number=0, base=None):
        super().__init__(array, number, base)
        if base is None and not hasattr(self, "_memory"):
            self._place(array)

    def _place(self, array, empty=False):
        """Move into memory of the device: dense, with the axes in the same order."""
        with Device(self._number):
            self._memory = memory.alloc(array.nbytes).mem
        self._array = np.ndarray(array.shape, array.dtype, self._memory.bytes, strides=np.empty_like(array).strides)
        if not empty:
            self._array[...] = array

    _owner = property(lambda self: self if self._base is None else self._base)
    device = property(lambda self: Device(self._number))

    @property
    def data(self):
        mem = self._owner._memory
        return memory.MemoryPointer(mem, memory.address(self._array) - mem.ptr)

    @classmethod
    def _here(cls):
        return memory.device()

    @classmethod
    def _call(cls, name, real, args, kwargs):
        stream = streams.get_current_stream()
        empty = name in ("empty", "empty_like")
        if stream.capture:
            return cls._noted(stream.capture, name, real, args, kwargs, empty)
        stream.ready()
        if not empty:
            return super()._call(name, real, args, kwargs)
        y = real(*unwrap(cls, args), **unwrap(cls, kwargs))
        return cls._empty(y, the_device(cls, list(arrays_in([*args, *kwargs.values()]))))

    @classmethod
    def _empty(cls, like, number):
        x = cls.__new__(cls)
        x._number, x._base = number, None
        x._place(like, empty=True)
        return x

    @classmethod
    def _noted(cls, capture, name, real, args, kwargs, empty):
        """Note an operation for the graph. Gives arrays of what would come out, whose numbers are not there."""
        refuse_bfloat16(name, args, kwargs)
        _refuse(capture, name, args)
        givers = list(arrays_in([*args, *kwargs.values()]))
        number, seen = the_device(cls, givers), {id(x): capture.seen(x) for x in givers}
        targets, pieces = [], [x._owner._memory.memory for x in givers]

        def shown(x):
            return _mapped(cls, x, lambda array: seen[id(array)])

        def meant(i, part):
            for x in givers:
                if part is seen[id(x)]:
                    return x
            part = np.asarray(part)
            there = capture.meant(part)
            if there is not None:
                owner = next(x._owner for x in givers if x._owner._memory.bytes is there[0])
                return cls(there[1], number, owner)
            x = cls._empty(part, number)
            if not empty:
                capture.seen(x)[...] = part
                targets.append((i, x._array))
                pieces.append(x._memory.memory)
            return x

        with np.errstate(all="ignore"):
            y = real(*shown(args), **shown(kwargs))
        unwrap(cls, args), unwrap(cls, kwargs)              # arrays of another kind are refused
        parts = _parts(y)
        results = iter([meant(i, part) for i, part in enumerate(parts)])
        given, named = _mapped(cls, args, lambda x: x._array), _mapped(cls, kwargs, lambda x: x._array)

        def run():
            again = _parts(real(*given, **named))
            for i, target in targets:
                target[...] = again[i]
        capture.steps.append((run, pieces))
        return _rebuilt(y, results)

    def _read(self):
        streams.wait_for_host()
        return self._array

    def get(self, stream=None, order="C", out=None, blocking=True):
        stream = stream or streams.get_current_stream()
        if out is None:
            out, free = np.empty(self.shape, self.dtype, "F" if order == "F" else "C"), False
        else:
            if not isinstance(out, np.ndarray):
                raise TypeError("Only numpy.ndarray can be obtained from cupy.ndarray")
            if out.dtype != self.dtype or out.shape != self.shape or not out.flags.c_contiguous:
                raise ValueError(f"out is {out.dtype} {out.shape}, the array is {self.dtype} {self.shape}; or out is not contiguous")
            free = not blocking and memory.is_pinned(memory.address(out), out.nbytes)
        mine = self._array if self._array.flags.c_contiguous or not free else self.copy()._array
        if free:
            stream.later(functools.partial(np.copyto, out, mine))
        else:
            stream.synchronize()
            np.copyto(out, mine)
        return out

    def set(self, arr, stream=None):
        if not isinstance(arr, np.ndarray):
            raise TypeError("Only numpy.ndarray can be set to cupy.ndarray")
        if arr.dtype != self.dtype:
            raise TypeError(f"{arr.dtype} array cannot be set to {self.dtype} array")
        if arr.shape != self.shape:
            raise ValueError(f"Shape mismatch. Old shape: {self.shape}, new shape: {arr.shape}")
        if not self._array.flags.c_contiguous:
            raise RuntimeError("Cannot set to non-contiguous array")
        stream = stream or streams.get_current_stream()
        if memory.is_pinned(memory.address(arr), arr.nbytes) and arr.flags.c_contiguous:
            stream.later(functools.partial(np.copyto, self._array, arr))
        else:
            stream.synchronize()
            np.copyto(self._array, arr)


def _refuse(capture, name, args):
    """Raise what CuPy raises where it cannot capture."""
    if name in PRODUCTS or name.startswith("linalg."):
        raise NotImplementedError("calling cuBLAS or cuSOLVER API during stream capture is currently unsupported")
    masked = name in MASKED and any(x.dtype == bool and x.ndim for x in arrays_in(args[1] if isinstance(args[1], tuple) else [args[1]]))
    many = name == "concatenate" and len(args[0]) > TOGETHER
    if masked or many or name in WAIT or (name in EXPLICIT and not isinstance(args[0], StrictArray)):
        capture.wrong = True
        raise CUDARuntimeError(streams.UNSUPPORTED)


def _mapped(kind, x, function):
    """x with what a function makes of each array in it."""
    if isinstance(x, kind):
        return function(x)
    if isinstance(x, list | tuple):
        return type(x)(_mapped(kind, item, function) for item in x)
    if isinstance(x, dict):
        return {name: _mapped(kind, item, function) for name, item in x.items()}
    return x


def _parts(y):
    """The arrays of a result, in order."""
    if isinstance(y, list | tuple):
        return [part for item in y for part in _parts(item)]
    return [y] if isinstance(y, np.ndarray | np.generic) else []


def _rebuilt(y, parts):
    """A result with other parts in the place of its arrays."""
    if isinstance(y, list | tuple):
        items = [_rebuilt(item, parts) for item in y]
        return type(y)(*items) if hasattr(y, "_fields") else type(y)(items)
    return next(parts) if isinstance(y, np.ndarray | np.generic) else y


COUNT = 2                               # devices


class Device:
    """One of the devices; within a `with` block it is the thread's."""

    def __init__(self, device=None):
        self.id = memory.device() if device is None else int(device)
        if not 0 <= self.id < COUNT:
            raise CUDARuntimeError("cudaErrorInvalidDevice: invalid device ordinal")
        self._outer = []

    def __enter__(self):
        self._outer.append(memory.device())
        memory.current.device = self.id
        return self

    def __exit__(self, *_):
        memory.current.device = self._outer.pop()

    def use(self):
        memory.current.device = self.id

    def synchronize(self):
        for stream in list(streams._by_ptr.values()):
            if stream.device_id in (-1, self.id):
                stream.synchronize()

    def __eq__(self, other):
        return isinstance(other, Device) and self.id == other.id

    def __hash__(self):
        return hash(self.id)

    def __int__(self):
        return self.id

    def __repr__(self):
        return f"<CUDA Device {self.id}>"

    @property
    def mem_info(self):
        with self:
            return memory.mem_info()

    compute_capability = "90"
    attributes = SimpleNamespace()
