"""The Fisher matrix against slower ways to get it: Kronecker products, Hessians, Jacobians by differences, one example at a time."""

import math

import numpy as np
import pytest

import minidl
import strict  # noqa: F401   makes the strict device known
from cases import says
from minidl import Tensor, backend, curvature, fisher, fisher_product, ggn_product, hvp, nn
from minidl import functions as F
from minidl.errors import ArgumentError, DeviceError, GraphError, LabelError, ShapeError

LOSSES = {"categorical": F.softmax_cross_entropy, "bernoulli": F.binary_cross_entropy_with_logits, "gaussian": F.mse}


class Words(nn.Module):
    """Ids (N, T) to logits (N, C, T), one class at each position; the bias is used twice."""

    def __init__(self):
        self.embedding = nn.Embedding(5, 3, generator=1, dtype="float64")
        self.norm = nn.LayerNorm(3, dtype="float64")
        self.head = nn.Affine(3, 3, generator=2, dtype="float64")

    def forward(self, ids):
        y = F.tanh(self.head(self.norm(self.embedding(ids)))) + self.head.b
        return F.transpose(y, (0, 2, 1))


def affine(inputs, outputs, seed=0, **options):
    layer = nn.Affine(inputs, outputs, generator=seed, dtype="float64", **options)
    if layer.b is not None:
        layer.b.data = numbers(outputs, seed=seed + 100)
    return layer


def mlp(activation=nn.Tanh):
    return nn.Sequential(affine(3, 4), activation(), affine(4, 3, seed=1))


def conv_net():
    return nn.Sequential(nn.Conv2d(1, 2, 3, generator=0, dtype="float64"), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), affine(8, 3))


def normed(kind):
    return nn.Sequential(affine(3, 4), kind(4, dtype="float64"), nn.Tanh(), affine(4, 2, seed=1))


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


NETS = {"mlp": lambda: (mlp(), numbers(4, 3)), "relu": lambda: (mlp(nn.ReLU), numbers(4, 3)),
        "conv": lambda: (conv_net(), numbers(2, 1, 6, 6)), "layer norm": lambda: (normed(nn.LayerNorm), numbers(3, 3)),
        "batch norm": lambda: (normed(nn.BatchNorm), numbers(5, 3)), "words": lambda: (Words(), np.array([[0, 1], [4, 1], [2, 2]]))}
nets = pytest.mark.parametrize("net", NETS)
kinds = pytest.mark.parametrize("kind", LOSSES)


def split(v, model):
    """A vector of all parameters as an array for each."""
    ends = np.cumsum([p.size for p in model.parameters()])[:-1]
    return [part.reshape(p.shape) for part, p in zip(np.split(v, ends), model.parameters())]


def joined(arrays):
    return np.concatenate([(a.data if isinstance(a, Tensor) else a).ravel() for a in arrays])


def columns(product, size):
    """A matrix from its products with the unit vectors."""
    return np.stack([joined(product(v)) for v in np.eye(size)], axis=1)


def count(model):
    return sum(p.size for p in model.parameters())


def jacobian(model, x):
    """The derivative of every number of the output by every parameter, by central differences: (N, K, P)."""
    found = []
    for p in model.parameters():
        for place in np.ndindex(p.shape):
            here, ys = p.data[place], []
            for step in (1e-5, -1e-5):
                p.data[place] = here + step
                ys.append(model(x).data)
            p.data[place] = here
            found.append((ys[0] - ys[1]).reshape(len(x), -1) / 2e-5)
    return np.stack(found, axis=2)


def bend(kind, z):
    """The second derivative of -log p by the outputs z of one example, (C, ...), flattened."""
    if kind == "gaussian":
        return np.eye(z.size)
    p = 1 / (1 + np.exp(-z))
    if kind == "bernoulli":
        return np.diag((p * (1 - p)).ravel())
    h = np.zeros((z.size, z.size))
    for t in np.ndindex(z.shape[1:]):
        of_t = [np.ravel_multi_index((c, *t), z.shape) for c in range(len(z))]
        p = np.exp(z[(slice(None), *t)]) / np.exp(z[(slice(None), *t)]).sum()
        h[np.ix_(of_t, of_t)] = np.diag(p) - np.outer(p, p)
    return h


