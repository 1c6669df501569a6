"""Normalization: each channel or example by its own mean and variance, and the gradients of all three outputs."""

import math

import numpy as np
import pytest

import minidl
from cases import ACTIVATIONS, FunctionCase, along, each, says
from minidl import Tensor
from minidl import functions as F
from minidl.errors import ArgumentError, DtypeError, GraphError, ShapeError

IMAGES = ((4, 3), (3, 2, 4, 5), (5, 1), (2, 3, 4), (1, 2, 3, 3))


def average(numbers):
    return math.fsum(numbers) / len(numbers)


def variance(numbers):
    return average([(a - average(numbers)) ** 2 for a in numbers])


def per_channel(p, x):
    """A vector with a number a channel, beside x."""
    return p.reshape(-1, *[1] * (x.ndim - 2))


class TestBatchNorm(FunctionCase):
    functions = ("batch_norm",)
    sums = True

    examples = 10

    def inputs(self, draw):
        x = draw.array(draw.choice(*IMAGES))
        return x, draw.array(x.shape[1:2]), draw.array(x.shape[1:2]), draw.choice(1e-5, 1e-2), draw.choice(None, "tanh", "relu", "sigmoid")

    def forward(self, x, gamma, beta, eps, activation):
        return F.batch_norm(x, gamma, beta, eps, activation)

    def expected(self, x, gamma, beta, eps, activation):
        over = (0, *range(2, x.ndim))
        mean, var = along(average, x, over), along(variance, x, over)
        u = (x - per_channel(mean, x)) / np.sqrt(per_channel(var, x) + eps)
        return each(ACTIVATIONS[activation], u * per_channel(gamma, x) + per_channel(beta, x)), mean, var


class TestBatchNormInference(FunctionCase):
    functions = ("batch_norm_inference",)
    constants = (3, 4)

    def inputs(self, draw):
        x = draw.array(draw.choice(*IMAGES))
        gamma, beta, mean = (draw.array(x.shape[1:2]) for _ in range(3))
        activation = draw.choice(None, "relu", "tanh")
        return x, gamma, beta, mean, draw.array(x.shape[1:2], low=0.1, high=2), draw.choice(1e-5, 1e-2), activation

    def forward(self, x, gamma, beta, mean, var, eps, activation):
        return F.batch_norm_inference(x, gamma, beta, mean, var, eps, activation)

    def expected(self, x, gamma, beta, mean, var, eps, activation):
        y = np.empty(x.shape)
        for place in np.ndindex(x.shape):
            c = place[1]
            y[place] = ACTIVATIONS[activation](gamma[c] * (x[place] - mean[c]) / math.sqrt(var[c] + eps) + beta[c])
        return y


class TestLayerNorm(FunctionCase):
    functions = ("layer_norm",)
    examples = 8

    def inputs(self, draw):
        shape, axes = draw.choice(((3, 4), 1), ((2, 3, 4), 2), ((2, 3, 4), 1), ((2, 2, 3, 2), 3), ((5,), 1))
        gamma, beta = draw.array(shape[-axes:]), draw.array(shape[-axes:])
        return draw.array(shape), draw.choice(gamma, gamma, None), draw.choice(beta, None), axes, draw.choice(1e-5, 1e-5, 1e-2)

    def forward(self, x, gamma, beta, axes, eps):
        return F.layer_norm(x, gamma, beta, axes, eps)

    def expected(self, x, gamma, beta, axes, eps):
        over = tuple(range(x.ndim - axes, x.ndim))
        u = (x - along(average, x, over, keepdims=True)) / np.sqrt(along(variance, x, over, keepdims=True) + eps)
        return u * (1 if gamma is None else gamma) + (0 if beta is None else beta)


def leaves(*arrays):
    return [Tensor(a, requires_grad=True) for a in arrays]


