"""The numbers in the cells are those that the kernels compute, and the window lies over the right ones."""

import sys
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from minidl.errors import ArgumentError, MissingExtra, ShapeError
from minidl.pictures import feature_maps, patches, pooling, window
from minidl.pictures.convolution import GAP, TIMES
from minidl.pictures.picture import BLUE, ORANGE

X = np.array([[1, 1, 2, 0], [0, 2, 1, 3], [2, 0, 1, 2], [3, 2, 0, 1]])
W = np.array([[2, 0, 1], [0, 2, 1], [1, 0, 1]])
C1, C2 = [[1, 2, 4, 2], [0, 1, 2, 3], [3, 0, 1, 0], [2, 4, 0, 2]], [[4, 0, 3, 1], [0, 1, 0, 3], [3, 0, 2, 0], [1, 3, 0, 1]]
CHANNELS = np.array([C1, C2, X])
FILTERS = np.array([[[2, 0, 1], [0, 3, 0], [1, 0, 2]], [[0, 1, 3], [0, 1, 2], [1, 0, 0]], W])


@pytest.fixture(autouse=True)
def drawing():
    pytest.importorskip("matplotlib", reason="drawing needs the extra viz")


def texts(picture):
    return [element.text for element in ET.fromstring(picture.svg).iter() if element.tag.endswith("text")]


def frames(picture):
    """(left, top, width, height) of the frames of places, by colour, in cells."""
    axes = picture.figure.axes[0]
    return [(patch.get_edgecolor(), *patch.get_xy(), patch.get_width(), patch.get_height())
            for patch in axes.patches if patch.get_linewidth() > 1]


class TestWindow:
    def test_shows_the_sums_of_the_worked_example(self):
        picture = window(X, W)
        assert [text for text in texts(picture) if text.startswith("= ")] == ["= 12", "= 9", "= 5", "= 14"]
        assert "1·2 + 1·0 + 2·1" in texts(picture) and TIMES + "2" in texts(picture)
        assert str(picture).endswith("gives 12 at (0, 0), 9 at (0, 1), 5 at (1, 0), 14 at (1, 1).")

    def test_lies_where_the_stride_says(self):
        (_, x0, y0, *_), (_, x1, y1, *_), (_, x2, y2, *_), _ = frames(window(X, W))
        assert (y1 - y0, y2 - y0) == pytest.approx((0, 1))
        assert x1 - x0 == pytest.approx(4 + GAP + 1) and x2 - x0 == pytest.approx(2 * (4 + GAP))
        (_, x0, y0, *_), (_, x1, y1, *_), *_ = frames(window(X, W, padding=1, stride=2))
        assert y1 == y0 and x1 - x0 == pytest.approx(6 + GAP + 2)

    def test_adds_a_bias(self):
        assert [text for text in texts(window(X, W, b=3)) if "=" in text] == ["12 + 3 = 15", "9 + 3 = 12", "5 + 3 = 8", "14 + 3 = 17"]

    def test_adds_up_channels(self):
        picture = window(CHANNELS, FILTERS)
        sums = [text for text in texts(picture) if "=" in text]
        assert sums == ["14 + 13 + 12 = 39", "12 + 12 + 9 = 33", "4 + 6 + 5 = 15", "16 + 14 + 14 = 44"]
        assert len(picture.svg) < 150_000

    def test_shows_the_places_asked_for(self):
        picture = window(np.arange(36).reshape(6, 6), W, places=[(1, 2)])
        assert len(frames(picture)) == 1 and "row 1, column 2" in texts(picture)
        assert len(frames(window(np.arange(36).reshape(6, 6), W))) == 8

    @pytest.mark.parametrize("places", [[], [(2, 0)], [(0, 0)] * 9])
    def test_refuses_places_that_are_not_there(self, places):
        with pytest.raises(ArgumentError, match="from \\(0, 0\\) to \\(1, 1\\)"):
            window(X, W, places=places)

    def test_refuses_channels_that_differ(self):
        with pytest.raises(ShapeError, match="the same channels"):
            window(CHANNELS, W)

    def test_refuses_a_filter_that_is_too_large(self):
        with pytest.raises(ShapeError, match="larger than the image"):
            window(W, X)


class TestPatches:
    def test_shows_the_worked_example(self):
        picture = patches([[2, 0, 1], [0, 2, 3], [1, 3, 1]], [[1, 0], [0, 2]])
        assert len(frames(picture)) == 4
        assert str(picture).endswith("6, 6, 6, 4.")

    def test_has_channels_and_strides(self):
        assert "as rows of a matrix of 4 x 27" in str(patches(CHANNELS, FILTERS))
        assert "The 4 patches" in str(patches(X, W, stride=2, padding=1))


class TestPooling:
    def test_shows_the_worked_example(self):
        picture = pooling(CHANNELS, titles=["red", "green", "blue"])
        assert str(picture).endswith("2, 4, 4, 2; 4, 3, 3, 2; 2, 3, 3, 2.")
        assert len(frames(picture)) == 12 and {"red", "green", "blue"} <= set(texts(picture))

    def test_marks_the_largest(self):
        from matplotlib.colors import to_rgba

        strong = [patch for patch in pooling(X).figure.axes[0].patches if patch.get_facecolor()[3] == 0.45]
        assert [(patch.get_x() - 0.3, patch.get_y() - 1.2) for patch in strong[:2]] == [pytest.approx((1, 1)), pytest.approx((3, 1))]
        assert [to_rgba(patch.get_facecolor(), 1) for patch in strong[:2]] == [to_rgba(BLUE), to_rgba(ORANGE)]

    def test_windows_may_overlap(self):
        assert "become 2 x 2" in str(pooling(X, 3, stride=1))

    def test_refuses_a_batch(self):
        with pytest.raises(ShapeError, match="side by side"):
            pooling(np.zeros((1, 1, 4, 4)))


class TestFeatureMaps:
    def test_shows_a_row_for_each_layer_and_bars_for_the_classes(self):
        outputs = {"image": np.ones((1, 1, 8, 8)), "maps": np.ones((20, 4, 4)), "scores": np.array([[0.2, 0.7, 0.1]])}
        picture = feature_maps(outputs, classes=["ant", "bee", "cat"])
        assert str(picture) == ("image: 1 map of 8 x 8. maps: 20 maps of 4 x 4, 16 shown. scores: 3 numbers; "
                                "the largest, 0.7, is that of bee.")
        assert {"ant", "bee", "cat", f"20 maps of 4 {TIMES} 4, 16 shown"} <= set(texts(picture))

    def test_takes_negative_numbers_and_nothing_but_zeros(self):
        assert "<svg" in feature_maps({"zeros": np.zeros((2, 3, 3)), "below": -np.ones(5)}).svg
        assert "<svg" in feature_maps({"scores": np.array([-1.0, 3.0])}, classes=["a", "b"]).svg

    @pytest.mark.parametrize("outputs", [{}, {"y": np.zeros((2, 3))}, {"y": np.zeros((2, 1, 3, 3))}])
    def test_refuses_a_batch_and_nothing(self, outputs):
        with pytest.raises(ShapeError, match="feature_maps"):
            feature_maps(outputs)


@pytest.mark.parametrize("drawn", [lambda: window(X, W), lambda: feature_maps({"x": X[None]})])
def test_says_which_extra_is_missing(drawn, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtra, match="viz"):
        drawn()
