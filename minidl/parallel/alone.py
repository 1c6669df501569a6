"""Alone: a team of one process, and what any team answers to the training loop.

What each method is to do is said here; what it takes with many processes stands in team.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

from minidl.backend import Array
from minidl.data import Loader
from minidl.data.loader import share
from minidl.errors import RankLost
from minidl.nn import Module
from minidl.nn.part import Notes, Part, commit
from minidl.optim import Optimizer, clip_grad_norm
from minidl.parallel.state import State
from minidl.profiler import phase


@dataclass
class Facts:
    """What a minibatch came to, of one rank or of all: the sum of its weighted losses, right answers, examples; who wants to stop; and
    whether a gradient has overflowed, so that there is no update.
    """

    loss: float = 0.0
    right: int = 0
    seen: int = 0
    stop: bool = False
    overflow: bool = False


class Run(Protocol):
    """What a team must know of a run: see minidl/run.py."""

    model: Module
    optimizer: Optimizer
    step: int
    owed: dict[str, Array]

    def state(self) -> State:
        """All that there is to it."""

    def load_state(self, arrays: dict[str, Array], rest: dict[str, Any]) -> None:
        """Go where another one stood."""


class Alone:
    """A team of one: every example is its own, and so is the gradient."""

    rank = 0
    ranks = 1

    @property
    def leads(self) -> bool:
        """Whether this is the rank that shows and saves."""
        return self.rank == 0

    @property
    def cuts(self) -> bool:
        """Whether a minibatch goes through several models."""
        return False

    def deal(self, loader: Loader) -> Loader:
        """A loader like this one, which gives this rank's part of each minibatch."""
        return loader

    def parts(self, size: int, count: int) -> list[Part]:
        """This rank's parts of a minibatch of so many examples, of which it takes its own through the model in `count` passes at most."""
        return cut(slice(0, size), size, count)

    def bind(self, model: Module, optimizer: Optimizer) -> None:
        """From now on it is about these."""
        self.model, self.optimizer = model, optimizer

    def begin(self, run: Run, rehearse: Callable[[], Any]) -> bool:
        """Begin a run, where rank 0 stands. Gives whether this process takes part. rehearse: goes through all that a minibatch takes."""
        self.bind(run.model, run.optimizer)
        return True

    def listen(self, clip: float | None = None, scale: float | None = None) -> None:
        """The backward pass that comes is the last of this minibatch: gradients are final when it says so.

        clip: as for `update`. scale: what the loss is multiplied by; the gradients are divided by it before `update`.
        """

    def update(self, facts: Facts, notes: Sequence[Notes], clip: float | None = None) -> Facts:
        """After the last backward pass of a minibatch: update the weights with everyone's gradients. Gives everyone's facts.

        notes: of the layers, of each of this rank's parts. clip: the largest norm that the gradient may have. Where anybody's gradient
        has overflowed, nobody's weights change.
        """
        commit(notes)
        if facts.overflow:
            return facts
        if clip is not None:
            clip_grad_norm(self.optimizer.parameters, clip)
        with phase("update"):                           # also where a kind of optimizer has a step of its own
            self.optimizer.step()
        return facts

    def settle(self) -> None:
        """Come back when nothing is on its way any more."""

    def sums(self, numbers: Iterable[float]) -> list[float]:
        """Everyone's numbers, added in the order of the ranks."""
        return [float(x) for x in numbers]

    def same(self, arrays: dict[str, Array], rest: Any = None) -> State:
        """What rank 0 has given, on every rank."""
        return arrays, rest

    def state(self) -> dict[str, Array]:
        """What a checkpoint takes of the exchange. Every rank calls it."""
        return {}

    def load_state(self, state: dict[str, Array]) -> None:
        """Go back to where `state` was taken, by however many ranks. Every rank calls it with the same."""

    def agree(self) -> None:
        """Come back when everybody has got as far as this. RankLost if somebody has not, and never will."""

    def recover(self, run: Run, loss: RankLost) -> None:
        """Somebody has died: make ready to go on without, or raise the loss again."""
        self.abandon()
        raise loss

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if error is None:
            self.leave()
        else:
            self.abandon()

    def join(self, model: Module, optimizer: Optimizer) -> None:
        """For a loop of one's own: begin with rank 0's weights and the optimizer's memory."""
        self.bind(model, optimizer)

    def leave(self) -> None:
        """It is over."""

    def abandon(self) -> None:
        """It is over because something went wrong here: wait for nobody."""


def cut(own: slice, size: int, count: int, number: int = 0, among: int = 1, empty: bool = False) -> list[Part]:
    """What is a rank's own of a minibatch, in `count` parts; number: of the rank among those that compute. empty: also parts of nothing."""
    length = own.stop - own.start
    slices = [share(length, i, count) for i in range(count)]
    return [Part(own.start + s.start, s.stop - s.start, size, number * count + i, among * count)
            for i, s in enumerate(slices) if empty or s.stop > s.start]
