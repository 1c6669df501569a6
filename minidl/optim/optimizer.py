"""Optimizer: what all ways of learning from gradients have in common.

A kind of optimizer is two methods: `start`, the memory that it keeps for each parameter, and `update`, the rule. Everything around them
is here: options that change with the step or differ between parameters, what is frozen or has no gradient, saving and loading. All
memory is keyed by the parameter's path in the model.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar

from minidl import backend, kernels
from minidl.backend import Array
from minidl.errors import ArgumentError, DefinitionError, GraphError, nearest
from minidl.names import Names, matching
from minidl.nn.module import Module
from minidl.nn.options import number
from minidl.nn.state import like, matched, snapshot
from minidl.optim.schedule import value_at
from minidl.profiler import phase, recorder
from minidl.recording import present
from minidl.shortage import making_room
from minidl.tensor import Tensor

Parameters = Module | Mapping[str, Tensor]      # what is learned: a model, or leaves by a path of one's own
State = dict[str, Array]
Kind = TypeVar("Kind", bound="type[Optimizer]")


class Optimizer:
    """The base of all optimizers.

    model: a Module, or a dictionary of leaves by path. groups: options for the parameters whose path matches a pattern, in place of
    the ones for all: {"*.b": dict(weight_decay=0)}; of several patterns that match, the last counts. options: the rule's, by name;
    each a number or a schedule. ArgumentError for a pattern that matches nothing or an option that is not known.
    """

    together: ClassVar[Any] = None          # a kernel for all updates at a time, such as kernels.sgd_update_many: see `arguments`
    elementwise = True          # False: `update` needs whole arrays, with their shape
    separable = True            # False: a step needs all gradients at a time, so that no parameter can be updated before the others

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        if "step" in vars(cls) and "separable" not in vars(cls):
            cls.separable = False                                       # what it does besides is not known
        if "update" in vars(cls) and "together" not in vars(cls):
            cls.together = None                                         # a rule of its own

    def __init__(self, model: Parameters, groups: Mapping[str, Mapping[str, Any]] | None = None, **options: Any):
        self.parameters = parameters_of(type(self).__name__, model)
        self.steps = 0                                          # how many times step() was called
        self.seconds: dict[str, float] = {}                     # spent so far, by phase, if a kind counts them
        self.last_lr: float | None = None                       # of the last step, for parameters that are in no group
        self.options = options                                  # may be assigned to: optimizer.options["lr"] = 0.01
        self.changes = self._grouped(groups or {})              # to them for a parameter; those of the same groups share a dictionary
        self.updates = dict.fromkeys(self.parameters, 0)        # how many each parameter has had
        device = backend.device_of(next(iter(self.parameters.values())).data)
        with making_room(f"{type(self).__name__}: what it keeps for each weight", device):
            self.state = {path: self.start(p.data, **self._options(path)) for path, p in self.parameters.items() if p.requires_grad}

    # What a kind of optimizer says about itself

    def start(self, w: Array, **options: Any) -> State:
        """The memory kept for a parameter w before its first update: arrays of its shape, by name. Schedules come as such."""
        return {}

    def update(self, w: Array, g: Array, state: State, t: int, **options: Any) -> None:
        """Change w and the arrays of its state in place, from the gradient g, which must not be written to.

        t: the number of this update of this parameter, from 1. Arrays of many numbers come in pieces (flat, and in order), unless the
        class says elementwise = False.
        """
        raise DefinitionError(f"{type(self).__name__} has no update", hint="Write def update(self, w, g, state, t, lr) in the class.")

    def arguments(self, w: Array, g: Array, state: State, t: int, **options: Any) -> tuple:
        """What `together`, a kernel such as kernels.sgd_update_many, takes for a parameter. For a kind that has one beside `update`.

        On a GPU it is one launch, whatever the number of parameters.
        """
        raise DefinitionError(f"{type(self).__name__} has no arguments for its kernel",
                              hint="Write def arguments(self, w, g, state, t, lr) in the class, or leave together out.")

    def check(self, **options: Any) -> None:
        """ArgumentError if an option makes no sense. Schedules come as such."""

    # A step

    @phase("update")
    def step(self) -> None:
        """Update every parameter that has a gradient and is not frozen; the others are left alone, with their memory.

        GraphError if no parameter has a gradient.
        """
        due = {path: p for path, p in self.parameters.items() if p.requires_grad and p.grad is not None}
        if not due:
            frozen = not any(p.requires_grad for p in self.parameters.values())
            raise GraphError(f"{type(self).__name__}.step: " + ("every parameter is frozen" if frozen else "no parameter has a gradient"),
                             hint="Set requires_grad_(True) on what shall be learned." if frozen else
                             "Call loss.backward() before step(), with a loss that the model has computed outside no_grad().")
        watching, first = recorder(), next(iter(due.values()))._data
        if self.together is not None and kernels.launched(first):
            started = None if watching is None else watching.now(type(first))
            self._update_together(due)
            if watching is not None:
                watching.update(started, self, {path: p._data for path, p in due.items()})
            return
        options = self.begin()
        for path, p in due.items():
            started = None if watching is None else watching.now(type(p._data))
            self.update_one(path, p.grad.data, options)     # type: ignore[union-attr]   # due says so
            if watching is not None:
                watching.update(started, self, {path: p._data})

    def begin(self) -> dict[str, dict[str, Any]]:
        """Begin a step, and give the options of each parameter in it, by path. `step` does so; who calls update_one calls it first."""
        options = self._options_now()
        self._begun()
        return options

    def _begun(self) -> None:
        self.last_lr = value_at(self.options.get("lr"), self.steps)
        self.steps += 1

    def _options_now(self) -> dict[str, dict[str, Any]]:
        """The options of each parameter in the step that comes next, by path."""
        usual = {name: value_at(option, self.steps) for name, option in self.options.items()}
        now: dict[int, dict[str, Any]] = {}                             # by the changes to the usual ones
        for changes in self.changes.values():
            if id(changes) not in now:
                now[id(changes)] = usual | {name: value_at(option, self.steps) for name, option in changes.items()}
        return {path: now[id(changes)] for path, changes in self.changes.items()}

    def _update_together(self, due: Mapping[str, Tensor]) -> None:
        """All updates of a step by one call, in a step that is being recorded at each of its replays."""
        gradients = {path: p.grad.data for path, p in due.items()}      # type: ignore[union-attr]   # step says so

        def calls() -> list[tuple]:
            options = self._options_now()
            return [self.arguments(self.parameters[path]._data, g, self._state_beside(path, self.parameters[path]._data),
                                   self.updates[path] + 1, **options[path]) for path, g in gradients.items()]

        def count() -> None:
            self._begun()
            for path in gradients:
                self.updates[path] += 1
                self.parameters[path].version += 1

        type(self).together(calls)
        recording = present()
        if recording is None:
            count()
        else:
            recording.afterwards.append(count)

    def update_one(self, path: str, g: Array, options: Mapping[str, Mapping[str, Any]]) -> None:
        """The update of one parameter by its gradient g, with what `begin` gave for this step: parameters may come in any order."""
        p = self.parameters[path]
        w = p._data                                                     # not .data, which would wait for what is being done here
        self.updates[path] += 1
        self._apply(path, w, g, self._state_beside(path, w), self.updates[path], options)
        p.version += 1                                                  # a graph that holds w now knows that it has changed

    def update_copy(self, path: str, g: Array, options: Mapping[str, Mapping[str, Any]]) -> tuple[Array, Callable[[], None]]:
        """What `update_one` would make of a parameter, in memory of its own, and what makes it so: before it is called nothing changes."""
        p = self.parameters[path]
        w, t = p._data.copy("K"), self.updates[path] + 1
        state = {name: x.copy("K") for name, x in self._state_beside(path, p._data).items()}
        self._apply(path, w, g, state, t, options)

        def accept() -> None:
            p._data[...] = w
            p.version += 1
            self.state[path], self.updates[path] = state, t

        return w, accept

    def _apply(self, path: str, w: Array, g: Array, state: State, t: int, options: Mapping[str, Mapping[str, Any]]) -> None:
        arrays = (w, g, *state.values())
        for w, g, *parts in kernels.in_pieces(*arrays) if self.elementwise else (arrays,):
            self.update(w, g, dict(zip(state, parts)), t, **options[path])

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for p in self.parameters.values():
            p.grad = None

    def _options(self, path: str) -> dict[str, Any]:
        """The options for a parameter, schedules as such."""
        return self.options | self.changes[path]

    def _state_beside(self, path: str, w: Array) -> State:
        """The memory of a parameter: made now if it was frozen when the optimizer was made, and moved if the model was moved."""
        state = self.state.get(path)
        if not state:                                                   # also where it needed none until an option was assigned
            state = self.state[path] = self.start(w, **self._options(path))
        for name, x in state.items():
            if x.dtype != w.dtype or type(x) is not type(w) or backend.device_of(x) != backend.device_of(w):
                state[name] = backend.asarray(x.astype(w.dtype), backend.device_of(w))
        return state

    def _grouped(self, groups: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
        """How the options change for each parameter, once everything is known to make sense."""
        name = type(self).__name__
        self.check(**self.options)
        patterns: dict[str, tuple[str, ...]] = dict.fromkeys(self.parameters, ())       # that match a path
        for pattern, changes in groups.items():
            for option in changes:
                if option not in self.options:
                    raise ArgumentError(f"{name}: the group {pattern!r} sets {option!r}, which is no option{nearest(option, self.options)}",
                                        hint=f"The options are {', '.join(self.options)}.")
            paths = matching(pattern, self.parameters)
            if not paths:
                raise ArgumentError(f"{name}: no parameter matches the group {pattern!r}{nearest(pattern, self.parameters)}",
                                    hint='A pattern is matched against the whole path: "*.b", or "features.*". See named_parameters().')
            for path in paths:
                patterns[path] += (pattern,)
        merged = {matching: {option: x for pattern in matching for option, x in groups[pattern].items()}
                  for matching in dict.fromkeys(patterns.values())}
        for changed in merged.values():
            self.check(**self.options | changed)
        return {path: merged[matching] for path, matching in patterns.items()}

    # The state

    def state_dict(self) -> dict[str, Any]:
        """A copy of all that a resumed run needs: "steps", and for each parameter "path.updates" (ints) and its memory (arrays).

        Options are not in it: they belong to whoever makes the optimizer.
        """
        self._settle()
        return {path: value if isinstance(value, int) else snapshot(value) for path, value in self._targets(self.state).items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state that `state_dict` gave, on the devices and in the dtypes of the parameters.

        CheckpointError names everything that does not fit, and then nothing was changed.
        """
        self._settle()
        own = dict(self.state)
        for path, p in self.parameters.items():     # one that is frozen now may have had a memory then
            fresh = self.start(p.data, **self._options(path)) if path not in own else {}
            if fresh and all(f"{path}.{name}" in state for name in fresh):
                own[path] = fresh
        targets = self._targets(own)
        found, _, _ = matched(f"load_state_dict: this {type(self).__name__}", targets, state)
        values = {path: like(targets[path], x) for path, x in found.items()}
        self.steps = values["steps"]
        self.updates = {path: values[f"{path}.updates"] for path in self.updates}
        self.state = {path: {name: values[f"{path}.{name}"] for name in arrays} for path, arrays in own.items()}

    def _settle(self) -> None:
        """Wait for updates that another thread is making: where a weight has its new value, so has its memory."""
        for p in self.parameters.values():
            p.data      # noqa: B018   which waits

    def _targets(self, state: Mapping[str, State]) -> dict[str, Any]:
        targets: dict[str, Any] = {"steps": self.steps}
        for path in self.parameters:
            targets[f"{path}.updates"] = self.updates[path]
            targets.update((f"{path}.{name}", x) for name, x in state.get(path, {}).items())
        return targets

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in self.options.items())
        return f"{type(self).__name__}({len(self.parameters)} parameters, {options})"


