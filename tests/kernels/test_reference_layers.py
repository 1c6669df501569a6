"""The reference kernels for what layers do beside convolution, against the plainest formulas."""

import math

import numpy as np
import pytest
from geometry import numbers

from cases import ACTIVATIONS
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


def test_matmul_takes_batches():
    a, b = numbers(2, 1, 3, 4), numbers(5, 4, 2)
    np.testing.assert_allclose(reference.matmul(a, b), np.einsum("...ik,...kj->...ij", a, b))


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
