"""The array decides: which library made an array, and on which device it lies.

There is no global device. `of(x)` gives NumPy or CuPy by the type of x, and operations call that library by the name `xp`. Only this
file ever imports CuPy, and only once a CuPy array or a CUDA device turns up. A third library can be added with `register`; the tests
add one that wraps NumPy and is as strict as CuPy. No mathematics here.
"""

from __future__ import annotations

import importlib
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from minidl.errors import ArgumentError, DeviceError

Array = Any                         # numpy.ndarray or cupy.ndarray: two classes with one face
SCALARS = (bool, int, float)        # Python numbers: they take the dtype of the array beside them


@dataclass(frozen=True)
class Library:
    """An array library, and what minidl must know beside its NumPy-like face."""

    name: str                                           # what its devices are called: "cpu", or "cuda" for "cuda:0"
    xp: types.ModuleType | Any                          # the module that holds zeros, exp, ...
    array: type                                         # its array type
    device_of: Callable[[Array], str]
    asarray: Callable[[Any, str], Array]                # (NumPy array or own array, device) to an array on that device
    to_numpy: Callable[[Array], np.ndarray]
    synchronize: Callable[[], None]
    event: Callable[[], Any] | None = None              # a mark among what the device does; None where calls come back when all is done
    elapsed: Callable[[Any, Any], float] | None = None  # milliseconds from one mark to another, once the device has come by both
    peak_memory: Callable[[], int] = lambda: 0          # the most bytes that arrays have taken
    kernels: str = ""                                   # which twins in kernels/ take its arrays, beside the reference: "cuda"


_by_type: dict[type, Library] = {}
_by_name: dict[str, Library] = {}


def register(library: Library) -> None:
    """Make a library known: from now on `of` recognises its arrays and `asarray` its devices."""
    _by_type[library.array] = library
    _by_name[library.name] = library


register(Library("cpu", np, np.ndarray, lambda x: "cpu", lambda x, device: np.asarray(x), lambda x: x, lambda: None))


def _load_cupy() -> Library:
    hint = "Install the extra for your CUDA version: pip install 'minidl[cuda12]' or 'minidl[cuda13]'."
    try:
        cupy = importlib.import_module("cupy")
    except ImportError as error:
        raise DeviceError(f"cuda: CuPy cannot be imported ({error})", hint=hint) from None

    def asarray(x: Any, device: str) -> Array:
        with cupy.cuda.Device(_number(device)):
            return cupy.asarray(x)

    def synchronize() -> None:
        cupy.cuda.get_current_stream().synchronize()

    def event() -> Any:
        mark = cupy.cuda.Event()
        mark.record()
        return mark

    def elapsed(first: Any, last: Any) -> float:
        last.synchronize()
        return float(cupy.cuda.get_elapsed_time(first, last))

    library = Library("cuda", cupy, cupy.ndarray, lambda x: f"cuda:{x.device.id}", asarray, cupy.asnumpy, synchronize, event, elapsed,
                      lambda: cupy.get_default_memory_pool().total_bytes(), kernels="cuda")
    register(library)
    return library


def _number(device: str) -> int:
    return int(device.partition(":")[2] or 0)


def library_of(x: Array) -> Library:
    """The Library of an array. DeviceError if x is no array."""
    library = _by_type.get(type(x))
    if library is not None:
        return library
    if type(x).__module__.partition(".")[0] == "cupy":
        _load_cupy()
    for kind in type(x).__mro__:                        # a subclass, such as numpy.memmap, is its parent's
        if kind in _by_type:
            return _by_type[kind]
    if isinstance(x, np.generic):
        return _by_name["cpu"]
    raise DeviceError(f"{type(x).__name__} is not an array of a known library ({', '.join(sorted(_by_name))})",
                      hint="Make an array of it first: numpy.asarray(x), or minidl.Tensor(x).")


def of(x: Array) -> Any:
    """The library that made an array: NumPy or CuPy, as a module.

    x: an array, or a NumPy scalar. DeviceError if it is neither.

    >>> of(np.zeros(3)).__name__
    'numpy'
    """
    return library_of(x).xp


def is_array(x: Any) -> bool:
    """Whether x is an array of a known library (lists and numbers are not)."""
    try:
        return library_of(x) is not None and not isinstance(x, np.generic)
    except DeviceError:
        return False


def device_of(x: Array) -> str:
    """The device on which an array lies: "cpu", "cuda:0", ...

    >>> device_of(np.zeros(3))
    'cpu'
    """
    return library_of(x).device_of(x)


def named_device(name: str) -> str:
    """The full name of a device ("cuda" is "cuda:0"), after a look whether it is there.

    name: "cpu", "cuda" or "cuda:N". ArgumentError for another name; DeviceError where the device is missing, with the reason.
    """
    kind, _, number = name.partition(":")
    if kind == "cuda" and "cuda" not in _by_name:
        _load_cupy()
    if kind not in _by_name or (number and not number.isdigit()) or (kind == "cpu" and number):
        raise ArgumentError(f"device {name!r} is not known", hint='Devices are named "cpu", "cuda:0", "cuda:1", ...')
    if kind == "cuda":
        try:
            count = _by_name["cuda"].xp.cuda.runtime.getDeviceCount()
        except Exception as error:          # CuPy's own error type is only there with CuPy
            raise DeviceError(f"{name}: CuPy finds no usable GPU ({error})",
                              hint="Check the driver with nvidia-smi, or use the device cpu.") from None
        if _number(name) >= count:
            raise DeviceError(f"{name}: this machine has {count} CUDA device(s)", hint='The first one is "cuda:0".')
    return kind if kind == "cpu" else f"{kind}:{_number(name)}"


def asarray(x: Any, device: str = "cpu") -> Array:
    """An array on a device: x itself if it lies there already, else a copy.

    x: an array of any library, or what numpy.asarray takes. device: "cpu", "cuda:0", ...
    """
    device = named_device(device)
    if is_array(x) and device_of(x) == device:
        return x
    return _by_name[device.partition(":")[0]].asarray(to_numpy(x), device)


def to_numpy(x: Any) -> np.ndarray:
    """x as a NumPy array; an array on a GPU is copied, a NumPy array is given back as it is."""
    return library_of(x).to_numpy(x) if is_array(x) else np.asarray(x)


def synchronize(device: str) -> None:
    """Wait until everything asked of a device is done. On the CPU there is nothing to wait for."""
    _by_name[named_device(device).partition(":")[0]].synchronize()


def peak_memory(device: str) -> int:
    """The most bytes that arrays have taken on a device so far, with what its library keeps for the next ones; 0 for the CPU."""
    return _by_name[named_device(device).partition(":")[0]].peak_memory()


def generator(seed: int | np.random.Generator | np.random.SeedSequence | None = None) -> np.random.Generator:
    """A random generator on the CPU, where all weights and all orders are drawn, so that every device sees the same numbers.

    seed: an int, a SeedSequence (`spawn` one a rank or worker), a generator (given back as it is), or None for a fresh one.
    """
    return np.random.default_rng(seed)
