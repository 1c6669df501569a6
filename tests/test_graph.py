import numpy as np
import pytest

import minidl
import strict  # noqa: F401   makes the strict device known
from minidl import Function, Tensor, backend, nn
from minidl import functions as F
from minidl.errors import DefinitionError, DeviceError, DtypeError, GraphError, LabelError, NumericsError, ShapeError


def leaf(*numbers, dtype=np.float32):
    return Tensor(np.array(numbers, dtype), requires_grad=True)


def on_strict(*numbers, number=0, requires_grad=False):
    return Tensor(backend.asarray(np.array(numbers, np.float32), f"strict:{number}"), requires_grad)


class Mul(Function):
    def forward(self, a, b):
        return a * b

    def grad_a(self, gy, b):
        return gy * b

    def grad_b(self, gy, a):
        return gy * a


class Affine(Function):
    """With an optional argument."""

    def forward(self, x, w, b=None):
        return x * w if b is None else x * w + b

    def grad_x(self, gy, w):
        return gy * w

    def grad_w(self, gy, x):
        return gy * x

    def grad_b(self, gy):
        return gy


class Sum(Function):
    """With any number of arguments: their weighted sum."""

    weights: tuple = ()

    def forward(self, *xs):
        return sum(weight * x for weight, x in zip(self.weights, xs))

    def grad_xs(self, gy, i):
        return gy * self.weights[i]


class Moments(Function):
    """With several outputs."""

    outputs = ("y", "mean")

    def forward(self, x):
        mean = x.mean()
        return x - mean, mean

    def grad_x(self, gy, gmean):
        return gy + (gmean - gy.sum()) / gy.size


class TestRulesAreReadAtClassCreation:
    def test_options_are_fields(self):
        class Scale(Function):
            factor: float = 2.0

            def forward(self, x):
                return x * self.factor
        assert Scale()(np.ones(1)) == 2
        assert Scale(3.0)(np.ones(1)) == Scale(factor=3.0)(np.ones(1)) == 3
        with pytest.raises(TypeError):
            Scale(colour=1)

    def test_the_name_is_the_class_s_in_small_letters(self):
        class LayerNorm2d(Function):
            def forward(self, x):
                return x
        assert LayerNorm2d.name == "layer_norm2d"

    def test_a_rule_for_no_argument(self):
        with pytest.raises(DefinitionError, match="Bad: the rule grad_z belongs to no argument of forward"):
            class Bad(Function):
                def forward(self, x):
                    return x

                def grad_z(self, gy):
                    return gy

    @pytest.mark.parametrize("wanted", ["z", "gx", "gz", "forward_", "name"])
    def test_a_rule_that_names_what_is_not_there(self, wanted):
        rule = {"f": lambda self: None}
        exec(f"def rule(self, gy, {wanted}): return gy", rule)
        with pytest.raises(DefinitionError, match=f"Bad.grad_x names '{wanted}', which is no input, output, gradient or method"):
            type("Bad", (Function,), {"forward": lambda self, x: x, "grad_x": rule["rule"]})

    @pytest.mark.parametrize("argument", ["y", "gy", "i", "mean", "gmean"])
    def test_an_argument_with_the_name_of_something_else(self, argument):
        made = {}
        exec(f"def forward(self, {argument}): return {argument}", made)
        with pytest.raises(DefinitionError, match=f"an argument of forward cannot be called '{argument}'"):
            type("Bad", (Function,), {"forward": made["forward"], "outputs": ("y", "mean")})

    def test_any_number_of_arguments_beside_others(self):
        with pytest.raises(DefinitionError, match=r"forward takes \*xs beside other arguments"):
            class Bad(Function):
                def forward(self, axis, *xs):
                    return xs[0]

    def test_shared_methods_that_need_one_another(self):
        with pytest.raises(DefinitionError, match=r"Bad\.second names 'first', which needs second first"):
            class Bad(Function):
                def forward(self, x):
                    return x

                def first(self, second):
                    return second

                def second(self, first):
                    return first

                def grad_x(self, gy, first):
                    return gy * first

    def test_a_base_that_operations_share_has_no_forward(self):
        class Elementwise(Function):
            def grad_x(self, gy, slope):
                return gy * slope

        class Square(Elementwise):
            def forward(self, x):
                return x * x

            def slope(self, x):
                return 2 * x
        x = leaf(3)
        Square()(x).backward()
        assert x.grad.item() == 6


