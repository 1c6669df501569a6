"""Memory of the emulated GPU: pools that keep what is given back, limits, page-locked host memory. Names and rules are CuPy's.

What nobody has written yet holds ones in all bits (NaN, -1). A piece that a pool has got back goes to the next array of its size, as on a
GPU, so whoever still writes to it does harm. What a pool has given back to the driver may be written to by nobody.
"""

import ctypes
import functools
import gc
import itertools
import threading
import weakref
from collections import defaultdict, deque
from contextlib import contextmanager
from typing import ClassVar

import numpy as np

from emulated import compile

UNIT = 512                              # what memory is counted in; and the bytes before and after it that nobody may write to
TOTAL = 2 * 2**30                       # bytes of a device
QUARANTINE = 2**21                      # bytes given back that are watched for a while

current = threading.local()             # the thread's device, stream, allocator and hooks


class CUDARuntimeError(RuntimeError):
    pass


class CUDADriverError(RuntimeError):
    pass


class OutOfMemoryError(MemoryError):
    def __init__(self, size, total, limit=0):
        self._size, self._total, self._limit = size, total, limit
        limited = f", limit set to: {limit:,} bytes" if limit else ""
        super().__init__(f"Out of memory allocating {size:,} bytes (allocated so far: {total:,} bytes{limited}).")


def device():
    """The number of the thread's device."""
    return getattr(current, "device", 0)


class Memory:
    """A piece that the driver gives: `bytes` is a NumPy array of it."""

    _taken: ClassVar = defaultdict(int)             # bytes that a device has given
    _gone: ClassVar = deque()                       # what was given back lately

    def __init__(self, size):
        self.device_id, self.size = device(), size
        if Memory._taken[self.device_id] + size > TOTAL:
            raise OutOfMemoryError(size, Memory._taken[self.device_id])
        Memory._taken[self.device_id] += size
        whole = np.empty(size + 3 * UNIT, np.uint8)
        start = -address(whole) % UNIT + UNIT
        self.bytes = np.ndarray(size, np.uint8, whole, start)
        self.ptr, self.gone = address(self.bytes), False
        self.watch(size)

    def watch(self, used):
        """Poison it, and see that nothing is written beyond so many bytes."""
        compile.runtime().emulated_watch(ctypes.c_void_p(self.ptr), ctypes.c_size_t(used), ctypes.c_size_t(self.size))

    def free(self):
        """Give it back to the driver."""
        Memory._taken[self.device_id] -= self.size
        self.gone = True
        self.watch(0)
        Memory._gone.append(self)
        while sum(memory.size for memory in Memory._gone) > QUARANTINE:
            compile.runtime().emulated_forget(ctypes.c_void_p(Memory._gone.popleft().ptr))


class Piece:
    """Memory that is lent to an array, and goes back when the array is let go."""

    def __init__(self, memory, back, *args):
        self.memory, self.bytes, self.ptr, self.size, self.device_id = memory, memory.bytes, memory.ptr, memory.size, memory.device_id
        weakref.finalize(self, back, *args).atexit = False


class MemoryPointer:
    """A place on the device, as `malloc` and x.data give it."""

    def __init__(self, mem, offset=0):
        self.mem, self.ptr, self.device_id = mem, mem.ptr + offset, mem.device_id


