"""Staging: what comes off a device and goes back is what would be there without one, and its copies run beside the rest."""

import numpy as np
import pytest
from trained import Case, alone, differences, together

from minidl.parallel import EmulatedDevice, Layout, Request, Staging, local
from minidl.parallel.engine import Engine


class Hand(Request):
    """Done when somebody says so."""

    def __init__(self, log, name):
        self.log, self.name, self.ready = log, name, False
        log.append(f"{name} begins")

    def done(self):
        if self.ready and f"{self.name} ends" not in self.log:
            self.log.append(f"{self.name} ends")
        return self.ready


def test_without_a_device_there_is_nothing_to_wait_for():
    staging, x = Staging(), np.zeros(100)
    assert list(staging.to_host(x, x)) == [] and list(staging.to_device(x, x)) == [] and staging.mark() is None
    buffers = staging.buffers(Layout({"x": x}))
    assert buffers.near is buffers.far


@pytest.mark.parametrize("together_", [False, True])
def test_a_way_has_one_copy_at_a_time(together_):
    """Moments and not durations: each copy ends so many bytes later than the one before it on the same way."""
    device = EmulatedDevice(rate=1.0, together=together_)               # a byte a second: nothing is over before this test is
    one, two, three = (np.zeros(size, np.uint8) for size in (1000, 500, 2000))
    first, second = device.to_host(one, one)[0], device.to_host(two, two)[0]
    back = device.to_device(three, three)[0]
    assert not first.done() and not second.done() and not back.done()
    assert second.moment == first.moment + 500
    assert back.moment == second.moment + 2000 if together_ else back.moment > first.moment + 900 and back.moment < second.moment + 1000


def test_a_copy_of_nothing_is_over_at_once():
    nothing = np.zeros(0)
    request = EmulatedDevice(rate=1.0).to_host(nothing, nothing)[0]
    assert request.done()


@pytest.mark.parametrize("exchange", ["allreduce", "master-worker"])
@pytest.mark.parametrize("overlap", ["none", "backward", "forward"])
def test_training_through_a_device_gives_the_same_bits(exchange, overlap):
    case = Case(epochs=1)
    expected = alone(case, 2)
    found = local.run(lambda communicator: together(communicator, case, exchange, overlap=overlap, chunk=100,
                                                    staging=EmulatedDevice(rate=1e7)), 2)
    assert [differences(expected, each) for each in found] == [[], []]


def test_stages_of_different_chunks_run_beside_each_other():
    """While one chunk is on the wire the next one comes off the device, and the one before goes back."""
    log, hands = [], {}

    def stage(name):
        hands[name] = Hand(log, name)
        return [hands[name]]

    def journey(k):
        for way in ("off", "wire", "back"):
            yield stage(f"{k} {way}")

    engine = Engine(local_rank(), window=3)
    for k in range(3):
        engine.submit(k, journey(k))
    order = ["0 off", "0 wire", "1 off", "0 back", "1 wire", "2 off", "1 back", "2 wire", "2 back"]
    begun = []

    class Doorman(Request):
        """Lets the next one of `order` end each time it is looked at."""

        def done(self):
            name = order[len(begun)] if len(begun) < len(order) else None
            if name in hands and not hands[name].ready:
                begun.append(name)
                hands[name].ready = True
            return len(begun) == len(order)

    engine.submit(99, iter([[Doorman()]]))
    engine.window = 4
    engine.wait()
    assert [line for line in log if line.endswith("ends")] == [f"{name} ends" for name in order]
    for one, other in (("1 off", "0 wire"), ("1 wire", "0 back"), ("2 off", "1 wire")):
        assert log.index(f"{one} begins") < log.index(f"{other} ends")          # begun before the other was over


def local_rank():
    return local.run(lambda communicator: communicator, 1)[0]


def test_chunks_wait_for_their_copies():
    """No number is sent before it is on the host, and no weight updated before its sum is on the device."""
    log = []

    class Watched(Staging):
        def to_host(self, x, out, mark=None):
            log.append(("off", x.nbytes))
            return super().to_host(x, out)

        def to_device(self, x, out):
            log.append(("back", x.nbytes))
            return super().to_device(x, out)

    case = Case(epochs=1, examples=10)                  # one step
    local.run(lambda communicator: together(communicator, case, chunk=1 << 20, staging=Watched()) and None, 1)
    size = sum(x.nbytes for x in case.model().state_dict().values())
    assert log == [("off", size), ("back", size)]


def test_a_worker_brings_weights_back_and_no_sums():
    logs = {0: [], 1: []}

    def rank(communicator):
        class Watched(Staging):
            def to_host(self, x, out, mark=None):
                logs[communicator.rank].append(("off", x.nbytes))
                return ()

            def to_device(self, x, out):
                logs[communicator.rank].append(("back", x.nbytes))
                return ()

        together(communicator, Case(epochs=1, examples=10), "master-worker", chunk=1 << 20, staging=Watched())

    local.run(rank, 2)
    size = sum(x.nbytes for x in Case().model().state_dict().values())
    assert logs == {0: [("off", size), ("back", size), ("off", size)], 1: [("off", size), ("back", size)]}       # the master's new weights
