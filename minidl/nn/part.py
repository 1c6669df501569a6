"""Part: a minibatch that goes through a model in several passes, or through several models, is one minibatch all the same.

Who cuts it (`accumulate`, or ranks that share it) says which part a pass is of:

    with Part(first, count, total, index, parts) as part:   # of one forward and backward pass
        loss = ...; loss.backward(count / total)
    commit([part.notes, ...])                               # of all parts, in their order, when the minibatch is over

What a layer would remember of a pass, it only notes meanwhile, so that every part meets the same layer, and a minibatch that is not
finished has left no trace:

    note(self, x.max(axis=0))                               # in forward; outside of any part apply_note is called at once
    def apply_note(self, largest):                          # later: note after note, part after part
        self.largest = np.maximum(self.largest, largest)

Where the parts were on different ranks, notes travel as bytes (`pack`, `unpack`). Who sends them is no concern of this file; what
generators in a model draw in a part stands in streams.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextvars import ContextVar, Token
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from minidl import backend
from minidl.backend import Array
from minidl.errors import ArgumentError, DefinitionError, ExchangeError
from minidl.nn.module import Module

Notes = list[tuple[Module, tuple[Array, ...]]]
HEAD = 8                # bytes that say how long the description is


@dataclass(eq=False)
class Part:
    """A part of a minibatch: count of its total examples, from example `first` on.

    index: the number of the part, of so many parts over all ranks. Some may be empty where a minibatch is small: they count too.
    """

    first: int
    count: int
    total: int
    index: int = 0
    parts: int = 1
    notes: Notes = field(default_factory=list)

    @property
    def rows(self) -> slice:
        """Its examples in the minibatch."""
        return slice(self.first, self.first + self.count)

    @property
    def weight(self) -> float:
        """What its mean counts in the minibatch's."""
        return self.count / self.total

    def calls(self, module: Module) -> int:
        """How many notes of a module there are so far."""
        return sum(each is module for each, _ in self.notes)

    def __enter__(self) -> Self:
        self._token: Token[Part | None] = _present.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        _present.reset(self._token)


_present: ContextVar[Part | None] = ContextVar("part", default=None)        # ranks may be threads


def present() -> Part | None:
    """The part that this pass is of; None if it has the minibatch to itself."""
    return _present.get()


def cut() -> bool:
    """Whether minibatches are cut: this pass may see a part only, and what others have done with the rest is not known here."""
    part = present()
    return part is not None and (part.parts > 1 or part.count < part.total)


def note(module: Module, *arrays: Any) -> None:
    """Have `module.apply_note(*arrays)` called when the minibatch is over, or at once outside of any part.

    arrays: NumPy's or CuPy's, or numbers; they are not written to any more. DefinitionError for a module without apply_note.
    """
    if not hasattr(module, "apply_note"):
        raise DefinitionError(f"{type(module).__name__} notes something, and has no apply_note",
                              hint="Write def apply_note(self, *arrays), which takes in what forward has noted.")
    part = present()
    if part is None:
        module.apply_note(*arrays)
    else:
        part.notes.append((module, tuple(x if backend.is_array(x) else np.asarray(x) for x in arrays)))


def commit(notes: Iterable[Notes]) -> None:
    """Let the modules take in what they have noted. notes: of each part, in the order of the parts."""
    for each in notes:
        for module, arrays in each:
            module.apply_note(*arrays)                      # type: ignore[attr-defined]    # note has looked


def pack(model: Module, notes: Notes) -> np.ndarray:
    """Notes as bytes, uint8 (n,), for `unpack` with a twin of the model. ArgumentError for a note of a module that is not in it."""
    numbers = {id(module): number for number, (_, module) in enumerate(model.named_modules())}
    for module, _ in notes:
        if id(module) not in numbers:
            raise ArgumentError(f"{type(module).__name__} has noted something, and is not in the model {type(model).__name__}",
                                hint="Assign it to an attribute of the model.")
    there = iter(backend.fetched([x for _, arrays in notes for x in arrays]))
    content = [(numbers[id(module)], [np.ascontiguousarray(next(there)).reshape(x.shape) for x in arrays]) for module, arrays in notes]
    head = json.dumps([[number, [[x.dtype.str, x.shape] for x in arrays]] for number, arrays in content]).encode()
    raw = [x.tobytes() for _, arrays in content for x in arrays]
    return np.frombuffer(b"".join([len(head).to_bytes(HEAD, "little"), head, *raw]), np.uint8)


def unpack(model: Module, content: Any) -> Notes:
    """The notes of a part, bit for bit, from what `pack` has made of them: arrays on the CPU. No bytes at all are no notes.

    content: uint8 (n,), or bytes. ExchangeError if it is of another model.
    """
    raw = bytes(content)
    if not raw:
        return []
    modules = [module for _, module in model.named_modules()]
    start = HEAD + int.from_bytes(raw[:HEAD], "little")
    notes: Notes = []
    for number, described in json.loads(raw[HEAD:start]):
        arrays = []
        for kind, shape in described:
            x = np.frombuffer(raw, kind, int(np.prod(shape, dtype=np.int64)), start).reshape(shape)
            start += x.nbytes
            arrays.append(x)
        if number >= len(modules) or not hasattr(modules[number], "apply_note"):
            raise ExchangeError(f"a note is of module {number}, and this model's module of that number takes none",
                                hint="All ranks must have built the same model.")
        notes.append((modules[number], tuple(arrays)))
    return notes
