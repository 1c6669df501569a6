"""Answers to exercises, checked by numbers: what the teaching notebooks call, and any other course may.

    check(answer, 324, hint="One multiplication for each cell of the filter, at each place where it lies.")
    check(my_softmax, plain_softmax, on=[scores, 1000 * scores])

An answer that is still `...` is open, and nothing is said against it. How gradients are held against finite differences is in testing.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import isfunction
from typing import Any

import numpy as np

from minidl.backend import to_numpy
from minidl.tensor import Tensor

HEADS = {"right": "✔ Right.", "wrong": "✘ Not yet.", "open": "○ Yours to do."}


@dataclass(frozen=True)
class Verdict:
    """What has come of an answer: "right", "wrong" or "open", and in words why."""

    state: str
    words: str

    def __repr__(self) -> str:
        return f"{HEADS[self.state]} {self.words}".rstrip()


def check(answer: Any, expected: Any, *, on: Sequence[Any] | None = None, hint: str = "", close: float = 1e-6) -> Verdict:
    """Whether an answer is right: a number, an array, a Tensor, a truth value or a text, or several in a tuple, list or dict.

    expected: what is right; never shown. on: then answer and expected are functions, and both are called with each of these arguments
    (a tuple being several arguments). hint: is added to what is said of a wrong answer. close: how far numbers may be from those
    expected, relative to the largest of them.

    >>> check(3 * 3 * 4, 36)
    ✔ Right.
    >>> check(9, 36, hint="There are four places.")
    ✘ Not yet. The answer is 9, which is too small. There are four places.
    >>> check(..., 36)
    ○ Yours to do.
    """
    if on is None:
        return _verdict(answer, expected, "The answer", hint, close)
    for arguments in on:
        arguments = arguments if isinstance(arguments, tuple) else (arguments,)
        given = f"For {', '.join(map(_brief, arguments))} the answer"
        try:
            found = answer(*_copies(arguments))
        except Exception as error:      # whatever a learner's code raises is a wrong answer, and this shows what it was
            return Verdict("wrong", _joined(f"{given} raised {type(error).__name__}: {error}", hint))
        if found is None:
            return Verdict("open", "The function returns nothing so far.")
        verdict = _verdict(found, expected(*_copies(arguments)), given, hint, close)
        if verdict.state != "right":
            return verdict
    return Verdict("right", "")


def predicted(prediction: Any) -> str:
    """What somebody has predicted, in words to stand beside the truth; None or `...` where nobody has.

    >>> predicted(324), predicted(None)
    ('you predicted 324', 'you made no prediction')
    """
    if _is_open(prediction):
        return "you made no prediction"
    number = isinstance(prediction, int | float) and not isinstance(prediction, bool)
    return f"you predicted {prediction:,}" if number else f"you predicted {prediction}"


def check_gradient(gradient: Callable[..., Any], function: Callable[..., Any], *xs: Any, hint: str = "", close: float = 1e-5) -> Verdict:
    """Whether gradient(*xs) is that of the number function(*xs), by central differences in float64.

    xs: arrays or numbers. gradient gives one array for each, in a tuple if there are several. close: relative to the largest slope.

    >>> check_gradient(lambda x: 2 * x, lambda x: (x ** 2).sum(), np.array([1.0, -2.0]))
    ✔ Right.
    """
    inputs = [np.array(x, np.float64) for x in xs]
    slopes = tuple(_slopes(function, inputs, i) for i in range(len(inputs)))
    expected = slopes if len(slopes) > 1 else slopes[0]
    return check(gradient, lambda *unused: expected, on=[tuple(inputs)], hint=hint, close=close)


def _slopes(function: Callable[..., Any], inputs: list[np.ndarray], i: int, step: float = 1e-6) -> np.ndarray:
    slopes = np.empty_like(inputs[i])
    for place in np.ndindex(inputs[i].shape):
        sides = []
        for sign in (1, -1):
            moved = [x.copy() for x in inputs]
            moved[i][place] += sign * step
            sides.append(float(function(*moved)))
        slopes[place] = (sides[0] - sides[1]) / (2 * step)
    return slopes


def _verdict(answer: Any, expected: Any, what: str, hint: str, close: float) -> Verdict:
    if _is_open(answer):
        return Verdict("open", "")
    wrong = _difference(answer, expected, what, close)
    return Verdict("wrong", _joined(wrong, hint)) if wrong else Verdict("right", "")


def _is_open(answer: Any) -> bool:
    if isinstance(answer, dict):
        answer = list(answer.values())
    return answer is None or answer is ... or (isinstance(answer, list | tuple) and any(map(_is_open, answer)))


def _difference(answer: Any, expected: Any, what: str, close: float) -> str:
    """What is wrong with an answer; '' if nothing is."""
    if isinstance(expected, dict):
        if not isinstance(answer, dict) or set(answer) != set(expected):
            return f"{what} must name {', '.join(map(str, expected))}"
        return next(filter(None, (_difference(answer[key], value, f"{what} for {key}", close) for key, value in expected.items())), "")
    if isinstance(expected, tuple):
        several = isinstance(answer, list | tuple) or (isinstance(answer, np.ndarray) and answer.ndim > 0)
        if not several or len(answer) != len(expected):
            return f"{what} must be {len(expected)} things, in a tuple"
        parts = (_difference(a, e, f"{what}'s number {k + 1}", close) for k, (a, e) in enumerate(zip(answer, expected)))
        return next(filter(None, parts), "")
    if isinstance(expected, str | bool):
        return "" if answer == expected else f"{what} is {answer!r}, and that is not it"
    return _numbers(answer, expected, what, close)


def _numbers(answer: Any, expected: Any, what: str, close: float) -> str:
    try:
        found, right = (np.asarray(_plain(x), np.float64) for x in (answer, expected))
    except (TypeError, ValueError):
        return f"{what} is {_brief(answer)}, and must be numbers"
    if found.shape != right.shape:
        return f"{what} has shape {found.shape}, and must have {right.shape}"
    away = np.abs(found - right)
    allowed = close * max(1e-30, float(np.abs(right).max(initial=0.0)))
    if np.isfinite(found).all() and (away <= allowed).all():
        return ""
    if not right.shape:
        return f"{what} is {found:g}" + (f", which is too {'small' if found < right else 'large'}" if np.isfinite(found) else "")
    place = np.unravel_index(np.argmax(np.where(np.isfinite(found), away, np.inf)), right.shape)
    count = int((~(away <= allowed)).sum())
    number = f"{count} of its {right.size} numbers are" if count > 1 else "one number is"
    return f"{what}: {number} not right; at {tuple(int(k) for k in place)} it has {found[place]:.4g}"


def _plain(x: Any) -> Any:
    return to_numpy(x.data) if isinstance(x, Tensor) else x


def _copies(arguments: tuple) -> tuple:
    return tuple(x.copy() if isinstance(x, np.ndarray) else x for x in arguments)


def _brief(x: Any) -> str:
    if isinstance(x, np.ndarray) and (x.size > 8 or len(repr(x)) > 60):
        return f"an array of shape {x.shape}"
    return "a function" if isfunction(x) else repr(x)[:60]


def _joined(wrong: str, hint: str) -> str:
    return f"{wrong}. {hint}".rstrip()
