"""Arithmetic: the numbers, the derivatives that mathematics leaves open, and the dtype that comes out."""

import math
import operator

import numpy as np
import pytest

import minidl
from cases import ElementwiseCase, FunctionCase, each, says
from minidl import Tensor
from minidl import functions as F
from minidl.errors import ArgumentError, DeviceError, DtypeError, GraphError, ShapeError


class PairCase(ElementwiseCase):
    examples = 8

    def inputs(self, draw):
        return draw.pair()


class TestAdd(PairCase):
    functions = ("add",)
    forward = staticmethod(F.add)
    at = staticmethod(lambda a, b: a + b)


class TestSubtract(PairCase):
    functions = ("subtract",)
    forward = staticmethod(F.subtract)
    at = staticmethod(lambda a, b: a - b)


class TestMultiply(PairCase):
    functions = ("multiply",)
    forward = staticmethod(F.multiply)
    at = staticmethod(lambda a, b: a * b)


class TestDivide(PairCase):
    functions = ("divide",)
    forward = staticmethod(F.divide)
    at = staticmethod(lambda a, b: a / b)

    def inputs(self, draw):
        a, b = draw.pair()
        return a, np.sign(b) * (np.abs(b) + 0.5)                # away from 0


class TestMaximum(PairCase):
    functions = ("maximum",)
    forward = staticmethod(F.maximum)
    at = staticmethod(max)


class TestMinimum(PairCase):
    functions = ("minimum",)
    forward = staticmethod(F.minimum)
    at = staticmethod(min)


class TestPowerOfArrays(PairCase):
    functions = ("power",)
    forward = staticmethod(F.power)
    at = staticmethod(math.pow)

    def inputs(self, draw):
        a, b = draw.pair(low=0.4, high=2)
        return a, b * draw.choice(1, -1)


class TestPowerWithANumber(FunctionCase):
    functions = ("power",)
    examples = 7

    def inputs(self, draw):
        return draw.array(low=0.4, high=2), draw.choice(2, -1, 0.5, 0, 3, 1, -2.5)

    def forward(self, a, exponent):
        return F.power(a, exponent)

    def expected(self, a, exponent):
        return each(lambda number: math.pow(number, exponent), a)


class TestPowerOfANumber(FunctionCase):
    functions = ("power",)
    examples = 3

    def inputs(self, draw):
        return draw.choice(2, 0.5, 1), draw.array()

    def forward(self, base, b):
        return F.power(base, b)

    def expected(self, base, b):
        return each(lambda number: math.pow(base, number), b)


class TestNegative(ElementwiseCase):
    functions = ("negative",)
    forward = staticmethod(F.negative)
    at = staticmethod(lambda x: -x)


class TestExp(ElementwiseCase):
    functions = ("exp",)
    forward = staticmethod(F.exp)
    at = staticmethod(math.exp)


class TestLog(ElementwiseCase):
    functions = ("log",)
    forward = staticmethod(F.log)
    at = staticmethod(math.log)

    def inputs(self, draw):
        return draw.array(low=0.2, high=3)


class TestSqrt(ElementwiseCase):
    functions = ("sqrt",)
    forward = staticmethod(F.sqrt)
    at = staticmethod(math.sqrt)

    def inputs(self, draw):
        return draw.array(low=0.2, high=3)


class TestAbs(ElementwiseCase):
    functions = ("abs",)
    forward = staticmethod(F.abs)
    at = staticmethod(abs)


class TestClip(FunctionCase):
    functions = ("clip",)

    def inputs(self, draw):
        return draw.array(), draw.choice(-0.5, None, -1), draw.choice(0.5, 1, None, 0.1)

    def forward(self, x, low, high):
        return F.clip(x, low, high)

    def expected(self, x, low, high):
        return each(lambda number: min(max(number, -math.inf if low is None else low), math.inf if high is None else high), x)


class TestWhere(FunctionCase):
    functions = ("where",)
    examples = 8

    def inputs(self, draw):
        a, b = draw.pair()
        return draw.mask(np.broadcast_shapes(a.shape, b.shape)), a, b

    def forward(self, mask, a, b):
        return F.where(mask, a, b)

    def expected(self, mask, a, b):
        return each(lambda chosen, number, other: number if chosen else other, mask, a, b)


def leaf(*numbers, dtype="float64"):
    return Tensor(np.array(numbers, dtype), requires_grad=True)


