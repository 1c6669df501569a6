"""What a loss weighs: reductions, micro-batches, batch sizes, the KL clip, sampled targets, losses by hand and several at once."""

import numpy as np
import pytest

import minidl
from curved import LOSSES, affine, flat, gradients, mlp, numbers, ordered, plain_kfac, shown, targets
from minidl import fisher, nn
from minidl import functions as F

kinds = pytest.mark.parametrize("kind", LOSSES)
fishers = pytest.mark.parametrize("fisher", ["exact", "sampled"])
X = numbers(12, 3)


class Positions(nn.Module):
    """(N, T, 3) to (N, C, T): a prediction at each position."""

    def __init__(self):
        self.first, self.last = affine(3, 4), affine(4, 3, seed=1)

    def forward(self, x):
        return F.transpose(self.last(F.tanh(self.first(x))), (0, 2, 1))


def step_of(model, losses, lr=1.0, **options):
    """What one step adds to all weights; losses(model) gives pairs of a loss and its weight."""
    optimizer = plain_kfac(model, **{"damping": 0.01, "lr": lr} | options)
    before = {path: p.data.copy() for path, p in optimizer.parameters.items()}
    for loss, weight in losses(model):
        loss.backward(weight)
    optimizer.step()
    return np.concatenate([(p.data - before[path]).ravel() for path, p in optimizer.parameters.items()])


def net(shape):
    return (mlp(), X) if shape == "rows" else (Positions(), numbers(12, 2, 3))


def assert_times(found, wanted, factor):
    assert np.linalg.norm(found / factor - wanted) <= 1e-12 * np.linalg.norm(wanted)


@kinds
@pytest.mark.parametrize("shape", ["rows", "positions"])
class TestReductions:
    def steps(self, kind, shape, fisher, how, **options):
        model, x = net(shape)
        y = targets(kind, model(x).shape)
        return step_of(model, lambda model: [(how(LOSSES[kind], model(x), y), None)], fisher=fisher, **options)

    @fishers
    def test_the_step_of_a_sum_is_as_many_times_longer_as_there_are_examples(self, kind, shape, fisher):
        mean, total = (self.steps(kind, shape, fisher, lambda loss, z, y, each=each: loss(z, y, reduction=each))
                       for each in ("mean", "sum"))
        assert_times(total, mean, 12)

    @fishers
    def test_a_factor_on_a_sum_is_one_on_the_step(self, kind, shape, fisher):
        total, tripled = (self.steps(kind, shape, fisher, lambda loss, z, y, each=each: loss(z, y, reduction="sum") * each)
                          for each in (1, 3))
        assert_times(tripled, total, 3)

    @fishers
    def test_a_part_of_a_mean_steps_as_the_mean(self, kind, shape, fisher):
        mean, half = (self.steps(kind, shape, fisher, lambda loss, z, y, each=each: loss(z, y) * each) for each in (1, 0.5))
        assert_times(half, mean, 1)

    @fishers
    def test_losses_that_are_added_up_by_hand_have_the_same_direction(self, kind, shape, fisher):
        mean, *others = (self.steps(kind, shape, fisher, how) for how in (
            lambda loss, z, y: loss(z, y), lambda loss, z, y: loss(z, y, reduction="none").mean(),
            lambda loss, z, y: loss(z, y, reduction="none").sum(), lambda loss, z, y: loss(z, y, reduction="none").sum() * (1 / 12)))
        for other in others:
            assert_times(other, mean, np.linalg.norm(other) / np.linalg.norm(mean))

    def test_losses_of_single_numbers_that_are_added_up_are_a_sum(self, kind, shape):
        whole, by_hand = (self.steps(kind, shape, "exact", how) for how in (
            lambda loss, z, y: loss(z, y, reduction="sum"), lambda loss, z, y: loss(z, y, reduction="none").sum()))
        assert_times(by_hand, whole, 1)

    def test_the_clip_knows_no_reduction(self, kind, shape):
        mean, total = (self.steps(kind, shape, "exact", lambda loss, z, y, each=each: loss(z, y, reduction=each), kl_clip=1e-6)
                       for each in ("mean", "sum"))
        assert_times(total, mean, 1)

    @fishers
    @pytest.mark.parametrize("inversion", ["cholesky", "ekfac"])
    def test_parts_of_a_minibatch_make_the_step_of_the_whole(self, kind, shape, fisher, inversion):
        model, x = net(shape)
        y = targets(kind, model(x).shape)

        def in_parts(*cuts):
            def losses(model):
                for part_x, part_y in zip(np.split(x, cuts), np.split(y, cuts)):
                    yield LOSSES[kind](model(part_x), part_y), len(part_x) / 12
            return losses

        whole, two, three = (step_of(net(shape)[0], in_parts(*cuts), fisher=fisher, inversion=inversion) for cuts in ((), (5,), (2, 9)))
        assert_times(two, whole, 1)
        assert_times(three, whole, 1)

    @pytest.mark.parametrize("times", [2, 4])
    def test_a_minibatch_repeated_makes_the_same_step(self, kind, shape, times):
        model, x = net(shape)
        y = targets(kind, model(x).shape)
        one, other = (step_of(net(shape)[0], lambda model, n=n: [(LOSSES[kind](model(np.concatenate([x] * n)),
                                                                               np.concatenate([y] * n)), None)]) for n in (1, times))
        assert_times(other, one, 1)


