"""Generators in a model draw for each part from a stream of its own."""

import numpy as np
import pytest

from minidl import nn
from minidl.nn.streams import Streams, generators


class Noisy(nn.Module):
    def __init__(self, seed=0, kind=np.random.PCG64):
        self.noise = np.random.Generator(kind(seed))


def test_generators_are_found_wherever_they_are():
    model = nn.Sequential(Noisy(), nn.Sequential(Noisy()))
    assert [path for path, _ in generators(model)] == ["0.noise", "1.0.noise"]


@pytest.mark.parametrize("kind", [np.random.PCG64, np.random.MT19937, np.random.Philox, np.random.SFC64, np.random.PCG64DXSM])
class TestStreams:
    def draws(self, kind, before=0, seed=0, order=((0, 0), (0, 1), (1, 0), (1, 1))):
        model = Noisy(seed, kind)
        streams = Streams(model)
        drawn = {}
        for step, part in order:
            with streams.of(step, part):
                drawn[step, part] = model.noise.random(3).tolist()
                model.noise.random(before)
        return drawn

    def test_differ_between_parts_steps_and_seeds(self, kind):
        drawn = [*self.draws(kind).values(), *self.draws(kind, seed=1).values()]
        assert len({x for row in drawn for x in row}) == 24

    def test_depend_on_nothing_that_happened_before(self, kind):
        assert self.draws(kind) == self.draws(kind, before=5)
        assert self.draws(kind, order=[(1, 1)])[1, 1] == self.draws(kind)[1, 1]

    def test_leave_the_generator_as_it_was(self, kind):
        model, twin = Noisy(3, kind), Noisy(3, kind)
        streams = Streams(model)
        with streams.of(0, 1):
            model.noise.normal(size=3)
        with streams.kept():
            model.noise.random(2)
        with pytest.raises(KeyError), streams.of(0, 2):
            raise KeyError
        assert model.noise.random() == twin.noise.random()

    def test_do_nothing_where_nothing_is_cut(self, kind):
        model, twin = Noisy(3, kind), Noisy(3, kind)
        streams = Streams(model, cut=False)
        for step in range(2):
            with streams.of(step, 0), streams.kept():
                assert model.noise.random() == twin.noise.random()
