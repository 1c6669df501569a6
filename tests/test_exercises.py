"""Answers: right ones are right, wrong ones are wrong and it is said why, open ones are open."""

import numpy as np
import pytest

import minidl
from minidl.exercises import check, check_gradient


class TestCheck:
    @pytest.mark.parametrize("answer, expected", [
        (36, 36), (36.0, 36), (np.float32(0.1), 0.1), ([1, 2], np.array([1, 2])), (True, True), ("rows", "rows"),
        ((2, 3), (2, 3)), (np.array([2, 3]), (2, 3)), ([2, [1.0, 2.0]], (2, np.array([1.0, 2.0]))), ({"a": 1}, {"a": 1}),
        (minidl.Tensor(np.array([1.0, 2.0])), [1, 2]), (0.0, 0), (np.zeros((2, 0)), np.zeros((2, 0))),
    ])
    def test_knows_a_right_answer(self, answer, expected):
        assert check(answer, expected).state == "right"

    @pytest.mark.parametrize("answer, expected, said", [
        (9, 36, "The answer is 9, which is too small"),
        (40, 36, "The answer is 40, which is too large"),
        (float("nan"), 36, "The answer is nan"),
        ("many", 36, "The answer is 'many', and must be numbers"),
        ([1, 2, 3], [1, 2], "The answer has shape (3,), and must have (2,)"),
        ([[1, 2], [3, 5]], [[1, 2], [3, 4]], "one number is not right; at (1, 1) it has 5"),
        ([9, 9, 3], [1, 2, 3], "2 of its 3 numbers are not right; at (0,) it has 9"),
        ([1, np.inf, 3], [1, 2, 3], "at (1,) it has inf"),
        (True, False, "The answer is True, and that is not it"),
        ("columns", "rows", "The answer is 'columns', and that is not it"),
        ((1, 2), (1, 3), "The answer's number 2 is 2, which is too small"),
        ((1, 2, 3), (1, 3), "The answer must be 2 things, in a tuple"),
        ({"a": 2}, {"a": 1}, "The answer for a is 2, which is too large"),
        ({"b": 2}, {"a": 1}, "The answer must name a"),
        (0.1, 0, "too large"),
    ])
    def test_says_what_is_wrong(self, answer, expected, said):
        verdict = check(answer, expected, hint="Count again.")
        assert verdict.state == "wrong" and said in verdict.words and verdict.words.endswith(". Count again.")

    @pytest.mark.parametrize("answer", [..., None, (1, ...), [..., 2], {"a": ...}, ((1, 2), (..., 3))])
    def test_leaves_open_what_is_open(self, answer):
        assert repr(check(answer, 36)) == "○ Yours to do."

    def test_of_a_function_tries_all_arguments(self):
        def doubled(x):
            return 2 * x

        assert check(doubled, lambda x: x + x, on=[1, 2.5, np.arange(3)]).state == "right"
        assert check(lambda x: x * x, doubled, on=[2, 3]).words == "For 3 the answer is 9, which is too large."
        assert check(lambda x, y: x - y, lambda x, y: y - x, on=[(1, 1), (1, 2)]).words == "For 1, 2 the answer is -1, which is too small."
        assert check(lambda x: ..., doubled, on=[1]).state == "open"
        assert repr(check(lambda x: None, doubled, on=[1])) == "○ Yours to do. The function returns nothing so far."

    @pytest.mark.parametrize("argument, said", [
        (np.arange(3), "array([0, 1, 2])"), (np.arange(9), "an array of shape (9,)"), (np.full((2, 3), 1 / 3), "an array of shape (2, 3)"),
        (lambda x: x, "a function"),
    ])
    def test_of_a_function_says_briefly_for_what(self, argument, said):
        assert check(lambda x: 1, lambda x: 2, on=[argument]).words == f"For {said} the answer is 1, which is too small."

    def test_of_a_function_that_raises_says_what(self):
        verdict = check(lambda x: x[7], lambda x: 1, on=[np.arange(3)], hint="Look at the shape.")
        assert verdict.state == "wrong" and "raised IndexError" in verdict.words and verdict.words.endswith("Look at the shape.")

    def test_of_a_function_that_writes_into_its_argument_is_fair(self):
        def spoiling(x):
            x += 1
            return x

        x = np.zeros(2)
        assert check(spoiling, lambda x: x + 1, on=[x]).state == "right" and not x.any()

    def test_looks_as_close_as_it_is_told(self):
        assert check(1.001, 1).state == "wrong"
        assert check(1.001, 1, close=0.01).state == "right"


class TestCheckGradient:
    def test_knows_a_right_and_a_wrong_one(self):
        def loss(x, w):
            return ((x @ w) ** 2).sum()

        def gradient(x, w):
            y = 2 * (x @ w)
            return y @ w.T, x.T @ y

        rng = np.random.default_rng(0)
        x, w = rng.normal(size=(3, 2)), rng.normal(size=(2, 4))
        assert check_gradient(gradient, loss, x, w).state == "right"
        wrong = check_gradient(lambda x, w: (gradient(x, w)[0], x.T @ (x @ w)), loss, x, w)
        assert wrong.state == "wrong" and "number 2" in wrong.words

    def test_leaves_open_what_is_open(self):
        assert check_gradient(lambda x: ..., lambda x: (x ** 2).sum(), np.ones(2)).state == "open"
