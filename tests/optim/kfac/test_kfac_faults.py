"""What went wrong once: frozen parameters, equal inputs under reduce, bad minibatches, float16, losses by name, damaged states."""

import copy
import gc
import pickle
import warnings
import weakref

import numpy as np
import pytest

import strict  # noqa: F401   (it makes the device known)
from curved import affine, block_of, conv, conv_net, mlp, numbers, plain_kfac, shown
from minidl import backend, fisher, nn
from minidl import functions as F
from minidl.errors import ArgumentError, CheckpointError
from minidl.optim import KFAC
from minidl.optim.kfac import inverses

X = numbers(8, 3)


def hand(y, t):
    return ((y - t) * (y - t)).mean()


class TestFrozen:
    def test_before_the_optimizer_is_made(self):
        model = nn.Sequential(affine(3, 4), nn.LayerNorm(4, dtype="float64"), nn.Tanh(), affine(4, 3, seed=1))
        model[1].beta.requires_grad = False
        block = shown(model, X, "categorical").blocks["1.gamma"]
        true = fisher(model, X, parameters=["1.gamma"])
        np.testing.assert_allclose(block.dense(), np.diag(np.diag(true)), atol=1e-14)

    def test_and_freed_again(self):
        model = affine(3, 2)
        optimizer = plain_kfac(model, damping=0.1, lr=0.01)

        def step():
            optimizer.zero_grad()
            F.mse(model(X), numbers(8, 2)).backward()
            optimizer.step()
        step()
        model.b.requires_grad = False
        step()
        assert set(optimizer.directions()) == {"w"} and not optimizer.plain
        model.b.requires_grad = True
        step()
        assert set(optimizer.directions()) == {"w", "b"} and not optimizer.plain


class TestReduce:
    """Exact where a layer's inputs are equal at all positions."""

    @pytest.mark.parametrize("bias", [True, False])
    def test_affine(self, bias):
        class Pool(nn.Module):
            def __init__(self):
                self.each = affine(3, 2, bias=bias)

            def forward(self, x):
                return self.each(x).mean(axis=1)
        model, x = Pool(), np.repeat(numbers(6, 1, 3), 5, axis=1)
        block = shown(model, x, sharing="reduce").blocks["each.w"]
        np.testing.assert_allclose(block.dense(), block_of(model, x, "gaussian", block), atol=1e-13)

    def test_convolution(self):
        class Pool(nn.Module):
            def __init__(self):
                self.conv = conv(2, 3, 2)

            def forward(self, x):
                return self.conv(x).mean(axis=(2, 3))
        model, x = Pool(), numbers(6, 2, 1, 1) * np.ones((6, 2, 4, 4))
        block = shown(model, x, sharing="reduce").blocks["conv.w"]
        np.testing.assert_allclose(block.dense(), block_of(model, x, "gaussian", block), atol=1e-13)


class TestStrictDevice:
    def test_cholesky(self):
        model = mlp().to(device="strict:0")
        optimizer = KFAC(model)
        F.mse(model(backend.asarray(X, "strict:0")), backend.asarray(numbers(8, 3), "strict:0")).backward()
        optimizer.step()
        assert not optimizer.reports and set(optimizer.directions()) == set(optimizer.parameters)


class TestFloat16:
    def test_a_changed_gradient_is_noticed(self):
        def direction(factor):
            model = nn.Affine(40, 30, generator=0).to(dtype="float16")
            optimizer = plain_kfac(model, damping=0.1)
            x, t = numbers(3, 40).astype("float16"), (10 * numbers(3, 30)).astype("float16")
            F.mse(model(x), t, reduction="sum").backward()
            for p in model.parameters():
                p.grad = p.grad.data * np.float16(factor)
            optimizer.prepare()
            return optimizer.directions()["w"].astype("float64")
        np.testing.assert_allclose(direction(0.5), direction(1) * 0.5, rtol=0.1, atol=1e-2)

    def test_directions_are_clipped_before_they_are_rounded(self):
        model = nn.Affine(200, 200, generator=0).to(dtype="float16")
        optimizer = KFAC(model, lr=0.001, damping=1e-4)
        F.mse(model(numbers(64, 200).astype("float16")), (30 * numbers(64, 200)).astype("float16"), reduction="sum").backward()
        optimizer.step()
        assert np.isfinite(model.w.data).all()


