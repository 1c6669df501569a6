import gc
import itertools
import weakref
from contextlib import contextmanager
from threading import Barrier, Thread

import numpy as np
import pytest

import strict  # noqa: F401   makes the strict device known
from minidl import Function, Tensor, backend, grad, hvp, no_grad
from minidl import functions as F
from minidl.autograd import observe
from minidl.errors import ArgumentError, DefinitionError, DeviceError, GraphError, ShapeError
from minidl.testing import gradcheck, gradgradcheck
from minidl.walk import sum_to

DEEP = 50_000


def leaf(*numbers, dtype=np.float64):
    return Tensor(np.array(numbers, dtype), requires_grad=True)


def numbers(*tensors):
    return [None if t is None else t.data.tolist() for t in tensors]


def twice(x):
    """2x, by an operation whose rule is its own forward."""
    return x + x


@contextmanager
def without_garbage_collector():
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


class Identity(Function):
    """Gives the array it was given, and the gradient it was given."""

    def forward(self, x):
        return x

    def grad_x(self, gy):
        return gy


class TestBackward:
    def test_through_a_diamond(self):
        x = leaf(3)
        a = x * x
        (a * x + a).backward()                      # x^3 + x^2
        assert x.grad.item() == 3 * 9 + 2 * 3

    def test_adds_to_what_is_there(self):
        x = leaf(3)
        (x * 2).backward()
        (x * 5).backward()
        assert x.grad.item() == 7

    def test_through_the_same_argument_twice(self):
        x = leaf(3)
        (x * x).backward()
        assert x.grad.item() == 6

    def test_through_the_same_result_several_times(self):
        x = leaf(1)
        h = x * 2
        (h + h + h + h + h).backward()
        assert x.grad.item() == 10

    def test_of_several_numbers_needs_a_gradient(self):
        with pytest.raises(GraphError, match=r"backward: a Tensor of shape \(2,\) is not one number[\s\S]*sum\(\) or mean\(\)"):
            (leaf(1, 2) * 2).backward()

    @pytest.mark.parametrize("given", [np.array([1.0, 10]), Tensor(np.array([1.0, 10])), [1, 10], np.array([1, 10], np.float32)])
    def test_takes_a_gradient_of_any_kind(self, given):
        x = leaf(1, 2)
        (x * 3).backward(given)
        assert numbers(x.grad) == [[3, 30]]
        assert x.grad.dtype == np.float64

    def test_refuses_a_gradient_of_another_shape(self):
        with pytest.raises(ShapeError, match=r"the gradient given has shape \(3,\), and the Tensor has \(2,\)"):
            (leaf(1, 2) * 3).backward(np.ones(3))

    @pytest.mark.parametrize("given", [np.ones(2, np.float32), Tensor(np.ones(2, np.float32))])
    def test_refuses_a_gradient_on_another_device(self, given):
        x = Tensor(backend.asarray(np.ones(2), "strict:0"), requires_grad=True)
        with pytest.raises(DeviceError, match="backward: the gradient given is on cpu, and the Tensor on strict:0"):
            (x * 3).backward(given)

    @pytest.mark.parametrize("given", [np.ones(2), Tensor(np.ones(2))])
    def test_gives_a_leaf_a_gradient_of_its_dtype_in_any_case(self, given):
        for steps in (0, 1):
            x = leaf(1, 2, dtype=np.float32)
            (x * 2 if steps else x).backward(given)
            assert x.grad.dtype == np.float32

    def test_of_a_leaf_is_one(self):
        x = leaf(3)
        x.backward()
        assert x.grad.item() == 1

    def test_of_what_has_no_graph_says_so(self):
        for y in (Tensor([1.0]), Tensor([1.0]) * 2):
            with pytest.raises(GraphError, match=r"requires no gradient, so nothing was recorded[\s\S]*requires_grad=True"):
                y.backward()

    def test_without_axes_gives_arrays(self):
        x = Tensor(np.array(2.0), requires_grad=True)
        (x * x * x).backward()
        assert type(x.grad.data) is np.ndarray and x.grad.shape == ()

    def test_broadcasting_is_undone(self):
        a, b, c = leaf(*[[1.0]] * 3), leaf(1, 2), Tensor(np.array(5.0), requires_grad=True)
        (a * b + c).sum().backward()
        assert numbers(a.grad, b.grad, c.grad) == [[[3]] * 3, [3, 3], 6]


