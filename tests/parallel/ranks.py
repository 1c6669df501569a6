"""What tests of many ranks share: the same test on threads and on processes, and programs under mpiexec.

A test that all ranks run is a function of a communicator. With

    from ranks import on_ranks

    @on_ranks(2, 3)
    def test_that_neighbours_hear_of_each_other(communicator):
        ...

pytest shows four tests: on 2 and on 3 threads (`minidl.parallel.local`), on 2 and on 3 processes (`minidl.parallel.mpi`). Each gets a
communicator of its own. All tests of a module that want P processes run in one mpiexec, started when the first result is asked for; the
module is imported there too. `on_ranks(3, deaths=True)` is for tests in which ranks `die(communicator)`: each has an mpiexec --with-ft ulfm
of its own. `kinds=("local",)` or `("mpi",)` leaves out the other kind.

A whole program: `run_mpi(text_or_arguments, ranks, ...)`, marked with `@needs_mpi`. Nothing that was started outlives it.
"""

import faulthandler
import functools
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import uuid
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from minidl.parallel import local

ROOT = Path(__file__).parents[2]
LIMIT = 120                          # seconds for one test on processes: only a hang takes longer
TOKEN = "MINIDL_TEST_RUN"           # in the environment of everything that run_mpi starts

MPIEXEC = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
NO_MPI = "" if MPIEXEC and importlib.util.find_spec("mpi4py") else "mpi4py or mpiexec is not there: python -m pip install 'minidl[mpi]'"


def needs_mpi(test):
    """Mark a test that starts mpiexec."""
    return pytest.mark.process(pytest.mark.skipif(bool(NO_MPI), reason=NO_MPI)(test))


# Programs under mpiexec

@dataclass
class Ran:
    """What became of a program: its status as mpiexec gives it, what it printed, and the processes that it left behind."""

    status: int
    out: str
    errors: str
    left: list


def mpiexec_command(ranks, *, ulfm=False):
    """The start of a command that runs on so many ranks, all on this host: also as root, on fewer cores, started fast."""
    return [MPIEXEC, "--allow-run-as-root", "--map-by", ":OVERSUBSCRIBE", "--mca", "pml", "ob1", "--mca", "btl", "self,sm,tcp",
            *(["--with-ft", "ulfm"] if ulfm else []), "-n", str(ranks)]


def run_mpi(program, ranks, *arguments, ulfm=False, timeout=LIMIT, env=None, cwd=None):
    """Run Python on so many ranks, to the end. program: text of a program; or a list of Python's arguments, ["-m", "minidl.train", ...].

    After `timeout` seconds everything is killed, and the test fails with what was printed so far.
    """
    python = [sys.executable, *(["-c", program] if isinstance(program, str) else program), *map(str, arguments)]
    return run_command(mpiexec_command(ranks, ulfm=ulfm) + python, timeout=timeout, env=env, cwd=cwd)


def run_command(command, *, timeout=LIMIT, env=None, cwd=None):
    """Run any command that starts ranks: see run_mpi."""
    token = uuid.uuid4().hex
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), TOKEN: token, **(env or {})}
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               env=environment, cwd=cwd, start_new_session=True)
    try:
        out, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        kill(token)
        out, errors = process.communicate()
        pytest.fail(f"{' '.join(command)[:200]}\nwas not over after {timeout} s\n{out[-5000:]}\n{errors[-5000:]}")
    except BaseException:
        kill(token)
        process.communicate()
        raise
    deadline = time.monotonic() + 5                 # the last of them may still be ending
    while (left := alive(token)) and time.monotonic() < deadline:
        time.sleep(0.05)
    names = [" ".join(one.info["cmdline"] or [])[:200] for one in left]
    kill(token)
    return Ran(process.returncode, out, errors, names)


def alive(token):
    """The processes with this token in their environment."""
    found = []
    for process in psutil.process_iter(["pid", "cmdline", "status"]):
        try:
            if process.info["status"] != psutil.STATUS_ZOMBIE and process.environ().get(TOKEN) == token:
                found.append(process)
        except psutil.Error:
            continue
    return found


def kill(token):
    for process in alive(token):
        try:
            process.kill()
        except psutil.Error:
            continue


