"""Which device it is, and with what it was measured: a time says nothing without."""

from __future__ import annotations

import contextlib
import importlib
from typing import Any

from bench import machine
from minidl import backend

PACKAGES = {"NumPy": "numpy", "CuPy": "cupy", "PyTorch": "torch", "SciPy": "scipy"}


def describe(device: str) -> dict[str, Any]:
    """The machine, its GPU, and the versions of what takes part."""
    described = machine.describe() | {"device": device, "versions": {name: version(module) for name, module in PACKAGES.items()}}
    if not device.startswith("cuda"):
        return described | {"gpu": "none: a rehearsal"}
    cupy = importlib.import_module("cupy")
    properties = cupy.cuda.runtime.getDeviceProperties(int(device.partition(":")[2] or 0))
    name = properties["name"]
    return described | {
        "gpu": name.decode() if isinstance(name, bytes) else name,
        "memory_gpu_gib": round(properties["totalGlobalMem"] / 2**30, 1),
        "multiprocessors": properties["multiProcessorCount"],
        "compute_capability": f"{properties['major']}.{properties['minor']}",
        "driver": driver(),
        "cuda_driver": cupy.cuda.runtime.driverGetVersion(),
        "cuda_runtime": cupy.cuda.runtime.runtimeGetVersion(),
    }


def version(module: str) -> str | None:
    """Of a package; None if it is not there."""
    with contextlib.suppress(ImportError):
        return str(importlib.import_module(module).__version__)
    return None


def driver() -> str:
    """The driver's version, as nvidia-smi has it."""
    return machine.said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").partition("\n")[0] or "unknown"


def line(described: dict[str, Any]) -> str:
    """All of it in one line, for a table."""
    gpu = described["gpu"]
    if "driver" in described:
        gpu += f" ({described['memory_gpu_gib']} GiB, driver {described['driver']}, CUDA {described['cuda_runtime']})"
    versions = ", ".join(f"{name} {number}" for name, number in described["versions"].items() if number)
    return f"{described['date']}: {gpu}; {versions}, Python {described['python']}; minidl {described['commit']}"


def free_memory(device: str) -> None:
    """Give back what either library keeps for later, so that one workload does not decide what the next one has."""
    if not device.startswith("cuda"):
        return
    importlib.import_module("cupy").get_default_memory_pool().free_all_blocks()
    with contextlib.suppress(ImportError):
        importlib.import_module("torch").cuda.empty_cache()
    backend.synchronize(device)
