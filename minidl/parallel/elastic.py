"""Elastic: a run that outlives its processes.

More processes are started than train: the others are spares, which stand by. When a process has died, whoever notices revokes what the
ranks talk through, so that nobody waits for it; those who live shrink to a group of their own, the lowest spare takes the dead one's
place, is sent all that it needs by one of the others, and the minibatch is taken again. Without spares left, its examples are dealt out
over the survivors.

What makes this safe is that nothing changes before everybody has agreed that everything has arrived. Until then weights, the optimizer's
memory, running statistics, counters and what compression owes are those of the step before, on every rank: there is nothing to undo.
With a spare in the dead one's place the weights are thus, to the bit, those of a run in which nobody died; but what compression still
owed of the dead one's gradients is lost. A new group is made in the same way: it is used once everybody has agreed that everybody has it.
This is user-level failure mitigation, ULFM: Bland et al., International Journal of High Performance Computing Applications 27(3), 2013.
"""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np

from minidl.errors import ArgumentError, ExchangeError, RankLost
from minidl.nn import Module
from minidl.nn.part import Part
from minidl.optim import KFAC, Optimizer
from minidl.parallel import alone
from minidl.parallel.communicator import Communicator, Request
from minidl.parallel.exchange import Exchange
from minidl.parallel.members import Member, end, this, told
from minidl.parallel.state import broadcast_state
from minidl.parallel.team import Team

DISMISSED = 1               # tag of the message that a spare waits for
NOBODY = -1
IDLE = 2e-3                 # seconds between two looks of a spare, which is not to take the cores from those that train
FAREWELL = 5.0              # seconds in which spares are told that they are not needed any more


class Run(alone.Run, Protocol):
    """What more must be known of a run here."""

    loader: Any
    minibatch: int
    stopped: bool