@kinds
def test_lr_damping_and_clip_mean_the_same_in_a_large_minibatch(kind):
    x = numbers(125, 3)
    y = targets(kind, (125, 3))
    one, many = (step_of(mlp(), lambda model, n=n: [(LOSSES[kind](model(np.tile(x, (n, 1))), np.concatenate([y] * n)), None)],
                         lr=0.1, damping=0.03, kl_clip=1e-4) for n in (1, 16))
    assert_times(many, one, 1)


class TestDirections:
    """Between the gradient and the natural gradient, as damping says."""

    @pytest.mark.parametrize("inversion", ["cholesky", "eigen", "ekfac"])
    @kinds
    def test_with_much_damping_it_is_the_gradient(self, kind, inversion):
        optimizer = shown(mlp(), X, kind, damping=1e8, inversion=inversion)
        for path, u in optimizer.directions().items():
            g = gradients(optimizer)[path]
            assert np.vdot(u, g) / np.linalg.norm(u) / np.linalg.norm(g) > 1 - 1e-6
            np.testing.assert_allclose(np.linalg.norm(u), np.linalg.norm(g) / 1e8, rtol=1e-3)

    @pytest.mark.parametrize("inversion", ["cholesky", "eigen", "ekfac"])
    @pytest.mark.parametrize("kind", ["bernoulli", "gaussian"])
    def test_with_none_it_is_the_natural_gradient(self, kind, inversion):
        optimizer = shown(mlp(sizes=(3, 3, 3)), numbers(40, 3), kind, damping=1e-14, inversion=inversion)
        for block in optimizer.blocks.values():
            wanted = np.linalg.solve(block.dense(), flat(block, gradients(optimizer)))
            np.testing.assert_allclose(flat(block, optimizer.directions()), wanted, rtol=1e-4, atol=1e-6 * abs(wanted).max())


class TestClip:
    """lr^2 u^T F u <= kl_clip, u what the step changed, divided by lr."""

    def bend(self, kl_clip, damping, lr=0.5, kind="categorical", **options):
        model = mlp()
        optimizer = plain_kfac(model, lr=lr, damping=damping, kl_clip=kl_clip, **options)
        before = {path: p.data.copy() for path, p in optimizer.parameters.items()}
        LOSSES[kind](model(X), targets(kind, (12, 3))).backward()
        optimizer.step()
        moved = {path: p.data - before[path] for path, p in optimizer.parameters.items()}
        return sum(flat(block, moved) @ block.dense() @ flat(block, moved) for block in optimizer.blocks.values()), moved

    @kinds
    def test_bounds_every_step(self, kind):
        for damping in (1e-8, 1e-3, 1.0):
            assert self.bend(1e-3, damping, kind=kind)[0] <= 1e-3 * (1 + 1e-9)

    @pytest.mark.parametrize("kind", ["bernoulli", "gaussian"])         # the softmax has a direction that F does not see
    def test_is_reached_where_there_is_no_damping(self, kind):
        np.testing.assert_allclose(self.bend(1e-3, 1e-10, kind=kind)[0], 1e-3, rtol=0.01)

    def test_that_does_not_bind_changes_nothing(self):
        free, bounded = self.bend(None, 0.1)[1], self.bend(1e6, 0.1)[1]
        assert all((free[path] == bounded[path]).all() for path in free)

    def test_shortens_all_parameters_by_one_factor(self):
        free, bounded = self.bend(None, 0.1)[1], self.bend(1e-4, 0.1)[1]
        ratios = np.concatenate([(bounded[path] / free[path]).ravel() for path in free])
        np.testing.assert_allclose(ratios, ratios[0], rtol=1e-9)
        assert ratios[0] < 0.5

    def test_takes_the_learning_rate_of_each_group(self):
        groups = {"0.*": {"lr": 0.001}, "2.*": {"lr": 2.0}}
        bent, moved = self.bend(1e-3, 1e-10, kind="gaussian", groups=groups)
        np.testing.assert_allclose(bent, 1e-3, rtol=0.01)
        free = self.bend(None, 1e-10, kind="gaussian", groups=groups)[1]
        np.testing.assert_allclose(moved["0.w"] / free["0.w"], (moved["2.b"] / free["2.b"])[0], rtol=1e-6)


