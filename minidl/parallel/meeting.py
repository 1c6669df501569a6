"""Meeting: what ranks tell each other at the end of a minibatch, beside gradients: what it came to, and what layers have noted.

It goes as one short message, more urgent than any chunk, and a longer one only where layers note something (batch normalization).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from minidl.errors import ExchangeError
from minidl.nn import Module
from minidl.nn.part import Notes, pack, unpack
from minidl.parallel.alone import Facts
from minidl.parallel.communicator import Communicator
from minidl.parallel.engine import Engine, Job
from minidl.tensor import Tensor

FACTS = 7                   # numbers of a header before those of the parameters: see `meet`


class Meeting:
    """What came of one. facts: of all ranks together; present: the parameters for which anybody has a gradient; noted: each rank's notes;
    least: the seconds that the rank had waited which had waited least.
    """

    def __init__(self, facts: Facts, present: list[str], noted: list[Notes], least: float):
        self.facts, self.present, self.noted, self.least = facts, present, noted, least


def meet(facts: Facts, notes: Notes, model: Module, learned: Mapping[str, Tensor], waited: float, engine: Engine, talk: Communicator,
         number: int) -> Meeting:
    """Bring everyone's together. number: of the job. waited: seconds for which this rank has waited in the last step. All ranks call it."""
    packed = pack(model, notes) if notes else np.empty(0, np.uint8)
    header = np.array([facts.loss, facts.right, facts.seen, facts.stop, facts.overflow, len(packed), waited,
                       *(p.grad is not None for p in learned.values())], np.float64)
    headers = np.empty((talk.size, len(header)))

    def job() -> Job:
        yield [engine.communicator.iallgather(header, headers)]

    engine.submit(number, job(), "facts of the step", header.nbytes)
    engine.wait([number])
    loss, right, seen, stop, overflow, lengths, waits = headers[:, :FACTS].T
    noted = []
    if lengths.max():
        padded = np.zeros(int(lengths.max()), np.uint8)
        padded[:len(packed)] = packed
        noted = [unpack(model, row[:int(length)]) for row, length in zip(talk.allgather(padded), lengths)]
    present = [path for path, there in zip(learned, headers[:, FACTS:].max(axis=0)) if there]
    everyones = Facts(added(loss), int(added(right)), int(added(seen)), bool(stop.any()), bool(overflow.any()))
    return Meeting(everyones, present, noted, float(waits.min()))


def compare(talk: Communicator, mine: str) -> None:
    """ExchangeError unless all ranks say the same of what they train, in lines."""
    others = [text.decode() for text in talk.gather_bytes(mine.encode())]
    for rank, text in enumerate(others):
        if text != others[0]:
            here, there = set(text.split("\n")), set(others[0].split("\n"))
            raise ExchangeError(f"Team: rank {rank} trains another model than rank 0, or otherwise",
                                rank_0=", ".join(sorted(there - here)[:4]), **{f"rank_{rank}": ", ".join(sorted(here - there)[:4])},
                                hint="Every rank must run the same program with the same options.")


def added(numbers: Iterable[float]) -> float:
    """The sum, from left to right."""
    total = 0.0
    for x in numbers:
        total += float(x)
    return total
