"""The reference kernels for what layers do beside convolution: products of matrices, activations, dropout.

As in reference.py: array in, array out, on NumPy and on CuPy, written to be read.
"""

from __future__ import annotations

import functools
import math
from typing import Any

from minidl import backend
from minidl.backend import Array


def matmul(a: Array, b: Array) -> Array:
    """The product of matrices, for every matrix of a batch."""
    return a @ b


def activation(z: Array, name: str) -> Array:
    """f(z) for f called "relu", "tanh" or "sigmoid". Writes into z where it can: a layer gives what it has just made."""
    xp = backend.of(z)
    if name == "relu":
        return xp.maximum(z, 0, out=z)                          # a NaN stays one
    if name == "tanh":
        return xp.tanh(z, out=z)
    z *= 0.5                                                    # 1 / (1 + e^-z) = (1 + tanh(z / 2)) / 2, without overflow at either end
    y = xp.tanh(z, out=z)
    y *= 0.5
    y += 0.5
    return y


def activation_gradient(gy: Array, y: Array, name: str) -> Array:
    """gz = gy f'(z), found from y = f(z)."""
    if name == "relu":
        return gy * (y > 0)
    return gy * (1 - y * y) if name == "tanh" else gy * y * (1 - y)


def channel_sums(gy: Array) -> Array:
    """The sum over all axes but the second: (N, C) or (N, C, H, W) gives (C,). The gradient of a bias a channel."""
    return gy.sum(axis=(0, *range(2, gy.ndim)))


def dropout_mask(xp: Any, shape: tuple[int, ...], p: float, seed: int, step: int, layer: int, first: int = 0) -> Array:
    """Booleans, false with probability p: a hash of (seed, step, layer, number of the element), so the same on every device.

    xp: the array library. first: the number of the first element, where the array is a part of a larger one.
    The hash is a multiply-and-shift mixer of 32 bits (C. Wellons, "Prospecting for hash functions", 2018), once a key.
    """
    size = math.prod(shape)
    low = xp.arange(first % 2**32, first % 2**32 + size, dtype="uint64")
    element = low.astype("uint32")
    if first + size > 2**32:                                    # the upper half of the element's number, where there is one
        element = element ^ mix(((low >> 32) + (first >> 32)).astype("uint32"))
    h = mix(element ^ xp.asarray(mix_number(seed % 2**32), "uint32"))
    for key in (seed // 2**32, step, layer):
        h = mix(h ^ xp.asarray(mix_number((key + 0x9E3779B9) % 2**32), "uint32"))
    return (h >= xp.asarray(min(int(p * 2**32), 2**32 - 1), "uint32")).reshape(shape)


def mix(h: Array) -> Array:
    """Spread every bit of 32 over all the others."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        h = (h ^ (h >> shift)) * h.dtype.type(factor)
    return h ^ (h >> 16)


def mix_number(h: int) -> int:
    """The same for one Python number."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        h = (h ^ (h >> shift)) * factor % 2**32
    return h ^ (h >> 16)


def erf(x: Array) -> Array:
    """The error function, to the precision of x's dtype (neither NumPy nor the standard library has it for arrays).

    Near 0 the Taylor series; elsewhere 1 - erfc, with erfc(z) = t exp(-z^2 + P(t)), t = 2 / (2 + z), and P a polynomial of t
    (Press et al., Numerical Recipes, section 6.2), here fitted through Chebyshev's points.
    """
    xp = backend.of(x)
    z = xp.minimum(abs(x), 30)                                  # far beyond, where erf is 1 in any dtype, z * z would overflow
    t = 2 / (2 + z)
    u = t * 2 - 1
    last, before = xp.zeros_like(x), xp.zeros_like(x)
    coefficients = _erfc_polynomial()[:16 if x.dtype.itemsize <= 4 else None]
    for c in reversed(coefficients[1:]):                        # Clenshaw's recurrence
        last, before = u * 2 * last - before + c, last
    outer = 1 - t * xp.exp(-z * z + u * last - before + coefficients[0])
    near = xp.minimum(z, 1)
    square = near * near
    series = xp.zeros_like(x)
    for n in range(18, -1, -1):
        series = series * square + (-1) ** n / (math.factorial(n) * (2 * n + 1))
    return xp.copysign(xp.where(z < 1, near * series * (2 / math.sqrt(math.pi)), outer), x)


@functools.cache
def _erfc_polynomial(count: int = 32) -> list[float]:
    """Chebyshev coefficients of P(t) = log(erfc(z) e^(z^2) / t) over t in [0, 1], by interpolation."""
    def scaled_erfc(z: float) -> float:
        if z < 4:
            return math.erfc(z) * math.exp(z * z)
        fraction = z
        for k in range(200, 0, -1):                             # Laplace's continued fraction
            fraction = z + k / 2 / fraction
        return 1 / (fraction * math.sqrt(math.pi))

    angles = [math.pi * (k + 0.5) / count for k in range(count)]
    ts = [(math.cos(a) + 1) / 2 for a in angles]
    values = [math.log(scaled_erfc(2 / t - 2) / t) for t in ts]
    sums = [sum(v * math.cos(j * a) for v, a in zip(values, angles)) for j in range(count)]
    return [sums[0] / count] + [2 * s / count for s in sums[1:]]
