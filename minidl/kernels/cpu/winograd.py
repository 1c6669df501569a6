"""Convolution of 3 x 3 filters with a quarter of the multiplications: Winograd's F(4 x 4, 3 x 3).

Sixteen outputs, a tile of 4 x 4, depend on 6 x 6 numbers of the image. Polynomials tell how to get them from 36 products instead of
144: the patch and the filter are transformed, multiplied number by number, and the products transformed back,

    y = A^T [ (G w G^T) * (B^T d B) ] A

with small constant matrices, so that over many tiles and channels the products are 36 products of matrices. Lavin and Gray,
arXiv:1509.09308. The transforms add numbers of different size: rounding errors are about ten times those of the direct sum, some 1e-5
of the largest output. Where that matters, algorithm="direct" does without.

Images go through in strips as in convolution.py, each in scratch memory: transformed, multiplied by the register tile, transformed back.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from minidl.kernels.cpu.compiled import compiled, inner, run
from minidl.kernels.cpu.lanes import load, splat, store, where
from minidl.kernels.cpu.plans import STRIPS, Images, address
from minidl.kernels.cpu.strips import ZEROS, aligned, fill, starts
from minidl.kernels.cpu.vector import BLOCK, LANES, ROWS, number, put, take, tile
from minidl.kernels.window import Pair

TILES = 48              # tiles of a strip, about: their patches and products, transformed, stay in a second-level cache
VECTOR = 4 * LANES      # bytes

TWO, ONE = tile(2), tile(1)


class Plan(NamedTuple):
    """Strips of tiles. A strip is `images` images, or a band of `tile_rows` rows of tiles of one."""

    image: Images
    top: int            # rows and columns of padding before the image
    left: int
    height: int         # of the output
    width: int
    images: int
    bands: int
    tile_rows: int
    tile_columns: int
    room: int           # numbers of a pixel in the strip: the channels, and zeros up to whole vectors
    out_room: int
    tiles: int          # of a strip, filled up to whole register tiles
    patches: int        # bytes in scratch memory to the transformed patches
    products: int       # to the products
    half_way: int       # to a tile that is half transformed
    rows: int           # the address of the bytes to the rows of a register tile
    places: int
    zero: int           # the address of a 0: there is one run, which begins at once
    out_n: int
    out_h: int
    out_w: int
    inputs: int
    outputs: int
    scratch: int
    strips: int
    chunks: int         # shares of the outputs
    work: int


# One-dimensional transforms of vectors that lie `step` bytes apart, to others that do. The points are 0, 1, -1, 2, -2 and infinity.


@inner
def expand(at, step, to, to_step):
    """B^T d: from the six numbers of a patch's row or column."""
    d0, d1, d2, d3, d4, d5 = six(at, step)
    two, four = splat(np.float32(2)), splat(np.float32(4))
    even, odd = d4 - four * d2, d3 - four * d1
    far, wide = d4 - d2, (d3 - d1) * two
    store(to, LANES, four * (d0 - d2) - d2 + d4)
    store(to + to_step, LANES, even + odd)
    store(to + 2 * to_step, LANES, even - odd)
    store(to + 3 * to_step, LANES, far + wide)
    store(to + 4 * to_step, LANES, far - wide)
    store(to + 5 * to_step, LANES, four * (d1 - d3) - d3 + d5)


@inner
def evaluate(at, step, to, to_step):
    """G g: from the three numbers of a filter's row or column, as coefficients, to the values of a polynomial."""
    g0, g1, g2 = load(at, LANES), load(at + step, LANES), load(at + 2 * step, LANES)
    half, sixth = splat(np.float32(0.5)), splat(np.float32(1 / 6))
    quarter = g0 * half * half
    ends, middle = (g0 + g2) * sixth, g1 * sixth
    outer, twice = (quarter + g2) * sixth, middle * half
    store(to, LANES, quarter)
    store(to + to_step, LANES, splat(np.float32(0)) - ends - middle)
    store(to + 2 * to_step, LANES, middle - ends)
    store(to + 3 * to_step, LANES, outer + twice)
    store(to + 4 * to_step, LANES, outer - twice)
    store(to + 5 * to_step, LANES, g2)


@inner
def contract(at, step):
    """A^T m: from six products to four outputs."""
    m0, m1, m2, m3, m4, m5 = six(at, step)
    four = splat(np.float32(4))
    near, across, far, twice = m1 + m2, m1 - m2, m3 + m4, (m3 - m4) * splat(np.float32(2))
    return m0 + near + far, across + twice, near + four * far, across + four * twice + m5


@inner
def six(at, step):
    return (load(at, LANES), load(at + step, LANES), load(at + 2 * step, LANES), load(at + 3 * step, LANES), load(at + 4 * step, LANES),
            load(at + 5 * step, LANES))


