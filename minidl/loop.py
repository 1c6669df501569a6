"""The training loop: seven steps, over and over.

`fit` is the loop, and `evaluate` looks how well the model does. Where a run stands, so that it can be stopped and go on, is in run.py.
Everything else that happens meanwhile (showing, saving) is a callback's business; the command around it is train.py.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from minidl import backend, kernels, memory
from minidl import functions as F
from minidl.autograd import no_grad
from minidl.backend import Array
from minidl.capture import Capture
from minidl.data import Loader
from minidl.data.device import Feed
from minidl.data.transforms import whole
from minidl.errors import GraphError, MinidlError, NumericsError, RankLost
from minidl.held import explained
from minidl.nn import Module
from minidl.nn.init import float_type
from minidl.nn.part import Part
from minidl.nn.streams import Streams
from minidl.optim import Optimizer
from minidl.optim.scaling import Unscaled, loss_scale_for
from minidl.parallel.alone import Alone, Facts
from minidl.profiler import PHASES, counting, peak_memory, phase
from minidl.run import Run, device_of
from minidl.tensor import Tensor


@dataclass(frozen=True)
class Objective:
    """What is learned: a loss, and what counts as a right answer.

    loss(outputs, x, y) is the mean over the minibatch, a Tensor. right(outputs, y) is the number of right answers, an int or an array of
    one; None if there is no such thing.
    """

    loss: Callable[[Any, Array, Array], Any]
    right: Callable[[Array, Array], Any] | None = None


def classification(label_smoothing: float = 0.0) -> Objective:
    """Softmax cross-entropy, and the share of examples whose largest output is their class."""
    def loss(outputs: Any, x: Array, y: Array) -> Tensor:
        return F.softmax_cross_entropy(outputs, y, label_smoothing=label_smoothing)

    return Objective(loss, kernels.right_answers)


def reconstruction() -> Objective:
    """For an autoencoder: Bernoulli cross-entropy between the outputs and the flattened inputs, which lie in [0, 1]; no right answers."""
    return Objective(lambda outputs, x, y: F.binary_cross_entropy_with_logits(outputs, F.flatten(x)))


class Callback:
    """What can be done while a run goes on. Overwrite what is needed; each gets the Run."""

    def start(self, run: Run) -> None:
        """Before the first minibatch."""

    def step(self, run: Run, loss: float) -> None:
        """After every update, with the loss of its minibatch."""

    def test(self, run: Run) -> Callable[[Array, Array, Array], Any] | None:
        """Before the test of an epoch; may give a function that is shown each of its minibatches: (x, outputs, y) of this rank."""

    def epoch(self, run: Run, metrics: dict[str, Any]) -> None:
        """After every epoch, with its metrics, which are also the last of `run.history`."""

    def end(self, run: Run) -> None:
        """After the last minibatch, or when the run was asked to stop."""


@counting()
def fit(model: Module, train: Any, test: Any, optimizer: Optimizer, epochs: int = 1, callbacks: Sequence[Callback] = (), *,
        objective: Objective | None = None, accumulate: int = 1, clip: float | None = None, capture: bool = False,
        dtype: Any = None, loss_scale: float | str | None = None,
        resume: tuple[dict[str, Array], dict[str, Any]] | None = None, team: Alone | None = None) -> list[dict[str, Any]]:
    """Train a model, and give the metrics of every epoch.

    train, test: a Loader, a Dataset, or a pair of arrays (x, y); test may be None. epochs: passes over the training data.
    objective: what is learned; `classification()` unless given. accumulate: each minibatch goes through the model in so many parts,
    whose gradients are added, to save memory. clip: the largest norm that the gradient may have. capture: on a GPU, record steps as
    graphs and replay them, with the same results: see capture.py; ArgumentError or GraphError for what cannot be recorded.
    dtype: "float16" or "bfloat16" for mixed precision, as to_model says; the weights stay float32. loss_scale: "dynamic" (optim.LossScale)
    or a number, 1 for none; unless given, dynamic for float16 and none for others.
    resume: arrays and rest of a checkpoint (`Run.state`), to go on from there; of many ranks, rank 0's counts.
    team: the other processes that train this model (parallel.Team); each calls fit, and takes its part of every minibatch.
    The metrics are epoch, step (updates so far), train_loss, train_accuracy, test_loss, test_accuracy (None where there is no such thing),
    seconds (of the training part), images_per_second, phases (the seconds of each phase since the metrics before; together all of the
    time), hidden (seconds of communication that went on beside computation, by phase; no part of that time) and memory (the most bytes
    that the process has had so far); with a loss scale, that and skipped (steps left out so far, in all). NumericsError, naming the step,
    as soon as the loss is not finite: before the update. A loss scale cannot mend that: the loss is multiplied by it only afterwards.

    >>> from minidl import data, models, optim
    >>> train, test = data.load("digits")
    >>> model = models.create("mlp", input_shape=(1, 8, 8), classes=10, generator=0)
    >>> history = fit(model, train, test, optim.SGD(model, lr=0.1, momentum=0.9), epochs=2)
    >>> history[-1]["epoch"], history[-1]["test_accuracy"] > 0.9
    (2, True)
    """
    epochs, accumulate = whole("fit", "epochs", epochs, 0), whole("fit", "accumulate", accumulate, 1)
    objective, team = objective or classification(), team or Alone()
    loader = train if isinstance(train, Loader) else Loader(train)
    dtype = None if dtype is None else float_type(dtype, "fit")
    run = Run(model, optimizer, loader, epochs, right=0 if objective.right else None, team=team, dtype=dtype,
              scaling=loss_scale_for(dtype, loss_scale))
    if resume is not None:
        run.load_state(*resume)
    with backend.on(run.feed.device), team, ExitStack() as until_the_end:
        if run.scaling is not None:         # which finds out by overflows how large it may be
            until_the_end.enter_context(np.errstate(over="ignore", invalid="ignore"))
        if not team.begin(run, partial(rehearse, run, objective)):
            return run.history          # a spare that was never needed
        learning = until_the_end.enter_context(Capture(run, learn, device_of(model))) if capture else learn
        streams = Streams(model, cut=accumulate > 1 or team.cuts)
        memory.tune_allocator()         # the arrays of a step find the memory of the step before
        # Step 1, initialise W, was done by whoever made the model (models.create), or by the checkpoint.
        with phase("saving"):
            for callback in callbacks:
                callback.start(run)
        over = False
        while not over:
            leads = team.leads
            try:
                started = time.perf_counter()
                for x, y in minibatches(run):                                   # Step 2: take a minibatch.
                    facts = learning(run, to_model(model, x, run.dtype), to_model(model, y), objective, accumulate, clip, streams)
                    run.count(facts, time.perf_counter() - started)
                    with phase("saving"):
                        for callback in callbacks:
                            callback.step(run, facts.loss)
                    started = time.perf_counter()
                    if run.ended:
                        break
                if not run.finished and run.minibatch >= len(run.loader):
                    end_epoch(run, test, objective, callbacks, streams)
                if run.ended:
                    with phase("saving"):
                        for callback in callbacks:
                            callback.end(run)
                    with phase("idle"):
                        team.agree()    # nobody leaves before all have come here
                    over = True
            except MemoryError as error:
                raise explained(error, run, objective.loss, partial(to_model, model, dtype=run.dtype), accumulate) from None
            except RankLost as loss:
                team.recover(run, loss)         # and what was not finished is done again
                if team.leads and not leads:
                    for callback in callbacks:
                        callback.start(run)
    run.feed.close()
    memory.give_back()
    return run.history


def minibatches(run: Run) -> Iterator[tuple[Array, Array]]:
    """This process's part of each minibatch that is left of an epoch; none when the run has ended."""
    run.model.train()
    return iter(()) if run.ended else run.feed.epoch(run.team.deal(run.loader), run.epoch, start=run.minibatch)


