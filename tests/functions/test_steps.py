"""Steps of rules: the kernel for arrays, the formula for Tensors. That both give the same is a test of every function, in cases.py."""

import functools

import numpy as np
import pytest

import minidl
from minidl import Tensor, kernels
from minidl import functions as F
from minidl.functions.steps import by_kernel, channel_sums, product


def test_arrays_go_to_the_kernel_and_tensors_to_the_formula(monkeypatch):
    monkeypatch.setattr(kernels, "doubled", lambda x, twice: ("kernel", x, twice), raising=False)

    @by_kernel("doubled")
    def doubled(x, twice):
        """Twice as much."""
        return "formula", x, twice
    x = np.ones(2)
    assert doubled(x, 2)[0] == "kernel" and doubled(Tensor(x), 2)[0] == "formula"
    assert doubled.__name__ == "doubled" and doubled.__doc__ == "Twice as much."


@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 4, 5)])
def test_channel_sums(shape):
    gy = np.arange(np.prod(shape), dtype=float).reshape(shape)
    np.testing.assert_allclose(channel_sums(Tensor(gy)).data, channel_sums(gy))


def test_product():
    a, b = np.arange(6.0).reshape(2, 3), np.arange(12.0).reshape(3, 4)
    np.testing.assert_array_equal(product(Tensor(a), Tensor(b)).data, product(a, b))


def test_three_gradients_of_a_normalization_come_from_one_call(monkeypatch):
    calls = []

    def spy(name, kernel, *args):
        calls.append(name)
        return kernel(*args)
    for name in ("batch_norm_gradient", "layer_norm_gradient"):
        monkeypatch.setattr(kernels, name, functools.partial(spy, name, getattr(kernels, name)))
    x, gamma, beta = (Tensor(np.arange(n, dtype=float).reshape(shape) + 1, True) for n, shape in ((12, (4, 3)), (3, 3), (3, 3)))
    for y in (F.batch_norm(x, gamma, beta, activation="tanh")[0], F.layer_norm(x, gamma, beta)):
        minidl.grad(y.sum(), [x, gamma, beta])
    assert calls == ["batch_norm_gradient", "layer_norm_gradient"]
