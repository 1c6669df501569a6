"""Communicator: threads and processes keep the same promises, to the byte and to the error."""

import contextlib
import contextvars
import itertools
import threading
import time

import numpy as np
import pytest
from ranks import die, needs_mpi, on_ranks, run_mpi

from minidl.errors import ArgumentError, ExchangeError, MissingExtra, RankLost
from minidl.parallel import communicator as interface
from minidl.parallel import local, mpi
from minidl.parallel.local import Killed

DTYPES = "?", "i1", "u2", "i4", "i8", "f2", "f4", "f8", "c8", "c16", "M8[s]", [("index", "i4"), ("value", "f4")]
SIZES = 0, 1, 2, 3, 7, 100, 1249, 1250, 1251, 2500, 3333, 9999, 10_000, 10_001, 20_000, 45_678


def numbers(rank, size, dtype="f8"):
    """What only this rank would send."""
    return np.random.default_rng((rank, size)).integers(0, 256, size * np.dtype(dtype).itemsize, np.uint8).view(dtype)


def same(x, y):
    assert x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes()


def after(communicator):
    return (communicator.rank + 1) % communicator.size


def before(communicator):
    return (communicator.rank - 1) % communicator.size


class short_messages:
    """For a while arrays of more than 10,000 bytes (or less) go in several messages. For ranks that are threads of this process, too."""

    lock = threading.Lock()
    users = 0

    def __init__(self, largest=10_000):
        self.largest = largest

    def __enter__(self):
        with self.lock:
            short_messages.users += 1
            interface.LARGEST = self.largest

    def __exit__(self, *_):
        with self.lock:
            short_messages.users -= 1
            if not self.users:
                interface.LARGEST = 64 << 20


# Messages

@on_ranks(1, 2, 3, 4)
def test_a_message_is_the_bytes_of_any_array(communicator):
    for dtype, size in itertools.product(DTYPES, (0, 1, 5)):
        sent, got = numbers(communicator.rank, size, dtype), np.zeros(size, dtype)
        communicator.wait([communicator.isend(sent, after(communicator)), communicator.irecv(got, before(communicator))])
        same(got, numbers(before(communicator), size, dtype))


@on_ranks(1, 2)
def test_shapes_are_the_receivers_business(communicator):
    for sent, got in [((), (1,)), ((2, 3), (3, 2)), ((2, 0, 3), ()), ((1,), ())]:
        x, y = np.full(sent, communicator.rank, "f4"), np.full(got, 9, "f4") if sent != (2, 0, 3) else np.empty((0, 7), "f4")
        communicator.wait([communicator.irecv(y, before(communicator)), communicator.isend(x, after(communicator))])
        same(y, np.full(y.shape, before(communicator), "f4"))


@on_ranks(1, 2, 3, 4)
def test_large_arrays_go_in_several_messages(communicator):
    with short_messages():
        communicator.barrier()
        for size in SIZES:
            sent, got = numbers(communicator.rank, size, "u1"), np.zeros(size, "u1")
            communicator.wait([communicator.isend(sent, after(communicator)), communicator.irecv(got, before(communicator))])
            same(got, numbers(before(communicator), size, "u1"))
        communicator.barrier()


@on_ranks(2)
def test_messages_that_really_are_large(communicator):
    """More than goes in one."""
    x = np.resize(np.arange(251, dtype=np.uint8), (64 << 20) + 5)
    if communicator.rank == 0:
        communicator.wait([communicator.isend(x, 1)])
    else:
        got = np.zeros_like(x)
        communicator.wait([communicator.irecv(got, 0)])
        assert (got == x).all()


@on_ranks(1, 2, 3, 4)
def test_messages_of_one_tag_stay_in_order(communicator):
    """In the order of isend and irecv, whichever request is looked at first, whether the message or the room for it comes first."""
    for late in range(2):
        got = np.zeros((20, 1000 * late + 1), "i4")
        receives = [communicator.irecv(row, before(communicator), 5) for row in got] if late else []
        sends = [communicator.isend(np.full(got.shape[1], k, "i4"), after(communicator), 5) for k in range(20)]
        communicator.barrier()
        receives = receives or [communicator.irecv(row, before(communicator), 5) for row in got]
        communicator.wait(reversed(receives))
        communicator.wait(sends)
        np.testing.assert_array_equal(got[:, -1], range(20))


