"""Elastic, on ranks that are threads: whoever dies, at whatever moment, the others end with the bits of a run in which nobody did.

A rank is killed at its n-th operation, for many n, so that each place at which it can be is among them. Processes that are killed while
they really run are in test_elastic_runs.py.
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import trained
from trained import Case

from minidl import Tensor, nn, optim
from minidl.data import Loader
from minidl.errors import ArgumentError, ExchangeError
from minidl.loop import Callback, evaluate, fit
from minidl.nn.part import note
from minidl.nn.streams import generators
from minidl.parallel import Team, local, members
from minidl.parallel.elastic import Elastic, deaf

# a rank may be killed while it is in the engine's thread
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


def sgd(model):
    return optim.SGD(model, lr=0.05, momentum=0.9)


def adam(model):
    return optim.Adam(model, lr=0.01)


def kfac(model):
    return optim.KFAC(model, lr=0.03, damping=0.1, factor_interval=2, inverse_interval=2, warm_up=1)


SMALL = {"examples": 23, "batch": 7, "epochs": 2}       # 8 steps, the last of an epoch with 2 examples
PLAIN = Case(trained.mlp, sgd, **SMALL)
STATES = Case(trained.images, adam, width=16, **SMALL)      # running statistics, dropout
ODD = Case(trained.Odd, sgd, **SMALL)                   # and a generator of its own
NATURAL = Case(trained.mlp, kfac, **SMALL)
CLIPPED = Case(trained.mlp, adam, clip=0.1, **SMALL)
TEST = 17                                               # examples to test with: not the same number on each rank


class Watched(Elastic):
    """Compares what there was when the last step was over with what there is when somebody has died: nothing may have changed."""

    last = None

    def update(self, *args):
        facts = super().update(*args)
        self.last = memory(self)
        return facts

    def bind(self, *args):
        super().bind(*args)
        self.last = None

    def recover(self, run, loss):
        if self.last is not None:
            now = memory(self)
            assert [name for name in now if now[name] != self.last[name]] == []
        super().recover(run, loss)


def memory(team):
    """All that a step may change, by name."""
    found = state(team.model, team.optimizer)
    for kind, memories in team.exchange.memories().items():
        found |= {f"{kind} {dtype}": None if each.residual is None else bits(each.residual) for dtype, each in memories.items()}
    return found


def state(model, optimizer):
    return {**{f"model {name}": bits(x) for name, x in model.state_dict().items()},
            **{f"optimizer {name}": bits(x) for name, x in optimizer.state_dict().items()},
            **{f"generator {path}": str(generator.bit_generator.state) for path, generator in generators(model)}}


def bits(x):
    if isinstance(x, dict):             # K-FAC's: without what it knows of the pass that is going on
        return json.dumps({name: value for name, value in x.items() if name not in ("weight", "full")}, sort_keys=True)
    x = np.asarray(x)
    return f"{x.dtype} {x.shape}", x.tobytes()


class Saving(Callback):
    """Takes part in what the record of a run asks of all ranks."""

    def step(self, run, loss):
        if run.step % 3 == 0:
            run.team.state()

    def epoch(self, run, metrics):
        run.team.state()


def train(communicator, case, spares=None, accumulate=1, callbacks=(), model=None, **options):
    """What a rank leaves, by name (None for a spare that was never needed), and its team. spares: None for a team that is not elastic."""
    team = Team(communicator, **options) if spares is None else Watched(communicator, spares, **options)
    model = case.model() if model is None else model
    optimizer = case.optimizer(model)
    loader = Loader(trained.numbers(case.examples, width=case.width), batch_size=case.batch, seed=3, prefetch=0)
    history = fit(model, loader, trained.numbers(TEST, seed=9, width=case.width), optimizer, case.epochs, [Saving(), *callbacks],
                  clip=case.clip, team=team, accumulate=accumulate)
    if spares is not None and team.stands_by:
        return None, team
    return state(model, optimizer) | {f"epoch {metrics['epoch']} {name}": x for metrics in history for name, x in metrics.items()
                                      if not name.endswith(trained.TIMES)}, team


def run(function, ranks, kills=None):
    """What function(communicator) gives on each rank that trains to the end. kills: by rank, at which of its operations it dies."""
    def on_call(rank, number):
        if (kills or {}).get(rank) == number:
            raise local.Killed

    return [each for each in local.run(function, ranks, on_call=on_call, patience=30) if each is not None and each[0] is not None]


def counted(function, ranks):
    """How many operations each rank makes if nobody dies."""
    count = {}
    local.run(function, ranks, on_call=lambda rank, number: count.__setitem__(rank, number + 1), patience=30)
    return count


def training(case, spares=None, **options):
    return lambda communicator: train(communicator, case, spares, **options)


def differences(expected, found):
    return [name for name in expected if expected[name] != found.get(name)]


def check(expected, left, places, spares, kills, exact=True):
    """Enough have come to the end, all alike, and as the run in which nobody died."""
    news = [text for _, team in left for text in team.news]
    assert len(left) >= (min(places, places + spares - len(kills)) if news else 1), kills
    for found, _ in left[1:]:
        assert differences(left[0][0], found) == [], kills
    if exact and len(kills) <= spares:
        assert differences(expected, left[0][0]) == [], kills


# Somebody dies

@pytest.mark.parametrize("case, places, stride, options, exact", [
    pytest.param(PLAIN, 3, 7, {}, True, id="allreduce"),
    pytest.param(PLAIN, 2, 5, {"exchange": "master-worker"}, True, id="master-worker"),
    pytest.param(PLAIN, 3, 53, {"overlap": "backward", "chunk": 200}, True, id="overlap"),
    pytest.param(STATES, 2, 47, {"overlap": "backward", "sync_batch_norm": True, "exchange": "master-worker"}, True, id="states"),
    pytest.param(STATES, 3, 37, {}, True, id="states of each rank"),
    pytest.param(ODD, 2, 17, {}, True, id="odd parameters"),
    pytest.param(NATURAL, 2, 19, {}, True, id="kfac"),
    pytest.param(CLIPPED, 2, 17, {"accumulate": 2}, True, id="accumulated and clipped"),
    pytest.param(PLAIN, 3, 7, {"exchange": "master-worker", "master_computes": False}, True, id="idle master"),
    pytest.param(PLAIN, 3, 31, {"compress": "topk:0.1"}, False, id="topk"),
    pytest.param(PLAIN, 2, 11, {"compress": "int8", "exchange": "master-worker"}, False, id="int8"),
])
def test_whoever_dies_at_whatever_moment_leaves_the_bits_of_a_run_in_which_nobody_did(case, places, stride, options, exact):
    expected = run(training(case, **options), places)[0][0]
    count = counted(training(case, 1, **options), places + 1)
    for victim in range(places + 1):
        for number in range((victim * 3) % stride, count[victim], stride):
            kills = {victim: number}
            check(expected, run(training(case, 1, **options), places + 1, kills), places, 1, kills, exact)


@pytest.mark.parametrize("case, options", [
    pytest.param(PLAIN, {}, id="allreduce"), pytest.param(PLAIN, {"exchange": "master-worker"}, id="master-worker"),
    pytest.param(STATES, {"overlap": "backward", "sync_batch_norm": True}, id="states"), pytest.param(NATURAL, {}, id="kfac")])
def test_several_may_die_also_while_the_first_is_being_replaced(case, options):
    expected = run(training(case, **options), 3)[0][0]
    count, chance = counted(training(case, 2, **options), 5)[0], random.Random(1)
    for _ in range(8):
        first = chance.randrange(count)
        one, other = chance.sample(range(3), 2)
        # a spare has made few operations when it is needed
        kills = {one: first, other: first + chance.randrange(30)} if chance.random() < 0.5 else {one: first, 3: chance.randrange(8, 40)}
        check(expected, run(training(case, 2, **options), 5, kills), 3, 2, kills)


def test_spares_go_on_without_those_who_began():
    """How often a rank calls depends on who is slow: one that calls less often than its number says is not killed."""
    left = run(training(PLAIN, 2), 5, {0: 20, 2: 60, 1: 100})
    assert left and all(found["epoch 2 epoch"] == 2 and team.ranks == len(left) for found, team in left)


def test_whoever_dies_when_all_is_over_is_not_missed():
    count = counted(training(PLAIN, 1), 3)
    (_, team), = run(training(PLAIN, 1), 3, {0: count[0] - 1})
    assert team.news == []


# Without spares

class Ledger(nn.Module):
    """Writes down which examples were learned from: what a step notes counts once all have agreed on it."""

    def __init__(self):
        self.inner = nn.Affine(6, 3, generator=np.random.default_rng(0))
        self.learned = []

    def forward(self, x):
        if self.training:
            note(self, np.array((x.data if isinstance(x, Tensor) else x)[:, 5]))
        return self.inner(x)

    def apply_note(self, ids):
        self.learned += ids.tolist()


@pytest.mark.parametrize("number", [2, 19, 30, 44, 61, 75, 88])
def test_without_spares_the_others_learn_from_every_example_once_an_epoch_and_test_with_each(number):
    def one(communicator):
        model = Ledger()
        found, team = train(communicator, PLAIN, 0, model=model)
        return found, team, model

    everyone = sorted(trained.numbers(PLAIN.examples)[0][:, 5].tolist())
    left = run(one, 4, {1: number, 2: number + 25})
    assert len(left) == 2
    for found, team, model in left:
        assert team.ranks == 2
        assert sorted(model.learned[:len(everyone)]) == sorted(model.learned[len(everyone):]) == everyone
        assert differences(left[0][0], found) == []
        loss, accuracy = evaluate(model, trained.numbers(TEST, seed=9))
        assert found["epoch 2 test_accuracy"] == accuracy and found["epoch 2 test_loss"] == pytest.approx(loss, rel=1e-6)


def test_whoever_dies_before_the_first_step_was_never_there():
    expected = run(training(PLAIN), 2)[0][0]
    left = run(training(PLAIN, 0), 3, {1: 0})
    assert len(left) == 2 and differences(expected, left[0][0]) == []


@pytest.mark.parametrize("victim", [0, 1])
def test_a_master_that_does_not_compute_does_so_when_it_is_alone(victim):
    expected = run(training(PLAIN), 1)[0][0]
    (found, _), = run(training(PLAIN, 0, exchange="master-worker", master_computes=False), 2, {victim: 2})
    assert differences(expected, found) == []


def test_with_all_that_have_trained_dies_what_they_have_learned():
    with pytest.raises(ExchangeError, match=r"all processes that have trained are dead(.|\n)*Resume"):
        run(training(PLAIN, 1), 2, {0: 30})


def test_a_spare_may_begin_alone():
    expected = run(training(PLAIN), 1)[0][0]
    (found, _), = run(training(PLAIN, 1), 2, {0: 3})
    assert differences(expected, found) == []


# What is told, and how it ends

@pytest.mark.parametrize("kills, says", [({1: 40}, r"process 1 has died, process 3 takes its place: \d+ ms lost"),
                                         ({0: 40, 1: 40}, r"processes 0 and 1 have died, process 3 takes a place, 2 go on: \d+ ms lost")])
def test_news_name_who_has_died_and_who_stands_in(kills, says):
    for _, team in run(training(PLAIN, 1), 4, kills):
        assert re.fullmatch(says, team.news[-1]), team.news
        assert len(team.seconds_lost) == len(team.news) == 1


def test_words():
    assert members.told([2], [], 3) == "process 2 has died, 3 go on"
    assert members.told([2, 0, 5], [6, 7], 1) == "processes 0, 2 and 5 have died, processes 6 and 7 take a place, 1 goes on"


class Stopping(Callback):
    """One rank wants to stop."""

    def __init__(self, communicator, step):
        self.rank, self.at = communicator.rank, step

    def step(self, run, loss):
        if self.rank == 1 and run.step == self.at:
            run.stop = True


@pytest.mark.parametrize("step", [2, 4])
def test_all_stop_where_one_wants_to_although_another_one_dies(step):
    """Also at the end of an epoch, where some may have heard of the wish, and some of the death."""
    def one(communicator):
        return train(communicator, PLAIN, 1, callbacks=[Stopping(communicator, step)])

    count = counted(one, 4)
    for victim in (0, 2):
        for number in range(count[victim] - 26, count[victim], 2):
            left = run(one, 4, {victim: number})
            assert left and all(differences(left[0][0], found) == [] for found, _ in left)


def test_what_compression_owes_is_kept_by_those_who_live():
    kept = []

    class Seeing(Watched):
        def recover(self, run, loss):
            before = [each.residual for each in self.exchange.up.values()] if not self.stands_by else []
            super().recover(run, loss)
            kept.extend(x is not None and np.array_equal(x, each.residual) for x, each in zip(before, self.exchange.up.values()))

    def one(communicator):
        team, model = Seeing(communicator, 1, compress="topk:0.1"), trained.mlp()
        fit(model, Loader(trained.numbers(23), batch_size=7, prefetch=0), None, sgd(model), 1, team=team)
        return True, team

    run(one, 4, {1: 45})
    assert kept == [True, True]


def test_what_a_checkpoint_owes_comes_to_every_rank():
    def one(communicator):
        from minidl.run import Run

        model = trained.mlp()
        optimizer = sgd(model)
        begun = Run(model, optimizer, Loader(trained.numbers(23)), 1)
        team = Elastic(communicator, compress="topk:0.1")
        arrays, rest = begun.state()
        seen = []

        class See(Callback):
            def start(self, run):
                seen.append(team.exchange.up[np.dtype("float32")].residual)

        fit(model, Loader(trained.numbers(23), prefetch=0), None, optimizer, 0, [See()], team=team, resume=(arrays | owed, rest))
        return seen[0], team

    size = sum(p.data.size for p in trained.mlp().parameters())
    owed = {"exchange.up.float32": np.arange(2 * size, dtype=np.float32).reshape(2, -1)}
    for rank, (residual, _) in enumerate(run(one, 2)):
        np.testing.assert_array_equal(residual, owed["exchange.up.float32"][rank])


def test_options_that_make_no_sense():
    def one(communicator):
        for spares, options, says in ((-1, {}, "-1 spares"), (2, {}, "2 spares of 2"), (0, {"overlap": "forward"}, "forward"),
                                      (1, {"exchange": "master-worker", "master_computes": False}, "a master and a worker")):
            with pytest.raises(ArgumentError, match=says):
                Elastic(communicator, spares, **options)
        team, model = Elastic(communicator), nn.Affine(2, 2, generator=0)
        with pytest.raises(ArgumentError, match="ekfac"):
            team.bind(model, optim.KFAC(model, inversion="ekfac"))

    local.run(one, 2)


# Processes

def test_a_spare_does_not_hear_signals():
    heard = []
    before = signal.signal(signal.SIGTERM, lambda *_: heard.append(1))
    try:
        with deaf():
            signal.raise_signal(signal.SIGTERM)
        assert not heard
        signal.raise_signal(signal.SIGTERM)
        assert heard
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it looks into /proc")
def test_who_is_taken_for_dead_is_ended_and_nobody_else():
    here = members.this(0)
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        try:
            os.kill(process.pid, signal.SIGSTOP)
            there = members.Member(1, here.host, process.pid, members.since(process.pid))
            for other in (here, there._replace(host="elsewhere"), there._replace(since="1"), there._replace(since="")):
                members.end(other)
            time.sleep(0.05)
            assert process.poll() is None
            members.end(there)
            assert process.wait(10) == -signal.SIGKILL
        finally:
            process.kill()
    members.end(there)                  # nor somebody who has its number now
