import copy
import pickle

import numpy as np
import pytest

import minidl
import strict
from minidl import Tensor, backend
from minidl import functions as F
from minidl.errors import ArgumentError, DeviceError, DtypeError, GraphError, ShapeError


@pytest.fixture
def x():
    return Tensor(np.array([[1, 2, 3], [4, 5, 6]], np.float32), requires_grad=True)


def on_strict(*numbers, requires_grad=False):
    return Tensor(backend.asarray(np.array(numbers, np.float32), "strict:0"), requires_grad)


class TestMaking:
    def test_shares_the_array(self):
        a = np.zeros(3)
        assert Tensor(a).data is a

    @pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8", "uint8", "int64", "bool"])
    def test_keeps_the_dtype_of_an_array(self, dtype):
        assert Tensor(np.zeros(3, dtype)).dtype == dtype

    @pytest.mark.parametrize("x, dtype", [(1.5, "float32"), ([1.0, 2.0], "float32"), (np.float64(3), "float32"), ([1, 2], "int64"),
                                          (True, "bool"), ([[1.0], [2]], "float32")])
    def test_numbers_and_lists_become_float32_or_integers(self, x, dtype):
        assert Tensor(x).dtype == dtype

    def test_of_a_tensor_is_a_leaf_with_the_same_array(self, x):
        y = Tensor(x * 2)
        assert y.is_leaf and not y.requires_grad

    @pytest.mark.parametrize("x", ["text", [None], [object()], np.zeros(3, complex), np.array(["2026"], "datetime64[Y]")])
    def test_what_is_not_a_real_number_is_refused(self, x):
        with pytest.raises(DtypeError, match="no gradient and no arithmetic"):
            Tensor(x)

    @pytest.mark.parametrize("x", [[1, 2], [True], np.zeros(3, np.int32)])
    def test_integers_and_booleans_have_no_gradient(self, x):
        assert not Tensor(x).requires_grad
        with pytest.raises(DtypeError, match="cannot have a gradient"):
            Tensor(x, requires_grad=True)


class TestItsArray:
    def test_attributes(self, x):
        assert (x.shape, x.dtype, x.ndim, x.size, x.device) == ((2, 3), np.float32, 2, 6, "cpu")
        assert x.T.shape == (3, 2)
        assert on_strict(1).device == "strict:0"

    def test_item_is_a_python_number(self):
        assert type(Tensor(np.array([[2.5]])).item()) is float
        assert type(Tensor([3]).sum().item()) is int

    def test_item_of_several_numbers_is_refused(self, x):
        with pytest.raises(ShapeError, match=r"item: a Tensor of shape \(2, 3\) is not one number"):
            x.item()

    def test_numpy_shares_memory_on_the_cpu(self):
        t = Tensor([1.0])
        assert t.numpy() is t.data
        assert type(on_strict(1).numpy()) is np.ndarray

    def test_numpy_is_refused_where_a_gradient_would_be_lost(self, x):
        for t in (x, x * 2):
            with pytest.raises(GraphError, match=r"numpy: this Tensor requires a gradient[\s\S]*detach"):
                t.numpy()
        assert x.detach().numpy() is x.data

    def test_detach_shares_memory_and_leaves_the_graph(self, x):
        y = x * 2
        assert y.detach().data is y.data
        assert y.detach().is_leaf and not y.detach().requires_grad

    def test_astype_and_to_stay_in_the_graph(self, x):
        x.astype("float64").to("strict:0").sum().backward()
        assert x.grad.dtype == np.float32
        assert x.grad.device == "cpu"


