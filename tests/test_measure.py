"""A run with --profile leaves a table, its rows and a timeline, of all processes, and says where the time goes."""

import json
import math
import re

import pytest
import runs
from ranks import NO_MPI, run_mpi

from minidl import data, models, optim
from minidl.errors import NumericsError
from minidl.loop import fit
from minidl.measure import FILES, Measure
from minidl.modes import mode
from minidl.parallel import Elastic, Team, local
from minidl.profiling import rows
from minidl.train import app

SMALL = ("--data", "digits.npz", "--model", "mlp", "--batch-size", 25, "--augment", "none")
TRAIN, TEST = data.load("digits")


@pytest.fixture(autouse=True)
def every_call_counts(monkeypatch):
    """Also a first one that a busy machine has made slow."""
    monkeypatch.setattr(rows, "SLOW", math.inf)


@pytest.fixture
def place(tmp_path, monkeypatch):
    return runs.place(tmp_path, monkeypatch)


def train(*words):
    return runs.status(app, *words)


def learn(folder, steps, communicator=None, epochs=2, **options):
    model = models.create("mlp", input_shape=(1, 8, 8), classes=10, generator=0)
    measure = Measure(folder, steps)
    team = None if communicator is None else Team(communicator, **options)
    fit(model, data.Loader(TRAIN[:100], batch_size=20), TEST[:50], optim.SGD(model, lr=0.1), epochs, [measure], team=team)
    return measure


class TestMeasure:
    def test_leaves_three_files(self, tmp_path):
        measure = learn(tmp_path, 3)
        assert {file.name for file in tmp_path.iterdir()} == set(FILES)
        told = json.loads((tmp_path / "profile.json").read_text())
        assert told["steps"] == 3 and told["skipped"] > 0 and told["recorded"] < told["seconds"]
        assert (tmp_path / "profile.txt").read_text().rstrip() == measure.profile.table()
        assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]

    def test_the_first_step_is_left_out_and_so_many_are_written_down(self, tmp_path):
        measure = learn(tmp_path, 3)
        assert {row.calls for row in measure.profile.operations if row.direction == "backward"} == {3}

    def test_a_run_of_fewer_steps(self, tmp_path):
        measure = learn(tmp_path, 1000, epochs=1)
        assert measure.profile.steps == 4 and next(row.calls for row in measure.profile.operations if row.direction == "backward") == 4

    def test_of_one_step_there_are_phases_only(self, tmp_path):
        model = models.create("mlp", input_shape=(1, 8, 8), classes=10, generator=0)
        measure = Measure(tmp_path)
        fit(model, data.Loader(TRAIN[:20], batch_size=20), TEST[:50], optim.SGD(model, lr=0.1), 1, [measure])
        assert measure.profile.steps == 0 and measure.profile.bottleneck()

    def test_a_run_that_has_nothing_to_do_leaves_nothing(self, tmp_path):
        measure = learn(tmp_path, 3, epochs=0)
        assert list(tmp_path.iterdir()) == [] and measure.lines(80) == []

    @pytest.mark.parametrize("overlap", ["none", "backward"])
    def test_of_all_ranks_in_one_file(self, tmp_path, overlap):
        measures = local.run(lambda communicator: learn(tmp_path, 5, communicator, overlap=overlap), 2)
        told = json.loads((tmp_path / "trace.json").read_text())
        assert {each["pid"] for each in told["traceEvents"]} == {0, 1}
        assert measures[0].profile.ranks == 2 and measures[0].profile.facts["overlap"] == overlap

    def test_who_has_died_is_not_in_it(self, tmp_path):
        """A process of an elastic run dies in the middle; the first one dies, and another one writes."""
        def work(communicator):
            model = models.create("mlp", input_shape=(1, 8, 8), classes=10, generator=0)
            measure = Measure(tmp_path, 100)
            fit(model, data.Loader(TRAIN[:100], batch_size=20, prefetch=0), None, optim.SGD(model, lr=0.1), 2, [measure],
                team=Elastic(communicator))
            return measure

        def on_call(rank, number):
            if rank == 0 and number == 100:
                raise local.Killed

        left = local.run(work, 3, on_call=on_call)
        assert left[0] is None and left[1].profile.ranks == 2
        told = json.loads((tmp_path / "trace.json").read_text())
        assert {each["pid"] for each in told["traceEvents"]} == {0, 1}

    def test_after_an_error_nothing_is_measured_any_more(self, tmp_path):
        before = mode.get()
        model = models.create("mlp", input_shape=(1, 8, 8), classes=10, generator=0)
        measure = Measure(tmp_path)
        with pytest.raises(NumericsError):
            fit(model, data.Loader(TRAIN[:100], batch_size=20), None, optim.SGD(model, lr=1e30), 2, [measure])
        measure.close()
        assert mode.get() == before


class TestCommand:
    def test_says_what_the_bottleneck_is(self, place, capsys):
        assert train(*SMALL, "--epochs", 3, "--out", "out", "--profile", "--profile-steps", 5) == 0
        out = capsys.readouterr().out
        assert re.search(r"\n  Bottleneck: .*, \d+ % of the time", out) and "operations of 5 steps" in out
        assert "timeline: out/trace.json, for ui.perfetto.dev" in out and "\x1b" not in out
        assert set(FILES) <= {file.name for file in (place / "out").iterdir()}
        assert max(len(line) for line in out[out.index("Bottleneck"):out.index("timeline")].split("\n")) <= 100

    def test_without_it_there_is_none(self, place, capsys):
        assert train(*SMALL, "--epochs", 1, "--out", "out") == 0
        assert "Bottleneck" not in capsys.readouterr().out and not (place / "out" / "trace.json").exists()

    def test_it_belongs_to_the_command_and_not_to_the_run(self, place, capsys):
        train(*SMALL, "--epochs", 1, "--out", "out", "--profile")
        capsys.readouterr()
        assert "profile" not in json.loads((place / "out" / "config.json").read_text())["options"]
        assert train("--resume", "out", "--epochs", 2) == 0
        assert "Bottleneck" not in capsys.readouterr().out
        assert train("--resume", "out", "--epochs", 3, "--profile") == 0
        assert "Bottleneck" in capsys.readouterr().out

    @pytest.mark.process
    @pytest.mark.skipif(bool(NO_MPI), reason=NO_MPI)
    def test_of_many_processes_all_are_in_one_file(self, place):
        words = map(str, (*SMALL, "--epochs", 1, "--out", "out", "--profile", "--threads", 1))
        ran = run_mpi(["-m", "minidl.train", *words], 2, cwd=place)
        assert ran.status == 0 and ran.out.count("Bottleneck") == 1 and "2 processes" in ran.out
        told = json.loads((place / "out" / "trace.json").read_text())
        names = {(each["pid"], each["args"]["name"]) for each in told["traceEvents"] if each["name"] == "thread_name"}
        assert {(0, "computation"), (1, "computation"), (0, "exchange"), (1, "exchange")} <= names
        assert json.loads((place / "out" / "profile.json").read_text())["clocks"][1]["error"] < 0.1

    @pytest.mark.parametrize("words, says", [
        (("--profile-steps", 5), "--profile-steps would not be used"),
        (("--profile", "--profile-steps", 0), "--profile-steps is 0, and must be at least 1"),
        (("--profile", "--eval-only", "--weights", "w.safetensors"), "--profile would not be used"),
    ])
    def test_what_makes_no_sense_is_refused(self, place, capsys, words, says):
        assert train(*SMALL[:4], *words) == 2
        assert says in capsys.readouterr().err
