"""Reductions: along each choice of axes, with equal numbers, of nothing, and of minus infinity."""

import math

import numpy as np
import pytest

import minidl
from cases import FunctionCase, along, says
from minidl import Tensor
from minidl import functions as F
from minidl.errors import ShapeError


class ReductionCase(FunctionCase):
    examples = 8

    def inputs(self, draw):
        x = draw.array()
        return x, draw.axes(x.ndim), draw.choice(False, False, True)


class TestSum(ReductionCase):
    functions = ("sum",)
    forward = staticmethod(F.sum)

    def expected(self, x, axis, keepdims):
        return along(math.fsum, x, axis, keepdims)


class TestMean(ReductionCase):
    functions = ("mean",)
    forward = staticmethod(F.mean)

    def expected(self, x, axis, keepdims):
        return along(lambda numbers: math.fsum(numbers) / len(numbers), x, axis, keepdims)


class TestMax(ReductionCase):
    functions = ("max",)
    forward = staticmethod(F.max)

    def expected(self, x, axis, keepdims):
        return along(max, x, axis, keepdims)


class TestMin(ReductionCase):
    functions = ("min",)
    forward = staticmethod(F.min)

    def expected(self, x, axis, keepdims):
        return along(min, x, axis, keepdims)


class TestLogSumExp(ReductionCase):
    functions = ("logsumexp",)
    forward = staticmethod(F.logsumexp)

    def expected(self, x, axis, keepdims):
        return along(lambda numbers: math.log(math.fsum(math.exp(a) for a in numbers)), x, axis, keepdims)


class TestVar(FunctionCase):
    functions = ("var",)
    examples = 8

    def inputs(self, draw):
        x = draw.array(draw.choice((3,), (2, 3), (4, 2, 3), (2, 3, 4, 2)))
        return x, draw.axes(x.ndim), draw.choice(0, 1), draw.choice(False, False, True)

    def forward(self, x, axis, ddof, keepdims):
        return F.var(x, axis, ddof, keepdims)

    def expected(self, x, axis, ddof, keepdims):
        def variance(numbers):
            mean = math.fsum(numbers) / len(numbers)
            return math.fsum((a - mean) ** 2 for a in numbers) / (len(numbers) - ddof)
        return along(variance, x, axis, keepdims)


class TestArgmax(FunctionCase):
    functions = ("argmax",)
    differentiable = False

    def inputs(self, draw):
        x = draw.array(distinct=True)
        return x, draw.choice(None, 0, -1) if x.ndim else None

    def forward(self, x, axis):
        return F.argmax(x, axis)

    def expected(self, x, axis):
        return along(lambda numbers: numbers.index(max(numbers)), x, axis)


class TestCumsum(FunctionCase):
    functions = ("cumsum",)

    def inputs(self, draw):
        x = draw.array(draw.choice((4,), (2, 3), (4, 1, 3), (2, 3, 4, 2)))
        return x, draw.choice(0, -1, x.ndim - 1, -x.ndim)

    def forward(self, x, axis):
        return F.cumsum(x, axis)

    def expected(self, x, axis):
        return np.apply_along_axis(lambda row: [math.fsum(row[:i + 1]) for i in range(len(row))], axis, x)


REDUCTIONS = (F.sum, F.mean, F.var, F.max, F.min, F.logsumexp)
reductions = pytest.mark.parametrize("function", REDUCTIONS, ids=lambda function: function.__name__)


class TestEqualNumbers:
    def test_share_the_gradient(self):
        for function, numbers in ((F.max, [[1, 3, 3], [2, 2, 2]]), (F.min, [[5, 3, 3], [2, 2, 2]])):
            x = Tensor(np.array(numbers, float), requires_grad=True)
            function(x, axis=1).sum().backward()
            np.testing.assert_allclose(x.grad.data, [[0, 1 / 2, 1 / 2], [1 / 3, 1 / 3, 1 / 3]])

    def test_the_first_one_is_the_argmax(self):
        x = np.array([[1, 7, 7], [2, 2, 2]])
        assert F.argmax(x, axis=1).tolist() == [1, 0] and F.argmax(x) == 1 and Tensor(x).argmax(0).tolist() == [1, 0, 0]


