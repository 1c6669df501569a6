"""Prefetch: the same items, exceptions in their turn, and never a thread that stays behind."""

import signal
import subprocess
import sys
import threading
import time
import traceback

import pytest

from minidl.data.prefetch import Prefetch


@pytest.fixture(autouse=True)
def no_thread_stays():
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) == before


def counting(made, until=10**6):
    """Numbers, each noted in `made` when it is made."""
    for i in range(until):
        made.append(i)
        yield i


def wait_for(condition):
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline, "waited for 5 seconds"
        time.sleep(0.001)


@pytest.mark.parametrize("depth", [1, 2, 100])
@pytest.mark.parametrize("count", [0, 1, 2, 50])
def test_all_items_in_order(depth, count):
    items = Prefetch(iter(range(count)), depth)
    assert list(items) == list(range(count))
    assert next(items, "the end") == "the end"


def test_works_ahead_but_not_further_than_asked():
    made = []
    items = Prefetch(counting(made), 3)
    wait_for(lambda: len(made) == 4)        # three wait in the queue, one is held by the thread
    time.sleep(0.02)
    assert len(made) == 4
    assert next(items) == 0
    wait_for(lambda: len(made) == 5)
    items.close()


def test_a_break_ends_the_thread():
    made = []
    for item in Prefetch(counting(made), 2):
        if item == 3:
            break
    count = len(made)
    time.sleep(0.02)
    assert len(made) == count


def test_an_exception_in_the_loop_ends_the_thread():
    def loop():
        for item in Prefetch(counting([]), 2):
            if item == 3:
                raise KeyError("stop")

    with pytest.raises(KeyError) as raised:
        loop()
    assert not [thread for thread in threading.enumerate() if thread.name == "minidl-prefetch"]     # though raised still holds the frames
    assert raised.value.args == ("stop",)


def test_never_used_or_closed_twice():
    Prefetch(counting([]), 2)
    items = Prefetch(counting([]), 2)
    items.close()
    items.close()
    assert list(items) == []


def test_an_exception_comes_in_its_turn_with_its_traceback():
    def faulty():
        yield 1
        yield 2
        raise ZeroDivisionError("the third item")

    seen = []
    with pytest.raises(ZeroDivisionError, match="the third item") as raised:
        for item in (items := Prefetch(faulty(), 5)):
            seen.append(item)
    assert seen == [1, 2]
    assert "in faulty" in "".join(traceback.format_tb(raised.value.__traceback__))
    assert list(items) == []


def test_ctrl_c_while_waiting_ends_the_thread():
    def slow():
        threading.Timer(0.05, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT)).start()
        time.sleep(0.2)
        yield from range(1000)

    items = Prefetch(slow(), 2)
    with pytest.raises(KeyboardInterrupt):
        next(items)
    assert list(items) == []


@pytest.mark.process
@pytest.mark.parametrize("end", ["", "sys.exit(3)", "raise KeyboardInterrupt", "1 / 0"])
def test_python_exits_though_an_iterator_is_still_held(end):
    code = ("import sys, itertools\nimport numpy as np\nfrom minidl.data.prefetch import Prefetch\n"
            "items = Prefetch((np.random.default_rng(i).random(1000).sum() for i in itertools.count()), 2)\n"
            f"next(items)\n{end}\n")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == {"": 0, "sys.exit(3)": 3, "raise KeyboardInterrupt": -2, "1 / 0": 1}[end], done.stderr
    assert "Fatal" not in done.stderr and "thread" not in done.stderr.lower()
