"""The numbers in a computation graph: the values that flow forward and the gradients that flow back, found without changing anything.

The engine keeps only what a gradient rule names. So a value is looked for where it may be kept, and otherwise computed again from
what is. Gradients come from a backward pass of its own, which leaves no `.grad` and frees nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from minidl.backend import is_float, to_numpy
from minidl.graph import Node
from minidl.plan import Step
from minidl.tensor import Tensor
from minidl.walk import Edge, Walk

ROWS, COLUMNS = 5, 6            # an array that has no more is written out


@dataclass(frozen=True)
class Amount:
    """An array as it is shown: number by number in rows, or as a range."""

    rows: tuple[tuple[str, ...], ...]       # () where there are too many numbers
    text: str                               # on one line


def amount(array: Any) -> Amount:
    x = to_numpy(array)
    if x.ndim <= 2 and x.size > 0 and (x.ndim < 2 or x.shape[0] <= ROWS) and (x.ndim < 1 or x.shape[-1] <= COLUMNS):
        rows = tuple(tuple(number(value) for value in row) for row in np.atleast_2d(x))
        inner = ["[" + ", ".join(row) + "]" for row in rows]
        return Amount(rows, rows[0][0] if x.ndim == 0 else inner[0] if x.ndim == 1 else "[" + ", ".join(inner) + "]")
    if not x.size:
        return Amount((), "no numbers")
    broken = int((~np.isfinite(x)).sum()) if is_float(x.dtype) else 0
    if broken:
        return Amount((), f"{broken:,} of {x.size:,} not finite")
    low, high = number(x.min(), 3), number(x.max(), 3)
    return Amount((), f"all {low}" if low == high else f"{low} to {high}")


def number(value: Any, digits: int = 4) -> str:
    if isinstance(value, bool | np.bool_):
        return str(int(value))
    if isinstance(value, int | np.integer):
        return str(value)
    return f"{float(value) + 0.0:.{digits}g}"          # + 0.0: no negative zero


def find_values(nodes: Sequence[Node], wanted: Iterable[Edge], known: Mapping[Edge, Any]) -> dict[Edge, Any]:
    """The arrays that flow along edges (Node, number of its output), as far as they can be found.

    nodes: the oldest first. wanted: the edges of interest. known: those that somebody holds. Whatever is computed again is computed from
    the leaves as they are now; GraphError if one of those that the rules need has changed since.
    """
    found = dict(known)
    for node in nodes:
        if node.function is None:
            continue
        node.check_kept()
        plan = node.function.plan
        for k, name in enumerate(plan.outputs):
            if name in node.saved:
                found.setdefault((node, k), node.saved[name])
        for i, edge in enumerate(node.edges):
            kept = kept_input(node, i)
            if type(edge) is tuple and kept is not None:
                found.setdefault(edge, kept)
    open_ = {edge for edge in wanted if type(edge) is tuple and edge not in found}
    again: list[Node] = []
    for node in reversed(nodes):
        if node.function is not None and any((node, k) in open_ for k in range(len(node.like))):
            again.append(node)
            open_ |= {edge for edge in node.edges if type(edge) is tuple and edge not in found}
    for node in reversed(again):
        inputs = [edge.data if isinstance(edge, Tensor) else found.get(edge) if type(edge) is tuple else kept_input(node, i)
                  for i, edge in enumerate(node.edges)]
        if any(x is None for x in inputs):      # it was a constant that no rule needs, or depends on one
            continue
        ys = copy.copy(node.function).forward(*inputs)
        for k, y in enumerate([ys] if node.function.plan.single else ys):
            found.setdefault((node, k), y)
    return found


def kept_input(node: Node, i: int) -> Any:
    """What a Node keeps of its input number i: an array or a number; None if nothing."""
    if node.function is None:
        return None
    plan = node.function.plan
    if plan.variadic:
        kept = node.saved.get(plan.args[0])
        return None if kept is None or i >= len(kept) else kept[i]
    return node.saved.get(plan.args[i])


class Watched(Walk):
    """A backward pass of which all is written down: which Node's rules ran, and what each passed on."""

    def __init__(self, leaves: Iterable[Tensor], note: Any):
        super().__init__(retain=True, only=leaves)
        self.note = note
        self.visited: list[Node] = []

    def _visit(self, node: Node) -> None:
        self.visited.append(node)
        super()._visit(node)

    def _run(self, step: Step, values: dict[str, Any], node: Node, function: Any) -> Any:
        result = super()._run(step, values, node, function)
        if result is not None and not step.shared:
            self.note(node, step.i, result)
        return result
