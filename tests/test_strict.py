"""The strict device is as strict as CuPy; and where CuPy is installed, it has every name that the strict device has."""

import copy
import pickle

import numpy as np
import pytest

from minidl import Tensor, backend
from strict import NAMES, StrictArray, xp

NUMBERS = np.arange(12, dtype=np.float32).reshape(3, 4)


@pytest.fixture
def x():
    return backend.asarray(NUMBERS.copy(), "strict:0")


def equal(mine, wanted):
    assert type(mine) is StrictArray
    np.testing.assert_array_equal(mine.get(), wanted)
    assert mine.dtype == np.asarray(wanted).dtype


class TestItIsADevice:
    def test_of_its_own(self, x):
        assert backend.of(x) is xp
        assert backend.device_of(x) == "strict:0"
        assert backend.is_array(x)

    def test_to_and_fro_is_a_copy(self, x):
        there = backend.to_numpy(x)
        there[0] = 9
        equal(x, NUMBERS)
        assert backend.asarray(x, "strict:0") is x

    def test_with_a_number(self, x):
        y = backend.asarray(x, "strict:1")
        assert backend.device_of(y * 2) == "strict:1"
        with pytest.raises(ValueError, match="several strict devices"):
            x + y


class TestItRefuses:
    @pytest.mark.parametrize("mix", [
        lambda x: x + NUMBERS, lambda x: NUMBERS + x, lambda x: x == NUMBERS, lambda x: x @ NUMBERS.T, lambda x: x[np.array([0, 1])],
        lambda x: xp.maximum(x, NUMBERS), lambda x: xp.sum(NUMBERS), lambda x: xp.concatenate([x, NUMBERS]),
        lambda x: xp.where(x > 0, x, NUMBERS), lambda x: x.__setitem__(0, NUMBERS[0]), lambda x: x.__iadd__(NUMBERS),
        lambda x: NUMBERS.__iadd__(x), lambda x: xp.add(x, 1, out=NUMBERS),
    ])
    def test_numpy_arrays_beside_its_own(self, x, mix):
        with pytest.raises(TypeError):
            mix(x)

    @pytest.mark.parametrize("convert", [
        np.asarray, np.array, np.exp, np.sum, np.mean, np.zeros_like, np.shares_memory, lambda x: np.concatenate([x, x]),
        lambda x: np.where(x, 1, 2), lambda x: np.zeros(3) + x, lambda x: NUMBERS.__setitem__(0, x[0]), lambda x: range(x[0, 0]),
    ])
    def test_to_become_a_numpy_array_unasked(self, x, convert):
        with pytest.raises(TypeError):
            convert(x)

    @pytest.mark.parametrize("name", ["errstate", "seterr", "float128", "str_", "object_", "nditer", "add.reduceat", "maximum.reduce",
                                      "linalg.multi_dot", "lib.index_tricks", "fft.fft", "random"])
    def test_names_that_cupy_has_not(self, name):
        with pytest.raises(AttributeError, match="CuPy has no"):
            found = xp
            for part in name.split("."):
                found = getattr(found, part)

    @pytest.mark.parametrize("name", ["setflags", "ctypes", "newbyteorder", "__index__", "__contains__", "device"])
    def test_attributes_that_a_cupy_array_has_not(self, x, name):
        assert not hasattr(x, name)

    @pytest.mark.parametrize("call", [
        lambda x: xp.sum(x, where=x > 1), lambda x: xp.max(x, initial=0), lambda x: xp.exp(x, where=x > 0), lambda x: x.sum(where=x > 1),
        lambda x: xp.einsum("ij->i", x, out=x[:, 0]), lambda x: x.sum(0, None, None, False, 0),
    ])
    def test_arguments_that_cupy_does_not_take(self, x, call):
        with pytest.raises(TypeError, match="cupy"):
            call(x)

    @pytest.mark.parametrize("call", [lambda: xp.exp([1.0]), lambda: xp.maximum([1], 2), lambda: xp.sum([1, 2])])
    def test_lists_where_arrays_belong(self, call):
        with pytest.raises(TypeError, match="Unsupported type"):
            call()

    def test_dtypes_that_a_gpu_has_not(self):
        for numbers in ([object()], ["a"], [np.datetime64("2026-01-01")]):
            with pytest.raises(ValueError, match="Unsupported dtype"):
                xp.array(numbers)

    @pytest.mark.parametrize("call", [
        lambda x: x.clip(0, None), lambda x: xp.clip(x, None, 1), lambda x: x.clip(max=1), lambda x: xp.cumsum(x, axis=0),
        lambda x: xp.sort(x), lambda x: xp.add.at(x, 0, x[1]),
    ])
    def test_what_it_does_with_other_types_of_bfloat16(self, x, call):
        call(x)
        with pytest.raises(TypeError, match="bfloat16"):
            call(x.astype(backend.dtype_named("bfloat16")))

    def test_to_say_whether_it_is_writeable(self, x):
        with pytest.raises(AttributeError):
            x.flags.writeable       # noqa: B018


