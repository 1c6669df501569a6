"""Engine: jobs run in one order on all ranks, whatever the order in which they become ready; errors come to whoever waits."""

import threading
import time

import numpy as np
import pytest
from ranks import on_ranks

from minidl.errors import ExchangeError, RankLost
from minidl.parallel import Request, local
from minidl.parallel.engine import Engine


class Flag(Request):
    """Done once it is up."""

    def __init__(self, up=False):
        self.up = up

    def done(self):
        return self.up


class Broken(Request):
    def done(self):
        raise KeyError("broken request")


def alone():
    """A communicator of one rank."""
    return local.run(lambda communicator: communicator, 1)[0]


def noting(log, name, *yielded):
    """A job that writes down when it begins and when it is over."""
    log.append(f"{name} begins")
    yield from yielded
    log.append(f"{name} ends")


def until(condition):
    """Wait for something that must come, with a generous end."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.001)


@pytest.fixture(params=[False, True], ids=["inline", "beside"])
def beside(request):
    return request.param


@pytest.fixture
def engine(beside):
    engine = Engine(alone(), beside)
    yield engine
    engine.close()
    assert engine.thread is None or not engine.thread.is_alive()


# Jobs

def test_a_job_is_resumed_when_all_its_requests_are_done(engine):
    log, first, second = [], Flag(), Flag()

    def job():
        log.append(1)
        yield [first, second]
        log.append(2)
        yield []
        yield ()
        log.append(3)

    engine.submit(5, job())
    releases = threading.Thread(target=lambda: (until(lambda: log), setattr(second, "up", True), time.sleep(0.01), log.append("still"),
                                                setattr(first, "up", True)))
    releases.start()
    engine.wait()
    releases.join()
    assert log == [1, "still", 2, 3]


def test_a_number_can_be_given_again_only_when_it_is_over(engine):
    flag = Flag()
    engine.submit(5, iter([[flag]]))
    with pytest.raises(ExchangeError, match="job 5 is not over"):
        engine.submit(5, iter([]))
    flag.up = True
    engine.wait()
    engine.submit(5, iter([]))
    engine.wait([5])


def test_waiting_for_nothing(engine):
    engine.wait()
    engine.wait([])
    engine.wait([7])                    # that was never given


def test_waiting_for_some_leaves_the_others_alone():
    engine, flag = Engine(alone(), beside=True), Flag()
    engine.submit(1, iter([[flag]]))
    engine.submit(2, iter([]))
    engine.wait([2])
    assert engine.unfinished == {1}
    flag.up = True
    engine.wait()
    assert engine.unfinished == set()
    engine.close()


def test_the_lowest_number_is_begun_first(beside):
    log, gate = [], Flag()
    engine = Engine(alone(), beside, window=1)
    engine.submit(50, noting(log, 50, [gate]))
    if beside:
        until(lambda: log)              # it is under way
    for number in (9, 3, 70, 5):
        engine.submit(number, noting(log, number))
    gate.up = True
    engine.wait()
    engine.close()
    begun = [line.split()[0] for line in log if line.endswith("begins")]
    assert begun == (["50", "3", "5", "9", "70"] if beside else ["3", "5", "9", "50", "70"])


def test_what_comes_in_later_and_is_more_urgent_passes_what_has_not_begun():
    log, gates = [], {number: Flag() for number in (10, 11, 12, 1)}
    engine = Engine(alone(), beside=True, window=1)
    for number in (10, 11, 12):
        engine.submit(number, noting(log, number, [gates[number]]))
    until(lambda: "10 begins" in log)
    engine.submit(1, noting(log, 1, [gates[1]]))
    for gate in gates.values():
        gate.up = True
    engine.wait()
    engine.close()
    assert log == [f"{number} {what}" for number in (10, 1, 11, 12) for what in ("begins", "ends")]


def test_what_was_put_off_in_the_round_before_comes_first():
    """Others may have to wait for it before they can begin the next round."""
    log, gate = [], Flag()
    engine = Engine(alone(), beside=True, window=1)
    engine.submit(3, noting(log, 3))
    engine.wait()
    engine.submit(7, noting(log, 7, [gate]))
    until(lambda: "7 begins" in log)
    engine.submit(9, noting(log, 9))                # of the first round
    engine.submit(3, noting(log, 3))                # of the second
    gate.up = True
    engine.wait()
    engine.close()
    assert [line for line in log if line.endswith("begins")] == ["3 begins", "7 begins", "9 begins", "3 begins"]


@pytest.mark.parametrize("window", [1, 2, 5])
def test_as_many_at_a_time_as_the_window_has(beside, window):
    log, gates = [], [Flag() for _ in range(8)]
    engine = Engine(alone(), beside, window)

    class Counts(Request):
        """Lets one job end at a time, and counts how many are under way."""

        def __init__(self, k):
            self.k = k

        def done(self):
            under_way.append(sum(line.endswith("begins") for line in log) - sum(line.endswith("ends") for line in log))
            return gates[self.k].up

    under_way = []
    for k in range(8):
        engine.submit(k, noting(log, k, [Counts(k)]))
    opens = threading.Thread(target=lambda: [(until(lambda k=k: f"{k} begins" in log), time.sleep(0.003), setattr(gates[k], "up", True))
                                             for k in range(8)])
    opens.start()
    engine.wait()
    opens.join()
    engine.close()
    assert max(under_way) == window


def test_a_job_may_give_others_while_it_runs():
    log = []
    engine = Engine(alone(), beside=True, window=1)

    def first():
        yield ()
        engine.submit(2, noting(log, 2))

    engine.submit(1, first())
    engine.wait([1])
    engine.wait([2])
    engine.close()
    assert log == ["2 begins", "2 ends"]


# Errors

@pytest.mark.parametrize("where", ["at once", "later", "request"])
def test_an_error_of_a_job_comes_to_whoever_waits(beside, where):
    engine = Engine(alone(), beside)

    def job():
        if where == "at once":
            raise KeyError("broken job")
        yield [Broken()] if where == "request" else ()
        raise KeyError("broken job")

    engine.submit(1, job())
    with pytest.raises(KeyError, match="broken"):
        engine.wait()
    engine.close()


def test_an_error_comes_to_all_who_wait_also_later_and_for_other_jobs():
    engine = Engine(alone(), beside=True)
    engine.submit(1, iter([[Flag()]]))
    engine.submit(2, iter([[Broken()]]))
    for numbers in (None, [1], [2], None):
        with pytest.raises(KeyError):
            engine.wait(numbers)
    engine.close()
    assert not engine.thread.is_alive()


def test_after_an_error_an_engine_without_a_thread_is_empty():
    engine = Engine(alone())
    engine.submit(1, iter([[Flag(True)], [Broken()]]))
    engine.submit(2, iter([[Flag()]]))
    with pytest.raises(KeyError):
        engine.wait()
    engine.wait()
    engine.submit(1, iter([]))
    engine.wait()


def test_closed_or_dropped_it_ends_its_thread_and_forgets_what_was_under_way():
    for end in (Engine.close, Engine.drop):
        engine = Engine(alone(), beside=True)
        engine.submit(1, iter([[Flag()]]))
        until(lambda engine=engine: engine.active)
        end(engine)
        assert not engine.thread.is_alive() and not engine.active


@on_ranks(2, kinds=("local",))
def test_a_rank_that_dies_is_an_error_for_who_waits(communicator):
    engine = Engine(communicator.duplicate(), beside=True)
    if communicator.rank == 1:
        communicator.die()
    x = np.zeros(1)
    engine.submit(1, iter([[engine.communicator.irecv(x, 1, 1)]]))
    with pytest.raises(RankLost):
        engine.wait()
    engine.drop()


# Ranks

def swap(communicator, number, out, delay=0.0):
    """A job that sends a number to all and writes down what came."""
    def job():
        mine = np.array([communicator.rank * 1000 + number], np.int64)
        rooms = {rank: np.zeros(1, np.int64) for rank in range(communicator.size) if rank != communicator.rank}
        yield [communicator.isend(mine, rank, number + 1) for rank in rooms]
        if delay:
            time.sleep(delay)
        yield [communicator.irecv(room, rank, number + 1) for rank, room in rooms.items()]
        out[number] = {rank: int(room[0]) for rank, room in rooms.items()}
    return job()


def expected(communicator, numbers):
    return {number: {rank: rank * 1000 + number for rank in range(communicator.size) if rank != communicator.rank} for number in numbers}


@on_ranks(3)
def test_ranks_may_have_jobs_ready_in_any_order(communicator):
    """The reverse order on every second rank, random orders, random pauses, windows from 1 on: nobody waits for ever."""
    for window in (1, 2, 4):
        engine = Engine(communicator.duplicate(), beside=True, window=window)
        rng = np.random.default_rng((communicator.rank, window))
        for step in range(6):
            numbers = rng.permutation(25) if step % 2 else np.arange(25)[::1 if communicator.rank % 2 else -1]
            out = {}
            for number in numbers.tolist():
                engine.submit(number, swap(engine.communicator, number, out))
                if rng.random() < 0.1:
                    time.sleep(rng.random() * 0.003)
            engine.wait()
            assert out == expected(communicator, range(25))
        engine.close()
        assert not engine.thread.is_alive()


@on_ranks(3)
def test_a_rank_may_be_a_round_ahead(communicator):
    """Rank 0 gives the first numbers of a round before it has waited for the last ones of the round before; others wait for those first."""
    engine = Engine(communicator.duplicate(), beside=True, window=1)
    out, total = {}, []
    for _ in range(20):
        for number in (5, 6, 7, 8, 9):
            engine.wait([number])                   # of the last round; on rank 0 the later ones may still be put off
            if number == 5 and communicator.rank:
                engine.wait()
            engine.submit(number, swap(engine.communicator, number, out))
    engine.wait()
    total.append(out == expected(communicator, (5, 6, 7, 8, 9)))
    engine.close()
    assert all(total)


@on_ranks(3)
def test_without_a_thread_ranks_run_jobs_in_the_order_of_their_numbers(communicator):
    for window in (1, 3):
        engine, out = Engine(communicator.duplicate(), window=window), {}
        for number in np.random.default_rng(communicator.rank).permutation(30).tolist():
            engine.submit(number, swap(engine.communicator, number, out))
        engine.wait()
        assert out == expected(communicator, range(30))


@on_ranks(3)
def test_ranks_leave_together_or_one_after_the_other(communicator):
    """Nothing that was named is left on its way, and no thread remains."""
    for late in range(3):
        engine = Engine(communicator.duplicate(), beside=True)
        out = {}
        engine.submit(0, swap(engine.communicator, 0, out))
        engine.wait()
        if communicator.rank == late:
            time.sleep(0.05)
        engine.close()
        assert not engine.thread.is_alive()
    communicator.barrier()


@on_ranks(1, 2, kinds=("local",))
def test_the_thread_knows_what_its_caller_had_set(communicator):
    """NumPy's error settings, for one."""
    seen = []

    def job():
        seen.append(np.geterr()["divide"])
        yield ()

    with np.errstate(divide="raise" if communicator.rank else "print"):
        engine = Engine(communicator.duplicate(), beside=True)
    engine.submit(1, job())
    engine.wait()
    engine.close()
    assert seen == ["raise" if communicator.rank else "print"]
