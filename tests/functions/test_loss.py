"""Losses, and the distributions that they are the negative log-likelihoods of."""

import math

import numpy as np
import pytest

import minidl
from cases import FunctionCase, each, says
from minidl import Tensor, autograd
from minidl import functions as F
from minidl.errors import ArgumentError, DtypeError, GraphError, LabelError, ShapeError
from minidl.functions.loss import Distribution

LOGITS = ((3, 4), (2, 3, 2), (1, 2), (2, 3, 2, 2), (4, 1))


def reduced(losses, reduction):
    numbers = losses.ravel().tolist()
    return losses if reduction == "none" else math.fsum(numbers) / (len(numbers) if reduction == "mean" else 1)


def cross_entropies(x, target):
    """- sum of target log softmax(x) over axis 1, for each place of the others."""
    y = np.empty((len(x), *x.shape[2:]))
    for n, *place in np.ndindex(y.shape):
        row, wanted = x[(n, slice(None), *place)], target[(n, slice(None), *place)]
        log_total = math.log(math.fsum(math.exp(a) for a in row))
        y[(n, *place)] = -math.fsum(t * (a - log_total) for a, t in zip(row, wanted))
    return y


def one_hot(labels, classes):
    target = np.zeros((len(labels), classes, *labels.shape[1:]))
    for n, *place in np.ndindex(labels.shape):
        target[(n, labels[(n, *place)], *place)] = 1
    return target


def smoothed(target, part):
    return target * (1 - part) + part / target.shape[1]


class TestSoftmaxCrossEntropy(FunctionCase):
    functions = ("softmax_cross_entropy",)
    sums = True
    examples = 8

    def inputs(self, draw):
        shape = draw.choice(*LOGITS)
        labels = draw.labels((shape[0], *shape[2:]), shape[1]).astype(draw.choice("int64", "uint8", "int32"))
        return draw.array(shape), labels, draw.choice(0.0, 0.1, 0, 1.0), draw.choice("mean", "sum", "none")

    def forward(self, x, labels, smoothing, reduction):
        return F.softmax_cross_entropy(x, labels, smoothing, reduction)

    def expected(self, x, labels, smoothing, reduction):
        return reduced(cross_entropies(x, smoothed(one_hot(labels, x.shape[1]), smoothing)), reduction)


class TestSoftLabels(FunctionCase):
    functions = ("softmax_cross_entropy",)
    sums = True
    constants = (1,)

    def inputs(self, draw):
        shape = draw.choice(*LOGITS)
        return draw.array(shape), draw.array(shape, low=0, high=1), draw.choice(0.0, 0.2), draw.choice("mean", "none", "sum")

    def forward(self, x, labels, smoothing, reduction):
        return F.softmax_cross_entropy(x, labels, smoothing, reduction)

    def expected(self, x, labels, smoothing, reduction):
        return reduced(cross_entropies(x, smoothed(labels, smoothing)), reduction)


class TestMSE(FunctionCase):
    functions = ("mse",)
    sums = True

    def inputs(self, draw):
        x = draw.array()
        return x, draw.array(x.shape), draw.choice("mean", "sum", "none")

    def forward(self, x, target, reduction):
        return F.mse(x, target, reduction)

    def expected(self, x, target, reduction):
        return reduced(each(lambda a, t: (a - t) ** 2, x, target), reduction)


class TestBinaryCrossEntropyWithLogits(FunctionCase):
    functions = ("binary_cross_entropy_with_logits",)
    sums = True

    def inputs(self, draw):
        x = draw.array()
        return x, draw.array(x.shape, low=0, high=1), draw.choice("mean", "sum", "none")

    def forward(self, x, target, reduction):
        return F.binary_cross_entropy_with_logits(x, target, reduction)

    def expected(self, x, target, reduction):
        def loss(a, t):
            p = 1 / (1 + math.exp(-a))
            return -t * math.log(p) - (1 - t) * math.log(1 - p)
        return reduced(each(loss, x, target), reduction)


LOSSES = {"categorical": F.softmax_cross_entropy, "gaussian": F.mse, "bernoulli": F.binary_cross_entropy_with_logits}


