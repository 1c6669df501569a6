"""Schedules: their numbers, their reprs, their pickles."""

import math
import pickle

import pytest

from minidl import optim
from minidl.errors import ArgumentError, NumericsError

ALL = [
    optim.constant(0.1),
    optim.step_decay(0.1, every=3, factor=0.5),
    optim.cosine(0.1, steps=10, final=0.01),
    optim.polynomial(0.1, steps=10, power=2, final=0.01),
    optim.warm_up(3, then=optim.cosine(0.1, steps=7)),
    optim.warm_up(3, then=0.1),
]


@pytest.mark.parametrize("schedule", ALL, ids=repr)
class TestEvery:
    def test_the_repr_makes_it_again(self, schedule):
        assert eval(repr(schedule), vars(optim)) == schedule

    def test_can_be_pickled(self, schedule):
        twin = pickle.loads(pickle.dumps(schedule))
        assert [twin(step) for step in range(12)] == [schedule(step) for step in range(12)]

    def test_gives_a_float_at_every_step(self, schedule):
        assert all(isinstance(schedule(step), float) and schedule(step) >= 0 for step in range(30))


class TestNumbers:
    def test_step_decay(self):
        assert [optim.step_decay(8.0, 2, 0.5)(step) for step in range(6)] == [8, 8, 4, 4, 2, 2]

    def test_cosine_goes_from_lr_over_the_middle_to_final_and_stays(self):
        schedule = optim.cosine(1.0, steps=10, final=0.2)
        assert [schedule(step) for step in (0, 5, 10, 11, 1000)] == pytest.approx([1.0, 0.6, 0.2, 0.2, 0.2])
        assert schedule(2) == pytest.approx(0.2 + 0.8 * (1 + math.cos(0.2 * math.pi)) / 2)

    def test_polynomial_goes_from_lr_to_final_and_stays(self):
        assert [optim.polynomial(1.0, 4)(step) for step in range(6)] == [1, 0.75, 0.5, 0.25, 0, 0]
        assert [optim.polynomial(1.0, 4, power=2, final=0.2)(step) for step in (0, 2, 4, 9)] == pytest.approx([1, 0.4, 0.2, 0.2])

    def test_warm_up_rises_evenly_to_where_the_next_begins_which_counts_from_0(self):
        schedule = optim.warm_up(4, then=optim.step_decay(1.0, every=2, factor=0.5))
        assert [schedule(step) for step in range(8)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1, 0.5, 0.5])


@pytest.mark.parametrize("make, message", [
    (lambda: optim.cosine(0.1, 0), "cosine: steps is 0"),
    (lambda: optim.cosine(0.1, 2.5), "cosine: steps is 2.5"),
    (lambda: optim.polynomial(0.1, -1), "polynomial: steps is -1"),
    (lambda: optim.polynomial(0.1, 5, power=0), "polynomial: power is 0"),
    (lambda: optim.step_decay(0.1, every=0), "step_decay: every is 0"),
    (lambda: optim.warm_up(0, 0.1), "warm_up: steps is 0"),
])
def test_an_option_that_makes_no_sense_is_an_error(make, message):
    with pytest.raises(ArgumentError, match=message):
        make()


def test_a_value_that_is_not_finite_is_an_error():
    with pytest.raises(NumericsError, match="is inf at step 0"):
        optim.warm_up(3, then=lambda step: float("inf"))(0)
