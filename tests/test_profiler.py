"""The clock gives every moment to one phase; what is written down is what happened, by whichever clock the arrays have."""

import threading
from contextlib import suppress

import numpy as np
import pytest

import minidl
from minidl import Tensor, backend, nn, optim
from minidl import functions as F
from minidl.profiler import PHASES, Clock, Recorder, clock, counting, hide, peak_memory, phase, recorder


class Hands:
    """A clock that shows what it is set to, in seconds."""

    def __init__(self):
        self.seconds = 0

    def __call__(self):
        return self.seconds * 10**9


@pytest.fixture
def hands():
    found = Hands()
    with counting(found):
        yield found


def read():
    return {name: seconds for name, seconds in clock().read(parts=True).items() if seconds}


class TestClock:
    def test_the_innermost_phase_alone_counts(self, hands):
        hands.seconds = 1
        with phase("update"):
            hands.seconds = 3
            with phase("idle"):
                hands.seconds = 7
            hands.seconds = 15
        hands.seconds = 31
        assert read() == {"other": 17, "update": 10, "idle": 4}

    def test_the_phase_that_is_not_over_counts_too(self, hands):
        with phase("data"):
            hands.seconds = 5
            assert read() == {"data": 5}

    def test_a_phase_in_itself_is_one(self, hands):
        with phase("update"), phase("update"):
            hands.seconds = 2
        assert read() == {"update": 2}

    def test_parts_are_among_the_whole(self, hands):
        with phase("curvature"):
            hands.seconds = 1
            with phase("curvature/inverses"):
                hands.seconds = 4
        assert read() == {"curvature": 4, "curvature/inverses": 3}
        assert {name: seconds for name, seconds in clock().read().items() if seconds} == {"curvature": 4}

    @pytest.mark.parametrize("name", ["evaluation", "saving"])
    def test_these_keep_what_happens_in_them_but_for_idle(self, hands, name):
        with phase(name):
            with phase("data"):
                hands.seconds = 1
            with phase("idle"):
                hands.seconds = 3
        assert read() == {name: 1, "idle": 2}

    def test_an_error_leaves_all_phases(self, hands):
        with suppress(ZeroDivisionError), phase("forward"), phase("curvature"):
            hands.seconds = 1
            raise ZeroDivisionError
        hands.seconds = 3
        assert read() == {"curvature": 1, "other": 2}

    def test_what_was_entered_and_never_left_is_left_with_what_is_around_it(self, hands):
        with phase("forward"):
            clock().enter("data")                   # Ctrl-C may come before its block has begun
            hands.seconds = 1
        hands.seconds = 2
        assert read() == {"data": 1, "other": 1}

    def test_seconds_that_were_anothers_are_moved_and_no_more_than_there_are(self, hands):
        with phase("gradient exchange"):
            hands.seconds = 5
        clock().move(2, "gradient exchange", "idle")
        assert read() == {"gradient exchange": 3, "idle": 2}
        clock().move(9, "gradient exchange", "idle")
        assert read() == {"idle": 5}

    def test_what_is_hidden_is_in_no_sum(self, hands):
        hide("gradient exchange", 3.0)
        hands.seconds = 1
        assert read() == {"other": 1} and clock().hidden == {"gradient exchange": 3.0}

    def test_as_a_decorator(self, hands):
        @phase("saving")
        def save(seconds):
            """Saves."""
            hands.seconds += seconds
            return seconds

        assert save(2) == 2 and save.__doc__ == "Saves." and read() == {"saving": 2}

    def test_without_a_clock_nothing_is_counted_and_nothing_breaks(self):
        with phase("data"):
            hide("data", 1.0)
            assert clock() is None and recorder() is None

    def test_another_thread_takes_no_time_of_this_one(self, hands):
        """Not even with this one's context, as the exchange has it."""
        import contextvars

        def work():
            with phase("update"):
                hands.seconds = 4
            assert clock() is None

        thread = threading.Thread(target=contextvars.copy_context().run, args=(work,))
        thread.start()
        thread.join()
        assert read() == {"other": 4}

    def test_a_clock_within_a_clock_is_the_same(self, hands):
        first = clock()
        with counting() as second:
            assert second is first
        assert clock() is first

    def test_adds_up_to_the_nanosecond(self):
        ticks = iter(range(0, 10**6, 7))
        with counting(lambda: next(ticks)) as here:
            for k in range(1000):
                with phase(PHASES[k % 12]), phase(PHASES[k % 5]):
                    pass
            assert sum(here.nanoseconds.values()) == here.since


