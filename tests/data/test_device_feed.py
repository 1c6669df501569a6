"""The feed of a device: the loader's minibatches, bit for bit, whichever way they come, and memory that is never used too early."""

import gc
import threading
from dataclasses import replace

import numpy as np
import pytest

import strict
from minidl import backend
from minidl.data import Compose, Dataset, HorizontalFlip, Loader, Normalise, RandomCrop, Shift, Transform
from minidl.data.device import Feed
from minidl.data.transforms import on_devices
from minidl.errors import ArgumentError, DtypeError
from strict import StrictArray

DEVICE = "strict:0"
ALL = [None, Shift(2), RandomCrop(1, size=(4, 3)), HorizontalFlip(), Normalise(0.3, 0.2), Normalise([0.4, 0.5], [0.3, 0.2]),
       Compose(RandomCrop(2), HorizontalFlip(), Compose(Shift(1, fill=0.5)), Normalise([0.4, 0.5], [0.3, 0.2]))]


class Stream:
    """Of a device that does everything as late as it may: copies only when somebody waits for them."""

    def __init__(self, log):
        self.tasks, self.done, self.log = [], 0, log

    def record(self, event):
        event.stream, event.place = self, len(self.tasks)
        event.count += 1
        return event

    def wait_event(self, event):
        if self.tasks or self.log is not None:
            self.log.append(("wait", event, event.count))       # for the training stream, which is prompt
        else:
            event.synchronize()

    def synchronize(self):
        self.run(len(self.tasks))

    def run(self, place):
        while self.done < place:
            self.tasks[self.done]()
            self.done += 1


class Mark:
    count, place, stream = 0, 0, None

    def synchronize(self):
        if self.stream is not None:
            self.stream.run(self.place)


class Late:
    """Streams of such a device. log: what its copy stream was asked for."""

    def __init__(self):
        self.log, self.main, self.threads = [], Stream(None), set()

    def on(self, device):
        return threading.Lock()                                 # some context manager

    def new(self, device):
        return Stream(self.log)

    def current(self, device):
        return self.main

    def event(self, device):
        return Mark()

    def pinned(self, shape, dtype):
        return np.full(shape, 0xA5, dtype)

    def copy(self, x, out, stream):
        self.threads.add(threading.current_thread().name)
        self.log.append(("copy", out._array.ctypes.data, None))
        stream.tasks.append(lambda: np.copyto(out._array, x))


@pytest.fixture
def late(monkeypatch):
    """The strict device, with streams."""
    found = Late()
    library = replace(backend.library_named(DEVICE), streams=found)
    monkeypatch.setitem(backend._by_name, "strict", library)
    monkeypatch.setitem(backend._by_type, StrictArray, library)
    return found


@pytest.fixture(params=["at once", "late", "emulated"])
def device(request):
    """A device: one that does everything at once, one that copies as late as it may, and one that is as late and has CUDA kernels."""
    if request.param == "emulated":
        emulated = pytest.importorskip("emulated")
        if emulated.WHY_NOT:
            pytest.skip(emulated.WHY_NOT)
        return "emulated:0"
    if request.param == "late":
        request.getfixturevalue("late")
    return DEVICE


def data(dtype=np.uint8, count=23, classes=True):
    generator = np.random.default_rng(0)
    x = generator.integers(0, 256, (count, 2, 6, 5))
    x = (x if np.dtype(dtype).kind in "iub" else x / 7).astype(dtype)
    return Dataset(x, np.arange(count) if classes else generator.random((count, 3)))


def same(loader, feed, epoch=0, start=0):
    """Whether the feed gives what the loader does; the arrays are looked at when all have been made, so that none may change later."""
    ours, theirs = list(feed.epoch(loader, epoch, start)), list(loader.epoch(epoch, start))
    assert len(ours) == len(theirs) == len(loader) - start
    for (x, y), (x2, y2) in zip(ours, theirs):
        assert isinstance(x, StrictArray) and type(x) is type(y)
        assert x.shape == x2.shape and x.dtype == x2.dtype and x.get().tobytes() == x2.tobytes()
        assert y.dtype == y2.dtype and y.get().tobytes() == y2.tobytes()


@pytest.mark.parametrize("resident", [0, None], ids=["travels", "lies there"])
@pytest.mark.parametrize("transform", ALL, ids=repr)
def test_the_loader_s_bits(device, transform, resident):
    loader = Loader(data(), batch_size=5, seed=3, transform=transform)
    feed = Feed(device, resident)
    for epoch, start in ((0, 0), (1, 0), (1, 3), (2, 5)):
        same(loader, feed, epoch, start)
    assert feed.bytes() == (0 if resident == 0 else loader.data.x.nbytes + loader.data.y.nbytes)


@pytest.mark.parametrize("resident", [0, None], ids=["travels", "lies there"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float16, np.float32, np.int64, np.float64, ">f4", bool])
def test_every_type_of_samples(device, dtype, resident):
    for classes in (True, False):
        same(Loader(data(dtype, classes=classes), batch_size=4, transform=Normalise(0.5, 0.5)), Feed(device, resident))


@pytest.mark.parametrize("resident", [0, None], ids=["travels", "lies there"])
@pytest.mark.parametrize("prefetch", [0, 1, 4])
@pytest.mark.parametrize("rank, ranks", [(0, 3), (2, 3), (6, 7), (None, 3)])
def test_parts_of_ranks_empty_ones_too(device, rank, ranks, prefetch, resident):
    loader = Loader(data(), batch_size=5, transform=ALL[-1], rank=rank, ranks=ranks, prefetch=prefetch)
    same(loader, Feed(device, resident))


