"""The training command: what it does and leaves behind, and that nothing which happens to it loses more than can be computed again."""

import errno
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import runs
from runs import last_checkpoint, metrics, process, status

from minidl import checkpoint, display, loop
from minidl import train as module
from minidl.train import app

place = pytest.fixture(runs.place)

SMALL = ("--data", "digits.npz", "--model", "mlp", "--batch-size", 10)          # four minibatches an epoch
# everything that has a state: statistics, dropout, a schedule, augmentation, and what an optimizer remembers; five minibatches an epoch
EVERYWHERE = ("--data", "digits.npz", "--model", "nets:all_states", "--batch-size", 8, "--warm-up", 3, "--clip", 1,
              "--accumulate", 2, "--augment", "shift", "--normalise", "--epochs", 3, "--checkpoint-every", 2)
ALL_STATES = (*EVERYWHERE, "--optimizer", "adam")
NATURAL = (*EVERYWHERE, "--optimizer", "kfac", "--factor-interval", "adaptive", "--inverse-interval", 3)


def train(*words):
    return status(app, *words)


def stop_at(monkeypatch, step):
    """Have Ctrl-C come after so many steps, or never."""
    def count(self, run, loss):
        if run.step == step:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(module.StopOnSignal, "step", count)


def steps(folder):
    """The steps of which there are checkpoints."""
    return list(checkpoint.Checkpoints(folder / "checkpoint").files())


