"""Members: the processes of a run as the machines know them, so that those who were lost can be named, and are really gone.

A process that only stands still is taken for dead after a while. Should it go on one day, it would find itself alone, and train and save
where others have gone on without it: so those on its host end it first. How a run goes on is in elastic.py.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple


class Member(NamedTuple):
    """A process: its number when the run began, and where it is. since: when it began, for no other process has number and that too."""

    number: int
    host: str
    pid: int
    since: str


def this(number: int) -> Member:
    """This process."""
    return Member(number, socket.gethostname(), os.getpid(), since(os.getpid()))


def since(pid: int) -> str:
    """When a process of this host began, in the kernel's ticks; "" if there is none, or nobody can say."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def end(member: Member) -> None:
    """Kill a process, if it is on this host and still there."""
    if member.pid != os.getpid() and member.host == socket.gethostname() and member.since and since(member.pid) == member.since:
        with suppress(OSError):
            os.kill(member.pid, signal.SIGKILL)


def told(lost: Sequence[int], came: Sequence[int], left: int | None) -> str:
    """In words: who was lost, who came instead, and how many train if these are fewer now."""
    text = f"{processes(lost)} {'has' if len(lost) == 1 else 'have'} died"
    if came:
        text += f", {processes(came)} {'takes' if len(came) == 1 else 'take'} {'its' if len(lost) == 1 else 'a'} place"
    return text + ("" if left is None else f", {left} {'goes' if left == 1 else 'go'} on")


def processes(numbers: Sequence[int]) -> str:
    """[0, 2, 5] as 'processes 0, 2 and 5'."""
    names = [str(number) for number in sorted(numbers)]
    return f"process {names[0]}" if len(names) == 1 else f"processes {', '.join(names[:-1])} and {names[-1]}"
