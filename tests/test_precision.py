"""Mixed precision from end to end: whole networks, the training loop, many ranks, checkpoints, the command. Single functions, layers and
kernels are looked at where they are tested anyway.
"""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import runs
from trained import Case, alone, differences, images, left

from minidl import Tensor, announce, backend, data, models, nn, optim, predict
from minidl import functions as F
from minidl.data import Loader
from minidl.errors import ConfigError, DtypeError, NumericsError
from minidl.loop import Callback, Objective, classification, evaluate, fit, to_model
from minidl.optim import scaling
from minidl.options import settle_precision
from minidl.parallel import Team, local
from minidl.train import app

place = pytest.fixture(runs.place)
pytest.importorskip("ml_dtypes", reason="bfloat16 needs ml_dtypes: pip install 'minidl[precision]'")

HALVES = {"float16": 2**-10, "bfloat16": 2**-7}                 # and from 1 to the next number
RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((34, 6)).astype(np.float32), RNG.integers(0, 3, 34)


def pictures(g):
    """Without max pooling, which rounding may have choose another number."""
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1, bias=False, generator=g), nn.BatchNorm(4), nn.ReLU(), nn.AvgPool2d(2),
                         nn.Conv2d(4, 6, 3, bias=False, generator=g), nn.BatchNorm(6, activation="relu"), nn.AvgPool2d(2), nn.Flatten(),
                         nn.Dropout(0.3, generator=3), nn.Affine(6, 10, generator=g)), (8, 1, 10, 10)


def rows(g):
    return nn.Sequential(nn.Affine(6, 16, activation="tanh", generator=g), nn.LayerNorm(16), nn.Affine(16, 16, generator=g), nn.GELU(),
                         nn.Affine(16, 3, generator=g)), (8, 6)


@pytest.mark.parametrize("make", [pictures, rows])
@pytest.mark.parametrize("half", HALVES)
def test_gradients_of_a_network_are_those_of_float32_but_for_rounding(make, half):
    """By float32 weights they are float32."""
    def gradients(dtype, scale):
        model, shape = make(np.random.default_rng(1))
        x = np.random.default_rng(2).standard_normal(shape).astype(np.float32).astype(dtype)
        loss = F.softmax_cross_entropy(model(x), np.arange(len(x)) % 3)
        assert loss.dtype == np.float32
        loss.backward(scale)
        return {path: p.grad.data / np.float32(scale) for path, p in model.named_parameters()}

    wanted, found = gradients("float32", 1.0), gradients(backend.dtype_named(half), 2.0**10)
    for path, g in found.items():
        assert g.dtype == np.float32, path
        assert np.linalg.norm(g - wanted[path]) < 10 * HALVES[half] * np.linalg.norm(wanted[path]), path


def test_a_network_of_float16_throughout_is_possible_too():
    model = nn.Sequential(nn.Affine(6, 8, generator=0), nn.BatchNorm(8), nn.ReLU(), nn.Affine(8, 3, generator=1)).to(dtype="float16")
    optimizer = optim.SGD(model, lr=0.1, momentum=0.9)
    history = fit(model, Loader((X, Y), batch_size=8, seed=0), (X, Y), optimizer, 3, dtype="float16")
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    assert {str(x.dtype) for x in model.state_dict().values() if backend.is_array(x) and backend.is_float(x.dtype)} == {"float16"}
    assert {str(x.dtype) for x in optimizer.state_dict().values() if backend.is_array(x)} == {"float16"}