class TestARun:
    def test_without_options_is_lenet_on_digits(self, place, capsys, monkeypatch):
        monkeypatch.setitem(module.settle.__globals__["USUAL_EPOCHS"], "digits", 1)
        assert train() == 0
        out = capsys.readouterr().out
        for words in (r"data +digits: 1,437 examples to train on, 360 to test on", r"model +lenet, 31,294 parameters",
                      r"device +cpu, \d+ threads?", r"run +runs/digits-lenet", r"results: runs/digits-lenet",
                      r"classify images: .* -m minidl.predict runs/digits-lenet IMAGE"):
            assert re.search(words, out), words

    def test_leaves_its_metrics(self, place):
        train(*SMALL, "--epochs", 2, "--out", "out")
        lines = [json.loads(line) for line in (place / "out" / "metrics.jsonl").read_text().splitlines()]
        assert [line["epoch"] for line in lines] == [1, 2]
        assert set(lines[0]) == {"epoch", "step", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "seconds",
                                 "images_per_second", "phases", "hidden", "memory"}

    def test_leaves_a_config_with_every_option_settled(self, place):
        train(*SMALL, "--epochs", 1, "--normalise", "--out", "out")
        config = json.loads((place / "out" / "config.json").read_text())
        options = config["options"]
        assert (options["lr"], options["momentum"], options["augment"], options["seed"]) == (0.05, 0.9, "none", 0)
        assert options["data"] == str(place / "digits.npz")         # so that it can be resumed from any folder
        assert config["classes"] == list("0123456789") and config["input_shape"] == [1, 8, 8]
        assert len(config["normalise"]["mean"]) == 1
        assert not {"out", "resume", "config", "eval_only", "typed", "filed"} & set(options)

    def test_leaves_the_newest_checkpoints(self, place):
        train(*SMALL, "--epochs", 3, "--out", "out", "--keep", 2)
        assert steps(place / "out") == [8, 12]

    def test_with_kfac_leaves_the_seconds_of_its_phases_too(self, place):
        train(*SMALL, "--epochs", 2, "--optimizer", "kfac", "--out", "out")
        for line in map(json.loads, (place / "out" / "metrics.jsonl").read_text().splitlines()):
            assert min(line["phases"][name] for name in ("forward", "backward", "curvature", "normalization", "update", "data")) > 0
            assert line["phases"]["curvature"] < line["seconds"] and line["hidden"] == {} and line["memory"] > 2**20

    @pytest.mark.parametrize("words, says", [
        ((), "sampled Fisher, factors every 10 steps, inverses every 100 steps"),
        (("--inverse-interval", 10), "sampled Fisher, factors and inverses every 10 steps"),
        (("--fisher", "empirical", "--factor-interval", 1), "empirical Fisher, factors every step, inverses every 100 steps"),
        (("--factor-interval", "adaptive", "--inverse-interval", 5), "factors when they change, inverses every 5 steps"),
    ])
    def test_with_kfac_says_what_it_divides_by(self, place, capsys, words, says):
        assert train(*SMALL, "--epochs", 1, "--optimizer", "kfac", "--damping", 0.25, "--kl-clip", 0.01, *words) == 0
        out = capsys.readouterr().out
        assert re.search(r"optimizer +kfac, learning rate 0\.03, cosine\n +damping 0\.25, KL clip 0\.01, ", out) and says in out

    def test_with_kfac_learns(self, place):
        assert train("--data", "digits", "--optimizer", "kfac", "--epochs", 3, "--out", "out") == 0
        assert metrics(place / "out")[-1]["test_accuracy"] > 0.9

    def test_takes_the_next_free_name(self, place):
        for _ in range(2):
            assert train(*SMALL, "--epochs", 0) == 0
        assert sorted(path.name for path in (place / "runs").iterdir()) == ["digits-mlp", "digits-mlp-2"]

    @pytest.mark.parametrize("words", [ALL_STATES, NATURAL], ids=["adam", "kfac"])
    def test_is_the_same_again_from_the_same_seed(self, place, words):
        for out, seed in (("a", 1), ("b", 1), ("c", 2)):
            train(*words, "--seed", seed, "--out", out)
        assert last_checkpoint(place / "a") == last_checkpoint(place / "b") != last_checkpoint(place / "c")

    def test_of_no_epochs_is_a_model_that_can_be_used(self, place, capsys):
        assert train(*SMALL, "--epochs", 0, "--out", "out") == 0
        assert steps(place / "out") == [0] and metrics(place / "out") == []
        assert train("--eval-only", "--resume", "out") == 0

    @pytest.mark.parametrize("words", [
        ("--data", "vectors.npz", "--model", "mlp"), ("--data", "vectors.npz", "--model", "mlp", "--normalise"),
        ("--data", "digits.npz", "--batch-size", 1000), ("--data", "digits.npz", "--accumulate", 100),
        ("--data", "digits.npz", "--augment", "crop-flip"), ("--data", "digits.npz", "--model", "autoencoder"),
        ("--data", "digits.npz", "--optimizer", "adamw", "--schedule", "step"), ("--data", "digits.npz", "--schedule", "polynomial"),
    ])
    def test_may_be_of_any_kind(self, place, words):
        assert train(*words, "--epochs", 1, "--out", "out") == 0
        assert len(metrics(place / "out")) == 1

    def test_may_be_of_one_class_or_of_classes_that_are_left_out(self, place):
        for name, labels in (("one", np.zeros(20, int)), ("gaps", np.arange(20) % 2 * 5)):
            np.savez(place / f"{name}.npz", x=np.random.default_rng(0).random((20, 1, 8, 8)), y=labels)
            assert train("--data", f"{name}.npz", "--model", "mlp", "--epochs", 1) == 0

    def test_may_be_of_a_folder_of_images(self, place):
        image = pytest.importorskip("PIL.Image", reason="Pillow reads images")
        for k in range(12):
            (place / "photos" / f"class{k % 2}").mkdir(parents=True, exist_ok=True)
            image.fromarray(np.full((8, 8, 3), 20 * k, np.uint8)).save(place / "photos" / f"class{k % 2}" / f"{k}.png")
        assert train("--data", "photos/", "--epochs", 1) == 0
        config = json.loads((place / "runs" / "photos-lenet" / "config.json").read_text())
        assert config["classes"] == ["class0", "class1"] and config["input_shape"] == [3, 8, 8]

    def test_runs_with_as_many_threads_as_it_is_told(self, place, capsys):
        pytest.importorskip("threadpoolctl", reason="threadpoolctl sets the number of threads")
        train(*SMALL, "--epochs", 0, "--threads", 1)
        assert re.search(r"device +cpu, 1 thread\n", capsys.readouterr().out)

    def test_threads_need_a_library_and_name_it(self, place, capsys, monkeypatch):
        monkeypatch.setitem(sys.modules, "threadpoolctl", None)
        assert train(*SMALL, "--epochs", 0, "--threads", 1) == 1
        assert "pip install 'minidl[fast]'" in capsys.readouterr().err
        assert train(*SMALL, "--epochs", 0) == 0

    def test_the_loop_is_at_hand_where_the_command_is(self):
        assert module.fit is loop.fit


class TestRemarks:
    """What K-FAC does not cover is listed when the run begins; all other warnings are Python's."""

    WORDS = ("--data", "digits.npz", "--model", "nets:Scaled", "--optimizer", "kfac", "--epochs", 1)

    def test_stand_between_the_lines(self, place, capsys):
        with pytest.warns(UserWarning, match="a warning of the model's own") as others:
            assert train(*self.WORDS) == 0
        said, = re.findall(r"seconds\n  (KFAC: .*)\n      1 ", capsys.readouterr().out)
        assert said.startswith("KFAC: these parameters take the plain gradient: temperature (used by")
        assert not [warning for warning in others if "KFAC" in str(warning.message)]

    @pytest.mark.process
    @pytest.mark.parametrize("filters", ["default", "error:KFAC", "ignore"])
    def test_are_said_whatever_becomes_of_other_warnings(self, place, filters):
        ended = process("train", *self.WORDS, env=runs.environment() | {"PYTHONWARNINGS": filters})
        assert ended.returncode == 0 and ended.stdout.count("KFAC: ") == 1 and "KFAC" not in ended.stderr
        assert ("UserWarning: a warning of the model's own" in ended.stderr) == (filters != "ignore")


