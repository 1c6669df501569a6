"""A profile adds up to the wall time, puts what happened where it belongs, and costs nobody else anything."""

import contextvars
import copy
import json
import math
import pickle
import threading
import time

import numpy as np
import pytest

import minidl
from minidl import Tensor, data, models, nn, optim
from minidl import functions as F
from minidl.errors import ArgumentError
from minidl.loop import Callback, fit
from minidl.modes import mode
from minidl.parallel import EmulatedDevice, Team, local
from minidl.profiler import PHASES, clock, counting, phase
from minidl.profiling import measured, rows

RNG = np.random.default_rng(0)
DIGITS = data.load("digits")


@pytest.fixture(autouse=True)
def every_call_counts(monkeypatch):
    """Also a first one that a busy machine has made slow."""
    monkeypatch.setattr(rows, "SLOW", math.inf)


def network():
    return nn.Sequential(nn.Conv2d(1, 4, 3, generator=0), nn.ReLU(), nn.Flatten(), nn.Affine(4 * 36, 10, generator=1))


def learner(name="lenet", kind="sgd"):
    model = models.create(name, input_shape=(1, 8, 8), classes=10, generator=0)
    return model, optim.create(kind, model, lr=0.01)


def step(model, x=None, y=None):
    x = RNG.random((8, 1, 8, 8), np.float32) if x is None else x
    F.softmax_cross_entropy(model(x), np.zeros(len(x), int) if y is None else y).backward()


class TestPhasesAddUp:
    @pytest.mark.parametrize("kind", ["sgd", "kfac"])
    @pytest.mark.parametrize("name", ["lenet", "mlp"])
    def test_to_the_wall_time_within_five_percent(self, name, kind):
        """By the wall clock around each epoch, for all of a run's metrics, and for its profile."""
        train, test = DIGITS
        ends = [time.perf_counter()]

        class Ends(Callback):
            def epoch(self, run, metrics):
                ends.append(time.perf_counter())

        model, optimizer = learner(name, kind)
        with minidl.profile() as p:
            ends[0] = time.perf_counter()
            history = fit(model, data.Loader(train[:400], batch_size=100), test, optimizer, 2, [Ends()])
            whole = time.perf_counter() - ends[0]
        assert len(history) == 2
        for metrics, start, end in zip(history, ends, ends[1:]):
            assert sum(metrics["phases"].values()) == pytest.approx(end - start, rel=0.05)
            assert set(metrics["phases"]) <= set(PHASES) and metrics["hidden"] == {} and metrics["memory"] > 2**20
        shown = [row for row in p.phases if not row.hidden]
        assert sum(row.seconds for row in shown) == pytest.approx(p.seconds) == pytest.approx(whole, rel=0.05)
        assert sum(row.share for row in shown) == pytest.approx(1)
        wanted = {"data", "forward", "backward", "update", "evaluation"} | ({"curvature", "normalization"} if kind == "kfac" else set())
        assert wanted <= {row.name for row in shown}

    @pytest.mark.parametrize("kind", ["sgd", "kfac"])
    def test_on_ranks_too(self, kind):
        train, _ = DIGITS

        def work(communicator):
            with minidl.profile() as p:
                started = time.perf_counter()
                model, optimizer = learner("mlp", kind)
                history = fit(model, data.Loader(train[:200], batch_size=50), None, optimizer, 1, team=Team(communicator))
                whole = time.perf_counter() - started
            return sum(history[0]["phases"].values()), p.seconds, whole, set(history[0]["phases"])

        for epoch, seconds, whole, names in local.run(work, 2):
            assert seconds == pytest.approx(whole, rel=0.05) and epoch < whole
            assert {"gradient exchange", "idle"} <= names and ("curvature exchange" in names) == (kind == "kfac")