def slow_fisher(model, x, kind):
    z, js = model(x).data, jacobian(model, x)
    return sum(j.T @ bend(kind, zn) @ j for zn, j in zip(z, js)) / len(z)


def some_targets(kind, z, seed=3):
    random = np.random.default_rng(seed)
    return {"categorical": lambda: random.integers(z.shape[1], size=(z.shape[0], *z.shape[2:])),
            "bernoulli": lambda: random.integers(2, size=z.shape), "gaussian": lambda: random.standard_normal(z.shape)}[kind]()


class TestExact:
    @kinds
    @pytest.mark.parametrize("bias", [True, False])
    def test_of_an_affine_layer_and_one_example_is_a_kronecker_product(self, kind, bias):
        layer, x = affine(3, 4, bias=bias), numbers(1, 3)
        a = np.append(x[0], 1) if bias else x[0]
        wanted = np.kron(np.outer(a, a), bend(kind, layer(x).data[0]))
        np.testing.assert_allclose(fisher(layer, x, kind), wanted, rtol=1e-12, atol=1e-15)

    def test_of_a_linear_model_and_a_normal_target_is_a_kronecker_product_of_means(self):
        x = numbers(6, 3)
        np.testing.assert_allclose(fisher(affine(3, 2, bias=False), x, "mse"), np.kron(x.T @ x / 6, np.eye(2)), atol=1e-14)

    @kinds
    def test_of_a_linear_model_is_the_hessian(self, kind):
        layer, x = affine(3, 4), numbers(5, 3)
        z = layer(x)
        loss = LOSSES[kind](z, some_targets(kind, z), reduction="sum") * (1 / 5 if kind != "gaussian" else 1 / 10)
        wanted = columns(lambda v: hvp(loss, layer.parameters(), split(v, layer)), count(layer))
        np.testing.assert_allclose(fisher(layer, x, kind), wanted, atol=1e-13)

    @kinds
    @nets
    def test_is_the_gauss_newton_matrix_by_differences(self, net, kind):
        model, x = NETS[net]()
        np.testing.assert_allclose(fisher(model, x, kind), slow_fisher(model, x, kind), atol=1e-8)

    def test_is_the_hessian_of_the_divergence_from_the_prediction(self):
        model, x = mlp(), numbers(4, 3)
        p = F.softmax(model(x).detach(), 1).data
        loss = F.softmax_cross_entropy(model(x), p)             # smallest where the model is: there its Hessian is F
        wanted = columns(lambda v: hvp(loss, model.parameters(), split(v, model)), count(model))
        np.testing.assert_allclose(fisher(model, x), wanted, atol=1e-13)

    @kinds
    def test_is_symmetric_and_never_negative(self, kind):
        matrix = fisher(mlp(), numbers(4, 3), kind)
        assert (matrix == matrix.T).all() and np.linalg.eigvalsh(matrix).min() > -1e-14

    def test_of_a_parameter_that_the_output_does_not_reach_is_zero(self):
        model = mlp()
        model.idle = affine(1, 1)
        matrix = fisher(model, numbers(2, 3))
        assert not matrix[-2:].any() and not matrix[:, -2:].any() and matrix.any()

    @pytest.mark.parametrize(("kind", "function"), [(kind, function.__name__) for kind, function in LOSSES.items()])
    def test_the_loss_has_two_names(self, kind, function):
        model, x = mlp(), numbers(2, 3)
        assert (fisher(model, x, kind) == fisher(model, x, function)).all()
        assert (fisher(model, x) == fisher(model, x, "categorical")).all()

    def test_of_float32_is_float32(self):
        model, x = mlp(), numbers(3, 3)
        wanted = fisher(model, x)
        found = fisher(model.to(dtype="float32"), x.astype("float32"))
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, wanted, atol=1e-6)