class TestSampled:
    @kinds
    def test_comes_to_the_exact_factors_in_the_mean(self, kind):
        """Within 3 standard errors of the mean of 400 draws, as the draws themselves show them."""
        model, y = mlp(), targets(kind, (12, 3))
        exact = shown(model, X, kind).blocks
        optimizer = plain_kfac(model, lr=0.0, fisher="sampled", damping=0.1, factor_decay=0.0, warm_up=400)
        draws = {name: [] for name in ("0.w", "2.w")}
        for _ in range(400):
            optimizer.zero_grad()
            LOSSES[kind](model(X), y).backward()
            optimizer.step()
            for name, found in draws.items():
                found.append(optimizer.blocks[name].averages["G"].value[0].copy())
        for name, found in draws.items():
            bound = 3 * np.std(found, axis=0) / 20
            assert (abs(np.mean(found, axis=0) - exact[name].averages["G"].value[0]) <= bound + 1e-12).all()
            np.testing.assert_allclose(optimizer.blocks[name].averages["A"].value, exact[name].averages["A"].value, rtol=1e-12)

    def test_the_seed_and_the_step_say_what_is_drawn(self):
        def draw(seed, steps=1):
            optimizer, model = None, mlp()
            optimizer = plain_kfac(model, lr=0.0, fisher="sampled", damping=0.1, factor_decay=0.0, seed=seed)
            for _ in range(steps):
                optimizer.zero_grad()
                F.mse(model(X), targets("gaussian", (12, 3))).backward()
                optimizer.step()
            return optimizer.blocks["2.w"].averages["G"].value

        assert (draw(0) == draw(0)).all() and (draw(0) != draw(1)).any() and (draw(0) != draw(0, 2)).any()


class TestEmpirical:
    @kinds
    @pytest.mark.parametrize("reduction", ["mean", "sum"])
    def test_factors_are_the_mean_outer_products_of_single_gradients(self, kind, reduction):
        model, y = mlp(), targets(kind, (12, 3))
        optimizer = plain_kfac(model, fisher="empirical", damping=0.1)
        LOSSES[kind](model(X), y, reduction=reduction).backward()
        optimizer.prepare()
        a, g = 0, 0
        for n in range(12):
            hidden = F.tanh(model[0](X[n:n + 1]))
            z = model[2](hidden)
            loss = LOSSES[kind](z, y[n:n + 1], reduction="sum") * (0.5 if kind == "gaussian" else 1)
            (gy,) = minidl.grad(loss, z)
            a, g = a + np.outer(*[np.append(hidden.data, 1)] * 2) / 12, g + gy.data.T @ gy.data / 12
        np.testing.assert_allclose(optimizer.blocks["2.w"].averages["A"].value[0], a, atol=1e-13)
        np.testing.assert_allclose(optimizer.blocks["2.w"].averages["G"].value[0], g, atol=1e-14)

    @kinds
    def test_of_normalization_is_the_empirical_fisher_matrix(self, kind):
        model = nn.Sequential(affine(3, 4), nn.LayerNorm(4, dtype="float64"), nn.Tanh(), affine(4, 3, seed=1))
        y = targets(kind, (12, 3))
        block = shown(model, X, kind, y, fisher="empirical").blocks["1.gamma"]
        true = ordered(model, block, fisher(model, X, kind, kind="empirical", y=y, parameters=["1.gamma", "1.beta"]))
        unit = np.arange(8) % 4
        np.testing.assert_allclose(block.dense(), np.where(unit[:, None] == unit, true, 0), atol=1e-14)

    @kinds
    def test_parts_of_a_minibatch_make_the_step_of_the_whole(self, kind):
        y = targets(kind, (12, 3))
        whole, parts = (step_of(mlp(), lambda model, cuts=cuts: [(LOSSES[kind](model(x), part), len(x) / 12) for x, part in
                                                                 zip(np.split(X, cuts), np.split(y, cuts))], fisher="empirical")
                        for cuts in ((), (5,)))
        assert_times(parts, whole, 1)


