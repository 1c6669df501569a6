"""Places: which block of the Fisher matrix a parameter belongs to. It is found out by looking.

Whatever is used by a layer that layers.py or units.py knows has a block there; a parameter that is used otherwise, or in two ways, has
none, and is named with the reason. What a place is decided by is a Sighting, which knows no arrays: so ranks can tell each other what
they have seen, and decide alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from minidl.functions.convolution import Conv2d
from minidl.functions.linear import Affine, Embedding
from minidl.functions.normalization import BatchNorm, BatchNormInference, LayerNorm
from minidl.graph import Function, Node
from minidl.optim.kfac.blocks import Block
from minidl.optim.kfac.kronecker import KroneckerBlock
from minidl.optim.kfac.layers import AffineBlock, Conv2dBlock, EmbeddingBlock
from minidl.optim.kfac.units import BatchNormBlock, LayerNormBlock

BLOCKS: dict[type[Function], type[Block]] = {           # by the operation; those with a fused activation are subclasses of it
    Affine: AffineBlock, Conv2d: Conv2dBlock, Embedding: EmbeddingBlock, BatchNorm: BatchNormBlock, BatchNormInference: BatchNormBlock,
    LayerNorm: LayerNormBlock,
}
BLOCK_KINDS = {block.kind: block for block in BLOCKS.values()}


@dataclass(frozen=True)
class Sighting:
    """A use of parameters. leaves: their paths by the name of the argument. kind: of the block that knows the operation, or None."""

    operation: str
    leaves: dict[str, str]
    kind: str | None
    options: dict[str, Any]             # what the block must know of the layer


def sighting(op: Node, leaves: dict[str, str]) -> Sighting:
    """What a Node shows of the parameters that it uses."""
    kind = next((block for function, block in BLOCKS.items() if isinstance(op.function, function)), None)
    known = kind is not None and set(leaves) <= set(kind.roles) and not (issubclass(kind, KroneckerBlock) and "w" not in leaves)
    return Sighting(op.name, leaves, None if kind is None else kind.kind, kind.read(op) if kind is not None and known else {})


class Places:
    """The blocks that there are, in the order in which they were first seen, and the parameters that have none."""

    def __init__(self) -> None:
        self.blocks: dict[str, Block] = {}              # by the path of their first parameter
        self.owner: dict[str, Block] = {}               # by the path of any
        self.plain: dict[str, str] = {}                 # the parameters that can have no block, and why
        self.lately: dict[str, str] = {}                # those that had none when they were last seen, and why

    def copy(self) -> Places:
        """The same places, and the same blocks in them."""
        other = Places()
        other.blocks, other.owner = dict(self.blocks), dict(self.owner)
        other.plain, other.lately = dict(self.plain), dict(self.lately)
        return other

    def place(self, seen: Sighting, backward: Any, make: Callable[[Sighting], Block]) -> Block | None:
        """The block of a layer, made if it is seen for the first time; None if it has none. backward: the pass in which it is seen."""
        leaves, kind = seen.leaves, BLOCK_KINDS.get(seen.kind or "")
        if kind is not None and issubclass(kind, KroneckerBlock) and "w" not in leaves:
            self.lately.update(dict.fromkeys(leaves.values(), "the weights beside it are not learned"))
            return None
        if kind is None or not set(leaves) <= set(kind.roles):
            why = f"used by {seen.operation}"
        elif any(path in self.plain for path in leaves.values()):
            why = "shared with another operation"
        else:
            owners = list({id(owner): owner for path in leaves.values() if (owner := self.owner.get(path)) is not None}.values())
            alike = all((owner.kind, owner.options) == (kind.kind, seen.options) for owner in owners)
            if len(owners) == 1 and alike and owners[0].paths == leaves:
                return owners[0]
            if not owners or (len(owners) == 1 and alike and owners[0].counted != backward):
                for owner in owners:                    # a parameter was frozen or freed since the last pass: the layer begins anew
                    self.remove(owner)
                return self.add(make(seen))
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
