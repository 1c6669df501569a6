"""A run that was stopped goes on to the bit; a state that does not fit changes nothing."""

from typing import ClassVar

import numpy as np
import pytest

from curved import affine, conv, mlp, numbers, targets
from minidl import backend, checkpoint, nn, optim
from minidl import functions as F
from minidl.errors import CheckpointError
from minidl.optim import KFAC

NETS = {"mlp": lambda: (mlp(), numbers(6, 3)),
        "groups": lambda: (nn.Sequential(conv(2, 4, 3, groups=2), nn.Tanh(), nn.Flatten(), affine(16, 3)), numbers(6, 2, 4, 4)),
        "batch norm": lambda: (nn.Sequential(affine(3, 4), nn.BatchNorm(4, dtype="float64"), nn.ReLU(), affine(4, 3)), numbers(6, 3)),
        "embedding": lambda: (nn.Sequential(nn.Embedding(5, 4, generator=0, dtype="float64"), nn.Tanh(), affine(4, 3)),
                              np.array([0, 4, 1, 1, 2, 0]))}
OPTIONS = {"cholesky": {}, "eigen": {"inversion": "eigen"}, "ekfac": {"inversion": "ekfac"},
           "adaptive": {"factor_interval": "adaptive", "warm_up": 2}, "empirical": {"fisher": "empirical"},
           "adam": {"lr": None, "momentum": None, "inner": lambda model: optim.Adam(model, lr=0.01)}}


def make(net, **options):
    model, x = NETS[net]()
    if "inner" in options:
        options["inner"] = options["inner"](model)
    given = {"lr": 0.05, "momentum": 0.9, "damping": 0.01, "factor_interval": 2, "inverse_interval": 3, "warm_up": 1} | options
    return model, KFAC(model, **given), x


def train(model, optimizer, x, count):
    for step in range(count):
        optimizer.zero_grad()
        F.softmax_cross_entropy(model(x), targets("categorical", (6, 3), seed=step)).backward()
        optimizer.step()


def through_a_file(folder, state):
    """As run.py does it: the arrays, and what JSON can hold."""
    arrays = {name: x for name, x in state.items() if backend.is_array(x)}
    checkpoint.save(folder / "state.safetensors", arrays, {name: x for name, x in state.items() if name not in arrays})
    arrays, rest = checkpoint.load(folder / "state.safetensors")
    return arrays | rest


def equal(one, two):
    return one.keys() == two.keys() and all(np.array_equal(one[name], two[name]) for name in one)


class TestResume:
    @pytest.mark.parametrize("options", OPTIONS)
    @pytest.mark.parametrize("net", NETS)
    def test_is_the_same_to_the_bit(self, net, options, tmp_path):
        model, optimizer, x = make(net, **OPTIONS[options])
        train(model, optimizer, x, 7)
        weights, state = model.state_dict(), through_a_file(tmp_path, optimizer.state_dict())
        other, resumed, _ = make(net, **OPTIONS[options])
        other.load_state_dict(weights)
        resumed.load_state_dict(state)
        for each, its in ((model, optimizer), (other, resumed)):
            train(each, its, x, 5)
        assert equal(model.state_dict(), other.state_dict())
        assert equal(optimizer.state_dict(), resumed.state_dict())

    def test_a_state_is_a_copy(self):
        model, optimizer, x = make("mlp")
        train(model, optimizer, x, 3)
        state = optimizer.state_dict()
        before = {name: x.copy() for name, x in state.items() if backend.is_array(x)}
        train(model, optimizer, x, 3)
        assert all((state[name] == x).all() for name, x in before.items())
        other, resumed, _ = make("mlp")
        resumed.load_state_dict(state)
        train(other, resumed, x, 3)
        assert all((state[name] == x).all() for name, x in before.items())

    def test_before_the_first_step(self, tmp_path):
        model, optimizer, x = make("mlp")
        other, resumed, _ = make("mlp")
        resumed.load_state_dict(through_a_file(tmp_path, optimizer.state_dict()))
        for each, its in ((model, optimizer), (other, resumed)):
            train(each, its, x, 3)
        assert equal(model.state_dict(), other.state_dict())

    def test_the_damping_that_was_found_comes_back(self):
        model, optimizer, x = make("mlp")
        optimizer.damping_scale = 0.25
        train(model, optimizer, x, 1)
        _, resumed, _ = make("mlp")
        resumed.load_state_dict(optimizer.state_dict())
        assert resumed.damping_scale == 0.25 and resumed.present_damping() == 0.0025


def rest(change):
    """A damage to what JSON holds."""
    def damage(state):
        change(state["kfac"])
    return damage


class TestWhatDoesNotFit:
    DAMAGES: ClassVar = {
        "another optimizer's": lambda state: [state.pop(name) for name in list(state) if name.startswith("kfac")],
        "no momentum": lambda state: state.pop("0.w.velocity"),
        "another shape": lambda state: state.update({"kfac.0.w.A": np.ones((1, 2, 2))}),
        "another shape of an inverse": lambda state: state.update({"kfac.0.w.division.left": np.ones((1, 2, 2))}),
        "no steps": lambda state: state.pop("steps"),
        "another sharing": rest(lambda own: own.update(sharing="reduce")),
        "another Fisher": rest(lambda own: own.update(fisher="empirical")),
        "a list": lambda state: state.update({"kfac": [1, 2]}),
        "no blocks": rest(lambda own: own.pop("blocks")),
        "no weight": rest(lambda own: own.pop("weight")),
        "a kind of block that is not known": rest(lambda own: own["blocks"][0].update(kind="diagonal")),
        "a parameter that is not there": rest(lambda own: own["blocks"][0].update(paths={"w": "7.w"})),
        "counters that are no numbers": rest(lambda own: own["blocks"][0]["averages"]["A"].update(weight="many")),
    }

    @pytest.mark.parametrize("damage", DAMAGES)
    def test_is_an_error_and_changes_nothing(self, damage):
        model, optimizer, x = make("mlp")
        train(model, optimizer, x, 2)
        other, giver, _ = make("mlp")
        train(other, giver, x, 5)
        state, before, blocks = giver.state_dict(), optimizer.state_dict(), dict(optimizer.blocks)
        self.DAMAGES[damage](state)
        with pytest.raises(CheckpointError):
            optimizer.load_state_dict(state)
        assert equal(optimizer.state_dict(), before) and optimizer.blocks == blocks

    def test_the_state_of_sgd_is_none_of_kfac_and_the_other_way_round(self):
        model, optimizer, x = make("mlp")
        train(model, optimizer, x, 2)
        sgd = optim.SGD(model, 0.1, momentum=0.9)
        with pytest.raises(CheckpointError, match="this is not the state of a KFAC"):
            optimizer.load_state_dict(sgd.state_dict())
        with pytest.raises(CheckpointError, match="unexpected: kfac"):
            sgd.load_state_dict(optimizer.state_dict())

    @pytest.mark.parametrize("net", [net for net in NETS if net != "mlp"])
    def test_the_state_of_another_network_is_an_error(self, net):
        model, optimizer, x = make(net)
        train(model, optimizer, x, 2)
        _, other, _ = make("mlp")
        with pytest.raises(CheckpointError):
            other.load_state_dict(optimizer.state_dict())
        assert not other.blocks and other.steps == 0