OPERATIONS = (lambda a, b: a * b, lambda a, b: a + b, lambda a, b: a - 0.5 * a, lambda a, b: a / (1 + b * b), lambda a, b: F.tanh(a),
              lambda a, b: F.sigmoid(b) * 2, lambda a, b: a.sum(axis=-1, keepdims=True))


def drawn_graph(seed, *leaves):
    """Results of operations that are drawn, on results that are drawn: some are used several times, some never, and shapes broadcast."""
    random = np.random.default_rng(seed)
    there = list(leaves)
    for _ in range(12):
        a, b = random.integers(len(there), size=2)
        there.append(OPERATIONS[random.integers(len(OPERATIONS))](there[a], there[b]))
    return there[-2:]


class TestAnyGraph:
    @pytest.mark.parametrize("seed", range(20))
    def test_to_second_order(self, seed):
        leaves = [np.random.default_rng(seed).standard_normal(shape) for shape in ((2, 3), (3,), (2, 1))]
        assert gradcheck(lambda *xs: drawn_graph(seed, *xs), leaves)
        assert gradgradcheck(lambda *xs: drawn_graph(seed, *xs), leaves, directions=1)


class TestASecondPass:
    def test_counts_nothing_twice(self):
        x = leaf(3)
        y = (x * x) * 2
        y.backward(retain_graph=True)
        y.backward()
        assert x.grad.item() == 2 * 12

    def test_without_retain_graph_says_what_to_do(self):
        y = leaf(3) * leaf(4)
        y.backward()
        with pytest.raises(GraphError, match=r"multiply: a backward pass has been here[\s\S]*retain_graph=True"):
            y.backward()

    def test_over_a_part_that_was_freed_says_so_too(self):
        h = leaf(3) * leaf(4)
        (h * 2).backward()
        with pytest.raises(GraphError, match="has freed what it needed"):
            (h * 3).backward()

    def test_leaves_what_the_first_did_not_reach(self):
        x = leaf(3)
        first, second = x * x, x * 2
        first.backward()
        second.backward()
        assert x.grad.item() == 8


class TestGradientsShareNoMemory:
    """`.grad` is written to by whoever holds it: it must be nobody else's."""

    def assert_apart(self, *arrays):
        for a, b in itertools.combinations(arrays, 2):
            assert not np.shares_memory(a, b)

    @pytest.mark.parametrize("f", [lambda x: x, lambda x: x + 0.0, lambda x: Identity()(x), lambda x: x.reshape(2, 1), lambda x: x.T,
                                   lambda x: x[:]])
    def test_with_the_seed(self, f):
        x = leaf(1, 2)
        y = f(x)
        seed = np.ones(y.shape)
        y.backward(seed)
        self.assert_apart(x.grad.data, seed)

    def test_with_one_another(self):
        a, b, c = leaf(1, 2), leaf(3, 4), leaf(5, 6)
        (a + b + Identity()(c)).backward(np.ones(2))
        self.assert_apart(a.grad.data, b.grad.data, c.grad.data)

    def test_with_the_inputs(self):
        a, b = leaf(1, 2), leaf(3, 4)
        (a * b).backward(np.ones(2))
        F.matmul(a, b).backward()
        self.assert_apart(a.data, b.data, a.grad.data, b.grad.data)

    def test_as_views_of_one_array(self):
        a, b = leaf(1, 2), leaf(3, 4)
        F.concatenate([a, b]).backward(np.ones(4))
        self.assert_apart(a.grad.data, b.grad.data)

    def test_with_what_a_hook_has_kept(self):
        x, kept = leaf(1, 2), []
        x.register_hook(kept.append)
        x.register_hook(lambda g: kept.append(g * 2) or kept[-1])
        (x * 3).backward(np.ones(2))
        self.assert_apart(x.grad.data, *(g.data for g in kept))

    def test_as_broadcast_views(self):
        x = leaf(1, 2, 3)
        x.sum().backward()
        x.grad.data[0] = 5
        assert numbers(x.grad) == [[5, 1, 1]]

    def test_with_the_gradient_of_an_inner_tensor(self):
        x = leaf(1, 2)
        h = x + 0.0
        h.retain_grad()
        (h + 0.0).backward(np.ones(2))
        self.assert_apart(x.grad.data, h.grad.data)

    def test_with_what_grad_gives(self):
        x = leaf(1, 2)
        h = x + 0.0
        seed = np.ones(2)
        gx, gh, gy = grad(y := h + 0.0, [x, h, y], seed)
        self.assert_apart(gx.data, gh.data, gy.data, seed)

    def test_on_another_device(self):
        a, b = (Tensor(backend.asarray(np.ones(2), "strict:0"), requires_grad=True) for _ in range(2))
        (a + b).reshape(2, 1).backward(backend.asarray(np.ones((2, 1)), "strict:0"))
        self.assert_apart(a.grad.numpy(), b.grad.numpy())
        a.grad.data[0] = 5
        assert b.grad.data.get().tolist() == [1, 1]


