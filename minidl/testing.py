"""Gradients against numbers: gradcheck, gradgradcheck, numeric_gradient.

Whoever writes an operation writes its derivative by hand, and a derivative that is nearly right trains a network nearly well. So the
rules are compared with central differences, (f(x + h) - f(x - h)) / 2h, in float64. Two steps, h and h/2, are taken each time: they
agree to within h^2 where f is smooth, and so show a kink where they do not (relu at 0, a maximum of equal numbers). A kink near the
point is left behind by smaller steps. At a kink the two sides have different slopes, every answer between them is as good, and
nothing is compared.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from minidl import backend
from minidl.autograd import grad
from minidl.errors import ArgumentError, MinidlError
from minidl.tensor import Tensor

SHRINK = (1, 0.1, 0.01, 1e-4, 1e-6)     # smaller steps leave behind a kink that is near the point, and follow a steep function,
ROUNDING = 1e-4                         # as long as rounding does not hide this part of the slope
EPS = float(np.finfo(np.float64).eps)


class Options(NamedTuple):
    """How to check; see gradcheck."""

    directions: int | None
    step: float
    rtol: float
    atol: float
    seed: int


class GradientError(MinidlError, AssertionError):
    """A gradient that the numbers contradict, or a function whose gradient cannot be checked."""


def gradcheck(f: Callable[..., Any], inputs: Any, *, directions: int | None = 3, step: float = 1e-5, rtol: float = 1e-6,
              atol: float = 1e-8, seed: int = 0) -> bool:
    """Compare the gradients of f with central differences. True, or a GradientError that says where they part.

    f: takes Tensors and gives a Tensor or several; outputs that require no gradient are ignored. The others are weighted by random
    numbers gy and summed, so that every element of every output counts.
    inputs: f's arguments. Float arrays are checked, in float64 whatever they were; everything else is passed on as it is.
    directions: compare slopes along so many random directions an argument, which is fast and misses nothing but by a freak of chance;
    None compares every element, as does an argument with a kink in the way.
    step: the h of the differences, for numbers of about 1; larger numbers take larger steps.
    rtol, atol: the relative tolerance, and the absolute one in units of the argument's largest gradient.
    seed: of gy and the directions.

    Elements at a kink are left out; GradientError if nothing else is there. Also an error: an f that writes to its arguments, or that
    gives other numbers when it is called again. An input that f does not reach has gradient 0.

    >>> gradcheck(lambda a, b: a * b, [np.array([1.0, 2.0]), np.array([3.0, 4.0])])
    True
    """
    return Check("gradcheck", f, _listed(inputs), _names(f), Options(directions, step, rtol, atol, seed)).run()


def gradgradcheck(f: Callable[..., Any], inputs: Any, *, directions: int | None = 3, step: float = 1e-5, rtol: float = 1e-6,
                  atol: float = 1e-8, seed: int = 0) -> bool:
    """Compare second derivatives with central differences: gradcheck of the gradient of f, by the inputs of f and by gy.

    The same arguments as gradcheck's, which should be run first. Finds rules that cannot be differentiated, and those that hide
    from the engine that a number depends on an input, and so are right once and wrong twice.

    >>> gradgradcheck(lambda a, b: a * a * b, [np.array([1.0, 2.0]), np.array([3.0, 4.0])])
    True
    """
    options = Options(directions, step, rtol, atol, seed)
    xs = _listed(inputs)
    names = _names(f)[:len(xs)]
    first = Check("gradgradcheck", f, xs, names, options)
    ys, leaves = first.call(first.values)
    gys = [backend.asarray(first.random.standard_normal(y.shape), y.device) for y in ys]
    first.same_on_tensors(ys, leaves, gys)

    def gradient(*values: Any) -> list[Tensor]:
        """The gradients of f, as a function of its inputs and of the gradients gy of its outputs."""
        mine, given = values[:len(xs)], values[len(xs):]
        leaves = [mine[i] for i in first.checked]
        gradients = grad(_recorded(f(*mine)), leaves, given, create_graph=True)
        for i, g in zip(first.checked, gradients):
            if g is not None and not g.requires_grad and backend.to_numpy(g.data).any():
                raise first.error(f"the gradient by {first.label(i)} carries no graph, and so cannot be differentiated again",
                                  "A rule uses operators and minidl's functions on gy and the values it names, not their .data.")
        return [g for g in gradients if g is not None]

    padding = [""] * (len(xs) - len(names))
    gy_names = ["gy"] if len(gys) == 1 else [f"gy of output {k}" for k in range(len(gys))]
    return Check("gradgradcheck", gradient, [*xs, *gys], names + padding + gy_names, options,
                 f"the gradient of {first.operation}").run()


def numeric_gradient(f: Callable[[np.ndarray], Any], x: Any, step: float = 1e-5) -> np.ndarray:
    """The gradient of a function of an array that gives one number, by central differences; NaN where it has a kink.

    f: gets a float64 NumPy array of the shape of x. Four calls of it an element.

    >>> numeric_gradient(lambda x: (x ** 3).sum(), [1.0, 2.0]).round(6)
    array([ 3., 12.])
    """
    x = np.array(x, dtype=np.float64)
    at_x = float(f(x))
    slopes = np.empty(x.shape)
    for place, direction in _axes(x):
        slopes[place] = _slope(f, x, direction, at_x, abs(at_x), step).value / direction[place]
    return slopes


# One check


class Check:
    """A function's gradients at one point, compared with numbers."""

    def __init__(self, title: str, f: Callable[..., Any], inputs: list[Any], names: list[str], options: Options, operation: str = ""):
        self.title, self.f, self.inputs, self.names, self.options, self.operation = title, f, inputs, names, options, operation
        self.random = np.random.default_rng(options.seed)
        self.checked = [i for i, x in enumerate(inputs) if _is_float(x)]
        self.values = [_numpy(x).astype(np.float64) if i in self.checked else x for i, x in enumerate(inputs)]
        if not self.checked:
            raise ArgumentError(f"{title}: no input is an array of floats, so there is no gradient to check")

    def run(self) -> bool:
        """Compare every argument; True, or an error."""
        ys, leaves = self.call(self.values)
        self.gys = [self.random.standard_normal(y.shape) for y in ys]
        terms = [gy * _numpy(y) for gy, y in zip(self.gys, ys)]
        self.at_x = float(sum(term.sum() for term in terms))
        self.size = float(sum(np.abs(term).sum() for term in terms))        # the loss is rounded in proportion to this
        if not np.isfinite(self.size):
            raise self.error("the result holds a NaN or an infinity, where there is no gradient to check", "Give other inputs.")
        if abs(self.loss(self.values) - self.at_x) > 1e-10 * self.size:
            raise self.error("called again, it gives other numbers", "Fix its randomness: pass a seed, or make a generator inside it.")
        given = [backend.asarray(gy.copy(), y.device) for gy, y in zip(self.gys, ys)]
        gradients = grad(ys, leaves, given)
        if any((_numpy(theirs) != ours).any() for theirs, ours in zip(given, self.gys)):
            raise self.error("a gradient rule wrote into the gy that it was given", "It makes new arrays: gy * 2, and not gy *= 2.")
        with np.errstate(all="ignore"):
            for i, gradient in zip(self.checked, gradients):
                self.compare(i, None if gradient is None else _numpy(gradient))
        return True

    def call(self, values: list[Any]) -> tuple[list[Tensor], list[Tensor]]:
        """The outputs of f that have a gradient, and the leaves that it was given."""
        given = list(values)
        for i in self.checked:
            given[i] = Tensor(backend.asarray(values[i].copy(), backend.device_of(_plain(self.inputs[i]))), requires_grad=True)
        ys = _recorded(self.f(*given))
        if not ys:
            raise self.error("nothing in the result requires a gradient", "Compute it from the Tensors given, outside no_grad().")
        if not self.operation:
            last = ys[0].node.name if ys[0].node is not None else ""
            self.operation = _name(self.f) + (f" (its last operation is {last})" if last not in ("", _name(self.f)) else "")
        for i in self.checked:
            if not np.array_equal(_numpy(given[i]), values[i], equal_nan=True):
                raise self.error(f"it wrote to {self.label(i)}", "Let it work on a copy.")
        return ys, [given[i] for i in self.checked]

    def loss(self, values: list[Any]) -> float:
        """The outputs weighted by gy, as one number."""
        return float(sum((gy * _numpy(y)).sum() for gy, y in zip(self.gys, self.call(values)[0])))

    def compare(self, i: int, found: np.ndarray | None) -> None:
        """The gradient by argument i: along random directions, and where these disagree or meet a kink, element by element."""
        x = self.values[i]
        gradient = np.zeros(x.shape) if found is None else found            # an input that was not reached has none

        def loss(moved: np.ndarray) -> float:
            return self.loss([*self.values[:i], moved, *self.values[i + 1:]])

        def agrees(direction: np.ndarray) -> bool:
            slope = _slope(loss, x, direction, self.at_x, self.size, self.options.step)
            parts = gradient * direction
            return abs(parts.sum() - slope.value) <= self.tolerance(slope.value, np.sqrt((parts ** 2).sum()), slope.noise)

        directions = self.options.directions
        if directions is None or not all(agrees(self.random.standard_normal(x.shape) * _scale(x)) for _ in range(directions)):
            self.compare_elements(i, gradient, loss, reached=found is not None)

    def compare_elements(self, i: int, gradient: np.ndarray, loss: Callable[[np.ndarray], float], reached: bool) -> None:
        """The gradient by argument i, each element with its own difference."""
        x = self.values[i]
        numeric, noise = np.empty(x.shape), np.empty(x.shape)
        for place, direction in _axes(x):
            slope = _slope(loss, x, direction, self.at_x, self.size, self.options.step)
            numeric[place], noise[place] = slope.value / direction[place], slope.noise / direction[place]
        smooth = np.isfinite(numeric)
        if not smooth.any() and x.size:
            raise self.error(f"there is a kink at every element of {self.label(i)}, and nothing is left to check",
                             "Give inputs where the derivative does not jump: no ties under a maximum, no zeros under abs.")
        tolerance = self.tolerance(numeric, np.abs(numeric[smooth]).max(initial=0), noise)
        difference = np.abs(gradient - numeric)
        wrong = smooth & ~(difference <= tolerance)                         # a NaN in the gradient is wrong too
        if wrong.any():
            excess = np.where(wrong, np.nan_to_num(difference / tolerance, nan=np.inf), -1)
            worst = tuple(int(k) for k in np.unravel_index(np.argmax(excess), x.shape))
            count = f"{int(wrong.sum()):,} of {x.size:,} elements"
            raise self.error(f"the gradient by {self.label(i)} is wrong in {count}" if reached else
                             f"no gradient reaches {self.label(i)}, and the result depends on {count} of it",
                             f"Look at what is done to this argument; repeat with seed={self.options.seed}." if reached else
                             "Is a number that depends on it kept on self? A rule must name it instead.", worst_element=worst,
                             analytic=f"{gradient[worst]:.10g}", numeric=f"{numeric[worst]:.10g}", tolerance=f"{tolerance[worst]:.2g}")

    def tolerance(self, numeric: Any, largest: Any, noise: Any) -> Any:
        return self.options.rtol * np.abs(numeric) + self.options.atol * largest + noise

    def same_on_tensors(self, ys: list[Tensor], leaves: list[Tensor], gys: list[Any]) -> None:
        """GradientError if the rules, which are run on Tensors for a second derivative, then give other numbers than on arrays."""
        plain = grad(ys, leaves, gys, retain_graph=True)
        recorded = grad(ys, leaves, gys, create_graph=True)
        for i, a, b in zip(self.checked, plain, recorded):
            if a is not None and b is not None and not np.allclose(_numpy(a), _numpy(b), rtol=1e-9, atol=1e-12, equal_nan=True):
                raise self.error(f"the gradient by {self.label(i)} is another with create_graph=True than without",
                                 "A rule must do the same to arrays and to Tensors.")

    def label(self, i: int) -> str:
        """What argument i is called."""
        return f"argument {i}" + (f" ({self.names[i]})" if i < len(self.names) and self.names[i] else "")

    def error(self, problem: str, hint: str, **facts: Any) -> GradientError:
        return GradientError(f"{self.title}: {self.operation or _name(self.f)}: {problem}", hint=hint, **facts)