@pytest.mark.parametrize("half", HALVES)
class TestPromotion:
    """Of numbers beside arrays, and of arrays beside one another."""

    @pytest.mark.parametrize("tensor", [False, True])
    def test_a_python_number_leaves_16_bits(self, half, tensor):
        x = np.linspace(0.5, 2, 4).astype(backend.dtype_named(half))
        x = Tensor(x, requires_grad=True) if tensor else x
        for y in (F.multiply(x, 0.3), F.power(x, 0.5), F.power(2.5, x), F.where(np.ones(4, bool), x, 0.0), F.maximum(x, 0.7),
                  F.clip(x, 0.1, 1.0), F.leaky_relu(x, 0.1), F.sum(x), F.add(np.float64(1), x)):
            assert y.dtype == half

    def test_float32_beside_16_bits_gives_float32(self, half):
        x, w = np.ones((2, 2), backend.dtype_named(half)), np.full((2, 2), 1 / 3, np.float32)
        for function in (F.add, F.multiply, F.matmul, F.maximum):
            for a, b in ((x, w), (w, x)):
                assert function(a, b).dtype == "float32"
                a, b = Tensor(a, requires_grad=True), Tensor(b, requires_grad=True)
                function(a, b).sum().backward()
                assert (a.grad.dtype, b.grad.dtype) == (a.dtype, b.dtype)
        np.testing.assert_array_equal(F.matmul(x, w), np.ones((2, 2), np.float32) @ w)

    def test_rows_of_an_embedding_are_cast_where_they_leave_it(self, half):
        table = nn.Embedding(5, 3, generator=0)
        y = table(np.array([1, 1, 4])).astype(backend.dtype_named(half))
        (y * y).sum().backward()
        assert y.dtype == half and table.w.grad.dtype == "float32" and table.w.grad.data[1].any()


class TestCasts:
    def test_floats_are_cast_where_they_enter_the_model_and_labels_are_not(self):
        model = nn.Affine(6, 3)
        assert to_model(model, X, "float16").dtype == "float16"
        assert to_model(model, Y, "float16") is Y and to_model(model, X) is X
        assert to_model(model, X, "bfloat16").dtype == backend.dtype_named("bfloat16")
        with pytest.raises(DtypeError, match="dtype 'int8' is not a float type"):
            to_model(model, X, "int8")

    def test_weights_float32_and_images_float64_still_do_not_go_together(self):
        with pytest.raises(DtypeError, match="affine: x is float64, w is float32"):
            nn.Affine(6, 3)(X.astype("float64"))
        with pytest.raises(DtypeError, match="affine: x is float32, w is float16"):
            nn.Affine(6, 3).to(dtype="float16")(X)
        with pytest.raises(DtypeError, match="affine: x is float16, w is bfloat16"):
            nn.Affine(6, 3).to(dtype="bfloat16")(X.astype("float16"))

    def test_a_tensor_says_which_it_is(self):
        assert repr(Tensor(np.ones(2, backend.dtype_named("bfloat16")))) == "Tensor([1, 1], dtype=bfloat16)"


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


class TestFit:
    @pytest.mark.parametrize("half", HALVES)
    def test_learns_the_digits_in_16_bits(self, digits, half):
        train, test = digits
        model = models.create("mlp", input_shape=(1, 8, 8), classes=10, generator=0)
        seen = set()
        model.register_forward_hook(lambda module, inputs, output: seen.add((str(inputs[0].dtype), str(output.dtype))))
        optimizer = optim.SGD(model, lr=0.1, momentum=0.9)
        metrics = fit(model, train, test, optimizer, 2, dtype=half)[-1]
        assert metrics["test_accuracy"] > 0.9 and seen == {(half, half)}
        assert {str(p.dtype) for p in model.parameters()} == {"float32"}
        assert ("loss_scale" in metrics) == ("skipped" in metrics) == (half == "float16")
        loss, accuracy = evaluate(model, test, dtype=half)
        assert (loss, accuracy) == (metrics["test_loss"], metrics["test_accuracy"])
        assert evaluate(model, test)[0] == pytest.approx(loss, rel=10 * HALVES[half])

    @pytest.mark.parametrize("options", [{}, {"accumulate": 3}, {"clip": 0.05}])
    def test_a_scale_that_is_a_power_of_two_changes_no_bit_of_float32(self, options):
        def bits(**more):
            model = nn.Sequential(nn.Affine(6, 8, activation="tanh", generator=0), nn.Affine(8, 3, generator=1))
            fit(model, Loader((X, Y), batch_size=6, seed=3), None, optim.Adam(model, lr=0.01), 2, **options, **more)
            return np.concatenate([p.data.ravel() for p in model.parameters()])
        np.testing.assert_array_equal(bits(loss_scale=1024), bits())

    def test_gradients_that_would_vanish_do_not(self):
        """A loss of a millionth: its gradients are below all numbers of float16, but for the scale."""
        tiny = Objective(lambda outputs, x, y: F.softmax_cross_entropy(outputs, y) * 1e-7)

        def moved(scale):
            model = nn.Affine(6, 3, generator=0)
            before = model.w.data.copy()
            fit(model, (X, Y), None, optim.Adam(model, lr=0.01, eps=1e-12), 1, objective=tiny, dtype="float16", loss_scale=scale)
            return np.abs(model.w.data - before).max()
        assert moved(1) == 0 and moved("dynamic") > 0.005