def by_hand(kind, z, y):
    if kind == "categorical":
        return F.log(F.exp(z).sum(axis=1)).mean() - (z * np.eye(3)[y]).sum() * (1 / len(z))
    if kind == "bernoulli":
        return (F.log(1 + F.exp(z)) - z * y.astype(float)).mean()
    return ((z - y) * (z - y)).mean()


class TestLossesByHand:
    @kinds
    @pytest.mark.parametrize("fisher", ["exact", "sampled", "empirical"])
    def test_named_make_the_step_of_the_loss_itself(self, kind, fisher):
        y, name = targets(kind, (12, 3)), LOSSES[kind].__name__
        wanted = step_of(mlp(), lambda model: [(LOSSES[kind](model(X), y), None)], fisher=fisher)
        found = step_of(mlp(), lambda model: [(by_hand(kind, model(X), y), None)], fisher=fisher, loss=name)
        assert_times(found, wanted, 1)

    @kinds
    def test_named_in_parts(self, kind):
        y, name = targets(kind, (12, 3)), LOSSES[kind].__name__
        wanted = step_of(mlp(), lambda model: [(LOSSES[kind](model(X), y), None)], fisher="sampled")
        found = step_of(mlp(), lambda model: ((by_hand(kind, model(X[part]), y[part]), share) for part, share in
                                              ((slice(0, 5), 5 / 12), (slice(5, 12), 7 / 12))), fisher="sampled", loss=name)
        assert_times(found, wanted, 1)

    def test_not_named_have_the_empirical_fisher_matrix_and_it_is_said_once(self):
        y, model = targets("categorical", (12, 3)), mlp()
        optimizer = plain_kfac(model, fisher="sampled", damping=0.1)
        with pytest.warns(UserWarning, match="no known distribution, so the empirical Fisher") as caught:
            by_hand("categorical", model(X), y).backward()
        assert len(caught) == 1
        optimizer.prepare()
        wanted = shown(mlp(), X, "categorical", y, fisher="empirical").blocks
        for name, block in optimizer.blocks.items():
            np.testing.assert_allclose(block.dense(), wanted[name].dense(), atol=1e-14)
        by_hand("categorical", model(X), y).backward()
        assert len(optimizer.reports) == 1

    def test_named_but_not_computed_from_the_output_are_an_error(self):
        model = mlp()
        optimizer = plain_kfac(model, loss="mse", damping=0.1)
        (model[0](X) * model[0](X)).mean().backward()
        with pytest.raises(minidl.errors.GraphError, match="output did not go into this loss"):
            optimizer.step()
        (model(X) * model(X)).mean().backward()                 # a penalty may have a backward pass of its own
        optimizer.step()

    @kinds
    @pytest.mark.parametrize("factor", [0.5, 3])
    def test_other_means_by_hand_are_measured(self, kind, factor):
        """Half of a mean over all numbers, and the mean over examples alone, which is three times that over 3 numbers each."""
        y, name = targets(kind, (12, 3)), LOSSES[kind].__name__
        wanted = step_of(mlp(), lambda model: [(LOSSES[kind](model(X), y), None)])
        found = step_of(mlp(), lambda model: [(by_hand(kind, model(X), y) * factor, None)], loss=name)
        assert_times(found, wanted, 3 if kind == "categorical" and factor == 3 else 1)


class Mixed(nn.Module):
    """One output for two losses: classes, and a number for each."""

    def __init__(self):
        self.body, self.last = affine(3, 4), affine(4, 3, seed=1)

    def forward(self, x):
        return self.last(F.tanh(self.body(x)))


