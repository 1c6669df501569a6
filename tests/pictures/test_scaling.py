"""Points on two logarithmic scales, and bars: what was measured is what is drawn."""

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="drawing needs the extra viz")

from minidl.errors import ArgumentError, ShapeError
from minidl.pictures import bars, scaling


class TestScaling:
    def test_shows_what_was_measured_and_what_it_is_held_against(self):
        picture = scaling({"loop": ([1, 10, 100], [2.0, 20.0, 200.0])}, x="numbers", y="ms", limits={"n": ([1, 100], [1, 100])})
        axes, = picture.figure.axes
        np.testing.assert_array_equal(axes.lines[0].get_xydata(), [[1, 2], [10, 20], [100, 200]])
        assert axes.get_xscale() == axes.get_yscale() == "log"
        assert picture.words == "ms over numbers. loop: 2 at 1, 200 at 100. n (dashed): 1 at 1, 100 at 100."

    def test_names_the_places_that_were_measured_if_they_are_few(self):
        few, many = ([2 ** k for k in range(n)] for n in (6, 12))
        axes, = scaling({"a": (few, few)}, x="batch size", y="ms").figure.axes
        assert [text.get_text() for text in axes.get_xticklabels()] == ["1", "2", "4", "8", "16", "32"]
        axes, = scaling({"a": (many, many)}, x="batch size", y="ms").figure.axes
        assert "1,000" in [text.get_text() for text in axes.get_xticklabels()]

    def test_has_each_scale_as_asked(self):
        axes, = scaling({"a": ([1, 2], [0, 3])}, x="k", y="times", log=(True, False)).figure.axes
        assert (axes.get_xscale(), axes.get_yscale()) == ("log", "linear")

    def test_refuses_what_has_no_logarithm(self):
        with pytest.raises(ArgumentError, match="'a' has 0, which has no logarithm"):
            scaling({"a": ([1, 2], [0, 3])}, x="k", y="times")

    def test_refuses_rows_of_different_lengths(self):
        with pytest.raises(ShapeError, match="'a'"):
            scaling({"a": ([1, 2], [3])}, x="k", y="times")

    def test_of_nothing_is_drawn(self):
        assert "<svg" in scaling({}, x="k", y="times").svg


class TestBars:
    @pytest.mark.parametrize("log", [False, True])
    def test_are_as_long_as_their_numbers_which_stand_beside_them(self, log):
        picture = bars({"loop": 1234.5, "im2col": 1.5}, x="milliseconds", log=log)
        axes, = picture.figure.axes
        assert [bar.get_width() for bar in axes.patches] == [1234.5, 1.5]
        assert [text.get_text() for text in axes.texts] == ["1,234", "1.5"]
        assert picture.words == "milliseconds. loop: 1234, im2col: 1.5."

    def test_go_from_top_to_bottom(self):
        axes, = bars({"first": 1, "second": 2}, x="ms").figure.axes
        assert axes.yaxis_inverted()

    @pytest.mark.parametrize("value, log", [(float("nan"), False), (-1, False), (0, True)])
    def test_refuse_what_no_bar_can_show(self, value, log):
        with pytest.raises(ArgumentError, match="'odd' is"):
            bars({"odd": value}, x="ms", log=log)

    @pytest.mark.parametrize("values", [{}, {"nothing": 0}])
    def test_of_nothing_are_drawn(self, values):
        assert "<svg" in bars(values, x="ms").svg