class TestOfTargets:
    @kinds
    @pytest.mark.parametrize("net", [net for net in NETS if net != "batch norm"])
    def test_empirical_is_the_mean_of_outer_products_of_gradients(self, net, kind):
        model, x = NETS[net]()
        y = some_targets(kind, model(x))
        wanted = 0
        for n in range(len(x)):
            model.zero_grad()
            loss = LOSSES[kind](model(x[n:n + 1]), y[n:n + 1], reduction="sum") * (0.5 if kind == "gaussian" else 1)
            loss.backward()
            s = joined([p.grad for p in model.parameters()])
            wanted = wanted + np.outer(s, s) / len(x)
        np.testing.assert_allclose(fisher(model, x, kind, kind="empirical", y=y), wanted, atol=1e-13)

    def test_empirical_takes_labels_as_the_loss_does(self):
        model, x = mlp(), numbers(2, 3)
        by_ids = fisher(model, x, kind="empirical", y=[0, 2])
        np.testing.assert_allclose(fisher(model, x, kind="empirical", y=np.eye(3)[[0, 2]]), by_ids)
        with pytest.raises(LabelError, match="labels run from 0 to 3, and there are 3 classes"):
            fisher(model, x, kind="empirical", y=[0, 3])

    @kinds
    def test_sampled_comes_near_to_exact_with_many_draws(self, kind):
        """Within 4 standard errors: the variance of a product of two scores is E[g_i^2 g_j^2] - F_ij^2."""
        layer, x, draws = affine(1, 3), np.full((1, 1), 0.5), 3000
        a, z = np.array([0.5, 1]), layer(x).data[0]
        p = 1 / (1 + np.exp(-z)) if kind == "bernoulli" else np.exp(z) / np.exp(z).sum()
        if kind == "gaussian":
            fourth = 1 + 2 * np.eye(3)
        else:                                                   # over all targets t
            all_ts = np.eye(3) if kind == "categorical" else np.array(list(np.ndindex(2, 2, 2)))
            chances = p if kind == "categorical" else np.prod(np.where(all_ts == 1, p, 1 - p), axis=1)
            fourth = sum(chance * np.outer((p - t) ** 2, (p - t) ** 2) for chance, t in zip(chances, all_ts))
        variance = np.kron(np.outer(a, a) ** 2, np.maximum(fourth - bend(kind, z) ** 2, 0))
        many = fisher(layer, np.repeat(x, draws, axis=0), kind, kind="sampled", generator=0)
        exact = fisher(layer, x, kind)
        assert (abs(many - exact) <= 4 * np.sqrt(variance / draws) + 1e-12).all() and (many != exact).any()

    def test_a_seed_or_a_generator_draws_the_same(self):
        model, x = mlp(), numbers(3, 3)
        first, again, other = (fisher(model, x, "mse", kind="sampled", generator=g) for g in (7, np.random.default_rng(7), 8))
        assert (first == again).all() and (first != other).any()

    def test_in_expectation_over_all_targets_is_exact(self):
        """Batch normalization lets every output depend on every example, and the scores of two examples still do not mix."""
        model, x = normed(nn.BatchNorm), numbers(3, 3)
        p = F.softmax(model(x), 1).data
        ys = list(np.ndindex(2, 2, 2))
        weights = [math.prod(p[n, c] for n, c in enumerate(y)) for y in ys]
        wanted = sum(w * fisher(model, x, kind="empirical", y=list(y)) for w, y in zip(weights, ys))
        whole = 0                                               # of the minibatch's likelihood
        for w, y in zip(weights, ys):
            s = joined(minidl.grad(F.softmax_cross_entropy(model(x), list(y), reduction="sum"), model.parameters()))
            whole = whole + w * np.outer(s, s)
        found = fisher(model, x)
        np.testing.assert_allclose(found, wanted, atol=1e-13)
        np.testing.assert_allclose(found, whole / 3, atol=1e-13)


