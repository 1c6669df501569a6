"""Initialisers: the spread that the papers ask for, the same numbers for every dtype."""

import math

import numpy as np
import pytest

from minidl.errors import ArgumentError, DtypeError, ShapeError
from minidl.nn import init

DRAWN = (init.he_normal, init.he_uniform, init.xavier_normal, init.xavier_uniform)


@pytest.mark.parametrize("shape, fan_in, fan_out", [((300, 200), 300, 200), ((60, 20, 5, 3), 300, 900)])
class TestSpread:
    def test_he_is_the_root_of_two_over_fan_in(self, shape, fan_in, fan_out):
        for draw in (init.he_normal, init.he_uniform):
            assert draw(shape, 0).std() == pytest.approx(math.sqrt(2 / fan_in), rel=0.02)

    def test_xavier_is_the_root_of_two_over_both_fans(self, shape, fan_in, fan_out):
        for draw in (init.xavier_normal, init.xavier_uniform):
            assert draw(shape, 0).std() == pytest.approx(math.sqrt(2 / (fan_in + fan_out)), rel=0.02)

    def test_uniform_numbers_stay_within_their_bounds(self, shape, fan_in, fan_out):
        assert abs(init.he_uniform(shape, 0)).max() <= math.sqrt(6 / fan_in)
        assert abs(init.xavier_uniform(shape, 0)).max() <= math.sqrt(6 / (fan_in + fan_out))

    def test_fans(self, shape, fan_in, fan_out):
        assert init.fans(shape) == (fan_in, fan_out)


@pytest.mark.parametrize("draw", DRAWN)
class TestNumbers:
    def test_a_seed_gives_the_same_numbers_again(self, draw):
        np.testing.assert_array_equal(draw((3, 4), 7), draw((3, 4), np.random.default_rng(7)))

    def test_a_generator_goes_on(self, draw):
        generator = np.random.default_rng(0)
        assert (draw((3, 4), generator) != draw((3, 4), generator)).all()

    def test_without_a_seed_they_are_fresh(self, draw):
        assert (draw((3, 4)) != draw((3, 4))).all()

    def test_another_dtype_rounds_the_same_numbers(self, draw):
        np.testing.assert_array_equal(draw((3, 4), 0), draw((3, 4), 0, "float64").astype(np.float32))

    def test_gain_scales(self, draw):
        np.testing.assert_allclose(draw((3, 4), 0, gain=2.0), 2 * draw((3, 4), 0, gain=1.0), rtol=1e-6)

    def test_an_integer_type_is_an_error(self, draw):
        with pytest.raises(DtypeError, match="is not a float type"):
            draw((3, 4), 0, "int32")

    def test_a_shape_without_fans_is_an_error(self, draw):
        with pytest.raises(ShapeError, match="has no fan-in"):
            draw((3,), 0)

    def test_an_empty_axis_is_an_error(self, draw):
        with pytest.raises(ArgumentError, match="nothing to draw"):
            draw((0, 0), 0)


def test_constants():
    np.testing.assert_array_equal(init.zeros((2, 3), dtype="float64"), np.zeros((2, 3)))
    np.testing.assert_array_equal(init.ones((2,)), [1, 1])
