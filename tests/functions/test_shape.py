"""Shape functions: where each number goes, and where its gradient comes back to."""

import numpy as np
import pytest

import minidl
from cases import FunctionCase, says
from minidl import Tensor, backend
from minidl import functions as F
from minidl.errors import ArgumentError, DeviceError, DtypeError, GraphError, LabelError, ShapeError

ONE_TO_FOUR = ((4,), (2, 3), (3, 1, 2), (2, 3, 4, 2))


class TestReshape(FunctionCase):
    functions = ("reshape",)

    def inputs(self, draw):
        return draw.array((2, 3, 4)), draw.choice((6, 4), (24,), (-1, 2), (2, 1, 12), (4, -1, 3))

    def forward(self, x, shape):
        return F.reshape(x, shape)

    def expected(self, x, shape):
        return np.array(list(x.flat)).reshape(shape)


class TestTranspose(FunctionCase):
    functions = ("transpose",)

    def inputs(self, draw):
        return draw.array((2, 3, 4)), draw.choice((0, 2, 1), (2, 0, 1), (-1, 0, 1), (1, -3, 2), None)

    def forward(self, x, axes):
        return F.transpose(x) if axes is None else F.transpose(x, *axes)

    def expected(self, x, axes):
        axes = (2, 1, 0) if axes is None else axes
        y = np.empty([x.shape[a] for a in axes])
        for place in np.ndindex(y.shape):
            source = [0, 0, 0]
            for i, a in zip(place, axes):
                source[a] = i
            y[place] = x[tuple(source)]
        return y


class TestSwapaxes(FunctionCase):
    functions = ("swapaxes",)
    examples = 4

    def inputs(self, draw):
        return draw.array((2, 3, 4)), draw.choice(0, -1, 1, 2), draw.choice(1, 0, 2)

    def forward(self, x, a, b):
        return F.swapaxes(x, a, b)

    def expected(self, x, a, b):
        order = [0, 1, 2]
        order[a], order[b] = order[b], order[a]
        return x.transpose(order)


class TestSqueeze(FunctionCase):
    functions = ("squeeze",)

    def inputs(self, draw):
        return draw.array((1, 3, 1, 2, 1)), draw.choice(None, 0, -1, (0, 2), (-5, 4, 2), 2)

    def forward(self, x, axis):
        return F.squeeze(x, axis)

    def expected(self, x, axis):
        return np.squeeze(x, axis)


class TestExpandDims(FunctionCase):
    functions = ("expand_dims",)
    examples = 12

    def inputs(self, draw):
        x = draw.array(draw.choice((2, 3), (3,), ()))
        return x, draw.choice(0, -1, -x.ndim - 1, x.ndim)

    def forward(self, x, axis):
        return F.expand_dims(x, axis)

    def expected(self, x, axis):
        return np.expand_dims(x, axis)


class TestFlatten(FunctionCase):
    functions = ("flatten",)

    def inputs(self, draw):
        return draw.array(draw.choice((2, 3, 4, 2), (3, 2), (4,), (1, 2, 3)))

    def forward(self, x):
        return F.flatten(x)

    def expected(self, x):
        return np.array([[x[place] for place in np.ndindex(x.shape) if place[0] == n] for n in range(len(x))])


class TestBroadcastTo(FunctionCase):
    functions = ("broadcast_to",)

    def inputs(self, draw):
        return draw.array(draw.choice((3,), (2, 1), (), (1, 3), (2, 3))), (4, 2, 3)

    def forward(self, x, shape):
        return F.broadcast_to(x, shape)

    def expected(self, x, shape):
        return np.zeros(shape) + x


KEYS = (1, slice(None, None, 2), (slice(None), -1), (Ellipsis, 0, slice(2, 0, -1)), None, (0, None, Ellipsis), [2, 0, 2],
        (slice(1), [1, 1]), (0, 1, 2), (slice(2, 2),), Ellipsis, ([0, 2, 0], slice(None), [1, 1, 1]), np.int64(2),
        [True, False, True], -3, ())


class TestGetitem(FunctionCase):
    functions = ("getitem",)
    examples = len(KEYS)

    def inputs(self, draw):
        return draw.array((3, 2, 4)), draw.choice(*KEYS)

    def forward(self, x, key):
        return F.getitem(x, key)

    def expected(self, x, key):
        return x[key]


