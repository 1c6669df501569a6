"""Vectors of float32 numbers for compiled kernels, and the register tile, from which everything that multiplies is made.

A register tile is the innermost loop of a matrix product: ROWS x VECTORS vectors of sums that stay in the CPU's registers while it
walks along both factors, one fused multiply-add after the other, nothing written to memory until the end. Goto and van de Geijn, 2008.
Here its rows may lie anywhere: each has an address of its own. So the same loop serves a matrix product (a row of the left factor),
a convolution (the patch under the filter at one output position) and its gradient by the filters (one number of the patch, at all
positions), with no buffer of columns.

Numba compiles Python; what Python cannot say (a vector, a loop whose sums are registers) is said here in LLVM's own language.
How many numbers a vector has, `LANES`, is the CPU's: 16 with AVX-512, 8 with AVX2, else 4. Nothing here knows of convolution.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils, config
from numba.extending import intrinsic
from numba.np import arrayobj

WIDE = ("skylake-avx512", "skx", "cascadelake", "cooperlake", "cannonlake", "icelake", "tigerlake", "sapphirerapids", "emeraldrapids",
        "graniterapids", "rocketlake", "knl", "knm", "x86-64-v4", "znver4", "znver5")
MIDDLE = ("haswell", "broadwell", "skylake", "alderlake", "raptorlake", "meteorlake", "arrowlake", "lunarlake", "gracemont",
          "x86-64-v3", "core-avx2", "znver1", "znver2", "znver3")


def _lanes() -> int:
    """How many float32 numbers a register of this CPU holds, or of the one that NUMBA_CPU_NAME names."""
    named = config.CPU_NAME
    if named and named != "host":
        return 16 if named.startswith(WIDE) else 8 if named.startswith(MIDDLE) else 4
    has = binding.get_host_cpu_features()
    if has.get("avx512f"):
        return 16
    return 8 if has.get("avx2") and has.get("fma") else 4


LANES = _lanes()
ROWS = 12 if LANES == 16 else 6     # rows of a tile: with two vectors each they just fit into 32 or 16 registers
BLOCK = 2 * LANES                   # columns of a tile

INT, BYTE, FLOAT = ir.IntType(64), ir.IntType(8), ir.FloatType()
VECTOR = ir.VectorType(FLOAT, LANES)
MASK = ir.VectorType(ir.IntType(1), LANES)
SHORT = ir.IntType(32)


def tile(vectors: int, lanewise: bool = False) -> Any:
    """The register tile, for compiled kernels: sums over r and t of left[row, r, t] * right[r, t, column].

        tile(left, rows, right, count, left_offsets, right_offsets, length, left_step, right_step,
             start, out, places, columns, add, relu)

    All are ints; addresses, offsets and steps count bytes.
        left, rows                   row i of the left factor begins at left + rows[i], rows being the address of ROWS ints
        right                        the right factor: `vectors` * LANES float32 numbers that lie side by side
        count, left_offsets, right_offsets    there are `count` runs; run r begins at an offset further on in either factor
        length, left_step, right_step         a run has `length` terms; from one to the next both factors advance by a step
        start                        where sums begin: the address of `vectors` * LANES numbers (a bias, or zeros), the same for all rows
        out, places                  row i of the result goes to out + places[i]
        columns                      how many columns of the result are written; the rest are not touched
        add                          1: sums begin at what is there in the result, and not at `start`
        relu                         1: what is written is max(sum, 0), NaN staying NaN
    lanewise: the left factor has a number for each column too (depthwise convolution): left[row, r, t, column].
    """
    int64 = types.int64
    grid = [(i, j) for i in range(ROWS) for j in range(vectors)]

    @intrinsic
    def tile(context: Any, left: Any, rows: Any, right: Any, count: Any, left_offsets: Any, right_offsets: Any, length: Any,
             left_step: Any, right_step: Any, start: Any, out: Any, places: Any, columns: Any, add: Any, relu: Any) -> Any:
        def code(context: Any, b: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
            (left, rows, right, count, left_offsets, right_offsets, length, left_step, right_step,
             start, out, places, columns, add, relu) = arguments
            inside = [first_lanes(b, b.sub(columns, INT(j * LANES))) for j in range(vectors)]
            sums = {at: cgutils.alloca_once(b, VECTOR) for at in grid}         # LLVM makes registers of these
            offsets = [_entry(b, rows, INT(i)) for i in range(ROWS)]
            at_out = [b.add(out, _entry(b, places, INT(i))) for i in range(ROWS)]

            with b.if_else(b.icmp_signed("!=", add, INT(0))) as (adding, starting):
                with adding:
                    for i, j in grid:
                        b.store(_load_first(b, _vector(b, at_out[i], j), inside[j]), sums[i, j])
                with starting:
                    for i, j in grid:
                        b.store(_load(b, _vector(b, start, j), VECTOR), sums[i, j])

            with _repeat(b, count) as run:
                at_left = b.add(left, _entry(b, left_offsets, run))
                at_right = b.add(right, _entry(b, right_offsets, run))
                with _repeat(b, length, (at_left, left_step), (at_right, right_step)) as (at_left, at_right):
                    factors = [_load(b, _vector(b, at_right, j), VECTOR) for j in range(vectors)]
                    moving = _opaque(b, at_left) if vectors == 1 else at_left
                    for i in range(ROWS):
                        place = b.add(moving, offsets[i])
                        if not lanewise:
                            same = repeated(b, _load(b, place, FLOAT), VECTOR)
                        for j in range(vectors):
                            factor = _load(b, _vector(b, place, j), VECTOR) if lanewise else same
                            b.store(_multiply_add(b, factor, factors[j], b.load(sums[i, j])), sums[i, j])

            cut = repeated(b, b.icmp_signed("!=", relu, INT(0)), MASK)
            zeros = ir.Constant(VECTOR, [0.0] * LANES)
            for i, j in grid:
                value = b.load(sums[i, j])
                value = b.select(b.and_(cut, b.fcmp_ordered("<", value, zeros)), zeros, value)
                _store_first(b, value, _vector(b, at_out[i], j), inside[j])
            return context.get_dummy_value()

        return types.void(*[int64] * 15), code

    return tile


# What the tile is made of: each emits one or a few instructions


@contextmanager
def _repeat(b: ir.IRBuilder, count: Any, *moving: tuple[Any, Any]) -> Iterator[Any]:
    """A loop of so many turns around what a `with` block emits; gives the number of the turn, or the addresses that move in steps."""
    before = b.block
    body, after = b.append_basic_block("body"), b.append_basic_block("after")
    b.cbranch(b.icmp_signed(">", count, INT(0)), body, after)
    b.position_at_end(body)
    turn = b.phi(INT)
    turn.add_incoming(INT(0), before)
    addresses = []
    for start, _ in moving:
        addresses.append(b.phi(INT))
        addresses[-1].add_incoming(start, before)
    yield addresses if moving else turn
    following = b.add(turn, INT(1))
    turn.add_incoming(following, b.block)
    for address, (_, step) in zip(addresses, moving):
        address.add_incoming(b.add(address, step), b.block)
    again = b.cbranch(b.icmp_signed("<", following, count), body, after)
    again.set_metadata("llvm.loop", _not_unrolled(b.module))
    b.position_at_end(after)


def _not_unrolled(module: ir.Module) -> Any:
    """The tile is unrolled enough; LLVM would do it again."""
    loop = module.add_metadata([module.add_metadata(["llvm.loop.unroll.disable"])])
    loop.operands = (loop, *loop.operands)                      # a loop's description begins with itself
    return loop


def _opaque(b: ir.IRBuilder, address: Any) -> Any:
    """The same address, of which LLVM knows nothing: or it would make ROWS addresses of the one that moves, which costs a tile of one
    vector a third of its speed. (A tile of two has the time, and loses if LLVM's order is disturbed.)"""
    return b.asm(ir.FunctionType(INT, [INT]), "", "=r,0", [address], side_effect=False)


def _entry(b: ir.IRBuilder, table: Any, index: Any) -> Any:
    """table[index] of a table of ints, by its address."""
    return _load(b, b.add(table, b.mul(index, INT(8))), INT, 8)


def _vector(b: ir.IRBuilder, address: Any, j: int) -> Any:
    """The address of the vector that lies j vectors further on."""
    return b.add(address, INT(4 * LANES * j)) if j else address


def _load(b: ir.IRBuilder, address: Any, kind: ir.Type, align: int = 4) -> Any:
    return b.load(b.inttoptr(address, kind.as_pointer()), align=align)


def repeated(b: ir.IRBuilder, number: Any, kind: ir.VectorType) -> Any:
    """A vector of the same number everywhere."""
    one = b.insert_element(ir.Constant(kind, ir.Undefined), number, SHORT(0))
    return b.shuffle_vector(one, ir.Constant(kind, ir.Undefined), ir.Constant(ir.VectorType(SHORT, kind.count), [0] * kind.count))


def first_lanes(b: ir.IRBuilder, count: Any) -> Any:
    """A mask that is true for the first `count` lanes."""
    lanes = ir.VectorType(INT, LANES)
    return b.icmp_signed("<", ir.Constant(lanes, list(range(LANES))), repeated(b, count, lanes))


def _load_first(b: ir.IRBuilder, address: Any, mask: Any) -> Any:
    """The lanes of a mask, and zeros elsewhere; no other memory is touched."""
    pointer = b.inttoptr(address, VECTOR.as_pointer())
    function = llvm(b, f"masked.load.v{LANES}f32.p0", VECTOR, [VECTOR.as_pointer(), SHORT, MASK, VECTOR])
    return b.call(function, [pointer, SHORT(4), mask, ir.Constant(VECTOR, [0.0] * LANES)])


def _store_first(b: ir.IRBuilder, value: Any, address: Any, mask: Any) -> None:
    pointer = b.inttoptr(address, VECTOR.as_pointer())
    function = llvm(b, f"masked.store.v{LANES}f32.p0", ir.VoidType(), [VECTOR, VECTOR.as_pointer(), SHORT, MASK])
    b.call(function, [value, pointer, SHORT(4), mask])


def _multiply_add(b: ir.IRBuilder, x: Any, y: Any, z: Any) -> Any:
    """x y + z, in one instruction where the CPU has it."""
    return b.call(llvm(b, f"fmuladd.v{LANES}f32", VECTOR, [VECTOR] * 3), [x, y, z])


def llvm(b: ir.IRBuilder, name: str, result: ir.Type, arguments: list[ir.Type]) -> Any:
    return cgutils.get_or_insert_function(b.module, ir.FunctionType(result, arguments), "llvm." + name)


# Small instructions that kernels call by name


@intrinsic
def take(context: Any, counter: Any) -> Any:
    """The counter's number, and one more for whoever asks next: in one step that no other thread can come between."""
    def code(context: Any, b: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        return b.atomic_rmw("add", b.inttoptr(arguments[0], INT.as_pointer()), INT(1), "monotonic")

    return types.int64(types.int64), code


@intrinsic
def copy(context: Any, to: Any, source: Any, count: Any) -> Any:
    """Copy `count` bytes between two places that do not overlap."""
    def code(context: Any, b: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        to, source, count = arguments
        pointer = BYTE.as_pointer()
        function = llvm(b, "memcpy.p0.p0.i64", ir.VoidType(), [pointer, pointer, INT, ir.IntType(1)])
        b.call(function, [b.inttoptr(to, pointer), b.inttoptr(source, pointer), count, ir.IntType(1)(0)])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), code


@intrinsic
def clear(context: Any, to: Any, count: Any) -> Any:
    """Set `count` bytes to zero."""
    def code(context: Any, b: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        to, count = arguments
        function = llvm(b, "memset.p0.i64", ir.VoidType(), [BYTE.as_pointer(), BYTE, INT, ir.IntType(1)])
        b.call(function, [b.inttoptr(to, BYTE.as_pointer()), BYTE(0), count, ir.IntType(1)(0)])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), code


@intrinsic
def turn(context: Any, source: Any, along: Any, to: Any, step: Any) -> Any:
    """Transpose a square of LANES x LANES numbers: its rows, `along` bytes apart, become columns of rows `step` bytes apart."""
    def code(context: Any, b: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        source, along, to, step = arguments
        rows = [_load(b, b.add(source, b.mul(along, INT(i))), VECTOR) for i in range(LANES)]
        apart = 1
        while apart < LANES:                                    # swap the squares beside the diagonal: of 1, of 2 x 2, of 4 x 4, ...
            low = [i if not i & apart else i - apart + LANES for i in range(LANES)]
            high = [i + apart if not i & apart else i + LANES for i in range(LANES)]
            for i in range(LANES):
                if not i & apart:
                    pair = rows[i], rows[i + apart]
                    rows[i], rows[i + apart] = (b.shuffle_vector(*pair, ir.Constant(ir.VectorType(SHORT, LANES), places))
                                                for places in (low, high))
            apart *= 2
        for i, row in enumerate(rows):
            b.store(row, b.inttoptr(b.add(to, b.mul(step, INT(i))), VECTOR.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), code


@intrinsic
def glance(context: Any, address: Any) -> Any:
    """The int64 at an address that another thread may be writing to; then a moment's rest for the CPU."""
    def code(context: Any, b: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        found = b.load_atomic(b.inttoptr(arguments[0], INT.as_pointer()), "monotonic", 8)
        if platform.machine() in ("x86_64", "AMD64"):
            b.call(llvm(b, "x86.sse2.pause", ir.VoidType(), []), [])
        elif platform.machine() in ("aarch64", "arm64"):
            b.call(llvm(b, "aarch64.hint", ir.VoidType(), [SHORT]), [SHORT(1)])
        return found

    return types.int64(types.int64), code


def _reader(kind: ir.Type, result: Any, name: str) -> Any:
    def reader(context: Any, address: Any) -> Any:
        def code(context: Any, b: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
            return _load(b, arguments[0], kind, kind.width // 8 if isinstance(kind, ir.IntType) else 4)

        return result(types.int64), code

    reader.__name__ = name
    return intrinsic(reader)


def _writer(kind: ir.Type, taken: Any, name: str) -> Any:
    def writer(context: Any, address: Any, value: Any) -> Any:
        def code(context: Any, b: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
            b.store(arguments[1], b.inttoptr(arguments[0], kind.as_pointer()), align=4)
            return context.get_dummy_value()

        return types.void(types.int64, taken), code

    writer.__name__ = name
    return intrinsic(writer)


number = _reader(FLOAT, types.float32, "number")                # number(address): the float32 there
entry = _reader(INT, types.int64, "entry")                      # entry(address): the int64 there
put = _writer(FLOAT, types.float32, "put")                      # put(address, float32)


@intrinsic
def numbers(context: Any, address: Any, count: Any) -> Any:
    """`count` float32 numbers from an address on, as an array: for plain loops, of which LLVM makes vectors itself."""
    kind = types.Array(types.float32, 1, "C")

    def code(context: Any, b: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        view = context.make_array(kind)(context, b)
        data = b.inttoptr(arguments[0], FLOAT.as_pointer())
        arrayobj.populate_array(view, data=data, shape=[arguments[1]], strides=[INT(4)], itemsize=INT(4), meminfo=None)
        return view._getvalue()

    return kind(types.int64, types.int64), code
