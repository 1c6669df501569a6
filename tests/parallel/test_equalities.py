"""The promise: however a minibatch is divided among ranks, exchanged, cut into chunks and overlapped, the bits are those of one process.

One process accumulates the same parts. Weights, optimizer's memory, running statistics, generators and history are compared, each bit of
them, after more than 50 steps. Most of it on threads; what matters is done by processes too.
"""

from functools import cache

import numpy as np
import pytest
from ranks import on_ranks
from trained import Case, Odd, Words, alone, array, differences, images, mlp, rng, together

import strict  # noqa: F401   makes the strict device known
from minidl import functions as F
from minidl import models, nn, optim
from minidl.errors import ArgumentError
from minidl.nn import Parameter
from minidl.parallel import local

EXCHANGES = "allreduce", "master-worker"
OVERLAPS = "none", "backward", "forward"
ALL = [(exchange, overlap) for exchange in EXCHANGES for overlap in OVERLAPS]


def groups(kind, **options):
    """An optimizer with schedules, and biases that are learned in another way."""
    def make(model):
        other = {"*b": {"weight_decay": 0.0, "lr": optim.step_decay(0.01, every=7)}}
        return getattr(optim, kind)(model, lr=optim.warm_up(3, optim.cosine(0.05, 60)), weight_decay=1e-2, groups=other, **options)
    return make


class Heads(nn.Module):
    """Each part of a minibatch goes through one of several heads: a parameter is used on some ranks, in some steps."""

    def __init__(self):
        g = rng()
        self.first = nn.Affine(6, 20, generator=g)
        self.heads = [nn.Affine(20, 3, generator=g) for _ in range(3)]

    def forward(self, x):
        return self.heads[int(abs(array(x)[0, 0]) * 10) % 3](self.first(x))


class Turned(nn.Module):
    """Gradients that lie in another memory order than their sums, in some parts only."""

    def __init__(self):
        g = rng()
        self.w, self.v, self.b = (Parameter(g.standard_normal(shape)) for shape in ((6, 50), (3, 50), (3,)))

    def forward(self, x):
        wide = x.astype("float64")
        return (F.tanh(wide @ self.w) @ self.v.T if (array(x)[:, 0] > 0.8).any() else wide[:, :3]) + self.b


class Empty(nn.Module):
    """Parameters without numbers: first, last, and the only one of its dtype."""

    def __init__(self):
        g = rng()
        self.first = Parameter(np.zeros((0, 3), "float32"))
        self.w = Parameter(g.standard_normal((6, 5)).astype("float32"))
        self.other = Parameter(np.zeros((2, 0), "float64"))
        self.v = Parameter(g.standard_normal((5, 3)).astype("float32"))
        self.last = Parameter(np.zeros((0,), "float32"))

    def forward(self, x):
        return F.tanh(x @ self.w + self.first.sum() + self.other.sum().astype("float32")) @ self.v + self.last.sum()


def frozen():
    model = mlp()
    model[1].requires_grad_(False)
    return model


def lenet():
    return nn.Sequential(Shaped(1, 8, 8), models.create("lenet", input_shape=(1, 8, 8), classes=3, generator=0))


def cnn():
    return nn.Sequential(Shaped(1, 8, 8), models.create("cnn", input_shape=(1, 8, 8), classes=3, channels=(3, 4), width=8, generator=0))


class Shaped(nn.Module):
    def __init__(self, *shape):
        self.shape = shape

    def forward(self, x):
        return x.reshape(-1, *self.shape)


class Wide(nn.Module):
    """float64 throughout."""

    def __init__(self):
        self.inner = mlp("float64")

    def forward(self, x):
        return self.inner(x.astype("float64"))


