"""Products of matrices on a GPU: how factors are read, what is rounded, and what cuBLAS is told."""

import ctypes
import importlib
import threading
from types import SimpleNamespace

import numpy as np
import pytest

import emulated
from minidl import backend, kernels
from minidl.errors import DeviceError, ShapeError
from minidl.kernels.cuda import cublas

pytestmark = pytest.mark.skipif(bool(emulated.WHY_NOT), reason=emulated.WHY_NOT)

random = np.random.default_rng(0)
EPS = {"float64": 2.0 ** -52, "float32": 2.0 ** -23, "float16": 2.0 ** -10, "bfloat16": 2.0 ** -7}

LIE = {                 # how a matrix may lie in memory
    "by rows": lambda x: x,
    "by columns": lambda x: x.swapaxes(-1, -2).copy().swapaxes(-1, -2),
    "part of wider rows": lambda x: np.concatenate([x, x], axis=-1)[..., :x.shape[-1]],
    "part of longer columns": lambda x: LIE["by columns"](np.concatenate([x, x], axis=-2))[..., :x.shape[-2], :],
    "every second column": lambda x: np.repeat(x, 2, axis=-1)[..., ::2],
    "backwards": lambda x: x[..., ::-1, :].copy()[..., ::-1, :],
}


def on_device(x):
    return backend.asarray(x, "emulated:0")


def normal(*shape, dtype="float64"):
    return random.standard_normal(shape).astype(backend.dtype_named(dtype))


def close(y, expected, dtype, factors="float64"):
    y = backend.to_numpy(y)
    assert y.dtype == backend.dtype_named(dtype) and y.shape == expected.shape
    wide = EPS["float64" if factors == "float64" else "float32"]
    assert (abs(y.astype("float64") - expected) <= EPS[dtype] * abs(expected) + 30 * wide * abs(expected).max()).all()


