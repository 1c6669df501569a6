"""Collecting statistics: the observer that sees every layer of a backward pass, and the passes that the Fisher matrix asks for.

    sampled     before the ordinary pass, one from targets that are drawn from the model's own prediction: an estimate of the Fisher matrix
    exact       before it, one for each output of an example: its expectation. Dear; for tests and teaching
    empirical   none: the gradients of the ordinary pass, at the targets of the data. Cheap, and not the Fisher matrix (Kunstner, Balles
                and Hennig, arXiv:1905.12558)

Passes of its own compute no gradient by a parameter. Which layer a parameter belongs to is found out by looking: whatever is used by a
layer that layers.py or units.py knows has a block there; a parameter that is used otherwise, or in two ways, has none, and is named.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import numpy as np

from minidl.autograd import observe
from minidl.backend import Array
from minidl.functions.convolution import Conv2d
from minidl.functions.linear import Affine, Embedding
from minidl.functions.normalization import BatchNorm, BatchNormInference, LayerNorm
from minidl.graph import Function, Node
from minidl.optim.kfac.blocks import Block, Pass, Settings
from minidl.optim.kfac.kronecker import KroneckerBlock
from minidl.optim.kfac.layers import AffineBlock, Conv2dBlock, EmbeddingBlock
from minidl.optim.kfac.scale import read, unit
from minidl.optim.kfac.units import BatchNormBlock, LayerNormBlock
from minidl.tensor import Tensor
from minidl.walk import reached
from minidl.watchers import Handle

FISHERS = ("sampled", "empirical", "exact")
BLOCKS: dict[type[Function], type[Block]] = {           # by the operation; those with a fused activation are subclasses of it
    Affine: AffineBlock, Conv2d: Conv2dBlock, Embedding: EmbeddingBlock, BatchNorm: BatchNormBlock, BatchNormInference: BatchNormBlock,
    LayerNorm: LayerNormBlock,
}
BLOCK_KINDS = {block.kind: block for block in BLOCKS.values()}


class Statistics:
    """The observer of all parameters: makes blocks as it sees layers, and has them collect.

    parameters: by path. fisher: one of FISHERS. name: of the loss, if it is written by hand. generator: makes that of a
    step. step: gives the number of the present one. timed: a context that counts the seconds of a phase.
    """

    def __init__(self, parameters: Mapping[str, Tensor], fisher: str, name: str | None, settings: Settings,
                 generator: Callable[[], np.random.Generator], step: Callable[[], int],
                 timed: Callable[[str], AbstractContextManager[None]]):
        self.fisher, self.name, self.settings = fisher, name, settings
        self.generator, self.step, self.timed = generator, step, timed
        self.parameters = parameters
        self.paths = {id(p): path for path, p in parameters.items()}
        self.blocks: dict[str, Block] = {}              # by the path of their first parameter
        self.owner: dict[str, Block] = {}               # by the path of any
        self.plain: dict[str, str] = {}                 # the parameters that can have no block, and why
        self.lately: dict[str, str] = {}                # those that had none when they were last seen, and why
        self.weight, self.full = 1.0, 1.0               # of all examples in the loss of a step, and in a mean over them: see scale.py
        self.term = 0.0                                 # the weight of a term of the heaviest loss in this step's first pass
        self.nodes: set[int] = set()                    # the numbers of the Nodes that were seen in this step
        self.sampler: np.random.Generator | None = None         # of this step's targets
        self.unknown = False                            # whether there was a loss of which nothing is known
        self.silent = False                             # whether a pass of this step said nothing
        self.collecting: Pass | None = None             # the pass that is looked at, if statistics are taken in it
        self.ordinary = False                           # whether it is the one that computes the gradient
        self.below: set[int] | None = None              # the numbers of the Nodes that count in it; None if all do
        self.latest = -1                                # the number of the Node that was shown last
        self.eye = Eye(self, parameters.values())

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

    @property
    def unit(self) -> float:
        """What the gradient of a step is divided by."""
        return unit(self.weight, self.full)

    def begin(self, loss: Tensor, seed: Array) -> None:
        """Find out what the pass is about, and run those that must come before it."""
        self.collecting = self.below = None
        if all(p.grad is None for p in self.parameters.values()):       # whoever forgot the gradients began a new step
            self.forget()
        if not self.due():
            return
        reading = read(loss, seed, self.name)
        backward = object()
        if reading is None:
            if not self.unknown:
                self.settings.report("the loss has no known distribution, so the empirical Fisher is used, as for a mean; "
                                     "name it with loss=")
            self.unknown, self.weight, self.full = True, 1.0, 1.0
            self.collecting = Pass(None, 1 / max(abs(float(seed.sum())), 1e-30), True, self.nodes, backward)
            return
        self.silent = self.silent or not reading.parts
        if not reading.parts:
            return
        roots = [(part.logits.node, part.logits.index) for part in reading.parts if part.logits.node is not None]
        below = {node.order for node in reached(roots)}
        relative = 1.0 if not self.term else reading.weight / reading.examples / self.term
        if not self.term:
            self.weight, self.full = reading.weight, reading.full
        elif not below & self.nodes:                    # another part of the minibatch, and not another loss of the same one
            self.weight += reading.weight
        self.term = self.term or reading.weight / reading.examples
        if self.fisher == "empirical" or not self.due("G", "F"):
            self.below = below
            self.collecting = Pass(reading.examples, reading.gain * relative ** 0.5, self.fisher == "empirical", self.nodes, backward)
            return
        shown = Pass(reading.examples, 1.0, True, self.nodes, backward)
        if self.fisher == "sampled":
            self.sampler = self.sampler or self.generator()
            scores = [part.likelihood.sampled(part.logits.data, self.sampler) * (part.root * relative ** 0.5) for part in reading.parts]
            self.own_pass([part.logits for part in reading.parts], scores, shown)
        else:
            for part in reading.parts:
                for root in part.likelihood.roots(part.logits.data):
                    self.own_pass([part.logits], [root * (part.root * relative ** 0.5)], replace(shown))

    def close(self) -> None:
        """Be shown nothing any more."""
        self.eye.close()

    def forget(self) -> None:
        """A step is over, or will not be made."""
        self.nodes, self.term, self.silent, self.sampler = set(), 0.0, False, None
        for block in self.blocks.values():
            block.clear()
            block.forget()

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
        if self.ordinary:
            block = self.owner.get(self.leaves(op).get("w", ""))
            if block is not None and block.wants() and isinstance(op.function, Affine):
                block.remember(x, gy)

    # Which block a layer belongs to

    def leaves(self, op: Node) -> dict[str, str]:
        """The paths of the parameters that a Node uses as they are, by the name of the argument."""
        named = zip(op.function.plan.args, op.edges) if not op.function.plan.variadic else enumerate(op.edges)
        return {str(name): self.paths[id(edge)] for name, edge in named if isinstance(edge, Tensor) and id(edge) in self.paths}

    def block_of(self, op: Node, shown: Pass) -> Block | None:
        """The block of a layer, made if it is seen for the first time; None if it has none."""
        leaves = self.leaves(op)
        kind = next((block for function, block in BLOCKS.items() if isinstance(op.function, function)), None)
        if kind is not None and issubclass(kind, KroneckerBlock) and "w" not in leaves:
            self.lately.update(dict.fromkeys(leaves.values(), "the weights beside it are not learned"))
            return None
        if kind is None or not set(leaves) <= set(kind.roles):
            why = f"used by {op.name}"
        elif any(path in self.plain for path in leaves.values()):
            why = "shared with another operation"
        else:
            options = kind.read(op)
            owners = list({id(owner): owner for path in leaves.values() if (owner := self.owner.get(path)) is not None}.values())
            alike = all((owner.kind, owner.options) == (kind.kind, options) for owner in owners)
            if len(owners) == 1 and alike and owners[0].paths == leaves:
                return owners[0]
            if not owners or (len(owners) == 1 and alike and owners[0].counted is not shown.backward):
                for owner in owners:                    # a parameter was frozen or freed since the last pass: the layer begins anew
                    self.remove(owner)
                return self.add(kind(leaves, options, self.settings))
            why = "shared between layers of different kinds"
        for path in leaves.values():
            if path in self.owner:
                self.plain.update(dict.fromkeys(self.remove(self.owner[path]), why))
            self.plain.setdefault(path, why)
        return None

    def add(self, block: Block) -> Block:
        """Take a new block in."""
        self.blocks[block.name] = block
        self.owner.update(dict.fromkeys(block.paths.values(), block))
        return block

    def take(self, blocks: Iterable[Block], plain: Mapping[str, str]) -> None:
        """Go back to these blocks and no others."""
        self.blocks, self.owner, self.plain = {}, {}, dict(plain)
        for block in blocks:
            self.add(block)

    def remove(self, block: Block) -> list[str]:
        """Forget a block; gives the paths of its parameters."""
        self.blocks.pop(block.name)
        for path in block.paths.values():
            self.owner.pop(path)
        return list(block.paths.values())


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
