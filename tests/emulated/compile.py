"""C++ files to shared libraries, kept on disk from one run of the tests to the next."""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
COMPILER = shutil.which("g++")
WHY_NOT = "" if COMPILER and platform.system() == "Linux" else "the emulated device needs g++ and Linux"
FLAGS = ("-std=c++17", "-shared", "-fPIC", "-U_FORTIFY_SOURCE", "-ffp-contract=off")


def built(code, *flags):
    """The path of the library that g++ makes of C++ code; RuntimeError with what it says if it makes none."""
    command = [COMPILER, *FLAGS, *flags]
    kept = Path(tempfile.gettempdir()) / f"minidl-emulated-{os.getuid()}"
    kept.mkdir(exist_ok=True)
    path = kept / f"{hashlib.sha256(repr((command, code)).encode()).hexdigest()[:32]}.so"
    if not path.exists():
        handle, draft = tempfile.mkstemp(suffix=".so", dir=kept)
        os.close(handle)
        done = subprocess.run([*command, "-x", "c++", "-", "-o", draft], input=code, text=True, capture_output=True)
        if done.returncode:
            os.unlink(draft)
            raise RuntimeError(f"g++ does not take it:\n{done.stderr[:4000]}")
        os.replace(draft, path)             # whole or not at all, whoever else compiles the same
    return path


@functools.cache
def runtime():
    """The library that runs kernels, whose names kernels find when they are loaded."""
    return ctypes.PyDLL(str(built((HERE / "runtime.cpp").read_text(), "-O2")), mode=ctypes.RTLD_GLOBAL)