class TestLossByName:
    def test_holds_no_outputs(self):
        model = affine(3, 2)
        optimizer = plain_kfac(model, damping=0.1, lr=0.001, loss="mse", warm_up=0)
        outputs = []
        for _ in range(5):
            optimizer.zero_grad()
            y = model(X)
            outputs.append(weakref.ref(y))
            hand(y, numbers(8, 2)).backward()
            del y
            optimizer.step()
        y = model(X)                                            # evaluated only
        outputs.append(weakref.ref(y))
        del y
        gc.collect()
        assert not any(output() is not None for output in outputs)

    def test_does_not_keep_the_optimizer(self):
        model = affine(3, 2)
        optimizer = plain_kfac(model, damping=0.1, loss="mse")
        gone = weakref.ref(optimizer)
        del optimizer
        gc.collect()
        assert gone() is None and not model._hooks

    def test_two_graphs(self):
        model = affine(3, 2)
        optimizer = plain_kfac(model, damping=0.1, loss="mse")
        one, two = hand(model(X), numbers(8, 2)), hand(model(X), numbers(8, 2))
        one.backward()
        two.backward()
        optimizer.prepare()
        assert set(optimizer.directions()) == {"w", "b"}


@pytest.mark.parametrize("m", [np.diag([np.inf, 1.0]), np.diag([1.0, np.inf]), np.array([[np.inf]])])
def test_infinity_is_not_inverted(m):
    told = []
    (found,) = inverses.inverted([("A", m[None], np.zeros((1, 1, 1)))], told.append)
    assert found is None and told


class TestABadMinibatch:
    """It is reported, and left out of the averages."""

    @pytest.mark.parametrize("inversion", ["cholesky", "eigen", "ekfac"])
    @pytest.mark.parametrize("what", [np.inf, np.nan])
    def test_of_a_factor(self, inversion, what):
        model = nn.Sequential(affine(3, 4), nn.Tanh(), affine(4, 2, seed=1))
        optimizer = plain_kfac(model, lr=0.01, damping=0.1, fisher="sampled", inversion=inversion)

        def backward():
            optimizer.zero_grad()
            F.mse(model(X), numbers(8, 2)).backward()
        backward()
        optimizer.step()
        for name in ("A", "G"):
            backward()
            optimizer.blocks["0.w"].sums[name][0, 0, 0] = what
            with pytest.warns(UserWarning, match="not finite"):
                optimizer.step()
        assert np.isfinite(model[0].w.data).all() and len(optimizer.reports) == 2
        for _ in range(3):
            backward()
            optimizer.step()
        assert len(optimizer.reports) == 2

    def test_of_a_normalization_layer(self):
        model = nn.Sequential(affine(3, 4), nn.LayerNorm(4, dtype="float64"), nn.Tanh(), affine(4, 2, seed=1))
        optimizer = plain_kfac(model, lr=0.01, damping=0.1, fisher="sampled")

        def backward():
            optimizer.zero_grad()
            F.mse(model(X), numbers(8, 2)).backward()
        backward()
        optimizer.step()
        backward()
        optimizer.blocks["1.gamma"].sums["F"][0, 0, 0] = np.nan
        with pytest.warns(UserWarning, match="not finite"):
            optimizer.step()
        backward()
        optimizer.step()


def test_ekfac_with_calls_of_different_sizes():
    model = affine(3, 2)
    optimizer = plain_kfac(model, damping=0.1, inversion="ekfac", fisher="sampled")
    (F.mse(model(X), numbers(8, 2)) + F.mse(model(X[:5]), numbers(5, 2))).backward()
    optimizer.step()
    assert np.isfinite(model.w.data).all()


