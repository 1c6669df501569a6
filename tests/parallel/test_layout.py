"""Layout: every number has one place, every chunk about the size that was asked for, and nothing depends on the cuts."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minidl.errors import ArgumentError
from minidl.nn import Parameter
from minidl.parallel import Chunk, Layout

shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)
dtypes = st.sampled_from(["float32", "float64", "float16"])
arrays = st.lists(st.tuples(shapes, dtypes), max_size=8).map(lambda kinds: {f"p{k}": np.zeros(*kind) for k, kind in enumerate(kinds)})


@settings(max_examples=200, deadline=None)
@given(arrays, st.integers(1, 300))
def test_chunks_cover_every_buffer_once_and_in_order(arrays, chunk):
    layout = Layout(arrays, chunk)
    assert [c.index for c in layout.chunks] == list(range(len(layout.chunks)))
    for dtype, size in layout.sizes.items():
        cuts = [(c.start, c.stop) for c in layout.chunks if c.dtype == dtype]
        assert all(start < stop for start, stop in cuts)
        assert [0, *(stop for _, stop in cuts)] == [*(start for start, _ in cuts), size]
    assert layout.bytes == sum(x.nbytes for x in arrays.values())


@settings(max_examples=200, deadline=None)
@given(arrays, st.integers(1, 300))
def test_a_chunk_names_all_whose_numbers_it_holds(arrays, chunk):
    layout = Layout(arrays, chunk)
    for name, x in arrays.items():
        own = [c for c in layout.chunks if c.dtype == x.dtype and c.start < layout.places[name].stop and layout.places[name].start < c.stop]
        holding = layout.holding[name]
        assert tuple(holding) == tuple(c for c in layout.chunks if name in c.names)
        assert [c for c in holding if x.size] == [c for c in own if x.size]
        assert len(holding) <= 1 or x.size


@settings(max_examples=200, deadline=None)
@given(arrays, st.integers(1, 300))
def test_no_chunk_is_larger_than_asked_for_and_no_two_small_neighbours_are_apart(arrays, chunk):
    layout = Layout(arrays, chunk)
    for c in layout.chunks:
        assert (c.stop - c.start) * c.dtype.itemsize <= max(chunk, c.dtype.itemsize)
    for dtype in layout.sizes:
        small = [c for c in layout.chunks if c.dtype == dtype]
        for c, following in pairwise(small):
            if len(layout.holding[following.names[0]]) == 1 and all(len(layout.holding[name]) == 1 for name in c.names):
                first = layout.places[following.names[0]]
                assert (first.stop - c.start) * dtype.itemsize > chunk


@settings(max_examples=100, deadline=None)
@given(arrays, st.integers(1, 300))
def test_what_is_written_by_name_is_found_in_the_chunks(arrays, chunk):
    layout = Layout(arrays, chunk)
    buffers = layout.buffers()
    rng = np.random.default_rng(0)
    numbers = {name: rng.standard_normal(x.shape).astype(x.dtype) for name, x in arrays.items()}
    for name, x in numbers.items():
        buffers[name][...] = x
    for dtype in layout.sizes:
        pieces = [buffers.chunk(c) for c in layout.chunks if c.dtype == dtype]
        np.testing.assert_array_equal(np.concatenate(pieces or [np.empty(0, dtype)]),
                                      np.concatenate([x.ravel() for x in numbers.values() if x.dtype == dtype]))
    for c in layout.chunks:
        buffers.chunk(c)[...] = 7
    for name, x in numbers.items():
        assert buffers[name].shape == x.shape and buffers[name].dtype == x.dtype and (buffers[name] == 7).all()


def test_large_arrays_are_cut_and_small_ones_travel_together():
    layout = Layout({"a": np.zeros(3, "f4"), "b": np.zeros((2, 2), "f4"), "c": np.zeros(25, "f4"), "d": np.zeros((), "f4")}, chunk=40)
    assert [(c.start, c.stop, c.names) for c in layout.chunks] == [
        (0, 7, ("a", "b")), (7, 15, ("c",)), (15, 23, ("c",)), (23, 32, ("c",)), (32, 33, ("d",))]
    assert layout.chunks[0].where == slice(0, 7) and isinstance(layout.chunks[0], Chunk)


def test_parameters_in_any_memory_order_and_without_axes():
    """What lies in a buffer is in C order, whatever the array is."""
    turned = Parameter(np.asfortranarray(np.arange(6.0).reshape(2, 3)))
    layout = Layout({"w": turned, "n": Parameter(np.array(1.5))})
    buffers = layout.buffers()
    buffers["w"][...], buffers["n"][...] = turned.data, 1.5
    np.testing.assert_array_equal(buffers.chunk(layout.chunks[0]), [0, 1, 2, 3, 4, 5, 1.5])


def test_nothing_at_all():
    assert Layout({}).chunks == [] and Layout({}).bytes == 0
    empty = Layout({"x": np.zeros((0, 3)), "y": np.zeros((2, 0))}, chunk=1)
    assert empty.chunks == [] and empty.holding == {"x": (), "y": ()}
    assert empty.buffers()["x"].shape == (0, 3)


@pytest.mark.parametrize("chunk", [0, -1, 1.5, "large", None, True])
def test_a_chunk_is_a_number_of_bytes(chunk):
    with pytest.raises(ArgumentError, match="number of bytes"):
        Layout({"w": np.zeros(3)}, chunk)
