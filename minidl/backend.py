"""The array decides: which library made an array, and on which device it lies.

There is no global device. `of(x)` gives NumPy or CuPy by the type of x, and operations call that library by the name `xp`. Only this
file ever imports CuPy, and only once a CuPy array or a CUDA device turns up; what a Library is stands in library.py, and CuPy's in
backend_cupy.py. A third can be added with `register`; the tests add one that wraps NumPy and is as strict as CuPy. No mathematics here.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from minidl import backend_cupy
from minidl.errors import ArgumentError, DeviceError, DtypeError
from minidl.library import Array, Library, Memory, ordinal

SCALARS = (bool, int, float)        # Python numbers: they take the dtype of the array beside them

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
    library = backend_cupy.library(cupy)
    register(library)
    return library


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
    if kind == "cuda" and ordinal(name) >= (count := gpus(name)):
        raise DeviceError(f"{name}: this machine has {count} CUDA device(s)", hint='The first one is "cuda:0".')
    return kind if kind == "cpu" else f"{kind}:{ordinal(name)}"


def gpus(asker: str = "cuda") -> int:
    """How many CUDA devices this process sees. DeviceError, which names whoever asks, without a usable one."""
    library = _by_name.get("cuda") or _load_cupy()
    try:
        return int(library.xp.cuda.runtime.getDeviceCount())
    except Exception as error:              # CuPy's own error type is only there with CuPy
        raise DeviceError(f"{asker}: CuPy finds no usable GPU ({error})",
                          hint="Check the driver with nvidia-smi, or use the device cpu.") from None


def asarray(x: Any, device: str = "cpu") -> Array:
    """An array on a device: x itself if it lies there already, else a copy.

    x: an array of any library, or what numpy.asarray takes. device: "cpu", "cuda:0", ... Of several GPUs the one that was asked for last
    is this thread's: what is made beside the arrays of a model must lie where they do. `on` says so for a block.
    """
    device = named_device(device)
    if is_array(x) and device_of(x) == device:
        return x
    return _by_name[device.partition(":")[0]].asarray(to_numpy(x), device)


def to_numpy(x: Any) -> np.ndarray:
    """x as a NumPy array; an array on a GPU is copied, a NumPy array is given back as it is."""
    return library_of(x).to_numpy(x) if is_array(x) else np.asarray(x)


def fetched(arrays: Sequence[Array]) -> list[np.ndarray]:
    """These arrays as NumPy's. Those of a device and a dtype come in one read: each read waits for all that the device is doing."""
    found: list[Any] = [x if isinstance(x, np.ndarray) else None for x in arrays]
    together: dict[Any, list[int]] = {}
    for k, x in enumerate(arrays):
        if found[k] is None:
            together.setdefault((device_of(x), x.dtype), []).append(k)
    for members in together.values():
        row = to_numpy(of(arrays[members[0]]).concatenate([arrays[k].reshape(-1) for k in members]))
        ends = np.cumsum([arrays[k].size for k in members])
        for k, part in zip(members, np.split(row, ends[:-1])):
            found[k] = part.reshape(arrays[k].shape)
    return found


def is_float(dtype: Any) -> bool:
    """Whether a dtype is of floating-point numbers: one of NumPy's, or bfloat16, which NumPy takes for bytes.

    >>> is_float(np.dtype("float16")), is_float(np.dtype("int64"))
    (True, False)
    """
    return dtype.kind == "f" or dtype.name == "bfloat16"


def is_half(dtype: Any) -> bool:
    """Whether a dtype is float16 or bfloat16: numbers that are stored in 16 bits, and computed with in float32."""
    return dtype.itemsize == 2 and is_float(dtype)


def wide(x: Any) -> Any:
    """x, or its copy in float32 where its numbers have 16 bits. An array or a Tensor; anything else as it is."""
    return x.astype("float32") if hasattr(x, "dtype") and is_half(x.dtype) else x


def dtype_named(name: Any) -> np.dtype:
    """A dtype by its name, also "bfloat16". DtypeError if there is none, or its package is missing.

    >>> dtype_named("float16")
    dtype('float16')
    """
    if isinstance(name, str) and name == "bfloat16":
        try:
            return np.dtype(importlib.import_module("ml_dtypes").bfloat16)
        except ImportError:
            raise DtypeError("bfloat16 is not one of NumPy's types: ml_dtypes brings it",
                             hint="Install it: pip install 'minidl[precision]'.") from None
    try:
        return np.dtype(name)
    except TypeError:
        raise DtypeError(f"{name!r} is not a type of numbers", hint='For example "float32", "float16" or "bfloat16".') from None


def library_named(device: str) -> Library:
    """The Library that a device belongs to."""
    return _by_name[named_device(device).partition(":")[0]]


def on(device: str) -> AbstractContextManager:
    """Within the block this is the thread's device, of several GPUs."""
    streams = library_named(device).streams
    return nullcontext() if streams is None else streams.on(device)


def synchronize(device: str) -> None:
    """Wait until everything asked of a device is done, by this thread. On the CPU there is nothing to wait for."""
    with on(device):
        library_named(device).synchronize()


def memory(device: str) -> Memory | None:
    """How much of a device's memory is taken, now; None where that is not known, as of the CPU."""
    tell = library_named(device).memory
    return None if tell is None else tell(named_device(device))


def peak_memory(device: str) -> int:
    """The most bytes that this process has held on a device so far, with what was kept for the next arrays; 0 where that is not known."""
    found = memory(device)
    return 0 if found is None else found.peak


def limit_memory(device: str, size: int) -> None:
    """Hold no more than so many bytes on a device from now on, with what is kept for the next arrays; 0: as many as there are.

    ArgumentError for a device without a limit, such as the CPU, a negative size, or one that is taken already.
    """
    limit, taken = library_named(device).limit, memory(device)
    if limit is None or taken is None:
        raise ArgumentError(f"limit_memory: the memory of {device} has no limit of minidl's",
                            hint="It is for GPUs. For the CPU there is the shell: ulimit -v, in KiB.")
    if size < 0 or 0 < size < taken.used:
        raise ArgumentError(f"limit_memory: {size} bytes of {device}", taken=taken.used, hint="Give more than is taken, or 0 for no limit.")
    limit(named_device(device), size)


def watched(device: str) -> AbstractContextManager[Callable[..., int]] | None:
    """Within the block: a function that tells how many bytes this thread's arrays have taken since; with most=True the most since it was
    asked so last. None where a device does not tell.
    """
    watch = library_named(device).watch
    return None if watch is None else watch(named_device(device))


def generator(seed: int | np.random.Generator | np.random.SeedSequence | None = None) -> np.random.Generator:
    """A random generator on the CPU, where all weights and all orders are drawn, so that every device sees the same numbers.

    seed: an int, a SeedSequence (`spawn` one a rank or worker), a generator (given back as it is), or None for a fresh one.
    """
    return np.random.default_rng(seed)
