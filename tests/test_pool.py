"""The pool of threads: every piece once, errors raised when all have finished, several callers, forks."""

import contextvars
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from cases import says
from minidl import pool
from minidl.errors import ArgumentError, MissingExtra

threadpoolctl = pytest.importorskip("threadpoolctl", reason="pool.threads needs threadpoolctl: pip install 'minidl[fast]'")


class TestThreads:
    def test_one_unless_more_are_asked_for(self):
        assert pool.usable() == 1
        with pool.threads(3) as count:
            assert count == pool.usable() == 3
            with pool.threads(2):
                assert pool.usable() == 2
            assert pool.usable() == 3
        assert pool.usable() == 1

    def test_none_is_one_a_core(self):
        with pool.threads() as count:
            assert count == pool.cores() >= 1

    def test_the_linear_algebra_library_gets_one(self):
        def libraries():
            return [library["num_threads"] for library in threadpoolctl.threadpool_info() if library["user_api"] == "blas"]
        before = libraries()
        with pool.threads(2):
            assert set(libraries()) <= {1}
        assert libraries() == before

    @pytest.mark.parametrize("count", [0, -1, 1.5, "2", True])
    def test_a_count_that_makes_no_sense(self, count):
        with pytest.raises(ArgumentError, match=says(f"threads: count is {count!r}", "at least 1")), pool.threads(count):
            pass

    @pytest.mark.process
    def test_a_library_that_is_loaded_later_gets_one_too(self):
        program = """if True:
            import numpy, threadpoolctl
            from minidl import pool
            from minidl.optim.kfac.inverses import lapack
            def counts():
                return [library["num_threads"] for library in threadpoolctl.threadpool_info() if library["user_api"] == "blas"]
            with pool.threads(2):
                before = len(counts())
                loaded = lapack("float32") is not None
                assert set(counts()) == {1}, counts()
            after = counts()
            assert set(after) != {1} or pool.cores() == 1, after
            print("loaded" if loaded and len(after) > before else "nothing new")"""
        found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120).stdout.strip()
        if found != "loaded":
            pytest.skip("SciPy brings no linear algebra library of its own here")

    def test_without_threadpoolctl(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "threadpoolctl", None)
        with pytest.raises(MissingExtra, match=says("threads: needs threadpoolctl", "minidl[fast]")), pool.threads(2):
            pass


class TestEach:
    @pytest.mark.parametrize("count", [1, 2, 3])
    @pytest.mark.parametrize("pieces", [0, 1, 2, 100])
    def test_every_piece_once(self, count, pieces):
        times = np.zeros(pieces, int)

        def work(piece):
            times[piece] += 1
        with pool.threads(count):
            pool.each(work, range(pieces))
        assert (times == 1).all()

    def test_pieces_are_worked_on_at_once(self):
        both = threading.Barrier(2, timeout=20)             # each waits for the other
        with pool.threads(2):
            pool.each(lambda piece: both.wait(), range(2))

    def test_an_error_is_raised_when_all_have_finished(self):
        begun, done = threading.Event(), []

        def work(piece):
            if piece == "bad":
                begun.wait(20)
                raise ValueError("this piece")
            begun.set()
            time.sleep(0.1)
            done.append(piece)
        with pool.threads(2):
            for pieces in (["bad", "good"], ["good", "bad"]):
                begun.clear()
                with pytest.raises(ValueError, match="this piece"):
                    pool.each(work, pieces)
                assert done.pop() == "good"
            pool.each(done.append, range(5))                # and the pool goes on
        assert sorted(done) == list(range(5))

    def test_inside_a_piece_the_pool_is_busy_and_one_thread_does_it_all(self):
        found = []

        def work(piece):
            here = threading.get_ident()
            pool.together(lambda: found.append(threading.get_ident() == here), 2)
        with pool.threads(2):
            pool.each(work, range(4))
        assert found == [True] * 4

    def test_several_threads_at_once(self):
        sums = np.zeros((4, 50))

        def caller(i):
            for _ in range(20):
                sums[i] = 0
                pool.each(lambda piece: sums[i].__setitem__(piece, piece + i), range(50))
        with pool.threads(2):
            callers = [threading.Thread(target=contextvars.copy_context().run, args=(caller, i)) for i in range(4)]
            for thread in callers:
                thread.start()
            for thread in callers:
                thread.join()
        np.testing.assert_array_equal(sums, np.arange(50) + np.arange(4)[:, None])


