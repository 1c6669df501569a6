"""Library: what minidl must know of an array library beside its NumPy-like face, and of the memory and the streams of its devices.

Which libraries there are, and whose an array is, is backend.py's business; CuPy's is described in backend_cupy.py.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

Array = Any                         # numpy.ndarray or cupy.ndarray: two classes with one face


def ordinal(device: str) -> int:
    """Of a device of several: 1 of "cuda:1"."""
    return int(device.partition(":")[2] or 0)


class Streams(Protocol):
    """What a device does beside its current stream. A stream is a context manager, and has synchronize(), record(event), wait_event(event)
    and ptr; an event has synchronize() and done.
    """

    def on(self, device: str) -> AbstractContextManager:
        """Within the block this is the thread's device."""

    def new(self, device: str) -> Any:
        """A stream that does not wait for the others."""

    def current(self, device: str) -> Any:
        """The stream on which this thread's operations run."""

    def event(self, device: str) -> Any:
        """A mark for streams to wait for, or for a thread, which sleeps meanwhile; not for measuring time."""

    def pinned(self, shape: int | tuple[int, ...], dtype: Any) -> np.ndarray:
        """An array in page-locked host memory, its numbers not set: only such memory is copied while the host does something else."""

    def copy(self, x: Array, out: Array, stream: Any) -> None:
        """Begin to copy x to out, both contiguous and alike, one of them pinned and the other on the stream's device.

        Neither may be changed or let go before the stream has come by.
        """


@dataclass(frozen=True)
class Memory:
    """Bytes of a device's memory, now.

    used: by this process's arrays. held: by its pool, with what is kept for the next arrays; peak: the most that was. limit: of what is
    held; 0: none. free, total: of the whole device, whoever has the rest.
    """

    used: int
    held: int
    peak: int
    limit: int
    free: int
    total: int

    @property
    def room(self) -> int:
        """What arrays of this process can still take, if it need not lie in one piece."""
        free = self.held - self.used + self.free
        return max(min(free, self.limit - self.used) if self.limit else free, 0)


@dataclass(frozen=True)
class Library:
    """An array library, and what minidl must know beside its NumPy-like face."""

    name: str                                           # what its devices are called: "cpu", or "cuda" for "cuda:0"
    xp: types.ModuleType | Any                          # the module that holds zeros, exp, ...
    array: type                                         # its array type
    device_of: Callable[[Array], str]
    asarray: Callable[[Any, str], Array]                # (NumPy array or own array, device) to an array on that device
    to_numpy: Callable[[Array], np.ndarray]
    synchronize: Callable[[], None]
    event: Callable[[], Any] | None = None              # a mark among what the device does; None where calls come back when all is done
    elapsed: Callable[[Any, Any], float] | None = None  # milliseconds from one mark to another, once the device has come by both
    kernels: str = ""                                   # which twins in kernels/ take its arrays, beside the reference: "cuda"
    streams: Streams | None = None                      # None where everything is done when a call comes back
    memory: Callable[[str | None], Memory] | None = None        # of a device, or of the thread's; None where that is not known
    limit: Callable[[str, int], None] | None = None     # hold no more than so many bytes on a device; 0: no limit
    pool: Callable[[str], Any] | None = None            # a memory pool of one's own on a device, counted with the rest, within the limit
    watch: Callable[[str | None], AbstractContextManager[Callable[..., int]]] | None = None        # see `watched`
    solve_triangular: Callable[[Array, Array], Array] | None = None     # (L, b) to L^-1 b, L lower triangular, also for stacks; None: solve
