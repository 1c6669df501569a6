"""The benchmark of K-FAC: its problems, its rule for tuning, its tables; and a short run of all of it on the digits.

No test looks at how long something took, or at who wins.
"""

import importlib.util
import io
import itertools
import json
import math
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("threadpoolctl", reason="scripts/bench_kfac needs the extra fast")

from rich.console import Console

from bench import machine
from kfac import flops, methods, results, runs, section, steps, tuning, workloads
from minidl import optim

SCRIPT = Path(__file__).parents[1] / "scripts" / "bench_kfac"
AUTOENCODER, LENET = workloads.BY_NAME["autoencoder"], workloads.BY_NAME["lenet"]
SGD = methods.METHODS[0]


def script():
    """The command as a module, though its name does not end in .py."""
    loader = SourceFileLoader("bench_kfac", str(SCRIPT))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("bench_kfac", loader))
    loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def digits():
    return workloads.Images("digits", most=600)


class TestWorkloads:
    def test_images_set_aside_are_not_trained_on(self, digits):
        tuned, final = (digits.problem(AUTOENCODER, tuning) for tuning in (True, False))
        assert len(tuned.train[0]) + len(tuned.measured[0]) == len(final.train[0]) == 600
        np.testing.assert_array_equal(np.concatenate([tuned.train[0], tuned.measured[0]]), final.train[0])
        np.testing.assert_array_equal(final.measured[0], final.train[0])              # the loss is a training loss

    def test_lenet_is_measured_on_the_test_in_the_end(self, digits):
        problem = digits.problem(LENET, tuning=False)
        assert len(problem.measured[0]) == 360
        assert abs(problem.train[0].mean()) < 1e-3 and abs(problem.train[0].std() - 1) < 1e-3
        assert workloads.accuracy(problem.model(0), problem.measured) < 0.5

    def test_the_loss_is_in_nats_an_image(self, digits):
        problem = digits.problem(AUTOENCODER, tuning=False)
        x, labels = problem.measured
        y = problem.model(0)(x).data.astype(np.float64)
        plain = (np.logaddexp(0, y) - x.reshape(len(x), -1) * y).sum(axis=1).mean()
        assert AUTOENCODER.loss(problem.model(0), x, labels).item() == pytest.approx(plain, rel=1e-5)
        assert workloads.reconstruction(problem.model(0), problem.measured) == pytest.approx(plain, rel=1e-5)

    def test_every_image_comes_once_an_epoch_in_an_order_of_the_seed(self):
        x = np.arange(1000, dtype=np.float32)
        problem = workloads.Problem(AUTOENCODER, (x, x), (x, x), 10)
        batches = [x for x, _ in itertools.islice(problem.minibatches(3), 4)]
        assert sorted(np.concatenate(batches[:2])) == sorted(np.concatenate(batches[2:])) == list(x)
        np.testing.assert_array_equal(batches[0], next(problem.minibatches(3))[0])
        assert not np.array_equal(batches[0], next(problem.minibatches(4))[0])

    def test_measurements_come_every_10_steps_or_tenth_of_an_epoch(self):
        x = np.zeros(60000, np.float32)
        by_steps, by_epochs = (workloads.Problem(w, (x, x), (x, x), 10) for w in (AUTOENCODER, LENET))
        assert [by_steps.measured_at(k) for k in range(3)] == [0, 10, 20]
        assert [by_epochs.measured_at(k) for k in range(4)] == [0, 23, 47, 70]
        assert by_epochs.counted(by_epochs.steps(1.5)) == pytest.approx(1.5, abs=0.01)
        few = workloads.Problem(LENET, (x[:600], x), (x, x), 10)
        assert [few.measured_at(k) for k in range(4)] == [0, 1, 2, 3]


class TestMethods:
    def test_draw_as_many_settings_each_from_their_grid(self):
        for method in (method for method in methods.METHODS if not method.like):
            for workload in workloads.BY_NAME:
                drawn = method.draw(workload, 8)
                assert len(drawn) == len({tuple(settings.values()) for settings in drawn}) == 8
                assert drawn[:3] == method.draw(workload, 3)
                assert all(settings[name] in method.grids[workload][name] for settings in drawn for name in settings)
                assert set(method.usual[workload]) == set(drawn[0])

    def test_are_chosen_by_name(self):
        assert [method.name for method in methods.chosen(["adam", "sgd"])] == ["sgd", "adam"]
        assert {"sgd", "adam"} <= {method.name for method in methods.chosen()}
        with pytest.raises(ValueError, match="'adams' is no method; there are sgd, adam"):
            methods.chosen(["adams"])

    @pytest.mark.skipif(not hasattr(optim, "KFAC"), reason="minidl.optim has no KFAC")
    def test_kfac_at_interval_1_is_chosen_by_its_own_name_with_the_one_that_it_is_like(self):
        assert [method.name for method in methods.chosen(["kfac-1"])] == ["kfac", "kfac-1"]
        assert [method.name for method in methods.chosen(["kfac"])] == ["kfac"]


