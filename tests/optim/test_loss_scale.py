"""Loss scaling by itself, and under K-FAC. What it does in a run: tests/test_precision.py."""

import numpy as np
import pytest

from cases import says
from minidl import Tensor, backend, nn, optim
from minidl import functions as F
from minidl.errors import ArgumentError, CheckpointError, NumericsError
from minidl.optim import LossScale, scaling
from minidl.optim.scaling import loss_scale_for


def parameter(gradient, dtype="float32"):
    p = nn.Parameter(np.zeros(np.shape(gradient), dtype))
    p.grad = np.asarray(gradient, dtype)
    return p


class TestTheScale:
    def test_is_halved_at_an_overflow(self):
        scale = LossScale()
        scale.take(overflow=True)
        assert (scale.scale, scale.skipped, scale.good) == (2.0**15, 1, 0)

    def test_is_doubled_after_many_good_steps_in_a_row(self, monkeypatch):
        monkeypatch.setattr(scaling, "PATIENCE", 3)
        scale = LossScale()
        for overflow in (False, False, True, False, False):
            scale.take(overflow)
        assert scale.scale == 2.0**15
        scale.take(False)
        assert (scale.scale, scale.good, scale.skipped) == (2.0**16, 0, 1)
        for _ in range(3 * 10):
            scale.take(False)
        assert scale.scale == scaling.LARGEST

    def test_does_not_fall_below_1(self):
        scale = LossScale()
        for _ in range(16):
            scale.take(True)
        assert scale.scale == 1
        with pytest.raises(NumericsError, match=says("the gradient is not finite, even with the loss scale 1", "bfloat16")):
            scale.take(True)

    def test_stays_what_it_was_given_as(self, monkeypatch):
        monkeypatch.setattr(scaling, "PATIENCE", 1)
        scale = LossScale(512)
        scale.take(False)
        assert scale.scale == 512
        with pytest.raises(NumericsError, match=says("the gradient is not finite with the loss scale 512", "dynamic")):
            scale.take(True)

    @pytest.mark.parametrize("start", [0, -1, np.inf, np.nan, "static", True])
    def test_is_a_number_or_dynamic(self, start):
        with pytest.raises(ArgumentError, match="LossScale: start is"):
            LossScale(start)

    @pytest.mark.parametrize("dtype, wanted, found", [
        ("float16", None, "LossScale(dynamic, now 65536)"), ("bfloat16", None, "None"), ("float32", None, "None"), (None, None, "None"),
        ("float16", 1, "None"), ("bfloat16", "dynamic", "LossScale(dynamic, now 65536)"), ("float16", 8, "LossScale(8)")])
    def test_is_there_for_float16_unless_told_otherwise(self, dtype, wanted, found):
        dtype = dtype and backend.dtype_named(dtype) if dtype != "bfloat16" else dtype
        assert str(loss_scale_for(dtype, wanted)) == found

    def test_goes_on_from_its_state(self):
        first, second = LossScale(), LossScale()
        for overflow in (True, False, True, False, False):
            first.take(overflow)
        second.load_state(first.state())
        assert second.state() == first.state() == {"dynamic": True, "scale": 2.0**14, "good": 2, "skipped": 2}
        given = LossScale(64)
        given.load_state(first.state())
        assert (given.scale, given.skipped) == (64, 2)
        with pytest.raises(CheckpointError, match="not the state of a loss scale"):
            first.load_state({"scale": "large"})


class TestUnscaling:
    @pytest.mark.parametrize("device", ["cpu", "strict:0"])
    def test_divides_gradients_and_finds_what_is_not_finite(self, device):
        scale = LossScale(4)
        numbers = np.array([4.0, -8.0], np.float32)
        good = {"w": Tensor(backend.asarray(numbers, device), requires_grad=True), "unused": nn.Parameter(np.ones(2, np.float32))}
        good["w"].grad = backend.asarray(numbers.copy(), device)
        assert scale.unscale(good)
        np.testing.assert_array_equal(backend.to_numpy(good["w"].grad.data), [1, -2])
        for bad in (np.inf, -np.inf, np.nan):
            assert not scale.unscale({"a": parameter([1.0]), "b": parameter([1.0, bad])})
        assert scale.unscale({"unused": good["unused"]})

    def test_gradients_of_16_bits_become_float32(self):
        p = parameter([2**-24, 2.0], "float16")
        assert LossScale(2**16).unscale({"w": p})
        assert p.grad.dtype == "float32"
        np.testing.assert_array_equal(p.grad.data, np.float32([2**-40, 2**-15]))


@pytest.mark.parametrize("fisher", ["sampled", "empirical", "exact"])
@pytest.mark.parametrize("inversion", ["eigen", "cholesky", "ekfac"])
def test_kfac_makes_the_same_steps(fisher, inversion):
    """The Fisher matrix is the loss's, and not that of the loss times the scale; the gradient is what it is after unscaling."""
    def weights(scale):
        draw = np.random.default_rng(0)
        x, labels = draw.standard_normal((24, 5)).astype("float32"), draw.integers(0, 3, 24)
        model = nn.Sequential(nn.Affine(5, 8, activation="tanh", generator=1), nn.LayerNorm(8), nn.Affine(8, 3, generator=2))
        kfac = optim.KFAC(model, lr=0.3, fisher=fisher, inversion=inversion, factor_interval=2, inverse_interval=2)
        for _ in range(5):
            kfac.zero_grad()
            if scale is not None:
                scale.begin(kfac)
            loss = F.softmax_cross_entropy(model(x), labels)
            loss.backward(1.0 if scale is None else scale.scale)
            assert scale is None or scale.unscale(kfac.parameters)
            kfac.step()
            if scale is not None:
                scale.take(False)
        return np.concatenate([p.data.ravel() for p in model.parameters()])

    np.testing.assert_allclose(weights(LossScale(2.0**12)), weights(None), rtol=1e-4, atol=1e-5)
