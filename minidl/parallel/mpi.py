"""Ranks that are processes, on one host or many, over mpi4py: the Communicator that trains.

Only non-blocking sends and receives of raw bytes go through MPI, polled with Test; a collective operation is made of them. MPI's own
(Ibcast, Iallgather) do not tell a wrong size, print to the error output when a process dies, and go on writing into arrays that they
have given up. Groups, revoke, agree and shrink are MPI's (the latter three its ULFM extension: Open MPI 5, `mpiexec --with-ft ulfm`).
mpi4py is imported when `world` is called, not before; importing it is what starts MPI. A message larger than the room for it is told
as long as it is below MPI's eager limit (4 KiB on one host); above it, Open MPI 5.0.11 itself hangs or ends the process.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from minidl import backend
from minidl.backend import Array
from minidl.errors import ExchangeError, MissingExtra, RankLost
from minidl.parallel import communicator as interface
from minidl.parallel.communicator import NAP, Communicator, Request, check_peer, memory
from minidl.parallel.cuda_aware import cuda_aware
from minidl.parallel.on_device import elsewhere, through_host

if TYPE_CHECKING:
    from mpi4py import MPI

LAUNCHERS = ("OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")     # what they leave in the environment
OWN_TAGS = 1 << 16          # the highest tags that MPI has, for collective operations: as many may be under way at once
DRAIN = 5.0                 # seconds until what is under way on a revoked communicator is left to itself

_under_way: set[Message] = set()        # MPI reads and writes their arrays until they are over, whoever has forgotten them
_relays: set[Message] = set()           # of these, those that pass on what they receive


def available() -> bool:
    """Whether mpi4py is installed."""
    return find_spec("mpi4py") is not None


def launched() -> bool:
    """Whether an MPI launcher (mpiexec, srun --mpi) has started this process."""
    return any(name in os.environ for name in LAUNCHERS)


def tolerant() -> bool:
    """Whether the launcher lets the others live when a process dies."""
    return os.environ.get("OMPI_MCA_mpi_ft_enable", "").lower() in ("1", "true", "yes")         # noqa: SIM112


# Open MPI announces a message of more than 64 KB, and waits for an answer before it sends it. Over TCP the answer waits behind what is on
# its way in the other direction: two ranks that send to each other at a time get half of a full-duplex wire. So chunks go unannounced.
TCP = {"eager_limit": 1_100_000, "max_send_size": 1_100_000}         # bytes

# What it announces it then puts straight into the receiver's memory. If the receiver dies meanwhile, Open MPI 5.0.11 sends it a last word
# while it holds the lock for sending, and stands still for ever (3 of 32 runs; 0 of 80 without "put", which is among the default flags).
WITHOUT_PUT = "send,inplace,need-ack,need-csum,hetero-rdma"


@functools.cache
def library() -> Any:
    """mpi4py's MPI, started. MissingExtra, or ExchangeError if it does not allow several threads."""
    for name, value in (TCP | ({"flags": WITHOUT_PUT} if tolerant() else {})).items():
        os.environ.setdefault(f"OMPI_MCA_btl_tcp_{name}", str(value))
    try:
        import mpi4py

        mpi4py.rc.finalize = not tolerant()                 # see `leave`
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:            # the latter: mpi4py is there, and libmpi is not
        raise MissingExtra(f"mpi: {error}", hint="Install it: pip install 'minidl[mpi]', or mpi4py for your cluster's own MPI") from None
    if MPI.Query_thread() < MPI.THREAD_MULTIPLE:
        raise ExchangeError("mpi: this MPI does not let several threads communicate (THREAD_MULTIPLE)",
                            library=MPI.Get_library_version().split("\n")[0].strip("\0"),
                            hint="Use one that was built with it; Open MPI 5 from pip install 'minidl[mpi]' is")
    return MPI


@functools.cache
def world() -> Communicator:
    """All processes that the launcher started: the same Communicator at each call, first called by all of them."""
    everyone = library().COMM_WORLD
    return MPICommunicator(everyone.Shrink() if tolerant() else everyone.Dup())         # one may have died already