class TestRuns:
    def test_a_run_learns_and_keeps_what_was_measured(self, digits):
        run = runs.Run(digits.problem(AUTOENCODER, False), SGD, {"lr": 1e-3}, seed=1, limit=25)
        while not run.over:
            run.go_on()
        assert run.curve.steps == [0]                   # so small an image is below 243 nats from the beginning
        run = runs.Run(digits.problem(AUTOENCODER, False), SGD, {"lr": 1e-3}, seed=1, limit=25, shown=25)
        while not run.over:
            run.go_on()
        assert run.curve.steps == [0, 10, 20, 25] and run.curve.values[-1] < run.curve.values[0]
        assert run.curve.cpu == sorted(run.curve.cpu) and run.curve.cpu[0] == 0 < run.curve.wall[1]
        assert run.reached == [{"step": 0, "counted": 0, "cpu": 0.0, "wall": 0.0}] * 2

    def test_a_run_that_diverges_has_failed(self, digits):
        run = runs.Run(digits.problem(LENET, False), SGD, {"lr": 1e30}, seed=1, limit=25)
        while not run.over:
            run.go_on()
        assert run.failed and "finite" in run.result()["failed"] and run.result()["reached"] == [None]


class Line:
    """Stands for a run: its loss falls along a line, by `slope` a step, or it fails at once."""

    limit = 100

    def __init__(self, problem, method, settings, seed, limit):
        self.problem, self.settings, self.step, self.why = problem, settings, 0, ""
        self.curve, self.reached = runs.Curve(steps=[0], values=[300.0]), [None, None]

    @property
    def failed(self):
        return bool(self.why)

    @property
    def over(self):
        return self.failed or self.step >= self.limit or None not in self.reached

    def go_on(self):
        if not self.settings["slope"]:
            self.why = "no slope"
            return
        self.step += 10
        self.curve.steps.append(self.step)
        self.curve.values.append(300 - self.settings["slope"] * self.step)
        for i, target in enumerate(AUTOENCODER.targets):
            if self.reached[i] is None and self.curve.values[-1] <= target:
                self.reached[i] = {"step": self.step}


class TestTuning:
    def tried(self, monkeypatch, *slopes):
        monkeypatch.setattr(tuning, "Run", Line)
        monkeypatch.setattr(methods.Method, "draw", lambda *_: [{"slope": slope} for slope in slopes])
        x = np.zeros(1000, np.float32)
        found = tuning.tune(workloads.Problem(AUTOENCODER, (x, x), (x, x), 10), SGD, len(slopes), 100)
        return [(result["settings"]["slope"], result["end"], result["steps"]) for result in found]

    def test_the_best_comes_first_and_what_cannot_beat_it_is_cut_off(self, monkeypatch):
        assert self.tried(monkeypatch, 1, 2, 0, 1.5) == [(2, "ran", [40, 40]), (1, "ran", [70, 70]), (1.5, "cut off", [30, 30]),
                                                         (0, "failed", [0, 0])]

    def test_nothing_is_cut_off_before_a_try_reached_everything(self, monkeypatch):
        assert self.tried(monkeypatch, 0.1, 0.2, 0) == [(0.2, "ran", [100, 100]), (0.1, "ran", [100, 100]),
                                                       (0, "failed", [0, 0])]


class TestFlops:
    def test_layers_of_lenet(self):
        first, second, *_, last = flops.layers(LENET.model((1, 28, 28), 10, 0), (1, 28, 28), 2)
        assert first == flops.Layer("features.0", 26, 6, 2 * 28 * 28, True)
        assert second == flops.Layer("features.2", 151, 16, 2 * 100, False)
        assert last == flops.Layer("classifier.2", 85, 10, 2, False)

    def test_the_last_row_is_the_sum(self):
        rows = flops.table(AUTOENCODER.model((1, 28, 28), 10, 0), (1, 28, 28), 500, 10)
        assert len(rows) == 9
        for name in ("sgd", "preconditioning", "factors", "backward", "inverses"):
            assert rows[-1][name] == pytest.approx(sum(row[name] for row in rows[:-1]))
        assert rows[0]["backward"] == 0 and rows[0]["sgd"] == 2 * 500 * 785 * 256

    def test_steps_are_timed_with_real_renewals(self, digits):
        found = steps.measured(digits.problem(AUTOENCODER, False), methods.chosen(["sgd", "adam"]), 2, block=0)
        assert found["steps"] == methods.INTERVAL and set(found["methods"]) == {"sgd", "adam"}
        assert found["methods"]["sgd"]["ratio"]["rounds"] == [1.0, 1.0] and found["methods"]["adam"]["phases"] == {}


