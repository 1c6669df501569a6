"""What is measured: techniques, and groups of cells that take turns.

A cell is one way to train one model: an exchange, what of it is hidden behind what, and how it is compressed. The cells of a group share
model, wire and computation, so that their times can be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

EXCHANGES = ("allreduce", "master-worker")
CODECS = ("none", "fp16", "int8", "topk:0.01")
RATIOS = (0.59, 1.0, 3.05)          # communication over computation, one after the other
BUS = 4                             # the emulated device's bus is so many times faster than the wire


@dataclass(frozen=True)
class Technique:
    """overlap: the team's; later: gradients leave only after the backward pass, so that the next forward pass alone hides anything.

    by_chunks: device to host, wire and sum, and host to device are a pipeline; otherwise one of them begins when the one before has all.
    by_vectors: NumPy adds up gradients; otherwise a loop does, number by number.
    """

    title: str
    overlap: str = "none"
    later: bool = False
    by_chunks: bool = True
    by_vectors: bool = True

    @property
    def serial(self) -> bool:
        """Whether computation and communication take turns."""
        return self.overlap == "none"


TECHNIQUES = {
    "serial": Technique("serial"),
    "backward": Technique("backward overlap", "backward"),
    "forward": Technique("forward overlap", "forward", later=True),
    "both": Technique("backward + forward", "forward"),
    "bare": Technique("serial, summed one by one", by_chunks=False, by_vectors=False),
    "sum": Technique("vectorised sum", by_chunks=False),
    "pipeline": Technique("pipeline", by_vectors=False),
    "pipeline+sum": Technique("pipeline + sum"),
    "backward+all": Technique("backward + pipeline + sum", "backward"),
    "all": Technique("all together", "forward"),
}
OVERLAPS = ("serial", "backward", "forward", "both")
STAGES = ("bare", "sum", "pipeline", "pipeline+sum", "backward+all", "all")


@dataclass(frozen=True)
class Cell:
    technique: str
    compress: str = "none"


@dataclass(frozen=True)
class Group:
    """kind: of KINDS. compute: "sleep" or "numpy". ratio: communication over computation. bus: whether a device's bus is emulated.

    Its first cell is what the others are compared with.
    """

    kind: str
    exchange: str
    compute: str
    ratio: float
    cells: list[Cell]
    bus: bool = False


KINDS = ("overlap", "stages", "numpy")


def groups(exchanges: Sequence[str] = EXCHANGES, ratios: Sequence[float] = RATIOS, codecs: Sequence[str] = CODECS,
           kinds: Sequence[str] = KINDS) -> list[Group]:
    """All that is to be measured. Compression is tried where most is to be sent."""
    found = []
    compressed = [Cell(name, codec) for name in ("serial", "both") for codec in codecs if codec != "none"]
    for exchange in exchanges:
        if "overlap" in kinds:
            found += [Group("overlap", exchange, "sleep", ratio, [*map(Cell, OVERLAPS), *(compressed if ratio == max(ratios) else ())])
                      for ratio in ratios]
        if "stages" in kinds:
            found.append(Group("stages", exchange, "sleep", 1.0, [Cell(name) for name in STAGES], bus=True))
        if "numpy" in kinds:
            found.append(Group("numpy", exchange, "numpy", 1.0, [Cell(name) for name in OVERLAPS]))
    return found


def written(group: Group) -> dict[str, Any]:
    """As JSON takes it."""
    return asdict(group)


def read(entry: dict[str, Any]) -> Group:
    """What was written."""
    return Group(**entry | {"cells": [Cell(**cell) for cell in entry["cells"]]})
