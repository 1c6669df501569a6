"""What of a computation graph is shown: its operations, or several of them together, as boxes. Lines and leaves are in graph_lines.py.

A small graph is shown as it is. Of a large one the calls of modules become one box each, and where that is not enough, what repeats itself
is shown once at its beginning and once at its end, with one box for all between. Everything that one box stands for was computed
in one stretch of time, so that boxes never lead in a circle. Nothing is walked by recursion.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minidl import backend
from minidl.graph import Node
from minidl.kernels import Window
from minidl.nn import Module
from minidl.pictures.graph_numbers import Amount
from minidl.tensor import Tensor
from minidl.walk import Edge

ROOM = 40               # boxes that a picture has room for
OPENED = 400            # the same where somebody says how deep to look
PERIODS = 64            # boxes after which something may repeat itself
LEAF = ("parameter", "input", "constant")
SILENT = ("algorithm", "eps", "shape", "size")      # options that say little


@dataclass(eq=False)
class Box:
    """An operation, a module's call, several of these, a leaf, or a result."""

    kind: str                                           # "operation", "module", "repeats", "parameter", "input", "constant", "result"
    title: str
    facts: list[str] = field(default_factory=list)      # what else is said of it, a line each
    calls: tuple[Any, ...] = ()                         # the calls of modules that it belongs to, the outermost first
    nodes: list[Node] = field(default_factory=list)
    place: Any = None                                   # of a leaf: the Tensor, or the array of a constant; of a result: its edge
    held: list[Any] = field(default_factory=list)       # leaves that nobody else needs to see
    value: Amount | None = None
    gradient: Amount | None = None                      # the sum, where several lines bring one
    known: int = 0                                      # the step of a backward pass after which the gradient is complete

    @property
    def merged(self) -> bool:
        return self.kind in ("module", "repeats")


class Paths:
    """What modules and leaves are called: by their path in the outermost model that was called, or as somebody named them."""

    def __init__(self, names: Mapping[str, Any]):
        self.given: dict[Any, str] = {}
        for name, thing in names.items():
            if name.startswith("_"):
                continue
            if isinstance(thing, Tensor) and thing.node is not None:
                self.given.setdefault((thing.node, thing.index), name)
            elif isinstance(thing, Tensor | Module) or backend.is_array(thing):
                self.given.setdefault(id(thing), name)
                if isinstance(thing, Tensor):
                    self.given.setdefault(id(thing.data), name)
        self.modules: dict[int, str] = {}
        self.parameters: dict[int, str] = {}

    def learn(self, nodes: Iterable[Node]) -> None:
        """Take the paths of all models that were called."""
        roots = list({id(root): root for root in (calls[0][0] for calls in map(calls_of, nodes) if calls)}.values())
        several = len(roots) > 1
        for number, root in enumerate(roots):
            kind = type(root).__name__
            same = [other for other in roots[:number] if type(other) is type(root)]
            start = self.given.get(id(root), (f"{kind} {len(same) + 1}" if same else kind) if several else "")
            for path, module in root.named_modules():
                self.modules.setdefault(id(module), ".".join(part for part in (start, path) if part))
            for path, parameter in root.named_parameters():
                self.parameters.setdefault(id(parameter), ".".join(part for part in (start, path) if part))

    def module(self, module: Any) -> str:
        """'features.0 (Conv2d)'; the class alone for a model itself."""
        path, kind = self.modules.get(id(module), ""), type(module).__name__
        return f"{path} ({kind})" if path and not path.startswith(kind) else path or kind


def calls_of(node: Node) -> tuple[Any, ...]:
    """The calls of modules in which an operation ran, the outermost first. Each call has a tuple of its own: see Module.__call__."""
    calls, stack = [], node.stack
    while stack is not None:
        calls.append(stack)
        stack = stack[1]
    return tuple(reversed(calls))


def edge_of(tensor: Tensor) -> Edge:
    """Where a Tensor is in its graph: itself if it is a leaf, or the Node that made it and the number of the output."""
    return tensor if tensor.node is None else (tensor.node, tensor.index)


def chosen(nodes: list[Node], depth: int | None, paths: Paths) -> list[Box]:
    """The boxes of operations in the order in which they were computed: modules opened to a depth, or as far as there is room."""
    calls = [calls_of(node) for node in nodes]
    room = ROOM if depth is None else OPENED
    boxes: list[Box] = []
    for opened in range(max(map(len, calls), default=0), -1, -1) if depth is None else (depth,):
        boxes = folded(grouped(nodes, calls, opened, paths), room)
        if crowd(boxes) <= room:
            return boxes
    return cut(boxes, room)


# Modules collapse


def grouped(nodes: list[Node], calls: list[tuple[Any, ...]], depth: int, paths: Paths) -> list[Box]:
    """A box for each operation, and one for each call of a module that is deeper than `depth` others."""
    boxes: list[Box] = []
    of_call: dict[int, Box] = {}
    for node, around in zip(nodes, calls):
        if len(around) <= depth:
            boxes.append(Box("operation", *described(node), around, [node]))
            continue
        call = around[depth]
        box = of_call.get(id(call))
        if box is None:
            box = of_call[id(call)] = Box("module", paths.module(call[0]), [], around[:depth])
            boxes.append(box)
        box.nodes.append(node)
    return boxes


