"""Who holds the memory of a device in a training run, and how large a minibatch would fit.

When an array has found no room the run is over, but it is still there: what it holds is counted, then its graph and gradients are let go,
and steps of a few examples are measured on the device itself (nn/footprint.py), on a copy of the model. So what is said counts whatever
this model, these kernels and this dtype need; but for what K-FAC takes meanwhile. Where even that finds no room, what the graph held when
it ended is scaled down.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from minidl import backend
from minidl.backend import Array
from minidl.data.transforms import rows
from minidl.errors import MemoryShortage
from minidl.nn.footprint import ENOUGH, Footprint, footprint
from minidl.optim import Optimizer
from minidl.run import Run
from minidl.shortage import shortage, words

SPARE = 0.95                # of what there is: the pool's pieces do not fill it
PASSES = 2                  # what the forward pass has kept where it ended, that many times, is about what a step needs at its peak


def explained(error: MemoryError, run: Run, loss: Callable[[Any, Array, Array], Any], given: Callable[[Array], Array],
              accumulate: int) -> MemoryShortage:
    """An error for want of memory in a run, with all that is known of it. The run's graph and gradients are gone then.

    loss: of outputs, x and y. given: brings x or y to the model, as the loop does. accumulate: parts in which a minibatch goes through it.
    """
    first = next(iter(run.optimizer.parameters.values()))
    found = error if isinstance(error, MemoryShortage) else shortage(error, place(error), first.data)
    shares = held(run)
    traceback.clear_frames(error.__traceback__)                 # whose variables are all that holds the graph
    run.optimizer.zero_grad()
    part = -(-run.loader.size(min(run.minibatch, len(run.loader) - 1)) // run.team.ranks)       # this process's examples
    count = -(-part // accumulate)                              # of them at a time
    told = [f"held in step {run.step + 1}: " + ", ".join(f"{name} {words(size)}" for name, size in shares.items() if size),
            advice(fitting(run, loss, given, count, shares, found), count, part, accumulate, run.team.ranks)]
    more = MemoryShortage(found.said, *told)
    more.asked, more.kept, more.memory, more.device = found.asked, found.kept, found.memory, found.device
    return more


def place(error: BaseException) -> str:
    """The function of minidl's in which an error arose, in words."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__)
              if "minidl" in frame.filename and not Path(frame.filename).stem.startswith("backend")]
    return f"fit, in {frames[-1].name} of {Path(frames[-1].filename).stem}" if frames else "fit"


def held(run: Run) -> dict[str, int]:
    """Bytes on the model's device, by what they are for; the rest are activations, and what kernels need meanwhile."""
    parameters = [p.data for p in run.optimizer.parameters.values()]
    gradients = [p.grad.data for p in run.optimizer.parameters.values() if p.grad is not None]
    device, known = run.feed.device, {id(x) for x in [*parameters, *gradients]}
    curvature = getattr(run.optimizer, "inner", None) is not None               # of KFAC, which leaves the rest to another optimizer

    def memories(optimizer: Any) -> int:
        found = {id(x): x for x in arrays_of(optimizer, set()) if id(x) not in known and backend.device_of(x) == device}
        return total(found.values())

    own = memories(run.optimizer.inner if curvature else run.optimizer)         # type: ignore[attr-defined]
    return {"parameters": total(parameters), "gradients": total(gradients), "optimizer": own,
            "factors and inverses": memories(run.optimizer) - own if curvature else 0, "data set": run.feed.bytes()}


def total(arrays: Iterable[Array]) -> int:
    """The bytes of some arrays."""
    return sum(x.nbytes for x in arrays)


def arrays_of(x: Any, seen: set[int]) -> Iterator[Array]:
    """The arrays in an optimizer: in what it has, in dictionaries and lists and in objects of its own package."""
    if id(x) in seen:
        return
    seen.add(id(x))
    if backend.is_array(x):
        yield x
    elif isinstance(x, dict | list | tuple | set):
        for each in x.values() if isinstance(x, dict) else x:
            yield from arrays_of(each, seen)
    elif isinstance(x, Optimizer) or type(x).__module__.startswith("minidl.optim"):
        names = [*getattr(x, "__dict__", ()), *(name for cls in type(x).__mro__ for name in getattr(cls, "__slots__", ()))]
        for name in names:
            yield from arrays_of(getattr(x, name, None), seen)


def fitting(run: Run, loss: Callable[[Any, Array, Array], Any], given: Callable[[Array], Array], count: int, shares: dict[str, int],
            found: MemoryShortage) -> int | None:
    """How many examples at a time would fit, of the `count` that did not; None if that cannot be told."""
    memory = backend.memory(run.feed.device)
    if memory is None:
        return None
    room = SPARE * (memory.room + shares["parameters"])         # which a step of a copy of the model counts, too
    size = count // 2
    while size >= 2:
        try:
            return min(measured(run, loss, given, count, size).most(room), count - 1)
        except Exception:                                       # nor would so many; or it is a model that cannot be copied
            size //= 4
    if not found.kept or found.memory is None:
        return None
    each = (found.memory.used + found.asked - sum(shares.values())) / count
    return max(int((memory.room - shares["parameters"]) / each / PASSES), 0)


def measured(run: Run, loss: Callable[[Any, Array, Array], Any], given: Callable[[Array], Array], count: int, size: int) -> Footprint:
    """The memory of steps of `count` examples on the model's device, from steps of `size` and fewer."""
    index, drawn = next(run.loader.picks(run.epoch))
    x, y = run.loader.take(index[:1], rows(drawn, slice(0, 1)))
    x, y = given(x), given(y)
    xp = backend.of(y)

    def of_zeros(outputs: Any, x: Array) -> Any:
        return loss(outputs, x, xp.zeros((len(x), *y.shape[1:]), y.dtype))

    return footprint(run.model, x.shape[1:], x.dtype, count, ENOUGH // size, loss=of_zeros)


def advice(most: int | None, count: int, part: int, accumulate: int, ranks: int) -> str:
    """What to try, where so many examples at a time would fit. part: the examples of a process in a minibatch."""
    if most is None:
        return "Give fewer examples at a time: a smaller --batch-size, or a larger --accumulate."
    if most < 1:
        return "Not one example would fit beside that: give a smaller model, or --dtype float16, or more memory (--memory-limit)."
    most -= most % 8 if most > 16 else 0
    return (f"About {most:,} examples at a time would fit, of {count:,}: --batch-size {most * accumulate * ranks}, "
            f"or --accumulate {-(-part // most)}.")
