"""Communicator: both kinds do the same."""

import numpy as np
from ranks import die, on_ranks

from minidl.errors import RankLost


@on_ranks(1, 2, 3, 4)
def test_a_ring(communicator):
    """Everyone to the next."""
    rank, size = communicator.rank, communicator.size
    got = np.empty(5)
    communicator.wait([communicator.isend(np.arange(5.0) + rank, (rank + 1) % size, 3), communicator.irecv(got, (rank - 1) % size, 3)])
    np.testing.assert_array_equal(got, np.arange(5.0) + (rank - 1) % size)


@on_ranks(3, deaths=True)
def test_the_living_go_on(communicator):
    if communicator.rank == 1:
        die(communicator)
    try:
        communicator.barrier()
        lost = False
    except RankLost:
        lost = True
    assert lost
    communicator.revoke()
    assert communicator.agree(True) is False
    smaller = communicator.shrink()
    assert (smaller.rank, smaller.size) == (communicator.rank // 2, 2)
    assert smaller.allgather(np.array(communicator.rank)).tolist() == [0, 2]
    assert smaller.agree(True) is True
