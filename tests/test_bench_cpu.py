"""The benchmark against PyTorch: its arithmetic, its turns, its tables; and, where PyTorch is installed, a short run of all of it.

No test looks at how long something took.
"""

import importlib.util
import io
import json
import signal
import subprocess
import sys
import time
from importlib.machinery import SourceFileLoader
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("threadpoolctl", reason="scripts/bench_cpu needs the extra fast")

from rich.console import Console

from bench import machine, plain, results, turns, workloads
from minidl.kernels import Window, reference

SCRIPT = Path(__file__).parents[1] / "scripts" / "bench_cpu"
MLP, RESNET = workloads.BY_NAME["mlp"], workloads.BY_NAME["resnet18"]


def script():
    """The command as a module, though its name does not end in .py."""
    loader = SourceFileLoader("bench_cpu", str(SCRIPT))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("bench_cpu", loader))
    loader.exec_module(module)
    return module


class TestWorkloads:
    def test_are_chosen_by_name_and_by_group(self):
        assert [w.name for w in workloads.chosen(["lenet", "mlp"])] == ["mlp", "lenet"]
        assert {w.network for w in workloads.chosen(["vgg16"])} == {"vgg16"}
        assert workloads.chosen(None) == [*workloads.MODELS, *workloads.LAYERS]
        assert workloads.chosen(None, layers=False) == [*workloads.MODELS]

    def test_an_unknown_name_is_told_with_the_known_ones(self):
        with pytest.raises(ValueError, match=r"'lenett' is no workload.*lenet"):
            workloads.chosen(["lenett"])

    def test_names_are_different(self):
        assert len(workloads.BY_NAME) == len(workloads.MODELS) + len(workloads.LAYERS)
        assert len({layer.title for layer in workloads.LAYERS if layer.network == "resnet50"}) == 9

    def test_every_promise_is_about_one(self):
        assert {name for name, _ in results.MUST} == {model.name for model in workloads.MODELS}

    def test_the_first_layer_of_resnet_halves_the_image(self):
        layer = workloads.BY_NAME["resnet50-7x7-3-64-224-s2"]
        assert layer.out == 112 and layer.first and not layer.bias
        assert layer.multiply_adds == 8 * 112 * 112 * 64 * 3 * 49
        x, w, b, gy = layer.arrays()
        assert (x.shape, w.shape, b, gy.shape) == ((8, 3, 224, 224), (64, 3, 7, 7), None, (8, 64, 112, 112))


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(1, 1, 0), (3, 1, 1), (3, 2, 1), (5, 3, 0), (2, 2, 1)])
def test_the_textbook_convolves_as_the_reference_does(kernel, stride, padding):
    draw = np.random.default_rng(0)
    x, w, b = draw.standard_normal((2, 3, 9, 8)), draw.standard_normal((4, 3, kernel, kernel)), draw.standard_normal(4)
    window = Window((kernel, kernel), (stride, stride), (padding, padding))
    y, columns = plain.forward(x, w, b, stride, padding)
    np.testing.assert_allclose(y, reference.conv2d(x, w, window) + b[:, None, None])
    gy = draw.standard_normal(y.shape)
    gx, gw, gb = plain.backward(gy, columns, w, x.shape, stride, padding)
    np.testing.assert_allclose(gx, reference.conv2d_input(gy, w, x.shape[2:], window), atol=1e-12)
    np.testing.assert_allclose(gw, reference.conv2d_weights(x, gy, window), atol=1e-12)
    np.testing.assert_allclose(gb, gy.sum(axis=(0, 2, 3)))
    assert plain.backward(gy, columns, w, x.shape, stride, padding, wants_x=False)[0] is None


class FakeWorker:
    """Needs so many seconds for each mode, and writes down who was asked."""

    setting = "as installed"

    def __init__(self, seconds, asked):
        self.seconds, self.asked = seconds, asked

    def ask(self, do, mode, name, times, warm):
        self.asked.append(mode)
        return {"seconds": [self.seconds[mode]] * times}