class Counts(Callback):
    def __init__(self, stop_at=None):
        self.scales, self.weights, self.stop_at, self.saved = [], [], stop_at, None

    def step(self, run, loss):
        self.scales.append(run.scaling.scale)
        self.weights.append(run.model[0].w.data.copy())
        run.stop = run.step == self.stop_at

    def end(self, run):
        arrays, rest = run.state()
        self.saved = {name: np.array(x) for name, x in arrays.items()}, json.loads(json.dumps(rest))


def net():
    return nn.Sequential(nn.Affine(6, 8, generator=0), nn.BatchNorm(8, activation="relu"), nn.Dropout(0.2, generator=1),
                         nn.Affine(8, 3, generator=2))


def run_of(optimizer, counts=None, resume=None, **options):
    model = net()
    made = optimizer(model)
    history = fit(model, Loader((X, Y), batch_size=6, seed=3), None, made, 4, [counts or Counts()], dtype="float16", resume=resume,
                  **options)
    return model, made, history


OPTIMIZERS = {"sgd": lambda model: optim.SGD(model, lr=optim.cosine(0.1, 24), momentum=0.9),
              "adam": lambda model: optim.Adam(model, lr=0.02),
              "kfac": lambda model: optim.KFAC(model, lr=0.1, factor_interval=2, inverse_interval=2)}


class TestOverflow:
    @pytest.fixture(autouse=True)
    def a_scale_that_is_too_large(self, monkeypatch):
        monkeypatch.setattr(scaling, "FIRST", 2.0**24)
        monkeypatch.setattr(scaling, "PATIENCE", 4)

    @pytest.mark.parametrize("name", OPTIMIZERS)
    def test_leaves_a_step_out(self, name):
        counts = Counts()
        model, optimizer, history = run_of(OPTIMIZERS[name], counts)
        halved = [after < before for before, after in zip([2.0**24, *counts.scales], counts.scales)]
        skipped = history[-1]["skipped"]
        assert halved[0] and sum(halved) == skipped and 3 < skipped < 20
        assert optimizer.steps == 24 - skipped and history[-1]["step"] == 24             # the schedule waits too
        start = [net()[0].w.data, *counts.weights]
        assert [np.array_equal(before, after) for before, after in zip(start, counts.weights)] == halved
        assert all(np.isfinite(x).all() for x in model.state_dict().values())
        assert history[-1]["loss_scale"] == counts.scales[-1] and any(a > b for a, b in zip(counts.scales[1:], counts.scales))
        assert np.isfinite(history[-1]["train_loss"])

    @pytest.mark.parametrize("name", OPTIMIZERS)
    @pytest.mark.parametrize("stop_at", [3, 13])
    def test_a_resumed_run_is_the_same_to_the_bit(self, name, stop_at):
        model, _, history = run_of(OPTIMIZERS[name])
        first = Counts(stop_at)
        run_of(OPTIMIZERS[name], first)
        again, _, its_history = run_of(OPTIMIZERS[name], resume=first.saved)
        for path, x in model.state_dict().items():
            np.testing.assert_array_equal(x, again.state_dict()[path], path)
        assert [line["skipped"] for line in its_history] == [line["skipped"] for line in history]
        assert its_history[-1]["loss_scale"] == history[-1]["loss_scale"]

    def test_with_clipping_and_parts(self):
        _, _, history = run_of(OPTIMIZERS["sgd"], clip=0.1, accumulate=2)
        assert history[-1]["skipped"] > 3 and history[-1]["train_loss"] < history[0]["train_loss"]

    def test_that_never_ends_is_an_error(self):
        model = net()
        model[0].w.register_hook(lambda grad: grad * np.inf)
        with pytest.raises(NumericsError, match="the gradient is not finite, even with the loss scale 1"):
            fit(model, Loader((X, Y), batch_size=6, seed=3), None, optim.SGD(model, lr=0.1), 10, dtype="float16")

    def test_a_loss_that_is_not_finite_is_an_error_at_once(self):
        """The scale comes after it, and cannot mend it."""
        broken = Objective(lambda outputs, x, y: F.softmax_cross_entropy(outputs, y) * np.inf)
        model = net()
        with pytest.raises(NumericsError, match=r"(?s)the loss is inf at step 1 .*try bfloat16"):
            fit(model, Loader((X, Y), batch_size=6, seed=3), None, optim.SGD(model, lr=0.1), 1, objective=broken, dtype="float16")

    def test_a_fixed_scale_says_so(self):
        model = net()
        with pytest.raises(NumericsError, match=r"the gradient is not finite with the loss scale 1\.67772e"):
            fit(model, Loader((X, Y), batch_size=6, seed=3), None, optim.SGD(model, lr=0.1), 1, dtype="float16", loss_scale=2.0**24)