@on_ranks(1, 2, 3, 4)
def test_tags_keep_messages_apart(communicator):
    tags = [*range(50), 2**20, interface.MOST_TAGS - 1, interface.MOST_TAGS]
    got = np.zeros(len(tags), "i8")
    sends = [communicator.isend(np.array(tag), after(communicator), tag) for tag in tags]
    receives = [communicator.irecv(got[k:k + 1], before(communicator), tag) for k, tag in reversed(list(enumerate(tags)))]
    communicator.wait(sends + receives)
    np.testing.assert_array_equal(got, tags)


@on_ranks(1, 2, 3, 4)
def test_everyone_to_everyone_and_to_itself(communicator):
    rank, size = communicator.rank, communicator.size
    got = np.zeros((size, 3))
    requests = [communicator.irecv(got[source], source, rank) for source in range(size)]
    requests += [communicator.isend(np.full(3, 10.0 * rank + to), to, to) for to in range(size)]
    communicator.wait(requests)
    np.testing.assert_array_equal(got[:, 0], [10 * source + rank for source in range(size)])


@on_ranks(2)
def test_done_looks_and_does_not_wait(communicator):
    x = np.zeros(3)
    if communicator.rank == 0:
        request = communicator.irecv(x, 1)
        assert not request.done() and not request.done()
        communicator.barrier()
        while not request.done():
            time.sleep(1e-4)
        assert request.done() and (x == 1).all()
    else:
        communicator.barrier()
        communicator.wait([communicator.isend(np.ones(3), 0)])


@on_ranks(2)
def test_sizes_that_differ_are_told_to_the_receiver(communicator):
    """Short messages: a long one for which there is no room is more than Open MPI can take."""
    with short_messages(1000):
        communicator.barrier()
        for tag, (sent, room) in enumerate(itertools.permutations((0, 3, 1000, 1001, 2000, 3000, 3001), 2)):
            if communicator.rank == 0:
                communicator.isend(np.zeros(sent, "u1"), 1, tag)
            else:
                request = communicator.irecv(np.zeros(room, "u1"), 0, tag)
                with pytest.raises(ExchangeError, match=r"rank 0 sent .* rank 1 has room for"):
                    communicator.wait([request])
                with pytest.raises(ExchangeError):
                    request.done()
            communicator.barrier()


@on_ranks(1, 2)
def test_what_cannot_be_sent_is_said_at_once(communicator):
    square = np.zeros((3, 3))
    frozen = np.zeros(3)
    frozen.flags.writeable = False
    for wrong, words in [(square[:, 1], "ascontiguousarray"), (square.T, "rows"), (np.array([None]), "plain numbers"), ([1.0], "list")]:
        with pytest.raises(ExchangeError, match=words):
            communicator.isend(wrong, 0)
        with pytest.raises(ExchangeError, match=words):
            communicator.ibroadcast(wrong)
    for begin in (communicator.irecv, lambda x, source: communicator.iallgather(np.zeros(0), x)):
        with pytest.raises(ExchangeError, match="written"):
            begin(frozen, 0)
    for begin, peer, tag in itertools.product((communicator.isend, communicator.irecv), (-1, communicator.size), (0,)):
        with pytest.raises(ExchangeError, match="no rank"):
            begin(np.zeros(1), peer, tag)
    with pytest.raises(ExchangeError, match="no tag"):
        communicator.isend(np.zeros(1), 0, -1)
    with pytest.raises(ExchangeError, match="not as large"):
        communicator.iallgather(np.zeros(3), np.zeros((communicator.size + 1, 3)))
    communicator.wait([communicator.isend(frozen, communicator.rank), communicator.irecv(np.empty(3), communicator.rank)])


# Collective operations

