"""K-FAC where it is exact, against the Fisher matrix itself: single examples, linear networks, least squares, changes of coordinates."""

from typing import ClassVar

import numpy as np
import pytest

import minidl
from curved import LOSSES, affine, block_of, conv, conv_net, error, flat, gradients, mlp, numbers, plain_kfac, shown, targets
from minidl import functions as F
from minidl import nn, optim

kinds = pytest.mark.parametrize("kind", LOSSES)
inversions = pytest.mark.parametrize("inversion", ["cholesky", "eigen", "ekfac"])


class TestOneExample:
    @pytest.mark.parametrize("bias", [True, False])
    def test_the_block_is_the_kronecker_product_of_its_input_and_the_softmax(self, bias):
        layer, x = affine(3, 4, bias=bias), numbers(1, 3)
        a, p = np.append(x[0], 1) if bias else x[0], F.softmax(layer(x).data, 1)[0]
        block = shown(layer, x, "categorical").blocks["w"]
        wanted = np.kron(np.outer(a, a), np.diag(p) - np.outer(p, p))
        np.testing.assert_allclose(block.dense(), wanted, rtol=1e-12, atol=1e-15)
        np.testing.assert_allclose(block.dense(), minidl.fisher(layer, x), atol=1e-15)

    @kinds
    @pytest.mark.parametrize("net", [lambda: (mlp(nn.ReLU), numbers(1, 3)), lambda: (mlp(sizes=(3, 4, 5, 2)), numbers(1, 3))])
    def test_every_affine_block_of_any_network_is_exact(self, net, kind):
        model, x = net()
        for block in shown(model, x, kind).blocks.values():
            np.testing.assert_allclose(block.dense(), block_of(model, x, kind, block), atol=1e-14)


class TestLinearNetworks:
    def test_the_block_of_one_layer_and_the_squared_error_is_a_times_the_identity(self):
        layer, x = affine(3, 2, bias=False), numbers(7, 3)
        np.testing.assert_allclose(shown(layer, x).blocks["w"].dense(), np.kron(x.T @ x / 7, np.eye(2)), atol=1e-15)

    @pytest.mark.parametrize("batch", [1, 2, 9])
    def test_every_block_is_exact_at_any_batch_size(self, batch):
        model, x = mlp(None, (3, 4, 5, 2)), numbers(batch, 3)
        optimizer = shown(model, x)
        assert set(optimizer.blocks) == {"0.w", "1.w", "2.w"}
        for block in optimizer.blocks.values():
            np.testing.assert_allclose(block.dense(), block_of(model, x, "gaussian", block), atol=1e-13)

    def test_with_a_relu_in_it_they_are_not(self):
        model, x = mlp(nn.ReLU, (3, 4, 5, 2)), numbers(9, 3)
        blocks = shown(model, x).blocks
        assert error(blocks["0.w"].dense(), block_of(model, x, "gaussian", blocks["0.w"])) > 1e-2

    @pytest.mark.parametrize("outputs", [1, 3])
    @inversions
    def test_one_step_of_length_1_is_least_squares(self, outputs, inversion):
        layer, x, t = affine(4, outputs), numbers(20, 4), numbers(20, outputs, seed=1)
        optimizer = plain_kfac(layer, inversion=inversion)
        F.mse(layer(x), t).backward()
        optimizer.step()
        wanted = np.linalg.lstsq(np.c_[x, np.ones(20)], t, rcond=None)[0]
        np.testing.assert_allclose(np.vstack([layer.w.data, layer.b.data]), wanted, atol=1e-10)

    @inversions
    def test_the_direction_is_the_gradient_divided_by_the_true_block(self, inversion):
        model, x = mlp(None, (4, 3, 3, 3)), numbers(30, 4)
        optimizer = shown(model, x, damping=0, inversion=inversion)
        for block in optimizer.blocks.values():
            wanted = np.linalg.solve(block_of(model, x, "gaussian", block), flat(block, gradients(optimizer)))
            np.testing.assert_allclose(flat(block, optimizer.directions()), wanted, rtol=1e-8, atol=1e-10)


class Plan:
    """20 steps of full batches. `path` is what the network says of all inputs after each."""

    def __init__(self, model, x, t, make):
        self.path = []
        optimizer = make(model)
        for _ in range(20):
            optimizer.zero_grad()
            F.mse(model(x), t).backward()
            optimizer.step()
            self.path.append(model(x).data)


