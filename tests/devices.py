"""The devices of this machine on which the tests run, beside the CPU: the strict one, the emulated GPU, and a GPU if there is one.

`pytest -k cuda:0` runs what there is to run on the GPU.
"""

import contextlib

import emulated
import strict  # noqa: F401   makes the strict device known
from minidl import backend

FEW = 2                     # examples on the emulated GPU, which is slow


def _gpus():
    if not emulated.WHY_NOT:
        yield "emulated:0"
    with contextlib.suppress(Exception):                # no CuPy, or none that finds a GPU
        yield backend.named_device("cuda:0")


GPUS = tuple(_gpus())
DEVICES = ("strict:0", *GPUS)


def examples_on(device, count):
    """Which of so many examples run on a device."""
    return range(min(count, FEW) if device.startswith("emulated") else count)