@on_ranks(1, 2, 3, 4)
def test_broadcast_from_each_rank(communicator):
    with short_messages():
        communicator.barrier()
        for root, size in itertools.product(range(communicator.size), SIZES):
            x = numbers(root, size, "u2") if communicator.rank == root else np.zeros(size, "u2")
            assert communicator.broadcast(x, root) is x
            same(x, numbers(root, size, "u2"))
        communicator.barrier()


@on_ranks(1, 2, 3, 4)
def test_allgather_has_the_order_of_the_ranks(communicator):
    with short_messages():
        communicator.barrier()
        for size in SIZES:
            rows = communicator.allgather(numbers(communicator.rank, size).reshape(size, 1))
            same(rows, np.stack([numbers(rank, size).reshape(size, 1) for rank in range(communicator.size)]))
        assert communicator.allgather(np.array(communicator.rank)).tolist() == [*range(communicator.size)]
        communicator.barrier()


@on_ranks(2, 3)
def test_allgather_of_a_row_of_its_result(communicator):
    for row, length in itertools.product((communicator.rank, 0, 1), (10, 10**6)):
        out = np.full((communicator.size, length), communicator.rank)
        communicator.wait([communicator.iallgather(out[row], out)])
        np.testing.assert_array_equal(out, np.arange(communicator.size)[:, None].repeat(length, 1))


@on_ranks(1, 2, 3, 4)
def test_bytes_of_any_length(communicator):
    rank, size = communicator.rank, communicator.size
    assert communicator.gather_bytes(b"x" * (rank * 7)) == [b"x" * (k * 7) for k in range(size)]
    assert communicator.gather_bytes(b"") == [b""] * size
    for root in range(size):
        for content in (b"", b"a", bytes(1000)):
            assert communicator.broadcast_bytes(content if rank == root else None, root) == content


@on_ranks(1, 2, 3, 4)
def test_several_collective_operations_at_once(communicator):
    """Begun in the same order everywhere, over in any: from each root a large one, then a small one."""
    rank, size = communicator.rank, communicator.size
    arrays = [np.full(300_000 if k < 4 else 3, k if rank == k % size else -1) for k in range(8)]
    gathered = [np.zeros((size, 10**k), "i4") for k in range(5)]
    requests = []
    for k in range(8):
        requests.append(communicator.ibroadcast(arrays[k], k % size))
        if k < 5:
            requests.append(communicator.iallgather(np.full(10**k, rank, "i4"), gathered[k]))
    communicator.wait(reversed(requests) if rank % 2 else requests)
    assert all((x == k).all() for k, x in enumerate(arrays))
    assert all((x[:, -1] == range(size)).all() for x in gathered)


@on_ranks(1, 2, 3, 4)
def test_messages_may_be_under_way_meanwhile(communicator):
    """Also with tags and sizes like those of the collective operation."""
    rank, size = communicator.rank, communicator.size
    got = [np.zeros(8) for _ in range(30)]
    receives = [communicator.irecv(x, before(communicator), tag % 3) for tag, x in enumerate(got)]
    total = np.zeros(8)
    for k in range(30):
        sent = communicator.isend(np.full(8, 100.0 * rank + k), after(communicator), k % 3)
        total += communicator.allgather(np.full(8, float(k))).sum(0)
        communicator.broadcast(np.zeros(8), k % size)
        communicator.wait([sent])
    communicator.wait(receives)
    assert (total == size * sum(range(30))).all()
    assert [x[0] for x in got] == [100 * before(communicator) + k for k in range(30)]


@on_ranks(4)
def test_who_passes_on_a_broadcast_may_wait_for_something_else_first(communicator):
    """Rank 2 hears from rank 0 and passes on to rank 3; it waits for rank 3's message, which is sent after the broadcast."""
    x, note = np.full(1000, 1.0 if communicator.rank == 0 else 0.0), np.zeros(1)
    request = communicator.ibroadcast(x)
    if communicator.rank == 3:
        communicator.wait([request])
        communicator.wait([communicator.isend(x[:1].copy(), 2)])
    elif communicator.rank == 2:
        communicator.wait([communicator.irecv(note, 3)])
        assert note == 1
    communicator.wait([request])
    assert (x == 1).all()