@inner
def above(v):
    """max(v, 0), NaN staying NaN."""
    zero = splat(np.float32(0))
    return where(v < zero, zero, v)


@compiled
def transform_filters(counter, pieces, scratch, w, inputs, outputs, along_input, along_output, first, step, to):
    """G w G^T of every filter: 36 matrices, each in blocks of BLOCK outputs: for each input the outputs side by side.

    first, step: bytes to a filter's first tap, and from it to the next. A piece is a block and 16 inputs.
    """
    shares = (inputs + 15) // 16
    blocks = (outputs + BLOCK - 1) // BLOCK
    while True:
        piece = take(counter)
        if piece >= pieces:
            return
        block, some = piece // shares, piece % shares * 16
        columns = min(BLOCK, outputs - block * BLOCK)
        for i in range(9 * BLOCK):
            put(scratch + i * 4, np.float32(0))
        for c in range(some, min(some + 16, inputs)):
            for j in range(columns):
                source = w + (block * BLOCK + j) * along_output + c * along_input + first
                for t in range(9):
                    put(scratch + (t * BLOCK + j) * 4, number(source + t * step))
            for part in range(0, BLOCK, LANES):
                half_way = scratch + 9 * BLOCK * 4
                for x in range(3):
                    evaluate(scratch + (x * BLOCK + part) * 4, 3 * BLOCK * 4, half_way + x * VECTOR, 3 * VECTOR)
                for y in range(6):
                    evaluate(half_way + y * 3 * VECTOR, VECTOR, to + (((y * 6 * blocks + block) * inputs + c) * BLOCK + part) * 4,
                             blocks * inputs * BLOCK * 4)


