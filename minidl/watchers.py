"""Who waits for a Tensor's gradient: hooks, observers, and an inner Tensor that wants to keep its own.

Most Tensors have nobody waiting, and pay nothing for those that have. When each is called stands in walk.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakValueDictionary, ref

# Leaves that have had a gradient-ready hook or an observer, by id. Only while there are any does a backward pass look for them.
watched: WeakValueDictionary[int, Any] = WeakValueDictionary()
awaited: WeakValueDictionary[int, Any] = WeakValueDictionary()      # of these, those with a gradient-ready hook


# Leaves whose new value is on its way, by id, with what waits for it. Whoever reads one waits: an operation, or `.data`.
arriving: dict[int, Callable[[], None]] = {}


class Watchers:
    """Who wants to know of a Tensor's gradient. Most Tensors have none of these, and then not even this object."""

    __slots__ = ("hooks", "observers", "ready", "retain")

    def __init__(self) -> None:
        self.hooks: list[Callable] = []                 # hook(grad), may give another gradient
        self.ready: list[Callable] = []                 # hook(tensor), once its .grad is final
        self.observers: list[Any] = []                  # see walk.Observer
        self.retain: ref[Any] | None = None          # an inner Tensor whose .grad is wanted


class Handle:
    """What registering gives back: `remove()` takes the hook or observer out again."""

    def __init__(self, entries: list[Any], entry: Any):
        self._entries, self._entry = entries, entry
        self._there = True

    def remove(self) -> None:
        """Take it out; doing so twice is no error. The same hook registered twice has two Handles."""
        place = next((k for k, entry in enumerate(self._entries) if entry is self._entry), None)
        if self._there and place is not None:
            del self._entries[place]
        self._there = False