@on_ranks(2, 3, 4)
def test_broadcast_and_allgather_of_sizes_that_differ(communicator):
    for wrong in (1, 120):
        if communicator.rank == 1:
            with pytest.raises(ExchangeError, match=r"ibroadcast.*: rank 0 (brings|sent) .* rank 1 has room for"):
                communicator.broadcast(np.zeros(wrong))
        else:
            communicator.broadcast(np.zeros(100))
        with pytest.raises(ExchangeError, match=r"iallgather: rank . (brings|sent)"):
            communicator.allgather(np.zeros(communicator.rank * wrong))
    communicator.barrier()


# Groups

@on_ranks(1, 2, 3, 4)
def test_duplicates_do_not_hear_each_other(communicator):
    first, second = communicator.duplicate(), communicator.duplicate()
    assert (first.rank, first.size) == (communicator.rank, communicator.size)
    got = np.zeros(3)
    requests = [c.irecv(got[k:k + 1], before(c), 7) for k, c in enumerate([communicator, first, second])]
    for k, c in reversed(list(enumerate([communicator, first, second]))):
        requests.append(c.isend(np.array(float(k)), after(c), 7))
    for c in [second, communicator, first]:
        c.wait(requests)
    assert got.tolist() == [0, 1, 2]


@on_ranks(1, 2, 3, 4)
def test_split_by_color_in_the_order_of_keys(communicator):
    rank, size = communicator.rank, communicator.size
    halves = communicator.split(rank % 2, -rank)
    mine = [other for other in reversed(range(size)) if other % 2 == rank % 2]
    assert halves.allgather(np.array(rank)).tolist() == mine and halves.rank == mine.index(rank) and halves.size == len(mine)
    equal = communicator.split(0, 5)
    assert equal.rank == rank
    one = communicator.split(0 if rank == size - 1 else None, 0)
    assert (one is None) == (rank < size - 1) and (one is None or one.size == 1)
    assert halves.split(0, 0).allgather(np.array(rank)).tolist() == mine


@on_ranks(2, 4)
def test_a_thread_of_its_own_on_a_duplicate(communicator):
    """One thread moves messages while the other calls collective operations: as training with overlap does."""
    wire, failures = communicator.duplicate(), []

    def move():
        try:
            for k in range(200):
                x, y = np.full(5000, float(k)), np.zeros(5000)
                requests = [wire.isend(x, after(wire), k % 4), wire.irecv(y, before(wire), k % 4)]
                while not (requests[0].done() and requests[1].done()):
                    time.sleep(1e-4)
                assert (y == k).all()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=move)
    thread.start()
    for k in range(200):
        assert communicator.allgather(np.array(k + communicator.rank)).tolist() == [k + rank for rank in range(communicator.size)]
    thread.join()
    assert not failures, failures
    wire.barrier()


# When something goes wrong

@on_ranks(1, 2, 3, 4)
def test_agree_is_everyones_yes(communicator):
    assert communicator.agree(True) is True
    assert communicator.agree(communicator.rank != 0) is False
    assert communicator.agree(False) is False
    assert communicator.agree(True) is True


@on_ranks(1, 2, 3, 4)
def test_shrink_without_a_death_is_everyone(communicator):
    smaller = communicator.shrink()
    assert (smaller.rank, smaller.size) == (communicator.rank, communicator.size)
    assert smaller.allgather(np.array(communicator.rank)).tolist() == [*range(communicator.size)]
    communicator.barrier()


