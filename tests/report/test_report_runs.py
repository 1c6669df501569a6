"""Runs of the training command and their reports: there however a run ends, never in its way, and the command on them repeats it."""

import json
import os
import shlex
import signal

import numpy as np
import pytest
import runs
from pages import Page
from runs import last_checkpoint, metrics, status

from minidl import report
from minidl import train as module
from minidl.report.folder import find
from minidl.train import app

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")
WRITE = report.write


@pytest.fixture
def place(tmp_path, monkeypatch):
    runs.place(tmp_path, monkeypatch)
    monkeypatch.setattr(report, "write", WRITE)
    return tmp_path


SMALL = ("--data", "digits.npz", "--model", "mlp", "--batch-size", 10)          # four minibatches an epoch
STATES = ("--data", "digits.npz", "--model", "nets:all_states", "--batch-size", 8, "--warm-up", 3, "--clip", 1, "--accumulate", 2,
          "--augment", "shift", "--normalise", "--epochs", 2)


def train(*words):
    return status(app, *words)


def page(folder):
    return Page((folder / "report.html").read_text())


def stop_at(monkeypatch, step):
    """Have Ctrl-C come after so many steps."""
    def count(self, run, loss):
        if run.step == step:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(module.StopOnSignal, "step", count)


def test_a_run_leaves_a_report(place, capsys):
    assert train(*SMALL, "--epochs", 2, "--out", "out") == 0
    assert "\n  report: out/report.html\n" in capsys.readouterr().out
    found = page(place / "out")
    assert "out finished" in found.text and "step 8 of 8" in found.text and "confusion" in found.sections
    assert find(place / "out").tests["counts"].sum() == 20


@pytest.mark.parametrize("words", [
    SMALL + ("--epochs", 2), STATES, (*STATES, "--optimizer", "adam"),
    (*STATES, "--optimizer", "kfac", "--factor-interval", "adaptive", "--inverse-interval", 3),
    (*SMALL, "--epochs", 1, "--model", "autoencoder"),
    (*SMALL, "--epochs", 1, "--schedule", "constant", "--lr", 0.2, "--momentum", 0, "--seed", 7, "--threads", 1)], ids=str)
def test_the_command_with_every_option_repeats_the_run(place, words):
    train(*words, "--out", "out")
    python, m, name, *rest = shlex.split(json.loads((place / "out" / "config.json").read_text())["repeat"])
    assert (python, m, name) == ("python", "-m", "minidl.train")
    assert train(*rest, "--out", "again") == 0
    assert metrics(place / "out") == metrics(place / "again") and last_checkpoint(place / "out") == last_checkpoint(place / "again")


def test_a_run_that_fails_leaves_its_report_and_says_where(place, capsys):
    assert train(*SMALL[:2], "--model", "nets:Endless", "--batch-size", 10, "--epochs", 20, "--out", "out") == 1
    assert "Report: out/report.html" in capsys.readouterr().err
    found = page(place / "out")
    assert "The run has failed." in found.text and "the loss is nan at step 9" in found.text
    assert find(place / "out").steps["step"].tolist() == list(range(1, 9))


def test_a_run_that_got_nowhere_leaves_nothing(place):
    assert train(*SMALL, "--lr", 1e30, "--epochs", 1, "--schedule", "constant", "--out", "out", "--normalise") == 1
    left = sorted(path.name for path in (place / "out").glob("*")) if (place / "out").exists() else []
    assert left == [] or "report.html" in left          # of the first step there is something to be said, of none nothing


def test_a_run_that_is_stopped_and_goes_on_notes_each_step_once(place, monkeypatch):
    stop_at(monkeypatch, 6)
    assert train(*SMALL, "--epochs", 3, "--out", "out") == 130
    assert find(place / "out").state == "stopped" and "stopped" in page(place / "out").text
    stop_at(monkeypatch, None)
    assert train("--resume", "out") == 0
    found = find(place / "out")
    assert found.steps["step"].tolist() == list(range(1, 13)) and (np.diff(found.steps["seconds"]) >= 0).all()
    assert found.state == "finished" and "out finished" in page(place / "out").text


def test_a_page_that_cannot_be_made_is_told_once_and_ends_nothing(place, capsys, monkeypatch):
    def broken(folder):
        raise RuntimeError("no letters to draw with")

    monkeypatch.setattr(report, "write", broken)
    assert train(*SMALL, "--epochs", 2, "--out", "out") == 0
    captured = capsys.readouterr()
    assert captured.out.count("no letters to draw with") == 1 and "report: " not in captured.out and captured.err == ""


def test_without_the_extra_it_can_be_made_later(place, capsys, monkeypatch):
    with monkeypatch.context() as without:
        without.setattr(report, "missing", lambda: "Matplotlib is not installed")
        assert train(*SMALL, "--epochs", 2, "--out", "out") == 0
    out = capsys.readouterr().out
    assert "report     none: Matplotlib is not installed; pip install 'minidl[viz]'" in out and "report: " not in out
    assert not (place / "out" / "report.html").exists()
    report.write("out")
    assert "confusion" in page(place / "out").sections


def test_of_an_autoencoder(place):
    train(*SMALL, "--epochs", 1, "--model", "autoencoder", "--out", "out")
    assert "reconstructions" in page(place / "out").sections


def test_of_vectors(place):
    train("--data", "vectors.npz", "--model", "mlp", "--epochs", 1, "--out", "out")
    assert "confusion" in page(place / "out").sections