class TestAssigningData:
    def test_gives_a_leaf_another_array(self, x):
        a = np.ones((2, 3), np.float32)
        x.data = a
        assert x.data is a and x.requires_grad

    def test_is_refused_on_a_result_and_names_the_operation(self, x):
        with pytest.raises(GraphError, match=r"only a leaf's array can be assigned, and this Tensor is the result of multiply"):
            (x * 2).data = x.data

    def test_is_refused_for_integers_under_a_gradient(self, x):
        with pytest.raises(DtypeError, match="cannot hold int64"):
            x.data = np.zeros((2, 3), int)

    def test_takes_numbers_lists_and_tensors(self, x):
        x = x.detach()
        x.data = [[1, 2, 3]]
        assert (x.shape, x.dtype) == ((1, 3), np.float32)
        x.data = 5
        assert x.shape == ()
        x.data = Tensor([1.0, 2.0])
        assert x.shape == (2,)

    def test_keeps_the_shape_of_a_leaf_that_requires_a_gradient(self, x):
        with pytest.raises(ShapeError, match=r"has shape \(2, 3\), and keeps it; the array has \(3,\)"):
            x.data = np.ones(3, np.float32)

    def test_leaves_numbers_on_the_device_of_the_tensor(self):
        t = on_strict(1, 2)
        t.data = [3, 4]
        assert t.device == "strict:0"

    def test_raises_the_version(self, x):
        before = x.version
        x.data = x.data
        x.data += 1
        assert x.version == before + 2

    def test_drops_a_gradient_that_no_longer_fits(self, x):
        (x * x).sum().backward()
        x.data = x.data + 1
        assert x.grad is not None
        x.data = x.data.astype(np.float64)
        assert x.grad is None


class TestRequiresGrad:
    def test_can_be_taken_from_a_leaf_and_given_back(self, x):
        x.requires_grad = False
        assert (x * 2).is_leaf
        x.requires_grad = True
        assert not (x * 2).is_leaf

    def test_cannot_be_taken_from_a_result(self, x):
        with pytest.raises(GraphError, match=r"the result of multiply and part of a graph[\s\S]*detach"):
            (x * 2).requires_grad = False

    def test_is_handed_on(self, x):
        assert (x + 1).requires_grad
        assert not (x.detach() + 1).requires_grad


class TestGrad:
    def test_is_none_before(self, x):
        assert x.grad is None

    def test_is_a_tensor_without_a_graph(self, x):
        (x * x).sum().backward()
        assert type(x.grad) is Tensor
        assert x.grad.is_leaf and not x.grad.requires_grad

    def test_can_be_assigned(self, x):
        x.grad = np.ones((2, 3), np.float32)
        assert type(x.grad) is Tensor
        x.grad = None
        assert x.grad is None

    def test_must_have_the_shape(self, x):
        with pytest.raises(ShapeError, match=r"a gradient of shape \(3,\) does not belong to a Tensor of shape \(2, 3\)"):
            x.grad = np.ones(3, np.float32)


class TestComparisons:
    @pytest.mark.parametrize("other", [2, 2.0, np.float32(2), np.full(3, 2, np.float32), Tensor([2.0])])
    def test_give_plain_boolean_arrays(self, x, other):
        for result in (x == other, x != other, x < other, x <= other, x > other, x >= other):
            assert type(result) is np.ndarray
            assert result.dtype == bool
        np.testing.assert_array_equal(x > other, [[False, False, True], [True, True, True]])

    def test_also_with_an_array_on_the_left(self, x):
        result = np.full(3, 2, np.float32) < x
        assert type(result) is np.ndarray
        np.testing.assert_array_equal(result, x.data > 2)

    def test_stay_on_the_device(self):
        assert type(on_strict(1, 2) > 1) is strict.StrictArray

    def test_tensors_are_told_apart_by_identity(self, x):
        assert len({x, x, Tensor(x.data)}) == 2


class TestWriting:
    @pytest.mark.parametrize("get", [lambda x: x, lambda x: x * 2])
    def test_is_refused_in_a_graph_and_names_the_alternative(self, x, get):
        with pytest.raises(GraphError, match=r"cannot be written to[\s\S]*Build a new one: where\(mask, new, t\)"):
            get(x)[0] = 1

    def test_works_on_plain_tensors_and_raises_the_version(self):
        t = Tensor(np.zeros((2, 2)))
        t[0, Tensor([1])] = Tensor(5.0)
        np.testing.assert_array_equal(t.data, [[0, 5], [0, 0]])
        assert t.version == 1

    def test_in_place_operators_make_a_new_tensor(self, x):
        y = x
        y += 1
        assert y is not x
        assert x.data[0, 0] == 1