@on_ranks(2, 3, 4, deaths=True)
def test_revoke_wakes_all_who_wait(communicator):
    """Here nobody dies: but without ULFM, MPI would end the processes for less."""
    other = communicator.duplicate()
    if communicator.rank == 0:
        other.wait([other.irecv(np.zeros(1), rank) for rank in range(1, communicator.size)])       # all have begun
        communicator.revoke()
    else:
        requests = [communicator.irecv(np.zeros(1), 0), communicator.irecv(np.zeros(10**6), 0, 1), communicator.ibroadcast(np.zeros(3))]
        other.wait([other.isend(np.zeros(1), 0)])
        for request in requests:
            with pytest.raises(RankLost):
                communicator.wait([request])
    for operation in (lambda: communicator.barrier(), lambda: communicator.wait([communicator.isend(np.zeros(1), 0)]),
                      lambda: communicator.duplicate(), lambda: communicator.broadcast(np.zeros(2))):
        with pytest.raises(RankLost):
            operation()
    communicator.revoke()
    assert communicator.agree(True) is True and communicator.agree(communicator.rank == 0) is False
    assert communicator.shrink().allgather(np.array(1)).sum() == communicator.size
    other.barrier()


def left_over(communicator, dead):
    """What those who live do, and should find: the new group."""
    communicator.revoke()
    for yes in (True, False, True):
        assert communicator.agree(yes) is False
    smaller = communicator.shrink()
    living = [rank for rank in range(communicator.size) if rank not in dead]
    assert smaller.rank == living.index(communicator.rank) and smaller.size == len(living)
    assert smaller.allgather(np.array(communicator.rank)).tolist() == living
    got = np.zeros(10**6)
    smaller.duplicate().wait([smaller.isend(np.full(10**6, float(communicator.rank)), after(smaller)), smaller.irecv(got, before(smaller))])
    assert (got == living[before(smaller)]).all()
    assert smaller.agree(True) is True                              # nobody dies again before all have come here
    return smaller


@on_ranks(2, 3, 4, deaths=True)
def test_the_living_go_on(communicator):
    """After a death: messages, then everything again among those who are left."""
    if communicator.rank == 1:
        die(communicator)
    with pytest.raises(RankLost, match=r"rank 1 has died|revoked"):
        communicator.wait([communicator.irecv(np.zeros(1), 1)])
    with pytest.raises(RankLost):
        communicator.barrier()
    left_over(communicator, {1})


@on_ranks(3, 4, deaths=True)
def test_rank_0_dies_in_the_middle_of_large_messages(communicator):
    rank, size = communicator.rank, communicator.size
    got = np.zeros((size, 10**6))
    with contextlib.suppress(RankLost):                             # some ranks may have got everything from it
        requests = [communicator.irecv(got[other], other) for other in range(size)]
        requests += [communicator.isend(np.full(10**6, 1.0 + rank), other) for other in range(size)]
        requests += [communicator.ibroadcast(np.zeros(10**6), size - 1), communicator.iallgather(np.zeros(10**5), np.zeros((size, 10**5)))]
        if rank == 0:
            die(communicator)
        communicator.wait(requests)
    left_over(communicator, {0})
    assert not [one for one in mpi._under_way if one.communicator is communicator]
    got[:] = 7                                                      # these arrays are left alone now
    time.sleep(0.05)
    assert (got == 7).all()


@on_ranks(4, deaths=True)
def test_one_dies_after_another(communicator):
    if communicator.rank == 3:
        die(communicator)
    with pytest.raises(RankLost):
        communicator.barrier()
    smaller = left_over(communicator, {3})
    if communicator.rank == 0:                                      # what it alone knows of an agreement would die with it
        smaller.wait([smaller.irecv(np.zeros(1), other, 9) for other in (1, 2)])
        die(smaller)
    smaller.wait([smaller.isend(np.zeros(1), 0, 9)])
    with pytest.raises(RankLost):
        smaller.barrier()
    left_over(smaller, {0})


@on_ranks(4, deaths=True)
def test_death_while_the_others_agree_and_shrink(communicator):
    if communicator.rank == 2:
        communicator.wait([communicator.isend(np.zeros(1), 1)])
        time.sleep(0.2)                                             # the others are waiting in agree
        die(communicator)
    if communicator.rank == 1:
        communicator.wait([communicator.irecv(np.zeros(1), 2)])
    assert communicator.agree(True) is False
    left_over(communicator, {2})


