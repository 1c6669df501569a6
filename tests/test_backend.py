import sys
from types import SimpleNamespace

import numpy as np
import pytest

from minidl import backend
from minidl.errors import ArgumentError, DeviceError, DtypeError
from strict import StrictArray, xp


def test_what_a_float_is():
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    assert [name for name in ("float16", "float32", "float64", "int16", "bool", "V2", "complex64") if backend.is_float(np.dtype(name))] == [
        "float16", "float32", "float64"]
    assert backend.is_float(np.dtype(bfloat16)) and backend.dtype_named("bfloat16") == bfloat16
    assert [name for name in ("float16", "bfloat16", "float32", "int16") if backend.is_half(backend.dtype_named(name))] == [
        "float16", "bfloat16"]
    x = np.ones(2, np.float32)
    assert backend.wide(x) is x and backend.wide(3) == 3 and backend.wide(x.astype(bfloat16)).dtype == np.float32
    with pytest.raises(DtypeError, match="'float12' is not a type of numbers"):
        backend.dtype_named("float12")


def test_bfloat16_without_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(DtypeError, match=r"(?s)bfloat16.*pip install 'minidl\[precision\]'"):
        backend.dtype_named("bfloat16")


class FakeArray:
    """Stands for a CuPy array: a class of a module called cupy."""

    device = SimpleNamespace(id=1)


FakeArray.__module__ = "cupy._core.core"


@pytest.fixture
def cupy(monkeypatch):
    """A CuPy with one GPU, of which nothing works but what is asked for here."""
    class OnDevice:
        def __init__(self, number):
            assert number == 0

        def use(self):
            pass

        def __enter__(self):
            pass

        def __exit__(self, *_):
            pass

    fake = SimpleNamespace(__name__="cupy", ndarray=FakeArray, asnumpy=lambda x: np.full(2, 7.0), asarray=lambda x: FakeArray(),
                           cuda=SimpleNamespace(runtime=SimpleNamespace(getDeviceCount=lambda: 1), Device=OnDevice))
    monkeypatch.setitem(sys.modules, "cupy", fake)
    monkeypatch.setattr(backend, "_by_type", {k: v for k, v in backend._by_type.items() if k is not fake.ndarray})
    monkeypatch.setattr(backend, "_by_name", {k: v for k, v in backend._by_name.items() if k != "cuda"})
    return fake


@pytest.fixture
def no_cupy(cupy, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)


class TestOf:
    @pytest.mark.parametrize("x", [np.zeros(3), np.zeros(()), np.float32(1), np.zeros(3).view(np.recarray)])
    def test_numpy_arrays_scalars_and_subclasses(self, x):
        assert backend.of(x) is np

    def test_a_file_in_memory(self, tmp_path):
        assert backend.of(np.memmap(tmp_path / "x", np.float32, "w+", shape=(3,))) is np

    def test_a_library_that_was_registered(self):
        assert backend.of(xp.zeros(3)) is xp

    def test_cupy_is_found_by_the_array_s_type(self, cupy):
        assert backend.of(FakeArray()) is cupy

    @pytest.mark.parametrize("x", [[1.0], 2.0, None, "a", object()])
    def test_anything_else_is_an_error(self, x):
        with pytest.raises(DeviceError, match=f"{type(x).__name__} is not an array of a known library"):
            backend.of(x)


class TestIsArray:
    def test_of_a_known_library(self):
        assert backend.is_array(np.zeros(())) and backend.is_array(xp.zeros(3))

    @pytest.mark.parametrize("x", [np.float32(1), 1.0, [1.0], None])
    def test_not_numbers_and_lists(self, x):
        assert not backend.is_array(x)


class TestDevices:
    def test_of_arrays(self, cupy):
        assert backend.device_of(np.zeros(3)) == "cpu"
        assert backend.device_of(xp.zeros(3)) == "strict:0"
        assert backend.device_of(FakeArray()) == "cuda:1"

    def test_full_names(self, cupy):
        assert backend.named_device("cpu") == "cpu"
        assert backend.named_device("cuda") == backend.named_device("cuda:0") == "cuda:0"

    @pytest.mark.parametrize("name", ["gpu", "cpu:0", "cpu:1", "cuda:x", "cuda:-1", "", "CPU"])
    def test_that_are_not_known(self, cupy, name):
        with pytest.raises(ArgumentError, match=f"device '{name}' is not known\n.*Devices are named"):
            backend.named_device(name)

    def test_that_are_not_there(self, cupy):
        with pytest.raises(DeviceError, match=r"cuda:1: this machine has 1 CUDA device"):
            backend.named_device("cuda:1")

    def test_without_cupy_name_the_extra(self, no_cupy):
        with pytest.raises(DeviceError, match=r"CuPy cannot be imported[\s\S]*pip install 'minidl\[cuda12\]'"):
            backend.named_device("cuda")

    def test_without_a_driver_say_so(self, cupy):
        def fails():
            raise RuntimeError("no driver")
        cupy.cuda.runtime.getDeviceCount = fails
        with pytest.raises(DeviceError, match=r"cuda: CuPy finds no usable GPU \(no driver\)\n.*nvidia-smi"):
            backend.named_device("cuda")