class TestUndamped:
    def test_embedding_in_float64(self):
        model = nn.Sequential(nn.Embedding(5, 3, generator=0, dtype="float64"), affine(3, 2))
        optimizer = shown(model, np.array([0, 3, 3, 1, 0, 2]), damping=0.01, inversion="eigen")
        block = optimizer.blocks["0.w"]
        assert block.averages["A"].value.dtype == block.dense().dtype == np.float64
        wanted = np.linalg.solve(block.dense() + 0.01 * np.eye(15), model[0].w.grad.data.ravel())
        np.testing.assert_allclose(optimizer.directions()["0.w"].ravel(), wanted, rtol=1e-10)

    @pytest.mark.parametrize("inversion", ["cholesky", "eigen", "ekfac"])
    def test_an_id_that_is_not_used(self, inversion):
        model = nn.Sequential(nn.Embedding(5, 2, generator=0, dtype="float64"), affine(2, 2))
        optimizer = plain_kfac(model, lr=0.1, inversion=inversion)
        before = model[0].w.data.copy()
        F.mse(model(np.array([0, 1, 2, 2])), numbers(4, 2)).backward()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            optimizer.step()
        assert np.isfinite(model[0].w.data).all()
        np.testing.assert_array_equal(model[0].w.data[3:], before[3:])

    @pytest.mark.parametrize("inversion", ["eigen", "ekfac"])
    def test_rank_deficient(self, inversion):
        model, x = affine(4, 2), np.zeros((3, 4))
        x[:, 0] = 1, 2, 3
        optimizer = plain_kfac(model, inversion=inversion)
        F.mse(model(x), np.ones((3, 2))).backward()
        with pytest.warns(UserWarning, match="without curvature"):
            optimizer.step()
        assert np.isfinite(model.w.data).all()


class TestState:
    def test_into_another_inversion(self):
        model = affine(3, 2)
        one = plain_kfac(model, lr=0.01, damping=0.1)
        for _ in range(13):
            one.zero_grad()
            F.mse(model(X), numbers(8, 2)).backward()
            one.step()
        other = plain_kfac(model, lr=0.01, damping=0.1, inversion="eigen")
        other.load_state_dict(one.state_dict())
        F.mse(model(X), numbers(8, 2)).backward()
        other.prepare()
        assert set(other.directions()) == {"w", "b"}

    @pytest.mark.parametrize("damage", [
        pytest.param(lambda s: s.pop("kfac.0.w.A"), id="missing factor"),
        pytest.param(lambda s: s.pop("kfac.0.w.division.left"), id="missing inverse"),
        pytest.param(lambda s: s.update({"kfac.0.w.Z": np.ones(3)}), id="foreign array"),
        pytest.param(lambda s: s["kfac"].update(blocks=[]), id="arrays without blocks"),
        pytest.param(lambda s: s["kfac"]["blocks"][0].update(damping="x"), id="damping"),
        pytest.param(lambda s: s.update({"kfac.0.w.A": s["kfac.0.w.A"].astype(int)}), id="dtype"),
        pytest.param(lambda s: [b["options"].update(groups=0) for b in s["kfac"]["blocks"] if b["kind"] == "conv2d"], id="no groups"),
        pytest.param(lambda s: [b["options"].update(shape=[1, 2]) for b in s["kfac"]["blocks"] if b["kind"] == "conv2d"], id="shape"),
        pytest.param(lambda s: s["kfac"]["blocks"].append(s["kfac"]["blocks"][0]), id="block twice")])
    def test_that_is_damaged(self, damage):
        model = conv_net(groups=2)
        optimizer, x = plain_kfac(model, lr=0.01, damping=0.1), numbers(6, 2, 4, 4)
        F.mse(model(x), numbers(6, 3)).backward()
        optimizer.step()
        state = optimizer.state_dict()
        damage(state)
        with pytest.raises(CheckpointError):
            optimizer.load_state_dict(state)


@pytest.mark.parametrize("loss", [
    lambda y, t: F.mse(y, t), lambda y, t: F.mse(y, t, reduction="sum") * (0.5 / len(t)), lambda y, t: F.mse(y, t, reduction="none").mean(),
    lambda y, t: F.mse(y, t, reduction="sum") * (1 / len(t))])
def test_every_mean_lands_on_least_squares(loss):
    layer, x, t = affine(4, 3), numbers(20, 4), numbers(20, 3, seed=1)
    optimizer = plain_kfac(layer)
    loss(layer(x), t).backward()
    optimizer.step()
    wanted = np.linalg.lstsq(np.c_[x, np.ones(20)], t, rcond=None)[0]
    np.testing.assert_allclose(np.vstack([layer.w.data, layer.b.data]), wanted, atol=1e-10)


