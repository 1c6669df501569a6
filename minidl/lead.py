"""One process that speaks for many: the first shows and saves what all of them do, and if it dies another one goes on.

What the ranks of a run are for the command is here. How they train is in parallel/team.py, how they end together in parallel/ending.py.
Where there is one process only, it leads.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from minidl import parallel
from minidl.display import Display
from minidl.errors import RankLost
from minidl.loop import Callback
from minidl.parallel import Communicator
from minidl.parallel.ending import Ending, launched
from minidl.record import Record, command
from minidl.report import Journal
from minidl.run import Run


@dataclass
class Ranks:
    """The processes that an MPI launcher has started, if one has; and how this one ends with the others, and comes to print."""

    world: Communicator | None = None           # None: this process is alone
    ending: Ending | None = None
    speak: Callable[[], None] = lambda: None

    @property
    def first(self) -> bool:
        """Whether this is the process that makes the folder, and shows what is done."""
        return self.world is None or self.world.rank == 0

    def agreed(self, options: SimpleNamespace, find: Callable[[], bytes]) -> bytes:
        """What the first process finds, for all; the others wait for it.

        If processes may die, the first of those who live finds it, and fewer are spares.
        """
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
            self.regroup(self.world.shrink())
            options.spares = max(self.world.size - places, 0)

    def regroup(self, world: Communicator) -> None:
        """These are the processes now. One that has become the first speaks from here on."""
        before, self.world = self.first, world
        if self.first and not before:
            self.speak()
        if self.ending is not None:
            self.ending.communicator = world

    def highest(self, number: int) -> int:
        """The highest number that a process has; if some have just died, of those who live."""
        if self.ending is None:
            return number
        with suppress(RankLost):
            number = int(self.ending.communicator.allgather(np.array(number)).max())
        return number

    def command(self, options: SimpleNamespace, *words: str | Path) -> str:
        """What to type at a shell to train with as many processes, and these words."""
        if self.world is None:
            return command("train", *words)
        elastic: list[str | Path] = ["--spares", str(options.spares)] if options.spares else ["--elastic"] if options.elastic else []
        log = [] if options.log_dir is None else ["--log-dir", options.log_dir]
        if launched():
            return command("launch", "-n", str(self.world.size - options.spares), *elastic, *log, "--", *words)
        ulfm = ["--with-ft", "ulfm"] if options.elastic else []
        elastic = ["--elastic", *elastic] if options.spares else elastic
        return shlex.join(["mpiexec", *ulfm, "-n", str(self.world.size)]) + " " + command("train", *words, *elastic, *log)


class Lead(Callback):
    """What the first of many processes does for all: it shows and saves. Should it die, the one that takes its place takes this over.

    claim: makes the folder this process's own.
    """

    def __init__(self, team: parallel.Alone, ranks: Ranks, claim: Callable[[], Any], record: Record, display: Display, journal: Journal):
        self.team, self.ranks, self.claim, self.record, self.display, self.journal = team, ranks, claim, record, display, journal
        self.told = 0                           # of the team's news

    def start(self, run: Run) -> None:
        """The beginning; or, in a process that takes the place of the first, where it stood."""
        takes_over = self.team.leads and not self.ranks.first
        if takes_over:
            self.ranks.speak()
            self.claim()
        self.record.start(run)
        self.journal.start(run)
        if takes_over:
            self.display.take_over(run)
        elif self.team.leads:
            self.display.start(run)
        else:
            self.display.begin(run)

    def step(self, run: Run, loss: float) -> None:
        """After every update."""
        news = getattr(self.team, "news", ())
        for text in news[self.told:]:
            self.display.remark(text)
        self.told = len(news)
        self.record.step(run, loss)
        self.journal.step(run, loss)
        if self.team.leads:
            self.display.step(run, loss)

    def test(self, run: Run) -> Callable[..., Any] | None:
        """Whoever leads when it is over has looked at it from its beginning."""
        return self.journal.test(run)

    def epoch(self, run: Run, metrics: dict[str, Any]) -> None:
        """After every epoch."""
        self.record.epoch(run, metrics)
        if self.team.leads:
            self.display.epoch(run, metrics)
        self.journal.epoch(run, metrics)

    def end(self, run: Run) -> None:
        """At the end: who trained last ends together."""
        self.record.end(run)
        if self.ranks.ending is not None and isinstance(self.team, parallel.Team):
            self.ranks.ending.communicator = self.team.communicator
