"""What went wrong once: frozen parameters, equal inputs under reduce, bad minibatches, float16, losses by name, damaged states."""

import gc
import warnings
import weakref

import numpy as np
import pytest

from curved import affine, block_of, conv, conv_net, mlp, numbers, plain_kfac, shown
from minidl import backend, fisher, nn
from minidl import functions as F
from minidl.errors import CheckpointError
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