def test_two_forwards_of_halves_are_one_minibatch():
    xs, t, found = [numbers(5, 3, seed=s) for s in (0, 1)], numbers(10, 2), []
    for apart in (False, True):
        model = affine(3, 2)
        optimizer = plain_kfac(model, damping=0)
        if apart:
            ((F.mse(model(xs[0]), t[:5]) + F.mse(model(xs[1]), t[5:])) * 0.5).backward()
        else:
            F.mse(model(np.vstack(xs)), t).backward()
        before = model.w.data.copy()
        optimizer.step()
        found.append(model.w.data - before)
    np.testing.assert_allclose(found[1], found[0], rtol=1e-9)


class TestFewRows:
    def test_resumed_to_the_bit_between_two_renewals(self):
        """The way a direction is computed depends on the rows of a minibatch, also straight after loading."""
        def make():
            model = nn.Affine(64, 64, generator=0)
            return model, KFAC(model, lr=0.1, warm_up=2, factor_interval=7, inverse_interval=7)

        def train(model, optimizer, steps):
            for step in steps:
                optimizer.zero_grad()
                F.mse(model(numbers(8, 64, seed=step).astype("float32")), numbers(8, 64).astype("float32")).backward()
                optimizer.step()
        model, optimizer = make()
        train(model, optimizer, range(10))
        weights, state = model.state_dict(), optimizer.state_dict()
        train(model, optimizer, range(10, 14))
        other, resumed = make()
        other.load_state_dict(weights)
        resumed.load_state_dict(state)
        assert optimizer.blocks["w"].small and resumed.blocks["w"].small
        train(other, resumed, range(10, 14))
        np.testing.assert_array_equal(other.w.data, model.w.data)


class TestWithoutAStep:
    def backward(self, model, x=X):
        F.mse(model(x), numbers(len(x), 2)).backward()

    @pytest.mark.parametrize("inversion", ["cholesky", "ekfac"])
    def test_nothing_piles_up(self, inversion):
        """Another optimizer trains the model, or the model forgets its gradients: that is a new step."""
        model = affine(40, 30)
        optimizer = plain_kfac(model, damping=0.1, inversion=inversion, fisher="sampled")
        for _ in range(5):
            model.zero_grad()
            F.mse(model(numbers(3, 40)), numbers(3, 30)).backward()
        block = optimizer.blocks["w"]
        assert len(block.rows_seen) <= 1 and len(block.shown) <= 1 and block.examples == 3
        assert optimizer.statistics.weight == pytest.approx(2 / 30)

    def test_closed_it_sees_nothing(self):
        model = affine(3, 2)
        optimizer = plain_kfac(model, damping=0.1)
        optimizer.close()
        self.backward(model)
        assert not optimizer.blocks


class TestTwoPassesOverOneTrunk:
    @pytest.mark.parametrize("weight", [1.0, 0.01])
    def test_are_one_pass_of_both_losses(self, weight):
        class Heads(nn.Module):
            def __init__(self):
                self.trunk, self.one, self.other = affine(3, 4), affine(4, 3, seed=1), affine(4, 2, seed=2)

            def forward(self, x):
                h = F.tanh(self.trunk(x))
                return self.one(h), self.other(h)
        moved = []
        for apart in (False, True):
            model = Heads()
            optimizer = plain_kfac(model, damping=0.1, lr=1.0)
            z, y = model(X)
            classes, rest = F.softmax_cross_entropy(z, np.arange(8) % 3), F.mse(y, numbers(8, 2)) * weight
            if apart:
                classes.backward(retain_graph=True)
                rest.backward()
            else:
                (classes + rest).backward()
            before = model.trunk.w.data.copy()
            optimizer.step()
            moved.append(model.trunk.w.data - before)
        np.testing.assert_allclose(moved[1], moved[0], rtol=1e-10)


class Two(nn.Module):
    """Two layers side by side, of which the second is used as long as `both` says so."""

    def __init__(self):
        self.a, self.b, self.both = affine(3, 2), affine(3, 2, seed=1), True

    def forward(self, x):
        return self.a(x) + self.b(x) if self.both else self.a(x)