def test_what_is_told_is_told_as_it_is(place, capsys):
    """Rich has pictures for :x: and the like."""
    assert train(*SMALL, "--compress", "topk:x:") == 2
    assert train(*SMALL, "--epochs", 0, "--out", "run:x:") == 0
    captured = capsys.readouterr()
    assert "--compress topk:x::" in captured.err and "results: run:x:" in captured.out


class TestOut:
    def test_that_is_not_empty_is_left_alone(self, place, capsys):
        train(*SMALL, "--epochs", 1, "--out", "out")
        before = {path: path.read_bytes() for path in (place / "out").rglob("*.*")}
        assert train(*SMALL, "--out", "out") == 2
        assert "--out out: the folder is not empty" in capsys.readouterr().err
        assert {path: path.read_bytes() for path in (place / "out").rglob("*.*")} == before

    def test_that_cannot_be_made_is_an_error(self, place, capsys):
        (place / "file").touch()
        assert train(*SMALL, "--out", "file/out") == 2
        assert "file/out, cannot be made: Not a directory" in capsys.readouterr().err

    def test_is_not_for_a_run_that_is_resumed(self, place, capsys):
        train(*SMALL, "--epochs", 0, "--out", "out")
        assert train("--resume", "out", "--out", "other") == 2
        assert "--out would not be used" in capsys.readouterr().err

    def test_is_one_run_s_at_a_time(self, place, capsys):
        train(*SMALL, "--epochs", 0, "--out", "out")
        with module.claimed(place / "out"):
            assert train("--resume", "out", "--epochs", 1) == 2
        assert "another process is training in this folder" in capsys.readouterr().err