def leave(status: int = 0) -> None:
    """Call it at the very end, on every rank. If a process of the job has died, this one ends here, with this status; otherwise go on."""
    # MPI_Finalize, which mpi4py would call when Python ends, now and then waits for the dead for ever (Open MPI 5.0.11: 1 run of 30), and
    # leaves their files in /dev/shm. Under --with-ft ulfm processes may end without it: mpiexec is content, and cleans up. But who has
    # ended is dead to the others: hence all agree first. The rest of Python's end is left out, should somebody else have imported mpi4py.
    MPI = sys.modules.get("mpi4py.MPI")
    if MPI is None or MPI.Is_finalized() or not tolerant():
        return
    MPI.COMM_WORLD.Set_errhandler(MPI.ERRORS_RETURN)
    with suppress(MPI.Exception):
        MPI.COMM_WORLD.Agree(1)                             # an error if somebody has died, the same for all
        return
    flush()
    os._exit(status)


def flush() -> None:
    """What was printed, out: before a process ends without Python's help."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, OSError, ValueError):
            stream.flush()


class Message(Request):
    """Bytes on their way, in one or several MPI messages; over when all of them are."""

    def __init__(self, communicator: MPICommunicator, operation: str):
        if communicator.tolerant and communicator.comm.Is_revoked():        # a send that needs no answer would find nothing wrong
            raise RankLost(f"{operation}: the communicator was revoked")
        self.communicator, self.operation = communicator, operation
        self.parts: deque[Part] = deque()
        self.lock = threading.RLock()       # another thread may pass on what came, or wait for its end after a revoke
        self.error: ExchangeError | None = None
        _under_way.add(self)

    def send(self, x: np.ndarray, to: int, tag: int) -> None:
        for piece in pieces(x):
            self.add(functools.partial(self.communicator.comm.Isend, [piece, library().BYTE], to, tag), piece, to)

    def receive(self, x: np.ndarray, source: int, tag: int, then: Callable[[np.ndarray], object] | None = None) -> None:
        """then: called with each piece that has come."""
        for piece in pieces(x):
            self.add(functools.partial(self.communicator.comm.Irecv, [piece, library().BYTE], source, tag), piece, source, then or len)

    def add(self, begin: Callable[[], MPI.Request], piece: np.ndarray, peer: int, then: Callable[[np.ndarray], Any] | None = None) -> None:
        try:
            request = begin()
        except library().Exception as error:
            if not self.parts:
                _under_way.discard(self)
            raise self.failed(error, piece, peer) from None
        self.parts.append(Part(request, piece, peer, then))

    def done(self) -> bool:
        if _relays:
            for relay in list(_relays):
                relay.advance()
        self.advance()
        if self.error is not None:
            raise self.error
        return not self.parts

    def advance(self) -> None:
        """Look at what has not arrived, and never raise."""
        with self.lock:
            try:
                while self.error is None and self.parts and self.parts[0].over():
                    part = self.parts.popleft()
                    if part.then is not None:
                        self.check(part)
                        part.then(part.piece)
            except library().Exception as error:
                part = self.parts.popleft()
                self.failed(error, part.piece, part.peer)
            except ExchangeError as error:
                self.error = error
            if not self.parts:
                _under_way.discard(self)
                _relays.discard(self)
            elif self.error is not None:
                _relays.discard(self)

    def check(self, part: Part) -> None:
        came = part.status.Get_count(library().BYTE)
        if came != len(part.piece):
            raise ExchangeError(f"{self.operation}: rank {part.peer} sent {came} bytes, and rank {self.communicator.rank} has room for "
                                f"{len(part.piece)}")

    def failed(self, error: MPI.Exception, piece: np.ndarray, peer: int) -> ExchangeError:
        """MPI's error in our words, which is also what `done` will raise."""
        here, kind = self.communicator.rank, error.Get_error_class()
        if kind == library().ERR_TRUNCATE:
            self.error = ExchangeError(f"{self.operation}: rank {peer} sent more than the {len(piece)} bytes that rank {here} has room for")
        else:
            self.error = translated(error, f"{self.operation}, rank {here} with rank {peer}", f"rank {peer} has died", bytes=len(piece))
        return self.error

    def drain(self, until: float) -> None:
        """Wait until MPI has let go of the arrays, whether or not anything came."""
        with self.lock:
            while self.parts and time.monotonic() < until:
                with suppress(library().Exception):
                    if not self.parts[0].over():
                        time.sleep(NAP)
                        continue
                self.parts.popleft()
            self.error = self.error or RankLost(f"{self.operation}: the communicator was revoked")
            if not self.parts:
                _under_way.discard(self)


