"""What every rank does in the benchmark: trains, by turns, in all the ways of a group, and writes down times and bytes.

    python -m exchange.rank PLAN RESULTS        under MPI, on hosts of which each has one link, eth0

PLAN and RESULTS are JSON; rank 0 writes the latter. The loop is minidl.loop.fit and the team minidl.parallel's, so what is measured is what
trains. First of all it is shown that messages are on the wire at all.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

import minidl
from exchange import alexnet, cells
from exchange.cells import Cell, Group
from minidl import functions as F
from minidl import optim
from minidl.data import Loader
from minidl.loop import Callback, Objective, fit
from minidl.parallel import Alone, Team, mpi
from minidl.parallel.communicator import Communicator
from minidl.parallel.ending import end_together
from minidl.parallel.staging import EmulatedDevice, Staging

COUNTERS = Path("/sys/class/net/eth0/statistics")
TRIAL, PIECE = 8 << 20, 32 << 10        # bytes that are sent to see how fast the wire is, and those of one message
EVERYTHING = 1 << 40        # a chunk that holds all


def main(plan_file: str, results_file: str) -> None:
    plan = json.loads(Path(plan_file).read_text())
    world = mpi.world()
    with end_together(world):
        measure(world, plan, Path(results_file))
    mpi.leave()


def measure(world: Communicator, plan: dict[str, Any], results_file: Path) -> None:
    """All of it."""
    bench = Bench(world, plan)
    results = {"minidl": minidl.__version__, "library": mpi.library().Get_library_version().split(",")[0].strip("\0"),
               "wire": bench.wire(), "sums": sums(plan["chunk"]) if world.rank == 0 else [], "groups": []}
    for i, entry in enumerate(plan["groups"]):
        results["groups"].append(bench.group(cells.read(entry), f"{i + 1} of {len(plan['groups'])}"))
    if world.rank == 0:
        results_file.write_text(json.dumps(results))


class Bench:
    """plan: of the command."""

    def __init__(self, world: Communicator, plan: dict[str, Any]):
        self.world, self.plan = world, plan
        self.control = world.duplicate()

    def tell(self, text: str) -> None:
        """Something to read meanwhile."""
        if self.world.rank == 0:
            print(text, flush=True)

    def everyones(self, numbers: Any) -> list[Any]:
        """What each rank has, in their order."""
        return [json.loads(text) for text in self.control.gather_bytes(json.dumps(numbers).encode())]

    # The wire

    def wire(self) -> dict[str, Any]:
        """Send a known number of bytes from each rank to the next, both ways at once, and look whether the interface counted them.

        Ends the run if it did not: what is measured would then be something else.
        """
        rank, size = self.world.rank, self.world.size
        out, coming = (np.ones((TRIAL // PIECE, PIECE), np.uint8) for _ in range(2))
        found = []
        for _ in range(2):                              # connections are made at the first use
            self.control.barrier()                      # nothing of what was before is under way
            before = counted()
            self.control.barrier()                      # and nobody sends before all have looked
            started = time.perf_counter()
            self.world.wait([self.world.irecv(piece, (rank - 1) % size) for piece in coming] +
                            [self.world.isend(piece, (rank + 1) % size) for piece in out])
            self.control.barrier()
            seconds, after = time.perf_counter() - started, counted()
            found.append({"bytes": out.nbytes, "seconds": seconds, "sent": after[0] - before[0], "received": after[1] - before[1]})
        ranks = self.everyones(found[-1])
        for number, entry in enumerate(ranks):
            for way in ("sent", "received"):
                if not entry["bytes"] <= entry[way] <= 1.2 * entry["bytes"]:
                    self.tell(f"not on the wire: by its interface rank {number} has {way} {entry[way]:,} bytes, of {entry['bytes']:,}")
                    self.control.barrier()
                    sys.exit(3)
        self.rate = max(entry["bytes"] / entry["seconds"] for entry in ranks)
        self.tell(f"on the wire: {out.nbytes / 1e6:.2f} MB sent, {ranks[0]['sent'] / 1e6:.2f} MB counted, "
                  f"{self.rate * 8e-6:.0f} Mbit/s of content each way")
        return {"rate": self.rate, "ranks": ranks}

    # A group

    def group(self, group: Group, number: str) -> dict[str, Any]:
        """Bring the model to the size, or the minibatch to the length, at which communication takes as long as it shall; then measure."""
        seconds, rounds, steps = self.plan["seconds"], self.plan["rounds"], self.plan["steps"]
        realtime(self.plan["realtime"] and group.compute == "sleep")
        title = f"{number}: {group.exchange}, {'NumPy' if group.compute == 'numpy' else 'asleep'}, {group.ratio:g}"
        ways = 2 if group.exchange == "master-worker" else 1            # up, then down; all-reduce sends half of it twice, both ways
        factor = group.ratio * seconds * self.rate / ways / (4 * alexnet.NUMBERS)
        problem = Problem(self, group, factor, seconds)
        serial = Cell("serial")
        if group.compute == "numpy":                                    # the minibatch is what can be chosen
            problem = Problem(self, group, factor, self.decided(problem.batch_for(seconds)))
        alone, trial = (self.decided(problem.typical(cell, 4)) for cell in (None, serial))
        if group.compute == "sleep":
            problem = Problem(self, group, factor * group.ratio * alone / max(trial - alone, 1e-3), seconds)
        runs: dict[Any, list[dict[str, Any]]] = {cell: [] for cell in [None, *group.cells]}
        for k in range(rounds):
            for cell in runs:
                self.tell(f"{title}, round {k + 1} of {rounds}: {name(cell)}")
                runs[cell].append(problem.run(cell, steps))
        return cells.written(group) | {
            "bytes": problem.bytes, "batch": problem.batch, "alone": runs[None],
            "cells": [{"technique": cell.technique, "compress": cell.compress, "runs": runs[cell]} for cell in group.cells]}

    def decided(self, number: float) -> float:
        """Rank 0's, so that all build the same."""
        return float(self.control.broadcast(np.array(number, np.float64)))


