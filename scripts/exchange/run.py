"""A program under MPI with one rank on each host of the network, and nothing between them but its links.

mpiexec runs outside and reaches a host through a stand-in for ssh, `scripts/network enter`. Shared memory is left out, so that every byte
between ranks goes over the wire; and the ranks are not bound to cores, of which there may be fewer than ranks.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from exchange import network
from exchange.network import NetworkError

COMMAND = Path(__file__).resolve().parents[1] / "network"
WIRE = {"pml": "ob1", "btl": "self,tcp", "btl_tcp_if_include": str(network.SUBNET)}
PATIENCE = 10.0         # seconds that mpiexec has to end its ranks, once it was told to


def mpiexec() -> str:
    """The mpiexec beside this Python, or else the first on the path. NetworkError if there is none."""
    beside = Path(sys.executable).with_name("mpiexec")
    found = str(beside) if beside.exists() else shutil.which("mpiexec")
    if found is None:
        raise NetworkError("mpiexec cannot be found: install the extra mpi, python -m pip install 'minidl[mpi]'")
    return found


def command_line(count: int, words: Sequence[str], also: Sequence[str] = ()) -> list[str]:
    """mpiexec and its options for a rank on each of the first `count` hosts. also: more options of mpiexec, such as --with-ft ulfm."""
    settings = [word for name, value in WIRE.items() for word in ("--mca", name, value)]
    return [mpiexec(), "--allow-run-as-root", "-n", str(count), "--host", ",".join(network.host(i) for i in range(count)),
            "--map-by", "node", "--bind-to", "none",            # no :OVERSUBSCRIBE, with which all ranks land on one host
            "--prtemca", "plm_ssh_agent", f"{sys.executable} {COMMAND} enter", *settings, *also, *words]


def run(count: int, words: Sequence[str], also: Sequence[str] = (), seconds: float | None = None, **options: object) -> int:
    """Run it to its end and give its exit status. However it ends, no process is left on the hosts.

    words: the program and its arguments. seconds: how long it may take at most. options: subprocess.Popen's. NetworkError if there are too
    few hosts, or it takes longer.
    """
    there = network.hosts()
    if len(there) < count:
        raise NetworkError(f"{count} ranks need {count} hosts, and there are {len(there)}: scripts/network up {count} RATE")
    for i in range(count):
        network.end_processes(i)            # what a run that was killed has left
    process = subprocess.Popen(command_line(count, words, also), **options)            # type: ignore[call-overload]
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        raise NetworkError(f"{shlex.join(words)} did not end within {seconds:g} s") from None
    finally:
        if process.poll() is None:          # stopped; Ctrl-C has reached mpiexec too
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.terminate()
                process.wait(PATIENCE)
            process.kill()
            process.wait()
        for i in range(count):
            network.end_processes(i)


def enter(words: Sequence[str]) -> None:
    """Be ssh: go to a host and run a command there, under a host's name of its own. Never comes back.

    words: options of ssh, which are ignored, the address, and the command.
    """
    rest = list(words)
    while rest and rest[0].startswith("-"):
        rest.pop(0)
    if len(rest) < 2:
        raise NetworkError("enter: give an address and a command")
    i = next((i for i in network.hosts() if network.host(i) == rest[0]), None)
    if i is None:
        raise NetworkError(f"no host has the address {rest[0]}")
    name = network.namespace(i)
    inside = f"hostname {shlex.quote(name)}; {' '.join(rest[1:])}"
    os.execvp("ip", ["ip", "netns", "exec", name, "unshare", "--uts", "sh", "-c", inside])