def gradients(function, *xs):
    """The gradients of the sum of a function's results by its arguments."""
    y = function(*xs)
    return [None if g is None else g.data.tolist() for g in minidl.grad(y, xs, np.ones(y.shape))]


class TestConventions:
    """Where mathematics leaves the derivative open."""

    def test_equal_numbers_share_the_gradient(self):
        for function in (F.maximum, F.minimum):
            assert gradients(function, leaf(1, 2), leaf(1, 2)) == [[0.5, 0.5], [0.5, 0.5]]

    def test_maximum_with_a_number(self):
        assert gradients(lambda x: F.maximum(x, 0), leaf(-1, 0, 1)) == [[0, 0.5, 1]]
        assert gradients(lambda x: F.minimum(0, x), leaf(-1, 0, 1)) == [[1, 0.5, 0]]

    def test_abs_at_0(self):
        assert gradients(F.abs, leaf(-2, 0, 2)) == [[-1, 0, 1]]

    def test_clip_at_its_bounds(self):
        assert gradients(lambda x: F.clip(x, 0, 1), leaf(-0.1, 0, 0.5, 1, 1.1)) == [[0, 1, 1, 1, 0]]

    def test_where_of_one_boolean(self):
        assert gradients(lambda a, b: F.where(True, a, b), leaf(1, 2), leaf(3, 4)) == [[1, 1], [0, 0]]
        assert gradients(lambda a, b: F.where(a.sum() < 0, a, b), leaf(1, 2), leaf(3, 4)) == [[0, 0], [1, 1]]
        assert F.where(np.bool_(False), 1.0, np.array([5.0])).tolist() == [5.0]

    def test_where_keeps_a_nan_on_its_side(self):
        a, b = leaf(math.nan, 1), leaf(2, math.inf)
        assert F.where(np.array([False, True]), a, b).data.tolist() == [2, 1]
        assert gradients(lambda a, b: F.where(np.array([False, True]), a, b), a, b) == [[0, 1], [1, 0]]


class TestPowerAt0:
    def test_numbers_as_exponents(self):
        for exponent, slope in ((0, 0), (1, 1), (2, 0), (3.0, 0)):
            assert gradients(lambda x, e=exponent: F.power(x, e), leaf(0)) == [[slope]]

    def test_arrays_as_exponents(self):
        base, exponents = leaf(0, 0, 0, 0), leaf(0, 1, 2, 0.5)
        assert F.power(base, exponents).data.tolist() == [1, 0, 0, 0]
        by_base, by_exponent = gradients(F.power, base, exponents)
        assert by_base == [0, 1, 0, math.inf]
        assert by_exponent == [0, 0, 0, 0]

    def test_zero_as_base(self):
        assert gradients(lambda b: F.power(0, b), leaf(1, 2)) == [[0, 0]]

    def test_second_order(self):
        x = leaf(0, 3)
        assert minidl.hvp(F.power(x, 2).sum(), [x], [np.ones(2)])[0].data.tolist() == [2, 2]
        assert minidl.hvp(F.power(x, 1).sum(), [x], [np.ones(2)])[0].data.tolist() == [0, 0]
        assert minidl.hvp(F.power(x, np.array([2.0, 1.0])).sum(), [x], [np.ones(2)])[0].data.tolist() == [2, 0]

    def test_of_negative_numbers(self):
        assert gradients(lambda x: F.power(x, 3), leaf(-2)) == [[12]]
        assert gradients(lambda x: F.power(x, -1), leaf(-2)) == [[-0.25]]


NUMBERS = (2, 2.5, np.float64(2.5), np.float32(2.5), np.int64(2))
TWO_SIDED = (F.add, F.subtract, F.multiply, F.divide, F.power, F.maximum, F.minimum, lambda a, b: F.where(np.array([True, False]), a, b))