def test_vectors(device):
    x = np.random.default_rng(0).random((9, 3), dtype=np.float32)
    same(Loader((x, np.arange(9)), batch_size=4, transform=Normalise([0.5] * 3, 0.1)), Feed(device))


def test_copies_are_begun_by_the_thread_that_prefetches(late):
    same(Loader(data(), batch_size=5), Feed(DEVICE, 0))
    assert late.threads == {"minidl-prefetch"}


def test_a_slot_is_written_to_only_when_the_device_has_read_it(late):
    same(Loader(data(count=60), batch_size=4, prefetch=1), Feed(DEVICE, 0))         # 15 minibatches through three slots
    waits = {}
    assert [what for what, *_ in late.log] == ["wait", "copy"] * 15 + ["wait"] * 3         # and at the end until all have been read
    for (_, event, count), (_, slot, _) in zip(late.log[:30:2], late.log[1:30:2]):
        seen = waits.setdefault(slot, [])
        seen.append((event, count))
    assert len(waits) == 3
    for seen in waits.values():
        assert len({event for event, _ in seen}) == 1
        assert [count for _, count in seen] == [1, 2, 3, 4, 5]                      # when it was made, then whenever it was read


def test_a_data_set_travels_where_it_is_too_large(late):
    small, large = Loader(data(), batch_size=23), Loader(data(count=46), batch_size=23)
    feed = Feed(DEVICE, resident=small.data.x.nbytes + small.data.y.nbytes + 1000)
    same(small, feed)
    same(large, feed)
    same(small, feed)
    assert feed.bytes() == small.data.x.nbytes + small.data.y.nbytes


def test_a_tenth_of_what_is_free_is_for_data(monkeypatch):
    loader = Loader(data(), batch_size=23)
    size = loader.data.x.nbytes + loader.data.y.nbytes
    for room, expected in ((10 * size, size), (10 * size - 10, 0)):
        known = replace(backend.library_named(DEVICE), memory=lambda device, room=room: backend.Memory(0, 0, 0, 0, room, room))
        monkeypatch.setitem(backend._by_name, "strict", known)
        feed = Feed(DEVICE)
        same(loader, feed)
        assert feed.bytes() == expected


def test_no_piece_of_that_size(monkeypatch):
    def full(x, device):
        if x.dtype == np.uint8 and x.shape[0] == 23:
            raise MemoryError
        return strict._asarray(x, device)

    monkeypatch.setitem(backend._by_name, "strict", replace(backend.library_named(DEVICE), asarray=full))
    feed = Feed(DEVICE)
    same(Loader(data(), batch_size=5), feed)
    assert feed.bytes() == 0


class Darker(Transform):
    """One that only NumPy can do."""

    def apply(self, x, drawn):
        return np.multiply(x, np.float32(0.5))


class MirroredShift(Shift):
    """A class of the house, with an apply of its own."""

    def apply(self, x, drawn):
        return np.ascontiguousarray(np.flip(super().apply(x, drawn), axis=3))


class Brighter(Transform):
    device = True

    def apply(self, x, drawn):
        return backend.of(x).sqrt(x)


@pytest.mark.parametrize("transform, expected", [(Darker(), False), (MirroredShift(1), False), (Brighter(), True), (Shift(1), True),
                                                 (Compose(Shift(1), Brighter()), True), (Compose(Shift(1), Compose(Darker())), False)],
                         ids=lambda x: repr(x)[:40])
def test_a_transform_that_knows_numpy_only_has_all_done_on_the_cpu(device, transform, expected):
    assert on_devices(transform) is expected
    feed = Feed(device)
    same(Loader(data(), batch_size=5, transform=transform), feed)
    assert (feed.bytes() > 0) is expected


def test_a_data_set_or_loader_of_one_s_own_is_asked_itself(device):
    class Squares(Dataset):
        def __getitem__(self, index):
            x, y = super().__getitem__(index)
            return x * x, y

    class Backwards(Loader):
        def epoch(self, number, start=0):
            return iter(list(super().epoch(number, start))[::-1])

    x = np.random.default_rng(0).random((7, 3), dtype=np.float32)
    same(Loader(Squares(x, np.arange(7)), batch_size=3), Feed(device))
    loader = Backwards((x, np.arange(7)), batch_size=3)
    assert [y.tolist() for _, y in Feed(device).epoch(loader, 0)] == [y.tolist() for _, y in loader.epoch(0)]


def test_on_the_cpu_it_is_the_loader():
    loader = Loader(data(), batch_size=5)
    for (x, y), (x2, y2) in zip(Feed("cpu").epoch(loader, 1), loader.epoch(1)):
        assert type(x) is np.ndarray and x.tobytes() == x2.tobytes() and y.tolist() == y2.tolist()


def test_what_is_wrong_is_told_as_by_the_loader(device):
    loader = Loader(data(), batch_size=5)
    with pytest.raises(ArgumentError, match="epoch 0 has no minibatch 9, it has 5"):
        Feed(device).epoch(loader, 0, 9)

    class Doubles(Transform):
        device = True

        def apply(self, x, drawn):
            return x.astype(np.float64)

    with pytest.raises(DtypeError, match="gave float64, not a float32 array"):
        list(Feed(device).epoch(Loader(data(), transform=Doubles()), 0))


def test_an_epoch_that_is_left_ends_its_thread_and_waits_for_its_copies(late):
    minibatches = Feed(DEVICE, 0).epoch(Loader(data(count=60), batch_size=4), 0)
    next(minibatches)
    assert "minidl-prefetch" in {thread.name for thread in threading.enumerate()}
    del minibatches
    gc.collect()
    assert "minidl-prefetch" not in {thread.name for thread in threading.enumerate()}
