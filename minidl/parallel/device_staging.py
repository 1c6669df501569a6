"""Staging of a real device: gradients leave it, and sums come back, on streams of their own, while it computes on.

    Pinned      device -> page-locked host memory -> exchange and sum there -> device. Whatever MPI there is
    Direct      an MPI that reads and writes a device's memory itself (CUDA-aware): messages go from where the gradients lie, and sums
                are made there

Nobody waits for the device but it itself. A copy begins when the stream that computes has come by the mark that stands behind the chunk's
last gradient; the engine looks at the event behind the copy, and the stream that computes waits for the event behind the way back. All
gradients of a model are first gathered in one flat buffer on the device. So a chunk is one copy, and whoever frees a gradient does not
take it from under a copy. Buffers live as long as the model is bound; their host side is as large as the parameters.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from minidl import backend
from minidl.backend import Array
from minidl.library import Streams
from minidl.parallel.communicator import Communicator, Request
from minidl.parallel.exchange import Exchange
from minidl.parallel.layout import Buffers, Layout
from minidl.parallel.staging import Staged, Staging


def staging_for(devices: Collection[str], communicator: Communicator, exchange: Exchange) -> Staging:
    """What a model needs whose parameters lie on these devices. What is sent compressed is compressed on the host."""
    device = min(devices, default="cpu")
    if len(set(devices)) != 1 or backend.library_named(device).streams is None:
        return Staging()
    return Pinned(device) if why_not_direct(communicator.direct, type(exchange), exchange.codec.lossy) else Direct(device)


def why_not_direct(cuda_aware: bool, exchange: type[Exchange], lossy: bool) -> str:
    """Why gradients are not sent from where they lie; "" if they are."""
    if lossy:
        return "they are compressed there"
    if not exchange.anywhere:
        return f"{exchange.__name__} adds them up there"
    return "" if cuda_aware else "this MPI is not CUDA-aware"


class Passed(Request):
    """Done when a device has come by an event. things: what must not be let go before."""

    def __init__(self, event: Any, *things: Any):
        self.event, self.things = event, things

    def done(self) -> bool:
        return bool(self.event.done)


class OnStreams(Staging):
    """What both kinds share: `side`, the stream on which sums come to the device, and `training`, the one that computes."""

    def __init__(self, device: str):
        library = backend.library_named(device)
        self.device, self.xp = device, library.xp
        self.streams: Streams = library.streams                             # type: ignore[assignment]   # whoever made it has looked
        self.side = self.streams.new(device)
        self.training = self.streams.current(device)
        self.landed: Any = None                                             # the event behind the last sum

    def recorded(self, stream: Any) -> Any:
        """An event behind all that a stream was given."""
        event = self.streams.event(self.device)
        stream.record(event)
        return event

    def near(self, layout: Layout) -> Buffers:
        """Buffers on the device."""
        with self.streams.on(self.device):
            return Buffers(layout, self.xp.empty)

    def gathered(self, x: Array) -> Array:
        return x

    def mark(self) -> Any:
        self.training = self.streams.current(self.device)
        return self.recorded(self.training)

    @contextmanager
    def computing(self) -> Iterator[None]:
        with self.streams.on(self.device), self.training:
            if self.landed is not None:
                self.training.wait_event(self.landed)
            yield

    def exchanging(self) -> AbstractContextManager:
        return self.streams.on(self.device)                                 # of the engine's thread: each begins with the first device

    def close(self) -> None:
        self.side.synchronize()


class Pinned(OnStreams):
    """Through page-locked host memory: one stream for each direction, since the bus has both at a time."""

    def __init__(self, device: str):
        super().__init__(device)
        self.leaving = self.streams.new(device)
        self.returning: deque[Passed] = deque()             # copies to the device, whose host side nobody else may hold

    def buffers(self, layout: Layout) -> Staged:
        return Staged(self, self.near(layout), Buffers(layout, self.streams.pinned))

    def to_host(self, x: Array, out: Array, mark: Any = None) -> Iterable[Request]:
        self.leaving.wait_event(mark)
        self.streams.copy(x, out, self.leaving)
        return [Passed(self.recorded(self.leaving), x, out)]

    # The host's side is written again only after the next mark, and `training` has waited for `landed` before that one
    def to_device(self, x: Array, out: Array) -> Iterable[Request]:
        while self.returning and self.returning[0].done():
            self.returning.popleft()
        self.streams.copy(x, out, self.side)
        self.landed = self.recorded(self.side)
        self.returning.append(Passed(self.landed, x, out))
        return ()

    def close(self) -> None:
        self.leaving.synchronize()
        super().close()
        self.returning.clear()


class Direct(OnStreams):
    """From the device's own memory: MPI takes a chunk once it is final, and sums are made on `side`."""

    def buffers(self, layout: Layout) -> Staged:
        near = self.near(layout)
        return Staged(self, near, near)

    def to_host(self, x: Array, out: Array, mark: Any = None) -> Iterable[Request]:
        return [Passed(mark, x)]

    def to_device(self, x: Array, out: Array) -> Iterable[Request]:
        self.landed = self.recorded(self.side)
        return ()

    @contextmanager
    def exchanging(self) -> Iterator[None]:
        with self.streams.on(self.device), self.side:
            yield
