"""The Python in README.md and docs/ runs as printed, each page from top to bottom, and its links lead somewhere."""

import re
from pathlib import Path

import pytest

from minidl.optim import optimizer
from minidl.parallel import exchange

TOP = Path(__file__).parent.parent
PAGES = [TOP / "README.md", *sorted((TOP / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_python_on_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for kinds in (optimizer._kinds, exchange._kinds):                                   # what a page registers stays on the page
        monkeypatch.setattr(kinds, "known", dict(kinds.known))
    names = {"__name__": page.stem}
    text = page.read_text()
    if "minidl.threads(" in text:
        pytest.importorskip("threadpoolctl", reason="the page is about the extra fast")
    for block in re.finditer(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        first = text.count("\n", 0, block.start(1))
        exec(compile("\n" * first + block.group(1), str(page), "exec"), names)      # the padding makes a traceback name the page's line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_links_on_a_page_lead_to_files(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_the_files_that_the_readme_names_exist():
    for name in re.findall(r"`(minidl/[\w/.]+)`", PAGES[0].read_text()):
        assert (TOP / name).exists(), name
