"""The loop does the seven steps and nothing else, and goes on from anywhere to the bit."""

import inspect
import json
import math
import time

import numpy as np
import pytest

import strict  # noqa: F401   makes the strict device known
from minidl import Tensor, data, kernels, models, nn, optim
from minidl import functions as F
from minidl.data import Dataset, Loader
from minidl.data.loader import share
from minidl.errors import ArgumentError, GraphError, NumericsError
from minidl.loop import Callback, Objective, classification, evaluate, fit, learn, reconstruction

RNG = np.random.default_rng(0)
X = RNG.standard_normal((34, 6)).astype(np.float32)
Y = RNG.integers(0, 3, 34)
TEST = (RNG.standard_normal((9, 6)).astype(np.float32), RNG.integers(0, 3, 9))
TIMES = ("second", "seconds", "phases", "hidden", "memory")


def mlp(seed=0):
    """A small model without anything random or running in it."""
    rng = np.random.default_rng(seed)
    return nn.Sequential(nn.Affine(6, 8, activation="tanh", generator=rng), nn.Affine(8, 3, generator=rng))


def full(seed=0):
    """A small model with all that has a state."""
    rng = np.random.default_rng(seed)
    return nn.Sequential(nn.Affine(6, 8, generator=rng), nn.BatchNorm(8), nn.ReLU(), nn.Dropout(0.5, generator=rng),
                         nn.Affine(8, 3, generator=rng))


def loader(**options):
    return Loader((X, Y), batch_size=6, seed=3, **options)          # six minibatches, the last of four examples


def adam(model):
    return optim.Adam(model, lr=optim.warm_up(3, optim.cosine(0.05, 20)))


def kfac(model):
    return optim.KFAC(model, lr=optim.cosine(0.1, 20), kl_clip=0.01, factor_interval="adaptive", inverse_interval=3, warm_up=2)


def timeless(history):
    return [{name: value for name, value in metrics.items() if not name.endswith(TIMES)} for metrics in history]


class Steps(Callback):
    """Writes down what happens, and may stop the run after so many steps."""

    def __init__(self, stop_at=None):
        self.events, self.losses, self.stop_at = [], [], stop_at

    def start(self, run):
        self.run = run
        self.events.append("start")

    def step(self, run, loss):
        self.losses.append(loss)
        self.events.append(run.step)
        run.stop = run.step == self.stop_at

    def epoch(self, run, metrics):
        self.events.append(f"epoch {metrics['epoch']}")

    def end(self, run):
        self.events.append("end")