def parameters_of(caller: str, model: Any) -> dict[str, Tensor]:
    """The leaves of a Module or a dictionary, by path. ArgumentError if there are none, GraphError for one that is no leaf."""
    if not isinstance(model, Module | Mapping):
        raise ArgumentError(f"{caller}: a {type(model).__name__} is no model",
                            hint="Give the model itself, or a dictionary of Parameters by path.")
    parameters: dict[str, Tensor] = dict(model.named_parameters() if isinstance(model, Module) else model)
    if not parameters:
        raise ArgumentError(f"{caller}: the model has no parameters", hint="Are its layers attributes, or in lists or dicts that are?")
    for path, p in parameters.items():
        if not isinstance(p, Tensor) or not p.is_leaf:
            raise GraphError(f"{caller}: {path} is a {type(p).__name__} and no leaf", hint="Give Parameters, not results of operations.")
        if not getattr(getattr(p.data, "flags", None), "writeable", True):
            raise ArgumentError(f"{caller}: the array of {path} cannot be written to", hint="Give the parameter a copy: array.copy().")
    if len({id(p) for p in parameters.values()}) < len(parameters):
        raise ArgumentError(f"{caller}: one parameter comes under two paths, and would be updated twice", paths=", ".join(parameters))
    return parameters


def check_numbers(caller: str, **options: tuple[Any, float, float]) -> None:
    """ArgumentError for an option outside low <= option < high, given as (option, low, high). A schedule must begin there."""
    for name, (option, low, high) in options.items():
        number(caller, name, value_at(option, 0), low, high)


# By name

_kinds = Names("optim", "an", "optimizer")


def register(name: str) -> Callable[[Kind], Kind]:
    """Make a kind of optimizer known by a name: `@register("sgd")` over the class."""
    return _kinds.register(name)


def names() -> list[str]:
    """The names that `create` knows, in alphabetical order."""
    return sorted(_kinds.known)


def create(name: str, model: Parameters, **options: Any) -> Optimizer:
    """An optimizer by its name: `create("sgd", model, lr=0.1)`. ArgumentError for a name or an option that is not known.

    >>> from minidl import nn, optim
    >>> optim.create("sgd", nn.Affine(2, 2), lr=0.1)
    SGD(2 parameters, lr=0.1, momentum=0.0, nesterov=False, weight_decay=0.0)
    """
    kind = _kinds.find(name)
    _kinds.check_options(name, options, [option for option in inspect.signature(kind).parameters if option != "model"])
    return kind(model, **options)
