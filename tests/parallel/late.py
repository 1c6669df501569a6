"""Streams for the strict device whose copies run late: as late as a real device's may, and never before they are waited for.

What is computed is computed at once. A copy runs when somebody waits for what is behind it, or has looked at its event a few times; until
then what it will write is NaN. So a number that is read too early, or overwritten too early, shows in what is learned. `log` has every
copy of float32 numbers, as it begins and as it ends; pinned_bytes counts the memory for such.
"""

import threading
from contextlib import contextmanager, nullcontext

import numpy as np

import strict  # noqa: F401   makes the strict device known
from minidl import backend

DEVICE = "strict:0"


@contextmanager
def late_streams(looks=2):
    """Within the block the strict device has such streams; gives them. looks: at an event, until what is before it has run."""
    library = backend.library_named(DEVICE)
    before, streams = library.streams, LateStreams(looks)
    vars(library)["streams"] = streams                  # a frozen one
    try:
        yield streams
    finally:
        vars(library)["streams"] = before


def poison(dtype):
    """What stands where nothing has come yet."""
    return np.nan if np.dtype(dtype).kind == "f" else 255


class LateStreams:
    """See minidl.library.Streams."""

    def __init__(self, looks):
        self.looks, self.log = looks, []
        self.lock = threading.RLock()                   # streams are used by several threads, as a real device's are
        self.here = threading.local()
        self.pinned_bytes = 0
        self.made = []

    def on(self, device):
        return nullcontext()

    def new(self, device):
        self.made.append(Stream(self))
        return self.made[-1]

    def current(self, device):
        if not hasattr(self.here, "stream"):
            self.here.stream = Stream(self, eager=True)
        return self.here.stream

    def event(self, device):
        return Event(self)

    def pinned(self, shape, dtype):
        x = np.full(shape, poison(dtype), dtype)
        if x.dtype == np.float32:
            with self.lock:
                self.pinned_bytes += x.nbytes
        return x

    def forget(self):
        """Hold no array of the copies that wait, as a device does not: they will write rubbish."""
        for stream in self.made:
            stream.queue = [lambda: None] * len(stream.queue)

    def copy(self, x, out, stream):
        out[...] = poison(out.dtype)
        way = "off" if isinstance(out, np.ndarray) else "back"
        log = self.log if out.dtype == np.float32 else []               # of gradients and sums; minibatches come as bytes
        log.append((way, "begins", threading.current_thread().name))

        def run():
            out[...] = backend.to_numpy(x) if way == "off" else backend.asarray(x, DEVICE)
            log.append((way, "ends", threading.current_thread().name))

        stream.later(run)


class Stream:
    """A queue of what has been begun. eager: what is computed here runs at once, and so must what it waits for."""

    def __init__(self, streams, eager=False):
        self.streams, self.eager = streams, eager
        self.queue, self.given, self.run = [], 0, 0
        self.outer = []

    def __enter__(self):
        self.outer.append(self.streams.current(DEVICE))
        self.streams.here.stream = self
        return self

    def __exit__(self, *_):
        self.streams.here.stream = self.outer.pop()

    def later(self, run):
        with self.streams.lock:
            self.queue.append(run)
            self.given += 1

    def flush(self, upto):
        with self.streams.lock:
            while self.run < upto:
                self.run += 1
                self.queue.pop(0)()

    def synchronize(self):
        self.flush(self.given)

    def record(self, event):
        event.stream, event.upto = self, self.given

    def wait_event(self, event):
        if self.eager:
            event.synchronize()
        else:
            self.later(event.synchronize)


class Event:
    """A mark on a stream."""

    def __init__(self, streams):
        self.streams, self.stream, self.upto, self.seen = streams, None, 0, 0

    def synchronize(self):
        self.stream.flush(self.upto)

    @property
    def done(self):
        self.seen += 1
        if self.seen > self.streams.looks:
            self.synchronize()
        return self.stream.run >= self.upto