class TestGetitemWithArrays(FunctionCase):
    functions = ("getitem",)

    def inputs(self, draw):
        rows, columns = draw.choice(((4,), (4,)), ((2, 3), (3,)), ((), (2,)), ((2, 1), (1, 3)))
        return draw.array((3, 2, 4)), draw.labels(rows, 3), draw.labels(columns, 4) - 4 * draw.choice(0, 1)

    def forward(self, x, rows, columns):
        return F.getitem(x, (rows, slice(None), columns))

    def expected(self, x, rows, columns):
        rows, columns = np.broadcast_arrays(rows, columns)
        return np.array([[x[r, k, c] for k in range(2)] for r, c in zip(rows.flat, columns.flat)]).reshape(*rows.shape, 2)


class TestGetitemWithMasks(FunctionCase):
    functions = ("getitem",)
    examples = 3

    def inputs(self, draw):
        return draw.array((3, 2, 4)), draw.mask(draw.choice((3, 2, 4), (3,), (3, 2)))

    def forward(self, x, mask):
        return F.getitem(x, mask)

    def expected(self, x, mask):
        return np.array([x[place] for place in np.ndindex(mask.shape) if mask[place]]).reshape(-1, *x.shape[mask.ndim:])


class TestConcatenate(FunctionCase):
    functions = ("concatenate",)

    def inputs(self, draw):
        shape, axis = draw.choice(*ONE_TO_FOUR), draw.choice(0, -1, 0)
        axis = axis % len(shape)
        lengths = draw.choice((2, 1, 3), (1,), (2, 0), (1, 1, 1, 4))
        return draw.choice(axis, axis - len(shape)), *(draw.array((*shape[:axis], n, *shape[axis + 1:])) for n in lengths)

    def forward(self, axis, *xs):
        return F.concatenate(xs, axis)

    def expected(self, axis, *xs):
        return np.moveaxis(np.array([part for x in xs for part in np.moveaxis(x, axis, 0)]), 0, axis)


class TestStack(FunctionCase):
    functions = ("stack",)

    def inputs(self, draw):
        shape = draw.choice((2, 3), (3,), ())
        return draw.choice(0, -1, -len(shape) - 1, len(shape)), *(draw.array(shape) for _ in range(draw.choice(3, 2, 1)))

    def forward(self, axis, *xs):
        return F.stack(xs, axis)

    def expected(self, axis, *xs):
        return np.moveaxis(np.array(xs), 0, axis)


class TestSplit(FunctionCase):
    functions = ("split",)

    def inputs(self, draw):
        return draw.array((6, 2)), *draw.choice((2, 0), ([1, 4], 0), (2, -1), ([0, 3, 3], -2), (6, 0), ((4,), 0))

    def forward(self, x, sections, axis):
        return tuple(F.split(x, sections, axis))

    def expected(self, x, sections, axis):
        return tuple(np.split(x, sections, axis))


class TestPad(FunctionCase):
    functions = ("pad",)

    def inputs(self, draw):
        return draw.array((2, 3)), draw.choice(1, (1, 2), [(0, 1), (2, 0)], 0, ((3, 3), (0, 0))), draw.choice(0.0, 2.5, -1)

    def forward(self, x, widths, value):
        return F.pad(x, widths, value)

    def expected(self, x, widths, value):
        (top, bottom), (left, right) = np.broadcast_to(widths, (2, 2))
        y = np.full((2 + top + bottom, 3 + left + right), float(value))
        y[top:top + 2, left:left + 3] = x
        return y


class TestFlip(FunctionCase):
    functions = ("flip",)

    def inputs(self, draw):
        x = draw.array(draw.choice(*ONE_TO_FOUR))
        return x, draw.choice(0, -1, x.ndim - 1)

    def forward(self, x, axis):
        return F.flip(x, axis)

    def expected(self, x, axis):
        return np.apply_along_axis(lambda row: list(reversed(row)), axis, x)


class TestAstype(FunctionCase):
    functions = ("astype",)

    def inputs(self, draw):
        return draw.array()

    def forward(self, x):
        return F.astype(F.astype(x, "float64"), x.dtype)

    def expected(self, x):
        return x


class TestTo(FunctionCase):
    functions = ("to",)
    examples = 3

    def inputs(self, draw):
        return draw.array()

    def forward(self, x):
        home = x.device if isinstance(x, Tensor) else backend.device_of(x)
        return F.to(F.to(x, "strict:1"), home)

    def expected(self, x):
        return x


def leaf(*shape, dtype="float64"):
    return Tensor(np.arange(np.prod(shape), dtype=dtype).reshape(shape), requires_grad=True)


