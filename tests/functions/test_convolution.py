"""Convolution and its transpose against loops over positions, published examples, and the memory that the columns take."""

import functools
import itertools
import tracemalloc

import numpy as np
import pytest

import minidl
from cases import ACTIVATIONS, FunctionCase, Window, each, says
from minidl import Tensor, kernels
from minidl import functions as F
from minidl.errors import ArgumentError, DtypeError, ShapeError
from minidl.kernels import reference

X1 = np.array([[1, 1, 2, 0], [0, 2, 1, 3], [2, 0, 1, 2], [3, 2, 0, 1]], float)      # a published seminar's worked examples
W1 = np.array([[2, 0, 1], [0, 2, 1], [1, 0, 1]], float)
X3 = np.array([[[1, 2, 4, 2], [0, 1, 2, 3], [3, 0, 1, 0], [2, 4, 0, 2]], [[4, 0, 3, 1], [0, 1, 0, 3], [3, 0, 2, 0], [1, 3, 0, 1]], X1])
W3 = np.array([[[2, 0, 1], [0, 3, 0], [1, 0, 2]], [[0, 1, 3], [0, 1, 2], [1, 0, 0]], W1])


class TestConv2d(FunctionCase):
    functions = ("conv2d",)
    examples = 10

    def inputs(self, draw):
        return *draw.convolution(), draw.choice(None, "relu", None, "tanh", "sigmoid")

    def forward(self, x, w, b, window, activation):
        return F.conv2d(x, w, b, window.stride, window.padding, window.dilation, window.groups, activation)

    def expected(self, x, w, b, window, activation):
        filters, channels = len(w) // window.groups, w.shape[1]
        y = []
        for patch in window.patches(x):
            at_place = np.zeros((len(x), len(w)))
            for o in range(len(w)):
                first = o // filters * channels
                at_place[:, o] = (patch[:, first:first + channels] * w[o]).sum((1, 2, 3)) + (0 if b is None else b[o])
            y.append(each(ACTIVATIONS[activation], at_place))
        return y