class TestResume:
    def test_of_a_finished_run_says_so_and_how_to_go_on(self, place, capsys):
        train(*SMALL, "--epochs", 2, "--out", "out")
        before = last_checkpoint(place / "out"), metrics(place / "out")
        capsys.readouterr()
        assert train("--resume", "out") == 0
        said = capsys.readouterr().out
        assert re.search(r"has finished its 2 epochs. To train on: .*--resume out --epochs 4", said)
        assert "images/s" in said                              # its epochs stand under their heads
        assert (last_checkpoint(place / "out"), metrics(place / "out")) == before

    def test_with_more_epochs_stretches_the_schedule_and_is_remembered(self, place, capsys):
        train(*SMALL, "--epochs", 2, "--out", "out", "--lr", 0.1)
        capsys.readouterr()
        assert train("--resume", "out", "--epochs", 4) == 0
        assert "learning rate 0.1, cosine, now 0.05" in capsys.readouterr().out         # half way, where it was 0
        assert [line["epoch"] for line in metrics(place / "out")] == [1, 2, 3, 4]
        assert json.loads((place / "out" / "config.json").read_text())["options"]["epochs"] == 4

    def test_works_from_any_folder(self, place, monkeypatch):
        train(*SMALL, "--epochs", 1, "--out", "out")
        (place / "elsewhere").mkdir()
        monkeypatch.chdir(place / "elsewhere")
        assert train("--resume", "../out", "--epochs", 2) == 0

    def test_of_a_run_that_has_no_checkpoint_yet_begins_it(self, place, capsys):
        train(*ALL_STATES, "--out", "whole")
        train(*ALL_STATES, "--out", "out")
        for file in (place / "out" / "checkpoint").iterdir():
            file.unlink()
        capsys.readouterr()
        assert train("--resume", "out") == 0
        assert "out, from the start: it has no checkpoint yet" in capsys.readouterr().out
        assert last_checkpoint(place / "out") == last_checkpoint(place / "whole")

    def test_passes_over_a_checkpoint_that_is_damaged_and_comes_to_the_same_end(self, place, capsys):
        train(*ALL_STATES, "--out", "out")
        end, lines = last_checkpoint(place / "out"), metrics(place / "out")
        os.truncate(place / "out" / "checkpoint" / "step-000000015.safetensors", 1000)
        assert train("--resume", "out") == 0
        assert "step-000000015.safetensors is damaged and was passed over" in capsys.readouterr().out
        assert (last_checkpoint(place / "out"), metrics(place / "out")) == (end, lines)

    def test_without_any_checkpoint_that_can_be_read_is_an_error(self, place, capsys):
        train(*SMALL, "--epochs", 1, "--out", "out")
        for file in (place / "out" / "checkpoint").iterdir():
            file.write_bytes(b"")
        assert train("--resume", "out", "--epochs", 2) == 1
        assert "none of those in out/checkpoint can be read" in capsys.readouterr().err

    def test_with_another_model_is_an_error_and_the_run_stays_what_it_was(self, place, capsys):
        train(*SMALL, "--epochs", 1, "--out", "out")
        assert train("--resume", "out", "--model", "lenet", "--epochs", 2) == 1
        assert "this LeNet and the state do not fit together" in capsys.readouterr().err
        assert train("--resume", "out", "--epochs", 2) == 0

    @pytest.mark.parametrize("one, other, says", [("sgd", "kfac", "this is not the state of a KFAC"), ("kfac", "sgd", "this SGD and"),
                                                  ("kfac", "adam", "this Adam and"), ("sgd", "adam", "this Adam and")])
    def test_with_another_optimizer_is_an_error_and_the_run_stays_what_it_was(self, place, capsys, one, other, says):
        train(*SMALL, "--epochs", 1, "--optimizer", one, "--out", "out")
        assert train("--resume", "out", "--optimizer", other, "--epochs", 2) == 1
        assert says in capsys.readouterr().err
        assert train("--resume", "out", "--epochs", 2) == 0

    @pytest.mark.parametrize("model", ["mlp", "lenet"])
    def test_of_kfac_in_mid_epoch_comes_to_the_same_end(self, place, monkeypatch, model):
        """With its usual options: the step at which it goes on is none at which anything is renewed."""
        words = ("--data", "digits", "--model", model, "--optimizer", "kfac", "--epochs", 2, "--batch-size", 64, "--accumulate", 2)
        train(*words, "--out", "whole")
        stop_at(monkeypatch, 17)
        assert train(*words, "--out", "out") == 130 and steps(place / "out")[-1] == 17
        stop_at(monkeypatch, None)
        assert train("--resume", "out") == 0
        assert last_checkpoint(place / "out") == last_checkpoint(place / "whole") and metrics(place / "out") == metrics(place / "whole")

    def test_with_another_order_in_the_middle_of_an_epoch_is_an_error(self, place, capsys, monkeypatch):
        monkeypatch.setenv("AT", "4")
        monkeypatch.setenv("SIGNALS", "SIGINT")
        assert train(*SMALL, "--model", "nets:Signalled", "--epochs", 2, "--batch-size", 5, "--out", "out") == 130
        assert train("--resume", "out", "--batch-size", 7) == 1
        assert "from the middle of an epoch, which this loader cuts into other minibatches" in capsys.readouterr().err

    def test_keeps_the_normalisation(self, place, capsys):
        train(*SMALL, "--epochs", 1, "--normalise", "--out", "out")
        numbers = json.loads((place / "out" / "config.json").read_text())["normalise"]
        with np.load("digits.npz") as content:
            np.savez("brighter.npz", **{name: x + 50 if name.startswith("x") else x for name, x in content.items()})
        assert train("--resume", "out", "--epochs", 2, "--data", "brighter.npz") == 0
        assert json.loads((place / "out" / "config.json").read_text())["normalise"] == numbers
        assert train("--resume", "out", "--epochs", 3, "--no-normalise") == 2
        assert "--normalise cannot be changed" in capsys.readouterr().err

    @pytest.mark.parametrize("folder, says", [("none", "it does not exist"), (".", "it has no config.json"), ("nets.py", "it is a file")])
    def test_of_what_is_no_run_is_an_error(self, place, capsys, folder, says):
        assert train("--resume", folder) == 1
        assert f"is not the folder of a run: {says}" in capsys.readouterr().err


