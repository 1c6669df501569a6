"""Windows of images: what is launched for them. A thread takes numbers of the result, neighbours side by side, so that both reads and
writes are of whole lines of memory; the border is never made.
"""

from __future__ import annotations

from typing import Any

from minidl import backend
from minidl.backend import Array
from minidl.kernels.cuda import source

THREADS, BLOCKS = 256, 8192


def windows(x: Array, corners: Array, size: tuple[int, ...], padding: int, fill: float) -> Any:
    """See reference_images.windows."""
    n, c, h, w = x.shape
    count = n * c * size[0] * size[1]
    if not count or not source.taken(x.dtype) or source.named(corners.dtype) != "int64":
        return NotImplemented
    y = backend.of(x).empty((n, c, *size), x.dtype)
    blocks = min(-(-count // THREADS), BLOCKS)
    source.launch(x, "images", "windows", blocks, THREADS, source.dense(x), source.dense(corners), y,
                  count, c, h, w, *size, padding, float(fill), far=source.far(x, y))
    return y
