"""NVIDIA's compiler for CUDA source, from the package nvidia-cuda-nvrtc, if it is there. It needs no GPU."""

import ctypes
import functools
import importlib.util
from pathlib import Path


@functools.cache
def library():
    """The compiler, or None."""
    found = importlib.util.find_spec("nvidia")
    for folder in found.submodule_search_locations if found else ():
        for path in sorted(Path(folder).glob("**/libnvrtc.so*")):
            return ctypes.CDLL(str(path))
    return None


def compiled(code, *options):
    """What the compiler says; as a RuntimeError if it does not take the code."""
    nvrtc, program, size = library(), ctypes.c_void_p(), ctypes.c_size_t()
    _check(nvrtc.nvrtcCreateProgram(ctypes.byref(program), code.encode(), b"source.cu", 0, None, None))
    try:
        given = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        status = nvrtc.nvrtcCompileProgram(program, len(options), given)
        _check(nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size)))
        log = ctypes.create_string_buffer(size.value)
        _check(nvrtc.nvrtcGetProgramLog(program, log))
        if status:
            raise RuntimeError(f"NVRTC does not take it:\n{log.value.decode()}")
        return log.value.decode()
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _check(status):
    if status:
        raise RuntimeError(f"NVRTC: status {status}")
