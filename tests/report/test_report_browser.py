"""Pages in a browser, at three widths: drawn without errors, with their curves, and nothing beside the edge. Needs Chromium."""

import html
import json
import re
import shutil
import subprocess

import pytest
from pages import make

from minidl.report import compare, write

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = [pytest.mark.process, pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")]

WIDTHS = (390, 820, 1600)
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--enable-logging=stderr", "--v=0")
# Windows of a browser have a least width; a frame has not. It looks at the page in it, and writes down what it sees.
FRAMES = """<!DOCTYPE html><title>widths</title>{frames}<script>
window.addEventListener("load", function () {{
  document.body.dataset.seen = JSON.stringify(Array.from(document.querySelectorAll("iframe")).map(function (frame) {{
    var inner = frame.contentDocument, view = frame.contentWindow, root = inner.documentElement;
    function box(each) {{ return each.getBoundingClientRect(); }}
    var charts = Array.from(inner.querySelectorAll(".panel svg")).filter(function (svg) {{ return box(svg).width > 0; }});
    var letters = charts.flatMap(function (svg) {{ return Array.from(svg.querySelectorAll("text")); }});
    function outside(each) {{
      return box(each).right > box(each.ownerSVGElement).right + 4 || box(each).left < box(each.ownerSVGElement).left - 4;
    }}
    return {{
      inner: view.innerWidth, scroll: root.scrollWidth, charts: charts.length,
      lines: charts.map(function (svg) {{ return svg.querySelectorAll("g[id*=line2d] path[clip-path]").length; }}),
      widths: charts.map(function (svg) {{ return box(svg).width; }}),
      letters: Math.min.apply(null, letters.map(function (each) {{ return box(each).height; }})),
      outside: letters.filter(outside).map(function (each) {{ return each.textContent; }}),
      broken: Array.from(inner.images).filter(function (each) {{ return !each.naturalWidth; }}).length,
      ground: view.getComputedStyle(inner.body).backgroundColor, chosen: (inner.querySelector("input:checked") || {{}}).value,
      copy: inner.querySelectorAll("button:not([hidden])").length
    }};
  }}));
}});
</script>"""


def opened(page, tmp_path, *flags):
    """What a browser has to say of a file: its document at the end, and what was written to its console."""
    found = subprocess.run([CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'user'}", "--virtual-time-budget=2000", *flags, "--dump-dom",
                            page.as_uri()], capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stderr
    return found.stdout, [line for line in found.stderr.splitlines() if "CONSOLE" in line]


def seen(page, tmp_path, *flags, widths=WIDTHS):
    """What is seen of a page at each of the widths."""
    text = html.escape(page.read_text())
    frames = "".join(f'<iframe srcdoc="{text}" style="width: {width}px; height: 900px; border: 0"></iframe>' for width in widths)
    around = tmp_path / "around.html"
    around.write_text(FRAMES.format(frames=frames))
    document, console = opened(around, tmp_path, *flags)
    assert console == []
    found = json.loads(html.unescape(re.search(r'<body[^>]* data-seen="([^"]*)"', document)[1]))
    assert [each["inner"] for each in found] == list(widths)
    return found


@pytest.mark.parametrize("kind, charts", [
    ({"epochs": 1, "steps": 45}, 3), ({"epochs": 100, "steps": 45}, 3), ({"state": "failed", "message": "NumericsError: " + "nan" * 99}, 3),
    ({"epochs": 0, "state": "stopped"}, 2), ({"classes": 100}, 3), ({"rebuilds": True}, 2), ({"images": False}, 3), ({"older": True}, 2),
    ({"classes": [10 * "Donaudampfschiff", "b", "c"], "options": {"data": 9 * "/a/long/path"}, "ranks": 2}, 3)],
    ids=["one epoch", "a hundred", "failed", "stopped at once", "many classes", "autoencoder", "vectors", "older", "long names"])
def test_a_run(tmp_path, kind, charts):
    for each in seen(write(make(tmp_path / "run", **kind)), tmp_path):
        assert each["scroll"] <= each["inner"], "it is wider than the window"
        assert each["charts"] == charts and all(each["lines"]), each
        assert min(each["widths"]) > 0.75 * min(each["inner"], 400) and each["letters"] >= 9.5
        assert each["outside"] == [] and each["broken"] == 0 and each["copy"] >= 1


def test_several_runs(tmp_path):
    folders = [make(tmp_path / f"a-rather-long-name-of-a-run-{i}", seed=i, epochs=i) for i in range(1, 9)]
    for each in seen(compare(folders, tmp_path / "x.html"), tmp_path):
        assert each["scroll"] <= each["inner"] and each["charts"] == 5 and all(lines >= 8 for lines in each["lines"])
        assert each["outside"] == []


def test_colours_are_those_that_the_reader_prefers(tmp_path):
    page = write(make(tmp_path / "run"))
    light, = seen(page, tmp_path, "--blink-settings=preferredColorScheme=1", widths=[820])
    around = tmp_path / "around.html"
    around.write_text(around.read_text().replace("<title>", '<meta name="color-scheme" content="dark"><title>'))
    document, _ = opened(around, tmp_path, "--blink-settings=preferredColorScheme=0")
    dark, = json.loads(html.unescape(re.search(r'data-seen="([^"]*)"', document)[1]))
    assert sum(map(int, re.findall(r"\d+", light["ground"]))) > 600 and sum(map(int, re.findall(r"\d+", dark["ground"]))) < 150


def test_a_page_of_a_run_that_goes_on_opens_again_as_it_was(tmp_path):
    """Time is chosen and a list opened; then the page loads itself again, and says how often it was loaded."""
    page = write(make(tmp_path / "run", state="running"))
    script = """<script>
    var times = Number(sessionStorage.getItem("times") || 0) + 1;
    sessionStorage.setItem("times", times);
    document.body.dataset.times = times;
    document.body.dataset.chosen = document.querySelector("input:checked").value;
    document.body.dataset.opened = document.querySelector("details").open;
    if (times === 1) { document.querySelector("input[value=seconds]").click(); document.querySelector("details").open = true; }
    </script></body>"""
    page.write_text(page.read_text().replace("</body>", script).replace('data-refresh="5"', 'data-refresh="1"'))
    document, console = opened(page, tmp_path, "--virtual-time-budget=8000")
    assert console == [] and int(re.search(r'data-times="(\d+)"', document)[1]) > 1
    assert 'data-chosen="seconds"' in document and 'data-opened="true"' in document


def test_a_page_of_a_run_that_is_over_stays(tmp_path):
    page = write(make(tmp_path / "run"))
    script = ("<script>sessionStorage.times = Number(sessionStorage.times || 0) + 1;"
              "document.body.dataset.times = sessionStorage.times</script></body>")
    page.write_text(page.read_text().replace("</body>", script))
    assert 'data-times="1"' in opened(page, tmp_path, "--virtual-time-budget=30000")[0]
