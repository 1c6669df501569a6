"""Convolution of 3 x 3 filters with a quarter of the multiplications: Winograd's F(4 x 4, 3 x 3).

Sixteen outputs, a tile of 4 x 4, depend on 6 x 6 numbers of the image. Polynomials tell how to get them from 36 products instead of
144: the patch and the filter are transformed, multiplied number by number, and the products transformed back,

    y = A^T [ (G w G^T) * (B^T d B) ] A

with small constant matrices, so that over many tiles and channels the products are 36 products of matrices. Lavin and Gray,
arXiv:1509.09308. The transforms add numbers of different size: rounding errors are about ten times those of the direct sum, some 1e-5
of the largest output. Where that matters, algorithm="direct" does without.

Images go through in strips (strips.py), each in scratch memory: transformed, multiplied by the register tile, transformed back.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from minidl.kernels.cpu.compiled import address, compiled, inlined, inner, run
from minidl.kernels.cpu.lanes import load, splat, store, where
from minidl.kernels.cpu.plans import STRIPS, Images
from minidl.kernels.cpu.strips import ZEROS, aligned, fill, starts
from minidl.kernels.cpu.vector import BLOCK, LANES, ROWS, clear, number, put, take, tile
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
    places: int         # and to their places among products of all outputs, and of one block
    block_places: int
    zero: int           # the address of a 0: there is one run, which begins at once
    out_n: int
    out_h: int
    out_w: int
    inputs: int
    outputs: int
    scratch: int
    strips: int
    all_tiles: int
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
def evaluate(g0, g1, g2, g3, last, to, to_step):
    """G g: from the coefficients of a polynomial to its values at the points. last: the highest coefficient, its value at infinity."""
    half, sixth, four = splat(np.float32(0.5)), splat(np.float32(1 / 6)), splat(np.float32(4))
    quarter = g0 * half * half
    ends, middle = (g0 + g2) * sixth, (g1 + g3) * sixth
    outer, twice = (quarter + g2) * sixth, (g1 + four * g3) * half * sixth
    store(to, LANES, quarter)
    store(to + to_step, LANES, splat(np.float32(0)) - ends - middle)
    store(to + 2 * to_step, LANES, middle - ends)
    store(to + 3 * to_step, LANES, outer + twice)
    store(to + 4 * to_step, LANES, outer - twice)
    store(to + 5 * to_step, LANES, last)


@inner
def evaluate_filter(at, step, to, to_step):
    """The three numbers of a filter's row or column at the points."""
    g2 = load(at + 2 * step, LANES)
    evaluate(load(at, LANES), load(at + step, LANES), g2, splat(np.float32(0)), g2, to, to_step)


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


# Parts of the kernels