class TestLayersThatComeAndGo:
    def test_adaptive_intervals_do_not_wait_for_a_layer_that_is_not_used(self, monkeypatch):
        model = Two()
        optimizer = plain_kfac(model, damping=0.1, lr=0.0, factor_interval="adaptive", warm_up=0)
        passes, own = [], optimizer.statistics.own_pass
        monkeypatch.setattr(optimizer.statistics, "own_pass", lambda *args: passes.append(optimizer.steps) or own(*args))
        for step in range(64):
            model.both = step < 8
            optimizer.zero_grad()
            F.mse(model(X), numbers(8, 2)).backward()
            optimizer.step()
        assert len(set(passes)) < 16

    def test_one_that_first_comes_between_two_renewals_is_named_when_it_comes(self):
        model = Two()
        model.both = False
        optimizer = plain_kfac(model, damping=0.1, lr=0.0, factor_interval=4, warm_up=0)
        with pytest.warns(UserWarning, match=r"plain gradient: b\.w \(not seen"):
            for step in range(9):
                model.both = step in (3, 8)
                optimizer.zero_grad()
                F.mse(model(X), numbers(8, 2)).backward()
                optimizer.step()
        assert not optimizer.plain

    def test_weights_that_are_freed_later_get_a_block(self):
        model = affine(3, 2)
        model.w.requires_grad = False
        optimizer = plain_kfac(model, damping=0.1, lr=0.0)
        with pytest.warns(UserWarning, match=r"b \(the weights beside it are not learned\)"):
            for _ in range(2):
                optimizer.zero_grad()
                F.mse(model(X), numbers(8, 2)).backward()
                optimizer.step()
        model.w.requires_grad = True
        optimizer.zero_grad()
        F.mse(model(X), numbers(8, 2)).backward()
        optimizer.step()
        assert not optimizer.plain and set(optimizer.blocks) == {"w"}


def test_ekfac_with_calls_of_different_resolution():
    class Both(nn.Module):
        def __init__(self):
            self.conv = conv(2, 3, 2)

        def forward(self, x):
            return self.conv(x).mean(axis=(2, 3)) + self.conv(x[:, :, :3, :3]).mean(axis=(2, 3))
    model, x = Both(), numbers(6, 2, 5, 5)
    optimizer = shown(model, x, inversion="ekfac", damping=0.1)
    block = optimizer.blocks["conv.w"]
    true = fisher(model, x, loss="mse", parameters=["conv.*"])
    np.testing.assert_allclose(block.division.arrays["curvature"].sum(), np.trace(true), rtol=1e-10)           # the same in any basis


class TestOdds:
    @pytest.mark.parametrize("copied", ["copy", "deepcopy", "pickle"])
    def test_a_copy_would_look_at_the_wrong_model(self, copied):
        optimizer = KFAC(affine(3, 2))
        how = {"copy": copy.copy, "deepcopy": copy.deepcopy, "pickle": pickle.dumps}[copied]
        with pytest.raises(ArgumentError, match="cannot be copied or pickled"):
            how(optimizer)

    def test_an_empty_minibatch_says_nothing(self):
        model = affine(3, 2)
        optimizer = plain_kfac(model, damping=0.1)
        F.mse(model(X[:0]), numbers(0, 2)).backward()
        assert not optimizer.blocks

    def test_a_loss_of_no_weight_says_nothing(self):
        model = affine(3, 2)
        optimizer = plain_kfac(model, damping=0.1)
        (F.mse(model(X), numbers(8, 2)) * 0.0).backward()
        assert not optimizer.blocks and not optimizer.reports

    def test_a_closure_for_pytorch(self):
        model = affine(3, 2)
        optimizer = plain_kfac(model, damping=0.1)

        def closure():
            optimizer.zero_grad()
            loss = F.mse(model(X), numbers(8, 2))
            loss.backward()
            return loss
        F.mse(model(X), numbers(8, 2)).backward()
        with pytest.raises(ArgumentError, match="must only compute the loss"):
            optimizer.step(closure)

    def test_a_model_that_is_brought_to_another_dtype(self):
        model = affine(3, 2).to(dtype="float32")
        optimizer = plain_kfac(model, damping=0.1, lr=0.0)
        for dtype in ("float32", "float64"):
            model.to(dtype=dtype)
            optimizer.zero_grad()
            F.mse(model(X.astype(dtype)), numbers(8, 2).astype(dtype)).backward()
            optimizer.step()
            assert all(x.dtype == dtype for x in optimizer.blocks["w"].arrays().values())

    def test_the_inner_rules_memory_is_to_be_seen(self):
        optimizer = KFAC(affine(3, 2), lr=0.1, momentum=0.9)
        assert set(optimizer.state) == {"w", "b"} == set(optimizer.updates) == set(optimizer.changes)