class TestFisherProduct:
    @kinds
    @nets
    def test_is_the_matrix_times_the_vector(self, net, kind):
        model, x = NETS[net]()
        v = numbers(count(model))
        found = fisher_product(model, x, split(v, model), kind)
        assert [f.shape for f in found] == [p.shape for p in model.parameters()]
        np.testing.assert_allclose(joined(found), fisher(model, x, kind) @ v, atol=1e-13)

    def test_comes_back_as_the_vectors_came(self):
        model, x = mlp(), numbers(4, 3)
        v = split(numbers(count(model)), model)
        as_list, as_tuple = fisher_product(model, x, v), fisher_product(model, x, tuple(v))
        paths = [path for path, _ in model.named_parameters()]
        by_path = fisher_product(model, x, dict(zip(paths, v)))
        assert list(by_path) == paths and type(as_list) is type(as_tuple) is list
        for a, b, c in zip(as_list, as_tuple, by_path.values()):
            assert type(a) is np.ndarray and (a == b).all() and (a == c).all()

    def test_a_dictionary_names_the_parameters_that_the_matrix_is_of(self):
        model, x = mlp(), numbers(4, 3)
        v = {"2.b": numbers(3), "0.w": numbers(3, 4, seed=1)}
        found = fisher_product(model, x, v)
        wanted = fisher(model, x, parameters=["0.w", "2.b"]) @ joined([v["0.w"], v["2.b"]])
        assert list(found) == ["2.b", "0.w"]
        np.testing.assert_allclose(joined([found["0.w"], found["2.b"]]), wanted, atol=1e-14)

    def test_vectors_are_lists_tensors_or_arrays_of_another_dtype(self):
        layer, x = affine(2, 1, bias=False), numbers(3, 2)
        wanted = fisher(layer, x, "mse") @ [1, 2]
        for v in ([[1], [2]], Tensor(np.array([[1.0], [2.0]])), np.array([[1], [2]], np.float32)):
            found, = fisher_product(layer, x, [v], "mse")
            assert found.dtype == np.float64
            np.testing.assert_allclose(found[:, 0], wanted)

    def test_of_what_the_output_does_not_reach_is_zero(self):
        model = mlp()
        model.idle = affine(1, 1)
        found = fisher_product(model, numbers(2, 3), {"idle.w": np.ones((1, 1)), "0.b": np.ones(4)})
        assert not found["idle.w"].any() and found["0.b"].any()
        assert fisher_product(model, numbers(2, 3), {"idle.b": np.ones(1)})["idle.b"].tolist() == [0]

    def test_of_what_has_a_constant_gradient_is_zero(self):
        class Stairs(minidl.Function):
            def forward(self, x):
                return backend.of(x).floor(x)

            def grad_x(self, gy):
                return (gy > 0) * 0.0                           # an array without a graph also where gy has one

        class Climbing(nn.Module):
            def __init__(self):
                self.layer = affine(3, 2)

            def forward(self, x):
                return Stairs()(self.layer(x))

        model = Climbing()
        assert not joined(fisher_product(model, numbers(2, 3), split(np.ones(8), model))).any()


def ggn(loss, model):
    return columns(lambda v: ggn_product(loss, model.parameters(), split(v, model)), count(model))