class TestHidden:
    def test_communication_beside_computation_is_in_no_sum(self):
        """A device from which each byte takes its time: with overlap the backward pass, made slow, hides it; without it, it is seen."""
        class Slow(minidl.Function):
            def forward(self, x):
                return x + 0

            def grad_x(self, gy):
                time.sleep(0.04)
                return gy * 1

        class Net(nn.Module):
            def __init__(self):
                self.low, self.high = nn.Affine(20, 20, generator=0), nn.Affine(20, 10, generator=1)

            def forward(self, x):
                return self.high(Slow()(self.low(x)))

        def work(communicator, overlap):
            model = Net()
            team = Team(communicator, overlap=overlap, chunk=100, staging=EmulatedDevice(rate=4e4))
            started = time.perf_counter()
            history = fit(model, data.Loader((np.ones((16, 20), np.float32), np.zeros(16, int)), batch_size=4), None,
                          optim.SGD(model, lr=0.1), 1, team=team)
            return history[0], time.perf_counter() - started

        def found(overlap):
            metrics, whole = local.run(lambda communicator: work(communicator, overlap), 2)[0]
            assert sum(metrics["phases"].values()) <= whole
            return metrics["phases"]["gradient exchange"] + metrics["phases"]["idle"], metrics["hidden"].get("gradient exchange", 0.0)

        seen, hidden = found("none")
        assert hidden == 0 and seen > 0.08                      # 4 steps of some 0.04 s for 2,520 bytes there and back
        less, hidden = found("backward")
        assert hidden > 0.04 and less < seen


def test_who_waits_for_a_slower_rank_is_idle():
    """And what even the slowest waits is what the exchange takes."""
    class Dawdle(Callback):
        def __init__(self, seconds):
            self.seconds = seconds

        def step(self, run, loss):
            time.sleep(self.seconds)

    def work(communicator):
        model, optimizer = learner("mlp")
        loader = data.Loader(DIGITS[0][:100], batch_size=10)
        return fit(model, loader, None, optimizer, 1, [Dawdle(0.08 * communicator.rank)], team=Team(communicator))[0]["phases"]

    quick, slow = local.run(work, 2)
    assert quick["idle"] > 0.3 and quick["idle"] > 2 * slow["idle"] and slow["saving"] >= 0.8          # 10 steps


class TestBottleneck:
    """What the first line says of runs that are made to wait for something."""

    def test_data(self):
        class Slow(data.Transform):
            def apply(self, x, drawn):
                time.sleep(0.03)
                return x

        model, optimizer = learner("mlp")
        with minidl.profile() as p:
            fit(model, data.Loader(DIGITS[0][:100], batch_size=10, transform=Slow()), None, optimizer, 1)
        assert str(p).startswith("Bottleneck: waiting for data, ") and "Try: make a minibatch cheaper" in str(p)

    def test_the_exchange(self):
        def work(communicator):
            model, optimizer = learner("mlp")
            team = Team(communicator, staging=EmulatedDevice(rate=1e7))         # 0.04 s a step
            with minidl.profile() as p:
                fit(model, data.Loader(DIGITS[0][:50], batch_size=10), None, optimizer, 1, team=team)
            return p

        assert local.run(work, 2)[0].bottleneck().startswith("Bottleneck: waiting for the exchange of gradients")

    def test_a_layer(self):
        class Slow(minidl.Function):
            def forward(self, x):
                return x + 0

            def grad_x(self, gy):
                time.sleep(0.02)
                return gy + 0

        class Layer(nn.Module):
            def forward(self, x):
                return Slow()(x)

        def learn():
            F.softmax_cross_entropy(model(np.ones((4, 6), np.float32)), np.zeros(4, int)).backward()

        model = nn.Sequential(nn.Affine(6, 5, generator=0), Layer(), nn.Affine(5, 3, generator=0))
        learn()                                     # kernels are loaded
        with minidl.profile() as p:
            for _ in range(3):
                learn()
        assert p.bottleneck().startswith("Bottleneck: backward of 1 (Layer)")