# Differences


class Slope(NamedTuple):
    """A derivative along a direction, NaN at a kink, and how far rounding may have moved it."""

    value: float
    noise: float


def _slope(f: Callable[[np.ndarray], Any], x: np.ndarray, direction: np.ndarray, at_x: float, size: float, step: float) -> Slope:
    """The derivative of f at x along a direction. at_x: f(x); size: of the terms that f sums."""
    for h in (step * shrink for shrink in SHRINK):
        far = float(f(x - h * direction)), float(f(x + h * direction))
        near = float(f(x - h / 2 * direction)), float(f(x + h / 2 * direction))
        wide, narrow = (far[1] - far[0]) / (2 * h), (near[1] - near[0]) / h
        # where f is smooth, the slopes to the left and to the right differ by h f'', so half as much for half the step
        gap, near_gap = (far[1] - 2 * at_x + far[0]) / h, (near[1] - 2 * at_x + near[0]) / (h / 2)
        noise = 16 * EPS * (size + abs(wide)) / h           # both the terms of f and the step itself are rounded
        steepness = max(abs(wide), abs(narrow))
        if h < step and noise > ROUNDING * steepness:
            break
        slack = 2.5e-7 * steepness + noise
        if abs(wide - narrow) <= slack and abs(near_gap) <= 0.75 * abs(gap) + 2 * slack:
            return Slope((4 * narrow - wide) / 3, noise)                    # Richardson's: the h^2 of both errors cancels
    return Slope(float("nan"), 0)


