"""Ranks: what each has seen of a minibatch becomes what one process would have seen that had all the parts, one after the other.

Every rank describes what it has seen: which layers, in which order, how many examples, which sums of which shapes. With everyone's
description each decides alike which blocks there are, and only then arrays are added, over all ranks in their order. A layer that one
rank alone has used is known to all afterwards. How descriptions and arrays travel is no concern of this file.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from minidl import backend
from minidl.backend import Array
from minidl.errors import ExchangeError
from minidl.optim.kfac.blocks import Block
from minidl.optim.kfac.places import BLOCK_KINDS, Sighting
from minidl.optim.kfac.statistics import Statistics, Tally


def describe(statistics: Statistics) -> bytes:
    """What this rank has seen in this step, but for the arrays: JSON."""
    statistics.settle()
    blocks = {block.name: {"paths": block.paths, "kind": block.kind, "options": block.options, "examples": block.examples,
                           "rows": block.rows, "sums": {name: [str(x.dtype), x.shape] for name, x in block.earlier.items()}}
              for block in statistics.blocks.values() if block.earlier}
    return json.dumps({"tallies": [asdict(tally) for tally in statistics.tallies], "blocks": blocks,
                       "seen": [[asdict(seen), backward] for seen, backward in statistics.seen.values()]}).encode()


class Joint:
    """All ranks' parts of one minibatch. arrays: what this rank adds to everyone's; -0 where it has nothing, which changes no bit.

    descriptions: of every rank, in their order. ExchangeError if they do not fit together.
    """

    def __init__(self, statistics: Statistics, descriptions: list[bytes], rank: int):
        self.statistics, self.rank = statistics, rank
        self.told: list[dict[str, Any]] = [json.loads(each) for each in descriptions]
        self.tallies = [[Tally(**tally) for tally in told["tallies"]] for told in self.told]
        self.before = statistics.before or statistics.places
        self.places = self.before.copy()
        self.since: dict[int, int] = {}                 # the rank from which on a new block's sums count, by its id
        for number, told in enumerate(self.told):
            for seen, backward in told["seen"]:
                block = self.places.place(Sighting(**seen), (number, backward), lambda seen: self.make(seen, number))   # noqa: B023
                if block is not None:
                    block.counted = (number, backward)
        self.layout = self.laid_out()
        self.arrays = [self.mine(*entry) for entry in self.layout]

    def make(self, seen: Sighting, number: int) -> Block:
        """A block that was not there before this step: this rank's, if it has seen the same layer."""
        block = BLOCK_KINDS[seen.kind or ""](seen.leaves, seen.options, self.statistics.settings)
        mine = self.statistics.blocks.get(block.name)
        if mine is not None and like(block) == like(mine) and all(mine is not old for old in self.before.blocks.values()):
            block = mine
        self.since[id(block)] = number
        return block

    def shown(self, block: Block) -> list[dict[str, Any] | None]:
        """What each rank says of a block; None if nothing that counts."""
        said = [told["blocks"].get(block.name) for told in self.told]
        return [each if each and like(block) == (each["kind"], each["paths"], each["options"]) and number >= self.since.get(id(block), 0)
                else None for number, each in enumerate(said)]

    def laid_out(self) -> list[tuple[Block, str, str, tuple[int, ...]]]:
        """The sums that there are: (block, name, dtype, shape)."""
        layout = []
        for block in self.places.blocks.values():
            sums: dict[str, tuple[str, list[int]]] = {}
            for said in self.shown(block):
                for name, what in said["sums"].items() if said else ():
                    if sums.setdefault(name, what) != what:
                        raise ExchangeError(f"KFAC: ranks have sums of different shapes for {name} of {block.name}",
                                            sums=f"{sums[name]} and {what}", hint="All ranks must train the same model.")
            layout += [(block, name, dtype, tuple(shape)) for name, (dtype, shape) in sums.items()]
        return layout

    def mine(self, block: Block, name: str, dtype: str, shape: tuple[int, ...]) -> Array:
        """What this rank adds to a sum."""
        own = self.statistics.blocks.get(block.name)
        if own is not None and self.shown(block)[self.rank] and name in own.earlier:
            first = next((tally for tally in self.tallies[self.rank] if tally.term), None)
            relative = first.relative(self.term) if first is not None and name != "A" else 1.0
            return own.earlier[name] if relative == 1 else own.earlier[name] * relative
        w = self.statistics.parameters[block.name].data
        return backend.asarray(backend.of(w).full(shape, -0.0, dtype), backend.device_of(w))

    @property
    def term(self) -> float:
        """The weight of a term of the heaviest loss in the first pass of all."""
        return next((tally.term for tallies in self.tallies for tally in tallies if tally.term), 0.0)

    def take(self, sums: list[Array]) -> None:
        """Go on with the sums over all ranks, as if all had been seen here. They are the blocks' from then on."""
        statistics = self.statistics
        statistics.places = self.places
        for block in self.places.blocks.values():
            said = [each for each in self.shown(block) if each]
            block.sums, block.earlier = {}, {}
            block.examples, block.rows = sum(each["examples"] for each in said), sum(each["rows"] for each in said)
        for (block, name, _, _), x in zip(self.layout, sums, strict=True):
            block.earlier[name] = x
        self.tallies[self.rank] = statistics.tallies        # the same ones, to which what is kept for EKFAC refers
        statistics.tallies = [tally for tallies in self.tallies for tally in tallies]


def like(block: Block) -> tuple[str, dict[str, str], dict[str, Any]]:
    """What makes two blocks the same."""
    return block.kind, block.paths, block.options
