"""What a step that is being recorded asks: places on the device for numbers that change from step to step."""

import numpy as np
import pytest

import emulated
from devices import GPUS
from minidl import backend
from minidl.recording import ALIGNED, PAGE, Recording, present

pytestmark = pytest.mark.parametrize("device", GPUS or [pytest.param("", marks=pytest.mark.skip(reason=emulated.WHY_NOT))])


def test_present_is_none_outside_of_a_recording(device):
    recording = Recording(device, 1)
    assert present() is None
    with recording.going_on():
        assert present() is recording
    assert present() is None


def test_numbers_are_asked_again_before_each_replay(device):
    recording, now = Recording(device, 2), {"step": 2**40, "rates": np.array([0.5, 0.25], np.float32)}
    step = recording.fresh(lambda: now["step"], "int64")
    rates = recording.fresh(lambda: now["rates"])
    odd = recording.fresh(lambda: 7, "uint8")
    last = recording.fresh(lambda: 1 / now["step"], "float64")
    assert (step.shape, rates.shape, rates.dtype) == ((), (2,), np.float32)
    for value in (2**40, 3, 3, 4):
        now["step"], now["rates"] = value, now["rates"] + 1
        recording.refresh()
        backend.synchronize(device)
        assert (int(step), int(odd), float(last)) == (value, 7, 1 / value)
        np.testing.assert_array_equal(backend.to_numpy(rates), now["rates"])


def test_there_is_room_for_any_number_of_numbers(device):
    recording = Recording(device, 1)
    places = [recording.fresh(lambda i=i: np.full(PAGE // 16, i, np.float32)) for i in range(9)]
    large = recording.fresh(lambda: np.arange(PAGE, dtype=np.float64))
    recording.refresh()
    backend.synchronize(device)
    for i, x in enumerate(places):
        np.testing.assert_array_equal(backend.to_numpy(x), i)
    np.testing.assert_array_equal(backend.to_numpy(large), np.arange(PAGE))


def test_what_has_not_changed_is_not_copied(device, monkeypatch):
    recording, copies = Recording(device, 1), []
    recording.fresh(lambda: 5.0)
    monkeypatch.setattr(recording, "streams", Counting(recording.streams, copies))
    for _ in range(3):
        recording.refresh()
    assert copies == [ALIGNED]


class Counting:
    """Streams that tell how many bytes are copied."""

    def __init__(self, streams, copies):
        self.streams, self.copies = streams, copies

    def current(self, device):
        return self.streams.current(device)

    def copy(self, x, out, stream):
        self.copies.append(x.nbytes)
        self.streams.copy(x, out, stream)
