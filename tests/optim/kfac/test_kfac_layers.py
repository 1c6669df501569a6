"""The factors of each kind of layer, against plain loops over examples and positions, and how layers find their blocks."""

import numpy as np
import pytest

import minidl
from curved import LOSSES, affine, block_of, conv, mlp, numbers, plain_kfac, shown, targets
from minidl import functions as F
from minidl import nn

kinds = pytest.mark.parametrize("kind", LOSSES)
GEOMETRIES = {"plain": {}, "stride": {"stride": 2}, "padding": {"padding": (1, 2)}, "dilation": {"dilation": 2},
              "groups": {"groups": 2}, "all": {"stride": (2, 1), "padding": 1, "dilation": (1, 2), "groups": 2}}


def gradients_at(model, layer, x, kind):
    """The inputs of a layer and, for each root of the Fisher matrix at the outputs, the gradient at the layer's output."""
    seen = []
    handle = layer.register_forward_hook(lambda module, inputs, y: seen.append((inputs[0], y)))
    z = model(x)
    handle.remove()
    likelihood = minidl.functions.likelihood.KINDS[kind]
    inputs, y = seen[0]
    inputs = inputs.data if isinstance(inputs, minidl.Tensor) else inputs
    return inputs, [minidl.grad(z, y, root, retain_graph=True)[0].data for root in likelihood.roots(z.data)]


