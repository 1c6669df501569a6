"""Collecting statistics: the observer that sees every layer of a backward pass, and the passes that the Fisher matrix asks for.

    sampled     before the ordinary pass, one from targets that are drawn from the model's own prediction: an estimate of the Fisher matrix
    exact       before it, one for each output of an example: its expectation. Dear; for tests and teaching
    empirical   none: the gradients of the ordinary pass, at the targets of the data. Cheap, and not the Fisher matrix (Kunstner, Balles
                and Hennig, arXiv:1905.12558)

Passes of its own compute no gradient by a parameter. Which layer a parameter belongs to is found out by looking: see places.py.

Where a minibatch goes through in parts (nn/part.py), the sums of each part are made for themselves and then added, in the order of the
parts: so the bits are the same where the parts are on different ranks. How these tell each other what they have seen is in ranks.py.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from minidl.autograd import observe
from minidl.backend import Array
from minidl.functions.linear import Affine
from minidl.graph import Node
from minidl.nn.part import Part, cut, present
from minidl.optim.kfac.blocks import Block, Pass, Settings
from minidl.optim.kfac.places import BLOCK_KINDS, Places, Sighting, sighting
from minidl.optim.kfac.scale import Reading, read, unit
from minidl.tensor import Tensor
from minidl.walk import reached
from minidl.watchers import Handle

FISHERS = ("sampled", "empirical", "exact")


@dataclass(eq=False)
class Tally:
    """What the passes of one part of a minibatch say of their loss: see scale.py."""

    weight: float = 1.0             # of all its examples in the loss of the step
    full: float = 1.0               # and in a mean over them
    term: float = 0.0               # the weight of a term of the heaviest loss in its first pass; 0 if there was none
    silent: bool = False            # whether a pass said nothing
    unknown: bool = False           # whether there was a loss of which nothing is known

    def relative(self, first: float) -> float:
        """The weight of its terms beside that of the first part's: 1 but for rounding, if the loss is a mean."""
        ratio = self.term / first if self.term and first else 1.0
        return 1.0 if abs(ratio - 1) < 1e-6 else ratio