class Elastic(Team):
    """A team that goes on when processes die. world: all processes; the last `spares` of them stand by. options: as for Team.

    Every rank keeps all that there is to keep, so `master-worker` sends sums in place of weights. ArgumentError for overlap="forward", in
    which weights change one by one and before all have agreed, and for too few processes. A master that does not compute does so if it is
    the only one left.
    """

    def __init__(self, world: Communicator, spares: int = 0, **options: Any):
        least = 1 if options.get("master_computes", True) else 2
        if spares < 0 or world.size - spares < least:
            raise ArgumentError(f"Elastic: {spares} spares of {world.size} processes",
                                hint="At least one must train." if least == 1 else "At least a master and a worker must train.")
        if options.get("overlap") == "forward":
            raise ArgumentError("Elastic: overlap='forward' changes weights before all ranks have agreed on a step",
                                hint="Use overlap='backward'.")
        self.world, self.places = world, world.size - spares
        self.training = list(range(self.places))            # the ranks in the world of those that train
        self.me = this(world.rank)
        self.known: dict[int, Member | None] = dict.fromkeys(range(world.size))         # who lived when last looked at, by number
        self.begun = False
        self.refused = False                    # whether the others know already that this step has failed
        self.owed: tuple[int, Exchange] | None = None       # while a group is made: the exchange of the last one, and its ranks
        self.struck: float | None = None        # when it was noticed that somebody has died, until the work goes on
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

    def place(self, rank: int | None = None) -> tuple[int | None, int]:
        return (0, 1) if self.ranks == 1 else super().place(rank)

    def take(self, communicator: Communicator | None) -> None:
        if communicator is None:
            self.rank, self.ranks = NOBODY, self.places
        else:
            super().take(communicator)

    def bind(self, model: Module, optimizer: Optimizer) -> None:
        if isinstance(optimizer, KFAC) and optimizer.statistics.settings.inversion == "ekfac":
            raise ArgumentError("Elastic: inversion='ekfac' exchanges something in the middle of an update, which could not be made again",
                                hint="Use 'eigen' or 'cholesky'.")
        try:
            super().bind(model, optimizer)
        except RankLost:                        # it will be tried again
            for hook in getattr(self, "hooks", ()):
                hook.remove()
            if hasattr(self, "engine"):
                self.engine.drop()
            raise
        self.exchange.held = True

    # From the beginning to the end

    def begin(self, run: Run, rehearse: Callable[[], Any]) -> bool:
        self.model, self.optimizer = run.model, run.optimizer
        with deaf() if self.stands_by else nullcontext():
            self.come_together(run)
            self.begun, self.struck = True, None
            if not self.stands_by:
                self.load_state(run.owed)       # of the checkpoint that every process has read
                return True
            arrays, rest = run.state()
            rehearse()                          # so that everything is loaded and compiled when it is needed
            run.load_state(arrays, rest)
            return self.stand_by(run)

    def stand_by(self, run: Run) -> bool:
        """A spare's life: until it is needed (True), or the run is over."""
        while self.stands_by:
            word = np.zeros(1, np.uint8)
            waiting: list[Request] = []
            for rank in self.training:
                with suppress(RankLost):
                    waiting.append(self.world.irecv(word, rank, DISMISSED))
            while waiting:
                for request in list(waiting):
                    try:
                        if request.done():
                            return False
                    except RankLost:            # one that has died: another will say what is to be done. All: somebody has revoked
                        waiting.remove(request)
                time.sleep(IDLE)
            self.recover(run, RankLost("a process has died"))
        return True

    def leave(self) -> None:
        super().leave()
        if self.stands_by:
            return
        sending: list[Request] = []
        for rank in set(range(self.world.size)) - set(self.training):
            with suppress(ExchangeError):       # it has died, and nobody had to know
                sending.append(self.world.isend(np.zeros(1, np.uint8), rank, DISMISSED))
        until = time.monotonic() + FAREWELL
        for request in sending:
            with suppress(ExchangeError):
                while not request.done() and time.monotonic() < until:
                    time.sleep(IDLE)

    # A step

    def parts(self, size: int, count: int) -> list[Part]:
        self.resumed()
        return super().parts(size, count)

    def agree(self) -> None:
        if not self.communicator.agree(True):
            self.refused = True
            raise RankLost("a process has died")

    def state(self) -> dict[str, Any]:
        """As in `Team`; if somebody dies meanwhile, nothing: a checkpoint is better without what compression owes than not written."""
        try:
            return super().state()
        except RankLost:
            self.talk.revoke()                  # what comes next finds out, here and elsewhere
            return {}

    # When somebody has died

    def recover(self, run: Run, loss: RankLost) -> None:
        """Go on with those who live. ExchangeError if none of them has trained."""
        self.struck = self.struck or time.perf_counter()
        if not self.stands_by:
            for communicator in (*self.lines(), self.world):
                communicator.revoke()           # whoever waits there comes here
            if not self.refused:
                self.communicator.agree(False)
            self.engine.drop()
            self.exchange.rollback()
            self.owed = self.ranks, self.exchange
        self.refused = False
        self.world = self.world.shrink()
        self.come_together(run)
        self.owed = None
        if not self.stands_by and (run.stopped or run.minibatch >= len(run.loader)):
            self.resumed()                      # there is no minibatch to be taken again

    def resumed(self) -> None:
        """The work goes on."""
        if self.struck is not None:
            self.seconds_lost.append(time.perf_counter() - self.struck)
            self.struck = None
            self.news.append(f"{self.happened}: {1000 * self.seconds_lost[-1]:.0f} ms lost")

    def lines(self) -> list[Communicator]:
        """All that the ranks of the group talk through."""
        sums = [getattr(module, "reduce", None) for _, module in self.model.named_modules()]           # of batch normalization
        return [*(each.communicator for each in sums if each is not None), self.talk, self.wire, self.communicator]

    # A new group

    def come_together(self, run: Run) -> None:
        """Give everybody in the world a rank, and all the same state; again and again, until nobody dies meanwhile."""
        before = self.rank
        while True:
            plan = Plan(self.world)
            if all(self.well(plan, partial(step, run, plan)) for step in (self.look, self.connect, self.share)):
                break
            self.rank = before                  # who is new may not have got what it needs
            self.world.revoke()
            self.world = self.world.shrink()
        if plan.rank == NOBODY:
            self.take(None)
        lost = sorted(set(self.known) - set(plan.present))
        for member in (self.known[number] for number in lost):
            if member is not None:
                end(member)
        self.happened = "a message was lost"
        if lost:
            came = [place for place in plan.order if plan.ranks[place] == NOBODY]
            numbers = list(plan.present)
            self.happened = told(lost, [numbers[place] for place in came], len(plan.order) if len(plan.order) < self.places else None)
        self.known = dict(plan.present)
        self.places, self.training = len(plan.order), plan.order

    def well(self, plan: Plan, step: Callable[[], Any]) -> bool:
        """Make a step of it; whether everybody could. What anybody may wait at is revoked otherwise, by whoever could not."""
        try:
            step()
            well = True
        except RankLost:
            self.struck = self.struck or time.perf_counter()
            well = False
            for communicator in (*plan.opened, self.world):
                communicator.revoke()
        return self.world.agree(well)

    def look(self, run: Run, plan: Plan) -> None:
        """See who is there, and give everybody a place."""
        about = json.dumps([*self.me, self.rank, run.step, run.stopped]).encode()
        for each in plan.world.gather_bytes(about):
            *member, rank, step, stopped = json.loads(each)
            plan.present[member[0]] = Member(*member)
            plan.ranks.append(rank)
            plan.steps.append(step)
            plan.stopped = plan.stopped or (stopped and rank != NOBODY)
        trained = {rank: place for place, rank in enumerate(plan.ranks) if rank != NOBODY}
        if not trained and self.begun:
            raise ExchangeError("Elastic: all processes that have trained are dead, and with them what they had learned since the last "
                                "checkpoint", hint="Resume from it.")
        if self.begun and len({plan.steps[place] for place in trained.values()}) > 1:
            raise ExchangeError("Elastic: the ranks are not at the same step", steps=plan.steps)
        empty = [rank for rank in range(self.places) if rank not in trained]
        fresh = dict(zip(empty, [place for place, rank in enumerate(plan.ranks) if rank == NOBODY]))
        plan.order = [place for _, place in sorted((trained | fresh).items())]      # without enough spares those above move up
        plan.donor = plan.order.index(trained[min(trained)]) if trained else 0
        if plan.world.rank in plan.order:
            plan.rank = plan.order.index(plan.world.rank)
        plan.group = plan.world.split(None if plan.rank == NOBODY else 0, plan.rank)

    def connect(self, run: Run, plan: Plan) -> None:
        """Make what the ranks of the group talk through."""
        if plan.group is not None:
            plan.opened = [plan.group]
            self.take(plan.group)
            plan.opened += [self.talk, self.wire]

    def share(self, run: Run, plan: Plan) -> None:
        """Give those who are new what the others have."""
        if plan.group is None:
            return
        new, gives = plan.ranks[plan.world.rank] == NOBODY, plan.rank == plan.donor
        self.optimizer.zero_grad()              # and what K-FAC has seen of a minibatch that was not finished
        if not self.begun or any(plan.ranks[place] == NOBODY for place in plan.order):
            arrays, rest = run.state() if gives else (None, None)
            arrays, rest = broadcast_state(self.talk, arrays, rest, plan.donor)
            owed = {} if self.begun else broadcast_state(self.talk, run.owed if gives else None, None, plan.donor)[0]
            if new or not (self.begun or gives):
                run.load_state(arrays, rest)
                run.owed = owed
        self.bind(self.model, self.optimizer)
        if self.owed is not None and not new:
            self.exchange.inherit(self.owed[1], alike=self.owed[0] == self.ranks)
        run.stopped = plan.stopped


@dataclass
class Plan:
    """Who gets which place in a new group. By the ranks of `world`: ranks and steps so far; by the new ranks: order."""

    world: Communicator
    present: dict[int, Member] = field(default_factory=dict)        # by number
    ranks: list[int] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    order: list[int] = field(default_factory=list)      # who trains, as ranks of the world
    rank: int = NOBODY                                  # this one's
    donor: int = 0                                      # who knows all that there is to know
    stopped: bool = False                               # whether the run was asked to stop
    group: Communicator | None = None
    opened: list[Communicator] = field(default_factory=list)


@contextmanager
def deaf() -> Iterator[None]:
    """Within the block signals that ask a run to stop mean nothing here: those who train hear them too, and will say so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    names = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {name: signal.signal(name, signal.SIG_IGN) for name in names}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, signal.SIG_DFL if handler is None else handler)
