"""An emulated wire delivers what was sent, later; how much later follows from bytes and rate alone."""

import time
from itertools import pairwise

import numpy as np
import pytest
from trained import Case, alone, differences, together

from minidl.errors import ArgumentError, ExchangeError
from minidl.parallel import EmulatedWire, local

KILO = np.zeros(1000, np.uint8)


def to_first(communicator):
    """Every rank but the first sends it a kilobyte."""
    if communicator.rank:
        communicator.wait([communicator.isend(KILO, 0)])
    else:
        communicator.wait([communicator.irecv(np.empty_like(KILO), rank) for rank in range(1, communicator.size)])
    return time.perf_counter()


class TestEmulatedWire:
    def test_takes_as_long_as_the_bytes_at_its_rate(self):
        wire = EmulatedWire(rate=2e4)
        started = time.perf_counter()
        ended = local.run(lambda communicator: to_first(wire.of(communicator)), 2)
        assert min(ended) - started >= 0.05
        assert [event.end - event.start for event in wire.events()] == [pytest.approx(0.05)] * 2

    def test_carries_one_message_after_the_other_each_way(self):
        """The receiver's wire is what limits, and those of the senders are not busy for longer than with their own."""
        wire = EmulatedWire(rate=1e5)
        local.run(lambda communicator: to_first(wire.of(communicator)), 4)
        into = [event for event in wire.events() if event.rank == 0]
        assert [event.thread for event in into] == ["receives"] * 3
        assert all(later.start >= earlier.end for earlier, later in pairwise(into))
        assert {event.name for event in into} == {"from rank 1", "from rank 2", "from rank 3"}
        assert all(event.thread == "sends" and event.end - event.start == pytest.approx(0.01) for event in wire.events() if event.rank)

    def test_both_ways_are_free_of_each_other(self):
        wire, into = EmulatedWire(rate=1e4), {}

        def swap(communicator):
            slow, into[communicator.rank] = wire.of(communicator), np.empty_like(KILO)
            slow.wait([slow.isend(KILO, 1 - slow.rank), slow.irecv(into[slow.rank], 1 - slow.rank)])

        local.run(swap, 2)
        starts = [event.start for event in wire.events()]
        assert max(starts) - min(starts) < 0.09                     # and not 0.1, one after the other

    def test_counts_what_was_sent_and_forgets(self):
        wire = EmulatedWire(rate=1e7)
        local.run(lambda communicator: to_first(wire.of(communicator)), 3)
        assert wire.bytes_sent == {1: 1000, 2: 1000}
        began = wire.events()[0].start
        assert wire.events(since=began)[0].start == 0
        wire.forget()
        assert not wire.bytes_sent and not wire.events()

    def test_short_messages_pass_at_once(self):
        wire = EmulatedWire(rate=1.0)

        def work(communicator):
            slow, x = wire.of(communicator), np.zeros(10)
            slow.wait([slow.isend(x, 1) if slow.rank == 0 else slow.irecv(x, 0)])

        local.run(work, 2, patience=10)
        assert not wire.events() and wire.bytes_sent == {0: 80}

    def test_groups_have_messages_of_their_own_and_the_same_wires(self):
        wire = EmulatedWire(rate=1e6)

        def work(communicator):
            slow = wire.of(communicator)
            twin, half = slow.duplicate(), slow.split(slow.rank % 2, slow.rank)
            out, first, second = np.full((2, 500), [[1.0], [2.0]]), np.empty(500), np.empty(500)
            if slow.rank == 2:
                slow.wait([twin.isend(out[0], 0), half.isend(out[1], 0)])
            if slow.rank == 0:
                slow.wait([half.irecv(second, 1), twin.irecv(first, 2)])
                return first[0], second[0]

        assert local.run(work, 4)[0] == (1, 2)
        assert {(event.rank, event.thread) for event in wire.events()} == {(2, "sends"), (0, "receives")}

    @pytest.mark.parametrize("rate", [0, -1.0, float("nan")])
    def test_refuses_a_rate_that_is_none(self, rate):
        with pytest.raises(ArgumentError, match="rate"):
            EmulatedWire(rate)

    def test_what_does_not_fit_is_told(self):
        wire = EmulatedWire(rate=1e6)

        def work(communicator):
            slow = wire.of(communicator)
            slow.wait([slow.isend(KILO, 1) if slow.rank == 0 else slow.irecv(np.empty(3), 0)])

        with pytest.raises(ExchangeError, match="room for 24"):
            local.run(work, 2)


@pytest.mark.parametrize("exchange, overlap", [("allreduce", "none"), ("allreduce", "forward"), ("master-worker", "backward")])
def test_training_over_it_gives_the_same_bits(exchange, overlap):
    case, wire = Case(), EmulatedWire(rate=1e6)
    found = local.run(lambda communicator: together(wire.of(communicator), case, exchange, overlap=overlap, chunk=300), 3, patience=20)
    assert [differences(alone(case, 3), each) for each in found] == [[]] * 3
    assert len(wire.bytes_sent) == 3
