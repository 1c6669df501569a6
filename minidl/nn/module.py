"""Parameter and Module: functions that hold what they learn.

    class Block(Module):
        def __init__(self, width, generator):
            self.layers = [Affine(width, width, generator=generator), ReLU()]
            self.scale = Parameter(np.ones(width, np.float32))

        def forward(self, x):
            for layer in self.layers:
                x = layer(x)
            return x * self.scale

Nothing is registered and there is no base constructor to call. Whoever asks for parameters, modules or the state gets them by one walk
over the attributes, in the order in which they were assigned, into lists, tuples and dicts too. The names on the way make the path of a
thing, "layers.0.w" or "scale", and by its path everything is found again: the state on disk, an optimizer's memory, a layer in an error.
The layers themselves are in layers.py and its neighbours, where weights start from in init.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Self

from minidl import backend
from minidl.backend import Array
from minidl.errors import DefinitionError, running
from minidl.nn.init import float_type
from minidl.nn.state import like, matched, snapshot
from minidl.shortage import making_room
from minidl.tensor import Tensor
from minidl.watchers import Handle


class Parameter(Tensor):
    """A Tensor that a Module learns: it requires a gradient unless it is frozen.

    x: an array of floats, shared and not copied: optimizers write into it. requires_grad: False for one that is frozen from the start.

    >>> Parameter(np.zeros(2))
    Parameter([0., 0.], dtype=float64, requires_grad=True)
    """

    __slots__ = ()

    def __init__(self, x: Any, requires_grad: bool = True):
        super().__init__(x, requires_grad)


class Module:
    """The base of every layer and model: assign Parameters and other Modules in `__init__`, and write `forward`.

    `buffers` names the attributes that are state but are not learned, such as running statistics: arrays, or plain numbers.
    Copies and pickles are whole and leave out the hooks; a parameter that two layers share stays shared.
    """

    buffers: ClassVar[tuple[str, ...]] = ()
    training: bool = True
    _hooks: Sequence[Callable] = ()

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        own: Any = cls.buffers
        if isinstance(own, str):
            raise DefinitionError(f"{cls.__name__}.buffers is the string {own!r}, and must be a tuple of names",
                                  hint=f'Write buffers = ("{own}",).')
        cls.buffers = tuple(dict.fromkeys(name for kind in reversed(cls.__mro__) for name in vars(kind).get("buffers", ())))
        for name, value in vars(cls).items():
            if isinstance(value, Module | Parameter):
                raise DefinitionError(f"{cls.__name__}.{name} belongs to the class, so that all its objects would share it",
                                      hint=f"Assign it in __init__: self.{name} = ...")

    def __setattr__(self, name: str, value: Any) -> None:
        if name in RESERVED:
            raise DefinitionError(f"{type(self).__name__}.{name} is something that every Module has", hint="Choose another name.")
        for _ in _members(name, value):     # says now what the walk would say later
            pass
        object.__setattr__(self, name, value)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run `forward`, then the forward hooks. Errors and the graph meanwhile know that this layer is running."""
        token = running.set((self, running.get()))
        try:
            y = self.forward(*args, **kwargs)
            for hook in tuple(self._hooks):
                given = hook(self, args, y)
                y = y if given is None else given
            return y
        finally:
            running.reset(token)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the output: every Module writes its own."""
        raise DefinitionError(f"{type(self).__name__} has no forward", hint="Write def forward(self, x) in the class.")

    # What is in it

    def _walk(self, path: str = "", seen: set[int | str] | None = None) -> Iterator[tuple[str, Module | Parameter]]:
        """This Module, and every Module and Parameter in it, each once with its path, in the order of assignment."""
        seen = set() if seen is None else seen
        seen.add(id(self))
        yield path, self
        for name, value in vars(self).items():
            if name == "_hooks":
                continue
            for where, thing in _members(f"{path}.{name}" if path else name, value):
                if id(thing) in seen:
                    continue
                if where in seen:
                    raise DefinitionError(f"{type(self).__name__}: two things would be called {where}", hint="Rename a key.")
                seen.add(where)
                if isinstance(thing, Module):
                    yield from thing._walk(where, seen)
                else:
                    seen.add(id(thing))
                    yield where, thing

    def named_modules(self) -> Iterator[tuple[str, Module]]:
        """(path, module) for this Module, with the path '', and all below it, in order."""
        return ((path, thing) for path, thing in self._walk() if isinstance(thing, Module))

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """(path, parameter) in order; a parameter that several layers share comes once, under its first path."""
        return ((path, thing) for path, thing in self._walk() if isinstance(thing, Parameter))

    def named_buffers(self) -> Iterator[tuple[str, Any]]:
        """(path, array or number) of the state that is not learned, in order."""
        return ((path, getattr(module, name)) for path, module, name in self._places())

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """(name, module) for the Modules directly in this one, in order."""
        return ((name, thing) for attribute, value in vars(self).items() if attribute != "_hooks"
                for name, thing in _members(attribute, value) if isinstance(thing, Module))

    def parameters(self) -> list[Parameter]:
        """The parameters of `named_parameters`, without their paths."""
        return [parameter for _, parameter in self.named_parameters()]

    def children(self) -> list[Module]:
        """The Modules of `named_children`, without their names."""
        return [module for _, module in self.named_children()]

    def name_of(self, child: Module) -> str:
        """The path of a Module inside this one, as 'features.2'; '' if it is not there."""
        return next((path for path, module in self.named_modules() if module is child), "")

    def _places(self) -> Iterator[tuple[str, Module, str]]:
        """(path, the Module that holds it, name) of every buffer."""
        for path, module in self.named_modules():
            for name in module.buffers:
                value = getattr(module, name, None)
                if not (backend.is_array(value) or isinstance(value, int | float)):
                    raise DefinitionError(f"{type(module).__name__}.{name} is named in buffers, and is no array or number but {value!r}",
                                          hint="Assign it in __init__.")
                yield f"{path}.{name}" if path else name, module, name

    # Modes and places

    def train(self, mode: bool = True) -> Self:
        """Switch this Module and all below it to training (dropout drops, statistics are the batch's), or with False to evaluation."""
        for _, module in self.named_modules():
            module.training = bool(mode)
        return self

    def eval(self) -> Self:
        """Switch this Module and all below it to evaluation: the same as `train(False)`."""
        return self.train(False)

    def to(self, device: str | None = None, dtype: Any = None) -> Self:
        """Move all parameters and buffers to a device, and those of a float type to another; in place, so optimizers keep their hold.

        device: "cpu", "cuda:0", ... dtype: "float32", "float64", "float16" or "bfloat16". What is left out stays as it is. Gradients are
        dropped where something changed. DtypeError for a dtype that is not a float type.
        """
        wanted = None if dtype is None else float_type(dtype, "to")

        def moved(x: Array) -> Array:
            x = x.astype(wanted) if wanted is not None and backend.is_float(x.dtype) and x.dtype != wanted else x
            if device is None:
                return x
            with making_room(f"to: the weights of {type(self).__name__}", device):
                return backend.asarray(x, device)

        for parameter in self.parameters():
            data = moved(parameter.data)
            if data is not parameter.data:
                parameter.data = data
        for _, module, name in self._places():
            value = getattr(module, name)
            if backend.is_array(value):
                setattr(module, name, moved(value))
        return self

    def requires_grad_(self, flag: bool = True) -> Self:
        """Freeze every parameter below with False, free it with True: `model.features.requires_grad_(False)`."""
        for parameter in self.parameters():
            parameter.requires_grad = flag
        return self

    def zero_grad(self) -> None:
        """Forget the gradients of all parameters."""
        for parameter in self.parameters():
            parameter.grad = None

    def register_forward_hook(self, hook: Callable[[Any, tuple, Any], Any]) -> Handle:
        """Have `hook(module, inputs, output)` called after each forward; it may give another output in place of the one it was shown.

        inputs: the tuple of positional arguments. Returns a Handle with `remove()`. Hooks run in the order in which they were registered.
        """
        if not isinstance(self._hooks, list):
            object.__setattr__(self, "_hooks", [])
        hooks: list[Callable] = self._hooks     # type: ignore[assignment]
        hooks.append(hook)
        return Handle(hooks, hook)

    # The state

    def state_dict(self) -> dict[str, Array]:
        """A copy of all parameters and then all buffers by path: a snapshot that training does not change.

        Each array stays on its own device; a buffer that is a number becomes an array of shape ().

        >>> from minidl import nn
        >>> list(nn.Affine(2, 3).state_dict())
        ['w', 'b']
        """
        return {path: snapshot(value) for path, value in self._targets().items()}

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> tuple[list[str], list[str]]:
        """Write a state into parameters and buffers, in their own dtype and on their own device, and give (missing, unexpected) paths.

        state: arrays or Tensors by path, as `state_dict` gives them. strict: False allows missing and unexpected paths, never wrong
        shapes, and never that nothing fits. CheckpointError names everything that does not fit, and then nothing was written.
        """
        targets = self._targets()
        fitting, missing, unexpected = matched(f"load_state_dict: this {type(self).__name__}", targets, state, strict)
        for path, parameter in self.named_parameters():
            if path in fitting:
                parameter.data[...] = like(parameter.data, fitting[path])
                parameter.version += 1
        for path, module, name in self._places():
            if path in fitting:
                setattr(module, name, like(targets[path], fitting[path]))
        return missing, unexpected

    def _targets(self) -> dict[str, Any]:
        """The arrays of the parameters, then the buffers, by path."""
        return {**{path: parameter.data for path, parameter in self.named_parameters()}, **dict(self.named_buffers())}

    # What Python asks of it

    def describe(self) -> str:
        """The options that stand in the parentheses of the repr, as '3, 16, kernel=(3, 3)'."""
        return ""

    def __repr__(self) -> str:
        return "\n".join(self._tree({id(self)}))

    def _tree(self, seen: set[int]) -> list[str]:
        """The lines of the repr: the class and its options, and below it, indented, what is in it."""
        head, options, inside = type(self).__name__, self.describe(), []
        for attribute, value in vars(self).items():
            for name, thing in _members(attribute, value) if attribute != "_hooks" else ():
                if isinstance(thing, Parameter):
                    if not options:
                        inside.append(f"{name}: Parameter {thing.shape} {thing.dtype}")
                elif id(thing) in seen:
                    inside.append(f"{name}: {type(thing).__name__} (the same as above)")
                else:
                    seen.add(id(thing))
                    first, *others = thing._tree(seen)
                    inside += [f"{name}: {first}", *others]
        return [f"{head}({options}", *("  " + line for line in inside), ")"] if inside else [f"{head}({options})"]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_hooks"}


RESERVED = frozenset(vars(Module)) - {"training", "forward", "_hooks", "__doc__", "__module__"}


def _members(path: str, value: Any) -> Iterator[tuple[str, Module | Parameter]]:
    """The Modules and Parameters that an attribute holds, also in lists, tuples and dicts, each with its path."""
    if isinstance(value, Module | Parameter):
        yield path, value
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from _members(f"{path}.{i}", item)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _members(f"{path}.{key}", item)
    elif isinstance(value, set | frozenset) and any(isinstance(item, Module | Parameter) for item in value):
        raise DefinitionError(f"{path} is a set, which has no order", hint="Hold Modules and Parameters in a list, a tuple or a dict.")
    elif isinstance(value, Tensor) and value.requires_grad and value.is_leaf:
        raise DefinitionError(f"{path} is a Tensor that requires a gradient and is no Parameter, so it would never be learned",
                              hint=f"Assign {path} = minidl.nn.Parameter(array), or a Tensor without requires_grad.")
