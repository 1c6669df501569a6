"""Arrays on a device, given to a communicator that sends from the host's memory: they go through a copy there.

This is for a call now and then. Gradients, of which there are many, go through a Staging (device_staging.py), which waits for nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from minidl import backend
from minidl.backend import Array
from minidl.parallel.communicator import Communicator, Request


def elsewhere(x: Any) -> bool:
    """Whether x is an array of a device."""
    return not isinstance(x, np.ndarray) and hasattr(x, "dtype") and backend.is_array(x)


def through_host(method: Callable[..., Request]) -> Callable[..., Request]:
    """isend, irecv, ibroadcast or iallgather of a Communicator, which now takes arrays of a device too.

    Where it is `direct` the method itself gets those of isend and irecv.
    """
    staged: Callable[..., Request] = {"isend": isend, "irecv": irecv, "ibroadcast": ibroadcast, "iallgather": iallgather}[method.__name__]      # type: ignore[assignment]
    itself = method.__name__ in ("isend", "irecv")

    @functools.wraps(method)
    def wrapped(self: Communicator, x: Array, *args: Any, **options: Any) -> Request:
        there = elsewhere(x) or any(elsewhere(each) for each in args)
        return staged(self, x, *args, **options) if there and not (itself and self.direct) else method(self, x, *args, **options)

    return wrapped


class Landing(Request):
    """Done when another request is, and what has come to the host is in its place on the device."""

    def __init__(self, inner: Request, host: np.ndarray, x: Array | None = None):
        self.inner, self.host, self.x = inner, host, x

    def done(self) -> bool:
        if not self.inner.done():
            return False
        if self.x is not None:
            self.x[...] = backend.asarray(self.host, backend.device_of(self.x))
            self.x = None
        return True


def isend(communicator: Communicator, x: Array, to: int, tag: int = 0) -> Request:
    host = fetched(x)
    return Landing(communicator.isend(host, to, tag), host)


def irecv(communicator: Communicator, x: Array, source: int, tag: int = 0) -> Request:
    host = np.empty(x.shape, x.dtype)
    return Landing(communicator.irecv(host, source, tag), host, x)


def ibroadcast(communicator: Communicator, x: Array, root: int = 0) -> Request:
    sends = communicator.rank == root
    host = fetched(x) if sends else np.empty(x.shape, x.dtype)
    return Landing(communicator.ibroadcast(host, root), host, None if sends else x)


def iallgather(communicator: Communicator, x: Array, out: Array) -> Request:
    host = np.empty(out.shape, out.dtype) if elsewhere(out) else out
    return Landing(communicator.iallgather(fetched(x), host), host, out if elsewhere(out) else None)


def fetched(x: Array) -> np.ndarray:
    """x on the host, its rows one after the other."""
    return np.asarray(backend.to_numpy(x), order="C")
