"""The reference kernels against loops, over drawn images and windows. Faster twins are held to the reference, and so to these."""

import math
import tracemalloc

import numpy as np
import pytest
from geometry import few, numbers, orders, plain, sliding
from hypothesis import given
from hypothesis import strategies as st

from cases import says
from minidl.errors import ArgumentError
from minidl.kernels import Window, reference

small = st.integers(1, 2)


def patches(x, window, fill=0.0):
    """What is under the window, by loops: a list of (N, C, KH, KW); NaN where only ceil_mode reaches."""
    return plain(window).patches(x, fill, window.ceil_mode)


def scattered(parts, size, window):
    """Images (N, C, H, W) onto which each of the parts (N, C, KH, KW) is added where its window stands."""
    n, c = parts[0].shape[:2]
    around = [length + 2 * p + window.span[axis] + window.stride[axis] for axis, (length, p) in enumerate(zip(size, window.padding))]
    image = np.zeros((n, c, *around))
    for part, (rows, columns) in zip(parts, plain(window).places((n, c, *size), window.ceil_mode)):
        for i, row in enumerate(rows):
            for j, column in enumerate(columns):
                image[:, :, row, column] += part[:, :, i, j]
    top, left = window.padding
    return image[:, :, top:top + size[0], left:left + size[1]]


def at_places(y):
    """The entries of (N, C, OH, OW) place by place: a list of (N, C)."""
    return [y[:, :, i, j] for i in range(y.shape[2]) for j in range(y.shape[3])]


class TestColumns:
    @few
    @given(sliding(), small, small, orders)
    def test_im2col(self, drawn, n, c, order):
        size, window = drawn
        x = numbers(n, c, *size, order=order)
        wanted = np.stack([patch.reshape(n, -1) for patch in patches(x, window)], axis=-1)
        np.testing.assert_array_equal(reference.im2col(x, window), wanted)

    @few
    @given(sliding(), small, small)
    def test_col2im(self, drawn, n, c):
        size, window = drawn
        columns = numbers(n, c * math.prod(window.kernel), math.prod(window.out(size)))
        parts = [columns[:, :, k].reshape(n, c, *window.kernel) for k in range(columns.shape[2])]
        np.testing.assert_allclose(reference.col2im(columns, size, window), scattered(parts, size, window), atol=1e-12)

    def test_the_picture_in_the_docstring_is_a_published_example(self):
        """x = [[2,0,1],[0,2,3],[1,3,1]], w = [[1,0],[0,2]]: patches times weights are [[6,6],[6,4]]."""
        x, w = np.array([[2, 0, 1], [0, 2, 3], [1, 3, 1]], float), np.array([[1, 0], [0, 2]], float)
        rows = reference.im2col(x[None, None], Window((2, 2)))[0].T
        assert rows.tolist() == [[2, 0, 0, 2], [0, 1, 2, 3], [0, 2, 1, 3], [2, 3, 3, 1]]
        assert (rows @ w.reshape(4, 1)).reshape(2, 2).tolist() == [[6, 6], [6, 4]]

    def test_integers_stay_integers(self):
        x = np.arange(9, dtype=np.uint8).reshape(1, 1, 3, 3)
        assert reference.im2col(x, Window((2, 2), padding=(1, 1))).dtype == np.uint8

    def test_patches_are_a_view(self):
        x = numbers(2, 3, 5, 5)
        assert np.shares_memory(reference.patches_of(x, Window((3, 3), (2, 2))), x)