# Threads only: deaths to the call, patience, errors

def session(communicator):
    """A little of everything; whoever sees a death goes on with those who live, until all are through."""
    while True:
        rank, size = communicator.rank, communicator.size
        pair = wire = None
        try:
            pair, wire = communicator.split(rank % 2, 0), communicator.duplicate()
            fine = True
        except RankLost:
            communicator.revoke()
            fine = False
        if fine := communicator.agree(fine):                            # before that, a group may be there for some, and not for others
            try:
                x, y = np.full(4, float(rank)), np.zeros(4)
                wire.wait([wire.isend(x, (rank + 1) % size, 2), wire.irecv(y, (rank - 1) % size, 2)])
                assert (y == (rank - 1) % size).all()
                total = communicator.allgather(pair.allgather(np.ones(1)).sum()).sum()
                wire.broadcast(x, size - 1)
                assert x[0] == size - 1 and total == sum(len(range(k % 2, size, 2)) for k in range(size))
            except RankLost:
                for group in (communicator, pair, wire):
                    group.revoke()
                fine = False
            fine = communicator.agree(fine)
        if fine:
            return size
        communicator = communicator.shrink()


def test_death_at_each_call():
    """Whichever of three ranks dies before whichever of its calls, the other two come to the same end."""
    reached = set()
    for victim, number in itertools.product(range(3), range(40)):
        def kill(rank, n, victim=victim, number=number):
            if (rank, n) == (victim, number):
                reached.add(number)
                raise Killed

        found = local.run(session, 3, on_call=kill)
        if number in reached:
            assert found[victim] is None
            assert {found[rank] for rank in range(3) if rank != victim} == {2}, (victim, number, found)
        else:
            assert found == [3, 3, 3]
            reached.discard(number)
    assert len(reached) >= 6


def test_two_deaths_at_all_pairs_of_calls():
    for first, second in itertools.product(range(9), range(0, 20, 3)):
        found = local.run(session, 4, on_call=lambda rank, n: killing((rank, n) in ((1, first), (2, second))))     # noqa: B023
        assert found[0] == found[3] and found[0] in (2, 3, 4)


def killing(yes):
    if yes:
        raise Killed


def test_the_dead_are_dead_in_all_their_threads():
    """A rank that dies in its communication thread dies in its own, too."""
    seen = []

    def function(communicator):
        wire = communicator.duplicate()
        if communicator.rank == 0:
            def move():
                try:
                    wire.die()
                except Killed:
                    seen.append("thread")
            thread = threading.Thread(target=move)
            thread.start()
            thread.join()
            communicator.isend(np.zeros(1), 1)
            seen.append("wrong")
        with pytest.raises(RankLost):
            communicator.wait([communicator.irecv(np.zeros(1), 0)])
        return communicator.shrink().size

    assert local.run(function, 2) == [None, 1] and seen == ["thread"]


def test_what_was_sent_before_a_death_arrives():
    def function(communicator):
        if communicator.rank == 0:
            communicator.isend(np.ones(2), 1)
            raise Killed
        while True:
            try:
                communicator.isend(np.zeros(1), 0)                  # until it is known
            except RankLost:
                break
        x = np.zeros(2)
        communicator.wait([communicator.irecv(x, 0)])
        with pytest.raises(RankLost):
            communicator.wait([communicator.irecv(x, 0)])
        return x.tolist()

    assert local.run(function, 2) == [None, [1, 1]]


@pytest.mark.parametrize("early", [False, True])
def test_what_was_sent_may_be_changed_once_that_is_done(early):
    def function(communicator):
        x, ready = np.arange(5.0), communicator.duplicate()
        if communicator.rank == 1:
            got = np.zeros(5)
            if early:
                request = communicator.irecv(got, 0)
                ready.barrier()
            ready.barrier()
            communicator.wait([request if early else communicator.irecv(got, 0)])
            return got.tolist()
        if early:
            ready.barrier()
        assert communicator.isend(x, 1).done()
        x[:] = -1
        ready.barrier()

    assert local.run(function, 2)[1] == [0, 1, 2, 3, 4]


