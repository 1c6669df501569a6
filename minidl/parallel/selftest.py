"""What is between the ranks: does every message arrive whole, and how fast are they?

`python -m minidl.launch --selftest -n 4` runs this on the hosts and the network that training would use. First everyone sends to everyone,
and groups are tried; then each operation is timed at growing sizes, its results compared to the byte. Large sizes are left out where
they would take the whole beyond 10 s. Nothing here is trained; what an exchange does with the wire is measured by scripts/bench_exchange.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from minidl.errors import ExchangeError, RankLost
from minidl.parallel import ending, mpi
from minidl.parallel.communicator import NAP, Communicator, Request

SIZES = 8, 1 << 10, 64 << 10, 1 << 20, 8 << 20, 64 << 20
BUDGET = 3.0                # seconds for all measurements; MPI's start, and the other tests, come to them
SMALL = 64 << 10            # bytes that pass through any wire in no time
REPEATS = 100               # of one measurement, at most
PATIENCE = 10.0             # seconds until something that has not arrived is an error
NOTHING = "-"               # in the table

Waiting = tuple[Request, str]               # and what has gone wrong if it is never done
Print = Callable[[str], object]


def selftest(communicator: Communicator, print: Print = print, *, sizes: Iterable[int] = SIZES, budget: float = BUDGET,
             patience: float = PATIENCE) -> None:
    """Test and measure what is between the ranks; rank 0 prints a table of microseconds and bandwidths.

    sizes: in bytes, growing. budget: seconds for the measurements; patience: seconds until what has not arrived is an error.
    ExchangeError names the two ranks between which something does not arrive, or arrives wrong.
    """
    say: Print = print if communicator.rank == 0 else lambda text: None
    meter = Meter(communicator, patience)
    introduce(communicator, say)
    say(f"messages    {meter.everyone_to_everyone()}")
    say(f"groups      {meter.groups()}\n")
    operations = {"message": meter.message, "ring": meter.ring, "broadcast": meter.broadcast, "allgather": meter.allgather}
    cells: dict[tuple[str, int], tuple[float, float]] = {}
    sizes, spent = list(sizes), 0.0
    for k, (name, operation) in enumerate(operations.items()):
        share = (budget - spent) / (len(operations) - k)
        per_byte = 0.0
        for size in sizes:
            if size > SMALL and per_byte * size > share:
                break
            seconds, pace, least, total = meter.time(operation, size, share / 6)
            cells[name, size] = seconds, pace
            share, spent, per_byte = share - total, spent + total, least / size
    say(table(list(operations), sizes, cells))
    say(legend(communicator.size, len(cells) < len(sizes) * len(operations)))


def introduce(communicator: Communicator, say: Print) -> None:
    """Which ranks are where."""
    hosts: dict[str, list[str]] = {}
    for rank, name in enumerate(communicator.gather_bytes(socket.gethostname().encode())):
        hosts.setdefault(name.decode(), []).append(str(rank))
    ranks = f"{communicator.size} ranks" if communicator.size > 1 else "1 rank"
    say(f"{ranks} on {len(hosts)} hosts" if len(hosts) > 1 else f"{ranks} on 1 host")
    width = max(len(host) for host in hosts)
    for host, those in hosts.items():
        say(f"  {host:<{width}}  rank{'s' if len(those) > 1 else ''} {', '.join(those)}")
    say("")


@dataclass
class Trial:
    """An operation that can be timed. once: do it; check: compare what came; bytes: what a rank then has sent or received, the larger of
    the two; messages: so many come one after another."""

    once: Callable[[], None]
    check: Callable[[], None]
    bytes: float
    messages: int = 1


class Meter:
    """The operations of a communicator, each of them checked and in a form that can be timed."""

    def __init__(self, communicator: Communicator, patience: float):
        self.communicator, self.patience = communicator, patience
        self.rank, self.size = communicator.rank, communicator.size
        self.kept = [np.empty(0, np.uint8), np.empty(0, np.uint8)]

    def memory(self, which: int, size: int) -> np.ndarray:
        """Zeros, in memory that is used again and again: where it is new, most of the time would go into its first use."""
        if len(self.kept[which]) < size:
            self.kept[which] = np.empty(size, np.uint8)
        x = self.kept[which][:size]
        x.fill(0)
        return x

    def arrive(self, waiting: list[Waiting]) -> None:
        """Wait for them all, as an exchange would, but not for ever."""
        deadline, looks = time.monotonic() + self.patience, 0
        while True:
            waiting = [(request, words) for request, words in waiting if not self.over(request, words)]
            if not waiting:
                return
            if time.monotonic() > deadline:
                raise ExchangeError(f"selftest: {waiting[0][1]} within {self.patience:g} s",
                                    hint="Is a firewall between their hosts, or do they talk over an interface that does not connect them? "
                                         "With Open MPI: --mca btl_tcp_if_include eth0")
            looks += 1
            time.sleep(0 if looks < 20 else NAP)

    def over(self, request: Request, words: str) -> bool:
        try:
            return request.done()
        except RankLost as error:
            raise RankLost(f"selftest: {words}: {error}") from None
        except ExchangeError as error:
            raise ExchangeError(f"selftest: {words}: {error}") from None

    def receive(self, x: np.ndarray, source: int, tag: int = 0) -> Waiting:
        return self.communicator.irecv(x, source, tag), f"rank {self.rank} has not received {amount(len(x))} from rank {source}"

    def send(self, x: np.ndarray, to: int, tag: int = 0) -> Waiting:
        return self.communicator.isend(x, to, tag), f"rank {self.rank} could not send {amount(len(x))} to rank {to}"

    def meet(self) -> None:
        """A barrier that does not wait for ever."""
        out = np.zeros((self.size, 1), np.uint8)
        request = self.communicator.iallgather(np.zeros(1, np.uint8), out)
        self.arrive([(request, f"rank {self.rank} has not met the others")])

    # Correctness

    def everyone_to_everyone(self) -> str:
        """A small and a larger message for each pair of ranks, itself included."""
        lengths = 8, 64 << 10
        for tag, length in enumerate(lengths):
            rooms = [np.zeros(length, np.uint8) for _ in range(self.size)]
            waiting = [self.receive(room, source, tag) for source, room in enumerate(rooms)]
            waiting += [self.send(fill(np.empty(length, np.uint8), self.rank, to), to, tag) for to in range(self.size)]
            self.arrive(waiting)
            for source, room in enumerate(rooms):
                compare(room, source, self.rank, f"from rank {source}", self.rank)
        self.meet()
        pairs = ["from the rank to itself", "between the two ranks"][self.size - 1:] or \
            [f"between all {self.size * (self.size - 1) // 2} pairs of ranks"]
        return f"{' and '.join(amount(length) for length in lengths)} {pairs[0]}: as they were sent"

    def groups(self) -> str:
        """Duplicate, split and agree."""
        start = time.perf_counter()
        if self.communicator.duplicate().allgather(np.array(self.rank)).tolist() != [*range(self.size)]:
            raise ExchangeError(f"selftest: rank {self.rank} has a duplicate with other ranks")
        part = self.communicator.split(self.rank % 2, -self.rank)
        wanted = [rank for rank in reversed(range(self.size)) if rank % 2 == self.rank % 2]
        if part is None or part.allgather(np.array(self.rank)).tolist() != wanted:
            raise ExchangeError(f"selftest: rank {self.rank} has a wrong part of the ranks")
        ulfm = "agree"
        try:
            answers = self.communicator.agree(True), self.communicator.agree(self.rank > 0)
        except ExchangeError:
            answers, ulfm = (True, False), "no agree (this MPI has no ULFM: no --elastic)"
        if answers != (True, False):
            raise ExchangeError(f"selftest: rank {self.rank} was told that the ranks agree on {answers}, not on (True, False)")
        return f"duplicate, split, {ulfm}: as they should be, {1e3 * (time.perf_counter() - start):.1f} ms"

    # Time

    def time(self, operation: Callable[[int], Trial], size: int, share: float) -> tuple[float, float, float, float]:
        """Seconds of one operation; its bytes a second; the seconds that all this takes at the least, and those that it took.

        share: seconds that repeats may take.
        """
        start = time.perf_counter()
        trial, repeats = operation(size), 1
        for attempt in range(2):                            # the first is slower: connections are made, memory is touched
            self.meet()
            began = time.perf_counter()
            for _ in range(repeats):
                trial.once()
            seconds = self.slowest(time.perf_counter() - began) / repeats
            if attempt == 0:
                trial.check()
                repeats = max(1, min(REPEATS, int(share / seconds)))
        trial.check()
        total = self.slowest(time.perf_counter() - start)
        return seconds / trial.messages, trial.bytes * trial.messages / seconds, total - (repeats - 1) * seconds, total

    def slowest(self, seconds: float) -> float:
        """Of all ranks: the same number for everyone, so that all decide alike."""
        return float(self.communicator.allgather(np.array(seconds)).max())

    def message(self, size: int) -> Trial:
        """From rank 0 to the last one and back."""
        last = self.size - 1
        x, room = fill(self.memory(0, size), 0, last), self.memory(1, size)

        def once() -> None:
            if last == 0:
                self.arrive([self.receive(room, 0), self.send(x, 0)])
            elif self.rank == 0:
                self.arrive([self.send(x, last)])
                self.arrive([self.receive(room, last)])
            elif self.rank == last:
                self.arrive([self.receive(room, 0)])
                self.arrive([self.send(room, 0)])

        def check() -> None:
            if self.rank in (0, last):
                compare(room, 0, last, f"from rank {last - self.rank}", self.rank)

        return Trial(once, check, size, 2 if last else 1)

    def ring(self, size: int) -> Trial:
        """Everyone to the next, at the same time."""
        after, before = (self.rank + 1) % self.size, (self.rank - 1) % self.size
        x, room = fill(self.memory(0, size), self.rank, after), self.memory(1, size)

        def once() -> None:
            self.arrive([self.receive(room, before), self.send(x, after)])

        return Trial(once, lambda: compare(room, before, self.rank, f"from rank {before}", self.rank), size)

    def broadcast(self, size: int) -> Trial:
        """From rank 0 to all. It is over when the last has answered."""
        x = self.memory(0, size)
        if self.rank == 0:
            fill(x, 0, 0)

        def once() -> None:
            self.arrive([(self.communicator.ibroadcast(x), f"rank {self.rank} has not got the broadcast of {amount(size)} from rank 0")])
            self.meet()

        return Trial(once, lambda: compare(x, 0, 0, "in a broadcast from rank 0", self.rank), size if self.size > 1 else 0)

    def allgather(self, size: int) -> Trial:
        """A part from everyone to everyone; together they have this size, or one byte each."""
        part = max(1, size // self.size)
        x, out = fill(self.memory(0, part), self.rank, self.rank), self.memory(1, self.size * part).reshape(self.size, part)

        def once() -> None:
            self.arrive([(self.communicator.iallgather(x, out), f"rank {self.rank} has not got all parts of {amount(part)}")])

        def check() -> None:
            for source, row in enumerate(out):
                compare(row, source, source, f"in an allgather from rank {source}", self.rank)

        return Trial(once, check, part * (self.size - 1))


def pattern(source: int, to: int) -> np.ndarray:
    """Bytes that only this pair of ranks sends; they are repeated. Their number is a prime: no piece of a message looks like the next."""
    return np.random.default_rng((source, to)).integers(0, 256, 65_521, np.uint8)


def fill(x: np.ndarray, source: int, to: int) -> np.ndarray:
    """Write what this pair sends into x, and give it."""
    block = pattern(source, to)
    for start in range(0, len(x), len(block)):
        x[start:start + len(block)] = block[:len(x) - start]
    return x


def compare(x: np.ndarray, source: int, to: int, words: str, rank: int) -> None:
    """ExchangeError unless what came is what this pair sends."""
    block = pattern(source, to)
    for start in range(0, len(x), len(block)):
        piece = x[start:start + len(block)]
        wrong = np.flatnonzero(piece != block[:len(piece)])
        if len(wrong):
            raise ExchangeError(f"selftest: rank {rank} got {amount(len(x))} {words}, and they are not what was sent",
                                first_wrong_byte=start + int(wrong[0]))


# What is shown

def amount(size: float) -> str:
    """Bytes in words: 8 B, 64 KiB."""
    power = min(3, (int(size).bit_length() - 1) // 10) if size >= 1 else 0
    return f"{size / 1024**power:.4g} {('B', 'KiB', 'MiB', 'GiB')[power]}"


def pace(speed: float) -> str:
    """Bytes a second in words: 12.3 MB/s; nothing for none."""
    for unit in ("B/s", "kB/s", "MB/s"):
        if speed < 999.5:
            return f"{speed:.3g} {unit}" if speed else NOTHING
        speed /= 1000
    return f"{speed:.3g} GB/s"


def table(names: list[str], sizes: list[int], cells: dict[tuple[str, int], tuple[float, float]]) -> str:
    """A row for each size, and for each operation its time and its bandwidth."""
    rows = [f"{'':>7}" + "".join(f"   {name:^21}" for name in names).rstrip(),
            f"{'size':>7}" + f"   {'µs':>9}   {'bandwidth':>9}" * len(names)]
    for size in sizes:
        row = f"{amount(size):>7}"
        for name in names:
            seconds, speed = cells.get((name, size), (0.0, 0.0))
            row += f"   {micro(seconds):>9}   {pace(speed):>9}"
        rows.append(row)
    return "\n".join(rows)


def micro(seconds: float) -> str:
    """Microseconds in words: 7.3, 1,240; nothing for none."""
    value = 1e6 * seconds
    return NOTHING if not value else f"{value:,.0f}" if value >= 99.95 else f"{value:.1f}"


def legend(ranks: int, cut: bool) -> str:
    """What the columns mean."""
    return "\n".join(["", f"message    from rank 0 to rank {ranks - 1}, one way",
                      "ring       every rank sends to the next while it receives from the one before",
                      "broadcast  from rank 0, until all ranks have it and know that of each other",
                      "allgather  a part from every rank to every other; the size is that of all parts",
                      *([f"{NOTHING}          not measured: all of it would take too long"] if cut else [])])


def main() -> None:
    """On each rank that a launcher has started."""
    ending.begin()
    world = mpi.world()
    with ending.end_together(world):
        selftest(world)
        if world.rank == 0:
            library = mpi.library().Get_library_version().split(",")[0].split("\n")[0].strip("\0 ")
            print(f"\n{library}; when a process dies, "
                  f"{'the others can go on' if mpi.tolerant() else 'all end (unless started with mpiexec --with-ft ulfm)'}", flush=True)
    with suppress(ExchangeError):
        mpi.leave()


if __name__ == "__main__":
    main()