class TestWhatIsKept:
    def kept(self, y):
        return {name for name, _ in y.node.kept()}

    def test_what_the_rules_that_will_run_name(self):
        assert self.kept(Mul()(leaf(1), leaf(2))) == {"a", "b"}
        assert self.kept(Mul()(leaf(1), np.ones(1))) == {"b"}
        assert self.kept(Mul()(np.ones(1), leaf(2))) == {"a"}

    def test_outputs_too(self):
        assert self.kept(F.exp(leaf(1))) == {"y"}

    def test_what_a_shared_method_names(self):
        class Cube(Function):
            def forward(self, x):
                return x ** 3

            def slope(self, x):
                return 3 * x * x

            def grad_x(self, gy, slope):
                return gy * slope
        assert self.kept(Cube()(leaf(1))) == {"x"}

    def test_nothing_where_no_rule_names_anything(self):
        assert self.kept(leaf(1) + leaf(2)) == set()

    def test_nothing_where_no_graph_is_recorded(self):
        assert (Tensor([1.0]) * 2).node is None
        with minidl.no_grad():
            assert (leaf(1) * 2).node is None

    def test_nothing_after_the_pass(self):
        y = leaf(2) * leaf(3)
        node = y.node
        y.backward()
        assert list(node.kept()) == [] and node.function is None


class TestArguments:
    def test_an_optional_one_gets_no_rule_call(self):
        x, w, b = leaf(2), leaf(3), leaf(4)
        Affine()(x, w).backward()
        assert (x.grad.item(), w.grad.item(), b.grad) == (3, 2, None)
        Affine()(x, w, b).backward()
        assert b.grad.item() == 1
        Affine()(x, w, None).backward()

    def test_any_number_of_them(self):
        xs = [leaf(1), leaf(2), leaf(3)]
        y = Sum((1.0, 10.0, 100.0))(*xs)
        y.backward()
        assert y.item() == 321
        assert [x.grad.item() for x in xs] == [1, 10, 100]

    def test_of_any_number_only_those_that_need_it(self):
        calls = []

        class Counted(Sum):
            def forward(self, *xs):
                return super().forward(*xs)

            def grad_xs(self, gy, i, xs):
                calls.append(i)
                assert len(xs) == 3
                return gy
        Counted((1.0, 1.0, 1.0))(Tensor([1.0]), leaf(2), np.ones(1, np.float32)).backward()
        assert calls == [1]

    def test_a_rule_runs_only_if_its_argument_needs_it(self):
        class OnlyB(Mul):
            def forward(self, a, b):
                return a * b

            def grad_a(self, gy, b):
                raise AssertionError

        b = leaf(2)
        OnlyB()(Tensor([3.0]), b).backward()
        assert b.grad.item() == 3

    def test_without_a_rule_are_not_differentiable_and_say_so(self):
        class Pick(Function):
            def forward(self, x, where):
                return x * where

            def grad_x(self, gy, where):
                return gy * where
        with pytest.raises(GraphError, match=r"pick: where is not differentiable, and requires a gradient[\s\S]*detach"):
            Pick()(leaf(1), leaf(2))
        Pick()(leaf(1), leaf(2).detach()).backward()

    def test_arrays_beside_tensors_are_constants(self):
        x = leaf(2)
        y = Mul()(x, np.full(1, 3, np.float32))
        y.backward()
        assert type(y) is Tensor and x.grad.item() == 3

    def test_arrays_give_arrays(self):
        assert type(Mul()(np.ones(2), np.ones(2))) is np.ndarray

    def test_tensors_without_a_gradient_give_tensors_without_a_graph(self):
        y = Mul()(Tensor([1.0]), Tensor([2.0]))
        assert type(y) is Tensor and not y.requires_grad

    @pytest.mark.parametrize("argument", [[1.0], "text", {}, (1.0,)])
    def test_what_is_no_array_is_refused(self, argument):
        with pytest.raises(DtypeError, match=f"mul: b is a {type(argument).__name__}, and must be an array, a Tensor or a number"):
            Mul()(np.ones(1), argument)

    def test_subclasses_of_arrays_are_taken(self, tmp_path):
        on_disk = np.memmap(tmp_path / "x", np.float32, "w+", shape=(2,))
        assert Mul()(on_disk, leaf(1, 2)).requires_grad
        assert Mul()(leaf(1, 2), on_disk).requires_grad

    def test_integers_and_booleans_have_no_gradient(self):
        x = leaf(1, 2)
        (x * Tensor([3, 4]) * Tensor([True, False])).sum().backward()
        np.testing.assert_array_equal(x.grad.data, [3, 0])


