"""The memory plan: in which order rules run, when each array is let go, and when memory is written into a second time."""

import tracemalloc
import weakref

import numpy as np
import pytest

from minidl import Function, Tensor, grad, nn
from minidl import functions as F
from minidl.autograd import observe
from minidl.errors import DefinitionError
from minidl.functions.convolution import ActivatedConv2d
from minidl.functions.linear import Affine


def leaf(*shape):
    return Tensor(np.linspace(-1, 1, int(np.prod(shape))).reshape(shape), requires_grad=True)


def names(plan, due):
    """The steps as the rules' arguments and the shared methods' names."""
    return [step.shared or plan.args[step.i] for step in plan.steps(due)]


class InPlace(Function):
    """2x, whose rule writes into gy where it may and tells where it could."""

    could: list

    def forward(self, x):
        return x * 2

    def grad_x(self, gy, *, out=None):
        self.could.append(out is not None)
        if out is None:
            return gy * 2
        out *= 2
        return out


class TestTheOrderOfRules:
    @pytest.mark.parametrize(("x", "w", "order"), [((2, 3), (3, 400), (0, 2, 1)), ((500, 3), (3, 4), (2, 1, 0))])
    def test_is_that_of_their_arguments_sizes(self, x, w, order):
        assert Affine()(leaf(*x), leaf(*w), leaf(w[1])).node.due == order

    def test_is_that_of_the_arguments_where_sizes_are_equal(self):
        assert (leaf(3) * leaf(3)).node.due == (0, 1)

    def test_leaves_out_what_requires_no_gradient(self):
        assert Affine()(np.ones((2, 3)), leaf(3, 4)).node.due == (1,)

    def test_puts_what_they_share_before_the_first(self):
        assert names(Affine.plan, (2, 1, 0)) == ["before", "b", "w", "x"]

    def test_lets_go_of_each_value_with_the_last_that_names_it(self):
        before, w, x = ActivatedConv2d.plan.steps((1, 0))
        assert (set(before.last), set(w.last), set(x.last)) == ({"gy", "y"}, {"x"}, {"before", "w"})

    def test_frees_the_larger_factor_before_the_larger_gradient_is_made(self):
        x, w = leaf(64, 1000), leaf(1000, 10)                       # x and its gradient are large, w and its own are not
        h = x * 2
        ref, at = weakref.ref(h.data), []

        class Watched(Affine):
            def grad_x(self, before, w):
                at.append(ref())
                return before @ w.T
        loss = Watched()(h, w).sum()
        del h
        loss.backward()
        assert at == [None]


class TestOut:
    def test_is_the_only_keyword_only_argument_of_a_rule(self):
        with pytest.raises(DefinitionError, match="'into'"):
            class Wrong(Function):
                def forward(self, x):
                    return x

                def grad_x(self, gy, *, into=None):
                    return gy

    def run(self, build, *leaves, **options):
        """Whether each call of InPlace could write, the youngest first; the gradients are right."""
        could = []
        loss = build(InPlace(could), *leaves)
        loss.backward(**options)
        return could

    def test_is_the_gradient_that_the_pass_made(self):
        x = leaf(5)
        assert self.run(lambda f, x: (f(x) * 3).sum(), x) == [True]
        np.testing.assert_array_equal(x.grad.data, np.full(5, 6.0))

    def test_is_never_the_seed(self):
        x, seed = leaf(5), np.ones(5)
        could = []
        InPlace(could)(x).backward(seed)
        assert could == [False] and seed.tolist() == [1] * 5

    def test_is_never_a_repeated_number(self):
        assert self.run(lambda f, x: f(x).sum(), leaf(5)) == [False]        # the gradient of a sum is one number, shown five times

    def test_is_never_what_two_edges_share(self):
        x, other = leaf(5), leaf(5)
        assert self.run(lambda f, x, other: ((f(x) + other) * 3).sum(), x, other) == [False]
        assert x.grad.data.tolist() == [6] * 5 and other.grad.data.tolist() == [3] * 5

    def test_is_never_part_of_an_array(self):
        x, y = leaf(5), leaf(5)
        assert self.run(lambda f, x, y: (F.concatenate([f(x), y]) * 3).sum(), x, y) == [False]
        assert y.grad.data.tolist() == [3] * 5

    def test_may_be_a_view_that_alone_holds_the_whole(self):
        x = leaf(6)
        assert self.run(lambda f, x: (f(x).reshape(2, 3) * 3).sum(), x) == [True]

    def test_is_never_what_a_hook_has_kept(self):
        x, kept, could = leaf(5), [], []
        h = InPlace(could)(x)
        h.register_hook(kept.append)
        (h * 3).sum().backward()
        assert could == [False] and kept[0].data.tolist() == [3] * 5

    def test_is_never_an_inner_gradient_that_is_wanted(self):
        x, could = leaf(5), []
        h = InPlace(could)(x)
        h.retain_grad()
        (h * 3).sum().backward()
        assert h.grad.data.tolist() == [3] * 5
        h = InPlace(could)(x)
        gx, gh = grad((h * 3).sum(), [x, h])
        assert gh.data.tolist() == [3] * 5 and gx.data.tolist() == [6] * 5

    def test_is_none_where_another_rule_still_needs_the_array(self):
        seen = []

        class Both(Function):
            def forward(self, a, b):
                return a + b

            def grad_a(self, gy, *, out=None):
                seen.append(out is not None)
                return gy * 1

            def grad_b(self, gy, *, out=None):
                seen.append(out is not None)
                return gy * 1
        (Both()(leaf(3), leaf(3)) * 2).sum().backward()
        assert seen == [False, True]

    def test_is_none_with_create_graph(self):
        x = leaf(5)
        assert self.run(lambda f, x: (f(x) * 3).sum(), x, create_graph=True) == [False]
        x.grad = None

    def test_twice_over_a_retained_graph_is_the_same(self):
        x = leaf(5)
        loss = (InPlace([])(x) * x).sum()
        loss.backward(retain_graph=True)
        first = x.grad.data.copy()
        x.grad = None
        loss.backward()
        np.testing.assert_array_equal(x.grad.data, first)


