"""A run's folder: made once, one process's at a time, whole at any moment, and never with a number that is not finite."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import runs

from minidl import nn, optim, record
from minidl.data import Loader
from minidl.errors import CheckpointError, ConfigError, NumericsError
from minidl.loop import fit
from minidl.record import Record, claimed, command, new_folder, read_config
from minidl.run import Run

X, Y = np.random.default_rng(0).standard_normal((12, 4)).astype(np.float32), np.arange(12) % 2
CONFIG = {"options": {}, "classes": [], "input_shape": [], "normalise": None, "commands": []}


def started(folder, epochs=2):
    """A Record in a folder, and the Run that it keeps."""
    model = nn.Sequential(nn.Affine(4, 4, generator=0), nn.BatchNorm(4), nn.Affine(4, 2, generator=1))
    keeper = Record(folder, CONFIG)
    run = Run(model, optim.Adam(model), Loader((X, Y), batch_size=4), epochs)
    keeper.start(run)
    return keeper, run


class TestRecord:
    def test_leaves_config_metrics_and_checkpoints(self, tmp_path):
        _, run = started(tmp_path)
        fit(run.model, run.loader, (X, Y), run.optimizer, 3, [Record(tmp_path, CONFIG)])
        assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "config.json", "metrics.jsonl"]
        assert len(list((tmp_path / "checkpoint").iterdir())) == 2
        assert [line["epoch"] for line in runs.metrics(tmp_path)] == [1, 2, 3]

    def test_has_a_checkpoint_before_the_first_step(self, tmp_path):
        keeper, _ = started(tmp_path)
        assert keeper.checkpoints.latest().rest["run"]["step"] == 0

    @pytest.mark.parametrize("every, steps", [(None, [0, 3, 6]), (2, [0, 2, 3, 4, 6]), (3, [0, 3, 6]), (1, [0, 1, 2, 3, 4, 5, 6])])
    def test_writes_where_it_is_due_and_each_step_once(self, tmp_path, every, steps):
        _, run = started(tmp_path / "unused")
        keeper = Record(tmp_path, CONFIG, keep=99, every=every)
        written = []
        save = keeper.checkpoints.save
        keeper.checkpoints.save = lambda step, *state: (written.append(step), save(step, *state))
        fit(run.model, run.loader, None, run.optimizer, 2, [keeper])
        assert written == steps == list(keeper.checkpoints.files())

    def test_knows_the_last_checkpoint_on_the_way(self, tmp_path):
        keeper, run = started(tmp_path)
        assert keeper.saved(run) == 0
        for step in (3, 7):
            run.step = step
            keeper.save(run)
        another = Record(tmp_path, CONFIG)                      # of a process that has written none of them
        found = []
        for step in (7, 8, 6, 2):
            run.step = step
            found.append(another.saved(run))
        assert found == [7, 7, 3, None]

    def test_of_a_process_that_does_not_lead_writes_nothing(self, tmp_path):
        _, run = started(tmp_path / "unused")
        run.team.rank = 1
        keeper = Record(tmp_path / "run", CONFIG, every=1)
        fit(run.model, run.loader, (X, Y), run.optimizer, 1, [keeper], team=run.team)
        assert not (tmp_path / "run").exists()

    def test_has_what_the_exchange_owes_of_all_ranks(self, tmp_path):
        owed = {"up.float32": np.arange(6, dtype=np.float32).reshape(2, 3)}
        keeper, run = started(tmp_path)
        run.team.state = lambda: owed
        run.step = 3
        keeper.save(run)
        found = keeper.checkpoints.latest()
        np.testing.assert_array_equal(found.arrays["exchange.up.float32"], owed["up.float32"])
        run.load_state(found.arrays, found.rest)
        assert list(run.owed) == ["up.float32"]

    def test_cuts_the_metrics_back_to_the_checkpoint(self, tmp_path):
        keeper, run = started(tmp_path)
        (tmp_path / "metrics.jsonl").write_text('{"epoch": 1}\n{"epoch": 2}\n{"epo')
        run.history = [{"epoch": 1}]
        keeper.start(run)
        assert runs.metrics(tmp_path) == [{"epoch": 1}]

    def test_removes_what_a_killed_process_left_half_written(self, tmp_path):
        keeper, run = started(tmp_path)
        for leftover in (tmp_path / ".metrics.jsonl.7.tmp", tmp_path / "checkpoint" / ".step-000000003.safetensors.7.tmp"):
            leftover.write_bytes(b"half")
        keeper.start(run)
        assert not list(tmp_path.rglob("*.tmp"))

    @pytest.mark.parametrize("what", ["model.0.w", "model.1.running_var", "optimizer.2.b.v"])
    def test_never_writes_a_number_that_is_not_finite(self, tmp_path, what):
        keeper, run = started(tmp_path)
        kind, path = what.split(".", 1)
        if kind == "optimizer":
            run.optimizer.state["2.b"]["v"][0] = np.inf
        elif "running" in path:
            run.model[1].running_var[0] = np.nan
        else:
            run.model[0].w.data[0, 0] = -np.inf
        before = {file: file.read_bytes() for file in tmp_path.rglob("*.*")}
        run.step = 5
        with pytest.raises(NumericsError, match=f"^{what} is no longer finite after step 5"):
            keeper.save(run)
        assert {file: file.read_bytes() for file in tmp_path.rglob("*.*")} == before

    def test_discards_what_it_wrote_and_nothing_else(self, tmp_path):
        keeper, _ = started(tmp_path / "run")
        keeper.discard()
        assert not (tmp_path / "run").exists()
        keeper, _ = started(tmp_path / "run")
        (tmp_path / "run" / "notes.txt").touch()
        keeper.discard()
        assert [path.name for path in (tmp_path / "run").iterdir()] == ["notes.txt"]


class TestNewFolder:
    @pytest.fixture(autouse=True)
    def here(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)

    def test_counts_up_to_the_next_free_name(self):
        assert [str(new_folder(None, "digits-mlp")) for _ in range(3)] == ["runs/digits-mlp", "runs/digits-mlp-2", "runs/digits-mlp-3"]

    def test_is_the_one_that_was_asked_for(self, tmp_path):
        assert new_folder(tmp_path / "a" / "b", "digits-mlp") == tmp_path / "a" / "b"
        assert (tmp_path / "a" / "b").is_dir()

    def test_cannot_be_where_a_file_is(self, tmp_path):
        (tmp_path / "file").touch()
        for out in (tmp_path / "file", tmp_path / "file" / "run"):
            with pytest.raises(ConfigError, match="cannot be made"):
                new_folder(out, "")

    def test_cannot_be_where_nobody_may_write(self, tmp_path):
        tmp_path.chmod(0o500)
        if os.access(tmp_path, os.W_OK):
            pytest.skip("root may write everywhere")
        with pytest.raises(ConfigError, match="Permission denied"):
            new_folder(tmp_path / "run", "")

    @pytest.mark.process
    def test_two_processes_at_once_get_two_folders(self):
        code = "from minidl.record import new_folder\nfor _ in range(50): print(new_folder(None, 'run'))"
        both = [subprocess.Popen([sys.executable, "-c", code], env=runs.environment(), stdout=subprocess.PIPE, text=True) for _ in range(2)]
        names = [name for each in both for name in each.communicate()[0].split()]
        assert len(names) == len(set(names)) == 100


class TestClaimed:
    def test_a_folder_belongs_to_one_at_a_time(self, tmp_path):
        with claimed(tmp_path), pytest.raises(ConfigError, match="another process is training in this folder"), claimed(tmp_path):
            pass
        with claimed(tmp_path):
            pass

    def test_one_that_should_be_empty_is_looked_at(self, tmp_path):
        with claimed(tmp_path, empty=True):
            (tmp_path / "file").touch()
        with pytest.raises(ConfigError, match="the folder is not empty"), claimed(tmp_path, empty=True):
            pass


class TestReadConfig:
    def test_is_what_was_written(self, tmp_path):
        started(tmp_path)
        assert read_config(tmp_path) == CONFIG

    @pytest.mark.parametrize("content, says", [
        ("[", "cannot be read"), ("[]", "cannot be read"), ("5", "cannot be read"), (b"\xff\xfe", "cannot be read"),
        ("{}", "it has no 'options'"), (json.dumps(CONFIG | {"input_shape": 3}), "input_shape is 3"),
    ])
    def test_one_that_is_damaged_is_an_error(self, tmp_path, content, says):
        (tmp_path / "config.json").write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(CheckpointError, match=says):
            read_config(tmp_path)

    def test_what_is_no_run_says_why(self, tmp_path):
        (tmp_path / "file").touch()
        for path, why in ((".", "it has no config.json"), ("none", "it does not exist"), ("file", "it is a file")):
            with pytest.raises(CheckpointError, match=f"not the folder of a run: {why}"):
                read_config(tmp_path / path)


class TestCommand:
    def test_quotes_what_a_shell_would_take_apart(self):
        assert command("train", "--resume", "my run").endswith("-m minidl.train --resume 'my run'")

    def test_names_the_python_that_runs_now(self, monkeypatch, tmp_path):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(record.shutil, "which", lambda name: None)
        assert command("train").startswith(sys.executable)
        monkeypatch.setattr(record.shutil, "which", lambda name: sys.executable if name == "python3" else None)
        assert command("train") == "python3 -m minidl.train"
        monkeypatch.setattr(record.shutil, "which", lambda name: None)
        monkeypatch.setattr(sys, "executable", str(tmp_path / ".venv" / "bin" / "python"))
        assert command("train") == ".venv/bin/python -m minidl.train"
