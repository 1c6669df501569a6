"""Vectors as values: compiled Python that adds and compares LANES float32 numbers at once.

    a = load(address, count)            the first `count` of the numbers there, zeros behind them; no other memory is touched
    store(address, count, a * b + c)    and as many are written
    where(a > b, a, b)                  a mask chooses; comparisons with a NaN are false, but for !=

A loop over a pixel's channels goes in steps of LANES and gives the number of those that are left as the count, be it more than LANES.
So few channels cost one vector, and nothing of what LLVM puts around a loop that it makes vectors of by itself: checks whether arrays
overlap, and a rest that goes number by number. Sums that several vectors keep apart are added in the order that is written.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core.typing.templates import ConcreteTemplate, infer_global, signature
from numba.extending import lower_builtin, models, register_model

from minidl.kernels.cpu.vector import BYTE, INT, LANES, MASK, SHORT, VECTOR, _llvm, _splat

CONTRACT = ("contract", "nsz")                  # a * b + c may be one instruction, as everywhere in kernels
BYTES = ir.VectorType(BYTE, LANES)
SHORTS = ir.VectorType(SHORT, LANES)


class Vector(types.Type):                       # type: ignore[misc]
    """LANES float32 numbers."""

    def __init__(self) -> None:
        super().__init__(name=f"vector{LANES}")


class Mask(types.Type):                         # type: ignore[misc]
    """LANES times true or false."""

    def __init__(self) -> None:
        super().__init__(name=f"mask{LANES}")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):      # type: ignore[misc]
    def __init__(self, manager: Any, kind: Any):
        super().__init__(manager, kind, VECTOR)


@register_model(Mask)
class _MaskModel(models.PrimitiveModel):        # type: ignore[misc]
    def __init__(self, manager: Any, kind: Any):
        super().__init__(manager, kind, MASK)


VALUE, CHOICE, PLACE = Vector(), Mask(), types.int64


def _means(symbol: Any, result: Any, arguments: tuple[Any, ...], emit: Callable[..., Any]) -> None:
    """Say what an operator or a function of this file is in compiled code: emit(builder, *values) gives its value, if it has one."""
    @infer_global(symbol)
    class Template(ConcreteTemplate):           # type: ignore[misc]
        cases = [signature(result, *arguments)]             # noqa: RUF012

    @lower_builtin(symbol, *arguments)
    def lower(context: Any, b: ir.IRBuilder, signature: Any, values: Any) -> Any:
        found = emit(b, *values)
        return context.get_dummy_value() if found is None else found


# Memory


def load(address: int, count: int) -> Any:
    """Numbers, zeros behind the first `count`."""


def store(address: int, count: int, value: Any) -> None:
    """The first `count` of the numbers."""


def load_bytes(address: int, count: int) -> Any:
    """Small integers, a byte each, as numbers."""


def store_bytes(address: int, count: int, value: Any) -> None:
    """Whole numbers from 0 to 255, a byte each."""


def _load(b: ir.IRBuilder, address: Any, count: Any, kind: ir.VectorType = VECTOR) -> Any:
    return _in_part(b, count, lambda part: _memory(b, "load", address, kind, part))


def _store(b: ir.IRBuilder, address: Any, count: Any, value: Any) -> None:
    _in_part(b, count, lambda part: _memory(b, "store", address, value.type, part, value))


def _in_part(b: ir.IRBuilder, count: Any, emit: Callable[[Any], Any]) -> Any:
    """emit(mask of the first `count`), or emit(None) for a whole vector where the CPU has no masks or is slow with them."""
    if LANES == 16:
        return emit(_first(b, count))
    with b.if_else(b.icmp_signed(">=", count, INT(LANES))) as (whole, part):
        with whole:
            every, from_whole = emit(None), b.block
        with part:
            some, from_part = emit(_first(b, count)), b.block
    if every is None:
        return None
    found = b.phi(every.type)
    found.add_incoming(every, from_whole)
    found.add_incoming(some, from_part)
    return found


def _first(b: ir.IRBuilder, count: Any) -> Any:
    """A mask that is true for the first `count` lanes."""
    few = b.trunc(b.select(b.icmp_signed("<", count, INT(LANES)), count, INT(LANES)), SHORT)
    return b.icmp_signed("<", ir.Constant(SHORTS, list(range(LANES))), _splat(b, few, SHORTS))


def _memory(b: ir.IRBuilder, what: str, address: Any, kind: ir.VectorType, part: Any, *value: Any) -> Any:
    """Load or store a vector, or what a mask lets through."""
    pointer, align = b.inttoptr(address, kind.as_pointer()), 4 if kind is VECTOR else 1
    if part is None:
        return b.store(*value, pointer, align=align) and None if value else b.load(pointer, align=align)
    name = f"masked.{what}.v{LANES}{kind.element.intrinsic_name}.p0"
    if value:
        b.call(_llvm(b, name, ir.VoidType(), [kind, kind.as_pointer(), SHORT, MASK]), [*value, pointer, SHORT(align), part])
        return None
    return b.call(_llvm(b, name, kind, [kind.as_pointer(), SHORT, MASK, kind]), [pointer, SHORT(align), part, ir.Constant(kind, [0] * LANES)])


_means(load, VALUE, (PLACE, PLACE), _load)
_means(store, types.void, (PLACE, PLACE, VALUE), _store)
_means(load_bytes, VALUE, (PLACE, PLACE), lambda b, address, count: b.uitofp(_load(b, address, count, BYTES), VECTOR))
_means(store_bytes, types.void, (PLACE, PLACE, VALUE),
       lambda b, address, count, x: _store(b, address, count, b.trunc(b.fptosi(x, SHORTS), BYTES)))


# Numbers


def splat(number: float) -> Any:
    """The same number everywhere."""


def where(chosen: Any, x: Any, y: Any) -> Any:
    """x where the mask is true, else y."""


def _compare(sign: str) -> Callable[..., Any]:
    return lambda b, x, y: b.fcmp_ordered(sign, x, y)


_means(operator.add, VALUE, (VALUE, VALUE), lambda b, x, y: b.fadd(x, y, flags=CONTRACT))
_means(operator.sub, VALUE, (VALUE, VALUE), lambda b, x, y: b.fsub(x, y, flags=CONTRACT))
_means(operator.mul, VALUE, (VALUE, VALUE), lambda b, x, y: b.fmul(x, y, flags=CONTRACT))
_means(operator.truediv, VALUE, (VALUE, VALUE), lambda b, x, y: b.fdiv(x, y))
_means(operator.le, CHOICE, (VALUE, VALUE), _compare("<="))
_means(operator.invert, CHOICE, (CHOICE,), lambda b, x: b.not_(x))
_means(operator.gt, CHOICE, (VALUE, VALUE), _compare(">"))
_means(operator.lt, CHOICE, (VALUE, VALUE), _compare("<"))
_means(operator.eq, CHOICE, (VALUE, VALUE), _compare("=="))
_means(operator.ne, CHOICE, (VALUE, VALUE), lambda b, x, y: b.fcmp_unordered("!=", x, y))
_means(operator.and_, CHOICE, (CHOICE, CHOICE), lambda b, x, y: b.and_(x, y))
_means(operator.or_, CHOICE, (CHOICE, CHOICE), lambda b, x, y: b.or_(x, y))
_means(splat, VALUE, (types.float32,), lambda b, number: _splat(b, number, VECTOR))
_means(where, VALUE, (CHOICE, VALUE, VALUE), lambda b, chosen, x, y: b.select(chosen, x, y))
