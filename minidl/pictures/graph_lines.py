"""What flows between the boxes of a computation graph: lines, and at their ends the leaves that it came from and its results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from minidl import backend
from minidl.graph import Node
from minidl.nn import Parameter
from minidl.pictures.graph_boxes import LEAF, Box, Paths, box_call, chosen, common, described, edge_of
from minidl.pictures.graph_numbers import Amount
from minidl.tensor import Tensor
from minidl.walk import reached

MOST = 8                # leaves of one box that have a box of their own


@dataclass(eq=False)
class Line:
    """From where something was made to where it is used."""

    source: Box
    target: Box
    places: list[Any] = field(default_factory=list)             # edges of the graph, or arrays of constants
    uses: list[tuple[Node, int]] = field(default_factory=list)  # as which input of which operations
    argument: str = ""                                          # what the operation calls it
    value: Amount | None = None
    gradient: Amount | None = None                              # what comes back along this line alone
    known: int = 0                                              # the step of a backward pass after which it is complete

    @property
    def shape(self) -> str:
        """The shape of what flows here, as '(2, 3)', and how many times."""
        shapes = {shape_of(place) for place in self.places}
        if len(shapes) > 1:
            return f"{len(self.places):,} arrays"
        return (f"{len(self.places):,} x " if len(self.places) > 1 else "") + str(shapes.pop())


def shape_of(place: Any) -> tuple[int, ...]:
    return place[0].like[place[1]][0] if type(place) is tuple else place.shape


def place_key(place: Any) -> Any:
    """Equal for what is the same place in the graph."""
    return place if type(place) is tuple else id(place)


class Sketch:
    """The boxes in the order of computation, each after its leaves; the lines between them; and what things are called.

    roots: the Tensors whose graph it is. depth, names: see draw.
    """

    def __init__(self, roots: Sequence[Tensor], depth: int | None, names: Mapping[str, Any]):
        nodes = reached(map(edge_of, roots))
        self.paths = Paths(names)
        self.paths.learn(nodes)
        operations = chosen(nodes, depth, self.paths)
        self.made_in = {node: box for box in operations for node in box.nodes}
        self.framed = framed(operations)
        self.users: dict[int, dict[Box, None]] = {}             # which boxes use a leaf
        for node, box in self.made_in.items():
            for edge in node.edges:
                if isinstance(edge, Tensor):
                    self.users.setdefault(id(edge), {})[box] = None
        self.leaves: dict[int, Box] = {}                        # the box of a leaf or constant
        self._lines: dict[Any, Line] = {}
        self.boxes: list[Box] = []
        for box in operations:
            self._add(box)
        for number, root in enumerate(roots, 1):
            self._finish(root, f"result {number}" if len(roots) > 1 else "result")

    @property
    def lines(self) -> list[Line]:
        return list(self._lines.values())

    def _add(self, box: Box) -> None:
        """A box of operations, what leads to it, and before it the leaves that have not been used before."""
        inputs = [(node, i, place) for node in box.nodes for i, edge in enumerate(node.edges)
                  if (place := constant(node, i, box) if edge is None else edge) is not None]
        few = sum(type(place) is not tuple for _, _, place in inputs) <= MOST
        shown, others = 0, None                                 # how many leaves have a box, and the box for all the others
        for node, i, place in inputs:
            if type(place) is tuple:
                source = self.made_in[place[0]]
                if source is not box:
                    self._connect(source, box, place, node, i)
                continue
            users = self.users.get(id(place), {box: None})
            if isinstance(place, Tensor) and hidden(place, users, self.paths):
                if not any(place is other for other in box.held):
                    box.held.append(place)
                continue
            leaf = self.leaves.get(id(place))
            if leaf is None:
                leaf = leaf_box(place, argument(node, i), self.paths)
                leaf.calls = common([each.calls for each in users])
                if few or shown < MOST - 1 or len(users) > 1:
                    shown += 1
                    self.boxes.append(leaf)
                else:
                    if others is None:
                        others = Box(leaf.kind, "", calls=leaf.calls)
                        self.boxes.append(others)
                    others.held.append(place)
                    others.title = f"{len(others.held):,} more"
                    leaf = others
                self.leaves[id(place)] = leaf
            self._connect(leaf, box, place, node, i)
        if box.merged:
            box.facts += about(box, self.paths)
        else:
            path = self.paths.module(box.calls[-1][0]) if box.calls and id(box.calls[-1]) not in self.framed else ""
            box.facts = [fact for fact in (path, ", ".join(box.facts)) if fact]
        self.boxes.append(box)

    def _finish(self, root: Tensor, title: str) -> None:
        end = edge_of(root)
        if end is root:
            if id(root) not in self.leaves:
                self.leaves[id(root)] = leaf_box(root, "", self.paths)
                self.boxes.append(self.leaves[id(root)])
            return
        result = Box("result", self.paths.given.get(end, title), place=end)
        self.boxes.append(result)
        self._lines[id(result)] = Line(self.made_in[end[0]], result, [end])

    def _connect(self, source: Box, target: Box, place: Any, node: Node, i: int) -> None:
        """A line for each input of an operation; for each array that goes into several operations together; for all that a fold takes."""
        key: Any = (node, i)
        if "repeats" in (source.kind, target.kind) or (source.kind in LEAF and source.held):
            key = source, target
        elif target.merged:
            key = place_key(place), target
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = Line(source, target, argument="" if target.merged or source.held else argument(node, i))
        if not line.places or place_key(place) != place_key(line.places[-1]):
            line.places.append(place)
        line.uses.append((node, i))


def framed(boxes: Iterable[Box]) -> set[int]:
    """The calls of modules, by id, that have several boxes, and so a frame around them."""
    counts = Counter(id(call) for box in boxes for call in box.calls)
    return {call for call, count in counts.items() if count > 1}


def argument(node: Node, i: int) -> str:
    """What an operation calls its input, where it has several."""
    return "" if node.function is None or len(node.edges) == 1 else node.function.label(i)


def hidden(leaf: Tensor, users: Iterable[Box], paths: Paths) -> bool:
    """Whether a leaf needs no box: a parameter that one module alone uses, or what is used in one fold alone."""
    if not all(box.merged for box in users):
        return False
    if id(leaf) in paths.parameters:
        return len({id(box_call(box)) for box in users if box.kind == "module"}) <= 1
    return [box.kind for box in users] == ["repeats"]


def constant(node: Node, i: int, box: Box) -> Any:
    """The array of an input that gets no gradient, where it was kept; of a module only what it is called with."""
    if node.function is None or (box.merged and (i or box.kind == "repeats")):
        return None
    plan = node.function.plan
    kept = node.saved.get(plan.args[0] if plan.variadic else plan.args[i])
    kept = kept[i] if isinstance(kept, list) else kept
    return kept if backend.is_array(kept) else None


def leaf_box(place: Any, argument: str, paths: Paths) -> Box:
    named = paths.given.get(id(place), "")
    if not isinstance(place, Tensor):
        return Box("constant", named or argument or "constant", place=place)
    path = paths.parameters.get(id(place), "")
    learned = path or isinstance(place, Parameter)
    kind = "constant" if not place.requires_grad else "parameter" if learned else "input"
    return Box(kind, named or path or kind, place=place)


def about(box: Box, paths: Paths) -> list[str]:
    """What is in a box that stands for several operations."""
    facts = []
    if box.kind == "module":
        facts.append(f"{len(box.nodes):,} operations" if len(box.nodes) > 3 else ", ".join(described(node)[0] for node in box.nodes))
    learned = sum(leaf.size for leaf in box.held if id(leaf) in paths.parameters)
    if learned:
        facts.append(f"{learned:,} parameter{'s' * (learned > 1)}")
    return facts
