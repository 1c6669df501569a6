"""Convolution without columns: each output is summed up in registers, straight from the image.

`correlate` slides taps over images: the forward pass with the filter's taps, and the gradient by the input with the same taps turned
round, once for each remainder that a position can have by the stride. `pair_up` multiplies every number under the window with the
gradients at its output: the gradient by the filters. `pack` brings filters into the order in which they are read, and `collect` sums
into the order of filters. All multiply by the register tile of vector.py. Sums over strips have a fixed number of parts.
"""

from __future__ import annotations

import functools

import numpy as np

from minidl.kernels.cpu.compiled import address, compiled, run, variant
from minidl.kernels.cpu.plans import Images, Tap, correlation, is_alike, pairing, taps_of, ways_back
from minidl.kernels.cpu.strips import ZEROS, aligned, bring, starts, strip_of
from minidl.kernels.cpu.vector import BLOCK, LANES, ROWS, clear, entry, number, put, take, tile
from minidl.kernels.window import Pair, Window

TWO, ONE = tile(2), tile(1)                                     # of two vectors of outputs, and of one
TWO_ALIKE, ONE_ALIKE = tile(2, lanewise=True), tile(1, lanewise=True)


@compiled
def pack(counter, pieces, scratch, w, taps, count, inputs, outputs, along_input, along_output, along_group, blocks, to):
    """Filters in blocks of BLOCK outputs: for each block and tap and input the outputs side by side, zeros where there are none.

    taps: the address of the bytes from a filter's first number to each tap's. along_...: bytes from one input, output, group to the next.
    A piece is a block of a group.
    """
    while True:
        piece = take(counter)
        if piece >= pieces:
            return
        group, block = piece // blocks, piece % blocks
        source = w + group * along_group + block * BLOCK * along_output
        here = to + piece * count * inputs * BLOCK * 4
        columns = min(BLOCK, outputs - block * BLOCK)
        if columns < BLOCK:
            clear(here, count * inputs * BLOCK * 4)
        for some in range(0, inputs, 16):                       # a cache's worth of the block at a time
            for j in range(columns):
                for i in range(some, min(some + 16, inputs)):
                    at = source + j * along_output + i * along_input
                    for t in range(count):
                        put(here + ((t * inputs + i) * BLOCK + j) * 4, number(at + entry(taps + 8 * t)))


# Compiled: products


