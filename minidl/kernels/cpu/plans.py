"""Plans: where everything lies that a compiled convolution reads and writes, worked out once per shape. No numbers are crunched here.

Images are cut into strips: so many whole images, or so many rows of one, as fit in a cache. A plan is ints alone, which compiled code
takes as they are: sizes, steps in bytes, and the addresses of tables, which live as long as the plan does.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from minidl.kernels.cpu.compiled import address
from minidl.kernels.cpu.vector import BLOCK, LANES, ROWS
from minidl.kernels.window import Pair, Window

STRIP = 2**16           # float32 numbers of a strip: 256 KB, which a second-level cache holds beside a block of filters
STRIPS = 16             # strips to have at least, where there are so many rows, so that threads end together
SUMS = 8                # sums of the gradient by the filters that are kept apart and added at the end, in this order
APART = 2**19           # numbers that these sums may have together; larger filters are shared out by their numbers instead
PAIRED = 2**18          # the same where a register tile reads but a few channels of it
NEAR = 512              # positions whose gradients, of a block of outputs, stay in the first-level cache from one register tile to the next
ANY = 2**31
LARGE = 2**17           # filters of more numbers are not read again for the sake of more strips: their outputs are shared out


class Images(NamedTuple):
    """Images as they lie in memory: sizes, and bytes from one image, channel, row, column to the next."""

    n: int
    channels: int
    height: int
    width: int
    along_n: int
    along_c: int
    along_h: int
    along_w: int

    @classmethod
    def of(cls, x: np.ndarray) -> Images:
        n, c, h, w = x.shape
        by_n, by_c, by_h, by_w = x.strides
        return cls(n, c, h, w, by_n, by_c if c > 1 else 4, by_h, by_w)


class Cut(NamedTuple):
    """Images cut into strips, for a window that stands at `out_height` x `out_width` positions, `step` (h, w) apart.

    A strip is `images` images or, where there are several `bands` to an image, `rows` rows of positions. It is copied to scratch
    memory where it needs padding or does not lie as the kernels read it: then it has `strip_rows` x `strip_columns` pixels, beginning
    `top` rows and `left` columns before the image, of `room` numbers each.
    """

    image: Images
    out_height: int
    out_width: int
    step_h: int
    step_w: int
    images: int
    rows: int
    bands: int
    strips: int
    copied: int
    top: int
    left: int
    strip_rows: int
    strip_columns: int
    room: int
    by_image: int       # bytes in the strip from an image, row, column to the next
    by_row: int
    by_column: int

    @property
    def size(self) -> int:
        """float32 numbers of a strip's copy."""
        return self.images * self.by_image // 4 if self.copied else 0


class Correlation(NamedTuple):
    """Taps that slide over images: see `correlate` in direct.py. Addresses of tables, and steps in bytes."""

    cut: Cut
    positions: int          # of the pixels, in a whole strip
    last_positions: int     # and in the last one
    places: int             # how far behind either the places of the results lie
    out_n: int              # from one image, row of the result to the next
    out_h: int
    runs: int
    left_offsets: int
    right_offsets: int
    length: int             # of a run
    outputs: int            # of a group
    blocks: int             # of a group
    all_blocks: int
    block_bytes: int
    by_block: int           # in a pixel from what one block reads to what the next does
    by_group: int
    chunks: int             # shares of the blocks; a piece is a strip and a share
    scratch: int
    pieces: int
    work: int


class Pairing(NamedTuple):
    """Numbers under the window paired with gradients: see `pair_up` in direct.py. Addresses of tables, and steps in bytes."""

    cut: Cut
    gy: Cut                 # of the gradients, into the same strips
    rows: int               # where each number under the window lies
    places: int             # how far behind the places of the results lie
    over_images: int        # whether a run is one position in all images of a strip, and not one row of positions
    left_offsets: int       # to where runs begin
    right_offsets: int
    tiles: int              # register tiles that the numbers under the window make
    outputs: int            # of a group
    blocks: int             # of a group
    tasks: int              # tiles and blocks of all groups
    by_block: int
    by_group: int
    group_bytes: int        # of a group's result
    numbers: int            # of the whole result
    parts: int              # sums kept apart; a piece is a part and a share of the tasks
    chunks: int
    beside: int             # from the strip's copy to that of the gradients
    scratch: int
    pieces: int
    work: int


class Tap(NamedTuple):
    """A number of the filter: where it looks in the image, from the strip's corner on, and where it lies in the filter."""

    row: int
    column: int
    at: Pair


def taps_of(window: Window) -> tuple[Tap, ...]:
    """The taps of a convolution, row by row."""
    (kh, kw), (dh, dw) = window.kernel, window.dilation
    return tuple(Tap(i * dh, j * dw, (i, j)) for i in range(kh) for j in range(kw))


class Back(NamedTuple):
    """The way back of a convolution for the image's rows and columns with one remainder by the stride."""

    first: Pair         # the first such row and column
    positions: Pair     # how many of them there are
    taps: tuple[Tap, ...]
    top: int
    left: int


