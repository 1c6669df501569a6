"""Vectors as values: compiled Python that adds and compares LANES float32 numbers at once, or WIDE of them, four times as many.

    a = load(address, count)            the first `count` of the numbers there, zeros behind them; no other memory is touched
    store(address, count, a * b + c)    and as many are written
    where(a > b, a, b)                  a mask chooses; comparisons with a NaN are false, but for !=
    load_wide(address, count)           the same for a wide one

A loop over a pixel's channels goes in steps of LANES and gives the number of those that are left as the count, be it more than LANES.
So few channels cost one vector, and nothing of what LLVM puts around a loop that it makes vectors of by itself: checks whether arrays
overlap, and a rest that goes number by number. Wide ones are for long loops: four sums at once do not wait for each other.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core.typing.templates import ConcreteTemplate, infer_global, signature
from numba.extending import lower_builtin, models, register_model

from minidl.kernels.cpu.vector import BYTE, FLOAT, INT, LANES, SHORT, llvm, repeated

WIDE = 4 * LANES
CONTRACT = ("contract", "nsz")                  # a * b + c may be one instruction, as everywhere in kernels


class Vector(types.Type):
    """So many float32 numbers."""

    def __init__(self, count: int):
        super().__init__(name=f"vector{count}")
        self.llvm = ir.VectorType(FLOAT, count)


class Mask(types.Type):
    """So many times true or false."""

    def __init__(self, count: int):
        super().__init__(name=f"mask{count}")
        self.llvm = ir.VectorType(ir.IntType(1), count)


@register_model(Vector)
@register_model(Mask)
class _Model(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any):
        super().__init__(manager, kind, kind.llvm)


VECTOR, MASK, PLACE = Vector(LANES), Mask(LANES), types.int64
BYTES, SHORTS = ir.VectorType(BYTE, LANES), ir.VectorType(SHORT, LANES)


def _means(symbol: Any, result: Any, arguments: tuple[Any, ...], emit: Callable[..., Any]) -> None:
    """Say what an operator or a function of this file is in compiled code: emit(builder, *values) gives its value, if it has one."""
    @infer_global(symbol)
    class Template(ConcreteTemplate):
        cases = [signature(result, *arguments)]             # noqa: RUF012

    @lower_builtin(symbol, *arguments)
    def lower(context: Any, b: ir.IRBuilder, signature: Any, values: Any) -> Any:
        found = emit(b, *values)
        return context.get_dummy_value() if found is None else found


# What compiled Python calls


def load(address: int, count: int) -> Any:
    """Numbers, zeros behind the first `count`."""


def load_wide(address: int, count: int) -> Any:
    """WIDE numbers, zeros behind the first `count`."""


def load_bytes(address: int, count: int) -> Any:
    """Small integers, a byte each, as numbers."""


def store(address: int, count: int, value: Any) -> None:
    """The first `count` of the numbers of a vector, be it wide or not."""


def store_bytes(address: int, count: int, value: Any) -> None:
    """Whole numbers from 0 to 255, a byte each."""


def splat(number: Any) -> Any:
    """The same number everywhere."""


def splat_wide(number: Any) -> Any:
    """The same number everywhere in a wide vector."""


def where(chosen: Any, x: Any, y: Any) -> Any:
    """x where the mask is true, else y."""


def first(count: int) -> Any:
    """A mask, true for the first `count`."""


def first_wide(count: int) -> Any:
    """A mask for a wide vector."""


def root(x: Any) -> Any:
    """The square root."""


def total(x: Any) -> Any:
    """The sum of a vector's numbers: halves are added until one is left."""


def greatest(x: Any) -> Any:
    """The largest of a vector's numbers. A NaN is none."""


def power(x: Any) -> Any:
    """2 to the power n, for whole n from -126 to 127 given as n + 1.5 * 2^23: a float32 that holds n in its last bits."""


# What each of them is


def _load(kind: ir.VectorType) -> Callable[..., Any]:
    def emit(b: ir.IRBuilder, address: Any, count: Any) -> Any:
        """A whole vector is read without a mask, which some CPUs do not have and others are slow with."""
        pointer, align, mask = b.inttoptr(address, kind.as_pointer()), SHORT(1 if kind.element is BYTE else 4), _mask(kind.count)
        with b.if_else(b.icmp_signed(">=", count, INT(kind.count))) as (whole, part):
            with whole:
                every, from_whole = b.load(pointer, align=align.constant), b.block
            with part:
                function = llvm(b, f"masked.load.{_name(kind)}.p0", kind, [kind.as_pointer(), SHORT, mask, kind])
                some = b.call(function, [pointer, align, first_lanes(b, count, kind.count), ir.Constant(kind, [0] * kind.count)])
                from_part = b.block
        found = b.phi(kind)
        found.add_incoming(every, from_whole)
        found.add_incoming(some, from_part)
        return found
    return emit


