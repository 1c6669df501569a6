"""When statistics are taken and what they are averaged to; and that nobody else notices."""

import gc
import weakref
from typing import ClassVar

import numpy as np
import pytest

import minidl
from curved import LOSSES, affine, conv, mlp, numbers, plain_kfac, targets
from minidl import functions as F
from minidl import nn, optim
from minidl.errors import ArgumentError
from minidl.functions import likelihood
from minidl.optim.kfac.averages import Average, Timing

fishers = pytest.mark.parametrize("fisher", ["exact", "sampled", "empirical"])
X = numbers(8, 3)


def train(optimizer, model, count=1, x=X, kind="categorical"):
    for _ in range(count):
        optimizer.zero_grad()
        z = model(x)
        LOSSES[kind](z, targets(kind, z.shape)).backward()
        optimizer.step()


def copied(optimizer):
    return {(path, name): average.value.copy() for path, block in optimizer.blocks.items() for name, average in block.averages.items()
            if average.value is not None}


def same(one, two):
    return one.keys() == two.keys() and all((one[key] == two[key]).all() for key in one)


class TestNobodyNotices:
    NETS: ClassVar = {"mlp": lambda: (mlp(), X), "relu": lambda: (nn.Sequential(affine(3, 4, activation="relu"), affine(4, 3)), X),
                      "conv": lambda: (nn.Sequential(conv(2, 4, 3, activation="tanh"), nn.Flatten(), affine(16, 3)), numbers(8, 2, 4, 4)),
                      "norms": lambda: (nn.Sequential(affine(3, 4), nn.BatchNorm(4, dtype="float64"), nn.Tanh(),
                                                      nn.LayerNorm(4, dtype="float64"), affine(4, 3)), X)}

    @fishers
    @pytest.mark.parametrize("net", NETS)
    @pytest.mark.parametrize("kind", LOSSES)
    def test_gradients_are_the_same_to_the_bit(self, net, kind, fisher):
        found = []
        for watched in (False, True):
            model, x = self.NETS[net]()
            optimizer = plain_kfac(model, fisher=fisher, lr=0.1, damping=0.1) if watched else optim.SGD(model, 0.1)
            z = model(x)
            LOSSES[kind](z, targets(kind, z.shape)).backward()
            found.append([p.grad.data.copy() for p in model.parameters()])
            if watched:
                before = [p.grad for p in model.parameters()]
                optimizer.step()
                assert all(p.grad is grad for p, grad in zip(model.parameters(), before))
                assert all((p.grad.data == g).all() for p, g in zip(model.parameters(), found[1]))
        assert all((a == b).all() for a, b in zip(*found))

    @fishers
    def test_a_forward_pass_alone_changes_nothing(self, fisher):
        model = nn.Sequential(affine(3, 4), nn.BatchNorm(4, dtype="float64"), nn.Tanh(), affine(4, 3))
        optimizer = plain_kfac(model, fisher=fisher, lr=0.01, damping=0.1)
        train(optimizer, model, 2)
        before = optimizer.state_dict()
        with minidl.no_grad():
            F.softmax_cross_entropy(model(X), targets("categorical", (8, 3)))
        model.eval()
        F.softmax_cross_entropy(model(X * 9), targets("categorical", (8, 3)))
        minidl.fisher(model, X)
        optimizer.prepare()
        after = optimizer.state_dict()
        assert before.keys() == after.keys()
        assert all(np.array_equal(before[key], after[key]) for key in before if key != "kfac")
        assert before["kfac"] == after["kfac"]

    @fishers
    @pytest.mark.parametrize("inversion", ["cholesky", "ekfac"])
    def test_zero_grad_forgets_the_statistics_of_a_pass(self, fisher, inversion):
        states = []
        for discarded in (0, 1):
            model = nn.Sequential(affine(3, 4), nn.LayerNorm(4, dtype="float64"), nn.Tanh(), affine(4, 3))
            optimizer = plain_kfac(model, fisher=fisher, lr=0.1, damping=0.1, inversion=inversion)
            train(optimizer, model)
            for _ in range(discarded):
                optimizer.zero_grad()
                F.softmax_cross_entropy(model(X * 9), targets("categorical", (8, 3), seed=9)).backward()
            train(optimizer, model)
            states.append(copied(optimizer) | {path: p.data for path, p in model.named_parameters()})
        assert same(*states)

    def test_zero_grad_forgets_the_weight_of_a_pass_too(self):
        model = mlp()
        optimizer = plain_kfac(model, damping=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            F.softmax_cross_entropy(model(X), targets("categorical", (8, 3))).backward()
        assert optimizer.statistics.weight == 1

    def test_statistics_are_taken_in_once(self):
        model = mlp()
        optimizer = plain_kfac(model, damping=0.1)
        F.softmax_cross_entropy(model(X), targets("categorical", (8, 3))).backward()
        optimizer.prepare()
        before, directions = copied(optimizer), optimizer.directions()
        optimizer.prepare()
        optimizer.step()
        assert same(copied(optimizer), before)
        np.testing.assert_array_equal(optimizer.directions()["0.w"], directions["0.w"])

    def test_a_step_that_failed_can_be_made_again(self):
        found = []
        for fails in (True, False):
            model = mlp()
            optimizer = plain_kfac(model, damping=0.1)
            F.softmax_cross_entropy(model(X), targets("categorical", (8, 3))).backward()
            if fails:
                with pytest.raises(ArgumentError, match="closure"):
                    optimizer.step(lambda: None)
            optimizer.step()
            found.append(model[0].w.data)
        np.testing.assert_allclose(*found, rtol=1e-12)

    def test_a_graph_may_be_walked_again(self):
        model = mlp()
        optimizer = plain_kfac(model, lr=0.1, damping=0.1)
        loss = F.softmax_cross_entropy(model(X), targets("categorical", (8, 3)))
        loss.backward(retain_graph=True)
        optimizer.prepare()
        before = copied(optimizer)
        loss.backward(retain_graph=True)
        optimizer.prepare()
        for key, value in copied(optimizer).items():
            np.testing.assert_allclose(value, before[key], rtol=1e-12)

    def test_an_optimizer_that_nobody_holds_any_more_wants_no_passes(self):
        model, twin = mlp(), mlp()
        optimizer = plain_kfac(model, lr=0.1, damping=0.1)
        train(optimizer, model)
        gone = weakref.ref(optimizer)
        del optimizer
        gc.collect()
        assert gone() is None
        for p in model.parameters():
            assert not p.watchers.observers
        twin.load_state_dict(model.state_dict())
        for each in (model, twin):
            train(optim.SGD(each, 0.1), each, 3)
        assert all((p.data == q.data).all() for p, q in zip(model.parameters(), twin.parameters()))

    def test_two_optimizers_of_one_model_do_not_disturb_each_other(self):
        model, twin = mlp(), mlp()
        one, other = plain_kfac(model, lr=0.1, damping=0.1), plain_kfac(model, lr=0.1, damping=0.1, inversion="eigen")
        train(one, model)
        train(plain_kfac(twin, lr=0.1, damping=0.1), twin)
        assert all((p.data == q.data).all() for p, q in zip(model.parameters(), twin.parameters()))
        other.prepare()
        assert other.directions().keys() == one.directions().keys()


class TestAverages:
    @pytest.mark.parametrize("decay", [0.0, 0.5, 0.95, 0.999])
    @pytest.mark.parametrize("inversion", ["cholesky", "ekfac"])
    def test_of_equal_minibatches_are_that_of_the_minibatch_at_every_step(self, decay, inversion):
        model = nn.Sequential(affine(3, 4), nn.LayerNorm(4, dtype="float64"), nn.Tanh(), affine(4, 3))
        optimizer = plain_kfac(model, lr=0.0, damping=0.1, factor_decay=decay, warm_up=20, inversion=inversion)
        train(optimizer, model)
        first = copied(optimizer)
        for _ in range(12):
            train(optimizer, model)
            for key, value in copied(optimizer).items():
                np.testing.assert_allclose(value, first[key], rtol=1e-11, atol=1e-15)

    def test_are_weighted_sums_divided_by_their_weights(self):
        model, decay = affine(3, 2), 0.8
        optimizer, xs = plain_kfac(model, lr=0.0, damping=0.1, factor_decay=decay), [numbers(5, 3, seed=seed) for seed in range(4)]
        wanted, weights = 0, 0
        for x in xs:
            train(optimizer, model, 1, x, "gaussian")
            a = np.c_[x, np.ones(5)]
            wanted, weights = wanted * decay + a.T @ a / 5, weights * decay + 1
            np.testing.assert_allclose(optimizer.blocks["w"].averages["A"].value[0], wanted / weights, rtol=1e-12)

    def test_take_a_schedule(self):
        model = affine(3, 2)
        optimizer = plain_kfac(model, lr=0.0, damping=0.1, factor_decay=lambda step: 0.0 if step else 0.9)
        for seed in (0, 1):
            x = numbers(5, 3, seed=seed)
            train(optimizer, model, 1, x, "gaussian")
        a = np.c_[x, np.ones(5)]
        np.testing.assert_allclose(optimizer.blocks["w"].averages["A"].value[0], a.T @ a / 5, rtol=1e-12)


def adapted(average, x, decay, step):
    """Take in x, and find the next interval."""
    steady = average.add(x, decay, step, True)
    if steady is not None:
        average.adapt(bool(steady), step)


class TestIntervals:
    def changes(self, steps, name, **options):
        """At which steps a factor ("A", "G") or an inverse ("left") has changed; the minibatch is another one each time."""
        model, found, before = mlp(), [], None
        optimizer = plain_kfac(model, lr=0.0, damping=0.1, **options)
        for step in range(steps):
            train(optimizer, model, 1, numbers(8, 3, seed=step))
            block = optimizer.blocks["0.w"]
            now = (block.division.arrays["left"] if name == "left" else block.averages[name].value).copy()
            if before is None or (now != before).any():
                found.append(step)
            before = now
        return found

    @fishers
    def test_factors_change_every_so_many_steps(self, fisher):
        options = {"fisher": fisher, "factor_interval": 3, "inverse_interval": 1, "warm_up": 0}
        assert self.changes(10, "A", **options) == self.changes(10, "G", **options) == [0, 3, 6, 9]
        assert self.changes(10, "left", **options) == [0, 3, 6, 9]          # an inverse of the same factor is not made again

    def test_inverses_change_every_so_many_steps(self):
        assert self.changes(10, "left", factor_interval=1, inverse_interval=4, warm_up=0) == [0, 4, 8]
        assert self.changes(10, "left", factor_interval=4, inverse_interval=6, warm_up=0) == [0, 6]

    def test_both_at_each_step_of_the_warm_up(self):
        options = {"factor_interval": 4, "inverse_interval": 6, "warm_up": 3}
        assert self.changes(13, "A", **options) == [0, 1, 2, 4, 8, 12]
        assert self.changes(13, "left", **options) == [0, 1, 2, 6, 12]

    def test_a_new_damping_is_taken_in_with_the_next_inverse(self):
        damping = {"damping": lambda step: 0.1 if step < 2 else 0.2}
        model = mlp()
        optimizer = plain_kfac(model, lr=0.0, factor_interval=100, inverse_interval=3, warm_up=0, **damping)
        seen = []
        for _ in range(5):
            train(optimizer, model)
            seen.append(optimizer.blocks["0.w"].damping)
        assert seen == [0.1, 0.1, 0.1, 0.2, 0.2]

    def test_adaptive_ones_are_doubled_where_the_factor_is_steady(self):
        average, timing, due = Average(), Timing("adaptive", 0), []
        for step in range(60):
            if average.due(step, timing):
                due.append(step)
                adapted(average, np.eye(2), 0.9, step)
        assert np.diff(due).tolist() == [1, 1, 2, 4, 8, 16]

    def test_adaptive_ones_are_halved_where_it_moves(self):
        average, timing, due = Average(), Timing("adaptive", 0), []
        for step in range(80):
            if average.due(step, timing):
                due.append(step)
                adapted(average, np.eye(2) * (1 if step < 30 else 10.0 ** (step % 7)), 0.5, step)
        gaps = np.diff(due)
        assert gaps.max() >= 8 and gaps[-3:].tolist() == [1, 1, 1]

    def test_adaptive_ones_ask_for_no_passes_in_between(self, monkeypatch):
        model, passes, sampled = mlp(), [], likelihood.Categorical.sampled
        optimizer = plain_kfac(model, lr=0.0, damping=0.1, factor_interval="adaptive", warm_up=0, fisher="sampled")
        monkeypatch.setattr(likelihood.Categorical, "sampled", lambda *args: passes.append(optimizer.steps) or sampled(*args))
        train(optimizer, model, 40, numbers(400, 3))
        assert passes[:2] == [0, 1] and 4 <= len(passes) <= 12
