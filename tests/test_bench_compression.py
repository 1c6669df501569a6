"""The benchmark of compression: its tables, what it says of promises, and a short run of all of it on the digits."""

import importlib.util
import json
from importlib.machinery import SourceFileLoader
from pathlib import Path

import pytest

pytest.importorskip("threadpoolctl", reason="scripts/bench_compression needs the extra fast")

from exchange import accuracy

SCRIPT = Path(__file__).parents[1] / "scripts" / "bench_compression"


@pytest.fixture(scope="module")
def script():
    """The command as a module, though its name does not end in .py."""
    loader = SourceFileLoader("bench_compression", str(SCRIPT))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("bench_compression", loader))
    loader.exec_module(module)
    return module


def runs(*ends, sent=100):
    return [{"seed": seed, "accuracy": [0.1, end], "bytes": sent} for seed, end in enumerate(ends)]


def test_a_row_is_of_the_last_epoch_beside_the_same_seeds_of_none():
    rows = accuracy.accuracy_rows({"none": runs(0.9, 0.8, 0.1), "int8": runs(0.89, 0.79, sent=25)})
    assert rows[1] == ("int8", "89.00 79.00", "84.00", "-1.00", "0.2500")
    assert rows[0][3:] == ("", "1.0000")
    assert accuracy.accuracy_rows({"int8": runs(0.89)}) == [("int8", "89.00", "89.00", "", "")]


@pytest.mark.parametrize("ends, says", [((0.9, 0.896, 0.85), ""), ((0.9, 0.894, 0.85), "within 0.5"),
                                        ((0.9, 0.896, 0.899), "further away")])
def test_what_was_promised_of_accuracy(ends, says):
    told = accuracy.broken(dict(zip(("none", "topk:0.01", "topk:0.01, no feedback"), map(runs, ends))), [])
    assert len(told) == bool(says) and says in "".join(told)


def test_what_was_promised_of_bytes():
    assert accuracy.broken({}, [{"codec": "int8", "ratio": 0.26}]) == []
    assert accuracy.broken({}, [{"codec": "int8", "ratio": 0.27}]) == ["int8 takes 0.2700 of float32's bytes"]


def test_speed_of_each_codec():
    rows = accuracy.codec_speed((4096,), calls=1)
    assert [row["codec"] for row in rows] == list(accuracy.RATIOS)
    assert all(len(row) == len(accuracy.SPEED_HEADS) for row in accuracy.speed_rows(rows))


@pytest.mark.process
def test_a_short_run(script, tmp_path, capsys):
    file = tmp_path / "found" / "compression.json"
    script.main(["--data", "digits", "--ranks", "2", "--epochs", "1", "--seeds", "1", "--only", "accuracy", "--json", str(file)])
    printed = capsys.readouterr().out
    results = json.loads(file.read_text())
    assert list(results["accuracy"]) == [method.name for method in accuracy.METHODS]
    assert all(method.name in printed for method in accuracy.METHODS)
    assert results["setting"]["data"] == "digits" and results["versions"] and results["machine"]["date"]
    sent = {name: found[0]["bytes"] for name, found in results["accuracy"].items()}
    assert sent["fp16"] / sent["none"] < 0.51 and sent["int8"] / sent["none"] < 0.26 and sent["topk:0.01"] / sent["none"] < 0.025
    script.main(["--from", str(file), "--markdown"])
    assert "| topk:0.01, no feedback |" in capsys.readouterr().out


def test_methods_that_are_not_known(script):
    with pytest.raises(SystemExit, match="known are none, fp16"):
        script.main(["--methods", "int9", "--only", "accuracy"])
