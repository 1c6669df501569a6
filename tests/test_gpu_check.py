"""scripts/gpu_check: its parts on the emulated GPU, and what its table says of made-up results."""

import importlib.machinery
import importlib.util
import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "gpu_check"


@pytest.fixture(scope="module")
def check():
    loader = importlib.machinery.SourceFileLoader("gpu_check", str(SCRIPT))
    spec = importlib.util.spec_from_loader("gpu_check", loader)
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.fixture
def device():
    if shutil.which("g++") is None:
        pytest.skip("the emulated GPU needs g++")
    import emulated  # noqa: F401

    return "emulated:0"


def test_sections_are_gone_through_and_written_down(check, device, tmp_path):
    chosen = SimpleNamespace(only=["steps"], minutes=5, rehearse=True, json=tmp_path / "gpu.json", table=tmp_path / "gpu.txt")
    results = check.checked(chosen, device)
    assert results["errors"] == [] and not check.wrong(results)
    assert json.loads(chosen.json.read_text())["steps"][0]["within"] is True
    assert "mlp       loss after 20 steps" in chosen.table.read_text() and "A rehearsal" in chosen.table.read_text()


def test_a_section_that_fails_is_told_and_the_next_one_runs(check, device, tmp_path, monkeypatch):
    from gpu import ceilings, training

    def broken(*_):
        raise RuntimeError("no such kernel")
    monkeypatch.setattr(ceilings, "measure", broken)
    monkeypatch.setattr(training, "steps", lambda *_: [{"network": "mlp", "cpu": 1.0, "device": 1.1, "off at most": 0.1, "within": False}])
    chosen = SimpleNamespace(only=["ceilings", "steps"], minutes=5, rehearse=True, json=tmp_path / "gpu.json", table=tmp_path / "gpu.txt")
    results = check.checked(chosen, device)
    assert results["errors"] == ["ceilings: RuntimeError: no such kernel"] and check.wrong(results)
    assert "NOT within" in chosen.table.read_text() and "no such kernel" in chosen.table.read_text()


def test_what_was_found_before_ctrl_c_is_kept(check, device, tmp_path, monkeypatch, capsys):
    done = []

    def stopped(name, *_):
        done.append(name)
        if name == "steps":
            raise KeyboardInterrupt

    monkeypatch.setattr(check, "section", stopped)
    words = ["--rehearse", "--only", "equal", "steps", "tests", "--json", str(tmp_path / "a.json"), "--table", str(tmp_path / "a.txt")]
    with pytest.raises(SystemExit) as caught:
        check.main(words)
    assert caught.value.code == 130 and done == ["equal", "steps"]
    kept = json.loads((tmp_path / "a.json").read_text())
    assert kept["left out"] == ["steps: stopped by Ctrl-C in it", "tests: stopped by Ctrl-C"]
    assert "stopped by Ctrl-C" in capsys.readouterr().out