class TestTheEngineWritesOnlyIntoItsOwnSums:
    def test_where_a_rule_gives_the_same_array_to_two_arguments(self):
        a, b = leaf(1), leaf(2)
        (twice(a) + twice(b) + a + a + a).backward()
        assert numbers(a.grad, b.grad) == [[5], [2]]

    def test_where_a_rule_gives_an_array_that_is_kept(self):
        class Double(Function):
            """2x where the rule gives an array of its own, always the same."""

            slope: object

            def forward(self, x):
                return 2 * x

            def grad_x(self, gy):
                return self.slope
        x, slope = leaf(1), np.array([2.0])
        f = Double(slope)
        (f(x) + f(x) + f(x) + f(x)).backward()
        assert x.grad.item() == 8
        assert slope.item() == 2

    def test_where_the_seed_arrives_twice(self):
        x, seed = leaf(1, 2), np.ones(2)
        h = x * 2
        (h + h + h).backward(seed)
        assert seed.tolist() == [1, 1]
        assert numbers(x.grad) == [[6, 6]]


class TestMemory:
    def test_of_a_graph_goes_with_the_loss(self):
        with without_garbage_collector():
            x = leaf(1, 2, 3)
            h = F.exp(x * 2)
            loss = (h * h).sum()
            watched = [weakref.ref(h), weakref.ref(h.data)]
            del h
            assert watched[1]() is not None
            del loss
            assert [ref() for ref in watched] == [None, None]

    @pytest.mark.parametrize("options", [{}, {"retain_graph": True}, {"create_graph": True}])
    def test_goes_after_a_pass_too(self, options):
        with without_garbage_collector():
            x = leaf(1, 2, 3)
            h = F.exp(x * 2)
            loss = (h * h).sum()
            loss.backward(**options)
            ref = weakref.ref(h.data)
            del h, loss
            x.grad = None
            assert ref() is None

    def test_goes_after_an_error_in_a_rule(self):
        class Broken(Function):
            def forward(self, x):
                return x * 1

            def grad_x(self, gy):
                raise KeyError

        def fails():
            h = F.exp(leaf(1, 2))
            ref = weakref.ref(h.data)
            try:
                Broken()(h).sum().backward()
            except KeyError:
                return ref
        with without_garbage_collector():
            assert fails()() is None

    def test_is_freed_while_the_pass_goes_on(self):
        first = F.exp(leaf(1, 2))
        second = F.exp(first)
        loss, ref = second.sum(), weakref.ref(second.data)
        del second
        seen = []
        first.register_hook(lambda g: seen.append(ref()))
        loss.backward()
        assert seen == [None]

    def test_of_gradients_under_way_is_freed(self):
        seen = []

        class Watch(Function):
            def forward(self, x):
                return x * 1

            def grad_x(self, gy):
                seen.append(weakref.ref(gy))
                return gy * 1
        x = leaf(1, 2)
        y = Watch()(Watch()(x))
        with without_garbage_collector():
            y.sum().backward()
            assert [ref() for ref in seen] == [None, None]


