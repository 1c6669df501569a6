"""Pooling: what is under each window, and that padding never is the largest."""

import numpy as np
import pytest

import minidl
from cases import FunctionCase, Window, says
from minidl import Tensor
from minidl import functions as F
from minidl.errors import ArgumentError, DtypeError, ShapeError

C1 = [[1, 2, 4, 2], [0, 1, 2, 3], [3, 0, 1, 0], [2, 4, 0, 2]]           # a published seminar's worked example
C2 = [[4, 0, 3, 1], [0, 1, 0, 3], [3, 0, 2, 0], [1, 3, 0, 1]]
C3 = [[1, 1, 2, 0], [0, 2, 1, 3], [2, 0, 1, 2], [3, 2, 0, 1]]


class TestMaxPool2d(FunctionCase):
    functions = ("max_pool2d",)
    examples = 12

    def inputs(self, draw):
        return draw.images(distinct=True), draw.window(), draw.choice(False, True, True, False)     # no ties: there the maximum has a kink

    def forward(self, x, window, ceil_mode):
        return F.max_pool2d(x, window.kernel, window.stride, window.padding, window.dilation, ceil_mode)

    def expected(self, x, window, ceil_mode):
        return [np.nanmax(patch, (2, 3)) for patch in window.patches(x, fill=-np.inf, ceil_mode=ceil_mode)]


class TestAvgPool2d(FunctionCase):
    functions = ("avg_pool2d",)
    examples = 12

    def inputs(self, draw):
        window = draw.window()
        window = Window(window.kernel, window.stride, window.padding)
        return draw.images(), window, draw.choice(False, True, True, False), draw.choice(True, False, False, True, False)

    def forward(self, x, window, ceil_mode, count_include_pad):
        return F.avg_pool2d(x, window.kernel, window.stride, window.padding, ceil_mode, count_include_pad)

    def expected(self, x, window, ceil_mode, count_include_pad):
        return [np.nanmean(patch, (2, 3)) for patch in window.patches(x, 0.0 if count_include_pad else np.nan, ceil_mode)]


class TestGlobalAvgPool2d(FunctionCase):
    functions = ("global_avg_pool2d",)

    def inputs(self, draw):
        return draw.images()

    def forward(self, x):
        return F.global_avg_pool2d(x)

    def expected(self, x):
        return np.array([[sum(channel.flat) / channel.size for channel in image] for image in x])


def leaf(*shape):
    return Tensor(np.arange(np.prod(shape), dtype=float).reshape(shape), requires_grad=True)


def test_worked_example():
    x = np.array([[C1, C2, C3]], float)
    assert F.max_pool2d(x, 2).tolist() == [[[[2, 4], [4, 2]], [[4, 3], [3, 2]], [[2, 3], [3, 2]]]]


class TestPadding:
    """It never is the largest number, and counts in the mean only if asked."""

    @pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "int8"])
    def test_of_images_that_are_negative_everywhere(self, dtype):
        x = -np.arange(1, 17).reshape(1, 1, 4, 4).astype(dtype)
        y = F.max_pool2d(x, 3, stride=2, padding=1)
        assert y.dtype == dtype and y.tolist() == [[[[-1, -2], [-5, -6]]]]
        assert F.max_pool2d(x, 3, stride=2, ceil_mode=True).tolist() == [[[[-1, -3], [-9, -11]]]]

    def test_gets_no_gradient(self):
        x = leaf(1, 1, 2, 2)
        F.max_pool2d(x - 10, 2, padding=1).sum().backward()
        assert x.grad.data.tolist() == [[[[1, 1], [1, 1]]]]

    def test_counts_in_the_mean_or_not(self):
        x = np.ones((1, 1, 2, 2))
        assert F.avg_pool2d(x, 2, padding=1).tolist() == [[[[0.25, 0.25], [0.25, 0.25]]]]
        assert F.avg_pool2d(x, 2, padding=1, count_include_pad=False).tolist() == [[[[1, 1], [1, 1]]]]

    def test_what_only_ceil_mode_reaches_never_counts(self):
        x = np.ones((1, 1, 3, 3))
        assert F.avg_pool2d(x, 2, ceil_mode=True).tolist() == [[[[1, 1], [1, 1]]]]


class TestGeometry:
    def test_the_stride_is_the_kernel_unless_given(self):
        x = np.random.default_rng(0).standard_normal((2, 3, 7, 6))
        for function in (F.max_pool2d, F.avg_pool2d):
            np.testing.assert_array_equal(function(x, (3, 2)), function(x, (3, 2), stride=(3, 2)))
            np.testing.assert_array_equal(function(x, 2), function(x, [2, np.int64(2)]))

    @pytest.mark.parametrize(("size", "window"), [
        ((1, 5), Window((1, 2), stride=(3, 3))),
        ((5, 1), Window((4, 1), stride=(3, 2))),
        ((1, 1), Window((4, 4), stride=(2, 2), padding=(2, 2))),
        ((2, 4), Window((3, 4), stride=(2, 5))),                # larger than the image, and reached by ceil_mode all the same
        ((2, 1), Window((2, 2), stride=(3, 3))),
        ((5, 5), Window((2, 2), stride=(4, 4))),
    ])
    def test_strange_windows_in_ceil_mode(self, size, window):
        x = np.random.default_rng(0).standard_normal((2, 2, *size))
        y = F.max_pool2d(x, window.kernel, window.stride, window.padding, ceil_mode=True)
        patches = window.patches(x, fill=-np.inf, ceil_mode=True)
        assert y.shape == (2, 2, *window.output(x.shape, ceil_mode=True))
        np.testing.assert_array_equal(y.reshape(2, 2, -1), np.stack([np.nanmax(patch, (2, 3)) for patch in patches], -1))
        mean = F.avg_pool2d(x, window.kernel, window.stride, window.padding, ceil_mode=True, count_include_pad=False)
        patches = window.patches(x, fill=np.nan, ceil_mode=True)
        np.testing.assert_allclose(mean.reshape(2, 2, -1), np.stack([np.nanmean(patch, (2, 3)) for patch in patches], -1))

    def test_a_kernel_with_more_than_256_numbers(self):
        x = leaf(1, 1, 17, 17)
        y = F.max_pool2d(x, 17)
        y.sum().backward()
        assert y.item() == 288 and x.grad.data.sum() == x.grad.data[0, 0, 16, 16] == 1

    def test_empty_batches(self):
        for function in (lambda x: F.max_pool2d(x, 2, padding=1), lambda x: F.avg_pool2d(x, 3, padding=1, count_include_pad=False),
                         F.global_avg_pool2d):
            x = leaf(0, 2, 4, 4)
            y = function(x)
            y.sum().backward()
            assert y.shape[:2] == (0, 2) and x.grad.shape == x.shape


