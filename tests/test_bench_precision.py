"""The benchmark of numbers of 16 bits: its problems, its tables, and a short run of all of it. No test looks at who wins."""

import importlib.util
import json
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("threadpoolctl", reason="scripts/bench_precision needs the extra fast")
pytest.importorskip("ml_dtypes", reason="scripts/bench_precision needs the extra precision")

from minidl import data
from precision import results, runs

SCRIPT = Path(__file__).parents[1] / "scripts" / "bench_precision"
PROBLEMS = {problem.name: problem for problem in runs.PROBLEMS}
NUMBERS = {numbers.name: numbers for numbers in runs.NUMBERS}


def script():
    """The command as a module, though its name does not end in .py."""
    loader = SourceFileLoader("bench_precision", str(SCRIPT))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("bench_precision", loader))
    loader.exec_module(module)
    return module


@pytest.fixture
def quietly(monkeypatch):
    """Nothing of the environment makes the script begin anew."""
    monkeypatch.setattr(sys, "argv", ["bench_precision"])


@pytest.fixture(scope="module")
def some():
    train, test = data.load("digits")
    return train[:200], test[:50]


class TestRuns:
    def some(self, some, numbers, problem="small-steps", limit=1):
        train, test = (data.Dataset(*part, classes=range(10)) for part in some)
        with np.errstate(all="ignore"):
            return runs.trained(PROBLEMS[problem], NUMBERS[numbers], 1, train, test, limit)

    def test_master_weights_and_scaling_are_what_the_names_say(self, some, monkeypatch):
        seen = []
        monkeypatch.setattr(runs, "fit", lambda model, *others, **options: seen.append(
            (str(next(iter(model.parameters())).dtype), options["dtype"], options["loss_scale"])))
        for name in NUMBERS:
            self.some(some, name)
        assert seen == [("float32", "float32", 1), ("float32", "float16", "dynamic"), ("float32", "float16", 1),
                        ("float16", "float16", "dynamic"), ("float16", "float16", 1), ("float32", "bfloat16", 1),
                        ("bfloat16", "bfloat16", 1)]

    def test_ends_at_the_target(self, some, monkeypatch):
        assert self.some(some, "float32")["reached"] is False
        easy = runs.Problem(**{**vars(PROBLEMS["small-steps"]), "target": 0.0})
        monkeypatch.setitem(PROBLEMS, "small-steps", easy)
        found = self.some(some, "float32", limit=5)
        assert found["reached"] and found["epochs"] == 1 == len(found["values"]) and found["diverged"] == ""

    def test_a_loss_with_a_weight_is_measured_without_it(self, some):
        found = self.some(some, "float32", "small-gradients")
        assert 0.1 < found["best"] < 1

    def test_one_that_diverges_is_told(self, some, monkeypatch):
        wild = runs.Problem(**{**vars(PROBLEMS["small-steps"]), "optimizer": lambda model: runs.optim.SGD(model, lr=1e30)})
        monkeypatch.setitem(PROBLEMS, "small-steps", wild)
        found = self.some(some, "float32", limit=2)
        assert "the loss is" in found["diverged"] and not found["reached"]


def run(epochs, reached=True, diverged="", best=0.9, skipped=0):
    return {"epochs": epochs, "reached": reached, "diverged": diverged, "best": best, "skipped": skipped}


def test_rows_count_what_happened():
    kinds = {"a": {"title": "A", "scaled": True, "runs": [run(3, skipped=2), run(7), run(4, skipped=1)]},
             "b": {"title": "B", "scaled": False, "runs": [run(9, False), run(5), run(0, False, "the loss is nan", None)]},
             "c": {"title": "C", "scaled": False, "runs": [run(0, False, "the loss is inf", None)]}}
    assert results.rows({"numbers": kinds}) == [("A", "4 (3-7)", "3 of 3", "0", "0.900", "1"), ("B", "5", "1 of 3", "1", "0.900", "-"),
                                                ("C", "-", "0 of 1", "1", "-", "-")]


def test_the_whole_command(tmp_path, capsys, quietly):
    command, file = script(), tmp_path / "precision.json"
    command.main(["--only", "small-steps", "--numbers", "float32", "float16", "bfloat16-pure", "--seeds", "1", "--epochs", "1",
                  "--json", str(file)])
    shown = capsys.readouterr().out
    assert "MLP, small steps: test accuracy 0.95 within 1 epochs" in " ".join(shown.split()) and "bfloat16, no master weights" in shown
    kept = json.loads(file.read_text())
    assert list(kept["problems"]["small-steps"]["numbers"]) == ["float32", "float16", "bfloat16-pure"] and kept["seeds"] == [1]
    command.main(["--from", str(file), "--markdown"])
    page = capsys.readouterr().out
    assert "| float32 | - | 0 of 1 | 0 |" in page and "rounded wherever an array is stored." in page


@pytest.mark.parametrize("words, says", [(["--only", "lenett"], "'lenett' is no problem; there are lenet, "),
                                         (["--numbers", "float8"], "'float8' is no kind of numbers"),
                                         (["--data", "none"], "no data set is called 'none'")])
def test_what_is_not_known(words, says, quietly):
    with pytest.raises(SystemExit, match=says):
        script().main(words)