def curve(workload, slow, seed, last=100):
    """A run's result: the loss or accuracy goes from bad to good, and takes `slow` seconds a step."""
    at = list(range(0, last + 1, 10))
    good = AUTOENCODER is workload
    values = [(300 - step if good else 0.5 + step / 200) for step in at]
    reached = [next(({"step": step, "counted": step, "cpu": step * slow, "wall": step * slow / 2} for step, value in zip(at, values)
                     if workload.reaches(value, target)), None) for target in workload.targets]
    return {"seed": seed, "steps": last, "reached": reached, "failed": "",
            "curve": {"steps": at, "values": values, "cpu": [step * slow for step in at], "wall": [step * slow / 2 for step in at]}}


def raced(workload, slow, last=None):
    """A workload's results. slow: seconds a step, by method. last: how far a method went."""
    last = last or {}
    tries = [{"end": "ran"}, {"end": "failed"}]
    competing = {name: {"title": name.upper(), "settings": {"lr": 0.1}, "fixed": {}, "like": "", "tries": tries,
                        "runs": [curve(workload, seconds, seed, last.get(name, 100)) for seed in (1, 2, 3)]}
                 for name, seconds in slow.items()}
    return {"title": workload.title, "batch": workload.batch, "measure": workload.measure, "falls": workload.falls,
            "counted": workload.counted, "targets": list(workload.targets), "limit": 100, "epoch": 10.0, "methods": competing}


def timed(ratio):
    one = {"title": "K-FAC", "wall": 0.01 * ratio, "cpu": 0.02, "phases": dict.fromkeys(results.PHASES, 0.001)}
    spread = {"median": ratio, "low": ratio, "high": ratio, "rounds": [ratio]}
    layers = flops.table(LENET.model((1, 28, 28), 10, 0), (1, 28, 28), 256, 10)
    return {"title": "LeNet", "batch": 256, "steps": 10, "rounds": 1, "interval": 10, "layers": layers,
            "methods": {name: one | {"ratio": spread, "cpu_ratio": spread} for name in ("sgd", "kfac")}}


def found(race=None, seconds=None):
    about = machine.describe() | {"processor": "a processor", "date": "2026-01-02 03:04 UTC"}
    return {"machine": about, "versions": {"NumPy": "9.9"}, "blas": "a library", "threads": 2, "tries": 2, "seeds": [1, 2, 3],
            "quick": False, "data": {"name": "digits", "images": 1437}, "workloads": race or {}, "steps": seconds or {}, "notes": []}


WON = {"autoencoder": raced(AUTOENCODER, {"sgd": 3.0, "adam": 2.0, "kfac": 0.8})}
LOST = {"autoencoder": raced(AUTOENCODER, {"adam": 2.0, "kfac": 3.0}, {"kfac": 60})}