@inlined
def tiles_of(plan, strip):
    """What a strip is made of: its first image and row of tiles, and how many there are of either."""
    first_image, first = strip // plan.bands * plan.images, strip % plan.bands * plan.tile_rows
    return first_image, first, min(plan.images, plan.image.n - first_image), min(plan.tile_rows, (plan.height + 3) // 4 - first)


@inner
def transform_filters_of(block, some, end, w, inputs, outputs, along_input, along_output, first, step, scratch, to, matrix):
    """G w G^T of a block of BLOCK outputs, for the inputs from `some` to `end`: for each input the outputs side by side, zeros if there
    are none. matrix: bytes from one of the 36 matrices to the next.
    """
    columns = min(BLOCK, outputs - block * BLOCK)
    half_way = scratch + 9 * BLOCK * 4
    clear(scratch, 9 * BLOCK * 4)
    for c in range(some, end):
        for j in range(columns):
            source = w + (block * BLOCK + j) * along_output + c * along_input + first
            for t in range(9):
                put(scratch + (t * BLOCK + j) * 4, number(source + t * step))
        for part in range(0, BLOCK, LANES):
            for x in range(3):
                evaluate_filter(scratch + (x * BLOCK + part) * 4, 3 * BLOCK * 4, half_way + x * VECTOR, 3 * VECTOR)
            for y in range(6):
                evaluate_filter(half_way + y * 3 * VECTOR, VECTOR, to + y * 6 * matrix + (c * BLOCK + part) * 4, matrix)


@inner
def transform_patches(plan, source, strip, half_way, to, layer, first_image, first, images, rows):
    """Bring a strip to scratch memory, and transform the patch of each of its tiles: 36 matrices (tiles, channels), `layer` bytes apart."""
    height, width = rows * 4 + 2, plan.tile_columns * 4 + 2
    pixel, line = plan.room * 4, width * plan.room * 4
    for i in range(images):
        fill(strip + i * height * line, plan.room, source + (first_image + i) * plan.image.along_n, first * 4 - plan.top, height,
             -plan.left, width, plan.image.height, plan.image.width, plan.image.channels, plan.image.along_c, plan.image.along_h,
             plan.image.along_w)
    for t in range(images * rows * plan.tile_columns):
        y, x = t // plan.tile_columns, t % plan.tile_columns
        corner = strip + (y // rows * height + y % rows * 4) * line + x * 4 * pixel
        for c in range(0, pixel, VECTOR):
            for column in range(6):
                expand(corner + column * pixel + c, line, half_way + column * VECTOR, 6 * VECTOR)
            for row in range(6):
                expand(half_way + row * 6 * VECTOR, VECTOR, to + t * pixel + row * 6 * layer + c, layer)


@inner
def multiply(plan, patches, layer, filters, matrix, products, out_layer, out_pixel, places, count, columns):
    """Of some tiles and a block of outputs: 36 products of matrices."""
    for k in range(36):
        left, right, at = patches + k * layer, filters + k * matrix, products + k * out_layer
        for t in range(0, count, ROWS):
            if columns > LANES:
                TWO(left + t * plan.room * 4, plan.rows, right, 1, plan.zero, plan.zero, plan.inputs, 4, BLOCK * 4, plan.zero,
                    at + t * out_pixel, places, columns, 0, 0)
            else:
                ONE(left + t * plan.room * 4, plan.rows, right, 1, plan.zero, plan.zero, plan.inputs, 4, BLOCK * 4, plan.zero,
                    at + t * out_pixel, places, columns, 0, 0)


@inner
def write_back(plan, t, products, out_layer, c, start, half_way, out, relu):
    """Transform the products of a tile back, for a vector of outputs from c on, and write them where they are inside the image.

    t: the tile's number in the batch.
    """
    tall = (plan.height + 3) // 4
    image, row, x = t // (tall * plan.tile_columns), t // plan.tile_columns % tall * 4, t % plan.tile_columns * 4
    to = out + image * plan.out_n + row * plan.out_h + x * plan.out_w + c * 4
    for column in range(6):
        v0, v1, v2, v3 = contract(products + column * out_layer, 6 * out_layer)
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
        there = to + i * plan.out_h
        store(there, rest, v0)
        if x + 1 < plan.width:
            store(there + plan.out_w, rest, v1)
        if x + 2 < plan.width:
            store(there + 2 * plan.out_w, rest, v2)
        if x + 3 < plan.width:
            store(there + 3 * plan.out_w, rest, v3)


# Many tiles, few filters: the filters are transformed once, and tiles a strip at a time


@compiled
def transform_filters(counter, pieces, scratch, w, inputs, outputs, along_input, along_output, first, step, to):
    """G w G^T of every filter: 36 matrices, each in blocks. A piece is a block and 16 inputs.

    first, step: bytes to a filter's first tap, and from it to the next.
    """
    shares = (inputs + 15) // 16
    blocks = (outputs + BLOCK - 1) // BLOCK
    while True:
        piece = take(counter)
        if piece >= pieces:
            return
        block, some = piece // shares, piece % shares * 16
        transform_filters_of(block, some, min(some + 16, inputs), w, inputs, outputs, along_input, along_output, first, step, scratch,
                             to + block * inputs * BLOCK * 4, blocks * inputs * BLOCK * 4)


@compiled
def correlate(counter, pieces, scratch, plan, source, filters, start, out, relu):
    """All of the convolution but the filters' transform. A piece is a strip."""
    patches, products, half_way = scratch + plan.patches, scratch + plan.products, scratch + plan.half_way
    blocks, block_bytes = (plan.outputs + BLOCK - 1) // BLOCK, plan.inputs * BLOCK * 4
    layer, out_pixel, out_layer = plan.tiles * plan.room * 4, plan.out_room * 4, plan.tiles * plan.out_room * 4
    while True:
        piece = take(counter)
        if piece >= pieces:
            return
        first_image, first, images, rows = tiles_of(plan, piece)
        count = images * rows * plan.tile_columns
        transform_patches(plan, source, scratch, half_way, patches, layer, first_image, first, images, rows)
        for block in range(blocks):
            multiply(plan, patches, layer, filters + block * block_bytes, blocks * block_bytes, products + block * BLOCK * 4, out_layer,
                     out_pixel, plan.places, count, plan.out_room - block * BLOCK)
        before = (first_image * ((plan.height + 3) // 4) + first) * plan.tile_columns
        for t in range(count):
            for c in range(0, plan.out_room, LANES):
                write_back(plan, before + t, products + t * out_pixel + c * 4, out_layer, c, start, half_way, out, relu)


# Few tiles, many filters: the tiles are transformed once, and filters a block at a time


@compiled
def transform_images(counter, pieces, scratch, plan, source, to, layer):
    """The patches of all tiles: 36 matrices (tiles, channels), `layer` bytes apart. A piece is a strip."""
    while True:
        piece = take(counter)
        if piece >= pieces:
            return
        first_image, first, images, rows = tiles_of(plan, piece)
        before = (first_image * ((plan.height + 3) // 4) + first) * plan.tile_columns
        transform_patches(plan, source, scratch, scratch + plan.half_way, to + before * plan.room * 4, layer, first_image, first, images,
                          rows)


@compiled
def correlate_blocks(counter, pieces, scratch, plan, patches, layer, w, along_input, along_output, first, step, start, out, relu):
    """All of the convolution but the images' transform. A piece is a block of outputs."""
    matrix = plan.inputs * BLOCK * 4
    products = scratch + 36 * matrix
    half_way = products + 36 * TILES * BLOCK * 4
    while True:
        piece = take(counter)
        if piece >= pieces:
            return
        transform_filters_of(piece, 0, plan.inputs, w, plan.inputs, plan.outputs, along_input, along_output, first, step, products, scratch,
                             matrix)
        columns = min(BLOCK, plan.out_room - piece * BLOCK)
        for before in range(0, plan.all_tiles, TILES):
            count = min(TILES, plan.all_tiles - before)
            multiply(plan, patches + before * plan.room * 4, layer, scratch, matrix, products, TILES * BLOCK * 4, BLOCK * 4,
                     plan.block_places, count, columns)
            for t in range(count):
                for c in range(0, columns, LANES):
                    write_back(plan, before + t, products + t * BLOCK * 4 + c * 4, TILES * BLOCK * 4, piece * BLOCK + c, start, half_way,
                               out, relu)


@functools.lru_cache(maxsize=128)
def plan_of(image: Images, size: Pair, padding: Pair, out: tuple[int, int, int], outputs: int,
            some: int = TILES) -> tuple[Plan, list[np.ndarray]]:
    """A plan, and the tables that it names.

    size: (H, W) of the output. out: bytes from one image, row and column of it to the next. some: tiles of a strip, about.
    """
    tall, wide = -(-size[0] // 4), -(-size[1] // 4)
    enough = max(-(-image.n // STRIPS), -(-2 * ROWS // (tall * wide)))      # images, for as many strips and for whole register tiles
    images = max(1, min(some // (tall * wide), enough, image.n))
    rows = tall if images > 1 else max(1, min(tall, some // wide))
    bands = -(-tall // rows)
    rows = -(-tall // bands)
    room, out_room = -(-image.channels // LANES) * LANES, -(-outputs // LANES) * LANES
    tiles = -(-images * rows * wide // ROWS) * ROWS
    patches = images * (rows * 4 + 2) * (wide * 4 + 2) * room
    products = patches + 36 * tiles * room
    half_way = products + 36 * tiles * out_room
    tables = [np.arange(ROWS, dtype=np.int64) * (step * 4) for step in (room, out_room, BLOCK)]
    plan = Plan(image, *padding, *size, images, bands, rows, wide, room, out_room, tiles, patches * 4, products * 4, half_way * 4,
                address(tables[0]), address(tables[1]), address(tables[2]), address(ZEROS), *out, image.channels, outputs,
                half_way + 36 * LANES, -(-image.n // images) * bands, image.n * tall * wide,
                image.n * tall * wide * 36 * image.channels * -(-outputs // BLOCK) * BLOCK)
    return plan, tables


def slide(image: np.ndarray, w: np.ndarray, out: np.ndarray, padding: Pair, turned: bool, b: np.ndarray | None, relu: bool) -> None:
    """Correlate images with filters of 3 x 3, into `out`. turned: from the filters' outputs to their inputs, taps in reverse."""
    image = aligned(image)
    by_o, by_i, by_h, by_w = w.strides
    if by_h != 3 * by_w:
        w = np.ascontiguousarray(w)
        by_o, by_i, by_h, by_w = w.strides
    inputs, outputs = image.shape[1], out.shape[1]
    filters = (address(w), by_o, by_i, 8 * by_w, -by_w) if turned else (address(w), by_i, by_o, 0, by_w)
    start = starts(b, outputs, 1)
    n, _, h, column = out.strides
    plan, _ = plan_of(Images.of(image), out.shape[2:], padding, (n, h, column), outputs)
    blocks = -(-outputs // BLOCK)
    if plan.all_tiles < outputs:
        patches, layer = transformed(plan, image)
        run(correlate_blocks, blocks, plan.work, 36 * (inputs + TILES) * BLOCK + 9 * BLOCK + 36 * LANES, plan, address(patches), layer,
            *filters, address(start), address(out), int(relu))
    else:
        many = np.empty(36 * blocks * BLOCK * inputs, np.float32)
        run(transform_filters, blocks * -(-inputs // 16), 100 * w.size, 9 * BLOCK + 18 * LANES, *filters[:1], inputs, outputs, *filters[1:],
            address(many))
        run(correlate, plan.strips, plan.work, plan.scratch, plan, address(image), address(many), address(start), address(out), int(relu))


def transformed(plan: Plan, image: np.ndarray) -> tuple[np.ndarray, int]:
    """The patches of all tiles, transformed, and the bytes from one of their 36 matrices to the next."""
    patches = np.empty((36 * plan.all_tiles + ROWS) * plan.room, np.float32)        # a register tile may read beyond the end
    layer = plan.all_tiles * plan.room * 4
    run(transform_images, plan.strips, 100 * image.size, plan.scratch, plan, address(image), address(patches), layer)
    return patches, layer
