"""Exchange: what each strategy makes of a chunk, to the bit; what it sends; and what it says when it is written wrongly."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks import on_ranks

from minidl.errors import ArgumentError, ConfigError, DefinitionError
from minidl.parallel import Exchange, Layout, create, exchange, local, names, register
from minidl.parallel.communicator import wait
from minidl.parallel.compression import codec
from minidl.parallel.engine import Engine

STRATEGIES = "allreduce", "master-worker"
CODECS = "none", "fp16", "int8", "topk:0.05"
SHAPES = {"a": ((5, 3), "f4"), "empty": ((0,), "f4"), "b": ((), "f4"), "c": ((40,), "f8"), "d": ((17,), "f4"), "e": ((3,), "f2")}


def layout(chunk):
    return Layout({name: np.empty(*kind) for name, kind in SHAPES.items()}, chunk)


def gradient(rank, dtype, size):
    """Numbers of very different size, with some that are special: the order of their sum can be seen."""
    rng = np.random.default_rng((rank, size))
    with np.errstate(over="ignore"):
        return (rng.standard_normal(size) * 10.0 ** rng.integers(-3, 3, size)).astype(dtype)


def ordered(ranks, dtype, size):
    """The sum from rank 0 on, in the plainest way there is."""
    total = gradient(0, dtype, size)
    for rank in range(1, ranks):
        total = total + gradient(rank, dtype, size)
    return total


def run(job):
    """All of one job, alone."""
    for requests in job:
        wait(requests)


def summed(strategy, beside=False):
    """The buffers of a rank after all of their chunks were summed by an engine."""
    buffers = strategy.layout.buffers()
    for dtype, flat in buffers.flat.items():
        flat[...] = gradient(strategy.rank, dtype, len(flat))
    engine = Engine(strategy.communicator, beside)
    for each in strategy.layout.chunks:
        engine.submit(each.index, strategy.sum(each, buffers.chunk(each)))
    engine.wait()
    engine.close()
    return buffers.flat


# Sums

@pytest.mark.parametrize("beside", [False, True], ids=["inline", "beside"])
@pytest.mark.parametrize("chunk", [1, 40, 1000])
@pytest.mark.parametrize("name", STRATEGIES)
def test_the_sum_is_that_of_the_ranks_in_their_order(name, chunk, beside):
    for ranks in (1, 2, 3, 5):
        for alike in (False, True):
            def rank(communicator, alike=alike):
                strategy = create(name, communicator, layout(chunk), alike=alike)
                found = summed(strategy, beside)
                return found if strategy.updates(communicator.rank) else None

            for found in filter(None, local.run(rank, ranks, patience=20)):
                for dtype, flat in found.items():
                    assert flat.tobytes() == ordered(ranks, dtype, len(flat)).tobytes(), (ranks, dtype)


@on_ranks(3)
def test_the_sum_of_processes(communicator):
    for name in STRATEGIES:
        strategy = create(name, communicator.duplicate(), layout(40), alike=True)
        for dtype, flat in summed(strategy, True).items():
            assert flat.tobytes() == ordered(communicator.size, dtype, len(flat)).tobytes()


@pytest.mark.parametrize("name", STRATEGIES)
def test_zeros_keep_their_sign_and_what_is_not_finite_stays_so(name):
    """-0.0 is the neutral element: a rank without a gradient contributes it and changes no bit."""
    columns = np.array([[-0.0, -0.0, -0.0], [-0.0, 0.0, -0.0], [np.nan, 1, 2], [np.inf, -np.inf, 0], [-0.0, -3.5, -0.0],
                        [-0.0, -0.0, 5e-324]])

    def rank(communicator):
        places = Layout({"x": columns[:, 0]}, 16)
        numbers = np.ascontiguousarray(columns[:, communicator.rank])
        strategy = create(name, communicator, places, alike=True)
        for chunk in places.chunks:
            run(strategy.sum(chunk, numbers[chunk.where]))
        return numbers

    with np.errstate(invalid="ignore"):
        wanted = columns[:, 0] + columns[:, 1] + columns[:, 2]
        for found in local.run(rank, 3):
            np.testing.assert_array_equal(found, wanted)
            np.testing.assert_array_equal(np.signbit(found), np.signbit(wanted))


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(STRATEGIES), st.integers(1, 5), st.integers(0, 30), st.integers(1, 200))
def test_sums_of_any_size(name, ranks, size, chunk):
    def rank(communicator):
        strategy = create(name, communicator, Layout({"x": np.empty(size, "f4")}, chunk), alike=True)
        return summed(strategy)[np.dtype("f4")]

    for found in local.run(rank, ranks):
        assert found.tobytes() == ordered(ranks, "f4", size).tobytes()


# Weights

@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("ranks", [3])
def test_weights_of_the_master_reach_all(ranks, name):
    """Under a codec about these, and the same on all; what is left out comes later. The master, too, goes on from what all know."""
    places = layout(100)
    target = {dtype: gradient(99, dtype, size) for dtype, size in places.sizes.items()}

    def rank(communicator):
        strategy = create("master-worker", communicator, places, compress=name)
        known = places.buffers()
        for flat in known.flat.values():
            flat[...] = 0
        for step in range(30 if strategy.codec.lossy else 1):
            for chunk in places.chunks:
                there = known.chunk(chunk)
                new = None if communicator.rank else there.copy() if step else target[chunk.dtype][chunk.where].copy()
                run(strategy.spread(chunk, there, new))
        return known.flat

    found = local.run(rank, ranks)
    for dtype in places.sizes:
        assert all(each[dtype].tobytes() == found[0][dtype].tobytes() for each in found)
        if name == "none":
            assert found[0][dtype].tobytes() == target[dtype].tobytes()
        else:
            assert abs(found[0][dtype] - target[dtype]).max() < 0.05 * abs(target[dtype]).max()


def test_who_updates():
    def rank(communicator):
        return [[create(name, communicator, layout(40), alike=alike).updates(rank) for rank in range(3)]
                for name in STRATEGIES for alike in (False, True)]

    assert local.run(rank, 3)[1] == [[True] * 3, [True] * 3, [True, False, False], [True] * 3]


# Compression

@pytest.mark.parametrize("alike", [False, True])
@pytest.mark.parametrize("compress", CODECS[1:])
@pytest.mark.parametrize("name", STRATEGIES)
def test_compressed_sums_are_alike_and_nothing_is_lost_in_the_long_run(name, compress, alike):
    """All who update have the same bits; the mean of many steps comes near the mean of the sums, because what was left out comes later."""
    places, steps = Layout({"x": np.empty(200, "f4"), "y": np.empty(50, "f4")}, 600), 40

    def rank(communicator):
        strategy = create(name, communicator, places, compress=compress, alike=alike)
        totals = np.zeros(250)
        for _ in range(steps):
            totals += summed(strategy)[np.dtype("f4")]
        return totals if strategy.updates(communicator.rank) else None

    found = [each for each in local.run(rank, 3) if each is not None]
    assert len(found) == (1 if name == "master-worker" and not alike else 3)
    assert all(each.tobytes() == found[0].tobytes() for each in found)
    wanted = ordered(3, "f4", 250).astype("f8")
    assert abs(found[0] / steps - wanted).max() < 0.5 * abs(wanted).max()
    assert np.corrcoef(found[0], wanted)[0, 1] > 0.99


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("compress, most", [("none", 1), ("fp16", 0.5005), ("int8", 0.26), ("topk:0.01", 0.025)])
@pytest.mark.parametrize("ranks", [2, 4])
def test_bytes_that_are_sent(name, compress, most, ranks):
    """As a share of those of float32, everything counted: of sums, and of weights where not all update."""
    places = Layout({"w": np.empty((300, 100), "f4"), "b": np.empty(100, "f4")}, 32 << 10)

    def rank(communicator):
        counts = []
        for each in ("none", compress):
            strategy = create(name, communicator.duplicate(), places, compress=each)
            summed(strategy)
            known = places.buffers()
            known.flat[np.dtype("f4")][...] = 0
            for chunk in places.chunks if name == "master-worker" else ():
                run(strategy.spread(chunk, known.chunk(chunk), gradient(9, "f4", chunk.stop - chunk.start) if strategy.rank == 0 else None))
            counts.append(strategy.bytes_sent)
        return counts

    plain, packed = np.sum(local.run(rank, ranks), axis=0)
    thanks = (ranks - 1) * len(places.chunks) if name == "master-worker" else 0
    assert plain == 2 * (ranks - 1) * places.bytes + thanks
    assert packed <= most * plain


def test_allreduce_loads_all_ranks_alike_and_a_master_sends_as_much_as_all_others():
    places = Layout({"w": np.empty(1200, "f4")}, 1000)

    def rank(communicator):
        strategies = [create(name, communicator.duplicate(), places) for name in STRATEGIES]
        for strategy in strategies:
            summed(strategy)
        return [strategy.bytes_sent for strategy in strategies]

    reduced, mastered = zip(*local.run(rank, 4))
    assert set(reduced) == {2 * 3 * 1200}                               # 2 (P - 1) / P of 4 * 1200 bytes
    assert mastered == (0, 4800, 4800, 4800)


@pytest.mark.parametrize("name", STRATEGIES)
def test_what_is_owed_counts_when_the_step_is_made(name):
    """Held, a step that is made again sends the same bytes, and after `commit` the next one sends what was left out."""
    places = Layout({"x": np.empty(64, "f4")}, 1 << 20)

    def rank(communicator):
        strategy = create(name, communicator, places, compress="topk:0.05", alike=True)
        strategy.held = True
        first = summed(strategy)[np.dtype("f4")].copy()
        strategy.rollback()
        again = summed(strategy)[np.dtype("f4")].copy()
        strategy.commit()
        later = summed(strategy)[np.dtype("f4")].copy()
        return first, again, later

    for first, again, later in local.run(rank, 2):
        np.testing.assert_array_equal(first, again)
        assert (later != first).any()


def test_what_is_owed_moves_to_another_layout_by_name():
    before = Layout({"x": np.empty(40, "f4"), "gone": np.empty(5, "f4"), "y": np.empty((2, 5), "f4"), "z": np.empty(3, "f8")})
    after = Layout({"new": np.empty(7, "f4"), "y": np.empty((2, 5), "f4"), "x": np.empty(40, "f4"), "z": np.empty(3, "f4")})
    communicator = local.run(lambda communicator: communicator, 1)[0]
    old, new = (create("allreduce", communicator, places, compress="int8") for places in (before, after))
    for dtype, memory in old.up.items():
        memory.residual = np.arange(before.sizes[dtype], dtype=dtype)
    new.inherit(old, alike=True)
    owed = new.up[np.dtype("f4")].residual
    np.testing.assert_array_equal(owed[after.places["x"]], np.arange(40))
    np.testing.assert_array_equal(owed[after.places["y"]], np.arange(45, 55))
    assert not owed[after.places["new"]].any() and not owed[after.places["z"]].any()
    assert new.down[np.dtype("f4")].residual is None


# A strategy of one's own

@pytest.fixture
def own(monkeypatch):
    """Whatever is registered in a test is forgotten after it."""
    monkeypatch.setattr(exchange._kinds, "known", dict(exchange._kinds.known))


def test_strategies_by_name(own):
    assert set(STRATEGIES) <= set(names())

    @register("mine")
    class Mine(Exchange):
        def sum(self, chunk, numbers):
            yield ()

    assert "mine" in names() and names() == sorted(names())
    assert isinstance(create("mine", local.run(lambda communicator: communicator, 1)[0], layout(40)), Mine)
    with pytest.raises(ArgumentError, match=r"no exchange 'mines' .nearest: 'mine'"):
        create("mines", None, layout(40))
    with pytest.raises(DefinitionError, match="already"):
        register("allreduce")(type("Another", (Exchange,), {}))


def test_a_strategy_without_a_sum_cannot_be_made():
    with pytest.raises(TypeError, match="sum"):
        type("Lacking", (Exchange,), {})(None, layout(40))


def test_a_strategy_that_forgets_to_spread_is_told():
    class Forgetful(Exchange):
        def updates(self, rank):
            return rank == 0

        def sum(self, chunk, numbers):
            yield ()

    strategy = Forgetful(local.run(lambda communicator: communicator, 1)[0], layout(40))
    with pytest.raises(DefinitionError, match=r"Forgetful.*nothing brings them the weights"):
        strategy.spread(layout(40).chunks[0], np.zeros(3))


def test_an_unknown_codec():
    with pytest.raises(ConfigError, match="zip"):
        create("allreduce", local.run(lambda communicator: communicator, 1)[0], layout(40), compress="zip")


def test_without_compression_nothing_is_copied():
    """A parcel is the numbers themselves, and arrives where they belong."""
    strategy = create("allreduce", local.run(lambda communicator: communicator, 1)[0], layout(1000))
    numbers, chunk = np.arange(10.0), strategy.layout.chunks[0]
    assert np.shares_memory(strategy.pack(chunk, numbers, slice(2, 5)), numbers) and strategy.room(numbers) is numbers
    assert strategy.unpack(numbers, numbers) is numbers
    np.testing.assert_array_equal(strategy.unpack(np.ones(10), numbers), np.ones(10))


def test_the_same_strategy_for_other_arrays_is_uncompressed_and_on_all_ranks():
    def rank(communicator):
        other = create("master-worker", communicator, layout(40), compress="int8").plain(Layout({"x": np.empty(9)}, 24))
        return summed(other)[np.dtype("f8")]

    for found in local.run(rank, 3):
        assert found.tobytes() == ordered(3, "f8", 9).tobytes()


def test_messages_of_one_chunk_have_phases():
    """Two that cross each other, and chunks, are told apart by tags that all ranks make alike."""
    def rank(communicator):
        strategy = create("allreduce", communicator, layout(40))
        chunks, other = strategy.layout.chunks, 1 - communicator.rank
        sent = {(chunk.index, phase): np.array([chunk.index * 10.0 + phase]) for chunk in chunks for phase in range(4)}
        got = {key: np.zeros(1) for key in sent}
        begun = [strategy.isend(x, other, chunks[index], phase) for (index, phase), x in sent.items()]
        begun += [strategy.irecv(x, other, chunks[index], phase) for (index, phase), x in reversed(got.items())]
        wait(begun)
        return got == sent, strategy.bytes_sent == 8 * len(sent)

    assert local.run(rank, 2) == [(True, True)] * 2


def test_codecs_are_made_once_for_all(own):
    made = codec("int8")
    strategy = create("allreduce", local.run(lambda communicator: communicator, 1)[0], layout(40), compress=made)
    assert strategy.codec is made
