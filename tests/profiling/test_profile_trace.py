"""The trace is what Perfetto reads: complete events that lie in one another, a process for each rank, on one clock."""

import json
import time

import numpy as np
import pytest

import minidl
from minidl import data, models, optim
from minidl import functions as F
from minidl.loop import fit
from minidl.parallel import Team, local
from minidl.profiling import measured as module
from minidl.profiling import ranks

TRAIN, _ = data.load("digits")


def learn(communicator=None, overlap="backward", kind="sgd"):
    """A profile of a short run, of all ranks on the first."""
    model = models.create("mlp", input_shape=(1, 8, 8), classes=10, generator=0)
    optimizer = optim.create(kind, model, lr=0.01)
    team = None if communicator is None else Team(communicator, overlap=overlap, chunk=40_000)
    with minidl.profile() as p:
        fit(model, data.Loader(TRAIN[:200], batch_size=50), None, optimizer, 1, team=team)
    if communicator is not None:
        p.gather(communicator)
    return p


def written(p, tmp_path):
    p.trace(tmp_path / "trace.json")
    return json.loads((tmp_path / "trace.json").read_text(), parse_constant=lambda name: 1 / 0)


def complete(content):
    return [each for each in content["traceEvents"] if each["ph"] == "X"]


def check(content):
    """The trace event format, as its description has it, and that what overlaps on a track lies in one another."""
    assert set(content) == {"traceEvents", "displayTimeUnit", "otherData"} and content["displayTimeUnit"] == "ms"
    named = set()
    for each in content["traceEvents"]:
        assert each["ph"] in "XM" and isinstance(each["pid"], int) and isinstance(each["name"], str)
        if each["ph"] == "M":
            assert each["name"] in ("process_name", "process_sort_index", "thread_name", "thread_sort_index") and len(each["args"]) == 1
            named.add((each["pid"], each.get("tid")))
        else:
            assert isinstance(each["tid"], int) and each["ts"] >= 0 and each["dur"] >= 0 and isinstance(each["cat"], str)
            assert (each["pid"], each["tid"]) in named and (each["pid"], None) in named
    tracks = {}
    for each in complete(content):
        tracks.setdefault((each["pid"], each["tid"]), []).append((round(1000 * each["ts"]), round(1000 * (each["ts"] + each["dur"])), each))
    for events in tracks.values():
        stack = []
        for start, end, each in sorted(events, key=lambda e: (e[0], -e[1])):
            while stack and stack[-1] <= start:
                stack.pop()
            assert not stack or end <= stack[-1], each
            stack.append(end)


@pytest.mark.parametrize("kind", ["sgd", "kfac"])
def test_of_one_process(kind, tmp_path):
    content = written(learn(kind=kind), tmp_path)
    check(content)
    assert {each["cat"] for each in complete(content)} == {"phase", "layer", "operation", "rule", "update"}
    names = {each["args"]["name"] for each in content["traceEvents"] if each["name"] in ("process_name", "thread_name")}
    assert names == {"rank 0", "computation"}


def test_operations_lie_in_layers_and_layers_in_phases(tmp_path):
    events = complete(written(learn(), tmp_path))

    def around(inner, category):
        return [each for each in events if each["cat"] == category and each["ts"] <= inner["ts"]
                and inner["ts"] + inner["dur"] <= each["ts"] + each["dur"] + 1e-3]

    for each in events:
        if each["cat"] == "rule" and each["args"].get("layer"):
            assert each["args"]["layer"] in {layer["name"] for layer in around(each, "layer")}
            assert "backward" in {phase["name"] for phase in around(each, "phase")}


@pytest.mark.parametrize("overlap", ["none", "backward", "forward"])
def test_of_many_ranks_on_one_clock(overlap, tmp_path):
    p = local.run(lambda communicator: learn(communicator, overlap), 3)[0]
    content = written(p, tmp_path)
    check(content)
    assert {each["pid"] for each in complete(content)} == {0, 1, 2} and p.ranks == 3 and len(p.data()["ranks"]) == 3
    error = max(error for _, error in p.alignment)
    assert error < 0.05
    exchanged = [event for event in p.events() if event.category == "exchange"]
    assert {event.name for event in exchanged} >= {"facts of the step", "sum of chunk 0"}
    assert all(event.thread.startswith("exchange") for event in exchanged)
    by_rank = [[event for event in exchanged if event.rank == rank and event.name == "facts of the step"] for rank in range(3)]
    assert len(by_rank[0]) == len(by_rank[1]) == len(by_rank[2]) == 4
    for meeting in zip(*by_rank):           # nobody has everyone's facts before the last one has brought his
        assert min(event.end for event in meeting) >= max(event.start for event in meeting) - 2 * error


def test_ranks_that_are_not_there_are_not_in_it(tmp_path):
    """A profile is of those who gather it."""
    def work(communicator):
        group = communicator.split(0 if communicator.rank < 2 else None, communicator.rank)
        return None if group is None else learn(group)

    p = local.run(work, 3)[0]
    assert {event.rank for event in p.events()} == {0, 1}


class TestClocks:
    @pytest.mark.parametrize("ahead", [0, 10**9, -(10**12)])
    def test_are_aligned_whatever_they_show(self, ahead):
        def work(communicator):
            return ranks.offsets(communicator, lambda: time.perf_counter_ns() + ahead * communicator.rank)

        found = local.run(work, 3)[0]
        assert found[0] == (0, 0)
        for rank, (offset, error) in enumerate(found[1:], 1):
            assert abs(offset - ahead * rank) <= error < 10**8

    def test_events_of_other_ranks_are_moved(self, monkeypatch):
        """Rank 1's clock is 5 seconds ahead, and its profile began 2 seconds later."""
        monkeypatch.setattr(module.ranks, "offsets", lambda communicator: [(0, 0), (5 * 10**9, 1000)])

        def work(communicator):
            with minidl.profile() as p:
                F.exp(np.ones(3))
            p.found.begun = 10**12 + communicator.rank * 7 * 10**9
            p._found.events[0].start, p._found.events[0].end = 1.0, 1.5
            p.gather(communicator)
            return p

        p = local.run(work, 2)[0]
        assert [(event.rank, event.start, event.end) for event in p.events()] == [(0, 1.0, 1.5), (1, 3.0, 3.5)]
        assert p.alignment == [(0, 0), (5.0, 1e-6)]


def test_jobs_at_a_time_lie_on_tracks_of_their_own():
    from minidl.profiler import Recorder
    from minidl.profiling.events import lanes

    here = Recorder()
    here.jobs = [(0, 10, 7, "a", 1), (5, 12, 7, "b", 2), (10, 20, 7, "c", 3), (30, 40, 7, "later", 4)]
    found = {event.name: event for event in lanes(here, 0, 25, 0)}
    assert {name: event.thread for name, event in found.items()} == {"a": "exchange", "b": "exchange 2", "c": "exchange"}
    assert (found["c"].start, found["c"].end, found["c"].bytes) == (1e-8, 2e-8, 3)
