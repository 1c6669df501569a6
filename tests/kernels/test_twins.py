"""Which version of a kernel runs, and what is said where the compiled ones are missing."""

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

import minidl
import strict  # noqa: F401   makes the strict device known
from cases import says
from minidl import backend, kernels
from minidl import functions as F
from minidl.errors import ArgumentError
from minidl.kernels import Window, twins

TOP = Path(minidl.__file__).parent.parent


def images(dtype="float32", channels=16):
    return np.random.default_rng(0).standard_normal((2, channels, 9, 9)).astype(dtype)


def filters(dtype="float32", channels=16):
    return np.random.default_rng(1).standard_normal((16, channels, 3, 3)).astype(dtype)


@pytest.fixture
def called(monkeypatch):
    """A twin of conv2d that tells of its calls, and declines those with dilation."""
    calls = []

    def conv2d(x, w, window, *others):
        calls.append(x.dtype)
        return NotImplemented if window.dilation != (1, 1) else "from the twin"
    monkeypatch.setattr(twins, "_twins", {"conv2d": conv2d})
    return calls


class TestTwins:
    def test_take_float32_arrays_of_numpy(self, called):
        assert kernels.conv2d(images(), filters(), Window((3, 3))) == "from the twin"
        assert kernels.compiled()

    @pytest.mark.parametrize("dtype", ["float64", ">f4"])
    def test_leave_the_rest_to_the_reference(self, called, dtype):
        assert kernels.conv2d(images(dtype), filters(dtype), Window((3, 3))).shape == (2, 16, 7, 7)
        assert called == []

    def test_may_decline(self, called):
        y = kernels.conv2d(images(), filters(), Window((3, 3), dilation=(2, 2)))
        assert y.shape == (2, 16, 5, 5) and called == [np.float32]

    def test_are_not_called_where_the_reference_is_wanted(self, called):
        with kernels.using("reference"):
            assert not kernels.compiled()
            kernels.conv2d(images(), filters(), Window((3, 3)))
        assert called == []


class TestSixteenBits:
    """What has no twin for them is computed in float32, and rounded."""

    @pytest.mark.parametrize("which", ["reference", "fastest"])
    @pytest.mark.parametrize("dtype", ["float16", "float32"])
    def test_products_round_the_weights_and_then_the_result(self, which, dtype):
        x, w = images("float16"), filters("float32")
        with kernels.using(which):
            y = kernels.conv2d(x, w.astype(dtype), Window((3, 3)))
            wanted = kernels.conv2d(x.astype("float32"), w.astype("float16").astype("float32"), Window((3, 3)))
        assert y.dtype == "float16"
        np.testing.assert_array_equal(y, wanted.astype("float16"))

    def test_a_bias_is_not_rounded(self):
        x, w, b = np.zeros((1, 2), "float16"), np.zeros((2, 1), "float32"), np.array([1.0], "float32")
        assert kernels.affine(x, w, b * 0.1)[0, 0] == np.float16(np.float32(0.1))
        assert kernels.affine(x + np.float16(1), w + 2, b * 1e-3)[0, 0] == np.float16(np.float32(4.001))

    def test_sums_over_examples_stay_float32(self):
        gy = np.full((3000, 2), 1000, "float16")                                 # the sum is beyond what float16 holds
        np.testing.assert_array_equal(kernels.channel_sums(gy), np.full(2, 3e6, "float32"))
        np.testing.assert_allclose(kernels.affine_weights(gy[:, :1], gy), np.full((1, 2), 3e9, "float32"), rtol=1e-4)
        assert kernels.matmul(gy.T, gy)[0, 0] == np.inf and 2e9 < kernels.matmul(gy.T, gy, dtype="float32")[0, 0] < np.inf
        labels = np.zeros(3000, int)
        assert kernels.softmax_cross_entropy(gy, labels, 0.0).dtype == "float32"
        assert kernels.softmax_cross_entropy_gradient(gy, labels, 0.0, np.ones(3000, "float32")).dtype == "float16"

    def test_moments_stay_float32_and_images_do_not(self):
        x, one = images("float16"), np.ones(16, "float32")
        y, mean, var = kernels.batch_norm(x, one, one, 1e-5)
        gx, ggamma, gbeta = kernels.batch_norm_gradient(y, x, one, mean, var, 1e-5)
        assert [str(each.dtype) for each in (y, mean, var, gx, ggamma, gbeta)] == ["float16", "float32", "float32"] * 2
        picked, place = kernels.max_pool2d(x, Window((2, 2)))
        assert picked.dtype == "float16" and place.dtype == "uint8"

    def test_updates_write_into_what_they_are_given(self):
        w, g, v = (np.full(3, number, "float16") for number in (1.0, 0.5, 2.0))
        g.flags.writeable = False
        kernels.sgd_update(w, g, v, 0.1, 0.5, False, 0.0)
        np.testing.assert_array_equal(v, np.full(3, 1.5, "float16"))
        np.testing.assert_array_equal(w, np.full(3, 0.85, "float16"))

    def test_a_twin_on_a_device_is_asked_first(self, monkeypatch):
        monkeypatch.setattr(twins, "on_device", lambda x: {"channel_sums": lambda gy: "from the twin"})
        assert kernels.channel_sums(backend.asarray(images("float16"), "strict:0")) == "from the twin"
        assert kernels.dropout(backend.asarray(images("float16"), "strict:0"), 0.5, 0, 0, 0)[0].dtype == "float16"


