"""Dropout: a mask that is a function of its key and nothing else."""

import math

import numpy as np
import pytest

import minidl
from cases import FunctionCase, says
from minidl import Tensor
from minidl import functions as F
from minidl.errors import ArgumentError, DtypeError


def mixed(h):
    """Every bit of 32 spread over all the others."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        h = (h ^ h >> shift) * factor % 2**32
    return h ^ h >> 16


def is_kept(element, p, seed, step, layer):
    """The hash by which an element is kept, one number at a time. Other devices and versions must come to the same bits."""
    h = mixed(element ^ mixed(seed))
    for key in (0, step, layer):
        h = mixed(h ^ mixed((key + 0x9E3779B9) % 2**32))
    return h >= p * 2**32


class TestDropout(FunctionCase):
    functions = ("dropout",)

    def inputs(self, draw):
        return draw.array(), draw.choice(0.5, 0.1, 0.0, 0.9), draw.choice((0, 0, 0), (1, 2, 3), (7, 0, 1), (1, 3, 2)), draw.choice(0, 0, 9)

    def forward(self, x, p, key, first):
        return F.dropout(x, p, *key, first=first)

    def expected(self, x, p, key, first):
        kept = [is_kept(first + i, p, *key) for i in range(x.size)]
        return np.array([a / (1 - p) if keep else 0 for a, keep in zip(x.ravel(), kept)]).reshape(x.shape)


def mask(shape=(1000,), p=0.5, **options):
    return F.dropout(np.ones(shape), p, **options) != 0


class TestMask:
    def test_the_same_key_gives_the_same_mask(self):
        np.testing.assert_array_equal(mask(seed=1, step=2, layer=3), mask(seed=1, step=2, layer=3))

    @pytest.mark.parametrize("other", [{"seed": 2}, {"step": 3}, {"layer": 4}, {"seed": 1 + 2**32}, {"seed": -1}, {"step": 3, "layer": 2}])
    def test_another_key_gives_a_mask_that_has_nothing_to_do_with_it(self, other):
        key = {"seed": 1, "step": 2, "layer": 3}
        same = np.mean(mask((100_000,), **key) == mask((100_000,), **{**key, **other}))
        assert abs(same - 0.5) < 4 * 0.5 / math.sqrt(100_000)

    @pytest.mark.parametrize("p", [0.01, 0.3, 0.5, 0.95])
    def test_the_fraction_that_is_kept(self, p):
        kept = mask((100_000,), p, seed=5).mean()
        assert abs(kept - (1 - p)) < 4 * math.sqrt(p * (1 - p) / 100_000)

    def test_neighbours_have_nothing_to_do_with_one_another(self):
        m = mask((100_000,))
        for distance in (1, 2, 8, 1000):
            assert abs(np.mean(m[distance:] == m[:-distance]) - 0.5) < 4 * 0.5 / math.sqrt(100_000)

    def test_a_worker_that_has_a_part_of_the_minibatch_draws_its_part_of_the_mask(self):
        whole = mask((8, 5), seed=3)
        np.testing.assert_array_equal(mask((3, 5), seed=3, first=2 * 5), whole[2:5])

    def test_beyond_four_billion_elements_too(self):
        end = 2**32
        parts = [mask((5,), first=end - 5), mask((5,), first=end)]
        np.testing.assert_array_equal(mask((10,), first=end - 5), np.concatenate(parts))
        assert not np.array_equal(mask((50,), first=0), mask((50,), first=end))

    def test_the_memory_order_plays_no_part(self):
        x = np.ones((4, 6))
        for view in (np.asfortranarray(x), x[::-1], np.ones((6, 4)).T):
            np.testing.assert_array_equal(F.dropout(view, seed=1), F.dropout(x, seed=1))

    def test_a_larger_p_drops_more_of_the_same(self):
        assert (mask(p=0.3) | ~mask(p=0.6)).all()

    def test_p_0_drops_nothing(self):
        x = np.random.default_rng(0).standard_normal(100)
        np.testing.assert_array_equal(F.dropout(x, 0), x)


def test_what_is_dropped_gets_no_gradient_and_the_rest_is_scaled():
    x = Tensor(np.ones(100, np.float32), requires_grad=True)
    y = F.dropout(x, 0.2, seed=4)
    y.backward(np.ones(100))
    np.testing.assert_array_equal(x.grad.data, y.data)
    assert set(np.unique(y.data)) == {0, np.float32(1.25)}


def test_float32_stays_whatever_p_is():
    x = Tensor(np.ones(10, np.float32), requires_grad=True)
    y = F.dropout(x, np.float64(0.5))
    (first,) = minidl.grad(y.sum(), x)
    assert y.dtype == first.dtype == np.float32


def test_empty_batches():
    x = Tensor(np.zeros((0, 3)), requires_grad=True)
    y = F.dropout(x)
    y.backward(np.zeros((0, 3)))
    assert y.shape == x.grad.shape == (0, 3)


@pytest.mark.parametrize("p", [1, 1.5, -0.1, math.nan])
def test_p_is_a_probability_less_than_1(p):
    with pytest.raises(ArgumentError, match=says(f"dropout: p is {p}, and must be at least 0 and less than 1")):
        F.dropout(np.ones(3), p)


def test_a_list_is_no_array():
    with pytest.raises(DtypeError, match=says("dropout: x is a list, and must be an array")):
        F.dropout([1.0])
