"""The loader: every sample once, the same minibatches on any number of ranks, any epoch again, from any place on."""

import threading

import numpy as np
import pytest
from datafiles import message
from hypothesis import given, settings
from hypothesis import strategies as st

from minidl.data import Compose, Dataset, HorizontalFlip, Loader, Normalise, RandomCrop, Shift, Transform
from minidl.data.loader import share
from minidl.errors import ArgumentError, DataError, DtypeError, ShapeError

AUGMENT = Compose(Shift(1), RandomCrop(1), HorizontalFlip(), Normalise(0.4, 0.5))


def images(count=23, seed=0):
    x = np.random.default_rng(seed).integers(0, 256, (count, 2, 5, 4), dtype=np.uint8)
    return Dataset(x, np.arange(count))         # the label is the number of the sample


def same(ones, others):
    ones, others = list(ones), list(others)
    assert len(ones) == len(others)
    for (x, y), (x2, y2) in zip(ones, others):
        assert x.tobytes() == x2.tobytes() and x.shape == x2.shape and y.tolist() == y2.tolist()


@settings(derandomize=True, max_examples=60, deadline=None)
@given(count=st.integers(1, 40), batch_size=st.integers(1, 12), ranks=st.integers(1, 5), shuffle=st.booleans(), epoch=st.integers(0, 3),
       drop_last=st.booleans())
def test_the_ranks_share_every_minibatch(count, batch_size, ranks, shuffle, epoch, drop_last):
    if drop_last and count < batch_size:
        return
    data = images(count)
    common = {"batch_size": batch_size, "shuffle": shuffle, "seed": 5, "drop_last": drop_last, "transform": AUGMENT, "prefetch": 0}
    alone = Loader(data, **common)
    parts = [list(Loader(data, **common, rank=rank, ranks=ranks).epoch(epoch)) for rank in range(ranks)]
    seen = []
    for k, (x, y) in enumerate(alone.epoch(epoch)):
        mine = [part[k] for part in parts]
        np.testing.assert_array_equal(np.concatenate([each[0] for each in mine]), x)        # samples and augmentation, in this order
        np.testing.assert_array_equal(np.concatenate([each[1] for each in mine]), y)
        sizes = [len(each[1]) for each in mine]
        assert sizes == sorted(sizes, reverse=True) and sizes[0] - sizes[-1] <= 1 and sum(sizes) == alone.size(k)
        assert all(each[0].shape[1:] == (2, 5, 4) and each[0].dtype == np.float32 for each in mine)      # the empty ones too
        seen += y.tolist()
    assert len(alone) == k + 1 == len(parts[0]) == len(parts[-1])
    expected = count - count % batch_size if drop_last else count
    assert len(set(seen)) == len(seen) == expected
    if not shuffle:
        assert seen == list(range(expected))


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("size", [0, 1, 4, 7, 64])
def test_share(size, ranks):
    parts = [share(size, rank, ranks) for rank in range(ranks)]
    assert [i for part in parts for i in range(size)[part]] == list(range(size))


@pytest.mark.parametrize("prefetch", [0, 1, 3])
@pytest.mark.parametrize("start", [0, 1, 4, 6])
def test_an_epoch_can_be_replayed_from_any_minibatch_on(prefetch, start):
    loader = Loader(images(), batch_size=4, seed=3, transform=AUGMENT)
    whole = list(loader.epoch(7))
    list(loader)                # what was run in between does not matter
    same(whole[start:], Loader(images(), batch_size=4, seed=3, transform=AUGMENT, prefetch=prefetch).epoch(7, start))


def test_the_orders_of_epochs_and_seeds_differ():
    loader, other = Loader(images(), seed=0), Loader(images(), seed=1)
    orders = [tuple(each.order(epoch)) for each in (loader, other) for epoch in range(4)]
    assert len(set(orders)) == 8 and all(sorted(order) == list(range(23)) for order in orders)


def test_the_augmentation_of_epochs_and_minibatches_differs():
    data = Dataset(np.repeat(images(1).x, 12, 0), np.zeros(12, int))            # the same image again and again
    loader = Loader(data, batch_size=6, transform=Shift(2))
    batches = {x.tobytes() for epoch in range(3) for x, _ in loader.epoch(epoch)}
    assert len(batches) == 6


def test_a_for_over_the_loader_goes_from_epoch_to_epoch():
    loader = Loader(images(), batch_size=10)
    same(loader, loader.epoch(0))
    for _ in loader:
        break
    same(loader, loader.epoch(2))
    loader.next_epoch = 9
    same(loader, loader.epoch(9))


