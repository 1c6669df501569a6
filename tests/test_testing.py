import numpy as np
import pytest

import strict  # noqa: F401   makes the strict device known
from minidl import Tensor, backend
from minidl import functions as F
from minidl.errors import ArgumentError
from minidl.graph import Function
from minidl.testing import GradientError, gradcheck, gradgradcheck, numeric_gradient

X = np.random.default_rng(1).standard_normal((3, 4))
W = np.random.default_rng(2).standard_normal((3, 4))


class Faulty(Function):
    """a * b, whose gradient by b goes through `fault`."""

    fault: object

    def forward(self, a, b):
        return a * b

    def grad_a(self, gy, b):
        return gy * b

    def grad_b(self, gy, a):
        return self.fault(gy * a)


def one_element_wrong(g):
    wrong = np.ones(g.shape)
    wrong[1, 2] = 1.01
    return g * wrong


def faulty(fault):
    return lambda a, b: Faulty(fault)(a, b)


class TestGradcheckFinds:
    @pytest.mark.parametrize("directions", [3, 1, None])
    def test_a_factor_of_1_001(self, directions):
        with pytest.raises(GradientError, match=r"argument 1 \(b\) is wrong in 12 of 12"):
            gradcheck(faulty(lambda g: g * 1.001), [X, W], directions=directions)

    @pytest.mark.parametrize("directions", [3, 1, None])
    def test_a_transposed_gradient(self, directions):
        with pytest.raises(GradientError, match=r"argument 1 \(b\)"):
            gradcheck(faulty(lambda g: g.T), [X[:, :3], W[:, :3]], directions=directions)

    @pytest.mark.parametrize("directions", [3, 1, None])
    def test_one_wrong_element_and_names_it(self, directions):
        with pytest.raises(GradientError, match=r"wrong in 1 of 12 elements\n  worst_element: \(1, 2\)"):
            gradcheck(faulty(one_element_wrong), [X, W], directions=directions)

    def test_a_missing_sign(self):
        with pytest.raises(GradientError):
            gradcheck(faulty(lambda g: -g), [X, W])

    def test_a_gradient_that_is_nan(self):
        with pytest.raises(GradientError, match="analytic: nan"):
            gradcheck(faulty(lambda g: g * np.nan), [X, W])

    def test_a_gradient_that_is_too_large_by_a_constant(self):
        with pytest.raises(GradientError):
            gradcheck(faulty(lambda g: g + 1e-4), [X, W])

    def test_an_argument_that_is_used_behind_the_engine(self):
        with pytest.raises(GradientError, match=r"no gradient reaches argument 1 \(b\), and the result depends on 12 of 12 elements"):
            gradcheck(lambda a, b: a * b.data, [X, W])

    def test_a_wrong_gradient_beside_a_kink(self):
        class Abs(Function):
            def forward(self, x):
                return abs(x)

            def grad_x(self, gy, x):
                return gy * (x > 0) * 1.01 - gy * (x < 0)
        with pytest.raises(GradientError, match=r"wrong in 1 of 3 elements\n  worst_element: \(2,\)"):
            gradcheck(Abs(), [np.array([-1.0, 0.0, 2.0])])

    def test_a_wrong_gradient_by_one_of_several_outputs(self):
        class Both(Function):
            outputs = ("y", "square")

            def forward(self, x):
                return x + 1, x * x

            def grad_x(self, gy, gsquare, x):
                return gy + gsquare * x
        with pytest.raises(GradientError):
            gradcheck(Both(), [X])

    def test_a_function_that_writes_to_its_argument(self):
        def writes(x):
            x.data[0] = 0
            return x * x
        with pytest.raises(GradientError, match=r"it wrote to argument 0 \(x\)"):
            gradcheck(writes, [X])

    def test_a_function_that_is_random(self):
        random = np.random.default_rng(0)
        with pytest.raises(GradientError, match="called again, it gives other numbers"):
            gradcheck(lambda x: x * random.standard_normal(), [X])

    def test_a_result_that_is_not_finite(self):
        with pytest.raises(GradientError, match="NaN or an infinity"):
            gradcheck(F.log, [np.zeros(2)])

    def test_a_result_without_a_graph(self):
        with pytest.raises(GradientError, match="nothing in the result requires a gradient"):
            gradcheck(lambda x: x.detach() * 2, [X])


    def test_a_rule_that_writes_into_gy(self):
        class Doubled(Function):
            def forward(self, x):
                return x * 2

            def grad_x(self, gy):
                gy *= 2
                return gy

        with pytest.raises(GradientError, match="a gradient rule wrote into the gy that it was given"):
            gradcheck(Doubled(), [X])


