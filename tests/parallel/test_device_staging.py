"""Staging of a device: training on it is training on the CPU, whatever is exchanged when, and copies run beside each other and the rest."""

import functools
import gc
import weakref

import numpy as np
import pytest
from late import DEVICE, late_streams
from trained import Case, differences, images, left, numbers

from devices import GPUS
from minidl import backend, optim
from minidl.data import Loader
from minidl.errors import DeviceError
from minidl.loop import fit
from minidl.parallel import Elastic, Layout, Team, local
from minidl.parallel.device_staging import Direct, Passed, Pinned
from minidl.parallel.staging import Staging

EXCHANGES = "allreduce", "master-worker"
OVERLAPS = "none", "backward", "forward"
SHORT = Case(epochs=1, examples=43)                     # 5 steps


@pytest.fixture(params=[0, 3], ids=["at once", "late"])
def streams(request):
    with late_streams(request.param) as found:
        yield found


def train(case, device, team=None, **options):
    """What training there leaves: as Case.train, whose model is on the CPU."""
    model = case.model().to(device=device)
    optimizer = case.optimizer(model)
    loader = Loader(numbers(case.examples, width=case.width), batch_size=case.batch, seed=3, prefetch=0)
    history = fit(model, loader, None, optimizer, case.epochs, clip=case.clip, objective=case.objective, team=team, **options)
    return model, optimizer, history


def rank_of(communicator, case, exchange="allreduce", team=Team, device=DEVICE, **options):
    """What one rank of many leaves, and its Staging."""
    exchanging = team(communicator, exchange=exchange, **options)
    found = train(case, device, exchanging)
    return left(*found, memory=communicator.rank == 0 or exchange != "master-worker"), exchanging.staging


@functools.cache
def alone(case, parts, device=DEVICE):
    """What one process with the device leaves that takes each minibatch in so many parts."""
    return left(*train(case, device, accumulate=parts))


def same(case, ranks, exchange="allreduce", kind=Pinned, device=DEVICE, **options):
    """Training on so many ranks leaves that too."""
    expected = alone(case, ranks, device)
    found = local.run(lambda communicator: rank_of(communicator, case, exchange, device=device, chunk=100, **options), ranks, patience=20)
    assert [differences(expected, each) for each, _ in found] == [[]] * ranks
    assert {type(staging) for _, staging in found} == {kind}


def near(one, other):
    """Whether two runs have left the same weights, but for rounding."""
    for name, x in one.items():
        if name.startswith("model"):
            found, wanted = (np.frombuffer(each[each.index(b") ") + 2:], np.float32) for each in (x, other[name]))
            np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-5)


def test_one_process_learns_what_it_learns_on_the_cpu():
    near(alone(SHORT, 1), left(*SHORT.train()))


@pytest.mark.parametrize("exchange", EXCHANGES)
@pytest.mark.parametrize("overlap", OVERLAPS)
@pytest.mark.parametrize("ranks", [2, 3])
def test_training_gives_the_same_bits(streams, exchange, overlap, ranks):
    same(SHORT, ranks, exchange, overlap=overlap)


@pytest.mark.parametrize("exchange", EXCHANGES)
@pytest.mark.parametrize("overlap", OVERLAPS)
@pytest.mark.parametrize("device", GPUS)
def test_and_on_a_gpu_with_its_own_streams(device, exchange, overlap):
    same(Case(epochs=1, examples=23), 2, exchange, device=device, overlap=overlap)


@pytest.mark.parametrize("device", GPUS)
def test_and_on_a_gpu_for_each(device):
    devices = device, device[:-1] + "1"
    try:
        backend.named_device(devices[1])
    except DeviceError as error:
        pytest.skip(str(error))
    case = Case(epochs=1, examples=23)
    expected = alone(case, 2, device)
    found = local.run(lambda communicator: rank_of(communicator, case, device=devices[communicator.rank], chunk=100, overlap="forward"), 2)
    assert [differences(expected, each) for each, _ in found] == [[], []]
    assert [staging.device for _, staging in found] == [*devices]


@pytest.fixture
def direct(monkeypatch):
    monkeypatch.setattr(local.LocalCommunicator, "direct", True)


@pytest.mark.parametrize("exchange", EXCHANGES)
@pytest.mark.parametrize("overlap", OVERLAPS)
def test_and_where_messages_go_from_the_device(streams, direct, exchange, overlap):
    same(SHORT, 2, exchange, Direct, overlap=overlap)
    assert not streams.log and not streams.pinned_bytes


OTHERS = {"clipped": (Case(epochs=1, examples=43, clip=0.5), {"overlap": "backward"}),
          "Adam": (Case(epochs=1, examples=43, optimizer=lambda model: optim.Adam(model, lr=0.01)), {"overlap": "forward"}),
          "with a state": (Case(images, epochs=1, examples=43, width=16), {"overlap": "forward"}),
          "large chunks": (SHORT, {"overlap": "backward", "window": 1})}


@pytest.mark.parametrize("which", OTHERS)
@pytest.mark.parametrize("exchange", EXCHANGES)
def test_and_otherwise(streams, which, exchange):
    case, options = OTHERS[which]
    same(case, 2, exchange, **options)