def rehearse(run: Run, objective: Objective) -> None:
    """Go through what a minibatch takes, so that everything is loaded and compiled. What it has changed is to be set back."""
    count = -(-min(len(run.loader.data), run.loader.batch_size) // run.team.ranks)              # a rank's part
    x, y = run.loader.data[np.arange(count)]
    x, y = to_model(run.model, x, run.dtype), to_model(run.model, y)
    run.model.train()
    run.optimizer.zero_grad()
    with suppress(MinidlError):         # what is wrong will be told by a process that trains
        objective.loss(run.model(x), x, y).backward()
        run.optimizer.step()
    run.optimizer.zero_grad()


def learn(run: Run, x: Array, y: Array, objective: Objective, accumulate: int, clip: float | None, streams: Streams,
          count: Callable[..., None] | None = None) -> Facts:
    """Learn from a minibatch, of which (x, y) are the examples of this process. Gives what the whole of it came to.

    count: adds what a part came to to the facts; `counted`, but where that is not known yet (capture.py).
    """
    facts, notes, scaling = Facts(), [], run.scaling or Unscaled()
    run.optimizer.zero_grad()
    scaling.begin(run.optimizer)
    parts = run.team.parts(run.loader.size(run.minibatch), accumulate)
    for part in parts:
        here = slice(part.first - parts[0].first, part.first - parts[0].first + part.count)
        with part, streams.of(run.step, part.index):
            with phase("forward"):
                outputs = run.model(x[here])                                    # Step 3: forward, from images to outputs.
                loss = objective.loss(outputs, x[here], y[here])                # Step 4: the loss, how wrong they are.
                if not part.count and not math.isfinite(loss.item()):
                    loss = 0 * outputs.sum()                                    # of no examples: some losses are no number then
                if not getattr(loss, "requires_grad", False):
                    raise GraphError("fit: the loss depends on no parameter that could be learned", hint="Are all of them frozen?")
            if part is parts[-1]:
                run.team.listen(clip, scaling.scale)
            loss.backward(scaling.seed(part.weight))                            # Steps 5 and 6: its gradient at the outputs, and
        with phase("forward"):                                                  # from there backward to the gradient of every W.
            right = None if objective.right is None else objective.right(outputs.data, y[here])
            (count or counted)(facts, run, part, loss, right)
        notes.append(part.notes)
    facts.stop = run.stop
    facts.overflow = not scaling.unscale(run.optimizer.parameters)
    facts = run.team.update(facts, notes, clip)                                 # Step 7: update W, a step down the gradient.
    scaling.take(facts.overflow)
    return facts


def counted(facts: Facts, run: Run, part: Part, loss: Tensor, right: Any) -> None:
    """Add what a part of a minibatch came to. Here a GPU is waited for, when all has been asked of it but the update."""
    facts.loss += finite(loss.item(), run) * part.weight
    facts.right += 0 if right is None else int(right)
    facts.seen += part.count


def end_epoch(run: Run, test: Any, objective: Objective, callbacks: Sequence[Callback], streams: Streams) -> None:
    """Take the metrics of an epoch and set the Run to the start of the next one."""
    with streams.kept(), phase("evaluation"):
        watching = () if test is None else [watch for watch in [callback.test(run) for callback in callbacks] if watch is not None]
        test_loss, test_accuracy = (None, None) if test is None else evaluate(
            run.model, test, objective, run.team, watching, run.feed, run.dtype)
    with phase("idle"):
        run.team.agree()
    run.measure()
    metrics = {
        "epoch": run.epoch + 1,
        "step": run.step,
        "train_loss": run.loss / run.seen,
        "train_accuracy": None if run.right is None else run.right / run.seen,
        "test_loss": None if test_loss is None else finite(test_loss, run, "test "),
        "test_accuracy": test_accuracy,
        "seconds": run.seconds,
        "images_per_second": run.seen / max(run.seconds, 1e-9),
        "phases": {name: run.phases[name] for name in [*PHASES, *sorted(set(run.phases) - set(PHASES))] if name in run.phases},
        "hidden": dict(run.hidden),
        "memory": peak_memory(device_of(run.model)),
        **({} if run.scaling is None else {"loss_scale": run.scaling.scale, "skipped": run.scaling.skipped}),
    }
    run.history.append(metrics)
    run.epoch, run.minibatch, run.loss, run.seen, run.seconds = run.epoch + 1, 0, 0.0, 0, 0.0
    run.phases, run.hidden = {}, {}
    run.right = None if run.right is None else 0
    with phase("saving"):
        for callback in callbacks:
            callback.epoch(run, metrics)
    run.stopped = run.stopped or any(run.team.sums([run.stop]))


@no_grad()
def evaluate(model: Module, data: Any, objective: Objective | None = None, team: Alone | None = None,
             watching: Sequence[Callable[[Array, Array, Array], Any]] = (), feed: Feed | None = None,
             dtype: Any = None) -> tuple[float, float | None]:
    """Mean loss and share of right answers over all of a data set, in evaluation mode; every example counts once.

    data: a Loader, a Dataset, or a pair of arrays. Gives (loss, accuracy); accuracy is None where the objective has none.
    team: the ranks among which the examples are divided; each gets the result. watching: functions that are shown each minibatch, as
    (x, outputs, y): of this rank. feed: brings minibatches to the model's device, where one holds data there already. dtype: as for `fit`.
    """
    objective, team = objective or classification(), team or Alone()
    loader = data if isinstance(data, Loader) else Loader(data, batch_size=256, shuffle=False)
    feed = feed or Feed(device_of(model), resident=0)
    modes = [(module, module.training) for _, module in model.named_modules()]
    model.eval()
    loss, right, seen = 0.0, 0.0, 0.0
    try:
        for x, y in feed.epoch(team.deal(loader), 0):
            if not len(x):
                continue                            # fewer examples than ranks
            x, y = to_model(model, x, dtype), to_model(model, y)
            outputs = model(x)
            outputs = outputs if isinstance(outputs, Tensor) else Tensor(outputs)
            loss += float(objective.loss(outputs, x, y)) * len(x)
            right += 0 if objective.right is None else int(objective.right(outputs.data, y))
            seen += len(x)
            for watch in watching:
                watch(backend.wide(x), backend.wide(outputs.data), y)
    finally:
        for module, training in modes:
            module.training = training
    loss, right, seen = team.sums([loss, right, seen])
    return loss / seen, None if objective.right is None else right / seen


def finite(loss: float, run: Run, test: str = "") -> float:
    """The loss itself. NumericsError, which names the step, if it is NaN or infinite."""
    if not math.isfinite(loss):
        step = f"after step {run.step}" if test else f"at step {run.step + 1}"
        raise NumericsError(f"fit: the {test}loss is {loss} {step} (epoch {run.epoch + 1}, minibatch {run.minibatch + (not test)})",
                            hint="The weights have run away. Try a smaller learning rate, or clip the gradient."
                                 + (" Or a number was too large for float16: try bfloat16." if run.dtype == "float16" else ""))
    return loss


def to_model(model: Module, x: Array, dtype: Any = None) -> Array:
    """An array on the device of the model's parameters; and in a dtype, if it is given and the array is of floats.

    Mixed precision is cast in three places, and nowhere else. Here, what goes into the model: all that follows is stored in x's dtype. In
    the layers, whose weights are float32: a product rounds them to x's dtype, and gives the gradients by them in float32. And in the
    loss, which is float32 whatever the outputs are. So optimizers, exchange and checkpoints know nothing of it.
    """
    first = next(model.named_parameters(), None)
    with phase("data"):
        x = x if first is None else backend.asarray(x, first[1].device)
        return x if dtype is None or not backend.is_float(x.dtype) else x.astype(float_type(dtype, "to_model"), copy=False)
