"""Products: matmul, einsum, the affine layer and the embedding, entry by entry."""

import itertools
import math

import numpy as np
import pytest

import minidl
from cases import ACTIVATIONS, FunctionCase, each, says
from minidl import Tensor
from minidl import functions as F
from minidl.errors import ArgumentError, DtypeError, LabelError, ShapeError


def product(a, b):
    """Matrices times matrices, entry by entry."""
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    a, b = np.broadcast_to(a, (*batch, *a.shape[-2:])), np.broadcast_to(b, (*batch, *b.shape[-2:]))
    y = np.empty((*batch, a.shape[-2], b.shape[-1]))
    for *place, i, j in np.ndindex(y.shape):
        y[(*place, i, j)] = math.fsum(a[(*place, i, k)] * b[(*place, k, j)] for k in range(b.shape[-2]))
    return y


class TestMatmul(FunctionCase):
    functions = ("matmul",)
    examples = 6

    def inputs(self, draw):
        a, b = draw.choice(((2, 3), (3, 4)), ((2, 2, 3), (3, 1)), ((2, 1, 2, 3), (4, 3, 2)), ((1, 1), (1, 2)), ((3, 2), (5, 2, 1)),
                           ((2, 0), (0, 3)))
        return draw.array(a), draw.array(b)

    def forward(self, a, b):
        return F.matmul(a, b)

    def expected(self, a, b):
        return product(a, b)


class TestMatmulOfVectors(FunctionCase):
    functions = ("matmul",)
    examples = 5

    def inputs(self, draw):
        a, b = draw.choice(((3,), (3,)), ((3,), (3, 2)), ((2, 3), (3,)), ((3,), (2, 3, 4)), ((2, 4, 3), (3,)))
        return draw.array(a), draw.array(b)

    def forward(self, a, b):
        return F.matmul(a, b)

    def expected(self, a, b):
        y = product(a[None] if a.ndim == 1 else a, b[:, None] if b.ndim == 1 else b)
        y = y[..., 0] if b.ndim == 1 else y
        return y if a.ndim > 1 else y[..., 0] if b.ndim == 1 else y[..., 0, :]


class TestAffine(FunctionCase):
    functions = ("affine",)
    examples = 8

    def inputs(self, draw):
        inputs, outputs = draw.integer(2, 4), draw.integer(1, 3)
        lead = draw.choice((3,), (), (2, 2), (1,), (5,))
        b = draw.array((outputs,))
        return draw.array((*lead, inputs)), draw.array((inputs, outputs)), draw.choice(b, b, None), draw.choice(*ACTIVATIONS)

    def forward(self, x, w, b, activation):
        return F.affine(x, w, b, activation)

    def expected(self, x, w, b, activation):
        y = product(x.reshape(-1, len(w)), w) + (0 if b is None else b)
        return each(ACTIVATIONS[activation], y).reshape(*x.shape[:-1], -1)


class TestEmbedding(FunctionCase):
    functions = ("embedding",)

    def inputs(self, draw):
        return draw.labels(draw.choice((5,), (2, 3), (), (0,)), 4).astype(draw.choice("int64", "uint8", "int32")), draw.array((4, 3))

    def forward(self, ids, w):
        return F.embedding(ids, w)

    def expected(self, ids, w):
        return np.array([w[i] for i in ids.ravel()]).reshape(*ids.shape, 3)


EINSUMS = (                             # as it is written, the same with a letter for each axis, and the shapes
    ("ij,jk->ik", "ij,jk->ik", (2, 3), (3, 4)),
    ("ii->i", "ii->i", (3, 3)),
    ("ii", "ii->", (3, 3)),
    ("ij->j", "ij->j", (2, 3)),
    ("ji", "ji->ij", (2, 3)),
    ("i, j -> ij", "i,j->ij", (2,), (3,)),
    ("...ij,...jk->...ik", "abij,abjk->abik", (2, 1, 2, 3), (1, 4, 3, 2)),
    ("...i,i", "ai,i->a", (2, 3), (3,)),
    ("...i->i", "abi->i", (2, 3, 2)),
    ("b...,b->...", "bac,b->ac", (2, 3, 2), (2,)),
    ("iij,j->i", "iij,j->i", (2, 2, 3), (3,)),
    ("iii->", "iii->", (2, 2, 2)),
    ("ij,kl->", "ij,kl->", (2, 3), (2, 1)),
    ("ab,bc,cd->ad", "ab,bc,cd->ad", (2, 3), (3, 2), (2, 4)),
    ("ij,ij->ij", "ij,ij->ij", (2, 3), (2, 3)),
    ("nchw,ochw->no", "nchw,ochw->no", (2, 2, 2, 3), (3, 2, 2, 3)),
    ("i,i,i->", "i,i,i->", (3,), (3,), (3,)),
    ("Ai,iA->A", "Ai,iA->A", (2, 3), (3, 2)),
    (",i->i", ",i->i", (), (3,)),
)


