"""Convolution on a GPU: every algorithm by its name beside the reference in float64, and which one a shape gets."""

import math

import numpy as np
import pytest

import emulated
import minidl.functions as F
from minidl import Tensor, backend, grad, kernels
from minidl.errors import ArgumentError
from minidl.kernels import Window, reference
from minidl.kernels.cuda import convolution, im2col, implicit, source

pytestmark = pytest.mark.skipif(bool(emulated.WHY_NOT), reason=emulated.WHY_NOT)

BY_NAME = ("im2col", "implicit")
EPS = {"float64": 2.0 ** -52, "float32": 2.0 ** -23, "float16": 2.0 ** -10, "bfloat16": 2.0 ** -7}

# images, channels, (H, W), filters, window, groups
SHAPES = {
    "plain": (2, 3, (7, 9), 5, Window((3, 3)), 1),
    "padding": (3, 4, (8, 6), 6, Window((3, 3), padding=(1, 1)), 1),
    "stride": (2, 3, (9, 11), 4, Window((3, 3), (2, 2), (1, 1)), 1),
    "stride beyond the kernel": (2, 2, (11, 10), 3, Window((2, 1), (3, 2), (0, 1)), 1),
    "gaps": (1, 3, (9, 10), 4, Window((3, 2), (1, 1), (2, 1), (2, 3)), 1),
    "stride and gaps": (2, 2, (12, 13), 3, Window((3, 3), (2, 3), (2, 2), (2, 2)), 1),
    "gaps that a stride divides": (1, 2, (13, 12), 3, Window((3, 3), (4, 2), (3, 1), (2, 2)), 1),
    "first layer": (2, 3, (17, 15), 8, Window((7, 7), (2, 2), (3, 3)), 1),
    "1 x 1": (3, 8, (5, 4), 7, Window((1, 1)), 1),
    "1 x 1 with stride": (2, 6, (7, 8), 5, Window((1, 1), (2, 2)), 1),
    "groups": (2, 6, (6, 7), 9, Window((3, 3), padding=(1, 1)), 3),
    "one filter a channel": (2, 5, (7, 6), 5, Window((3, 3), (1, 2), (1, 1)), 5),
    "two filters a channel": (2, 3, (7, 6), 6, Window((3, 2), (2, 1), (1, 1), (1, 2)), 3),
    "several tiles": (2, 40, (9, 10), 200, Window((3, 3), padding=(1, 1)), 1),
    "one number": (1, 1, (1, 1), 1, Window((1, 1)), 1),
}


def on_device(x):
    return backend.asarray(x, "emulated:0")


def rounded(x, dtype):
    """x as it is in a type, and what of it is left, in float64."""
    x = x.astype(backend.dtype_named(dtype))
    return x, x.astype("float64")


