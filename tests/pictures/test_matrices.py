"""Heat maps show every number on one scale of colours, and say what they show."""

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="drawing needs the extra viz")

from minidl import Tensor
from minidl.errors import ArgumentError, ShapeError
from minidl.pictures import matrices


def heat_maps(picture):
    return [axes.images[0] for axes in picture.figure.axes if axes.images]


class TestMatrices:
    def test_shows_every_number_on_one_scale(self):
        small, large = np.array([[1.0, -2.0]]), np.arange(12.0).reshape(3, 4)
        picture = matrices({"small": small, "large": Tensor(large)})
        one, other = heat_maps(picture)
        np.testing.assert_array_equal(one.get_array(), small)
        np.testing.assert_array_equal(other.get_array(), large)
        assert (one.norm.vmin, one.norm.vmax) == (other.norm.vmin, other.norm.vmax) == (-11, 11)
        assert picture.words == "small: 1 x 2, from -2 to 1. large: 3 x 4, from 0 to 11."

    def test_gives_each_a_scale_of_its_own(self):
        one, other = heat_maps(matrices({"a": np.eye(2), "b": 5 * np.eye(2)}, shared=False))
        assert (one.norm.vmax, other.norm.vmax) == (1, 5)

    def test_zero_has_the_colour_of_paper_and_signs_differ(self):
        for root in (False, True):
            (image,) = heat_maps(matrices({"m": np.array([[-1.0, 0.0, 1.0]])}, root=root))
            colours = image.cmap(image.norm(np.array([-0.5, 0.0, 0.5])))
            assert colours[1].min() > 0.98                                          # paper
            assert colours[0, 2] > colours[0, 0] and colours[2, 0] > colours[2, 2]  # blue below, orange above

    def test_shows_small_numbers_more_clearly_by_their_root(self):
        tints = [heat_maps(matrices({"m": np.eye(2)}, root=root))[0].norm(0.01) for root in (False, True)]
        assert tints[1] - 0.5 == pytest.approx(10 * (tints[0] - 0.5))               # the root of 0.01 is 0.1

    def test_draws_lines_between_blocks_where_they_fit(self):
        picture = matrices({"whole": np.eye(5), "other": np.eye(3)}, blocks={"first": 3, "second": 2})
        assert [len(axes.lines) for axes in picture.figure.axes if axes.images] == [2, 0]
        assert "first" in picture.svg and "second" in picture.svg

    def test_writes_small_ones_out(self):
        def written(m):
            (axes,) = (axes for axes in matrices({"m": m}).figure.axes if axes.images)
            return [text.get_text() for text in axes.texts]

        assert written(np.array([[0.25, -1.0]])) == ["0.25", "-1"]
        assert written(np.ones((9, 9))) == []

    def test_draws_what_is_all_zero(self):
        assert matrices({"nothing": np.zeros((2, 2))}).svg

    def test_refuses_what_is_no_matrix(self):
        with pytest.raises(ShapeError, match="v is no matrix"):
            matrices({"v": np.ones(3)})
        with pytest.raises(ArgumentError, match="none to draw"):
            matrices({})