class TestGGNProduct:
    @kinds
    @nets
    def test_of_a_sum_is_the_fisher_matrix_of_all_examples(self, net, kind):
        model, x = NETS[net]()
        z, v = model(x), numbers(count(model))
        loss = LOSSES[kind](z, some_targets(kind, z), reduction="sum")
        found = joined(ggn_product(loss, model.parameters(), split(v, model)))
        wanted = fisher_product(model, x, split(v, model), kind)
        np.testing.assert_allclose(found, joined(wanted) * len(x) * (2 if kind == "gaussian" else 1), atol=1e-12)

    @pytest.mark.parametrize(("kind", "factor"), [("categorical", 1), ("bernoulli", 1 / 3), ("gaussian", 2 / 3)])
    def test_of_a_mean_is_scaled_as_the_loss_is(self, kind, factor):
        model, x = mlp(), numbers(4, 3)
        z = model(x)
        np.testing.assert_allclose(ggn(LOSSES[kind](z, some_targets(kind, z)), model), fisher(model, x, kind) * factor, atol=1e-14)

    def test_of_a_mean_over_positions(self):
        model, x = NETS["words"]()
        z = model(x)
        loss = F.softmax_cross_entropy(z, some_targets("categorical", z), label_smoothing=0.1)
        np.testing.assert_allclose(ggn(loss, model), fisher(model, x) / 2, atol=1e-14)

    @kinds
    def test_of_a_linear_model_is_the_hessian_of_that_very_loss(self, kind):
        layer, x = affine(3, 3), numbers(4, 3)
        z = layer(x)
        y, weights = some_targets(kind, z), numbers(4) ** 2
        each = LOSSES[kind](z, y, reduction="none")
        each = each if kind == "categorical" else each.sum(axis=1)
        for loss in (LOSSES[kind](z, y), LOSSES[kind](z, y) * 3, (each * weights).sum(), each.mean() / 2 + LOSSES[kind](z * 0.5, y)):
            wanted = columns(lambda v, loss=loss: hvp(loss, layer.parameters(), split(v, layer)), count(layer))
            np.testing.assert_allclose(ggn(loss, layer), wanted, atol=1e-13)

    def test_of_losses_at_positions_with_a_weight_each(self):
        z = Tensor(numbers(2, 3, 2), requires_grad=True)
        y, weights = some_targets("categorical", z), numbers(2, 2) ** 2
        loss = (F.softmax_cross_entropy(z, y, reduction="none") * weights).sum()
        v = numbers(2, 3, 2, seed=1)
        np.testing.assert_allclose(ggn_product(loss, z, v)[0].data, hvp(loss, z, v)[0].data, atol=1e-14)

    def test_of_two_losses_is_the_weighted_sum(self):
        """Also where one of the two outputs is computed from the other."""
        body, head, x = mlp(), affine(3, 2, seed=4), numbers(4, 3)
        both = nn.Sequential(body, head)
        z = body(x)
        loss = F.softmax_cross_entropy(z, [0, 1, 2, 0]) * 0.3 + 2 * F.mse(head(F.tanh(z)), np.zeros((4, 2)), reduction="sum")
        of_head = fisher(nn.Sequential(body, nn.Tanh(), head), x, "mse")
        wanted = of_head * 2 * 2 * 4
        wanted[:count(body), :count(body)] += 0.3 * fisher(body, x)
        np.testing.assert_allclose(ggn(loss, both), wanted, atol=1e-12)

    def test_leaves_out_penalties_and_keeps_the_graph(self):
        model, x = mlp(), numbers(4, 3)
        z = model(x)
        loss = F.softmax_cross_entropy(z, [0, 1, 2, 0]) + sum((p * p).sum() for p in model.parameters())
        np.testing.assert_allclose(ggn(loss, model), fisher(model, x), atol=1e-14)
        loss.backward()

    def test_gives_a_tensor_for_each(self):
        w, idle = Tensor(np.array([2.0]), requires_grad=True), Tensor(np.array([1.0]), requires_grad=True)
        loss = F.mse(w * w, np.zeros(1))
        one, = ggn_product(loss, w, [1.0])
        assert isinstance(one, Tensor) and one.data.tolist() == [32]            # 4 * 2 * 4
        assert [t.data.tolist() for t in ggn_product(loss, [w, idle], ([1], [1]))] == [[32], [0]]
        assert [t.data.tolist() for t in ggn_product(loss, [idle], [[1]])] == [[0]]


