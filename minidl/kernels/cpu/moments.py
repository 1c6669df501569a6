"""Second moments of patches: what a filter sees, times itself, summed over all positions.

The patches of some positions, or of groups of neighbouring positions, are copied into scratch memory as rows of a matrix, and the
register tile multiplies it by itself: row and column of the product are numbers under the window, a term of the sum is a position. The
product is symmetric: only the tiles on and above the diagonal are worked out. `unfold` mirrors them, and brings numbers under the window
from the order in which they lie, tap by tap, into that of the filters, channel by channel.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np

from minidl.kernels.cpu.compiled import address, compiled, inner, run
from minidl.kernels.cpu.lanes import load, splat, store
from minidl.kernels.cpu.plans import Images
from minidl.kernels.cpu.strips import ZEROS, aligned
from minidl.kernels.cpu.vector import BLOCK, LANES, ROWS, entry, number, put, take, tile
from minidl.kernels.window import Window

POSITIONS = 256         # rows of the matrix of patches: a block of its columns stays in the first-level cache
SUMS = 8                # sums that are kept apart, if
APART = 2**22           # they have no more numbers together; or else pieces share the blocks of the product
MOST = 8                # positions in a row, or in a column, that are laid out together
WIDEST = 400            # numbers of such a patch: its moments must not fill the cache
WORTH = 0.9             # of the multiplications, if there are no more left than this
SQUARE = 16             # rows and columns that are unfolded at once

TWO = tile(2)


class Plan(NamedTuple):
    """Sizes, steps in bytes, and the addresses of tables."""

    image: Images
    kernel_h: int
    kernel_w: int
    step_h: int
    step_w: int
    top: int
    left: int
    apart_h: int        # dilation
    apart_w: int
    out_height: int
    out_width: int
    groups: int
    inputs: int         # channels of a group
    bias: int           # 1 if a 1 comes after each patch
    width: int          # numbers of a patch, with it
    room: int           # numbers from one patch to the next
    parts: int
    chunks: int
    rows: int           # table: bytes to each number of a patch
    places: int         # table: bytes to its row of the product
    order: int          # table: which number of the result it is


# Compiled


@inner
def lay_out(plan, image, group, first, count, to):
    """Copy the patches of `count` positions, from the first on. Zeros stand for the padding."""
    its, zero = plan.image, splat(np.float32(0))
    n, y, x = first // (plan.out_height * plan.out_width), first // plan.out_width % plan.out_height, first % plan.out_width
    side_by_side = plan.apart_w == 1 and plan.groups == 1 and its.along_c == 4 and its.along_w == its.channels * 4
    for position in range(count):
        here = to + position * plan.room * 4
        pixels = image + n * its.along_n + group * plan.inputs * its.along_c
        left = x * plan.step_w - plan.left
        for i in range(plan.kernel_h):
            row = y * plan.step_h - plan.top + i * plan.apart_h
            line = pixels + row * its.along_h
            if side_by_side and 0 <= row < its.height and left >= 0 and left + plan.kernel_w <= its.width:
                for c in range(0, plan.kernel_w * plan.inputs, LANES):
                    some = plan.kernel_w * plan.inputs - c
                    store(here + c * 4, some, load(line + left * its.along_w + c * 4, some))
                here += plan.kernel_w * plan.inputs * 4
            else:
                for column in range(left, left + plan.kernel_w * plan.apart_w, plan.apart_w):
                    if not (0 <= row < its.height and 0 <= column < its.width):
                        for c in range(0, plan.inputs, LANES):
                            store(here + c * 4, plan.inputs - c, zero)
                    elif its.along_c == 4:
                        for c in range(0, plan.inputs, LANES):
                            store(here + c * 4, plan.inputs - c, load(line + column * its.along_w + c * 4, plan.inputs - c))
                    else:
                        for c in range(plan.inputs):
                            put(here + c * 4, number(line + column * its.along_w + c * its.along_c))
                    here += plan.inputs * 4
        if plan.bias:
            put(here, np.float32(1))
        x += 1
        if x == plan.out_width:
            x, y = 0, y + 1
            if y == plan.out_height:
                y, n = 0, n + 1


@compiled
def multiply(counter, pieces, scratch, plan, image, zeros, sums):
    """Sums over positions of every number of a patch times every other, above the diagonal. A piece is a part, a group, a share of blocks.

    sums: (parts, groups, width, width).
    """
    positions = plan.image.n * plan.out_height * plan.out_width
    while True:
        piece = take(counter)
        if piece >= pieces:
            return
        chunk, group, part = piece % plan.chunks, piece // plan.chunks % plan.groups, piece // plan.chunks // plan.groups
        begin, end = part * positions // plan.parts, (part + 1) * positions // plan.parts
        out = sums + (part * plan.groups + group) * plan.width * plan.width * 4
        for first in range(begin, end, POSITIONS):
            count = min(POSITIONS, end - first)
            lay_out(plan, image, group, first, count, scratch)
            for column in range(chunk * BLOCK, plan.width, plan.chunks * BLOCK):
                for row in range(0, min(column + BLOCK, plan.width), ROWS):
                    TWO(scratch, plan.rows + row * 8, scratch + column * 4, 1, zeros, zeros, count, plan.room * 4, plan.room * 4, zeros,
                        out + column * 4, plan.places + row * 8, plan.width - column, first - begin, 0)


@compiled
def unfold(counter, pieces, scratch, plan, sums, to):
    """Add the parts in their order, and write each number of a product twice: above and below the diagonal. A piece is SQUARE rows."""
    squares = (plan.width + SQUARE - 1) // SQUARE
    size = plan.width * plan.width * 4
    while True:
        piece = take(counter)
        if piece >= pieces:
            return
        group, first = piece // squares, piece % squares * SQUARE
        source, there = sums + group * size, to + group * size
        for some in range(first, plan.width, SQUARE):
            for i in range(first, min(first + SQUARE, plan.width)):
                row = entry(plan.order + i * 8)
                for j in range(max(some, i), min(some + SQUARE, plan.width)):
                    column = entry(plan.order + j * 8)
                    at = source + (i * plan.width + j) * 4
                    total = number(at)
                    for part in range(1, plan.parts):
                        total += number(at + part * plan.groups * size)
                    put(there + (row * plan.width + column) * 4, total)
                    put(there + (column * plan.width + row) * 4, total)


# For arrays


def conv2d_patch_moments(x: np.ndarray, window: Window, groups: int = 1, bias: bool = False) -> Any:
    """See reference.conv2d_patch_moments."""
    if not x.size:
        return NotImplemented
    x = aligned(x)
    down, right = together(window, window.out(x.shape[2:]), x.shape[1] // groups)
    if down * right == 1:
        return moments(x, window, groups, bool(bias))
    kernel = window.kernel
    wide = Window((kernel[0] + down - 1, kernel[1] + right - 1), (down * window.stride[0], right * window.stride[1]), window.padding)
    return folded(moments(x, wide, groups, bool(bias)), x.shape[1] // groups, wide.kernel, kernel, bool(bias))


def moments(x: np.ndarray, window: Window, groups: int, bias: bool) -> np.ndarray:
    """The moments of the patches under a window, as they are."""
    plan, _ = planned(Images.of(x), window, groups, bias)
    sums = np.empty((plan.parts, groups, plan.width, plan.width), np.float32)
    work = plan.image.n * plan.out_height * plan.out_width * groups * plan.width * plan.width / 2
    run(multiply, plan.parts * groups * plan.chunks, work, POSITIONS * plan.room, plan, address(x), address(ZEROS), address(sums))
    found = np.empty(sums.shape[1:], np.float32)
    run(unfold, groups * -(-plan.width // SQUARE), 4 * sums.size, 0, plan, address(sums), address(found))
    return found


# Patches that overlap repeat each other's numbers. So those of some neighbouring positions are laid out as one larger patch: the moments
# of 5 x 5 patches at 4 x 4 positions are all in those of one patch of 8 x 8. That is two fifths of the multiplications.
@functools.lru_cache(maxsize=128)
def together(window: Window, out: tuple[int, int], channels: int) -> tuple[int, int]:
    """How many positions down and to the right are laid out as one: what takes the fewest multiplications a position."""
    if window.dilation != (1, 1):
        return 1, 1
    downs, rights = [[n for n in range(1, MOST + 1) if length % n == 0 and (n == 1 or step == 1)]
                     for length, step in zip(out, window.stride)]

    def size(way: tuple[int, int]) -> int:
        return math.prod(k + n - 1 for k, n in zip(window.kernel, way))

    def cost(way: tuple[int, int]) -> float:
        return size(way) ** 2 / math.prod(way)

    ways = [(down, right) for down in downs for right in rights if channels * size((down, right)) <= WIDEST]
    best = min(ways, key=cost, default=(1, 1))
    return best if cost(best) < WORTH * cost((1, 1)) else (1, 1)


def folded(wide: np.ndarray, channels: int, size: tuple[int, int], kernel: tuple[int, int], bias: bool) -> np.ndarray:
    """The moments of patches, out of those of larger patches of this size: the sum over all places of the kernel in it."""
    groups, k = len(wide), channels * math.prod(kernel)
    count = len(wide[0]) - bias
    squares = wide[:, :count, :count].reshape(groups, channels, *size, channels, *size)
    inside = np.zeros((groups, channels, *kernel, channels, *kernel), np.float32)
    places = [(slice(down, down + kernel[0]), slice(right, right + kernel[1]))
              for down in range(size[0] - kernel[0] + 1) for right in range(size[1] - kernel[1] + 1)]
    for place in places:
        inside += squares[:, :, *place, :, *place]
    if not bias:
        return inside.reshape(groups, k, k)
    result = np.empty((groups, k + 1, k + 1), np.float32)
    result[:, :k, :k] = inside.reshape(groups, k, k)
    ones = wide[:, count, :count].reshape(groups, channels, *size)
    result[:, k, :k] = result[:, :k, k] = np.sum([ones[:, :, *place] for place in places], axis=0).reshape(groups, k)
    result[:, k, k] = wide[:, count, count] * len(places)
    return result


@functools.lru_cache(maxsize=128)
def planned(image: Images, window: Window, groups: int, bias: bool) -> tuple[Plan, list[np.ndarray]]:
    """A plan, and the tables that it names."""
    out = window.out((image.height, image.width))
    inputs, taps = image.channels // groups, math.prod(window.kernel)
    width = inputs * taps + bias
    room = -(-width // BLOCK) * BLOCK
    room += LANES if room % 64 == 0 else 0                      # rows a power of two apart would share a few lines of the cache
    parts = max(1, min(SUMS, image.n * out[0] * out[1] // POSITIONS, APART // (groups * width * width)))
    chunks = min(-(-width // BLOCK), -(-SUMS // (parts * groups)))
    order = [c * taps + t for t in range(taps) for c in range(inputs)] + [width - 1] * bias
    rows = np.minimum(np.arange(-(-width // ROWS) * ROWS), width - 1)       # a tile's last rows may be the same
    tables = [rows * 4, rows * width * 4, np.array(order, np.int64)]
    return Plan(image, *window.kernel, *window.stride, *window.padding, *window.dilation, *out, groups, inputs, int(bias), width, room,
                parts, chunks, *(address(table) for table in tables)), tables