class TestNumpyCannotSwallowIt:
    @pytest.mark.parametrize("f", [np.exp, lambda x: np.add(x, 1), lambda x: np.add(1, x), np.isfinite])
    def test_ufuncs(self, x, f):
        with pytest.raises(TypeError):
            f(x)

    @pytest.mark.parametrize("f, name", [(lambda x: np.where(x > 0, x, 0.0), "where"), (lambda x: np.concatenate([x, x]), "concatenate"),
                                         (np.sum, "sum"), (np.zeros_like, "zeros_like")])
    def test_functions_and_the_error_names_minidl_s(self, x, f, name):
        with pytest.raises(ArgumentError, match=rf"numpy\.{name} does not record[\s\S]*minidl\.functions\.{name}"):
            f(x)

    def test_operators_with_an_array_on_the_left(self, x):
        a = np.ones((2, 3), np.float32)
        for y in (a + x, a - x, a * x, a / x, a ** x, a @ x.T, np.float32(2) * x, a.sum() + x):
            assert type(y) is Tensor and y.requires_grad

    def test_asarray_only_without_a_graph(self, x):
        with pytest.raises(GraphError):
            np.asarray(x)
        assert np.asarray(x.detach()).dtype == np.float32
        assert np.asarray(x.detach(), dtype=int).dtype == int

    def test_asarray_only_on_the_cpu(self):
        with pytest.raises(DeviceError, match=r"on strict:0 is not made a NumPy array by accident[\s\S]*to\('cpu'\)"):
            np.asarray(on_strict(1))


class TestWhatPythonAsks:
    def test_iteration_stays_in_the_graph(self, x):
        first, second = x
        (first * second).sum().backward()
        np.testing.assert_array_equal(x.grad.data, [[4, 5, 6], [1, 2, 3]])

    def test_length(self, x):
        assert len(x) == 2
        with pytest.raises(ShapeError, match="one number"):
            len(x.sum())
        with pytest.raises(ShapeError, match="one number"):
            list(x.sum())

    def test_truth_of_one_number(self, x):
        assert x.sum() and not Tensor(0.0)
        with pytest.raises(ShapeError, match=r"neither true nor false[\s\S]*any"):
            bool(x)

    def test_conversions(self):
        assert (float(Tensor(1.5)), int(Tensor([2])), [10, 20][Tensor(1)]) == (1.5, 2, 20)
        with pytest.raises(DtypeError, match="cannot be an index"):
            [10, 20][Tensor(1.0)]

    def test_format(self, x):
        assert f"{x.mean():.2f}" == "3.50"
        assert f"{Tensor(1)}" == "Tensor(1)"

    def test_repr_says_what_it_is_and_where_from(self, x):
        assert repr(Tensor([1])) == "Tensor([1])"
        assert repr(Tensor([1.5], requires_grad=True)) == "Tensor([1.5], dtype=float32, requires_grad=True)"
        assert repr(x.sum()) == "Tensor(21., dtype=float32, from=sum)"
        assert repr(on_strict(1)) == "Tensor([1.], dtype=float32, device='strict:0')"

    def test_repr_of_a_large_one_is_short(self):
        assert len(repr(Tensor(np.zeros((1000, 1000))))) < 1000


class TestCopies:
    @pytest.mark.parametrize("twin", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
    def test_of_a_leaf_share_nothing_and_have_no_gradient(self, x, twin):
        (x * x).sum().backward()
        x.register_hook(print)
        y = twin(x)
        assert y.requires_grad and y.grad is None and y.watchers is None
        assert not np.shares_memory(x.data, y.data)
        np.testing.assert_array_equal(x.data, y.data)

    def test_of_one_that_stands_in_two_places_are_one(self, x):
        first, second = copy.deepcopy([x, x])
        assert first is second

    @pytest.mark.parametrize("twin", [copy.copy, copy.deepcopy, pickle.dumps])
    def test_of_a_result_are_refused(self, x, twin):
        with pytest.raises(GraphError, match=r"the result of multiply cannot be copied or pickled[\s\S]*detach"):
            twin(x * 2)


def test_methods_and_operators_are_bound():
    for name in ("__add__", "__getitem__", "sum", "mean", "var", "max", "min", "argmax", "clip", "exp", "log", "sqrt", "tanh", "reshape",
                 "transpose", "swapaxes", "squeeze", "flatten", "astype", "to", "T", "backward"):
        assert hasattr(Tensor, name)
    assert minidl.Tensor is Tensor
    assert type(F.argmax(Tensor([1.0, 3.0]))) is not Tensor