class TestEinsum(FunctionCase):
    functions = ("einsum",)
    examples = len(EINSUMS)

    def inputs(self, draw):
        subscripts, explicit, *shapes = draw.choice(*EINSUMS)
        return subscripts, explicit, *(draw.array(shape) for shape in shapes)

    def forward(self, subscripts, explicit, *xs):
        return F.einsum(subscripts, *xs)

    def expected(self, subscripts, explicit, *xs):
        left, output = explicit.split("->")
        terms = left.split(",")
        sizes = {}
        for term, x in zip(terms, xs):
            for letter, n in zip(term, x.shape):
                sizes[letter] = max(n, sizes.get(letter, 1))
        y = np.zeros([sizes[letter] for letter in output])
        for places in itertools.product(*map(range, sizes.values())):
            at = dict(zip(sizes, places))
            y[tuple(at[letter] for letter in output)] += math.prod(
                x[tuple(min(at[letter], n - 1) for letter, n in zip(term, x.shape))] for term, x in zip(terms, xs))
        return y


def leaf(*shape, dtype="float64"):
    return Tensor(np.arange(math.prod(shape), dtype=dtype).reshape(shape) - 2, requires_grad=True)


class TestAffineAlone:
    def test_what_is_frozen_changes_no_other_gradient(self):
        x, w, b = leaf(3, 2), leaf(2, 4), leaf(4)
        F.affine(x, w, b, "tanh").sum().backward()
        for wanted in itertools.product((False, True), repeat=3):
            some = [Tensor(t.data, requires_grad) for t, requires_grad in zip((x, w, b), wanted)]
            y = F.affine(*some, "tanh").sum()
            if any(wanted):
                y.backward()
            for mine, theirs in zip(some, (x, w, b)):
                assert mine.grad is None if not mine.requires_grad else np.array_equal(mine.grad.data, theirs.grad.data)

    def test_an_activation_that_is_fused_is_the_function_of_its_name(self):
        x, w, b = np.linspace(-1, 1, 6).reshape(3, 2), np.linspace(-2, 1, 8).reshape(2, 4), np.ones(4)
        for name in ("relu", "tanh", "sigmoid"):
            fused = [Tensor(a, requires_grad=True) for a in (x, w, b)]
            plain = [Tensor(a, requires_grad=True) for a in (x, w, b)]
            y, z = F.affine(*fused, activation=name), getattr(F, name)(F.affine(*plain))
            np.testing.assert_allclose(y.data, z.data)
            y.backward(np.ones((3, 4)))
            z.backward(np.ones((3, 4)))
            for mine, theirs in zip(fused, plain):
                np.testing.assert_allclose(mine.grad.data, theirs.grad.data)

    def test_a_fused_relu_leaves_the_gradient_that_comes_in_alone(self):
        gy = np.ones((2, 3))
        F.affine(leaf(2, 2), leaf(2, 3), None, "relu").backward(gy)
        assert gy.tolist() == np.ones((2, 3)).tolist()

    def test_an_empty_batch(self):
        x, w, b = Tensor(np.zeros((0, 2), np.float32), requires_grad=True), leaf(2, 3, dtype="float32"), leaf(3, dtype="float32")
        y = F.affine(x, w, b, "relu")
        y.sum().backward()
        assert y.shape == (0, 3) and x.grad.shape == (0, 2)
        assert not w.grad.data.any() and not b.grad.data.any()


class TestEmbeddingAlone:
    def test_a_row_that_is_used_twice_gets_the_sum_of_both(self):
        w = leaf(3, 2)
        F.embedding(np.array([1, 1, 0]), w).backward(np.array([[1.0, 2], [10, 20], [5, 6]]))
        assert w.grad.data.tolist() == [[5, 6], [11, 22], [0, 0]]

    def test_it_is_the_product_with_one_hot_rows(self):
        ids, w = np.array([2, 0]), leaf(3, 2).data
        np.testing.assert_array_equal(F.embedding(Tensor(ids), w).data, np.eye(3)[ids] @ w)


class TestDtypes:
    def test_float32_stays_in_float32_to_second_order(self):
        a, b = leaf(2, 3, dtype="float32"), leaf(3, 2, dtype="float32")
        for y in (a @ b, F.affine(a, b, activation="sigmoid"), F.einsum("ij,jk->i", a, b), F.einsum("ij,kj->", a, b.T)):
            firsts = minidl.grad(y, [a, b], np.ones(y.shape), create_graph=True)
            seconds = minidl.grad([g.sum() for g in firsts], [a, b])
            assert all(t.dtype == np.float32 for t in (y, *firsts, *seconds))

    def test_operators_with_arrays_on_either_side(self):
        a, b = np.arange(6.0).reshape(2, 3), np.arange(12.0).reshape(3, 4)
        for y in (Tensor(a) @ Tensor(b), Tensor(a) @ b, a @ Tensor(b)):
            assert isinstance(y, Tensor) and y.data.tolist() == (a @ b).tolist()