def patches(image, layer):
    """{(i, j): the numbers under the filter there}, channel by channel, row by row."""
    (sh, sw), (ph, pw), (dh, dw), (kh, kw) = [(v, v) if isinstance(v, int) else v
                                              for v in (layer.stride, layer.padding, layer.dilation, layer.kernel)]
    wide = np.pad(image, ((0, 0), (ph, ph), (pw, pw)))
    found = {}
    for i in range((wide.shape[1] - dh * (kh - 1) - 1) // sh + 1):
        for j in range((wide.shape[2] - dw * (kw - 1) - 1) // sw + 1):
            found[i, j] = np.array([[wide[c, i * sh + a * dh, j * sw + b * dw] for a in range(kh) for b in range(kw)]
                                    for c in range(len(wide))])
    return found


def slow_factors(layer, x, gys, sharing):
    """A and G of a convolution, (groups, k, k), by a loop over everything."""
    groups, bias = layer.groups, layer.b is not None
    a_of, g_of = [], []
    for group in range(groups):
        def column(patch, group=group):
            rows = patch[group * len(patch) // groups:(group + 1) * len(patch) // groups].ravel()
            return np.append(rows, 1) if bias else rows

        a, g, positions = 0, 0, gys[0][0, 0].size
        for n in range(len(x)):
            columns = [column(patch) for patch in patches(x[n], layer).values()]
            a = a + (sum(np.outer(c, c) for c in columns) if sharing == "expand" else np.outer(*[sum(columns) / positions] * 2))
            for gy in gys:
                o = gy.shape[1] // groups
                mine = gy[n, group * o:(group + 1) * o].reshape(o, -1)
                g = g + (mine @ mine.T / positions if sharing == "expand" else np.outer(mine.sum(1), mine.sum(1)))
        a_of.append(a / len(x))
        g_of.append(g / len(x))
    return np.array(a_of), np.array(g_of)


class Filters(nn.Module):
    """One convolution in front of an affine layer."""

    def __init__(self, bias=True, **options):
        self.conv = conv(2, 4, (2, 3), bias=bias, **options)
        size = self.conv(np.zeros((1, 2, 6, 7))).data.size
        self.last = affine(size, 3, seed=1)

    def forward(self, x):
        return self.last(F.flatten(F.tanh(self.conv(x))))


class TestConvolution:
    @pytest.mark.parametrize("bias", [True, False])
    @pytest.mark.parametrize("geometry", GEOMETRIES)
    def test_factors_are_those_of_a_loop_over_examples_and_positions(self, geometry, bias):
        model, x = Filters(bias, **GEOMETRIES[geometry]), numbers(3, 2, 6, 7)
        averages = shown(model, x, "categorical").blocks["conv.w"].averages
        a, g = slow_factors(model.conv, *gradients_at(model, model.conv, x, "categorical"), "expand")
        np.testing.assert_allclose(averages["A"].value, a, atol=1e-12)
        np.testing.assert_allclose(averages["G"].value, g, atol=1e-13)

    @pytest.mark.parametrize("geometry", GEOMETRIES)
    def test_g_of_reduce_is_that_of_the_loop(self, geometry):
        model, x = Filters(**GEOMETRIES[geometry]), numbers(3, 2, 6, 7)
        averages = shown(model, x, "categorical", sharing="reduce").blocks["conv.w"].averages
        a, g = slow_factors(model.conv, *gradients_at(model, model.conv, x, "categorical"), "reduce")
        found = averages["A"].value
        np.testing.assert_allclose(found / np.linalg.norm(found), a / np.linalg.norm(a), atol=1e-13)
        np.testing.assert_allclose(averages["G"].value, g, atol=1e-13)

    def test_a_is_in_the_order_of_the_flattened_filters(self):
        layer, x = conv(2, 3, (2, 3)), numbers(1, 2, 2, 3)
        a = shown(layer, x).blocks["w"].averages["A"].value[0]
        np.testing.assert_allclose(a[:-1, -1], x.ravel())           # one position: the patch is the image
        y = layer(x).data[0, :, 0, 0]
        np.testing.assert_allclose(layer.w.data.reshape(3, -1) @ a[:-1, -1] + layer.b.data, y)

    @pytest.mark.parametrize("inversion", ["cholesky", "eigen", "ekfac"])
    @kinds
    def test_over_the_whole_image_it_is_an_affine_layer(self, kind, inversion):
        filters, flat, x = conv(2, 3, (2, 3)), affine(12, 3), numbers(20, 2, 2, 3)
        flat.w.data, flat.b.data = filters.w.data.reshape(3, -1).T.copy(), filters.b.data.copy()
        models = nn.Sequential(filters, nn.Flatten()), flat
        y = targets(kind, (20, 3))
        one, two = (shown(model, each, kind, y, damping=0.01, inversion=inversion)
                    for model, each in zip(models, (x, x.reshape(20, 12))))
        found, wanted = one.directions(), two.directions()
        np.testing.assert_allclose(found["0.w"].reshape(3, -1).T, wanted["w"], atol=1e-11)
        np.testing.assert_allclose(found["0.b"], wanted["b"], atol=1e-11)
        true = block_of(models[0], x, kind, one.blocks["0.w"])
        if kind == "gaussian":
            np.testing.assert_allclose(one.blocks["0.w"].dense(), true, atol=1e-13)

    @pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid"])
    def test_a_fused_activation_is_looked_through(self, activation):
        alone = {"relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid}[activation]()
        apart = nn.Sequential(conv(2, 4, 3), alone, nn.Flatten(), affine(16, 3))
        fused = nn.Sequential(conv(2, 4, 3, activation=activation), nn.Flatten(), affine(16, 3))
        x = numbers(4, 2, 4, 4)
        np.testing.assert_allclose(shown(fused, x).blocks["0.w"].dense(), shown(apart, x).blocks["0.w"].dense(), atol=1e-13)


class Sequences(nn.Module):
    """An affine layer on each of T positions, and another on their mean."""

    def __init__(self, bias=True):
        self.each, self.last = affine(3, 4, bias=bias), affine(4, 2, seed=1)

    def forward(self, x):
        return self.last(F.tanh(self.each(x)).mean(axis=1))


class TestPositions:
    def test_expand_is_each_position_for_itself(self):
        model, x = Sequences(), numbers(4, 5, 3)
        inputs, gys = gradients_at(model, model.each, x, "categorical")
        averages = shown(model, x, "categorical").blocks["each.w"].averages
        a = np.concatenate([inputs, np.ones((4, 5, 1))], axis=2).reshape(20, 4)
        np.testing.assert_allclose(averages["A"].value[0], a.T @ a / 4, atol=1e-14)
        np.testing.assert_allclose(averages["G"].value[0], sum(g.reshape(20, 4).T @ g.reshape(20, 4) for g in gys) / 20, atol=1e-14)

    def test_reduce_adds_up_the_gradients_of_an_example(self):
        model, x = Sequences(), numbers(4, 5, 3)
        _, gys = gradients_at(model, model.each, x, "categorical")
        averages = shown(model, x, "categorical", sharing="reduce").blocks["each.w"].averages
        np.testing.assert_allclose(averages["G"].value[0], sum(g.sum(1).T @ g.sum(1) for g in gys) / 4, atol=1e-14)

    def test_with_one_position_both_are_the_same(self):
        model, x = Sequences(), numbers(6, 1, 3)
        one, two = (shown(model, x, "categorical", sharing=sharing).blocks["each.w"].dense() for sharing in ("expand", "reduce"))
        np.testing.assert_allclose(one, two, atol=1e-15)


class TestEmbedding:
    IDS = np.array([0, 3, 3, 1, 0, 2, 3, 1])

    def test_of_one_use_an_example_is_exact_in_a_linear_network(self):
        model = nn.Sequential(nn.Embedding(5, 3, generator=0, dtype="float64"), affine(3, 2))
        block = shown(model, self.IDS).blocks["0.w"]
        assert block.averages["A"].value.shape == (1, 5)
        np.testing.assert_allclose(block.averages["A"].value[0], np.bincount(self.IDS, minlength=5) / 8)
        np.testing.assert_allclose(block.dense(), block_of(model, self.IDS, "gaussian", block), atol=1e-13)

    @pytest.mark.parametrize("inversion", ["eigen", "ekfac"])
    def test_a_direction_solves_the_damped_block(self, inversion):
        model = nn.Sequential(nn.Embedding(5, 3, generator=0, dtype="float64"), affine(3, 2))
        optimizer = shown(model, self.IDS, damping=0.01, inversion=inversion)
        f, g = optimizer.blocks["0.w"].dense(), model[0].w.grad.data
        wanted = np.linalg.solve(f + 0.01 * np.eye(15), g.ravel())
        np.testing.assert_allclose(optimizer.directions()["0.w"].ravel(), wanted, rtol=1e-5)

    def test_several_ids_an_example_are_positions(self):
        class Words(nn.Module):
            def __init__(self):
                self.table, self.last = nn.Embedding(5, 3, generator=0, dtype="float64"), affine(3, 2)

            def forward(self, ids):
                return self.last(F.tanh(self.table(ids)).sum(axis=1))

        model, ids = Words(), self.IDS.reshape(4, 2)
        _, gys = gradients_at(model, model.table, ids, "gaussian")
        averages = shown(model, ids).blocks["table.w"].averages
        np.testing.assert_allclose(averages["A"].value[0], np.bincount(self.IDS, minlength=5) / 4)
        np.testing.assert_allclose(averages["G"].value[0], sum(g.reshape(8, 3).T @ g.reshape(8, 3) for g in gys) / 8, atol=1e-14)


class TestWhoHasABlock:
    def check_plain(self, model, x, paths, why):
        optimizer = plain_kfac(model, damping=0.1, lr=0.1)
        z = model(x)
        F.mse(z, np.zeros(z.shape)).backward()
        before = {path: p.data.copy() for path, p in optimizer.parameters.items()}
        with pytest.warns(UserWarning, match="take the plain gradient"):
            optimizer.step()
        assert set(optimizer.plain) == set(paths)
        assert all(why in optimizer.plain[path] for path in paths), optimizer.plain
        for path in paths:
            p = optimizer.parameters[path]
            np.testing.assert_allclose(p.data, before[path] - 0.1 * p.grad.data, rtol=1e-12)
        assert set(optimizer.directions()) == set(optimizer.parameters) - set(paths)

    def test_a_scale_written_by_hand_has_none(self):
        class Scaled(nn.Module):
            def __init__(self):
                self.layer, self.scale = affine(3, 2), nn.Parameter(np.full(2, 1.5))

            def forward(self, x):
                return self.layer(x) * self.scale

        self.check_plain(Scaled(), numbers(8, 3), ["scale"], "used by mul")

    def test_weights_that_two_kinds_of_operations_share_have_none(self):
        class Tied(nn.Module):
            def __init__(self):
                self.table, self.middle = nn.Embedding(5, 3, generator=0, dtype="float64"), affine(3, 3)

            def forward(self, ids):
                return F.tanh(self.middle(self.table(ids))) @ self.table.w.T

        self.check_plain(Tied(), np.array([0, 1, 2, 4, 3, 1]), ["table.w"], "used by")

    def test_weights_that_two_layers_share_under_different_biases_have_none(self):
        class Shared(nn.Module):
            def __init__(self):
                self.one, self.last, self.b = affine(3, 3), affine(3, 2, seed=1), nn.Parameter(np.zeros(3))

            def forward(self, x):
                return self.last(F.tanh(F.affine(F.tanh(self.one(x)), self.one.w, self.b)))

        self.check_plain(Shared(), numbers(8, 3), ["one.w", "one.b", "b"], "shared")

    def test_the_penalty_beside_a_loss_takes_no_block_away(self):
        layer, x = affine(3, 2), numbers(8, 3)
        optimizer = plain_kfac(layer, damping=0.1)
        (F.mse(layer(x), numbers(8, 2)) + (layer.w * layer.w).sum() * 0.1).backward()
        optimizer.step()
        assert set(optimizer.blocks) == {"w"} and not optimizer.plain

    def test_a_frozen_parameter_stays_where_it_is(self):
        model, x = mlp(), numbers(8, 3)
        optimizer = shown(model, x, frozen=("0.w", "0.b"))
        before = model[0].w.data.copy()
        optimizer.step()
        assert set(optimizer.blocks) == {"2.w"} and not optimizer.plain
        assert (model[0].w.data == before).all()

    def test_a_bias_whose_weights_are_frozen_has_none(self):
        model, x = mlp(), numbers(8, 3)
        optimizer = shown(model, x, frozen=("0.w",))
        assert set(optimizer.plain) == {"0.b"} and "not learned" in optimizer.plain["0.b"]

    def test_what_is_used_for_the_first_time_later_gets_one_then(self):
        class Growing(nn.Module):
            def __init__(self):
                self.first, self.last, self.deep = affine(3, 3), affine(3, 2, seed=1), False

            def forward(self, x):
                return self.last(F.tanh(self.first(x)) if self.deep else x)

        model, x = Growing(), numbers(8, 3)
        optimizer = plain_kfac(model, damping=0.1, lr=0.1)
        F.mse(model(x), numbers(8, 2)).backward()
        with pytest.warns(UserWarning, match="first.w"):
            optimizer.step()
        model.deep = True
        optimizer.zero_grad()
        F.mse(model(x), numbers(8, 2)).backward()
        optimizer.step()
        assert set(optimizer.directions()) == set(optimizer.parameters) and not optimizer.plain


class Twice(nn.Module):
    def __init__(self):
        self.layer, self.last = affine(3, 3), affine(3, 2, seed=1)

    def forward(self, x):
        return self.last(F.tanh(self.layer(F.tanh(self.layer(x)))))


class TestSeveralUses:
    @kinds
    def test_each_use_is_a_further_position(self, kind):
        model, x = Twice(), numbers(6, 3)
        h = F.tanh(model.layer(x)).data
        a = [np.c_[each, np.ones(6)] for each in (x, h)]
        averages = shown(model, x, kind).blocks["layer.w"].averages
        np.testing.assert_allclose(averages["A"].value[0], sum(each.T @ each for each in a) / 6, atol=1e-13)
        g = 0
        for root in minidl.functions.likelihood.KINDS[kind].roots(model(x).data):
            first = model.layer(x)
            second = model.layer(F.tanh(first))
            z = model.last(F.tanh(second))
            for each in minidl.grad(z, [first, second], root):
                g = g + each.data.T @ each.data
        np.testing.assert_allclose(averages["G"].value[0], g / 12, atol=1e-14)

    def test_two_forward_passes_under_one_loss(self):
        """One target drawn for each output of both: the sums of the two, over the examples of one."""
        model, xs, random = affine(3, 2), [numbers(5, 3, seed=seed) for seed in (0, 1)], np.random.default_rng([0, 0])
        optimizer = plain_kfac(model, fisher="sampled", damping=0.1)
        (F.mse(model(xs[0]), numbers(5, 2)) + F.mse(model(xs[1]), numbers(5, 2))).backward()
        optimizer.prepare()
        a, g = np.c_[np.vstack(xs), np.ones(10)], random.standard_normal(20).reshape(10, 2)
        np.testing.assert_allclose(optimizer.blocks["w"].averages["A"].value[0], a.T @ a / 5, atol=1e-14)
        np.testing.assert_allclose(optimizer.blocks["w"].averages["G"].value[0], g.T @ g / 10, atol=1e-14)
