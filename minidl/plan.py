"""The plan of a Function: what the signatures of its rules say about what is kept, what runs when, and what is freed in between.

    class Affine(Function):
        def forward(self, x, w): ...
        def grad_x(self, gy, w): ...
        def grad_w(self, gy, x): ...

Rules run in the order of their arguments' sizes, the smallest first. A gradient has the size of its argument, and what a product's
rule reads is the other factor: so the larger factor is read first and freed, and the larger gradient is made where it was. Beside a
wide w that is `grad_x`, in a convolution `grad_w`. Each value is let go by the last step that names it. A rule or shared method with
a keyword-only argument `out` may then write into the first array it names: `def grad_x(self, gy, y, *, out=None)` gets gy's memory
there if nobody else holds it, else None. The pass that follows the plan is in walk.py.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from minidl.errors import DefinitionError, GraphError

if TYPE_CHECKING:
    from minidl.graph import Function


class Rule(NamedTuple):
    """A method, what its signature names, and whether it can write into the first of these."""

    method: Callable[..., Any]
    names: tuple[str, ...]
    out: bool


class Step(NamedTuple):
    """A method that a pass runs at one Node: the rule of argument number i, or a shared method that it is the first to need."""

    method: Callable[..., Any]
    names: tuple[str, ...]
    last: tuple[str, ...]           # of these, what no later step names
    out: bool                       # the first of them is among the last, and may be written into
    shared: str                     # the name of the value that it makes; "" for a rule
    i: int


class Kept(NamedTuple):
    """What the gradients of some arguments need: their numbers, and the numbers and names of the inputs and outputs to keep."""

    due: tuple[int, ...]
    inputs: tuple[tuple[int, str], ...]
    outputs: tuple[tuple[int, str], ...]


class Plan:
    """What the signatures of a Function say, read once per class."""

    def __init__(self, cls: type[Function]):
        parameters = list(inspect.signature(cls.forward).parameters.values())[1:]
        self.name = cls.name
        self.args = tuple(p.name for p in parameters)
        self.variadic = any(p.kind is p.VAR_POSITIONAL for p in parameters)
        self.outputs = cls.outputs
        self.single = len(cls.outputs) == 1
        self.gradients = tuple("g" + name for name in cls.outputs)
        self.shared: dict[str, Rule] = {}
        self._kept: dict[int, Kept] = {}
        self._steps: dict[tuple[int, ...], tuple[Step, ...]] = {}
        self._check_names(cls)
        self.rules = tuple(self._read(cls, f"grad_{arg}") if hasattr(cls, f"grad_{arg}") else None for arg in self.args)
        for name in vars(cls):
            if name.startswith("grad_") and name[5:] not in self.args:
                raise DefinitionError(f"{cls.__name__}: the rule {name} belongs to no argument of forward",
                                      hint="A rule is called grad_ and the name of its argument.", forward=self.args)

    def _check_names(self, cls: type[Function]) -> None:
        taken = set(self.outputs) | set(self.gradients) | {"i"}
        for arg in self.args:
            if arg in taken:
                raise DefinitionError(f"{cls.__name__}: an argument of forward cannot be called {arg!r}",
                                      hint="In a rule that is the name of an output, of a gradient, or of the argument's number.")
        if self.variadic and len(self.args) > 1:
            raise DefinitionError(f"{cls.__name__}: forward takes *{self.args[-1]} beside other arguments",
                                  hint="Let *xs be the only argument, and make the others options of the class.")

    def _read(self, cls: type[Function], name: str, waiting: tuple[str, ...] = ()) -> Rule:
        """The rule or shared method of this name, and whatever it names that must be computed first."""
        method = getattr(cls, name)
        parameters = list(inspect.signature(method).parameters.values())[1:]
        names = tuple(p.name for p in parameters if p.kind is not p.KEYWORD_ONLY)
        options = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
        if options not in ([], ["out"]) or (options and not names):
            raise DefinitionError(f"{cls.__name__}.{name} has the keyword-only argument {options[0]!r}",
                                  hint="There is only `out`: the first array that the rule names, where it may be written to.")
        given = {*self.args, *self.outputs, *self.gradients, *(["i"] if self.variadic else [])}
        for wanted in names:
            if wanted in given or wanted in self.shared:
                continue
            if wanted in (name, *waiting):
                raise DefinitionError(f"{cls.__name__}.{name} names {wanted!r}, which needs {name} first")
            if not inspect.isfunction(getattr(cls, wanted, None)):
                raise DefinitionError(f"{cls.__name__}.{name} names {wanted!r}, which is no input, output, gradient or method",
                                      inputs=self.args, outputs=self.outputs, gradients=self.gradients)
            self.shared[wanted] = self._read(cls, wanted, (*waiting, name))
        return Rule(method, names, bool(options))

    def kept(self, wanted: int) -> Kept:
        """What to keep, where bit i of `wanted` asks for the gradient of input i. GraphError if that has no rule."""
        kept = self._kept.get(wanted)
        if kept is None:
            due = tuple(i for i in range(wanted.bit_length()) if wanted >> i & 1)
            for arg in (self.args[i] for i in due if not self.variadic and self.rules[i] is None):
                raise GraphError(f"{self.name}: {arg} is not differentiable, and requires a gradient",
                                 hint=f"Give it detached: {arg}.detach(). In a Function of your own, write grad_{arg}.")
            names = {name for step in self.steps(due) for name in step.names}
            inputs = tuple((i, name) for i, name in enumerate(self.args) if name in names)
            if self.variadic and inputs:
                inputs = tuple((i, self.args[0]) for i in range(wanted.bit_length()))
            kept = self._kept[wanted] = Kept(due, inputs, tuple((k, name) for k, name in enumerate(self.outputs) if name in names))
        return kept

    def steps(self, due: tuple[int, ...]) -> tuple[Step, ...]:
        """What to run for the gradients of these arguments, in this order: each shared method straight before the first that needs it."""
        known = self._steps.get(due)
        if known is not None:
            return known
        order: list[tuple[Rule, str, int]] = []
        made: set[str] = set()

        def add(rule: Rule, name: str, i: int) -> None:
            for wanted in rule.names:
                if wanted in self.shared and wanted not in made:
                    made.add(wanted)
                    add(self.shared[wanted], wanted, i)
            order.append((rule, name, i))

        for i in due:
            add(self.rules[0 if self.variadic else i], "", i)           # type: ignore[arg-type]   # kept() has seen that there is one
        steps: list[Step] = []
        later: set[str] = set()
        for rule, name, i in reversed(order):
            last = tuple(n for n in rule.names if n not in later and n != "i")
            steps.append(Step(rule.method, rule.names, last, rule.out and rule.names[0] in last, name, i))
            later.update(rule.names)
        self._steps[due] = tuple(reversed(steps))
        return self._steps[due]