class TestFit:
    def test_is_what_one_would_write_by_hand(self):
        model, twin = mlp(), mlp()
        fit(model, loader(), None, optim.SGD(model, 0.1, momentum=0.9), epochs=2)
        optimizer = optim.SGD(twin, 0.1, momentum=0.9)
        for epoch in range(2):
            for x, y in loader().epoch(epoch):
                optimizer.zero_grad()
                F.softmax_cross_entropy(twin(x), y).backward()
                optimizer.step()
        for p, q in zip(model.parameters(), twin.parameters()):
            np.testing.assert_array_equal(p.data, q.data)

    def test_has_the_seven_steps_in_its_body(self):
        lines = [line.partition("#")[2] for line in (inspect.getsource(fit) + inspect.getsource(learn)).splitlines()]
        steps = [line.split(",")[0].split(":")[0].strip() for line in lines if line.strip().startswith("Step")]
        assert steps == ["Step 1", "Step 2", "Step 3", "Step 4", "Steps 5 and 6", "Step 7"]

    def test_gives_the_metrics_of_each_epoch(self):
        model = mlp()
        history = fit(model, loader(), TEST, optim.SGD(model, 0.1), epochs=3)
        assert [metrics["epoch"] for metrics in history] == [1, 2, 3]
        for metrics in history:
            assert list(metrics) == ["epoch", "step", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "seconds",
                                     "images_per_second", "phases", "hidden", "memory"]
            assert metrics["images_per_second"] == pytest.approx(34 / metrics["seconds"])
        assert history[2]["train_loss"] < history[0]["train_loss"]
        assert (history[-1]["test_loss"], history[-1]["test_accuracy"]) == evaluate(model, TEST)

    def test_the_phases_of_an_epoch_are_among_them_and_add_up_to_its_time(self):
        ends = [time.perf_counter()]

        class Ends(Callback):
            def epoch(self, run, metrics):
                ends.append(time.perf_counter())

        model = mlp()
        history = fit(model, loader(), (X, Y), optim.SGD(model, 0.1), 3, [Ends()])
        for metrics, start, end in zip(history, ends, ends[1:]):
            assert sum(metrics["phases"].values()) == pytest.approx(end - start, rel=0.05, abs=1e-3)
            assert {"data", "forward", "backward", "update", "evaluation", "saving", "other"} <= set(metrics["phases"])

    def test_the_phases_of_an_epoch_go_on_where_it_was_resumed(self):
        def run(stop_at=None, resume=None):
            model, steps = mlp(), Steps(stop_at)
            history = fit(model, loader(), None, optim.SGD(model, 0.1), 2, [steps], resume=resume)
            return history, steps.run.state()

        arrays, rest = run(stop_at=8)[1]
        rest["run"]["phases"] = {"forward": 100.0, "factors": 7.0}          # the second is one of an older version's
        history, _ = run(resume=(arrays, json.loads(json.dumps(rest))))
        assert 100 < history[1]["phases"]["forward"] < 200 and "factors" not in history[1]["phases"]

    def test_every_example_counts_once_in_the_loss_and_the_accuracy(self):
        model = mlp()
        metrics, = fit(model, loader(), None, optim.SGD(model, 0.0))
        loss, accuracy = evaluate(model, (X, Y))
        assert metrics["train_loss"] == pytest.approx(loss, rel=1e-6) and metrics["train_accuracy"] == accuracy

    def test_without_a_test_there_are_no_test_metrics(self):
        model = mlp()
        metrics, = fit(model, (X, Y), None, optim.SGD(model, 0.1))
        assert metrics["test_loss"] is None and metrics["test_accuracy"] is None

    @pytest.mark.parametrize("train", [(X, Y), [X.tolist(), Y.tolist()], Dataset(X, Y), Loader((X, Y))])
    def test_takes_data_in_any_form(self, train):
        train = tuple(np.array(each, kind) for each, kind in zip(train, ("f4", "i8"))) if isinstance(train, list) else train
        model = mlp()
        assert len(fit(model, train, TEST, optim.SGD(model, 0.1))) == 1

    def test_no_epochs_are_no_updates(self):
        model, steps = mlp(), Steps()
        before = model.state_dict()
        assert fit(model, (X, Y), TEST, optim.SGD(model, 0.1), 0, [steps]) == []
        assert steps.events == ["start", "end"]
        assert all((before[name] == x).all() for name, x in model.state_dict().items())

    def test_an_autoencoder_learns_its_input_and_has_no_accuracy(self):
        train, test = data.load("digits")
        model = models.create("autoencoder", input_shape=(1, 8, 8), widths=(16, 4), generator=0)
        history = fit(model, train, test, optim.Adam(model, 0.003), 2, objective=reconstruction())
        assert history[1]["test_loss"] < history[0]["test_loss"] < math.log(2)
        assert history[1]["train_accuracy"] is None and history[1]["test_accuracy"] is None

    def test_an_objective_may_be_one_s_own(self):
        model = nn.Affine(6, 1, generator=0)
        squares = Objective(lambda outputs, x, y: ((outputs - y) ** 2).mean())
        train = Loader((X, X @ np.ones((6, 1), np.float32)), batch_size=6)
        history = fit(model, train, None, optim.SGD(model, 0.1), 30, objective=squares)
        assert history[-1]["train_loss"] < 0.01

    def test_what_is_right_may_be_counted_by_numpy(self):
        class State(Callback):
            def step(self, run, loss):
                json.dumps(run.state()[1])

        model = mlp()
        even = Objective(classification().loss, lambda outputs, y: (y % 2 == 0).sum())
        metrics, = fit(model, (X, Y), TEST, optim.SGD(model, 0.1), callbacks=[State()], objective=even)
        assert metrics["train_accuracy"] == (Y % 2 == 0).mean() and json.dumps(metrics)

    def test_label_smoothing_is_in_the_loss(self):
        model = mlp()
        plain, smooth = (evaluate(model, TEST, classification(smoothing))[0] for smoothing in (0.0, 0.5))
        outputs = F.log_softmax(model(TEST[0])).data
        expected = 0.5 * plain - 0.5 * outputs.mean()
        assert smooth == pytest.approx(expected, rel=1e-6)

    def test_runs_on_the_device_of_the_model_and_touches_no_other(self):
        history = {}
        for device in ("cpu", "strict:0"):
            model = full().to(device)
            with kernels.using("reference"):                    # the same on both, or rounding would differ
                history[device] = timeless(fit(model, loader(), TEST, adam(model), 2, accumulate=2, clip=0.5))
        assert history["strict:0"] == history["cpu"]


