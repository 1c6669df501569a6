"""Steps that are recorded and replayed, on the emulated GPU and on a real one: the same bits, and words for what cannot be recorded."""

import json

import numpy as np
import pytest

import emulated
from devices import GPUS
from minidl import backend, data, kernels, nn, optim
from minidl import functions as F
from minidl.autograd import check_numerics
from minidl.capture import MOST, WARM, Step
from minidl.errors import ArgumentError, GraphError, LabelError, NumericsError
from minidl.loop import Callback, Objective, classification, fit
from minidl.parallel import Team, local
from minidl.profiling import Profile

DEVICE = ""


@pytest.fixture(autouse=True, params=GPUS or [pytest.param("", marks=pytest.mark.skip(reason=emulated.WHY_NOT))])
def replayed(request, monkeypatch):
    """Each test on each device; gives a list to which every replay adds whether it has changed anything."""
    found, replay = [], Step.replay

    def counted(*args):
        facts = replay(*args)
        found.append(facts is not None)
        return facts

    monkeypatch.setattr(Step, "replay", counted)
    monkeypatch.setattr(f"{__name__}.DEVICE", request.param)
    return found


def examples(count=42, shape=(1, 8, 8), classes=10):
    rng = np.random.default_rng(0)
    return rng.normal(size=(count, *shape)).astype("float32"), rng.integers(0, classes, count)


def mlp():
    rng = np.random.default_rng(0)
    return nn.Sequential(nn.Flatten(), nn.Affine(64, 80, generator=rng), nn.ReLU(), nn.Affine(80, 10, generator=rng))


def convolutional():
    rng = np.random.default_rng(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3, padding=1, activation="tanh", generator=rng), nn.MaxPool2d(2),
                         nn.Conv2d(3, 4, 3, generator=rng), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Affine(4, 10, generator=rng))


def normalized(momentum=0.1):
    rng = np.random.default_rng(0)
    return nn.Sequential(nn.Flatten(), nn.Affine(64, 12, generator=rng), nn.BatchNorm(12, momentum, activation="relu"),
                         nn.Affine(12, 10, generator=rng))


def dropping():
    rng = np.random.default_rng(0)
    dropout = nn.Dropout(0.4, generator=rng)                            # comes twice in a pass
    return nn.Sequential(nn.Flatten(), dropout, nn.Affine(64, 12, generator=rng), nn.LayerNorm(12), nn.Sigmoid(), dropout,
                         nn.Affine(12, 10, generator=rng))


class Joined(nn.Module):
    """Its columns cut apart, and joined again in turned order."""

    def forward(self, x):
        return F.concatenate(F.split(x, x.shape[1], 1)[::-1], 1)


def joining():
    return nn.Sequential(nn.Flatten(), nn.Affine(64, 20, generator=0), Joined(), nn.Affine(20, 10, generator=1))


def sgd(model):
    return optim.SGD(model, lr=optim.cosine(0.1, 12), momentum=0.9, weight_decay=0.01, groups={"*.b": {"weight_decay": 0.0}})


def adam(model):
    return optim.Adam(model, lr=optim.warm_up(3, optim.constant(0.01)), weight_decay=0.01)


def plain(model):
    return optim.SGD(model, lr=0.05)


class Noted(Callback):
    """The losses of all steps, and a checkpoint after one of them."""

    def __init__(self, at=0):
        self.at, self.losses = at, []

    def step(self, run, loss):
        self.losses.append(loss)
        if run.step == self.at:
            arrays, rest = run.state()
            self.state = {name: backend.to_numpy(x) for name, x in arrays.items()}, json.loads(json.dumps(rest))


def trained(make, optimizer, capture, epochs=3, found=None, at=0, count=42, **options):
    """A run: what was noted of it, all numbers of the model and of the optimizer, and its metrics."""
    model = make().to(device=DEVICE)
    rule, noted = optimizer(model), Noted(at)
    loader = data.Loader(examples(count), batch_size=16, seed=1)        # the last minibatch of an epoch is smaller
    history = fit(model, loader, examples(8), rule, epochs, [noted], capture=capture, resume=found, **options)
    numbers = {**model.state_dict(), **rule.state_dict()}
    metrics = [[epoch[name] for name in ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "step")] for epoch in history]
    return noted, {name: backend.to_numpy(x) for name, x in numbers.items()}, metrics


