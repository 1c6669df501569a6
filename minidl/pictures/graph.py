"""The computation graph to look at: what was computed from what, and how the gradient walks back through it.

    draw(loss)                                    operations, parameters, shapes
    draw(loss, values=True, gradients=True)       with numbers on the edges
    for picture in backward_steps(loss): ...      the backward pass, an operation at a time

Which boxes there are is decided in graph_boxes.py, what flows between them in graph_lines.py, where numbers come from in
graph_numbers.py, and what it looks like in graph_dot.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from minidl import backend
from minidl.errors import GraphError
from minidl.graph import Node
from minidl.pictures.graph_boxes import Box, edge_of
from minidl.pictures.graph_dot import Drawing, Scene
from minidl.pictures.graph_lines import Line, Sketch, place_key
from minidl.pictures.graph_numbers import Watched, amount, find_values
from minidl.tensor import Tensor
from minidl.walk import reached


def draw(*tensors: Tensor, values: bool = False, gradients: bool = False, depth: int | None = None,
         names: Mapping[str, Any] | None = None, highlight: Sequence[Tensor] = ()) -> Drawing:
    """The graph that led to one Tensor or several: each operation, what went into it, and the shapes on the way.

    Where modules were called, parameters have their path, and frames the modules'. Of a large graph modules are one box each, and what
    repeats itself is drawn once at its beginning and once at its end. Nothing is changed: no `.grad`, and the graph stays whole.

    values, gradients: write the numbers into it, or for large arrays the range. The gradients are those of the sum of the tensors, which
    must be single numbers; hooks run as in any backward pass. A value is left out where the engine kept nothing to compute it from; name
    its Tensor, and it is there.
    depth: how many levels of modules to open; 0 makes each model one box. By default as many as there is room for.
    names: what Tensors and Modules are to be called: {"x": x, "hidden": h}, or locals(); names that begin with _ are left out.
    highlight: Tensors whose boxes are to stand out.
    GraphError for what is no Tensor, or if gradients are asked for where there are none.

    >>> w = Tensor([1.0, 2.0], requires_grad=True)
    >>> print(draw((w * w).sum(), gradients=True, names={"w": w}))
    2 operations, 1 leaf
    1  w  input  (2,)
         gradient from 2 (a) [1, 2]
         gradient from 2 (b) [1, 2]
         their sum [2, 4]
    2  multiply of 1, 1  (2,)
         gradient [1, 1]
    3  sum of 2  ()
         gradient 1
    4  result of 3  ()
    """
    sketch = sketched(tensors, depth, names)
    if values:
        add_values(tensors, sketch, names or {})
    if gradients:
        add_gradients(tensors, sketch)
    lit = frozenset(box for box in sketch.boxes for tensor in highlight if stands_for(box, tensor))
    return Drawing(Scene(sketch, highlight=lit, notes=remarks(tensors)))


def backward_steps(loss: Tensor, values: bool = True, depth: int | None = None, names: Mapping[str, Any] | None = None) -> list[Drawing]:
    """The backward pass in pictures: the first has only the gradient it starts from, each further one what the next box's rules add.

    loss: a single number. values, depth, names: as in `draw`. The box whose rules run is highlighted, and so are the lines along which it
    passes gradients on. Gradients that are not known yet have an empty place. No `.grad` is touched, and the graph stays whole.

    >>> w = Tensor([3.0], requires_grad=True)
    >>> len(backward_steps((w * w).sum()))
    3
    """
    sketch = sketched([loss], depth, names)
    if values:
        add_values([loss], sketch, names or {})
    order = add_gradients([loss], sketch)
    results = frozenset(box for box in sketch.boxes if box.kind == "result")
    steps = [Drawing(Scene(sketch, f"Step 0 of {len(order)}: the gradient of the result by itself is 1", results, 0))]
    for step, box in enumerate(order, 1):
        steps.append(Drawing(Scene(sketch, f"Step {step} of {len(order)}: {box.title} passes the gradient on", frozenset([box]), step)))
    return steps


def sketched(tensors: Sequence[Any], depth: int | None, names: Mapping[str, Any] | None) -> Sketch:
    if not tensors:
        raise GraphError("draw: there is nothing to draw", hint="Give it a Tensor: draw(loss).")
    for tensor in tensors:
        if not isinstance(tensor, Tensor):
            raise GraphError(f"draw: a {type(tensor).__name__} has no graph", hint="Only a Tensor records what happened to it.")
    return Sketch(tensors, depth, names or {})


def remarks(tensors: Sequence[Tensor]) -> tuple[str, ...]:
    """What is to be said about a graph that is not whole."""
    notes = []
    if all(tensor.node is None for tensor in tensors):
        recorded = any(tensor.requires_grad for tensor in tensors)
        notes.append("a leaf: nothing was computed to get it" if recorded else
                     "no operation was recorded: made by hand, under no_grad, or from constants alone")
    elif any(node.function is None for node in reached(map(edge_of, tensors))):
        notes.append("a backward pass has freed what the operations kept: options and constants are not known any more")
    return tuple(notes)


def stands_for(box: Box, tensor: Tensor) -> bool:
    if tensor.node is not None:
        return tensor.node in box.nodes
    return box.place is tensor or box.place is tensor.data or any(tensor is leaf for leaf in box.held)


# Numbers


def add_values(tensors: Sequence[Tensor], sketch: Sketch, names: Mapping[str, Any]) -> None:
    """Write values into leaves and results, and on the lines from operations."""
    known = {edge_of(tensor): tensor.data for tensor in (*names.values(), *tensors)
             if isinstance(tensor, Tensor) and tensor.node is not None}
    wanted = [line.places[0] for line in sketch.lines if len(line.places) == 1]
    found = find_values(reached(map(edge_of, tensors)), wanted, known)
    for box in sketch.boxes:
        if box.place is not None:
            array = found.get(box.place) if type(box.place) is tuple else box.place.data if isinstance(box.place, Tensor) else box.place
            box.value = amount(array) if array is not None else None
    for line in sketch.lines:
        array = found.get(line.places[0]) if len(line.places) == 1 and type(line.places[0]) is tuple else None
        line.value = amount(array) if array is not None and line.target.kind != "result" else None


def add_gradients(tensors: Sequence[Tensor], sketch: Sketch) -> list[Box]:
    """Write the gradients on the lines, and their sums into the boxes; gives the boxes in the order in which their rules have run."""
    for tensor in tensors:
        if not tensor.requires_grad:
            raise GraphError(f"draw: a Tensor of shape {tensor.shape} requires no gradient, so there are none to show",
                             hint="Make an input with requires_grad=True, and compute outside no_grad().")
        if tensor.size != 1:
            raise GraphError(f"draw: a Tensor of shape {tensor.shape} is not one number, so it has no gradient of its own",
                             hint="Draw its sum() or mean(), or leave out gradients=True.")
    of_use = {use: line for line in sketch.lines for use in line.uses if len(line.places) == 1}
    totals: dict[Line, Any] = {}
    order: list[Box] = []
    step_of: dict[Box, int] = {}

    def step(node: Node) -> int:
        box = sketch.made_in[node]
        if box not in step_of:
            order.append(box)
            step_of[box] = len(order)
        return step_of[box]

    def note(node: Node, i: int, gradient: Any) -> None:
        line = of_use.get((node, i))
        if line is not None:
            line.known = max(line.known, step(node))
            totals[line] = totals[line] + gradient if line in totals else gradient.copy()

    ends = [edge_of(tensor) for tensor in tensors]
    leaves = {edge for edge in (*ends, *(edge for node in reached(ends) for edge in node.edges)) if isinstance(edge, Tensor)}
    walk = Watched(leaves, note)
    walk.run([(end, backend.of(tensor.data).ones_like(tensor.data)) for end, tensor in zip(ends, tensors)])
    for node in walk.visited:
        step(node)
    for line in sketch.lines:
        if line.target.kind == "result":
            totals[line] = backend.of(tensors[0].data).ones(tensors[0].shape, tensors[0].dtype)
    together: dict[Box, list[Line]] = {}
    for line, total in totals.items():
        line.gradient = amount(total)
        together.setdefault(line.source, []).append(line)
    for box, several in together.items():
        if len(several) > 1 and len({place_key(line.places[0]) for line in several}) == 1:
            total = totals[several[0]]
            for line in several[1:]:
                total = total + totals[line]
            box.gradient, box.known = amount(total), max(line.known for line in several)
    return order
