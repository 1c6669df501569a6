"""Team: this process among those that train one model together.

`minidl.loop.fit` asks it three things: which examples of a minibatch are this process's, that gradients may leave as soon as they are
final, and that the weights be updated with everyone's. What goes over the wire is an Exchange's business, when it goes the Engine's.

    none        the gradients leave when the backward pass is over, and the update waits for their sum
    backward    each leaves as soon as it is final, while the pass goes on below it; so do weights that one rank makes for all: see ahead.py
    forward     besides, each weight is updated as soon as its sum is there, while the next forward pass has begun: see arrivals.py

All three give the same bits.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from copy import copy
from functools import partial
from typing import Any

import numpy as np

from minidl import backend
from minidl.backend import Array
from minidl.data import Loader
from minidl.data.loader import share
from minidl.errors import ArgumentError, ExchangeError, nearest
from minidl.nn import Module
from minidl.nn.part import Notes, Part, commit
from minidl.optim import KFAC, Optimizer, clip_grad_norm
from minidl.parallel import exchange as exchanges
from minidl.parallel.ahead import Ahead
from minidl.parallel.alone import Alone, Facts, Run, cut
from minidl.parallel.arrivals import Arrivals, Gate
from minidl.parallel.batch_norm import synchronize
from minidl.parallel.communicator import Communicator
from minidl.parallel.device_staging import staging_for
from minidl.parallel.engine import STAGES, WIDE, WINDOW, Engine, Job
from minidl.parallel.layout import CHUNK, Chunk, Layout
from minidl.parallel.meeting import added, compare, meet
from minidl.parallel.spread import Spread
from minidl.parallel.staging import Staging
from minidl.parallel.state import State, broadcast_state
from minidl.parallel.sums import sums
from minidl.profiler import clock, hide, phase
from minidl.tensor import Tensor, make

OVERLAPS = ("none", "backward", "forward")
HEADER, EARLY, FIRST = 0, 1, 2      # numbers of jobs: the facts of a step are more urgent than anything else


class Team(Alone):
    """One of the ranks of a communicator.

    exchange: the name of a strategy. overlap: one of OVERLAPS. compress: "none", "fp16", "int8" or "topk:0.01", see compression.py;
    feedback: False to forget what compression leaves out, which is worse. chunk: bytes that are sent as one. window: chunks under way
    at a time; as many as engine.py says unless given. master_computes: False for a rank 0 that only sums and updates. sync_batch_norm:
    batch normalization takes the mean and the variance of the whole minibatch, and not of each rank's part. alike: see Exchange.
    staging: see staging.py. ArgumentError for what makes no sense.
    What `fit` does in order is: begin, then for each minibatch parts, listen, update. After an update `.grad` is the sum, but on ranks that
    do not update, and under overlap="forward": there it stays the rank's own. A loop of one's own begins with join:

    >>> from minidl import data, functions as F, models, optim, parallel
    >>> train, test = data.load("digits")
    >>> loader = data.Loader(train[:100], batch_size=20)
    >>> def learn(communicator):
    ...     model = models.create("mlp", input_shape=(1, 8, 8), classes=10, generator=0)
    ...     optimizer = optim.SGD(model, lr=0.1)
    ...     with parallel.Team(communicator) as team:
    ...         team.join(model, optimizer)
    ...         for k, (x, y) in enumerate(team.deal(loader).epoch(0)):
    ...             optimizer.zero_grad()
    ...             parts = team.parts(loader.size(k), 1)           # one, but for a minibatch of fewer examples than ranks
    ...             for part in parts:
    ...                 with part:
    ...                     loss = F.softmax_cross_entropy(model(x), y)
    ...                     team.listen()
    ...                     loss.backward(part.weight)
    ...             team.update(parallel.Facts(), [part.notes for part in parts])
    ...         return float(model(train[:100][0]).data.sum())
    >>> len(set(parallel.local.run(learn, 2)))                      # both have the same weights
    1
    """

    def __init__(self, communicator: Communicator, exchange: str = "allreduce", *, overlap: str = "none", compress: str = "none",
                 feedback: bool = True, chunk: int = CHUNK, window: int | None = None, master_computes: bool = True,
                 sync_batch_norm: bool = False, alike: bool = False, staging: Staging | None = None):
        if overlap not in OVERLAPS:
            raise ArgumentError(f"Team: overlap {overlap!r} is not known{nearest(overlap, OVERLAPS)}",
                                hint=f"Known are {', '.join(OVERLAPS)}.")
        if not master_computes and communicator is not None and communicator.size < 2:
            raise ArgumentError("Team: a master that does not compute needs at least one worker")
        self.strategy, self.overlap, self.chunk, self.window, self.alike = exchange, overlap, chunk, window, alike
        self.compress, self.feedback, self.master_computes = compress, feedback, master_computes
        self.sync_batch_norm = sync_batch_norm
        self.staging, self.given = staging or Staging(), staging
        self.waited = 0.0                                   # seconds in which this thread waited for others
        self.lately = self.until = 0.0                        # of these, in the last step, and up to it
        self.hidden = 0.0                                   # seconds of the engine's that were told to be hidden
        self.bound = False
        self.take(communicator)

    def take(self, communicator: Communicator) -> None:
        """Be one of these ranks."""
        self.communicator = communicator
        self.rank, self.ranks = communicator.rank, communicator.size
        self.talk, self.wire = communicator.duplicate(), communicator.duplicate()       # of this thread, and of the engine's

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Within the block this thread waits for others."""
        started = time.perf_counter()
        try:
            with phase("gradient exchange"):
                yield
        finally:
            self.waited += time.perf_counter() - started

    @property
    def cuts(self) -> bool:
        return self.ranks > 1

    # Who has which examples

    def place(self, rank: int | None = None) -> tuple[int | None, int]:
        """The number of a rank among those that compute, and how many these are. None for a master that does not."""
        rank = self.rank if rank is None else rank
        if self.master_computes:
            return rank, self.ranks
        return (rank - 1 if rank else None), self.ranks - 1

    def deal(self, loader: Loader) -> Loader:
        own = copy(loader)
        own.rank, own.ranks = self.place()
        return own

    def parts(self, size: int, count: int) -> list[Part]:
        if self.bound and {path: p.dtype for path, p in learned(self.optimizer).items()} != self.layout.dtypes:
            before = self.exchange
            self.bind(self.model, self.optimizer)           # a layer was frozen or freed, on every rank alike
            self.exchange.inherit(before, alike=True)
        number, among = self.place()
        return [] if number is None else cut(share(size, number, among), size, count, number, among, self.sync_batch_norm)

    # A model and an optimizer

    def begin(self, run: Run, rehearse: Callable[[], Any]) -> bool:
        self.bind(run.model, run.optimizer)
        arrays, rest = self.same(*(run.state() if self.leads else ({}, None)))
        if not self.leads:
            run.load_state(arrays, rest)
        self.load_state(self.same(run.owed)[0])
        return True

    def join(self, model: Module, optimizer: Optimizer) -> None:
        """For a loop of one's own: begin with rank 0's weights and the optimizer's memory. `fit` uses `begin`."""
        self.bind(model, optimizer)
        state = optimizer.state_dict()
        arrays = {f"model.{name}": x for name, x in model.state_dict().items()}
        arrays |= {f"optimizer.{name}": x for name, x in state.items() if backend.is_array(x)}
        arrays, rest = self.same(arrays, {name: x for name, x in state.items() if not backend.is_array(x)})
        if self.rank:
            model.load_state_dict({name.removeprefix("model."): x for name, x in arrays.items() if name.startswith("model.")})
            optimizer.load_state_dict({name.removeprefix("optimizer."): x for name, x in arrays.items()
                                       if name.startswith("optimizer.")} | rest)

    def bind(self, model: Module, optimizer: Optimizer) -> None:
        """From now on it is about these, which every rank has built alike."""
        self.unbind()
        self.model, self.optimizer = model, optimizer
        self.learned = learned(optimizer)
        self.layout = Layout(self.learned, self.chunk)
        self._compare()
        self.exchange = exchanges.create(self.strategy, self.wire, self.layout, compress=self.compress, feedback=self.feedback,
                                         alike=self.alike or not optimizer.separable)
        self.staging = self.given or staging_for([p.device for p in self.learned.values()], self.wire, self.exchange)
        self.gradients = self.staging.buffers(self.layout)
        window = self.window or (WINDOW if self.overlap != "none" else WIDE) + (STAGES if type(self.staging) is not Staging else 0)
        self.engine = Engine(self.wire, self.overlap != "none", window, small=FIRST, within=self.staging.exchanging)
        self.hidden = 0.0
        self.spread = Spread(self.learned, self.layout, self.exchange, self.engine, self.staging,
                             lambda chunk, gate: self.arrivals.landed(chunk, gate))
        self.updates, self.everyone = self.spread.updates, self.spread.needless       # whether this rank does, and whether each does
        self.arrivals = Arrivals(self.learned, self.layout, self.engine, self._update_one if self.updates else None,
                                 None if self.everyone else self._submit_spread, self.spread.take, not self.exchange.codec.lossy)
        watched = self.learned if self.overlap != "none" else {}
        self.hooks = [p.register_ready_hook(partial(self._ready, path)) for path, p in watched.items()]
        self.after = FIRST + 2 * len(self.layout.chunks)    # numbers of jobs from here on are free
        if self.sync_batch_norm:
            computing = self.talk.split(None if self.place()[0] is None else 0, self.rank)
            synchronize(model, computing)
        # where new weights can go to others while the backward pass goes on: on all ranks, or on none
        self.early = self.overlap != "none" and not self.everyone and not self.exchange.codec.lossy and optimizer.separable
        self.made: Ahead | None = None                      # of the weights that are updated
        self.listening, self.bound = False, True
        self.scale: float | None = None
        self._begin()

    def _compare(self) -> None:
        """ExchangeError unless all ranks have the same parameters and options."""
        options = re.sub(r" at 0x\w+", "", repr(self.optimizer))                    # where a function lies says nothing
        mine = "\n".join([f"{type(self).__name__}({self.strategy}, overlap={self.overlap}, compress={self.compress}, chunk={self.chunk}, "
                          f"master_computes={self.master_computes}, sync_batch_norm={self.sync_batch_norm})", options,
                          *(f"{path} {shape} {self.layout.dtypes[path]}" for path, shape in self.layout.shapes.items())])
        compare(self.talk, mine)

    def leave(self) -> None:
        try:
            self.settle()                                   # what went wrong with the last step is told
        except BaseException:
            self.abandon()
            raise
        self.unbind()

    def unbind(self) -> None:
        """Let go of the model: what is on its way arrives first."""
        if self.bound:
            with suppress(ExchangeError):
                self.settle()
            self._let_go()
            self.engine.close()
            self.staging.close()

    def abandon(self) -> None:
        if self.bound:
            self.engine.drop()
            self.staging.close()                            # a copy that is under way ends in memory that is still there
            self._let_go()

    def _let_go(self) -> None:
        """Nothing waits for the model's gradients any more, and nobody for its weights."""
        self.bound = False
        if self.ahead is not None:
            self.ahead.forget()
        for hook in self.hooks:
            hook.remove()
        if self.sync_batch_norm:
            synchronize(self.model, None)
        self.waited += self.arrivals.waited
        self.arrivals.clear()

    @phase("idle")
    def sums(self, numbers: Iterable[float]) -> list[float]:
        return [added(column) for column in self.talk.allgather(np.array(list(numbers), np.float64)).T]

    def same(self, arrays: dict[str, Array], rest: Any = None) -> State:
        return broadcast_state(self.talk, arrays, rest)

    def state(self) -> dict[str, Array]:
        self.settle()                                       # the engine's thread may still be packing
        return self.exchange.owed(self.talk)

    def load_state(self, state: dict[str, Array]) -> None:
        self.exchange.owe(state)

    # A step

    def _begin(self) -> None:
        """Before the first gradient of a step."""
        self.handed: set[str] = set()
        self.lacking = {chunk.index: len(chunk.names) for chunk in self.layout.chunks}
        self.ahead: Ahead | None = None                     # of the backward pass that goes on
        self.arrivals.begin()

    def listen(self, clip: float | None = None, scale: float | None = None) -> None:
        self.listening, self.scale = self.overlap != "none", scale
        self.exchange.held = self.exchange.held or scale is not None            # the step may be left out
        self.early = self.early and scale is None                               # and then nobody waits for its weights
        if self.early and self.updates and clip is None:
            self.ahead = Ahead(self.layout, self.optimizer, self._sum_of, self._send)

    def _ready(self, path: str, leaf: Tensor) -> None:
        """The hook of a parameter whose gradient is final."""
        if self.listening:
            if path in self.handed:
                raise ExchangeError(f"Team: the gradient of {path} has changed after it was sent",
                                    hint="Call listen() before the last backward pass of a minibatch only.")
            g = leaf.grad.data                              # type: ignore[union-attr]   # it has just become final
            self._hand_over(path, g if self.scale is None else g * (1 / self.scale))

    @phase("gradient exchange")
    def _hand_over(self, path: str, g: Array | None) -> None:
        """Give a gradient to the engine, which sends a chunk once it has all of it."""
        chunks = self.layout.holding[path]
        # of the step before, where this rank did not use the weights since
        self.engine.wait([EARLY, *map(of_sum, chunks), *(map(of_spread, chunks) if self.early else ())])
        self.gradients.gather(path, -0.0 if g is None else g)                       # x + -0.0 is x, for every x
        self.handed.add(path)
        if self.ahead is not None and g is not None:
            self.ahead.own.add(path)
        mark: Any = None                                    # behind the last gradient of these chunks: one for all
        for chunk in chunks:
            self.lacking[chunk.index] -= 1
            if not self.lacking[chunk.index]:
                mark = mark or self.staging.mark()
                self.engine.submit(of_sum(chunk), self._journey(chunk, mark, self.arrivals.gate, self.ahead), f"sum of chunk {chunk.index}",
                                   self.gradients.far.chunk(chunk).nbytes)
                if self.early and not self.updates:
                    self._submit_spread(chunk, self.arrivals.gate)

    def update(self, facts: Facts, notes: Sequence[Notes], clip: float | None = None) -> Facts:
        self.listening = False
        if self.ahead is not None and clip is not None:
            raise ArgumentError("Team: update is to clip the gradient, and listen was not told", hint="Call listen(clip).")
        for path, p in self.learned.items():
            if path not in self.handed:
                self._hand_over(path, None if p.grad is None else p.grad.data)
        with self.waiting():
            met = meet(facts, [note for part in notes for note in part], self.model, self.learned, self._waited_lately(), self.engine,
                       self.talk, HEADER)
        self._tell_idle(met.least)
        self.made = self.ahead                              # those of the step before are all in use
        if met.facts.overflow:
            commit(met.noted)
            self._leave_out()
            return met.facts
        later = self.overlap == "forward" and clip is None and self.scale is None and self.optimizer.separable
        if not later:
            with self.waiting():
                self.engine.wait()
            if isinstance(self.optimizer, KFAC):
                with phase("curvature"):
                    self.optimizer.share(self.talk.gather_bytes, self.total, self.rank)
            with self.waiting():
                self.agree()                                # nothing has changed yet
            self.exchange.commit()
        commit(met.noted)
        if later:
            self._update_later(met.present)
        else:
            self._update_now(met.present, clip)
        self._begin()
        return met.facts

    def _leave_out(self) -> None:
        """A gradient has overflowed, and every rank knows: it is as if there had been no minibatch."""
        with self.waiting():
            self.engine.wait()
            self.agree()
        self.exchange.rollback()
        with self.staging.computing():                      # sums that nobody wants have come, before their memory is used again
            self._begin()

    def _waited_lately(self) -> float:
        """The seconds in which this thread has waited for others since it was asked last: about a step."""
        waited = self.waited + self.arrivals.waited
        self.lately, self.until = waited - self.until, waited
        return self.lately

    def _tell_idle(self, least: float) -> None:
        """What the last step's exchange took is what even the last one to come has waited; what this rank has waited longer, it was idle.

        least: the seconds that the one has waited who waited least.
        """
        here = clock()
        if here is not None:
            here.move(self.lately - least, "gradient exchange", "idle")
        hide("gradient exchange", self.engine.hidden - self.hidden)
        self.hidden = self.engine.hidden

    def total(self, arrays: Sequence[Array]) -> list[Array]:
        """The sums of everyone's arrays, added in the order of the ranks. Every rank calls it."""
        return sums(arrays, self.chunk, self.exchange, self.engine, self.staging, self.after)

    def _journey(self, chunk: Chunk, mark: Any, gate: Gate, ahead: Ahead | None) -> Job:
        """What happens to a chunk of gradients."""
        yield self.gradients.to_host(chunk, mark)
        yield from self.exchange.sum(chunk, self.gradients.far.chunk(chunk))
        if self.updates:
            yield self.gradients.to_device(chunk)
        if ahead is not None and not gate.open:
            with self.staging.computing():
                ahead.summed(chunk)
        if self.overlap == "forward" and self.updates:
            self.arrivals.summed(chunk, gate)

    # The update

    def _update_now(self, present: Sequence[str], clip: float | None) -> None:
        """All sums have arrived."""
        self.spread.remember()
        if self.updates:
            with self.staging.computing():
                self._step(present, clip)
        if not self.everyone:
            with self.waiting():
                if self.updates or not self.early:
                    for chunk in self.layout.chunks:
                        self._submit_spread(chunk, self.arrivals.gate)
                self.engine.wait()
                for path in self.learned:
                    self.spread.take(path)

    def _step(self, present: Sequence[str], clip: float | None) -> None:
        """Update the weights, as one process would that had these gradients."""
        with phase("gradient exchange"):
            for path in self.learned:
                self._set_gradient(path, path in present)
        if clip is not None:
            clip_grad_norm(self.optimizer.parameters, clip)
        with phase("update"):
            if self.made is None:
                self.optimizer.step()
            else:
                self._begin_update(present)
                for path in present:
                    self._update_one(path)

    @phase("update")
    def _update_later(self, present: Sequence[str]) -> None:
        """From here on an operation that needs a weight waits for it; the engine's thread updates each as its sum arrives."""
        if not self.early:
            with self.waiting():
                self.engine.wait([of_spread(chunk) for chunk in self.layout.chunks])    # of the step before
        self.spread.remember()
        if self.updates:
            self._begin_update(present)
        elif not self.early:
            for chunk in self.layout.chunks:
                self._submit_spread(chunk, self.arrivals.gate)
        self.engine.submit(EARLY, self.arrivals.open(), "weights that came early")

    def _begin_update(self, present: Sequence[str]) -> None:
        """One parameter after the other will be updated."""
        if not present:
            self.optimizer.step()                           # which says what is wrong
        self.present = set(present)
        self.options = self.optimizer.begin() if self.made is None else self.made.options

    def _update_one(self, path: str) -> None:
        with self.staging.computing():
            if path in self.present and not (self.made is not None and self.made.accept(path)):
                self.optimizer.update_one(path, self._sum_of(path), self.options)

    def _sum_of(self, path: str) -> Array:
        return backend.asarray(self.gradients.near[path], self.learned[path].device)

    def _set_gradient(self, path: str, present: bool) -> None:
        """The sum in place of this rank's gradient, in the memory order that this one had."""
        p, total = self.learned[path], self.gradients.near[path]
        if not present:
            p.grad = None
        elif p.grad is not None:
            p.grad.data[...] = backend.asarray(total, p.device)
        else:
            p._grad = make(backend.asarray(total.copy(), p.device))

    def _submit_spread(self, chunk: Chunk, gate: Gate | None = None) -> None:
        if self.made is None or chunk.index not in self.made.sent:
            self._send(chunk, {path: self.learned[path]._data for path in chunk.names}, gate)

    def _send(self, chunk: Chunk, weights: Mapping[str, Array], gate: Gate | None = None) -> None:
        self.spread.send(of_spread(chunk), chunk, weights, gate)

    def settle(self) -> None:
        if self.bound:
            self.engine.wait()


def learned(optimizer: Optimizer) -> dict[str, Tensor]:
    """The parameters that are not frozen, by path."""
    return {path: p for path, p in optimizer.parameters.items() if p.requires_grad}


def of_sum(chunk: Chunk) -> int:
    """The number of the job that sums a chunk: what the next forward pass needs first is the most urgent."""
    return FIRST + 2 * chunk.index + 1


def of_spread(chunk: Chunk) -> int:
    """The number of the job that spreads its weights: more urgent than any sum that comes after it."""
    return FIRST + 2 * chunk.index
