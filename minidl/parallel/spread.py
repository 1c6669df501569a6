"""Spread: the way of new weights, where not every rank makes them.

Ranks that update send the weights of a chunk, the others receive them: as they are, or, under compression, what has changed. Then
everybody must agree on what the others know, so that each rank keeps the weights that all know, and whoever made them takes these too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from minidl import backend
from minidl.backend import Array
from minidl.parallel.arrivals import Gate
from minidl.parallel.engine import Engine, Job
from minidl.parallel.exchange import Exchange
from minidl.parallel.layout import Chunk, Layout
from minidl.parallel.staging import Staging
from minidl.tensor import Tensor

Landed = Callable[[Chunk, Gate | None], None]


class Spread:
    """The weights that all ranks know. updates: whether this rank makes new ones. landed: is told of each chunk that has come."""

    def __init__(self, learned: dict[str, Tensor], layout: Layout, exchange: Exchange, engine: Engine, staging: Staging, landed: Landed):
        self.learned, self.layout, self.exchange, self.engine = learned, layout, exchange, engine
        self.staging, self.landed = staging, landed
        self.updates = exchange.updates(exchange.rank)
        self.needless = all(exchange.updates(rank) for rank in range(exchange.ranks))           # each rank makes its own
        self.known = (Layout({}) if self.needless else layout).buffers()

    def remember(self) -> None:
        """Before the update: the weights that all ranks have, where only changes of them will be sent."""
        if not self.needless and self.exchange.codec.lossy:
            for path, p in self.learned.items():
                self.known[path][...] = backend.to_numpy(p._data)

    def send(self, number: int, chunk: Chunk, weights: Mapping[str, Array], gate: Gate | None = None) -> None:
        """Begin to bring these weights to everybody, on a rank that updates, or to receive them: the job with this number.

        gate: of their step, unless it is open.
        """
        known = self.known.chunk(chunk)
        new = None
        if self.updates:
            new = np.empty_like(known) if self.exchange.codec.lossy else known
            for path in chunk.names:
                place, w = self.layout.places[path], backend.to_numpy(weights[path]).reshape(-1)
                first, stop = max(place.start, chunk.start), min(place.stop, chunk.stop)
                new[first - chunk.start:stop - chunk.start] = w[first - place.start:stop - place.start]
        self.engine.submit(number, self._journey(chunk, known, new, gate), f"spread of chunk {chunk.index}", known.nbytes)

    def _journey(self, chunk: Chunk, known: np.ndarray, new: np.ndarray | None, gate: Gate | None) -> Job:
        """What happens to a chunk of new weights."""
        yield from self.exchange.spread(chunk, known, new)
        if not self.updates:
            yield self.staging.to_device(known.nbytes)
        self.landed(chunk, gate)

    def take(self, path: str) -> None:
        """What all ranks know, as this one's weights; whoever made them has them, unless compression has changed them on the way."""
        if not self.updates or self.exchange.codec.lossy:
            p = self.learned[path]
            p._data[...] = backend.asarray(self.known[path], p.device)
            p.version += 1
