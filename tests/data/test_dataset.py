"""Dataset: what indexing gives, what is refused, and how a split is drawn."""

import numpy as np
import pytest
from datafiles import message
from hypothesis import given, settings
from hypothesis import strategies as st

from minidl.data import Dataset
from minidl.data.dataset import set_aside, stratified
from minidl.errors import ArgumentError, DataError, DtypeError, LabelError, ShapeError


def small(dtype=np.uint8, count=6):
    x = (np.arange(count * 8).reshape(count, 1, 2, 4) % 250).astype(dtype)
    return Dataset(x, np.arange(count) % 3, ("a", "b", "c"), "small")


@pytest.mark.parametrize("index", [slice(1, 4), np.array([3, 0, 3]), [5, 1], -1, 2, np.array([], int), np.array([True] * 2 + [False] * 4)])
@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64", "int32", "bool"])
def test_indexing(index, dtype):
    data = small(dtype)
    x, y = data[index]
    assert x.dtype == np.float32 and y.dtype == np.int64 and not np.may_share_memory(x, data.x)
    np.testing.assert_array_equal(x, (data.x[index] / np.float32(255 if dtype == "uint8" else 1)).astype(np.float32))
    np.testing.assert_array_equal(y, (np.arange(6) % 3)[index])


def test_white_is_exactly_one():
    assert Dataset(np.array([[255]], np.uint8), [0])[0][0] == 1
    assert Dataset(np.array([[16]], np.uint8), [0], peak=16)[0][0] == 1


def test_labels_are_copies():
    data = small()
    data[:][1][0] = 2
    assert data.y[0] == 0


def test_real_targets():
    data = Dataset(np.zeros((3, 2)), np.ones((3, 4)))
    assert data[1:][1].dtype == np.float32 and data[1:][1].shape == (2, 4)


def test_iteration_ends():
    assert [int(y) for x, y in small()] == [0, 1, 2, 0, 1, 2]


def test_repr_and_shape():
    assert repr(small()) == "Dataset(small: 6 samples of shape (1, 2, 4), 3 classes)"
    assert small().shape == (1, 2, 4) and len(small()) == 6


def test_what_is_refused():
    with pytest.raises(ShapeError, match="x has 3 samples, y has 2"):
        Dataset(np.zeros((3, 2)), np.zeros(2, int))
    with pytest.raises(DtypeError, match="y is <U3"):
        Dataset(np.zeros((1, 2)), np.array(["cat"]))
    with pytest.raises(DtypeError, match="x is object"):
        Dataset(np.array([None]), np.zeros(1, int))
    with pytest.raises(ShapeError, match="no axes"):
        Dataset(np.zeros(()), np.zeros(1, int))
    with pytest.raises(LabelError, match="out of bounds"):
        small()[6]


@settings(derandomize=True, max_examples=60, deadline=None)
@given(counts=st.lists(st.integers(1, 30), min_size=1, max_size=6), share=st.floats(0, 1), seed=st.integers(0, 9))
def test_every_class_has_its_share(counts, share, seed):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)) * 3, counts))
    test = round(share * (len(labels) - len(counts)))
    chosen = stratified(labels, test, seed)
    assert chosen.sum() == test
    for k, count in enumerate(counts):
        held = (labels[chosen] == 3 * k).sum()
        assert held <= count - 1
        if min(counts) * len(labels) > test * min(counts) + len(labels):       # no class is short: all are within one of their share
            assert abs(held - test * count / len(labels)) < 1
    np.testing.assert_array_equal(chosen, stratified(labels, test, seed))


def test_another_seed_draws_others():
    labels = np.arange(100) % 4
    assert (stratified(labels, 20, 0) != stratified(labels, 20, 1)).any()


def test_impossible_splits():
    with pytest.raises(ArgumentError, match="cannot be set aside"):
        stratified(np.array([0, 0, 1]), 2, 0)
    with pytest.raises(DataError, match="3 samples are too few") as raised:
        set_aside(Dataset(np.zeros((3, 1)), np.arange(3), name="three"))
    assert "three:" in message(raised)


def test_set_aside_loses_and_repeats_nothing():
    data = Dataset(np.arange(50, dtype=np.uint8).reshape(50, 1), np.arange(50) % 5, tuple("abcde"), "fifty", peak=50)
    train, test = set_aside(data)
    assert sorted([*train.x[:, 0], *test.x[:, 0]]) == list(range(50)) and len(test) == 10
    assert test.peak == 50 and train.classes == data.classes and np.bincount(test.y).tolist() == [2] * 5
