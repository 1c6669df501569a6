"""Streams, events and captured graphs of the emulated GPU. Names and rules are CuPy's.

What is launched runs at once, but copies between the host and the device run as late as they may: when something comes after them on
their stream, or somebody waits. So whoever reads without having waited finds old numbers, as may happen on a GPU. While a stream
captures, nothing runs: all is noted, and runs when the graph is launched.
"""

import time
import weakref

import numpy as np

from emulated import memory
from emulated.memory import CUDARuntimeError, current, device
from strict import root

UNSUPPORTED = "cudaErrorStreamCaptureUnsupported: operation not permitted when stream is capturing"
_by_ptr = weakref.WeakValueDictionary()


class Stream:
    """A queue of work."""

    def __init__(self, null=False, non_blocking=False, ptds=False, priority=None):
        self.is_non_blocking, self.device_id = bool(non_blocking), -1 if null else device()
        self.ptr = 0 if null else 0x1000 * next(memory.numbers)
        self.waiting, self.begun, self.done_so_far = [], 0, 0          # what waits to run, and how much there has been
        self.capture = None
        self._outer = []
        _by_ptr[self.ptr] = self

    def __enter__(self):
        self._outer.append((device(), get_current_stream()))
        self.use()
        return self

    def __exit__(self, *_):
        where, before = self._outer.pop()
        current.stream[where] = before

    def use(self):
        if self.device_id not in (-1, device()):
            raise RuntimeError(f"Stream was created on device {self.device_id}, the current one is {device()}")
        current.__dict__.setdefault("stream", {})[device()] = self
        return self

    def later(self, run):
        """Note what runs once it must."""
        if self.capture:
            self.capture.steps.append((run, ()))
        else:
            self.waiting.append(run)
            self.begun += 1

    def flush(self, upto=None):
        """Run what waits, up to the so-manieth of all."""
        while self.waiting and (upto is None or self.done_so_far < upto):
            run = self.waiting.pop(0)
            self.done_so_far += 1
            run()

    def ready(self):
        """What is to come before an operation on this stream: its own work, and that of the null stream or of those bound to it."""
        if self.ptr == 0:
            for other in list(_by_ptr.values()):
                if not other.is_non_blocking and other.device_id in (-1, device()):
                    if other.capture:
                        other.capture.wrong = True
                        raise CUDARuntimeError("cudaErrorStreamCaptureImplicit: operation would make the legacy stream depend on a "
                                               "capturing blocking stream")
                    other.flush()
        elif not self.is_non_blocking:
            Stream.null.flush()
        self.flush()

    def synchronize(self):
        self._forbid()
        self.ready()

    def _forbid(self):
        if self.capture:
            self.capture.wrong = True
            raise CUDARuntimeError(UNSUPPORTED)

    @property
    def done(self):
        self._forbid()
        before = not self.waiting
        self.flush()
        return before

    def record(self, event=None):
        event = event or Event()
        event.record(self)
        return event

    def wait_event(self, event):
        if event.capture is not None and event.capture is not self.capture:
            if self.capture is not None:
                raise CUDARuntimeError("cudaErrorStreamCaptureMerge: operation would result in a merge of two independent captures")
            self.capture = event.capture                                # the stream joins the capture
            event.capture.streams.append(self)
        elif self.capture and event.capture is None and event.stream is not None:
            self.capture.wrong = True
            raise CUDARuntimeError("cudaErrorStreamCaptureIsolation: dependency created on uncaptured work in another stream")
        elif not self.capture:
            stream, upto = event.stream, event.upto
            if stream is not None and stream is not self:
                self.later(lambda: stream.flush(upto))

    def begin_capture(self, mode=None):
        if self.ptr == 0 or self.capture:
            raise CUDARuntimeError("cudaErrorStreamCaptureUnsupported: operation not permitted on the legacy stream" if self.ptr == 0 else
                                   "cudaErrorIllegalState: the operation cannot be performed in the present state")
        self.ready()
        self.capture = Capture(self)

    def end_capture(self):
        if not self.capture:
            raise CUDARuntimeError("cudaErrorIllegalState: the operation cannot be performed in the present state")
        capture = self.capture
        for stream in capture.streams:
            stream.capture = None
        if capture.wrong:
            raise CUDARuntimeError("cudaErrorStreamCaptureInvalidated: operation failed due to a previous error during capture")
        return Graph(capture.steps)

    def is_capturing(self):
        return self.capture is not None

    def __eq__(self, other):
        return isinstance(other, Stream) and self.ptr == other.ptr

    def __hash__(self):
        return hash(self.ptr)

    def __repr__(self):
        return f"<Stream {self.ptr} (device {self.device_id})>"