class Statistics:
    """The observer of all parameters: makes blocks as it sees layers, and has them collect.

    parameters: by path. fisher: one of FISHERS. name: of the loss, if it is written by hand. generator: makes that of a
    step. step: gives the number of the present one. timed: a context that counts the seconds of a phase.
    """

    def __init__(self, parameters: Mapping[str, Tensor], fisher: str, name: str | None, settings: Settings,
                 generator: Callable[..., np.random.Generator], step: Callable[[], int],
                 timed: Callable[[str], AbstractContextManager[None]]):
        self.fisher, self.name, self.settings = fisher, name, settings
        self.generator, self.step, self.timed = generator, step, timed
        self.parameters = parameters
        self.paths = {id(p): path for path, p in parameters.items()}
        self.places = Places()
        self.before: Places | None = None               # as they were when this step began
        self.seen: dict[str, tuple[Sighting, int]] = {}         # in this step, with the number of the pass
        self.loss_scale = 1.0                           # by which the loss is multiplied in a step, and the gradient divided after it
        self.known = (1.0, 1.0)                         # weight and full of the last step that said anything
        self.tallies: list[Tally] = []                  # of this step's parts; the last one is the present one's
        self.part: Part | None = None                   # the part that it is of
        self.nodes: set[int] = set()                    # the numbers of the Nodes that were seen in this step
        self.sampler: np.random.Generator | Rows | None = None  # of this part's targets
        self.reported = False                           # whether it was told that the loss is unknown
        self.backwards = 0                              # how many passes there were
        self.scores: bool | None = None                 # whether this step takes gradients in, once that is decided
        self.collecting: Pass | None = None             # the pass that is looked at, if statistics are taken in it
        self.ordinary = False                           # whether it is the one that computes the gradient
        self.below: set[int] | None = None              # the numbers of the Nodes that count in it; None if all do
        self.latest = -1                                # the number of the Node that was shown last
        self.eye = Eye(self, parameters.values())

    @property
    def blocks(self) -> dict[str, Block]:
        """By the path of their first parameter."""
        return self.places.blocks

    # What the losses of this step weigh

    @property
    def weight(self) -> float:
        """Of all examples in the loss of a step."""
        return self._weights()[0]

    @property
    def full(self) -> float:
        """And in a mean over them."""
        return self._weights()[1]

    def _weights(self) -> tuple[float, float]:
        if any(tally.unknown for tally in self.tallies):
            return 1.0, 1.0
        told = [tally for tally in self.tallies if tally.term]
        scale = self.loss_scale
        return (math.fsum(tally.weight for tally in told) / scale, told[0].full / scale) if told else self.known

    @property
    def unit(self) -> float:
        """What the gradient of a step is divided by."""
        return unit(*self._weights())

    @property
    def term(self) -> float:
        """The weight of a term of the heaviest loss in the step's first pass."""
        return next((tally.term for tally in self.tallies if tally.term), 0.0)

    @property
    def silent(self) -> bool:
        """Whether a pass of this step said nothing."""
        return any(tally.silent for tally in self.tallies)

    # What a backward pass asks of an observer

    def wants(self) -> bool:
        """Whether a pass is to be looked at."""
        return self.due() or any(block.wants() for block in self.blocks.values())

    def due(self, *names: str) -> bool:
        """Whether any average, or any of these names, is to be renewed in this step."""
        step = self.step()
        return self.settings.timing.due(step) or any(
            block.due(name, step) for block in self.blocks.values() for name in block.factors if not names or name in names)

    def before_backward(self, loss: Tensor, seed: Array) -> bool:
        """Run the passes of its own, and get ready for the ordinary one; gives whether it wants to see that."""
        with self.timed("factors"):
            self.begin(loss, seed)
        self.ordinary, self.latest = True, -1
        return self.collecting is not None or any(block.wants() for block in self.blocks.values())

    def begin(self, loss: Tensor, seed: Array) -> None:
        """Find out what the pass is about, and run those that must come before it."""
        self.collecting = self.below = None
        if all(p.grad is None for p in self.parameters.values()):       # whoever forgot the gradients began a new step
            self.forget()
        if not self.due():
            return
        tally = self.enter(present())
        self.backwards += 1
        reading = read(loss, seed, self.name)
        if reading is None:
            if not self.reported:
                self.settings.report("the loss has no known distribution, so the empirical Fisher is used, as for a mean; "
                                     "name it with loss=")
            self.reported = tally.unknown = True
            self.collecting = Pass(None, 1 / max(abs(float(seed.sum())), 1e-30), True, self.nodes, self.backwards, tally)
            return
        tally.silent = tally.silent or not reading.examples
        if not reading.parts:
            return
        if self.part is None or self.scores is None:    # parts decide alike, also those after one that has found a new layer
            self.scores = self.due("G", "F")
        if not reading.examples:
            self.accompany(reading)
            return
        roots = [(part.logits.node, part.logits.index) for part in reading.parts if part.logits.node is not None]
        below = {node.order for node in reached(roots)}
        relative = 1.0 if not tally.term else reading.weight / reading.examples / tally.term
        if not tally.term:
            tally.weight, tally.full = reading.weight, reading.full
        elif not below & self.nodes:                    # another part of the minibatch, and not another loss of the same one
            tally.weight += reading.weight
        tally.term = tally.term or reading.weight / reading.examples
        if self.fisher == "empirical" or not self.scores:
            self.below = below
            self.collecting = Pass(reading.examples, reading.gain * relative ** 0.5, self.fisher == "empirical", self.nodes,
                                   self.backwards, tally)
            return
        shown = Pass(reading.examples, 1.0, True, self.nodes, self.backwards, tally)
        for logits, scores in self.passes(reading):
            self.own_pass(logits, [each * (part.root * relative ** 0.5) for each, part in scores], replace(shown))

    def passes(self, reading: Reading) -> Iterator[tuple[list[Tensor], list[tuple[Array, Any]]]]:
        """The passes of its own: where each begins, and with which scores, each beside the loss that it is of."""
        if self.fisher == "sampled":
            sampler: Any = self.sampler or self.sampler_of(self.part)
            self.sampler = sampler
            yield ([part.logits for part in reading.parts],
                   [(part.likelihood.sampled(part.logits.data, sampler), part) for part in reading.parts])
        else:
            for part in reading.parts:
                for root in part.likelihood.roots(part.logits.data):
                    yield [part.logits], [(root, part)]

    def accompany(self, reading: Reading) -> None:
        """This part is empty, and others are not: go through the same passes and take nothing in, for layers that talk to other ranks."""
        if self.part is not None and self.scores and self.fisher != "empirical":
            self.ordinary = False
            for logits, scores in self.passes(reading):
                observe(logits, [score for score, _ in scores], [self.eye])

    def enter(self, part: Part | None) -> Tally:
        """The Tally of a part of the minibatch: a new one if the last pass was of another part, whose sums are then complete."""
        if self.tallies and part is self.part:
            return self.tallies[-1]
        self.before = self.before or self.places.copy()
        self.settle()
        self.part, self.sampler = part, None
        self.tallies.append(Tally())
        return self.tallies[-1]

    def settle(self) -> None:
        """The sums of a part are complete: add them to those of the parts before."""
        if self.tallies:
            relative = self.tallies[-1].relative(self.term)
            for block in self.blocks.values():
                block.settle(relative)

    def complete(self) -> list[Block]:
        """The last part is over too: gives the blocks that have collected something, with the sums of all parts."""
        self.settle()
        for block in self.blocks.values():
            block.sums, block.earlier = block.earlier, {}
        return [block for block in self.blocks.values() if block.sums]

    def sampler_of(self, part: Part | None) -> np.random.Generator | Rows:
        """What draws a part's targets: those that the whole minibatch would have."""
        return self.generator() if part is None else Rows(self.generator, part)

    def close(self) -> None:
        """Be shown nothing any more."""
        self.eye.close()

    def forget(self) -> None:
        """A step is over, or will not be made."""
        self.known = self._weights()
        self.tallies, self.part, self.nodes, self.sampler, self.scores = [], None, set(), None, None
        for places in (self.places, self.before or self.places):
            for block in places.blocks.values():
                block.clear()
                block.forget()
        self.places = self.before or self.places        # what was seen in a step that is not made was not seen
        self.before, self.seen = None, {}

    def own_pass(self, logits: list[Tensor], scores: list[Array], shown: Pass) -> None:
        """One of them."""
        self.collecting, self.ordinary, self.latest = shown, False, -1
        try:
            observe(logits, scores, [self.eye])
        finally:
            self.collecting = None

    def see(self, x: Array, gy: Array, op: Node) -> None:
        """A layer, its input and the gradient at its output. It is shown for each of its parameters, and looked at once."""
        if op.order == self.latest:
            return
        self.latest = op.order
        if self.collecting is not None and (self.below is None or op.order in self.below):
            block = self.block_of(op, self.collecting)
            if block is not None:
                with self.timed("factors") if self.ordinary else nullcontext():             # the time of passes of its own is counted
                    block.collect(x, gy, op, self.collecting, self.step())
        if self.ordinary and not cut():
            block = self.places.owner.get(self.leaves(op).get("w", ""))
            if block is not None and block.wants() and isinstance(op.function, Affine):
                block.remember(x, gy)

    # Which block a layer belongs to

    def leaves(self, op: Node) -> dict[str, str]:
        """The paths of the parameters that a Node uses as they are, by the name of the argument."""
        named = zip(op.function.plan.args, op.edges) if not op.function.plan.variadic else enumerate(op.edges)
        return {str(name): self.paths[id(edge)] for name, edge in named if isinstance(edge, Tensor) and id(edge) in self.paths}

    def block_of(self, op: Node, shown: Pass) -> Block | None:
        """The block of a layer, made if it is seen for the first time; None if it has none."""
        seen = sighting(op, self.leaves(op))
        self.seen.setdefault(f"{seen} {shown.backward}", (seen, shown.backward))
        return self.places.place(seen, shown.backward, self.make)

    def make(self, seen: Sighting) -> Block:
        """A new block."""
        return BLOCK_KINDS[seen.kind or ""](seen.leaves, seen.options, self.settings)