def check_same(one, other):
    assert one[0].losses == other[0].losses
    assert one[2] == other[2]
    assert one[1].keys() == other[1].keys()
    for name, x in one[1].items():
        np.testing.assert_array_equal(x, other[1][name], err_msg=name)


CASES = {
    "mlp": (mlp, sgd, {}),
    "adam": (mlp, adam, {"clip": 0.5}),
    "adamw in parts": (mlp, lambda model: optim.AdamW(model, lr=0.01), {"accumulate": 3}),
    "convolution": (convolutional, plain, {}),
    "batch norm": (normalized, sgd, {"clip": 100.0}),
    "batch norm of all batches, in parts": (lambda: normalized(None), adam, {"accumulate": 2}),
    "dropout": (dropping, adam, {}),
    "many arrays joined": (joining, plain, {}),
    "float16": (normalized, sgd, {"dtype": "float16"}),
    "bfloat16, clipped": (convolutional, adam, {"dtype": "bfloat16", "clip": 0.5}),
    "dropout in parts": (dropping, plain, {"accumulate": 2}),
}


class TestBits:
    @pytest.mark.parametrize("case", CASES)
    def test_replays_give_the_same_bits(self, case, replayed):
        make, optimizer, options = CASES[case]
        usual = trained(make, optimizer, False, **options)
        assert not replayed
        check_same(usual, trained(make, optimizer, True, **options))
        assert replayed == [True] * (2 * 3 - WARM + 3 - WARM)           # of each shape those that come after the first

    def test_a_resumed_run_goes_on_as_if_it_had_not_been_stopped(self):
        whole = trained(dropping, adam, True, at=4)
        rest = trained(dropping, adam, True, found=whole[0].state)
        assert rest[0].losses == whole[0].losses[4:]
        check_same((rest[0], whole[1], whole[2]), rest)

    def test_an_autoencoder_and_an_objective_without_right_answers(self):
        def make():
            return nn.Sequential(nn.Flatten(), nn.Affine(64, 64, generator=0))

        objective = Objective(lambda outputs, x, y: F.mse(outputs, F.flatten(x)))
        check_same(*(trained(make, plain, capture, objective=objective) for capture in (False, True)))

    def test_shapes_beyond_the_number_of_graphs_take_ordinary_steps(self, monkeypatch, replayed):
        monkeypatch.setattr("minidl.capture.MOST", 1)
        assert MOST > 1
        check_same(*(trained(normalized, sgd, capture) for capture in (False, True)))
        assert len(replayed) == 2 * 3 - WARM

    def test_a_gradient_that_overflows_is_left_out(self, replayed):
        def make():
            return nn.Sequential(nn.Flatten(), nn.Affine(64, 10, generator=0))

        def loss(outputs, x, y):
            return F.softmax_cross_entropy(outputs * 300.0, y)          # times the scale, 65536, this is too large for float16 at first

        objective = Objective(loss, kernels.right_answers)
        check_same(*(trained(make, lambda model: optim.SGD(model, lr=1e-6), capture, dtype="float16", objective=objective)
                     for capture in (False, True)))
        assert False in replayed and True in replayed