class TestTurns:
    def test_the_order_is_turned_round_and_numpy_stops_early(self):
        asked = []
        worker = FakeWorker({"minidl": 1.0, "eager": 2.0, "numpy": 8.0}, asked)
        seconds = turns.race({mode: turns.Seat(worker, mode) for mode in worker.seconds}, "step", 6)
        assert asked[:6] == ["minidl", "eager", "numpy", "numpy", "eager", "minidl"]
        assert seconds == {"minidl": [1.0] * 6, "eager": [2.0] * 6, "numpy": [8.0] * turns.NUMPY_ROUNDS}

    def test_the_fastest_seat_competes_with_blocks_of_the_wanted_length(self):
        worker = FakeWorker({"a": 0.02, "b": 0.01}, [])
        seats = [turns.Seat(worker, "a"), turns.Seat(worker, "b")]
        assert turns.fastest(seats, "step", 0.1) is seats[1]
        assert [seat.times for seat in seats] == [5, 10]

    def test_sides_that_compute_something_else_are_not_timed(self):
        turns.compare(MLP, "eager", {"first loss": 2.30001, "third loss": 2.201}, {"first loss": 2.3, "third loss": 2.2})
        with pytest.raises(turns.Mismatch, match=r"mlp: first loss is 2\.301 by eager and 2\.3 by minidl"):
            turns.compare(MLP, "eager", {"first loss": 2.301}, {"first loss": 2.3})
        with pytest.raises(turns.Mismatch):
            turns.compare(MLP, "eager", {"first loss": float("nan")}, {"first loss": 2.3})

    def test_workers_do_not_see_what_would_slow_one_of_them(self, monkeypatch):
        monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        assert {"OPENBLAS_CORETYPE", "OMP_NUM_THREADS"} <= set(turns.foreign())
        seen = turns.environment({"MALLOC_MMAP_MAX_": "0"})
        assert "OPENBLAS_CORETYPE" not in seen and "OMP_NUM_THREADS" not in seen and seen["MALLOC_MMAP_MAX_"] == "0"
        assert seen["PYTHONPATH"].startswith(str(SCRIPT.parent))

    @pytest.mark.process
    def test_a_worker_is_stopped_while_it_is_not_asked(self):
        psutil = pytest.importorskip("psutil", reason="psutil tells the state of a process")
        with turns.Worker("plain", 1) as worker:
            assert worker.ask("about")["modes"] == ["numpy"]
            process = psutil.Process(worker.process.pid)
            eventually(lambda: process.status() == psutil.STATUS_STOPPED)
            with pytest.raises(turns.WorkerError, match="KeyError"):
                worker.ask("prepare", workload="nothing", mode="numpy", weights=None)
            assert worker.ask("peak")["gflops"] > 0
        assert not process.is_running()


def eventually(holds):
    """A signal takes its time."""
    until = time.monotonic() + 10
    while not holds() and time.monotonic() < until:
        time.sleep(0.01)
    assert holds()


def outcome(workload=MLP, name="step", eager=(2.0, 3.0, 4.0), last=None, numpy=None):
    seconds = {"minidl": [1.0, 1.0, 2.0], "eager": list(eager)}
    seconds |= {mode: list(given) for mode, given in (("channels_last", last), ("numpy", numpy)) if given}
    return turns.Outcome(workload, name, 10**9, seconds, dict.fromkeys(seconds, "as installed"), {})


def found(*rows, memory=(), first_step=None):
    about = machine.describe() | {"processor": "a processor", "date": "2026-01-02 03:04 UTC"}
    return {"machine": about, "versions": {"PyTorch": "9.9"}, "blas": {"minidl": "a library"}, "rounds": 3, "peak": {"2": {"NumPy": 100.0}},
            "rows": list(rows), "memory": list(memory), "first_step": first_step or {}, "notes": [],
            "errors": []}


