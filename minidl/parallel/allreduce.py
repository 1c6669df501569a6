"""All-reduce: everybody adds up a part, and sends the sum of it to everybody.

    reduce-scatter      each rank owns a slice of the chunk, and is sent everyone's numbers of it
    all-gather          each rank sends the sum of its slice to all others

Per rank 2 (P - 1) / P times the chunk goes out, and as much comes in: no rank is busier than another. Messages go straight to where they
are wanted, not round a ring, because a ring adds in another order on each slice. Every rank has the sum, and updates its own weights.
"""

from __future__ import annotations

from minidl import backend
from minidl.backend import Array
from minidl.data.loader import share
from minidl.parallel.exchange import Exchange, Job, register
from minidl.parallel.layout import Chunk


@register("allreduce")
class AllReduce(Exchange):
    """Direct reduce-scatter and all-gather."""

    anywhere = True

    def sends(self, chunk: Chunk) -> slice:
        return share(chunk.stop - chunk.start, self.rank, self.ranks)

    def sum(self, chunk: Chunk, numbers: Array) -> Job:
        slices = [share(len(numbers), rank, self.ranks) for rank in range(self.ranks)]
        own = numbers[slices[self.rank]]
        coming = {rank: self.room(backend.of(own).empty_like(own)) for rank in self.others()}
        yield [*(self.irecv(parcel, rank, chunk) for rank, parcel in coming.items()),
               *(self.isend(self.pack(chunk, numbers, slices[rank]), rank, chunk) for rank in self.others())]
        self.add_up(coming, own)

        parcel = self.pack(chunk, numbers, slices[self.rank], down=True)
        coming = {rank: self.room(numbers[slices[rank]], down=True) for rank in self.others()}
        yield [*(self.irecv(room, rank, chunk, 1) for rank, room in coming.items()),
               *(self.isend(parcel, rank, chunk, 1) for rank in self.others())]
        for rank, landed in coming.items():
            self.unpack(landed, numbers[slices[rank]], down=True)
        self.unpack(parcel, own, down=True)                 # what compression made of it, as everybody else has it