def test_first_bits_are_the_same_for_ever():
    """What a run resumes from years later: change this and old runs cannot be continued."""
    loader = Loader((np.arange(10.0)[:, None], np.arange(10)), batch_size=10, seed=42)
    assert next(loader.epoch(3))[1].tolist() == [7, 3, 4, 6, 9, 5, 2, 8, 1, 0]
    assert Shift(3).draw(loader._generator(1, 3, 0), 2).tolist() == [[0, 3], [-2, -2]]


def test_pairs_of_arrays():
    x, y = next(Loader((np.full((4, 3), 51, np.uint8), np.array([1, 0, 1, 0], np.uint8)), shuffle=False).epoch(0))
    assert x.dtype == np.float32 and x[0, 0] == np.float32(0.2) and y.dtype == np.int64
    x, y = next(Loader((np.full((4, 3), 51), np.linspace(0, 1, 4)), shuffle=False).epoch(0))
    assert x.dtype == np.float32 and x[0, 0] == 51 and y.dtype == np.float32 and y[3] == 1


def test_minibatches_are_the_callers_own():
    data = Dataset(np.ones((4, 1), np.float32), np.zeros(4, int))
    for shuffle in (False, True):
        for x, y in Loader(data, shuffle=shuffle):
            x += 1
            y += 1
    assert (data.x == 1).all() and (data.y == 0).all()


def test_threads_end_with_their_loop():
    loader = Loader(images(), batch_size=2, prefetch=3)
    for _ in loader:
        break
    next(iter(loader))
    with pytest.raises(KeyError):
        for _ in loader:
            raise KeyError
    assert not [thread for thread in threading.enumerate() if thread.name == "minidl-prefetch"]


@pytest.mark.parametrize("prefetch", [0, 2])
def test_an_error_in_a_transform_reaches_the_caller(prefetch):
    class Faulty(Transform):
        def apply(self, x, drawn):
            if 7 in x:
                raise ZeroDivisionError("the sample with a 7")
            return x

    loader = Loader((np.arange(10)[:, None], np.arange(10)), batch_size=2, shuffle=False, transform=Faulty(), prefetch=prefetch)
    seen = []
    with pytest.raises(ZeroDivisionError, match="the sample with a 7"):
        for _, y in loader:
            seen += y.tolist()
    assert seen == [0, 1, 2, 3, 4, 5]


def test_a_transform_that_breaks_the_rules_is_named():
    class Doubles(Transform):
        def apply(self, x, drawn):
            return x.astype(np.float64)

        def __repr__(self):
            return "Doubles()"

    class Fewer(Doubles):
        def apply(self, x, drawn):
            return x[1:]

    with pytest.raises(DtypeError, match=r"Doubles\(\) gave float64"):
        next(Loader(images(), transform=Doubles()).epoch(0))
    with pytest.raises(ShapeError, match="gave 22 images for 23"):
        next(Loader(images(), transform=Fewer()).epoch(0))


@pytest.mark.parametrize(("wrong", "says"), [
    ({"batch_size": 0}, "batch_size is 0"), ({"batch_size": 2.5}, "batch_size is 2.5"), ({"batch_size": True}, "batch_size is True"),
    ({"seed": -1}, "seed is -1"), ({"seed": None}, "seed is None"), ({"prefetch": -1}, "prefetch is -1"),
    ({"ranks": 0}, "ranks is 0"), ({"rank": 2, "ranks": 2}, "no rank 2 of 2"), ({"rank": -1}, "rank is -1"),
    ({"transform": lambda x: x}, "not a Transform"), ({"drop_last": True}, "drop_last leaves no minibatch"),
    ({"data": np.zeros((3, 2))}, "neither a Dataset nor a pair"), ({"data": (images(), images())}, "Give one part of what load gave"),
    ({"data": (1, 2, 3)}, "neither a Dataset nor a pair"),
])
def test_wrong_arguments(wrong, says):
    with pytest.raises(ArgumentError) as raised:
        Loader(**{"data": images(), **wrong})
    assert says in message(raised)


def test_wrong_data_and_epochs():
    with pytest.raises(ShapeError, match="x has 3 samples, y has 2"):
        Loader((np.zeros((3, 2)), np.zeros(2, int)))
    with pytest.raises(DataError, match="no samples"):
        Loader((np.zeros((0, 2)), np.zeros(0, int)))
    loader = Loader(images(), batch_size=4)
    for number, start in ((-1, 0), (0, -1), (0, 7), (1.5, 0)):
        with pytest.raises(ArgumentError):
            loader.epoch(number, start)             # at once, not when the first minibatch is asked for
    for minibatch in (-1, 6):
        with pytest.raises(ArgumentError):
            loader.size(minibatch)
