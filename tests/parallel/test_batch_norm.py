"""Batch normalization over ranks is that of one process on the joined batch, to second order."""

import copy
import pickle
from itertools import pairwise

import numpy as np
import pytest

import strict  # noqa: F401   makes the strict device known
from minidl import Tensor, backend, grad, nn, optim
from minidl import functions as F
from minidl.data.loader import share
from minidl.errors import ShapeError
from minidl.nn.part import Part, commit, pack, unpack
from minidl.parallel import local
from minidl.parallel.batch_norm import SumOverRanks, synchronize

RNG = np.random.default_rng(0)
X = RNG.standard_normal((7, 3, 2, 2)) * 2 + 5
GAMMA, BETA, GY, V = RNG.standard_normal(3), RNG.standard_normal(3), RNG.standard_normal(X.shape), RNG.standard_normal(X.shape)
CUTS = {"one": [7], "two": [4, 3], "three": [3, 2, 2], "uneven": [1, 6], "an empty one": [4, 3, 0], "empty first": [0, 7]}


def rows_of(counts):
    ends = np.cumsum([0, *counts])
    return [slice(a, b) for a, b in pairwise(ends)]


def derivatives(rows, activation, reduce=None, x=X):
    """A loss that uses all outputs: its first derivatives, and those of their inner product with V."""
    x, gamma, beta = (Tensor(a, requires_grad=True) for a in (x[rows], GAMMA, BETA))
    y, mean, var, *n = F.batch_norm(x, gamma, beta, 1e-3, activation, reduce)
    share_of_mean = (rows.stop - rows.start) / len(X)                   # each rank's loss has its part of this
    loss = (y * y * Tensor(GY[rows])).sum() + ((mean * mean).sum() + (var * mean).sum()) * share_of_mean
    first = grad(loss, (x, gamma, beta), create_graph=True)
    along = (first[0] * Tensor(V[rows])).sum() + (first[1] * Tensor(BETA)).sum() + (first[2] * Tensor(GAMMA)).sum()
    second = grad(along, (x, gamma, beta))
    return [y.data, mean.data, var.data, *n], [g.data for g in first], [g.data for g in second]


class TestFunction:
    @pytest.mark.parametrize("activation", [None, "tanh", "sigmoid", "relu"])
    @pytest.mark.parametrize("counts", CUTS.values(), ids=CUTS)
    def test_equals_one_process_on_the_joined_batch_to_second_order(self, counts, activation):
        values, first, second = derivatives(slice(0, 7), activation)
        everyone = local.run(lambda communicator: derivatives(rows_of(counts)[communicator.rank], activation, SumOverRanks(communicator)),
                             len(counts))
        for _, mean, var, n in (its for its, _, _ in everyone):
            np.testing.assert_allclose(mean, values[1], rtol=1e-12)
            np.testing.assert_allclose(var, values[2], rtol=1e-12)
            assert n == 28
        np.testing.assert_allclose(np.concatenate([its[0] for its, _, _ in everyone]), values[0], rtol=1e-12, atol=1e-12)
        for k, expected in ((1, first), (2, second)):
            np.testing.assert_allclose(np.concatenate([each[k][0] for each in everyone]), expected[0], rtol=1e-10, atol=1e-11)
            for i in (1, 2):                                            # this rank's part of the gradients of gamma and beta
                np.testing.assert_allclose(sum(each[k][i] for each in everyone), expected[i], rtol=1e-10, atol=1e-11)

    def test_the_rule_with_sums_passed_in_is_that_of_one_process(self):
        values, first, second = derivatives(slice(0, 7), "tanh")
        (*its, n), mine, others = derivatives(slice(0, 7), "tanh", lambda x: x * 1)
        for found, expected in zip([*its, *mine, *others], [*values, *first, *second]):
            np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-11)
        assert n == 28

    @pytest.mark.parametrize("dtype", ["float32", "float16"])
    def test_other_dtypes_stay_what_they_are(self, dtype):
        x, gamma, beta = (Tensor(a.astype(dtype), requires_grad=True) for a in (X, GAMMA, BETA))
        y, mean, var, _ = F.batch_norm(x, gamma, beta, reduce=lambda x: x * 1)
        (y * y).sum().backward()
        assert {y.dtype, x.grad.dtype, gamma.grad.dtype} == {np.dtype(dtype)}
        assert {mean.dtype, var.dtype} == {np.dtype("float32")}                   # which float16 has too few digits for
        np.testing.assert_allclose(mean.data, X.mean(axis=(0, 2, 3)), rtol=1e-2)

    def test_a_large_mean_does_not_swallow_the_variance(self):
        x = (1e4 + np.array([[-1], [1], [-1], [1]])).astype(np.float32)
        ones, zeros = np.ones(1, np.float32), np.zeros(1, np.float32)
        (_, _, var, _), _ = local.run(lambda communicator: F.batch_norm(x[communicator.rank::2], ones, zeros,
                                                                        reduce=SumOverRanks(communicator)), 2)
        assert var.tolist() == [1]

    def test_counts_are_exact_where_float32_is_not(self):
        numbers = 2**24 + 1
        sums = []

        def reduce(x):
            sums.append(x)
            return x if len(sums) > 1 else np.array([x[0], x[1] + (numbers - 2) // 4096, x[2] + (numbers - 2) % 4096], np.float32)

        *_, n = F.batch_norm(np.ones((2, 1), np.float32), np.ones(1, np.float32), np.ones(1, np.float32), reduce=reduce)
        assert n == numbers

    def test_nothing_anywhere_has_no_mean(self):
        with pytest.raises(ShapeError, match="batch_norm: an empty batch has no mean"):
            F.batch_norm(X[:0], GAMMA, BETA, reduce=lambda x: x)

    def test_few_messages(self):
        calls = []

        def step(communicator):
            reduce = SumOverRanks(communicator)

            def counted(x):
                calls.append(communicator.rank)
                return reduce(x)
            x = Tensor(X[rows_of([4, 3])[communicator.rank]], requires_grad=True)
            y, *_ = F.batch_norm(x, Tensor(GAMMA, requires_grad=True), BETA, reduce=counted)
            y.sum().backward()

        local.run(step, 2)
        assert calls.count(0) == calls.count(1) == 3


def net():
    rng = np.random.default_rng(1)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, generator=rng), nn.BatchNorm(4, activation="relu"), nn.MaxPool2d(2), nn.Flatten(),
                         nn.Affine(4, 5, generator=rng), nn.BatchNorm(5, momentum=None), nn.Affine(5, 3, generator=rng)).to(dtype="float64")