class TestGradients:
    def test_a_number_that_is_picked_twice_gets_the_sum_of_both(self):
        x = leaf(3)
        x[[2, 0, 2]].backward(np.array([1.0, 10.0, 100.0]))
        assert x.grad.data.tolist() == [10, 0, 101]

    def test_flatten_has_the_order_c_h_w_whatever_the_memory_order(self):
        x = np.arange(24.0).reshape(2, 3, 2, 2)
        last = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
        assert last.strides != x.strides and F.flatten(last).tolist() == x.reshape(2, 12).tolist()

    def test_a_gradient_comes_back_in_its_own_dtype(self):
        x = leaf(3, dtype="float32")
        (F.astype(x, "float64") * np.array([1.0, 2.0, 3.0])).sum().backward()
        assert x.grad.dtype == np.float32 and x.grad.data.tolist() == [1, 2, 3]

    def test_a_gradient_comes_back_to_its_own_device(self):
        x = leaf(3)
        y = F.to(x, "strict:0") * 2
        assert y.device == "strict:0"
        y.sum().backward()
        assert x.grad.device == "cpu" and x.grad.data.tolist() == [2, 2, 2]

    def test_integers_carry_no_gradient(self):
        y = F.astype(leaf(3), "int64")
        assert y.dtype == np.int64 and not y.requires_grad

    def test_writing_to_a_result_of_reshape_does_not_change_the_gradient(self):
        x = leaf(4)
        y = F.reshape(x, 2, 2)
        (y * y).sum().backward()
        before = x.grad.data.copy()
        y.data[...] = 7                                         # a view of x, and not of its gradient
        assert x.grad.data.tolist() == before.tolist()


class TestMethods:
    def test_of_tensors(self):
        x = leaf(2, 1, 3)
        assert x.T.shape == x.transpose().shape == (3, 1, 2) and x.transpose(1, 0, 2).shape == x.transpose((1, 0, 2)).shape == (1, 2, 3)
        assert x.reshape(3, 2).shape == x.reshape((3, -1)).shape == x.reshape([3, 2]).shape == (3, 2)
        assert x.swapaxes(0, 2).shape == (3, 1, 2) and x.squeeze().shape == x.squeeze(1).shape == (2, 3) and x.flatten().shape == (2, 3)
        assert x.astype("float32").dtype == np.float32 and x.to("cpu") is x and x.astype("float64") is x
        assert [row.shape for row in x] == [(1, 3), (1, 3)]

    def test_of_indices_that_are_tensors(self):
        x = leaf(3, 2)
        assert x[Tensor(np.array([2, 0]))].data.tolist() == [[4, 5], [0, 1]] and x[Tensor(np.array(1))].data.tolist() == [2, 3]
        assert x[x > 3].data.tolist() == [4, 5]


def test_ints_may_be_numpys():
    one, two = np.int64(1), np.int64(2)
    x = np.ones((4, 2))
    assert F.pad(x, one).shape == F.pad(x, (one, 1)).shape == (6, 4) and len(F.split(x, two)) == 2
    assert F.reshape(x, two, 4).shape == F.squeeze(F.expand_dims(x, one), one).shape[::-1] == (2, 4)
    assert F.swapaxes(x, one, np.int64(0)).shape == (2, 4) and F.broadcast_to(x[0, 0:1], two).shape == (2,)


class TestEmpty:
    def test_arrays(self):
        x = leaf(0, 3)
        for y in (F.flatten(x), F.reshape(x, 3, 0), F.transpose(x), F.concatenate([x, x]), F.stack([x, x]), x[:0], x[[]], F.flip(x, 0),
                  F.pad(x, 0), F.expand_dims(x, 0), *F.split(x, 2), F.broadcast_to(x, (2, 0, 3))):
            (first,) = minidl.grad(y, x, np.zeros(y.shape), retain_graph=True)
            assert y.size == 0 and first.shape == (0, 3)

    def test_padding_nothing(self):
        x = leaf(0, 3)
        y = F.pad(x, 1)
        y.sum().backward()
        assert y.shape == (2, 5) and x.grad.shape == (0, 3)


