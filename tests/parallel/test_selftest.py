"""The test of what is between the ranks: what it shows, and that it finds what is wrong."""

import re
import time

import numpy as np
import pytest
from ranks import needs_mpi, run_mpi

from minidl.errors import ExchangeError, RankLost
from minidl.parallel import local
from minidl.parallel.communicator import Request
from minidl.parallel.selftest import SIZES, amount, compare, fill, micro, pace, selftest, table

SMALL = 8, 1024, 3072


def shown(ranks, prepare=lambda communicator: communicator, **options):
    """What selftest prints on so many threads, of communicators that somebody has prepared."""
    lines = []
    local.run(lambda c: selftest(prepare(c), lines.append, **{"sizes": SMALL, "budget": 0.5} | options), ranks, patience=20)
    return "\n".join(lines)


def cells(text):
    """What the table has for each size: (microseconds, bandwidth) of each operation, as they stand there."""
    lines = text.split("\n")
    start = next(k for k, line in enumerate(lines) if line.strip().startswith("size "))
    return {line[:7].strip(): [(line[at:at + 12].strip(), line[at + 12:at + 24].strip()) for at in range(7, len(line), 24)]
            for line in lines[start + 1:lines.index("", start)]}


class Between:
    """A communicator with a fault between two ranks."""

    def __init__(self, communicator):
        self.communicator = communicator

    def __getattr__(self, name):
        return getattr(self.communicator, name)


class Damaged(Between):
    """What rank 1 sends to rank 2 has another last byte, if it is long enough."""

    def isend(self, x, to, tag=0):
        if (self.rank, to) == (1, 2) and x.nbytes > 100:
            x = x.copy()
            x[-1] ^= 1
        return self.communicator.isend(x, to, tag)


class Cut(Between):
    """Nothing comes to rank 0 from rank 2."""

    def isend(self, x, to, tag=0):
        return self.communicator.isend(x, to, tag + 50 * ((self.rank, to) == (2, 0)))


class Confused(Between):
    """A broadcast that gives a rank its own x."""

    def ibroadcast(self, x, root=0):
        return self.communicator.ibroadcast(x.copy(), root)


class Stubborn(Between):
    def agree(self, yes):
        self.communicator.agree(yes)
        return True


class Slow(Between):
    """A wire of 1 MB/s: each array takes its time when it is waited for."""

    def slowed(self, request, nbytes):
        end = time.monotonic() + nbytes / 1e6

        class Late(Request):
            def done(self):
                return time.monotonic() > end and request.done()

        return Late()

    def irecv(self, x, source, tag=0):
        return self.slowed(self.communicator.irecv(x, source, tag), x.nbytes)

    def ibroadcast(self, x, root=0):
        return self.slowed(self.communicator.ibroadcast(x, root), x.nbytes)

    def iallgather(self, x, out):
        return self.slowed(self.communicator.iallgather(x, out), out.nbytes - x.nbytes)


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_the_table_has_each_operation_and_size(ranks):
    text = shown(ranks)
    rows = cells(text)
    assert [*rows] == ["8 B", "1 KiB", "3 KiB"]
    for row in rows.values():
        assert len(row) == 4
        for k, (micros, speed) in enumerate(row):
            assert float(micros.replace(",", "")) > 0
            assert re.fullmatch(r"[\d.]+ [kMG]?B/s", speed) if ranks > 1 or k < 2 else speed == "-"
    assert f"{ranks} rank" in text and "not measured" not in text


def test_only_rank_0_prints():
    told = []
    local.run(lambda c: selftest(c, lambda text: told.append(c.rank), sizes=SMALL, budget=0.2), 3)
    assert set(told) == {0}


def test_a_wrong_byte_is_found_and_the_two_ranks_are_named():
    with pytest.raises(ExchangeError, match=r"rank 2 got 64 KiB from rank 1, and they are not what was sent\n +first_wrong_byte: 65535"):
        shown(3, Damaged)