class TestCallingTwice:
    def test_keeps_what_each_forward_left_on_self(self):
        class Total(Function):
            def forward(self, x):
                self.shape = x.shape
                return x.sum()

            def grad_x(self, gy):
                return F.broadcast_to(gy, self.shape)
        total, a, b = Total(), leaf(1, 2), leaf(1, 2, 3)
        (total(a) * 10 + total(b)).backward()
        assert (a.grad.data.tolist(), b.grad.data.tolist()) == ([10, 10], [1, 1, 1])

    def test_keeps_the_options(self):
        total = Sum((1.0, 10.0))
        assert total(1.0, 1.0) == total(1.0, 1.0) == 11


class TestOutputs:
    def test_several_come_as_a_tuple(self):
        y, mean = Moments()(leaf(1, 3))
        np.testing.assert_array_equal(y.data, [-1, 1])
        assert mean.item() == 2
        assert (y.index, mean.index) == (0, 1) and y.node is mean.node

    def test_rules_name_the_gradient_of_each(self):
        x = leaf(1, 3)
        y, mean = Moments()(x)
        ((y * Tensor([1.0, 2.0])).sum() + mean * 10).backward()
        np.testing.assert_array_equal(x.grad.data, [1 + (10 - 3) / 2, 2 + (10 - 3) / 2])

    @pytest.mark.parametrize("used, expected", [(0, [0.5, -0.5]), (1, [0.5, 0.5])])
    def test_one_that_nobody_used_has_gradient_zero(self, used, expected):
        x = leaf(1, 3)
        Moments()(x)[used].reshape(-1)[:1].backward()
        np.testing.assert_array_equal(x.grad.data, expected)

    def test_one_that_nobody_used_has_gradient_zero_on_its_device(self):
        x = on_strict(1, 3, requires_grad=True)
        Moments()(x)[1].backward()
        assert x.grad.device == "strict:0"

    def test_zeros_are_made_only_for_those_that_a_rule_names(self):
        class First(Function):
            outputs = ("y", "rest")

            def forward(self, x):
                return x[:1], x[1:]

            def grad_x(self, gy):
                return F.pad(gy, (0, 1))
        x = leaf(1, 2)
        First()(x)[0].backward()
        np.testing.assert_array_equal(x.grad.data, [1, 0])

    def test_integers_among_them_have_no_graph(self):
        class Largest(Function):
            outputs = ("y", "place")

            def forward(self, x):
                return x.max(), x.argmax()

            def grad_x(self, gy, x, place):
                return gy * (np.arange(x.size) == place)
        x = leaf(1, 5, 2)
        y, place = Largest()(x)
        assert y.requires_grad and not place.requires_grad and place.item() == 1
        y.backward()
        np.testing.assert_array_equal(x.grad.data, [0, 1, 0])

    def test_without_axes_are_arrays(self):
        y = leaf(1, 2).sum()
        assert type(y.data) is np.ndarray and y.shape == ()
        y, mean = Moments()(leaf(1, 2))
        assert type(mean.data) is np.ndarray

    @pytest.mark.parametrize(("outputs", "given"), [
        (("y",), None), (("y",), (np.ones(2), np.ones(2))), (("q", "r"), np.ones((2, 3))), (("q", "r"), (np.ones(2),) * 3)])
    def test_another_number_of_results_than_outputs_is_an_error(self, outputs, given):
        kind = type("Odd", (Function,), {"outputs": outputs, "forward": lambda self, x: given})
        with pytest.raises(DefinitionError, match=r"odd: forward gave .*, and must give"):
            kind()(Tensor([1.0, 2.0]))


