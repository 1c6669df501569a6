"""What a run writes down to be looked at: every step once, whatever happens; a test of all ranks; how it ended."""

import json
import os
import time
from types import SimpleNamespace

import numpy as np
import pytest

import strict  # noqa: F401   makes the strict device known
from minidl import nn, optim
from minidl.data import Loader
from minidl.errors import NumericsError, RankLost
from minidl.loop import fit
from minidl.optim.schedule import cosine
from minidl.parallel import Alone, Team, local
from minidl.parallel.elastic import Elastic
from minidl.report import journal as module
from minidl.report.folder import columns, find
from minidl.report.journal import Journal
from minidl.run import Run

GENERATOR = np.random.default_rng(0)
X, Y = GENERATOR.random((20, 1, 4, 4)).astype(np.float32), np.arange(20) % 3
CONFIG = {"options": {"epochs": 2, "model": "m", "data": "d", "optimizer": "sgd", "batch_size": 4}, "classes": ["a", "b", "c"],
          "input_shape": [1, 4, 4], "normalise": None, "commands": ["python -m minidl.train"]}


def model():
    return nn.Sequential(nn.Conv2d(1, 2, 3, generator=0), nn.Flatten(), nn.Affine(8, 3, generator=1))


def journal(folder, **options):
    """A Journal in a folder that is a run's."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return Journal(folder, CONFIG, **options)


def trained(folder, epochs=2, keeper=None, net=None, team=None, **options):
    """A run of 5 steps an epoch that is over, and its Journal."""
    keeper, net = keeper or journal(folder), net or model()
    fit(net, Loader((X, Y), batch_size=4), (X, Y), optim.SGD(net, lr=cosine(0.1, 10)), epochs, [keeper], team=team, **options)
    keeper.close()
    return keeper


def steps(folder):
    """The columns of steps.csv."""
    return columns(SimpleNamespace(damaged=[]), folder / "steps.csv")


def status(folder):
    return json.loads((folder / "status.json").read_text())


class Stopping(Journal):
    """Asks the run to stop after a step."""

    at = 0

    def step(self, run, loss):
        super().step(run, loss)
        run.stop = run.step == self.at


class TestSteps:
    def test_are_written_each_with_its_epoch_time_loss_and_learning_rate(self, tmp_path):
        trained(tmp_path)
        found = steps(tmp_path)
        assert found["step"].tolist() == list(range(1, 11)) and found["epoch"].tolist() == [1] * 5 + [2] * 5
        assert (np.diff(found["seconds"]) >= 0).all() and 0 < found["seconds"][-1] < 60
        np.testing.assert_allclose(found["learning_rate"], [cosine(0.1, 10)(step) for step in range(10)], rtol=1e-5)
        assert (found["loss"] > 0).all()

    def test_are_in_the_file_at_the_end_of_an_epoch(self, tmp_path):
        class Looking(Journal):
            def epoch(self, run, metrics):
                super().epoch(run, metrics)
                assert len(steps(self.folder)["step"]) == run.step

        keeper = journal(tmp_path)
        keeper.__class__ = Looking
        trained(tmp_path, keeper=keeper)

    def test_are_in_the_file_after_some_seconds(self, tmp_path, monkeypatch):
        monkeypatch.setattr(module, "SECONDS", 0.0)
        keeper = journal(tmp_path)
        run = Run(model(), optim.SGD(model(), 0.1), Loader((X, Y)), 1)
        keeper.start(run)
        run.step = run.optimizer.steps = 1
        keeper.step(run, 0.5)
        assert steps(tmp_path)["loss"].tolist() == [0.5]

    def test_of_a_run_that_goes_on_are_as_if_it_had_not_stopped(self, tmp_path):
        saved = []

        class Saving(Journal):
            def epoch(self, run, metrics):
                super().epoch(run, metrics)
                saved.append(run.state())

        keeper = journal(tmp_path)
        keeper.__class__ = Saving
        trained(tmp_path, epochs=2, keeper=keeper)
        whole = steps(tmp_path)
        arrays, rest = saved[0]
        trained(tmp_path, epochs=2, resume=(arrays, json.loads(json.dumps(rest))))
        again = steps(tmp_path)
        for name in ("step", "epoch", "loss", "learning_rate"):
            assert again[name].tolist() == whole[name].tolist(), name
        assert (np.diff(again["seconds"]) >= 0).all()

    def test_that_are_done_again_replace_the_first(self, tmp_path):
        keeper = journal(tmp_path)
        run = Run(model(), optim.SGD(model(), 0.1), Loader((X, Y)), 1)
        keeper.start(run)
        for step, loss in ((1, 5.0), (2, 4.0), (3, 3.0), (2, 40.0), (3, 30.0)):
            run.step = run.optimizer.steps = step
            keeper.step(run, loss)
            keeper.flush()
        found = steps(tmp_path)
        assert found["step"].tolist() == [1, 2, 3] and found["loss"].tolist() == [5, 40, 30]

    def test_that_the_first_had_not_yet_written_are_known_to_who_takes_its_place(self, tmp_path):
        team = SimpleNamespace(leads=False, ranks=2)
        keeper = journal(tmp_path)
        run = Run(model(), optim.SGD(model(), 0.1), Loader((X, Y)), 1)
        run.team = team
        keeper.start(run)
        for step in (1, 2, 3, 4):
            run.step = run.optimizer.steps = step
            keeper.step(run, step)
        (tmp_path / "steps.csv").write_text("step,epoch,seconds,loss,learning_rate\n1,1,0.1,1,0.1\n2,1,0.2,2,0.1\n")
        team.leads, run.step = True, 3                      # it has died, and step 4 is done again
        keeper.start(run)
        run.step = 4
        keeper.step(run, 40)
        keeper.flush()
        assert steps(tmp_path)["loss"].tolist() == [1, 2, 3, 40]

    def test_half_a_line_at_the_end_is_gone_when_the_run_goes_on(self, tmp_path):
        keeper = journal(tmp_path)
        (tmp_path / "steps.csv").write_text("step,epoch,seconds,loss,learning_rate\n1,1,0.1,2.5,0.1\n2,1,0.2,2.")
        run = Run(model(), optim.SGD(model(), 0.1), Loader((X, Y)), 1)
        run.step = 2
        keeper.start(run)
        assert (tmp_path / "steps.csv").read_text().endswith("2.5,0.1\n")

    def test_cost_next_to_nothing(self, tmp_path):
        """Measured are 2 to 3 microseconds; a busy machine gets twenty times that."""
        keeper, count = journal(tmp_path), 5000
        run = Run(model(), optim.SGD(model(), lr=cosine(0.1, count)), Loader((X, Y)), 1)
        keeper.start(run)
        started = time.perf_counter()
        for step in range(1, count + 1):
            run.step = run.optimizer.steps = step
            keeper.step(run, 0.5)
        assert (time.perf_counter() - started) / count < 60e-6


class TestTests:
    def test_are_kept_of_the_last_epoch(self, tmp_path):
        trained(tmp_path)
        tests = find(tmp_path).tests
        assert tests["counts"].sum() == 20 == tests["seen"] and tests["epoch"] == 2 and tests["ranks"] == 1
        assert tests["counts"].sum(axis=1).tolist() == np.bincount(Y).tolist()
        assert tests["filters"].shape == (2, 1, 3, 3)

    def test_agree_with_the_accuracy(self, tmp_path):
        history, keeper, net = [], journal(tmp_path), model()
        history = fit(net, Loader((X, Y), batch_size=4), (X, Y), optim.SGD(net, lr=0.1), 2, [keeper])
        assert np.trace(find(tmp_path).tests["counts"]) / 20 == history[-1]["test_accuracy"]

    @pytest.mark.parametrize("ranks", [2, 3])
    def test_count_the_examples_of_all_ranks(self, tmp_path, ranks):
        def rank(communicator):
            net, team = model(), Team(communicator)
            keeper = Journal(folder, CONFIG)
            folder.mkdir(exist_ok=True)
            fit(net, Loader((X, Y), batch_size=4), (X, Y), optim.SGD(net, lr=0.1), 2, [keeper], team=team)
            keeper.close()

        folder = tmp_path / "run"
        local.run(rank, ranks)
        (folder / "config.json").write_text(json.dumps(CONFIG))
        found = find(folder)
        assert found.tests["counts"].sum() == 20 and found.tests["ranks"] == ranks and found.tests["seen"] < 20
        assert found.steps["step"].tolist() == list(range(1, 11))
        assert found.status["state"] == "finished" and found.status["ranks"] == ranks

    @pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
    @pytest.mark.parametrize("moment", ["step", "test", "epoch"])
    @pytest.mark.parametrize("who", [0, 1])
    def test_count_nothing_twice_when_a_process_dies(self, tmp_path, who, moment):
        class Dying(Journal):
            def step(self, run, loss):
                super().step(run, loss)
                if moment == "step" and run.step == 7 and run.team.world.rank == who and len(run.team.known) == 3:
                    run.team.world.die()

            def test(self, run):
                watch = super().test(run)

                def look(*shown):
                    watch(*shown)
                    if moment == "test" and run.epoch == 1 and run.team.world.rank == who and len(run.team.known) == 3:
                        run.team.world.die()

                return look

            def epoch(self, run, metrics):
                if moment == "epoch" and run.epoch == 1 and run.team.world.rank == who and len(run.team.known) == 3:
                    run.team.world.die()
                super().epoch(run, metrics)

        def rank(communicator):
            net, team = model(), Elastic(communicator)
            keeper = Dying(tmp_path, CONFIG)
            fit(net, Loader((X, Y), batch_size=4), (X, Y), optim.SGD(net, lr=0.1), 3, [keeper], team=team)
            keeper.close()

        (tmp_path / "config.json").write_text(json.dumps(CONFIG))
        local.run(rank, 3, patience=20)
        found = find(tmp_path)
        assert found.steps["step"].tolist() == list(range(1, 16)) and found.damaged == []
        assert found.tests["counts"].sum() == 20 and found.tests["epoch"] == 3 and found.tests["ranks"] == 2
        assert found.status["state"] == "finished" and found.status["ranks"] == 2

    def test_that_begin_again_count_nothing_twice(self, tmp_path):
        keeper, run = journal(tmp_path), SimpleNamespace(model=model())
        watch = keeper.test(run)
        watch(X, np.eye(3)[Y], Y)
        watch = keeper.test(run)                            # a process died meanwhile, and the test is done again
        watch(X, np.eye(3)[Y], Y)
        assert keeper.findings.counts.sum() == 20

    def test_are_the_same_of_another_device(self, tmp_path):
        kept = {}
        for device in ("cpu", "strict:0"):
            keeper, net = journal(tmp_path / device), model().to(device=device)
            fit(net, Loader((X, Y), batch_size=4), (X, Y), optim.SGD(net, lr=0.1), 2, [keeper])
            keeper.close()
            kept[device] = find(tmp_path / device).tests
            assert find(tmp_path / device).model["parameters"] == 47
        assert set(kept["cpu"]) == set(kept["strict:0"]) and "mistakes" in kept["cpu"]
        for name, x in kept["cpu"].items():
            if x.dtype.kind != "U":
                np.testing.assert_allclose(x, kept["strict:0"][name], rtol=1e-4, atol=1e-5, err_msg=name)

    def test_of_a_run_without_tests_there_are_none(self, tmp_path):
        keeper, net = journal(tmp_path), model()
        fit(net, Loader((X, Y), batch_size=4), None, optim.SGD(net, lr=0.1), 1, [keeper])
        assert not (tmp_path / "tests.npz").exists()


class TestStatus:
    def test_of_a_run_that_has_finished(self, tmp_path):
        trained(tmp_path)
        found = status(tmp_path)
        assert (found["state"], found["step"], found["epoch"], found["epochs"], found["minibatches"]) == ("finished", 10, 2, 2, 5)

    def test_while_it_goes_on(self, tmp_path):
        keeper = journal(tmp_path)
        keeper.start(Run(model(), optim.SGD(model(), 0.1), Loader((X, Y)), 1))
        assert status(tmp_path)["state"] == "running" and status(tmp_path)["pid"] == os.getpid()
        assert find(tmp_path).state == "running"

    def test_of_a_run_that_was_stopped(self, tmp_path):
        keeper = journal(tmp_path)
        keeper.__class__, keeper.at = Stopping, 3
        trained(tmp_path, keeper=keeper)
        assert (status(tmp_path)["state"], status(tmp_path)["step"]) == ("stopped", 3)
        assert steps(tmp_path)["step"].tolist() == [1, 2, 3]

    @pytest.mark.parametrize("error, state, says", [
        (NumericsError("the loss is nan"), "failed", "NumericsError: the loss is nan"), (KeyboardInterrupt(2), "stopped", "at once"),
        (ValueError(), "failed", "ValueError")])
    def test_of_a_run_that_an_error_has_ended(self, tmp_path, error, state, says):
        keeper = journal(tmp_path)
        keeper.start(Run(model(), optim.SGD(model(), 0.1), Loader((X, Y)), 1))
        keeper.close(error)
        assert status(tmp_path)["state"] == state and says in status(tmp_path)["message"]

    def test_the_error_of_a_process_that_does_not_lead_is_told(self, tmp_path):
        def rank(number):
            keeper = Journal(tmp_path, CONFIG)
            run = Run(model(), optim.SGD(model(), 0.1), Loader((X, Y)), 1)
            run.team = SimpleNamespace(leads=number == 0, ranks=2)
            keeper.start(run)
            run.step = run.optimizer.steps = 1
            keeper.step(run, 2.5)
            return keeper

        first, second = rank(0), rank(1)
        assert second.close() is None and second.close(RankLost("rank 0 has died")) is None and status(tmp_path)["state"] == "running"
        second.close(NumericsError("the loss is nan"))
        first.close(RankLost("rank 1 has died"))
        assert status(tmp_path)["state"] == "failed" and "the loss is nan" in status(tmp_path)["message"]
        assert steps(tmp_path)["step"].tolist() == [1]

    def test_a_process_that_does_not_lead_writes_nothing(self, tmp_path):
        class Second(Alone):
            rank = 1

        keeper, net = journal(tmp_path), model()
        fit(net, Loader((X, Y), batch_size=4), (X, Y), optim.SGD(net, lr=0.1), 1, [keeper], team=Second())
        assert keeper.close() is None
        assert [path.name for path in tmp_path.iterdir()] == ["config.json"]

    def test_discard_leaves_nothing(self, tmp_path):
        keeper = trained(tmp_path)
        keeper.discard()
        assert [path.name for path in tmp_path.iterdir()] == ["config.json"] and keeper.close() is None


class TestPage:
    def test_is_written_at_the_beginning_and_at_the_end(self, tmp_path):
        states = []
        keeper = journal(tmp_path, page=lambda folder: states.append(status(folder)["state"]))
        trained(tmp_path, keeper=keeper)
        assert states == ["running", "finished"]            # between them the epochs are too short

    def test_is_written_after_each_epoch_that_is_long_enough(self, tmp_path, monkeypatch):
        monkeypatch.setattr(module, "SHARE", 1e9)
        pages = []
        trained(tmp_path, keeper=journal(tmp_path, page=lambda folder: pages.append(status(folder)["epoch"])))
        assert pages == [0, 1, 2, 2]

    def test_is_written_within_a_long_epoch(self, tmp_path, monkeypatch):
        for name, value in (("SHARE", 1e9), ("SECONDS", 0.0), ("BETWEEN", 0.0)):
            monkeypatch.setattr(module, name, value)
        pages = []
        trained(tmp_path, 1, keeper=journal(tmp_path, page=lambda folder: pages.append(status(folder)["step"])))
        assert pages == [0, 1, 2, 3, 4, 5, 5, 5]

    def test_takes_no_more_than_its_share_of_the_time(self, tmp_path, monkeypatch):
        now = [0.0]
        monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
        pages = []

        def page(folder):
            pages.append(now[0])
            now[0] += 2.0

        keeper = journal(tmp_path, page=page)
        run = Run(model(), optim.SGD(model(), 0.1), Loader((X, Y)), 1000)
        keeper.start(run)
        for _ in range(1000):
            now[0] += 0.1
            keeper.epoch(run, {"epoch": 1})
        assert 2.0 * len(pages) <= module.SHARE * now[0] + 2.0 and len(pages) >= 4

    def test_that_cannot_be_written_is_told_once_and_ends_nothing(self, tmp_path, monkeypatch):
        monkeypatch.setattr(module, "SHARE", 1e9)

        def page(folder):
            raise OSError(28, "No space left on device")

        told = []
        keeper = trained(tmp_path, keeper=journal(tmp_path, page=page, remark=told.append))
        assert len(told) == 1 and "No space left on device" in told[0] and "goes on" in told[0]
        assert keeper.close() is None and status(tmp_path)["state"] == "finished"

    def test_a_folder_that_is_gone_ends_nothing_either(self, tmp_path):
        told = []
        keeper = journal(tmp_path / "run", remark=told.append)
        keeper.folder = tmp_path / "nowhere"
        trained(tmp_path, keeper=keeper)
        assert len(told) == 1


class TestModel:
    def test_is_summed_up_without_its_noticing(self, tmp_path):
        class Counting(nn.Module):
            def __init__(self):
                self.inner, self.passes = model(), 0

            def forward(self, x):
                self.passes += 1
                return self.inner(x)

        keeper, net = journal(tmp_path), Counting()
        keeper.start(Run(net, optim.SGD(net, 0.1), Loader((X, Y)), 1))
        found = json.loads((tmp_path / "model.json").read_text())
        assert found["parameters"] == 20 + 27 and [row["layer"] for row in found["rows"]] == ["Conv2d", "Flatten", "Affine"]
        assert net.passes == 0 and net.training

    def test_that_cannot_be_summed_up_says_why(self, tmp_path):
        class Odd(nn.Module):
            def __init__(self):
                self.inner = model()

            def forward(self, x):
                if len(x) < 2:
                    raise ValueError("one is not enough")
                return self.inner(x)

        keeper = journal(tmp_path)
        keeper.start(Run(Odd(), optim.SGD(model(), 0.1), Loader((X, Y)), 1))
        assert json.loads((tmp_path / "model.json").read_text()) == {"error": "one is not enough"}
