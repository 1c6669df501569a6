"""Parts of a minibatch: layers note, and take in what they have noted when the minibatch is over."""

import copy

import numpy as np
import pytest

import strict  # noqa: F401   makes the strict device known
from minidl import Tensor, nn, no_grad
from minidl.errors import ArgumentError, DefinitionError, ExchangeError
from minidl.nn.part import Part, commit, note, pack, present, unpack

X = np.random.default_rng(0).standard_normal((10, 3)).astype(np.float32)
CUTS = {"whole": [10], "halves": [5, 5], "uneven": [4, 3, 3], "many": [3, 3, 2, 2], "one empty": [6, 4, 0]}


class Largest(nn.Module):
    """A user's layer, which keeps the largest number that it has seen in each column, and how many rows."""

    buffers = ("largest", "rows")

    def __init__(self, width):
        self.largest, self.rows = np.full(width, -np.inf, np.float32), 0

    def forward(self, x):
        note(self, x.max(axis=0).data if isinstance(x, Tensor) else x.max(axis=0), len(x))
        return x

    def apply_note(self, largest, rows):
        self.largest, self.rows = np.maximum(self.largest, largest), self.rows + int(rows)


def model():
    return nn.Sequential(nn.BatchNorm(3), Largest(3), nn.Dropout(0.5, generator=0), nn.Sequential(nn.BatchNorm(3, momentum=None)))


def in_parts(model, x, counts):
    """The outputs and the notes of each part."""
    outputs, notes, first = [], [], 0
    for index, count in enumerate(counts):
        with Part(first, count, len(x), index) as part:
            if count:
                outputs.append(model(x[first:first + count]))
        first += count
        notes.append(part.notes)
    return outputs, notes


def same(one, two):
    one, two = one.state_dict(), two.state_dict()
    return list(one) == list(two) and all(one[name].tobytes() == two[name].tobytes() for name in one)


class TestPart:
    def test_is_present_within(self):
        assert present() is None
        with Part(0, 2, 4) as outer:
            assert present() is outer
            with Part(2, 2, 4, 1) as inner:
                assert present() is inner
            assert present() is outer
        assert present() is None

    def test_says_which_rows_it_has_and_what_they_weigh(self):
        part = Part(3, 2, 8, 1)
        assert X[part.rows].tobytes() == X[3:5].tobytes() and part.weight == 0.25

    @pytest.mark.parametrize("counts", CUTS.values(), ids=CUTS)
    def test_nothing_changes_before_the_minibatch_is_over(self, counts):
        layers = model()
        before = copy.deepcopy(layers)
        _, notes = in_parts(layers, X, counts)
        assert same(layers, before)
        commit(notes)
        assert not same(layers, before)


class TestNotes:
    @pytest.mark.parametrize("counts", CUTS.values(), ids=CUTS)
    def test_are_taken_in_as_without_parts(self, counts):
        one, twin = model(), model()
        one[2].p = twin[2].p = 0.0                              # what it drops would depend on the parts
        for x in (X, X[::-1] * 2, X + 1):
            _, notes = in_parts(one, x, counts)
            commit(notes)
            for start, count in zip(np.cumsum([0, *counts]), counts):
                if count:
                    twin(x[start:start + count])
        assert same(one, twin)

    def test_of_a_user_s_layer(self):
        layer = Largest(3)
        with no_grad():
            layer(X[:4])
        assert layer.rows == 4
        _, notes = in_parts(layer, X, [4, 3, 3])
        assert layer.rows == 4
        commit(notes)
        np.testing.assert_array_equal(layer.largest, X.max(axis=0))
        assert layer.rows == 14

    def test_of_a_layer_that_cannot_take_them_in(self):
        with pytest.raises(DefinitionError, match="ReLU notes something, and has no apply_note"):
            note(nn.ReLU(), X)

    def test_evaluation_makes_none(self):
        _, notes = in_parts(nn.Sequential(nn.BatchNorm(3), nn.Dropout()).eval(), X, [5, 5])
        assert notes == [[], []]