class TestRanks:
    """Every rank leaves out the same steps, whosever gradient it was, and all leave what one process does that takes as many parts."""

    @pytest.mark.parametrize("exchange", ["allreduce", "master-worker"])
    @pytest.mark.parametrize("overlap", ["none", "backward", "forward"])
    def test_overflow_on_any_rank(self, monkeypatch, exchange, overlap):
        monkeypatch.setattr(scaling, "PATIENCE", 5)
        case = Case(images, width=16, epochs=2, examples=43, objective=Objective(spiked, classification().right))
        options = {"loss_scale": "dynamic", "dtype": "float16"}
        wanted = left(*case.train(accumulate=2, **options))
        assert float(np.frombuffer(wanted["epoch 2 skipped"][-8:], np.int64)[0]) >= 1
        found = local.run(lambda communicator: with_options(communicator, case, exchange, overlap, options), 2, patience=20)
        assert [differences(wanted, each) for each in found] == [[], []]

    @pytest.mark.parametrize("overlap", ["none", "backward", "forward"])
    def test_a_power_of_two_changes_no_bit(self, overlap):
        case = Case(epochs=2, examples=43)
        wanted = alone(case, 2)
        found = local.run(lambda communicator: with_options(communicator, case, "allreduce", overlap, {"loss_scale": 256}), 2, patience=20)
        assert [[name for name in differences(wanted, each) if "scal" not in name and "skipped" not in name] for each in found] == [[], []]

    def test_compression_owes_nothing_of_a_step_that_was_left_out(self, monkeypatch):
        case = Case(epochs=2, examples=43, objective=Objective(spiked, classification().right))
        found = local.run(lambda communicator: with_options(communicator, case, "allreduce", "backward",
                                                            {"loss_scale": "dynamic", "dtype": "float16"}, compress="int8"), 2, patience=20)
        assert differences(*found) == []


def with_options(communicator, case, exchange, overlap, options, **more):
    team = Team(communicator, exchange, overlap=overlap, chunk=200, **more)
    return left(*case.train(team, **options), memory=communicator.rank == 0 or exchange != "master-worker")


def spiked(outputs, x, y):
    """A loss whose gradient is beyond float16 where some example is unusual: on one rank, in some steps."""
    array = x.data if isinstance(x, Tensor) else x
    loss = F.softmax_cross_entropy(outputs, y)
    return loss * (100.0 if len(array) and float(abs(array).max()) > 3.4 else 1.0)


