"""Many processes as one profile: everyone's events on the first one's clock.

Each process counts time from a moment of its own. So the first one sends each other one a message and gets back what that one's clock
shows, several times: the clock was read at some moment between the sending and the coming back. The quickest of the trips says most: the
middle of it is taken, which is wrong by half of its length at most. How two clocks run apart meanwhile is not seen; quartz does
by some millionths, milliseconds in an hour, so the clocks are looked at when the profile ends, not far from what it shows.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

TRIPS = 20              # to each rank and back
NAP = 1e-5              # seconds between two looks


class Talk(Protocol):
    """What is needed of a Communicator."""

    rank: int
    size: int

    def isend(self, x: np.ndarray, to: int, tag: int = 0) -> Any:
        """Begin to send."""

    def irecv(self, x: np.ndarray, source: int, tag: int = 0) -> Any:
        """Begin to receive."""

    def wait(self, requests: Any, nap: float = 0) -> None:
        """Until they are over."""

    def gather_bytes(self, content: bytes) -> list[bytes]:
        """Everyone's."""


def offsets(communicator: Talk, now: Callable[[], int] = time.perf_counter_ns) -> list[tuple[int, int]]:
    """By how many nanoseconds each rank's clock is ahead of rank 0's, and how wrong that may be. Every rank calls it; rank 0 learns it."""
    found = [(0, 0)]
    for rank in range(1, communicator.size):
        if communicator.rank == 0:
            best = None
            for _ in range(TRIPS):
                sent, there = now(), np.empty(1, np.int64)
                communicator.wait([communicator.isend(np.zeros(1, np.int64), rank, 0), communicator.irecv(there, rank, 0)], NAP)
                back = now()
                if best is None or back - sent < best[0]:
                    best = back - sent, int(there[0]) - (sent + back) // 2
            assert best is not None
            found.append((best[1], -(-best[0] // 2)))
        elif communicator.rank == rank:
            for _ in range(TRIPS):
                asked = np.empty(1, np.int64)
                communicator.wait([communicator.irecv(asked, 0, 0)], NAP)
                communicator.wait([communicator.isend(np.array([now()], np.int64), 0, 0)], NAP)
    return found