class TestChanges:
    """What happens to a model between replays is not lost."""

    def run(self, change, capture, make=normalized, optimizer=sgd):
        class Changing(Callback):
            def step(self, run, loss):
                if run.step == 6:
                    change(run)

        model = make().to(device=DEVICE)
        rule = optimizer(model)
        fit(model, data.Loader(examples(48), batch_size=16, seed=1), None, rule, 4, [Changing()], capture=capture)
        return {name: backend.to_numpy(x) for name, x in {**model.state_dict(), **rule.state_dict()}.items()}

    @pytest.mark.parametrize("change", [
        lambda run: setattr(run.model[1].w, "requires_grad", False),
        lambda run: run.optimizer.options.update(lr=0.001),
        lambda run: run.model.load_state_dict({name: backend.to_numpy(x) * 2 for name, x in run.model.state_dict().items()}),
        lambda run: run.optimizer.load_state_dict(run.optimizer.state_dict()),
        lambda run: run.model[2].eval(),
        lambda run: setattr(run.model[2], "momentum", 0.5),
    ], ids=["frozen", "learning rate", "weights", "memory", "evaluation", "a number of a layer's"])
    def test_same(self, change):
        self.check(change, normalized, sgd)

    def check(self, change, make, optimizer):
        one, other = self.run(change, False, make, optimizer), self.run(change, True, make, optimizer)
        for name, x in one.items():
            np.testing.assert_array_equal(x, other[name], err_msg=name)

    def test_the_rate_of_a_dropout(self, replayed):
        self.check(lambda run: setattr(run.model[1], "p", 0.8), dropping, sgd)
        assert len(replayed) == 12 - WARM

    def test_weights_that_the_optimizer_does_not_have(self):
        self.check(lambda run: setattr(run.model[1].w, "data", run.model[1].w.data * 0.5), normalized, lambda model: sgd(model[3]))

    @pytest.mark.parametrize(("change", "words"), [
        (lambda run: run.model[1].w.register_hook(lambda g: g * 0), "hooks of 1.w"),
        (lambda run: run.model[2].register_forward_hook(lambda *_: None), "hooks of 2 would"),
        (lambda run: run.model.to(device="cpu"), "the model is on cpu"),
    ], ids=["hook", "forward hook", "moved"])
    def test_what_makes_it_impossible(self, change, words):
        with pytest.raises(GraphError, match=words):
            self.run(change, True)

    def test_gradients_are_there_after_a_replay(self):
        seen = []

        class Looking(Callback):
            def step(self, run, loss):
                seen[-1].append({path: backend.to_numpy(p.grad.data) for path, p in run.optimizer.parameters.items()})

        for capture in (False, True):
            seen.append([])
            model = mlp().to(device=DEVICE)
            fit(model, data.Loader(examples(), batch_size=16, seed=1), None, plain(model), 4, [Looking()], capture=capture)
        for one, other in zip(*seen):
            for path, g in one.items():
                np.testing.assert_array_equal(g, other[path])

    def test_steps_are_a_phase_of_the_profile(self):
        model = mlp().to(device=DEVICE)
        with Profile() as profile:
            history = fit(model, data.Loader(examples(48), batch_size=16, seed=1), None, plain(model), 3, capture=True)
        assert history[-1]["phases"]["step"] > 0
        assert "step" in profile.table()


class TestWhatIsNotFinite:
    @pytest.mark.parametrize("bad", [
        lambda x, y: x.__setitem__(slice(30, None), np.nan), lambda x, y: y.__setitem__(slice(30, None), 10)], ids=["loss", "label"])
    @pytest.mark.parametrize("capture", [False, True])
    def test_nothing_changes(self, bad, capture):
        x, y = examples(48)
        bad(x, y)
        model = normalized().to(device=DEVICE)
        rule, before = sgd(model), []

        class Keeping(Callback):
            def step(self, run, loss):
                before[:] = [{name: backend.to_numpy(x) for name, x in {**model.state_dict(), **rule.state_dict()}.items()}, run.step]

        loader = data.Loader((x, y), batch_size=6, shuffle=False)
        with pytest.raises((NumericsError, LabelError), match=r"at step 6 \(epoch 1, minibatch 6\)|labels run from"):
            fit(model, loader, None, rule, 1, [Keeping()], capture=capture)
        assert before[1] == 5
        for name, value in {**model.state_dict(), **rule.state_dict()}.items():
            np.testing.assert_array_equal(before[0][name], backend.to_numpy(value), err_msg=name)

    def test_a_gradient_that_is_not_finite_is_told_by_clipping(self):
        class Steep(F.activation.ReLU):
            def grad_x(self, gy, y):
                return gy * y * 1e38

        x, y = examples(48)
        x[30:] *= 1e4
        weights = []
        for capture in (False, True):
            model = nn.Sequential(nn.Flatten(), nn.Affine(64, 10, generator=0)).to(device=DEVICE)

            def loss(outputs, x, y):
                return Steep()(outputs).sum() * 1e-6

            with pytest.raises(NumericsError, match="clip_grad_norm"):
                fit(model, data.Loader((x, y), batch_size=6, shuffle=False), None, plain(model), 1, capture=capture, clip=1.0,
                    objective=Objective(loss))
            weights.append(backend.to_numpy(model[1].w.data))
        np.testing.assert_array_equal(*weights)


