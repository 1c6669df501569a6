"""How the work of many processes ends: together, and with the right exit status.

Each rank wraps its work in `end_together`: what goes wrong on one of them ends all, and is told once. Under `python -m minidl.launch` the
ranks also report how they ended, on marked lines of their stderr which launch keeps to itself: it judges by them, because the status that
mpiexec ends with says little. How launch starts and ends processes is in launch_job.py; that rank 0 alone prints, in quiet.py.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr, suppress
from typing import Any

import numpy as np

from minidl.errors import ConfigError, ExchangeError, MinidlError, RankLost
from minidl.parallel.communicator import Communicator
from minidl.parallel.mpi import flush, tolerant

VARIABLE = "MINIDL_LAUNCH"              # set by launch for the processes of its job: the job's name
PRTE = "PRTE_LAUNCHED"                  # set by Open MPI's mpiexec for the ranks that it starts
MARK = "\x1eminidl "                    # begins a line that is meant for launch
PATIENCE = 1.0                          # seconds for whoever has caused a RankLost to tell of it, and for an abort to come about
MEETING = 60.0                          # seconds that ranks wait for each other before they end with a status
TURNS = 0.4                             # seconds over which ranks that fail at the same moment take turns, the lowest first


def end_together(communicator: Communicator, tell: Callable[[MinidlError], None] | None = None) -> Ending:
    """Around the work of a rank: an exception in here, in whatever thread, ends all ranks within 2 s, and is told once in the whole job.

    tell: prints an error of minidl's in its own words; any other exception is shown with its traceback. The exit status is 1, 2 for a
    ConfigError, 130 for Ctrl-C; a SystemExit keeps its own: from 1 to 128 it ends all ranks at once; above, as after a signal, they wait
    for each other. RankLost is told only if nobody else had anything to tell. With one rank exceptions pass through. Gives an Ending,
    whose `communicator` is to be replaced where the ranks are regrouped.
    """
    return Ending(communicator, tell or plainly)


def plainly(error: MinidlError) -> None:
    """An error of minidl's as one line of text and its notes."""
    print("\n".join([f"Error: {error}", *getattr(error, "__notes__", ())]), file=sys.stderr)


class Ending:
    """A block of work, and what happens when it is over. Rank 0 of `communicator` reports to launch."""

    def __init__(self, communicator: Communicator, tell: Callable[[MinidlError], None]):
        self.communicator = communicator
        self.tell = tell
        self.ended = threading.Lock()           # taken by the first thread that fails, for good
        begin()

    def __enter__(self) -> Ending:
        self.stderr = getattr(sys.stderr, "beneath", sys.stderr)            # not what `quiet` makes of it
        self.hook, threading.excepthook = threading.excepthook, self.in_thread
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        threading.excepthook = self.hook
        status = 0 if error is None else status_of(error)
        if status == 0 or (isinstance(error, SystemExit) and (status > 128 or self.communicator.size == 1)):
            self.over(error, status)
        elif error is not None and self.communicator.size > 1:
            self.fail(error, status)
        else:
            report("failed", 0, status)

    def in_thread(self, failure: Any) -> None:
        """A thread has raised. What it should have done is waited for by the others: the end."""
        error = failure.exc_value
        if isinstance(error, SystemExit):
            return                                      # it ends a thread, as always in Python
        if self.communicator.size > 1:
            self.fail(error, status_of(error))
        self.hook(failure)

    def over(self, error: BaseException | None, status: int) -> None:
        """The work of all ranks has come to its end, after a signal perhaps."""
        flush()
        if self.communicator.rank == 0:
            report("finished", 0, status)
        if status and self.communicator.size > 1:       # at the first such status mpiexec ends the others, in the middle of a word
            if launched() and isinstance(error, SystemExit):
                error.code = 0                          # launch knows better
            else:
                meet(self.communicator)

    def fail(self, error: BaseException, status: int) -> None:
        """Tell the error, unless another rank does, and end all ranks. Never comes back."""
        if not self.ended.acquire(blocking=False):
            while True:                                 # another thread of this rank is at it
                time.sleep(1)
        rank, size = self.communicator.rank, self.communicator.size
        if isinstance(error, RankLost):
            time.sleep(PATIENCE)                        # whoever was the cause ends this process meanwhile
        time.sleep(rank * min(0.1, TURNS / size))
        with redirect_stderr(self.stderr):
            if first_here():
                self.show(error, rank, size)
            flush()
            report("failed", rank, status)
            end_all(self.communicator, status)

    def show(self, error: BaseException, rank: int, size: int) -> None:
        """The error on stderr."""
        try:
            if isinstance(error, MinidlError):
                if rank or isinstance(error, RankLost):
                    error.add_note(f"(rank {rank} of {size}, on {socket.gethostname()})")
                self.tell(error)
            elif isinstance(error, SystemExit):
                if isinstance(error.code, str):
                    print(error.code, file=sys.stderr)
            elif isinstance(error, KeyboardInterrupt):
                print("Stopped at once.", file=sys.stderr)
            else:
                lines = traceback.format_exception(error)
                print(f"Rank {rank} of {size}, on {socket.gethostname()}, has failed:\n{''.join(lines)}", end="", file=sys.stderr)
        except Exception:                               # stderr is gone, or `tell` is at fault: the ranks end all the same
            traceback.print_exc()