class TestDistribution(FunctionCase):
    """The loss once more, out of what `distribution` tells of it: the sum of scale times -log p(target | logits), but for a constant."""

    functions = ("distribution",)
    constants = (1,)
    examples = 6

    def inputs(self, draw):
        x = draw.array(draw.choice((3, 4), (2, 3)))
        return x, draw.array(x.shape, low=0, high=1), draw.choice(*LOSSES), draw.choice("mean", "sum")

    def forward(self, x, target, kind, reduction):
        leaf = x if isinstance(x, Tensor) and x.requires_grad else Tensor(x, requires_grad=True)        # without one, nothing is recorded
        told = F.distribution(LOSSES[kind](leaf, target, reduction=reduction))
        assert told.kind == kind
        logits = told.logits
        nll = {"categorical": lambda: F.logsumexp(logits, 1) * target.sum(1) - (logits * target).sum(1),
               "bernoulli": lambda: F.softplus(logits) - logits * target,
               "gaussian": lambda: (logits - target) ** 2 / 2}[kind]().sum()
        return nll * told.scale if isinstance(x, Tensor) else (nll * told.scale).data

    def expected(self, x, target, kind, reduction):
        return LOSSES[kind](x, target, reduction=reduction)


def leaf(rows, dtype="float64"):
    return Tensor(np.array(rows, dtype), requires_grad=True)


class TestWhatDistributionTells:
    def network(self, loss, target):
        """Logits that are no leaf, the parameter under them, and what is told of a loss of theirs."""
        w = leaf([[1.0, 2.0], [0.5, -1.0], [2.0, 0.0]])
        logits = F.affine(np.arange(12.0).reshape(4, 3), w)
        y = loss(logits, target)
        return w, logits, y, F.distribution(y)

    def test_the_logits_are_at_their_place_in_the_graph(self):
        _, logits, loss, told = self.network(F.softmax_cross_entropy, np.array([0, 1, 1, 0]))
        assert isinstance(told, Distribution) and told.logits.data is logits.data
        by_told, by_mine = minidl.grad(loss, [told.logits, logits])
        assert by_told.data.tolist() == by_mine.data.tolist()

    def test_observers_can_be_shown_the_layers_from_there(self):
        w, logits, _, told = self.network(F.mse, np.zeros((4, 2)))
        seen = []

        class Observer:
            wants = staticmethod(lambda: True)
            before_backward = staticmethod(lambda loss, seed: None)
            see = staticmethod(lambda x, gy, op: seen.append(gy))
        observer = Observer()
        w.register_observer(observer)
        autograd.observe(told.logits, np.ones((4, 2)), [observer])
        assert len(seen) == 1 and seen[0].tolist() == np.ones((4, 2)).tolist() and w.grad is None
        assert logits.requires_grad

    @pytest.mark.parametrize(("loss", "target", "mean", "total"), [
        (F.softmax_cross_entropy, np.array([0, 1, 1, 0]), 1 / 4, 1), (F.mse, np.zeros((4, 2)), 2 / 8, 2),
        (F.binary_cross_entropy_with_logits, np.ones((4, 2)), 1 / 8, 1)])
    def test_the_scale_is_the_weight_of_an_example(self, loss, target, mean, total):
        for reduction, scale in (("mean", mean), ("sum", total), ("none", total)):
            assert self.network(lambda x, t, r=reduction: loss(x, t, reduction=r), target)[3].scale == scale

    def test_of_pixels_each_is_an_example(self):
        x = leaf(np.zeros((2, 3, 5)))
        assert F.distribution(F.softmax_cross_entropy(x, np.zeros((2, 5), int))).scale == 1 / 10

    def test_nothing_else_has_one(self):
        x = leaf([[1.0, 2.0]])
        with minidl.no_grad():
            unrecorded = F.mse(x, x.data)
        for other in (x, x.sum(), F.mse(x, x.data) * 2, unrecorded, F.mse(x.data, x.data), None):
            assert F.distribution(other) is None

    def test_a_loss_whose_graph_is_gone_has_none(self):
        loss = F.mse(leaf([1.0]), np.zeros(1))
        loss.backward()
        assert F.distribution(loss) is None


