"""Elastic: a run that outlives its processes.

More processes are started than train: the others are spares, which stand by. When a process has died, whoever notices revokes what the
ranks talk through, so that nobody waits for it; those who live shrink to a group of their own, the lowest spare takes the dead one's place, is sent
all that it needs by one of the others, and the minibatch is taken again. Without spares left, its examples are dealt out over the survivors.

What makes this safe is that nothing changes before everybody has agreed that everything has arrived. Until then weights, the optimizer's
memory, running statistics, counters and what compression owes are those of the step before, on every rank: there is nothing to undo. With
a spare in the dead one's place the weights are thus, to the bit, those of a run in which nobody died; but what compression still owed of the
dead one's gradients is lost.
This is user-level failure mitigation, ULFM: Bland et al., International Journal of High Performance Computing Applications 27(3), 2013.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

import numpy as np

from minidl.errors import ArgumentError, ExchangeError, RankLost
from minidl.nn import Module
from minidl.optim import KFAC, Optimizer
from minidl.parallel.alone import Run
from minidl.parallel.communicator import NAP, Communicator, Request
from minidl.parallel.state import broadcast_state
from minidl.parallel.team import Team

DISMISSED = 1               # tag of the message that a spare waits for
NOBODY = -1


class Elastic(Team):
    """A team that goes on when processes die. world: all processes; the last `spares` of them stand by. options: as for Team.

    Every rank keeps all that there is to keep, so `master-worker` sends sums in place of weights. ArgumentError for overlap="forward", in
    which weights change one by one and before all have agreed.
    """

    def __init__(self, world: Communicator, spares: int = 0, **options: Any):
        if not 0 <= spares < world.size:
            raise ArgumentError(f"Elastic: {spares} spares of {world.size} processes", hint="At least one must train.")
        if options.get("overlap") == "forward":
            raise ArgumentError("Elastic: overlap='forward' changes weights before all ranks have agreed on a step",
                                hint="Use overlap='backward'.")
        self.world, self.places = world, world.size - spares
        self.training = list(range(self.places))            # the ranks in the world of those that train
        self.begun = False
        self.refused = False                    # whether the others know already that this step has failed
        self.news: list[str] = []               # what has happened, in words
        self.seconds_lost: list[float] = []     # from the first error to the moment at which the minibatch is taken again
        super().__init__(None, **options | {"alike": True})             # type: ignore[arg-type]   # nobody has a group yet
        self.rank = world.rank if world.rank < self.places else NOBODY

    @property
    def cuts(self) -> bool:
        return True

    @property
    def stands_by(self) -> bool:
        """Whether this process is a spare."""
        return self.rank == NOBODY

    def take(self, communicator: Communicator | None) -> None:
        self.grouped = communicator is not None
        if communicator is None:
            self.rank, self.ranks = NOBODY, self.places
        else:
            self.communicator = communicator
            self.talk = self.wire = communicator            # should somebody die before there are duplicates
            super().take(communicator)

    def bind(self, model: Module, optimizer: Optimizer) -> None:
        if isinstance(optimizer, KFAC) and optimizer.statistics.settings.inversion == "ekfac":
            raise ArgumentError("Elastic: inversion='ekfac' exchanges something in the middle of an update, which could not be made again",
                                hint="Use 'eigen' or 'cholesky'.")
        self.model, self.optimizer = model, optimizer
        if not self.stands_by:
            owed = (self.ranks, self.exchange) if self.bound else None
            super().bind(model, optimizer)
            self.exchange.held = True
            if owed is not None:
                self.exchange.inherit(owed[1], alike=owed[0] == self.ranks)

    # From the beginning to the end

    def begin(self, run: Run, rehearse: Callable[[], Any]) -> bool:
        self.model, self.optimizer = run.model, run.optimizer
        self.come_together(run)
        self.begun = True
        if not self.stands_by:
            self.load_state(run.owed)           # of the checkpoint that every process has read
        if self.stands_by:
            arrays, rest = run.state()
            rehearse()                          # so that everything is loaded and compiled when it is needed
            run.load_state(arrays, rest)
            return self.stand_by(run)
        return True

    def stand_by(self, run: Run) -> bool:
        """A spare's life: until it is needed (True), or the run is over."""
        while self.stands_by:
            told = np.zeros(1, np.uint8)
            waiting: list[Request] = []
            for rank in self.training:
                with suppress(RankLost):
                    waiting.append(self.world.irecv(told, rank, DISMISSED))
            while waiting:
                for request in list(waiting):
                    try:
                        if request.done():
                            return False
                    except RankLost:            # one that has died: another will say what is to be done. All: somebody has revoked
                        waiting.remove(request)
                time.sleep(NAP)
            self.recover(run, RankLost("a process has died"))
        return True

    def leave(self) -> None:
        super().leave()
        if self.stands_by:
            return
        for rank in set(range(self.world.size)) - set(self.training):
            with suppress(ExchangeError):       # it has died, and nobody had to know
                self.world.wait([self.world.isend(np.zeros(1, np.uint8), rank, DISMISSED)])

    # A step

    def agree(self) -> None:
        if not self.communicator.agree(True):
            self.refused = True
            raise RankLost("a process has died")

    # When somebody has died

    def recover(self, run: Run, loss: RankLost) -> None:
        """Go on with those who live. ExchangeError if none of them has trained."""
        started = time.perf_counter()
        if not self.stands_by:
            for communicator in (self.talk, self.wire, self.communicator, self.world):
                communicator.revoke()           # whoever waits there comes here
            if not self.refused:
                self.communicator.agree(False)
            self.engine.drop()
            self.exchange.rollback()
        before, self.refused = self.world.size, False
        self.world = self.world.shrink()
        words = self.come_together(run)
        self.seconds_lost.append(time.perf_counter() - started)
        lost = before - self.world.size
        self.news.append(f"{lost} process{'es have' if lost != 1 else ' has'} died{words}; {1000 * self.seconds_lost[-1]:.0f} ms")

    def come_together(self, run: Run) -> str:
        """Give everybody in the world a rank, and all the same state; again and again, until nobody dies meanwhile. What was done, in words."""
        while True:
            before = self.rank, self.places, self.training
            try:
                words = self.regroup(run)
                well = True
            except RankLost:
                well = False
                for communicator in (self.world, *((self.communicator, self.talk, self.wire) if self.grouped else ())):
                    communicator.revoke()
            if self.world.agree(well):
                return words
            self.rank, self.places, self.training = before              # who is new may not have got what it needs
            self.world.revoke()
            self.world = self.world.shrink()

    def regroup(self, run: Run) -> str:
        """One round of that."""
        self.grouped = False
        told = self.world.allgather(np.array([self.rank, run.step], np.int64))
        ranks, steps = told[:, 0].tolist(), told[:, 1].tolist()
        trained = sorted((rank, place) for place, rank in enumerate(ranks) if rank != NOBODY)
        if not trained:
            none_left()
        if self.begun and len({steps[place] for _, place in trained}) > 1:
            raise ExchangeError("Elastic: the ranks are not at the same step", steps=steps)
        held = dict(trained)                    # by rank, who has it in this world
        empty = [rank for rank in range(self.places) if rank not in held]
        fresh = dict(zip(empty, [place for place, rank in enumerate(ranks) if rank == NOBODY]))
        order = [place for _, place in sorted((held | fresh).items())]          # without enough spares those above move up
        me, rank = self.world.rank, NOBODY
        if me in order:
            rank = order.index(me)
        group = self.world.split(None if rank == NOBODY else 0, rank)
        if group is not None:
            donor = order.index(trained[0][1])
            self.take(group)
            self.optimizer.zero_grad()          # and what K-FAC has seen of a minibatch that was not finished
            mine, more = run.state() if rank == donor else (None, None)
            arrays, rest = broadcast_state(self.talk, mine, more, donor)
            if rank != donor:
                run.load_state(arrays, rest)
            self.bind(self.model, self.optimizer)
        self.places, self.training = len(order), order
        went_on = f", {len(fresh)} spare{'s have' if len(fresh) != 1 else ' has'} stepped in" if fresh else ""
        return went_on + (f", {self.places} go on" if len(fresh) < len(empty) else "")


def none_left() -> NoReturn:
    raise ExchangeError("Elastic: all processes that have trained are dead, and with them what they had learned since the last checkpoint",
                        hint="Resume from it.")