class TestRows:
    def test_a_step_of_plain_code(self):
        model = network()
        step(model)
        with minidl.profile() as p:
            step(model)
        found = {(row.layer, row.name): row for row in p.operations}
        conv, affine = found["0 (Conv2d)", "conv2d"], found["3 (Affine)", "affine"]
        assert conv.flops == 2 * 8 * 4 * 36 * 9 and affine.flops == 2 * 8 * 144 * 10
        assert conv.bytes == 4 * (8 * 64 + 4 * 9 + 4 + 8 * 4 * 36) and conv.made == 4 * 8 * 4 * 36
        assert found["0 (Conv2d)", "conv2d grad_w"].flops == conv.flops and found["3 (Affine)", "affine grad_x"].flops == affine.flops
        assert found["0 (Conv2d)", "conv2d grad_b"].flops == 4           # one for each number of the result
        assert {row.direction for row in p.operations} == {"forward", "backward"}
        assert {row.calls for row in p.operations} == {1}
        assert conv.gflops == pytest.approx(conv.flops / conv.seconds / 1e9)
        names = {phase.name: phase for phase in p.phases}
        assert set(names) == {"forward", "backward", "other"} and sum(p.gaps.values()) + sum(row.seconds for row in p.operations) == \
            pytest.approx(p.recorded)

    def test_looking_at_memory_in_another_way_moves_nothing(self):
        x = Tensor(np.ones((4, 6), np.float32), requires_grad=True)
        with minidl.profile() as p:
            x.reshape(3, 8).sum().backward()
        row = next(row for row in p.operations if row.name == "reshape")
        assert (row.bytes, row.flops, row.made) == (0, 0, 0)

    def test_what_is_summed_to_one_number(self):
        """NumPy gives a number and no array; the way back only looks at one number many times."""
        x = Tensor(np.ones((4, 6), np.float32), requires_grad=True)
        with minidl.profile() as p:
            (x * x).sum().backward()
        found = {row.name: row for row in p.operations}
        assert (found["sum"].bytes, found["sum"].flops) == (4 * 25, 1)
        assert (found["multiply grad_a"].bytes, found["multiply grad_a"].flops) == (4 * 3 * 24, 24) and found["sum grad_x"].bytes == 0

    def test_what_is_called_inside_belongs_to_what_calls_it(self):
        class Twice(minidl.Function):
            def forward(self, x):
                return F.exp(F.exp(x))

            def grad_x(self, gy, x):
                return gy * F.exp(x) * F.exp(F.exp(x))

        x = Tensor(np.ones(3), requires_grad=True)
        with minidl.profile() as p:
            Twice()(x).sum().backward()
        assert sorted(row.name for row in p.operations) == ["sum", "sum grad_x", "twice", "twice grad_x"]
        assert sum(1 for event in p.events() if event.name == "exp") == 5

    def test_second_derivatives(self):
        x = Tensor(np.ones(3), requires_grad=True)
        with minidl.profile() as p:
            minidl.hvp((x * x).sum(), x, np.ones(3))
        assert {row.direction for row in p.operations} == {"forward", "backward"}

    def test_what_layers_keep(self):
        """The input of a layer that needs it, counted where it is kept first; no parameters."""
        model = nn.Sequential(nn.Affine(6, 5, generator=0), nn.Sigmoid(), nn.Affine(5, 3, generator=0))
        x = np.ones((4, 6), np.float32)
        with minidl.profile() as p:
            for _ in range(3):
                model(x).sum().backward()
        kept = {layer.path: layer.kept for layer in p.layers}
        assert kept["0 (Affine)"] == 4 * (24 + 20)              # x, and y, which the sigmoid was fused into
        assert kept["2 (Affine)"] == 0                          # y again

    def test_updates(self):
        model = network()
        optimizer = optim.SGD(model, lr=0.1, momentum=0.9)
        with minidl.profile() as p:
            step(model)
            optimizer.step()
        row = next(row for row in p.operations if row.direction == "update" and row.layer == "3 (Affine)")
        assert row.name == "sgd" and row.calls == 2 and row.bytes == 5 * 4 * (1440 + 10)        # w, g and velocity read, two written

    def test_what_follows_in_training_is_told_apart(self):
        train, test = DIGITS
        model, optimizer = learner("mlp", "kfac")
        with minidl.profile() as p:
            fit(model, data.Loader(train[:100], batch_size=50), test[:50], optimizer, 1)
        assert {row.direction for row in p.operations} >= {"forward", "backward", "update", "evaluation", "curvature"}


