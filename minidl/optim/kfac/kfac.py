"""KFAC: an optimizer that divides the gradient by the Fisher matrix, and gives the result to another optimizer's rule.

A step takes in what the backward pass has shown of the layers (statistics.py), renews what is divided by where it is time, divides each
layer's gradient, bounds the length of the whole, and has the inner rule update with that in place of the gradient.
"""

from __future__ import annotations

import math
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from minidl import backend
from minidl.backend import Array
from minidl.errors import ArgumentError, CheckpointError, MinidlError, NumericsError, nearest
from minidl.nn.module import Module
from minidl.optim.kfac import levenberg, renewal
from minidl.optim.kfac.averages import Timing
from minidl.optim.kfac.blocks import Block, Settings, wide
from minidl.optim.kfac.division import INVERSIONS
from minidl.optim.kfac.places import BLOCK_KINDS
from minidl.optim.kfac.ranks import Joint, describe
from minidl.optim.kfac.scale import Prediction, check_name, no_prediction
from minidl.optim.kfac.statistics import FISHERS, Statistics
from minidl.optim.optimizer import Optimizer, Parameters, check_numbers, parameters_of, register
from minidl.optim.schedule import Number, value_at
from minidl.optim.sgd import SGD
from minidl.profiler import phase
from minidl.tensor import Tensor, make

SHARINGS = ("expand", "reduce")
PHASES = ("factors", "inverses", "preconditioning")
Total = Callable[[list[Array]], list[Array]]


