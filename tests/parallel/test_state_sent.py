"""State on its way: the same bits, dtypes, shapes and memory order on every rank, whoever had it."""

import numpy as np
import pytest
from ranks import on_ranks

from minidl.parallel import local
from minidl.parallel.state import broadcast_state

RNG = np.random.default_rng(0)
ARRAYS = {
    "plain": RNG.standard_normal((3, 4)).astype("f4"),
    "turned": np.asfortranarray(RNG.standard_normal((3, 4))),
    "pictures, channels last": RNG.standard_normal((2, 5, 4, 3)).astype("f4").transpose(0, 3, 1, 2),
    "every second": RNG.standard_normal((6, 4))[::2],
    "backwards": np.arange(5)[::-1],
    "no axes": np.array(2.5),
    "no numbers": np.zeros((0, 3), "f4"),
    "no numbers, turned": np.zeros((3, 0, 2), order="F"),
    "one": np.ones((1, 1, 1), "f2"),
    "repeated": np.broadcast_to(np.arange(3.0), (2, 3)),
    "bits": np.array([np.nan, -np.nan, -0.0, np.inf, 5e-324]),
    "whole": np.arange(10, dtype="i8"),
    "true": np.array([True, False]),
    "bytes": np.arange(256, dtype="u1"),
    "many": RNG.standard_normal(300_000).astype("f4"),
}
REST = {"numbers": [1, 2.5, None, True], "text": "naïve", "inside": {"a": []}}


def same(found, arrays):
    assert list(found) == list(arrays)
    for name, x in arrays.items():
        assert found[name].dtype == x.dtype and found[name].shape == x.shape and found[name].tobytes() == x.tobytes(), name


def order(x):
    """The axes, the slowest first."""
    return [axis for axis in np.argsort([-abs(stride) for stride in x.strides], kind="stable") if x.shape[axis] > 1]


@on_ranks(2)
def test_everyone_gets_the_bits(communicator):
    found, rest = broadcast_state(communicator, *((ARRAYS, REST) if communicator.rank == 0 else (None, None)))
    same(found, ARRAYS)
    assert rest == REST


@on_ranks(1, 3, kinds=("local",))
def test_of_whom(communicator):
    for root in range(communicator.size):
        arrays = {"mine": np.full(3, communicator.rank)}
        found, rest = broadcast_state(communicator, arrays, communicator.rank, root)
        same(found, {"mine": np.full(3, root)})
        assert rest == root


@pytest.mark.parametrize("name", ["plain", "turned", "pictures, channels last"])
def test_memory_order_arrives_too(name):
    x = ARRAYS[name]
    for found, _ in local.run(lambda communicator: broadcast_state(communicator, {name: x}), 2):
        assert order(found[name]) == order(x)


@on_ranks(2, kinds=("local",))
def test_what_arrives_can_be_written_to(communicator):
    found, _ = broadcast_state(communicator, {name: x.copy() for name, x in ARRAYS.items()})
    for x in found.values():
        x[...] = 0


@on_ranks(2, kinds=("local",))
def test_nothing(communicator):
    assert broadcast_state(communicator, {}) == ({}, None)
    assert broadcast_state(communicator, None, 5 if communicator.rank == 0 else None) == ({}, 5)