class TestErrors:
    @pytest.mark.parametrize(("a", "b"), [((2, 3), (2, 3)), ((3,), (2,)), ((2,), (3, 2)), ((), (2,)), ((2, 3), ())])
    def test_matmul(self, a, b):
        with pytest.raises(ShapeError, match=says("matmul: the inner lengths must agree", f"a: {a} (..., I, K)", f"b: {b} (..., K, J)")):
            F.matmul(np.ones(a), np.ones(b))

    def test_matmul_of_batches_that_do_not_broadcast(self):
        with pytest.raises(ShapeError, match=says("matmul: ", "a: (2, 1, 2) float64    b: (3, 2, 1) float64")):
            F.matmul(np.ones((2, 1, 2)), np.ones((3, 2, 1)))

    @pytest.mark.parametrize(("shapes", "words"), [
        (((2, 3), (4, 5)), ("affine: x has 3 inputs, w expects 4", "x: (2, 3) (N, inputs)", "w: (4, 5) (inputs, outputs)")),
        (((2, 1, 2, 2), (4, 5)), ("affine: x has 2 inputs, w expects 4", "flatten(x)")),
        (((2, 4), (4,)), ("affine: ", "w: (4,) (inputs, outputs)")),
        (((), (4, 5)), ("affine: x has no inputs", "x: ()")),
        (((2, 4), (4, 5), (4,)), ("affine: b has shape (4,), and w gives 5 outputs", "b: (4,) (outputs,)")),
        (((2, 4), (4, 5), (1, 5)), ("affine: b has shape (1, 5)",)),
    ])
    def test_affine(self, shapes, words):
        with pytest.raises(ShapeError, match=says(*words)):
            F.affine(*map(np.ones, shapes))

    def test_dtypes_of_affine(self):
        x, w = np.ones((2, 3), np.float32), np.ones((3, 2))
        with pytest.raises(DtypeError, match=says("affine: x is float32, w is float64", "x.astype('float64')", "layer.to(dtype=")):
            F.affine(x, w)
        with pytest.raises(DtypeError, match=says("affine: x is int64, and must be of a float type", "x.astype('float32')")):
            F.affine(x.astype("int64"), w)
        with pytest.raises(DtypeError, match=says("affine: x is a list, and must be an array", "numpy.asarray(x, dtype='float32')")):
            F.affine([[1.0, 2.0, 3.0]], w)

    def test_an_activation_that_cannot_be_fused(self):
        with pytest.raises(ArgumentError, match=says("affine: activation 'gelu'", "relu, tanh, sigmoid", "call the function")):
            F.affine(np.ones((2, 3)), np.ones((3, 2)), activation="gelu")

    def test_embedding(self):
        w = np.ones((3, 2))
        with pytest.raises(LabelError, match=says("embedding: ids run from 0 to 3, and w has 3 rows")):
            F.embedding(np.array([0, 3]), w)
        with pytest.raises(LabelError, match=says("embedding: ids run from -1 to 2")):
            F.embedding(np.array([2, -1]), w)
        with pytest.raises(DtypeError, match=says("embedding: ids are float64, and must be integers", "ids.astype('int64')")):
            F.embedding(np.array([0.0]), w)
        with pytest.raises(DtypeError, match=says("embedding: ids are list, and must be integers")):
            F.embedding([0, 1], w)
        with pytest.raises(ShapeError, match=says("embedding: w must be a table", "w: (3,) (count, size)")):
            F.embedding(np.array([0]), w[:, 0])
        with pytest.raises(DtypeError, match=says("embedding: w is a list")):
            F.embedding(np.array([0]), [[1.0]])

    @pytest.mark.parametrize(("subscripts", "shapes", "words"), [
        ("ij,jk->ik", ((2, 3), (4, 2)), ("einsum: ", "xs[0]: (2, 3) float64    xs[1]: (4, 2) float64")),
        ("ij->i", ((2,),), ("einsum: 'ij' does not name the axes of its operand", "operand: (2,)", "subscripts: ij->i")),
        ("i...->i", ((),), ("einsum: 'i...' does not name the axes", "operand: ()")),
        ("ij->ik", ((2, 3),), ("einsum: ", "(2, 3) float64")),
        ("ij->ijj", ((2, 3),), ("einsum: ", "(2, 3) float64")),
        ("ii->i", ((2, 3),), ("einsum: ", "(2, 3) float64")),
    ])
    def test_einsum(self, subscripts, shapes, words):
        with pytest.raises(ShapeError, match=says(*words)):
            F.einsum(subscripts, *map(np.ones, shapes))

    def test_einsum_of_too_few(self):
        with pytest.raises(ArgumentError, match=says("einsum: 'ij,jk->ik' has 2 operands, and 1 are given")):
            F.einsum("ij,jk->ik", np.ones((2, 3)))

    def test_a_layer_that_returned_nothing(self):
        for call in (lambda x, w: F.affine(None, w), lambda x, w: F.affine(x, None), lambda x, w: F.matmul(x, None)):
            with pytest.raises(DtypeError, match=says("", "is a NoneType, and must be an array or a Tensor")):
                call(np.ones((2, 3)), np.ones((3, 2)))

    def test_lists_are_no_arrays(self):
        with pytest.raises(DtypeError, match=says("matmul: b is a list, and must be an array")):
            F.matmul(np.ones((2, 2)), [[1.0], [2.0]])
        with pytest.raises(DtypeError, match=says("einsum: xs[0] is a list, and must be an array")):
            F.einsum("i->", [1.0])
