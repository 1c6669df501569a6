"""cupy.cuda.runtime, as far as it is asked for: the CUDA runtime's own functions, on addresses."""

import ctypes

from emulated import memory, streams
from emulated.device import COUNT, Device
from emulated.memory import CUDARuntimeError

memcpyHostToHost, memcpyHostToDevice, memcpyDeviceToHost, memcpyDeviceToDevice, memcpyDefault = range(5)
streamCaptureModeGlobal, streamCaptureModeThreadLocal, streamCaptureModeRelaxed = range(3)


def getDeviceCount():
    return COUNT


def getDevice():
    return memory.device()


def setDevice(device):
    Device(device).use()


def memGetInfo():
    return memory.mem_info()


def deviceSynchronize():
    Device().synchronize()


def getDeviceProperties(device):
    return {"name": b"emulated", "major": 9, "minor": 0, "multiProcessorCount": 4, "totalGlobalMem": memory.TOTAL,
            "sharedMemPerBlock": 48 * 1024, "sharedMemPerBlockOptin": 227 * 1024}


def runtimeGetVersion():
    return 13000


def driverGetVersion():
    return 13000


def memcpyAsync(dst, src, size, kind, stream):
    onto, out = kind in (memcpyHostToDevice, memcpyDeviceToDevice), kind in (memcpyDeviceToHost, memcpyDeviceToDevice)
    for place, on_device in ((dst, onto), (src, out)):
        if memory.room(place) < size if on_device else memory.room(place):
            raise CUDARuntimeError("cudaErrorInvalidValue: invalid argument")
    stream, host = streams.by_ptr(stream), [place for place in (dst, src) if not memory.room(place)]
    if all(memory.is_pinned(place, size) for place in host):
        stream.later(lambda: ctypes.memmove(dst, src, size))
    else:
        stream.synchronize()
        ctypes.memmove(dst, src, size)


def memcpy(dst, src, size, kind):
    memcpyAsync(dst, src, size, kind, streams.get_current_stream().ptr)
    streams.get_current_stream().synchronize()


def streamSynchronize(stream):
    streams.by_ptr(stream).synchronize()
