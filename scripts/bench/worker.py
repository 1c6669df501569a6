"""A process that works for one side when it is asked to: a request a line on standard input, an answer a line on standard output.

    python -m bench.worker ours 2           by minidl, on two threads

Requests are JSON objects with "do"; what is printed by libraries meanwhile goes to standard error.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
import time
import traceback

from bench.side import Ready, nothing
from bench.workloads import BY_NAME, PRODUCT


class Desk:
    """What a worker has at hand: for the present workload, the passes of each mode."""

    def __init__(self, side):
        self.side = side
        self.workload = ""
        self.ready: dict[str, Ready] = {}

    def about(self) -> dict:
        return self.side.about() | {"modes": self.side.MODES}

    def peak(self) -> dict:
        """GFLOP/s of a large matrix product, the best of three."""
        product = self.side.product()
        product()
        return {"gflops": 2 * PRODUCT ** 3 / min(timed(product, 3)) / 1e9}

    def prepare(self, workload: str, mode: str, weights: str | None) -> dict:
        """Build a workload in place of the last one, compute the numbers by which it is compared, and run every pass once."""
        what = BY_NAME[workload]
        if workload != self.workload:
            self.workload = workload
            self.ready.clear()
            gc.collect()
        ready = self.ready[mode] = getattr(self.side, what.kind)(what, mode, weights)
        check = ready.check()
        for name, run in ready.passes.items():
            ready.before.get(name, nothing)()
            run()
        return {"check": check, "flops": ready.flops()}

    def time(self, mode: str, name: str, times: int, warm: bool) -> dict:
        """Seconds of each of so many passes, after one that is not counted if warm: caches and threads were another's until now."""
        ready = self.ready[mode]
        ready.before.get(name, nothing)()
        if warm:
            ready.passes[name]()
        return {"seconds": timed(ready.passes[name], times)}


def timed(run, times: int) -> list[float]:
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return seconds


def main(side: str, threads: int) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    module = importlib.import_module(f"bench.{side}")
    desk = Desk(module)
    with module.settings(threads):
        for line in sys.stdin:
            request = json.loads(line)
            try:
                answer = getattr(desk, request.pop("do"))(**request)
            except Exception:
                answer = {"error": traceback.format_exc()}
            print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