def test_calls_are_counted_by_rank():
    calls = []
    local.run(lambda c: (c.barrier(), c.duplicate().barrier(), c.agree(True)), 2, on_call=lambda rank, n: calls.append((rank, n)))
    assert sorted(calls) == [(rank, n) for rank in range(2) for n in range(4)]


def test_threads_that_all_wait_learn_who_waits_for_what():
    def function(communicator):
        communicator.wait([communicator.irecv(np.zeros(2), 1 - communicator.rank, 10 + communicator.rank)])

    with pytest.raises(ExchangeError, match=r"(?s)nothing has moved.*rank 0: a message of rank 1 with tag 10 .16 bytes.*"
                                            r"rank 1: a message of rank 0 with tag 11"):
        local.run(function, 2, patience=0.2)


def test_polling_learns_it_too():
    def function(communicator):
        request = communicator.irecv(np.zeros(2), 1 - communicator.rank)
        while not request.done():
            time.sleep(0.001)

    with pytest.raises(ExchangeError, match="nothing has moved"):
        local.run(function, 2, patience=0.2)


@pytest.mark.parametrize("wait", [lambda c: c.barrier(), lambda c: c.wait([c.irecv(np.zeros(1), 1, 3)]), lambda c: c.agree(True),
                                  lambda c: c.shrink(), lambda c: c.duplicate(), lambda c: c.broadcast(np.zeros(1), 1)])
def test_nobody_waits_for_who_has_returned(wait):
    with pytest.raises(ExchangeError, match="rank 1 has returned"):
        local.run(lambda communicator: wait(communicator) if communicator.rank == 0 else None, 2)


def test_ranks_at_different_operations():
    with pytest.raises(ExchangeError, match="not at the same operation"):
        local.run(lambda c: c.barrier() if c.rank else c.broadcast(np.zeros(1)), 2)


def test_an_error_ends_all_and_is_the_one_that_is_raised():
    others = []

    def function(communicator):
        if communicator.rank == 2:
            raise ZeroDivisionError("on purpose")
        try:
            communicator.barrier()
        except RankLost as error:
            others.append(str(error))
            raise

    with pytest.raises(ZeroDivisionError, match="on purpose") as caught:
        local.run(function, 4)
    assert caught.value.__notes__ == ["in rank 2"] and len(others) == 3
    assert all("rank 2 ended with ZeroDivisionError" in text for text in others)


def test_an_error_ends_those_who_agree_as_well():
    with pytest.raises(ZeroDivisionError):
        local.run(lambda c: 1 // 0 if c.rank else (c.agree(True), c.shrink()), 2)


def test_abort_ends_all():
    with pytest.raises(ExchangeError, match="rank 1 has ended the run, with status 3"):
        local.run(lambda c: c.abort(3) if c.rank == 1 else c.barrier(), 3)


def test_ctrl_c_ends_all(monkeypatch):
    """It reaches the main thread, while it waits for the ranks."""
    ended = []

    def function(communicator):
        try:
            communicator.wait([communicator.irecv(np.zeros(1), 1 - communicator.rank)])
        except RankLost:
            ended.append(communicator.rank)
            raise

    join, first = threading.Thread.join, iter([True])

    def interrupted(self, timeout=None):
        if next(first, False):
            raise KeyboardInterrupt
        join(self, timeout)

    monkeypatch.setattr(threading.Thread, "join", interrupted)
    with pytest.raises(KeyboardInterrupt):
        local.run(function, 2)
    assert sorted(ended) == [0, 1]


def test_ranks_have_the_callers_context():
    mark = contextvars.ContextVar("mark", default="")
    mark.set("caller's")

    def function(communicator):
        found = mark.get(), np.geterr()["divide"]
        mark.set(f"of rank {communicator.rank}")
        communicator.barrier()
        return *found, mark.get()

    with np.errstate(divide="raise"):
        assert local.run(function, 2) == [("caller's", "raise", "of rank 0"), ("caller's", "raise", "of rank 1")]
    assert mark.get() == "caller's"


def test_there_is_at_least_one_rank():
    with pytest.raises(ArgumentError, match="at least one rank"):
        local.run(lambda communicator: None, 0)


def test_wait_takes_requests_of_other_kinds():
    """Something that is over by itself, with nobody who would wake the thread."""
    class Nap(interface.Request):
        def __init__(self):
            self.end = time.monotonic() + 0.01

        def done(self):
            return time.monotonic() > self.end

    def function(communicator):
        x = np.zeros(1)
        communicator.wait([Nap(), communicator.irecv(x, before(communicator)), communicator.isend(np.ones(1), after(communicator))])
        return x[0]

    assert local.run(function, 2) == [1, 1]


# Processes only

def test_without_mpi4py_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "mpi4py", None)
    with pytest.raises(MissingExtra, match=r"minidl\[mpi\]"):
        mpi.library.__wrapped__()


