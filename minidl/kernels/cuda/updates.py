"""Twins of the updates: one launch for all parameters of a dtype, whatever their number; and what clipping asks of all gradients.

Where the arrays lie goes to the device as a table, and beside it the numbers that change from step to step. Both are kept for the next
step, which often has the same. Of a step that is being recorded they are told anew before each replay: see minidl/recording.py.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from minidl import backend
from minidl.backend import Array
from minidl.errors import GraphError
from minidl.kernels.cuda.source import dense, launch, taken
from minidl.recording import present

PIECE = 4096            # numbers that a block takes; as in updates.cu
COLUMNS = 6
THREADS = 256
Calls = list[tuple]


def sgd_update(*call: Any) -> Any:
    """One call of many."""
    return sgd_update_many([call], lambda: [call])


def adam_update(*call: Any) -> Any:
    """One call of many."""
    return adam_update_many([call], lambda: [call])


def sgd_update_many(calls: Calls, again: Callable[[], Calls]) -> Any:
    """A launch for each dtype among the calls of sgd_update. again: gives them anew, for the next replay of a recorded step."""
    return _together("sgd", 3, calls, again, lambda w, g, v, *numbers: numbers)


def adam_update_many(calls: Calls, again: Callable[[], Calls]) -> Any:
    """The same for adam_update."""
    def numbers(w: Array, g: Array, m: Array, v: Array, t: int, lr: float, beta1: float, beta2: float, eps: float, weight_decay: float,
                decoupled: bool) -> tuple[float, ...]:
        return (1 - lr * weight_decay if decoupled else 1, 0 if decoupled else weight_decay, beta1, 1 - beta1, beta2, 1 - beta2,
                1 / math.sqrt(1 - beta2 ** t), eps, lr / (1 - beta1 ** t))

    return _together("adam", 4, calls, again, numbers)


def _together(name: str, count: int, calls: Calls, again: Callable[[], Calls], numbers: Callable[..., Sequence[float]]) -> Any:
    """Launch a kernel of updates.cu for all calls, which begin with so many arrays. numbers: of a call, as the kernel wants them."""
    arrays = [call[:count] for call in calls]

    def anew(rows: Callable[[Calls], np.ndarray]) -> np.ndarray:
        now = again()
        if [[x is None for x in call[:count]] for call in now] != [[x is None for x in each] for each in arrays]:
            raise GraphError(f"{name}_update: what is remembered of a parameter has changed since the step was recorded",
                             hint="Momentum that begins or ends is another rule: give it so from the beginning, or train without capture.")
        return rows(now)

    if not all(_alike(*each) for each in arrays):
        return NotImplemented
    for dtype in dict.fromkeys(each[0].dtype for each in arrays):
        chosen = [i for i, each in enumerate(arrays) if each[0].dtype == dtype]
        kind = np.float64 if dtype == np.float64 else np.float32

        def rows(calls: Calls, chosen: list[int] = chosen, kind: Any = kind) -> np.ndarray:
            return np.array([numbers(*calls[i]) for i in chosen], kind)

        pieces, table, held = _table([arrays[i] for i in chosen])
        like = arrays[chosen[0]][0]
        recording = present()
        values = _kept(like, rows(calls)) if recording is None else recording.fresh(functools.partial(anew, rows))
        launch(like, "updates", name, pieces, THREADS, table, values, len(chosen), _report())
        del held                                        # until here
    return None


# What clipping asks


def clip_many(gradients: Sequence[Array], most: float) -> Any:
    """See reference_updates.clip_many."""
    if len({g.dtype for g in gradients}) > 1 or not all(_alike(g) and g.flags.c_contiguous for g in gradients):
        return NotImplemented
    like, xp = gradients[0], backend.of(gradients[0])
    pieces, table, _ = _table([(g, g) for g in gradients])
    sums, found = xp.empty(pieces, "float64"), xp.empty(2 + len(gradients), "float64")
    launch(like, "updates", "squares", pieces, THREADS, table, len(gradients), sums)
    launch(like, "updates", "clip_factor", 1, min(32 * len(gradients), 1024), table, len(gradients), pieces, sums, float(most), found,
           _report())
    launch(like, "updates", "scale", pieces, THREADS, table, len(gradients), found[1:])
    return found


def unscale_many(gradients: Sequence[Array], factor: float | Array) -> Any:
    """See reference_updates.unscale_many."""
    if len({g.dtype for g in gradients}) > 1 or not all(_alike(g) and g.flags.c_contiguous for g in gradients):
        return NotImplemented
    like, xp = gradients[0], backend.of(gradients[0])
    kind = "float64" if like.dtype == np.float64 else "float32"
    pieces, table, _ = _table([(g, g) for g in gradients])
    by = factor.astype(kind, copy=False) if isinstance(factor, type(like)) else xp.full((), factor, kind)
    finite = xp.ones((), "int32")
    launch(like, "updates", "unscale", pieces, THREADS, table, len(gradients), by, finite, _report())
    return finite


def _alike(w: Array, *others: Array | None) -> bool:
    """Whether an update of w can go through a table: all arrays of one shape and dtype, and w and its memory stored in order."""
    return taken(w.dtype) and w.size > 0 and w.flags.c_contiguous and all(
        x is None or (x.shape == w.shape and x.dtype == w.dtype and (i == 0 or x.flags.c_contiguous)) for i, x in enumerate(others))


def _table(arrays: Iterable[tuple[Array, ...]]) -> tuple[int, Array, list[Array]]:
    """The number of pieces, the table on the device, and the gradients, of which some are copies: they were not stored in order."""
    rows, held, pieces = [], [], 0
    for w, g, *memory in arrays:
        held.append(dense(g))
        places = [0 if x is None else x.data.ptr for x in (w, held[-1], *memory)]
        rows.append([pieces, w.size, *places, *[0] * (COLUMNS - 2 - len(places))])
        pieces += -(-w.size // PIECE)
        like = w
    content, recording = np.array(rows, np.int64), present()
    return pieces, _kept(like, content) if recording is None else recording.fresh(lambda: content), held


def _kept(like: Array, content: np.ndarray) -> Array:
    """Content on the device of an array: what was there lately is found again."""
    return _uploaded(backend.device_of(like), content.dtype.str, content.shape, content.tobytes())


@functools.lru_cache(maxsize=64)
def _uploaded(device: str, dtype: str, shape: tuple[int, ...], content: bytes) -> Array:
    return backend.asarray(np.frombuffer(content, dtype).reshape(shape), device)


def _report() -> Array | None:
    recording = present()
    return None if recording is None else recording.report


def running_statistics(mean: Array, var: Array, x_mean: Array, x_var: Array, rate: float | Array, n: int) -> Any:
    """See reference_updates.running_statistics. In a step that is being recorded the arrays that are there are written to."""
    arrays = (mean, var, x_mean, x_var)
    if not taken(mean.dtype) or any(x.dtype != mean.dtype or x.shape != mean.shape or not x.flags.c_contiguous for x in arrays):
        return NotImplemented
    xp, inside = backend.of(mean), present() is not None
    new = (mean, var) if inside else (xp.empty_like(mean), xp.empty_like(var))
    known = isinstance(rate, float | int)               # else it is one number on the device
    launch(mean, "updates", "running", -(-mean.size // THREADS), THREADS, *arrays, float(rate) if known else 0.0, None if known else rate,
           float(n / (n - 1)), mean.size, *new, _report())
    return new
