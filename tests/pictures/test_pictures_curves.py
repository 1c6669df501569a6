"""Curves: what is drawn of how many points, on which scale, and what is said of it."""

import xml.etree.ElementTree as ET

import numpy as np
import pytest

from minidl import Tensor, pictures
from minidl.errors import ArgumentError, ShapeError
from minidl.pictures.curves import POINTS, thinned, time_unit

pytest.importorskip("matplotlib")


def texts(picture):
    """The words that stand in a picture."""
    return [element.text for element in ET.fromstring(picture.svg).iter("{http://www.w3.org/2000/svg}text")]


def epochs(n, seconds=2.0, accuracy=True):
    return [{"epoch": i + 1, "train_loss": 2 / (i + 1), "test_loss": 3 / (i + 1), "seconds": seconds,
             "train_accuracy": 1 - 0.5 ** i if accuracy else None, "test_accuracy": 0.9 - 0.5 ** i if accuracy else None} for i in range(n)]


class TestCurves:
    def test_name_what_they_show(self):
        picture = pictures.curves({"training": [2.0, 1.0], "test": ([2], [1.5])}, x="epoch", y="loss")
        assert {"Loss", "epoch", "training", "test"} <= set(texts(picture))
        assert str(picture) == "Loss over epochs. training: 2 values, from 2 at 1 to 1 at 2. test: 1 value, 1.5 at 2."

    @pytest.mark.parametrize("x, words", [("step", "over steps."), ("seconds", "over seconds."), ("step d", "over step d.")])
    def test_say_over_what(self, x, words):
        assert words in str(pictures.curves({"": [2.0, 1.0]}, x=x))

    def test_one_curve_needs_no_legend(self):
        assert "training" not in texts(pictures.curves({"training": [2.0, 1.0]}))

    @pytest.mark.parametrize("values", [np.array([1.0, 2.0]), Tensor(np.array([1.0, 2.0])), (1.0, 2.0), [1, 2], range(1, 3)])
    def test_numbers_come_in_any_form(self, values):
        assert "2 values, from 1 at 1 to 2 at 2" in str(pictures.curves({"": values}))

    def test_leave_out_what_is_no_number(self):
        assert "2 values, from 1 at 1 to 3 at 5" in str(pictures.curves({"": [1.0, None, np.nan, np.inf, 3.0]}))

    def test_of_nothing_say_so(self):
        picture = pictures.curves({"training": []})
        assert "nothing yet" in texts(picture) and "nothing yet" in str(picture)
        assert "nothing yet" in texts(pictures.curves({}))

    def test_of_many_points_stay_small(self):
        small, large = (pictures.curves({"": np.random.default_rng(0).random(n)}).svg for n in (POINTS, 200 * POINTS))
        assert len(large) < 4 * len(small)

    def test_are_the_same_file_each_time(self):
        first, second = (pictures.curves({"a": [3.0, 1.0, 2.0], "b": [1.0, 2.0, 3.0]}).svg for _ in range(2))
        assert first == second

    @pytest.mark.parametrize("values, options, expected", [
        ([5.0, 4.0, 3.0], {}, False), ([5.0, 0.5, 0.001], {}, True), ([5.0, 0.5, 0.0], {}, False), ([5.0, 4.0], {"log": True}, True),
        ([5.0, 0.001], {"log": False}, False), ([0.9, 0.0001], {"percent": True}, False)])
    def test_the_scale_is_logarithmic_where_values_lie_far_apart(self, values, options, expected):
        assert (pictures.curves({"": values}, **options).figure.axes[0].get_yscale() == "log") == expected

    @pytest.mark.parametrize("runaway, cut", [(1e28, True), (150, False)])
    def test_one_that_runs_away_does_not_flatten_the_others(self, runaway, cut):
        low, high = pictures.curves({"a": [2.0, 1.5, 1.2], "b": [2.1, 1.4], "c": [2.0, runaway]}, log=False).figure.axes[0].get_ylim()
        assert low < 1.2 and high > 2.0 and (low > 1 and high < 2.5 if cut else high > 150)

    def test_shares_in_percent(self):
        assert "50 %" in texts(pictures.curves({"": [0.25, 0.5, 0.75]}, y="accuracy", percent=True))

    def test_seconds_become_minutes(self):
        picture = pictures.curves({"": ([60, 600], [1, 2])}, x="seconds")
        assert "minutes" in texts(picture) and "10" in texts(picture)

    def test_more_curves_than_colours_differ_in_their_dashes(self):
        drawn = pictures.curves({str(i): [1, 2] for i in range(14)}).figure.axes[0].lines
        assert len({(each.get_color(), str(each._unscaled_dash_pattern)) for each in drawn}) == 14

    def test_a_name_may_be_any_text(self):
        svg = pictures.curves({"<script>$x_1$ & \\alpha": [1, 2], "_hidden": [2, 1]}).svg
        ET.fromstring(svg)
        assert "<script>" not in svg and "_hidden" in svg and "$x_1$" in svg

    @pytest.mark.parametrize("values", [[[1.0, 2.0]], ([1, 2, 3], [1, 2]), np.zeros((2, 2)), 3.0])
    def test_anything_else_is_an_error(self, values):
        with pytest.raises(ShapeError, match=r"curves: 'loss' is not a row of numbers"):
            pictures.curves({"loss": values})


class TestLearningCurves:
    def test_of_one_run(self):
        picture = pictures.learning_curves(epochs(3))
        assert {"Loss", "Accuracy", "epoch", "training", "test"} <= set(texts(picture))
        assert "Accuracy over epochs" in str(picture)

    def test_of_an_autoencoder_show_the_loss(self):
        assert "Accuracy" not in texts(pictures.learning_curves(epochs(3, accuracy=False)))

    def test_of_several_runs(self):
        picture = pictures.learning_curves({"sgd": epochs(3), "kfac": epochs(2, seconds=200)}, over="seconds")
        assert {"sgd, training", "sgd, test", "kfac, training", "kfac, test", "minutes"} <= set(texts(picture))
        assert "kfac, test: 2 values, from 3 at 200 to 1.5 at 400" in str(picture)

    def test_over_steps_where_they_are_known(self):
        assert "at 10" in str(pictures.learning_curves([{**each, "step": 10 * each["epoch"]} for each in epochs(2)], over="step"))
        assert "nothing yet" in str(pictures.learning_curves(epochs(2), over="step"))

    def test_before_the_first_epoch(self):
        assert "nothing yet" in texts(pictures.learning_curves([]))

    def test_over_something_else(self):
        with pytest.raises(ArgumentError, match="epoch, step, seconds"):
            pictures.learning_curves(epochs(1), over="days")


def test_thinned_keeps_the_mean_and_the_extremes():
    x, y = np.arange(10.0), np.array([0, 9, 1, 1, 1, 5, 5, 5, 5, -3.0])
    places, mean, least, most = thinned(x, y, points=2)
    assert places.tolist() == [2, 7] and mean.tolist() == [2.4, 3.4] and least.tolist() == [0, -3] and most.tolist() == [9, 5]


def test_thinned_leaves_few_points_alone():
    x = np.arange(5.0)
    assert all(each is x for each in thinned(x, x))


def test_time_unit():
    assert [time_unit(seconds)[1] for seconds in (0, 179, 180, 10799, 10800)] == ["seconds", "seconds", "minutes", "minutes", "hours"]