class TestSharedMethods:
    def test_are_computed_once_a_pass_and_only_if_needed(self):
        calls = []

        class Masked(Function):
            def forward(self, x, w):
                return (x * w).clip(0)

            def masked(self, gy, y):
                calls.append("masked")
                return gy * (y > 0)

            def grad_x(self, masked, w):
                return masked * w

            def grad_w(self, masked, x):
                return masked * x
        x, w = leaf(1, 2), leaf(3, -4)
        y = Masked()(x, w)
        assert calls == []
        for passes in (1, 2):
            y.backward(np.ones(2), retain_graph=True)
            assert calls == ["masked"] * passes
        np.testing.assert_array_equal(x.grad.data, [6, 0])
        np.testing.assert_array_equal(w.grad.data, [2, 0])

    def test_may_need_one_another(self):
        class Chain(Function):
            def forward(self, x):
                return x ** 4

            def square(self, x):
                return x * x

            def slope(self, square, x):
                return 4 * square * x

            def grad_x(self, gy, slope):
                return gy * slope
        x = leaf(2)
        (first,) = minidl.grad(Chain()(x), x, create_graph=True)
        assert first.item() == 32
        assert minidl.grad(first, x)[0].item() == 48


class TestDtypes:
    @pytest.mark.parametrize("scalar", [2, 2.0, True, np.float64(2), np.float32(2), np.int64(2), np.float64(2) * np.pi])
    def test_a_scalar_takes_that_of_the_array_beside_it(self, scalar):
        x = leaf(1, 2)
        for y in (x * scalar, scalar * x, x + scalar, scalar - x, x / scalar, scalar / x, x ** scalar, F.maximum(x, scalar),
                  F.where(x > 1, x, scalar)):
            assert y.dtype == np.float32
            x.grad = None
            y.sum().backward()
            assert x.grad.dtype == np.float32

    def test_a_scalar_beside_a_plain_array_too(self):
        assert F.multiply(np.ones(2, np.float32), np.float64(2)).dtype == np.float32

    def test_of_two_arrays_promote_as_in_numpy(self):
        a, b = leaf(1), leaf(2, dtype=np.float64)
        y = a * b
        assert y.dtype == np.float64
        y.backward()
        assert (a.grad.dtype, b.grad.dtype) == (np.float32, np.float64)

    @pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
    def test_are_kept_by_reductions_and_their_gradients(self, dtype):
        x = leaf(1, 2, dtype=dtype)
        y = (x * x).mean() + x.sum() + x.var()
        assert y.dtype == dtype
        y.backward()
        assert x.grad.dtype == dtype

    def test_a_rule_that_gives_another_is_corrected(self):
        class Sloppy(Function):
            def forward(self, x):
                return x * 2

            def grad_x(self, gy):
                return gy.astype(np.float64) * 2
        x = leaf(1)
        Sloppy()(x * 1).backward()
        assert x.grad.dtype == np.float32


class TestDevices:
    def test_of_two_kinds_are_refused_with_the_call_that_mends_it(self):
        with pytest.raises(DeviceError) as caught:
            Mul()(leaf(1), on_strict(2))
        text = str(caught.value)
        assert text.startswith("mul: a is on cpu, b is on strict:0\n  a: cpu    b: strict:0\n")
        assert "b = b.to('cpu')" in text

    def test_of_one_kind_too(self):
        with pytest.raises(DeviceError, match="mul: a is on strict:0, b is on strict:1"):
            Mul()(on_strict(1), on_strict(2, number=1))

    def test_of_arrays_too(self):
        with pytest.raises(DeviceError, match="mul: a is on strict:0, b is on cpu"):
            Mul()(on_strict(1).data, np.ones(1))

    def test_of_any_number_of_arguments(self):
        with pytest.raises(DeviceError, match=r"sum: xs\[0\] is on cpu, xs\[2\] is on strict:0"):
            Sum((1.0, 1.0, 1.0))(leaf(1), 2.0, on_strict(3))

    def test_numbers_have_none(self):
        x = on_strict(1, 2, requires_grad=True)
        (2 * x + np.float64(1)).sum().backward()
        assert x.grad.device == "strict:0"


