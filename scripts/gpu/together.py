"""Work on one device in several processes: a kernel is compiled when it is first called, which is the host's work, and takes seconds.

CuPy keeps on disk what is compiled, so what one process has compiled the others, and the timed one, find there.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from bench.machine import cores

MOST = 12                   # processes: each has a context on the device, of some hundreds of MB


def each(work: Callable[[Any], Any], tasks: Sequence[Any], device: str) -> list[Any]:
    """work(task) for each task, in their order. On a GPU in processes beside one another; an error is that of the first task that fails."""
    count = min(MOST, cores(), len(tasks)) if device.startswith("cuda") else 1
    if count <= 1:
        return [work(task) for task in tasks]
    with ProcessPoolExecutor(count, multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(work, tasks))