def arguments(shape, dtype, weights=None):
    """x, w, b and gy of a shape: as they are given, and as float64. weights: the type of w and b, if another."""
    n, c, size, o, window, groups = SHAPES[shape]
    random = np.random.default_rng(len(shape))
    x, gy = random.standard_normal((n, c, *size)), random.standard_normal((n, o, *window.out(size)))
    w, b = random.standard_normal((o, c // groups, *window.kernel)), random.standard_normal(o)
    return [rounded(a, d) for a, d in ((x, dtype), (w, weights or dtype), (b, weights or dtype), (gy, dtype))]


def close(found, expected, dtype, terms, twice=False):
    """The same numbers, but for the rounding of the result, and of sums of so many terms in the type of sums.

    twice: the sums are rounded to the result's type before the bias is added.
    """
    wide = EPS["float64" if dtype == "float64" else "float32"]
    found = backend.to_numpy(found).astype("float64")
    assert found.shape == expected.shape
    off = abs(found - expected) - EPS[dtype] * (abs(expected) + twice)
    assert off.max() <= 8 * wide * math.sqrt(terms) * max(1.0, abs(expected).max())


def three(shape, dtype, algorithm, weights=None):
    """The three maps by an algorithm, and what they should give."""
    _, _, size, _, window, groups = SHAPES[shape]
    (x, x64), (w, w64), (b, b64), (gy, gy64) = arguments(shape, dtype, weights)
    if weights is not None:
        w64 = rounded(w64, dtype)[1]
    terms = x[0].size + gy[0].size
    y = kernels.conv2d(on_device(x), on_device(w), window, groups, on_device(b), "tanh", algorithm)
    assert y.dtype == x.dtype
    close(y, reference.conv2d(x64, w64, window, groups, b64, "tanh"), dtype, terms, twice=algorithm != "implicit")
    gx = kernels.conv2d_input(on_device(gy), on_device(w), size, window, groups, algorithm=algorithm)
    assert gx.dtype == x.dtype
    close(gx, reference.conv2d_input(gy64, w64, size, window, groups), dtype, terms)
    gw = kernels.conv2d_weights(on_device(x), on_device(gy), window, groups, algorithm)
    sums = dtype if dtype in ("float32", "float64") else "float32"
    assert gw.dtype == sums
    close(gw, reference.conv2d_weights(x64, gy64, window, groups), sums, terms * len(x))
    return y, gx, gw


class TestEveryAlgorithm:
    @pytest.mark.parametrize("algorithm", BY_NAME)
    @pytest.mark.parametrize(("shape", "dtype"), [(shape, dtype) for dtype in ("float64", "float32") for shape in SHAPES
                                                  if (shape, dtype) != ("several tiles", "float64")])
    def test_shapes(self, shape, algorithm, dtype):
        three(shape, dtype, algorithm)

    @pytest.mark.parametrize("algorithm", BY_NAME)
    @pytest.mark.parametrize("shape", ["padding", "stride and gaps", "first layer", "1 x 1", "groups", "several tiles"])
    def test_float16(self, shape, algorithm):
        three(shape, "float16", algorithm)

    @pytest.mark.parametrize("algorithm", BY_NAME)
    @pytest.mark.parametrize("shape", ["padding", "first layer", "1 x 1 with stride"])
    def test_bfloat16(self, shape, algorithm):
        pytest.importorskip("ml_dtypes", reason="bfloat16 is ml_dtypes'")
        three(shape, "bfloat16", algorithm)

    @pytest.mark.parametrize("dtype", ["float32", "float16"])
    @pytest.mark.parametrize("shape", SHAPES)
    def test_left_to_the_table(self, shape, dtype):
        three(shape, dtype, None)

    @pytest.mark.parametrize("algorithm", [*BY_NAME, None])
    @pytest.mark.parametrize("shape", ["padding", "1 x 1", "two filters a channel"])
    def test_weights_in_float32_beside_sixteen_bits(self, shape, algorithm):
        three(shape, "float16", algorithm, weights="float32")

    @pytest.mark.parametrize("algorithm", [*BY_NAME, None])
    @pytest.mark.parametrize("shape", ["stride and gaps", "groups", "one filter a channel"])
    def test_places_in_64_bits(self, shape, algorithm, monkeypatch):
        monkeypatch.setattr(source, "FAR", 1)
        three(shape, "float32", algorithm)

    def test_a_bias_of_the_gradient_by_the_input(self):
        (_, _), (w, w64), _, (gy, gy64) = arguments("stride", "float64")
        _, c, size, _, window, _ = SHAPES["stride"]
        b = np.arange(c) + 0.5
        expected = reference.conv2d_input(gy64, w64, size, window, b=b)
        for algorithm in (*BY_NAME, None):
            close(kernels.conv2d_input(on_device(gy), on_device(w), size, window, 1, on_device(b), algorithm), expected, "float64", w.size)

    @pytest.mark.parametrize("algorithm", BY_NAME)
    def test_activations(self, algorithm):
        (x, x64), (w, w64), (b, b64), _ = arguments("plain", "float64")
        window = SHAPES["plain"][4]
        for activation in ("relu", "tanh", "sigmoid", None):
            close(kernels.conv2d(on_device(x), on_device(w), window, 1, on_device(b), activation, algorithm),
                  reference.conv2d(x64, w64, window, 1, b64, activation), "float64", w.size)

    @pytest.mark.parametrize("algorithm", [*BY_NAME, None])
    def test_memory_in_another_order(self, algorithm):
        (x, x64), (w, w64), _, _ = arguments("padding", "float32")
        window = SHAPES["padding"][4]
        x = on_device(np.ascontiguousarray(x.transpose(0, 2, 3, 1))).transpose(0, 3, 1, 2)
        w = on_device(np.ascontiguousarray(w.T)).T
        close(kernels.conv2d(x, w, window, algorithm=algorithm), reference.conv2d(x64, w64, window), "float32", w.size)

    def test_not_a_number_stays_one(self):
        (x, _), (w, _), _, _ = arguments("padding", "float32")
        x[0, 1, 2, 3] = np.nan
        expected = np.isnan(reference.conv2d(x, w, SHAPES["padding"][4]))
        for algorithm in BY_NAME:
            y = backend.to_numpy(kernels.conv2d(on_device(x), on_device(w), SHAPES["padding"][4], 1, None, "relu", algorithm))
            np.testing.assert_array_equal(np.isnan(y), expected)

    @pytest.mark.parametrize("algorithm", [*BY_NAME, None])
    def test_bits_do_not_depend_on_the_order_of_blocks(self, algorithm):
        once = three("several tiles", "float32", algorithm)
        with emulated.backwards():
            again = three("several tiles", "float32", algorithm)
        for a, b in zip(once, again):
            np.testing.assert_array_equal(backend.to_numpy(a), backend.to_numpy(b))


class TestImplicit:
    @pytest.mark.parametrize("shape", ["padding", "stride", "1 x 1", "groups", "several tiles"])
    def test_sums_in_parts(self, shape, monkeypatch):
        monkeypatch.setattr(implicit, "SHORTEST", 1)
        three(shape, "float32", "implicit")
        three(shape, "float16", "implicit")

    @pytest.mark.parametrize("shape", ["padding", "gaps that a stride divides"])
    def test_tf32_rounds_the_factors_and_nothing_else(self, shape):
        _, _, size, _, window, groups = SHAPES[shape]
        (x, x64), (w, w64), _, (gy, _) = arguments(shape, "float32")
        terms = x[0].size + gy[0].size
        short = [to_tf32(a) for a in (x, w, gy)]
        with kernels.allow_tf32():
            y = kernels.conv2d(on_device(x), on_device(w), window, groups, algorithm="implicit")
            gx = kernels.conv2d_input(on_device(gy), on_device(w), size, window, groups, algorithm="implicit")
            gw = kernels.conv2d_weights(on_device(x), on_device(gy), window, groups, "implicit")
        close(y, reference.conv2d(short[0], short[1], window, groups), "float32", terms)
        close(gx, reference.conv2d_input(short[2], short[1], size, window, groups), "float32", terms)
        close(gw, reference.conv2d_weights(short[0], short[2], window, groups), "float32", terms * len(x))
        assert abs(backend.to_numpy(y) - reference.conv2d(x64, w64, window, groups)).max() > 1e-4        # it did round

    @pytest.mark.parametrize("dtype", ["float32", "float16"])
    def test_terms_of_many_steps_with_places_in_64_bits(self, dtype, monkeypatch):
        monkeypatch.setattr(source, "FAR", 0)
        three("several tiles", dtype, "implicit")

    def test_gpus_whose_tensor_cores_do_not_know_the_instructions(self, monkeypatch):
        x = on_device(np.ones(3, np.float16))
        assert implicit.on_tensor_cores(x)
        monkeypatch.setattr(emulated.xp.cuda.Device, "compute_capability", "75")
        monkeypatch.setattr(implicit, "capable", implicit.capable.__wrapped__)                 # else it is kept
        assert not implicit.on_tensor_cores(x)
        three("several tiles", "float16", "implicit")

    def test_tiles_that_fit_the_rows(self):
        assert [implicit.height(rows) for rows in (1, 32, 33, 64, 65, 128, 192, 512)] == [32, 32, 64, 64, 128, 128, 64, 128]

    def test_a_sum_is_cut_where_there_are_few_tiles(self):
        assert implicit.parts_of(tiles=2, steps=12544, size=9408) == 132
        assert implicit.parts_of(tiles=1000, steps=10000, size=10**6) == 1
        assert implicit.parts_of(tiles=1, steps=4, size=10) == 1
        assert implicit.parts_of(tiles=1, steps=10**6, size=2**23) == 2           # what the parts take is bounded


class TestIm2col:
    @pytest.mark.parametrize("size", [1, 500, 3000])
    @pytest.mark.parametrize("shape", ["padding", "stride and gaps", "groups", "1 x 1 with stride"])
    def test_pieces(self, shape, size, monkeypatch):
        monkeypatch.setattr(im2col, "PIECE", size)
        three(shape, "float64", "im2col")

    def test_pieces_cover_everything_once(self):
        for images, parts, size in ((5, 7, 2**23), (3, 1000, 100), (2, 3, 2**26), (1, 1, 1)):
            seen = np.zeros((images, parts), int)
            for some, places in im2col.pieces(images, parts, size):
                seen[some, places] += 1
                count = (some.stop - some.start) * (places.stop - places.start)
                assert count * size <= im2col.PIECE or count == 1
            assert (seen == 1).all()

    def test_small_images_have_few_threads(self):
        assert im2col.grid(49, 512, 32) == ((1, 512, 32), 64)
        assert im2col.grid(1000, 3, 10**5) == ((4, 3, 65535), 256)

    @pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
    @pytest.mark.parametrize("bias", [False, True])
    @pytest.mark.parametrize("shape", ["padding", "stride and gaps", "groups", "1 x 1"])
    def test_patch_moments(self, shape, bias, dtype, monkeypatch):
        *_, window, groups = SHAPES[shape]
        (x, x64), *_ = arguments(shape, dtype)
        expected = reference.conv2d_patch_moments(x64, window, groups, bias)
        for size in (im2col.PIECE, 700):
            monkeypatch.setattr(im2col, "PIECE", size)
            moments = kernels.conv2d_patch_moments(on_device(x), window, groups, bias)
            assert moments.dtype == ("float64" if dtype == "float64" else "float32")
            close(moments, expected, str(moments.dtype), x.size)


class TestTable:
    def chosen(self, way, n, c, size, o, kernel, stride=1, kind="float32"):
        window = Window((kernel, kernel), (stride, stride), (kernel // 2, kernel // 2))
        return convolution.choose(way, kind, n, o, c, window, 1, window.out((size, size)))

    def test_1x1_filters_need_no_columns(self):
        assert self.chosen(convolution.FORWARD, 32, 256, 56, 64, 1) == "im2col"
        assert self.chosen(convolution.INPUT, 32, 256, 56, 64, 1) == "im2col"

    def test_columns_cost_more_than_they_bring_where_there_are_few_filters(self):
        assert self.chosen(convolution.FORWARD, 32, 64, 56, 64, 3) == "implicit"
        assert self.chosen(convolution.FORWARD, 32, 512, 28, 512, 3) == "im2col"

    def test_one_filter_a_channel(self):
        assert convolution.choose(convolution.FORWARD, "float32", 2, 16, 8, Window((3, 3)), 8, (3, 3)) == "depthwise"

    def test_more_groups_or_classes_than_a_grid_has_blocks(self):
        assert convolution.choose(convolution.INPUT, "float32", 1, 1, 1, Window((1, 1), (300, 300)), 1, (1, 1)) == "im2col"


class TestNames:
    def test_compiled_algorithms_are_the_cpus(self):
        (x, _), (w, _), _, _ = arguments("plain", "float32")
        for algorithm in ("winograd", "direct"):
            with pytest.raises(ArgumentError, match="on a CPU"):
                F.conv2d(on_device(x), on_device(w), algorithm=algorithm)

    def test_implicit_is_the_gpus(self):
        (x, _), (w, _), _, _ = arguments("plain", "float32")
        with pytest.raises(ArgumentError, match="CUDA device"):
            F.conv2d(x, w, algorithm="implicit")

    def test_more_groups_than_a_grid_has_blocks(self):
        x, w = (backend.asarray(np.ones(shape, np.float32), "emulated:0") for shape in ((1, 65536, 1, 1), (65536, 1, 1, 1)))
        with pytest.raises(ArgumentError, match="at most 65,535 groups"):
            F.conv2d(x, w, groups=65536, algorithm="implicit")
        assert float(F.conv2d(x, w, groups=65536).sum()) == 65536

    def test_fourier_transforms_are_the_references(self):
        (x, x64), (w, w64), _, _ = arguments("plain", "float64")
        y = F.conv2d(on_device(x), on_device(w), algorithm="fft")
        close(y, reference.conv2d(x64, w64, SHAPES["plain"][4]), "float64", 100 * w.size)


class TestThroughFunctions:
    @pytest.mark.parametrize("algorithm", [*BY_NAME, None])
    def test_second_derivatives(self, algorithm):
        (x, _), (w, _), (b, _), _ = arguments("stride", "float64")

        def second(place):
            xs = [Tensor(backend.asarray(a, place), requires_grad=True) for a in (x, w, b)]
            y = F.conv2d(*xs, stride=2, padding=1, activation="tanh", algorithm=algorithm if place != "cpu" else None)
            first = grad((y * y).sum(), xs, create_graph=True)
            return [backend.to_numpy(g.data) for g in grad(sum((g * g).sum() for g in first), xs)]

        for found, expected in zip(second("emulated:0"), second("cpu")):
            np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10 * abs(expected).max())


def to_tf32(x):
    """float32 with 10 bits of the fraction, rounded to the nearest, ties away from zero, in float64."""
    return ((x.view(np.uint32) + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32).astype("float64")