def to_tf32(x):
    return ((x.view(np.uint32) + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32).astype("float64")


class TestFactors:
    def placed(self, x, how):
        """x on the device, lying there as it does in LIE."""
        y = LIE[how](x)
        base = y if y.base is None else y.base
        flat = on_device(base.ravel("K"))
        first = (y.__array_interface__["data"][0] - base.__array_interface__["data"][0]) // y.itemsize
        return backend.of(flat).lib.stride_tricks.as_strided(flat[first:], y.shape, y.strides)

    @pytest.mark.parametrize("shapes", [((5, 7), (7, 4)), ((1, 7), (7, 4)), ((5, 1), (1, 4)), ((5, 7), (7, 1)), ((1, 1), (1, 1)),
                                        ((3, 5, 7), (3, 7, 4)), ((3, 5, 1), (3, 1, 4)), ((1, 5, 7), (1, 7, 4))])
    @pytest.mark.parametrize("left", LIE)
    @pytest.mark.parametrize("right", LIE)
    def test_wherever_they_lie(self, left, right, shapes):
        a, b = normal(*shapes[0]), normal(*shapes[1])
        close(kernels.matmul(self.placed(a, left), self.placed(b, right)), a @ b, "float64")

    @pytest.mark.parametrize("how", ["by rows", "by columns", "part of wider rows", "part of longer columns"])
    def test_no_copy_is_made(self, how):
        for shape in ((5, 7), (3, 5, 7)):
            x = self.placed(normal(*shape), how)
            m = cublas.matrix(backend.of(x), x)
            assert m.array is x
            assert m.turned == ("columns" in how)
            assert m.row == {"by rows": 7, "by columns": 5, "part of wider rows": 14, "part of longer columns": 10}[how]

    @pytest.mark.parametrize("shapes", [((2, 3, 4, 5), (2, 3, 5, 6)), ((2, 3, 4, 5), (5, 6)), ((4, 5), (2, 5, 6)), ((3, 4, 5), (1, 5, 6)),
                                        ((2, 1, 4, 5), (3, 5, 6)), ((1, 1, 4, 5), (2, 3, 5, 6)), ((1, 4, 5), (1, 1, 5, 6))])
    def test_batches(self, shapes):
        a, b = normal(*shapes[0]), normal(*shapes[1])
        close(kernels.matmul(on_device(a), on_device(b)), a @ b, "float64")

    @pytest.mark.parametrize("shapes", [((0, 5), (5, 3)), ((4, 0), (0, 3)), ((2, 0, 5), (2, 5, 3))])
    def test_nothing(self, shapes):
        y = kernels.matmul(on_device(np.zeros(shapes[0])), on_device(np.zeros(shapes[1])))
        np.testing.assert_array_equal(backend.to_numpy(y), np.zeros(shapes[0]) @ np.zeros(shapes[1]))

    def test_integers_are_the_references(self):
        a, b = np.arange(6).reshape(2, 3), np.arange(12).reshape(3, 4)
        np.testing.assert_array_equal(backend.to_numpy(kernels.matmul(on_device(a), on_device(b))), a @ b)

    def test_floats_of_two_kinds_promote_as_in_numpy(self):
        a, b = normal(3, 4, dtype="float32"), normal(4, 2)
        y = kernels.matmul(on_device(a), on_device(b))
        assert y.dtype == "float64"
        np.testing.assert_allclose(backend.to_numpy(y), a @ b)


class TestTypes:
    @pytest.mark.parametrize("dtype", EPS)
    def test_products(self, dtype):
        pytest.importorskip("ml_dtypes", reason="bfloat16 is ml_dtypes'")
        a, b = normal(9, 33, dtype=dtype), normal(33, 8, dtype=dtype)
        exact = a.astype("float64") @ b.astype("float64")
        close(kernels.matmul(on_device(a), on_device(b)), exact, dtype, dtype)
        wide = "float64" if dtype == "float64" else "float32"
        close(kernels.affine_weights(on_device(a.T.copy()), on_device(b)), exact, wide, dtype)

    def test_results_of_sixteen_bits_in_float32(self):
        a, b = normal(9, 33, dtype="float16"), normal(33, 8, dtype="float16")
        close(kernels.matmul(on_device(a), on_device(b), dtype="float32"), a.astype("float64") @ b.astype("float64"), "float32", "float16")

    @pytest.mark.parametrize("turned", [False, True])
    def test_a_weight_in_float32_is_rounded_to_sixteen_bits(self, turned):
        a, w = normal(9, 33, dtype="float16"), normal(33, 8, dtype="float32")
        given = on_device(w.T.copy()).T if turned else on_device(w)
        close(kernels.matmul(on_device(a), given), a.astype("float64") @ w.astype("float16").astype("float64"), "float16", "float16")

    def test_tf32_where_it_is_allowed(self):
        a, b = normal(9, 33, dtype="float32"), normal(33, 8, dtype="float32")
        exact, rounded = a.astype("float64") @ b.astype("float64"), to_tf32(a) @ to_tf32(b)
        assert abs(exact - rounded).max() > 1e-4
        close(kernels.matmul(on_device(a), on_device(b)), exact, "float32", "float32")
        with kernels.allow_tf32():
            close(kernels.matmul(on_device(a), on_device(b)), rounded, "float32", "float32")
            with kernels.allow_tf32(False):
                close(kernels.matmul(on_device(a), on_device(b)), exact, "float32", "float32")
            a64, b64 = a.astype("float64"), b.astype("float64")
            close(kernels.matmul(on_device(a64), on_device(b64)), exact, "float64")                    # float64 is left alone
        close(kernels.matmul(on_device(a), on_device(b)), exact, "float32", "float32")


class TestAffine:
    @pytest.mark.parametrize("activation", [None, "relu", "tanh", "sigmoid"])
    @pytest.mark.parametrize("bias", [False, True])
    @pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
    def test_as_the_reference(self, dtype, bias, activation):
        x, w, b = normal(6, 10, dtype=dtype), normal(10, 5, dtype=dtype), normal(5, dtype=dtype) if bias else None
        y = kernels.affine(on_device(x), on_device(w), None if b is None else on_device(b), activation)
        with kernels.using("reference"):
            expected = kernels.affine(*(None if a is None else a.astype("float64") for a in (x, w, b)), activation)
        np.testing.assert_allclose(backend.to_numpy(y), expected, rtol=30 * EPS[dtype], atol=20 * EPS[dtype])

    def test_a_product_and_one_launch(self):
        x, w, b = (on_device(a) for a in (normal(6, 10), normal(10, 5), normal(5)))
        kernels.affine(x, w, b, "relu")
        before = emulated.launches()
        kernels.affine(x, w, b, "relu")
        assert emulated.launches() - before <= 2

    def test_a_bias_in_float32_beside_sixteen_bits(self):
        x, w, b = normal(6, 10, dtype="float16"), normal(10, 5, dtype="float32"), normal(5, dtype="float32")
        y = kernels.affine(on_device(x), on_device(w), on_device(b))
        expected = x.astype("float64") @ w.astype("float16").astype("float64") + b
        assert y.dtype == "float16"
        np.testing.assert_allclose(backend.to_numpy(y), expected, rtol=2e-3, atol=4e-3)


class TestMultiply:
    def test_adds_where_it_is_told_to(self):
        a, b, y = normal(4, 6), normal(6, 3), normal(4, 3)
        result = on_device(y)
        cublas.multiply(on_device(a), on_device(b), result, add=True)
        close(result, y + a @ b, "float64")

    def test_what_is_there_is_not_read_otherwise(self):
        a, b, y = normal(4, 6), normal(6, 3), on_device(np.full((4, 3), np.nan))
        cublas.multiply(on_device(a), on_device(b), y)
        close(y, backend.to_numpy(y), "float64")
        assert np.isfinite(backend.to_numpy(y)).all()

    def test_a_part_of_a_larger_result(self):
        a, b, y = normal(2, 4, 6), normal(2, 6, 3), np.zeros((2, 3, 4, 8))
        result = on_device(y)
        cublas.multiply(on_device(a), on_device(b), result[:, 1, :, 2:5])
        y[:, 1, :, 2:5] = a @ b
        close(result, y, "float64")

    def test_lengths_of_more_than_32_bits(self, monkeypatch):
        monkeypatch.setattr(cublas, "LARGEST", 5)
        with pytest.raises(ShapeError, match="32 bits"):
            kernels.matmul(on_device(normal(4, 6)), on_device(normal(6, 3)))

    def test_a_product_can_be_recorded(self):
        x, w, b = (on_device(a) for a in (normal(6, 10), normal(10, 5), normal(5)))
        kernels.affine(x, w, b, "relu")
        stream = emulated.xp.cuda.Stream(non_blocking=True)
        with stream:
            stream.begin_capture()
            y = kernels.affine(x, w, b, "relu")
            graph = stream.end_capture()
            another = normal(6, 10)
            x[...] = on_device(another)
            graph.launch(stream)
            stream.synchronize()
        expected = np.maximum(another @ backend.to_numpy(w) + backend.to_numpy(b), 0)
        np.testing.assert_allclose(backend.to_numpy(y), expected, rtol=1e-12)


class Told:
    """A cuBLAS that writes down what it is told, and says what it is asked to say."""

    def __init__(self, status=0):
        self.calls = []
        for name in cublas.FACES:
            setattr(self, name, self.function(name, status if "Gemm" in name else 0))

    def function(self, name, status):
        def call(*args):
            self.calls.append((name, args))
            return status
        return call


class Xp:
    """An array library that brings this cuBLAS along."""

    def __init__(self, told):
        self.cublas_library = told
        self.cuda = SimpleNamespace(get_current_stream=lambda: SimpleNamespace(ptr=7))
        self.empty = emulated.xp.empty


class TestHandle:
    def test_a_new_stream_takes_the_workspace_away_and_it_is_given_again(self):
        told = Told()
        handle = cublas.Handle(Xp(told))
        for stream in (7, 7, 0, 7):
            handle.on(stream)
        names = [name for name, _ in told.calls]
        assert names == ["cublasCreate_v2", "cublasSetMathMode", *["cublasSetStream_v2", "cublasSetWorkspace_v2"] * 3]
        assert all(args[1:] == (handle.workspace.data.ptr, cublas.WORKSPACE) for name, args in told.calls if "Workspace" in name)

    def test_16_bit_products_are_summed_in_float32_throughout(self):
        told = Told()
        cublas.Handle(Xp(told))
        assert dict(told.calls)["cublasSetMathMode"][1] == 16

    def test_one_a_thread_and_device(self):
        x = on_device(normal(2, 2))
        mine, theirs = cublas.handle_of(x), []
        thread = threading.Thread(target=lambda: theirs.append(cublas.handle_of(x)))
        thread.start()
        thread.join()
        assert cublas.handle_of(x) is mine is not theirs[0]
        assert cublas.handle_of(backend.asarray(normal(2, 2), "emulated:1")) is not mine

    def test_what_went_wrong_is_said(self):
        with pytest.raises(DeviceError, match=r"a matrix product has failed: execution failed \(13\)"):
            cublas.check("a matrix product", 13)
        cublas.check("a matrix product", 0)


class TestLibrary:
    XP = SimpleNamespace(cuda=SimpleNamespace(runtime=SimpleNamespace(runtimeGetVersion=lambda: 99010)))      # CUDA 99.1

    def test_where_there_is_none(self, monkeypatch):
        def missing(name):
            raise ImportError(name)
        monkeypatch.setattr(importlib, "import_module", missing)
        with pytest.raises(DeviceError, match=r"not found: libcublas.so.99[\s\S]*nvidia-cublas"):
            cublas.load(self.XP)

    def test_beside_the_packages(self, monkeypatch, tmp_path):
        place = tmp_path / "nvidia" / "cublas" / "lib"
        place.mkdir(parents=True)
        for version in (12, 99):
            (place / f"libcublas.so.{version}").touch()
        monkeypatch.setattr(importlib, "import_module", lambda name: SimpleNamespace(__path__=[str(tmp_path / "nvidia")]))
        assert cublas.beside("libcublas.so.99") == [place / "libcublas.so.99"]
        with pytest.raises(DeviceError, match="not found"):                 # it is there, and is no library
            cublas.load(self.XP)

    def test_the_one_that_cupy_takes(self, monkeypatch):
        loaded = SimpleNamespace(abs_path=None)                             # of None, ctypes makes what is in the process
        finder = SimpleNamespace(load_nvidia_dynamic_lib=lambda name: loaded if name == "cublas" else None)
        monkeypatch.setattr(importlib, "import_module", lambda name: {"cuda.pathfinder": finder}[name])
        assert cublas.load(self.XP)._name is None

    def test_faces_are_those_of_the_c_functions(self):
        assert [len(types) for types in cublas.FACES.values()] == [1, 2, 3, 2, 19, 23]
        assert cublas.FACES["cublasGemmStridedBatchedEx"][10] is ctypes.c_longlong
