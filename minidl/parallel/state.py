"""State on its way: arrays and numbers of one rank, for others who shall have the same.

What a newcomer needs to go on where the others are, and what all ranks begin with. The bits arrive as they were, and arrays with their
memory order, because results depend on both.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from minidl import backend
from minidl.backend import Array
from minidl.parallel.communicator import Communicator

State = tuple[dict[str, Array], dict[str, Any]]


def broadcast_state(communicator: Communicator, arrays: Mapping[str, Array] | None, rest: Any = None, root: int = 0) -> State:
    """The root's arrays (by name, on the CPU) and rest (what JSON can hold), on every rank. Others give None."""
    stored, order = {}, {}
    if communicator.rank == root:
        for name, x in (arrays or {}).items():
            x = backend.to_numpy(x)
            axes = sorted(range(x.ndim), key=lambda axis: (-abs(x.strides[axis]) * (x.shape[axis] > 1), axis))
            order[name] = [] if x.flags.c_contiguous else axes
            stored[name] = np.asarray(x.transpose(axes) if order[name] else x, order="C")
        about = json.dumps([{name: [x.dtype.str, x.shape, order[name]] for name, x in stored.items()}, rest]).encode()
    head, rest = json.loads(communicator.broadcast_bytes(about if communicator.rank == root else None, root))
    requests, found = [], {}
    for name, (dtype, shape, axes) in head.items():
        x = stored[name] if communicator.rank == root else np.empty(shape, dtype)
        requests.append(communicator.ibroadcast(x, root))
        found[name] = x.transpose(np.argsort(axes)) if axes else x
    communicator.wait(requests)
    return found, rest