class TestNumbers:
    def test_equal_logits_cost_the_logarithm_of_the_number_of_classes(self):
        x = leaf(np.zeros((2, 5)))
        loss = F.softmax_cross_entropy(x, [3, 0])
        loss.backward()
        assert math.isclose(loss.item(), math.log(5))
        np.testing.assert_allclose(x.grad.data, (np.full((2, 5), 0.2) - np.eye(5)[[3, 0]]) / 2)

    def test_labels_are_lists_arrays_or_tensors(self):
        x = np.arange(6.0).reshape(2, 3)
        wanted = F.softmax_cross_entropy(x, np.array([2, 0]))
        for labels in ([2, 0], (2, 0), Tensor(np.array([2, 0])), np.array([2, 0], np.uint8), np.array([2, 0], np.int32)):
            assert float(F.softmax_cross_entropy(x, labels)) == wanted
        assert float(F.mse(x, x.tolist())) == 0 and float(F.mse(Tensor(x), Tensor(x))) == 0

    def test_extreme_logits(self):
        for dtype in ("float32", "float64"):
            x = leaf([[1e4, -1e4, 0], [-1e4, 1e4, 0], [1e4, 1e4, 1e4]], dtype)
            with np.errstate(over="raise", invalid="raise", divide="raise"):
                y = F.softmax_cross_entropy(x, [0, 0, 2], reduction="none")
                (first,) = minidl.grad(y, x, np.ones(3), create_graph=True)
                (second,) = minidl.grad((first * first).sum(), x)
            np.testing.assert_allclose(y.data, [0, 2e4, math.log(3)], rtol=1e-6)
            np.testing.assert_allclose(first.data, [[0, 0, 0], [-1, 1, 0], [1 / 3, 1 / 3, -2 / 3]], rtol=1e-6)
            assert np.isfinite(second.data).all()

    def test_a_class_that_is_masked_by_minus_infinity(self):
        x = leaf([[0, -np.inf, 0]])
        with np.errstate(over="raise", invalid="raise"):
            loss = F.softmax_cross_entropy(x, [2])
            loss.backward()
        assert math.isclose(loss.item(), math.log(2)) and x.grad.data.tolist() == [[0.5, 0, -0.5]]
        assert F.softmax_cross_entropy(x, [1]).item() == math.inf

    def test_extreme_binary_logits(self):
        x = leaf([-1000, 1000, -1000, 1000, 0])
        t = np.array([0.0, 1, 1, 0, 0.5])
        with np.errstate(over="raise", invalid="raise", divide="raise"):
            y = F.binary_cross_entropy_with_logits(x, t, reduction="none")
            (first,) = minidl.grad(y, x, np.ones(5), create_graph=True)
            (second,) = minidl.grad(first.sum(), x)
        np.testing.assert_allclose(y.data, [0, 0, 1000, 1000, math.log(2)])
        assert first.data.tolist() == [0, 0, -1, 1, 0] and second.data.tolist() == [0, 0, 0, 0, 0.25]

    def test_of_an_empty_batch(self):
        for loss, target in ((F.softmax_cross_entropy, np.zeros(0, int)), (F.mse, np.zeros((0, 3))),
                             (F.binary_cross_entropy_with_logits, np.zeros((0, 3)))):
            x = leaf(np.zeros((0, 3)))
            y = loss(x, target)
            y.backward()
            assert y.item() == 0 and x.grad.shape == (0, 3)


