"""K-FAC on many ranks is K-FAC on one that accumulates the same parts: the same bits, whoever sees which layer."""

import numpy as np
import pytest

from curved import mlp, numbers, plain_kfac, targets
from minidl import functions as F
from minidl import models, nn, pool
from minidl.data.loader import share
from minidl.errors import ArgumentError, ExchangeError
from minidl.nn.part import Part, commit, pack, unpack
from minidl.optim import KFAC, Adam
from minidl.optim.kfac.ranks import Joint
from minidl.parallel import local
from minidl.tensor import make

RNG = np.random.default_rng(0)
IMAGES = RNG.standard_normal((22, 1, 8, 8)).astype(np.float32)
IDS = RNG.integers(12, size=(22, 4))
CLASSES = RNG.integers(5, size=22)


class Sometimes(nn.Module):
    """A trunk, and two branches: `first` is used by minibatches, or parts of them, that begin with a small number, `second` by others."""

    def __init__(self):
        rng = np.random.default_rng(3)
        self.trunk = nn.Affine(64, 6, generator=rng)
        self.first, self.second = nn.Affine(6, 5, generator=rng), nn.Affine(6, 5, generator=rng)

    def forward(self, x):
        h = F.tanh(self.trunk(F.flatten(x)))
        return (self.first if x[0, 0, 0, 0] < 0 else self.second)(h)


class Twice(nn.Module):
    """A layer that is used twice, and one whose weights another operation uses too, in some parts."""

    def __init__(self):
        rng = np.random.default_rng(3)
        self.start, self.again = nn.Affine(64, 6, generator=rng), nn.Affine(6, 6, generator=rng)
        self.odd, self.end = nn.Affine(6, 6, generator=rng), nn.Affine(6, 5, generator=rng)

    def forward(self, x):
        h = F.tanh(self.again(F.tanh(self.again(F.tanh(self.start(F.flatten(x)))))))
        h = self.odd(h) if x[0, 0, 0, 0] < 0.5 else h + self.odd.w.sum() + self.odd.b
        return self.end(h)


def batch_norm_net():
    rng = np.random.default_rng(1)
    return nn.Sequential(nn.Conv2d(1, 4, 3, generator=rng), nn.BatchNorm(4), nn.ReLU(), nn.Dropout(0.2, generator=rng), nn.Flatten(),
                         nn.Affine(144, 5, generator=rng))


NETS = {
    "mlp": (lambda: models.create("mlp", input_shape=(1, 8, 8), classes=5, widths=(12, 9), generator=0), IMAGES),
    "lenet": (lambda: models.create("lenet", input_shape=(1, 8, 8), classes=5, generator=0), IMAGES),
    "batch norm": (batch_norm_net, IMAGES),
    "embedding": (lambda: nn.Sequential(nn.Embedding(12, 6, generator=0), nn.Flatten(), nn.LayerNorm(24), nn.Affine(24, 5, generator=1)),
                  IDS),
    "sometimes": (Sometimes, IMAGES),
    "twice": (Twice, IMAGES),
}


def cross_entropy(z, y, weight=1.0):
    return F.softmax_cross_entropy(z, y)


def weighed(z, y):
    """A mean in which each class has a weight, so that parts differ in theirs."""
    weights = (1 + y).astype(z.dtype)
    return (F.softmax_cross_entropy(z, y, reduction="none") * weights).sum() / len(y)


def by_hand(z, y):
    """A loss that has no name."""
    return -(F.log_softmax(z) * np.eye(z.shape[1], dtype=z.dtype)[y]).sum() / len(y)


def parts_of(size, count):
    slices = [share(size, i, count) for i in range(count)]
    return [Part(s.start, s.stop - s.start, size, i, count) for i, s in enumerate(slices)]


def minibatches(steps, size=10):
    """Rows of each minibatch; the last of an epoch has two examples."""
    epoch = [np.arange(start, min(start + size, 22)) for start in range(0, 22, size)]
    return [epoch[k % len(epoch)] for k in range(steps)]


def one_process(make_model, x, make_optimizer, count, steps, loss=cross_entropy):
    """`count` parts of each minibatch, one after the other."""
    model = make_model()
    optimizer = make_optimizer(model)
    for rows in minibatches(steps):
        optimizer.zero_grad()
        notes = []
        for part in parts_of(len(rows), count):
            if part.count:
                with part:
                    loss(model(x[rows][part.rows]), CLASSES[rows][part.rows]).backward(part.weight)
                notes.append(part.notes)
        commit(notes)
        optimizer.step()
    return model, optimizer


