"""A job: ranks under mpiexec that are started, listened to, judged, and ended without a trace.

The ranks say themselves how they ended (ending.py), and that decides: mpiexec may hang after a failure, may return 0 when a whole host
has died, and counts a rank that was lost and replaced as a failure. Everything that is printed passes through here; what mpiexec adds
to a failure that is known is left out. The words of mpiexec's command line are launch_command.py's business.
"""

from __future__ import annotations

import os
import re
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minidl.parallel import launch_sweep
from minidl.parallel.ending import MARK, VARIABLE
from minidl.parallel.quiet import COLUMNS

GRACE = 5.0                 # seconds for processes to end by themselves when the work is done
FAILURE = 1.0               # seconds for them to end when a rank has failed
ORDER = 0.4                 # seconds that mpiexec gets to end them in good order, before all are killed
STILL = 1.0                 # seconds between two looks at whether a rank stands still
HELD = 4096                 # bytes of stderr that are held back at most, until it is clear what they are
LOOK = 0.1                  # seconds between two looks at the clock
CLOSED, TOO_LONG = 141, 124                 # exit statuses, as of a shell's commands: nobody reads the output; the time is over
MEMORY = Path("/dev/shm")


@dataclass
class Outcome:
    """How a job ended: the exit status, and a sentence about it where nobody else has told."""

    status: int
    words: str = ""


def launch(command: Sequence[str], alone: bool = True, timeout: float | None = None, elastic: bool = False) -> Outcome:
    """Run ranks to their end, with the command line of mpiexec that starts them.

    alone: all of them are on this host. timeout: seconds after which all are ended. elastic: the job outlives its ranks, so one that
    stands still on this host is killed, lest the others wait for it. Ctrl-C, SIGTERM and SIGHUP ask the ranks to stop after their
    minibatch; a second one ends them at once. Whatever happens, no process of the job is left on this host.
    """
    job = Job(command, alone, timeout, elastic)
    before = {}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:           # as nohup wants it
            before[number] = signal.signal(number, lambda number, frame: job.signals.append(number))
    try:
        try:
            job.start()
            job.watch()
        finally:
            job.end()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return job.outcome()