class TestBlocks:
    def test_nothing_is_left_behind(self):
        before = mode.get()
        with minidl.profile():
            assert mode.get() is not before and clock().recorder is not None
        assert mode.get() == before and clock() is None

    def test_after_an_error_too(self):
        before = mode.get()
        with pytest.raises(ZeroDivisionError), minidl.profile() as p:
            step(network())
            raise ZeroDivisionError
        assert mode.get() == before and clock() is None and p.operations

    def test_in_each_other(self):
        model = network()
        with minidl.profile() as outer:
            step(model)
            with minidl.profile() as inner:
                step(model)
            step(model)

        def calls(p):
            return next(row.calls for row in p.operations if row.name == "conv2d")

        assert (calls(outer), calls(inner)) == (3, 1) and inner.seconds < outer.seconds

    def test_around_fit_and_within_a_phase(self):
        train, _ = DIGITS
        profiles = []

        class Inside(Callback):
            def step(self, run, loss):
                with minidl.profile() as p:
                    step(network())
                profiles.append(p)

        model, optimizer = learner("mlp")
        with minidl.profile() as around:
            fit(model, data.Loader(train[:100], batch_size=50), None, optimizer, 1, [Inside()])
        assert {row.name for row in profiles[0].phases} == {"saving"}           # a callback's
        assert next(row for row in around.operations if row.layer.startswith("0 (Conv2d)")).calls == 2

    def test_paused(self):
        model = network()
        with minidl.profile() as p:
            step(model)
            p.pause()
            step(model)
            p.resume()
            step(model)
        assert next(row.calls for row in p.operations if row.name == "conv2d") == 2
        assert p.recorded < p.seconds

    def test_while_it_is_open_it_tells_what_there_is(self):
        with minidl.profile() as p:
            step(network())
            assert p.operations and "Bottleneck" in p.bottleneck()
            step(network())
        assert sum(row.calls for row in p.operations if row.name == "conv2d") == 2

    def test_a_profile_is_used_once(self):
        with minidl.profile() as p:
            pass
        with pytest.raises(ArgumentError, match="nothing was measured"):
            _ = minidl.profile().seconds
        with pytest.raises(ArgumentError, match="begun already"), p:
            pass
        with pytest.raises(ArgumentError, match="begun already"), minidl.profile() as p, p:
            pass
        assert clock() is None

    def test_that_overlap(self):
        before, model = mode.get(), network()
        first, second = minidl.profile(), minidl.profile()
        first.start()
        second.start()
        step(model)
        first.stop()
        with phase("drawing"):
            step(model)
        second.stop()
        assert [sum(row.calls for row in p.operations if row.name == "conv2d") for p in (first, second)] == [1, 2]
        assert "drawing" in {row.name for row in second.phases} - {row.name for row in first.phases}
        assert mode.get() == before and clock() is None

    def test_in_a_generator_that_is_left(self):
        def steps():
            with minidl.profile() as p:
                yield p

        before = mode.get()
        generator = steps()
        p = next(generator)
        step(network())
        del generator
        assert p.operations and mode.get() == before and clock() is None

    def test_that_end_in_another_thread_are_told(self):
        before, p, found = mode.get(), minidl.profile(), []

        def end():
            try:
                p.stop()
            except ArgumentError as error:
                found.append(str(error))

        def work():
            p.start()
            step(network())
            thread = threading.Thread(target=end)
            thread.start()
            thread.join()
            step(network())                         # is not written down: it is over

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert "another thread" in found[0] and mode.get() == before
        assert sum(row.calls for row in p.operations if row.name == "conv2d") == 1

    def test_a_thread_that_outlives_the_block_is_written_down_no_more(self):
        model, go, went = network(), threading.Event(), threading.Event()

        def work():
            step(model)
            went.set()
            go.wait(10)
            step(model)

        with minidl.profile() as p:
            recorder = mode.get().recorder
            thread = threading.Thread(target=contextvars.copy_context().run, args=(work,))
            thread.start()
            assert went.wait(10)
        go.set()
        thread.join()
        assert len([each for each in recorder.operations if each[3].name == "conv2d"]) == 1
        assert sum(row.calls for row in p.operations if row.name == "conv2d") == 1

    def test_ranks_that_measure_themselves_in_a_block(self):
        def work(communicator):
            with minidl.profile() as p:
                communicator.barrier()
                step(network())
                communicator.barrier()
            return p

        with minidl.profile() as outer:
            step(network())
            found = local.run(work, 2)
        assert [sum(row.calls for row in p.operations if row.name == "conv2d") for p in (outer, *found)] == [1, 1, 1]

    def test_the_block_ends_at_once(self, monkeypatch):
        """What was written down is put in order when somebody asks."""
        with minidl.profile() as p:
            step(network())
            monkeypatch.setattr(measured, "events_of", lambda *args: pytest.fail("too early"))
        monkeypatch.undo()
        assert p.operations

    def test_can_be_sent_to_another_process(self):
        with minidl.profile() as p:
            step(network())
        assert pickle.loads(pickle.dumps(p)).table() == copy.deepcopy(p).table() == p.table()

    def test_one_that_is_too_long_says_so(self, monkeypatch):
        monkeypatch.setattr("minidl.profiler.MOST", 10)
        model = network()
        with minidl.profile() as p:
            for _ in range(4):
                step(model)
            time.sleep(0.05)
        assert "too many to write down" in p.table(200) and p.recorded < p.seconds
        assert sum(row.share for row in p.operations) <= 1 and sum(p.gaps.values()) <= p.recorded
        assert sum(row.seconds for row in p.phases) == pytest.approx(p.seconds)

    def test_of_nothing(self):
        with minidl.profile() as p:
            pass
        assert p.operations == [] and p.layers == [] and "Python outside" in p.bottleneck()


