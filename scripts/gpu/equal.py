"""Every function and every layer on the device against NumPy: forward and all gradients, in float32, float16 and bfloat16.

The inputs are those of the tests (tests/cases.py). They are rounded to the dtype; NumPy then computes in float64 with the same numbers,
the device in the dtype. An error is relative to the largest number of a result, and is told in units of the dtype's eps.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gpu import together
from minidl import backend

TESTS = Path(__file__).parents[2] / "tests"
FOLDERS = ("functions", "nn")
SHARES = 24                 # into which the cases are dealt out
DTYPES = ("float32", "float16", "bfloat16")
EPS = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
MOST = {"float32": 64.0, "float16": 8.0, "bfloat16": 8.0}      # eps that a result may be off: sums and e^x are not done in one step


def check(device: str, until: float = math.inf) -> dict[str, Any]:
    """Compare; until: the time.time() after which no further case is begun.

    Gives "cases", how many comparisons were made, "worst", for each dtype the largest errors with their names, "failed", and "left out".
    """
    numbers = range(len(list(cases())))
    parts = together.each(of_cases, [(device, until, numbers[i::SHARES]) for i in range(SHARES)], device)
    found: dict[str, Any] = {"cases": sum(part["cases"] for part in parts), "worst": {}}
    for word in ("failed", "left out"):
        found[word] = [line for part in parts for line in part[word]]
    for dtype in DTYPES:
        found["worst"][dtype] = sorted((pair for part in parts for pair in part["worst"][dtype]), reverse=True)[:5]
    return found


def of_cases(task: tuple[str, float, Any]) -> dict[str, Any]:
    """The same for some cases, by their numbers."""
    device, until, numbers = task
    found: dict[str, Any] = {"cases": 0, "worst": {dtype: [] for dtype in DTYPES}, "failed": [], "left out": []}
    every = list(cases())
    for name, case in (every[number] for number in numbers):
        if time.time() > until:
            found["left out"].append(name)
            continue
        for dtype in DTYPES:
            worst = 0.0
            for example in range(case.examples):
                try:
                    worst = max(worst, error(case, example, dtype, device))
                except Exception as trouble:                # one function that fails does not hide the others
                    found["failed"].append(f"{name} {dtype}, example {example}: {type(trouble).__name__}: {trouble}"[:300])
                    break
                found["cases"] += 1
            found["worst"][dtype].append((round(worst, 2), name))
            if worst > MOST[dtype]:
                found["failed"].append(f"{name} {dtype}: off by {worst:.0f} eps, of at most {MOST[dtype]:.0f}")
    return found


def cases() -> Iterator[tuple[str, Any]]:
    """The cases of all functions and layers, by name."""
    for place in (TESTS, *(TESTS / folder for folder in FOLDERS)):
        if str(place) not in sys.path:
            sys.path.insert(0, str(place))
    shared = importlib.import_module("cases")
    for file in sorted(path for folder in FOLDERS for path in (TESTS / folder).glob("test_*.py")):
        module = importlib.import_module(file.stem)
        for name, kind in vars(module).items():
            if not inspect.isclass(kind) or kind.__module__ != module.__name__:
                continue
            covers = getattr(kind, "functions", ()) or getattr(kind, "layers", ())
            if covers and issubclass(kind, (shared.FunctionCase, shared.LayerCase)):
                yield name.removeprefix("Test"), kind()


def error(case: Any, example: int, dtype: str, device: str) -> float:
    """The largest error of the results and gradients of an example, in eps."""
    kind = backend.dtype_named(dtype)
    if hasattr(case, "functions"):
        inputs = [x.astype(kind) if is_float(x) else x for x in case.drawn(example)]
        wanted = case.values_and_gradients([x.astype("float64") if is_float(x) else x for x in inputs])
        found = case.values_and_gradients([on(x, device) for x in inputs])
    else:
        layer, inputs = case.drawn(example, "float32")
        inputs = [x.astype(kind) if is_float(x) else x for x in inputs]
        exact = copy.deepcopy(layer).to(dtype="float64")
        wanted = case.values_and_gradients(exact, [x.astype("float64") if is_float(x) else x for x in inputs])
        found = case.values_and_gradients(layer.to(device), [on(x, device) for x in inputs])
    return max((distance(backend.to_numpy(mine), backend.to_numpy(theirs)) for mine, theirs in zip(found, wanted, strict=True)),
               default=0.0) / EPS[dtype]


def distance(mine: np.ndarray, theirs: np.ndarray) -> float:
    """The largest difference, relative to the largest number; infinite where a NaN or an infinity stands on one side only."""
    if mine.shape != theirs.shape:
        raise ValueError(f"shape {mine.shape}, and {theirs.shape} was wanted")
    mine, theirs = mine.astype("float64"), theirs.astype("float64")
    same = (mine == theirs) | (np.isnan(mine) & np.isnan(theirs))
    if same.all():
        return 0.0
    apart = np.abs(mine - theirs)[~same]
    finite = theirs[np.isfinite(theirs)]
    return float(apart.max() / max(np.abs(finite).max(initial=0.0), 1.0)) if np.isfinite(apart).all() else float("inf")


def on(x: Any, device: str) -> Any:
    """An array on the device; anything else as it is."""
    return backend.asarray(x, device) if isinstance(x, np.ndarray) else x


def is_float(x: Any) -> bool:
    return isinstance(x, np.ndarray) and backend.is_float(x.dtype)