class TestBatchNormOutputs:
    """Three outputs, each with a gradient of its own."""

    X = np.array([[1.0, 0.0], [3.0, 0.0], [5.0, 6.0]])

    def test_the_gradient_of_the_mean_alone(self):
        x, gamma, beta = leaves(self.X, np.ones(2), np.zeros(2))
        _, mean, _ = F.batch_norm(x, gamma, beta)
        mean.sum().backward()
        np.testing.assert_allclose(x.grad.data, np.full((3, 2), 1 / 3))
        assert not gamma.grad.data.any() and not beta.grad.data.any()

    def test_the_gradient_of_the_variance_alone(self):
        x, gamma, beta = leaves(self.X, np.ones(2), np.zeros(2))
        _, _, var = F.batch_norm(x, gamma, beta)
        var.sum().backward()
        np.testing.assert_allclose(x.grad.data, 2 / 3 * (self.X - self.X.mean(0)))

    def test_what_is_normalized_has_mean_0_and_variance_1(self):
        y, mean, var = F.batch_norm(self.X, np.ones(2), np.zeros(2), eps=0)
        np.testing.assert_allclose([y.mean(0), y.var(0)], [[0, 0], [1, 1]], atol=1e-14)
        assert mean.tolist() == [3, 2] and var.tolist() == [8 / 3, 8]

    def test_shifting_the_input_changes_nothing(self):
        """So its gradient adds up to 0 over the batch."""
        x, gamma, beta = leaves(self.X, np.array([2.0, -1.0]), np.zeros(2))
        F.batch_norm(x, gamma, beta)[0].backward(np.arange(6.0).reshape(3, 2))
        np.testing.assert_allclose(x.grad.data.sum(0), [0, 0], atol=1e-12)


class TestNumbers:
    def test_a_channel_that_is_constant(self):
        for x in (np.full((4, 2), 3.0), np.ones((1, 2))):
            x, gamma, beta = leaves(x, np.ones(2), np.array([5.0, 6.0]))
            y, _, var = F.batch_norm(x, gamma, beta)
            y.sum().backward()
            assert (y.data == [5, 6]).all() and not var.data.any() and np.isfinite(x.grad.data).all()

    def test_a_large_mean_does_not_swallow_the_variance(self):
        x = (1e4 + np.array([[-1], [1], [-1], [1]])).astype(np.float32)
        y, _, var = F.batch_norm(x, np.ones(1, np.float32), np.zeros(1, np.float32))
        assert var.tolist() == [1] and np.allclose(y.ravel(), [-1, 1, -1, 1], atol=1e-4)
        assert np.allclose(F.layer_norm(x.T), y.T)

    def test_nor_the_gradient(self):
        """u is -1 and 1 in turn: gx = gy - mean(gy) - u mean(gy u), divided by the deviation."""
        x, gamma, beta = leaves(*(np.array(a, np.float32) for a in ([[9999], [10001], [9999], [10001]], [1], [0])))
        gy = np.array([[1], [2], [3], [5]], np.float32)
        F.batch_norm(x, gamma, beta)[0].backward(gy)
        np.testing.assert_allclose(x.grad.data.ravel(), gy.ravel() - 2.75 - np.array([-1, 1, -1, 1]) * 0.75, atol=1e-4)
        assert math.isclose(gamma.grad.item(), 3, rel_tol=1e-4) and beta.grad.item() == 11
        (row,) = leaves(x.data.T.copy())
        F.layer_norm(row).backward(gy.T)
        np.testing.assert_allclose(row.grad.data, x.grad.data.T, atol=1e-4)

    def test_float32_stays_to_second_order_whatever_eps_is(self):
        x, gamma, beta = leaves(*(np.arange(n, dtype=np.float32).reshape(shape) for n, shape in ((12, (4, 3)), (3, 3), (3, 3))))
        eps = np.float64(1e-3)
        for y in (F.batch_norm(x, gamma, beta, eps)[0], F.layer_norm(x, gamma, beta, eps=eps), F.layer_norm(x, eps=eps),
                  F.batch_norm_inference(x, gamma, beta, np.zeros(3, np.float32), np.ones(3, np.float32), eps)):
            (first,) = minidl.grad((y * y).sum(), x, create_graph=True)
            (second,) = minidl.grad(first.sum(), x)
            assert y.dtype == first.dtype == second.dtype == np.float32

    def test_inference_and_layers_take_an_empty_batch(self):
        x, gamma, beta = leaves(np.zeros((0, 3)), np.ones(3), np.ones(3))
        for y in (F.batch_norm_inference(x, gamma, beta, np.zeros(3), np.ones(3)), F.layer_norm(x, gamma, beta)):
            y.sum().backward()
            assert y.shape == x.grad.shape == (0, 3) and not gamma.grad.data.any()