@pytest.mark.parametrize(("words", "told"), [
    (["--device", "cpu"], "no GPU"),
    (["--rehearse", "--json", "nowhere/a.json"], "nowhere/a.json"),
])
def test_what_cannot_be_done_is_told_at_once(check, device, words, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(check, "section", None)
    with pytest.raises(SystemExit, match=told):
        check.main(words)


def test_a_captured_step_is_timed_beside_an_ordinary_one(device):
    from dataclasses import replace

    from gpu import networks
    from gpu.clock import Clock

    from bench.workloads import BY_NAME

    workload = replace(BY_NAME["mlp"], shape=(16,), batch=4)
    row = networks.measure(workload, "float32", device, Clock(device), {"products": {"float32": 1e9}}, with_torch=False)
    assert row["errors"] == {} and set(row["seconds"]) == {"minidl", "captured"}
    np.testing.assert_allclose(row["losses"]["captured"], row["losses"]["minidl"], rtol=1e-6)


def test_kernels_that_move_numbers_are_held_against_a_copy(device):
    from gpu import bandwidth, table
    from gpu.clock import Clock

    rows = bandwidth.measure(device, Clock(device), 1e9, small=True)
    assert not any("error" in row for row in rows) and len(rows) == 25
    relu = rows[1]
    assert (relu["kernel"], relu["bytes"]) == ("relu gradient", 3 * 2 * 4 * 6 * 6 * 4)
    assert relu["share"] == pytest.approx(relu["bytes"] / relu["seconds"] / 1e9)
    assert len(list(table.moved({"bandwidth": rows}))) == 26


def test_functions_are_compared_with_numpy_in_every_dtype(device):
    from gpu import equal

    named = dict(equal.cases())
    assert len(named) > 60
    for name in ("Affine", "BatchNorm", "Tanh"):
        for dtype in equal.DTYPES:
            assert equal.error(named[name], 1, dtype, device) <= equal.MOST[dtype]


def test_an_error_is_seen():
    from gpu.equal import distance

    x = np.array([1.0, 2.0, 4.0])
    assert distance(x, x) == 0
    assert distance(x, x + [0, 0, 0.4]) == pytest.approx(0.4 / 4.4)
    assert distance(np.array([np.nan, 1]), np.array([np.nan, 1])) == 0
    assert math.isinf(distance(np.array([np.nan, 1]), np.array([0.0, 1])))
    assert math.isinf(distance(np.array([np.inf, 1]), np.array([0.0, 1])))
    with pytest.raises(ValueError, match="was wanted"):
        distance(x, x[:2])


def test_work_is_shared_out_over_processes():
    from gpu import together

    assert together.each(math.factorial, range(5), "cuda:0") == [1, 1, 2, 6, 24] == together.each(math.factorial, range(5), "cpu")


def test_what_cannot_run_is_told(device):
    from gpu import compiled

    from bench.workloads import BY_NAME, Layer

    layer = Layer("vgg16", 2, 3, 3, 5, batch=1)
    assert compiled.once(("gpu.layers", layer, "float16", device)) == ""
    assert compiled.once(("gpu.networks", BY_NAME["mlp"], "int3", device)).startswith("mlp, int3: ")


def test_sides_take_turns():
    from gpu.clock import Clock, compete, ratio

    order = []
    found = compete(Clock("cpu"), {name: lambda name=name: order.append(name) for name in "ab"}, rounds=2, seconds=0)
    assert {name: len(times) for name, times in found.items()} == {"a": 2, "b": 2}
    assert "".join(order).endswith("abba")
    assert ratio([2.0, 6.0, 4.0], [1.0, 2.0, 4.0]) == 2.0


def test_the_table_says_what_was_reached():
    from gpu import networks, table

    row = {"network": "mlp", "title": "MLP", "batch": 128, "precision": "float32", "errors": {}, "tflops": 3.0, "share": 0.1, "must": {},
           "seconds": {"minidl": 4e-4, "captured": 1e-4, "eager": 5e-4}, "ratios": {"minidl": 1.25, "captured": 5.0}}
    results = {"machine": {"date": "2026-01-01", "gpu": "none", "versions": {"NumPy": "2.0", "PyTorch": None}, "python": "3.11",
                           "commit": "abc"}, "networks": [row]}
    lines = list(table.lines(results))
    assert "  mlp, float32, captured: PyTorch eager's time / ours, at least 3: 5.00 ✓" in lines
    assert "  lenet, float32, captured: PyTorch eager's time / ours, at least 3: not measured" in lines
    assert any(line.split() == ["mlp,", "128", "float32", "400.0", "us", "100.0", "us", "500.0", "us", "1.25", "5.00", "3.00", "10%"]
               for line in lines)
    row["ratios"]["captured"] = 2.0
    assert "  mlp, float32, captured: PyTorch eager's time / ours, at least 3: 2.00 ✗" in list(table.lines(results))
    assert set(networks.MUST.values()) == {3.0, 0.9}
