"""A picture is the same text each time, is shown and saved, and needs no screen."""

import sys
import xml.etree.ElementTree as ET

import pytest

from minidl.errors import ArgumentError, MissingExtra
from minidl.pictures import Picture, canvas


def line():
    with canvas(3, 2) as (figure, axes):
        axes.plot([0, 1, 2], [0, 1, 4])
        axes.set_xlabel("steps")
    return Picture(figure, "a line that rises from 0 to 4")


class TestPicture:
    def setup_method(self):
        pytest.importorskip("matplotlib", reason="drawing needs the extra viz")

    def test_is_well_formed_and_its_letters_are_text(self):
        tree = ET.fromstring(line().svg)
        assert tree.tag.endswith("svg")
        assert "steps" in [element.text for element in tree.iter() if element.tag.endswith("text")]

    def test_is_the_same_text_each_time(self):
        assert line().svg == line().svg

    def test_is_shown_by_a_notebook_and_told_in_words(self):
        shown = line()._repr_mimebundle_()
        assert shown["image/svg+xml"].startswith("<svg") and shown["text/plain"] == repr(line()) == "a line that rises from 0 to 4"

    @pytest.mark.parametrize("kind, head", [("svg", b"<svg"), ("png", b"\x89PNG"), ("pdf", b"%PDF")])
    def test_is_saved_as_the_name_says(self, tmp_path, kind, head):
        file = line().save(tmp_path / f"line.{kind}")
        assert file.read_bytes().startswith(head)

    def test_of_another_kind_is_refused(self, tmp_path):
        with pytest.raises(ArgumentError, match=r"line\.gif is of a kind"):
            line().save(tmp_path / "line.gif")
        with pytest.raises(ArgumentError, match=r"nothing\.png is of a kind"):
            Picture("<svg></svg>", "nothing").save(tmp_path / "nothing.png")

    def test_leaves_matplotlibs_own_style_alone(self):
        from matplotlib import rcParams
        before = dict(rcParams)
        _ = line().svg
        assert dict(rcParams) == before

    def test_several_axes_come_as_subplots_gives_them(self):
        with canvas(rows=2, columns=3) as (_, axes):
            assert axes.shape == (2, 3)


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtra, match=r"pip install 'minidl\[viz\]'"), canvas():
        pass