@inner
def transform_patches(plan, source, scratch, first_image, first, images, rows):
    """Bring a strip to scratch memory, and transform the patch of each of its tiles: 36 matrices (tiles, channels)."""
    height, width = rows * 4 + 2, plan.tile_columns * 4 + 2
    pixel, line, layer = plan.room * 4, width * plan.room * 4, plan.tiles * plan.room * 4
    half_way = scratch + plan.half_way
    for i in range(images):
        fill(scratch + i * height * line, plan.room, source + (first_image + i) * plan.image.along_n, first * 4 - plan.top, height,
             -plan.left, width, plan.image.height, plan.image.width, plan.image.channels, plan.image.along_c, plan.image.along_h,
             plan.image.along_w)
    for t in range(images * rows * plan.tile_columns):
        y, x = t // plan.tile_columns, t % plan.tile_columns
        corner = scratch + (y // rows * height + y % rows * 4) * line + x * 4 * pixel
        to = scratch + plan.patches + t * pixel
        for c in range(0, plan.room * 4, VECTOR):
            for column in range(6):
                expand(corner + column * pixel + c, line, half_way + column * VECTOR, 6 * VECTOR)
            for row in range(6):
                expand(half_way + row * 6 * VECTOR, VECTOR, to + row * 6 * layer + c, layer)


@compiled
def correlate(counter, pieces, scratch, plan, source, filters, start, out, relu):
    """All of the convolution but the filters' transform. A piece is a strip and a share of the outputs."""
    patches, products, half_way = scratch + plan.patches, scratch + plan.products, scratch + plan.half_way
    blocks = (plan.outputs + BLOCK - 1) // BLOCK
    pixel, layer, out_layer = plan.room * 4, plan.tiles * plan.room * 4, plan.tiles * plan.out_room * 4
    while True:
        piece = take(counter)
        if piece >= pieces:
            return
        strip, chunk = piece // plan.chunks, piece % plan.chunks
        first_image, first = strip // plan.bands * plan.images, strip % plan.bands * plan.tile_rows
        images = min(plan.images, plan.image.n - first_image)
        rows = min(plan.tile_rows, (plan.height + 3) // 4 - first)
        count = images * rows * plan.tile_columns

        first_block, end_block = chunk * blocks // plan.chunks, (chunk + 1) * blocks // plan.chunks
        transform_patches(plan, source, scratch, first_image, first, images, rows)
        for k in range(36):
            for block in range(first_block, end_block):
                right = filters + (k * blocks + block) * plan.inputs * BLOCK * 4
                columns = plan.out_room - block * BLOCK
                at = products + k * out_layer + block * BLOCK * 4
                for t in range(0, count, ROWS):
                    if columns > LANES:
                        TWO(patches + k * layer + t * pixel, plan.rows, right, 1, plan.zero, plan.zero, plan.inputs, 4, BLOCK * 4,
                            plan.zero, at + t * plan.out_room * 4, plan.places, columns, 0, 0)
                    else:
                        ONE(patches + k * layer + t * pixel, plan.rows, right, 1, plan.zero, plan.zero, plan.inputs, 4, BLOCK * 4,
                            plan.zero, at + t * plan.out_room * 4, plan.places, columns, 0, 0)

        for t in range(count):
            y, x = t // plan.tile_columns, t % plan.tile_columns * 4
            row = (first + y % rows) * 4
            to = out + (first_image + y // rows) * plan.out_n + row * plan.out_h + x * plan.out_w
            for c in range(first_block * BLOCK, min(end_block * BLOCK, plan.out_room), LANES):
                at = products + (t * plan.out_room + c) * 4
                for column in range(6):
                    v0, v1, v2, v3 = contract(at + column * out_layer, 6 * out_layer)
                    there = half_way + column * VECTOR
                    store(there, LANES, v0)
                    store(there + 6 * VECTOR, LANES, v1)
                    store(there + 12 * VECTOR, LANES, v2)
                    store(there + 18 * VECTOR, LANES, v3)
                begin, rest = load(start + c * 4, LANES), plan.outputs - c
                for i in range(min(4, plan.height - row)):
                    v0, v1, v2, v3 = contract(half_way + i * 6 * VECTOR, VECTOR)
                    v0, v1, v2, v3 = v0 + begin, v1 + begin, v2 + begin, v3 + begin
                    if relu:
                        v0, v1, v2, v3 = above(v0), above(v1), above(v2), above(v3)
                    there = to + i * plan.out_h + c * 4
                    store(there, rest, v0)
                    if x + 1 < plan.width:
                        store(there + plan.out_w, rest, v1)
                    if x + 2 < plan.width:
                        store(there + 2 * plan.out_w, rest, v2)
                    if x + 3 < plan.width:
                        store(there + 3 * plan.out_w, rest, v3)


@functools.lru_cache(maxsize=512)
def plan_of(image: Images, size: Pair, padding: Pair, out: tuple[int, int, int], outputs: int,
            some: int = TILES) -> tuple[Plan, list[np.ndarray]]:
    """A plan for `correlate`, and the tables that it names.

    size: (H, W) of the output. out: bytes from one image, row and column of it to the next. some: tiles of a strip, about.
    """
    tall, wide = -(-size[0] // 4), -(-size[1] // 4)
    enough = max(-(-image.n // STRIPS), -(-2 * ROWS // (tall * wide)))      # images, for as many strips and for whole register tiles
    images = max(1, min(some // (tall * wide), enough, image.n))
    rows = tall if images > 1 else max(1, min(tall, some // wide))
    bands = -(-tall // rows)
    rows = -(-tall // bands)
    room, out_room = -(-image.channels // LANES) * LANES, -(-outputs // LANES) * LANES
    strips = -(-image.n // images) * bands
    chunks = max(1, min(-(-8 // strips), outputs // 256))       # where there are few strips; each share transforms the patches anew
    tiles = -(-images * rows * wide // ROWS) * ROWS
    patches = images * (rows * 4 + 2) * (wide * 4 + 2) * room
    products = patches + 36 * tiles * room
    half_way = products + 36 * tiles * out_room
    blocks = -(-outputs // BLOCK)
    tables = [np.arange(ROWS, dtype=np.int64) * (room * 4), np.arange(ROWS, dtype=np.int64) * (out_room * 4)]
    plan = Plan(image, *padding, *size, images, bands, rows, wide, room, out_room, tiles, patches * 4, products * 4, half_way * 4,
                address(tables[0]), address(tables[1]), address(ZEROS), *out, image.channels, outputs, half_way + 36 * LANES,
                strips, chunks, image.n * tall * wide * 36 * image.channels * blocks * BLOCK)
    return plan, tables


def slide(image: np.ndarray, w: np.ndarray, out: np.ndarray, padding: Pair, turned: bool, b: np.ndarray | None, relu: bool) -> None:
    """Correlate images with filters of 3 x 3, into `out`. turned: from the filters' outputs to their inputs, taps in reverse."""
    image = aligned(image)
    by_o, by_i, by_h, by_w = w.strides
    if by_h != 3 * by_w:
        w = np.ascontiguousarray(w)
        by_o, by_i, by_h, by_w = w.strides
    inputs, outputs = image.shape[1], out.shape[1]
    filters = np.empty(36 * -(-outputs // BLOCK) * BLOCK * inputs, np.float32)
    along = (by_o, by_i, 8 * by_w, -by_w) if turned else (by_i, by_o, 0, by_w)
    run(transform_filters, -(-outputs // BLOCK) * -(-inputs // 16), 100 * w.size, 9 * BLOCK + 18 * LANES, address(w), inputs, outputs,
        *along, address(filters))
    n, _, h, w_ = out.strides
    plan, _ = plan_of(Images.of(image), out.shape[2:], padding, (n, h, w_), outputs)
    run(correlate, plan.strips * plan.chunks, plan.work, plan.scratch, plan, address(image), address(filters), address(starts(b, outputs, 1)),
        address(out), int(relu))
