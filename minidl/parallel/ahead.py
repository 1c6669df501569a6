"""Ahead: new weights that are made and sent while the backward pass still needs the old ones.

For ranks that update for others. As soon as the sums of a parameter's gradients are there, its new weights are made in memory of their
own, with the optimizer's, and go to those who wait for them. They count from the end of the pass on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from minidl.backend import Array
from minidl.optim import Optimizer
from minidl.parallel.layout import Chunk, Layout


class Ahead:
    """The new weights of one step, which it begins.

    gradient: gives the sum of a parameter's gradients. send: begins to bring the weights of a chunk, given by parameter, to the others;
    it is called in the engine's thread.
    """

    def __init__(self, layout: Layout, optimizer: Optimizer, gradient: Callable[[str], Array],
                 send: Callable[[Chunk, Mapping[str, Array]], None]):
        self.layout, self.optimizer, self.gradient, self.send = layout, optimizer, gradient, send
        self.options: dict[str, dict[str, Any]] = optimizer.begin()
        self.own: set[str] = set()                          # parameters that will change: this rank has a gradient for them
        self.missing = {path: len(chunks) for path, chunks in layout.holding.items()}          # chunks of their sums
        self.unmade = {chunk.index: len(chunk.names) for chunk in layout.chunks}               # parameters of a chunk
        self.weights: dict[str, Array] = {}
        self.accepting: dict[str, Callable[[], None]] = {}
        self.sent: set[int] = set()

    def summed(self, chunk: Chunk) -> None:
        """The sum of a chunk is there, and the backward pass may not be over."""
        for path in chunk.names:
            self.missing[path] -= 1
            if self.missing[path] or path not in self.own:
                continue
            self.weights[path], self.accepting[path] = self.optimizer.update_copy(path, self.gradient(path), self.options)
            for held in self.layout.holding[path]:
                self.unmade[held.index] -= 1
                if not self.unmade[held.index]:
                    self.sent.add(held.index)
                    self.send(held, self.weights)

    def accept(self, path: str) -> bool:
        """From now on the new weights of a parameter count, if they were made; whether they were."""
        accept = self.accepting.pop(path, None)
        self.weights.pop(path, None)
        if accept is not None:
            accept()
        return accept is not None

    def forget(self) -> None:
        """The step did not come to its end."""
        self.optimizer.steps -= 1
