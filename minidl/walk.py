"""The walk backward: each Node once, the youngest first, with the gradients under way in one local dictionary.

A Node's number is larger than the numbers of all Nodes it came from. So a heap of the Nodes reached, youngest on top, gives a
topological order, found while walking, and no recursion is needed. Only when a gradient is complete does it become a leaf's `.grad`.

In an ordinary pass a Node gives up what it holds when its turn comes, and each array goes with the last step that names it (plan.py says
which). An array is written into a second time only where Python counts no other reference to it: what anybody else holds stays as it is.
What users call stands in autograd.py; this file knows no operation by name.
"""

from __future__ import annotations

import heapq
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from time import perf_counter_ns
from typing import Any, Protocol

import numpy as np

from minidl import backend
from minidl.backend import Array
from minidl.errors import DefinitionError, ShapeError
from minidl.graph import PASSING, Node, freed
from minidl.modes import check_finite, mode, switched
from minidl.plan import Step
from minidl.shortage import shortage
from minidl.tensor import Tensor, make
from minidl.watchers import awaited

Edge = Any          # a leaf Tensor, or (Node, number of its output)


class Observer(Protocol):
    """Who is shown, for every layer that uses a parameter, the layer's input and the gradient at its output.

    `parameter.register_observer(observer)` makes the two known to each other. When a backward pass is about to reach the parameter,
    `wants` is asked once. If it says yes, `before_backward` may run passes of its own with `observe` on the graph, which is still
    whole. In those passes, and in the ordinary one that follows, `see` is called where the parameter's gradient rule stands.
    """

    def wants(self) -> bool:
        """Whether to take part in the backward pass that is about to start."""

    def before_backward(self, loss: Tensor, seed: Array) -> bool | None:
        """Called once, before the ordinary pass, with the Tensor that it starts from and the gradient there: 1, or what was given.

        False if the ordinary pass need not be shown: it then frees memory as it goes.
        """

    def see(self, x: Array, gy: Array, op: Node) -> None:
        """The layer's input x, the gradient gy at its output (before a fused activation), and its Node.

        `op.function` has the layer's options, `op.argument("w")` and `op.argument("b")` its parameters. Neither array may be written to.
        """


