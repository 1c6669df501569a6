"""What is left of a job is ended and removed: its processes, which have the job's name in their environment, and its folder.

It is a program too, the keeper: launch starts it beside mpiexec, and if launch itself is killed, the keeper does what launch would have
done. It stands on Python alone, so that it starts at once. Processes of other hosts are ended by those of Open MPI there.
"""

import os
import shutil
import signal
import sys
import time
from contextlib import suppress

VARIABLE = "MINIDL_LAUNCH"


def processes(job: str) -> list[int]:
    """The processes of a job on this host, but for the one that asks. Empty where there is no /proc."""
    wanted, found = f"{VARIABLE}={job}".encode(), []
    try:
        numbers = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return []
    for number in numbers:
        try:
            with open(f"/proc/{number}/environ", "rb") as file:
                if wanted in file.read().split(b"\0") and number != os.getpid():
                    found.append(number)
        except OSError:                         # it has ended, or is another user's
            pass
    return found


def standing_still(job: str) -> set[int]:
    """The processes of a job that have been stopped, by SIGSTOP or from a terminal."""
    found = set()
    for number in processes(job):
        try:
            with open(f"/proc/{number}/stat") as file:
                if file.read().rpartition(")")[2].split()[0] == "T":
                    found.add(number)
        except OSError:
            pass
    return found


def sweep(job: str, folder: str, seconds: float = 5.0) -> None:
    """Kill all processes of a job on this host, again and again until there are none; then remove its folder."""
    until = time.monotonic() + seconds
    while (left := processes(job)) and time.monotonic() < until:
        for number in left:
            with suppress(OSError):
                os.kill(number, signal.SIGKILL)
        time.sleep(0.01)
    shutil.rmtree(folder, ignore_errors=True)


def keep(job: str, folder: str, patience: float = 1.0) -> None:
    """Wait on stdin for the word that all is well. If its other end closes without it, launch has died: end the job."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if not sys.stdin.buffer.read():
        time.sleep(patience)                    # mpiexec was told by the kernel, and may end the ranks of other hosts in good order
        sweep(job, folder)


if __name__ == "__main__":
    keep(sys.argv[1], sys.argv[2])
