"""What a trained model takes images for, and what is said where it cannot tell."""

import os
import shutil

import numpy as np
import pytest
import runs
import typer

from minidl import data, predict
from minidl.train import app as train_app

image = pytest.importorskip("PIL.Image", reason="Pillow reads images")
place = pytest.fixture(runs.place)

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
app.command()(predict.main)


@pytest.fixture
def run(place, capsys):
    """A run on digits, light on dark, that has learned its forty images by heart; 0.png is one of a zero."""
    words = ("--data", "digits.npz", "--model", "mlp", "--epochs", 15, "--normalise", "--label-smoothing", 0, "--out", "run")
    assert runs.status(train_app, *words) == 0
    with np.load("digits.npz") as content:
        for digit in range(3):
            pixels = content["x_train"][content["y_train"] == digit][0, 0]
            image.fromarray(pixels).save(f"{digit}.png")
    capsys.readouterr()
    return place / "run"


def predicted(capsys, *words):
    """Type the command: exit status, the words of each line, what was said on stderr."""
    code = runs.status(app, *words)
    captured = capsys.readouterr()
    return code, [line.split() for line in captured.out.splitlines()], captured.err


class TestPredict:
    def test_names_the_classes_of_images_with_their_probabilities(self, run, capsys):
        code, lines, error = predicted(capsys, "run", "2.png", "0.png", "1.png")
        assert (code, error) == (0, "")
        assert [line[:2] for line in lines] == [["2.png", "2"], ["0.png", "0"], ["1.png", "1"]]
        for _, *pairs in lines:
            shares = [float(share) for share in pairs[1::3]]
            assert len(shares) == 3 and shares == sorted(shares, reverse=True) and shares[0] > 90

    def test_names_as_many_classes_as_it_is_told(self, run, capsys):
        _, ((_, *pairs),), _ = predicted(capsys, "run", "--top", 99, "0.png")
        assert sorted(pairs[::3]) == list("0123456789") and sum(map(float, pairs[1::3])) == pytest.approx(100, abs=0.1)

    def test_columns_stand_under_each_other(self, run, capsys):
        shutil.copy("0.png", "an image with a long name.png")
        assert runs.status(app, "run", "0.png", "an image with a long name.png") == 0
        first, second = capsys.readouterr().out.splitlines()
        assert len(first) == len(second) and first.index("%") == second.index("%")

    def test_brings_photographs_to_the_form_of_the_model(self, run, capsys):
        dark = image.open("0.png")
        image.fromarray(255 - np.asarray(dark)).convert("RGB").resize((80, 80)).save("paper.jpg")
        assert predicted(capsys, "run", "--invert", "paper.jpg")[1][0][1] == "0"
        assert predicted(capsys, "run", "--invert", "paper.jpg")[1] != predicted(capsys, "run", "paper.jpg")[1]

    def test_is_what_the_run_s_own_test_says(self, run):
        model, config = predict.load_run(run)
        _, test = data.load("digits.npz")
        probabilities = predict.predict(model, config, test[:][0])
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
        last = runs.metrics(run)[-1]
        assert (probabilities.argmax(axis=1) == test.y).mean() == last["test_accuracy"]
        assert -np.log(probabilities[np.arange(20), test.y]).mean() == pytest.approx(last["test_loss"], rel=1e-5)
        assert not model.training

    def test_ink_on_paper_is_told_where_light_on_dark_was_learned(self, run, capsys):
        with image.open("2.png") as picture:
            image.fromarray(255 - np.asarray(picture)).save("paper.png")
        _, _, said = predicted(capsys, "run", "paper.png")
        assert "paper.png is not light on dark, as the images were that this model has learned: try it with --invert" in said
        _, inverted, said = predicted(capsys, "run", "paper.png", "--invert")
        assert inverted[0][1] == "2" and not said

    def test_of_many_images_is_that_of_each(self, run, capsys, monkeypatch):
        together = predicted(capsys, "run", "0.png", "1.png", "2.png")
        monkeypatch.setattr(predict, "TOGETHER", 2)
        assert predicted(capsys, "run", "0.png", "1.png", "2.png") == together

    def test_takes_the_run_s_folder_from_anywhere(self, run, capsys, monkeypatch):
        (run.parent / "elsewhere").mkdir()
        monkeypatch.chdir(run.parent / "elsewhere")
        assert predicted(capsys, run, run.parent / "0.png")[0] == 0

    def test_a_checkpoint_that_is_damaged_is_told_and_passed_over(self, run, capsys):
        newest = max((run / "checkpoint").iterdir())
        os.truncate(newest, 1000)
        code, lines, error = predicted(capsys, "run", "0.png")
        assert (code, lines[0][1]) == (0, "0") and f"{newest.name} is damaged" in error


class TestErrors:
    def test_an_image_that_cannot_be_read_is_told_and_the_others_are_named(self, run, capsys):
        (run.parent / "text.png").write_text("no image")
        code, lines, error = predicted(capsys, "run", "0.png", "none.png", "text.png", "1.png")
        assert code == 1 and [line[0] for line in lines] == ["0.png", "1.png"]
        assert "file: none.png    reason: the file is not there" in error and "file: text.png" in error

    @pytest.mark.parametrize("words, says", [
        (["--model", "autoencoder"], "this model has learned to reconstruct its input, and cannot name images"),
        (["--data", "vectors.npz", "--model", "mlp"], "this model has learned vectors, not images, and cannot name images"),
    ])
    def test_a_model_that_does_not_name_images(self, run, capsys, words, says):
        assert runs.status(train_app, "--data", "digits.npz", *words, "--epochs", 0, "--out", "other") == 0
        capsys.readouterr()
        code, lines, error = predicted(capsys, "other", "0.png")
        assert (code, lines) == (2, []) and says in error

    def test_a_run_without_a_checkpoint(self, run, capsys):
        shutil.rmtree(run / "checkpoint")
        code, _, error = predicted(capsys, "run", "0.png")
        assert code == 1 and "run: there is no checkpoint in it" in error

    def test_what_is_no_run(self, run, capsys):
        code, _, error = predicted(capsys, ".", "0.png")
        assert code == 1 and "is not the folder of a run: it has no config.json" in error

    def test_a_device_that_is_not_known(self, run, capsys):
        code, _, error = predicted(capsys, "run", "0.png", "--device", "gpu")
        assert code == 1 and "device 'gpu' is not known" in error

    def test_a_run_whose_model_is_gone(self, place, capsys, monkeypatch):
        runs.status(train_app, "--data", "digits.npz", "--model", "nets:all_states", "--epochs", 0, "--out", "other")
        (place / "nets.py").unlink()
        shutil.rmtree(place / "__pycache__", ignore_errors=True)
        monkeypatch.delitem(runs.sys.modules, "nets")
        capsys.readouterr()
        code, _, error = predicted(capsys, "other", "0.png")
        assert code == 2 and "--model nets:all_states: No module named 'nets'" in error


@pytest.mark.process
def test_the_command(run):
    ended = runs.process("predict", "run", "0.png")
    assert (ended.returncode, ended.stderr) == (0, "") and ended.stdout.startswith("0.png   0")
