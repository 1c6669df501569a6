"""Matching a saved state with the arrays it is to be written into: what does not fit is told at once, before anything is written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from minidl import backend
from minidl.backend import Array
from minidl.errors import CheckpointError, nearest
from minidl.tensor import Tensor

SHOWN = 12              # so many names of a kind stand in an error


def snapshot(value: Any) -> Array:
    """A copy of an array, on its device; a number as an array of shape ()."""
    return value.copy() if backend.is_array(value) else np.asarray(value)


def matched(caller: str, targets: Mapping[str, Any], state: Mapping[str, Any], strict: bool = True) -> tuple[dict, list[str], list[str]]:
    """What of a state can be written, by path, and the paths that are missing and unexpected.

    caller: for the error, as 'load_state_dict: this LeNet'. targets: arrays and numbers by path. state: arrays, Tensors and numbers.
    CheckpointError for wrong shapes or types, if nothing fits, and with `strict` for any missing or unexpected path.
    """
    arrays = {path: x.data if isinstance(x, Tensor) else x if backend.is_array(x) else np.asarray(x) for path, x in state.items()}
    missing = [path for path in targets if path not in arrays]
    unexpected = [path for path in arrays if path not in targets]
    fitting = {path: x for path, x in arrays.items() if path in targets}
    shapes = {path: getattr(target, "shape", ()) for path, target in targets.items()}
    wrong = [f"{path} wants {shapes[path]}, the state has {x.shape} {x.dtype}"
             for path, x in fitting.items() if x.shape != shapes[path] or not (x.dtype.kind in "iub" or backend.is_float(x.dtype))]
    if not wrong and not (strict and (missing or unexpected)) and (fitting or not targets):
        return fitting, missing, unexpected

    lines = [f"{caller} and the state do not fit together"]
    for kind, names in (("missing", missing), ("mis-shaped", wrong),
                        ("unexpected", [path + nearest(path, missing) for path in unexpected])):
        if names:
            lines.append(f"{kind}: {', '.join(names[:SHOWN])}" + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""))
    raise CheckpointError("\n  ".join(lines), hint="Nothing was loaded. Is it the state of the same model, made with the same options?")


def like(old: Any, new: Array) -> Any:
    """A saved value in the form of the one that it replaces: its dtype and device, in memory of its own, or a plain number."""
    if not backend.is_array(old):
        return type(old)(new.item())
    return backend.asarray(new.astype(old.dtype), backend.device_of(old))
