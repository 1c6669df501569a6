"""Exchange: how the gradients of all ranks become their sum, and how new weights get to those who did not compute them.

A strategy is one class in one file. It says what happens to a chunk, as a generator: begin some messages, yield their requests, go on
when they are done. The engine runs many at a time; the team (team.py) decides when, so a strategy knows nothing of threads, of
overlap, or of models. allreduce.py and master_worker.py are the two that are here; docs/own_exchange.md adds a third.

Sums are added in the order of the ranks, ((g0 + g1) + g2) + ..., on whichever rank adds them up. So every strategy, at every chunk size,
gives the bits of one process that goes through the same parts of the minibatch one after the other.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np

from minidl import backend
from minidl.backend import Array
from minidl.errors import DefinitionError
from minidl.names import Names
from minidl.parallel.communicator import Communicator, Request
from minidl.parallel.compression import Changes, Codec, Feedback, codec
from minidl.parallel.layout import Chunk, Layout

Job = Iterator[Iterable[Request]]
PHASES = 4                  # tags of a chunk
Kind = TypeVar("Kind", bound="type[Exchange]")


class Exchange(ABC):
    """The base of all strategies.

    communicator: its own. layout: of what is summed. compress: a codec, or its name; whatever it leaves out is sent later (feedback),
    unless that is False. alike: every rank shall have the sum, and update, also where the strategy would have one rank do it for all.

    A strategy writes `sum`, and, where not every rank `updates`, `spread`. It sends what `pack` gives and reads it with `unpack`.
    One that calls nothing of NumPy's on a chunk's numbers may say that they can lie `anywhere`: then an MPI that is able to can take
    them from a GPU's memory. For others they come to the host first.
    """

    anywhere = False

    def __init__(self, communicator: Communicator, layout: Layout, compress: str | Codec = "none", feedback: bool = True,
                 alike: bool = False):
        self.communicator, self.layout, self.alike = communicator, layout, alike
        self.rank, self.ranks = communicator.rank, communicator.size
        self.codec = codec(compress) if isinstance(compress, str) else compress
        self.up = {dtype: Feedback(size, dtype, on=feedback) for dtype, size in layout.sizes.items()}           # of gradients
        self.down = {dtype: Feedback(size, dtype, on=feedback) for dtype, size in layout.sizes.items()}         # of their sums
        self.changes = {dtype: Changes(size, dtype, on=feedback) for dtype, size in layout.sizes.items()}       # of weights
        self.held = False                           # True: what compression leaves out of a step counts from `commit` on only
        self.bytes_sent = 0                         # so far

    # What a strategy says

    @abstractmethod
    def sum(self, chunk: Chunk, numbers: Array) -> Job:
        """Bring `numbers`, this rank's of a chunk (1-d), to the sum over all ranks, in place; at least on the ranks that update."""

    def spread(self, chunk: Chunk, known: Array, new: Array | None = None) -> Job:
        """Bring the new weights of a chunk, which a rank that updates has (`new`), to all ranks: in place of those that all know.

        Not called where every rank updates.
        """
        raise DefinitionError(f"{type(self).__name__}: some ranks do not update, and nothing brings them the weights",
                              hint="Write spread(self, chunk, known, new) in the class, or let updates(rank) be true for all.")

    def updates(self, rank: int) -> bool:
        """Whether a rank has the sum in the end, and updates the weights itself."""
        return True

    def sends(self, chunk: Chunk) -> slice:
        """The part of a chunk whose sum this rank sends to others: where the strategy compresses sums, it owes what is left out of that."""
        return slice(0, chunk.stop - chunk.start) if self.rank == 0 else slice(0, 0)

    # What it is written with

    def others(self) -> list[int]:
        """The ranks but this one, the next one first, so that not everybody sends to rank 0 at once."""
        return [(self.rank + k) % self.ranks for k in range(1, self.ranks)]

    def isend(self, parcel: Array, to: int, chunk: Chunk, phase: int = 0) -> Request:
        """Begin to send a parcel that belongs to a chunk. phase: below 4, for messages of one chunk that must not be mixed up."""
        self.bytes_sent += parcel.nbytes
        return self.communicator.isend(parcel, to, tag(chunk, phase))

    def irecv(self, parcel: Array, source: int, chunk: Chunk, phase: int = 0) -> Request:
        """Begin to receive one."""
        return self.communicator.irecv(parcel, source, tag(chunk, phase))

    def pack(self, chunk: Chunk, numbers: Array, part: slice | None = None, down: bool = False) -> Array:
        """What is sent for the numbers of a part of a chunk (all of it unless given): they themselves, or compressed.

        down: they are sums and no rank's own: what compression leaves out of them is remembered apart.
        """
        part = part or slice(0, len(numbers))
        if not self.codec.lossy:
            return numbers[part]
        memory, codec = (self.down[chunk.dtype], self.codec.down) if down else (self.up[chunk.dtype], self.codec)
        parcel = memory.encode(codec, numbers[part], slice(chunk.start + part.start, chunk.start + part.stop))
        return self._packed(memory, parcel)

    def room(self, out: Array, down: bool = False) -> Array:
        """Where a parcel can arrive whose numbers shall go to out: there, or in memory of its own if it is compressed.

        down: it is one of sums, or of weights.
        """
        codec = self.codec.down if down else self.codec
        return np.empty(codec.room(len(out), out.dtype), np.uint8) if codec.lossy else out

    def unpack(self, parcel: Array, out: Array, down: bool = False) -> Array:
        """The numbers of a parcel, in out. down: they are sums."""
        if self.codec.lossy:
            (self.codec.down if down else self.codec).decode(parcel, out)
        elif parcel is not out:
            out[...] = parcel
        return out

    def add_up(self, parcels: Mapping[int, Array], numbers: Array) -> None:
        """The sum in the order of the ranks, in place of this rank's numbers. parcels: by the other ranks."""
        xp, total = backend.of(numbers), None
        for rank in range(self.ranks):
            term = numbers if rank == self.rank else parcels[rank]
            if term is not numbers and self.codec.lossy:
                term = self.unpack(term, np.empty_like(numbers))
            total = term if total is None else xp.add(total, term, out=total)          # a parcel that has come belongs to nobody else
        if total is not None and total is not numbers:
            numbers[...] = total

    def pack_weights(self, chunk: Chunk, known: Array, new: Array) -> Array:
        """What is sent for new weights to ranks that know older ones: they themselves, or the difference, compressed."""
        if not self.codec.lossy:
            return new
        memory = self.changes[chunk.dtype]
        return self._packed(memory, memory.encode(self.codec.down, new, known, chunk.where))

    def _packed(self, memory: Feedback, parcel: np.ndarray) -> np.ndarray:
        if not self.held:
            memory.commit()
        return parcel

    def unpack_weights(self, parcel: Array, known: Array) -> None:
        """The weights that all ranks know from now on."""
        if self.codec.lossy:
            Changes.apply(self.codec.down, parcel, known)
        elif parcel is not known:
            known[...] = parcel

    # Its memory

    def memories(self) -> dict[str, dict[np.dtype, Feedback]]:
        """What compression has left out: of this rank's gradients (up), of sums (down), of weights (changes); by dtype."""
        return {"up": self.up, "down": self.down, "changes": {**self.changes}}

    def commit(self) -> None:
        """The step is made: what compression has left out of it is now owed."""
        for memories in self.memories().values():
            for memory in memories.values():
                memory.commit()

    def rollback(self) -> None:
        """The step will be made again: forget what it owed."""
        for memories in self.memories().values():
            for memory in memories.values():
                memory.rollback()

    def inherit(self, before: Exchange, alike: bool) -> None:
        """Owe what another exchange has owed: of this rank's gradients, and, among as many ranks (alike), of sums and weights."""
        for kind, memories in self.memories().items():
            for dtype, memory in memories.items() if alike or kind == "up" else ():
                old = before.memories()[kind].get(dtype)
                if old is not None and old.residual is not None:
                    memory.residual = self.layout.moved(old.residual, before.layout, dtype)

    def owed(self, talk: Communicator) -> dict[str, Array]:
        """What every rank owes, as a checkpoint takes it. All ranks call it."""
        found: dict[str, Array] = {}
        if not self.codec.lossy:
            return found
        for kind, memories in self.memories().items():
            for dtype, memory in memories.items():
                own = memory.residual
                there = talk.allgather(np.array(own is not None))
                if there.any():
                    found[f"{kind}.{dtype}"] = talk.allgather(np.zeros(memory.size, dtype) if own is None else own)
        return found

    def owe(self, state: Mapping[str, Array]) -> None:
        """Owe what `owed` gave, also where other ranks than now had owed it."""
        for kind, memories in self.memories().items():
            for dtype, memory in memories.items():
                everyones = state.get(f"{kind}.{dtype}")
                memory.residual = None
                if everyones is None or everyones.shape[1:] != (memory.size,):
                    continue
                if len(everyones) == self.ranks:
                    memory.residual = everyones[self.rank]
                elif kind == "down":                        # of sums, each rank goes on with what it will send itself
                    total, memory.residual = np.add.reduce(everyones, axis=0), np.zeros(memory.size, dtype)
                    for chunk in self.layout.chunks:
                        if chunk.dtype == dtype:
                            part = self.sends(chunk)
                            here = slice(chunk.start + part.start, chunk.start + part.stop)
                            memory.residual[here] = total[here]
                elif self.rank == 0:                        # of other ranks: what they owed together is owed by the first
                    memory.residual = np.add.reduce(everyones, axis=0)

    def plain(self, layout: Layout) -> Exchange:
        """The same strategy for other arrays, on every rank and without compression."""
        return type(self)(self.communicator, layout, alike=True)


def tag(chunk: Chunk, phase: int) -> int:
    """Of the messages of a chunk: small numbers, of which every MPI has enough, and not the one that the engine uses."""
    return 1 + chunk.index * PHASES + phase


# By name

_kinds = Names("parallel", "an", "exchange")


def register(name: str) -> Callable[[Kind], Kind]:
    """Make a strategy known by a name: `@register("allreduce")` over the class."""
    return _kinds.register(name)


def names() -> list[str]:
    """The names of the strategies there are, in alphabetical order."""
    return sorted(_kinds.known)


def kind(name: str) -> type[Exchange]:
    """The class of a strategy. ArgumentError for a name that is not known."""
    return _kinds.find(name)


def create(name: str, communicator: Communicator, layout: Layout, **options: Any) -> Exchange:
    """A strategy by its name. ArgumentError for a name that is not known."""
    return kind(name)(communicator, layout, **options)
