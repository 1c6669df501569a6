"""A map shows where paths went, and says what cannot be shown."""

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="drawing needs the extra viz")

from minidl import Tensor
from minidl.errors import ShapeError
from minidl.pictures import landscape


def valley(x, y):
    return (x * x + 20 * y * y) / 2


DOWN = np.array([[3.0, 1.0], [1.0, 0.5], [0.0, 0.0]])
AWAY = np.array([[0.0, 1.0], [0.0, -1.5], [0.0, 2.5], [0.0, -4.0]])


def drawn(picture):
    """The points of each path, as they are drawn."""
    return [line.get_xydata() for axes in picture.figure.axes for line in axes.lines if len(line.get_xydata()) > 1]


class TestLandscape:
    def test_shows_every_path_from_start_to_end(self):
        picture = landscape(valley, {"down": DOWN}, x=(-4, 4), y=(-2, 2))
        np.testing.assert_array_equal(drawn(picture)[0], DOWN)
        assert "down: 2 steps, from (3, 1) at height 14.5 to (0, 0) at height 0." in picture.words

    def test_ends_a_path_where_it_leaves_for_good(self):
        picture = landscape(valley, {"away": AWAY}, x=(-4, 4), y=(-2, 2), together=False)
        assert len(drawn(picture)[0]) == 3                          # the step off the map is drawn to its edge
        assert "off the map at step 2" in picture.svg and "off the map at step 2" in picture.words

    def test_says_so_on_the_map_of_each(self):
        paths = {"down": DOWN, "away": AWAY}
        axes = landscape(valley, paths, x=(-4, 4), y=(-2, 2), together=False).figure.axes
        assert [[text.get_text() for text in each.texts] for each in axes] == [[], ["off the map\nat step 2"]]

    def test_draws_on_where_a_path_comes_back(self):
        back = np.array([[0.0, 1.0], [0.0, 5.0], [0.0, 0.0]])
        picture = landscape(valley, {"back": back}, x=(-4, 4), y=(-2, 2))
        assert len(drawn(picture)[0]) == 3
        assert "off the map" not in picture.words

    def test_that_never_was_on_the_map_is_off_it_from_the_start(self):
        assert "off the map at step 0" in landscape(valley, {"far": AWAY + 9}, x=(-4, 4), y=(-2, 2)).words

    def test_has_a_map_for_each_path_if_asked(self):
        paths = {"down": DOWN, "away": AWAY}
        assert len(landscape(valley, paths, x=(-4, 4), y=(-2, 2)).figure.axes) == 1
        apart = landscape(valley, paths, x=(-4, 4), y=(-2, 2), names=("w", "b"), together=False)
        assert [axes.get_title(loc="left") for axes in apart.figure.axes] == ["down", "away"]
        assert apart.figure.axes[0].get_ylabel() == "b"

    def test_takes_paths_and_functions_of_tensors(self):
        path = [Tensor(place) for place in DOWN]
        picture = landscape(lambda x, y: valley(Tensor(x), Tensor(y)), {"down": path}, x=(-4, 4), y=(-2, 2))
        np.testing.assert_array_equal(drawn(picture)[0], DOWN)

    def test_of_a_plain_has_no_lines(self):
        landscape(lambda x, y: 0 * x, {}, x=(0, 1), y=(0, 1), title="flat").svg  # noqa: B018   which draws it

    def test_stays_small(self):
        assert len(landscape(valley, {"down": DOWN}, x=(-4, 4), y=(-2, 2)).svg) < 60_000

    @pytest.mark.parametrize("path", [np.zeros(3), np.zeros((2, 3)), np.zeros((0, 2))])
    def test_refuses_what_is_no_path(self, path):
        with pytest.raises(ShapeError, match="the path 'odd' has shape"):
            landscape(valley, {"odd": path}, x=(0, 1), y=(0, 1))

    def test_refuses_a_function_that_gives_one_number(self):
        with pytest.raises(ShapeError, match="number by number"):
            landscape(lambda x, y: (x * y).sum(), {}, x=(0, 1), y=(0, 1))
