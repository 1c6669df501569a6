"""The page of a run: whole, well-formed and on its own, of every kind of run."""

import json
import subprocess
import sys

import numpy as np
import pytest
from pages import Page, make, trained

from minidl.errors import CheckpointError, ConfigError, MissingExtra
from minidl.pictures import curves
from minidl.report import page as module
from minidl.report import write
from minidl.report.embed import in_bytes, inline
from minidl.report.page import span

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

ALWAYS = ["command", "curves", "time", "memory"]


def shown(folder):
    return Page(write(folder).read_text())


class TestSections:
    def test_of_a_run(self, tmp_path):
        page = shown(make(tmp_path / "run"))
        assert page.sections == ["command", "curves", "confusion", "mistakes", "filters", "time", "memory", "summary", "epochs", "options"]
        assert len(page.pictures) == 7                  # loss, accuracy and learning rate over steps and seconds; the confusion matrix
        for words in ("run finished", "test accuracy", "python -m minidl.train --model cnn", "forward", "backward", "191 MiB", "class 3"):
            assert words in page.text, words
        assert "--out" not in page.text

    @pytest.mark.parametrize("epochs, steps", [(1, 45), (1, 1), (100, 45), (3, 2000)])
    def test_of_runs_short_and_long(self, tmp_path, epochs, steps):
        page = shown(make(tmp_path / "run", epochs=epochs, steps=steps))
        assert any(f"training: {epochs * steps:,} value" in words for words in page.pictures)
        assert f"step {epochs * steps:,} of {epochs * steps:,}" in page.text
        assert (tmp_path / "run" / "report.html").stat().st_size < 600_000

    def test_of_an_autoencoder(self, tmp_path):
        page = shown(make(tmp_path / "run", rebuilds=True))
        assert "reconstructions" in page.sections and not {"confusion", "mistakes"} & set(page.sections)
        assert "test loss" in page.text and "test accuracy" not in page.text

    def test_of_vectors(self, tmp_path):
        page = shown(make(tmp_path / "run", images=False))
        assert {"confusion", "mistakes"} <= set(page.sections) and "filters" not in page.sections
        assert page.images == 0 and "probability" in page.text

    def test_of_a_hundred_classes(self, tmp_path):
        page = shown(make(tmp_path / "run", classes=100))
        assert "confusion" in page.sections and "Mixed up most often" in page.text

    def test_of_a_thousand_classes_there_is_no_matrix(self, tmp_path):
        page = shown(make(tmp_path / "run", classes=1000))
        assert "confusion" not in page.sections and "mistakes" in page.sections

    def test_of_ranks(self, tmp_path):
        page = shown(make(tmp_path / "run", ranks=4))
        for words in ("by 4 processes", "the first of 4 processes has tested", "Beside it", "of the first process"):
            assert words in page.text, words

    def test_of_an_older_folder(self, tmp_path):
        page = shown(make(tmp_path / "run", older=True))
        assert page.sections == [*ALWAYS, "epochs", "options"] and page.text.count("has not measured it") == 2
        assert len(page.pictures) == 4 and "epochs" in page.pictures[0]

    def test_before_the_first_step(self, tmp_path):
        folder = make(tmp_path / "run", epochs=0, state="running")
        (folder / "steps.csv").unlink()
        page = shown(folder)
        assert page.pictures == [] and "They begin with the first steps" in page.text and "after the first epoch" in page.text

    def test_in_the_first_epoch(self, tmp_path):
        page = shown(make(tmp_path / "run", epochs=0, state="running"))
        assert len(page.pictures) == 4 and "epoch 1 of 1" in page.text

    def test_of_a_run_that_really_was(self, tmp_path):
        keeper = trained(tmp_path / "run", page=write)
        assert keeper.close() == tmp_path / "run" / "report.html"
        assert "3 of 3" in Page((tmp_path / "run" / "report.html").read_text()).text

    def test_with_a_profile(self, tmp_path):
        folder = make(tmp_path / "run")
        row = {"layer": "features.0 (Conv2d)", "name": "conv2d", "direction": "evaluation", "calls": 7, "seconds": 0.07, "share": 0.25,
               "gflops": 1.5, "gbytes": None}
        (folder / "profile.json").write_text(json.dumps({"bottleneck": "Bottleneck: forward", "hint": "", "steps": 7, "operations": [row]}))
        page = shown(folder)
        assert "profile" in page.sections and "features.0 (Conv2d) conv2d (evaluation) 25.0 % 7 10.000 1.5 -" in page.text

    @pytest.mark.parametrize("content", ["{}", "[]", '{"operations": [1]}', '{"operations": []}', "7"])
    def test_with_a_profile_that_is_none(self, tmp_path, content):
        folder = make(tmp_path / "run")
        (folder / "profile.json").write_text(content)
        assert "profile" not in shown(folder).sections


class TestStates:
    def test_of_a_run_that_has_failed(self, tmp_path):
        page = shown(make(tmp_path / "run", state="failed", message="NumericsError: the loss is nan at step 65"))
        assert "The run has failed." in page.text and "the loss is nan at step 65" in page.text

    def test_of_a_run_that_was_stopped(self, tmp_path):
        assert "--resume" in shown(make(tmp_path / "run", state="stopped")).text

    def test_of_a_run_that_was_cut_off(self, tmp_path):
        folder = make(tmp_path / "run", state="running")
        gone = subprocess.Popen([sys.executable, "-c", ""])
        gone.wait()
        status = json.loads((folder / "status.json").read_text())
        (folder / "status.json").write_text(json.dumps(status | {"pid": gone.pid}))
        page = shown(folder)
        assert "cut off" in page.text and "data-refresh" not in page.attributes

    def test_looks_again_only_while_the_run_goes_on(self, tmp_path):
        going = write(make(tmp_path / "going", state="running")).read_text()
        assert 'http-equiv="refresh"' in going and float(Page(going).attributes["data-refresh"]) >= 1
        over = write(make(tmp_path / "over")).read_text()
        assert 'http-equiv="refresh"' not in over and "data-refresh" not in Page(over).attributes


