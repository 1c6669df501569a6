"""The benchmark of exchanges: its model, what is measured, its tables; and a short run of it between two hosts.

No test looks at how long something took, or at what gains how much.
"""

import contextlib
import importlib.util
import io
import json
import subprocess
import sys
import time
from importlib.machinery import SourceFileLoader
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from bench import machine
from exchange import alexnet, cells, network, rank, results, section
from minidl.parallel import local
from minidl.testing import gradcheck

SCRIPT = Path(__file__).parents[1] / "scripts" / "bench_exchange"


def script():
    """The command as a module, though its name does not end in .py."""
    loader = SourceFileLoader("bench_exchange", str(SCRIPT))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("bench_exchange", loader))
    loader.exec_module(module)
    return module


class TestAlexNet:
    def test_sizes_are_those_of_the_paper(self):
        assert alexnet.NUMBERS == 60_965_224                            # "60 million parameters"
        assert [layer.weights for layer in alexnet.LAYERS] == [34848, 307200, 884736, 663552, 442368, 37748736, 16777216, 4096000]
        assert [layer.biases for layer in alexnet.LAYERS] == [96, 256, 384, 384, 256, 4096, 4096, 1000]
        assert sum(alexnet.shares()) == pytest.approx(1)
        assert sum(alexnet.shares()[:5]) > 0.9                          # convolutions compute most, and hold the least

    def test_all_are_scaled_by_one_factor(self):
        for (name, weights, biases), layer in zip(alexnet.scaled(0.1), alexnet.LAYERS):
            assert name == layer.name and weights == round(0.1 * layer.weights) and biases == round(0.1 * layer.biases)
        assert all(weights == biases == 1 for _, weights, biases in alexnet.scaled(1e-9))

    def test_the_parameters_of_a_sleeper_come_in_their_order(self):
        model = alexnet.Asleep(1e-3, 0.0)
        found = {path: p.shape for path, p in model.named_parameters()}
        assert list(found) == [f"layers.{layer.name}.{kind}" for layer in alexnet.LAYERS for kind in ("w", "b")]
        assert list(found.values()) == [(n,) for _, weights, biases in alexnet.scaled(1e-3) for n in (weights, biases)]

    def test_a_sleeper_sleeps_forward_once_and_backward_twice(self, monkeypatch):
        slept = []
        monkeypatch.setattr(alexnet.time, "sleep", slept.append)
        model = alexnet.Asleep(1e-4, 0.9)
        y = model(np.ones((2, 1), np.float32))
        assert slept == pytest.approx([0.3 * share for share in alexnet.shares()])
        slept.clear()
        y.mean().backward()
        assert sum(slept) == pytest.approx(0.6)
        np.testing.assert_array_equal(y.data, 1)

    def test_gradients_become_final_from_the_last_layer_to_the_first(self):
        model, order = alexnet.Asleep(1e-4, 0.0), []
        for path, p in model.named_parameters():
            p.register_ready_hook(lambda leaf, path=path: order.append(path.split(".")[1]))
        model(np.ones((2, 1), np.float32)).mean().backward()
        assert list(dict.fromkeys(order)) == [layer.name for layer in reversed(alexnet.LAYERS)]
        for layer in model.layers.values():
            np.testing.assert_array_equal(layer.w.grad.data, layer.sleep.gw)
            np.testing.assert_array_equal(layer.b.grad.data, layer.sleep.gb)
            assert layer.w.grad.data is not layer.sleep.gw

    def test_what_goes_through_a_sleeper_has_its_gradient(self):
        sleep = alexnet.Sleep(0.0, False, np.zeros(3), np.zeros(1))
        w, b = np.zeros(3), np.zeros(1)
        gradcheck(lambda x: sleep(x, w, b), np.random.default_rng(0).standard_normal((2, 1)))

    def test_narrow_layers(self):
        model = alexnet.narrow(0.001)
        assert model(np.zeros((1, 3, 227, 227), np.float32)).shape[0] == 1
        convolved = [p.shape for path, p in model.named_parameters() if p.ndim == 4]
        assert [shape[2] for shape in convolved] == [11, 5, 3, 3, 3]
        size = sum(p.size for _, p in alexnet.narrow(0.04).named_parameters())
        assert size == pytest.approx(0.04 * alexnet.NUMBERS, rel=0.05)


