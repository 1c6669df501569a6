"""Events: what a Recorder has written down, as plain records in seconds, each in the phase and the layer that it belongs to.

A function may call other functions, and so may a rule. Time belongs to the outermost of them: what is called inside is in the trace, and
in no row. Operations are counted where an operation says how many multiply-adds it does (`multiply_adds`, on a product); a multiply-add
is two. Any other operation is counted as one for each number of its result, and one that only looks at memory in another way as none.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from minidl.errors import ArgumentError, layer_path
from minidl.profiler import Recorder

CATEGORIES = ("phase", "layer", "operation", "rule", "update", "exchange")


@dataclass(slots=True)
class Event:
    """Something that took time on a rank: start and end in seconds, from the beginning of the profile.

    thread: "computation", "exchange" (or "exchange 2", where two are under way at a time), or the name of another thread. category: one of
    CATEGORIES. layer, phase: to which it belongs. flops, bytes: arithmetic operations, and bytes read and written. made: bytes of the
    result. outer: whether it is in no other operation.
    """

    rank: int
    thread: str
    name: str
    category: str
    start: float
    end: float
    layer: str = ""
    phase: str = ""
    flops: int = 0
    bytes: int = 0
    made: int = 0
    outer: bool = True

    @property
    def seconds(self) -> float:
        """From start to end."""
        return self.end - self.start


@dataclass(slots=True)
class Kept:
    """Bytes that an operation of a layer has kept for the backward pass, in one call."""

    layer: str
    name: str
    bytes: int


class Layers:
    """The paths of layers, each looked up once."""

    def __init__(self) -> None:
        self.known: dict[tuple[int, ...], str] = {}
        self.held: list[Any] = []                       # so that no number comes twice

    def path(self, stack: Any) -> str:
        """Of a stack of modules."""
        numbers, rest = [], stack
        while rest is not None:
            numbers.append(id(rest[0]))
            rest = rest[1]
        key = tuple(numbers)
        if key not in self.known:
            self.known[key] = layer_path(stack)
            self.held.append(stack)
        return self.known[key]

    def of_parameter(self, path: str) -> str:
        """The layer of a parameter, as the forward pass calls it if it has come by."""
        owner = path.rpartition(".")[0]
        return next((name for name in self.known.values() if owner and name.startswith(f"{owner} (")), owner)


def events_of(recorder: Recorder, first: int, last: int, main: int, rank: int, names: dict[int, str]) -> tuple[list[Event], list[Kept]]:
    """Everything that was written down between two moments (nanoseconds), in order; and what was kept.

    main: the thread whose profile it is. names: of other threads.
    """
    layers = Layers()
    found: list[tuple[int, int, int, int, Event]] = []         # start, -end, how deep a phase is, thread

    def take(started: Any, ended: Any, thread: int, deep: int, **about: Any) -> None:
        begin, end = recorder.nanoseconds(started), recorder.nanoseconds(ended)
        if end > first and begin < last:
            begin, end = max(begin, first), min(max(end, begin), last)
            name = "computation" if thread == main else names.get(thread, f"thread {thread}")
            found.append((begin, -end, deep, thread, Event(rank, name, start=(begin - first) / 1e9, end=(end - first) / 1e9, **about)))

    for started, ended, thread, name, depth, _ in recorder.phases:
        take(started, ended, thread, depth, name=name, category="phase")
    for operation in recorder.operations:
        started, ended, thread, kind, stack, *_ = operation
        take(started, ended, thread, 1000, name=kind.name, category="operation", layer=layers.path(stack), **work(operation))
    for started, ended, thread, operation, step, looks in recorder.rules:
        kind, stack = operation[3:5]
        take(started, ended, thread, 1000, name=f"{kind.name} {rule_name(kind, step)}", category="rule", layer=layers.path(stack),
             **rule_work(operation, step, looks))
    for started, ended, thread, kind, path, size, remembered in recorder.updates:       # w, g and the memory are read, w and it written
        take(started, ended, thread, 1000, name=kind.__name__.lower(), category="update", layer=layers.of_parameter(path),
             bytes=(3 + 2 * remembered) * size)
    kept = [Kept(layers.path(stack), kind.name, size) for stack, kind, size in recorder.kept]
    found.sort(key=lambda each: each[:3])
    events = [*nested(found), *lanes(recorder, first, last, rank)]
    return sorted(events, key=lambda event: event.start), kept


def nested(found: Iterable[tuple[int, int, int, int, Event]]) -> list[Event]:
    """Events in the order of their starts, told in which phase they are, and whether in another operation; with an event for each layer."""
    stacks: dict[int, list[Event]] = {}
    open_layers: dict[int, Event] = {}
    inside: dict[int, Event | None] = {}                # the phase that the open layer of a thread is in
    events: list[Event] = []
    for _, _, _, thread, event in found:
        stack = stacks.setdefault(thread, [])
        while stack and stack[-1].end <= event.start and not (event.end == event.start == stack[-1].end):
            stack.pop()
        if stack and event.end > stack[-1].end:         # two clocks, of a device and of the host, may differ by a little
            event.end = stack[-1].end
        phase = next((other for other in reversed(stack) if other.category == "phase"), None)
        event.outer = event.category == "phase" or all(other.category == "phase" for other in stack)
        if event.category != "phase":
            event.phase = "other" if phase is None else phase.name
        events.append(event)
        stack.append(event)
        if event.category == "phase":
            open_layers.pop(thread, None)
        if event.category == "phase" or not event.outer:
            continue
        layer = open_layers.get(thread)
        if layer is not None and layer.layer == event.layer and inside[thread] is phase:
            layer.end = max(layer.end, event.end)
        elif event.layer:
            layer = Event(event.rank, event.thread, event.layer, "layer", event.start, event.end, event.layer, event.phase)
            open_layers[thread], inside[thread] = layer, phase
            events.append(layer)
        else:
            open_layers.pop(thread, None)
    return events


def lanes(recorder: Recorder, first: int, last: int, rank: int) -> list[Event]:
    """The jobs of the exchange. Those that are under way at a time lie on tracks of their own."""
    ends: list[int] = []
    events = []
    for started, ended, _, name, size in sorted(recorder.jobs):
        if ended <= first or started >= last:
            continue
        started, ended = max(started, first), min(ended, last)
        lane = next((k for k, end in enumerate(ends) if end <= started), len(ends))
        ends[lane:lane + 1] = [ended]
        track = "exchange" if not lane else f"exchange {lane + 1}"
        events.append(Event(rank, track, name, "exchange", (started - first) / 1e9, (ended - first) / 1e9, bytes=size))
    return events


def work(operation: tuple) -> dict[str, int]:
    """The flops and bytes of a call of a Function, as it was written down."""
    _, _, _, kind, _, shapes, y, sizes, made, looks = operation
    if looks:
        return {}
    results = sum(made) if isinstance(made, list) else made
    return {"flops": product(kind, y, shapes) if shapes is not None else math.prod(y), "bytes": sum(sizes) + results, "made": results}


def product(kind: Any, y: tuple[int, ...], shapes: list[tuple[int, ...]]) -> int:
    """The flops of a product. ArgumentError, naming its class, if that cannot tell them."""
    try:
        return 2 * operator.index(kind.multiply_adds(y, *shapes))
    except Exception as error:
        raise ArgumentError(f"profile: {kind.__name__}.multiply_adds gave no whole number: {error}", y=y, factors=shapes,
                            hint="It is a static method, and is given the shapes of the result and of the first two arguments.") from error


def rule_name(kind: Any, step: Any) -> str:
    """What a step of a backward pass is called in its class."""
    return step.shared or f"grad_{kind.plan.args[0 if kind.plan.variadic else step.i]}"


def rule_work(operation: tuple, step: Any, looks: bool) -> dict[str, int]:
    """The flops and bytes of a step of a backward pass, from the sizes of what it names: a gradient has the size of what it is by.

    The gradient of a product by one factor is a product of as many multiply-adds. A value that rules share has the size of the result.
    """
    _, _, _, kind, _, shapes, y, sizes, made, _ = operation
    plan = kind.plan
    outputs = made if isinstance(made, list) else [made]
    if (looks and not step.out) or not sizes or not outputs:
        return {}

    def size(name: str) -> int:
        if name == "i":
            return 0
        if name in plan.args:
            return sum(sizes) if plan.variadic else sizes[plan.args.index(name)] if plan.args.index(name) < len(sizes) else 0
        for names in (plan.outputs, plan.gradients):
            if name in names:
                return outputs[names.index(name)]
        return outputs[0]

    result = outputs[0] if step.shared else sizes[step.i]
    each = outputs[0] / math.prod(y) if outputs[0] else 1
    flops = product(kind, y, shapes) if shapes is not None and step.i < 2 and not step.shared else round(result / each)
    return {"flops": flops, "bytes": sum(map(size, step.names)) + result, "made": 0 if looks else result}