class TestMaximum:
    def test_of_equal_numbers_the_first_gets_the_gradient(self):
        x = Tensor(np.ones((1, 1, 2, 4)), requires_grad=True)
        F.max_pool2d(x, 2).sum().backward()
        assert x.grad.data.tolist() == [[[[1, 0, 1, 0], [0, 0, 0, 0]]]]

    def test_windows_that_overlap_add_their_gradients(self):
        x = Tensor(np.array([[[[0, 0, 0], [0, 9, 0], [0, 0, 0]]]], float), requires_grad=True)
        F.max_pool2d(x, 2, stride=1).backward(np.array([[[[1.0, 2], [3, 4]]]]))
        assert x.grad.data.tolist() == [[[[0, 0, 0], [0, 10, 0], [0, 0, 0]]]]

    def test_a_nan_wins(self):
        x = np.array([[[[1, np.nan], [3, 4]]]])
        assert np.isnan(F.max_pool2d(x, 2)).all()

    def test_minus_infinity_is_a_number(self):
        x = Tensor(np.full((1, 1, 2, 2), -np.inf), requires_grad=True)
        y = F.max_pool2d(x, 2, padding=1)
        assert (y.data == -np.inf).all()


class TestDtypes:
    def test_float32_stays_to_second_order(self):
        x = Tensor(np.arange(25, dtype=np.float32).reshape(1, 1, 5, 5), requires_grad=True)
        for y in (F.max_pool2d(x, 2, padding=1), F.avg_pool2d(x, 3, padding=1, count_include_pad=False), F.avg_pool2d(x, 2),
                  F.global_avg_pool2d(x)):
            (first,) = minidl.grad((y * y).sum(), x, create_graph=True)
            (second,) = minidl.grad(first.sum(), x)
            assert y.dtype == first.dtype == second.dtype == np.float32

    def test_integers(self):
        x = np.array([[[[1, 2], [3, 5]]]])
        assert F.avg_pool2d(x, 2).tolist() == [[[[2.75]]]] and F.global_avg_pool2d(x).tolist() == [[2.75]]
        assert F.avg_pool2d(x, (1, 2), padding=(0, 1), stride=1, count_include_pad=False).tolist() == [[[[1, 1.5, 2], [3, 4, 5]]]]


class TestErrors:
    @pytest.mark.parametrize("function", [lambda x: F.max_pool2d(x, 2), lambda x: F.avg_pool2d(x, 2), F.global_avg_pool2d])
    def test_images_have_four_axes(self, function):
        with pytest.raises(ShapeError, match=says("", "pool2d: images have four axes", "x: (3, 4, 4) (N, C, H, W)", "x[None]")):
            function(np.ones((3, 4, 4)))
        with pytest.raises(DtypeError, match=says("", "pool2d: x is a list, and must be an array")):
            function([[1.0]])

    @pytest.mark.parametrize("function", [F.max_pool2d, F.avg_pool2d])
    @pytest.mark.parametrize(("options", "words"), [
        ({"kernel": 0}, ("kernel is (0, 0), and must be at least 1",)),
        ({"kernel": (2, 2, 2)}, ("kernel is (2, 2, 2), and must be an int or a pair of ints",)),
        ({"kernel": 2.5}, ("kernel is 2.5, and must be an int or a pair of ints",)),
        ({"kernel": 2, "stride": 0}, ("stride is (0, 0), and must be at least 1",)),
        ({"kernel": 2, "padding": -1}, ("padding is (-1, -1), and must be at least 0",)),
        ({"kernel": (3, 2), "padding": (2, 0)}, ("padding (2, 0) is more than half of the kernel (3, 2)", "minidl.functions.pad")),
    ])
    def test_options(self, function, options, words):
        with pytest.raises(ArgumentError, match=says(f"{function.__name__}: ", *words)):
            function(np.ones((1, 1, 4, 4)), **options)

    @pytest.mark.parametrize("function", [F.max_pool2d, F.avg_pool2d])
    def test_a_window_that_is_too_large(self, function):
        with pytest.raises(ShapeError, match=says(f"{function.__name__}: the window is larger than the image with its padding",
                                                  "image: (4, 4) (H, W)    window: (5, 5)    padding: (0, 0)", "smaller kernel")):
            function(np.ones((1, 1, 4, 4)), 5)

    def test_dilation(self):
        with pytest.raises(ArgumentError, match=says("max_pool2d: dilation is (0, 0), and must be at least 1")):
            F.max_pool2d(np.ones((1, 1, 4, 4)), 2, dilation=0)