def ranks(make_model, x, make_optimizer, count, steps, loss=cross_entropy, on_share=None):
    """The same with each part on a rank of its own."""
    def rank(communicator):
        def total(arrays):
            everyone = [communicator.allgather(np.ascontiguousarray(each)) for each in arrays]
            return [ordered(list(each)) for each in everyone]

        model = make_model()
        optimizer = make_optimizer(model)
        for rows in minibatches(steps):
            optimizer.zero_grad()
            part = parts_of(len(rows), count)[communicator.rank]
            if part.count:
                with part:
                    loss(model(x[rows][part.rows]), CLASSES[rows][part.rows]).backward(part.weight)
            there = communicator.allgather(np.array([p.grad is not None for p in model.parameters()])).any(axis=0)
            for p, anywhere in zip(model.parameters(), there):
                if anywhere:
                    p.grad = make(total([p.grad.data if p.grad is not None else np.full(p.shape, -0.0, p.dtype)])[0])
            commit(unpack(model, each) for each in communicator.gather_bytes(pack(model, part.notes).tobytes()))
            optimizer.share(communicator.gather_bytes, total, communicator.rank)
            optimizer.step()
        return model, optimizer

    return local.run(rank, count)


def ordered(arrays):
    total = arrays[0].copy()
    for each in arrays[1:]:
        total += each
    return total


def assert_same(one, two):
    (model, optimizer), (other, its) = one, two
    for (name, x), y in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert x.tobytes() == y.tobytes(), name
    mine, theirs = optimizer.state_dict(), its.state_dict()
    assert list(mine) == list(theirs)
    for name, x in mine.items():
        assert (x.tobytes() == theirs[name].tobytes()) if isinstance(x, np.ndarray) else x == theirs[name], name
    assert optimizer.plain == its.plain


def kfac(**options):
    return lambda model: KFAC(model, **{"lr": 0.1, "kl_clip": 0.01, "factor_interval": 3, "inverse_interval": 4, "warm_up": 2} | options)


pytestmark = pytest.mark.filterwarnings("ignore:KFAC. these parameters take", "ignore:KFAC. the loss has no known")


@pytest.fixture(autouse=True)
def one_thread():
    """Of the linear algebra library, which would round otherwise where several ranks call it at once."""
    with pool.threads(1):
        yield


class TestRanksAreOneProcess:
    @pytest.mark.parametrize("count", [1, 2, 3, 4])
    @pytest.mark.parametrize("net", NETS)
    def test_to_the_bit(self, net, count):
        expected = one_process(*NETS[net], kfac(), count, steps=20)
        found = ranks(*NETS[net], kfac(), count, steps=20)
        for each in found:
            assert_same(each, expected)
        before = NETS[net][0]().state_dict()
        assert any((before[name] != x).any() for name, x in expected[0].state_dict().items())

    @pytest.mark.parametrize("net", ["mlp", "twice", "sometimes", "embedding"])
    @pytest.mark.parametrize("options", [{"fisher": "empirical"}, {"fisher": "exact"}, {"inversion": "eigen"}, {"inversion": "ekfac"},
                                         {"sharing": "reduce"}, {"factor_interval": "adaptive"}, {"loss": "softmax_cross_entropy"}],
                             ids=lambda options: " ".join(options.values()))
    def test_with_any_options(self, net, options):
        loss = by_hand if "loss" in options else cross_entropy
        expected = one_process(*NETS[net], kfac(**options), 3, steps=12, loss=loss)
        for each in ranks(*NETS[net], kfac(**options), 3, steps=12, loss=loss):
            assert_same(each, expected)

    @pytest.mark.parametrize("loss", [weighed, by_hand])
    @pytest.mark.parametrize("inversion", ["cholesky", "ekfac"])
    def test_with_losses_that_weigh_examples_or_have_no_name(self, loss, inversion):
        expected = one_process(*NETS["lenet"], kfac(inversion=inversion), 3, steps=8, loss=loss)
        for each in ranks(*NETS["lenet"], kfac(inversion=inversion), 3, steps=8, loss=loss):
            assert_same(each, expected)

    def test_on_several_threads(self):
        with pool.threads(2):
            expected = one_process(*NETS["lenet"], kfac(), 2, steps=6)
            for each in ranks(*NETS["lenet"], kfac(), 2, steps=6):
                assert_same(each, expected)

    def test_with_an_inner_rule_and_schedules(self):
        def adam(model):
            return KFAC(model, Adam(model, 0.01), damping=lambda step: 0.1 / (1 + step), factor_decay=0.8, factor_interval=2)

        expected = one_process(*NETS["sometimes"], adam, 4, steps=10)
        for each in ranks(*NETS["sometimes"], adam, 4, steps=10):
            assert_same(each, expected)