class TestCells:
    def test_every_exchange_technique_ratio_and_codec_is_there(self):
        found = cells.groups()
        assert {group.exchange for group in found} == {"allreduce", "master-worker"}
        for exchange in cells.EXCHANGES:
            of = [group for group in found if group.exchange == exchange]
            assert [group.ratio for group in of if group.kind == "overlap"] == [0.59, 1.0, 3.05]
            assert {cell.technique for group in of for cell in group.cells} == set(cells.TECHNIQUES)
            assert {cell.compress for group in of for cell in group.cells} == {"none", "fp16", "int8", "topk:0.01"}
            assert {group.compute for group in of} == {"sleep", "numpy"}
        assert all(cells.TECHNIQUES[group.cells[0].technique].serial for group in found)

    def test_json_brings_them_back(self):
        assert [cells.read(json.loads(json.dumps(cells.written(group)))) for group in cells.groups()] == cells.groups()


class TestSums:
    def test_both_ways_add_in_the_order_of_the_ranks(self):
        draw = np.random.default_rng(0)
        terms = [draw.standard_normal(1000).astype(np.float32) for _ in range(3)]
        wanted = (terms[0] + terms[1]) + terms[2]
        out = np.empty(1000, np.float32)
        rank.by_vectors([term.copy() for term in terms], out)
        np.testing.assert_array_equal(out, wanted)
        rank.one_by_one(terms, out)
        np.testing.assert_allclose(out, wanted, rtol=1e-5, atol=1e-6)           # which adds in float64

    def test_rates(self):
        found = rank.sums(4096, seconds=0.0)
        assert [(entry["ranks"], entry["way"]) for entry in found] == [(2, "by vectors"), (2, "one by one"), (4, "by vectors"),
                                                                       (4, "one by one")]
        assert all(entry["rate"] > 0 for entry in found)


def small_plan(**changes):
    return {"seconds": 0.0, "rounds": 2, "steps": 3, "chunk": 1 << 14, "window": None, "realtime": False} | changes


class TestRank:
    @pytest.fixture(autouse=True)
    def interface(self, monkeypatch):
        """Counters that count nothing: threads have no interface."""
        monkeypatch.setattr(rank, "counted", lambda: (0, 0))

    @pytest.mark.parametrize("exchange", cells.EXCHANGES)
    def test_all_techniques_learn_the_same(self, exchange):
        group = cells.Group("overlap", exchange, "sleep", 1.0, [], bus=True)

        def train(communicator):
            bench = rank.Bench(communicator, small_plan())
            bench.rate, weights = 1e9, {}
            for technique in cells.TECHNIQUES:
                problem = rank.Problem(bench, group, 2e-4, 0.0)
                run = problem.run(cells.Cell(technique), 3)
                assert len(run["seconds"]) == 2 and len(run["sent"]) == len(run["spent"]) == 2
                weights[technique] = np.concatenate([p.data for _, p in problem.model.named_parameters()])
            return weights

        first, *others = local.run(train, 2)
        for weights in [first, *others]:
            for technique, found in weights.items():
                same = np.testing.assert_array_equal if cells.TECHNIQUES[technique].by_vectors else np.testing.assert_allclose
                same(found, first["serial"])

    def test_a_group_is_measured_in_rounds(self):
        group = cells.Group("overlap", "allreduce", "sleep", 1.0, [cells.Cell("serial"), cells.Cell("both", "topk:0.01")])

        def measure(communicator):
            bench = rank.Bench(communicator, small_plan(seconds=0.01))
            bench.rate, bench.tell = 1e6, lambda text: None
            return bench.group(group, "1 of 1")

        found, _ = local.run(measure, 2)
        assert json.loads(json.dumps(found)) == found and found["batch"] == 2 and found["bytes"] > 0
        assert len(found["alone"]) == 2 and [len(cell["runs"]) for cell in found["cells"]] == [2, 2]
        assert found["cells"][0]["runs"][0]["spent"][0]["summed"] > 0

    def test_what_is_not_on_the_wire_is_not_measured(self):
        def look(communicator):
            bench = rank.Bench(communicator, small_plan())
            with pytest.raises(SystemExit):
                bench.wire()

        local.run(look, 2)


