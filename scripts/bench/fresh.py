"""What only a fresh process shows: the peak of its memory in training, and how long its first step takes.

    python -m bench.fresh memory ours cnn minidl 2

Memory is resident memory above what the process held when its libraries were loaded: imported, and used for one tiny convolution, since
both load much of themselves at first use. The first step counts from the import: it includes what is loaded at first use, building the
model and, for minidl with an empty cache, compiling its kernels.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.side import nothing
from bench.turns import TUNED, WorkerError, environment
from bench.workloads import BY_NAME

STEPS = 10
MEMORY = ("cnn", "resnet18")
FIRST = "lenet"


# In the parent


def ask(what: str, side: str, workload: str, mode: str, threads: int, extra: dict[str, str] | None = None) -> dict:
    """The answer of a fresh process. WorkerError if it failed."""
    done = subprocess.run([sys.executable, "-m", "bench.fresh", what, side, workload, mode, str(threads)], env=environment(extra),
                          stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise WorkerError(f"the fresh process of {side} ended with status {done.returncode} (what it said is above)")
    return json.loads(done.stdout.splitlines()[-1])


def peaks(workload: str, threads: int, repeats: int, settings: dict[str, dict[str, str]]) -> dict:
    """Peak bytes of a training step, the median of so many processes: minidl's, and PyTorch's by mode and allocator settings.

    ratio: minidl's over the least of PyTorch's.
    """
    def peak(side: str, mode: str, extra: dict[str, str] | None = None) -> float:
        return statistics.median(ask("memory", side, workload, mode, threads, extra)["bytes"] for _ in range(repeats))

    peak("ours", "minidl")                  # compiles what is not yet compiled: a compiler takes memory too
    ours = peak("ours", "minidl")
    theirs = {f"{mode}, {setting}": peak("theirs", mode, extra)
              for mode in ("eager", "channels_last") for setting, extra in settings.items()}
    return {"workload": workload, "threads": threads, "minidl": ours, "pytorch": theirs, "ratio": ours / min(theirs.values())}


def first_steps(threads: int, repeats: int) -> dict:
    """Seconds from the import to the end of the first training step of LeNet: with an empty cache, with a warm one, and PyTorch's."""
    with tempfile.TemporaryDirectory() as cache:
        own = {"MINIDL_CACHE": cache}
        cold = ask("first", "ours", FIRST, "minidl", threads, own)["seconds"]
        warm = statistics.median(ask("first", "ours", FIRST, "minidl", threads, own)["seconds"] for _ in range(repeats))
    theirs = statistics.median(ask("first", "theirs", FIRST, "eager", threads)["seconds"] for _ in range(repeats))
    return {"workload": FIRST, "threads": threads, "cold": cold, "warm": warm, "pytorch": theirs}


# In the fresh process


def memory(side, workload: str, mode: str, threads: int) -> dict:
    side.libraries()
    gc.collect()
    before = reset_peak()
    with side.settings(threads):
        ready = side.model(BY_NAME[workload], mode)
        ready.before.get("step", nothing)()
        for _ in range(STEPS):
            ready.passes["step"]()
        return {"bytes": peak_bytes() - before}


def first(side, workload: str, mode: str, threads: int) -> dict:
    start = time.perf_counter()
    with side.settings(threads):
        ready = side.model(BY_NAME[workload], mode)
        ready.before.get("step", nothing)()
        ready.passes["step"]()
        return {"seconds": time.perf_counter() - start}


def reset_peak() -> int:
    """Forget the peak until now, where the kernel can (Linux), and give the bytes that the process holds."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return peak_bytes()


def peak_bytes() -> int:
    """The most that this process has held in memory."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def allocators() -> dict[str, dict[str, str]]:
    """PyTorch's process as it is installed, and, with the GNU C library, with the allocator settings that minidl makes for itself."""
    with contextlib.suppress(ValueError, OSError, AttributeError):
        if (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc"):
            return {"as installed": {}, "tuned malloc": TUNED}
    return {"as installed": {}}


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    module = importlib.import_module(f"bench.{sys.argv[2]}")
    print(json.dumps(globals()[sys.argv[1]](module, sys.argv[3], sys.argv[4], int(sys.argv[5]))), file=answers, flush=True)
