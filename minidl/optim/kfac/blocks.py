"""Block: the part of the Fisher matrix that belongs to one layer's parameters, and what all kinds of blocks have in common.

A block is shown inputs and gradients of its layer (`collect`), takes sums over them into running averages (`absorb`), makes from these
what it needs to divide by (`renew`), and turns gradients into directions (`directions`). What is between the last two differs from
kind to kind: Kronecker factors in kronecker.py, single units in units.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from minidl import backend
from minidl.backend import Array
from minidl.graph import Node
from minidl.optim.kfac.averages import Average, Timing
from minidl.optim.kfac.inverses import Report

Gradients = dict[str, Array]                    # by role: "w", "b", "gamma", "beta"
Doubt = tuple[Array, str]                       # a flag, not read yet, and what is to be reported if it is set


@dataclass(frozen=True)
class Settings:
    """What a KFAC was told that its blocks must know."""

    inversion: str
    sharing: str
    timing: Timing
    report: Report


@dataclass(frozen=True)
class Pass:
    """What a backward pass is to the blocks that it shows things to.

    examples: in the minibatch; None if only each layer's own first axis is known, and the loss is taken to be a mean over it. gain: what
    a gradient is to be multiplied by to be an example's own. gradients: whether these are to be taken in, or inputs alone. nodes: the
    numbers of the Nodes whose inputs were taken in since the step began. backward: the number of the backward() that runs it. tally: of the
    part of the minibatch that it is of.
    """

    examples: int | None
    gain: float
    gradients: bool
    nodes: set[int]
    backward: int
    tally: Any = None


class Block(ABC):
    """The base of all kinds. paths: of its parameters, by role. options: what the kind must know of the layer."""

    kind: ClassVar[str]
    roles: ClassVar[tuple[str, ...]]
    factors: ClassVar[tuple[str, ...]]          # the names of its averages

    def __init__(self, paths: dict[str, str], options: dict[str, Any], settings: Settings):
        self.paths, self.options, self.settings = paths, options, settings
        self.averages = {name: Average() for name in self.factors}
        self.damping: float | None = None       # that what it divides by was made with
        self.changed = True                     # whether averages have changed since
        self.clear()

    @classmethod
    def read(cls, op: Node) -> dict[str, Any]:
        """What a block of this kind must know of a call of its layer."""
        return {}

    @property
    def name(self) -> str:
        """The path of its first parameter: what it is called in checkpoints, and in reports."""
        return next(iter(self.paths.values()))

    # Statistics

    def clear(self) -> None:
        """Forget what was collected and not yet absorbed."""
        self.sums: dict[str, Any] = {}
        self.earlier: dict[str, Any] = {}       # those of earlier parts of the minibatch
        self.examples: int = 0
        self.rows: int = 0                      # positions at which the layer was applied, over all examples
        self.counted: Any = None                # the backward() whose examples were counted last

    def due(self, name: str, step: int) -> bool:
        """Whether an average is to be renewed at this step."""
        return self.averages[name].due(step, self.settings.timing)

    def collect(self, x: Array, gy: Array, op: Node, shown: Pass, step: int) -> None:
        """Take in a layer's input and the gradient at its output."""
        own = len(gy)
        fresh = op.order not in shown.nodes
        shown.nodes.add(op.order)
        if fresh and shown.backward != self.counted:                # a layer used twice in a graph has not twice as many examples
            self.examples += own if shown.examples is None else shown.examples
            self.counted = shown.backward
        gain = shown.gain * (own if shown.examples is None else 1)
        gy = wide(gy)
        self.observe(x, gy if gain == 1 or not shown.gradients else gy * gain, op, shown, fresh, step)

    @abstractmethod
    def observe(self, x: Array, gy: Array, op: Node, shown: Pass, fresh: bool, step: int) -> None:
        """Add to the sums: every kind writes its own.

        x: as the layer had it; gy: float32 at least. fresh: whether the input has not been taken in yet.
        """

    def remember(self, x: Array, gy: Array) -> None:
        """See the ordinary pass, in which the gradient is computed, of a block that `wants` to."""

    def wants(self) -> bool:
        """Whether it wants to see ordinary passes, in which no statistics are taken."""
        return False

    def forget(self) -> None:
        """Forget what was remembered."""

    def add(self, name: str, x: Array) -> None:
        """Add to one of the sums; x is the sum's from then on."""
        if name in self.sums:
            self.sums[name] += x
        else:
            self.sums[name] = x

    def settle(self, relative: float) -> None:
        """A part of the minibatch is over: add its sums to those of the parts before. relative: the weight of its examples."""
        for name, x in self.sums.items():
            if relative != 1 and name != "A":           # inputs have no weight
                x *= relative
            if name in self.earlier:
                self.earlier[name] += x
            else:
                self.earlier[name] = x
        self.sums = {}

    def divisor(self, name: str) -> float:
        """What a sum is divided by to be a mean."""
        return self.examples

    def absorb(self, sound: dict[str, bool], decay: float, step: int) -> list[tuple[Average, Array]]:
        """Take the sums into the running averages. sound: which of them are finite.

        Gives the averages that adapt their intervals, each with a flag for `Average.adapt`.
        """
        moved = []
        for name, x in self.sums.items():
            if not sound[name]:
                self.settings.report(f"what this minibatch shows of factor {name} of {self.name} is not finite: it is left out")
                continue
            x *= 1 / max(self.divisor(name), 1)
            steady = self.averages[name].add(x, decay, step, self.settings.timing.adaptive)
            if steady is not None:
                moved.append((self.averages[name], steady))
            self.changed = True
        return moved

    def put_off(self, step: int) -> None:
        """The layer was not used in a step in which statistics were taken: it is not waited for."""
        for average in self.averages.values():
            if step >= average.next:
                average.put_off(step)

    # Division

    @property
    def ready(self) -> bool:
        """Whether there is an average of everything."""
        return all(average.value is not None for average in self.averages.values())

    def to_invert(self, damping: float) -> dict[str, tuple[Array, Array]]:
        """Matrices that shall be inverted, each with what is to be added to its diagonal first."""
        return {}

    @property
    def side_names(self) -> dict[str, str]:
        """What these are called in reports."""
        return {}

    def unsure(self) -> dict[str, Array]:
        """Flags of which `renew` must know whether they are set, by names of its own."""
        return {}

    def renew(self, inverses: dict[str, Array | None], sound: dict[str, bool], damping: float) -> Doubt | None:
        """Take the inverses, and make whatever else it divides by. sound: what became of the flags of `unsure`."""
        self.damping, self.changed = damping, False
        return None

    def unrefined(self) -> bool:
        """Whether there is something that can only be learned from the same examples after `renew`."""
        return False

    def squares(self, first: float) -> Any:
        """What is to be learned: an array, a sum over the examples that were shown here. first: the term of the step's first part."""

    def refine(self, squares: Array, decay: float) -> None:
        """Learn it. squares: the sum over all examples, which is finite."""

    def trusts(self, gradients: Gradients) -> Array | None:
        """A flag whether what it remembers of this step may stand for the gradients; None if it would not use that anyway."""
        return None

    @abstractmethod
    def directions(self, gradients: Gradients, damping: float, trusted: bool = False) -> Gradients | None:
        """(F + damping)^-1 times the gradients; None if there is nothing yet to divide by. trusted: what became of the flag of `trusts`."""

    @abstractmethod
    def bend(self, moved: Gradients) -> Array:
        """d^T F d, undamped, for a change d of the parameters."""

    @abstractmethod
    def dense(self) -> Array:
        """The block itself, undamped: (P, P), P the numbers of its parameters, flattened in the order of the roles."""

    # State

    def arrays(self) -> dict[str, Array]:
        """What a checkpoint takes, by name."""
        return {name: average.value for name, average in self.averages.items() if average.value is not None}

    def description(self) -> dict[str, Any]:
        """All but the arrays, in what JSON can hold."""
        return {"kind": self.kind, "paths": dict(self.paths), "options": dict(self.options), "damping": self.damping,
                "changed": self.changed, "arrays": sorted(self.arrays()),
                "averages": {name: average.state() for name, average in self.averages.items()}}

    def load(self, arrays: dict[str, Array], description: dict[str, Any]) -> None:
        """Go back to a state. ValueError if it is not whole."""
        damping = description["damping"]
        self.damping, self.changed = None if damping is None else float(damping), bool(description["changed"])
        if sorted(arrays) != description["arrays"] or any(x.dtype.kind != "f" for x in arrays.values()):
            raise ValueError(f"{self.name} wants {', '.join(description['arrays'])} as floats, and there are {', '.join(sorted(arrays))}")
        for name, average in self.averages.items():
            if name in arrays:
                average.load(arrays[name], description["averages"][name])

    def check(self, parameters: Gradients) -> None:
        """ValueError if what was loaded does not fit the parameters, by role."""
        for name, average in self.averages.items():
            if average.value is not None and average.value.shape != self.shapes(parameters)[name]:
                raise ValueError(f"{name} of {self.name} has shape {average.value.shape}, and must have {self.shapes(parameters)[name]}")

    @abstractmethod
    def shapes(self, parameters: Gradients) -> dict[str, tuple[int, ...]]:
        """The shapes of the averages, for these parameters."""

    def follow(self, w: Array) -> None:
        """Go where the model went, if it was moved, or brought to another dtype."""
        value = next(iter(self.averages.values())).value
        if value is not None and (backend.device_of(value) != backend.device_of(w) or (value.dtype != w.dtype and w.dtype.itemsize > 2)):
            self.move(backend.device_of(w), "float32" if w.dtype.itemsize < 4 else w.dtype)

    def move(self, device: str, dtype: Any) -> None:
        """Bring everything to a device and a dtype."""
        for average in self.averages.values():
            if average.value is not None:
                average.value = backend.asarray(average.value.astype(dtype, copy=False), device)


def wide(x: Array) -> Array:
    """x in float32 at least: moments of float16 would overflow."""
    return x.astype("float32") if x is not None and x.dtype.itemsize < 4 and backend.is_float(x.dtype) else x