def run(seconds, sent=10e6, received=10e6):
    spent = {"sums": 0.01, "summed": 1e8, "waited": 0.1}
    return {"seconds": [seconds] * 3, "sent": [1.0, sent], "received": [1.0, received], "spent": [spent, spent]}


def group(exchange="allreduce", ratio=1.0, kind="overlap"):
    """Of invented numbers: 1 s of computation, 1 s of communication."""
    found = [("serial", "none", 2.0, 10e6), ("backward", "none", 1.25, 10e6), ("forward", "none", 1.6, 10e6), ("both", "none", 1.0, 10e6),
             ("serial", "int8", 1.25, 2.5e6), ("both", "int8", 1.0, 2.5e6)]
    return {"kind": kind, "exchange": exchange, "compute": "sleep", "ratio": ratio, "bus": False, "bytes": 9_000_000, "batch": 2,
            "alone": [run(1.0, 0, 0)] * 2,
            "cells": [{"technique": technique, "compress": codec, "runs": [run(seconds, sent, sent), run(seconds * 1.0, sent, sent)]}
                      for technique, codec, seconds, sent in found]}


def found(*groups):
    about = machine.describe() | {"processor": "a processor", "date": "2026-01-02 03:04 UTC"}
    ends = [{"bytes": 8_388_608, "seconds": 0.35, "sent": 8_500_000, "received": 8_500_000}] * 2
    return results.with_promises({
        "machine": about, "versions": {"NumPy": "9.9"}, "quick": False, "seconds": 0.4, "rounds": 2, "steps": 4, "chunk": 1 << 18,
        "window": None, "network": {"ranks": 2, "rate": "200mbit", "burst": "64kb", "latency": "20ms"}, "notes": ["A note."],
        "wire": {"rate": 24e6, "ranks": ends}, "sums": [{"ranks": 2, "way": "by vectors", "rate": 5e9}],
        "groups": [results.with_figures(group) for group in groups]})


class TestResults:
    def test_figures(self):
        g = results.with_figures(group())
        serial, backward, _, both, _, small = g["cells"]
        assert g["measured_ratio"] == 1.0 and g["limit"] == 2.0 and g["computation"] == {"median": 1.0, "low": 1.0, "high": 1.0}
        assert serial["hidden"] == 0 and backward["hidden"] == 0.75 and both["hidden"] == 1
        assert backward["ratio"] == {"median": 1.6, "low": 1.6, "high": 1.6} and both["ratio"]["median"] == 2
        assert small["of_float32"] == 0.25 and small["hidden"] == 1         # of what int8 leaves to be hidden
        assert serial["up"] == serial["down"] == 10e6 and serial["sums"] == 1e10

    def test_where_less_is_sent_the_limit_is_lower(self):
        g = group() | {"alone": [run(4 / 3, 0, 0)]}
        assert results.with_figures(g)["limit"] == pytest.approx(1.5)
        assert results.with_figures(group() | {"alone": [run(0.5, 0, 0)]})["limit"] == pytest.approx(4 / 3)

    def test_promises_are_held_against_what_was_reached(self):
        kept = {promise.what: (promise.must, promise.kept) for promise in results.promises(found(group(), group(ratio=0.59)))}
        assert kept == {"allreduce, 1: backward overlap": (1.35, True), "allreduce, 1: backward + forward": (1.45, True),
                        "allreduce, 1: backward + forward, int8, bytes / float32's": (0.26, True),
                        "allreduce, 0.59: backward + forward": (1.4, True),
                        "allreduce, 0.59: backward + forward, int8, bytes / float32's": (0.26, True)}

    def test_the_file_holds_the_promises_and_the_figures(self):
        r = json.loads(json.dumps(found(group())))
        assert r["promises"][0]["kept"] is True and r["groups"][0]["cells"][1]["hidden"] == 0.75

    def test_tables_fit_in_110_columns(self):
        r = found(group(), group("master-worker", 3.05))
        console = Console(width=110, record=True, file=io.StringIO())
        for g in r["groups"]:
            console.print(results.table(g))
        console.print(results.promise_table(r))
        text = console.export_text()
        assert "…" not in text and "backward + forward, int8" in text and "1.60" in text and "75%" in text

    def test_a_section_for_the_readme(self):
        text = section.markdown(found(group()), "exchange.svg")
        assert text.startswith("![") and "(exchange.svg)" in text
        assert "| backward overlap | 1.25 s | 1.60 | 75% | 10.00 | 10.00 |" in text
        assert "2 hosts of 200mbit both ways" in text and "a processor" in text and "A note." in text

    def test_a_picture(self, tmp_path):
        pytest.importorskip("matplotlib", reason="matplotlib draws the picture (extra bench)")
        from exchange.picture import draw

        draw(found(group(), group(ratio=3.05), group("master-worker")), tmp_path / "exchange.svg")
        assert "<svg" in (tmp_path / "exchange.svg").read_text()
        with pytest.raises(ValueError, match="nothing to draw"):
            draw(found(), tmp_path / "none.svg")