def test_what_does_not_arrive_is_said_by_who_waits_for_it():
    with pytest.raises(ExchangeError, match=r"rank 0 has not received 8 B from rank 2 within 0.3 s\n.*firewall"):
        shown(3, Cut, patience=0.3)


def test_a_broadcast_that_brings_nothing():
    with pytest.raises(ExchangeError, match=r"rank [12] got 8 B in a broadcast from rank 0"):
        shown(3, Confused)


def test_ranks_that_do_not_agree():
    with pytest.raises(ExchangeError, match="agree on"):
        shown(2, Stubborn)


def test_a_rank_that_has_died():
    def function(communicator):
        if communicator.rank == 1:
            communicator.die()
        selftest(communicator, lambda text: None)

    with pytest.raises(RankLost, match="rank 1 has died"):
        local.run(function, 2)


def test_on_a_slow_wire_large_sizes_are_left_out():
    """At 1 MB/s the largest message would take a minute; the budget is 6 s."""
    started = time.monotonic()
    text = shown(2, Slow, sizes=SIZES, budget=6)
    rows = cells(text)
    assert [*rows] == [amount(size) for size in SIZES]
    assert all(cell == ("-", "-") for cell in rows["64 MiB"]) and "not measured" in text
    speed, unit = rows["64 KiB"][1][1].split()
    assert 100 < float(speed) * {"kB/s": 1, "MB/s": 1000}[unit] <= 1001             # of the ring
    assert time.monotonic() - started < 60


def test_amounts_and_paces_are_short():
    assert [amount(size) for size in (0, 8, 1023, 1024, 65536, 1 << 20, 3 << 29)] == \
        ["0 B", "8 B", "1023 B", "1 KiB", "64 KiB", "1 MiB", "1.5 GiB"]
    assert [pace(speed) for speed in (0, 3.21, 5e3, 1.234e6, 999.4e6, 999.6e6, 12e9)] == \
        ["-", "3.21 B/s", "5 kB/s", "1.23 MB/s", "999 MB/s", "1 GB/s", "12 GB/s"]
    assert [micro(seconds) for seconds in (0, 7.31e-6, 99.94e-6, 99.96e-6, 1.24e-3)] == ["-", "7.3", "99.9", "100", "1,240"]


def test_columns_stand_under_each_other():
    text = table(["message", "ring"], [8, 1 << 20],
                 {("message", 8): (1e-6, 8e6), ("ring", 8): (2.5, 3.2), ("message", 1 << 20): (1e-3, 1e9)})
    assert text == """\
                 message                  ring
   size          µs   bandwidth          µs   bandwidth
    8 B         1.0      8 MB/s   2,500,000     3.2 B/s
  1 MiB       1,000      1 GB/s           -           -"""


def test_no_pair_and_no_place_have_the_same_bytes():
    seen = {fill(np.empty(8, np.uint8), source, to).tobytes() for source in range(5) for to in range(5)}
    assert len(seen) == 25
    long = fill(np.empty(1 << 18, np.uint8), 0, 1)
    assert not any(np.array_equal(long[:1 << 16], row) for row in long.reshape(4, -1)[1:])
    np.testing.assert_array_equal(long[:65_521], long[65_521:2 * 65_521])


@pytest.mark.parametrize("at", [0, 65_520, 65_521, 199_999])
def test_each_byte_is_compared(at):
    x = fill(np.empty(200_000, np.uint8), 1, 2)
    compare(x, 1, 2, "", 0)
    x[at] ^= 4
    with pytest.raises(ExchangeError, match=f"first_wrong_byte: {at}$"):
        compare(x, 1, 2, "from rank 1", 2)


@needs_mpi
def test_on_processes():
    ran = run_mpi(["-m", "minidl.parallel.selftest"], 3, ulfm=True)
    assert (ran.status, ran.left) == (0, []), ran
    assert "3 ranks on 1 host" in ran.out and "allgather" in ran.out and "all 3 pairs" in ran.out and "the others can go on" in ran.out