class TestAccumulate:
    @pytest.mark.parametrize("count", [2, 3, 100])          # a hundred parts of six examples are six
    def test_parts_give_the_same_as_the_whole_to_rounding(self, count):
        model, twin = mlp(), mlp()
        whole = fit(model, loader(), TEST, optim.SGD(model, 0.1, momentum=0.9), 3)
        parts = fit(twin, loader(), TEST, optim.SGD(twin, 0.1, momentum=0.9), 3, accumulate=count)
        for p, q in zip(model.parameters(), twin.parameters()):
            np.testing.assert_allclose(p.data, q.data, rtol=1e-4, atol=1e-6)
        for one, two in zip(timeless(whole), timeless(parts)):
            assert one == pytest.approx(two, rel=1e-5)

    @pytest.mark.parametrize("momentum", [0.1, None])
    def test_running_statistics_are_those_of_the_parts_one_after_another(self, momentum):
        def model():
            return nn.Sequential(nn.Affine(6, 8, generator=0), nn.BatchNorm(8, momentum), nn.Affine(8, 3, generator=1))

        one, twin = model(), model()
        fit(one, Loader((X, Y), batch_size=12, shuffle=False), None, optim.SGD(one, 0.1), accumulate=3)
        optimizer = optim.SGD(twin, 0.1)
        for start in range(0, 34, 12):
            optimizer.zero_grad()
            size = min(12, 34 - start)
            rows = [slice(start + s.start, start + s.stop) for s in (share(size, i, 3) for i in range(3))]
            for s in rows:
                F.softmax_cross_entropy(twin(X[s]), Y[s]).backward(len(Y[s]) / size)
            optimizer.step()
        assert twin[1].steps == one[1].steps == 9
        for name, value in twin.state_dict().items():
            assert value.tobytes() == one.state_dict()[name].tobytes(), name

    @pytest.mark.parametrize("count", [2, 3, 4])
    def test_dropout_drops_what_it_would_drop_in_the_whole(self, count):
        def dropped(accumulate):
            masks = []
            model = nn.Sequential(nn.Affine(6, 8, generator=0), nn.Dropout(0.5, generator=1), nn.Affine(8, 3, generator=1))
            model[1].register_forward_hook(lambda module, xs, y: masks.append(y.data != 0))
            fit(model, loader(), None, optim.SGD(model, 0.0), 2, accumulate=accumulate)
            assert model[1].step == 12
            return np.concatenate(masks)

        np.testing.assert_array_equal(dropped(count), dropped(1))

    def test_a_generator_of_the_model_draws_for_each_part_anew_and_goes_on_to_the_bit(self):
        class Noisy(nn.Module):
            def __init__(self):
                self.inner, self.noise, self.drawn = mlp(), np.random.default_rng(4), []

            def forward(self, x):
                self.drawn.append(self.noise.standard_normal())
                return self.inner(x + np.float32(self.drawn[-1]))

        def run(stop_at=None, resume=None):
            model, steps = Noisy(), Steps(stop_at)
            fit(model, loader(), TEST, optim.SGD(model, 0.1), 2, [steps], accumulate=2, resume=resume)
            return model.drawn, steps.run.state()

        drawn, (arrays, rest) = run()
        assert len(set(drawn)) == 24 + 1                                    # the test draws the same each time
        for stop_at in (1, 6, 9):
            _, (resumed, its_rest) = run(resume=run(stop_at)[1])
            assert all(resumed[name].tobytes() == x.tobytes() for name, x in arrays.items())
            assert its_rest["generators"] == rest["generators"]

    def test_a_step_that_fails_leaves_no_trace_in_the_layers(self):
        model, steps = nn.Sequential(Sick(at=2), nn.BatchNorm(3), nn.Dropout()), Steps()
        before = model.state_dict()
        with pytest.raises(NumericsError):
            fit(model, loader(), TEST, optim.SGD(model, 0.1), 3, [steps], accumulate=2)
        assert all((before[name] == x).all() for name, x in model.state_dict().items())

    def test_each_part_has_its_share_of_the_examples(self):
        seen = []
        model = mlp()
        model.register_forward_hook(lambda module, xs, y: seen.append(len(xs[0])))
        fit(model, loader(shuffle=False), None, optim.SGD(model, 0.1), accumulate=3)
        assert seen == [2, 2, 2] * 5 + [2, 1, 1]


