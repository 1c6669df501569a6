"""The gradient of a 3 x 3 convolution by its filters, by Winograd: F(3 x 3, 4 x 4), with a quarter of the multiplications too.

It is a convolution of the image with the gradient at the output, cut into tiles of 4 x 4: each gives 3 x 3 sums from 6 x 6 numbers of
the image. The points are those of winograd.py, so the patches are transformed as there; the gradients take the part of the filters.
Over all tiles the products are sums of products, 36 matrices (inputs, outputs), which are transformed back at the very end.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from minidl.kernels.cpu.compiled import address, compiled, inner, run
from minidl.kernels.cpu.lanes import load, splat, store
from minidl.kernels.cpu.plans import Images
from minidl.kernels.cpu.strips import aligned, fill
from minidl.kernels.cpu.vector import BLOCK, LANES, ROWS, number, put, take, tile
from minidl.kernels.cpu.winograd import VECTOR, Plan, evaluate, plan_of, six, tiles_of, transform_patches, transformed
from minidl.kernels.window import Pair

TILES = 96              # tiles of a strip, about: more than forward, because each strip reads and writes all sums
SUMS = 8                # sums that are kept apart and added at the end, in this order
APART = 2**21           # numbers that all of them may have together: 8 MB

TWO, ONE = tile(2), tile(1)


class Sums(NamedTuple):
    """Beside the Plan for the patches: gradients in the same strips, and the sums of their products."""

    gy: Images
    strip: int          # bytes in scratch memory to the strip of gradients
    row_tiles: int      # register tiles that the input channels make
    numbers: int        # of all 36 matrices
    parts: int
    chunks: int         # shares of the tasks; a piece is a part and a share
    rows: int           # the address of the bytes to the rows of a register tile
    scratch: int


@inner
def evaluate_gradients(at, step, to, to_step):
    """The four gradients of a tile's row or column at the points."""
    g3 = load(at + 3 * step, LANES)
    evaluate(load(at, LANES), load(at + step, LANES), load(at + 2 * step, LANES), g3, g3, to, to_step)


@inner
def contract(at, step, to, to_step):
    """A^T m: from six products to the sums at three taps."""
    m0, m1, m2, m3, m4, m5 = six(at, step)
    near, across, far = m1 + m2, m1 - m2, m3 + m4
    store(to, LANES, m0 + near + far)
    store(to + to_step, LANES, across + (m3 - m4) * splat(np.float32(2)))
    store(to + 2 * to_step, LANES, near + splat(np.float32(4)) * far + m5)


@inner
def transform_gradients(plan, more, gy, strip, half_way, to, layer, first_image, first, images, rows):
    """Bring a strip of gradients to scratch memory, and transform each tile: 36 matrices (tiles, outputs), `layer` bytes apart."""
    pixel = plan.out_room * 4
    line = plan.tile_columns * 4 * pixel
    for i in range(images):
        fill(strip + i * rows * 4 * line, plan.out_room, gy + (first_image + i) * more.gy.along_n, first * 4, rows * 4, 0,
             plan.tile_columns * 4, more.gy.height, more.gy.width, more.gy.channels, more.gy.along_c, more.gy.along_h, more.gy.along_w)
    for t in range(images * rows * plan.tile_columns):
        corner = strip + t // plan.tile_columns * 4 * line + t % plan.tile_columns * 4 * pixel
        for c in range(0, pixel, VECTOR):
            for column in range(4):
                evaluate_gradients(corner + column * pixel + c, line, half_way + column * VECTOR, 4 * VECTOR)
            for row in range(6):
                evaluate_gradients(half_way + row * 4 * VECTOR, VECTOR, to + t * pixel + row * 6 * layer + c, layer)