class TestItGivesArrays:
    @pytest.mark.parametrize("reduce", [
        lambda x: x.sum(), lambda x: x.mean(), lambda x: x.max(), lambda x: x.argmax(), lambda x: xp.sum(x), lambda x: xp.linalg.norm(x),
        lambda x: (x > 3).all(), lambda x: xp.einsum("ij->", x), lambda x: x[1, 2], lambda x: x[0] @ x[0], lambda x: xp.count_nonzero(x),
    ])
    def test_without_axes_and_no_scalars(self, x, reduce):
        y = reduce(x)
        assert type(y) is StrictArray
        assert y.shape == ()

    def test_of_both_kinds_of_scalars_with_numpy_s_rule_for_dtypes(self, x):
        assert (x * 2.5).dtype == (2 - x).dtype == (x * np.float32(2)).dtype == np.float32
        assert (x * np.float64(2)).dtype == np.float64

    def test_from_several_at_once(self, x):
        equal(xp.concatenate([x, x]), np.concatenate([NUMBERS, NUMBERS]))
        equal(xp.stack((x[0], x[1])), NUMBERS[:2])
        values, vectors = xp.linalg.eigh(x @ x.T)
        assert values.shape == (3,) and vectors.shape == (3, 3)

    def test_and_one_number_for_python(self, x):
        assert bool(x[0, 1] > 0) and float(x[1, 0]) == 4 and int(x[1, 0]) == 4 and x[1, 0].item() == 4
        with pytest.raises(ValueError, match="ambiguous"):
            bool(x)

    def test_of_indices(self, x):
        rows = backend.asarray(np.array([2, 0]), "strict:0")
        equal(x[rows], NUMBERS[[2, 0]])
        equal(x[x > 5], NUMBERS[NUMBERS > 5])
        equal(x[None, ..., ::2], NUMBERS[None, ..., ::2])
        equal(xp.stack(list(x)), NUMBERS)

    def test_made_on_the_device(self):
        equal(xp.zeros((2, 3), np.float32), np.zeros((2, 3), np.float32))
        equal(xp.arange(3), np.arange(3))
        equal(xp.asarray(NUMBERS), NUMBERS)
        assert isinstance(xp.ones(2), xp.ndarray)


class TestItWritesInPlace:
    def test_with_operators(self, x):
        same = x
        same += 1
        same *= x
        assert same is x
        equal(x, (NUMBERS + 1) ** 2)

    def test_with_out(self, x):
        assert xp.add(x, 1, out=x) is x
        equal(x, NUMBERS + 1)

    def test_through_views(self, x):
        x[1] = 0
        x[:, 1:][...] = x[:, :3]
        x.fill(2)
        x.T[0, 1] = 5
        assert float(x[1, 0]) == 5

    def test_at_indices(self, x):
        xp.add.at(x, (xp.asarray([0, 0]), xp.asarray([1, 1])), 10.0)
        assert float(x[0, 1]) == 21


class TestItsMemory:
    def test_a_view_has_the_owner_as_its_base(self, x):
        views = [x.T, x[1], x[1, 2], x[1:][0], x.reshape(-1), x.ravel(), xp.swapaxes(x, 0, 1),
                 xp.lib.stride_tricks.as_strided(x, (2, 2), (4, 4)), xp.broadcast_to(x, (2, 3, 4))]
        assert all(view.base is x for view in views)

    def test_a_result_has_none(self, x):
        assert all(y.base is None for y in (x, x + 1, x.copy(), x.sum(axis=0), xp.exp(x), x.astype(np.float64), x[xp.asarray([0])]))

    def test_what_is_there_already_is_not_wrapped_anew(self, x):
        assert xp.asarray(x) is x and xp.ascontiguousarray(x) is x and x.astype(np.float32, copy=False) is x

    def test_layout(self, x):
        assert x.strides == (16, 4) and x.itemsize == 4 and x.nbytes == 48
        assert x.flags.c_contiguous and x.T.flags.f_contiguous and not x[:, ::2].flags.c_contiguous

    def test_copies_and_pickles(self, x):
        for twin in (copy.copy(x), copy.deepcopy(x), pickle.loads(pickle.dumps(x))):
            equal(twin, NUMBERS)
            assert not xp.shares_memory(twin, x)


def test_a_tensor_takes_over_in_operators(x):
    t = Tensor(x)
    for y in (x + t, t + x, x @ Tensor(x.T), 2 * t):
        assert isinstance(y, Tensor)
        assert y.device == "strict:0"


def test_every_name_is_one_of_cupy_s():
    cupy = pytest.importorskip("cupy")
    for name in NAMES:
        found = cupy
        for part in name.split("."):
            found = getattr(found, part)
