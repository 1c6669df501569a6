"""Activations: the numbers, what becomes of very large ones, and what a layer can fuse."""

import math

import numpy as np
import pytest

import minidl
from cases import ElementwiseCase, FunctionCase, each, says
from minidl import Tensor, kernels
from minidl import functions as F
from minidl.errors import DtypeError, ShapeError
from minidl.functions.activation import SLOPES, activation_gradient


class TestReLU(ElementwiseCase):
    functions = ("relu",)
    forward = staticmethod(F.relu)
    at = staticmethod(lambda x: max(x, 0))


class TestSigmoid(ElementwiseCase):
    functions = ("sigmoid",)
    forward = staticmethod(F.sigmoid)
    at = staticmethod(lambda x: 1 / (1 + math.exp(-x)))


class TestTanh(ElementwiseCase):
    functions = ("tanh",)
    forward = staticmethod(F.tanh)
    at = staticmethod(math.tanh)


class TestSoftplus(ElementwiseCase):
    functions = ("softplus",)
    forward = staticmethod(F.softplus)
    at = staticmethod(lambda x: math.log(1 + math.exp(x)))


class TestErf(ElementwiseCase):
    functions = ("erf",)
    forward = staticmethod(F.erf)
    at = staticmethod(math.erf)


class TestGELU(ElementwiseCase):
    functions = ("gelu",)
    forward = staticmethod(F.gelu)
    at = staticmethod(lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2)


class TestApproximateGELU(ElementwiseCase):
    functions = ("gelu",)
    forward = staticmethod(lambda x: F.gelu(x, approximate=True))
    at = staticmethod(lambda x: x / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x ** 3))))


class TestLeakyReLU(FunctionCase):
    functions = ("leaky_relu",)

    def inputs(self, draw):
        return draw.array(), draw.choice(0.01, 0.2, 0.0, 1.5)

    def forward(self, x, slope):
        return F.leaky_relu(x, slope)

    def expected(self, x, slope):
        return each(lambda number: number if number > 0 else slope * number, x)


class TestELU(FunctionCase):
    functions = ("elu",)

    def inputs(self, draw):
        return draw.array(), draw.choice(1.0, 0.5, 2.0)

    def forward(self, x, alpha):
        return F.elu(x, alpha)

    def expected(self, x, alpha):
        return each(lambda number: number if number > 0 else alpha * (math.exp(number) - 1), x)


class RowCase(FunctionCase):
    """A function of the rows along an axis."""

    def inputs(self, draw):
        x = draw.array(draw.choice((2, 3), (4,), (3, 1, 2), (2, 3, 2, 2), (1, 5)))
        return x, draw.choice(-1, 0, 1 - x.ndim, 1 % x.ndim)


class TestSoftmax(RowCase):
    functions = ("softmax",)

    def forward(self, x, axis):
        return F.softmax(x, axis)

    def expected(self, x, axis):
        return np.apply_along_axis(lambda row: [math.exp(a) / math.fsum(math.exp(b) for b in row) for a in row], axis, x)


class TestLogSoftmax(RowCase):
    functions = ("log_softmax",)

    def forward(self, x, axis):
        return F.log_softmax(x, axis)

    def expected(self, x, axis):
        return np.apply_along_axis(lambda row: [a - math.log(math.fsum(math.exp(b) for b in row)) for a in row], axis, x)


EVERY = {"relu": F.relu, "leaky_relu": F.leaky_relu, "elu": F.elu, "sigmoid": F.sigmoid, "tanh": F.tanh, "softplus": F.softplus,
         "erf": F.erf, "gelu": F.gelu, "approximate gelu": lambda x: F.gelu(x, approximate=True),
         "softmax": F.softmax, "log_softmax": F.log_softmax}
every = pytest.mark.parametrize("function", EVERY.values(), ids=EVERY)


def first_and_second(function, x):
    """The result, the gradient of the sum of its squares, and the gradient of the sum of the gradient, as arrays."""
    x = Tensor(x, requires_grad=True)
    y = function(x)
    (first,) = minidl.grad((y * y).sum(), x, create_graph=True)
    (second,) = minidl.grad(first.sum(), x)
    return y.data, first.data, second.data