class TestTheModelIsLeftAlone:
    def every(self, model, x):
        z = model(x)
        vectors = [np.ones(p.shape) for p in model.parameters()]
        yield lambda: fisher(model, x, "bernoulli")
        yield lambda: fisher(model, x, "bernoulli", kind="sampled", generator=0)
        yield lambda: fisher(model, x, "bernoulli", kind="empirical", y=np.zeros(z.shape))
        yield lambda: fisher_product(model, x, vectors, "bernoulli")

    def test_buffers_and_gradients(self):
        model = nn.Sequential(affine(3, 4), nn.BatchNorm(4, dtype="float64"), nn.Dropout(0.2, generator=0), affine(4, 2))
        for p in model.parameters():
            p.grad = np.full(p.shape, 3.0)
        for call in self.every(model, numbers(5, 3)):
            before = model.state_dict()
            call()
            after = model.state_dict()
            assert all((before[path] == after[path]).all() for path in before) and type(model[1].steps) is int
            assert all((p.grad.data == 3).all() for p in model.parameters()) and model.training
        model.zero_grad()
        fisher(model, numbers(5, 3))
        assert all(p.grad is None for p in model.parameters())

    def test_buffers_are_put_back_after_an_error(self):
        model = nn.Sequential(nn.BatchNorm(3, dtype="float64"), affine(2, 2))
        with pytest.raises(ShapeError):
            fisher(model, numbers(4, 3))
        assert model[0].steps == 0 and not model[0].running_mean.any()

    def test_a_buffer_that_is_written_into(self):
        class Counts(nn.Module):
            buffers = ("seen",)

            def __init__(self):
                self.seen, self.layer = np.zeros(1), affine(2, 2)

            def forward(self, x):
                self.seen += 1
                return self.layer(x)

        model = Counts()
        fisher(model, numbers(2, 2))
        assert model.seen.tolist() == [0]

    def test_observers_and_ready_hooks_see_nothing(self):
        model, x = mlp(), numbers(4, 3)
        seen = []

        class Observer:
            wants = staticmethod(lambda: seen.append("asked"))
            before_backward = see = staticmethod(lambda *args: seen.append("shown"))
        ones = [np.ones(p.shape) for p in model.parameters()]
        calls = [*self.every(model, x), lambda: ggn_product(F.mse(model(x), x), model.parameters(), ones)]
        handles = [register(thing) for p in model.parameters()
                   for register, thing in ((p.register_observer, Observer()), (p.register_ready_hook, seen.append))]
        for call in calls:
            call()
        assert not seen
        F.mse(model(x), x).backward()
        assert seen
        for handle in handles:
            handle.remove()

    def test_in_the_mode_that_it_is_in(self):
        model, x = normed(nn.BatchNorm), numbers(5, 3)
        training = fisher(model, x)
        model.eval()
        np.testing.assert_allclose(fisher(model, x), np.mean([fisher(model, x[n:n + 1]) for n in range(5)], axis=0), atol=1e-14)
        assert abs(fisher(model, x) - training).max() > 1e-3 and not model.training

    def test_also_where_nothing_is_recorded(self):
        model, x = mlp(), numbers(2, 3)
        outside = [np.concatenate([np.ravel(a) for a in call()]) for call in self.every(model, x)]
        with minidl.no_grad():
            inside = [np.concatenate([np.ravel(a) for a in call()]) for call in self.every(model, x)]
            assert not model(x).requires_grad
        assert all((a == b).all() for a, b in zip(inside, outside))


