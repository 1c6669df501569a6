"""Every kernel that will be timed, compiled beforehand: each workload once, in processes beside one another."""

from __future__ import annotations

import importlib
import tempfile
from pathlib import Path
from typing import Any


def once(task: tuple[str, Any, str, str]) -> str:
    """One pass of a workload: (module that has it, workload, precision, device). What goes wrong, in words; nothing if all is well."""
    module, workload, precision, device = task
    part = importlib.import_module(module)
    try:
        if module.endswith("networks"):
            with tempfile.TemporaryDirectory() as folder:
                part.inside(precision, part.ours(workload, device, precision, str(Path(folder) / "weights.npz")))()
        else:
            for algorithm in part.ALGORITHMS:
                part.inside(precision, part.ours(workload, precision, device, algorithm))()
    except Exception as trouble:                            # the others are to be compiled all the same
        return f"{workload.name}, {precision}: {type(trouble).__name__}: {trouble}"[:300]
    return ""
