"""Sequential: layers one after the other. Other containers are not needed: a Module finds Modules in its lists and dicts by itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from minidl.errors import DefinitionError, LabelError
from minidl.nn.module import Module


class Sequential(Module):
    """Layers, each applied to what the one before gave. They are named "0", "1", ... and indexed, sliced and counted as in a list.

    layers: Modules. A slice is a Sequential that shares them. DefinitionError for what is no Module.

    >>> from minidl import nn
    >>> model = nn.Sequential(nn.Affine(4, 8), nn.ReLU(), nn.Affine(8, 2))
    >>> model[2], len(model), [path for path, _ in model.named_parameters()]
    (Affine(8, 2), 3, ['0.w', '0.b', '2.w', '2.b'])
    """

    def __init__(self, *layers: Module):
        for layer in layers:
            self.append(layer)

    def append(self, layer: Module) -> Sequential:
        """Add a layer at the end; gives the Sequential itself."""
        setattr(self, str(len(self)), _checked(layer))
        return self

    def forward(self, x: Any) -> Any:
        for layer in self:
            x = layer(x)
        return x

    def __iter__(self) -> Iterator[Module]:
        return iter(self._layers())

    def __len__(self) -> int:
        return len(self._layers())

    def __getitem__(self, i: int | slice) -> Any:
        return Sequential(*self._layers()[i]) if isinstance(i, slice) else self._layers()[self._place(i)]

    def __setitem__(self, i: int, layer: Module) -> None:
        setattr(self, str(self._place(i)), _checked(layer))

    def _layers(self) -> list[Module]:
        return [layer for name, layer in vars(self).items() if name.isdigit()]

    def _place(self, i: int) -> int:
        n = len(self)
        if not -n <= i < n:
            raise LabelError(f"Sequential: there is no layer {i}, there are {n}")
        return i % n


def _checked(layer: Any) -> Module:
    if not isinstance(layer, Module):
        what = layer.__name__ if isinstance(layer, type) else type(layer).__name__
        hint = (f"Make an object of the class: {what}()." if isinstance(layer, type) else "Give them one by one: Sequential(*layers)."
                if isinstance(layer, list | tuple) else "Functions have layers of the same name: nn.ReLU() for functions.relu.")
        raise DefinitionError(f"Sequential: {what} is no Module", hint=hint)
    return layer
