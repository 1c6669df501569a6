"""Whether this MPI reads and writes the memory of NVIDIA GPUs itself ("CUDA-aware").

The library is asked: Open MPI by MPIX_Query_cuda_support, MPICH and its children by MPIX_GPU_query_support. One that says neither is taken
to read host memory only, since handing it a GPU's would end the process. MINIDL_CUDA_AWARE=1 or 0 says so against what it says.
"""

from __future__ import annotations

import ctypes
import functools
import os

from minidl.errors import ConfigError

VARIABLE = "MINIDL_CUDA_AWARE"
CUDA = 0                    # MPICH's number of that kind of GPU


@functools.cache
def cuda_aware(library: str) -> bool:
    """Whether it is. library: the file of mpi4py's MPI, which has libmpi loaded. ConfigError for another word in the variable."""
    word = os.environ.get(VARIABLE, "")
    if word not in ("", "0", "1"):
        raise ConfigError(f"{VARIABLE}={word} is not known", hint="1: this MPI takes arrays of GPUs; 0: it does not; unset: it is asked.")
    return word == "1" if word else said(ctypes.CDLL(library))


def said(loaded: ctypes.CDLL) -> bool:
    """What the library says of itself."""
    open_mpi, mpich = (getattr(loaded, name, None) for name in ("MPIX_Query_cuda_support", "MPIX_GPU_query_support"))
    if open_mpi is not None:
        return open_mpi() == 1
    answer = ctypes.c_int(0)
    return mpich is not None and mpich(CUDA, ctypes.byref(answer)) == 0 and answer.value == 1
