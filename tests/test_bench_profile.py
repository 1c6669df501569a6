"""scripts/bench_profile makes steps of three kinds and prints two ratios."""

import re
import runpy
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts" / "bench_profile"


@pytest.mark.parametrize("optimizer", ["sgd", "kfac"])
def test_prints_ratios(optimizer, monkeypatch, capsys):
    pytest.importorskip("threadpoolctl", reason="threads are held by the extra fast")
    monkeypatch.setattr(sys, "argv", ["bench_profile", "--batch", "4", "--steps", "3", "--optimizer", optimizer])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    out = capsys.readouterr().out
    assert re.search(rf"LeNet, minibatches of 4, {optimizer}: \d+\.\d+ ms a step", out)
    assert len(re.findall(r"on the wall (\d\.\d+), on the core (\d\.\d+)", out)) == 2