class TestConvTranspose2d(FunctionCase):
    functions = ("conv_transpose2d",)
    examples = 8

    def inputs(self, draw):
        x, w, b, window = draw.convolution(transposed=True)
        if b is not None:
            b = draw.array((w.shape[1] * window.groups,))
        extra = tuple(draw.integer(0, max(s, d) - 1) for s, d in zip(window.stride, window.dilation))
        return x[:, :, :4, :5], w, b, window, extra

    def forward(self, x, w, b, window, extra):
        return F.conv_transpose2d(x, w, b, window.stride, window.padding, extra, window.dilation, window.groups)

    def expected(self, x, w, b, window, extra):
        """Every number of x is multiplied by the filter and added where it belongs."""
        channels, outputs = len(w) // window.groups, w.shape[1]
        lengths = [(n - 1) * s - 2 * p + d * (k - 1) + e + 1 for n, s, p, d, k, e in
                   zip(x.shape[2:], window.stride, window.padding, window.dilation, window.kernel, extra)]
        y = np.zeros((len(x), outputs * window.groups, *lengths))
        for c, o, i, j, a, b_ in itertools.product(range(len(w)), range(outputs), *map(range, x.shape[2:]), *map(range, window.kernel)):
            row, column = (m * s + k * d - p for m, k, s, d, p in zip((i, j), (a, b_), window.stride, window.dilation, window.padding))
            if 0 <= row < lengths[0] and 0 <= column < lengths[1]:
                y[:, c // channels * outputs + o, row, column] += x[:, c, i, j] * w[c, o, a, b_]
        return y if b is None else y + b.reshape(-1, 1, 1)


class TestConvTranspose2dWithMoreRoom(TestConvTranspose2d):
    """Where the filters are dilated by more than the stride, a row more at the edge may be room for another position of the window."""

    examples = 3

    def inputs(self, draw):
        window, extra = draw.choice((Window((2, 2), dilation=(3, 2)), (2, 1)),
                                    (Window((3, 2), stride=(2, 1), padding=(1, 2), dilation=(4, 3), groups=2), (3, 2)),
                                    (Window((1, 3), stride=(1, 2), dilation=(2, 5)), (1, 4)))
        w = draw.array((2 * window.groups, 2, *window.kernel))
        return draw.array((2, len(w), 3, 4)), w, draw.array((2 * window.groups,)), window, extra


def normal(*shape, dtype="float64"):
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(dtype)


def leaves(*arrays):
    return [Tensor(a, requires_grad=True) for a in arrays]


def values_and_gradients(function, *arrays):
    xs = leaves(*arrays)
    y = function(*xs)
    return [y.data, *(g.data for g in minidl.grad(y, xs, normal(*y.shape)))]


class TestWorkedExamples:
    def test_one_channel(self):
        x, w = X1[None, None], W1[None, None]
        assert F.conv2d(x, w).tolist() == [[[[12, 9], [5, 14]]]]
        assert F.conv2d(x, w, np.array([3.0])).tolist() == [[[[15, 12], [8, 17]]]]

    def test_three_channels(self):
        assert F.conv2d(X3[None], W3[None]).tolist() == [[[[39, 33], [15, 44]]]]

    def test_with_a_relu(self):
        assert F.conv2d(X1[None, None], W1[None, None], np.array([-10.0]), activation="relu").tolist() == [[[[2, 0], [0, 4]]]]


class TestGeometry:
    def test_options_are_ints_or_pairs(self):
        x, w = normal(1, 2, 7, 7), normal(3, 2, 3, 3)
        wanted = F.conv2d(x, w, stride=(2, 2), padding=(1, 1), dilation=(2, 2))
        for two, one in ((2, 1), (np.int64(2), np.int64(1)), ([2, 2], [1, 1])):
            np.testing.assert_array_equal(F.conv2d(x, w, stride=two, padding=one, dilation=two), wanted)

    def test_depthwise(self):
        x, w = normal(2, 3, 5, 5), normal(3, 1, 3, 3)
        for c, y in enumerate(np.moveaxis(F.conv2d(x, w, groups=3), 1, 0)):
            np.testing.assert_allclose(y, F.conv2d(x[:, c:c + 1], w[c:c + 1])[:, 0])

    @pytest.mark.parametrize(("size", "window"), [
        ((1, 6), Window((1, 3))),
        ((6, 1), Window((3, 1), stride=(4, 1))),                        # the stride is longer than the window
        ((2, 2), Window((4, 4), padding=(1, 1))),                       # the window is as large as the image with its padding
        ((3, 3), Window((2, 2), dilation=(4, 4), padding=(2, 2))),      # the image falls between the numbers under the window
        ((1, 1), Window((1, 1), padding=(2, 3), stride=(2, 2))),
        ((5, 5), Window((3, 3), stride=(7, 7), padding=(1, 1))),
    ])
    def test_strange_windows(self, size, window):
        x, w = normal(2, 2, *size), normal(3, 2, *window.kernel)
        y, gx, gw = values_and_gradients(lambda x, w: F.conv2d(x, w, None, window.stride, window.padding, window.dilation), x, w)
        patches = window.patches(x)
        wanted = np.stack([np.einsum("nchw,ochw->no", patch, w) for patch in patches], axis=-1)
        np.testing.assert_allclose(y.reshape(wanted.shape), wanted, atol=1e-12)
        gy = normal(*y.shape).reshape(wanted.shape)
        np.testing.assert_allclose(gw, sum(np.einsum("nchw,no->ochw", patch, gy[..., i]) for i, patch in enumerate(patches)), atol=1e-12)
        np.testing.assert_allclose((gx * x).sum(), (gy * wanted).sum(), atol=1e-10)      # both are linear in x

    def test_conv2d_and_its_transpose_are_each_others_way_back(self):
        x, w = normal(2, 3, 6, 7), normal(4, 3, 3, 2)
        options = {"stride": (2, 3), "padding": (1, 0), "dilation": (1, 2)}
        y = F.conv2d(x, w, **options)
        gy = normal(*y.shape)
        back = F.conv_transpose2d(gy, w, output_padding=(1, 1), **options)
        assert back.shape == x.shape
        np.testing.assert_allclose((y * gy).sum(), (x * back).sum())

    def test_slices_and_images_that_run_backwards(self):
        x, w = normal(3, 4, 9, 8), normal(2, 2, 3, 3)
        for view in (x[::2, ::2, ::-1, ::-1], x[:2, 1:3, 1:8:2, 2:], x[:, 3:1:-1].swapaxes(2, 3)):
            for mine, theirs in zip(values_and_gradients(F.conv2d, view, w), values_and_gradients(F.conv2d, view.copy(), w)):
                np.testing.assert_allclose(mine, theirs, atol=1e-12)

    def test_the_transpose_of_one_number(self):
        x, w = normal(1, 1, 1, 1), normal(1, 1, 1, 1)
        assert F.conv_transpose2d(x, w).tolist() == (x * w).tolist()
        np.testing.assert_allclose(F.conv_transpose2d(x, normal(1, 1, 3, 3), padding=1), x * normal(1, 1, 3, 3)[:, :, 1:2, 1:2])

    def test_an_empty_batch(self):
        x, w, b = leaves(np.zeros((0, 2, 5, 5)), normal(3, 2, 3, 3), normal(3))
        y = F.conv2d(x, w, b, padding=1, activation="relu")
        y.sum().backward()
        assert y.shape == (0, 3, 5, 5) and x.grad.shape == x.shape and not w.grad.data.any() and not b.grad.data.any()
        assert F.conv_transpose2d(x, w.swapaxes(0, 1)).shape == (0, 3, 7, 7)


class TestGradients:
    def test_what_is_frozen_changes_no_other_gradient(self):
        arrays = normal(2, 2, 4, 4), normal(3, 2, 3, 3), normal(3)
        everything = leaves(*arrays)
        F.conv2d(*everything, activation="tanh").sum().backward()
        for wanted in itertools.product((False, True), repeat=3):
            some = [Tensor(a, requires_grad) for a, requires_grad in zip(arrays, wanted)]
            y = F.conv2d(*some, activation="tanh").sum()
            if any(wanted):
                y.backward()
            for mine, theirs in zip(some, everything):
                assert mine.grad is None if not mine.requires_grad else np.array_equal(mine.grad.data, theirs.grad.data)

    def test_an_activation_that_is_fused_is_the_function_of_its_name(self):
        arrays = normal(2, 2, 4, 4), normal(3, 2, 3, 3), normal(3)
        for name in ("relu", "tanh", "sigmoid"):
            fused = values_and_gradients(lambda x, w, b, name=name: F.conv2d(x, w, b, activation=name), *arrays)
            alone = values_and_gradients(lambda x, w, b, name=name: getattr(F, name)(F.conv2d(x, w, b)), *arrays)
            for mine, theirs in zip(fused, alone):
                np.testing.assert_allclose(mine, theirs, rtol=1e-12, atol=1e-12)

    def test_the_weights_can_be_differentiated_twice(self):
        """Half the sum of y^2 has the Hessian P^T P by the weights, where P has a patch a row."""
        x, v = normal(2, 2, 4, 4), normal(3, 2, 3, 3)
        (w,) = leaves(normal(3, 2, 3, 3))
        y = F.conv2d(x, w)
        (found,) = minidl.hvp((y * y).sum() * 0.5, [w], [v])
        patches = np.concatenate(Window((3, 3)).patches(x)).reshape(-1, 18)
        np.testing.assert_allclose(found.data, (v.reshape(3, 18) @ patches.T @ patches).reshape(v.shape))

    def test_a_third_time(self):
        x, w = leaves(normal(1, 1, 3, 3), normal(1, 1, 2, 2))
        y = F.conv2d(x, w)
        (first,) = minidl.grad((y * y * y).sum(), w, create_graph=True)
        (second,) = minidl.grad(first.sum(), w, create_graph=True)
        (third,) = minidl.grad(second.sum(), w)
        patches = np.concatenate(Window((2, 2)).patches(x.data)).reshape(4, 4)
        np.testing.assert_allclose(third.data.ravel(), 6 * patches.T @ (patches.sum(1) ** 2))

    def test_float32_stays_to_second_order(self):
        xs = leaves(normal(1, 2, 4, 4, dtype="float32"), normal(2, 2, 3, 3, dtype="float32"), normal(2, dtype="float32"))
        for function in (lambda x, w, b: F.conv2d(x, w, b, activation="sigmoid"), F.conv_transpose2d):
            y = function(*xs)
            firsts = minidl.grad(y, xs, np.ones(y.shape), create_graph=True)
            seconds = minidl.grad(sum(g.sum() for g in firsts[:2]), xs[:2])
            assert all(t.dtype == np.float32 for t in (y, *firsts, *seconds))


class TestMemory:
    def test_columns_in_pieces_give_the_same(self, monkeypatch):
        x, w = normal(3, 4, 6, 5), normal(4, 2, 3, 3)

        def conv(x, w):
            return F.conv2d(x, w, stride=(1, 2), padding=1, groups=2)
        wanted = values_and_gradients(conv, x, w)
        for piece in (1, 250, 700, 1400):           # less than a row; two rows; an image; two images
            monkeypatch.setattr(reference, "PIECE", piece)
            for mine, theirs in zip(values_and_gradients(conv, x, w), wanted):
                np.testing.assert_allclose(mine, theirs, rtol=1e-12, atol=1e-12)

    def test_the_columns_of_a_whole_batch_never_stand_in_memory(self):
        x, w = normal(24, 8, 24, 24, dtype="float32"), normal(8, 8, 5, 5, dtype="float32")
        columns = 24 * 8 * 25 * 24 * 24 * 4                     # bytes
        xs = leaves(x, w)
        tracemalloc.start()
        try:
            y = F.conv2d(*xs, padding=2)
            y.backward(y.data)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < columns / 2, f"{peak / 1e6:.1f} MB at once, and the columns are {columns / 1e6:.1f} MB"


class TestAlgorithms:
    """Each gives the same numbers, gradients and second gradients; the one that is asked for goes along to all three products."""

    @pytest.mark.parametrize("algorithm", ["im2col", "fft"])
    @pytest.mark.parametrize(("function", "more"), [(F.conv2d, {}), (F.conv2d, {"activation": "tanh"}), (F.conv_transpose2d, {})])
    def test_give_the_same_to_second_order(self, function, more, algorithm):
        arrays = normal(2, 4, 5, 4), normal(4, 2, 3, 2), normal(4)
        options = {"stride": (2, 1), "padding": 1, "dilation": (1, 2), "groups": 2, **more}

        def first_and_second(algorithm):
            xs = leaves(*arrays)
            y = function(*xs, **options, algorithm=algorithm)
            firsts = minidl.grad(y, xs, normal(*y.shape), create_graph=True)
            seconds = minidl.grad(sum((g * g).sum() for g in firsts), xs[:2])
            return [t.data for t in (y, *firsts, *seconds)]
        for mine, theirs in zip(first_and_second(algorithm), first_and_second(None)):
            np.testing.assert_allclose(mine, theirs, rtol=1e-10, atol=1e-10)

    def test_go_along_to_every_product(self, monkeypatch):
        seen = []
        for name in ("conv2d", "conv2d_input", "conv2d_weights"):
            def spy(name, kernel, *args):
                seen.append((name, args[-1]))
                return kernel(*args)
            monkeypatch.setattr(kernels, name, functools.partial(spy, name, getattr(reference, name)))
        for call, wanted in ((lambda x, w: F.conv2d(x, w, padding=1, algorithm="fft"), ["conv2d", "conv2d_input", "conv2d_weights"]),
                             (lambda x, w: F.conv_transpose2d(x, w, algorithm="fft"), ["conv2d", "conv2d_input", "conv2d_weights"])):
            seen.clear()
            x, w = leaves(normal(1, 2, 4, 4), normal(2, 2, 3, 3))
            minidl.grad(minidl.grad(call(x, w).sum(), [x, w], create_graph=True)[0].sum(), w)
            assert {name for name, _ in seen} == set(wanted) and {algorithm for _, algorithm in seen} == {"fft"}

    def test_what_is_compiled_only_says_so(self):
        x, w = normal(1, 2, 4, 4), normal(2, 2, 3, 3)
        for algorithm in ("direct", "winograd"):
            for function in (F.conv2d, F.conv_transpose2d):             # float64 has no compiled kernels
                with pytest.raises(ArgumentError, match=says(f"convolution: algorithm '{algorithm}' needs the compiled kernels")):
                    function(x, w, algorithm=algorithm)


class TestErrors:
    X, W = np.ones((2, 4, 5, 5)), np.ones((6, 3, 3, 3))

    @pytest.mark.parametrize(("call", "words"), [
        (lambda x, w: F.conv2d(x, w), ("conv2d: x has 4 channels, w expects 3", "x: (2, 4, 5, 5) (N, C, H, W)",
                                       "w: (6, 3, 3, 3) (O, C / groups, KH, KW)", "groups: 1", "inputs=4", "x[:, :3]")),
        (lambda x, w: F.conv2d(x[:, :2], w), ("conv2d: x has 2 channels, w expects 3", "inputs=2")),
        (lambda x, w: F.conv2d(x, w[:, :1], groups=4), ("conv2d: 6 filters do not divide into 4 groups", "groups: 4")),
        (lambda x, w: F.conv2d(x, w[:, :2], groups=4), ("conv2d: x has 4 channels, w expects 8",)),
        (lambda x, w: F.conv2d(x[:, :3], w, np.ones(5)), ("conv2d: b has shape (5,), and there are 6 filters", "b: (5,) (O,)")),
        (lambda x, w: F.conv2d(x[0], w), ("conv2d: images and filters have four axes", "x: (4, 5, 5) (N, C, H, W)", "x[None]")),
        (lambda x, w: F.conv2d(x, w[0]), ("conv2d: images and filters have four axes", "w: (3, 3, 3)")),
        (lambda x, w: F.conv2d(x[:, :3], w, dilation=3), ("conv2d: the window is larger than the image", "image: (5, 5) (H, W)",
                                                          "window: (7, 7)", "padding: (0, 0)", "smaller kernel")),
        (lambda x, w: F.conv_transpose2d(x, w), ("conv_transpose2d: x has 4 channels, w expects 6", "x: (2, 4, 5, 5) (N, C, H, W)",
                                                 "w: (6, 3, 3, 3) (C, O / groups, KH, KW)")),
        (lambda x, w: F.conv_transpose2d(x, w[:4], groups=3), ("conv_transpose2d: 4 channels do not divide into 3 groups",)),
        (lambda x, w: F.conv_transpose2d(x, w[:4], np.ones(4)), ("conv_transpose2d: b has shape (4,), and there are 3 outputs", "(O,)")),
        (lambda x, w: F.conv_transpose2d(x[0], w), ("conv_transpose2d: images and filters have four axes", "x: (4, 5, 5)")),
        (lambda x, w: F.conv_transpose2d(x, w[:4], padding=4), ("conv_transpose2d: the padding is larger than the result",
                                                                "x: (2, 4, 5, 5)", "padding: (4, 4)")),
    ])
    def test_shapes(self, call, words):
        with pytest.raises(ShapeError, match=says(*words)):
            call(self.X, self.W)

    @pytest.mark.parametrize("function", [F.conv2d, F.conv_transpose2d])
    @pytest.mark.parametrize(("options", "words"), [
        ({"stride": 0}, ("stride is (0, 0), and must be at least 1",)),
        ({"padding": (0, -1)}, ("padding is (0, -1), and must be at least 0",)),
        ({"dilation": 0}, ("dilation is (0, 0), and must be at least 1",)),
        ({"groups": 0}, ("groups is 0, and must be at least 1",)),
        ({"stride": 1.5}, ("stride is 1.5, and must be an int or a pair of ints: (height, width)",)),
        ({"padding": (1, 1, 1)}, ("padding is (1, 1, 1), and must be an int or a pair",)),
        ({"padding": "same"}, ("padding is 'same', and must be an int or a pair",)),
    ])
    def test_options(self, function, options, words):
        with pytest.raises(ArgumentError, match=says(f"{function.__name__}: ", *words)):
            function(np.ones((2, 3, 5, 5)), np.ones((3, 3, 3, 3)), **options)

    def test_filters_without_numbers(self):
        for function in (F.conv2d, F.conv_transpose2d):
            with pytest.raises(ArgumentError, match=says(f"{function.__name__}: kernel is (0, 3), and must be at least 1")):
                function(np.ones((2, 3, 5, 5)), np.ones((3, 3, 0, 3)))

    def test_names(self):
        x, w = np.ones((1, 3, 5, 5)), self.W
        with pytest.raises(ArgumentError, match=says("conv2d: activation 'gelu'", "relu, tanh, sigmoid")):
            F.conv2d(x, w, activation="gelu")
        for function in (F.conv2d, F.conv_transpose2d):
            with pytest.raises(ArgumentError, match=says(f"{function.__name__}: algorithm 'fff' is not known (nearest: 'fft')",
                                                         "Known are im2col, fft, direct, winograd, implicit, and None")):
                function(x, w[:3], algorithm="fff")
        with pytest.raises(ArgumentError, match=says("conv_transpose2d: output_padding is (2, 2), and must be less than stride or dilation",
                                                     "stride: (2, 2)", "dilation: (1, 1)")):
            F.conv_transpose2d(x, np.ones((3, 2, 3, 3)), stride=2, output_padding=2)

    @pytest.mark.parametrize("function", [F.conv2d, F.conv_transpose2d])
    def test_dtypes(self, function):
        x, w = np.ones((1, 3, 5, 5), np.float32), np.ones((3, 3, 3, 3))
        with pytest.raises(DtypeError, match=says(f"{function.__name__}: x is float32, w is float64", "x.astype('float64')")):
            function(x, w)
        with pytest.raises(DtypeError, match=says(f"{function.__name__}: x is uint8, and must be of a float type")):
            function(x.astype("uint8"), w)
        with pytest.raises(DtypeError, match=says(f"{function.__name__}: w is a list")):
            function(x, [[1.0]])
