"""A Run's state is all of it, and goes back only into what it came from."""

import json

import numpy as np
import pytest

import strict  # noqa: F401   makes the strict device known
from minidl import nn, optim
from minidl.data import Loader
from minidl.errors import CheckpointError
from minidl.loop import fit
from minidl.nn.streams import generators
from minidl.parallel import Team, local
from minidl.run import Run

X = np.random.default_rng(0).standard_normal((10, 4)).astype(np.float32)
Y = np.arange(10) % 3


class Noisy(nn.Module):
    """A model with everything that a checkpoint must hold: weights, running statistics, dropout, and a generator of its own."""

    def __init__(self, seed=0, kind=np.random.PCG64):
        rng = np.random.default_rng(seed)
        self.layers = nn.Sequential(nn.Affine(4, 8, generator=rng), nn.BatchNorm(8), nn.ReLU(), nn.Dropout(0.5, generator=rng),
                                    nn.Affine(8, 3, generator=rng))
        self.noise = np.random.Generator(kind(seed))

    def forward(self, x):
        if self.training:
            x = x + self.noise.standard_normal(x.shape).astype(np.float32)
        return self.layers(x)


def trained(epochs=2, **options):
    """The Run of a model that was trained for a while."""
    model = Noisy(**options)
    run = Run(model, optim.Adam(model), Loader((X, Y), batch_size=4), epochs)
    fit(model, run.loader, None, run.optimizer, epochs)
    run.epoch, run.step, run.history = epochs, 3 * epochs, [{"epoch": 1}]
    return run


def fresh(seed=1, batch_size=4, **options):
    model = Noisy(seed, **options)
    return Run(model, optim.Adam(model), Loader((X, Y), batch_size=batch_size), 5)


def on_disk(run):
    """The state as it comes back from a file."""
    arrays, rest = run.state()
    return arrays, json.loads(json.dumps(rest, allow_nan=False))


@pytest.mark.parametrize("kind", [np.random.PCG64, np.random.MT19937, np.random.Philox, np.random.SFC64])
def test_another_run_that_loads_the_state_is_the_same_run(kind):
    run, other = trained(kind=kind), fresh(kind=kind)
    other.load_state(*on_disk(run))
    assert on_disk(other)[1] == on_disk(run)[1]
    for name, x in run.state()[0].items():
        assert other.state()[0][name].tobytes() == x.tobytes(), name
    for one, two in zip(generators(run.model), generators(other.model)):
        assert one[1].random() == two[1].random()


def test_the_state_is_a_copy():
    run = trained()
    arrays, _ = run.state()
    before = {name: x.copy() for name, x in arrays.items()}
    fit(run.model, (X, Y), None, run.optimizer)
    assert all((arrays[name] == before[name]).all() for name in before)


def test_a_state_goes_to_the_device_of_the_model():
    run, other = trained(), fresh()
    other.model.to("strict:0")
    other.load_state(*run.state())
    assert {p.device for p in other.model.parameters()} == {"strict:0"}


def test_a_state_of_before_there_were_phases_is_taken():
    run, other = trained(), fresh()
    arrays, rest = on_disk(run)
    del rest["run"]["phases"]
    other.load_state(arrays, rest)
    assert (other.step, other.phases) == (run.step, {})


class TestEnded:
    def test_of_one_process_when_it_is_asked_to_stop(self):
        run = fresh()
        assert not run.ended
        run.stop = True
        assert run.ended

    def test_of_many_when_all_know(self):
        def rank(communicator):
            run = fresh()
            run.team = Team(communicator)
            run.stop = communicator.rank == 1
            alone = run.ended
            run.stopped = True
            return alone, run.ended

        assert local.run(rank, 2) == [(False, True)] * 2

    def test_after_the_last_epoch(self):
        run = fresh()
        run.epoch = run.epochs
        assert run.finished and run.ended


class TestErrors:
    def test_weights_alone_are_no_run(self):
        with pytest.raises(CheckpointError, match="not the checkpoint of a run"):
            fresh().load_state({f"model.{name}": x for name, x in Noisy().state_dict().items()}, {})

    def test_another_model(self):
        run = trained()
        other = nn.Affine(4, 3)
        with pytest.raises(CheckpointError, match="this Affine and the state do not fit together"):
            Run(other, optim.Adam(other), run.loader, 1).load_state(*run.state())

    def test_another_optimizer(self):
        run, model = trained(), Noisy()
        with pytest.raises(CheckpointError, match="this SGD and the state do not fit together"):
            Run(model, optim.SGD(model, 0.1), run.loader, 1).load_state(*run.state())

    @pytest.mark.parametrize("one, other", [(optim.SGD, optim.KFAC), (optim.KFAC, optim.SGD), (optim.KFAC, optim.Adam)])
    def test_another_optimizer_that_has_more_or_less_to_remember(self, one, other):
        model = Noisy()
        run = Run(model, one(model, lr=0.1), Loader((X, Y), batch_size=4), 1)
        fit(model, run.loader, None, run.optimizer)
        with pytest.raises(CheckpointError, match=f"this (is not the state of a )?{other.__name__}"):
            Run(model, other(model, lr=0.1), run.loader, 1).load_state(*on_disk(run))

    def test_another_order_of_examples_in_the_middle_of_an_epoch(self):
        run = trained()
        run.minibatch = 1
        with pytest.raises(CheckpointError, match=r"(?s)middle of an epoch.*'batch_size': 4.*'batch_size': 5"):
            fresh(batch_size=5).load_state(*run.state())

    def test_between_epochs_the_order_may_change(self):
        run, other = trained(), fresh(batch_size=5)
        other.load_state(*run.state())
        assert other.step == run.step