class TestWeights:
    def test_are_where_a_run_starts_from(self, place):
        train(*SMALL, "--epochs", 2, "--out", "old")
        for weights in ("old", "old/checkpoint/step-000000008.safetensors"):
            assert train(*SMALL, "--epochs", 0, "--weights", weights, "--out", f"new{len(weights)}") == 0
            old, new = (checkpoint.Checkpoints(place / name / "checkpoint").latest().arrays for name in ("old", f"new{len(weights)}"))
            assert all((old[name] == x).all() for name, x in new.items() if name.startswith("model."))

    def test_may_be_a_plain_file(self, place):
        from safetensors.numpy import save_file

        save_file({"1.w": np.ones((64, 10), np.float32), "1.b": np.zeros(10, np.float32)}, "w.safetensors")
        assert train("--data", "digits.npz", "--model", "nets:only_the_shape", "--weights", "w.safetensors", "--epochs", 1) == 0

    def test_are_not_needed_again_once_the_run_has_begun(self, place):
        train(*SMALL, "--epochs", 1, "--out", "old")
        train(*SMALL, "--epochs", 1, "--out", "new", "--weights", "old")
        shutil.rmtree("old")
        assert train("--resume", "new", "--epochs", 2) == 0

    def test_are_taken_again_if_it_has_not(self, place):
        train(*SMALL, "--epochs", 1, "--out", "old")
        train(*SMALL, "--epochs", 1, "--out", "new", "--weights", "old")
        end = last_checkpoint(place / "new")
        shutil.rmtree("new/checkpoint")
        assert train("--resume", "new") == 0 and last_checkpoint(place / "new") == end

    @pytest.mark.parametrize("make, says", [
        (lambda file: None, "there is no file w"), (lambda file: file.write_bytes(b"x"), "w cannot be read"),
        (lambda file: checkpoint.save(file, {"layers.1.w": np.ones((3, 3))}), "this MLP and the state do not fit together"),
        (lambda file: file.mkdir(), "there is no checkpoint in it"),
    ])
    def test_that_do_not_fit_are_an_error_and_leave_no_run(self, place, capsys, make, says):
        make(place / "w")
        assert train(*SMALL, "--weights", "w") == 1
        assert says in capsys.readouterr().err
        assert not list((place / "runs").iterdir())

    def test_are_the_run_s_own_when_it_is_resumed(self, place, capsys):
        train(*SMALL, "--epochs", 0, "--out", "out")
        assert train("--resume", "out", "--weights", "out") == 2
        assert "--weights would not be used" in capsys.readouterr().err


class TestEvalOnly:
    def test_gives_the_last_metrics_of_the_run(self, place, capsys):
        train(*SMALL, "--epochs", 2, "--normalise", "--out", "out")
        last = metrics(place / "out")[-1]
        weights = "out/checkpoint/step-000000008.safetensors"
        for words in (("--resume", "out"), ("--weights", "out"), (*SMALL[:4], "--normalise", "--weights", weights)):
            capsys.readouterr()
            assert train("--eval-only", *words) == 0
            expected = f"test loss {last['test_loss']:.4f}, accuracy {100 * last['test_accuracy']:.2f} %"
            assert expected in capsys.readouterr().out
        assert [path.name for path in place.iterdir() if path.name in ("runs", "out")] == ["out"]

    def test_takes_what_the_run_has_learned_not_what_it_started_from(self, place, capsys):
        train(*SMALL, "--epochs", 1, "--out", "old")
        train(*SMALL, "--epochs", 3, "--out", "new", "--weights", "old")
        capsys.readouterr()
        assert train("--eval-only", "--resume", "new") == 0
        assert "new/checkpoint/step-000000012.safetensors" in capsys.readouterr().out

    def test_says_if_it_could_not_take_the_newest(self, place, capsys):
        train(*SMALL, "--epochs", 2, "--out", "out")
        os.truncate(place / "out" / "checkpoint" / "step-000000008.safetensors", 9)
        assert train("--eval-only", "--resume", "out") == 0
        assert "step-000000008.safetensors is damaged, step-000000004.safetensors is taken instead" in capsys.readouterr().err


class TestALossThatIsNotFinite:
    def test_stops_the_run_names_the_step_and_keeps_the_last_good_checkpoint(self, place, capsys):
        assert train(*SMALL, "--model", "nets:Endless", "--epochs", 9, "--checkpoint-every", 3, "--out", "out") == 1
        error = capsys.readouterr().err
        assert "the loss is nan at step 9 (epoch 3, minibatch 1)" in error or "the loss is inf at step 9" in error
        assert "The last good checkpoint is of step 8." in error and "--resume out --lr 0.005" in error
        assert steps(place / "out") == [6, 8] and len(metrics(place / "out")) == 2
        assert all(np.isfinite(x).all() for x in checkpoint.Checkpoints(place / "out" / "checkpoint").latest().arrays.values())

    def test_at_a_learning_rate_that_is_far_too_large(self, place, capsys):
        assert train(*SMALL, "--lr", 1e20, "--epochs", 3, "--out", "out") == 1
        error = capsys.readouterr().err
        assert re.match(r"Error: fit: the loss is (nan|inf) at step [23] ", error) and "Warning" not in error
        assert "Nothing was learned before it. Start again, for example with --lr 1e+19." in error
        assert steps(place / "out") == [0] and metrics(place / "out") == []

    def test_weights_that_are_not_finite_are_never_written(self, place, capsys):
        assert train(*SMALL, "--lr", 1e300, "--checkpoint-every", 1, "--epochs", 3, "--out", "out") == 1
        assert "is no longer finite after step 1" in capsys.readouterr().err
        assert steps(place / "out") == [0]