def test_winograd_is_done_without_on_request():
    pytest.importorskip("numba", reason="compiled kernels need Numba: pip install 'minidl[fast]'")
    draw = np.random.default_rng(0).standard_normal
    x, w = draw((4, 64, 18, 18)).astype(np.float32), draw((64, 64, 3, 3)).astype(np.float32)
    by_name = {name: F.conv2d(x, w, algorithm=name) for name in ("direct", "winograd")}
    assert (by_name["direct"] != by_name["winograd"]).any()
    np.testing.assert_array_equal(F.conv2d(x, w), by_name["winograd"])
    with kernels.using("direct"):
        np.testing.assert_array_equal(F.conv2d(x, w), by_name["direct"])


def test_a_name_that_is_not_known():
    with pytest.raises(ArgumentError, match=says("using: 'numpy' is not known", '"reference"')), kernels.using("numpy"):
        pass


@pytest.mark.parametrize(("options", "wrong"), [
    ({"padding": 3}, "padding: (3, 3)"), ({"stride": 2}, "stride: (2, 2)"), ({"dilation": 2}, "dilation: (2, 2)")])
def test_winograd_where_it_cannot_be_done(options, wrong):
    pytest.importorskip("numba", reason="compiled kernels need Numba: pip install 'minidl[fast]'")
    with pytest.raises(ArgumentError, match=says("conv2d: algorithm 'winograd' is for filters of 3 x 3", wrong)):
        F.conv2d(images(), filters(), algorithm="winograd", **options)


class TestWithout:
    @pytest.fixture(autouse=True)
    def nothing(self, monkeypatch):
        monkeypatch.setattr(twins, "_twins", {})
        monkeypatch.setattr(twins, "_missing", "No module named 'numba'")
        monkeypatch.setattr(twins, "_said", False)

    def test_it_is_said_once_and_only_where_there_is_something_to_gain(self):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            kernels.conv2d(images(), filters(), Window((3, 3)))
        large = np.zeros((8, 16, 32, 32), np.float32)
        with pytest.warns(UserWarning, match=says("minidl would be several times faster", "minidl[fast]", "No module named 'numba'")):
            kernels.conv2d(large, filters(), Window((3, 3)))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            kernels.conv2d(large, filters(), Window((3, 3)))

    @pytest.mark.parametrize("name", ["direct", "winograd"])
    def test_their_algorithms_say_what_they_need(self, name):
        with pytest.raises(ArgumentError, match=says(f"convolution: algorithm {name!r} needs the compiled kernels", "minidl[fast]")):
            F.conv2d(images(), filters(), algorithm=name)


@pytest.mark.process
def test_numba_that_may_not_compile_is_as_none():
    pytest.importorskip("numba", reason="it is about Numba")
    code = "from minidl import kernels; print(kernels.compiled())"
    environment = {"NUMBA_DISABLE_JIT": "1", "PYTHONPATH": str(TOP)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
