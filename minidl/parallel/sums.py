"""Sums of arrays over all ranks that are no gradients: K-FAC's statistics. They go the way of gradients, but are never compressed."""

from __future__ import annotations

from collections.abc import Sequence

from minidl import backend
from minidl.backend import Array
from minidl.parallel.engine import Engine, Job
from minidl.parallel.exchange import Exchange
from minidl.parallel.layout import Chunk, Layout
from minidl.parallel.staging import Staging


def sums(arrays: Sequence[Array], chunk_size: int, exchange: Exchange, engine: Engine, staging: Staging, first: int) -> list[Array]:
    """The sums of everyone's arrays, added in the order of the ranks, beside these. first: a number from which on jobs are free."""
    layout = Layout({str(k): x for k, x in enumerate(arrays)}, chunk_size)
    buffers, exchange = staging.buffers(layout), exchange.plain(layout)
    for k, x in enumerate(arrays):
        buffers.gather(str(k), x)
    mark = staging.mark()

    def journey(chunk: Chunk) -> Job:
        yield buffers.to_host(chunk, mark)
        yield from exchange.sum(chunk, buffers.far.chunk(chunk))
        yield buffers.to_device(chunk)

    for chunk in layout.chunks:
        engine.submit(first + chunk.index, journey(chunk), f"sum of curvature {chunk.index}", buffers.far.chunk(chunk).nbytes)
    engine.wait()
    with staging.computing():
        return [beside(buffers.near[str(k)], x) for k, x in enumerate(arrays)]


def beside(x: Array, other: Array) -> Array:
    """A copy of x on the device, and in the memory order, of another array of its shape."""
    y = backend.of(other).empty_like(other)
    y[...] = backend.asarray(x, backend.device_of(other))
    return y
