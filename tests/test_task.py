"""From options to objects: what is wrong with options is said before anything is written, and what they mean is what is made."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import runs

from minidl import data, models, nn, optim
from minidl.task import AUGMENTATIONS, LEARNING_RATES, SCHEDULES, flag, make_model, make_optimizer, unused
from minidl.train import app

place = pytest.fixture(runs.place)

DIGITS = ("--data", "digits.npz")


@pytest.mark.parametrize("words, says", [
    (["--model", "lenett"], "--model lenett is not known (nearest: 'lenet')"),
    (["--optimizer", "sdg"], "--optimizer sdg is not known (nearest: 'sgd')"),
    (["--schedule", "cosin"], "--schedule cosin is not known (nearest: 'cosine')"),
    (["--augment", "flip"], "--augment flip is not known (nearest: 'crop-flip')"),
    (["--lr", "0"], "--lr is 0.0, and must be a finite number above 0"),
    (["--lr", "-0.1"], "--lr is -0.1, and must be a finite number above 0"),
    (["--lr", "nan"], "--lr is nan"),
    (["--lr", "inf"], "--lr is inf"),
    (["--clip", "0"], "--clip is 0.0"),
    (["--epochs", "-1"], "--epochs is -1, and must be at least 0"),
    (["--batch-size", "0"], "--batch-size is 0, and must be at least 1"),
    (["--accumulate", "0"], "--accumulate is 0, and must be at least 1"),
    (["--momentum", "-0.5"], "--momentum is -0.5"),
    (["--momentum", "nan"], "--momentum is nan"),
    (["--weight-decay", "-1"], "--weight-decay is -1.0"),
    (["--label-smoothing", "1.5"], "--label-smoothing is 1.5, and must be at most 1"),
    (["--threads", "0"], "--threads is 0, and must be at least 1"),
    (["--seed", "-1"], "--seed is -1"),
    (["--keep", "0"], "--keep is 0"),
    (["--checkpoint-every", "0"], "--checkpoint-every is 0"),
    (["--warm-up", "20", "--epochs", "10"], "--warm-up is 20 steps, and the whole run has 20"),
    (["--eval-only"], "--eval-only: there is nothing to test"),
    (["--data", "vectors.npz", "--model", "mlp", "--augment", "shift"], "--augment shift: the data are vectors, not images"),
    # what would not be used
    (["--optimizer", "adam", "--momentum", "0.9"], "--momentum would not be used: adam has none"),
    (["--data", "digits", "--data-dir", "here"], "--data-dir would not be used: --data digits is not downloaded"),
    (["--data-dir", "here"], "--data-dir would not be used: --data digits.npz is not downloaded"),
    (["--model", "autoencoder", "--label-smoothing", "0.1"], "--label-smoothing would not be used: autoencoder learns no labels"),
    (["--model", "autoencoder", "--normalise"], "--normalise would not be used: autoencoder learns images in [0, 1]"),
    (["--eval-only", "--weights", "w.safetensors", "--lr", "1"], "--lr would not be used: with --eval-only nothing is trained"),
    (["--eval-only", "--weights", "w.safetensors", "--out", "o"], "--out would not be used"),
    # models of one's own
    (["--model", "nets:"], "nets has no function ''"),
    (["--model", "nets:all_state"], "nets has no function 'all_state' (nearest: 'all_states')"),
    (["--model", ":all_states"], "'' is not the name of a module"),
    (["--model", ".nets:all_states"], "'.nets' is not the name of a module"),
    (["--model", "nuts:all_states"], "No module named 'nuts'"),
    (["--model", "nets.inner:all_states"], "'nets' is not a package"),
    (["--model", "nets.py:all_states"], "'nets' is not a package"),
    (["--model", "nets:model"], "model is Flatten(), and must be a function that makes a model"),
    (["--model", "nets:needs_more"], "the function asks for width"),
    (["--model", "nets:rubbish"], "the function gave 'a model', and must give a minidl.nn.Module"),
])
def test_wrong_options_are_told_before_anything_is_written(place, capsys, words, says):
    there = sorted(place.iterdir())
    assert runs.status(app, *DIGITS, *words) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("Error: --") and says in captured.err
    assert sorted(path for path in place.iterdir() if path.name != "__pycache__") == there


@pytest.mark.parametrize("words, says", [
    (["--data", "digit"], "no data set is called 'digit' (nearest: 'digits')"),
    (["--data", "none.npz"], "there is no none.npz"),
    (["--data", "vectors.npz"], "lenet: input_shape is (64,), and must be (C, H, W)"),
    (["--device", "gpu"], "device 'gpu' is not known"),
    (["--model", "minidl.nn:Flatten"], "SGD: the model has no parameters"),
])
def test_so_is_what_cannot_be_done(place, capsys, words, says):
    assert runs.status(app, *DIGITS, *words) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("Error: ") and says in captured.err
    assert not (place / "runs").exists()


def test_a_gpu_that_is_not_there_is_told(place, capsys):
    try:
        import cupy  # noqa: F401
    except ImportError:
        assert runs.status(app, "--device", "cuda:0") == 1
        assert "cuda: CuPy cannot be imported" in capsys.readouterr().err


def test_what_a_config_file_says_in_vain_stands_with_the_plan(place, capsys):
    (place / "c.toml").write_text('momentum = 0.9\ndata-dir = "here"\nlabel-smoothing = 0.2\nnormalise = true\n')
    assert runs.status(app, *DIGITS, "--config", "c.toml", "--optimizer", "adam", "--model", "autoencoder", "--epochs", 1) == 0
    notes = re.findall(r"not used +(.*)", capsys.readouterr().out)
    assert [note.split(":")[0] for note in notes] == ["label_smoothing", "normalise", "data_dir", "momentum"]


def test_what_is_zero_or_false_is_never_said_in_vain():
    options = SimpleNamespace(momentum=0.0, normalise=False, clip=None, typed={"momentum", "normalise"}, filed={"clip"})
    assert unused(options, ["momentum", "normalise", "clip"], "for a test") == []


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
        options = {"optimizer": "sgd", "lr": 0.1, "momentum": None, "weight_decay": 0.01, "schedule": "constant", "warm_up": 0} | options
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

    def test_no_steps_at_all_are_no_error(self):
        assert self.make(steps=0, schedule="cosine", warm_up=5).options["lr"](0) < 0.1


def test_the_help_names_all_that_is_known(capsys):
    assert runs.status(app, "--help") == 0
    text = re.sub(r"\s+", " ", capsys.readouterr().out)
    for name in (*models.names(), *LEARNING_RATES, *SCHEDULES, *AUGMENTATIONS, *data.catalogue.CLASSES):
        assert name in text, name
    for name in ("model", "data_dir", "checkpoint_every", "eval_only", "label_smoothing"):
        assert flag(name) in text