class TestErrorsOfTheArrayLibrary:
    def test_become_one_of_ours_that_names_the_arguments(self):
        with pytest.raises(ShapeError, match=r"mul: operands could not be broadcast[\s\S]*a: \(2,\) float32    b: \(3,\) float32"):
            Mul()(leaf(1, 2), leaf(1, 2, 3))

    def test_of_a_wrong_index(self):
        with pytest.raises(LabelError, match="index 5 is out of bounds"):
            leaf(1, 2)[5]

    def test_name_the_layer(self):
        model = nn.Sequential(nn.Flatten(), nn.Affine(3, 2))
        with pytest.raises(ShapeError, match=r"in layer 1 \(Affine\)"):
            model(np.zeros((1, 4), np.float32))

    def test_in_a_rule_name_the_operation_and_the_argument(self):
        class Broken(Function):
            def forward(self, x):
                return x * 2

            def grad_x(self, gy):
                return gy @ np.zeros((7, 7))
        with pytest.raises(ValueError) as caught:
            Broken()(leaf(1)).backward()
        assert "in the backward pass of broken, in the gradient of x" in "".join(caught.value.__notes__)

    def test_of_a_rule_with_a_gradient_of_the_wrong_shape(self):
        class Wrong(Function):
            def forward(self, x):
                return x.sum(keepdims=True)

            def grad_x(self, gy):
                return gy
        with pytest.raises(DefinitionError, match=r"wrong: the rule for x gave a gradient of shape \(1,\), and x has \(2,\)"):
            Wrong()(leaf(1, 2)).backward()

    @pytest.mark.parametrize("nothing", [None, 0, 1.0])
    def test_of_a_rule_that_gives_no_array(self, nothing):
        class Wrong(Function):
            def forward(self, x):
                return x * 2

            def grad_x(self, gy):
                return nothing
        with pytest.raises(DefinitionError, match=f"wrong: the rule for x gave a {type(nothing).__name__}"):
            Wrong()(leaf(1, 2)).backward(np.ones(2))

    def test_a_function_without_forward(self):
        class Nothing(Function):
            pass
        with pytest.raises(DefinitionError, match="Nothing has no forward"):
            Nothing()(np.ones(1))


class TestNodes:
    def test_give_their_arguments_as_tensors(self):
        x, w = leaf(2), leaf(3)
        node = Affine()(x * 1, w).node
        assert node.argument("w") is w
        assert node.argument("x").node.name == "multiply"
        assert node.argument("b") is None

    def test_say_which_argument_is_not_kept(self):
        node = Affine()(leaf(2) * 1, Tensor([3.0])).node
        with pytest.raises(GraphError, match="the input x is not kept, because no rule that will run names it"):
            node.argument("x")

    def test_say_which_arguments_there_are(self):
        node = Affine()(leaf(2), leaf(3)).node
        with pytest.raises(GraphError, match=r"affine has no argument 'bias'[\s\S]*x, w, b"):
            node.argument("bias")

    def test_say_in_which_layer_they_were_made(self):
        model = nn.Sequential(nn.ReLU(), nn.Affine(2, 2))
        y = model(Tensor(np.ones((1, 2), np.float32)))
        assert y.node.where() == "affine in layer 1 (Affine)"
        assert (y * 1).node.where() == "multiply"

    def test_are_numbered_in_the_order_of_the_calls(self):
        x = leaf(1)
        first, second = x * 2, x * 3
        assert first.node.order < second.node.order < (second + first).node.order