class TestOnItsOwn:
    def test_fetches_nothing(self, tmp_path):
        text = write(make(tmp_path / "run")).read_text()
        assert all(each.startswith(("data:", "#")) for each in Page(text).addresses)
        assert "@import" not in text and "http:" not in text and "https:" not in text
        assert all(each.startswith(("(#", '("#')) for each in text.replace("url(", "\0(").split("\0")[1:])

    def test_all_colours_of_its_pictures_are_the_pages(self, tmp_path):
        text = write(make(tmp_path / "run")).read_text()
        svgs = [each.partition("</svg>")[0] for each in text.split("<svg ")[1:]]
        assert len(svgs) == 7
        for svg in svgs:
            assert {each[:6].lower() for each in svg.split(": #")[1:]} <= {"ffffff"}       # the numbers on the strong cells of the matrix

    def test_says_everything_as_it_is(self, tmp_path):
        evil = "<script>alert('1')</script>"
        folder = make(tmp_path / "a <b> & 'c'", state="failed", message=evil, classes=[evil, "</style>", "$x$", "--><b>"],
                      options={"model": evil, "data": "</title>"})
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"commands": [f"python -m minidl.train --model {evil}"], "repeat": evil}))
        text = write(folder).read_text()
        page = Page(text)
        assert text.count("<script") == 1 and text.count("</style>") == 1 and "<b>" not in text
        assert evil in page.text and "a <b> & 'c'" in page.text

    def test_names_that_no_file_system_should_have(self, tmp_path):
        folder = tmp_path / b"a \xff".decode(errors="surrogateescape")
        try:
            make(folder)
        except OSError:
            pytest.skip("this file system refuses such names")
        assert write(folder).read_bytes()


class TestWrite:
    def test_gives_the_file(self, tmp_path):
        folder = make(tmp_path / "run")
        assert write(folder) == folder / "report.html" and write(folder, tmp_path / "x.html") == tmp_path / "x.html"
        assert not list(folder.glob(".*"))

    def test_of_a_folder_that_is_not_a_runs(self, tmp_path):
        with pytest.raises(CheckpointError, match="is not the folder of a run"):
            write(tmp_path)

    def test_where_nothing_can_be_written(self, tmp_path):
        with pytest.raises(ConfigError, match=r"cannot be written: No such file or directory\n.*--out FILE"):
            write(make(tmp_path / "run"), tmp_path / "none" / "x.html")

    def test_says_what_was_left_out(self, tmp_path):
        folder = make(tmp_path / "run")
        with open(folder / "metrics.jsonl", "a") as file:
            file.write('{"epo')
        assert "metrics.jsonl: 1 line left out" in shown(folder).text

    def test_without_the_extra(self, tmp_path, monkeypatch):
        monkeypatch.setattr(module, "find_spec", lambda name: None)
        module.template.cache_clear()
        assert module.missing() == "Matplotlib and Jinja2 are not installed"
        with pytest.raises(MissingExtra, match=r"pip install 'minidl\[viz\]'"):
            write(make(tmp_path / "run"))

    def test_numbers_of_metrics_that_are_missing(self, tmp_path):
        folder = make(tmp_path / "run", older=True)
        (folder / "metrics.jsonl").write_text('{"epoch": 1}\n{}\n{"epoch": 3, "train_loss": null, "seconds": null, "phases": {"a": "b"}}\n')
        assert shown(folder).sections


class TestEmbed:
    def test_a_picture_takes_what_it_is_given(self):
        svg = inline(curves({"<a> & b": [1, 2], "c": [2, 1]}), "key")
        assert svg.startswith("<svg viewBox=") and svg.rstrip().endswith("</svg>") and "<style" not in svg and "<metadata" not in svg
        assert "&lt;a&gt; &amp; b" in svg and "var(--blue)" in svg
        Page(svg)

    def test_two_pictures_do_not_share_names(self):
        Page("".join(inline(curves({"a": [1, 2]}), key) for key in ("one", "two")))

    @pytest.mark.parametrize("count, words", [(0, "-"), (None, "-"), (512, "512 B"), (1536, "1.5 KiB"), (3 * 2 ** 20, "3 MiB"),
                                              (5e11, "466 GiB"), (2 ** 50, "1024 TiB"), (1023 * 1024, "1023 KiB")])
    def test_bytes_in_words(self, count, words):
        assert in_bytes(count) == words

    @pytest.mark.parametrize("seconds, words", [(0.0001, "< 1 ms"), (0.0823, "82 ms"), (5.25, "5.2 s"), (75, "1 min 15 s")])
    def test_seconds_in_words(self, seconds, words):
        assert span(seconds) == words


def test_the_confusion_matrix_is_that_of_the_file(tmp_path):
    folder = make(tmp_path / "run")
    with np.load(folder / "tests.npz") as tests:
        right = np.trace(tests["counts"]) / tests["counts"].sum()
    assert any(f"{100 * right:.4g} % right" in words for words in shown(folder).pictures)