def _rounded(size):
    return max(-(-size // UNIT), 1) * UNIT


class MemoryPool:
    """A pool; each stream has an arena of its own, as in CuPy."""

    def __init__(self, allocator=None):
        self._lock = threading.RLock()
        self._free = defaultdict(list)          # (device, stream, size) -> pieces
        self._used, self._held, self._limit = defaultdict(int), defaultdict(int), defaultdict(int)
        weakref.finalize(self, _freed, self._free).atexit = False

    def malloc(self, size):
        where, rounded = device(), _rounded(size)
        on = getattr(current, "stream", {}).get(where)
        stream = 0 if on is None else on.ptr
        hooks = list(getattr(current, "hooks", {}).values())
        for hook in hooks:
            hook.malloc_preprocess(device_id=where, size=size, mem_size=rounded)
        pointer = None
        try:
            with self._lock:
                pieces = self._free[where, stream, rounded]
                memory = pieces.pop() if pieces else self._grown(where, rounded)
                memory.watch(size)
                if on is not None and on.capture:           # so it is at this point of a replay, whoever had the piece last
                    on.capture.steps.append((functools.partial(memory.watch, size), (memory,)))
                self._used[where] += rounded
                pointer = MemoryPointer(Piece(memory, self._back, memory, stream))
            return pointer
        finally:
            for hook in hooks:
                ptr, mem = (pointer.ptr, id(memory)) if pointer else (0, 0)
                hook.malloc_postprocess(device_id=where, size=size, mem_size=rounded, mem_ptr=ptr, pmem_id=mem)

    def _grown(self, where, size):
        if self._limit[where] and self._held[where] + size > self._limit[where]:
            raise OutOfMemoryError(size, self._held[where], self._limit[where])
        try:
            memory = Memory(size)
        except OutOfMemoryError:
            gc.collect()
            self.free_all_blocks()
            memory = Memory(size)
        self._held[where] += size
        return memory

    def _back(self, memory, stream):
        hooks = list(getattr(current, "hooks", {}).values())
        about = {"device_id": memory.device_id, "mem_size": memory.size, "mem_ptr": memory.ptr, "pmem_id": id(memory)}
        for hook in hooks:
            hook.free_preprocess(**about)
        with self._lock:
            self._used[memory.device_id] -= memory.size
            self._free[memory.device_id, stream, memory.size].append(memory)
        for hook in hooks:
            hook.free_postprocess(**about)

    def free_all_blocks(self, stream=None):
        with self._lock:
            for (where, arena, _), pieces in self._free.items():
                while pieces and where == device() and (stream is None or stream.ptr == arena):
                    memory = pieces.pop()
                    self._held[where] -= memory.size
                    memory.free()

    def n_free_blocks(self):
        return sum(len(pieces) for (where, _, _), pieces in self._free.items() if where == device())

    def used_bytes(self):
        return self._used[device()]

    def total_bytes(self):
        return self._held[device()]

    def free_bytes(self):
        return self._held[device()] - self._used[device()]

    def set_limit(self, size=None, fraction=None):
        if (size is None) == (fraction is None):
            raise ValueError("size and fraction cannot be specified at one time, and one of them must be")
        self._limit[device()] = size if fraction is None else int(fraction * TOTAL)

    def get_limit(self):
        return self._limit[device()]


def _freed(free):
    """What becomes of the pieces of a pool that is gone."""
    for pieces in free.values():
        while pieces:
            pieces.pop().free()


class MemoryHook:
    """What is told of allocations in this thread, inside a `with` block."""

    name = "MemoryHook"

    def __enter__(self):
        hooks = current.__dict__.setdefault("hooks", {})
        if self.name in hooks:
            raise KeyError(f"memory hook {self.name} already exists")
        hooks[self.name] = self
        return self

    def __exit__(self, *_):
        del current.hooks[self.name]

    def alloc_preprocess(self, **kwargs):
        pass

    alloc_postprocess = malloc_preprocess = malloc_postprocess = free_preprocess = free_postprocess = alloc_preprocess


default_pool = MemoryPool()
_allocator = default_pool.malloc


def raw(size):
    """Memory of the driver's, without a pool."""
    memory = Memory(_rounded(size))
    memory.watch(size)
    return MemoryPointer(Piece(memory, memory.free))


def alloc(size):
    """Memory for an array, from the pool in force."""
    return get_allocator()(size)


def get_allocator():
    return getattr(current, "allocator", _allocator)


def set_allocator(allocator=None):
    global _allocator
    if hasattr(current, "allocator"):
        raise ValueError("Can't change the global allocator inside `using_allocator` context manager")
    _allocator = allocator or raw


@contextmanager
def using_allocator(allocator=None):
    before = current.__dict__.get("allocator")
    current.allocator = allocator or raw
    try:
        yield
    finally:
        if before is None:
            del current.allocator
        else:
            current.allocator = before


def mem_info():
    """(bytes free, bytes in all) of the thread's device."""
    return TOTAL - Memory._taken[device()], TOTAL


# Memory of the host


_pinned = {}                            # address -> bytes, of what is page-locked
_pinned_allocator = None


@functools.cache
def _pinned_type(size):
    return type("PinnedMemoryPointer", (ctypes.c_char * size,), {})


def pinned(size):
    """Page-locked memory, which gives a buffer."""
    memory = _pinned_type(max(size, 1))()
    memory.ptr, memory.size = ctypes.addressof(memory), size
    memory.mem = memory
    ctypes.memset(memory.ptr, 0xff, size)
    _pinned[memory.ptr] = size
    weakref.finalize(memory, _pinned.pop, memory.ptr)
    return memory


def alloc_pinned_memory(size):
    return (_pinned_allocator or pinned)(size)


def set_pinned_memory_allocator(allocator=None):
    global _pinned_allocator
    _pinned_allocator = allocator


class PinnedMemoryPool:
    """As one without memory: every allocation is a new one."""

    def __init__(self, allocator=pinned):
        self.malloc = allocator

    def free_all_blocks(self):
        pass

    def n_free_blocks(self):
        return 0


default_pinned_pool = PinnedMemoryPool()


def is_pinned(place, size):
    return any(start <= place and place + size <= start + length for start, length in list(_pinned.items()))


# Addresses


def address(array):
    """Where a NumPy array begins."""
    return array.__array_interface__["data"][0]


def room(place):
    """How many bytes of an array of the device follow an address; 0 if it is in none."""
    function = compile.runtime().emulated_room
    function.restype, function.argtypes = ctypes.c_size_t, [ctypes.c_void_p]
    return function(place)


def edges():
    """What has been written to beside the arrays since the last look, or None."""
    function = compile.runtime().emulated_edges
    function.restype = ctypes.c_char_p
    found = function()
    return found and found.decode()


numbers = itertools.count(1)            # for handles of streams
