"""Prefetch: the next items of an iterator are made in a background thread while the caller is busy with the last one.

The thread ends with the iterator: when the items are used up, when the last reference to the Prefetch goes (a `break`, an exception
in the loop), at `close()`, on Ctrl-C, and at the latest when Python exits. To make that so, the thread knows the queue and the items,
never the Prefetch itself. What the items are does not matter here.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Iterator
from queue import Empty, Queue
from typing import TypeVar

from minidl.profiler import phase

T = TypeVar("T")


class Prefetch(Iterator[T]):
    """The items of an iterator, in their order, up to `depth` of them made ahead of time in a thread.

    depth: 1 or more. An exception while an item is made is raised here, in its turn, with the traceback of the thread.

    >>> list(Prefetch(iter("abc"), depth=2))
    ['a', 'b', 'c']
    """

    def __init__(self, items: Iterator[T], depth: int):
        self._queue: Queue = Queue(depth)
        stop = threading.Event()
        thread = threading.Thread(target=_fill, args=(items, self._queue, stop), name="minidl-prefetch", daemon=True)
        self._finalizer = weakref.finalize(self, _end, thread, self._queue, stop)
        thread.start()

    def __next__(self) -> T:
        if not self._finalizer.alive:
            raise StopIteration
        try:
            with phase("data"):
                item, error = self._queue.get()
            if error is not None:
                raise error
            return item
        except BaseException:           # the end, an error, or Ctrl-C: its traceback would keep this object, and so the thread, alive
            self.close()
            raise
        finally:
            error = None                # an exception that is named by a frame of its own traceback would be a circle

    def close(self) -> None:
        """End the thread and wait until it has ended. After that there are no more items."""
        self._finalizer()


def _fill(items: Iterator, queue: Queue, stop: threading.Event) -> None:
    """Put (item, None) for each item, then (None, the exception that ended it: StopIteration if all went well)."""
    while not stop.is_set():
        try:
            item = next(items)
        except BaseException as error:
            queue.put((None, error))
            return
        queue.put((item, None))


def _end(thread: threading.Thread, queue: Queue, stop: threading.Event) -> None:
    """Between two looks at `stop` the thread puts one item at most: in an emptied queue there is room for it, so it never waits again."""
    stop.set()
    with contextlib.suppress(Empty):
        while True:
            queue.get_nowait()
    if thread is not threading.current_thread():        # the garbage collector may run this anywhere
        thread.join()
