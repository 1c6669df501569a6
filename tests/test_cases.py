"""The base classes of the tests do find what is wrong: each function here has one fault, and one check finds it."""

import numpy as np
import pytest

from cases import SHAPES, WINDOWS, Draw, FunctionCase, LayerCase, Window
from minidl import functions as F
from minidl import nn
from minidl.errors import DeviceError, MinidlError
from minidl.graph import Function


class SquareCase(FunctionCase):
    """x^2, by a forward and a rule that the tests below replace with faulty ones."""

    def inputs(self, draw):
        return draw.array((2, 3))

    def expected(self, x):
        return x * x

    def forward(self, x):
        return Square(self.compute, self.rule)(x)

    @staticmethod
    def compute(x):
        return x * x

    @staticmethod
    def rule(gy, x):
        return gy * 2 * x


class Square(Function):
    compute: object
    rule: object

    def forward(self, x):
        return self.compute(x)

    def grad_x(self, gy, x):
        return self.rule(gy, x)


def square(**faults):
    case = SquareCase()
    for name, fault in faults.items():
        setattr(case, name, fault)
    return case


def overwrite(x):
    x *= x
    return x


def test_the_right_function_passes():
    case = square()
    for dtype in case.dtypes:
        case.test_value(0, dtype)
        case.test_tensors(0, dtype)
        case.test_memory_orders(0, dtype)
        case.test_device(0, dtype, "strict:0")
    case.test_gradient(0)
    case.test_second_gradient(0)
    case.test_gradient_in_float32(0)


def test_wrong_numbers():
    with pytest.raises(AssertionError, match="Not equal"):
        square(compute=lambda x: x * x + 1e-6).test_value(0, "float64")


def test_float64_out_of_float32():
    with pytest.raises(AssertionError, match="float32 in, float64 out"):
        square(compute=lambda x: x.astype("float64") ** 2).test_value(0, "float32")


def test_an_argument_that_is_written_to():
    with pytest.raises(AssertionError, match="an argument was written to"):
        square(compute=overwrite).test_value(0, "float64")


def test_memory_order_that_changes_the_numbers():
    with pytest.raises(AssertionError, match="fortran"):
        square(compute=lambda x: (x.ravel("K") ** 2).reshape(x.shape)).test_memory_orders(0, "float64")


def test_np_where_xp_belongs():
    with pytest.raises((MinidlError, TypeError), match="StrictArray"):
        square(compute=lambda x: np.square(x)).test_device(0, "float64", "strict:0")


def test_an_array_of_another_device_in_a_rule():
    with pytest.raises((DeviceError, TypeError), match=r"Unsupported type|is on"):
        square(rule=lambda gy, x: gy * np.full(gy.shape, 2.0) * x).test_device(0, "float64", "strict:0")


def test_wrong_rule():
    with pytest.raises(AssertionError, match="the gradient by argument 0"):
        square(rule=lambda gy, x: gy * 2.001 * x).test_gradient(0)


def test_rule_that_is_constant_to_differentiation():
    with pytest.raises(AssertionError, match="gradgradcheck"):
        square(rule=lambda gy, x: gy * 2 * getattr(x, "data", x)).test_second_gradient(0)


def test_rule_that_overwrites_the_gradient_it_was_given():
    def rule(gy, x):
        gy *= 2
        return gy * x
    with pytest.raises(AssertionError, match="wrote to the gradient"):
        square(rule=rule).test_memory_orders(0, "float64")


def test_layer_that_ignores_a_parameter():
    class Case(LayerCase):
        def make(self, generator):
            layer = nn.Affine(3, 2, generator=generator)
            layer.forward = lambda x: F.affine(x, layer.w, layer.b.data)
            return layer

        def inputs(self, draw):
            return draw.array((4, 3))
    with pytest.raises(AssertionError, match="no gradient reaches"):
        Case().test_gradient(0, "train")


class TestWindow:
    def test_places_on_a_small_image(self):
        window = Window((2, 1), stride=(2, 3), padding=(1, 0))
        assert window.places((1, 1, 2, 4)) == [([0, 1], [0]), ([0, 1], [3]), ([2, 3], [0]), ([2, 3], [3])]

    def test_patches_hold_the_padding(self):
        x = np.arange(4.0).reshape(1, 1, 2, 2)
        first, *_ = Window((2, 2), padding=(1, 1)).patches(x, fill=-1)
        np.testing.assert_array_equal(first, [[[[-1, -1], [-1, 0]]]])

    def test_ceil_mode_reaches_beyond_but_starts_inside(self):
        window = Window((2, 2), stride=(2, 2))
        assert window.output((1, 1, 5, 4)) == (2, 2)
        assert window.output((1, 1, 5, 4), ceil_mode=True) == (3, 2)

    @pytest.mark.parametrize("window", WINDOWS)
    def test_pooling_windows_are_padded_by_half_a_kernel_at_most(self, window):
        assert all(2 * p <= k for p, k in zip(window.padding, window.kernel))


class TestDraw:
    def test_the_same_example_is_the_same_numbers(self):
        np.testing.assert_array_equal(Draw(3).array(), Draw(3).array())

    def test_distinct_numbers_are_far_apart(self):
        gaps = np.diff(np.sort(Draw(1).images(distinct=True).ravel()))
        assert gaps.min() > 0.04

    @pytest.mark.parametrize("example", range(8))
    def test_convolutions_fit_their_images(self, example):
        x, w, _, window = Draw(example).convolution()
        assert x.shape[1] == w.shape[1] * window.groups
        assert w.shape[0] % window.groups == 0
        assert min(window.output(x.shape)) > 0

    def test_shapes_start_with_the_plainest(self):
        assert Draw(0).array().shape == SHAPES[0]
