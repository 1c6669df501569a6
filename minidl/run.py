"""Where a run stands: all that must be known so that a run which is stopped goes on as if it had not been.

That is the weights and buffers of the model, the memory of the optimizer, how far the loader is, the numbers of the present epoch and
the metrics of those before. The order of examples and what dropout drops follow from seeds and counts in them; generators that a model
holds itself are taken along. What a run does is written in loop.py, how its state gets to the disk in checkpoint.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from minidl import backend
from minidl.backend import Array
from minidl.data import Loader
from minidl.data.device import Feed
from minidl.errors import CheckpointError
from minidl.nn import Module
from minidl.nn.streams import generators, plain
from minidl.optim import LossScale, Optimizer
from minidl.parallel.alone import Alone, Facts
from minidl.profiler import PHASES, clock, settled

NUMBERS = ("epoch", "minibatch", "step", "loss", "right", "seen", "seconds", "phases", "hidden", "history")


@dataclass
class Run:
    """Where a run stands. Set `stop` and the loop ends after the minibatch that it is at.

    Of many ranks any may; what a callback sets after a step is heard with the next minibatch, after which all end.
    """

    model: Module
    optimizer: Optimizer
    loader: Loader
    epochs: int                         # wanted
    epoch: int = 0                      # finished
    minibatch: int = 0                  # finished, of the present epoch
    step: int = 0                       # updates so far
    loss: float = 0.0                   # of the present epoch: the sum over its examples
    right: Any = 0                      # answers in the present epoch; None if there is no such thing
    seen: int = 0                       # examples in the present epoch
    seconds: float = 0.0                # of the present epoch
    phases: dict[str, float] = field(default_factory=dict)          # of the present epoch: seconds, see profiler.PHASES
    hidden: dict[str, float] = field(default_factory=dict)          # and those of communication that went on beside them
    history: list[dict[str, Any]] = field(default_factory=list)
    stop: bool = False                  # this process wants it to end
    stopped: bool = False               # all ranks have agreed to
    team: Alone = field(default_factory=Alone)                      # the processes that train the model
    dtype: Any = None                   # of what goes into the model; None: as it comes
    scaling: LossScale | None = None    # what the loss is multiplied by, if it is
    owed: dict[str, Array] = field(default_factory=dict)            # what the exchange of a checkpoint had left out, to be sent later

    def __post_init__(self) -> None:
        self.read = self._clocks()                                  # what the clocks showed when they were last read
        self.feed = Feed(device_of(self.model))                     # where minibatches come from

    @property
    def finished(self) -> bool:
        """Whether all epochs are done."""
        return self.epoch >= self.epochs

    @property
    def ended(self) -> bool:
        """Whether all epochs are done, or it was asked to stop."""
        return self.finished or self.stopped or (self.stop and not self.team.cuts)

    def _clocks(self) -> tuple[dict[str, float], dict[str, float]]:
        """The seconds of the phases, and of what is hidden, that this thread has counted so far."""
        found = clock()
        return ({}, {}) if found is None else (found.read(), dict(found.hidden))

    def measure(self) -> None:
        """Add the time that has passed since to the phases of the present epoch."""
        before, self.read = self.read, self._clocks()
        self.phases, self.hidden = (
            settled({name: counts.get(name, 0.0) + now.get(name, 0.0) - then.get(name, 0.0) for name in {**counts, **now}})
            for counts, now, then in zip((self.phases, self.hidden), self.read, before))

    def count(self, facts: Facts, seconds: float) -> None:
        """Add what a minibatch came to, and the seconds that it took."""
        self.loss += facts.loss * facts.seen
        self.right = None if self.right is None else self.right + facts.right
        self.seen += facts.seen
        self.stopped = facts.stop
        self.minibatch += 1
        self.step += 1
        self.seconds += seconds

    def state(self) -> tuple[dict[str, Array], dict[str, Any]]:
        """All of it, as a checkpoint takes it: the arrays by name, and what JSON can hold."""
        self.team.settle()
        self.measure()
        optimizer = self.optimizer.state_dict()
        arrays = {f"model.{name}": x for name, x in self.model.state_dict().items()}
        arrays |= {f"optimizer.{name}": x for name, x in optimizer.items() if backend.is_array(x)}
        return arrays, {
            "run": {name: getattr(self, name) for name in NUMBERS},
            "optimizer": {name: x for name, x in optimizer.items() if not backend.is_array(x)},
            "loader": order(self.loader),
            "scaling": None if self.scaling is None else self.scaling.state(),
            "generators": {path: plain(generator.bit_generator.state) for path, generator in generators(self.model)},
        }

    def load_state(self, arrays: dict[str, Array], rest: dict[str, Any]) -> None:
        """Go back to where `state` was taken. CheckpointError if that was another model's, optimizer's or, within an epoch, loader's."""
        if not {"run", "optimizer", "loader", "generators"} <= set(rest):
            raise CheckpointError("fit: this is not the checkpoint of a run", hint="Weights alone are for model.load_state_dict.")
        if rest["run"]["minibatch"] and rest["loader"] != order(self.loader):
            raise CheckpointError("fit: the checkpoint is from the middle of an epoch, which this loader cuts into other minibatches",
                                  checkpoint=rest["loader"], loader=order(self.loader),
                                  hint="Finish the epoch as it was begun; at the end of one, all of these may change.")
        self.model.load_state_dict(part(arrays, "model."))
        self.optimizer.load_state_dict(part(arrays, "optimizer.") | rest["optimizer"])
        for path, generator in generators(self.model):
            if path in rest["generators"]:
                generator.bit_generator.state = rest["generators"][path]
        if self.scaling is not None and rest.get("scaling") is not None:        # which may not have been there, or another dtype's
            self.scaling.load_state(rest["scaling"])
        self.owed = part(arrays, "exchange.")
        numbers = {"phases": {}, "hidden": {}} | rest["run"]    # which are not in the checkpoints of older versions, or were others
        for name in NUMBERS:
            setattr(self, name, numbers[name])
        self.phases = {name: seconds for name, seconds in self.phases.items() if name in PHASES}
        self.read = self._clocks()


def part(arrays: dict[str, Array], prefix: str) -> dict[str, Array]:
    """The entries whose names begin so, without the beginning."""
    return {name.removeprefix(prefix): x for name, x in arrays.items() if name.startswith(prefix)}


def order(loader: Loader) -> dict[str, Any]:
    """What decides which examples form a minibatch."""
    return {"examples": len(loader.data), "batch_size": loader.batch_size, "shuffle": loader.shuffle, "seed": loader.seed,
            "drop_last": loader.drop_last}


def device_of(model: Module) -> str:
    """The device of a model's parameters; the CPU if it has none."""
    first = next(model.named_parameters(), None)
    return "cpu" if first is None else first[1].device