class TestCommand:
    @pytest.mark.parametrize("half", HALVES)
    def test_trains_tests_resumes_and_predicts(self, place, capsys, half):
        words = ("--data", "digits.npz", "--model", "mlp", "--epochs", 4, "--out", "run", "--dtype", half)
        assert runs.status(app, *words) == 0
        said = capsys.readouterr().out
        assert f"precision  {half}, weights float32" in said and ("loss scaled dynamically" in said) == (half == "float16")
        assert all(("skipped" in line) == (half == "float16") for line in runs.metrics(place / "run"))
        assert runs.status(app, "--eval-only", "--resume", "run") == 0
        assert f"precision  {half}, weights float32\n" in capsys.readouterr().out
        model, config = predict.load_run(place / "run")
        seen = []
        model.register_forward_hook(lambda module, inputs, output: seen.append(str(inputs[0].dtype)))
        shares = predict.predict(model, config, np.zeros((2, 1, 8, 8), np.float32))
        assert seen == [half] and shares.dtype == np.float32 and np.allclose(shares.sum(axis=1), 1)

    def test_a_run_in_two_halves_is_the_same(self, place):
        words = ("--data", "digits.npz", "--model", "nets:all_states", "--dtype", "float16")
        assert runs.status(app, *words, "--epochs", 4, "--out", "whole", "--schedule", "constant") == 0
        assert runs.status(app, *words, "--epochs", 2, "--out", "half", "--schedule", "constant") == 0
        assert runs.status(app, "--resume", "half", "--epochs", 4) == 0
        assert runs.metrics(place / "whole") == runs.metrics(place / "half")
        assert runs.last_checkpoint(place / "whole") == runs.last_checkpoint(place / "half")

    @pytest.mark.parametrize("words, says", [
        (["--dtype", "float8"], "--dtype float8 is not known"),
        (["--dtype", "bfloat"], "--dtype bfloat is not known (nearest: 'bfloat16')"),
        (["--dtype", "float16", "--loss-scale", "dynamc"], "--loss-scale dynamc is not known (nearest: 'dynamic')"),
        (["--dtype", "float16", "--loss-scale", "0"], "--loss-scale is 0, and must be a finite number above 0, or dynamic"),
        (["--loss-scale", "8"], "--loss-scale would not be used: gradients of float32 do not vanish"),
        (["--tf32"], "--tf32 would not be used: cpu has no tensor cores"),
        (["--eval-only", "--weights", "w", "--dtype", "float16", "--loss-scale", "8"], "--loss-scale would not be used: with --eval-only"),
    ])
    def test_what_would_not_be_used_is_told(self, place, capsys, words, says):
        assert runs.status(app, "--data", "digits.npz", *words) == 2
        assert says in capsys.readouterr().err

    def test_tf32_is_for_float32_on_a_gpu(self, monkeypatch):
        monkeypatch.setattr(backend, "library_named", lambda device: SimpleNamespace(kernels="cuda"))
        options = {"device": "cuda:0", "loss_scale": None, "tf32": True, "typed": {"tf32"}, "filed": set(), "eval_only": False}
        settled = SimpleNamespace(dtype="float32", **options)
        assert settle_precision(settled) == [] and settled.tf32
        assert announce.precision(settled) == [("precision", "factors of products rounded to TF32")]
        with pytest.raises(ConfigError, match="--tf32 would not be used: float16 is multiplied by tensor cores anyway"):
            settle_precision(SimpleNamespace(dtype="float16", **options))

    def test_a_config_file_may_hold_the_scale_as_a_number_or_a_word(self, place):
        for text, value in (("1024", 1024.0), ('"dynamic"', "dynamic")):
            (place / "c.toml").write_text(f'dtype = "float16"\nloss-scale = {text}\n')
            assert runs.status(app, "--data", "digits.npz", "--config", "c.toml", "--epochs", 0, "--out", f"run-{value}") == 0
            assert json.loads((place / f"run-{value}" / "config.json").read_text())["options"]["loss_scale"] == value

    def test_bfloat16_without_its_package_is_told_before_anything_is_written(self, place, capsys, monkeypatch):
        monkeypatch.setitem(__import__("sys").modules, "ml_dtypes", None)
        assert runs.status(app, "--data", "digits.npz", "--dtype", "bfloat16") == 1
        assert "pip install 'minidl[precision]'" in capsys.readouterr().err
        assert not (place / "runs").exists()