class TestDropout:
    @pytest.mark.parametrize("counts", CUTS.values(), ids=CUTS)
    @pytest.mark.parametrize("shape", [(10, 3), (10, 2, 4, 3), (20, 5)])               # the last has two positions an example
    def test_drops_the_same_numbers_however_the_minibatch_is_cut(self, counts, shape):
        x, each = np.ones(shape, np.float32), shape[0] // 10
        layer, twin = nn.Dropout(generator=0), nn.Dropout(generator=0)
        for _ in range(3):
            expected = [twin(x), twin(x)]                       # used twice in a pass
            found, notes, first = [[], []], [], 0
            for count in counts:
                with Part(first, count, 10) as part:
                    for k in range(2) if count else ():
                        found[k].append(layer(x[first * each:(first + count) * each]))
                first += count
                notes.append(part.notes)
            commit(notes)
            for one, two in zip(found, expected):
                np.testing.assert_array_equal(np.concatenate(one), two)
            assert layer.step == twin.step

    def test_of_something_that_has_no_examples_is_the_same_in_all_parts(self):
        layer, weights = nn.Dropout(generator=0), np.ones((7, 3), np.float32)
        dropped = []
        for first in (0, 4):
            with Part(first, 4, 8):
                dropped.append(layer(weights))
        np.testing.assert_array_equal(*dropped)


class TestPack:
    @pytest.mark.parametrize("counts", CUTS.values(), ids=CUTS)
    @pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
    def test_notes_travel_to_the_bit(self, counts, dtype):
        layers = model().to(dtype=dtype)
        there = copy.deepcopy(layers)
        _, notes = in_parts(layers, X.astype(dtype), counts)
        content = [pack(layers, each) for each in notes]
        assert all(x.dtype == np.uint8 and x.ndim == 1 for x in content)
        commit(unpack(there, x) for x in content)
        commit(notes)
        assert same(layers, there)

    def test_any_arrays(self):
        class Keeps(nn.Module):
            def apply_note(self, *arrays):
                self.kept = arrays

        given = [np.array([np.nan, -0.0, np.inf]), np.arange(6, dtype=np.int16).reshape(2, 3).T, np.zeros((0, 3), "f4"), np.array(True), 7]
        layer = nn.Sequential(nn.ReLU(), Keeps())
        with Part(0, 1, 1) as part:
            note(layer[1], *given)
        commit([unpack(layer, pack(layer, part.notes).tobytes())])
        for x, y in zip(given, layer[1].kept, strict=True):
            assert (np.asarray(x).dtype, np.shape(x), np.asarray(x).tobytes()) == (y.dtype, y.shape, y.tobytes())

    def test_from_another_device(self):
        layers, there = model(), model().to("strict:0")
        layers[1] = there[1] = nn.ReLU()
        layers[2] = there[2] = nn.ReLU()
        _, notes = in_parts(layers, X, [5, 5])
        commit(unpack(there, pack(layers, each)) for each in notes)
        commit(notes)
        assert same(layers, there.to("cpu"))

    def test_no_bytes_are_no_notes(self):
        assert unpack(model(), np.zeros(0, np.uint8)) == [] == unpack(model(), pack(model(), []))

    def test_a_layer_that_is_not_in_the_model(self):
        layers = model()
        _, notes = in_parts(layers, X, [10])
        with pytest.raises(ArgumentError, match="BatchNorm has noted something, and is not in the model Affine"):
            pack(nn.Affine(3, 3), notes[0])

    def test_the_notes_of_another_model(self):
        layers = model()
        _, notes = in_parts(layers, X, [10])
        with pytest.raises(ExchangeError, match="must have built the same model"):
            unpack(nn.Sequential(nn.ReLU(), nn.ReLU()), pack(layers, notes[0]))