class TestRefusals:
    @pytest.mark.parametrize(("optimizer", "device", "words"), [
        (plain, "cpu", "graphs are recorded on a GPU"),
        (lambda model: optim.KFAC(model, lr=0.1), "", "KFAC updates one parameter after the other"),
    ])
    def test_known_before_the_first_step(self, optimizer, device, words):
        model = mlp().to(device=device or DEVICE)
        with pytest.raises(ArgumentError, match=words):
            fit(model, examples(), None, optimizer(model), capture=True)

    def test_a_rule_of_ones_own(self):
        class Mine(optim.SGD):
            def update(self, w, g, state, t, **options):
                w -= g * (0.1 if float(g.sum()) > 0 else 0.2)

        model = mlp().to(device=DEVICE)
        with pytest.raises(ArgumentError, match="Mine updates one parameter after the other"):
            fit(model, examples(), None, Mine(model, lr=0.1), capture=True)

    def test_switches(self):
        model = mlp().to(device=DEVICE)
        with check_numerics(), pytest.raises(ArgumentError, match="check_numerics"):
            fit(model, examples(), None, plain(model), capture=True)
        with kernels.using("reference"), pytest.raises(ArgumentError, match="reference kernels"):
            fit(model, examples(), None, plain(model), capture=True)

    def test_several_processes(self):
        def run(communicator):
            model = mlp().to(device=DEVICE)
            with pytest.raises(ArgumentError, match="2 processes train together"):
                fit(model, examples(), None, plain(model), capture=True, team=Team(communicator))

        local.run(run, 2)

    def refused(self, forward, buffers=(), **attributes):
        """The error for a model with a layer that does so."""
        odd = type("Odd", (nn.Module,), {"forward": forward, "buffers": buffers})()
        vars(odd).update(attributes)
        model = nn.Sequential(nn.Flatten(), nn.Affine(64, 10, generator=0), odd).to(device=DEVICE)
        before = {name: backend.to_numpy(x) for name, x in model.state_dict().items()}
        with pytest.raises(GraphError) as caught:
            fit(model, data.Loader(examples(), batch_size=16, seed=1), None, optim.SGD(model, lr=0.0), 3, capture=True)
        for name, x in model.state_dict().items():
            if name.endswith(("w", "b")):
                np.testing.assert_array_equal(before[name], backend.to_numpy(x))
        return str(caught.value)

    def test_a_layer_that_reads_a_value(self):
        told = self.refused(lambda self, x: x * (1.0 if float(x.data.max()) > 0 else 2.0))
        assert "the step cannot be recorded" in told
        assert "in layer 2 (Odd)" in told and "line: test_capture.py:" in told

    def test_an_operation_that_reads_a_value(self):
        class Reading(F.activation.ReLU):
            name = "reading"

            def forward(self, x):
                return super().forward(x) * int(x.sum() < 1e9)

        told = self.refused(lambda self, x: Reading()(x))
        assert "operation: reading" in told and "in layer 2 (Odd)" in told

    def test_numbers_from_the_host(self):
        told = self.refused(lambda self, x: x * backend.asarray(np.full(10, 2.0, np.float32), DEVICE))
        assert "in layer 2 (Odd)" in told

    def test_a_mask_that_is_written_through(self):
        def forward(self, x):
            x.data[x.data < 0] = 0.0
            return x

        assert "in layer 2 (Odd)" in self.refused(forward)

    def test_a_generator_on_the_host(self):
        told = self.refused(lambda self, x: x * float(self.generator.random()), generator=np.random.default_rng(0))
        assert "2.generator draws random numbers on the host" in told

    def test_a_buffer_that_is_replaced(self):
        def forward(self, x):
            self.mean = self.mean * 0.9
            return x

        told = self.refused(forward, buffers=("mean",), mean=np.zeros(3, np.float32))
        assert "Odd.mean is replaced by a new array" in told

    def test_a_number_that_the_step_changes(self):
        def forward(self, x):
            self.rate *= 0.9
            return x * self.rate

        assert "Odd.rate is another after it" in self.refused(forward, rate=1.0)

    def test_hooks(self):
        model = mlp().to(device=DEVICE)
        next(iter(model.parameters())).register_hook(lambda g: g * 2)
        with pytest.raises(GraphError, match="hooks of"):
            fit(model, data.Loader(examples(), batch_size=16), None, plain(model), 3, capture=True)


def test_memory_stays_what_it_is():
    held = []

    class Looking(Callback):
        def step(self, run, loss):
            held.append(backend.memory(DEVICE).used)

    model = normalized().to(device=DEVICE)
    fit(model, data.Loader(examples(48), batch_size=16, seed=1), None, sgd(model), 6, [Looking()], capture=True,
        objective=classification())
    assert len(set(held[-8:])) == 1