class Heads(nn.Module):
    """Two outputs."""

    def __init__(self):
        self.body, self.one, self.two = affine(3, 4), affine(4, 3, seed=1), affine(4, 2, seed=2)

    def forward(self, x):
        h = F.tanh(self.body(x))
        return self.one(h), self.two(h)


class Head(nn.Module):
    """One of them."""

    def __init__(self, heads, which):
        self.heads, self.which = heads, which

    def forward(self, x):
        return self.heads(x)[self.which]


class TestSeveralLosses:
    @pytest.mark.parametrize("share", [0.1, 5.0])
    def test_on_one_output_weigh_as_they_do_in_the_total(self, share):
        """Nats: the squared error, a mean over 3 numbers, is 2/3 of its -log p, an example of cross-entropy 1; the heaviest counts 1."""
        model, y, t = Mixed(), targets("categorical", (12, 3)), targets("gaussian", (12, 3))
        optimizer = plain_kfac(model, damping=0.1)
        z = model(X)
        (F.softmax_cross_entropy(z, y) + F.mse(z, t) * share).backward()
        optimizer.prepare()
        one, two = (shown(Mixed(), X, kind).blocks for kind in ("categorical", "gaussian"))
        weights = np.array([1, share * 2 / 3]) / max(1, share * 2 / 3)
        for name, block in optimizer.blocks.items():
            wanted = weights[0] * one[name].dense() + weights[1] * two[name].dense()
            np.testing.assert_allclose(block.dense(), wanted, atol=1e-14)

    def test_of_two_heads_are_added_up_where_they_meet(self):
        model = Heads()
        optimizer = plain_kfac(model, damping=0.1)
        one, two = model(X)
        (F.softmax_cross_entropy(one, targets("categorical", (12, 3))) + F.mse(two, targets("gaussian", (12, 2))) * 0.1).backward()
        optimizer.prepare()
        single = [shown(Head(model, which), X, kind).blocks for which, kind in enumerate(("categorical", "gaussian"))]
        whole = single[0]["heads.body.w"].dense() + 0.1 * single[1]["heads.body.w"].dense()
        np.testing.assert_allclose(optimizer.blocks["body.w"].dense(), whole, atol=1e-14)
        np.testing.assert_allclose(optimizer.blocks["two.w"].dense(), 0.1 * single[1]["heads.two.w"].dense(), atol=1e-14)

    def test_of_two_forward_passes_are_added_up(self):
        model, xs = affine(3, 2), [numbers(5, 3, seed=seed) for seed in (0, 1)]
        optimizer = plain_kfac(model, damping=0.1)
        (F.mse(model(xs[0]), numbers(5, 2)) + F.mse(model(xs[1]), numbers(5, 2))).backward()
        optimizer.prepare()
        np.testing.assert_allclose(optimizer.blocks["w"].dense(), sum(fisher(model, x, "mse") for x in xs), atol=1e-13)

    def test_of_two_heads_in_one_drawn_pass(self):
        model, random = Heads(), np.random.default_rng([0, 0])
        optimizer = plain_kfac(model, damping=0.1, fisher="sampled")
        one, two = model(X)
        (F.softmax_cross_entropy(one, targets("categorical", (12, 3))) + F.mse(two, targets("gaussian", (12, 2))) * 0.1).backward()
        optimizer.prepare()
        kinds = minidl.functions.likelihood.KINDS
        scores = [kinds["categorical"].sampled(one.data, random), kinds["gaussian"].sampled(two.data, random) * 0.1 ** 0.5]
        for name, s in zip(("one.w", "two.w"), scores):
            np.testing.assert_allclose(optimizer.blocks[name].averages["G"].value[0], s.T @ s / 12, atol=1e-14)

    def test_weights_of_single_examples_count(self):
        model, y, weights = mlp(), targets("categorical", (12, 3)), np.random.default_rng(5).uniform(0, 2, 12)
        optimizer = plain_kfac(model, damping=0.1)
        (F.softmax_cross_entropy(model(X), y, reduction="none") * weights).mean().backward()
        optimizer.prepare()
        p = F.softmax(model(X).data, 1)
        wanted = sum(w * (np.diag(each) - np.outer(each, each)) for w, each in zip(weights, p)) / weights.sum()
        np.testing.assert_allclose(optimizer.blocks["2.w"].averages["G"].value[0], wanted, atol=1e-14)