class TestParameters:
    def test_frozen_ones_are_left_out(self):
        model, x = mlp(), numbers(4, 3)
        whole = fisher(model, x)
        model[0].requires_grad_(False)
        np.testing.assert_allclose(fisher(model, x), whole[16:, 16:], atol=1e-15)
        v = [numbers(4, 3, seed=1), numbers(3)]
        np.testing.assert_allclose(joined(fisher_product(model, x, v)), whole[16:, 16:] @ joined(v), atol=1e-14)
        with pytest.raises(ArgumentError, match=says("fisher: no parameter that is not frozen matches '0.w'", "There are 2.w, 2.b.")):
            fisher(model, x, parameters=["0.w"])

    @pytest.mark.parametrize(("patterns", "where"), [
        (["2.w"], range(16, 28)), ("2.*", range(16, 31)), (["*.b"], [*range(12, 16), 28, 29, 30]),
        (["2.b", "0.b"], [*range(12, 16), 28, 29, 30]), (["*", "0.w"], range(31))])
    def test_are_chosen_by_path_or_pattern_in_the_order_of_the_model(self, patterns, where):
        model, x = mlp(), numbers(4, 3)
        np.testing.assert_allclose(fisher(model, x, parameters=patterns), fisher(model, x)[np.ix_(where, where)], atol=1e-15)

    def test_a_pattern_reaches_the_model_itself(self):
        assert fisher(affine(3, 2), numbers(1, 3), parameters="*.b").shape == (2, 2)

    def test_a_shared_one_comes_once(self):
        layer = affine(3, 3)
        model, x = nn.Sequential(layer, nn.Tanh(), layer), numbers(2, 3)
        assert fisher(model, x).shape == (12, 12)
        np.testing.assert_allclose(fisher(model, x), slow_fisher(model, x, "categorical"), atol=1e-8)


@nets
def test_on_the_strict_device(net):
    model, x = NETS[net]()
    y, v = some_targets("bernoulli", model(x)), split(numbers(count(model)), model)

    def results(x, y, v):
        yield fisher(model, x)
        yield fisher(model, x, "mse", kind="sampled", generator=0)
        yield fisher(model, x, "bernoulli", kind="empirical", y=y)
        yield from fisher_product(model, x, v)
        yield from (t.data for t in ggn_product(F.mse(model(x), y), model.parameters(), v))
        yield from (t.data for t in ggn_product(F.softmax_cross_entropy(model(x), y, reduction="none").mean(), model.parameters(), v))

    def there(a):
        return backend.asarray(a, "strict:0")

    wanted = list(results(x, y.astype("float64"), v))
    model.to("strict:0")
    for mine, theirs in zip(results(there(x), there(y.astype("float64")), [there(part) for part in v]), wanted):
        assert backend.device_of(mine) == "strict:0"
        np.testing.assert_allclose(mine.get(), theirs, atol=1e-13)