class TestCommand:
    def test_says_what_to_install(self):
        with pytest.raises(SystemExit, match=r"Nothing cannot be imported by .*\n.*pip install -e '.\[mpi,bench\]'"):
            script().check({"numpy": "NumPy", "nothing_of_this_name": "Nothing"})

    def test_shows_what_was_measured_before(self, tmp_path, capsys):
        file = tmp_path / "exchange.json"
        file.write_text(json.dumps(found(group())))
        script().main(["--from", str(file)])
        assert "1.60" in capsys.readouterr().out
        script().main(["--from", str(file), "--markdown"])
        assert "| backward overlap |" in capsys.readouterr().out

    def test_an_unknown_codec(self, monkeypatch):
        monkeypatch.setattr(network, "missing", lambda: "")
        with pytest.raises(SystemExit, match=r"bench_exchange: .*int9"):
            script().main(["--compress", "int9"])

    @pytest.mark.process
    @pytest.mark.skipif(bool(network.missing()), reason=f"scripts/network: {network.missing()}")
    @pytest.mark.skipif(importlib.util.find_spec("mpi4py") is None, reason="mpi4py is missing: python -m pip install 'minidl[mpi]'")
    def test_measures(self, tmp_path):
        file = tmp_path / "exchange.json"
        words = ["--quick", "--only", "overlap", "--ratios", "1", "--seconds", "0.05", "--steps", "3", "--compress", "topk:0.01",
                 "--json", file]
        for _ in range(60):                         # somebody else may use the network
            done = subprocess.run([sys.executable, SCRIPT, *words], capture_output=True, text=True, timeout=300)
            if "another process uses the network" not in done.stderr:
                break
            time.sleep(2)
        if "there are hosts already" in done.stderr or "another process uses the network" in done.stderr:
            pytest.skip("scripts/network: somebody else uses the network")
        assert done.returncode == 0, done.stderr
        assert "on the wire: 8.39 MB sent" in done.stderr and "allreduce, 1: backward overlap" in done.stdout
        r = json.loads(file.read_text())
        assert {"machine", "versions", "network", "wire", "sums", "groups", "promises", "notes"} <= set(r)
        assert [g["exchange"] for g in r["groups"]] == ["allreduce", "master-worker"]
        for g in r["groups"]:
            assert [(cell["technique"], cell["compress"]) for cell in g["cells"]] == [
                *((name, "none") for name in cells.OVERLAPS), ("serial", "topk:0.01"), ("both", "topk:0.01")]
            for cell in g["cells"]:
                for way in ("up", "down"):          # all-reduce and master-worker: a worker sends and receives as much as there is
                    if cell["compress"] == "none":
                        assert g["bytes"] < cell[way] < 1.3 * g["bytes"] + 20_000
                    else:
                        assert cell[way] < 0.5 * g["bytes"]
        with contextlib.suppress(network.NetworkError):
            assert network.hosts() == []