# One test on both kinds

def on_ranks(*counts, kinds=("local", "mpi"), deaths=False):
    """Make a function of a communicator a test on so many ranks: see the top of this file."""
    def decorate(function):
        def test(kind, ranks):
            if kind == "local":
                local.run(function, ranks)
            else:
                path = str(Path(function.__code__.co_filename).resolve())
                report = results(path, ranks, function.__name__) if deaths else results(path, ranks)
                if report[function.__name__]:
                    pytest.fail(report[function.__name__], pytrace=False)

        test.__name__ = test.__qualname__ = function.__name__
        test.__doc__, test.__module__ = function.__doc__, function.__module__
        test.on_ranks = (function, counts, kinds, deaths)
        return pytest.mark.parametrize("kind, ranks", [
            pytest.param(kind, ranks, id=f"{kind}-{ranks}",
                         marks=[pytest.mark.process, pytest.mark.skipif(bool(NO_MPI), reason=NO_MPI)] if kind == "mpi" else [])
            for kind in kinds for ranks in counts])(test)
    return decorate


def die(communicator):
    """End this rank at once, without a word."""
    if isinstance(communicator, local.LocalCommunicator):
        communicator.die()
    report("died", "")
    os.kill(os.getpid(), signal.SIGKILL)


@functools.cache
def results(path, ranks, only=None):
    """What was wrong with each test of a module on so many processes ("" for nothing). only: with the one test in which ranks die."""
    waiting = [only] if only else [name for name, (_, counts, kinds, deaths) in tests_in(load(path)).items()
                                   if not deaths and ranks in counts and "mpi" in kinds]
    found = {}
    while waiting:                                  # a failure ends all processes: the rest is tried again
        with tempfile.TemporaryDirectory() as folder:
            ran = run_mpi([__file__, path, folder, *waiting], ranks, ulfm=bool(only), timeout=LIMIT * 3)
            told = [[json.loads(line) for line in file.read_text().splitlines()]
                    for file in (Path(folder, f"{rank}.jsonl") for rank in range(ranks)) if file.exists()]
        for name in list(waiting):
            states = [[line["state"] for line in lines if line["name"] == name] for lines in told]
            if len(told) == ranks and all(state in (["ok"], ["died"]) for state in states):
                found[name] = ""
                waiting.remove(name)
                continue
            wrong = [f"rank {line['rank']}: {line['what']}" for lines in told for line in lines if line["name"] == name and line["what"]]
            found[name] = "\n".join(wrong) or f"a rank never came back\n{ran.out[-3000:]}\n{ran.errors[-6000:]}"
            waiting.remove(name)
            break
        if not waiting and (ran.status or ran.left):
            found[name] = found[name] or f"status {ran.status}, left behind: {ran.left}\n{ran.out[-3000:]}\n{ran.errors[-6000:]}"
    return found


def load(path):
    spec = importlib.util.spec_from_file_location(Path(path).stem + "_on_ranks", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tests_in(module):
    return {name: value.on_ranks for name, value in vars(module).items() if hasattr(value, "on_ranks")}


current = {}                        # in a process: its rank, its file, the test that runs


def report(state, what):
    """One line of this process's file."""
    with open(current["file"], "a") as file:
        file.write(json.dumps({"rank": current["rank"], "name": current["name"], "state": state, "what": what}) + "\n")


def main(path, folder, *names):
    """One process: run the tests one after the other."""
    from minidl.parallel import mpi

    module = load(path)
    world = mpi.world()
    current.update(rank=world.rank, file=Path(folder, f"{world.rank}.jsonl"))
    for name in names:
        current["name"] = name
        faulthandler.dump_traceback_later(LIMIT, exit=True)
        try:
            tests_in(module)[name][0](world.duplicate())
        except BaseException:
            report("failed", traceback.format_exc())
            sys.stdout.flush()
            os._exit(1)                             # the others may wait for this one: mpiexec ends them
        report("ok", "")
    faulthandler.cancel_dump_traceback_later()
    mpi.leave()


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT / "tests"), str(Path(sys.argv[1]).parent)]
    from ranks import main as main_of_the_module_that_tests_import

    main_of_the_module_that_tests_import(*sys.argv[1:])