class TestCopies:
    def test_an_array_that_is_there_is_given_back(self):
        x, y = np.zeros(3), xp.zeros(3)
        assert backend.asarray(x) is x
        assert backend.asarray(y, "strict:0") is y
        assert backend.to_numpy(x) is x

    def test_between_devices(self):
        x = backend.asarray(np.arange(3), "strict:0")
        assert type(x) is StrictArray
        np.testing.assert_array_equal(backend.asarray(x, "cpu"), [0, 1, 2])
        np.testing.assert_array_equal(backend.to_numpy(x), [0, 1, 2])
        assert backend.device_of(backend.asarray(x, "strict:1")) == "strict:1"

    def test_to_and_from_a_gpu(self, cupy):
        assert type(backend.asarray(np.zeros(2), "cuda:0")) is FakeArray
        np.testing.assert_array_equal(backend.to_numpy(FakeArray()), [7, 7])

    def test_of_lists(self):
        np.testing.assert_array_equal(backend.asarray([1, 2]), [1, 2])
        np.testing.assert_array_equal(backend.to_numpy([1, 2]), [1, 2])


def test_synchronize_knows_the_devices():
    backend.synchronize("cpu")
    backend.synchronize("strict:0")
    with pytest.raises(ArgumentError):
        backend.synchronize("gpu")


class TestGenerator:
    def test_the_same_seed_gives_the_same_numbers(self):
        assert backend.generator(3).random() == backend.generator(3).random() != backend.generator(4).random()

    def test_a_generator_is_given_back(self):
        generator = np.random.default_rng(0)
        assert backend.generator(generator) is generator

    def test_a_seed_sequence_is_spawned_a_rank(self):
        first, second = np.random.SeedSequence(0).spawn(2)
        assert backend.generator(first).random() != backend.generator(second).random()

    def test_no_seed_is_another_each_time(self):
        assert backend.generator().random() != backend.generator().random()


class TestStreams:
    """What works beside the current stream, on the emulated GPU, whose copies are as late as they may be."""

    @pytest.fixture
    def streams(self):
        emulated = pytest.importorskip("emulated")
        if emulated.WHY_NOT:
            pytest.skip(emulated.WHY_NOT)
        yield backend.library_named("emulated:0").streams
        emulated.xp.cuda.Device(0).use()

    def test_a_copy_is_there_when_its_event_is(self, streams):
        host, there = streams.pinned((3, 4), "float32"), backend.asarray(np.zeros((3, 4), np.float32), "emulated:0")
        host[...] = np.arange(12).reshape(3, 4)
        stream, event = streams.new("emulated:0"), streams.event("emulated:0")
        streams.copy(host, there, stream)
        stream.record(event)
        assert not there.get().any()                            # it has not begun: nobody has waited
        streams.current("emulated:0").wait_event(event)
        np.testing.assert_array_equal(there.get(), host)

    def test_and_back(self, streams):
        there, host = backend.asarray(np.arange(5), "emulated:0"), streams.pinned(5, np.int64)
        host[...] = 0
        stream, event = streams.new("emulated:0"), streams.event("emulated:0")
        streams.current("emulated:0").record(event)
        stream.wait_event(event)
        streams.copy(there, host, stream)
        assert not host.any()
        stream.synchronize()
        np.testing.assert_array_equal(host, np.arange(5))

    @pytest.mark.parametrize("shape, dtype", [((), "float64"), (0, "int8"), ((2, 0, 3), "float32"), ((2, 3), bool), (7, np.int64)])
    def test_pinned(self, streams, shape, dtype):
        x = streams.pinned(shape, dtype)
        assert type(x) is np.ndarray and x.shape == np.empty(shape).shape and x.dtype == dtype
        assert x.flags.writeable and x.flags.c_contiguous

    def test_of_another_device(self, streams):
        stream = streams.new("emulated:1")
        assert stream.device_id == 1
        with streams.on("emulated:1"), stream:
            assert streams.current("emulated:1") == stream
        assert streams.current("emulated:0").device_id != 1

    def test_between_two_devices(self, streams):
        x = backend.asarray(np.arange(3), "emulated:0")
        y = backend.asarray(x, "emulated:1")
        backend.synchronize("emulated:1")
        assert backend.device_of(x) == "emulated:0" and backend.device_of(y) == "emulated:1" and y.get().tolist() == [0, 1, 2]
        assert backend.asarray(y, "emulated:1") is y


def test_arrays_of_a_device_are_fetched_together(monkeypatch):
    reads, library = [], backend.library_named("strict:0")
    fetch = library.to_numpy
    monkeypatch.setitem(vars(library), "to_numpy", lambda x: reads.append(x.size) or fetch(x))         # a frozen one
    arrays = [np.arange(6.0).reshape(2, 3), np.array(7.0), np.arange(2), np.zeros((0, 3)), np.arange(4.0)]
    found = backend.fetched([backend.asarray(x, "strict:0") if k else x for k, x in enumerate(arrays)])
    assert all(isinstance(x, np.ndarray) and x.shape == y.shape and x.dtype == y.dtype and (x == y).all() for x, y in zip(found, arrays))
    assert sorted(reads) == [2, 5]                          # one for each dtype
