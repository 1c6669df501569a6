"""The twins of kernels/cuda, each held against its reference on what cuda_cases.py draws for it: on the emulated GPU, and on a real one.

The reference runs in float64 on the same numbers, rounded to the dtype that is tested. What is common is said once: numbers; the same bits
whoever of the threads and blocks comes first; places counted in 64 bits; arguments left as they were.
"""

import numpy as np
import pytest

import emulated
from cases import ORDERS
from cuda_cases import TABLE, reference
from devices import GPUS
from draws import Draw
from minidl import backend, kernels
from minidl.kernels import cuda
from minidl.kernels.cuda import source
from strict import root

EPS = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
TINY = {"float64": 0, "float32": 0, "float16": 2.0**-24, "bfloat16": 0}         # between two numbers next to 0


def numbers(name):
    return backend.dtype_named(name)


def arguments(entry, example, dtype):
    """The arguments of an example, as NumPy arrays of a dtype."""
    case = TABLE[entry]
    args = case.draw(Draw(entry, example, case.spoilt))
    beside = () if numbers(dtype).itemsize != 2 else case.apart + case.beside if example % 2 else case.apart
    return [arg if i in beside else cast(arg, numbers(dtype)) for i, arg in enumerate(args)]


def cast(x, dtype):
    """Float arrays as another dtype, in the memory order that they have; also those in lists and tuples."""
    if isinstance(x, list | tuple) and type(x) in (list, tuple):
        return type(x)(cast(item, dtype) for item in x)
    if not isinstance(x, np.ndarray) or not backend.is_float(x.dtype):
        return x
    base = root(x)
    flat = base.ravel("K") if base.dtype == x.dtype else base.view(x.dtype).ravel("K")
    first = (x.__array_interface__["data"][0] - flat.__array_interface__["data"][0]) // x.itemsize
    strides = [s // x.itemsize * dtype.itemsize for s in x.strides]
    with np.errstate(over="ignore", invalid="ignore"):
        return np.lib.stride_tricks.as_strided(flat.astype(dtype)[first:], x.shape, strides)


def there(x, device):
    """Arrays on a device, in the same memory order; also those in lists and tuples."""
    if isinstance(x, list | tuple) and type(x) in (list, tuple):
        return type(x)(there(item, device) for item in x)
    if not isinstance(x, np.ndarray):
        return x
    base = root(x)
    flat = base.view(x.dtype).ravel("K")
    first = (x.__array_interface__["data"][0] - flat.__array_interface__["data"][0]) // x.itemsize
    y = backend.asarray(flat, device)
    return backend.of(y).lib.stride_tricks.as_strided(y[first:], x.shape, x.strides)


def arrays(x):
    """All arrays of a result, in order."""
    if isinstance(x, list | tuple):
        return [y for item in x for y in arrays(item)]
    return [np.asarray(backend.to_numpy(x))] if backend.is_array(x) or isinstance(x, np.generic) else []


def run(entry, args):
    """What the twin gives, or else what it has written to, as NumPy arrays; None where it has declined."""
    case = TABLE[entry]
    with case.within():
        found = case.twin(cuda.TWINS[case.kernel], *args)
    if found is NotImplemented:
        assert case.declines(*args) or (backend.is_array(args[0]) and args[0].size == 0), "the twin has declined"
        return None
    return arrays([args[i] for i in case.writes]) if case.writes else arrays(found)


def expected(entry, example, dtype):
    """The same by the reference, in float64."""
    case = TABLE[entry]
    args = arguments(entry, example, dtype)
    if case.product:
        args[1] = cast(args[1], numbers(dtype))
    args = cast(args, np.dtype("float64"))
    with np.errstate(all="ignore"):
        found = reference(case)(*args)
    return arrays([args[i] for i in case.writes]) if case.writes else arrays(found)


def check(entry, example, dtype, device):
    """Hold one example against the reference."""
    case = TABLE[entry]
    found = run(entry, there(arguments(entry, example, dtype), device))
    if found is None:
        return
    wanted = expected(entry, example, dtype)
    assert len(found) == len(wanted)
    for i, (mine, theirs) in enumerate(zip(found, wanted)):
        assert mine.shape == theirs.shape
        if not backend.is_float(theirs.dtype):
            np.testing.assert_array_equal(mine, theirs)
            continue
        narrow = numbers(dtype).itemsize == 2
        assert mine.dtype == (numbers("float32") if narrow and (case.wide or (i and not case.writes)) else numbers(dtype)) or case.writes
        exact = case.units * EPS["float32" if narrow else dtype]
        rough = case.halves * EPS[dtype] if narrow and mine.itemsize == 2 else 0
        largest = np.abs(theirs[np.isfinite(theirs)]).max(initial=0)
        mine, close = mine.astype(np.float64), exact * largest + TINY[dtype]
        if narrow and dtype == "float16":                                       # what is too large for it
            theirs = np.where(np.abs(theirs) >= 65520, np.copysign(np.inf, theirs), theirs)
        np.testing.assert_allclose(mine, theirs, rtol=exact + rough, atol=close)


every_device = pytest.mark.parametrize("device", GPUS or [pytest.param("", marks=pytest.mark.skip(reason=emulated.WHY_NOT))])
every_example = pytest.mark.parametrize(("entry", "dtype", "example"), [
    (entry, dtype, i) for entry, case in TABLE.items() for dtype in case.dtypes for i in range(case.examples)])
a_few = pytest.mark.parametrize(("entry", "example"), [(entry, i) for entry in TABLE for i in (1, 5)])


@every_device
@every_example
def test_numbers(entry, dtype, example, device):
    check(entry, example, dtype, device)


@every_device
@a_few
def test_places_in_64_bits(entry, example, device, monkeypatch):
    monkeypatch.setattr(source, "FAR", 0)
    check(entry, example, "float32", device)


@pytest.mark.skipif(bool(emulated.WHY_NOT), reason=emulated.WHY_NOT)
@a_few
def test_bits_do_not_depend_on_who_comes_first(entry, example):
    found = run(entry, there(arguments(entry, example, "float32"), "emulated:0"))
    with emulated.backwards():
        again = run(entry, there(arguments(entry, example, "float32"), "emulated:0"))
    for a, b in zip(found or [], again or []):
        assert a.tobytes() == b.tobytes()


@every_device
@a_few
def test_arguments_are_left_as_they_were(entry, example, device):
    args, writes = arguments(entry, example, "float32"), TABLE[entry].writes
    given = there(args, device)
    run(entry, given)
    for i, (a, b) in enumerate(zip(given, args)):
        if i not in writes:
            for mine, before in zip(arrays([a]), arrays([b])):
                assert mine.tobytes() == before.tobytes()


def test_every_twin_has_a_case():
    assert set(cuda.TWINS) == {case.kernel for case in TABLE.values()}
    assert all(hasattr(kernels, name) for name in cuda.TWINS)
    assert {order.__name__ for order in ORDERS} >= {"every_second", "channels_last"}