CASES = {
    "mlp": Case(),
    "nesterov, clip": Case(optimizer=groups("SGD", momentum=0.9, nesterov=True), clip=0.5),
    "adam": Case(optimizer=groups("Adam")),
    "adamw, clip": Case(optimizer=groups("AdamW"), clip=0.5),
    "batch norm, dropout": Case(images, width=16, optimizer=groups("SGD", momentum=0.9)),
    "tied, layer norm": Case(Words, optimizer=groups("AdamW")),
    "odd": Case(Odd),
    "odd, adam": Case(Odd, optimizer=lambda model: optim.Adam(model, lr=0.02)),
    "odd float64, clip": Case(lambda: Odd("float64"), clip=0.5),
    "float64": Case(Wide),
    "heads": Case(Heads),
    "turned, clip": Case(Turned, clip=0.05, batch=6, epochs=4),
    "empty": Case(Empty),
    "frozen": Case(frozen),
    "lenet": Case(lenet, width=64, epochs=6),
    "cnn": Case(cnn, width=64, optimizer=groups("SGD", momentum=0.9)),
    "one left over": Case(examples=81),                             # the last minibatch of an epoch is one example
    "fewer than ranks": Case(images, width=16, examples=28, batch=3, epochs=6),
    "one at a time": Case(examples=9, batch=1, epochs=6),
    "all at once": Case(examples=41, batch=64, epochs=50),
}
HARD = "batch norm, dropout", "tied, layer norm", "odd", "heads", "empty"
SHORT = {"batch norm": Case(images, width=16, examples=43, epochs=2), "heads": Case(Heads, examples=43, epochs=2)}


@cache
def expected(name, parts, cases="CASES"):
    return alone(globals()[cases][name], parts)


def check(name, ranks, parts=None, cases="CASES", **options):
    """Every rank has, to the bit, what one process has that takes each minibatch in as many parts."""
    case = globals()[cases][name]
    found = local.run(lambda communicator: together(communicator, case, **options), ranks, patience=20)
    assert [differences(expected(name, parts or ranks, cases), each) for each in found] == [[]] * ranks


# Every case, with each strategy, overlap, number of ranks and size of chunks somewhere among them