class Rows:
    """Draws, for a part of a minibatch, what a generator would draw for its examples in the whole, wherever the others are."""

    def __init__(self, generator: Callable[..., np.random.Generator], part: Part):
        self.generator, self.part, self.whole = generator, part, generator()

    def random(self, size: int, dtype: Any) -> np.ndarray:
        """As numpy.random.Generator.random."""
        return self.rows("random", size, dtype)

    def standard_normal(self, size: int, dtype: Any) -> np.ndarray:
        """As numpy.random.Generator.standard_normal."""
        return self.rows("standard_normal", size, dtype)

    def rows(self, what: str, size: int, dtype: Any) -> np.ndarray:
        part = self.part
        if not part.count or size % part.count:         # there are not so many numbers for each example: the part has its own
            return getattr(self.generator(part.index), what)(size, dtype=dtype)
        each = size // part.count
        return getattr(self.whole, what)(part.total * each, dtype=dtype)[part.first * each:part.first * each + size]


class Eye:
    """Stands between parameters and a Statistics, so that parameters do not keep an optimizer alive that nobody holds any more."""

    def __init__(self, statistics: Statistics, parameters: Iterable[Tensor]):
        self.statistics = weakref.ref(statistics)
        self.close = weakref.finalize(statistics, _remove, [p.register_observer(self) for p in parameters])

    def wants(self) -> bool:
        statistics = self.statistics()
        return statistics is not None and statistics.wants()

    def before_backward(self, loss: Tensor, seed: Array) -> bool:
        statistics = self.statistics()
        return statistics is not None and statistics.before_backward(loss, seed)

    def see(self, x: Array, gy: Array, op: Node) -> None:
        statistics = self.statistics()
        if statistics is not None:
            statistics.see(x, gy, op)


def _remove(handles: Iterable[Handle]) -> None:
    for handle in handles:
        handle.remove()
