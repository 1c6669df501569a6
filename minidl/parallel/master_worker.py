"""Master and workers: rank 0 adds up all gradients, updates the weights, and sends them to all.

A worker sends its gradient once and receives the weights once. The master receives P - 1 gradients and sends the weights P - 1 times: its
wire is what limits how many workers there can be. Only the master keeps an optimizer's memory, unless all ranks shall update alike:
then it sends the sum instead, which is as long.
"""

from __future__ import annotations

import numpy as np

from minidl import backend
from minidl.backend import Array
from minidl.parallel.communicator import Request
from minidl.parallel.exchange import Exchange, Job, register
from minidl.parallel.layout import Chunk

MASTER = 0


@register("master-worker")
class MasterWorker(Exchange):
    """Gradients to the master, new weights to the workers."""

    anywhere = True

    def updates(self, rank: int) -> bool:
        return self.alike or rank == MASTER

    def sum(self, chunk: Chunk, numbers: Array) -> Job:
        if self.rank == MASTER:
            coming = {rank: self.room(backend.of(numbers).empty_like(numbers)) for rank in self.others()}
            yield [self.irecv(parcel, rank, chunk) for rank, parcel in coming.items()]
            self.add_up(coming, numbers)
        else:
            yield [self.isend(self.pack(chunk, numbers), MASTER, chunk)]
        if self.alike:
            parcel = self.pack(chunk, numbers, down=True) if self.rank == MASTER else self.room(numbers, down=True)
            yield self.from_master(parcel, chunk, 1)
            self.unpack(parcel, numbers, down=True)        # the master too: what compression made of it, as everybody else has it

    def spread(self, chunk: Chunk, known: Array, new: Array | None = None) -> Job:
        parcel = self.room(known, down=True) if new is None else self.pack_weights(chunk, known, new)
        yield self.from_master(parcel, chunk, 2)
        self.unpack_weights(parcel, known)
        # a message is sent as soon as it is copied: without a word of thanks the master would fill the wire with chunks that are not urgent
        thanks = np.zeros(1, np.uint8)
        if self.rank == MASTER:
            yield [self.irecv(np.empty_like(thanks), rank, chunk, 3) for rank in self.others()]
        else:
            yield [self.isend(thanks, MASTER, chunk, 3)]

    def from_master(self, parcel: Array, chunk: Chunk, phase: int) -> list[Request]:
        """The master's parcel to everybody."""
        if self.rank == MASTER:
            return [self.isend(parcel, rank, chunk, phase) for rank in self.others()]
        return [self.irecv(parcel, MASTER, chunk, phase)]
