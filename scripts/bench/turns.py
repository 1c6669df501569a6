"""Workers that take turns: while one computes, the others are stopped as processes, so that no spinning thread of theirs disturbs it.

A round asks every contestant for a block of passes; the order is turned round from round to round, and a block counts by its median.
What happens to the machine meanwhile happens to all sides alike, and a ratio is taken within a round.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.workloads import Layer, Model

SCRIPTS = Path(__file__).parents[1]
FOREIGN = ("OPENBLAS_", "GOTO_", "MKL_", "OMP_", "KMP_", "GOMP_", "BLIS_", "MALLOC_", "NUMBA_NUM_THREADS", "VECLIB_", "NUMEXPR_")
TUNED = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}     # glibc keeps freed memory: no page faults every step
TOLERANCES = {"first loss": 1e-4, "third loss": 1e-3, "outputs": 1e-2, "y": 1e-4, "gx": 1e-4, "gw": 1e-4}
LONG = 0.5                  # seconds of a pass
NUMPY_ROUNDS = 4            # NumPy alone is for scale, and slow


class WorkerError(Exception):
    """A worker failed or ended; says what it said."""


class Mismatch(Exception):
    """The sides do not compute the same: there is nothing to compare."""


def foreign(variables=os.environ) -> list[str]:
    """Environment variables that would change one side's speed: workers do not see them."""
    return sorted(name for name in variables if name.startswith(FOREIGN))


def environment(extra: dict[str, str] | None = None) -> dict[str, str]:
    """For a worker: this checkout of minidl, and every library as it is by itself."""
    kept = {name: value for name, value in os.environ.items() if name not in foreign()}
    paths = [str(SCRIPTS), str(SCRIPTS.parent), *filter(None, [kept.get("PYTHONPATH")])]
    return kept | {"PYTHONPATH": os.pathsep.join(paths)} | (extra or {})


class Worker:
    """A process of one side, stopped unless it answers.

    It has a process group of its own, so that Ctrl-C reaches the parent alone, which then ends it. Should the parent be killed, the
    kernel ends a stopped process of a group that nobody is left to look after.
    """

    def __init__(self, side: str, threads: int, setting: str = "", extra: dict[str, str] | None = None):
        self.side, self.setting = side, setting
        self.process = subprocess.Popen([sys.executable, "-m", "bench.worker", side, str(threads)], env=environment(extra), text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        with self.process:                                  # closes the pipes, and waits
            self.process.send_signal(signal.SIGTERM)
            self.process.send_signal(signal.SIGCONT)        # a stopped process hears nothing else
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()

    def ask(self, do: str, **request: Any) -> dict:
        """Let the worker go on, do this, and stop it again. WorkerError if it could not."""
        requests, answers = self.process.stdin, self.process.stdout
        self.process.send_signal(signal.SIGCONT)
        try:
            print(json.dumps({"do": do} | request), file=requests, flush=True)
            line = answers.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise WorkerError(f"the worker of {self.side} ended with status {self.process.wait()} (what it said is above)")
        self.process.send_signal(signal.SIGSTOP)
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(f"the worker of {self.side} could not {do} {request}:\n{answer['error']}")
        return answer


@dataclass
class Seat:
    """A mode of a worker: one way in which a contestant may compete.

    times: how many passes make a block. warm: whether one more goes before them; to a long pass it would make no difference.
    """

    worker: Worker
    mode: str
    times: int = 1
    warm: bool = True

    def block(self, name: str) -> float:
        """The median seconds of a block of passes."""
        return statistics.median(self.worker.ask("time", mode=self.mode, name=name, times=self.times, warm=self.warm)["seconds"])


@dataclass
class Outcome:
    """Of one pass of one workload: the seconds of each contestant, round by round."""

    workload: Model | Layer
    name: str
    flops: int
    seconds: dict[str, list[float]]
    settings: dict[str, str]
    check: dict[str, dict[str, float]]


def compete(workload: Model | Layer, contestants: dict[str, list[Seat]], weights: str, rounds: int, seconds: float) -> list[Outcome]:
    """Let all contestants do all passes of a workload, and give the outcomes.

    contestants: by name, "minidl" first; where one has several seats, the fastest is found in a trial, pass by pass. weights: a file
    for the weights with which all start. seconds: how long a block should take. Mismatch if they do not compute the same.
    """
    checks: dict[str, dict[str, float]] = {}
    flops: dict[str, int] = {}
    for contestant, seats in contestants.items():
        for seat in seats:
            answer = seat.worker.ask("prepare", workload=workload.name, mode=seat.mode, weights=weights)
            compare(workload, contestant, answer["check"], next(iter(checks.values()), answer["check"]))
            checks[contestant] = answer["check"]
            flops = flops or answer["flops"]
    outcomes = []
    for name in workload.passes:
        chosen = {contestant: fastest(seats, name, seconds) for contestant, seats in contestants.items()}
        settings = {contestant: seat.worker.setting for contestant, seat in chosen.items()}
        outcomes.append(Outcome(workload, name, flops[name], race(chosen, name, rounds), settings, checks))
    return outcomes


def compare(workload: Model | Layer, contestant: str, check: dict[str, float], ours: dict[str, float]) -> None:
    """Mismatch unless both computed the same, within what float32 allows."""
    for name, value in ours.items():
        if not abs(check[name] - value) <= TOLERANCES[name] * abs(value):
            raise Mismatch(f"{workload.name}: {name} is {check[name]:.8g} by {contestant} and {value:.8g} by minidl. "
                           "They do not compute the same, and are not timed.")


def fastest(seats: list[Seat], name: str, seconds: float) -> Seat:
    """Fit the length of each seat's block to the time that it should take, and give the seat that is fastest in a trial of three rounds."""
    for seat in seats:
        seat.times, seat.warm = 1, True
        once = seat.block(name)
        seat.times, seat.warm = max(1, min(200, round(seconds / once))), once < LONG
    if len(seats) == 1:
        return seats[0]
    trials = [[seat.block(name) for seat in seats] for _ in range(3)]
    medians = [statistics.median(times) for times in zip(*trials)]
    return seats[medians.index(min(medians))]


def race(seats: dict[str, Seat], name: str, rounds: int) -> dict[str, list[float]]:
    """Seconds by contestant and round."""
    seconds: dict[str, list[float]] = {contestant: [] for contestant in seats}
    for turn in range(rounds):
        for contestant in list(seats)[::-1 if turn % 2 else 1]:
            if contestant != "numpy" or turn < NUMPY_ROUNDS:
                seconds[contestant].append(seats[contestant].block(name))
    return seconds
