"""The reference kernels for what layers do beside convolution: activations, normalization, the usual loss, dropout.

As in reference.py: array in, array out, on NumPy and on CuPy, written to be read.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

from minidl import backend
from minidl.backend import Array

GOLDEN = 0x9E3779B9     # 2^32 divided by the golden ratio: keys that count from 0 do not meet the seed's


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


def activation_gradient(gy: Array, y: Array, name: str, out: Array | None = None) -> Array:
    """gz = gy f'(z), found from y = f(z). out: where to write it, which may be gy; a new array unless given."""
    multiply = backend.of(gy).multiply
    if name == "relu":
        return multiply(gy, y > 0, out=out)
    if name == "tanh":
        return multiply(gy, 1 - y * y, out=out)
    gz = multiply(gy, y, out=out)
    gz *= 1 - y
    return gz


activated = activation                  # for kernels that have an argument of that name


def channel_sums(gy: Array) -> Array:
    """The sum over all axes but the second: (N, C) or (N, C, H, W) gives (C,). The gradient of a bias a channel."""
    return gy.sum(axis=channels_of(gy)[0])


# Normalization


def batch_norm(x: Array, gamma: Array, beta: Array, eps: float, activation: str | None = None) -> tuple[Array, Array, Array]:
    """Each channel with its mean taken off and divided by its deviation, then scaled and shifted, and through an activation.

    x: (N, C, ...). gamma, beta: (C,). Gives y of x's shape, and mean and variance (C,). The variance is the mean of squared distances
    from the mean, found in a second look: a large mean does not swallow it.
    """
    over, wide = channels_of(x)
    mean = x.mean(axis=over)
    y = x - mean.reshape(wide)
    var = (y * y).mean(axis=over)
    y *= (gamma / backend.of(x).sqrt(var + eps)).reshape(wide)
    y += beta.reshape(wide)
    return (y if activation is None else activated(y, activation)), mean, var


def batch_norm_gradient(gy: Array, x: Array, gamma: Array, mean: Array, var: Array, eps: float, gmean: Array | None = None,
                        gvar: Array | None = None) -> tuple[Array, Array, Array]:
    """The gradients by x, gamma and beta: gx has x's shape, ggamma and gbeta are (C,).

    gy: the gradient at y before its activation. gmean, gvar: (C,), the gradients at the mean and the variance, if there are any. With
    r = 1 / sqrt(var + eps) and u = (x - mean) r, gx = gamma r (gy - mean(gy) - u mean(gy u)) + (gmean + 2 gvar (x - mean)) / n: a number
    a channel times gy, plus one times x - mean, plus one.
    """
    over, wide = channels_of(x)
    n = x.size // x.shape[1]
    r = 1 / backend.of(x).sqrt(var + eps)
    centred = x - mean.reshape(wide)
    gbeta = gy.sum(axis=over)
    ggamma = (gy * centred).sum(axis=over) * r
    scale = gamma * r
    slope, shift = scale * r * ggamma * (-1 / n), scale * gbeta * (-1 / n)
    if gmean is not None:
        shift += gmean * (1 / n)
    if gvar is not None:
        slope += gvar * (2 / n)
    centred *= slope.reshape(wide)
    gx = gy * scale.reshape(wide)
    gx += centred
    gx += shift.reshape(wide)
    return gx, ggamma, gbeta


def batch_norm_inference(x: Array, gamma: Array, beta: Array, mean: Array, var: Array, eps: float,
                         activation: str | None = None) -> Array:
    """Batch normalization by a mean and a variance (C,) that are known: a number a channel times x, plus one."""
    _, wide = channels_of(x)
    scale = gamma / backend.of(x).sqrt(var + eps)
    y = x * scale.reshape(wide)
    y += (beta - mean * scale).reshape(wide)
    return y if activation is None else activated(y, activation)


def layer_norm(x: Array, gamma: Array | None, beta: Array | None, axes: int, eps: float) -> tuple[Array, Array, Array]:
    """The numbers along the last axes, together, with their mean taken off and divided by their deviation; then scaled and shifted.

    x: (N, ...). axes: how many are normalized over. gamma, beta: of the shape of these axes, or None. Gives y of x's shape, and mean and
    variance of the shape of the other axes.
    """
    over = tuple(range(x.ndim - axes, x.ndim))
    mean = x.mean(axis=over, keepdims=True)
    y = x - mean
    var = (y * y).mean(axis=over, keepdims=True)
    y /= backend.of(x).sqrt(var + eps)
    if gamma is not None:
        y *= gamma
    if beta is not None:
        y += beta
    return y, mean.reshape(x.shape[:-axes]), var.reshape(x.shape[:-axes])


