"""Strips of images, brought to where compiled kernels read them, and results that lie as they write them.

Images are worked on in (N, H, W, C) order under their (N, C, H, W) face, a strip at a time: so many images, or so many rows of one, as
fit in a cache. A strip that needs padding, or lies in another order, is copied into scratch memory first. Which strips there are, and
where everything lies in them, plans.py says.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minidl.kernels.cpu.compiled import inlined, inner
from minidl.kernels.cpu.vector import BLOCK, clear, copy, number, put
from minidl.kernels.window import Pair

ZEROS = np.zeros(2**12, np.float32)


@inner
def fill(to, room, image, first, rows, left, columns, height, width, channels, along_c, along_h, along_w):
    """Copy rows of an image to (row, column, channel) order, each pixel in `room` numbers, with zeros beyond the image's edges.

    first, left: the row and column of the image that come first, below 0 in the padding. rows, columns: how many are copied.
    along_c, along_h, along_w: bytes from one channel, row, column of the image to the next.
    """
    begin, end = max(left, 0), min(left + columns, width)
    for y in range(first, first + rows):
        if y < 0 or y >= height or begin >= end:
            clear(to, columns * room * 4)
        else:
            if room > channels:
                clear(to, columns * room * 4)
            else:
                clear(to, (begin - left) * room * 4)
                clear(to + (end - left) * room * 4, (left + columns - end) * room * 4)
            line = image + y * along_h + begin * along_w
            there = to + (begin - left) * room * 4
            if along_c == 4 and along_w == channels * 4 and room == channels:
                copy(there, line, (end - begin) * channels * 4)
            elif along_c == 4:
                for x in range(end - begin):
                    copy(there + x * room * 4, line + x * along_w, channels * 4)
            else:
                for c in range(channels):
                    for x in range(end - begin):
                        put(there + (x * room + c) * 4, number(line + c * along_c + x * along_w))
        to += columns * room * 4


@inlined
def strip_of(cut, number):
    """What a strip is made of: its first image and row of positions, and how many there are of either."""
    first_image, first_row = number // cut.bands * cut.images, number % cut.bands * cut.rows
    return first_image, first_row, min(cut.images, cut.image.n - first_image), min(cut.rows, cut.out_height - first_row)


@inlined
def bring(cut, image, scratch, first_image, first_row, images):
    """The address of a strip: of its copy in scratch memory, or of the image's own numbers where no copy is needed."""
    if not cut.copied:
        return image + first_image * cut.image.along_n + first_row * cut.step_h * cut.image.along_h
    for i in range(images):
        fill(scratch + i * cut.by_image, cut.room, image + (first_image + i) * cut.image.along_n, first_row * cut.step_h - cut.top,
             cut.strip_rows, -cut.left, cut.strip_columns, cut.image.height, cut.image.width, cut.image.channels, cut.image.along_c,
             cut.image.along_h, cut.image.along_w)
    return scratch


def starts(b: np.ndarray | None, outputs: int, groups: int) -> np.ndarray:
    """What sums begin from: the bias in the order of blocks, or zeros."""
    width = -(-outputs // BLOCK) * BLOCK
    if b is None and groups * width <= ZEROS.size:
        return ZEROS
    start = np.zeros((groups, width), np.float32)
    if b is not None:
        start[:, :outputs] = b.reshape(groups, outputs)
    return start


def empty(n: int, channels: int, size: Pair, dtype: Any = np.float32) -> np.ndarray:
    """Images (N, C, H, W) that lie in memory as (N, H, W, C)."""
    return np.empty((n, *size, channels), dtype).transpose(0, 3, 1, 2)


def aligned(x: np.ndarray) -> np.ndarray:
    """x, or a copy of it where its numbers do not lie at whole multiples of four bytes."""
    return x if x.flags.aligned else x.copy()