def described(node: Node) -> tuple[str, list[str]]:
    """The title of an operation, and the options that it was given."""
    function = node.function
    if function is None:
        return node.name, []
    facts = []
    activation = getattr(function, "activation", None)
    for option in dataclasses.fields(function) if dataclasses.is_dataclass(function) else ():
        value = getattr(function, option.name, None)
        if isinstance(value, Window):
            facts += [f"{name} {_pair(getattr(value, name))}" for name, usual in (("kernel", None), ("stride", (1, 1)), ("padding", (0, 0)),
                                                                               ("dilation", (1, 1))) if getattr(value, name) != usual]
        elif option.name in (*SILENT, "activation") or value is None or value is option.default:
            continue
        elif isinstance(value, int | float | str | tuple | slice) and value != option.default and len(repr(value)) <= 24:
            facts.append(f"{option.name} {value if isinstance(value, str) else repr(value)}")
    if not function.plan.variadic:
        arguments = inspect.signature(function.forward).parameters
        required = {name for name, argument in arguments.items() if argument.default is argument.empty}
        for name, edge in zip(function.plan.args, node.edges):
            kept = node.saved.get(name)
            if isinstance(kept, backend.SCALARS):
                facts.append(f"{name} = {kept}")
            elif edge is None and name not in node.saved and name in required:
                facts.append(f"{name}: a constant")
    return f"{node.name} + {activation}" if isinstance(activation, str) else node.name, facts


def _pair(value: tuple[int, int]) -> str:
    return str(value[0]) if value[0] == value[1] else f"{value[0]} x {value[1]}"


def crowd(boxes: list[Box]) -> int:
    """How many boxes there are with the leaves that would stand beside them."""
    leaves = {id(edge) for box in boxes if not box.merged for node in box.nodes for edge in node.edges if isinstance(edge, Tensor)}
    return len(boxes) + len(leaves)


# What repeats itself is folded


def folded(boxes: list[Box], room: int) -> list[Box]:
    """Fewer boxes, if there is no room for so many: of what repeats itself only the beginning and the end, the longest repetition first."""
    while crowd(boxes) > room:
        found = repetition([label(box) for box in boxes])
        if found is None:
            break
        first, period, times = found
        inner = boxes[first + period:first + (times - 1) * period]
        kinds = [title(box) for box in inner[:period]]
        box = merged(f"{times - 2:,} times more", ", ".join(kinds[:6]) + (", ..." if period > 6 else ""), inner)
        boxes = [*boxes[:first + period], box, *boxes[first + (times - 1) * period:]]
    return boxes


def cut(boxes: list[Box], room: int) -> list[Box]:
    """The first and the last boxes, and one for all between."""
    ends = max(1, min(room // 4, (len(boxes) - 2) // 2))
    inner = boxes[ends:-ends]
    if len(inner) < 2:
        return boxes
    counts = Counter(node.name for box in inner for node in box.nodes)
    most = ", ".join(f"{count:,} {name}" for name, count in counts.most_common(4)) + (", ..." if len(counts) > 4 else "")
    return [*boxes[:ends], merged(f"{counts.total():,} operations", most, inner), *boxes[-ends:]]


def merged(title: str, fact: str, boxes: list[Box]) -> Box:
    nodes = [node for box in boxes for node in box.nodes]
    return Box("repeats", title, [fact], common([calls_of(node) for node in nodes]), nodes)


def title(box: Box) -> str:
    return type(box_call(box)).__name__ if box.kind == "module" else box.title


def box_call(box: Box) -> Any:
    """The module whose call a box stands for."""
    return calls_of(box.nodes[0])[len(box.calls)][0]


def label(box: Box) -> Any:
    """Equal for boxes that look the same."""
    if box.kind == "repeats":
        return id(box)
    return box.kind, title(box), tuple(node.name for node in box.nodes), box.nodes[-1].like


def repetition(labels: list[Any]) -> tuple[int, int, int] | None:
    """Where folding saves most: (first, period, times); None if nothing comes four times in a row."""
    numbers: dict[Any, int] = {}
    row = np.array([numbers.setdefault(label, len(numbers)) for label in labels])
    best: tuple[int, int, int] | None = None
    most = 0
    for period in range(1, min(PERIODS, len(row) // 4) + 1):
        same = np.concatenate([[0], row[:-period] == row[period:], [0]]).astype(np.int8)
        steps = np.diff(same)
        starts, stops = np.flatnonzero(steps == 1), np.flatnonzero(steps == -1)
        if not len(starts):
            continue
        longest = int(np.argmax(stops - starts))
        times = int(stops[longest] - starts[longest]) // period + 1
        saved = (times - 2) * period - 1
        if times >= 4 and saved > most:
            best, most = (int(starts[longest]), period, times), saved
    return best


def common(calls: list[tuple[Any, ...]]) -> tuple[Any, ...]:
    """The calls that all have in common."""
    shared = calls[0] if calls else ()
    for other in calls[1:]:
        both = 0
        while both < min(len(shared), len(other)) and shared[both] is other[both]:
            both += 1
        shared = shared[:both]
    return shared
