"""How kernels are compiled and kept: for other CPUs, by several processes at once, without a place to keep them; and who may call them."""

import contextvars
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import minidl
from minidl import pool
from minidl.kernels import Window

pytest.importorskip("numba", reason="compiled kernels need Numba: pip install 'minidl[fast]'")
import test_cpu as table
from llvmlite import binding

from minidl.kernels import cpu

TESTS = Path(__file__).parent
TOP = Path(minidl.__file__).parent.parent

CHECK = """
import sys
import test_cpu
from minidl.kernels.cpu import vector
assert vector.LANES == int(sys.argv[1]), vector.LANES
for entry in test_cpu.TABLE:
    for example in (1, 5, 9):
        test_cpu.check(entry, example)
"""

# A few kernels, and how many of them were found in the cache
FEW = """
import numpy as np
from minidl import pool
from minidl.kernels import Window, cpu, reference, reference_layers
from minidl.kernels.cpu import elementwise, pooling
x = np.random.default_rng(0).standard_normal((2, 5, 6, 8)).astype(np.float32)
with pool.threads(2):
    y, place = cpu.TWINS["max_pool2d"](x, Window((2, 2), (2, 2)))
    z = cpu.TWINS["activation_gradient"](x, x, "relu")
wanted, there = reference.max_pool2d(x, Window((2, 2), (2, 2)))
assert (y == wanted).all() and (place == there).all() and (z == reference_layers.activation_gradient(x, x, "relu")).all()
print(*(sum(kernel.stats.cache_hits.values()) for kernel in (pooling.largest, elementwise.slope)))
"""

FORK = """
import os, sys, warnings
import numpy as np
from minidl import pool
from minidl.kernels import cpu
from minidl.kernels.cpu import compiled
warnings.simplefilter("ignore")                             # Python warns of forks where there are threads
compiled.ALONE = -1
x = np.random.default_rng(0).standard_normal((300, 500)).astype(np.float32)
with pool.threads(2):
    before = cpu.TWINS["activation_gradient"](x, x, "tanh")
    child = os.fork()
    same = all((cpu.TWINS["activation_gradient"](x, x, "tanh") == before).all() for _ in range(5))
    if child == 0:
        os._exit(0 if same else 1)
    _, status = os.waitpid(child, 0)
    sys.exit(os.waitstatus_to_exitcode(status) if same else 2)
"""


def process(code, *words, cache, first=None, **environment):
    """Start a process that runs some code, with a folder for compiled kernels. first: what it does before."""
    path = os.pathsep.join(map(str, (TOP, TOP / "scripts", TESTS.parent, TESTS)))
    return subprocess.Popen([sys.executable, "-c", code, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            preexec_fn=first, env=os.environ | {"PYTHONPATH": path, "MINIDL_CACHE": str(cache)} | environment)


def ended(started):
    """What a process has printed, if all went well."""
    out, errors = started.communicate(timeout=300)
    assert started.returncode == 0, errors
    return out


@pytest.mark.process
@pytest.mark.parametrize(("name", "lanes", "needs"), [("haswell", 8, ("avx2", "fma")), ("nehalem", 4, ("sse4.2",))])
def test_other_cpus(name, lanes, needs, tmp_path):
    has = binding.get_host_cpu_features()
    if not all(has.get(feature) for feature in needs):
        pytest.skip(f"this CPU cannot do what a {name} can")
    ended(process(CHECK, lanes, cache=tmp_path, NUMBA_CPU_NAME=name, NUMBA_CPU_FEATURES=""))        # or else this CPU's would be used too


@pytest.mark.process
def test_several_processes_compile_at_once_and_later_ones_need_not(tmp_path):
    for started in [process(FEW, cache=tmp_path / "new") for _ in range(3)]:
        ended(started)
    assert ended(process(FEW, cache=tmp_path / "new")).split() == ["1", "1"]


@pytest.mark.process
def test_a_folder_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").touch()
    assert ended(process(FEW, cache=tmp_path / "file" / "below")).split() == ["0", "0"]


@pytest.mark.process
def test_a_full_disk(tmp_path):
    resource = pytest.importorskip("resource", reason="this system has no limits on files")
    started = process(FEW, cache=tmp_path, first=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)))
    assert ended(started).split() == ["0", "0"] and not list(tmp_path.rglob("*.tmp*"))
    assert ended(process(FEW, cache=tmp_path)).split() == ["0", "0"]
    assert ended(process(FEW, cache=tmp_path)).split() == ["1", "1"]


@pytest.mark.process
@pytest.mark.process
def test_what_was_compiled_from_files_of_long_ago_is_cleared_away(tmp_path):
    for name, days in (("of-today", 0), ("of-long-ago", 40)):
        (tmp_path / "kernels" / name).mkdir(parents=True)
        (tmp_path / "kernels" / name / "kernel.nbc").touch()
        os.utime(tmp_path / "kernels" / name, (time.time() - days * 86400,) * 2)
    ended(process(FEW, cache=tmp_path))
    left = {path.name for path in (tmp_path / "kernels").iterdir()}
    assert "of-today" in left and "of-long-ago" not in left and len(left) == 2


@pytest.mark.process
def test_files_that_were_cut_off_or_changed(tmp_path):
    assert ended(process(FEW, cache=tmp_path)).split() == ["0", "0"]
    files = sorted(path for path in tmp_path.rglob("*") if path.suffix in (".nbi", ".nbc"))
    for k, path in enumerate(files):
        data = path.read_bytes()
        path.write_bytes(data[:len(data) // 2] if k % 2 else b"not what was here")
    assert ended(process(FEW, cache=tmp_path)).split() == ["0", "0"]
    assert ended(process(FEW, cache=tmp_path)).split() == ["1", "1"]         # and they are written anew


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_may_call_them(tmp_path):
    ended(process(FORK, cache=tmp_path))


def test_several_threads_may_call_them(monkeypatch):
    monkeypatch.setattr(cpu.compiled, "ALONE", -1)
    calls = [("max_pool2d", 5), ("conv2d", 5), ("batch_norm", 5), ("sum_pool2d", 11)]
    wanted = {call: table.results(cpu.TWINS[call[0]], table.arguments(*call), call[0]) for call in calls}
    wrong = []

    def caller(name, example):
        for _ in range(20):
            found = table.results(cpu.TWINS[name], table.arguments(name, example), name)
            wrong.extend(name for a, b in zip(found, wanted[name, example]) if a.tobytes() != b.tobytes())

    with pool.threads(2):
        callers = [threading.Thread(target=contextvars.copy_context().run, args=(caller, *call)) for call in calls]
        for thread in callers:
            thread.start()
        for thread in callers:
            thread.join()
    assert not wrong


def test_numbers_that_do_not_lie_at_whole_multiples_of_four_bytes():
    room = np.zeros(4 * 2 * 3 * 6 * 6 + 1, np.uint8)[1:].view(np.float32).reshape(2, 3, 6, 6)
    room[...] = np.random.default_rng(0).standard_normal(room.shape)
    window = Window((2, 2), (2, 2))
    for a, b in zip(cpu.TWINS["max_pool2d"](room, window), cpu.TWINS["max_pool2d"](room.copy(), window)):
        np.testing.assert_array_equal(a, b)