class TestErrors:
    X, P = np.ones((4, 3)), np.ones(3)

    @pytest.mark.parametrize(("call", "words"), [
        (lambda x, p: F.batch_norm(x, p[:2], p), ("batch_norm: x has 3 channels, gamma has shape (2,)", "x: (4, 3)", "channels=3")),
        (lambda x, p: F.batch_norm(x, p, p[None]), ("batch_norm: x has 3 channels, beta has shape (1, 3)",)),
        (lambda x, p: F.batch_norm(x[0], p, p), ("batch_norm: x has no axis of channels", "x: (3,) (N, C) or (N, C, H, W)")),
        (lambda x, p: F.batch_norm(x[:0], p, p), ("batch_norm: an empty batch has no mean", "x: (0, 3)")),
        (lambda x, p: F.batch_norm(Tensor(x[:0]), p, p), ("batch_norm: an empty batch has no mean",)),
        (lambda x, p: F.batch_norm_inference(x, p, p, p, p[:2]), ("batch_norm_inference: x has 3 channels, var has shape (2,)",)),
        (lambda x, p: F.layer_norm(x, p[:2]), ("layer_norm: gamma and beta must have the shape of x's last axes", "x: (4, 3)    axes: 1",
                                               "gamma: (2,)")),
        (lambda x, p: F.layer_norm(x, None, p[:2]), ("layer_norm: ", "beta: (2,)")),
        (lambda x, p: F.layer_norm(x, axes=3), ("layer_norm: ", "x: (4, 3)    axes: 3")),
        (lambda x, p: F.layer_norm(x, axes=0), ("layer_norm: ", "axes: 0")),
    ])
    def test_shapes(self, call, words):
        with pytest.raises(ShapeError, match=says(*words)):
            call(self.X, self.P)

    def test_dtypes(self):
        x, p = self.X.astype(np.float32), self.P
        for function in (F.batch_norm, F.layer_norm):
            with pytest.raises(DtypeError, match=says(f"{function.__name__}: x is float32, gamma is float64", "x.astype('float64')")):
                function(x, p, p)
            with pytest.raises(DtypeError, match=says(f"{function.__name__}: x is int64, and must be of a float type")):
                function(x.astype("int64"), p, p)
            with pytest.raises(DtypeError, match=says(f"{function.__name__}: gamma is a list")):
                function(x, [1.0], p)
        with pytest.raises(DtypeError, match=says("batch_norm: gamma is a NoneType")):
            F.batch_norm(x, None, None)

    def test_activations(self):
        for call in (lambda: F.batch_norm(self.X, self.P, self.P, activation="gelu"),
                     lambda: F.batch_norm_inference(self.X, self.P, self.P, self.P, self.P, activation="gelu")):
            with pytest.raises(ArgumentError, match=says("batch_norm", "activation 'gelu' is not one that can be fused")):
                call()

    def test_known_statistics_have_no_gradient(self):
        with pytest.raises(GraphError, match=says("batch_norm_inference: mean is not differentiable", "detach()")):
            F.batch_norm_inference(self.X, self.P, self.P, Tensor(self.P, requires_grad=True), self.P)