def first_here() -> bool:
    """Whether this is the first rank on its host that asks."""
    folder = os.environ.get("PMIX_SERVER_TMPDIR")               # the job's own, on this host, until it has ended
    try:
        os.close(os.open(f"{folder}/minidl-failed", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    except OSError:                                             # no such folder: not Open MPI's mpiexec
        return True
    return True


def status_of(error: BaseException) -> int:
    """The exit status that an exception ends a process with."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    if isinstance(error, KeyboardInterrupt):            # with the number of the signal, if it was not Ctrl-C
        return 128 + (error.args or (2,))[0]
    return 2 if isinstance(error, ConfigError) else 1


def end_all(communicator: Communicator, status: int) -> None:
    """End all ranks, this one included, whatever they are doing. Never comes back."""
    late = threading.Timer(PATIENCE, os._exit, [status])
    late.daemon = True
    late.start()                                        # an abort may hang where other threads are in the middle of MPI
    if PRTE in os.environ and not tolerant():
        os._exit(status)                                # mpiexec ends the others just so, and says half as much of it
    communicator.abort(status)


def meet(communicator: Communicator) -> None:
    """Wait for the other ranks; not for ever, and not for those that have died."""
    with suppress(ExchangeError):
        request = communicator.iallgather(np.zeros(1, np.uint8), np.zeros((communicator.size, 1), np.uint8))
        until = time.monotonic() + MEETING
        while not request.done() and time.monotonic() < until:
            time.sleep(0.01)


# What launch sets up, and what it hears

def launched() -> bool:
    """Whether this process is a rank that `python -m minidl.launch` has started."""
    return VARIABLE in os.environ


def report(word: str, rank: int, status: int) -> None:
    """Tell launch, if it was that which started this process: 'finished' for the whole job, 'failed' for a rank."""
    if launched():
        with suppress(OSError):
            os.write(2, f"{MARK}{word} {rank} {status}\n".encode())         # in one piece


def ranks_here() -> int:
    """How many ranks share this host, as mpiexec or Slurm says: the cores are theirs together. 1 without them."""
    tasks = os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE") or os.environ.get("SLURM_STEP_TASKS_PER_NODE", "").split("(")[0].split(",")[0]
    return int(tasks) if tasks.isdigit() and int(tasks) else 1


def place_here(world: Communicator) -> int:
    """The number of this rank among those on its host, from 0: as the launcher says, or by the hosts' names; then all ranks call it."""
    for name in ("OMPI_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID", "MPI_LOCALRANKID", "PMI_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_RANK"):
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    hosts = world.gather_bytes(socket.gethostname().encode())
    return hosts[:world.rank].count(hosts[world.rank])


def begin() -> None:
    """The first thing that a rank does, before MPI: from now on it ends when mpiexec does, and hears launch's signals."""
    if PRTE in os.environ:
        die_with_parent()
    if launched() and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGUSR1, lambda number, frame: signal.raise_signal(signal.SIGINT))             # mpiexec forwards USR1 and
        signal.signal(signal.SIGUSR2, lambda number, frame: signal.raise_signal(signal.SIGTERM))            # USR2, and takes INT and TERM


def die_with_parent() -> None:
    """Let the kernel end this process as soon as mpiexec has ended, however that was. Linux only; elsewhere nothing happens."""
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    parent = os.getppid()
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)                     # PR_SET_PDEATHSIG
    if os.getppid() != parent or (parent == 1 and VARIABLE in os.environ):
        os.kill(os.getpid(), signal.SIGKILL)                                # it had ended before
