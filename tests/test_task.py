"""From options to objects: what options mean is what is made."""

from types import SimpleNamespace

import numpy as np
import pytest
import runs

from minidl import models, nn, optim
from minidl.options import KFAC, LEARNING_RATES
from minidl.task import BRIEF, HUGE, LARGE, largest_factor, make_model, make_optimizer

place = pytest.fixture(runs.place)


class TestMakeModel:
    def make(self, name):
        return make_model(name, (1, 8, 8), 10, np.random.default_rng(0))

    @pytest.mark.parametrize("name", models.names())
    def test_by_its_name(self, name):
        assert type(self.make(name)).__name__.lower() == name

    def test_a_function_gets_those_arguments_that_it_takes(self, place):
        assert len(self.make("nets:all_states").parameters()) == 6
        assert self.make("nets:only_the_shape")[1].outputs == 10
        assert self.make("nets:whatever")[1].inputs == 64

    def test_a_class_is_as_good_as_a_function(self):
        assert isinstance(self.make("minidl.models:LeNet"), models.LeNet)

    @pytest.mark.parametrize("source, error", [("import not_there", ModuleNotFoundError), ("def f(:", SyntaxError),
                                               ("1 / 0", ZeroDivisionError), ("def f(**kw): return kw['nothing']", KeyError)])
    def test_a_fault_in_the_module_is_its_own(self, place, monkeypatch, source, error):
        (place / "faulty.py").write_text(source)
        monkeypatch.delitem(runs.sys.modules, "faulty", raising=False)
        with pytest.raises(error):
            self.make("faulty:f")


class TestMakeOptimizer:
    def make(self, model=None, steps=100, **options):
        options = {"optimizer": "sgd", "lr": 0.1, "momentum": None, "weight_decay": 0.01, "schedule": "constant", "warm_up": 0, "seed": 5,
                   **(KFAC if options.get("optimizer") == "kfac" else dict.fromkeys(KFAC))} | options
        return make_optimizer(SimpleNamespace(**options), model or nn.Sequential(nn.Affine(2, 2), nn.BatchNorm(2)), steps)

    @pytest.mark.parametrize("schedule, rates", [("constant", [0.1, 0.1, 0.1]), ("step", [0.1, 0.01, 0.001]), ("cosine", [0.1, 0.05, 0.0]),
                                                 ("polynomial", [0.1, 0.05, 0.0])])
    @pytest.mark.parametrize("warm_up", [0, 10])
    def test_a_schedule_ends_with_the_run(self, schedule, rates, warm_up):
        lr = self.make(schedule=schedule, warm_up=warm_up).options["lr"]
        places = [warm_up, warm_up + (100 - warm_up) // 2, 99 if schedule == "step" else 100]
        np.testing.assert_allclose([lr(step) for step in places], rates, atol=1e-12)
        assert [lr(step) < 0.1 for step in range(warm_up)] == [True] * warm_up

    def test_what_shifts_and_scales_is_not_decayed(self):
        optimizer = self.make()
        assert {path: (optimizer.options | changes)["weight_decay"] for path, changes in optimizer.changes.items()} == {
            "0.w": 0.01, "0.b": 0.0, "1.gamma": 0.0, "1.beta": 0.0}

    def test_a_model_may_be_a_single_layer(self):
        assert self.make(nn.Affine(2, 2)).changes["b"] == {"weight_decay": 0.0}

    @pytest.mark.parametrize("name", LEARNING_RATES)
    def test_every_kind_that_is_offered_can_be_made(self, name):
        assert isinstance(self.make(optimizer=name), optim.Optimizer)

    def test_kfac_is_made_as_it_was_asked_for(self):
        options = {"damping": 0.5, "kl_clip": 0.25, "fisher": "exact", "factor_interval": "adaptive", "inverse_interval": 3}
        kfac = self.make(optimizer="kfac", momentum=0.5, **options)
        assert (kfac.damping, kfac.kl_clip, kfac.statistics.fisher, kfac.inverse_interval, kfac.seed) == (0.5, 0.25, "exact", 3, 5)
        assert kfac.statistics.settings.timing.interval == "adaptive"
        assert kfac.inner.options["momentum"] == 0.5 and kfac.inner.options["weight_decay"] == 0.01
        assert kfac.inner.changes["1.gamma"] == {"weight_decay": 0.0}

    def test_a_huge_factor_is_not_inverted_in_each_of_ten_steps_at_first(self):
        for inputs, steps in ((HUGE + 1, BRIEF), (HUGE, 10)):
            kfac = self.make(nn.Affine(inputs, 2), optimizer="kfac")
            assert kfac.statistics.settings.timing.warm_up == steps

    def test_no_steps_at_all_are_no_error(self):
        assert self.make(steps=0, schedule="cosine", warm_up=5).options["lr"](0) < 0.1


def test_the_largest_factor_is_of_a_layer_s_inputs_or_outputs():
    assert largest_factor(nn.Sequential(nn.Conv2d(3, 8, 5), nn.Affine(40, 60), nn.BatchNorm(500))) == 75
    assert largest_factor(nn.BatchNorm(5)) == 0
    assert largest_factor(models.create("lenet", input_shape=(1, 28, 28), classes=10)) < LARGE
    assert largest_factor(models.create("resnet18", input_shape=(3, 32, 32), classes=10)) == 4608
