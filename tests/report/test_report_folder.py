"""A run's folder is read as far as it can be, in whatever state it is."""

import json
import os
import platform
import subprocess
import sys
import time

import numpy as np
import pytest

from minidl.errors import CheckpointError
from minidl.report.folder import find, lives

CONFIG = {"options": {"epochs": 2, "model": "m"}, "classes": ["a", "b"], "input_shape": [4], "normalise": None, "commands": []}
HEAD = "step,epoch,seconds,loss,learning_rate\n"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


def test_of_a_folder_that_is_not_a_runs(tmp_path):
    with pytest.raises(CheckpointError, match=r"is not the folder of a run: it has no config.json"):
        find(tmp_path)


def test_before_the_first_step(folder):
    found = find(folder)
    assert (found.metrics, found.steps, found.status, found.tests, found.model) == ([], {}, {}, {}, {})
    assert found.profile is None and found.damaged == []
    assert found.state == "unknown" and found.epochs == 2 and found.name == folder.name


class TestMetrics:
    def test_a_last_line_that_is_half_written_is_left_out(self, folder):
        (folder / "metrics.jsonl").write_text('{"epoch": 1}\n{"epo')
        found = find(folder)
        assert found.metrics == [{"epoch": 1}] and found.damaged == ["metrics.jsonl: 1 line left out"]

    @pytest.mark.parametrize("line", ["", "null", "7", "[]", "\x00\x00", "{", "ÿ"])
    def test_so_is_any_other(self, folder, line):
        (folder / "metrics.jsonl").write_text(f'{{"epoch": 1}}\n{line}\n{{"epoch": 2}}\n')
        assert [each["epoch"] for each in find(folder).metrics] == [1, 2]

    def test_where_they_stand(self, folder):
        (folder / "metrics.jsonl").write_text('{"epoch": 1, "seconds": 2, "x": 5}\n{"epoch": 2, "seconds": 3, "step": 20, "x": 6}\n')
        (folder / "steps.csv").write_text(HEAD + "9,1,1.5,2.5,0.1\n10,1,2.0,2.4,0.1\n11,2,2.1,2.3,0.1\n")
        found = find(folder)
        assert found.series("x", "step") == ([10, 20], [5, 6])
        assert found.series("x", "seconds") == ([2, 5], [5, 6]) and found.series("x", "epoch")[0] == [1, 2]

    def test_where_they_stand_in_a_folder_that_an_older_version_began(self, folder):
        (folder / "metrics.jsonl").write_text('{"epoch": 1}\n{"epoch": 2, "step": 24}\n')
        (folder / "status.json").write_text('{"state": "finished", "minibatches": 12}')
        assert find(folder).last_steps() == [12, 24]

    def test_where_they_stand_if_nothing_says_it(self, folder):
        (folder / "metrics.jsonl").write_text('{"epoch": 1}\n')
        assert np.isnan(find(folder).last_steps()).all() and find(folder).seconds() == [0]


class TestSteps:
    @pytest.mark.parametrize("text", [HEAD, HEAD + "1,1,0.1", "", "x"])
    def test_of_which_there_are_none_yet(self, folder, text):
        (folder / "steps.csv").write_text(text)
        assert find(folder).steps == {}

    def test_half_a_line_is_left_out(self, folder):
        (folder / "steps.csv").write_text(HEAD + "1,1,0.1,2.5,0.05\n2,1,0.2,2.")
        assert {name: column.tolist() for name, column in find(folder).steps.items()} == {
            "step": [1], "epoch": [1], "seconds": [0.1], "loss": [2.5], "learning_rate": [0.05]}

    def test_one_that_was_noted_twice_counts_once(self, folder):
        (folder / "steps.csv").write_text(HEAD + "1,1,0.1,2.5,0.05\n2,1,0.2,2.0,0.05\n3,1,0.3,1.5,0.05\n2,1,0.2,7.0,0.05\n")
        found = find(folder).steps
        assert found["step"].tolist() == [1, 2, 3] and found["loss"].tolist() == [2.5, 7.0, 1.5]

    @pytest.mark.parametrize("line", ["2,1,0.2", "2,1,0.2,2.0,0.1,9", "rubbish", "\x00\xff", ",,,,"])
    def test_so_is_any_line_that_is_damaged(self, folder, line):
        (folder / "steps.csv").write_text(f"{HEAD}1,1,0.1,2.5,0.05\n{line}\n3,1,0.1,2.5,0.05\n")
        found = find(folder)
        assert found.steps["step"].tolist() == [1, 3] and "steps.csv" in found.damaged[0]


@pytest.mark.parametrize("name", ["status.json", "model.json", "profile.json", "tests.npz"])
@pytest.mark.parametrize("content", [b"", b"{", b"[1", b"\x00" * 40, b"PK\x03\x04 rubbish"])
def test_a_damaged_file_is_left_out(folder, name, content):
    (folder / name).write_bytes(content)
    found = find(folder)
    assert (found.status, found.model, found.profile, found.tests) == ({}, {}, None, {})
    assert not content or found.damaged[0].startswith(name) or name == "status.json"


def test_a_file_that_holds_something_else(folder):
    for name in ("status.json", "model.json"):
        (folder / name).write_text("[1, 2]")
    assert find(folder).status == find(folder).model == {}


class TestState:
    @pytest.mark.parametrize("state", ["finished", "stopped", "failed"])
    def test_is_what_the_run_has_said(self, folder, state):
        (folder / "status.json").write_text(json.dumps({"state": state}))
        assert find(folder).state == state

    def test_of_a_run_whose_process_lives(self, folder):
        (folder / "status.json").write_text(json.dumps({"state": "running", "pid": os.getpid(), "host": platform.node(), "seen": 0}))
        assert find(folder).state == "running"

    def test_of_a_run_whose_process_is_gone(self, folder):
        gone = subprocess.Popen([sys.executable, "-c", ""])
        gone.wait()
        status = {"state": "running", "pid": gone.pid, "host": platform.node(), "seen": time.time()}
        (folder / "status.json").write_text(json.dumps(status))
        assert find(folder).state == "killed"

    @pytest.mark.parametrize("ago, state", [(5, "running"), (5000, "killed")])
    def test_of_a_run_on_another_machine(self, folder, ago, state):
        (folder / "status.json").write_text(json.dumps({"state": "running", "pid": 1, "host": "elsewhere", "seen": time.time() - ago}))
        assert find(folder).state == state

    @pytest.mark.parametrize("status", [{}, {"pid": "x", "host": None, "seen": "y"}])
    def test_of_a_status_that_says_nothing(self, status):
        assert not lives(status)

    @pytest.mark.parametrize("epochs, state", [(1, "unknown"), (2, "finished")])
    def test_of_an_older_folder(self, folder, epochs, state):
        (folder / "metrics.jsonl").write_text("".join(f'{{"epoch": {i + 1}}}\n' for i in range(epochs)))
        assert find(folder).state == state