class TestDtypes:
    """float64 does not creep in from a number."""

    @pytest.mark.parametrize("number", NUMBERS, ids=lambda number: type(number).__name__)
    def test_a_number_takes_the_dtype_of_the_array_beside_it(self, number):
        x = leaf(1, 2, dtype="float32")
        for function in TWO_SIDED:
            assert function(x.data, number).dtype == function(number, x.data).dtype == np.float32
            for y in (function(x, number), function(number, x)):
                (first,) = minidl.grad(y, x, np.ones(2, np.float32), create_graph=True)
                assert y.dtype == first.dtype == np.float32

    def test_numpy_numbers_as_bounds(self):
        assert F.clip(np.ones(2, np.float32), np.float64(0), np.float64(0.5)).dtype == np.float32
        assert F.clip(np.arange(5), 1, np.int64(3)).tolist() == [1, 1, 2, 3, 3]

    def test_two_arrays_promote_as_in_numpy_and_each_gradient_has_its_own_dtype(self):
        a, b = leaf(1, 2, dtype="float32"), leaf(3, 4, dtype="float64")
        y = a * b
        y.sum().backward()
        assert (y.dtype, a.grad.dtype, b.grad.dtype) == (np.float64, np.float32, np.float64)

    def test_an_array_without_axes(self):
        x = Tensor(np.array(3, np.float32), requires_grad=True)
        y = 2.5 * x * x
        (first,) = minidl.grad(y, x, create_graph=True)
        (second,) = minidl.grad(first, x)
        assert (y.shape, y.dtype) == (first.shape, first.dtype) == (second.shape, second.dtype) == ((), np.float32)
        assert (y.item(), first.item(), second.item()) == (22.5, 15, 5)

    def test_where_gives_numbers_and_not_objects(self):
        y = F.where(np.array([True, False]), leaf(1, 2, dtype="float32"), 0.0)
        assert isinstance(y, Tensor) and y.dtype == np.float32
        with pytest.raises(ArgumentError, match=says("numpy.where does not record", "minidl.functions.where")):
            np.where(np.array([True, False]), y, 0.0)


class TestOperators:
    @pytest.mark.parametrize("symbol", [operator.add, operator.sub, operator.mul, operator.truediv, operator.pow])
    def test_from_both_sides(self, symbol):
        a, b = np.array([1.5, 2.0]), np.array([0.5, 3.0])
        wanted = symbol(a, b)
        for y in (symbol(Tensor(a), Tensor(b)), symbol(Tensor(a), b), symbol(a, Tensor(b))):
            assert isinstance(y, Tensor)
            np.testing.assert_array_equal(y.data, wanted)
        np.testing.assert_array_equal(symbol(2, Tensor(b)).data, symbol(2, b))

    def test_of_one_tensor(self):
        x = Tensor(np.array([-1.0, 4.0]))
        assert (-x).data.tolist() == [1, -4] and abs(x).data.tolist() == [1, 4]
        assert x.clip(0, 1).data.tolist() == [0, 1]
        for name in ("exp", "log", "sqrt"):
            assert getattr(abs(x), name)().data.tolist() == getattr(F, name)(abs(x)).data.tolist()


def test_empty_arrays():
    x = Tensor(np.zeros((0, 3)), requires_grad=True)
    for function in (F.exp, F.log, F.abs, F.negative, lambda x: F.power(x, 2), lambda x: x * np.ones(3), lambda x: F.clip(x, 0)):
        y = function(x)
        assert y.shape == (0, 3) and minidl.grad(y, x, np.zeros((0, 3)))[0].shape == (0, 3)


class TestErrors:
    @pytest.mark.parametrize("function", [F.add, F.subtract, F.multiply, F.divide, F.power, F.maximum, F.minimum])
    def test_shapes_that_do_not_broadcast(self, function):
        with pytest.raises(ShapeError, match=says(f"{function.__name__}: ", "broadcast", "a: (2,) float64    b: (3,) float64")):
            function(np.ones(2), np.ones(3))

    def test_where_with_shapes_that_do_not_broadcast(self):
        with pytest.raises(ShapeError, match=says("where: ", "mask: (2,) bool    a: (3,) float64    b: 0.0")):
            F.where(np.array([True, False]), np.ones(3), 0.0)

    def test_a_list_is_no_array(self):
        with pytest.raises(DtypeError, match=says("multiply: b is a list, and must be an array", "numpy.asarray")):
            F.multiply(np.ones(2), [1.0, 2.0])

    def test_a_mask_that_wants_a_gradient(self):
        with pytest.raises(GraphError, match=says("where: mask is not differentiable", "detach()")):
            F.where(leaf(1.0), 1.0, 0.0)

    def test_clip_without_bounds(self):
        with pytest.raises(ArgumentError, match=says("clip: neither a lower nor an upper bound", "Give low, high, or both")):
            F.clip(np.ones(2))

    def test_arrays_of_two_devices(self):
        there = minidl.backend.asarray(np.ones(2), "strict:0")
        with pytest.raises(DeviceError, match=says("add: a is on cpu, b is on strict:0", "b.to('cpu')")):
            F.add(np.ones(2), there)