def _axes(x: np.ndarray) -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
    """Every index of x, with the direction along it."""
    for place in np.ndindex(x.shape):
        direction = np.zeros(x.shape)
        direction[place] = _scale(x)[place]
        yield place, direction


def _scale(x: np.ndarray) -> np.ndarray:
    """What counts as a step of 1 at each element: large numbers take larger ones."""
    return np.maximum(1, np.abs(x))


# What the arguments are


def _listed(inputs: Any) -> list[Any]:
    return list(inputs) if isinstance(inputs, list | tuple) else [inputs]


def _plain(x: Any) -> Any:
    return x.data if isinstance(x, Tensor) else x


def _numpy(x: Any) -> np.ndarray:
    return backend.to_numpy(_plain(x))


def _is_float(x: Any) -> bool:
    return backend.is_array(_plain(x)) and backend.is_float(x.dtype)


def _recorded(result: Any) -> list[Tensor]:
    """The outputs that have a gradient."""
    return [y for y in _listed(result) if isinstance(y, Tensor) and y.requires_grad]


def _name(f: Any) -> str:
    return getattr(f, "__name__", None) or getattr(f, "name", None) or type(f).__name__


def _names(f: Callable[..., Any]) -> list[str]:
    """The names of f's arguments, as far as its signature tells."""
    plan = getattr(f, "plan", None)                                         # a Function
    if plan is not None and not plan.variadic:
        return list(plan.args)
    try:
        parameters = inspect.signature(f).parameters.values()
    except (TypeError, ValueError):
        return []
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