class TestAFullDisk:
    def test_leaves_the_last_good_checkpoint_and_says_so(self, place, capsys, monkeypatch):
        real, count = os.fsync, iter(range(100))

        def fsync(handle):
            if next(count) > 14:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            real(handle)

        with monkeypatch.context() as full:
            full.setattr(os, "fsync", fsync)
            assert train(*ALL_STATES, "--out", "out") == 1
        error = capsys.readouterr().err
        assert "could not be written: No space left on device" in error and "The last good checkpoint is of step" in error
        assert not list(place.rglob("*.tmp"))
        assert train("--resume", "out") == 0                # once there is room again
        train(*ALL_STATES, "--out", "whole")
        assert last_checkpoint(place / "out") == last_checkpoint(place / "whole") and metrics(place / "out") == metrics(place / "whole")

    def test_from_the_start_leaves_no_run(self, place, capsys, monkeypatch):
        def full(handle):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", full)
        assert train(*SMALL, "--out", "out") == 1
        assert "No space left on device" in capsys.readouterr().err and not (place / "out").exists()

    @pytest.mark.process
    def test_of_a_real_process_with_a_limit_on_its_files(self, place):
        def limit():
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

        import resource

        train(*ALL_STATES, "--epochs", 0, "--warm-up", 0, "--out", "first")
        most = (place / "first" / "checkpoint" / "step-000000000.safetensors").stat().st_size + 100          # those with metrics are larger
        ended = process("train", *ALL_STATES, "--out", "out", preexec_fn=limit)
        assert ended.returncode == 1 and "could not be written: File too large" in ended.stderr, ended.stderr
        assert "Traceback" not in ended.stderr and not list(place.rglob("*.tmp"))
        assert process("train", "--resume", "out").returncode == 0


