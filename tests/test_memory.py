"""The allocator: tuned once, on glibc only, and fresh arrays then cost no page faults."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import minidl
from minidl import memory

FAULTS = """
import resource
import numpy as np
from minidl import memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        [np.ones(1_000_000) for _ in range(8)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
plain = faults()
print(memory.tune_allocator(), memory.tune_allocator())
faults()
print(plain, faults())
memory.give_back()
"""


@pytest.fixture
def fresh(monkeypatch):
    """As if nobody had asked yet, and without settings in the environment."""
    for name in [name for name in os.environ if name.startswith("MALLOC_") or name == "GLIBC_TUNABLES"]:
        monkeypatch.delenv(name)
    memory.tune_allocator.cache_clear()
    yield monkeypatch
    memory.tune_allocator.cache_clear()


class Recorder:
    """Stands for a C library."""

    def __init__(self, answer=1):
        self.calls, self.answer = [], answer

    def mallopt(self, option, value):
        self.calls.append((option, value))
        return self.answer

    def malloc_trim(self, pad):
        self.calls.append("trim")
        return 1


def test_two_settings_once(fresh):
    libc = Recorder()
    fresh.setattr(memory, "_glibc", lambda: libc)
    assert memory.tune_allocator() and memory.tune_allocator()
    assert libc.calls == [(-4, 0), (-1, 2**31 - 1)]
    memory.give_back()
    assert libc.calls[2:] == ["trim"]


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"])
def test_settings_of_somebodys_own_are_left_alone(fresh, name):
    libc = Recorder()
    fresh.setattr(memory, "_glibc", lambda: libc)
    fresh.setenv(name, "1")
    assert not memory.tune_allocator()
    memory.give_back()
    assert libc.calls == []


def test_a_refusal_is_no_error(fresh):
    fresh.setattr(memory, "_glibc", lambda: Recorder(0))
    assert not memory.tune_allocator()


@pytest.mark.parametrize("error", [ValueError, OSError, AttributeError])
def test_another_c_library_is_left_alone(fresh, error):
    def confstr(name):
        raise error
    fresh.setattr(os, "confstr", confstr, raising=False)
    assert not memory.tune_allocator()
    memory.give_back()


@pytest.mark.process
@pytest.mark.skipif(memory._glibc() is None, reason="the C library is not glibc")
def test_fresh_arrays_cost_no_page_faults():
    env = {name: x for name, x in os.environ.items() if not name.startswith("MALLOC_") and name != "GLIBC_TUNABLES"}
    run = subprocess.run([sys.executable, "-c", FAULTS], env=env, capture_output=True, text=True, check=True,
                         cwd=Path(minidl.__file__).parents[1])
    first, again, plain, tuned = run.stdout.split()
    assert (first, again) == ("True", "True")
    assert int(tuned) < int(plain) / 10