class TestConvolution:
    @few
    @given(sliding(), small, small, small, st.integers(1, 3), orders, st.sampled_from([None, "im2col", "fft"]))
    def test_three_products(self, drawn, n, channels, filters, groups, order, algorithm):
        size, window = drawn
        x = numbers(n, channels * groups, *size, order=order)
        w = numbers(filters * groups, channels, *window.kernel, order=order)
        gy = numbers(n, filters * groups, *window.out(size), order=order)
        y, gx, gw = np.zeros(gy.shape), [], np.zeros(w.shape)
        for i, (patch, g) in enumerate(zip(patches(x, window), at_places(gy))):
            back = np.zeros(patch.shape)
            for o in range(filters * groups):
                mine = slice(o // filters * channels, (o // filters + 1) * channels)
                y[:, o].reshape(n, -1)[:, i] = (patch[:, mine] * w[o]).sum((1, 2, 3))
                gw[o] += (patch[:, mine] * g[:, o, None, None, None]).sum(0)
                back[:, mine] += w[o] * g[:, o, None, None, None]
            gx.append(back)
        gx = scattered(gx, size, window)
        options = {"groups": groups, "algorithm": algorithm}
        np.testing.assert_allclose(reference.conv2d(x, w, window, **options), y, atol=1e-12)
        np.testing.assert_allclose(reference.conv2d_weights(x, gy, window, **options), gw, atol=1e-12)
        np.testing.assert_allclose(reference.conv2d_input(gy, w, size, window, **options), gx, atol=1e-12)
        b, bx = numbers(filters * groups), numbers(channels * groups)
        wanted = np.tanh(y + b[:, None, None])
        np.testing.assert_allclose(reference.conv2d(x, w, window, groups, b, "tanh", algorithm), wanted, atol=1e-12)
        np.testing.assert_allclose(reference.conv2d_input(gy, w, size, window, groups, bx, algorithm), gx + bx[:, None, None], atol=1e-12)

    @pytest.mark.parametrize("algorithm", [None, "fft"])
    @pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
    def test_dtypes_stay(self, dtype, algorithm):
        x, w, window = numbers(2, 4, 5, 5, dtype=dtype), numbers(2, 2, 3, 3, dtype=dtype), Window((3, 3))
        y = reference.conv2d(x, w, window, 2, algorithm=algorithm)
        gx, gw = reference.conv2d_input(y, w, (5, 5), window, 2, None, algorithm), reference.conv2d_weights(x, y, window, 2, algorithm)
        assert y.dtype == gx.dtype == gw.dtype == reference.conv2d_patch_moments(x, window, 2, bias=True).dtype == dtype

    @few
    @given(sliding(), small, small, st.integers(1, 3), st.booleans(), orders)
    def test_patch_moments(self, drawn, n, channels, groups, bias, order):
        size, window = drawn
        x = numbers(n, channels * groups, *size, order=order)
        rows = [patch.reshape(n, groups, -1) for patch in patches(x, window)]
        rows = [np.concatenate([row, np.ones((n, groups, 1))], -1) if bias else row for row in rows]
        wanted = sum(row[:, :, :, None] * row[:, :, None] for row in rows).sum(0)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(reference, "PIECE", 100)
            np.testing.assert_allclose(reference.conv2d_patch_moments(x, window, groups, bias), wanted, atol=1e-12)

    @pytest.mark.parametrize("algorithm", ["direct", "winograd"])
    def test_what_only_compiled_kernels_can_do(self, algorithm):
        x, w, window = numbers(1, 1, 4, 4), numbers(1, 1, 3, 3), Window((3, 3), padding=(1, 1))
        for call in (lambda: reference.conv2d(x, w, window, algorithm=algorithm),
                     lambda: reference.conv2d_weights(x, x, window, algorithm=algorithm),
                     lambda: reference.conv2d_input(x, w, (4, 4), window, algorithm=algorithm)):
            with pytest.raises(ArgumentError, match=says(f"convolution: algorithm '{algorithm}' needs the compiled kernels: float32 arrays",
                                                         'pip install "minidl[fast]"', '"im2col" or "fft"')):
                call()

    @few
    @given(st.integers(0, 4), st.integers(1, 18), st.tuples(st.integers(1, 6), st.integers(1, 6)), st.integers(1, 400))
    def test_pieces_are_small_and_cover_every_row_once(self, n, numbers, out, piece):
        times = np.zeros((n, out[0]), int)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(reference, "PIECE", piece)
            for images, rows in reference.pieces(n, numbers, out):
                times[images, rows] += 1
                count = times[images, rows].size * numbers * out[1]
                assert count < 2 * piece or times[images, rows].size == 1           # no less than a row
        assert (times == 1).all()

    @pytest.mark.parametrize("algorithm", [None, "fft"])
    @pytest.mark.parametrize("product", ["conv2d", "conv2d_input", "conv2d_weights", "conv2d_patch_moments"])
    def test_one_large_image_takes_little_memory(self, product, algorithm):
        """The columns would be 18 times the image; what Fourier transforms need is known from the shapes."""
        x, w, window = numbers(1, 2, 300, 310, dtype="float32"), numbers(2, 2, 3, 3, dtype="float32"), Window((3, 3), padding=(1, 1))
        call = {"conv2d": lambda: reference.conv2d(x, w, window, algorithm=algorithm),
                "conv2d_input": lambda: reference.conv2d_input(x, w, (300, 310), window, algorithm=algorithm),
                "conv2d_weights": lambda: reference.conv2d_weights(x, x, window, algorithm=algorithm),
                "conv2d_patch_moments": lambda: reference.conv2d_patch_moments(x, window)}[product]
        tracemalloc.start()
        try:
            call()
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < (14 if algorithm else 6) * x.nbytes, f"{peak / x.nbytes:.1f} times the image"

    def test_images_are_brought_to_frequencies_a_piece_at_a_time(self, monkeypatch):
        x, w, window = numbers(5, 2, 4, 5), numbers(4, 1, 2, 2), Window((2, 2), stride=(2, 1))
        gy = numbers(5, 4, *window.out((4, 5)))
        monkeypatch.setattr(reference.fft, "PIECE", 2 * 2 * 4 * 5)      # two images
        for product in (lambda algorithm: reference.conv2d(x, w, window, 2, algorithm=algorithm),
                        lambda algorithm: reference.conv2d_input(gy, w, (4, 5), window, 2, algorithm=algorithm),
                        lambda algorithm: reference.conv2d_weights(x, gy, window, 2, algorithm)):
            np.testing.assert_allclose(product("fft"), product(None), atol=1e-12)


class TestPooling:
    @few
    @given(sliding(pooling=True), small, small, orders, st.booleans())
    def test_the_largest_number_and_its_place(self, drawn, n, c, order, ties):
        size, window = drawn
        x = numbers(n, c, *size, order=order)
        x = np.round(x) if ties else x
        y, place = reference.max_pool2d(x, window)
        flat = [np.where(np.isnan(patch), -np.inf, patch).reshape(n, c, -1) for patch in patches(x, window, -np.inf)]
        np.testing.assert_array_equal(y.reshape(n, c, -1), np.stack([patch.max(-1) for patch in flat], -1))
        np.testing.assert_array_equal(place.reshape(n, c, -1), np.stack([patch.argmax(-1) for patch in flat], -1))

        gy = numbers(*y.shape)
        chosen = [np.arange(math.prod(window.kernel)) == k[..., None] for k in at_places(place)]
        parts = [(g[..., None] * mask).reshape(n, c, *window.kernel) for g, mask in zip(at_places(gy), chosen)]
        back = reference.max_pool2d_scatter(gy, place, size, window)
        np.testing.assert_allclose(back, scattered(parts, size, window), atol=1e-12)

        other = numbers(n, c, *size, order=order) + 1
        picked = [(np.nan_to_num(patch).reshape(n, c, -1) * mask).sum(-1) for patch, mask in zip(patches(other, window), chosen)]
        np.testing.assert_allclose(reference.max_pool2d_gather(other, place, window).reshape(n, c, -1), np.stack(picked, -1), atol=1e-12)

    @few
    @given(sliding(pooling=True), small, small, orders)
    def test_sums_and_the_way_back(self, drawn, n, c, order):
        size, window = drawn
        x = numbers(n, c, *size, order=order)
        y = reference.sum_pool2d(x, window)
        sums = np.stack([np.nansum(patch, (2, 3)) for patch in patches(x, window)], -1)
        np.testing.assert_allclose(y.reshape(n, c, -1), sums, atol=1e-12)
        gy = numbers(*y.shape, order=order)
        parts = [np.broadcast_to(g[..., None, None], (n, c, *window.kernel)) for g in at_places(gy)]
        np.testing.assert_allclose(reference.sum_pool2d_spread(gy, size, window), scattered(parts, size, window), atol=1e-12)

    @pytest.mark.parametrize(("kernel", "dtype"), [((16, 16), np.uint8), ((1, 257), np.int32)])
    def test_places_are_small_integers(self, kernel, dtype):
        x = np.arange(math.prod(kernel), dtype=float).reshape(1, 1, *kernel)
        _, place = reference.max_pool2d(x, Window(kernel))
        assert place.dtype == dtype and place.item() == math.prod(kernel) - 1

    def test_padding_is_not_chosen_even_over_minus_infinity(self):
        x = np.full((1, 1, 2, 2), -np.inf)
        window = Window((2, 2), padding=(1, 1))
        _, place = reference.max_pool2d(x, window)
        returned = reference.max_pool2d_scatter(np.ones(place.shape), place, (2, 2), window)
        assert returned.sum() == place.size

    def test_a_nan_is_the_largest(self):
        x = np.array([[[[5, np.nan], [np.nan, 7]]]])
        y, place = reference.max_pool2d(x, Window((2, 2)))
        assert np.isnan(y).all() and place.item() in (1, 2)


def test_no_kernel_writes_to_its_arguments():
    x, w, window = numbers(2, 2, 5, 5), numbers(2, 2, 3, 3), Window((3, 3), padding=(1, 1))
    gy = numbers(2, 2, 5, 5)
    _, place = reference.max_pool2d(x, window)
    for array in (x, w, gy, place):
        array.flags.writeable = False
    for result in (reference.im2col(x, window), reference.conv2d(x, w, window), reference.conv2d_weights(x, gy, window),
                   reference.conv2d_input(gy, w, (5, 5), window), *reference.max_pool2d(x, window), reference.sum_pool2d(x, window),
                   reference.max_pool2d_scatter(gy, place, (5, 5), window), reference.max_pool2d_gather(x, place, window),
                   reference.sum_pool2d_spread(gy, (5, 5), window), reference.conv2d(x, w, window, algorithm="fft"),
                   reference.conv2d_input(gy, w, (5, 5), window, algorithm="fft"), reference.conv2d_patch_moments(x, window, bias=True),
                   reference.conv2d_weights(x, gy, window, algorithm="fft")):
        assert not any(np.shares_memory(result, array) for array in (x, w, gy, place))
