"""Out of memory: an error that says what was asked for, by which operation and layer, and who holds what.

Here is what can be said wherever an array is made: the graph is asked what it keeps, and the device how much it has. What a whole training
run holds, and how large a minibatch would fit, is told by held.py, which knows the run.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from minidl import backend
from minidl.backend import Array
from minidl.errors import ArgumentError, MemoryShortage, layer_path
from minidl.library import Memory

MOST = 3                    # layers that are named
HINT = "Take fewer examples at a time; with no_grad() nothing is kept for a backward pass."


def shortage(error: MemoryError, what: str, x: Array | None, nodes: Iterable[Any] = (),
             facts: Mapping[str, str] | None = None) -> MemoryShortage:
    """What there is to say about an error of the array library's, as an error of ours.

    what: that asked for memory, in words. x: an array on the same device. nodes: of the graph, whose memory and that of all before them
    is counted. facts: what else there is to say.
    """
    device = "cpu" if x is None else backend.device_of(x)
    memory, keeping = backend.memory(device), kept(nodes)
    traceback.clear_frames(error.__traceback__)         # which may hold a kernel's temporary arrays
    size = asked(error)
    wanted = f"{words(size)} asked for" if size else str(error) or "more was asked for"
    room = f"{device} has no such piece" if memory is None else f"{device} has {words(memory.room)} left"
    pieces = ", in pieces that are too small" if memory is not None and memory.room >= size else ""
    lines = [f"on {device}: {', '.join(f'{name} {each}' for name, each in taken(memory).items())}"] if memory is not None else []
    lines += [f"kept for the backward pass: {largest(keeping)}"] if keeping else []
    found = MemoryShortage(f"{what}: out of memory: {wanted}, {room}{pieces}", *lines, hint=HINT, **dict(facts or {}))
    found.asked, found.kept, found.memory, found.device = size, keeping, memory, device
    return found


@contextmanager
def making_room(what: str, device: str) -> Iterator[None]:
    """Within the block what finds no room on a device is an error that says what was to lie there for good, whatever the minibatch."""
    try:
        yield
    except MemoryError as error:
        memory, size = backend.memory(device), asked(error)
        room = "" if memory is None else f", {device} has {words(memory.room)} left"
        lines = [f"on {device}: {', '.join(f'{name} {each}' for name, each in taken(memory).items())}"] if memory is not None else []
        raise MemoryShortage(f"{what}: out of memory: {words(size) if size else 'more'} asked for{room}", *lines,
                             hint="Give a smaller model, or more memory (--memory-limit).") from None


def asked(error: BaseException) -> int:
    """The bytes that an error of CuPy's, NumPy's or ours is about; 0 if it does not tell."""
    for name in ("asked", "_size", "_total_size"):
        if isinstance(found := getattr(error, name, None), int):
            return found
    return 0


def taken(memory: Memory | None) -> dict[str, str]:
    """Who has the memory of a device, in words."""
    if memory is None:
        return {}
    found = {"arrays": memory.used, "free in the pool": memory.held - memory.used, "free beside it": memory.free,
             "other programs": memory.total - memory.free - memory.held}
    return {name: words(size) for name, size in found.items() if size > 0} | ({"limit": words(memory.limit)} if memory.limit else {})


def kept(nodes: Iterable[Any]) -> dict[str, int]:
    """Bytes that some Nodes of a graph, and all before them, keep for the backward pass, by layer, or operation outside of one.

    Parameters are there anyway; what several keep is counted with the first that made it.
    """
    seen: set[int] = set()
    todo, order = list(nodes), []
    while todo:
        node = todo.pop()
        if id(node) not in seen:
            seen.add(id(node))
            order.append(node)
            todo += [edge[0] for edge in node.edges if type(edge) is tuple]
    found: dict[str, int] = {}
    counted = {id(_whole(edge._data)) for node in order for edge in node.edges if edge is not None and type(edge) is not tuple}
    for node in sorted(order, key=lambda node: node.order):
        for _, x in node.kept():
            x = _whole(x)
            if id(x) not in counted:
                counted.add(id(x))
                place = layer_path(node.stack) or node.name
                found[place] = found.get(place, 0) + x.nbytes
    return found


def _whole(x: Array) -> Array:
    """The array that owns the memory of this one, as far as that is an array."""
    base = getattr(x, "base", None)
    return base if hasattr(base, "nbytes") else x


def largest(sizes: Mapping[str, int]) -> str:
    """A sum, and what the most of it is, in words."""
    most = sorted(sizes.items(), key=lambda item: -item[1])[:MOST]
    return f"{words(sum(sizes.values()))} ({', '.join(f'{name} {words(size)}' for name, size in most)}{', ...' * (len(sizes) > MOST)})"


def words(size: int) -> str:
    """A number of bytes in words.

    >>> words(3 * 2**29), words(1000)
    ('1.50 GiB', '1000 B')
    """
    for power, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if size >= 2**power:
            return f"{size / 2**power:.{2 if power == 30 else 1}f} {unit}"
    return f"{size} B"


def size_of(text: str, total: int) -> int:
    """A number of bytes that is given in words, or as a part of `total`. ArgumentError if it is not above 0, or more than that.

    >>> size_of("1.5GiB", 2**33), size_of("500 MB", 2**33), size_of("25%", 2**33)
    (1610612736, 500000000, 2147483648)
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:(%)|([KMGT]?)(i?)B)", text.strip(), re.IGNORECASE)
    if found is None:
        raise ArgumentError(f"a size of {text!r} is not known", hint="Write it as 8GiB, 500MB or 50%.")
    number, percent, power, binary = found.groups()
    unit = total / 100 if percent else (1024 if binary else 1000) ** " KMGT".index(power.upper() or " ")
    size = int(float(number) * unit)
    if not 0 < size <= total:
        raise ArgumentError(f"a size of {text!r} is {'nothing' if size < 1 else 'more than there is'}", there=words(total))
    return size
