"""Rows: how much time and memory each phase, each layer and each operation took, and which of them is the bottleneck."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from minidl.profiling.events import Event, Kept

SLOW, TICK = 10, 1e-3           # a first call is told apart if it takes so many times the others, and at least so many seconds as often
COMPUTING = {"forward": "forward pass", "backward": "backward pass", "evaluation": "evaluation"}     # whose operations are told one by one
FIRST = "first calls, which compile or load something"


@dataclass
class Phase:
    """Seconds of a phase, and its share of all time; hidden: they went on beside the others, and are no part of the sum.

    parts: of which, where that is known. peak: the most bytes that the process had had when the phase was last left; rise: by how much
    that grew in it.
    """

    name: str
    seconds: float
    share: float
    hidden: bool = False
    parts: dict[str, float] = field(default_factory=dict)
    peak: int = 0
    rise: int = 0


@dataclass
class Layer:
    """Seconds in the operations of a layer. kept: bytes that a call keeps for the backward pass. made: of the results of one call of each
    of its operations and rules. peak: the most bytes of a GPU's memory that all arrays together took while it ran, 0 where that is not
    known.
    """

    path: str
    seconds: float = 0.0
    share: float = 0.0
    forward: float = 0.0
    backward: float = 0.0
    kept: int = 0
    made: int = 0
    peak: int = 0


@dataclass
class Operation:
    """An operation of a layer, in one direction: "forward", "backward", "update", "evaluation" or "curvature".

    seconds, flops, bytes, made: of all calls together; see events.py. kept: bytes that a call keeps for the backward pass. first: the
    seconds of the first call, if it took so much longer than the others that something must have been compiled or loaded in it; it is
    then not among the calls.
    """

    layer: str
    name: str
    direction: str
    calls: int = 0
    seconds: float = 0.0
    share: float = 0.0
    flops: int = 0
    bytes: int = 0
    made: int = 0
    kept: int = 0
    first: float = 0.0

    @property
    def gflops(self) -> float:
        """Arithmetic operations, in thousand millions a second."""
        return self.flops / self.seconds / 1e9 if self.seconds else 0.0

    @property
    def gbytes(self) -> float:
        """Bytes read and written, in thousand millions a second."""
        return self.bytes / self.seconds / 1e9 if self.seconds else 0.0


@dataclass
class Bottleneck:
    """What costs most: what it is, its share of the time, and what can be tried; gflops: at how many it ran, if it is a layer.

    passes: the share of all forward and backward passes, if it is a phase beside them that costs less than they do together.
    """

    what: str
    share: float
    hint: str = ""
    gflops: float = 0.0
    phase: str = ""
    passes: float = 0.0

    def __str__(self) -> str:
        speed = f", at {few(self.gflops)} GFLOP/s" if self.gflops else ""
        passes = f"; forward and backward together {100 * self.passes:.0f} %" if self.passes else ""
        return f"Bottleneck: {self.what}, {100 * self.share:.0f} % of the time{speed}{passes}"


def few(x: float) -> str:
    """A number in three digits or so; nothing for none."""
    return "" if not x else f"{x:.0f}" if x >= 100 else f"{x:.1f}" if x >= 1 else f"{x:.2f}"


def operations(events: Iterable[Event], kept: Iterable[Kept], seconds: float) -> list[Operation]:
    """A row for each layer, operation and direction, what costs most first. seconds: that all of them are a share of."""
    calls: dict[tuple[str, str, str], list[Event]] = defaultdict(list)
    for event in events:
        if event.category in ("operation", "rule", "update") and event.outer:
            calls[event.layer, event.name, direction(event)].append(event)
    rows = {}
    for key, several in calls.items():
        row = rows[key] = Operation(*key)
        if len(several) > 1 and several[0].seconds > SLOW * max(statistics.median(event.seconds for event in several[1:]), TICK):
            row.first = several.pop(0).seconds
        row.calls = len(several)
        row.seconds = sum(event.seconds for event in several)
        row.flops = sum(event.flops for event in several)
        row.bytes = sum(event.bytes for event in several)
        row.made = sum(event.made for event in several)
    sizes: dict[tuple[str, str], list[int]] = defaultdict(list)
    for each in kept:
        sizes[each.layer, each.name].append(each.bytes)
    for row in rows.values():
        row.share = row.seconds / seconds if seconds else 0.0
        found = sizes.get((row.layer, row.name), []) if row.direction == "forward" else []
        row.kept = sum(found) // len(found) if found else 0
    return sorted(rows.values(), key=lambda row: -row.seconds)


def direction(event: Event) -> str:
    """Of an operation: where it belongs in a step."""
    phase = event.phase.partition("/")[0]
    if phase in ("evaluation", "curvature"):
        return phase
    if event.category == "update":
        return "update"
    return "backward" if event.category == "rule" or phase == "backward" else "forward"


def layers(rows: Iterable[Operation], tops: Mapping[str, int]) -> list[Layer]:
    """A row for each layer, what costs most first. tops: the peak of each, where it is known."""
    found: dict[str, Layer] = {}
    for row in rows:
        layer = found.setdefault(row.layer, Layer(row.layer, peak=tops.get(row.layer, 0)))
        layer.seconds += row.seconds
        layer.share += row.share
        if row.direction in ("forward", "backward"):
            layer.kept += row.kept
            layer.made += row.made // row.calls
        if row.direction in ("forward", "backward"):
            setattr(layer, row.direction, getattr(layer, row.direction) + row.seconds)
    return sorted(found.values(), key=lambda layer: -layer.seconds)


def phases(seconds: Mapping[str, float], hidden: Mapping[str, float], memory: Mapping[str, tuple[int, int]]) -> list[Phase]:
    """A row for each phase, what costs most first, and those of hidden communication. seconds: also of parts, under phase/part.

    memory: the peak at the end of each phase, and by how much it rose.
    """
    whole = {name: spent for name, spent in seconds.items() if "/" not in name and spent > 0}
    total = sum(whole.values())
    found = []
    for name, spent in sorted(whole.items(), key=lambda item: -item[1]):
        parts = {part.partition("/")[2]: each for part, each in seconds.items() if part.startswith(f"{name}/")}
        found.append(Phase(name, spent, spent / total, False, parts, *memory.get(name, (0, 0))))
    return found + [Phase(name, spent, spent / total if total else 0.0, True) for name, spent in hidden.items() if spent > 0]


def bottleneck(found: Iterable[Phase], rows: Iterable[Operation], gaps: Mapping[str, float], seconds: float,
               facts: Mapping[str, Any]) -> Bottleneck:
    """What costs most: a phase, or, of those that compute, a layer in one direction, or what lies between their operations.

    gaps: the seconds of each phase that were spent in no operation, of `seconds` that were looked at so closely. facts: what is known of
    how it was done: compiled, threads, cores, overlap, compress.
    """
    found = list(found)
    passes = sum(phase.share for phase in found if phase.name in ("forward", "backward") and not phase.hidden)
    candidates = [Bottleneck(WORDS.get(phase.name, phase.name), phase.share, hint(phase.name, facts), phase=phase.name,
                             passes=passes if passes > phase.share else 0.0)
                  for phase in found if not phase.hidden and phase.name not in COMPUTING]
    if not seconds:
        candidates += [Bottleneck(COMPUTING[phase.name], phase.share, phase=phase.name) for phase in found
                       if phase.name in COMPUTING and not phase.hidden]
    else:
        rows = list(rows)
        first = sum(row.first for row in rows) / seconds
        candidates.append(Bottleneck(FIRST, first, hint(FIRST, facts)))
        by_layer: dict[tuple[str, str], list[Operation]] = defaultdict(list)
        for row in rows:
            if row.direction in COMPUTING:
                by_layer[row.direction, row.layer or row.name.partition(" ")[0]].append(row)
        for (way, layer), several in by_layer.items():
            spent = sum(row.seconds for row in several)
            speed = sum(row.flops for row in several) / spent / 1e9 if spent else 0.0
            candidates.append(Bottleneck(f"{way} of {layer}", spent / seconds, hint("layer", facts), speed, way))
        for name, spent in gaps.items():
            if name in COMPUTING:
                candidates.append(Bottleneck(f"{COMPUTING[name]}, in Python between operations", spent / seconds, SMALL, phase=name))
    return max(candidates, key=lambda each: each.share, default=Bottleneck("nothing was measured", 0.0))


WORDS = {"data": "waiting for data", "gradient exchange": "waiting for the exchange of gradients", "idle": "waiting for slower processes",
         "curvature": "curvature (factors, inverses, preconditioning)", "curvature exchange": "the exchange of curvature",
         "update": "the update of the weights", "step": "replayed steps", "normalization": "rescaling the gradients",
         "saving": "saving, and other callbacks", "other": "Python outside of the phases"}
SMALL = "larger minibatches, or fewer and larger operations, cost less Python"
HINTS = {
    "data": "make a minibatch cheaper (--augment none, fewer transforms), or more of them ahead of time (Loader(prefetch=...))",
    "step": "without --capture a profile looks into them, layer by layer",
    "idle": "divide the work evenly: see which process the others wait for, or leave the slowest out",
    "curvature": "renew it less often: a larger --inverse-interval and --factor-interval",
    "curvature exchange": "renew it less often: a larger --factor-interval",
    "update": "larger minibatches mean fewer updates",
    FIRST: "that happens once: measure longer, or let a first pass go before",
    "saving": "save less often: a larger --checkpoint-every, or none",
    "other": "look there with a profiler of Python code, such as cProfile",
}


def hint(name: str, facts: Mapping[str, Any]) -> str:
    """What can be tried where a phase, or a layer, costs most; nothing if that is not known."""
    if name == "gradient exchange":
        overlap = {"none": "--overlap backward hides it; ", "backward": "--overlap forward hides more; "}.get(facts.get("overlap", ""), "")
        compress = "--compress fp16 makes it less, and so do " if facts.get("compress") == "none" else "it is less with "
        return f"{overlap}{compress}larger minibatches"
    if name == "layer":
        if not facts.get("compiled", True):
            return "the compiled kernels are several times faster: pip install 'minidl[fast]'"
        threads, cores = facts.get("threads", 1), facts.get("cores", 1)
        return f"work on more threads: with minidl.threads({cores}), or --threads {cores}" if threads < cores else ""
    return HINTS.get(name, "")