class Walk:
    """One pass backward.

    create_graph: rules run on Tensors, and what they do is recorded. retain: keep what the Nodes hold, for another pass.
    only: the edges whose gradients are wanted; nothing else is computed, and no `.grad` is left. observers: to be shown their layers.
    observe_only: show them, and leave no trace: parameters' rules do not run, no `.grad`, no hook, nothing freed.
    """

    def __init__(self, *, create_graph: bool = False, retain: bool = False, only: Iterable[Edge] | None = None,
                 observers: Sequence[Observer] = (), observe_only: bool = False):
        self.create_graph = create_graph
        self.retain = retain or create_graph
        self.targets = None if only is None else set(only)
        self.observers = observers
        self.observe_only = observe_only
        self.frees = not self.retain and not observers              # what each Node holds, as its rules run
        self.numerics, self.recorder = mode.get().numerics, mode.get().recorder
        self.useful: set[Edge] | None = None                        # edges that lead to something wanted; None if all do
        self.gradients: dict[Edge, Any] = {}                        # under way, complete or not
        self.found: dict[Edge, Any] = {}                            # of the targets
        self.uses: dict[Tensor, int] = {}                           # of leaves with a ready hook: how many are still to come
        self.heap: list[tuple[int, Node]] = []

    def run(self, roots: Sequence[tuple[Edge, Any]]) -> None:
        """Walk from the roots: pairs of an edge and the gradient there."""
        if self.targets is not None or self.observe_only or awaited:
            self._look_ahead([edge for edge, _ in roots])
        for edge, seed in roots:
            self._arrive(edge, _tensor(seed) if self.create_graph else _plain(seed))
        with switched(grad=True) if self.create_graph else nullcontext():
            while self.heap:
                self._visit(heapq.heappop(self.heap)[1])
            for leaf in list(self.gradients):
                self._finish(leaf)
        if self.recorder is not None and not self.observe_only:
            self.recorder.walked()

    def _look_ahead(self, roots: list[Edge]) -> None:
        """One loop over the Nodes before the walk: which lead to something wanted, and how often each leaf with a ready hook is used."""
        nodes = reached(roots)
        if self.targets is not None or self.observe_only:
            self.useful = useful = set(self.targets or ())
            for node in nodes:                                      # the oldest first
                if any(edge in useful or self._seeing(edge) for edge in node.edges):
                    useful.update((node, k) for k in range(len(node.like)))
        else:
            for edge in (edge for node in nodes for edge in node.edges):
                if isinstance(edge, Tensor) and edge.watchers is not None and edge.watchers.ready:
                    self.uses[edge] = self.uses.get(edge, 0) + 1

    def _seeing(self, edge: Edge) -> list[Observer]:
        """The observers of a leaf that take part in this pass."""
        if not self.observers or not isinstance(edge, Tensor) or edge.watchers is None:
            return []
        return [mine for mine in edge.watchers.observers if any(mine is other for other in self.observers)]

    def _arrive(self, edge: Edge, gradient: Any) -> None:
        """Add a gradient to what is there: into that array itself if nobody else holds it, and into a new one otherwise."""
        there = self.gradients.get(edge)
        if there is None:
            if type(edge) is tuple:
                node = edge[0]
                if len(node.like) == 1 or not any((node, k) in self.gradients for k in range(len(node.like))):
                    heapq.heappush(self.heap, (-node.order, node))
            self.gradients[edge] = gradient
        elif self.create_graph:
            self.gradients[edge] = there + gradient
        elif _unshared(sys.getrefcount(there), there):
            there += gradient
        else:
            self.gradients[edge] = _array(there + gradient)

    def _visit(self, node: Node) -> None:
        """Run the rules of one Node, whose gradient is complete."""
        several = len(node.like) > 1
        gradients = [self.gradients.pop((node, k), None) for k in range(len(node.like))] if several else [self.gradients.pop((node, 0))]
        if node.watchers is not None and not self.observe_only:
            gradients = [self._show(node.watchers.get(k), gradient) for k, gradient in enumerate(gradients)]
        if self.targets is not None:
            self.found.update(((node, k), self._copy(gradient)) for k, gradient in enumerate(gradients)
                              if gradient is not None and (node, k) in self.targets)
            if not any(edge in self.useful for edge in node.edges):     # type: ignore[operator]   # set by _look_ahead
                return
        function = node.function
        if function is None:
            raise freed(node)
        if node.versions or node.checksums:
            node.check_kept()

        due = node.due
        if self.useful is not None:
            due = tuple(i for i in due if node.edges[i] in self.useful or self._seeing(node.edges[i]))
        values = self._values(node, gradients)
        del gradients                                               # what `values` lets go of is gone
        if self.frees:
            node.release()
        for step in function.plan.steps(due):
            try:
                gradient = self._run(step, values, node, function)
            except MemoryError as error:
                near = [*values.values(), *self.gradients.values(), *(edge._data for edge in node.edges if isinstance(edge, Tensor))]
                raise shortage(error, f"backward pass of {node.where()}, gradient of {function.label(step.i)}",
                               next(filter(backend.is_array, near), None), [each for _, each in self.heap]) from None
            except Exception as error:
                error.add_note(f"  in the backward pass of {node.where()}, in the gradient of {function.label(step.i)}")
                if isinstance(error, TypeError) and "ufunc" in str(error):
                    error.add_note("  NumPy's functions take no Tensors: write a rule with operators and minidl.functions")
                raise
            if gradient is None:
                continue
            edge = node.edges[step.i]
            self._arrive(edge, gradient)
            del gradient                                            # so that a leaf finds itself the only one to hold it
            if self.uses and edge in self.uses:
                self.uses[edge] -= 1
                if not self.uses[edge]:
                    self._finish(edge)
        if not self.retain and not self.frees:
            node.release()

    def _values(self, node: Node, gradients: list[Any]) -> dict[str, Any]:
        """What the rules of a Node may name: gradients, of which zeros stand for those that did not arrive, inputs and outputs."""
        plan = node.function.plan
        values = node.saved if self.frees else dict(node.saved)
        if self.create_graph:           # the same arrays, each at its place in the graph, so that what the rules do is recorded
            for name, x in node.saved.items():
                if name in plan.outputs:
                    values[name] = make(x, node, plan.outputs.index(name))
                else:
                    values[name] = [node.at(i, each) for i, each in enumerate(x)] if plan.variadic else node.argument(name)
        if len(gradients) == 1:
            values[plan.gradients[0]] = gradients[0]
            return values
        present = next(_plain(gradient) for gradient in gradients if gradient is not None)
        for name, gradient, (shape, dtype) in zip(plan.gradients, gradients, node.like):
            if gradient is None:
                zeros = backend.of(present).zeros(shape, dtype)
                values[name] = make(zeros) if self.create_graph else zeros
            else:
                values[name] = gradient
        return values

    def _run(self, step: Step, values: dict[str, Any], node: Node, function: Any) -> Any:
        """Run one step of a plan. A shared value goes to the others; a gradient comes back, in its argument's shape and dtype."""
        method, names, last, out, shared, i = step
        edge = node.edges[i]
        if function.plan.variadic:
            values["i"] = i
        if self.observers and not shared:
            for observer in self._seeing(edge):
                observer.see(_plain(node.saved.get("x")), _plain(values[names[0]]), node)
        args = list(map(values.__getitem__, names))
        for name in last:
            del values[name]
        if self.useful is not None and not shared and edge not in self.useful:
            return None
        if function.in_float32:
            args = [backend.wide(x) for x in args]
        recorder = self.recorder
        if recorder is not None:
            started = recorder.now(type(args[0])) if recorder.devices else perf_counter_ns()
        if out and not self.create_graph:
            first = args[0]
            spare = first if _unshared(sys.getrefcount(first), first) else None
            result = method(function, *args, out=spare)
        else:
            result = method(function, *args)
        if recorder is not None:
            recorder.rule(started, node, function, step, args, result)
        if shared:
            values[shared] = result
            return None
        if type(result) in PASSING:
            raise DefinitionError(f"{node.name}: the rule for {function.label(i)} gave a {type(result).__name__}, and no gradient",
                                  hint="A rule gives an array, or a Tensor if it was given Tensors.")
        shape, dtype = edge[0].like[edge[1]] if type(edge) is tuple else (edge.shape, edge.dtype)
        if result.shape != shape:
            result = _summed(result, shape, node, function.label(i))
        if result.dtype is not dtype and result.dtype != dtype:
            result = result.astype(dtype)
        if isinstance(result, np.generic):                          # NumPy's, where no axis was left
            result = np.asarray(result)
        if self.numerics:
            check_finite(result, f"{node.name}: the gradient of {function.label(i)}", node.stack, node.line)
        return result

    def _show(self, watchers: Any, gradient: Any) -> Any:
        """Run the hooks of an inner Tensor and leave its `.grad`, where somebody asked for it."""
        if watchers is None or gradient is None:
            return gradient
        gradient = self._hooked(watchers.hooks, gradient)
        tensor = watchers.retain() if watchers.retain is not None else None
        if tensor is not None and self.targets is None:
            self._leave(tensor, self._copy(gradient))
        return gradient

    def _hooked(self, hooks: list[Callable], gradient: Any) -> Any:
        for hook in list(hooks):
            given = hook(gradient if self.create_graph else make(gradient))
            if given is None:
                continue
            if not isinstance(given, Tensor) and not backend.is_array(given):
                raise DefinitionError(f"register_hook: the hook gave a {type(given).__name__}, and must give an array, a Tensor or None")
            if given.shape != gradient.shape:
                raise ShapeError(f"register_hook: the hook gave a gradient of shape {given.shape}, where {gradient.shape} belongs")
            given = _tensor(given) if self.create_graph else _plain(given)
            gradient = given if given.dtype == gradient.dtype else given.astype(gradient.dtype)
        return gradient

    def _finish(self, leaf: Tensor) -> None:
        """The gradient of a leaf is complete: give it to whoever asked."""
        gradient = self._take(leaf)
        if self.observe_only:
            return
        if self.targets is not None:
            self.found[leaf] = gradient
            return
        self._leave(leaf, gradient)
        if leaf.watchers is not None:
            for hook in list(leaf.watchers.ready):
                hook(leaf)

    def _take(self, leaf: Tensor) -> Any:
        """A complete gradient, out of the dictionary and through the leaf's hooks, in memory that nobody else holds: not the seed, a view,
        another's gradient, or what a hook has kept."""
        gradient = self.gradients.pop(leaf)
        if leaf.watchers is not None and not self.observe_only:
            gradient = self._hooked(leaf.watchers.hooks, gradient)
        if self.create_graph:
            return self._copy(gradient)
        return gradient if _unshared(sys.getrefcount(gradient) + 1, gradient) else gradient.copy()

    def _copy(self, gradient: Any) -> Any:
        return gradient * 1 if self.create_graph else gradient.copy()       # times 1: a copy that stays in the graph

    def _leave(self, tensor: Tensor, gradient: Any) -> None:
        """Add to `.grad`."""
        before = tensor._grad
        if before is not None:
            gradient = before + gradient if self.create_graph else _array(before._data + gradient)
        tensor._grad = gradient if self.create_graph else make(gradient)