class TestExtremes:
    """No overflow, no NaN, and nothing to warn of, however large the numbers are."""

    @every
    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_large_numbers_pass(self, function, dtype):
        x = np.array([-1e4, -1000, -100, -20, 0, 20, 100, 1000, 1e4], dtype)
        with np.errstate(over="raise", invalid="raise", divide="raise"):
            for result in first_and_second(function, x):
                assert np.isfinite(result).all() and result.dtype == dtype

    def test_what_they_tend_to(self):
        x = np.array([-1000.0, 1000.0])
        for name, limits in {"relu": [0, 1000], "leaky_relu": [-10, 1000], "elu": [-1, 1000], "sigmoid": [0, 1], "tanh": [-1, 1],
                             "softplus": [0, 1000], "erf": [-1, 1], "gelu": [0, 1000], "approximate gelu": [0, 1000],
                             "softmax": [0, 1], "log_softmax": [-2000, 0]}.items():
            np.testing.assert_array_equal(EVERY[name](x), limits, name)

    def test_erf_of_any_number(self):
        with np.errstate(over="raise", invalid="raise"):
            assert F.erf(np.array([-1e30, 1e30, -np.inf, np.inf], np.float32)).tolist() == [-1, 1, -1, 1]
            assert np.isnan(F.erf(np.array([np.nan]))).all()

    def test_a_class_that_is_masked_by_minus_infinity(self):
        x = np.array([[0, -np.inf, 1], [-np.inf, -np.inf, 2]])
        with np.errstate(over="raise", invalid="raise", divide="ignore"):
            y, first, second = first_and_second(F.softmax, x)
        np.testing.assert_allclose(y, [[1 / (1 + math.e), 0, math.e / (1 + math.e)], [0, 0, 1]])
        assert np.isfinite(first).all() and np.isfinite(second).all()
        assert F.log_softmax(x)[1].tolist() == [-np.inf, -np.inf, 0]

    def test_softmax_is_the_same_for_shifted_rows(self):
        x = np.array([[1.0, 2.0, 4.0]])
        np.testing.assert_array_equal(F.softmax(x), F.softmax(x + 1024))
        np.testing.assert_array_equal(F.log_softmax(x), F.log_softmax(x + 1024))


class TestAtAKink:
    @pytest.mark.parametrize(("function", "slope"), [(F.relu, 0), (F.leaky_relu, 0.01), (F.elu, 1)])
    def test_the_gradient_at_0_is_that_of_the_left_side(self, function, slope):
        x = Tensor(np.zeros(2), requires_grad=True)
        function(x).sum().backward()
        assert x.grad.data.tolist() == [slope, slope]


@every
def test_the_gradient_that_comes_in_is_not_written_to(function):
    """As a ReLU would do that works in place."""
    x = Tensor(np.array([-1.0, 2.0, 3.0]), requires_grad=True)
    gy = np.ones(3)
    function(x).backward(gy)
    assert gy.tolist() == [1, 1, 1] and x.data.tolist() == [-1, 2, 3]
    assert not np.shares_memory(x.grad.data, gy)


@every
def test_empty_batches(function):
    x = Tensor(np.zeros((0, 3), np.float32), requires_grad=True)
    y = function(x)
    y.backward(np.zeros((0, 3), np.float32))
    assert y.shape == x.grad.shape == (0, 3) and y.dtype == np.float32


def test_numpy_numbers_as_options_leave_float32_alone():
    x = np.array([-1, 1], np.float32)
    two = np.float64(2)
    for function in (lambda x: F.leaky_relu(x, two), lambda x: F.elu(x, two)):
        assert all(result.dtype == np.float32 for result in (function(x), *first_and_second(function, x)))


def test_arrays_without_axes():
    for name, function in EVERY.items():
        if "softmax" not in name:
            results = first_and_second(function, np.array(-0.5, np.float32))
            assert all((result.shape, result.dtype) == ((), np.float32) for result in results)


@pytest.mark.parametrize("name", SLOPES)
def test_what_a_layer_fuses_is_the_function_of_that_name(name):
    x, gy = np.linspace(-2, 2, 9), np.linspace(1, 3, 9)
    y = kernels.activation(x.copy(), name)
    leaf = Tensor(x, requires_grad=True)
    function = getattr(F, name)(leaf)
    function.backward(gy)
    np.testing.assert_array_equal(y, function.data)
    for found in (activation_gradient(gy, y, name), activation_gradient(Tensor(gy), Tensor(y), name).data):
        np.testing.assert_allclose(found, leaf.grad.data, rtol=1e-14)


class TestErrors:
    @pytest.mark.parametrize("function", [F.softmax, F.log_softmax])
    def test_an_axis_that_is_not_there(self, function):
        with pytest.raises(ShapeError, match=says(f"{function.__name__}: ", "axis 2", "x: (2, 3) float64")):
            function(np.ones((2, 3)), 2)

    @every
    def test_a_list_is_no_array(self, function):
        with pytest.raises(DtypeError, match=says("", "x is a list, and must be an array", "numpy.asarray(x)")):
            function([1.0, 2.0])
