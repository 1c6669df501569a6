"""The geometry of windows, against the positions that one finds by trying."""

import math

import numpy as np
import pytest
from geometry import few, plain, sizes, sliding, windows
from hypothesis import given

from cases import says
from minidl.errors import ArgumentError, ShapeError
from minidl.kernels import Window, pair


class TestGeometry:
    @few
    @given(sizes, windows() | windows(pooling=True))
    def test_positions_are_those_that_one_finds_by_trying(self, size, window):
        assert window.out(size) == plain(window).output((1, 1, *size), window.ceil_mode)

    @few
    @given(sliding() | sliding(pooling=True))
    def test_each_number_under_the_window_has_its_rows_and_columns(self, drawn):
        size, window = drawn
        places = plain(window).places((1, 1, *size), window.ceil_mode)
        padded = window.padded(size)
        for k, offset in enumerate(window.offsets()):
            i, j = divmod(k, window.kernel[1])
            rows, columns = (range(*part.indices(length)) for part, length in zip(window.under(offset, size), padded))
            assert [(r, c) for r in rows for c in columns] == [(rows[i], columns[j]) for rows, columns in places]

    @few
    @given(sliding() | sliding(pooling=True))
    def test_the_padded_image_holds_every_window_and_no_row_more(self, drawn):
        size, window = drawn
        places = plain(window).places((1, 1, *size), window.ceil_mode)
        last = [max(max(place[axis]) for place in places) for axis in (0, 1)]
        assert window.padded(size) == tuple(max(n + 2 * p, m + 1) for n, p, m in zip(size, window.padding, last))

    def test_offsets_go_row_by_row(self):
        assert list(Window((2, 3), dilation=(4, 1)).offsets()) == [(0, 0), (0, 1), (0, 2), (4, 0), (4, 1), (4, 2)]

    def test_span(self):
        assert Window((3, 1), dilation=(2, 5)).span == (5, 1)

    def test_a_last_window_in_ceil_mode_begins_inside_the_image_or_its_left_padding(self):
        assert Window((2, 2), (2, 2), ceil_mode=True).out((5, 4)) == (3, 2)
        assert Window((2, 2), (3, 3), (1, 1), ceil_mode=True).out((5, 5)) == (2, 2)      # a third would begin in the padding on the right

    def test_windows_with_equal_fields_are_one(self):
        assert len({Window((2, 2)), Window((2, 2), (1, 1)), Window((2, 3))}) == 2


class TestCheck:
    @pytest.mark.parametrize(("window", "words"), [
        (Window((0, 1)), "kernel is (0, 1), and must be at least 1"),
        (Window((1, 1), stride=(1, 0)), "stride is (1, 0), and must be at least 1"),
        (Window((1, 1), dilation=(0, 1)), "dilation is (0, 1), and must be at least 1"),
        (Window((1, 1), padding=(-1, 0)), "padding is (-1, 0), and must be at least 0"),
    ])
    def test_options(self, window, words):
        with pytest.raises(ArgumentError, match=says(f"op: {words}")):
            window.check("op", (4, 4))

    def test_a_window_that_does_not_fit(self):
        with pytest.raises(ShapeError, match=says("op: the window is larger than the image with its padding",
                                                  "image: (4, 9) (H, W)    window: (7, 3)    padding: (1, 0)", "Use a smaller kernel")):
            Window((3, 3), padding=(1, 0), dilation=(3, 1)).check("op", (4, 9))
        Window((3, 3), padding=(1, 0), dilation=(3, 1)).check("op", (5, 3))

    def test_an_image_without_rows(self):
        with pytest.raises(ShapeError, match=says("op: the window is larger than the image")):
            Window((1, 1)).check("op", (0, 4))


class TestPair:
    @pytest.mark.parametrize("value", [2, (2, 2), [2, 2], np.int64(2), (np.int32(2), 2)])
    def test_an_int_is_a_pair_of_it(self, value):
        both = pair("op", "stride", value)
        assert both == (2, 2) and all(type(n) is int for n in both)

    @pytest.mark.parametrize("value", [2.0, (1,), (1, 2, 3), "2", None, (1, 2.5), math.nan])
    def test_nothing_else_is(self, value):
        with pytest.raises(ArgumentError, match=says(f"op: stride is {value!r}, and must be an int or a pair of ints: (height, width)")):
            pair("op", "stride", value)