class TestGradcheckSays:
    def test_operation_argument_element_values_tolerance_and_seed(self):
        with pytest.raises(GradientError) as caught:
            gradcheck(faulty(one_element_wrong), [X, W], seed=7)
        text = str(caught.value)
        assert text.startswith("gradcheck: <lambda> (its last operation is faulty): the gradient by argument 1 (b) is wrong")
        for part in ("worst_element: (1, 2)", "analytic: ", "numeric: ", "tolerance: ", "seed=7"):
            assert part in text

    def test_the_same_for_the_same_seed(self):
        def message(seed):
            with pytest.raises(GradientError) as caught:
                gradcheck(faulty(lambda g: 2 * g), [X, W], seed=seed)
            return str(caught.value)
        assert message(3) == message(3) != message(4)

    def test_names_of_a_function_s_arguments(self):
        with pytest.raises(GradientError, match=r"argument 1 \(b\)"):
            gradcheck(Faulty(lambda g: 2 * g), [X, W])

    def test_no_name_where_the_signature_has_none(self):
        with pytest.raises(GradientError, match="argument 1 is wrong"):
            gradcheck(lambda *xs: Faulty(lambda g: 2 * g)(*xs), [X, W])

    def test_it_is_an_assertion(self):
        assert issubclass(GradientError, AssertionError)


class TestGradcheckTakes:
    def test_a_single_array(self):
        assert gradcheck(F.exp, X)

    def test_float32_and_checks_it_in_float64(self):
        seen = []
        assert gradcheck(lambda x: (seen.append(x.dtype), x * x)[1], [X.astype(np.float32)])
        assert set(seen) == {np.dtype("float64")}

    def test_integers_none_and_numbers_as_they_are(self):
        ids, weights = np.array([0, 2, 2]), X

        def pick(weights, ids, bias, factor):
            assert type(ids) is np.ndarray and bias is None and factor == 2
            return weights[ids] * factor
        assert gradcheck(pick, [weights, ids, None, 2])

    def test_several_outputs(self):
        assert gradcheck(lambda x: (x * x, F.exp(x)), [X])

    def test_outputs_that_have_no_gradient(self):
        assert gradcheck(lambda x: (x * x, F.argmax(x), x.detach(), 3), [X])

    def test_an_argument_that_the_result_does_not_depend_on(self):
        assert gradcheck(lambda a, b: a * 2, [X, W])

    def test_numbers_of_any_size(self):
        for size in (1e-6, 1.0, 1e6):
            assert gradcheck(lambda a, b: a * b / (a * a + b * b), [X * size, W * size])

    @pytest.mark.parametrize("directions", [3, None])
    def test_results_that_are_zero(self, directions):
        assert gradcheck(F.relu, [np.array([-1.0, -2.0])], directions=directions)

    def test_steep_functions(self):
        assert gradcheck(lambda x: F.exp(x * 30), [X])

    def test_an_array_without_axes_or_without_elements(self):
        assert gradcheck(F.exp, [np.array(0.5)])
        assert gradcheck(F.exp, [np.zeros((0, 3))])

    def test_arrays_of_another_device(self):
        x = backend.asarray(X, "strict:0")
        assert gradcheck(lambda a: a * a.exp(), [x])
        assert gradgradcheck(lambda a: a * a.exp(), [x])

    def test_tensors(self):
        assert gradcheck(F.exp, [Tensor(X)])

    def test_nothing_without_floats(self):
        with pytest.raises(ArgumentError, match="no input is an array of floats"):
            gradcheck(lambda ids: ids, [np.arange(3)])

    def test_inputs_that_stay_as_they_were(self):
        x = X.copy()
        gradcheck(lambda x: x * x, [x])
        np.testing.assert_array_equal(x, X)