class Job:
    """What is known of the ranks, and the processes that they are."""

    def __init__(self, command: Sequence[str], alone: bool, timeout: float | None, elastic: bool):
        self.command = list(command)
        self.alone, self.elastic = alone, elastic
        self.name = secrets.token_hex(8)
        self.folder = make_folder()
        self.errors = Errors()
        self.signals: list[int] = []            # that have come
        self.forwarded = False
        self.closed = False                     # nobody reads what is printed
        self.timeout = timeout
        self.until = float("inf")               # then everything is ended
        self.late = False                       # that time is over
        self.streams = selectors.DefaultSelector()
        self.keeper: subprocess.Popen | None = None
        self.mpiexec: subprocess.Popen | None = None
        self.looked = 0.0                       # at the ranks, last
        self.still: set[int] = set()            # processes that stood still then

    # Beginning

    def start(self) -> None:
        """Start mpiexec, in a session of its own where the terminal's Ctrl-C does not reach it, and the keeper."""
        self.keeper = subprocess.Popen([sys.executable, "-I", "-S", launch_sweep.__file__, self.name, self.folder], stdin=subprocess.PIPE,
                                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        added = {VARIABLE: self.name, **looks()}
        places = {"PRTE_MCA_prte_local_tmpdir_base": self.folder}
        if self.alone and self.folder.startswith(str(MEMORY)):
            places["OMPI_MCA_btl_sm_backing_directory"] = self.folder
        words = [self.command[0], *(word for name in added for word in ("-x", name)), *self.command[1:]]
        self.began = time.monotonic()
        if self.timeout is not None:
            self.until = self.began + self.timeout
        self.mpiexec = subprocess.Popen(words, env={**os.environ, **places, **added}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE, start_new_session=True, preexec_fn=end_with_launch())
        for number, stream in ((1, self.mpiexec.stdout), (2, self.mpiexec.stderr)):
            if stream is not None:
                self.streams.register(stream, selectors.EVENT_READ, number)

    # Meanwhile

    def watch(self) -> None:
        """Pass on what is printed and the signals that come, until all have ended or have had their time."""
        while self.streams.get_map() and time.monotonic() < self.until and len(self.signals) < 2 and not self.closed:
            self.listen(LOOK)
            if self.signals and not self.forwarded:
                self.forwarded = True
                # mpiexec passes these two on, to other hosts too; INT and TERM it would take for itself
                self.signal(signal.SIGUSR1 if self.signals[0] == signal.SIGINT else signal.SIGUSR2)
            if self.errors.failed:
                self.within(FAILURE)
            elif self.errors.finished is not None:
                self.within(GRACE)
            if not self.runs():
                self.within(ORDER)              # for what is still in the pipes
            elif self.elastic:
                self.look_after()
        self.late = self.timeout is not None and time.monotonic() >= self.began + self.timeout and self.runs()

    def runs(self) -> bool:
        """Whether mpiexec is there."""
        return self.mpiexec is not None and self.mpiexec.poll() is None

    def look_after(self) -> None:
        """Kill ranks that stood still at the last look and do so at this one."""
        now = time.monotonic()
        if now > self.looked + STILL:
            still = launch_sweep.standing_still(self.name)
            for number in still & self.still:
                with suppress(OSError):
                    os.kill(number, signal.SIGKILL)
            self.looked, self.still = now, still

    def within(self, seconds: float) -> None:
        """End everything in so many seconds, if that is not to happen earlier."""
        self.until = min(self.until, time.monotonic() + seconds)

    def listen(self, seconds: float) -> None:
        """Pass on what is printed; wait for it no longer than that."""
        for key, _ in self.streams.select(seconds):
            content = os.read(key.fd, 1 << 16)
            if not content:
                self.streams.unregister(key.fileobj)
            if key.data == 2:
                content = self.errors.take(content, last=not content)
            try:
                while content:
                    content = content[os.write(key.data, content):]
            except BlockingIOError:             # a terminal that others have set so
                time.sleep(LOOK)
            except OSError:
                self.closed = True

    def signal(self, number: int) -> None:
        """Send mpiexec a signal, if it is there."""
        if self.mpiexec is not None:
            self.mpiexec.send_signal(number)                # nothing happens if it has ended

    # The end

    def end(self) -> None:
        """End what is still there, and remove what it leaves."""
        if self.runs():
            self.errors.ending = True
            self.signal(signal.SIGTERM)
            self.listen_until(lambda: not self.runs())
        self.signal(signal.SIGKILL)
        launch_sweep.sweep(self.name, self.folder)
        self.listen_until(lambda: not self.streams.get_map())
        self.streams.close()
        if self.mpiexec is not None:
            self.mpiexec.wait()
            for stream in (self.mpiexec.stdout, self.mpiexec.stderr):
                if stream is not None:
                    stream.close()
        if self.keeper is not None:
            with suppress(OSError):
                self.keeper.communicate(b"well")

    def listen_until(self, over: Callable[[], bool]) -> None:
        """Pass on what is printed, until something is over or has had its time."""
        until = time.monotonic() + ORDER
        while not over() and time.monotonic() < until:
            if self.streams.get_map() and not self.closed:
                self.listen(0.02)
            else:
                time.sleep(0.02)

    def outcome(self) -> Outcome:
        """The judgement."""
        errors = self.errors
        if errors.failed:
            return Outcome(errors.failed[0][1] or 1)
        if errors.finished is not None and len(self.signals) < 2:
            return Outcome(128 + self.signals[0] if self.signals and errors.finished > 128 else errors.finished)
        if self.signals:
            return Outcome(128 + self.signals[0], "Stopped at once." if len(self.signals) > 1 else "Stopped before it had begun.")
        if self.closed:
            return Outcome(CLOSED)
        if self.late:
            return Outcome(TOO_LONG, f"All processes were ended after {self.timeout:g} s.")
        status = self.mpiexec.returncode if self.mpiexec is not None else 1
        if errors.lost:
            return Outcome(errors.lost[0][1], "; ".join(text for text, _ in errors.lost))
        if status < 0:
            return Outcome(128 - status, f"mpiexec was ended by signal {-status} ({name(-status)}) before the work was done.")
        return Outcome(status or 1, f"mpiexec has ended, with status {status}, before the work was done.")


@dataclass
class Errors:
    """The stderr of the ranks and of mpiexec, as it comes in: what is meant for launch is taken out."""

    failed: list[tuple[int, int]] = field(default_factory=list)         # rank and exit status, as they say themselves
    lost: list[tuple[str, int]] = field(default_factory=list)           # what mpiexec says of ranks that said nothing; the exit status
    finished: int | None = None                                         # the status of the job
    ending: bool = False                                                # launch is ending the ranks: mpiexec need not say so
    waiting: bytes = b""                                                # the beginning of something that may not be for others

    # a rank's report; mpiexec's own words, between two lines of dashes; its warnings of nothing: a rank has closed its end, ssh was fast
    APART = re.compile(re.escape(MARK.encode()) + rb"(?P<word>finished|failed) (?P<rank>\d+) (?P<status>\d+)\n"
                       rb"|^-{74}\n(?P<block>.*?)^-{74}\n"
                       rb"|^\[warn\] Epoll [^\n]*\n|^\[[^]\n]+\] plm:ssh: Warning: setpgid[^\n]*\n", re.DOTALL | re.MULTILINE)
    # what may become one of them
    OPEN = re.compile(rb"\x1e[^\n]{0,40}\Z|^-{1,74}\Z|^-{74}\n(?:(?!^-{74}\n).)*\Z|^\[[^\n]*\Z", re.DOTALL | re.MULTILINE)

    def take(self, content: bytes, last: bool = False) -> bytes:
        """Take in what has come; gives what is to be shown of it. last: nothing more will come."""
        content = (self.waiting + content).replace(b"\0", b"")
        shown, at = b"", 0
        for match in self.APART.finditer(content):
            before = b"" if self.failed else content[at:match.start()]          # after a failure others say what came of it
            known = self.report(match) if match["word"] else self.block(match) if match["block"] is not None else True
            shown += before if known or self.failed else before + match[0]
            at = match.end()
        rest = content[at:]
        begun = None if last else self.OPEN.search(rest)
        end = len(rest) if begun is None or len(rest) - begun.start() > HELD else begun.start()
        self.waiting = rest[end:]
        return shown if self.failed else shown + rest[:end]

    def report(self, match: re.Match[bytes]) -> bool:
        """What a rank says of its end."""
        if match["word"] == b"finished":
            self.finished = int(match["status"])
        else:
            self.failed.append((int(match["rank"]), int(match["status"])))
        return True

    def block(self, match: re.Match[bytes]) -> bool:
        """What mpiexec says; whether it is known already, or will be said better."""
        text = " ".join(match["block"].decode(errors="replace").split())
        if found := re.search(r"process rank (\d+) with PID \d+ on node (\S+) exited on signal (\d+)", text):
            number = int(found[3])
            self.lost.append((f"Rank {found[1]} on {found[2]} was ended by signal {number} ({name(number)})", 128 + number))
        elif found := re.search(r"exited with non-zero status.*Process name: \[.*,(\d+)\] Exit code: (\d+)", text):
            self.lost.append((f"Rank {found[1]} has ended with status {found[2]} before the work was done", int(found[2])))
        elif found := re.search(r"lost communication with a remote daemon.* Remote daemon: \[.*?\] on node (\S+)", text):
            self.lost.append((f"The connection to {found[1]} is lost", 1))
        else:
            return "MPI_ABORT was invoked" in text or "prterun has exited due to process" in text or self.ending
        return True


def name(number: int) -> str:
    """SIGKILL for 9."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown here"


def make_folder() -> str:
    """A folder for what Open MPI keeps in files during a job, in memory where that can be."""
    shared = MEMORY.is_dir() and os.access(MEMORY, os.W_OK)
    return tempfile.mkdtemp(prefix="minidl-", dir=MEMORY if shared else None)


def looks() -> dict[str, str]:
    """For the ranks: how wide the terminal is that launch prints to, and whether it knows colours."""
    try:
        found = {COLUMNS: str(os.get_terminal_size(1).columns or 80)}
    except OSError:
        return {COLUMNS: "0"}
    if os.isatty(2) and "NO_COLOR" not in os.environ:
        found["FORCE_COLOR"] = "1"
    return found


def end_with_launch() -> Any:
    """To be done in a child before it becomes mpiexec: let the kernel tell it when launch has died. None where there is no such thing."""
    if not sys.platform.startswith("linux"):
        return None
    import ctypes

    library = ctypes.CDLL(None)
    return lambda: library.prctl(1, signal.SIGTERM, 0, 0, 0)                # PR_SET_PDEATHSIG