class TestCtrlC:
    def test_in_a_piece_of_this_thread(self):
        finished = threading.Event()
        here = threading.get_ident()
        together = threading.Barrier(2, timeout=20)

        def work(piece):
            together.wait()                                 # a piece on either thread
            if threading.get_ident() == here:
                raise KeyboardInterrupt
            time.sleep(0.1)
            finished.set()
        with pool.threads(2), pytest.raises(KeyboardInterrupt):
            pool.each(work, range(2))
        assert finished.is_set()

    @pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="there is no timer that sends a signal")
    def test_while_this_thread_waits_for_the_others(self):
        finished = threading.Event()
        here = threading.get_ident()
        together = threading.Barrier(2, timeout=20)

        def work(piece):
            together.wait()
            if threading.get_ident() != here:
                time.sleep(0.4)
                finished.set()

        def interrupt(number, frame):
            raise KeyboardInterrupt
        before = signal.signal(signal.SIGALRM, interrupt)
        try:
            with pool.threads(2):
                pool.each(lambda piece: None, range(2))     # the other thread is there
                signal.setitimer(signal.ITIMER_REAL, 0.1)
                with pytest.raises(KeyboardInterrupt):
                    pool.each(work, range(2))
                assert finished.is_set()
                done = []
                pool.each(done.append, range(9))
                assert sorted(done) == list(range(9))
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    @pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="there is no timer that sends a signal")
    # the interrupt may come where Python tidies up after other tests, which cannot raise it
    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
    def test_at_any_moment(self):
        """Hundreds of interrupts wherever they come: what follows is right, and on all threads."""
        def interrupt(number, frame):
            raise KeyboardInterrupt

        def work(piece):
            time.sleep(1e-4)
            numbers[piece] += 1
            threads.add(threading.get_ident())
        moments = np.random.default_rng(0).uniform(1e-5, 2e-3, 400)
        before = signal.signal(signal.SIGALRM, interrupt)
        interrupted = 0
        try:
            with pool.threads(2):
                for moment in moments:
                    numbers, threads = np.zeros(16, int), set()
                    try:
                        signal.setitimer(signal.ITIMER_REAL, moment)
                        pool.each(work, range(16))
                        signal.setitimer(signal.ITIMER_REAL, 0)
                    except KeyboardInterrupt:
                        interrupted += 1
                    assert not pool._owner
                numbers, threads = np.zeros(16, int), set()
                pool.each(work, range(16))
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert interrupted > 100 and (numbers == 1).all() and len(threads) == 2


def test_numpys_warnings_are_those_of_the_caller():
    with pool.threads(2), np.errstate(all="ignore"):
        pool.each(lambda piece: np.log(np.full(10, -1.0)), range(50))        # a warning is an error in these tests


def test_blocks_that_overlap_leave_the_linear_algebra_as_it_was():
    def libraries():
        return [library["num_threads"] for library in threadpoolctl.threadpool_info() if library["user_api"] == "blas"]
    before, first, second = libraries(), pool.threads(1), pool.threads(2)
    first.__enter__()
    contextvars.copy_context().run(second.__enter__)
    first.__exit__(None, None, None)
    assert set(libraries()) <= {1}
    with pytest.raises(ValueError, match="different Context"):      # of the number of threads, which was set in that context
        second.__exit__(None, None, None)
    assert libraries() == before


class TestScratch:
    def test_is_each_threads_own_and_on_a_cache_line(self):
        together = threading.Barrier(2, timeout=20)
        rooms = []

        def work(piece):
            rooms.append(pool.scratch(100))
            together.wait()
        with pool.threads(2):
            pool.each(work, range(2))
        assert abs(rooms[0] - rooms[1]) >= 400
        assert all(room % 64 == 0 for room in rooms)

    def test_is_kept_and_grows(self):
        assert pool.scratch(1000) == pool.scratch(10)
        pool.scratch(100_000)
        assert pool._own.room.size >= 100_016


FORK = """
import os, sys, warnings
from minidl import pool
warnings.simplefilter("ignore")                             # Python warns of forks where there are threads
with pool.threads(2):
    done = []
    pool.each(done.append, range(10))
    child = os.fork()
    again = []
    pool.each(again.append, range(10))
    if child == 0:
        os._exit(0 if sorted(again) == list(range(10)) and len(pool._workers) == 1 else 1)
    _, status = os.waitpid(child, 0)
    sys.exit(os.waitstatus_to_exitcode(status) if sorted(again) == list(range(10)) else 2)
"""


@pytest.mark.process
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_has_threads_of_its_own():
    found = subprocess.run([sys.executable, "-c", FORK], timeout=60)
    assert found.returncode == 0