class TestResults:
    def test_a_figure_is_the_median_and_a_ratio_is_taken_within_a_seed(self):
        w = WON["autoencoder"]
        w["methods"]["adam"]["runs"][2]["reached"][0]["cpu"] = 60.0
        assert results.numbers(w, "adam", 0, "cpu") == [120.0, 120.0, 60.0]
        assert results.over(w, "kfac", "adam", 0, "cpu") == pytest.approx(0.4)
        w["methods"]["adam"]["runs"][2]["reached"][0]["cpu"] = 120.0

    def test_promises_are_held_against_what_was_reached(self):
        kept = results.promises(found(WON, {"lenet": timed(1.3)}))
        assert [(round(p.got, 2), p.kept) for p in kept] == [(60, True), (0.4, True), (70, True), (0.4, True), (1.3, False)]
        kept = results.promises(found(LOST))
        assert [(p.got, p.kept) for p in kept] == [(60, True), (1.5, False), (math.inf, False), (math.inf, False)]

    def test_the_file_holds_the_promises_too_and_no_infinity(self):
        text = json.dumps(results.with_promises(found(LOST)), allow_nan=False)
        assert [promise["got"] for promise in json.loads(text)["promises"]] == [60, 1.5, None, None]

    def test_who_wins_is_computed(self):
        assert results.verdicts(WON["autoencoder"])[0] == (
            "K-FAC reaches training loss 243 in 1.00 of Adam's steps, 0.40 of Adam's CPU time, 0.40 of Adam's time by the clock: "
            "it does not win in all of them.")
        first, second = results.verdicts(LOST["autoencoder"])
        assert first.endswith("1.50 of Adam's time by the clock: it does not win here.")
        assert second == "K-FAC did not reach training loss 236 within 100 steps."
        better = raced(AUTOENCODER, {"adam": 2.0, "kfac": 0.8})
        for run in better["methods"]["kfac"]["runs"]:
            run["reached"][0]["counted"] = 30
        assert results.verdicts(better)[0].endswith(": it wins.")

    @pytest.mark.parametrize("race", [WON, LOST, {"lenet": raced(LENET, {"sgd": 3.0, "adam": 2.0, "kfac": 0.8}, {"sgd": 20})}])
    def test_tables_fit_in_100_columns(self, race):
        r = found(race, {"lenet": timed(1.3)})
        console = Console(width=100, record=True, file=io.StringIO())
        for w in race.values():
            console.print(results.table(w))
        console.print(results.step_table(r), results.layer_table(r["steps"]["lenet"]), results.promise_table(r))
        text = console.export_text()
        assert "…" not in text and "until" in text and "features.0" in text

    def test_some_seeds_that_do_not_arrive_are_counted(self):
        assert results.among([3.0, math.inf, math.inf], str) == "by 1 of 3"
        assert results.among([math.inf] * 2, str) == "not reached"
        assert results.among([1.0, 2.0, math.inf], str) == "2.0 (1.0-never)"
        assert results.among([2.0, 2.0], str) == "2.0"

    def test_a_section_for_the_readme(self):
        text = section.markdown(found(WON, {"lenet": timed(1.3)}), "kfac.svg")
        assert text.startswith("![") and "(kfac.svg)" in text and "a processor" in text
        assert "| KFAC | 60 | 1.00 | 48.0 | 0.40 | 24.0 | 0.40 |" in text
        assert "1 failed" in text and "it does not win in all of them" in text and "| features.0 |" in text

    def test_a_picture(self, tmp_path):
        pytest.importorskip("matplotlib", reason="matplotlib draws the picture (extra bench)")
        from kfac.picture import draw

        draw(found(WON | {"lenet": raced(LENET, {"sgd": 3.0, "adam": 2.0, "kfac": 0.8}, {"sgd": 20})}), tmp_path / "kfac.svg")
        assert "<svg" in (tmp_path / "kfac.svg").read_text()
        with pytest.raises(ValueError, match="nothing to draw"):
            draw(found(), tmp_path / "none.svg")


class TestCommand:
    def test_says_what_to_install(self):
        with pytest.raises(SystemExit, match=r"Nothing cannot be imported by .*\n.*pip install -e '.\[fast,bench\]'"):
            script().check({"nothing_of_this_name": "Nothing"})

    def test_shows_what_was_measured_before(self, tmp_path, capsys):
        file = tmp_path / "kfac.json"
        file.write_text(json.dumps(results.with_promises(found(WON, {"lenet": timed(1.3)}))))
        script().main(["--from", str(file)])
        shown = capsys.readouterr().out
        assert "until 243" in shown and "K-FAC until 236" in shown
        script().main(["--from", str(file), "--markdown"])
        assert "| KFAC | 60 | 1.00 | 48.0 |" in capsys.readouterr().out

    def test_an_unknown_method_is_told(self):
        with pytest.raises(SystemExit, match="bench_kfac: 'adams' is no method"):
            script().main(["--quick", "--data", "digits", "--methods", "adams"])

    @pytest.mark.process
    def test_measures(self, tmp_path):
        file = tmp_path / "kfac.json"
        words = ["--quick", "--data", "digits", "--only", "lenet", "steps", "--threads", "1", "--tries", "1", "--seeds", "1",
                 "--rounds", "1", "--json", file]
        done = subprocess.run([sys.executable, SCRIPT, *words], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert "until 0.875" in done.stdout
        r = json.loads(file.read_text())
        assert {"machine", "versions", "blas", "threads", "data", "workloads", "steps", "promises", "notes"} <= set(r)
        assert set(r["workloads"]) == {"lenet"} and set(r["steps"]) == {"autoencoder", "lenet"}
        names = {method.name for method in methods.chosen()}
        for w in r["workloads"].values():
            assert set(w["methods"]) == names
            assert all(len(m["tries"]) == (0 if m["like"] else 1) and len(m["runs"]) == 1 for m in w["methods"].values())
            assert len({m["runs"][0]["curve"]["values"][0] for m in w["methods"].values()}) == 1       # all start from the same weights
