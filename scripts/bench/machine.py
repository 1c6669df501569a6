"""Where it ran: processor, system and versions, without which a time says nothing."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from pathlib import Path


def describe() -> dict:
    """The machine, as it goes into the results."""
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": processor(),
        "cores": cores(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "commit": commit(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        fields = dict(line.split(":", 1) for line in info.read_text().split("\n\n")[0].splitlines() if ":" in line)
        named = {key.strip(): value.strip() for key, value in fields.items()}
        flags = named.get("flags", "").split()
        return named.get("model name", platform.machine()) + (" with AVX-512" if "avx512f" in flags else " with AVX2" * ("avx2" in flags))
    return said("sysctl", "-n", "machdep.cpu.brand_string") or platform.processor() or platform.machine()


def commit() -> str:
    """Of minidl's checkout; with a + if something in it was changed since."""
    top = str(Path(__file__).parents[2])
    number = said("git", "-C", top, "rev-parse", "--short", "HEAD")
    return number + "+" * bool(number and said("git", "-C", top, "status", "--porcelain", "--untracked-files=no"))


def said(*command: str) -> str:
    """What a command prints; nothing if it fails or is not there."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