class TestSignals:
    """In this process: a model sends them, so that they come at a known moment."""

    @pytest.fixture
    def signalled(self, place, monkeypatch):
        def run(signals, at, *words):
            monkeypatch.setenv("AT", str(at))
            monkeypatch.setenv("SIGNALS", signals)
            code = train("--data", "digits.npz", "--model", "nets:Signalled", "--batch-size", 8, "--epochs", 3, "--out", "out", *words)
            monkeypatch.setenv("AT", "-1")
            return code

        return run

    @pytest.mark.parametrize("name, code", [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
    def test_one_ends_the_run_after_its_minibatch_with_all_saved(self, place, capsys, signalled, name, code):
        before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
        assert signalled(name, 7) == code
        assert "Stopped after step 7, in epoch 2. All is saved" in capsys.readouterr().out
        assert steps(place / "out") == [5, 7]
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before

    def test_what_is_printed_goes_on_with_the_run_to_the_same_end(self, place, capsys, signalled):
        signalled("SIGINT", 7)
        printed = capsys.readouterr().out.splitlines()[-1]
        _, _, name, *words = shlex.split(printed)
        assert name == "minidl.train" and train(*words) == 0
        signalled("", -1, "--out", "whole")
        assert last_checkpoint(place / "out") == last_checkpoint(place / "whole") and metrics(place / "out") == metrics(place / "whole")

    def test_a_second_ends_at_once_and_nothing_is_broken(self, place, capsys, signalled):
        assert signalled("SIGINT SIGINT", 7) == 130
        error = capsys.readouterr().err
        assert error.startswith("Stopped at once.\n  The last good checkpoint is of step 5.") and "--resume out" in error
        assert steps(place / "out") == [0, 5] and not list(place.rglob("*.tmp"))
        assert train("--resume", "out") == 0

    def test_in_the_last_minibatch_of_all_the_run_is_finished(self, place, capsys, signalled):
        assert signalled("SIGINT", 15) == 0
        assert len(metrics(place / "out")) == 3

    def test_before_the_first_step_there_is_nothing_to_go_on_with(self, place, capsys, monkeypatch):
        monkeypatch.setattr(module, "announced", lambda *args: os.kill(os.getpid(), signal.SIGTERM))
        assert train(*SMALL, "--out", "out") == 143
        assert capsys.readouterr().err == "Stopped at once.\n" and not (place / "out").exists()

    def test_while_the_first_checkpoint_is_written_there_is_one(self, place, capsys, monkeypatch):
        real, once = os.replace, iter([True])

        def replace(old, new):
            if next(once, False):
                os.kill(os.getpid(), signal.SIGINT)
            real(old, new)

        monkeypatch.setattr(os, "replace", replace)
        assert train(*SMALL, "--epochs", 1, "--out", "out") == 130
        assert "Stopped after step 0" in capsys.readouterr().out and steps(place / "out") == [0]
        assert train("--resume", "out") == 0

    def test_the_end_of_the_terminal_is_nothing_where_it_should_be_nothing(self, place, monkeypatch, signalled):
        before = signal.signal(signal.SIGHUP, signal.SIG_IGN)           # as nohup does
        try:
            assert signalled("SIGHUP", 7) == 0
        finally:
            signal.signal(signal.SIGHUP, before)


class TestSignalsOfSpares:
    """A process that only stands by ends when the others do, and is needed all the more where they are asked to stop."""

    def signals(self, spare=True):
        return module.StopOnSignal(lambda: None, lambda: spare)

    def test_a_first_one_is_for_the_others_and_a_second_ends_it(self):
        signals = self.signals()
        signals.received(signal.SIGTERM, None)
        assert signals.number == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt) as error:
            signals.received(signal.SIGINT, None)
        assert error.value.args == (signal.SIGINT,)

    def test_whoever_has_heard_one_and_is_needed_stops_too(self):
        signals, run = self.signals(), SimpleNamespace(stop=False)
        signals.received(signal.SIGTERM, None)
        signals.start(run)
        assert run.stop
        signals, run = self.signals(), SimpleNamespace(stop=False)
        signals.start(run)
        assert not run.stop

    def test_a_process_that_is_to_train_ends_before_it_has_begun(self):
        with pytest.raises(KeyboardInterrupt):
            self.signals(spare=False).received(signal.SIGTERM, None)


class TestFaults:
    def test_in_a_program_show_where_and_how_to_go_on(self, place, capsys):
        with pytest.raises(NameError, match="nothing") as error:
            train("--data", "digits.npz", "--model", "nets:Broken", "--epochs", 1, "--out", "out")
        assert "The last good checkpoint is of step 0" in error.value.__notes__[0]

    def test_before_the_first_step_leave_no_run(self, place, monkeypatch):
        def broken(*args, **options):
            raise RuntimeError("a fault")

        monkeypatch.setattr(display.Display, "start", broken)
        with pytest.raises(RuntimeError, match="a fault"):
            train(*SMALL, "--out", "out")
        assert not (place / "out").exists()

    def test_labels_that_the_model_does_not_know_leave_no_run(self, place, capsys):
        assert train("--data", "digits.npz", "--model", "nets:five_classes", "--out", "out") == 1
        assert "there are 5 classes" in capsys.readouterr().err and not (place / "out").exists()

    def test_too_little_memory_is_no_fault(self, place, capsys, monkeypatch):
        def too_much(*args, **options):
            raise MemoryError("Unable to allocate 1 TiB")

        monkeypatch.setattr(module, "fit", too_much)
        assert train(*SMALL, "--out", "out") == 1
        assert "Out of memory: Unable to allocate 1 TiB" in capsys.readouterr().err


# Real processes, really killed


KILLER = """
import builtins, io, os, signal, sys
from minidl import checkpoint, optim, train

point, when = sys.argv[1], int(sys.argv[2])
calls = 0

def killing(function, after=False):
    def call(*args, **options):
        global calls
        calls += 1
        if calls == when and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*args, **options)
        if calls == when:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return call

class HalfWritten(io.FileIO):
    def write(self, content):
        super().write(content[:len(content) // 2])
        killing(self.flush)()
        return super().write(content[len(content) // 2:])

if point == "in an update":
    optim.Adam.update = killing(optim.Adam.update, after=True)
    optim.SGD.update = killing(optim.SGD.update, after=True)            # K-FAC's inner rule
elif point == "in a write":
    checkpoint.open = HalfWritten
elif point == "before a rename":
    os.replace = killing(os.replace)
elif point == "after a rename":
    os.replace = killing(os.replace, after=True)
train.app(sys.argv[3:])
"""


@pytest.fixture(scope="module", params=[ALL_STATES, NATURAL], ids=["adam", "kfac"])
def words(request):
    """What is typed."""
    return [str(word) for word in request.param]


@pytest.fixture(scope="module")
def whole(words, tmp_path_factory):
    """The last checkpoint and the metrics of the run that nobody disturbed."""
    with pytest.MonkeyPatch.context() as patch:
        folder = runs.place(tmp_path_factory.mktemp("whole"), patch)
        ended = process("train", *words, "--out", "out")
        assert ended.returncode == 0, ended.stderr
        return last_checkpoint(folder / "out"), metrics(folder / "out")


@pytest.mark.process
class TestSigkill:
    def killed(self, point, when, words):
        """Type a command in a process that kills itself at a point, when it comes there for the so-manieth time."""
        return subprocess.run([sys.executable, "-c", KILLER, point, str(when), *words], env=runs.environment(), capture_output=True)

    def test_at_the_worst_moments_one_after_the_other(self, place, words, whole):
        moments = [("in an update", 15), ("in a write", 4), ("before a rename", 5), ("after a rename", 4), ("in an update", 20),
                   ("in a write", 2)]
        words = [*words, "--out", "out"]
        reached = []
        for point, when in moments:
            ended = self.killed(point, when, words)
            assert ended.returncode == -signal.SIGKILL, (point, ended.stderr)
            metrics(place / "out")                      # is whole at any moment
            reached.append(steps(place / "out")[-1])
            words = ["--resume", "out"]
        assert reached == sorted(reached) and 0 < reached[-1] < 15, reached
        ended = process("train", "--resume", "out")
        assert ended.returncode == 0, ended.stderr
        assert (last_checkpoint(place / "out"), metrics(place / "out")) == whole
        assert not list((place / "out").rglob("*.tmp"))

    def test_before_anything_was_written(self, place, words, whole):
        for when in (1, 2, 3):                          # the config, the first checkpoint, the metrics
            typed = [*words, "--out", f"out{when}"]
            assert self.killed("before a rename", when, typed).returncode == -signal.SIGKILL
            again = typed if when == 1 else ["--resume", f"out{when}"]
            if when == 1:                               # a folder with a temporary file alone
                for leftover in (place / "out1").iterdir():
                    leftover.unlink()
            assert train(*again) == 0
            assert (last_checkpoint(place / f"out{when}"), metrics(place / f"out{when}")) == whole

    def test_from_outside_at_any_time(self, place, words, whole):
        """A process that writes after each step is killed as soon as it has made some, again and again."""
        words = [*words, "--checkpoint-every", "1", "--out", "out"]
        for step in (2, 6, 11):
            running = subprocess.Popen([sys.executable, "-m", "minidl.train", *words], env=runs.environment() | {"SLOW": ""},
                                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            while running.poll() is None and max(steps(place / "out"), default=0) < step:
                time.sleep(0.001)
            running.kill()
            assert running.wait() == -signal.SIGKILL
            words = ["--resume", "out"]
        assert train("--resume", "out") == 0
        assert (last_checkpoint(place / "out"), metrics(place / "out")) == whole


@pytest.mark.process
class TestProcess:
    def test_ctrl_c_saves_and_what_it_prints_works_in_a_shell(self, place):
        words = ["--data", "digits", "--model", "mlp", "--epochs", "500", "--out", "my run"]
        running = subprocess.Popen([sys.executable, "-m", "minidl.train", *words], env=runs.environment(), stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, text=True)
        assert any(re.match(r" +2 ", line) for line in running.stdout)          # the second epoch is done
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=30)
        assert running.returncode == 130 and err == ""
        *_, said, printed = out.splitlines()
        assert "All is saved; to go on:" in said
        ended = subprocess.run(f"{printed.strip()} --epochs 3", shell=True, env=runs.environment(), capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
        assert len(metrics(place / "my run")) >= 3

    def test_two_at_once_get_two_folders(self, place):
        command = [sys.executable, "-m", "minidl.train", *map(str, SMALL), "--epochs", "1"]
        both = [subprocess.Popen(command, env=runs.environment(), stdout=subprocess.DEVNULL) for _ in range(2)]
        assert [each.wait() for each in both] == [0, 0]
        assert sorted(path.name for path in (place / "runs").iterdir()) == ["digits-mlp", "digits-mlp-2"]

    def test_what_it_writes_into_a_pipe_is_plain(self, place):
        ended = process("train", *SMALL, "--epochs", 1)
        assert ended.stderr == "" and "\x1b" not in ended.stdout and "\r" not in ended.stdout
        assert "1 x 8 x 8 numbers each" in ended.stdout and "results: runs/digits-mlp" in ended.stdout

    def test_a_name_that_the_terminal_cannot_show_does_not_end_the_run(self, place):
        ascii_only = runs.environment() | {"PYTHONIOENCODING": "ascii"}
        ended = process("train", *SMALL, "--epochs", 1, "--out", "Übung", env=ascii_only)
        assert ended.returncode == 0 and "results: ?bung" in ended.stdout

    def test_errors_go_to_stderr_without_a_traceback_and_faults_with_one(self, place):
        ended = process("train", "--data", "none.npz")
        assert (ended.returncode, ended.stdout) == (1, "") and ended.stderr.startswith("Error: ") and "Traceback" not in ended.stderr
        ended = process("train", *SMALL, "--lr", 1e20)
        assert ended.returncode == 1 and ended.stderr.startswith("Error: fit: the loss is ") and "Warning" not in ended.stderr
        ended = process("train", "--no-such-option")
        assert (ended.returncode, ended.stdout) == (2, "") and "No such option" in ended.stderr
        ended = process("train", "--data", "digits.npz", "--model", "nets:Broken", "--epochs", 1)
        assert ended.returncode == 1 and "Traceback" in ended.stderr and "NameError" in ended.stderr and "--resume" in ended.stderr