class TestKinks:
    def test_elements_at_a_kink_are_left_out(self):
        assert gradcheck(F.abs, [np.array([0.0, 1.0, -2.0])])
        assert gradcheck(F.relu, [np.array([0.0, 1.0, -2.0])], directions=None)

    @pytest.mark.parametrize("distance", [1e-9, 1e-7, 3e-7, 1e-6, 3e-6, 5e-6, 9e-6, 1e-5])
    def test_a_kink_near_the_point_is_no_false_alarm(self, distance):
        x = np.concatenate([X.ravel(), [distance]])
        assert gradcheck(F.abs, [x])
        assert gradcheck(F.relu, [-x], directions=None)

    def test_a_jump_near_the_point_is_no_false_alarm(self):
        assert gradcheck(lambda x: x * Tensor((x.data > 0).astype(float)) + Tensor(np.floor(x.data)), [np.array([1 + 1e-6, 0.5, -0.5])])

    def test_equal_numbers_under_a_maximum(self):
        assert gradcheck(lambda x: F.max(x, axis=1), [np.array([[1.0, 1.0, 0.0], [1.0, 2.0, 3.0]])])

    def test_they_hide_no_error_elsewhere(self):
        x = np.random.default_rng(0).standard_normal(500)
        x[::2] = 0
        with pytest.raises(GradientError, match=r"wrong in 250 of 500 elements"):
            gradcheck(lambda x: faulty(lambda g: g * 1.001)(1.0, F.relu(x) - F.relu(-x * 2)), [x])

    def test_nothing_but_kinks_is_an_error(self):
        with pytest.raises(GradientError, match=r"there is a kink at every element of argument 0 \(x\), and nothing is left to check"):
            gradcheck(F.relu, [np.zeros(3)])


class Normalized(Function):
    """x / sqrt(mean x^2), by the book."""

    def forward(self, x):
        return x / np.sqrt((x * x).mean())

    def root(self, x):
        return (x * x).mean() ** 0.5

    def grad_x(self, gy, x, root):
        return gy / root - x * (gy * x).sum() / (x.size * root ** 3)


class NormalizedBySelf(Function):
    """The same, but with the root kept on self, where the engine does not see that it depends on x."""

    def forward(self, x):
        self.root = np.sqrt((x * x).mean())
        return x / self.root

    def grad_x(self, gy, x):
        return gy / self.root - x * (gy * x).sum() / (x.size * self.root ** 3)


class TestGradgradcheck:
    def test_right_to_second_order(self):
        assert gradgradcheck(lambda a, b: F.exp(a) * b * b, [X, W])
        assert gradgradcheck(Normalized(), [X])

    @pytest.mark.parametrize("directions", [3, None])
    def test_a_value_kept_on_self_is_right_once_and_wrong_twice(self, directions):
        assert gradcheck(NormalizedBySelf(), [X], directions=directions)
        with pytest.raises(GradientError, match=r"gradgradcheck: the gradient of normalized_by_self: the gradient by argument 0 \(x\)"):
            gradgradcheck(NormalizedBySelf(), [X], directions=directions)

    def test_a_rule_that_drops_gy_from_the_graph(self):
        class Square(Function):
            def forward(self, x):
                return x * x

            def grad_x(self, gy, x):
                return x * 2 * getattr(gy, "data", gy)
        with pytest.raises(GradientError, match=r"no gradient reaches argument 1 \(gy\)"):
            gradgradcheck(Square(), [X])

    def test_a_rule_that_drops_everything_from_the_graph(self):
        class Square(Function):
            def forward(self, x):
                return x * x

            def grad_x(self, gy, x):
                return Tensor(getattr(gy, "data", gy) * 2 * x.data) if isinstance(x, Tensor) else gy * 2 * x
        with pytest.raises(GradientError, match=r"the gradient by argument 0 \(x\) carries no graph"):
            gradgradcheck(Square(), [X])

    def test_a_rule_that_does_something_else_to_tensors(self):
        class Square(Function):
            def forward(self, x):
                return x * x

            def grad_x(self, gy, x):
                return gy * x * (3 if isinstance(x, Tensor) else 2)
        with pytest.raises(GradientError, match="another with create_graph=True than without"):
            gradgradcheck(Square(), [X])

    def test_linear_functions_whose_gradient_does_not_depend_on_x(self):
        assert gradgradcheck(lambda x: x * 3, [X])

    def test_several_outputs_have_a_gy_each(self):
        assert gradgradcheck(lambda a, b: (a * b, a * a), [X, W])

    def test_kinks_are_left_out(self):
        assert gradgradcheck(lambda x: F.relu(x) * x, [np.array([0.0, 1.0, -2.0])])


class TestNumericGradient:
    def test_of_a_cube(self):
        np.testing.assert_allclose(numeric_gradient(lambda x: (x ** 3).sum(), X), 3 * X ** 2, rtol=1e-8)

    def test_is_nan_at_a_kink(self):
        np.testing.assert_array_equal(numeric_gradient(lambda x: abs(x).sum(), [0.0, 2.0]).round(6), [np.nan, 1])

    def test_of_one_number(self):
        assert numeric_gradient(lambda x: x * x, 3.0) == pytest.approx(6)