def _store(b: ir.IRBuilder, address: Any, count: Any, value: Any) -> None:
    kind = value.type
    pointer, align, mask = b.inttoptr(address, kind.as_pointer()), SHORT(1 if kind.element is BYTE else 4), _mask(kind.count)
    with b.if_else(b.icmp_signed(">=", count, INT(kind.count))) as (whole, part):
        with whole:
            b.store(value, pointer, align=align.constant)
        with part:
            function = llvm(b, f"masked.store.{_name(kind)}.p0", ir.VoidType(), [kind, kind.as_pointer(), SHORT, mask])
            b.call(function, [value, pointer, align, first_lanes(b, count, kind.count)])


def first_lanes(b: ir.IRBuilder, count: Any, lanes: int = LANES) -> Any:
    few = b.trunc(b.select(b.icmp_signed("<", count, INT(lanes)), count, INT(lanes)), SHORT)
    kind = ir.VectorType(SHORT, lanes)
    return b.icmp_signed("<", ir.Constant(kind, list(range(lanes))), repeated(b, few, kind))


def _mask(lanes: int) -> ir.VectorType:
    return ir.VectorType(ir.IntType(1), lanes)


def _name(kind: ir.VectorType) -> str:
    return f"v{kind.count}{kind.element.intrinsic_name}"


def _compare(sign: str) -> Callable[..., Any]:
    return lambda b, x, y: b.fcmp_ordered(sign, x, y)


def _total(b: ir.IRBuilder, x: Any) -> Any:
    half = x.type.count
    while half > 1:
        half //= 2
        low, high = (ir.Constant(ir.VectorType(SHORT, half), list(range(start, start + half))) for start in (0, half))
        x = b.fadd(b.shuffle_vector(x, x, low), b.shuffle_vector(x, x, high))
    return b.extract_element(x, SHORT(0))


def _power(b: ir.IRBuilder, x: Any) -> Any:
    exponent = b.shl(b.bitcast(x, SHORTS), ir.Constant(SHORTS, [23] * LANES))
    return b.bitcast(b.add(exponent, ir.Constant(SHORTS, [127 << 23] * LANES)), VECTOR.llvm)


for vector, mask in ((VECTOR, MASK), (Vector(WIDE), Mask(WIDE))):
    _means(operator.add, vector, (vector, vector), lambda b, x, y: b.fadd(x, y, flags=CONTRACT))
    _means(operator.sub, vector, (vector, vector), lambda b, x, y: b.fsub(x, y, flags=CONTRACT))
    _means(operator.mul, vector, (vector, vector), lambda b, x, y: b.fmul(x, y, flags=CONTRACT))
    _means(operator.truediv, vector, (vector, vector), lambda b, x, y: b.fdiv(x, y))
    for comparison, sign in ((operator.lt, "<"), (operator.le, "<="), (operator.gt, ">"), (operator.ge, ">="), (operator.eq, "==")):
        _means(comparison, mask, (vector, vector), _compare(sign))
    _means(operator.ne, mask, (vector, vector), lambda b, x, y: b.fcmp_unordered("!=", x, y))
    _means(operator.and_, mask, (mask, mask), lambda b, x, y: b.and_(x, y))
    _means(operator.or_, mask, (mask, mask), lambda b, x, y: b.or_(x, y))
    _means(operator.invert, mask, (mask,), lambda b, x: b.not_(x))
    _means(where, vector, (mask, vector, vector), lambda b, chosen, x, y: b.select(chosen, x, y))
    _means(root, vector, (vector,), lambda b, x: b.call(llvm(b, f"sqrt.{_name(x.type)}", x.type, [x.type]), [x]))
    _means(total, types.float32, (vector,), _total)
    _means(store, types.void, (PLACE, PLACE, vector), _store)
    _means(splat if vector is VECTOR else splat_wide, vector, (types.float32,),
           lambda b, number, kind=vector.llvm: repeated(b, number, kind))
    _means(load if vector is VECTOR else load_wide, vector, (PLACE, PLACE), _load(vector.llvm))

_means(load_bytes, VECTOR, (PLACE, PLACE), lambda b, address, count: b.uitofp(_load(BYTES)(b, address, count), VECTOR.llvm))
_means(store_bytes, types.void, (PLACE, PLACE, VECTOR),
       lambda b, address, count, x: _store(b, address, count, b.trunc(b.fptosi(x, SHORTS), BYTES)))
_means(first, MASK, (PLACE,), first_lanes)
_means(first_wide, Mask(WIDE), (PLACE,), lambda b, count: first_lanes(b, count, WIDE))
_means(greatest, types.float32, (VECTOR,), lambda b, x: b.call(llvm(b, f"vector.reduce.fmax.{_name(x.type)}", FLOAT, [x.type]), [x]))
_means(power, VECTOR, (VECTOR,), _power)
