"""Streams: random generators that a model holds itself, when a minibatch goes through it in parts.

A generator draws one number after the other, so what it gives to a part would depend on what the parts before have drawn, or on which
rank the part is. Instead each part gets streams of its own: a function of the state in which the run found a generator, the step and the
number of the part, and of nothing that happened before. Dropout needs none of this: it hashes, see functions/dropout.py.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from minidl.nn.module import Module


def generators(model: Module) -> Iterator[tuple[str, np.random.Generator]]:
    """The random generators that the modules of a model hold as attributes, with their paths."""
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, np.random.Generator):
                yield f"{path}.{name}" if path else name, value


class Streams:
    """The generators of a model, and the states in which they were found: these are the run's, and what a checkpoint takes.

    cut: False where no minibatch has more than one part: then generators go on as they would alone, and nothing here does anything.
    """

    def __init__(self, model: Module, cut: bool = True):
        self.found = [(generator, generator.bit_generator.state) for _, generator in generators(model)] if cut else []
        self.seeds = [digest(state) for _, state in self.found]

    @contextmanager
    def of(self, step: int, part: int) -> Iterator[None]:
        """Within it the generators draw for a part of the minibatch of this step; afterwards they are as they were found."""
        with self.kept():
            for (generator, _), seed in zip(self.found, self.seeds):
                kind: Any = type(generator.bit_generator)
                generator.bit_generator.state = kind(np.random.SeedSequence(seed, spawn_key=(step, part))).state
            yield

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Whatever is drawn within it, afterwards the generators are as they were found."""
        try:
            yield
        finally:
            for generator, state in self.found:
                generator.bit_generator.state = state


def digest(state: Any) -> int:
    """A number for a state of a bit generator: another one for another state."""
    return int.from_bytes(hashlib.sha256(json.dumps(plain(state), sort_keys=True).encode()).digest(), "little")


def plain(state: Any) -> Any:
    """The state of a bit generator without arrays: some kinds have them, and all take lists back."""
    return json.loads(json.dumps(state, default=np.ndarray.tolist))