class TestErrors:
    @pytest.mark.parametrize(("call", "words"), [
        (lambda x: F.reshape(x, 4, 2), ("reshape: cannot reshape", "x: (2, 3) float64")),
        (lambda x: F.transpose(x, 0, 0), ("transpose: (0, 0) does not name each axis once", "x: (2, 3)")),
        (lambda x: F.transpose(x, 0, 2), ("transpose: (0, 2) does not name each axis once", "x: (2, 3)")),
        (lambda x: F.swapaxes(x, 0, 2), ("swapaxes: axis 2 does not exist", "x: (2, 3)")),
        (lambda x: F.squeeze(x, 0), ("squeeze: axis 0 is longer than 1", "x: (2, 3)")),
        (lambda x: F.squeeze(x, 2), ("squeeze: axis 2 does not exist", "x: (2, 3)")),
        (lambda x: F.expand_dims(x, 4), ("expand_dims: there is no place 4", "x: (2, 3)")),
        (lambda x: F.flatten(x.sum()), ("flatten: x has no axis of examples", "x: () (N, ...)")),
        (lambda x: F.broadcast_to(x, (3, 3)), ("broadcast_to: ", "x: (2, 3) float64")),
        (lambda x: F.concatenate([x, x[:, :2]]), ("concatenate: ", "xs[0]: (2, 3) float64    xs[1]: (2, 2) float64")),
        (lambda x: F.concatenate([x, x], 2), ("concatenate: axis 2 does not exist", "(2, 3)")),
        (lambda x: F.concatenate([x.sum(), x.sum()]), ("concatenate: axis 0 does not exist", "()")),
        (lambda x: F.stack([x, x[0]]), ("stack: ", "(2, 3)", "(3,)")),
        (lambda x: F.split(x, 2, 1), ("split: an axis of length 3 cannot be cut into 2 equal parts", "x: (2, 3)", "split(x, [2, 5]")),
        (lambda x: F.split(x, 0), ("split: an axis of length 2 cannot be cut into 0 equal parts",)),
        (lambda x: F.split(x, 2, 2), ("split: axis 2 does not exist", "x: (2, 3)")),
        (lambda x: F.pad(x, [(1, 1)]), ("pad: widths ((1, 1),) do not fit", "x: (2, 3)", "(before, after)")),
        (lambda x: F.pad(x, -1), ("pad: widths ((-1, -1), (-1, -1)) do not fit", "neither negative")),
        (lambda x: F.flip(x, 2), ("flip: ", "axis 2", "x: (2, 3)")),
    ])
    def test_shapes(self, call, words):
        for x in (np.ones((2, 3)), Tensor(np.ones((2, 3)))):
            with pytest.raises(ShapeError, match=says(*words)):
                call(x)

    @pytest.mark.parametrize("key", [2, (0, 3), (slice(None), [0, 3]), np.array([-3])])
    def test_an_index_that_is_out_of_range(self, key):
        with pytest.raises(LabelError, match=says("getitem: ", "out of bounds", "x: (2, 3) float64")):
            F.getitem(np.ones((2, 3)), key)

    def test_nothing_to_join(self):
        for function in (F.concatenate, F.stack):
            with pytest.raises(ArgumentError, match=says(f"{function.__name__}: nothing to join", "at least one array")):
                function([])

    def test_a_dtype_that_is_not_there(self):
        with pytest.raises(DtypeError, match=says("astype: 'floaty' is no dtype", "'float32'")):
            F.astype(np.ones(2), "floaty")

    def test_a_device_that_is_not_there(self):
        with pytest.raises(ArgumentError, match=says("device 'gpu' is not known", '"cuda:0"')):
            F.to(np.ones(2), "gpu")
        with pytest.raises(DeviceError):
            F.to(np.ones(2), "cuda")

    @pytest.mark.parametrize("call", [
        lambda x: F.reshape(x, 1), F.transpose, lambda x: F.swapaxes(x, 0, 0), F.squeeze, lambda x: F.expand_dims(x, 0), F.flatten,
        lambda x: F.broadcast_to(x, (2,)), lambda x: F.getitem(x, 0), lambda x: F.split(x, 1), lambda x: F.pad(x, 1),
        lambda x: F.flip(x, 0), lambda x: F.astype(x, "float32"), lambda x: F.to(x, "cpu"), lambda x: F.concatenate([x]),
        lambda x: F.stack([x])])
    def test_a_list_is_no_array(self, call):
        with pytest.raises(DtypeError, match=says("", "is a list, and must be an array", "numpy.asarray(x")):
            call([1.0, 2.0])

    def test_a_tensor_in_a_graph_is_not_written_to(self):
        with pytest.raises(GraphError, match=says("a Tensor in a graph cannot be written to", "where(mask, new, t)")):
            leaf(3)[0] = 1.0