class TestDeepGraphs:
    def chain(self, x, length=DEEP):
        y = x
        for _ in range(length):
            y = y + 0.0
        return y

    def test_forward_backward_and_deletion(self):
        x = leaf(1)
        y = self.chain(x)
        y.backward()
        assert x.grad.item() == 1
        del y

    def test_deletion_without_a_pass_and_without_the_garbage_collector(self):
        with without_garbage_collector():
            x = leaf(1)
            y = self.chain(x)
            ref = weakref.ref(y.data)
            del y
            assert ref() is None

    def test_grad(self):
        x = leaf(1)
        assert grad(self.chain(x), x)[0].item() == 1

    def test_a_graph_of_the_gradient(self):
        x = leaf(2)
        y = x
        for _ in range(3000):
            y = y * 1.0
        (first,) = grad(y * y, x, create_graph=True)
        assert grad(first, x)[0].item() == 2

    def test_wide_graphs(self):
        x = leaf(1)
        y = x * 0.0
        for _ in range(DEEP // 10):
            y = y + x
        y.backward()
        assert x.grad.item() == DEEP // 10

    def test_a_ladder_has_more_paths_than_atoms_in_the_universe(self):
        x = leaf(1)
        y = x
        for _ in range(300):
            y = twice(y) * 0.5
        y.backward()
        assert x.grad.item() == 1


class TestGrad:
    def test_gives_a_tuple_and_touches_no_grad(self):
        x, y = leaf(2), leaf(3)
        assert numbers(*grad(x * y, [x, y])) == [[3], [2]]
        assert x.grad is None and y.grad is None

    def test_gives_none_for_what_was_not_reached(self):
        x, other = leaf(2), leaf(3)
        gx, none = grad(x * 2, [x, other])
        assert gx.item() == 2 and none is None

    def test_of_inner_tensors(self):
        x = leaf(2)
        h = x * 3
        assert numbers(*grad(h * h, [h, x])) == [[12], [36]]

    def test_of_a_tensor_by_itself(self):
        x = leaf(2)
        y = x * 3
        assert numbers(*grad(y, [y, x]), *grad(x, x)) == [[1], [3], [1]]

    def test_of_several_ys_is_their_sum(self):
        x = leaf(2)
        assert numbers(*grad([x * x, x * 3], x)) == [[7]]
        assert numbers(*grad([x * x, x * 3], x, [np.array([10.0]), None])) == [[43]]

    def test_of_the_same_y_twice(self):
        x = leaf(2)
        y = x * x
        assert numbers(*grad([y, y], x)) == [[8]]

    def test_wants_a_gradient_for_each_y(self):
        x = leaf(2)
        with pytest.raises(ArgumentError, match="grad: 1 ys, and 2 grad_ys"):
            grad(x * x, x, [np.ones(1), np.ones(1)])

    @pytest.mark.parametrize("bad", [np.ones(1), 3, None])
    def test_wants_tensors(self, bad):
        with pytest.raises(GraphError, match=f"grad: a {type(bad).__name__} has no graph"):
            grad(leaf(1) * 2, bad)

    def test_wants_an_x_that_requires_a_gradient(self):
        with pytest.raises(GraphError, match=r"grad: a Tensor of shape \(1,\) requires no gradient"):
            grad(leaf(1) * 2, Tensor([1.0]))

    def test_computes_nothing_that_is_not_wanted(self):
        class Never(Function):
            def forward(self, x):
                return x * 1

            def grad_x(self, gy):
                raise AssertionError
        x, w = leaf(2), leaf(3)
        assert numbers(*grad(x * Never()(w), x)) == [[3]]

    def test_frees_the_graph_unless_asked_not_to(self):
        x = leaf(2)
        y = x * x
        grad(y, x, retain_graph=True)
        grad(y, x)
        with pytest.raises(GraphError, match="freed"):
            grad(y, x)


class TestHigherDerivatives:
    def test_of_a_power(self):
        x = leaf(2)
        y = x * x * x * x
        derivatives = []
        for _ in range(4):
            (y,) = grad(y, x, create_graph=True)
            derivatives.append(y.item())
        assert derivatives == [32, 48, 48, 24]

    def test_by_backward(self):
        x = leaf(2)
        (x * x * x).backward(create_graph=True)
        first, x.grad = x.grad, None
        assert first.item() == 12 and first.requires_grad
        first.backward()
        assert x.grad.item() == 12

    def test_with_a_gradient_given_that_has_a_graph(self):
        x, v = leaf(2), leaf(5)
        (g,) = grad(x * x, x, v, create_graph=True)
        assert numbers(*grad(g, [x, v])) == [[10], [4]]

    def test_through_outputs_and_several_paths(self):
        x = leaf(0.5)
        (g,) = grad(F.exp(x) * F.exp(x), x, create_graph=True)
        assert grad(g, x)[0].item() == pytest.approx(4 * np.exp(1))

    def test_accumulate_with_a_graph(self):
        x = leaf(2)
        (x * x).backward(create_graph=True)
        (x * x * x).backward(create_graph=True)
        assert x.grad.item() == 16
        assert grad(x.grad, x)[0].item() == 14

    def test_are_recorded_under_no_grad_too(self):
        x = leaf(2)
        y = x * x * x
        with no_grad():
            (g,) = grad(y, x, create_graph=True)
        assert g.requires_grad

    def test_a_linear_function_has_none(self):
        x = leaf(2)
        (g,) = grad(x * 3, x, create_graph=True)
        assert not g.requires_grad


class TestHvp:
    def matrix(self):
        return np.array([[2.0, 1], [1, 4]])

    def test_of_a_quadratic_form_is_the_matrix_times_the_vector(self):
        x, v = leaf(3, 5), np.array([1.0, -1])
        loss = (x * F.matmul(self.matrix(), x)).sum() * 0.5
        np.testing.assert_allclose(hvp(loss, [x], [v])[0].data, self.matrix() @ v)

    def test_of_several_parameters(self):
        a, b = leaf(2), leaf(3)
        assert numbers(*hvp((a * a * b).sum(), [a, b], [np.ones(1), np.zeros(1)])) == [[6], [4]]

    def test_is_zero_for_what_the_loss_does_not_bend_with(self):
        a, b, c = leaf(2), leaf(3), leaf(4)
        assert numbers(*hvp((a * a + b * 3).sum(), [a, b, c], [np.ones(1)] * 3)) == [[2], [0], [0]]
        assert numbers(*hvp((b * 3).sum(), [b], [np.ones(1)])) == [[0]]

    def test_can_be_called_again(self):
        x = leaf(1, 2)
        loss = (x * x * x).sum()
        assert [numbers(*hvp(loss, [x], [v])) for v in np.eye(2)] == [[[6, 0]], [[0, 12]]]
        loss.backward()
        assert numbers(x.grad) == [[3, 12]]

    def test_wants_a_vector_for_each(self):
        x = leaf(1)
        with pytest.raises(ArgumentError, match="hvp: 1 params, and 2 vectors"):
            hvp(x * x, [x], [np.ones(1), np.ones(1)])

    def test_by_one_leaf(self):
        x = leaf(2)
        assert numbers(*hvp(x * x * x, x, [1.0])) == [[12]]


class TestNoGrad:
    def test_records_nothing(self):
        x = leaf(1)
        with no_grad():
            assert not (x * 2).requires_grad
        assert (x * 2).requires_grad

    def test_ends_with_an_error_too(self):
        with pytest.raises(KeyError), no_grad():
            raise KeyError
        assert (leaf(1) * 2).requires_grad

    def test_is_a_decorator(self):
        @no_grad()
        def double(x):
            """Two times."""
            return x * 2
        for _ in range(2):
            assert not double(leaf(1)).requires_grad
        assert double.__doc__ == "Two times."
        assert (leaf(1) * 2).requires_grad

    def test_can_stand_in_itself(self):
        with no_grad():
            with no_grad():
                pass
            assert not (leaf(1) * 2).requires_grad

    def test_is_each_thread_s_own(self):
        meet, recorded = Barrier(2, timeout=10), {}

        def run(name, silent):
            x = leaf(1)
            if silent:
                with no_grad():
                    meet.wait()
                    recorded[name] = (x * 2).requires_grad
                    meet.wait()
            else:
                meet.wait()
                recorded[name] = (x * 2).requires_grad
                meet.wait()
        threads = [Thread(target=run, args=("silent", True)), Thread(target=run, args=("loud", False))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert recorded == {"silent": False, "loud": True}

    def test_is_used_again_and_again_also_over_a_function_without_parentheses(self):
        quiet, x = no_grad(), leaf(2)

        @no_grad
        def square():
            return x * x

        for _ in range(2):
            with quiet:
                assert not (x * x).requires_grad
        assert not square().requires_grad
        assert (x * x).requires_grad


class TestHooks:
    def test_see_the_whole_gradient_once(self):
        x, seen = leaf(2), []
        h = x * 3
        h.register_hook(lambda g: seen.append(g.item()))
        x.register_hook(lambda g: seen.append(g.item()))
        (h * h + h).backward()
        assert seen == [13, 39]

    def test_may_give_another_gradient(self):
        x = leaf(2)
        h = x * 3
        h.register_hook(lambda g: g * 10)
        x.register_hook(lambda g: g + 1)
        h.backward()
        assert x.grad.item() == 31

    def test_must_give_one_of_the_same_shape(self):
        x = leaf(2)
        x.register_hook(lambda g: Tensor(np.ones(3)))
        with pytest.raises(ShapeError, match=r"the hook gave a gradient of shape \(3,\), where \(1,\) belongs"):
            (x * 2).backward()

    def test_registered_twice_is_removed_once(self):
        w, seen = Tensor([1.0], requires_grad=True), []
        first, _ = w.register_hook(seen.append), w.register_hook(seen.append)
        first.remove()
        first.remove()
        (w * 2).backward()
        assert len(seen) == 1

    def test_give_a_gradient_of_the_leafs_dtype_and_a_tensor_where_the_pass_is_recorded(self):
        w = Tensor([1.0], requires_grad=True)
        w.register_hook(lambda g: np.ones(1, np.float64) * 3)
        (w * w).backward(create_graph=True)
        assert isinstance(w.grad, Tensor)
        assert w.grad.dtype == np.float32

    def test_that_give_a_number_are_refused(self):
        w = Tensor([1.0], requires_grad=True)
        w.register_hook(lambda g: 2.0)
        with pytest.raises(DefinitionError, match="the hook gave a float, and must give an array"):
            (w * 2).backward()

    def test_run_in_order_until_removed(self):
        x, seen = leaf(2), []
        first = x.register_hook(lambda g: seen.append("first"))
        x.register_hook(lambda g: seen.append("second"))
        (x * 2).backward()
        first.remove()
        first.remove()
        (x * 2).backward()
        assert seen == ["first", "second", "second"]

    def test_run_for_grad_too(self):
        x = leaf(2)
        x.register_hook(lambda g: g * 10)
        assert grad(x * 2, x)[0].item() == 20

    def test_may_be_differentiated(self):
        x = leaf(2)
        hook = x.register_hook(lambda g: g * g)
        (g,) = grad(x * x, x, create_graph=True)
        hook.remove()
        assert (g.item(), grad(g, x)[0].item()) == (16, 16)

    @pytest.mark.parametrize("register", ["register_hook", "register_ready_hook"])
    def test_need_a_gradient(self, register):
        with pytest.raises(GraphError, match=r"waits for a gradient, and this Tensor requires none"):
            getattr(Tensor([1.0]), register)(print)


class TestRetainGrad:
    def test_leaves_the_gradient_of_an_inner_tensor(self):
        x = leaf(2)
        h = x * 3
        h.retain_grad()
        (h * h).backward()
        assert (h.grad.item(), x.grad.item()) == (12, 36)

    def test_of_one_without_axes_is_an_array(self):
        h = leaf(1, 2).sum()
        h.retain_grad()
        (h * 3).backward()
        assert type(h.grad.data) is np.ndarray and h.grad.item() == 3

    def test_keeps_no_graph_alive(self):
        with without_garbage_collector():
            h = leaf(2) * 3
            h.retain_grad()
            ref = weakref.ref(h)
            del h
            assert ref() is None

    def test_on_a_leaf_is_nothing_new(self):
        x = leaf(2)
        x.retain_grad()
        (x * 3).backward()
        assert x.grad.item() == 3


class TestReadyHooks:
    def test_are_called_once_when_the_gradient_is_final(self):
        x, seen = leaf(2), []
        x.register_ready_hook(lambda t: seen.append(t.grad.item()))
        h = x * x
        (h + x + x * 3).backward()
        assert seen == [8]

    def test_are_called_while_the_pass_goes_on(self):
        order = []
        first, last = leaf(2), leaf(3)
        first.register_ready_hook(lambda t: order.append("first"))
        last.register_ready_hook(lambda t: order.append("last"))
        h = first * 2
        h.register_hook(lambda g: order.append("between"))
        (h * last).backward()
        assert order == ["last", "between", "first"]

    def test_are_called_for_a_leaf_that_stands_twice_in_one_operation(self):
        x, seen = leaf(2), []
        x.register_ready_hook(lambda t: seen.append(t.grad.item()))
        (x * x).backward()
        x.backward()
        assert seen == [4, 5]

    def test_are_called_after_the_other_hooks_with_the_tensor(self):
        x, seen = leaf(2), []
        x.register_ready_hook(seen.append)
        x.register_hook(lambda g: g * 10)
        (x * 2).backward()
        assert seen[0] is x and x.grad.item() == 20

    def test_are_not_called_for_what_was_not_reached_and_not_by_grad(self):
        x, other, seen = leaf(2), leaf(3), []
        for t in (x, other):
            t.register_ready_hook(seen.append)
        grad(x * 2, x)
        assert seen == []
        (x * 2).backward()
        assert seen == [x]

    def test_are_called_in_each_pass_of_one_that_is_retained(self):
        x, seen = leaf(2), []
        x.register_ready_hook(lambda t: seen.append(t.grad.item()))
        y = x * x
        y.backward(retain_graph=True)
        y.backward(create_graph=True)
        assert seen == [4, 8]

    def test_are_for_leaves(self):
        with pytest.raises(GraphError, match=r"only a leaf has ready hooks[\s\S]*register_hook"):
            (leaf(2) * 2).register_ready_hook(print)

    def test_can_be_removed(self):
        x, seen = leaf(2), []
        x.register_ready_hook(seen.append).remove()
        (x * 2).backward()
        assert seen == []


class Watcher:
    """An observer that notes what it is shown."""

    def __init__(self, wants=True, before=None):
        self.wanting, self.before, self.seen, self.asked = wants, before, [], 0

    def wants(self):
        self.asked += 1
        return self.wanting

    def before_backward(self, loss, seed):
        if self.before is not None:
            self.before(self, loss)

    def see(self, x, gy, op):
        self.seen.append((x.tolist(), gy.tolist(), op.name))


def layer(x, w, b, activation=None):
    return F.affine(x, w, b, activation=activation)


class TestObservers:
    def parameters(self):
        return leaf([1.0, 2], [3, 4]), leaf(0.5, -100)

    def test_see_the_input_and_the_gradient_at_the_output(self):
        w, b = self.parameters()
        watcher = Watcher()
        w.register_observer(watcher)
        (layer(np.array([[1.0, 2]]), w, b) * 3).sum().backward()
        assert watcher.seen == [([[1, 2]], [[3, 3]], "affine")]
        assert numbers(w.grad) == [[[3, 3], [6, 6]]]

    def test_may_be_registered_while_a_leaf_is_frozen(self):
        w, b = self.parameters()
        w.requires_grad = False
        watcher = Watcher()
        w.register_observer(watcher)
        layer(np.array([[1.0, 2]]), w, b).sum().backward()
        assert not watcher.seen
        w.requires_grad = True
        layer(np.array([[1.0, 2]]), w, b).sum().backward()
        assert len(watcher.seen) == 1

    def test_are_told_the_gradient_that_a_pass_starts_from(self):
        w, b = self.parameters()
        seeds = []
        watcher = Watcher()
        watcher.before_backward = lambda loss, seed: seeds.append(seed.tolist())
        w.register_observer(watcher)
        for weight in (None, 0.25):
            layer(np.array([[1.0, 2]]), w, b).sum().backward(weight)
        assert seeds == [1.0, 0.25]

    def test_see_the_gradient_before_a_fused_activation(self):
        w, b = self.parameters()
        watcher = Watcher()
        w.register_observer(watcher)
        layer(np.array([[1.0, 2]]), w, b, "relu").sum().backward()
        assert watcher.seen == [([[1, 2]], [[1, 0]], "affine")]

    def test_are_shown_w_and_b_together(self):
        w, b = self.parameters()
        shown = []
        watcher = Watcher()
        watcher.see = lambda x, gy, op: shown.append((op.argument("w"), op.argument("b"), op.function.activation))
        w.register_observer(watcher)
        layer(np.array([[1.0, 2]]), w, b, "relu").sum().backward()
        assert shown[0][0] is w and shown[0][1] is b and shown[0][2] == "relu"

    def test_see_each_use_of_a_parameter(self):
        w, b = self.parameters()
        watcher = Watcher()
        w.register_observer(watcher)
        layer(layer(np.array([[1.0, 2]]), w, b), w, b).sum().backward()
        assert len(watcher.seen) == 2

    def test_are_asked_once_a_pass_and_shown_nothing_if_they_do_not_want(self):
        w, b = self.parameters()
        watcher = Watcher(wants=False)
        w.register_observer(watcher)
        b.register_observer(watcher)
        layer(np.array([[1.0, 2]]), w, b).sum().backward()
        assert watcher.asked == 1 and watcher.seen == []

    def test_are_not_asked_where_the_pass_does_not_come_by(self):
        (w, b), other = self.parameters(), leaf(1)
        watcher = Watcher()
        other.register_observer(watcher)
        layer(np.array([[1.0, 2]]), w, b).sum().backward()
        assert watcher.asked == 0

    def test_may_run_passes_of_their_own_that_leave_no_trace(self):
        w, b = self.parameters()
        x = leaf([1.0, 2])
        hooked, ready, traces = [], [], []

        def before(watcher, loss):
            for seed in ([[1.0, 0]], [[0.0, 1]]):
                observe(logits, np.array(seed), [watcher])
            traces.append((w.grad, b.grad, x.grad, list(hooked), list(ready)))
        watcher = Watcher(before=before)
        w.register_observer(watcher)
        for t in (w, b, x):
            t.register_hook(lambda g: hooked.append(1))
            t.register_ready_hook(lambda t: ready.append(1))
        logits = layer(layer(x, w, b), w, b)
        logits.register_hook(lambda g: hooked.append(1))
        (logits * 7).sum().backward()

        assert traces == [(None, None, None, [], [])]
        assert [gy for _, gy, _ in watcher.seen[0::2]] == [[[1, 0]], [[0, 1]], [[7, 7]]]
        assert len(watcher.seen) == 6
        assert len(hooked) == 4 and len(ready) == 3
        assert w.grad is not None and x.grad is not None

    def test_passes_of_their_own_run_no_weight_rule(self):
        rules = []

        class Noted(Function):
            def forward(self, x, w):
                return x * w

            def grad_x(self, gy, w):
                rules.append("x")
                return gy * w

            def grad_w(self, gy, x):
                rules.append("w")
                return gy * x
        w, x = leaf(3), leaf(2)
        watcher = Watcher()
        w.register_observer(watcher)
        y = Noted()(Noted()(x, w), w)
        observe(y, np.ones(1), [watcher])
        assert rules == ["x"]                       # only to come to the first layer, where x is nobody's business
        assert [seen[:2] for seen in watcher.seen] == [([6], [1]), ([2], [3])]
        y.backward()
        assert numbers(x.grad, w.grad) == [[9], [12]]

    def test_take_no_part_in_the_passes_of_others(self):
        w, b = self.parameters()
        first, second = Watcher(), Watcher()
        w.register_observer(first)
        w.register_observer(second)
        y = layer(np.array([[1.0, 2]]), w, b)
        observe(y, np.ones((1, 2)), [first])
        assert len(first.seen) == 1 and second.seen == []

    def test_are_not_asked_by_grad(self):
        w, b = self.parameters()
        watcher = Watcher()
        w.register_observer(watcher)
        grad(layer(np.array([[1.0, 2]]), w, b).sum(), w)
        assert watcher.asked == 0 and watcher.seen == []

    def test_observe_checks_its_seed(self):
        with pytest.raises(ShapeError, match=r"observe: the gradient given has shape \(3,\)"):
            observe(leaf(1, 2) * 2, np.ones(3), [])

    def test_can_be_removed(self):
        w, b = self.parameters()
        watcher = Watcher()
        w.register_observer(watcher).remove()
        layer(np.array([[1.0, 2]]), w, b).sum().backward()
        assert watcher.asked == 0


class TestSumTo:
    @pytest.mark.parametrize("shape, expected", [((2, 3), np.ones((2, 3))), ((3,), np.full(3, 2.0)), ((2, 1), np.full((2, 1), 3.0)),
                                                 ((), np.array(6.0)), ((1, 1), np.full((1, 1), 6.0)), ((1, 2, 3), None), ((2,), None)])
    def test_undoes_broadcasting(self, shape, expected):
        x = np.ones((2, 3))
        if expected is None:
            with pytest.raises(ShapeError, match="does not broadcast to"):
                sum_to(x, shape)
        else:
            np.testing.assert_array_equal(sum_to(x, shape), expected)
            assert np.shape(sum_to(x, shape)) == shape

    def test_of_a_tensor_stays_in_the_graph(self):
        x = leaf([1.0, 2])
        sum_to(x, (1, 1)).backward(np.full((1, 1), 5.0))
        assert numbers(x.grad) == [[[5, 5]]]


class TestThreads:
    def test_run_passes_of_their_own(self):
        results = {}

        def run(number):
            x = leaf(float(number))
            y = x
            for _ in range(200):
                y = y * 1.0 + x * 0.0
            y.backward()
            results[number] = x.grad.item()
        threads = [Thread(target=run, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == dict.fromkeys(range(8), 1.0)