class TestData:
    def test_is_json_and_the_same_rows(self):
        model = network()
        with minidl.profile() as p:
            step(model)
        told = json.loads(json.dumps(p.data(), allow_nan=False))
        assert told["bottleneck"] == p.bottleneck() and len(told["operations"]) == len(p.operations)
        assert [row["name"] for row in told["phases"]] == [row.name for row in p.phases]
        assert math.isclose(sum(row["seconds"] for row in told["phases"] if not row["hidden"]), told["seconds"])

    def test_a_notebook_shows_the_table(self):
        with minidl.profile() as p:
            step(network())
        assert p._repr_html_().startswith("<pre>Bottleneck")


class TestWrongUse:
    @pytest.mark.parametrize("tell", [lambda y, *factors: None, lambda y: 1, lambda y, *factors: 1 // 0])
    def test_a_product_that_cannot_tell_its_multiply_adds(self, tell):
        class Odd(minidl.Function):
            multiply_adds = staticmethod(tell)

            def forward(self, x):
                return x + 1

        with minidl.profile() as p:
            Odd()(np.ones(3))
        with pytest.raises(ArgumentError, match="multiply_adds gave no whole number"):
            print(p)

    @pytest.mark.parametrize("path", ["missing/trace.json", "."])
    def test_a_trace_that_cannot_be_written(self, tmp_path, path):
        with minidl.profile() as p:
            pass
        with pytest.raises(ArgumentError, match="could not be written"):
            p.trace(tmp_path / path)


def test_seconds_that_were_counted_before_are_not_moved_out_of_a_block():
    with counting() as here:
        here.nanoseconds["gradient exchange"] = 5 * 10**9
        with minidl.profile() as p:
            here.move(3.0, "gradient exchange", "idle")
        assert "idle" not in {row.name for row in p.phases}
        assert all(row.seconds >= 0 for row in p.phases) and sum(row.seconds for row in p.phases) == pytest.approx(p.seconds)
