"""The reference kernel on images before they reach a model: what random crops and shifts are made of."""

from __future__ import annotations

from minidl import backend
from minidl.backend import Array


def windows(x: Array, corners: Array, size: tuple[int, ...], padding: int, fill: float) -> Array:
    """From each image, in a border of `padding` times `fill`, the window of that size whose upper left corner is its row of `corners`.

    x (N, C, H, W), corners int64 (N, 2), size (OH, OW); the result is (N, C, OH, OW). One gather of whole windows: faster than a loop over
    the images or over the distinct corners.
    """
    xp = backend.of(x)
    n, c, h, w = x.shape
    padded = xp.full((n, c, h + 2 * padding, w + 2 * padding), fill, x.dtype)
    padded[:, :, padding:padding + h, padding:padding + w] = x
    return xp.lib.stride_tricks.sliding_window_view(padded, size, axis=(2, 3))[xp.arange(n), :, corners[:, 0], corners[:, 1]]