@functools.lru_cache(maxsize=128)
def ways_back(window: Window, size: Pair) -> tuple[Back, ...]:
    """A gradient by the input as correlations, one for each remainder by the stride.

    Image row r takes from output row o through tap k where o stride + k dilation - padding = r. With r = first + i stride that is
    o = i + (first + padding - k dilation) / stride, for those k for which this is whole: a window that slides over the gradient.
    """
    axes = [[_way_back(window, axis, size[axis], first) for first in range(min(window.stride[axis], size[axis]))] for axis in (0, 1)]
    ways = []
    for y, (rows, row_taps, top) in enumerate(axes[0]):
        for x, (columns, column_taps, left) in enumerate(axes[1]):
            taps = tuple(Tap(row, column, (i, j)) for row, i in row_taps for column, j in column_taps)
            ways.append(Back((y, x), (rows, columns), taps, top, left))
    return tuple(ways)


def _way_back(window: Window, axis: int, length: int, first: int) -> tuple[int, list[Pair], int]:
    """How many rows there are, their taps as (offset, number in the filter) in order of offsets, and the padding before the first."""
    stride, dilation = window.stride[axis], window.dilation[axis]
    ahead = [(first + window.padding[axis] - k * dilation, k) for k in range(window.kernel[axis])]
    offsets = sorted((distance // stride, k) for distance, k in ahead if distance % stride == 0)
    padding = max(0, -offsets[0][0]) if offsets else 0
    return -(-(length - first) // stride), [(offset + padding, k) for offset, k in offsets], padding


def cut(image: Images, positions: Pair, step: Pair, top: int, left: int, reach: Pair, room: int, fits: int, most: int, many: int) -> Cut:
    """Strips for a window that reaches so many rows and columns beyond its first.

    room: numbers for the channels of a pixel in a copy. fits, most: numbers and positions of a strip at most. many: strips that there
    should be at least.
    """
    out_height, out_width = positions
    tall, wide = (out_height - 1) * step[0] + reach[0] + 1, (out_width - 1) * step[1] + reach[1] + 1
    copied = top > 0 or left > 0 or tall - top > image.height or wide - left > image.width or image.along_c != 4 or room != image.channels

    rows, per_row = out_height, wide * room
    images = max(1, min(fits // (tall * per_row), most // (out_height * out_width), -(-image.n // many)))
    if images == 1:                                             # bands of rows
        fitting = (fits // per_row - reach[0] - 1) // step[0] + 1
        enough = max(-(-out_height * image.n // many), -(-4 * ROWS // out_width))
        bands = -(-out_height // max(1, min(fitting, enough, most // out_width)))
        rows = -(-out_height // bands)
    bands = -(-out_height // rows)
    strip_rows = (rows - 1) * step[0] + reach[0] + 1
    by_row, by_column = (wide * room * 4, room * 4) if copied else (image.along_h, image.along_w)
    return Cut(image, out_height, out_width, *step, images, rows, bands, -(-image.n // images) * bands, int(copied), top, left,
               strip_rows, wide, room, strip_rows * by_row if copied else image.along_n, by_row, by_column)


# Plans and the tables that they name are kept together in these caches: 16 bytes a position of a strip, some 100 KB for large images.


@functools.lru_cache(maxsize=128)
def correlation(image: Images, positions: Pair, step: Pair, top: int, left: int, taps: tuple[Tap, ...], out: tuple[int, int, int],
                outputs: int, groups: int) -> tuple[Correlation, list[np.ndarray]]:
    """A plan for `correlate`, and the tables that it names.

    positions, step, top, left: where the window stands. out: bytes from one image, row and column of the result to the next.
    outputs: of each group. Where each group is one channel with one output, a block is many groups.
    """
    alike = is_alike(image.channels, outputs, groups)
    inputs, room, blocks = (1, -(-groups // BLOCK) * BLOCK, -(-groups // BLOCK)) if alike else \
        (image.channels // groups, image.channels, -(-outputs // BLOCK))
    all_blocks = blocks if alike else blocks * groups
    block = len(taps) * inputs * BLOCK                          # numbers of its filters
    reach = max(tap.row for tap in taps), max(tap.column for tap in taps)
    strips = cut(image, positions, step, top, left, reach, room, STRIP, ANY, STRIPS if all_blocks * block < LARGE else 1)

    # where taps lie side by side, in the image as in the filter, a row of them is one run
    across = len({tap.column for tap in taps})
    starts = [tap.row * strips.by_row + tap.column * strips.by_column for tap in taps]
    joined = not alike and all(starts[i + 1] == starts[i] + inputs * 4 for i in range(len(taps) - 1) if (i + 1) % across)
    first = range(0, len(taps), across) if joined else range(len(taps))
    tables = [
        np.array([starts[i] for i in first], np.int64),
        np.array([i * inputs * BLOCK * 4 for i in first], np.int64),
        *_positions(strips, out),
    ]
    chunks = min(all_blocks, -(-STRIPS // strips.strips))
    plan = Correlation(
        strips, address(tables[2]), address(tables[3]), tables[2][0].nbytes, out[0], out[1], len(first), address(tables[0]),
        address(tables[1]), (across if joined else 1) * inputs, groups if alike else outputs, blocks, all_blocks, block * 4,
        BLOCK * 4 if alike else 0, 0 if alike else inputs * 4, chunks, strips.size, strips.strips * chunks,
        image.n * positions[0] * positions[1] * all_blocks * block)
    return plan, tables


def is_alike(channels: int, outputs: int, groups: int) -> bool:
    """Whether the convolution is depthwise, each channel with a filter of its own; outputs: of a group."""
    return groups > 1 and channels == groups and outputs == 1


def _positions(strips: Cut, out: tuple[int, int, int]) -> list[np.ndarray]:
    """For a whole strip, and for the last one: bytes to the pixel of each position, and to the place of its result.

    Both are filled up with the last position to the same length, a number of register tiles: what is computed twice is the same.
    """
    images, rows = strips.images, strips.rows
    last_images = strips.image.n - (strips.strips // strips.bands - 1) * images
    last_rows = strips.out_height - (strips.bands - 1) * rows
    length = -(-images * rows * strips.out_width // ROWS) * ROWS
    tables = []
    for n, h in ((images, rows), (last_images, last_rows)):
        i, y, x = (numbers.reshape(-1) for numbers in np.indices((n, h, strips.out_width)))
        table = np.stack([i * strips.by_image + y * strips.step_h * strips.by_row + x * strips.step_w * strips.by_column,
                          i * out[0] + y * out[1] + x * out[2]])
        tables.append(np.ascontiguousarray(np.pad(table, ((0, 0), (0, length - table.shape[1])), mode="edge"), np.int64))
    return tables


@functools.lru_cache(maxsize=128)
def pairing(image: Images, gy: Images, window: Window, groups: int) -> tuple[Pairing, list[np.ndarray]]:
    """A plan for `pair_up`, and the tables that it names."""
    alike = is_alike(image.channels, gy.channels // groups, groups)
    outputs = groups if alike else gy.channels // groups
    inputs = 1 if alike else image.channels // groups
    room = -(-groups // BLOCK) * BLOCK if alike else image.channels
    if room % 64 == 0:                                          # pixels a power of two apart would share a few lines of the cache
        room += 16
    blocks = -(-outputs // BLOCK)
    taps = taps_of(window)
    numbers = groups * len(taps) * (1 if alike else inputs * outputs)
    reach = window.span[0] - 1, window.span[1] - 1
    apart = max(1, min(SUMS, APART // max(numbers, 1)))
    strips = cut(image, (gy.height, gy.width), window.stride, *window.padding, reach, room, PAIRED, NEAR, apart)
    gy_room = -(-gy.channels // LANES) * LANES if groups == 1 else -(-groups // BLOCK) * BLOCK if alike else gy.channels + LANES
    gy_copied = gy.along_c != 4 or gy_room != gy.channels
    gy_by_row, gy_by_column = (gy.width * gy_room * 4, gy_room * 4) if gy_copied else (gy.along_h, gy.along_w)
    beside = Cut(gy, gy.height, gy.width, 1, 1, strips.images, strips.rows, strips.bands, strips.strips, int(gy_copied), 0, 0,
                 strips.rows, gy.width, gy_room, strips.rows * gy_by_row if gy_copied else gy.along_n, gy_by_row, gy_by_column)

    channel = [0] if alike else range(inputs)
    rows = [tap.row * strips.by_row + tap.column * strips.by_column + c * 4 for tap in taps for c in channel]
    rows += rows[-1:] * (-len(rows) % ROWS)
    over_images = strips.images > gy.width                      # whichever makes the longer runs
    i, y, x = (index.reshape(-1) for index in np.indices((1, strips.rows, gy.width) if over_images else (strips.images, strips.rows, 1)))
    count = len(taps) * inputs
    tables = [
        np.array([rows, [min(k, count - 1) * outputs * 4 for k in range(len(rows))]], np.int64),
        np.array(i * strips.by_image + y * strips.step_h * strips.by_row + x * strips.step_w * strips.by_column, np.int64),
        np.array(i * beside.by_image + y * beside.by_row + x * beside.by_column, np.int64),
    ]
    tiles = len(rows) // ROWS
    tasks = tiles * blocks * (1 if alike else groups)
    parts = min(apart, strips.strips)
    chunks = min(tasks, -(-SUMS // parts))                      # each share of the tasks copies the strips anew
    plan = Pairing(
        strips, beside, address(tables[0]), tables[0][0].nbytes, int(over_images), address(tables[1]), address(tables[2]), tiles,
        outputs, blocks, tasks, BLOCK * 4 if alike else 0, 0 if alike else inputs * 4, count * outputs * 4, numbers, parts, chunks,
        strips.size * 4, strips.size + beside.size + BLOCK, parts * chunks, gy.n * gy.height * gy.width * tasks * ROWS * BLOCK)
    return plan, tables