@pytest.mark.parametrize("which", ["none", "fp16", "int8", "topk:0.3"])
@pytest.mark.parametrize("exchange", EXCHANGES)
def test_compression_is_that_without_streams(streams, direct, which, exchange):
    """It is made on the host, also where messages could go from the device."""
    options = {"compress": which, "chunk": 100, "overlap": "backward"}
    expected = local.run(lambda communicator: rank_of(communicator, SHORT, exchange, staging=Staging(), **options), 2)
    found = local.run(lambda communicator: rank_of(communicator, SHORT, exchange, **options), 2)
    assert [differences(one, other) for (one, _), (other, _) in zip(expected, found)] == [[], []]
    assert {type(staging) for _, staging in found} == {Direct if which == "none" else Pinned}


def test_batch_normalization_over_all_ranks(streams):
    case = Case(images, epochs=1, examples=43, width=16)
    expected = local.run(lambda communicator: rank_of(communicator, case, sync_batch_norm=True, device="cpu"), 2)
    found = local.run(lambda communicator: rank_of(communicator, case, sync_batch_norm=True), 2)
    assert differences(*(each for each, _ in found)) == []
    near(found[0][0], expected[0][0])


def kfac(model):
    return optim.KFAC(model, lr=0.1, damping=0.1, warm_up=2, factor_interval=2)


def test_kfac(streams):
    same(Case(epochs=1, examples=43, optimizer=kfac), 2, overlap="backward")


@pytest.mark.parametrize("device", GPUS)
def test_kfac_on_a_gpu(device):
    same(Case(epochs=1, examples=23, optimizer=kfac), 2, device=device, overlap="backward")


def test_what_goes_back_is_kept_until_it_has_come():
    with late_streams(10**6) as streams:
        staging = Pinned(DEVICE)
        layout = Layout({"w": np.zeros(3, np.float32)})
        far = []
        for _ in range(2):
            buffers = staging.buffers(layout)
            far.append(weakref.ref(buffers.far.flat[np.dtype("float32")]))
            list(buffers.to_device(layout.chunks[0]))
            del buffers
        streams.forget()
        gc.collect()
        assert all(each() is not None for each in far)
        staging.close()
        gc.collect()
        assert not any(each() is not None for each in far)


@pytest.mark.parametrize("call", [90, 117, 200])
@pytest.mark.parametrize("overlap", ["none", "backward"])
def test_a_rank_that_dies_while_copies_are_under_way_is_replaced(streams, call, overlap):
    """The spare is sent the state from a device to a device; the bits are those of a run in which nobody died."""
    expected = alone(SHORT, 2)

    def killed(rank, n):
        if rank == 1 and n == call:
            raise local.Killed

    found = local.run(lambda communicator: rank_of(communicator, SHORT, team=Elastic, spares=1, overlap=overlap, chunk=100), 3,
                      on_call=killed, patience=20)
    assert found[1] is None
    assert [differences(expected, each) for each, _ in (found[0], found[2])] == [[], []]


# The pipeline

def test_chunks_come_off_and_go_back_beside_each_other():
    """The second chunk has begun to leave before the first has arrived on the host; the first goes back while others are still leaving."""
    with late_streams(3) as streams:
        local.run(lambda communicator: rank_of(communicator, Case(epochs=1, examples=10), chunk=100), 2)          # one step
        of_one = [entry[:2] for entry in streams.log if entry[2] == streams.log[0][2]]
        first, last = of_one.index, lambda entry: len(of_one) - 1 - of_one[::-1].index(entry)
        assert of_one.count(("off", "begins")) == of_one.count(("back", "begins")) >= 5
        assert of_one[:2] == [("off", "begins")] * 2 and first(("back", "begins")) < last(("off", "begins"))


def test_the_host_side_is_as_large_as_the_parameters_however_long_one_trains():
    size = sum(x.nbytes for x in Case().model().state_dict().values())
    for epochs in (1, 3):
        with late_streams() as streams:
            local.run(lambda communicator, epochs=epochs: rank_of(communicator, Case(epochs=epochs), overlap="forward") and None, 2)
            assert streams.pinned_bytes == 2 * size


def test_gradients_that_are_freed_are_not_taken_from_under_a_copy(streams):
    staging = Pinned(DEVICE)
    buffers = staging.buffers(Layout({"w": np.zeros(3, np.float32)}))
    g = backend.asarray(np.array([1, 2, 3], np.float32), DEVICE)
    buffers.gather("w", g)
    mark = staging.mark()
    g[...] = np.nan
    (request,) = buffers.to_host(buffers.layout.chunks[0], mark)
    while not request.done():
        pass
    assert buffers.far["w"].tolist() == [1, 2, 3]
    buffers.far["w"][...] *= 2
    assert list(buffers.to_device(buffers.layout.chunks[0])) == []
    with staging.computing():
        assert backend.to_numpy(buffers.near["w"]).tolist() == [2, 4, 6]


def test_close_waits_for_what_is_under_way():
    with late_streams(10**6) as streams:
        staging = Pinned(DEVICE)
        buffers = staging.buffers(Layout({"w": np.zeros(3, np.float32)}))
        buffers.gather("w", 1.0)
        chunk = buffers.layout.chunks[0]
        (request,) = buffers.to_host(chunk, staging.mark())
        buffers.to_device(chunk)
        assert not request.done()
        staging.close()
        ended = [entry[0] for entry in streams.log if entry[1] == "ends"]
        assert ended == ["off", "back"]
        assert isinstance(request, Passed) and request.event.stream.run == request.event.upto


def test_a_device_without_streams_is_copied_at_once():
    found = local.run(lambda communicator: rank_of(communicator, SHORT, chunk=100), 2)
    assert {type(staging) for _, staging in found} == {Staging}
    assert [differences(alone(SHORT, 2), each) for each, _ in found] == [[], []]
