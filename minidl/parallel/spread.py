"""Spread: the way of new weights, where not every rank makes them.

Ranks that update send the weights of a chunk, the others receive them: as they are, or, under compression, what has changed. Then
everybody must agree on what the others know, so that each rank keeps the weights that all know, and whoever made them takes these too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

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
        self.known = staging.buffers(Layout({}) if self.needless else layout)
        # what is sent is written over what is known, but where only changes of that are sent
        self.new = self.known if not self.updates or not exchange.codec.lossy else staging.buffers(self.known.layout)

    def remember(self) -> None:
        """Before the update: the weights that all ranks have, where only changes of them will be sent."""
        if not self.needless and self.exchange.codec.lossy:
            for path, p in self.learned.items():
                self.known.far[path][...] = backend.to_numpy(p._data)

    def send(self, number: int, chunk: Chunk, weights: Mapping[str, Array], gate: Gate | None = None) -> None:
        """Begin to bring these weights to everybody, on a rank that updates, or to receive them: the job with this number.

        gate: of their step, unless it is open.
        """
        mark = None
        if self.updates:
            with self.staging.computing():
                for path in chunk.names:
                    self.new.gather_part(chunk, path, weights[path])
                mark = self.staging.mark()
        self.engine.submit(number, self._journey(chunk, mark, gate), f"spread of chunk {chunk.index}", self.known.far.chunk(chunk).nbytes)

    def _journey(self, chunk: Chunk, mark: Any, gate: Gate | None) -> Job:
        """What happens to a chunk of new weights."""
        known = self.known.far.chunk(chunk)
        if self.updates:
            yield self.new.to_host(chunk, mark)
            yield from self.exchange.spread(chunk, known, self.new.far.chunk(chunk))
        else:
            yield from self.exchange.spread(chunk, known, None)
        if not self.updates or self.exchange.codec.lossy:
            yield self.known.to_device(chunk)
        self.landed(chunk, gate)

    def take(self, path: str) -> None:
        """What all ranks know, as this one's weights; whoever made them has them, unless compression has changed them on the way."""
        if not self.updates or self.exchange.codec.lossy:
            p = self.learned[path]
            with self.staging.computing():
                p._data[...] = backend.asarray(self.known.near[path], p.device)
            p.version += 1