class TestErrors:
    X = np.zeros((2, 3))

    @pytest.mark.parametrize(("options", "words"), [
        ({"loss": "softmax_crossentropy"}, ("the loss 'softmax_crossentropy' is not known (nearest: 'softmax_cross_entropy')", "Known")),
        ({"loss": None}, ("the loss None is not known", "Known are")),
        ({"kind": "emprical"}, ("kind 'emprical' is not known (nearest: 'empirical')", "exact, sampled, empirical")),
        ({"kind": "empirical"}, ("kind='empirical' needs y, the targets of the data",)),
        ({"kind": "sampled"}, ("kind='sampled' needs generator, a NumPy Generator or a seed",)),
        ({"y": [0, 1]}, ("y would not be used with kind='exact'",)),
        ({"kind": "empirical", "y": [0, 1], "generator": 0}, ("generator would not be used with kind='empirical'",)),
        ({"parameters": ["2.v"]}, ("no parameter that is not frozen matches '2.v' (nearest: '2.w')", "There are 0.w, 0.b, 2.w, 2.b")),
        ({"parameters": []}, ("parameters is empty", "Leave it out")),
    ])
    def test_arguments(self, options, words):
        with pytest.raises(ArgumentError, match=says("fisher: ", *words)):
            fisher(mlp(), self.X, **options)

    def test_a_model_that_is_too_large(self, monkeypatch):
        monkeypatch.setattr(curvature, "LARGEST", 30)
        with pytest.raises(ArgumentError, match=says("fisher: 31 numbers in the parameters make a matrix of 961", "fisher_product")):
            fisher(mlp(), self.X)
        assert fisher(mlp(), self.X, parameters="2.*").shape == (15, 15)

    @pytest.mark.parametrize("call", [fisher, lambda model, x: fisher_product(model, x, [])], ids=["fisher", "fisher_product"])
    def test_a_model_without_parameters(self, call):
        with pytest.raises(ArgumentError, match=says("fisher", ": the model has no parameters")):
            call(nn.ReLU(), self.X)
        with pytest.raises(ArgumentError, match=says("fisher", ": the model has no parameters, or all are frozen", "requires_grad_(True)")):
            call(mlp().requires_grad_(False), self.X)
        with pytest.raises(ArgumentError, match=says("fisher", ": a dict is no model", "a Module")):
            call({}, self.X)

    def test_an_output_that_is_no_distribution(self):
        class Two(nn.Module):
            def __init__(self):
                self.layer = affine(3, 2)

            def forward(self, x):
                return self.layer(x), x

        class Cut(Two):
            def forward(self, x):
                return self.layer(x).detach()

        class Row(Two):
            def forward(self, x):
                return self.layer(x).sum(axis=1)

        with pytest.raises(GraphError, match=says("fisher: the model gave a tuple", "one Tensor that it computes from its parameters")):
            fisher(Two(), self.X)
        with pytest.raises(GraphError, match=says("fisher: the model gave a Tensor without a graph")):
            fisher(Cut(), self.X)
        with pytest.raises(ShapeError, match=says("fisher: the first axis", "classes are the second", "output: (2,)    loss: categorical")):
            fisher(Row(), self.X)
        assert fisher(Row(), self.X, "mse").shape == (8, 8)
        with pytest.raises(ShapeError, match=says("fisher: the first axis of the output is the examples, at least one", "output: (0, 2)")):
            fisher(affine(3, 2), self.X[:0])

    @pytest.mark.parametrize(("vectors", "error", "words"), [
        ([np.ones(3)], ArgumentError, ("2 parameters, and 1 vectors", "parameters: w, b")),
        ([np.ones((2, 3)), np.ones(2)], ShapeError, ("the vector for w has shape (2, 3), and the parameter has (3, 2)",)),
        ({"v": np.ones(2)}, ArgumentError, ("the model has no parameter 'v' that is not frozen", "There are w, b")),
        ({"b": backend.asarray(np.ones(2), "strict:0")}, DeviceError, ("the vector for b is on strict:0, and the parameter on cpu",)),
    ])
    def test_vectors(self, vectors, error, words):
        with pytest.raises(error, match=says("fisher_product: ", *words)):
            fisher_product(affine(3, 2), self.X, vectors)

    def test_losses(self):
        w = Tensor(np.ones(2), requires_grad=True)
        with pytest.raises(GraphError, match=says("ggn_product: no loss of a known distribution", "softmax_cross_entropy", "hvp")):
            ggn_product((w * w).sum(), w, np.ones(2))
        with pytest.raises(GraphError, match=says("ggn_product: no loss of a known distribution")):
            ggn_product(F.mse(w.data, w.data) * Tensor(np.ones(())), w, np.ones(2))
        loss = F.mse(w, np.zeros(2))
        loss.backward()
        with pytest.raises(GraphError, match=says("ggn_product: no loss of a known distribution", "freed")):
            ggn_product(loss, w, np.ones(2))
        with pytest.raises(GraphError, match=says("ggn_product: the loss is a Tensor of shape (2,), and must be one number", "sum()")):
            ggn_product(F.mse(w, np.zeros(2), reduction="none"), w, np.ones(2))
        with pytest.raises(GraphError, match=says("ggn_product: the loss is a float")):
            ggn_product(1.0, w, np.ones(2))
        with pytest.raises(ArgumentError, match=says("ggn_product: 2 parameters, and 1 vectors")):
            ggn_product(F.mse(w, np.zeros(2)), [w, w], [np.ones(2)])
        with pytest.raises(ShapeError, match=says("ggn_product: the vector for parameters[0] has shape (3,), and the parameter has (2,)")):
            ggn_product(F.mse(w, np.zeros(2)), w, np.ones(3))
