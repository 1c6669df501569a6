"""Layout: where each of many arrays lies in one flat buffer, and how that is cut into chunks.

A chunk is what is sent as one. Large arrays are cut into several, small neighbours travel together, so that a chunk has about the size
that was asked for: large enough to be worth its messages, small enough to let a more urgent one pass. Sums do not depend on the cuts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from minidl.backend import Array
from minidl.errors import ArgumentError

CHUNK = 256 << 10           # bytes: on a wire of 200 Mbit/s 10 ms, for which something more urgent would wait


@dataclass(frozen=True)
class Chunk:
    """Numbers start to stop of the buffer of one dtype. names: of the arrays that it holds numbers of."""

    index: int
    dtype: np.dtype
    start: int
    stop: int
    names: tuple[str, ...]

    @property
    def where(self) -> slice:
        """Its numbers in the buffer."""
        return slice(self.start, self.stop)


class Layout:
    """Where arrays lie: the buffers of each dtype hold them one after the other, in the order in which they are given.

    arrays: anything with a shape and a dtype, by name. chunk: bytes.

    >>> layout = Layout({"w": np.zeros((3, 4), "float32"), "b": np.zeros(2, "float32")}, chunk=32)
    >>> [(chunk.start, chunk.stop, chunk.names) for chunk in layout.chunks]
    [(0, 6, ('w',)), (6, 12, ('w',)), (12, 14, ('b',))]
    """

    def __init__(self, arrays: Mapping[str, Any], chunk: int = CHUNK):
        if isinstance(chunk, bool) or not hasattr(chunk, "__index__") or chunk < 1:
            raise ArgumentError(f"Layout: chunk is {chunk!r}, and must be a number of bytes of at least 1")
        self.shapes = {name: tuple(x.shape) for name, x in arrays.items()}
        self.dtypes = {name: np.dtype(x.dtype) for name, x in arrays.items()}
        self.places: dict[str, slice] = {}                  # in the buffer of its dtype
        self.sizes = dict.fromkeys(self.dtypes.values(), 0)         # of the buffers, in numbers
        self.chunks: list[Chunk] = []
        open_: dict[np.dtype, list[str]] = {dtype: [] for dtype in self.sizes}          # names whose numbers wait for company
        begun = dict.fromkeys(self.sizes, 0)
        for name, shape in self.shapes.items():
            dtype = self.dtypes[name]
            size, room = int(np.prod(shape)), max(chunk // dtype.itemsize, 1)
            first = self.sizes[dtype]
            self.places[name] = slice(first, first + size)
            if open_[dtype] and first + size - begun[dtype] > room:
                self._close(dtype, begun, first, open_)
            self.sizes[dtype] = first + size
            if size <= room:
                open_[dtype].append(name)
                continue
            pieces = -(-size // room)
            for k in range(pieces):
                open_[dtype] = [name]
                self._close(dtype, begun, first + size * (k + 1) // pieces, open_)
        for dtype, size in self.sizes.items():
            if open_[dtype]:
                self._close(dtype, begun, size, open_)
        self.holding = {name: tuple(chunk for chunk in self.chunks if name in chunk.names) for name in self.shapes}

    def _close(self, dtype: np.dtype, begun: dict[np.dtype, int], stop: int, open_: dict[np.dtype, list[str]]) -> None:
        if stop > begun[dtype]:
            self.chunks.append(Chunk(len(self.chunks), dtype, begun[dtype], stop, tuple(open_[dtype])))
        begun[dtype], open_[dtype] = stop, []

    @property
    def bytes(self) -> int:
        """Of all buffers together."""
        return sum(size * dtype.itemsize for dtype, size in self.sizes.items())

    def moved(self, x: np.ndarray, before: Layout, dtype: np.dtype) -> np.ndarray:
        """What lies in the buffer x of another layout, by name where it lies here; zeros for what is not there."""
        out = np.zeros(self.sizes[dtype], x.dtype)
        for name, place in self.places.items():
            if self.dtypes[name] == dtype == before.dtypes.get(name) and self.shapes[name] == before.shapes[name]:
                out[place] = x[before.places[name]]
        return out

    def buffers(self) -> Buffers:
        """New ones, whose content is not set."""
        return Buffers(self)


class Buffers:
    """The memory that a Layout describes: one flat array for each dtype. empty: makes it, of a size and a dtype."""

    def __init__(self, layout: Layout, empty: Callable[[int, np.dtype], Array] = np.empty):
        self.layout = layout
        self.flat = {dtype: empty(size, dtype) for dtype, size in layout.sizes.items()}

    def __getitem__(self, name: str) -> Array:
        """The array of a name: a view of the buffer, in its shape."""
        layout = self.layout
        return self.flat[layout.dtypes[name]][layout.places[name]].reshape(layout.shapes[name])

    def chunk(self, chunk: Chunk) -> Array:
        """The numbers of a chunk, 1-d: a view."""
        return self.flat[chunk.dtype][chunk.where]