Stream.null = Stream(null=True)


def get_current_stream(device_id=None):
    return getattr(current, "stream", {}).get(device() if device_id is None else device_id, Stream.null)


def by_ptr(ptr):
    """The stream with a handle."""
    return _by_ptr[ptr or 0]


def enqueue(run, arrays=(), stream=None):
    """Run something on a stream, or note it where one captures. arrays: what it is known to work on."""
    stream = stream or get_current_stream()
    if stream.capture:
        stream.capture.steps.append((run, [x._owner._memory.memory for x in arrays]))
    else:
        stream.ready()
        run()


def wait_for_host():
    """The host wants to see numbers: they must be there. An error while they are only noted."""
    get_current_stream().synchronize()


class Event:
    """A mark among the work of a stream."""

    def __init__(self, block=False, disable_timing=False, interprocess=False):
        self.timed = not disable_timing
        self.stream = self.capture = self.time = None
        self.upto = 0
        self.ptr = 0x1000 * next(memory.numbers)

    def record(self, stream=None):
        stream = stream or get_current_stream()
        self.capture, self.time = stream.capture, None
        if not stream.capture:
            stream.later(self._passed)
            self.stream, self.upto = stream, stream.begun

    def _passed(self):
        self.time = time.perf_counter()

    @property
    def done(self):
        self._forbid()
        before = self.stream is None or self.stream.done_so_far >= self.upto
        self.synchronize()
        return before

    def synchronize(self):
        self._forbid()
        if self.stream is not None:
            self.stream.flush(self.upto)

    def _forbid(self):
        if self.capture:
            self.capture.wrong = True
            raise CUDARuntimeError("cudaErrorCapturedEvent: operation not permitted on an event last recorded in a capturing stream")


def get_elapsed_time(start_event, end_event):
    for event in (start_event, end_event):
        if not event.timed or event.stream is None:
            raise CUDARuntimeError("cudaErrorInvalidResourceHandle: invalid resource handle")
        if event.time is None:
            raise CUDARuntimeError("cudaErrorNotReady: device not ready")
    return (end_event.time - start_event.time) * 1e3


class Capture:
    """What is noted between begin_capture and end_capture.

    NumPy finds the shape and the dtype of a result only by computing it: it does so in a shadow, a copy of all memory that is touched.
    The arrays themselves keep what they hold, which is nothing for new ones.
    """

    def __init__(self, stream):
        self.streams, self.steps, self.wrong = [stream], [], False
        self.shadows = {}                               # id of a piece's bytes, and of its shadow's -> both

    def seen(self, x):
        """An array as a view of the shadow."""
        whole = x._owner._memory.bytes
        if id(whole) not in self.shadows:
            copy = whole.copy()
            self.shadows[id(whole)] = self.shadows[id(copy)] = whole, copy
        return _moved(x._array, *self.shadows[id(whole)])

    def meant(self, y):
        """(the bytes of a piece, the view of them) that a view of the shadow stands for; None for what lies elsewhere."""
        whole, copy = self.shadows.get(id(root(y)), (None, None))
        return None if whole is None else (whole, _moved(y, copy, whole))


def _moved(view, bytes_, others):
    """The same view of other bytes."""
    return np.ndarray(view.shape, view.dtype, others, memory.address(view) - memory.address(bytes_), view.strides)


class Graph:
    """What a stream has captured."""

    def __init__(self, steps):
        self.steps = steps

    def launch(self, stream=None):
        enqueue(self._run, stream=stream)

    def upload(self, stream=None):
        pass

    def _run(self):
        for run, pieces in self.steps:
            if any(piece.gone for piece in pieces):
                raise CUDARuntimeError("cudaErrorIllegalAddress: the graph works on memory that was given back")
            run()
