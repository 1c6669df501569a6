"""One process that speaks for many: the first shows and saves what all of them do, and if it dies another one goes on.

What the ranks of a run are for the command is here. How they train is in parallel/team.py, how they end together in parallel/ending.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from minidl import parallel
from minidl.display import Display, make_console
from minidl.errors import RankLost
from minidl.loop import Callback
from minidl.parallel import Communicator
from minidl.parallel.ending import Ending
from minidl.record import Record
from minidl.run import Run


@dataclass
class Ranks:
    """The processes that an MPI launcher has started, if one has; and how this one ends with the others, and comes to print."""

    world: Communicator | None = None
    ending: Ending | None = None
    speak: Callable[[], None] = lambda: None

    @property
    def first(self) -> bool:
        """Whether this is the process that says what is wrong, and makes the folder."""
        return self.world is None or self.world.rank == 0

    def agreed(self, options: SimpleNamespace, find: Callable[[], bytes]) -> bytes:
        """What the first process finds, for all. If processes may die, the first of those who live finds it."""
        if self.world is None:
            return find()
        places = self.world.size - options.spares
        while True:
            try:
                found, well = self.world.broadcast_bytes(find() if self.first else None), True
            except RankLost:
                if not options.elastic:
                    raise
                found, well = b"", False
                self.world.revoke()
            if not options.elastic or self.world.agree(well):
                return found
            self.world.revoke()
            self.world = self.world.shrink()
            options.spares = max(self.world.size - places, 0)


class Lead(Callback):
    """What the first of many processes does for all: it shows and saves. Should it die, the one that takes its place takes this over.

    claim: makes the folder this process's own.
    """

    def __init__(self, team: parallel.Alone, ranks: Ranks, claim: Callable[[], Any], record: Record, display: Display):
        self.team, self.ranks, self.claim, self.record, self.display = team, ranks, claim, record, display
        self.told = 0                           # of the team's news

    def start(self, run: Run) -> None:
        """The beginning; or a new one, in another process."""
        if self.team.leads and not self.ranks.first:
            self.ranks.speak()
            self.claim()
            self.display.console = make_console()
        self.record.start(run)
        if self.team.leads:
            self.display.start(run)

    def step(self, run: Run, loss: float) -> None:
        """After every update."""
        news = getattr(self.team, "news", ())
        for text in news[self.told:]:
            self.display.remark(text)
        self.told = len(news)
        self.record.step(run, loss)
        if self.team.leads:
            self.display.step(run, loss)

    def epoch(self, run: Run, metrics: dict[str, Any]) -> None:
        """After every epoch."""
        self.record.epoch(run, metrics)
        if self.team.leads:
            self.display.epoch(run, metrics)

    def end(self, run: Run) -> None:
        """At the end."""
        self.record.end(run)
        if self.ranks.ending is not None and self.ranks.world is not None and isinstance(self.team, parallel.Team):
            self.ranks.ending.communicator = self.team.communicator