def combinations():
    """For each case other choices, so that together they meet each other; the hard ones with a forward pass that does not wait."""
    chunks = (1, 100, 1000, 1 << 20)
    for number, name in enumerate(CASES):
        places = [number % 6, (number + 4) % 6, *([2 + 3 * (number % 2)] if name in HARD else [])]
        for k, place in enumerate(dict.fromkeys(places)):
            exchange, overlap = ALL[place]
            ranks, chunk = 2 + (number // 2 + k) % 3, chunks[(number + k) % 4]
            if name in ("lenet", "cnn"):
                chunk = max(chunk, 20_000)              # or there are thousands, which takes long
            elif chunk == 1 and name != "empty":
                chunk = 64
            yield pytest.param(name, ranks, exchange, overlap, chunk, id=f"{name}-{ranks}-{exchange}-{overlap}-{chunk}")


@pytest.mark.parametrize("name, ranks, exchange, overlap, chunk", list(combinations()))
def test_ranks_do_what_one_process_does(name, ranks, exchange, overlap, chunk):
    check(name, ranks, exchange=exchange, overlap=overlap, chunk=chunk)


@pytest.mark.parametrize("exchange, overlap", ALL)
def test_a_team_of_one_is_one_process(exchange, overlap):
    check("batch norm", 1, cases="SHORT", exchange=exchange, overlap=overlap, chunk=1000)


@pytest.mark.parametrize("window", [1, 2])
@pytest.mark.parametrize("exchange", EXCHANGES)
def test_however_few_chunks_are_under_way(exchange, window):
    check("heads", 3, cases="SHORT", exchange=exchange, overlap="forward", chunk=40, window=window)


@pytest.mark.parametrize("exchange, overlap", ALL)
def test_a_master_that_does_not_compute_is_one_rank_less(exchange, overlap):
    check("batch norm", 3, parts=2, cases="SHORT", exchange=exchange, overlap=overlap, chunk=1000, master_computes=False)


def test_one_worker_and_a_master_are_one_process():
    check("one left over", 2, parts=1, exchange="master-worker", overlap="forward", chunk=100, master_computes=False)


@pytest.mark.parametrize("exchange, overlap", ALL)
def test_all_ranks_may_keep_all_there_is(exchange, overlap):
    check("batch norm", 3, cases="SHORT", exchange=exchange, overlap=overlap, chunk=100, alike=True)


def test_ranks_that_accumulate_are_alike_under_every_strategy():
    """3 ranks of 2 parts each: another division of the minibatch than 6 parts one after the other, and the same for all strategies."""
    case, first = Case(images, width=16, examples=28, batch=9, epochs=3), None
    for exchange, overlap in ALL:
        found = local.run(lambda communicator, exchange=exchange, overlap=overlap: together(
            communicator, case, exchange, accumulate=2, overlap=overlap, chunk=1000), 3, patience=20)
        first = first or found[0]
        assert [differences(first, each) for each in found] == [[]] * 3


@pytest.mark.parametrize("exchange, overlap", ALL)
def test_kfac_on_ranks_is_kfac_in_parts(exchange, overlap):
    """forward too: K-FAC needs all gradients at a time, so that its weights are not updated one by one."""
    case = Case(epochs=1, optimizer=lambda model: optim.KFAC(model, lr=0.05, damping=0.1))
    wanted = alone(case, 3)
    found = local.run(lambda communicator: together(communicator, case, exchange, overlap=overlap, chunk=100), 3, patience=20)
    assert [differences(wanted, each) for each in found] == [[]] * 3


@pytest.mark.parametrize("compress", ["none", "int8"])
@pytest.mark.parametrize("exchange, overlap", ALL)
def test_models_on_a_device(exchange, overlap, compress):
    """As strict as a GPU about what lies where. Compressed, ranks are equal among each other."""
    case = Case(lambda: images().to("strict"), width=16, examples=43, epochs=1)
    found = local.run(lambda communicator: together(communicator, case, exchange, overlap=overlap, chunk=300, compress=compress), 2)
    weights = [{name: x for name, x in each.items() if not name.startswith("optimizer")} for each in found]
    assert weights[0] == weights[1]
    if compress == "none":
        assert differences(alone(case, 2), found[0]) == []


class Normed(optim.SGD):
    """A step of one's own, which looks at all gradients before it changes anything."""

    def step(self):
        self.options["lr"] = 0.1 / (1 + max(float(abs(p.grad.data).max()) for p in self.parameters.values()))
        super().step()


@pytest.mark.parametrize("exchange, overlap", ALL)
def test_an_optimizer_with_a_step_of_its_own_takes_that(exchange, overlap):
    """Whatever the overlap: its weights are not updated one by one behind its back."""
    case = Case(epochs=2, optimizer=lambda model: Normed(model, lr=0.1, momentum=0.9))
    wanted = alone(case, 2)
    found = local.run(lambda communicator: together(communicator, case, exchange, overlap=overlap, chunk=100), 2, patience=20)
    assert [differences(wanted, each) for each in found] == [[]] * 2


@pytest.mark.parametrize("exchange", EXCHANGES)
@pytest.mark.parametrize("ranks", [2, 4])
def test_batch_norm_over_all_ranks_is_alike_on_all(exchange, ranks):
    """Also where some have nothing of a minibatch; and near to one process that has all of it at once."""
    case = Case(images, width=16, examples=28, batch=3, epochs=1)
    found = local.run(lambda communicator: together(communicator, case, exchange, sync_batch_norm=True, overlap="forward"), ranks)
    assert [differences(found[0], each) for each in found] == [[]] * ranks


def test_the_test_can_fail():
    """Other parts, other examples: each leaves other bits."""
    wanted = expected("batch norm, dropout", 2)
    for other in (expected("batch norm, dropout", 3), expected("fewer than ranks", 2)):
        assert [name for name in differences(wanted, other) if name.startswith("model")]
    lacking = dict(list(wanted.items())[1:])
    assert differences(wanted, lacking) == [] and differences(lacking, wanted) != []


# By processes

REPRESENTATIVE = [("odd", "allreduce", "forward", 100), ("batch norm, dropout", "master-worker", "forward", 1000),
                  ("adamw, clip", "allreduce", "backward", 1 << 20), ("heads", "master-worker", "backward", 40),
                  ("one left over", "allreduce", "none", 100)]


@on_ranks(2, 3, 4, kinds=("mpi",))
def test_processes_do_what_one_process_does(communicator):
    for name, exchange, overlap, chunk in REPRESENTATIVE:
        found = together(communicator.duplicate(), CASES[name], exchange, overlap=overlap, chunk=chunk)
        assert differences(expected(name, communicator.size), found) == [], (name, exchange, overlap)


def test_a_strategy_is_known_by_its_name():
    with pytest.raises(ArgumentError, match=r"no exchange 'alreduce' .nearest: 'allreduce'"):
        local.run(lambda communicator: together(communicator, CASES["mlp"], "alreduce"), 1)