class TestWhatALearnerKeepsIsLeftAlone:
    @pytest.mark.parametrize("retain_graph", [False, True])
    def test_activations_inputs_and_seeds(self, retain_graph):
        model = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1, activation="relu", generator=0), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
                              nn.Affine(27, 4, activation="tanh", generator=1), nn.Affine(4, 2, generator=2))
        kept = [Tensor(np.random.default_rng(0).standard_normal((3, 2, 6, 6)).astype(np.float32), requires_grad=True)]
        for layer in model:
            kept.append(layer(kept[-1]))
        views = [t.data[...] for t in kept]
        copies = [t.data.copy() for t in kept]
        seed = np.ones((3, 2), np.float32)
        kept[-1].backward(seed, retain_graph=retain_graph)
        for t, view, copy in zip(kept, views, copies):
            np.testing.assert_array_equal(t.data, copy)
            np.testing.assert_array_equal(view, copy)
        np.testing.assert_array_equal(seed, 1)

    def test_what_an_observer_has_kept(self):
        class Keeper:
            def __init__(self):
                self.seen = []

            def wants(self):
                return True

            def before_backward(self, loss, seed):
                pass

            def see(self, x, gy, op):
                self.seen.append((x, x.copy(), gy, gy.copy()))
        layer, keeper = nn.Affine(5, 5, activation="relu", generator=0), Keeper()
        layer.w.register_observer(keeper)
        layer.b.register_observer(keeper)
        x = leaf(3, 5)
        h = layer((x * 1).astype("float32"))
        (h * h).sum().backward()
        y = layer((x * 1).astype("float32"))
        observe(y, np.ones((3, 5), np.float32), [keeper])
        assert len(keeper.seen) == 4
        for x_seen, x_then, gy_seen, gy_then in keeper.seen:
            np.testing.assert_array_equal(x_seen, x_then)
            np.testing.assert_array_equal(gy_seen, gy_then)


class TestActivations:
    @pytest.mark.parametrize(("name", "arrays"), [("relu", 1.5), ("sigmoid", 2.5), ("tanh", 3.5)])      # gy, and what the slope takes
    def test_write_into_the_gradient_that_only_the_pass_holds(self, name, arrays):
        x = leaf(100_000)
        loss = (getattr(F, name)(x) * 3).sum()
        tracemalloc.start()
        try:
            loss.backward()
            peak = tracemalloc.get_traced_memory()[1] / x.data.nbytes
        finally:
            tracemalloc.stop()
        assert peak < arrays
        z = Tensor(x.data, requires_grad=True)
        (h := z * 1).retain_grad()
        y = getattr(F, name)(h)
        y.retain_grad()
        (y * 3).sum().backward()
        np.testing.assert_array_equal(x.grad.data, h.grad.data)
        np.testing.assert_array_equal(y.grad.data, 3)


class TestSumsOfGradients:
    def count(self, build, *leaves):
        """How many arrays of the leaves' size were alive at once in the backward pass."""
        loss = build(*leaves)
        tracemalloc.start()
        try:
            loss.backward()
            return tracemalloc.get_traced_memory()[1] / leaves[0].data.nbytes
        finally:
            tracemalloc.stop()

    def test_the_second_is_added_in_place(self):
        assert self.count(lambda x: (x * 2 + x * 3).sum(), leaf(100_000)) < 2.1

    def test_in_the_order_of_the_rules_whatever_is_shared(self):
        x = leaf(3)
        h = x * 1
        y = h + h
        ((y + h) * 2 + h).backward(np.array([1.0, 2.0, 3.0]))
        assert x.grad.data.tolist() == [7, 14, 21]

    def test_a_residual_connection_shares_until_it_must_not(self):
        x = leaf(4)
        h = x * 1
        y = h + F.exp(h)
        y.retain_grad()
        y.backward(np.ones(4))
        np.testing.assert_array_equal(x.grad.data, 1 + np.exp(x.data))
        np.testing.assert_array_equal(y.grad.data, 1)
