"""Layer normalization: a warp or a block a row, and the sums over rows for gamma and beta in pieces."""

from __future__ import annotations

import math
from typing import Any

from minidl import backend
from minidl.backend import Array
from minidl.kernels.cuda import source
from minidl.kernels.cuda.elementwise import takes
from minidl.kernels.cuda.normalization import as_computed, channel_sums
from minidl.kernels.cuda.rows import Rows, dealt

ROWS = 128              # of a piece, at least
BLOCKS = 2048           # enough for any device
MOST = 512              # pieces: so few that they are added in one launch


def layer_norm(x: Array, gamma: Array | None, beta: Array | None, axes: int, eps: float) -> Any:
    """See reference_layers.layer_norm."""
    x, parameters = source.dense(x), as_computed(x, gamma, beta)
    if not takes(x) or parameters is None:
        return NotImplemented
    xp, its, dtype = backend.of(x), _rows(x, axes), source.computed_in(x)
    y, mean, var = xp.empty(x.shape, x.dtype), xp.empty(x.shape[:-axes], dtype), xp.empty(x.shape[:-axes], dtype)
    _launch(x, "layer_norm", its.blocks, its.threads, x, *its[:3], *parameters, float(eps), y, mean, var)
    return y, mean, var


def layer_norm_gradient(gy: Array, x: Array, gamma: Array | None, mean: Array, var: Array, axes: int, eps: float,
                        gmean: Array | None = None, gvar: Array | None = None) -> Any:
    """See reference_layers.layer_norm_gradient."""
    gy, x, parameters = source.dense(gy), source.dense(x), as_computed(x, gamma, mean, var, gmean, gvar)
    if not takes(gy, x) or parameters is None:
        return NotImplemented
    gamma, mean, var, gmean, gvar = parameters
    xp, its, dtype = backend.of(x), _rows(x, axes), source.computed_in(x)
    gx = xp.empty(x.shape, x.dtype)
    _launch(x, "layer_norm_gradient", its.blocks, its.threads, gy, x, *its[:3], gamma, mean, var, float(eps), gmean, gvar, gx)
    side_by_side = -(-its.width // 32)
    pieces = max(1, min(-(-its.rows // ROWS), BLOCKS // side_by_side, MOST))
    sums = xp.empty((pieces, 2 * its.width), dtype)
    _launch(x, "parameter_gradients", side_by_side * pieces, 512, gy, x, its.rows, its.width, pieces, mean, var, float(eps), sums)
    ggamma, gbeta = (channel_sums(sums) if pieces > 1 else sums).reshape(2, *x.shape[-axes:])
    return gx, ggamma, gbeta


def _rows(x: Array, axes: int) -> Rows:
    width = math.prod(x.shape[-axes:])
    return dealt(x.size // width, width)


def _launch(x: Array, name: str, blocks: int, threads: int, *args: Any) -> None:
    source.launch(x, "layer_norm", name, blocks, threads, *args, far=source.far(x))