@register("kfac")
class KFAC(Optimizer):
    """Down the natural gradient: the gradient divided by an approximation of the Fisher matrix, a Kronecker product for each layer.

        u  =  (F + damping)^-1 gradient                         for each layer: see kronecker.py, units.py
        u  <-  min(1, sqrt(kl_clip / (lr^2 u.gradient))) u      so that lr^2 u^T F u, twice what a step changes the prediction, is bounded
        then the inner rule, with u in place of the gradient

    Of a loss that is a mean, or a part of one, lr 1 is a whole step; of a sum it is N times that: see scale.py.

    inner: any optimizer of the same model; unless given, SGD with lr, momentum, weight_decay and groups, which mean there what they mean in
    `SGD`. So weight decay is not divided by F. damping: added to F, in nats an example; the larger, the more the direction is the
    gradient's. kl_clip: None for no bound; it knows of steps as long as lr, as SGD's are, and not of Adam's. factor_decay: what the
    averages keep of themselves when they are renewed. The defaults, among them lr 0.03 and momentum 0.9, are for minibatches of some
    32; with hundreds kl_clip may be 10 to 100 times larger, and learning is then faster.
    fisher: "sampled", "empirical" or "exact", see statistics.py. loss: for a loss written by hand, which of minidl's it is like, but for a
    factor ("softmax_cross_entropy", "binary_cross_entropy_with_logits", "mse"); the model's output is then its logits.
    factor_interval, inverse_interval: steps from one renewal to the next; factor_interval="adaptive" lets each factor find its own.
    warm_up: so many steps at first renew everything each time. inversion: "cholesky", "eigen" or "ekfac", see division.py.
    sharing: "expand" or "reduce", see kronecker.py. seed: of the sampled targets; a state that is loaded brings its own. damping, kl_clip
    and factor_decay may be schedules, and may be assigned to. ArgumentError for what makes no sense.
    Martens and Grosse, arXiv:1503.05671; Grosse and Martens, arXiv:1602.01407.

    >>> x, t = np.array([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0]]), np.array([[1.0], [3.0], [5.0]])
    >>> line = minidl.nn.Affine(2, 1, bias=False, dtype="float64", generator=0)
    >>> optimizer = KFAC(line, lr=1.0, momentum=0, damping=0, kl_clip=None, fisher="exact")
    >>> minidl.functions.mse(line(x), t).backward()
    >>> optimizer.step(); line.w.data.round(6).ravel()               # least squares, in one step
    array([1., 2.])
    """

    separable = False           # the KL clip needs all directions

    def __init__(self, model: Parameters, inner: Optimizer | None = None, *, lr: Number | None = None, momentum: Number | None = None,
                 weight_decay: Number | None = None, groups: Mapping[str, Any] | None = None, damping: Number = 0.1,
                 kl_clip: Number | None = 0.001, factor_decay: Number = 0.95, fisher: str = "sampled", loss: str | None = None,
                 factor_interval: int | str = 10, inverse_interval: int = 10, warm_up: int = 10, inversion: str = "cholesky",
                 sharing: str = "expand", seed: int = 0):
        self.parameters = parameters_of("KFAC", model)
        self.inner = self._inner(model, inner, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "groups": groups})
        self.damping, self.kl_clip, self.factor_decay = damping, kl_clip, factor_decay
        self.inverse_interval, self.seed = inverse_interval, seed
        self._check(fisher, inversion, sharing, factor_interval, warm_up)
        check_name(loss)
        if loss is not None and not isinstance(model, Module):
            raise ArgumentError("KFAC: with loss= the model itself is needed, whose output the loss takes", hint="Give the Module.")
        self.damping_scale = 1.0                # Levenberg and Marquardt: what the damping is multiplied by
        self.seconds = dict.fromkeys(PHASES, 0.0)       # parts of the phase curvature; the last with the KL clip
        self.ranks = 1                          # that train one model: see `share`
        self.total: Total | None = None
        self.reports: list[str] = []            # what went wrong and was mended, and what is not covered
        self.told: set[str] = set()             # the parameters without a block that were named
        settings = Settings(inversion, sharing, Timing(factor_interval, warm_up), self._report)
        self.statistics = Statistics(self.parameters, fisher, loss, settings, self._sampler, lambda: self.steps, self._timed)
        if loss is not None and isinstance(model, Module):
            handle = model.register_forward_hook(lambda module, inputs, y: Prediction()(y) if isinstance(y, Tensor) else None)
            weakref.finalize(self, handle.remove)

    # What it shares with its inner rule

    @property
    def steps(self) -> int:
        """How many times step() was called."""
        return self.inner.steps

    @property
    def options(self) -> dict[str, Any]:
        """The options of the inner rule, lr among them; those of K-FAC itself are attributes."""
        return self.inner.options

    @property
    def last_lr(self) -> float | None:
        """The learning rate of the last step."""
        return self.inner.last_lr

    @property
    def state(self) -> Any:
        """The inner rule's memory, by path."""
        return self.inner.state

    @property
    def updates(self) -> Any:
        """How many updates each parameter has had."""
        return self.inner.updates

    @property
    def changes(self) -> Any:
        """The inner rule's options for each parameter, where they differ."""
        return self.inner.changes

    @property
    def blocks(self) -> dict[str, Block]:
        """The blocks of the Fisher matrix, by the path of their first parameter; there are none before the first backward pass."""
        return self.statistics.blocks

    @property
    def plain(self) -> dict[str, str]:
        """The parameters that take the plain gradient, and why. Known after the first step."""
        known = {**self.statistics.places.lately, **self.statistics.places.plain}
        return {path: known.get(path, "not seen on the way to the loss") for path, p in self.parameters.items()
                if path not in self.statistics.places.owner and p.requires_grad}

    # A step

    def zero_grad(self) -> None:
        """Forget all gradients, and the statistics that came with them."""
        self.inner.zero_grad()
        self.statistics.forget()

    @phase("update")
    def step(self, closure: Callable[[], Any] | None = None) -> None:
        """Update every parameter that has a gradient and is not frozen; gradients stay as they are.

        closure: gives the loss of the same minibatch, without a backward pass. With it the damping is adapted every 5 steps, as
        levenberg.py says. GraphError if no parameter has a gradient; NumericsError if a direction is not finite; ArgumentError for a
        closure on one of many ranks.
        """
        if closure is not None and self.ranks > 1:
            raise ArgumentError("KFAC.step: a closure gives the loss of this rank's examples, by which each would adapt its own damping",
                                hint="Leave it out: on many ranks the damping is what it was given as, or a schedule.")
        self.prepare()
        damping = self.present_damping()
        directions = self.directions(damping)
        self._scale(directions)
        start = None if closure is None or self.steps % levenberg.EVERY else levenberg.begin(closure, self.parameters)
        gradients = {path: self.parameters[path].grad for path in directions}
        try:
            for path, u in directions.items():
                self.parameters[path].grad = make(u.astype(self.parameters[path].dtype, copy=False))
            self.inner.step()
        finally:
            for path, grad in gradients.items():
                self.parameters[path].grad = grad
        if closure is not None and start is not None:
            factor = levenberg.factor(start, closure, self.parameters, self.blocks.values(), damping, self.statistics.weight)
            self.damping_scale = min(max(self.damping_scale * factor, 1 / levenberg.FARTHEST), levenberg.FARTHEST)
        self.statistics.forget()
        if len(self.statistics.places.owner) + len(self.told) < len(self.parameters):
            self._tell()

    def _tell(self) -> None:
        """Name the parameters that take the plain gradient, each once."""
        fresh = {path: why for path, why in self.plain.items() if path not in self.told}
        if fresh:
            self.told |= set(fresh)
            self._report("these parameters take the plain gradient: " + ", ".join(f"{path} ({why})" for path, why in fresh.items()))

    def prepare(self) -> None:
        """Take the statistics of this step into the averages, and renew what is divided by where it is time."""
        step, blocks = self.steps, self.blocks.values()
        decay, damping = value_at(self.factor_decay, step), self.present_damping()
        if self.statistics.silent and not self.statistics.term:
            raise no_prediction()
        shown = self.statistics.complete()
        with self._timed("factors"):
            for block in blocks:
                block.follow(self.parameters[block.name].data)
            renewal.take_in(shown, decay, step)
            for block in blocks if self.statistics.term else ():
                block.put_off(step)
        timely = Timing(self.inverse_interval, self.statistics.settings.timing.warm_up).due(step)
        due = [block for block in blocks
               if block.ready and (block.damping is None or (timely and (block.changed or block.damping != damping)))]
        with self._timed("inverses"):
            renewal.renew(due, damping, self._report)
        with self._timed("factors"):
            renewal.refine([block for block in shown if block.unrefined()], self.statistics.term, decay, self.total)
            for block in shown:
                block.clear()
        # what comes now, in the same step or the next, is counted anew
        self.statistics.nodes, self.statistics.before, self.statistics.seen = set(), None, {}

    def present_damping(self) -> float:
        """The damping of this step."""
        return float(value_at(self.damping, self.steps)) * self.damping_scale

    def directions(self, damping: float | None = None) -> dict[str, Array]:
        """The gradients divided by F + damping, by path, for the parameters that have a block: arrays of their own, float32 at least.

        Neither in the unit that scale.py speaks of, nor clipped.
        """
        with self._timed("preconditioning"):
            return renewal.divided(self.blocks.values(), self.parameters, self.present_damping() if damping is None else damping)

    def _scale(self, directions: dict[str, Array]) -> None:
        """Bring directions into the unit of scale.py, and shorten them all by one factor so that lr^2 u^T F u <= kl_clip.

        u^T F u is bounded by u^T (F + damping) u = u . gradient, which costs no more than reading both.
        """
        with self._timed("preconditioning", "normalization"):
            unit, bends = self.statistics.unit, {}
            for path, u in directions.items():
                g = wide(self.parameters[path].grad.data)                               # type: ignore[union-attr]   # it had one
                bends[path] = backend.of(u).vdot(u, g) * (self._lr(path) / unit) ** 2
            total = float(sum(bends.values()))
            if not math.isfinite(total):
                bad = [path for path, bend in bends.items() if not math.isfinite(float(bend))]
                raise NumericsError("KFAC: the direction of a step is not finite", parameters=", ".join(bad[:8]),
                                    hint="Find where it begins: run the step under minidl.check_numerics(). Or give more damping.")
            limit = None if self.kl_clip is None else value_at(self.kl_clip, self.steps)
            factor = (1.0 if limit is None or total <= limit else math.sqrt(limit / total)) / unit
            for u in directions.values() if factor != 1 else ():
                u *= factor

    def _lr(self, path: str) -> float:
        """The learning rate of a parameter in this step."""
        return float(value_at(self.inner.changes[path].get("lr", self.inner.options.get("lr", 1.0)), self.steps))

    # Many ranks

    def share(self, gather: Callable[[bytes], list[bytes]], total: Total, rank: int) -> None:
        """Bring together what all ranks have seen of a minibatch in this step: to be called by all, before step(), which goes on from there
        as one process would that had seen all parts, in the order of the ranks: to the bit, if every rank has had one.

        gather: gives everyone's bytes, in the order of the ranks. total: gives the sums of everyone's arrays, added from rank 0 on; step()
        calls it once more for inversion="ekfac", whose scales can only be found once there is a basis. Nothing is called in a step in which
        no average is due, and nothing that a checkpoint takes has changed before step().
        """
        self.total = total = phase("curvature exchange")(total)
        gather = phase("curvature exchange")(gather)
        if self.statistics.due():
            with self._timed("factors"):
                told = gather(self.collected())
                joint = Joint(self.statistics, told, rank)
                joint.take(total(joint.arrays))
            self.ranks = len(told)
        for block in self.blocks.values() if self.ranks > 1 else ():
            block.forget()                      # this rank's rows are not the whole gradient

    def collected(self) -> bytes:
        """What this rank has seen in this step, but for the arrays: for everyone's `Joint`."""
        return describe(self.statistics)

    # The state

    def state_dict(self) -> dict[str, Any]:
        """A copy of all that a resumed run needs: the inner rule's state, and under names that begin with "kfac." the averages, what is
        divided by (arrays), and the counters (what JSON can hold). The sampler begins anew each step, from its seed.
        """
        state, settings = self.inner.state_dict(), self.statistics.settings
        state["kfac"] = {"blocks": [block.description() for block in self.blocks.values()], "plain": dict(self.statistics.places.plain),
                         "weight": self.statistics.weight, "full": self.statistics.full,
                         "damping_scale": self.damping_scale, "seed": self.seed,
                         "told": sorted(self.told), "sharing": settings.sharing, "fisher": self.statistics.fisher}
        for path, block in self.blocks.items():
            state |= {f"kfac.{path}.{name}": x.copy() for name, x in block.arrays().items()}
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state that `state_dict` gave. CheckpointError if it does not fit, and then nothing was changed."""
        own = state.get("kfac")
        if own is None:
            raise CheckpointError("load_state_dict: this is not the state of a KFAC", hint="It is another optimizer's. Make that one.")
        blocks, unclaimed = [], {name for name in state if name.startswith("kfac.")}
        try:
            for told in own["blocks"]:
                block = BLOCK_KINDS[told["kind"]](dict(told["paths"]), dict(told["options"]), self.statistics.settings)
                names = {name: f"kfac.{block.name}.{name}" for name in told["arrays"]}
                if not unclaimed >= set(names.values()):
                    raise ValueError(f"the arrays of {block.name} are missing")
                unclaimed -= set(names.values())
                device = self.parameters[block.name].device
                block.load({name: backend.asarray(state[path], device).copy() for name, path in names.items()}, told)
                block.check({role: self.parameters[path].data for role, path in block.paths.items()})
                blocks.append(block)
            if unclaimed or len({path for block in blocks for path in block.paths.values()}) < sum(len(block.paths) for block in blocks):
                raise ValueError("there is more in it than its blocks name" if unclaimed else "two blocks are of one parameter")
            for name, value in (("sharing", self.statistics.settings.sharing), ("fisher", self.statistics.fisher)):
                if own[name] != value:
                    raise ValueError(f"its {name} is {own[name]!r}, and this one's {value!r}")
            numbers = {name: float(own[name]) for name in ("weight", "full", "damping_scale")}
            seed, told_plain, plain = int(own["seed"]), set(own["told"]), dict(own["plain"])
        except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, MinidlError) as error:
            raise CheckpointError(f"load_state_dict: this KFAC and the state do not fit together: {error}",
                                  hint="Nothing was loaded. Is it the state of the same model, made with the same options?") from error
        self.inner.load_state_dict({name: x for name, x in state.items() if name != "kfac" and not name.startswith("kfac.")})
        self.statistics.forget()
        self.statistics.places.take(blocks, plain)
        self.statistics.known, self.damping_scale = (numbers["weight"], numbers["full"]), numbers["damping_scale"]
        self.seed, self.told = seed, told_plain

    def close(self) -> None:
        """Stop looking at backward passes. What nobody holds any more stops by itself."""
        self.statistics.close()

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise ArgumentError("KFAC: an optimizer that looks at a model cannot be copied or pickled",
                            hint="Make a KFAC of the copy of the model, and give it this one's state: load_state_dict(state_dict()).")

    def __repr__(self) -> str:
        return f"KFAC({self.inner!r}, damping={self.damping!r}, kl_clip={self.kl_clip!r}, fisher={self.statistics.fisher!r})"

    # What it was given

    def _inner(self, model: Parameters, inner: Optimizer | None, short: dict[str, Any]) -> Optimizer:
        """The rule that updates: the one given, or SGD."""
        given = {name: value for name, value in short.items() if value is not None}
        if inner is None:
            return SGD(model, **{"lr": 0.03, "momentum": 0.9} | given)
        if given:
            raise ArgumentError(f"KFAC: {', '.join(given)} beside inner, which has its own",
                                hint="Give them to the inner optimizer, or leave inner out: then it is SGD.")
        if not isinstance(inner, Optimizer) or isinstance(inner, KFAC):
            raise ArgumentError(f"KFAC: inner is {inner!r:.60}, and must be an optimizer", hint="For example SGD(model, lr=0.1).")
        if {path: id(p) for path, p in inner.parameters.items()} != {path: id(p) for path, p in self.parameters.items()}:
            raise ArgumentError("KFAC: the inner optimizer is of other parameters", hint="Give both the same model.")
        return inner

    def _check(self, fisher: str, inversion: str, sharing: str, factor_interval: Any, warm_up: Any) -> None:
        """ArgumentError for an option that makes no sense."""
        check_numbers("KFAC", damping=(self.damping, 0, math.inf), factor_decay=(self.factor_decay, 0, 1),
                      **({} if self.kl_clip is None else {"kl_clip": (self.kl_clip, 1e-30, math.inf)}))
        for name, value, known in (("fisher", fisher, FISHERS), ("inversion", inversion, INVERSIONS), ("sharing", sharing, SHARINGS)):
            if value not in known:
                raise ArgumentError(f"KFAC: {name} is {value!r}, which is not known{nearest(str(value), known)}",
                                    hint=f"Known are {', '.join(known)}.")
        if isinstance(self.seed, bool) or not hasattr(self.seed, "__index__") or not 0 <= self.seed < 2**64:
            raise ArgumentError(f"KFAC: seed is {self.seed!r}, and must be an int from 0 to 2^64 - 1")
        whole: Any
        for name, whole, least in (("factor_interval", factor_interval, 1), ("inverse_interval", self.inverse_interval, 1),
                                   ("warm_up", warm_up, 0)):
            if whole == "adaptive" and name == "factor_interval":
                continue
            if isinstance(whole, bool) or not hasattr(whole, "__index__") or whole < least:
                raise ArgumentError(f"KFAC: {name} is {whole!r}, and must be an int of at least {least}",
                                    hint='Or "adaptive".' if name == "factor_interval" else "")

    # What statistics.py asks for

    def _sampler(self, *part: int) -> np.random.Generator:
        """A generator for this step's targets. It begins anew each step, from the seed and the number of the step: nothing to be saved.

        part: the number of a part of the minibatch that has targets of its own.
        """
        return np.random.default_rng([self.seed, self.steps, *(number + 1 for number in part)])

    def _report(self, text: str) -> None:
        self.reports.append(text)
        warnings.warn(f"KFAC: {text}", stacklevel=2)

    @contextmanager
    def _timed(self, part: str, whole: str = "curvature") -> Iterator[None]:
        started = time.perf_counter()
        try:
            with phase(f"{whole}/{part}" if whole == "curvature" else whole):
                yield
        finally:
            self.seconds[part] += time.perf_counter() - started
