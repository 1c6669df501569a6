"""Ranks that end as they are told, and a launch of such ranks: what tests of endings run.

    python endings.py WORD WHO [LOG_DIR]              one rank: it does what the word says, if it is WHO (-1: all of them do)
    python endings.py launch N OPTIONS... WORD ...    `launch` of N such ranks; options: ulfm, timeout=SECONDS

Each rank leaves its number and process id in the working folder once it has met the others; what Open MPI keeps lies in its folder memory.
"""

import atexit
import os
import signal
import sys
import threading
import time
import warnings
from pathlib import Path

from minidl.errors import ConfigError, RankLost, ShapeError

LONG = 300                  # seconds: who waits for so long was forgotten


def launch(ranks, *words):
    from minidl.parallel import launch_command, launch_job

    words = list(words)
    elastic = words[0] == "ulfm" and bool(words.pop(0))
    timeout = float(words.pop(0).partition("=")[2]) if words[0].startswith("timeout=") else None
    launch_job.MEMORY = Path("memory").resolve()           # other jobs on this host have theirs elsewhere
    launch_job.MEMORY.mkdir()
    command = launch_command.command_line(launch_command.find_mpiexec(), int(ranks), [sys.executable, __file__, *words], elastic=elastic)
    outcome = launch_job.launch(command, timeout=timeout, elastic=elastic)
    print(outcome.words, file=sys.stderr)
    sys.exit(outcome.status)


def rank(word, who, log_dir=None):
    from minidl.parallel import ending

    ending.begin()
    from minidl.parallel.mpi import world
    from minidl.parallel.quiet import quiet

    communicator = world()
    with ending.end_together(communicator), quiet(communicator, log_dir):
        print(f"rank {communicator.rank} prints")
        warnings.warn(f"rank {communicator.rank} warns", stacklevel=1)
        received = []
        if word == "stop gracefully":
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, lambda number, frame: received.append(number))
        if word in ("ignore", "stand still"):
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
                signal.signal(number, signal.SIG_IGN)
        communicator.barrier()
        Path(f"{communicator.rank}.pid").write_text(str(os.getpid()))
        communicator.barrier()
        if int(who) in (communicator.rank, -1):
            do(word)
        if word in ("finish", "hang at the end"):
            return
        until = time.monotonic() + LONG
        while not received:
            time.sleep(0.02)
            if time.monotonic() > until:
                raise SystemExit("nothing came")
        communicator.barrier()
        print("all is saved")
        sys.exit(128 + received[0])


def do(word):
    """What is special about this rank."""
    if word == "raise":
        raise KeyError("broken")
    if word == "raise of minidl":
        raise ShapeError("conv2d: broken")
    if word == "raise of options":
        raise ConfigError("broken")
    if word == "lose":
        raise RankLost("a process has died")
    if word == "raise in a thread":
        threading.Thread(target=lambda: 1 / 0).start()
    if word == "exit":
        sys.exit(3)
    if word == "stop at once":
        raise KeyboardInterrupt
    if word == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if word == "stand still":
        os.kill(os.getpid(), signal.SIGSTOP)
    if word == "hang at the end":
        atexit.register(time.sleep, LONG)


if __name__ == "__main__":
    if sys.argv[1] == "launch":
        launch(*sys.argv[2:])
    else:
        rank(*sys.argv[1:])