X, T = numbers(60, 3), np.tanh(numbers(60, 2, seed=1))
MIX, SHIFT = np.array([[2.0, 1.0, 0.0], [0.0, -1.0, 0.5], [1.0, 0.0, 3.0]]), np.array([1.0, -2.0, 0.5])
METHODS = {"kfac": lambda model: plain_kfac(model, lr=0.3), "eigen": lambda model: plain_kfac(model, lr=0.3, inversion="eigen"),
           "sgd": lambda model: optim.SGD(model, 0.3)}


def tanh_net(bias=True):
    return nn.Sequential(affine(3, 4, bias=bias), nn.Tanh(), affine(4, 2, seed=1, bias=bias))


class Sigmoids(nn.Module):
    """The network above with tanh(z) as 2 sigmoid(2 z) - 1: first weights twice as large, and last ones, which make up for the -1."""

    def __init__(self, model):
        self.first, self.last = model[0], model[2]
        self.first.w.data, self.first.b.data = self.first.w.data * 2, self.first.b.data * 2
        self.last.b.data = self.last.b.data - self.last.w.data.sum(axis=0)
        self.last.w.data = self.last.w.data * 2

    def forward(self, x):
        return self.last(F.sigmoid(self.first(x)))


class TestCoordinates:
    """What a network says after each step does not depend on the coordinates that its layers work in; with SGD it does."""

    def compare(self, method, model, x, other, other_x):
        one, two = Plan(model, x, T, METHODS[method]).path, Plan(other, other_x, T, METHODS[method]).path
        return max(abs(a - b).max() for a, b in zip(one, two)), abs(one[-1] - one[0]).max()

    def check(self, method, *case):
        difference, moved = self.compare(method, *case)
        assert moved > 0.05
        assert difference > 1e-2 if method == "sgd" else difference < 1e-8, difference

    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("bias", [True, False])
    def test_inputs_mixed_with_each_other(self, method, bias):
        model, other = tanh_net(bias), tanh_net(bias)
        other[0].w.data = np.linalg.solve(MIX.T, other[0].w.data)
        self.check(method, model, X, other, X @ MIX.T)

    @pytest.mark.parametrize("method", METHODS)
    def test_inputs_mixed_and_shifted(self, method):
        model, other = tanh_net(), tanh_net()
        other[0].w.data = np.linalg.solve(MIX.T, other[0].w.data)
        other[0].b.data = other[0].b.data - SHIFT @ other[0].w.data
        self.check(method, model, X, other, X @ MIX.T + SHIFT)

    @pytest.mark.parametrize("method", METHODS)
    def test_tanh_written_as_a_sigmoid(self, method):
        self.check(method, tanh_net(), X, Sigmoids(tanh_net()), X)


class Twice(nn.Module):
    """One layer applied twice in one graph."""

    def __init__(self, activation=F.relu):
        self.layer, self.last, self.activation = affine(3, 3), affine(3, 2, seed=1), activation

    def forward(self, x):
        return self.last(self.activation(self.layer(self.activation(self.layer(x)))))


class TestEkfac:
    """Of all matrices with the eigenvectors of A (x) G it is the nearest to the true block."""

    CASES: ClassVar = {"affine": lambda: (mlp(nn.ReLU, (3, 4, 4, 2)), numbers(12, 3)),
                       "conv": lambda: (conv_net(nn.ReLU), numbers(6, 2, 4, 4)),
                       "groups": lambda: (conv_net(nn.ReLU, groups=2), numbers(6, 2, 4, 4)),
                       "twice": lambda: (Twice(), numbers(12, 3))}

    @kinds
    @pytest.mark.parametrize("case", CASES)
    def test_is_nearer_to_the_true_block(self, case, kind):
        model, x = self.CASES[case]()
        of_kfac, of_ekfac = (shown(model, x, kind, inversion=inversion).blocks for inversion in ("eigen", "ekfac"))
        errors = {}
        for name, block in of_ekfac.items():
            true = block_of(model, x, kind, block)
            errors[name] = error(of_kfac[name].dense(), true), error(block.dense(), true)
            assert errors[name][1] <= errors[name][0] * (1 + 1e-9) + 1e-12
        plain, better = max(errors.values())
        assert better < 0.99 * plain

    @pytest.mark.parametrize("case", CASES)
    def test_has_the_true_block_on_its_diagonal(self, case):
        model, x = self.CASES[case]()
        for block in shown(model, x, "categorical", inversion="ekfac").blocks.values():
            true, arrays = block_of(model, x, "categorical", block), block.division.arrays
            at = 0
            parts = block.parts(np.arange(len(true)).reshape(arrays["curvature"].shape))
            order = np.argsort(np.concatenate([parts[role].ravel() for role in block.roles if role in parts]))
            true = true[np.ix_(order, order)]
            for left, right, scales in zip(arrays["left"], arrays["right"], arrays["curvature"]):
                q, size = np.kron(left, right), scales.size
                here = true[at:at + size, at:at + size]
                np.testing.assert_allclose(scales.ravel(), np.einsum("pi,pq,qi->i", q, here, q), atol=1e-13)
                at += size

    def test_over_steps_of_equal_minibatches_stays_there(self):
        model, x = mlp(nn.ReLU), numbers(8, 3)
        optimizer, seen = plain_kfac(model, inversion="ekfac", lr=0.0, damping=1e-3), []
        for _ in range(4):
            optimizer.zero_grad()
            F.softmax_cross_entropy(model(x), targets("categorical", (8, 3))).backward()
            optimizer.step()
            seen.append(optimizer.blocks["0.w"].dense())
        for later in seen[1:]:
            np.testing.assert_allclose(later, seen[0], atol=1e-12)


