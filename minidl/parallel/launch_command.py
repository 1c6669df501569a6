"""The command line of Open MPI's mpiexec that starts ranks: which mpiexec, which hosts, and what the engine needs.

What then happens to the processes is launch_job.py's business.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from minidl.errors import ConfigError, MissingExtra

INSTALL = "Install it: pip install 'minidl[mpi]'"
# one thread a rank for libraries that would take a thread a core each; minidl's own threads are counted by --threads
ONE_THREAD = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
# it starts in a fraction of the time that a search for faster networks takes; OMPI_MCA_pml and OMPI_MCA_btl in the environment win
TRANSPORT = {"pml": "ob1", "btl": "self,sm,tcp"}
ALLOCATIONS = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "JOB_ID")       # of job schedulers, which say what hosts there are


def find_mpiexec(named: Path | None = None) -> str:
    """The mpiexec beside this Python, or else on the PATH. MissingExtra if there is none, ConfigError if it is another MPI's."""
    if find_spec("mpi4py") is None:
        raise MissingExtra("launch: mpi4py is not installed", hint=INSTALL)
    beside = Path(sys.executable).parent / "mpiexec"
    found = shutil.which(str(named or beside)) or (None if named else shutil.which("mpiexec"))
    if named and not found:
        raise ConfigError(f"--mpiexec {named}: there is no such program")
    if not found:
        raise MissingExtra("launch: there is no mpiexec, neither beside this Python nor on the PATH",
                           hint=f"{INSTALL}, or load your site's Open MPI, or name it: --mpiexec PATH")
    version = subprocess.run([found, "--version"], capture_output=True, text=True, stdin=subprocess.DEVNULL).stdout
    if "Open MPI" not in version and "OpenRTE" not in version:
        raise ConfigError(f"launch: {found} is not Open MPI's",
                          hint=f"{INSTALL}. Or do without launch: mpiexec -n 4 python -m minidl.train --exchange allreduce")
    return found


def placed(hosts: str, ranks: int) -> str:
    """'a,b:3' for 5 ranks as 'a:2,b:3': how many ranks go to each host. ConfigError if they do not fit.

    Hosts without a number share evenly what the others leave.
    """
    slots: dict[str, int | None] = {}
    for entry in hosts.split(","):
        match = re.fullmatch(r"([\w.-]+|\[[\da-fA-F:]+\])(?::(\d+))?", entry.strip())
        if match is None or match[1] in slots or match[2] == "0":
            raise ConfigError(f"--hosts {hosts}: {entry.strip()!r} is not a host, or stands there twice",
                              hint="It looks like: --hosts node1,node2  or, with the number of ranks on each: --hosts node1:4,node2:2")
        slots[match[1]] = int(match[2]) if match[2] else None
    left = ranks - sum(count or 0 for count in slots.values())
    open_ones = [host for host, count in slots.items() if count is None]
    if left > 0 and not open_ones:
        raise ConfigError(f"--hosts {hosts} has room for {ranks - left} ranks, and there are {ranks}, spares included")
    for k, host in enumerate(open_ones):
        slots[host] = max(left, 0) // len(open_ones) + (k < max(left, 0) % len(open_ones))
    return ",".join(f"{host}:{count}" for host, count in slots.items() if count)


def command_line(mpiexec: str, ranks: int, program: Sequence[str], hosts: str | None = None, elastic: bool = False) -> list[str]:
    """The words that start so many ranks of a program (its words) on this host, or on those of `placed`, or on a scheduler's.

    elastic: the job outlives its ranks.
    """
    words = [mpiexec]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        words += ["--allow-run-as-root"]
    if hosts is not None:
        words += ["--host", hosts]
    elif not any(name in os.environ for name in ALLOCATIONS):
        words += ["--map-by", ":OVERSUBSCRIBE"]                 # more ranks than cores are the user's wish
    words += ["--bind-to", "none"]                              # the threads of a rank share the cores with those of the others
    settings = {name: value for name, value in TRANSPORT.items() if f"OMPI_MCA_{name}" not in os.environ}
    if elastic:
        # Open MPI's own detector (mpi_ft_detector) stays off: it takes a rank for dead that computes for longer than its time-out, and the
        # thread that would mend this crashes now and then when a rank dies (5.0.11: 2 of 9). mpiexec tells of deaths without it.
        words += ["--with-ft", "ulfm"]
    for name, value in settings.items():
        words += ["--mca", name, value]
    for name in ONE_THREAD:
        words += ["-x", f"{name}=1"]
    if hosts is not None:
        for name in sorted(name for name in os.environ if name.startswith(("PYTHON", "MINIDL_"))):
            words += ["-x", name]                               # what another host would not know
    return [*words, "-n", str(ranks), *program]