def reached(edges: Iterable[Edge]) -> list[Node]:
    """Every Node that a backward pass from these edges comes by, the oldest first."""
    seen: set[Node] = set()
    todo = [edge[0] for edge in edges if type(edge) is tuple]
    while todo:
        node = todo.pop()
        if node not in seen:
            seen.add(node)
            todo += [edge[0] for edge in node.edges if type(edge) is tuple]
    return sorted(seen, key=lambda node: node.order)


def sum_to(x: Any, shape: tuple[int, ...]) -> Any:
    """Undo broadcasting: sum x over the axes along which an array of this shape was repeated.

    x: an array or a Tensor; what has 16 bits is summed in float32, and stays so. ShapeError if an array of this shape does not
    broadcast to x.
    """
    lead = x.ndim - len(shape)
    if lead < 0 or any(n != m and n != 1 for n, m in zip(shape, x.shape[lead:])):
        raise ShapeError(f"sum_to: an array of shape {shape} does not broadcast to {x.shape}")
    axes = tuple(range(lead)) + tuple(lead + i for i, n in enumerate(shape) if n == 1 and x.shape[lead + i] != 1)
    return backend.wide(x).sum(axis=axes, keepdims=True).reshape(shape)


def _summed(gradient: Any, shape: tuple[int, ...], node: Node, name: str) -> Any:
    try:
        return sum_to(gradient, shape)
    except ShapeError:
        raise DefinitionError(f"{node.name}: the rule for {name} gave a gradient of shape {gradient.shape}, and {name} has {shape}",
                              hint="A gradient has the shape of its argument, or one that the argument broadcasts to.") from None


def _array(x: Any) -> Array:
    """x, or an array where NumPy gave a scalar because no axis was left."""
    return np.asarray(x) if isinstance(x, np.generic) else x


def _plain(x: Any) -> Any:
    return x.data if isinstance(x, Tensor) else x


def _tensor(x: Any) -> Tensor:
    return x if isinstance(x, Tensor) else make(x)


def _count_references() -> int:
    x = np.empty(1)
    held = [x]
    return sys.getrefcount(x) if held else 0


HELD = _count_references()          # what Python counts for an array that a local variable and a list or dictionary hold, and nobody else


def _unshared(references: int, x: Array) -> bool:
    """Whether x can be written into: nobody else holds it, or the array that it is a view of, and it is a view of the whole of that.

    references: what Python counted where a local variable and one list or dictionary hold x.
    """
    if references > HELD:
        return False
    base: Any = x.base
    if base is not None and (getattr(base, "size", 0) != x.size or base.base is not None or sys.getrefcount(base) > HELD):
        return False
    return bool(getattr(x.flags, "writeable", True))