Y = RNG.integers(3, size=7)


def trained(make_optimizer, communicator=None, counts=(7,), steps=5):
    model = net()
    optimizer = make_optimizer(model)
    if communicator is not None:
        assert synchronize(model, communicator.duplicate()) == 2
    rank = 0 if communicator is None else communicator.rank
    rows = rows_of(counts)[rank]
    for _ in range(steps):
        optimizer.zero_grad()
        with Part(rows.start, rows.stop - rows.start, 7, rank, len(counts)) as part:
            F.softmax_cross_entropy(model(X[rows]), Y[rows]).backward(part.weight)
        if communicator is None:
            commit([part.notes])
        else:
            for p in model.parameters():
                p.grad.data[...] = communicator.allgather(p.grad.data).sum(axis=0)
            commit(unpack(model, each) for each in communicator.gather_bytes(pack(model, part.notes).tobytes()))
            if isinstance(optimizer, optim.KFAC):
                optimizer.share(communicator.gather_bytes, lambda arrays: [communicator.allgather(x).sum(axis=0) for x in arrays], rank)
        optimizer.step()
    return model


class TestModel:
    @pytest.mark.parametrize("counts", CUTS.values(), ids=CUTS)
    def test_learns_as_one_process_on_the_joined_batch(self, counts):
        def sgd(model):
            return optim.SGD(model, 0.1, momentum=0.9)

        expected = trained(sgd).state_dict()
        for model in local.run(lambda communicator: trained(sgd, communicator, counts), len(counts)):
            for name, x in model.state_dict().items():
                np.testing.assert_allclose(x, expected[name], rtol=1e-9, atol=1e-11, err_msg=name)

    @pytest.mark.parametrize("fisher", ["sampled", "empirical", "exact"])
    @pytest.mark.parametrize("counts", [[4, 3], [5, 2, 0]])
    @pytest.mark.filterwarnings("ignore:KFAC. these parameters take")
    def test_with_k_fac_too_whose_own_passes_go_through_the_layers(self, counts, fisher):
        def kfac(model):
            return optim.KFAC(model, lr=0.1, damping=0.1, fisher=fisher, factor_interval=2, warm_up=1)

        expected = trained(kfac).state_dict()
        for model in local.run(lambda communicator: trained(kfac, communicator, counts), len(counts)):
            for name, x in model.state_dict().items():
                np.testing.assert_allclose(x, expected[name], rtol=1e-8, atol=1e-10, err_msg=name)

    def test_copies_and_pickles_are_on_their_own(self):
        model = net()
        synchronize(model, local.LocalCommunicator.__new__(local.LocalCommunicator))
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert other[1].reduce is None
        assert model[1].reduce is not None
        synchronize(model, None)
        assert model[1].reduce is None

    def test_one_number_a_channel_has_no_variance_wherever_it_is(self):
        def rank(communicator):
            layer = nn.BatchNorm(3, dtype="float64")
            synchronize(layer, communicator)
            with pytest.raises(ShapeError, match="one number a channel has no variance"):
                layer(X[:1 - communicator.rank, :, 0, 0])
            return layer.steps

        assert local.run(rank, 2) == [0, 0]

    def test_without_parts_every_rank_keeps_its_running_statistics(self):
        def rank(communicator):
            layer = nn.BatchNorm(3, dtype="float64")
            synchronize(layer, communicator)
            layer(X[share(7, communicator.rank, 2)])
            return layer

        alone = nn.BatchNorm(3, dtype="float64")
        alone(X)
        for layer in local.run(rank, 2):
            np.testing.assert_allclose(layer.running_var, alone.running_var, rtol=1e-12)
            assert layer.steps == 1


def test_on_another_device():
    def rank(communicator):
        layer = nn.BatchNorm(3, dtype="float64").to("strict:0")
        synchronize(layer, communicator)
        x = Tensor(X[share(7, communicator.rank, 2)], requires_grad=True).to("strict:0")
        with Part(0, 4, 7, communicator.rank, 2) as part:
            y = layer(x)
            (y * y).sum().backward()
        commit(unpack(layer, each) for each in communicator.gather_bytes(pack(layer, part.notes).tobytes()))
        return layer

    alone = nn.BatchNorm(3, dtype="float64")
    alone(X)
    for layer in local.run(rank, 2):
        assert layer.gamma.grad.device == backend.device_of(layer.running_mean) == "strict:0"
        np.testing.assert_allclose(backend.to_numpy(layer.running_mean), alone.running_mean, rtol=1e-12)
