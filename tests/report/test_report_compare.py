"""Several runs on one page, and the command."""

import json
from pathlib import Path

import pytest
from pages import Page, make
from runs import process

from minidl.errors import CheckpointError, ConfigError
from minidl.report import compare
from minidl.report.compare import differences, distinct, find, goal, results

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")


def runs(*folders):
    return [find(folder) for folder in folders]


class TestPage:
    def test_has_the_curves_of_all_runs_in_each_picture(self, tmp_path):
        folders = [make(tmp_path / name, seed=i) for i, name in enumerate(("sgd", "adam", "kfac"))]
        page = Page(compare(folders, tmp_path / "x.html").read_text())
        assert page.sections == ["results", "curves", "options", "time"]
        assert len(page.pictures) == 10                     # five over steps and five over seconds
        assert all(f"{name}: " in words for words in page.pictures for name in ("sgd", "adam", "kfac"))
        for words in ("sgd, adam, kfac", "beside one another", "finished", "forward", "backward"):
            assert words in page.text, words
        assert all(each.startswith(("data:", "#")) for each in page.addresses)

    def test_of_runs_of_every_kind(self, tmp_path):
        folders = [make(tmp_path / "whole"), make(tmp_path / "old", older=True), make(tmp_path / "new", epochs=0, state="running"),
                   make(tmp_path / "other", rebuilds=True), make(tmp_path / "failed", state="failed", message="<b>")]
        page = Page(compare(folders, tmp_path / "x.html").read_text())
        assert page.pictures and "over epochs" in page.pictures[0] and "5 runs" in page.text

    def test_of_runs_that_have_not_begun(self, tmp_path):
        folder = make(tmp_path / "new", epochs=0, state="running")
        assert Page(compare([folder, folder], tmp_path / "x.html").read_text()).pictures == []

    def test_of_many_runs(self, tmp_path):
        folders = [make(tmp_path / f"run-{i}", seed=i) for i in range(9)]
        text = compare(folders, tmp_path / "x.html").read_text()
        Page(text)
        assert text.count("stroke-dasharray: none") < text.count("stroke-dasharray")

    def test_names_are_said_as_they_are(self, tmp_path):
        folder = make(tmp_path / "<script>alert(1)")
        assert "<script>alert" not in compare([folder, make(tmp_path / "b")], tmp_path / "x.html").read_text()

    def test_of_a_folder_that_is_not_a_runs(self, tmp_path):
        with pytest.raises(CheckpointError):
            compare([make(tmp_path / "a"), tmp_path], tmp_path / "x.html")

    def test_where_nothing_can_be_written(self, tmp_path):
        with pytest.raises(ConfigError):
            compare([make(tmp_path / "a"), make(tmp_path / "b")], tmp_path / "none" / "x.html")


@pytest.mark.parametrize("paths, names", [
    (["/a/sgd", "/a/kfac"], ["sgd", "kfac"]), (["/a/1", "/b/1"], ["a/1", "b/1"]), (["/a/x/1", "/b/x/1", "/c/2"], ["a/x/1", "b/x/1", "2"]),
    (["/a/1", "/a/1"], ["//a/1 (1)", "//a/1 (2)"]), (["/a"], ["a"])])
def test_names_are_as_short_as_they_can_be(paths, names):
    assert distinct([Path(path) for path in paths]) == names


class TestNumbers:
    def test_options_that_differ(self, tmp_path):
        found = runs(make(tmp_path / "a", options={"lr": 0.1}), make(tmp_path / "b", options={"lr": 0.2, "feedback": True}, ranks=4))
        assert differences(found) == [("lr", ["0.1", "0.2"]), ("feedback", ["-", "yes"]), ("processes", ["1", "4"])]

    def test_what_came_of_them(self, tmp_path):
        found = runs(make(tmp_path / "a", epochs=5), make(tmp_path / "b", epochs=2))
        first, second = results(found)
        assert goal(found) == second["accuracy"] == second["best"] and second["until"] == (2, 6.0) and first["until"] == (2, 6.0)
        assert first["epochs"] == 5 and first["accuracy"] > second["accuracy"] and first["seconds"] == 15

    def test_of_runs_without_accuracy(self, tmp_path):
        found = runs(make(tmp_path / "a", rebuilds=True))
        assert goal(found) is None and results(found)[0]["until"] is None


@pytest.mark.process
class TestCommand:
    def test_of_one_run(self, tmp_path):
        make(tmp_path / "run")
        ended = process("report", "run", cwd=tmp_path)
        assert (ended.returncode, ended.stdout, ended.stderr) == (0, "run/report.html\n", "")
        Page((tmp_path / "run" / "report.html").read_text())

    def test_of_several(self, tmp_path):
        make(tmp_path / "a"), make(tmp_path / "b")
        assert process("report", "a", "b", cwd=tmp_path).stdout == "report.html\n"
        assert process("report", "a", "b", "--out", "x.html", cwd=tmp_path).stdout == "x.html\n" and (tmp_path / "x.html").exists()

    def test_what_is_wrong_is_told(self, tmp_path):
        ended = process("report", "none", cwd=tmp_path)
        assert ended.returncode == 1 and "none is not the folder of a run: it does not exist" in ended.stderr
        assert process("report", cwd=tmp_path).returncode == 2

    def test_damaged_files_are_told_on_the_page(self, tmp_path):
        folder = make(tmp_path / "run")
        (folder / "tests.npz").write_bytes(b"PK\x03\x04")
        assert process("report", "run", cwd=tmp_path).returncode == 0
        assert "Damaged, and left out: tests.npz" in (folder / "report.html").read_text()
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config)[:-20])
        assert process("report", "run", cwd=tmp_path).returncode == 1