@compiled
def correlate(counter, pieces, scratch, plan, image, packed, start, out, relu):
    """Slide taps over images: every output is the sum, over taps and input channels, of an image's number times a filter's.

    plan: a Correlation. start: a number for each output, from which its sum begins. A piece is a strip and a share of the outputs.
    """
    cut = plan.cut
    while True:
        piece = take(counter)
        if piece >= pieces:
            return
        strip, chunk = piece // plan.chunks, piece % plan.chunks
        first_image, first_row, images, rows = strip_of(cut, strip)
        count = images * rows * cut.out_width
        positions = plan.positions if images == cut.images and rows == cut.rows else plan.last_positions
        left = bring(cut, image, scratch, first_image, first_row, images)
        to = out + first_image * plan.out_n + first_row * plan.out_h
        for block in range(chunk * plan.all_blocks // plan.chunks, (chunk + 1) * plan.all_blocks // plan.chunks):
            group, first = block // plan.blocks, block % plan.blocks * BLOCK
            columns = plan.outputs - first
            at_left = left + block * plan.by_block + group * plan.by_group
            right, begin, at = packed + block * plan.block_bytes, start + block * BLOCK * 4, to + (group * plan.outputs + first) * 4
            for t in range(0, count, ROWS):
                rows_of_tile = positions + t * 8
                if columns > LANES:
                    TWO(at_left, rows_of_tile, right, plan.runs, plan.left_offsets, plan.right_offsets, plan.length, 4,
                        BLOCK * 4, begin, at, rows_of_tile + plan.places, columns, 0, relu)
                else:
                    ONE(at_left, rows_of_tile, right, plan.runs, plan.left_offsets, plan.right_offsets, plan.length, 4,
                        BLOCK * 4, begin, at, rows_of_tile + plan.places, columns, 0, relu)


# the same where each output sees one channel, its own: depthwise convolution
correlate_alike = variant(correlate, "correlate_alike", TWO=TWO_ALIKE, ONE=ONE_ALIKE)


@compiled
def pair_up(counter, pieces, scratch, plan, image, gy, zeros, out):
    """For each number under the window and each output: the sum over all positions of the number times the gradient there.

    plan: a Pairing. out: `parts` sums, each (groups, taps, inputs, outputs). A piece is a part and a share of the result's numbers.
    """
    cut = plan.cut
    while True:
        piece = take(counter)
        if piece >= pieces:
            return
        part, chunk = piece // plan.chunks, piece % plan.chunks
        first_strip = part * cut.strips // plan.parts
        for strip in range(first_strip, (part + 1) * cut.strips // plan.parts):
            first_image, first_row, images, rows = strip_of(cut, strip)
            left = bring(cut, image, scratch, first_image, first_row, images)
            right = bring(plan.gy, gy, scratch + plan.beside, first_image, first_row, images)
            add = 0 if strip == first_strip else 1
            runs, length = images * rows, cut.out_width
            left_step, right_step = cut.step_w * cut.by_column, plan.gy.by_column
            if plan.over_images:
                runs, length, left_step, right_step = rows * cut.out_width, images, cut.by_image, plan.gy.by_image
            for task in range(chunk * plan.tasks // plan.chunks, (chunk + 1) * plan.tasks // plan.chunks):
                block, some = task // plan.tiles, plan.rows + task % plan.tiles * ROWS * 8
                group, first = block // plan.blocks, block % plan.blocks * BLOCK
                columns = plan.outputs - first
                at_left = left + block * plan.by_block + group * plan.by_group
                at_right = right + (group * plan.outputs + first) * 4
                at = out + part * plan.numbers * 4 + group * plan.group_bytes + first * 4
                if columns > LANES:
                    TWO(at_left, some, at_right, runs, plan.left_offsets, plan.right_offsets, length, left_step, right_step,
                        zeros, at, some + plan.places, columns, add, 0)
                else:
                    ONE(at_left, some, at_right, runs, plan.left_offsets, plan.right_offsets, length, left_step, right_step,
                        zeros, at, some + plan.places, columns, add, 0)


# the same where each output sees one channel, its own: the sums are (taps, channels)
pair_up_alike = variant(pair_up, "pair_up_alike", TWO=TWO_ALIKE, ONE=ONE_ALIKE)


@compiled
def collect(counter, pieces, scratch, sums, parts, numbers, groups, count, inputs, outputs, to):
    """Add the parts in their order, and bring (groups, taps, inputs, outputs) into the order of filters: (groups, outputs, inputs, taps).

    A piece is 16 outputs of a group.
    """
    shares = (outputs + 15) // 16
    while True:
        piece = take(counter)
        if piece >= pieces:
            return
        group, first = piece // shares, piece % shares * 16
        for some in range(0, inputs, 16):                       # so many that what is read stays in the cache from output to output
            for o in range(first, min(first + 16, outputs)):
                there = to + ((group * outputs + o) * inputs + some) * count * 4
                for c in range(some, min(some + 16, inputs)):
                    for t in range(count):
                        source = sums + (((group * count + t) * inputs + c) * outputs + o) * 4
                        total = number(source)
                        for part in range(1, parts):
                            total += number(source + part * numbers * 4)
                        put(there, total)
                        there += 4


# For arrays


def forward(x: np.ndarray, w: np.ndarray, y: np.ndarray, window: Window, groups: int, b: np.ndarray | None, relu: bool) -> None:
    """Convolution of x with w, into y, which lies channels last."""
    count = abreast(window, len(w), y.shape[3]) if groups == 1 else 1
    if count > 1:
        window, w, y, b = widened(count, window, w, y, b)
    slide_taps(x, w, taps_of(window), y, y.shape[2:], window.stride, window.padding, len(w) // groups, groups, False, b, relu)


def backward(gy: np.ndarray, w: np.ndarray, gx: np.ndarray, window: Window, groups: int, b: np.ndarray | None) -> None:
    """The gradient by the input, into gx, which lies channels last."""
    turned = Window(window.kernel, padding=(window.kernel[0] - 1 - window.padding[0], window.kernel[1] - 1 - window.padding[1]))
    alone = window.stride == window.dilation == (1, 1) and groups == 1 and min(turned.padding) >= 0
    if alone and abreast(turned, w.shape[1], gx.shape[3]) > 1:
        forward(gy, w.swapaxes(0, 1)[:, :, ::-1, ::-1], gx, turned, 1, b, False)
        return
    for way in ways_back(window, gx.shape[2:]):
        part = gx[:, :, way.first[0]::window.stride[0], way.first[1]::window.stride[1]]
        if not way.taps:
            part[...] = 0 if b is None else b.reshape(-1, 1, 1)
        else:
            slide_taps(gy, w, way.taps, part, way.positions, (1, 1), (way.top, way.left), w.shape[1], groups, True, b, False)


def abreast(window: Window, outputs: int, width: int) -> int:
    """How many neighbouring positions to compute as if they were outputs of one: few outputs leave most of a vector unused.

    Each position more widens the filter by a stride, with zeros for the others. What counts is the share of the products that are used.
    """
    def used(count: int) -> float:
        lanes = -(-count * outputs // LANES) * LANES
        taps = window.kernel[1] / (window.kernel[1] + (count - 1) * window.stride[1])
        return count * outputs / lanes * taps * (1.25 if lanes > LANES else 1)      # two vectors at once are faster

    if window.dilation[1] > 1 or 2 * outputs > BLOCK:
        return 1
    return max((count for count in range(1, BLOCK // outputs + 1) if width % count == 0), key=used)


def widened(count: int, window: Window, w: np.ndarray, y: np.ndarray,
            b: np.ndarray | None) -> tuple[Window, np.ndarray, np.ndarray, np.ndarray | None]:
    """The same convolution with so many neighbouring positions as outputs of one: its window, filters, view of the result, and bias."""
    outputs, inputs, height, width = w.shape
    step = window.stride[1]
    wide = np.zeros((count, outputs, inputs, height, width + (count - 1) * step), np.float32)
    for i in range(count):
        wide[i, ..., i * step:i * step + width] = w
    n, _, rows, columns = y.shape
    together = y.transpose(0, 2, 3, 1).reshape(n, rows, columns // count, count * outputs).transpose(0, 3, 1, 2)
    return (Window((height, wide.shape[-1]), (window.stride[0], step * count), window.padding, window.dilation),
            wide.reshape(count * outputs, *wide.shape[2:]), together, None if b is None else np.tile(b, count))


def weights(x: np.ndarray, gy: np.ndarray, gw: np.ndarray, window: Window, groups: int) -> None:
    """The gradient by the filters, into gw, which is contiguous."""
    count = abreast(window, len(gw), gy.shape[3]) if groups == 1 else 1
    if count > 1:                                               # each filter is the sum of what it is at each of the positions
        wider, wide, together, _ = widened(count, window, np.zeros_like(gw), gy, None)
        weights(x, together, wide, wider, 1)
        starts = range(0, count * window.stride[1], window.stride[1])
        gw[...] = sum(part[..., i:i + gw.shape[-1]] for i, part in zip(starts, wide.reshape(count, *gw.shape[:-1], -1)))
        return
    outputs, inputs = gy.shape[1] // groups, x.shape[1] // groups
    x, gy = aligned(x), aligned(gy)
    plan, _ = pairing(Images.of(x), Images.of(gy), window, groups)
    sums = np.empty((plan.parts, plan.numbers), np.float32)
    alike = is_alike(x.shape[1], outputs, groups)
    run(pair_up_alike if alike else pair_up, plan.pieces, plan.work, plan.scratch, plan, address(x), address(gy), address(ZEROS),
        address(sums))
    if alike:
        groups, inputs, outputs = 1, 1, groups
    run(collect, groups * -(-outputs // 16), 4 * sums.size, 0, address(sums), plan.parts, plan.numbers, groups,
        window.kernel[0] * window.kernel[1], inputs, outputs, address(gw))


def slide_taps(image: np.ndarray, w: np.ndarray, taps: tuple[Tap, ...], out: np.ndarray, positions: Pair, step: Pair, padding: Pair,
               outputs: int, groups: int, back: bool, b: np.ndarray | None, relu: bool) -> None:
    """Pack the filters for these taps, and correlate. back: from the outputs of the filters to their inputs."""
    image = aligned(image)
    n, _, h, c = out.strides
    plan, _ = correlation(Images.of(image), positions, step, *padding, taps, (n, h, c), outputs, groups)
    packed = np.empty(plan.all_blocks * plan.block_bytes // 4, np.float32)
    _pack(w, taps, outputs, groups, back, packed)
    alike = is_alike(image.shape[1], outputs, groups)
    start = starts(b, *((groups, 1) if alike else (outputs, groups)))
    kernel = correlate_alike if alike else correlate
    run(kernel, plan.pieces, plan.work, plan.scratch, plan, address(image), address(packed), address(start), address(out), int(relu))


def _pack(w: np.ndarray, taps: tuple[Tap, ...], outputs: int, groups: int, back: bool, packed: np.ndarray) -> None:
    by_o, by_i, by_h, by_w = w.strides
    inputs = w.shape[0] // groups if back else w.shape[1]
    by_input, by_output, by_group = (by_o, by_i, by_o * inputs) if back else (by_i, by_o, by_o * outputs)
    if outputs == inputs == 1 and groups > 1:                   # depthwise: the groups are the outputs of one block
        inputs, outputs, groups, by_output = 1, groups, 1, by_o
    offsets = tap_offsets(taps, by_h, by_w)
    blocks = -(-outputs // BLOCK)
    run(pack, groups * blocks, 4 * w.size, 0, address(w), address(offsets), len(taps), inputs, outputs, by_input, by_output, by_group,
        blocks, address(packed))


@functools.lru_cache(maxsize=128)
def tap_offsets(taps: tuple[Tap, ...], by_h: int, by_w: int) -> np.ndarray:
    return np.array([tap.at[0] * by_h + tap.at[1] * by_w for tap in taps], np.int64)