class TestLogSumExpExtremes:
    def test_large_numbers(self):
        x = Tensor(np.array([[1e4, 1e4], [-1e4, -1e4], [1e4, -1e4]], np.float32), requires_grad=True)
        with np.errstate(over="raise", invalid="raise", divide="raise"):
            y = F.logsumexp(x, axis=1)
            y.sum().backward()
        np.testing.assert_allclose(y.data, [1e4 + math.log(2), -1e4 + math.log(2), 1e4])
        np.testing.assert_allclose(x.grad.data, [[0.5, 0.5], [0.5, 0.5], [1, 0]], rtol=1e-3)        # as y is rounded

    def test_nothing_but_minus_infinity(self):
        """The sum of no terms: its logarithm is minus infinity, and no number has a part in it."""
        x = Tensor(np.array([[-np.inf, -np.inf], [0, -np.inf]]), requires_grad=True)
        with np.errstate(over="raise", invalid="raise", divide="raise"):
            y = F.logsumexp(x, axis=1)
            (first,) = minidl.grad(y, x, np.ones(2), create_graph=True)
            (second,) = minidl.grad(first.sum(), x)
        assert y.data.tolist() == [-np.inf, 0]
        assert first.data.tolist() == [[0, 0], [1, 0]] and second.data.tolist() == [[0, 0], [0, 0]]

    def test_infinity(self):
        assert F.logsumexp(np.array([np.inf, 1.0])) == np.inf


class TestDtypesAndShapes:
    @reductions
    def test_float32_stays(self, function):
        x = Tensor(np.arange(6, dtype=np.float32).reshape(2, 3), requires_grad=True)
        for axis in (None, 0, -2, (0, 1)):
            y = function(x, axis)
            (first,) = minidl.grad(y, x, np.ones(y.shape), create_graph=True)
            assert y.dtype == first.dtype == np.float32

    def test_methods_of_tensors(self):
        x = Tensor(np.arange(6.0).reshape(2, 3))
        for name in ("sum", "mean", "var", "max", "min"):
            np.testing.assert_array_equal(getattr(x, name)(axis=0, keepdims=True).data, getattr(F, name)(x.data, 0, keepdims=True))

    def test_sums_of_nothing(self):
        x = Tensor(np.zeros((0, 3)), requires_grad=True)
        assert F.sum(x, axis=0).data.tolist() == [0, 0, 0] and F.sum(x).item() == 0
        y = F.logsumexp(x, axis=1)
        y.backward(np.zeros(0))
        assert y.shape == (0,) and x.grad.shape == (0, 3)

    def test_integers_are_summed_as_integers(self):
        assert F.sum(np.array([1, 2])).dtype.kind == "i" and F.mean(np.array([1, 2])) == 1.5


class TestErrors:
    @reductions
    def test_an_axis_that_is_not_there(self, function):
        for axis in (2, -3, (0, 2)):
            with pytest.raises(ShapeError, match=says(f"{function.__name__}: axis {axis} does not exist", "x: (2, 3)")):
                function(np.ones((2, 3)), axis)

    @pytest.mark.parametrize("function", [F.argmax, F.cumsum])
    def test_one_axis_that_is_not_there(self, function):
        with pytest.raises(ShapeError, match=says(f"{function.__name__}: ", "axis 2", "x: (2, 3)")):
            function(np.ones((2, 3)), 2)

    def test_an_axis_that_is_named_twice(self):
        with pytest.raises(ShapeError, match=says("sum: duplicate value in 'axis'", "x: (2, 3)")):
            F.sum(np.ones((2, 3)), (1, -1))

    @pytest.mark.parametrize("function", [F.max, F.min, F.logsumexp, F.argmax], ids=lambda function: function.__name__)
    def test_the_largest_of_nothing(self, function):
        with pytest.raises(ShapeError, match=says(f"{function.__name__}: ", "x: (0, 3)")):
            function(np.ones((0, 3)), 0)

    def test_a_variance_of_too_few(self):
        with pytest.raises(ShapeError, match=says("var: 1 numbers along axis 0, and ddof is 1", "x: (1, 3)", "needs more")):
            F.var(np.ones((1, 3)), axis=0, ddof=1)