class Part:
    """One MPI message. then: what is done with the piece when it has come; None where it goes."""

    __slots__ = ("peer", "piece", "request", "status", "then")

    def __init__(self, request: MPI.Request, piece: np.ndarray, peer: int, then: Callable[[np.ndarray], object] | None):
        self.request, self.piece, self.peer, self.then = request, piece, peer, then
        self.status = library().Status()

    def over(self) -> bool:
        return self.request.Test(self.status)


def pieces(x: np.ndarray) -> list[np.ndarray]:
    """x (bytes,) cut into messages. How long they are tells how many there are: who expects another size sees it in one that comes."""
    count, length = 1, interface.LARGEST
    while count * length < len(x):
        count += 1
        length = interface.LARGEST - 64 * count
    return [x[k * length:(k + 1) * length] for k in range(count)]


def translated(error: MPI.Exception, operation: str, died: str = "a rank has died", **facts: Any) -> ExchangeError:
    """MPI's error as one of ours."""
    MPI, kind = library(), error.Get_error_class()
    if kind == MPI.ERR_REVOKED:
        return RankLost(f"{operation}: the communicator was revoked")
    if kind in (MPI.ERR_PROC_FAILED, MPI.ERR_PROC_FAILED_PENDING):
        return RankLost(f"{operation}: {died}")
    return ExchangeError(f"{operation}: {error.Get_error_string()}", **facts)