class TestResults:
    def test_a_ratio_is_taken_within_a_round(self):
        r = results.ratio([2.0, 3.0, 4.0], [1.0, 1.0, 2.0])
        assert r == {"rounds": [2.0, 3.0, 2.0], "median": 2.0, "low": 2.0, "high": 2.5}

    def test_a_row_knows_the_better_mode_and_the_share_of_the_peak(self):
        r = results.row(outcome(RESNET, last=(1.0, 1.5, 2.0), numpy=(8.0, 12.0)), 2, peak=4.0)
        assert r["best"] == "channels_last" and r["ratios"]["channels_last"]["median"] == 1.0
        assert r["gflops"]["minidl"] == 1.0 and r["share_of_peak"]["minidl"] == 0.25
        assert r["numpy"]["rounds"] == [0.25, 0.25]                     # rounds that it took part in
        assert r["seconds"]["minidl"] == 1.0

    def test_promises_are_held_against_what_was_reached(self):
        kept = results.promises(found(results.row(outcome(eager=(1.0, 1.0, 2.0), numpy=(0.5,)), 2, 4.0),
                                      results.row(outcome(), 1, 4.0),
                                      memory=[{"workload": "cnn", "ratio": 0.7, "minidl": 1}], first_step={"cold": 6.0, "warm": 0.4}))
        assert [(p.got, p.kept, p.mark) for p in kept] == [
            (1.0, False, "-0.40"), (1.0, False, "-0.40"), (2.0, True, "✓"), (0.7, True, "✓"), (6.0, False, "+1.00"), (0.4, True, "✓")]

    def test_the_file_holds_the_promises_too(self):
        r = results.with_promises(found(results.row(outcome(), 2, 4.0)))
        assert json.loads(json.dumps(r))["promises"][0]["kept"] is True

    def test_tables_fit_in_100_columns(self):
        rows = [results.row(outcome(workload, name, (123.4, 150.0, 160.0), (123.4, 123.4, 123.4), (99.0, 99.0)), 2, 4.0)
                for workload in workloads.BY_NAME.values() for name in workload.passes]
        r = found(*rows, memory=[{"workload": "resnet18", "ratio": 0.9, "minidl": 1}], first_step={"cold": 6.0, "warm": 0.4})
        console = Console(width=100, record=True, file=io.StringIO())
        console.print(results.LEGEND)
        console.print(results.table(r), results.further(r))
        text = console.export_text()
        assert "…" not in text
        for layer in workloads.LAYERS:
            assert layer.title in text

    def test_a_shortfall_is_shown_for_each_threshold(self):
        r = results.row(outcome(RESNET, eager=(1.06, 1.06, 2.12), last=(0.9, 0.9, 1.8)), 2, 4.0)
        assert results.mark(r) == ("1.05/1", "[red]✓ -0.10[/]")
        assert results.mark(results.row(outcome(), 1, 4.0)) == ("", "")

    def test_a_section_for_the_readme(self):
        rows = [results.row(outcome(MLP, name), threads, 4.0) for threads in (1, 2) for name in MLP.passes]
        text = results.markdown(found(*rows, memory=[{"workload": "cnn", "ratio": 0.7, "minidl": 2**27}],
                                      first_step={"cold": 3.0, "warm": 0.2, "pytorch": 0.1}), "cpu.svg")
        assert text.startswith("![") and "(cpu.svg)" in text
        assert "| MLP, 128 examples | 2.00 (2.00-2.50) | - | 2.00 (2.00-2.50) | - |" in text
        assert "cnn 0.70 (128 MiB)" in text and "a processor" in text and "PyTorch 9.9" in text

    @pytest.mark.parametrize(("seconds", "text"), [(0.00123, "1.23 ms"), (2.5, "2.50 s"), (123.4, "123 s"), (5e-5, "50 µs")])
    def test_durations(self, seconds, text):
        assert results.duration(seconds) == text

    def test_a_picture(self, tmp_path):
        pytest.importorskip("matplotlib", reason="matplotlib draws the picture (extra bench)")
        from bench.picture import draw

        rows = [results.row(outcome(RESNET, name, last=(1.0, 1.0, 1.0)), threads, 4.0) for threads in (1, 2) for name in RESNET.passes]
        draw(found(*rows), tmp_path / "cpu.svg")
        assert "<svg" in (tmp_path / "cpu.svg").read_text()
        with pytest.raises(ValueError, match="nothing to draw"):
            draw(found(), tmp_path / "none.svg")


class TestCommand:
    def test_says_what_to_install(self):
        with pytest.raises(SystemExit, match=r"Nothing cannot be imported by .*\n.*pip install -e '.\[fast,bench\]'"):
            script().check({"numpy": "NumPy", "nothing_of_this_name": "Nothing"})

    def test_shows_what_was_measured_before(self, tmp_path, capsys):
        file = tmp_path / "cpu.json"
        file.write_text(json.dumps(found(*(results.row(outcome(MLP, name), 2, 4.0) for name in MLP.passes))))
        script().main(["--from", str(file)])
        assert "2.00 (2.00-2.50)" in capsys.readouterr().out
        script().main(["--from", str(file), "--markdown"])
        assert "| MLP, 128 examples |" in capsys.readouterr().out

    @pytest.mark.process
    def test_measures(self, tmp_path):
        pytest.importorskip("torch", reason="PyTorch is the peer (extra bench)")
        file = tmp_path / "cpu.json"
        words = ["--quick", "--rounds", "2", "--threads", "1", "--only", "mlp", "resnet50-3x3-512-512-7", "--json", file]
        done = subprocess.run([sys.executable, SCRIPT, *words], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert "training step, 1 thread" in done.stdout
        r = json.loads(file.read_text())
        assert {"machine", "versions", "blas", "rounds", "peak", "rows", "memory", "first_step", "promises", "notes"} <= set(r)
        assert {"minidl", "NumPy", "PyTorch"} <= set(r["versions"]) and r["peak"]["1"]["minidl"] > 0
        assert [(row["workload"], row["pass"]) for row in r["rows"]] == [
            ("mlp", "step"), ("mlp", "inference"), ("resnet50-3x3-512-512-7", "forward"), ("resnet50-3x3-512-512-7", "both")]
        for row in r["rows"]:
            modes = {"eager"} if row["workload"] == "mlp" else {"eager", "channels_last"}
            assert set(row["ratios"]) == modes and row["best"] in modes
            assert set(row["seconds"]) == modes | {"minidl", "numpy"}
            assert all(len(ratio["rounds"]) == 2 and ratio["median"] > 0 for ratio in row["ratios"].values())

    @pytest.mark.process
    @pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGKILL"])
    def test_leaves_no_process_behind(self, name):
        pytest.importorskip("torch", reason="PyTorch is the peer (extra bench)")
        psutil = pytest.importorskip("psutil", reason="psutil knows the processes")
        parent = psutil.Popen([sys.executable, SCRIPT, "--only", "mlp"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 60
        while len(workers := parent.children()) < 2 and time.monotonic() < until:
            time.sleep(0.05)
        parent.send_signal(getattr(signal, name))
        parent.wait(30)
        assert len(workers) >= 2
        assert not psutil.wait_procs(workers, 10)[1]