def test_clipping_holds_the_step_within_the_norm():
    model = mlp()
    before = model.state_dict()
    fit(model, Loader((X * 1e3, Y), batch_size=34), None, optim.SGD(model, 1.0), clip=0.01)
    change = math.sqrt(sum(float(((x - before[name]) ** 2).sum()) for name, x in model.state_dict().items()))
    assert change == pytest.approx(0.01, rel=1e-3)


def test_clipping_looks_at_what_is_learned_alone():
    """The first layer's gradient, which nobody clears, adds up meanwhile, and must not shrink the steps of the second."""
    def head(freeze):
        model = mlp()
        model[0].requires_grad_(not freeze)
        fit(model, loader(), None, optim.SGD({"w": model[1].w, "b": model[1].b}, lr=0.1), epochs=3, clip=0.5)
        return model[1].w.data

    np.testing.assert_array_equal(head(freeze=False), head(freeze=True))


class TestCallbacks:
    def test_are_called_in_order(self):
        model, steps = mlp(), Steps()
        fit(model, loader(), TEST, optim.SGD(model, 0.1), 2, [steps])
        assert steps.events == ["start", 1, 2, 3, 4, 5, 6, "epoch 1", 7, 8, 9, 10, 11, 12, "epoch 2", "end"]
        assert all(isinstance(loss, float) for loss in steps.losses)

    def test_may_stop_the_run_within_an_epoch(self):
        model, steps = mlp(), Steps(stop_at=8)
        assert len(fit(model, loader(), TEST, optim.SGD(model, 0.1), 5, [steps])) == 1
        assert steps.events[-2:] == [8, "end"] and not steps.run.finished

    def test_may_stop_it_at_the_end_of_an_epoch_which_is_then_whole(self):
        model, steps = mlp(), Steps(stop_at=6)
        assert len(fit(model, loader(), TEST, optim.SGD(model, 0.1), 5, [steps])) == 1
        assert steps.events[-3:] == [6, "epoch 1", "end"]

    def test_the_model_is_training_in_the_loop_and_not_in_the_test(self):
        modes = []
        model = mlp()
        model.register_forward_hook(lambda module, xs, y: modes.append(module.training))
        fit(model.eval(), (X, Y), TEST, optim.SGD(model, 0.1), 2)
        assert modes == [True, False] * 2


class TestResume:
    @pytest.mark.parametrize("make", [lambda model: optim.SGD(model, 0.1, momentum=0.9), adam, kfac])
    def test_after_any_step_is_the_run_that_was_never_stopped(self, make):
        def run(stop_at=None, resume=None):
            model, steps = full(), Steps(stop_at)
            optimizer = make(model)
            fit(model, loader(), TEST, optimizer, 3, [steps], accumulate=2, clip=1.0, resume=resume)
            return steps.run.state()

        arrays, rest = run()
        for stop_at in range(1, 18):
            resumed, its_rest = run(resume=run(stop_at))
            assert all(resumed[name].tobytes() == x.tobytes() for name, x in arrays.items()), stop_at
            assert timeless(its_rest["run"]["history"]) == timeless(rest["run"]["history"])
            assert its_rest["optimizer"] == rest["optimizer"]

    def test_of_a_finished_run_does_nothing(self):
        model, steps = full(), Steps()
        history = fit(model, loader(), TEST, optim.SGD(model, 0.1), 2, [steps])
        again = full(seed=1)
        assert fit(again, loader(), TEST, optim.SGD(again, 0.1), 2, resume=steps.run.state()) == history
        assert all((x == model.state_dict()[name]).all() for name, x in again.state_dict().items())

    def test_with_more_epochs_goes_on(self):
        model, steps = mlp(), Steps()
        fit(model, loader(), None, optim.SGD(model, 0.1), 2, [steps])
        again, twin = mlp(1), mlp()
        history = fit(again, loader(), None, optim.SGD(again, 0.1), 4, resume=steps.run.state())
        assert timeless(history) == timeless(fit(twin, loader(), None, optim.SGD(twin, 0.1), 4))


