"""What a model predicts, as its loss sees it: the distribution of the target, given the outputs ("logits") of one minibatch.

Three kinds: categorical (class ids, by softmax), Bernoulli (each output a coin, by sigmoid), Gaussian (each output a mean, of variance
1). For natural-gradient methods each can do three things, all of them with s(t) = d/dz [-log p(t | z)], the score at the outputs z:

    sampled     the score at a target t that is drawn from p(. | z) itself, not one from the data
    roots       scores, weighted, whose outer products add up to the Fisher matrix at the outputs, F = E[s s^T]
    product     F v for a vector v, without F

For these three F is also the second derivative of -log p by z, so that the Fisher matrix of a model is its Gauss-Newton matrix (Martens,
arXiv:1412.1193). Arrays go in and come out, there is no graph. Which loss is of which kind, loss.py knows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from minidl import backend
from minidl.backend import Array, wide
from minidl.functions.activation import sigmoid, softmax


class Likelihood(Protocol):
    """A kind of distribution. z: outputs, the first axis the examples. For those of 16 bits, what comes is float32."""

    name: str

    def sampled(self, z: Array, generator: np.random.Generator) -> Array:
        """The score at targets drawn from the prediction: an array of z's shape.

        The generator's numbers are used in the order of the examples, so that a minibatch in parts draws what it would draw whole, as
        long as each part has one loss.
        """

    def roots(self, z: Array) -> Iterator[Array]:
        """Arrays r of z's shape. For each example the sum of r r^T over them is F, the expectation of the score times itself."""

    def product(self, z: Array, v: Array) -> Array:
        """F v for each example. v: an array of z's shape."""


class Categorical:
    """One of the classes of axis 1, by softmax; where z has more axes, one at each position."""

    name = "categorical"

    def sampled(self, z: Array, generator: np.random.Generator) -> Array:
        xp = backend.of(z)
        p = softmax(wide(z), axis=1)
        share = drawn(generator.random, (z.shape[0], *z.shape[2:]), p)
        steps = xp.cumsum(p, axis=1)                                    # the distribution function, inverted:
        passed = steps <= xp.expand_dims(share, 1) * steps[:, -1:]
        target = xp.minimum(passed.sum(axis=1), z.shape[1] - 1)
        classes = xp.arange(z.shape[1]).reshape(-1, *[1] * (z.ndim - 2))
        return p - (classes == xp.expand_dims(target, 1))

    # F = diag(p) - p p^T = sum over classes c of p_c (p - e_c) (p - e_c)^T
    def roots(self, z: Array) -> Iterator[Array]:
        p = softmax(wide(z), axis=1)
        root = backend.of(z).sqrt(p)
        for place in np.ndindex(*z.shape[2:]):                          # positions are independent of each other
            for c in range(z.shape[1]):
                here = (slice(None), slice(None), *place)
                s = p[here].copy()
                s[:, c] -= 1
                r = backend.of(p).zeros_like(p)
                r[here] = s * root[here][:, c:c + 1]
                yield r

    def product(self, z: Array, v: Array) -> Array:
        p = softmax(wide(z), axis=1)
        return p * (v - (p * v).sum(axis=1, keepdims=True))


class Bernoulli:
    """A coin for each number, by sigmoid."""

    name = "bernoulli"

    def sampled(self, z: Array, generator: np.random.Generator) -> Array:
        p = sigmoid(wide(z))
        return p - (drawn(generator.random, z.shape, p) < p)

    # F = diag(p (1 - p))
    def roots(self, z: Array) -> Iterator[Array]:
        p = sigmoid(wide(z))
        return single(backend.of(z).sqrt(p * (1 - p)))

    def product(self, z: Array, v: Array) -> Array:
        p = sigmoid(wide(z))
        return p * (1 - p) * v


class Gaussian:
    """A normal distribution for each number: its mean is the output, its variance 1."""

    name = "gaussian"

    def sampled(self, z: Array, generator: np.random.Generator) -> Array:
        return drawn(generator.standard_normal, z.shape, wide(z))       # z - t, which is normal whatever z is

    # F = 1
    def roots(self, z: Array) -> Iterator[Array]:
        return single(backend.of(z).ones_like(wide(z)))

    def product(self, z: Array, v: Array) -> Array:
        return v


KINDS: dict[str, Likelihood] = {kind.name: kind for kind in (Categorical(), Bernoulli(), Gaussian())}


def single(diagonal: Array) -> Iterator[Array]:
    """For numbers that are independent of each other: each one's root alone, the others 0."""
    for place in np.ndindex(*diagonal.shape[1:]):
        r = backend.of(diagonal).zeros_like(diagonal)
        here = (slice(None), *place)
        r[here] = diagonal[here]
        yield r


def drawn(draw: Any, shape: tuple[int, ...], z: Array) -> Array:
    """Random numbers of a shape, drawn on the CPU, so that they are the same everywhere, in z's dtype beside z."""
    dtype = "float64" if z.dtype.itemsize == 8 else "float32"
    numbers = draw(math.prod(shape), dtype=dtype).reshape(shape)
    return backend.asarray(numbers.astype(z.dtype, copy=False), backend.device_of(z))