class Problem:
    """A model that is trained in the ways of a group. amount: seconds that a step's computation takes asleep, or examples for each rank."""

    def __init__(self, bench: Bench, group: Group, factor: float, amount: float):
        self.bench, self.group, self.plan = bench, group, bench.plan
        asleep = group.compute == "sleep"
        self.model = alexnet.Asleep(factor, amount) if asleep else alexnet.narrow(factor)
        self.batch = bench.world.size * (1 if asleep else max(1, round(amount)))
        self.optimizer = optim.SGD(self.model, lr=1e-4, momentum=0.9)
        self.bytes = sum(p.size for p in self.optimizer.parameters.values()) * 4
        shape = (1,) if asleep else (3, 227, 227)
        self.data = np.zeros((self.batch, *shape), np.float32), np.zeros(self.batch, np.int64)
        self.objective = Objective(lambda y, x, labels: y.mean()) if asleep else \
            Objective(lambda y, x, labels: F.softmax_cross_entropy(y, labels))
        self.teams: dict[Cell | None, Any] = {None: Alone()}

    def team(self, cell: Cell | None) -> Any:
        if cell not in self.teams:
            self.teams[cell] = Observed(self.bench.world, self.group, cell, self.plan, self.bench.rate)
        return self.teams[cell]

    def run(self, cell: Cell | None, steps: int) -> dict[str, Any]:
        """Train for some steps. Seconds from step to step, at the slowest rank; bytes a step by the interfaces' counters, of each rank."""
        team, clock = self.team(cell), Clock(self.bench.control)
        data = self.data if cell is not None else tuple(x[:len(x) // self.bench.world.size] for x in self.data)
        loader = Loader(data, batch_size=len(data[0]), shuffle=False, prefetch=0)
        before = dict(team.spent) if cell is not None else {}
        fit(self.model, loader, None, self.optimizer, epochs=steps, callbacks=[clock], objective=self.objective, team=team)
        self.bench.control.barrier()
        sent, received = (b - a for a, b in zip(clock.bytes, counted()))
        spent = {key: (value - before[key]) / steps for key, value in team.spent.items()} if cell is not None else {}
        ranks = self.bench.everyones([np.diff(clock.times).tolist(), sent / steps, received / steps, spent])
        return {"seconds": np.max([entry[0] for entry in ranks], axis=0).tolist(), "sent": [entry[1] for entry in ranks],
                "received": [entry[2] for entry in ranks], "spent": [entry[3] for entry in ranks]}

    def typical(self, cell: Cell | None, steps: int) -> float:
        return float(np.median(self.run(cell, steps)["seconds"]))

    def batch_for(self, seconds: float) -> float:
        """How many examples a rank computes in so many seconds."""
        tried = 8
        x, labels = (np.zeros((tried, *a.shape[1:]), a.dtype) for a in self.data)
        times = []
        for _ in range(4):
            self.bench.control.barrier()
            started = time.perf_counter()
            self.objective.loss(self.model(x), x, labels).backward()
            times.append(time.perf_counter() - started)
        self.optimizer.zero_grad()
        return tried * seconds / min(times)


class Observed(Team):
    """A team as a cell wants it, which notes how long sums take; every rank has built the same model, so nothing is sent to begin with."""

    def __init__(self, world: Communicator, group: Group, cell: Cell, plan: dict[str, Any], rate: float):
        self.technique = cells.TECHNIQUES[cell.technique]
        staging = EmulatedDevice(cells.BUS * rate) if group.bus else Staging()
        sizes = {"chunk": plan["chunk"], "window": plan["window"]} if self.technique.by_chunks else {"chunk": EVERYTHING, "window": 1}
        super().__init__(world, group.exchange, overlap=self.technique.overlap, compress=cell.compress, staging=staging,
                         **{name: value for name, value in sizes.items() if value})
        self.spent = {"sums": 0.0, "summed": 0.0, "waited": 0.0}           # seconds, bytes of gradients, seconds

    def bind(self, model: Any, optimizer: Any) -> None:
        super().bind(model, optimizer)
        self.add_up, self.exchange.add_up = self.exchange.add_up, self.timed      # type: ignore[method-assign]

    def timed(self, parcels: Mapping[int, np.ndarray], numbers: np.ndarray) -> None:
        """Add up, and note how long it took."""
        started = time.perf_counter()
        if self.technique.by_vectors:
            self.add_up(parcels, numbers)
        else:
            one_by_one([numbers if rank == self.rank else parcels[rank] for rank in range(self.ranks)], numbers)
        self.spent["sums"] += time.perf_counter() - started
        self.spent["summed"] += numbers.nbytes * self.ranks

    def begin(self, run: Any, rehearse: Any) -> bool:
        self.bind(run.model, run.optimizer)
        return True

    def listen(self, clip: float | None = None, scale: float | None = None) -> None:
        if not self.technique.later:
            super().listen(clip, scale)

    def update(self, *args: Any, **options: Any) -> Any:
        before = self.waited + self.arrivals.waited
        try:
            return super().update(*args, **options)
        finally:
            self.spent["waited"] += self.waited + self.arrivals.waited - before


class Clock(Callback):
    """When each step was made, and what the interface had counted when the first began."""

    def __init__(self, control: Communicator):
        self.control, self.times = control, []

    def start(self, run: Any) -> None:
        self.control.barrier()
        self.bytes = counted()
        self.control.barrier()                          # nobody sends before all have looked

    def step(self, run: Any, loss: float) -> None:
        self.times.append(time.perf_counter())


def realtime(yes: bool) -> None:
    """Whether this thread, and those that it starts from now on, go before all else on this machine."""
    with suppress(PermissionError):                     # in some containers
        os.sched_setscheduler(0, os.SCHED_RR if yes else os.SCHED_OTHER, os.sched_param(1 if yes else 0))


def counted() -> tuple[int, int]:
    """Bytes that this host has sent and received."""
    sent, received = (int((COUNTERS / f"{way}_bytes").read_text()) for way in ("tx", "rx"))
    return sent, received


def one_by_one(terms: list[np.ndarray], out: np.ndarray) -> None:
    """The sum without NumPy's help."""
    out[...] = [sum(numbers) for numbers in zip(*(term.tolist() for term in terms))]


def by_vectors(terms: list[np.ndarray], out: np.ndarray) -> None:
    """The sum as exchanges make it."""
    total = terms[0]
    for term in terms[1:]:
        total = np.add(total, term, out=term)
    out[...] = total


def sums(chunk: int, seconds: float = 0.3) -> list[dict[str, Any]]:
    """Bytes of gradients that are added up in a second, in chunks of so many bytes: of 2 and 4 ranks, by vectors and one by one."""
    found = []
    for ranks in (2, 4):
        terms = [np.random.default_rng(rank).standard_normal(max(1, chunk // 4), np.float32) for rank in range(ranks)]
        out = np.empty_like(terms[0])
        for way, add in (("by vectors", by_vectors), ("one by one", one_by_one)):
            found.append({"ranks": ranks, "way": way, "rate": sum(term.nbytes for term in terms) / quickest(add, terms, out, seconds)})
    return found


def quickest(add: Callable[..., None], terms: list[np.ndarray], out: np.ndarray, seconds: float) -> float:
    """The shortest of the times that fit into some seconds."""
    until, best = time.perf_counter() + seconds, float("inf")
    while best == float("inf") or time.perf_counter() < until:
        copies = [term.copy() for term in terms]
        started = time.perf_counter()
        add(copies, out)
        best = min(best, time.perf_counter() - started)
    return best


def name(cell: Cell | None) -> str:
    if cell is None:
        return "computation alone"
    return cells.TECHNIQUES[cell.technique].title + (f", {cell.compress}" if cell.compress != "none" else "")


if __name__ == "__main__":
    main(*sys.argv[1:])