@inner
def write_filters(first, plan, c, products, taps, to):
    """Transform the 36 sums of an input and a vector of outputs from `first` on, and write the filters: (outputs, inputs, 3, 3)."""
    half_way = taps + 9 * VECTOR
    for column in range(6):
        contract(products + column * VECTOR, 6 * VECTOR, half_way + column * VECTOR, 6 * VECTOR)
    for row in range(3):
        contract(half_way + row * 6 * VECTOR, VECTOR, taps + row * 3 * VECTOR, VECTOR)
    for o in range(min(LANES, plan.outputs - first)):
        there = to + ((first + o) * plan.inputs + c) * 36
        for t in range(9):
            put(there + t * 4, number(taps + t * VECTOR + o * 4))


# Many tiles: sums of some strips, and sums of these


@compiled
def pair_up(counter, pieces, scratch, plan, more, source, gy, sums):
    """For each of 36 points, input and output: the sum over tiles of the patch there times the gradient there."""
    half_way, gradients, strip = scratch + plan.half_way, scratch + plan.products, scratch + more.strip
    pixel, layer = plan.room * 4, plan.tiles * plan.room * 4
    out_pixel, out_layer = plan.out_room * 4, plan.tiles * plan.out_room * 4
    blocks = (plan.out_room + BLOCK - 1) // BLOCK
    tasks = 36 * blocks * more.row_tiles
    while True:
        piece = take(counter)
        if piece >= pieces:
            return
        part, chunk = piece // more.chunks, piece % more.chunks
        first_strip = part * plan.strips // more.parts
        for number_of_strip in range(first_strip, (part + 1) * plan.strips // more.parts):
            first_image, first, images, rows = tiles_of(plan, number_of_strip)
            count = images * rows * plan.tile_columns
            transform_patches(plan, source, scratch, half_way, scratch + plan.patches, layer, first_image, first, images, rows)
            transform_gradients(plan, more, gy, strip, half_way, gradients, out_layer, first_image, first, images, rows)

            add = 0 if number_of_strip == first_strip else 1
            for task in range(chunk * tasks // more.chunks, (chunk + 1) * tasks // more.chunks):
                k, block, row_tile = task // more.row_tiles // blocks, task // more.row_tiles % blocks, task % more.row_tiles
                left = scratch + plan.patches + k * layer + row_tile * ROWS * 4
                right = gradients + k * out_layer + block * BLOCK * 4
                at = sums + (part * more.numbers + ((k * more.row_tiles + row_tile) * ROWS * plan.out_room + block * BLOCK)) * 4
                columns = plan.out_room - block * BLOCK
                if columns > LANES:
                    TWO(left, more.rows, right, 1, plan.zero, plan.zero, count, pixel, out_pixel, plan.zero, at, plan.places, columns,
                        add, 0)
                else:
                    ONE(left, more.rows, right, 1, plan.zero, plan.zero, count, pixel, out_pixel, plan.zero, at, plan.places, columns,
                        add, 0)


@compiled
def collect(counter, pieces, scratch, plan, more, sums, to):
    """Add the parts in their order, and transform them back. A piece is a vector of outputs."""
    while True:
        piece = take(counter)
        if piece >= pieces:
            return
        for c in range(plan.inputs):
            for k in range(36):
                at = sums + ((k * more.row_tiles * ROWS + c) * plan.out_room + piece * LANES) * 4
                total = load(at, LANES)
                for part in range(1, more.parts):
                    total = total + load(at + part * more.numbers * 4, LANES)
                store(scratch + k * VECTOR, LANES, total)
            write_filters(piece * LANES, plan, c, scratch, scratch + 36 * VECTOR, to)


# Few tiles: all are transformed, and a block of outputs at a time is summed over them


@compiled
def transform_all_gradients(counter, pieces, scratch, plan, more, gy, to, layer):
    """The gradients of all tiles. A piece is a strip."""
    while True:
        piece = take(counter)
        if piece >= pieces:
            return
        first_image, first, images, rows = tiles_of(plan, piece)
        before = (first_image * ((plan.height + 3) // 4) + first) * plan.tile_columns
        transform_gradients(plan, more, gy, scratch + more.strip, scratch + plan.half_way, to + before * plan.out_room * 4, layer,
                            first_image, first, images, rows)


@compiled
def pair_up_blocks(counter, pieces, scratch, plan, more, patches, layer, gradients, out_layer, to):
    """Sums over all tiles, and filters from them. A piece is a block of outputs."""
    matrix = more.row_tiles * ROWS * BLOCK * 4
    aside = scratch + 36 * matrix
    while True:
        piece = take(counter)
        if piece >= pieces:
            return
        columns = min(BLOCK, plan.out_room - piece * BLOCK)
        for k in range(36):
            for row_tile in range(more.row_tiles):
                left, right = patches + k * layer + row_tile * ROWS * 4, gradients + k * out_layer + piece * BLOCK * 4
                at = scratch + k * matrix + row_tile * ROWS * BLOCK * 4
                if columns > LANES:
                    TWO(left, more.rows, right, 1, plan.zero, plan.zero, plan.all_tiles, plan.room * 4, plan.out_room * 4, plan.zero, at,
                        plan.block_places, columns, 0, 0)
                else:
                    ONE(left, more.rows, right, 1, plan.zero, plan.zero, plan.all_tiles, plan.room * 4, plan.out_room * 4, plan.zero, at,
                        plan.block_places, columns, 0, 0)
        for c in range(plan.inputs):
            for first in range(0, columns, LANES):
                for k in range(36):
                    store(aside + k * VECTOR, LANES, load(scratch + k * matrix + (c * BLOCK + first) * 4, LANES))
                write_filters(piece * BLOCK + first, plan, c, aside, aside + 36 * VECTOR, to)


@functools.lru_cache(maxsize=128)
def plans_of(image: Images, gy: Images, padding: Pair) -> tuple[Plan, Sums, list[np.ndarray]]:
    """Plans for `pair_up`, and the tables that they name."""
    plan, tables = plan_of(image, (gy.height, gy.width), padding, (0, 0, 0), gy.channels, TILES)
    row_tiles = -(-image.channels // ROWS)
    numbers = 36 * row_tiles * ROWS * plan.out_room
    parts = max(1, min(SUMS, plan.strips, APART // numbers))
    table = np.arange(ROWS, dtype=np.int64) * 4
    strip = plan.scratch + ROWS
    more = Sums(gy, strip * 4, row_tiles, numbers, parts, -(-SUMS // parts), address(table),
                strip + plan.images * plan.tile_rows * plan.tile_columns * 16 * plan.out_room)
    return plan, more, [*tables, table]


def weights(x: np.ndarray, gy: np.ndarray, gw: np.ndarray, padding: Pair) -> None:
    """The gradient by the filters, into gw, which is contiguous."""
    x, gy = aligned(x), aligned(gy)
    plan, more, _ = plans_of(Images.of(x), Images.of(gy), padding)
    if plan.all_tiles < plan.outputs:
        patches, layer = transformed(plan, x)
        gradients = np.empty(36 * plan.all_tiles * plan.out_room, np.float32)
        out_layer = plan.all_tiles * plan.out_room * 4
        run(transform_all_gradients, plan.strips, 100 * gy.size, more.scratch, plan, more, address(gy), address(gradients), out_layer)
        run(pair_up_blocks, -(-plan.outputs // BLOCK), plan.work, 36 * more.row_tiles * ROWS * BLOCK + 63 * LANES, plan, more,
            address(patches), layer, address(gradients), out_layer, address(gw))
    else:
        sums = np.empty((more.parts, more.numbers), np.float32)
        run(pair_up, more.parts * more.chunks, plan.work, more.scratch, plan, more, address(x), address(gy), address(sums))
        run(collect, plan.out_room // LANES, 4 * sums.size, 63 * LANES, plan, more, address(sums), address(gw))