def test_launchers_are_known_by_what_they_leave(monkeypatch):
    for name in mpi.LAUNCHERS:
        monkeypatch.delenv(name, raising=False)
    assert not mpi.launched()
    for name in mpi.LAUNCHERS:
        with monkeypatch.context() as m:
            m.setenv(name, "0")
            assert mpi.launched()


@pytest.mark.parametrize("size, lengths", [(0, [0]), (1, [1]), (9999, [9999]), (10_000, [10_000]), (10_001, [9872, 129]),
                                           (19_744, [9872, 9872]), (19_745, [9808, 9808, 129])])
def test_how_long_a_piece_is_tells_how_many_there_are(size, lengths, monkeypatch):
    monkeypatch.setattr(interface, "LARGEST", 10_000)
    x = np.random.default_rng(1).integers(0, 256, size, np.uint8)
    found = mpi.pieces(x)
    assert [len(piece) for piece in found] == lengths and np.concatenate(found).tolist() == x.tolist()


@on_ranks(2, kinds=("mpi",))
def test_what_is_over_is_forgotten(communicator):
    got = np.zeros(10**5)
    communicator.wait([communicator.isend(np.zeros(10**5), after(communicator)), communicator.irecv(got, before(communicator))])
    communicator.barrier()
    assert not [one for one in mpi._under_way if one.communicator is communicator] and mpi.world() is mpi.world()


LEAVING = """
import os, signal, sys
import numpy as np
from minidl.errors import RankLost
from minidl.parallel import mpi

world = mpi.world()
if world.rank == int(sys.argv[1]):
    os.kill(os.getpid(), signal.SIGKILL)
try:
    world.barrier()
except RankLost:
    world.revoke()
assert not world.agree(True)
world = world.shrink()
assert world.allgather(np.array(1)).sum() == 2
print("went on", flush=False)
mpi.leave(0)
print("nobody has died")
"""


@needs_mpi
@pytest.mark.parametrize("victim", [0, 2])
def test_after_a_kill_the_job_ends_well_and_leaves_nothing(victim):
    ran = run_mpi(LEAVING, 3, victim, ulfm=True)
    assert (ran.status, ran.left) == (0, []), ran
    assert ran.out.split("\n") == ["went on"] * 2 + [""]


@needs_mpi
def test_abort_ends_all_processes_with_its_status():
    ran = run_mpi("""
from minidl.parallel import mpi
world = mpi.world()
print("before", flush=False)
if world.rank == 1:
    world.abort(7)
world.barrier()
world.barrier()
print("after")
""", 2)
    assert ran.status == 7 and not ran.left and "after" not in ran.out and "before" in ran.out


@needs_mpi
def test_without_deaths_a_job_just_ends():
    ran = run_mpi("""
from minidl.parallel import mpi
assert mpi.launched() and mpi.tolerant() and mpi.available()
mpi.leave()
mpi.world().barrier()
print("over")
mpi.leave()
""", 2, ulfm=True)
    assert (ran.status, ran.out, ran.errors, ran.left) == (0, "over\nover\n", "", [])
