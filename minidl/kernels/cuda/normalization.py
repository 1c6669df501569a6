"""Batch normalization, and sums a channel: how the numbers of each channel are cut into pieces, one a block.

A result that needs all the numbers of a channel takes two launches: the first gives a few numbers for each piece, the second puts them
together in every block that needs them. Where to cut depends on the shape alone, and so do the bits.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

from minidl import backend
from minidl.backend import Array
from minidl.kernels.cuda import source
from minidl.kernels.cuda.elementwise import KINDS, cast, takes

NUMBERS = 2048          # of a piece, at least: 8 a thread
ROWS = 512              # of a piece, at least, where a row is a number a channel
BLOCKS = 1024           # that are wanted: enough for any device, and each with so much to do that its start does not count
MOST = 512              # pieces of a channel


class Cut(NamedTuple):
    """Images (n, c, s) and pieces of their channels: what all the kernels take; and the blocks and threads for them."""

    sizes: tuple[int, int, int, int]        # n, c, s, and the pieces of a channel
    blocks: int
    threads: int


@functools.lru_cache(maxsize=1024)
def cut(shape: tuple[int, ...]) -> Cut:
    n, c, s = shape[0], shape[1], math.prod(shape[2:])
    side_by_side = -(-c // 32) if s == 1 else c                 # blocks for one piece of every channel
    pieces = min(-(-n // ROWS) if s == 1 else -(-n * s // NUMBERS), -(-BLOCKS // side_by_side), MOST)
    return Cut((n, c, s, pieces), side_by_side * pieces, 512 if s == 1 else 256)


def channel_sums(gy: Array) -> Any:
    """See reference_layers.channel_sums."""
    gy = source.dense(gy)
    if not takes(gy):
        return NotImplemented
    its = cut(gy.shape)
    pieces, channels = its.sizes[3], its.sizes[1]
    sums = backend.of(gy).empty((pieces, channels) if pieces > 1 else channels, source.computed_in(gy))
    _launch(gy, "channel_sums", its, gy, *its.sizes, sums)
    return channel_sums(sums) if pieces > 1 else sums           # pieces are few: they are one piece


def batch_norm(x: Array, gamma: Array, beta: Array, eps: float, activation: str | None = None) -> Any:
    """See reference_layers.batch_norm."""
    x, parameters = source.dense(x), as_computed(x, gamma, beta)
    if not takes(x) or parameters is None:
        return NotImplemented
    xp, its, dtype = backend.of(x), cut(x.shape), source.computed_in(x)
    parts = xp.empty((its.sizes[3], its.sizes[1], 3), dtype)
    _launch(x, "batch_moments", its, x, *its.sizes, parts)
    y, mean, var = xp.empty(x.shape, x.dtype), xp.empty(its.sizes[1], dtype), xp.empty(its.sizes[1], dtype)
    _normalize(x, its, parts, parameters[0], parameters[1], eps, activation, y, mean, var)
    return y, mean, var


def batch_norm_inference(x: Array, gamma: Array, beta: Array, mean: Array, var: Array, eps: float, activation: str | None = None) -> Any:
    """See reference_layers.batch_norm_inference."""
    x, parameters = source.dense(x), as_computed(x, gamma, beta, mean, var)
    if not takes(x) or parameters is None:
        return NotImplemented
    gamma, beta, mean, var = parameters
    its, y = cut(x.shape), backend.of(x).empty(x.shape, x.dtype)
    _normalize(x, its, None, gamma, beta, eps, activation, y, mean, var)
    return y


def batch_norm_gradient(gy: Array, x: Array, gamma: Array, mean: Array, var: Array, eps: float, gmean: Array | None = None,
                        gvar: Array | None = None) -> Any:
    """See reference_layers.batch_norm_gradient."""
    gy, x, parameters = source.dense(gy), source.dense(x), as_computed(x, gamma, mean, var, gmean, gvar)
    if not takes(gy, x) or parameters is None:
        return NotImplemented
    gamma, mean, var, gmean, gvar = parameters
    xp, its, dtype = backend.of(x), cut(x.shape), source.computed_in(x)
    parts = xp.empty((its.sizes[3], its.sizes[1], 2), dtype)
    _launch(x, "batch_products", its, gy, x, *its.sizes, mean, parts)
    gx, ggamma, gbeta = xp.empty(x.shape, x.dtype), xp.empty(its.sizes[1], dtype), xp.empty(its.sizes[1], dtype)
    _launch(x, "batch_norm_gradient", its, gy, x, *its.sizes, parts, gamma, mean, var, float(eps), gmean, gvar, gx, ggamma, gbeta)
    return gx, ggamma, gbeta


def as_computed(x: Array, *parameters: Array | None) -> list[Any] | None:
    """Parameters contiguous and in the type in which x is computed; None if they have another one than that and x's."""
    dtype, fitting = source.computed_in(x), []
    for p in parameters:
        if p is None or p.dtype == dtype:
            fitting.append(p if p is None else source.dense(p))
        elif p.dtype == x.dtype:
            fitting.append(cast(p, dtype))
        else:
            return None
    return fitting


def _normalize(x: Array, its: Cut, parts: Array | None, gamma: Array, beta: Array, eps: float, activation: str | None, y: Array,
               mean: Array, var: Array) -> None:
    """Into y; with parts into mean and var, too."""
    curved = "0" if activation in (None, "relu") else "1"
    _launch(x, "batch_norm", its, x, *its.sizes, parts, gamma, beta, float(eps), KINDS[activation], y, mean, var, curved=curved)


def _launch(x: Array, name: str, its: Cut, *args: Any, curved: str = "0") -> None:
    source.launch(x, "normalization", name, its.blocks, its.threads, *args, far=source.far(x), CURVED=curved)