LEARNED = {"both": ("1.gamma", 4, ()), "gamma": ("1.gamma", 4, ("1.beta",)), "beta": ("1.beta", 4, ("1.gamma",))}


class TestNormalization:
    """Each unit's entries of the true matrix, and zeros between units."""

    def check(self, model, x, kind, path, units, frozen=()):
        block = shown(model, x, kind, frozen=frozen).blocks[path]
        true = block_of(model, x, kind, block)
        unit = np.arange(len(true)) % units
        np.testing.assert_allclose(block.dense(), np.where(unit[:, None] == unit, true, 0), atol=1e-14)
        assert abs(block.dense()).max() > 1e-4

    @kinds
    @pytest.mark.parametrize("learned", LEARNED)
    def test_layer_norm(self, learned, kind):
        model = nn.Sequential(affine(3, 4), nn.LayerNorm(4, dtype="float64"), nn.Tanh(), affine(4, 3, seed=1))
        self.check(model, numbers(6, 3), kind, *LEARNED[learned])

    @kinds
    @pytest.mark.parametrize("learned", LEARNED)
    @pytest.mark.parametrize("training", [True, False])
    def test_batch_norm(self, training, learned, kind):
        model = nn.Sequential(affine(3, 4), nn.BatchNorm(4, dtype="float64"), nn.Tanh(), affine(4, 3, seed=1)).train(training)
        self.check(model, numbers(6, 3), kind, *LEARNED[learned])

    @pytest.mark.parametrize("training", [True, False])
    def test_batch_norm_of_images(self, training):
        model = nn.Sequential(conv(2, 4, 3), nn.BatchNorm(4, dtype="float64"), nn.ReLU(), nn.Flatten(), affine(16, 3, seed=1))
        model[1].running_mean, model[1].running_var = numbers(4) * 0.1, numbers(4, seed=1) ** 2 + 0.5
        self.check(model.train(training), numbers(5, 2, 4, 4), "categorical", "1.gamma", 4)

    def test_layer_norm_on_two_axes_with_positions_before_them(self):
        class Model(nn.Module):
            def __init__(self):
                self.norm, self.last = nn.LayerNorm((2, 3), dtype="float64"), affine(6, 3)

            def forward(self, x):
                return self.last(F.tanh(self.norm(x)).sum(axis=1).reshape(len(x), 6))

        self.check(Model(), numbers(4, 5, 2, 3), "categorical", "norm.gamma", 6)

    @pytest.mark.parametrize("learned", LEARNED)
    def test_a_direction_solves_the_block(self, learned):
        model = nn.Sequential(affine(3, 4), nn.LayerNorm(4, dtype="float64"), nn.Tanh(), affine(4, 3, seed=1))
        path, _, frozen = LEARNED[learned]
        optimizer = shown(model, numbers(6, 3), "categorical", damping=0.01, frozen=frozen)
        block = optimizer.blocks[path]
        wanted = np.linalg.solve(block.dense() + 0.01 * np.eye(len(block.dense())), flat(block, gradients(optimizer)))
        np.testing.assert_allclose(flat(block, optimizer.directions()), wanted, rtol=1e-10)