class TestParts:
    @pytest.mark.parametrize("fisher", ["sampled", "empirical"])
    @pytest.mark.parametrize("count", [2, 3, 5])
    def test_are_the_whole_minibatch_to_rounding(self, fisher, count):
        """Also the targets that are drawn: each example has its own, however the minibatch is cut."""
        found = []
        for parts in (1, count):
            model = mlp()
            optimizer = plain_kfac(model, fisher=fisher, damping=0.1)
            x, y = numbers(10, 3), targets("categorical", (10, 3))
            for part in parts_of(10, parts):
                with part:
                    F.softmax_cross_entropy(model(x[part.rows]), y[part.rows]).backward(part.weight)
            optimizer.prepare()
            found.append({path: block.dense() for path, block in optimizer.blocks.items()})
        for path, dense in found[0].items():
            np.testing.assert_allclose(found[1][path], dense, rtol=1e-10, atol=1e-14)

    def test_targets_of_several_losses_too(self):
        found = []
        for parts in (1, 3):
            model = mlp()
            optimizer = plain_kfac(model, fisher="sampled", damping=0.1)
            x = numbers(10, 3)
            for part in parts_of(10, parts):
                with part:
                    z = model(x[part.rows])
                    (F.softmax_cross_entropy(z, np.zeros(len(z), int)) + F.mse(z, numbers(10, 3)[part.rows])).backward(part.weight)
            optimizer.prepare()
            found.append({path: block.dense() for path, block in optimizer.blocks.items()})
        for path, dense in found[0].items():
            np.testing.assert_allclose(found[1][path], dense, rtol=1e-10, atol=1e-14)

    def test_outputs_that_are_no_multiple_of_the_examples_have_targets_of_their_own(self):
        def block(index):
            model = mlp()
            optimizer = plain_kfac(model, fisher="sampled", damping=0.1)
            with Part(0, 4, 8, index, 2):
                F.softmax_cross_entropy(model(numbers(6, 3)), np.zeros(6, int)).backward()
            optimizer.prepare()
            return optimizer.blocks["2.w"].dense()
        np.testing.assert_array_equal(block(1), block(1))
        assert (block(0) != block(1)).any()

    def test_the_cheaper_way_through_the_rows_is_for_whole_minibatches(self):
        for parts, remembered in ((1, 1), (2, 0)):
            model = nn.Affine(40, 30, generator=0)
            optimizer = plain_kfac(model, damping=0.1, fisher="sampled")
            for part in parts_of(1, parts)[:1]:                                         # of which the second is empty
                with part:
                    F.mse(model(np.ones((1, 40), np.float32)), np.ones((1, 30), np.float32)).backward()
            assert len(optimizer.blocks["w"].rows_seen) == remembered


class TestShare:
    def seen(self, model, part, **options):
        optimizer = plain_kfac(model, damping=0.1, fisher="sampled", **options)
        if part.count:
            with part:
                F.softmax_cross_entropy(model(numbers(10, 3)[part.rows]), targets("categorical", (10, 3))[part.rows]).backward(part.weight)
        return optimizer

    def test_a_rank_with_an_empty_part_adds_nothing_and_learns_everything(self):
        alone = self.seen(mlp(), Part(0, 10, 10, 0, 2))
        pair = [alone, self.seen(mlp(), Part(10, 0, 10, 1, 2))]
        told = [each.collected() for each in pair]
        joints = [Joint(each.statistics, told, rank) for rank, each in enumerate(pair)]
        assert all((x == 0).all() and np.signbit(x).all() for x in joints[1].arrays)
        for joint in joints:
            joint.take([a + b for a, b in zip(joints[0].arrays, joints[1].arrays)])
        for each in pair:
            each.prepare()
        assert list(pair[1].blocks) == list(pair[0].blocks) == ["2.w", "0.w"]
        assert pair[1].statistics.weight == pair[0].statistics.weight
        for path, block in pair[0].blocks.items():
            np.testing.assert_array_equal(pair[1].blocks[path].dense(), block.dense())

    def test_nothing_is_sent_where_nothing_is_due(self):
        calls = []

        def gather(content):
            calls.append(content)
            return [content]

        model = mlp()
        optimizer = plain_kfac(model, damping=0.1, factor_interval=4, warm_up=1, fisher="sampled")
        for _ in range(9):
            optimizer.zero_grad()
            F.softmax_cross_entropy(model(numbers(10, 3)), targets("categorical", (10, 3))).backward()
            optimizer.share(gather, lambda arrays: arrays, 0)
            optimizer.step()
        assert len(calls) == 3

    def test_a_step_that_is_not_made_leaves_nothing_behind(self):
        """Neither a block, where another rank was lost before the step: the minibatch is taken again."""
        model = mlp()
        optimizer = self.seen(model, Part(0, 5, 10, 0, 2))
        before = KFAC(mlp(), damping=0.1, momentum=0, lr=1.0, kl_clip=None, fisher="sampled").state_dict()["kfac"]
        optimizer.zero_grad()
        assert optimizer.state_dict()["kfac"] == before | {"weight": optimizer.statistics.weight, "full": optimizer.statistics.full}

    def test_damping_does_not_adapt_to_a_part_of_the_examples(self):
        optimizer = self.seen(mlp(), Part(0, 5, 10, 0, 2))
        optimizer.share(lambda content: [content] * 2, lambda arrays: arrays, 0)
        with pytest.raises(ArgumentError, match="a closure gives the loss of this rank's examples"):
            optimizer.step(lambda: 1.0)

    def test_models_that_differ(self):
        pair = [self.seen(mlp(sizes=(3, size, 3)), Part(5 * rank, 5, 10, rank, 2)) for rank, size in enumerate((4, 6))]
        told = [each.collected() for each in pair]
        with pytest.raises(ExchangeError, match="ranks have sums of different shapes for"):
            Joint(pair[0].statistics, told, 0)
