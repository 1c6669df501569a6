"""Products of matrices on the register tile: y = a b, and an affine layer's y = max(a b + bias, 0) in one go.

A thread takes a block of columns of b, packs it so that it is read front to back, and walks over the rows of a with it. a is read where
it lies, by rows or by columns. Unlike a linear algebra library's, these products give the same bits on any number of threads.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from minidl.kernels.cpu.compiled import address, compiled, run
from minidl.kernels.cpu.elementwise import activation as activate
from minidl.kernels.cpu.strips import ZEROS, aligned, starts
from minidl.kernels.cpu.vector import BLOCK, LANES, ROWS, clear, copy, number, put, take, tile, turn
from minidl.kernels.window import Pair

DEPTH = 1024            # terms of a sum at a time: a packed block of them is 128 KB
PIECES = 16             # pieces to cut a product into at least, where there are rows enough
LEAST = 2**20           # multiply-adds; below that the linear algebra library is called, whose calls are cheaper

TWO, ONE = tile(2), tile(1)


class Product(NamedTuple):
    """y (rows, columns) = a (rows, depth) b (depth, columns); steps in bytes."""

    rows: int
    columns: int
    depth: int
    a_row: int
    a_column: int
    b_row: int
    b_column: int
    y_row: int
    blocks: int         # of columns
    share: int          # rows of a piece
    table: int          # the addresses of the bytes to the rows of a register tile: of a,
    places: int         # and of y
    last_table: int     # and of the last tile, which repeats its last row
    last_places: int
    nothing: int        # the address of a 0: there is one run, which begins at once
    pieces: int


@compiled
def multiply(counter, pieces, scratch, plan, a, b, start, y, relu):
    """A piece is a block of columns and a share of the rows. start: a number for each column, from which its sums begin."""
    while True:
        piece = take(counter)
        if piece >= pieces:
            return
        block, first = piece % plan.blocks, piece // plan.blocks * plan.share
        columns = min(BLOCK, plan.columns - block * BLOCK)
        for done in range(0, plan.depth, DEPTH):
            depth = min(DEPTH, plan.depth - done)
            source = b + block * BLOCK * plan.b_column + done * plan.b_row
            if columns < BLOCK:
                clear(scratch, depth * BLOCK * 4)
            if plan.b_column == 4:
                for k in range(depth):
                    copy(scratch + k * BLOCK * 4, source + k * plan.b_row, columns * 4)
            else:
                square = depth // LANES * LANES if plan.b_row == 4 else 0
                for j in range(0, columns // LANES * LANES, LANES):
                    for k in range(0, square, LANES):
                        turn(source + j * plan.b_column + k * 4, plan.b_column, scratch + (k * BLOCK + j) * 4, BLOCK * 4)
                for j in range(columns):
                    for k in range(square if j < columns // LANES * LANES else 0, depth):
                        put(scratch + (k * BLOCK + j) * 4, number(source + j * plan.b_column + k * plan.b_row))

            add, cut = int(done > 0), relu if done + depth == plan.depth else 0
            begin = start + block * BLOCK * 4
            for i in range(first, min(first + plan.share, plan.rows), ROWS):
                whole = i + ROWS <= plan.rows
                table, places = plan.table if whole else plan.last_table, plan.places if whole else plan.last_places
                left, at = a + i * plan.a_row + done * plan.a_column, y + i * plan.y_row + block * BLOCK * 4
                if columns > LANES:
                    TWO(left, table, scratch, 1, plan.nothing, plan.nothing, depth, plan.a_column, BLOCK * 4, begin, at, places, columns,
                        add, cut)
                else:
                    ONE(left, table, scratch, 1, plan.nothing, plan.nothing, depth, plan.a_column, BLOCK * 4, begin, at, places, columns,
                        add, cut)


@functools.lru_cache(maxsize=128)
def plan_of(rows: int, depth: int, columns: int, a: Pair, b: Pair) -> tuple[Product, np.ndarray]:
    """A plan for `multiply`, and the tables that it names. a, b: bytes from one row and column to the next."""
    blocks = -(-columns // BLOCK)
    shares = -(-PIECES // blocks)                               # of the rows; each packs its block of b anew
    share = max(-(-rows // shares), 64)
    share = -(-share // ROWS) * ROWS
    each = np.arange(ROWS)
    last = np.minimum(each, (rows - 1) % ROWS)
    tables = np.array([each * a[0], each * columns * 4, last * a[0], last * columns * 4], np.int64)
    return Product(rows, columns, depth, *a, *b, columns * 4, blocks, share, address(tables[0]), address(tables[1]), address(tables[2]),
                   address(tables[3]), address(ZEROS), blocks * -(-rows // share)), tables


def matmul(a: np.ndarray, b: np.ndarray, dtype: str | None = None) -> Any:
    """See kernels.products.matmul."""
    return product(a, b, None, False) if dtype in (None, "float32") else NotImplemented


def affine(x: np.ndarray, w: np.ndarray, b: np.ndarray | None = None, activation: str | None = None) -> Any:
    """See kernels.products.affine."""
    y = product(x, w, b, activation == "relu")
    return y if y is NotImplemented or activation in (None, "relu") else activate(y, activation)


def affine_weights(x: np.ndarray, gy: np.ndarray) -> Any:
    """See kernels.products.affine_weights."""
    return product(x.T, gy, None, False)


def product(a: np.ndarray, b: np.ndarray, bias: np.ndarray | None, relu: bool) -> Any:
    """a b + bias, cut off at 0 or not; NotImplemented where the linear algebra library is as good."""
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != len(b) or b.dtype != np.float32:
        return NotImplemented
    if LANES < 8 or len(a) < ROWS // 2 or a.size * b.shape[1] < LEAST:
        return NotImplemented
    a, b = aligned(a), aligned(b)
    (rows, depth), columns = a.shape, b.shape[1]
    y = np.empty((rows, columns), np.float32)
    plan, _ = plan_of(rows, depth, columns, a.strides, b.strides)
    start = starts(bias, columns, 1)
    run(multiply, plan.pieces, a.size * columns, min(depth, DEPTH) * BLOCK, plan, address(a), address(b), address(start), address(y),
        int(relu))
    return y