class Sick(nn.Module):
    """A model whose output is not finite from the n-th training pass on, or in the test."""

    def __init__(self, at=None, in_test=False):
        self.inner, self.at, self.passes, self.in_test = mlp(), at, 0, in_test

    def forward(self, x):
        self.passes += self.training
        sick = self.passes == self.at if self.training else self.in_test
        return self.inner(x) * (float("nan") if sick else 1.0)


class TestALossThatIsNotFinite:
    @pytest.mark.parametrize("at", [1, 8])
    def test_stops_the_run_before_the_update_and_names_the_step(self, at):
        model, steps = Sick(at), Steps()
        with pytest.raises(NumericsError, match=rf"the loss is nan at step {at} \(epoch {1 + at // 6}, minibatch {1 + (at - 1) % 6}\)"):
            fit(model, loader(), TEST, optim.SGD(model, 0.1), 3, [steps])
        assert steps.run.step == at - 1 and steps.events[-1] != "end"
        assert all(np.isfinite(x).all() for x in model.state_dict().values())

    def test_in_the_test_too(self):
        model, steps = Sick(in_test=True), Steps()
        with pytest.raises(NumericsError, match="the test loss is nan after step 6"):
            fit(model, loader(), TEST, optim.SGD(model, 0.1), 3, [steps])
        assert steps.run.history == []

    def test_is_noticed_in_a_part_of_a_minibatch(self):
        model = Sick(at=2)
        with pytest.raises(NumericsError, match="at step 1 "):
            fit(model, loader(), TEST, optim.SGD(model, 0.1), accumulate=4)


class TestErrors:
    @pytest.mark.parametrize("options", [{"epochs": -1}, {"epochs": 1.5}, {"accumulate": 0}])
    def test_numbers_that_make_no_sense(self, options):
        model = mlp()
        with pytest.raises(ArgumentError, match=f"fit: {next(iter(options))} is"):
            fit(model, (X, Y), TEST, optim.SGD(model, 0.1), **options)

    def test_a_model_that_is_frozen(self):
        model = mlp().requires_grad_(False)
        with pytest.raises(GraphError, match="depends on no parameter that could be learned"):
            fit(model, (X, Y), TEST, optim.SGD(model, 0.1))


class TestEvaluate:
    def test_is_the_mean_over_all_examples(self):
        model, many = full(), (np.tile(X, (20, 1)), np.tile(Y, 20))         # more than a minibatch, and its rest
        model.eval()
        outputs = model(many[0])
        loss, accuracy = evaluate(model, many)
        assert loss == pytest.approx(float(F.softmax_cross_entropy(outputs, many[1])), rel=1e-5)
        assert accuracy == (outputs.data.argmax(axis=1) == many[1]).mean()

    @pytest.mark.parametrize("training", [True, False])
    def test_leaves_the_model_as_it_was(self, training):
        model = full().train(training)
        before = model.state_dict()
        evaluate(model, TEST)
        assert model.training is training and all(child.training is training for child in model.children())
        assert all((before[name] == x).all() for name, x in model.state_dict().items())

    def test_leaves_each_layer_in_its_own_mode(self):
        model = full()
        model[1].eval()
        evaluate(model, TEST)
        assert [layer.training for layer in model] == [True, False, True, True, True]

    def test_leaves_it_as_it_was_after_an_error_too(self):
        model = full()
        with pytest.raises(Exception, match="affine"):
            evaluate(model, (X[:, :5], Y))
        assert model.training

    def test_takes_a_model_that_gives_arrays(self):
        class Constant(nn.Module):
            def forward(self, x):
                return np.tile(np.array([0.0, 1.0, 0.0], np.float32), (len(x), 1))

        assert evaluate(Constant(), TEST)[1] == (TEST[1] == 1).mean()

    def test_makes_no_graph(self):
        recorded = []
        model = mlp()
        model.register_forward_hook(lambda module, xs, y: recorded.append(isinstance(y, Tensor) and y.requires_grad))
        evaluate(model, TEST)
        assert recorded == [False]