def with_ulfm(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method that needs an MPI with ULFM."""
    @functools.wraps(method)
    def wrapped(self: MPICommunicator, *args: Any) -> Any:
        MPI = library()
        hint = "Use Open MPI 5 (pip install 'minidl[mpi]') and start with mpiexec --with-ft ulfm"
        try:
            return method(self, *args)
        except NotImplementedError:
            raise ExchangeError(f"{method.__name__}: this MPI cannot go on after the death of a process", hint=hint) from None
        except MPI.Exception as error:
            if error.Get_error_class() == MPI.ERR_UNSUPPORTED_OPERATION:
                raise ExchangeError(f"{method.__name__}: this MPI cannot go on after the death of a process", hint=hint) from None
            raise translated(error, method.__name__) from None
    return wrapped


class MPICommunicator(Communicator):
    """See `Communicator`. comm: mpi4py's, which nobody else uses."""

    def __init__(self, comm: MPI.Comm):
        self.direct = cuda_aware(library().__file__)
        comm.Set_errhandler(library().ERRORS_RETURN)
        self.comm = comm
        self.rank, self.size = comm.Get_rank(), comm.Get_size()
        self.top: int = library().COMM_WORLD.Get_attr(library().TAG_UB)
        self.tolerant = tolerant()
        self.number = 0                                         # collective operations so far

    @through_host
    def isend(self, x: np.ndarray, to: int, tag: int = 0) -> Request:
        content = memory(x, "isend")
        self.check(to, tag, "isend")
        settled(x)
        message = Message(self, f"isend, tag {tag}")
        message.send(content, to, tag)
        return message

    @through_host
    def irecv(self, x: np.ndarray, source: int, tag: int = 0) -> Request:
        into = memory(x, "irecv", written=True)
        self.check(source, tag, "irecv")
        settled(x)
        message = Message(self, f"irecv, tag {tag}")
        message.receive(into, source, tag)
        return message

    def check(self, peer: int, tag: int, operation: str) -> None:
        check_peer(operation, peer, self.size, tag)
        if tag > self.top - OWN_TAGS:
            raise ExchangeError(f"{operation}: this MPI has no tag {tag}", tags=f"0 to {self.top - OWN_TAGS}")

    def own_tag(self) -> int:
        """For one collective operation: the same on all ranks."""
        self.number += 1
        return self.top - self.number % OWN_TAGS

    @through_host
    def ibroadcast(self, x: np.ndarray, root: int = 0) -> Request:
        # A binomial tree: counted from the root, place p with lowest bit b receives from p - b and sends to p + b/2, p + b/4, ..., p + 1.
        mine = memory(x, "ibroadcast", written=self.rank != root)
        check_peer("ibroadcast", root, self.size)
        place, tag = (self.rank - root) % self.size, self.own_tag()
        reach = place & -place or 1 << self.size.bit_length()
        children = [(place + step + root) % self.size for step in steps(reach) if place + step < self.size]
        message = Message(self, f"ibroadcast from {root}")

        def pass_on(piece: np.ndarray) -> None:
            for child in children:
                message.send(piece, child, tag)

        if place == 0:
            for piece in pieces(mine):
                pass_on(piece)
        else:
            message.receive(mine, (place - reach + root) % self.size, tag, pass_on)
            if children:
                _relays.add(message)
        return message

    @through_host
    def iallgather(self, x: np.ndarray, out: np.ndarray) -> Request:
        mine, into = memory(x, "iallgather"), memory(out, "iallgather", written=True)
        if len(into) != self.size * len(mine):
            raise ExchangeError("iallgather: out is not as large as everyone's x", out=out.shape, x=x.shape, ranks=self.size)
        rows = into.reshape(self.size, len(mine))
        if np.may_share_memory(mine, into):
            mine = mine.copy()
        tag = self.own_tag()
        message = Message(self, "iallgather")
        others = [(self.rank + step) % self.size for step in range(1, self.size)]
        for rank in reversed(others):
            message.receive(rows[rank], rank, tag)
        for rank in others:
            message.send(mine, rank, tag)
        rows[self.rank] = mine
        return message

    def duplicate(self) -> Communicator:
        try:
            return MPICommunicator(self.comm.Dup())
        except library().Exception as error:
            raise translated(error, "duplicate") from None

    def split(self, color: int | None, key: int) -> Communicator | None:
        try:
            comm = self.comm.Split(library().UNDEFINED if color is None else color, key)
        except library().Exception as error:
            raise translated(error, "split") from None
        return None if comm == library().COMM_NULL else MPICommunicator(comm)

    def abort(self, status: int = 1) -> NoReturn:
        flush()
        library().COMM_WORLD.Abort(status)
        os._exit(status)

    @with_ulfm
    def revoke(self) -> None:
        self.comm.Revoke()

    @with_ulfm
    def agree(self, yes: bool) -> bool:
        MPI = library()
        try:
            return bool(self.comm.Agree(int(bool(yes))))
        except MPI.Exception as error:
            if error.Get_error_class() == MPI.ERR_PROC_FAILED:          # somebody has died: the same answer for all
                return False
            raise

    @with_ulfm
    def shrink(self) -> Communicator:
        comm = self.comm.Shrink()
        until = time.monotonic() + DRAIN
        for message in list(_under_way):                        # of any communicator that was revoked: their arrays will be used again
            if message.communicator.comm.Is_revoked():
                message.drain(until)
        return MPICommunicator(comm)


def settled(x: Array) -> None:
    """Come back when this thread's stream has done what it was given: MPI knows nothing of streams, and may touch x at once."""
    if elsewhere(x):
        backend.library_of(x).synchronize()


def steps(reach: int) -> list[int]:
    """reach / 2, reach / 4, ..., 1."""
    return [reach >> k for k in range(1, reach.bit_length())]