def layer_norm_gradient(gy: Array, x: Array, gamma: Array | None, mean: Array, var: Array, axes: int, eps: float,
                        gmean: Array | None = None, gvar: Array | None = None) -> tuple[Array, Array, Array]:
    """The gradients by x, gamma and beta, as for `batch_norm_gradient`, with u gamma for u: gx = r (gu - mean(gu) - u mean(gu u)) + ...

    gmean, gvar: of the shape of the mean. ggamma is what it would be where gamma is None.
    """
    over, others = tuple(range(x.ndim - axes, x.ndim)), tuple(range(x.ndim - axes))
    n = math.prod(x.shape[-axes:])
    wide = (*x.shape[:-axes], *[1] * axes)
    r = 1 / backend.of(x).sqrt(var + eps).reshape(wide)
    u = x - mean.reshape(wide)
    u *= r
    gx = gy if gamma is None else gy * gamma
    along = gx * u
    slope, shift = along.mean(axis=over, keepdims=True) * -r, gx.mean(axis=over, keepdims=True) * -r
    if gmean is not None:
        shift += gmean.reshape(wide) * (1 / n)
    if gvar is not None:
        slope += gvar.reshape(wide) / r * (2 / n)               # x - mean is u / r
    ggamma = (gy * u).sum(axis=others)
    u *= slope
    gx = gx * r
    gx += u
    gx += shift
    return gx, ggamma, gy.sum(axis=others)


def channels_of(x: Array) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The axes of x other than that of the channels, and the shape that a number a channel has beside x."""
    return (0, *range(2, x.ndim)), (1, -1, *[1] * (x.ndim - 2))


def concatenate(arrays: Sequence[Array], axis: int) -> Array:
    """Arrays of one shape, but for this axis, one after the other along it."""
    return backend.of(arrays[0]).concatenate(arrays, axis=axis)


# The usual loss


def softmax_cross_entropy(x: Array, labels: Array, smoothing: float) -> Array:
    """- log of the probability that the softmax of a row of x gives to its label: (N, C) and class ids (N,) give (N,).

    smoothing: the part of a label that is spread evenly over all classes. A class masked out by -infinity costs nothing unless it is
    the label, or has a part of it.
    """
    xp = backend.of(x)
    z = x - x.max(axis=1, keepdims=True)
    total = xp.log(xp.exp(z).sum(axis=1))
    losses = total if smoothing == 1 else total - z[xp.arange(len(z)), labels] * (1 - smoothing)
    return losses - z.sum(axis=1) * (smoothing / x.shape[1]) if smoothing else losses


def softmax_cross_entropy_gradient(x: Array, labels: Array, smoothing: float, each: Array) -> Array:
    """gx = (softmax(x) - target) each, where each (N,) is the gradient of every loss; it may be one number, repeated."""
    xp = backend.of(x)
    gx = x - x.max(axis=1, keepdims=True)
    xp.exp(gx, out=gx)
    gx /= gx.sum(axis=1, keepdims=True)
    if smoothing:
        gx -= smoothing / x.shape[1]
    gx[xp.arange(len(gx)), labels] -= 1 - smoothing
    gx *= each.reshape(-1, 1)
    return gx


def scaled_sum(x: Array, factor: float) -> Array:
    """The sum of all numbers of x, times a factor: one number."""
    return x.sum() * factor


def right_answers(x: Array, labels: Array) -> Array:
    """In how many rows of x (N, C) the first of the largest numbers is at the label (N,): one integer, which stays on the device."""
    return (x.argmax(axis=1) == labels).sum()


# Chance


def dropout(x: Array, p: float, seed: int, step: int | Array, layer: int, first: int = 0) -> tuple[Array, Array]:
    """x with zeros in place of a fraction p, and the others divided by 1 - p; and the mask, true where a number was kept."""
    mask = dropout_mask(backend.of(x), x.shape, p, seed, step, layer, first)
    return x * mask * (1 / (1 - p)), mask


def dropout_gradient(gy: Array, mask: Array, scale: float) -> Array:
    """What was dropped gets nothing, the rest is scaled alike."""
    return gy * mask * scale


def dropout_mask(xp: Any, shape: tuple[int, ...], p: float, seed: int, step: Any, layer: int, first: int = 0) -> Array:
    """Booleans, false with probability p: a hash of (seed, step, layer, number of the element), so the same on every device.

    xp: the array library. step: a number, or an integer array of one, for who counts on the device. first: the number of the first
    element, where the array is a part of a larger one.
    The hash is a multiply-and-shift mixer of 32 bits (C. Wellons, "Prospecting for hash functions", 2018), once a key.
    """
    size = math.prod(shape)
    low = xp.arange(first % 2**32, first % 2**32 + size, dtype="uint64")
    element = low.astype("uint32")
    if first + size > 2**32:                                    # the upper half of the element's number, where there is one
        element = element ^ mix(((low >> 32) + (first >> 32)).astype("uint32"))
    on_device = hasattr(step, "dtype")
    low, upper, its_step, its_layer = (xp.asarray(mix_number(key), "uint32") for key in keys(seed, 0 if on_device else step, layer))
    if on_device:
        its_step = mix((step.reshape(1).astype("uint32") + GOLDEN).astype("uint32"))
    h = element
    for key in (low, upper, its_step, its_layer):
        h = mix(h ^ key)
    return (h >= xp.asarray(threshold(p), "uint32")).reshape(shape)


def keys(seed: int, step: int, layer: int) -> list[int]:
    """The four keys of a mask, before they are mixed: 32 bits each."""
    return [seed % 2**32, *((key + GOLDEN) % 2**32 for key in (seed // 2**32, step, layer))]


def threshold(p: float) -> int:
    """The least hash that is kept."""
    return min(int(p * 2**32), 2**32 - 1)


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