class TestDtypes:
    @pytest.mark.parametrize("target", [np.array([[0, 1], [1, 0]]), np.array([[False, True], [True, False]]), [[0, 1], [1, 0]],
                                        [[0.0, 1.0], [0.5, 0.0]], Tensor(np.array([[0, 1], [1, 0]], np.uint8))],
                             ids=["integers", "booleans", "list of integers", "list of floats", "tensor"])
    def test_targets_beside_float32(self, target):
        for loss in (F.mse, F.binary_cross_entropy_with_logits):
            x = leaf([[1, 2], [3, 4]], "float32")
            y = loss(x, target)
            y.backward()
            assert y.dtype == x.grad.dtype == np.float32
            wanted = loss(x.data.astype("float64"), np.array(target.data if isinstance(target, Tensor) else target, float))
            assert math.isclose(y.item(), wanted, rel_tol=1e-6)

    def test_numpy_numbers_and_probabilities_leave_float32_alone(self):
        x = leaf([[1, 2], [3, 4]], "float32")
        for labels in (np.array([0, 1]), np.full((2, 2), 0.5)):
            y = F.softmax_cross_entropy(x, labels, np.float64(0.1))
            (first,) = minidl.grad(y, x, create_graph=True)
            (second,) = minidl.grad(first.sum(), x)
            assert y.dtype == first.dtype == second.dtype == np.float32


class TestErrors:
    X = np.zeros((2, 3))

    @pytest.mark.parametrize(("labels", "error", "words"), [
        ([0, 3], LabelError, ("labels run from 0 to 3, and there are 3 classes", "Class ids are 0 ... 2")),
        ([-1, 0], LabelError, ("labels run from -1 to 0, and there are 3 classes",)),
        ([0, 1, 2], ShapeError, ("2 examples and labels of shape (3,)", "x: (2, 3) (N, C)    labels: (3,) (N,)")),
        (np.eye(3, dtype=int)[:2], ShapeError, ("2 examples and labels of shape (2, 3)", "not one-hot rows")),
        ([0.0, 1.0], ShapeError, ("probabilities must have the shape of the logits", "labels: (2,)", "labels.astype('int64')")),
        ([True, False], DtypeError, ("labels are bool, and must be integer class ids", "labels.astype('int64')")),
        (["a", "b"], DtypeError, ("labels are <U1, and must be integer class ids",)),
    ])
    def test_labels(self, labels, error, words):
        for x in (self.X, Tensor(self.X, requires_grad=True)):
            with pytest.raises(error, match=says("softmax_cross_entropy: ", *words)):
                F.softmax_cross_entropy(x, labels)

    def test_logits(self):
        with pytest.raises(ShapeError, match=says("softmax_cross_entropy: logits have an axis of classes", "x: (3,) (N, C)")):
            F.softmax_cross_entropy(self.X[0], [0])
        with pytest.raises(DtypeError, match=says("softmax_cross_entropy: x is int64, and must be of a float type", "x.astype('float32')")):
            F.softmax_cross_entropy(self.X.astype("int64"), [0, 1])

    @pytest.mark.parametrize("part", [-0.1, 1.5])
    def test_label_smoothing(self, part):
        with pytest.raises(ArgumentError, match=says(f"softmax_cross_entropy: label_smoothing is {part}, and must lie between 0 and 1")):
            F.softmax_cross_entropy(self.X, [0, 1], label_smoothing=part)

    @pytest.mark.parametrize(("loss", "target"), [(F.softmax_cross_entropy, [0, 1]), (F.mse, X), (F.binary_cross_entropy_with_logits, X)])
    def test_what_all_losses_ask(self, loss, target):
        with pytest.raises(ArgumentError, match=says(f"{loss.__name__}: reduction 'average' is not known", "mean, sum, none")):
            loss(self.X, target, reduction="average")
        with pytest.raises(DtypeError, match=says(f"{loss.__name__}: x is a list, and must be an array")):
            loss(self.X.tolist(), target)
        with pytest.raises(DtypeError, match=says(f"{loss.__name__}: x is int64, and must be of a float type")):
            loss(self.X.astype("int64"), target)

    @pytest.mark.parametrize("loss", [F.mse, F.binary_cross_entropy_with_logits])
    def test_shapes(self, loss):
        with pytest.raises(ShapeError, match=says(f"{loss.__name__}: x and target must have one shape", "x: (2, 3)    target: (3,)")):
            loss(self.X, np.zeros(3))                           # which would broadcast, and mean something else

    def test_labels_that_want_a_gradient(self):
        with pytest.raises(GraphError, match=says("softmax_cross_entropy: labels is not differentiable", "detach()")):
            F.softmax_cross_entropy(self.X, leaf(self.X))