class TestCheckNumerics:
    def test_names_operation_layer_and_line_of_the_first_nan(self):
        class Log(nn.Module):
            def forward(self, x):
                return F.log(x) * 2
        model = nn.Sequential(nn.ReLU(), Log())
        with minidl.check_numerics(), pytest.raises(NumericsError) as caught:
            model(Tensor([1.0, -1.0]))
        text = str(caught.value)
        assert text.startswith("log: the output y is -inf at (1,)\n  in layer 1 (Log)")
        assert "1 of 2 numbers" in text
        assert "line: test_graph.py:" in text

    def test_in_the_backward_pass_names_the_forward_line(self):
        x = leaf(0.0, 1.0)
        with minidl.check_numerics():
            y = F.sqrt(x).sum()
            with pytest.raises(NumericsError, match=r"sqrt: the gradient of x is inf at \(0,\)[\s\S]*test_graph.py:"):
                y.backward()

    def test_is_off_outside(self):
        assert np.isnan(F.log(Tensor([-1.0])).item())

    def test_lets_integers_and_finite_numbers_pass(self):
        with minidl.check_numerics():
            (leaf(1, 2) * Tensor([1, 2])).sum().backward()

    def test_looks_at_arrays_too(self):
        with minidl.check_numerics(), pytest.raises(NumericsError):
            F.log(np.array([-1.0]))


class TestCheckSaved:
    def test_names_an_input_that_was_overwritten(self):
        w = leaf(2, 3)
        with minidl.check_saved():
            h = w * 2
            y = h * w
        h.data[0] = 7
        with pytest.raises(GraphError, match=r"the array kept for a was overwritten before the backward pass[\s\S]*a: \(2,\) float32"):
            y.backward(np.ones(2))

    def test_names_an_output_that_was_overwritten(self):
        with minidl.check_saved():
            y = F.exp(leaf(2, 3))
        y.data[0] = 7
        with pytest.raises(GraphError, match="the array kept for y was overwritten"):
            y.backward(np.ones(2))

    def test_sees_a_single_number_in_a_transposed_array(self):
        h = np.ones((3, 4), np.float32)
        with minidl.check_saved():
            y = Tensor(h.T, requires_grad=False) * leaf(*range(3))
        h[1, 2] += 1e-6
        with pytest.raises(GraphError, match=r"\(test_graph.py:\d+\): the array kept for a was overwritten"):
            y.backward(np.ones((4, 3)))

    def test_lets_what_is_unchanged_pass(self):
        w = leaf(2, 3)
        with minidl.check_saved():
            (F.exp(w) * w).sum().backward()

    def test_is_off_outside(self):
        w = leaf(2, 3)
        h = w * 1
        y = (h * h).sum()
        h.data[0] = 7
        y.backward()

    def test_works_on_another_device(self):
        x = on_strict(1, 2, requires_grad=True)
        with minidl.check_saved():
            (x * x).sum().backward()


class TestVersionsAreCheckedAlways:
    def test_assigned_between_forward_and_backward(self):
        w = leaf(2, 3)
        y = (w * w).sum()
        w.data = w.data * 2
        with pytest.raises(GraphError, match=r"multiply: a leaf of shape \(2,\) was changed between the forward and the backward pass"):
            y.backward()

    def test_updated_in_place_by_an_optimizer(self):
        w = leaf(2, 3)
        y = (w * w).sum()
        w.data -= 0.1
        with pytest.raises(GraphError, match="was changed"):
            y.backward()

    def test_loaded_into_a_layer(self):
        layer = nn.Affine(2, 2)
        y = layer(Tensor(np.ones((1, 2), np.float32), requires_grad=True)).sum()
        layer.load_state_dict(layer.state_dict())
        with pytest.raises(GraphError, match="affine in layer Affine: a leaf"):
            y.backward()

    def test_of_a_view(self):
        w = leaf(2, 3)
        h = w.reshape(2, 1)
        y = (h * h).sum()
        w.data -= 1
        with pytest.raises(GraphError, match="was changed"):
            y.backward()

    def test_of_a_leaf_that_no_rule_names_do_not_matter(self):
        w = leaf(2, 3)
        y = (w + 1).sum()
        w.data = w.data * 2
        y.backward()
        np.testing.assert_array_equal(w.grad.data, [1, 1])
