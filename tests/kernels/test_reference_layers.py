"""The reference kernels for what layers do beside convolution, against the plainest formulas."""

import math

import numpy as np
import pytest
from geometry import numbers

from cases import ACTIVATIONS, ORDERS, along, each
from minidl.kernels import reference_layers as reference


class TestActivation:
    @pytest.mark.parametrize("name", ["relu", "tanh", "sigmoid"])
    def test_extremes_and_what_is_no_number(self, name):
        z = np.array([-1000, -1, -0.0, 0.5, 1000, np.nan])
        wanted = [ACTIVATIONS[name](a) for a in z[1:-1]]
        with np.errstate(all="raise"):
            y = reference.activation(z.copy(), name)
        np.testing.assert_allclose(y[1:-1], wanted, rtol=1e-15)
        assert y[0] == {"relu": 0, "tanh": -1, "sigmoid": 0}[name] and np.isnan(y[-1])

    @pytest.mark.parametrize("name", ["relu", "tanh", "sigmoid"])
    def test_float32_stays_and_any_memory_order_will_do(self, name):
        z = numbers(3, 4, dtype="float32")
        wanted = reference.activation(z.copy(), name)
        assert wanted.dtype == np.float32
        for view in (np.asfortranarray(z), np.repeat(z, 2, axis=1)[:, ::2]):
            np.testing.assert_array_equal(reference.activation(view, name), wanted)


    @pytest.mark.parametrize("name", ["relu", "tanh", "sigmoid"])
    def test_the_slope_from_the_output(self, name):
        z = np.array([-3, -0.5, 0.5, 3])
        slope = (each(ACTIVATIONS[name], z + 1e-6) - each(ACTIVATIONS[name], z - 1e-6)) / 2e-6
        gy = numbers(4)
        found = reference.activation_gradient(gy, reference.activation(z, name), name)
        np.testing.assert_allclose(found, gy * slope, rtol=1e-8, atol=1e-10)

    def test_at_0_a_relu_has_the_slope_0(self):
        assert reference.activation_gradient(np.array([3.0]), np.array([0.0]), "relu") == [0]


@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 4, 5), (2, 3, 4), (0, 3), (2, 3, 0, 1)])
def test_channel_sums(shape):
    gy = numbers(*shape)
    wanted = along(math.fsum, gy, tuple(axis for axis in range(len(shape)) if axis != 1))
    for order in (np.asarray, *ORDERS):
        np.testing.assert_allclose(reference.channel_sums(order(gy)), wanted, atol=1e-14)


class TestNormalization:
    """Values and gradients are tested with the functions; here is what these leave out."""

    @pytest.mark.parametrize("shape", [(4, 3), (2, 3, 4, 2)])
    def test_the_gradients_of_mean_and_variance_may_be_left_out(self, shape):
        x, gy, (gamma, beta) = numbers(*shape), numbers(*shape) + 1, numbers(2, 3)
        _, mean, var = reference.batch_norm(x, gamma, beta, 0.1)
        zeros = np.zeros(3)
        for mine, theirs in zip(reference.batch_norm_gradient(gy, x, gamma, mean, var, 0.1),
                                reference.batch_norm_gradient(gy, x, gamma, mean, var, 0.1, zeros, zeros)):
            np.testing.assert_array_equal(mine, theirs)
        _, mean, var = reference.layer_norm(x, None, None, 1, 0.1)
        for mine, theirs in zip(reference.layer_norm_gradient(gy, x, None, mean, var, 1, 0.1),
                                reference.layer_norm_gradient(gy, x, None, mean, var, 1, 0.1, np.zeros(mean.shape), np.zeros(mean.shape))):
            np.testing.assert_array_equal(mine, theirs)

    def test_nothing_is_written_to(self):
        x, gy, p = numbers(2, 3, 4, 2), numbers(2, 3, 4, 2), np.ones(3)
        for array in (x, gy, p):
            array.flags.writeable = False
        results = (*reference.batch_norm(x, p, p, 0.1, "relu"), *reference.batch_norm_gradient(gy, x, p, p, p, 0.1, p, p),
                   reference.batch_norm_inference(x, p, p, p, p, 0.1, "relu"), *reference.layer_norm(x, None, None, 3, 0.1),
                   *reference.layer_norm_gradient(gy, x, None, np.ones(2), np.ones(2), 3, 0.1, np.ones(2), np.ones(2)))
        assert not any(np.shares_memory(result, array) for result in results for array in (x, gy, p))


class TestSoftmaxCrossEntropy:
    X = np.array([[1e4, -1e4, 0], [-1e4, 1e4, 0], [0, -np.inf, 0], [0, -np.inf, 0], [0.5, 1, 2]])
    LABELS = np.array([0, 0, 2, 1, 2], np.uint8)

    def test_extremes(self):
        with np.errstate(over="raise", invalid="raise"):
            losses = reference.softmax_cross_entropy(self.X, self.LABELS, 0.0)
            gx = reference.softmax_cross_entropy_gradient(self.X, self.LABELS, 0.0, np.broadcast_to(2.0, 5))
        last = np.exp(self.X[4]) / np.exp(self.X[4]).sum()
        np.testing.assert_allclose(losses, [0, 2e4, math.log(2), math.inf, -math.log(last[2])])
        np.testing.assert_allclose(gx / 2, [[0, 0, 0], [-1, 1, 0], [0.5, 0, -0.5], [0.5, -1, 0.5], last - [0, 0, 1]], atol=1e-15)

    def test_a_masked_class_that_has_a_part_of_the_label_costs_everything(self):
        for smoothing in (0.1, 1.0):
            losses = reference.softmax_cross_entropy(self.X[2:4], self.LABELS[2:4], smoothing)
            assert losses.tolist() == [math.inf, math.inf]

    @pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
    def test_nothing_is_written_to_and_float32_stays(self, smoothing):
        x, each = numbers(4, 3, dtype="float32"), np.ones(4, np.float32)
        before = x.copy()
        losses = reference.softmax_cross_entropy(x, self.LABELS[:4], smoothing)
        gx = reference.softmax_cross_entropy_gradient(x, self.LABELS[:4], smoothing, each)
        assert losses.dtype == gx.dtype == np.float32 and (each == 1).all()
        np.testing.assert_array_equal(x, before)


def test_dropout():
    x = numbers(4, 5, dtype="float32")
    y, mask = reference.dropout(x, 0.3, 1, 2, 3, first=7)
    assert y.dtype == np.float32 and mask.dtype == bool
    np.testing.assert_array_equal(mask, reference.dropout_mask(np, (4, 5), 0.3, 1, 2, 3, first=7))
    np.testing.assert_array_equal(y, np.where(mask, x * np.float32(1 / 0.7), 0))
    np.testing.assert_array_equal(reference.dropout_gradient(x, mask, 1 / 0.7), y)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_erf_is_right_to_the_last_bits(dtype):
    tiny = -40 if dtype == "float32" else -300
    x = np.concatenate([np.linspace(-7, 7, 3001), np.logspace(tiny, 1, 500), np.linspace(0.99, 1.01, 501), [0, 30, 1e30]]).astype(dtype)
    wanted = np.array([math.erf(a) for a in x])
    found = reference.erf(x)
    assert found.dtype == dtype
    np.testing.assert_array_less(np.abs(found - wanted), 4.5 * np.spacing(np.abs(wanted.astype(dtype))).astype("float64"))
    np.testing.assert_array_equal(reference.erf(-x), -found)


def test_erf_of_minus_0_and_of_no_number():
    assert np.signbit(reference.erf(np.array([-0.0]))).all() and np.isnan(reference.erf(np.array([np.nan]))).all()