class TestPhasesOfPlainCode:
    """Engine, optimizers, loaders and clipping name their phases themselves."""

    def test_are_recognised(self):
        model = nn.Sequential(nn.Affine(6, 5, generator=0), nn.Affine(5, 3, generator=0))
        optimizer = optim.SGD(model, lr=0.1)
        with counting() as here:
            for prefetch in (0, 2):
                for x, y in minidl.data.Loader((np.ones((8, 6), np.float32), np.zeros(8, int)), batch_size=4, prefetch=prefetch):
                    optimizer.zero_grad()
                    F.softmax_cross_entropy(model(x), y).backward()
                    optim.clip_grad_norm(model, 1.0)
                    optimizer.step()
            found = here.read()
        assert {"data", "backward", "normalization", "update", "other"} == set(found) and min(found.values()) > 0

    def test_of_kfac(self):
        model = nn.Sequential(nn.Affine(6, 5, generator=0), nn.Affine(5, 3, generator=0))
        optimizer = optim.KFAC(model)
        with counting() as here:
            for _ in range(2):
                optimizer.zero_grad()
                F.softmax_cross_entropy(model(np.ones((4, 6), np.float32)), np.zeros(4, int)).backward()
                optimizer.step()
            found = here.read(parts=True)
        parts = {name: seconds for name, seconds in found.items() if name.startswith("curvature/")}
        assert set(parts) == {"curvature/factors", "curvature/inverses", "curvature/preconditioning"}
        assert sum(parts.values()) == pytest.approx(found["curvature"]) and found["normalization"] > 0
        assert parts["curvature/inverses"] <= optimizer.seconds["inverses"] + 1e-3

    def test_second_derivatives_are_part_of_a_backward_pass(self):
        x = Tensor([1.0, 2.0], requires_grad=True)
        with counting() as here:
            minidl.hvp((x * x * x).sum(), x, np.ones(2, np.float32))
            assert set(here.read()) == {"backward", "other"}


class Device:
    """A device whose clock goes on by a microsecond with each mark, and stands still otherwise."""

    def __init__(self):
        self.moment, self.waits = 0, 0

    def event(self):
        self.moment += 1
        return self.moment

    def elapsed(self, first, last):
        return 1e-3 * (last - first)

    def synchronize(self):
        self.waits += 1


class Stuff(np.ndarray):
    """Arrays of that device."""


@pytest.fixture
def device(monkeypatch):
    found = Device()
    library = backend.Library("stuff", np, Stuff, lambda x: "stuff", lambda x, device: x, np.asarray, found.synchronize, found.event,
                              found.elapsed, memory=lambda device: backend.Memory(0, 12345, 12345, 0, 0, 0))
    monkeypatch.setitem(backend._by_type, Stuff, library)
    monkeypatch.setitem(backend._by_name, "stuff", library)
    return found


class TestDevices:
    """No GPU is needed: a fake of the interface to CuPy's events, see backend.Library."""

    def test_operations_on_a_device_are_timed_by_its_own_marks(self, device):
        x = np.ones(3, np.float32).view(Stuff)
        with minidl.profile() as p:
            for _ in range(3):
                Double()(x)
        row, = p.operations
        assert row.calls == 3 and row.seconds == pytest.approx(3e-6)
        starts = [event.start for event in p.events() if event.category == "operation"]
        assert np.diff(starts) == pytest.approx([2e-6, 2e-6])

    def test_a_moment_is_brought_to_the_clock_of_the_process(self, device):
        here = Recorder()
        first, second = here.now(Stuff), here.now(Stuff)
        assert here.nanoseconds(second) - here.nanoseconds(first) == 1000
        assert here.nanoseconds(17) == 17

    def test_a_change_of_phase_waits_for_the_device(self, device):
        """So that what was begun in a phase is its own."""
        with counting() as here:
            here.recorder = Recorder()
            with phase("forward"):
                assert device.waits == 0
                here.recorder.now(Stuff)
                before = device.waits
            assert device.waits == before + 1

    def test_the_peak_is_that_of_the_devices(self, device):
        here = Recorder()
        assert here.peak() == peak_memory() > 2**20
        here.now(Stuff)
        assert here.peak() == peak_memory("stuff") == 12345


class Double(minidl.Function):
    def forward(self, x):
        return x * 2

    def grad_x(self, gy):
        return gy * 2


class TestRecorder:
    def test_off_nothing_is_written_down(self):
        with counting():
            Double()(np.ones(3))
            assert recorder() is None

    def test_clocks_of_threads_that_a_profiled_thread_starts_are_written_down_too(self):
        import contextvars

        def work():
            with counting(), phase("update"):
                pass

        with minidl.profile() as p:
            thread = threading.Thread(target=contextvars.copy_context().run, args=(work,), name="helper")
            thread.start()
            thread.join()
        assert [event.name for event in p.events() if event.thread != "computation"] == ["update"]

    def test_it_is_bounded(self, monkeypatch):
        monkeypatch.setattr("minidl.profiler.MOST", 2)
        x = Tensor(np.ones(3), requires_grad=True)
        with minidl.profile() as p:
            for _ in range(4):
                (x * x).sum().backward()
        assert sum(1 for event in p.events() if event.category == "operation") == 2

    def test_clock_is_for_one_thread(self):
        assert Clock().thread == threading.get_ident()
