"""Loss scaling: small gradients kept from vanishing where they are stored as float16.

The smallest number above 0 that float16 has is 6e-8, and many gradients are smaller. So the loss is multiplied by a scale before the
backward pass, and with it every gradient on the way; those of the parameters, which are float32, are divided by it before anybody sees
them: other ranks, clipping, the optimizer. How large the scale may be shows: where a gradient overflows, the minibatch is left out and
the scale halved; after many good steps it is doubled. Micikevicius et al., ICLR 2018. bfloat16 has the range of float32, and needs none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

from minidl import backend, kernels
from minidl.errors import ArgumentError, CheckpointError, NumericsError
from minidl.optim.kfac import KFAC
from minidl.optim.optimizer import Optimizer
from minidl.profiler import phase
from minidl.recording import present
from minidl.tensor import Tensor, make

FIRST = 2.0**16         # the scale to begin with
LARGEST = 2.0**24
PATIENCE = 2000         # good steps, one after the other, after which the scale is doubled


class LossScale:
    """What a loss is multiplied by before its backward pass.

    start: "dynamic", or a number above 0, which stays what it is. ArgumentError for anything else.
    For each step: begin, `loss.backward(scale)`, unscale; then, unless it found an overflow, clipping and the optimizer's step; and take.

    >>> scaling = LossScale()
    >>> scaling.take(overflow=True); scaling.scale, scaling.skipped
    (32768.0, 1)
    """

    def __init__(self, start: float | str = "dynamic"):
        self.dynamic = start == "dynamic"
        if not self.dynamic and (isinstance(start, bool | str) or not 0 < start < math.inf):
            raise ArgumentError(f"LossScale: start is {start!r}, and must be \"dynamic\" or a finite number above 0")
        self.scale = FIRST if self.dynamic else float(start)
        self.good = 0                   # steps since the scale was changed, or one was left out
        self.skipped = 0                # steps that were left out so far

    def begin(self, optimizer: Optimizer) -> None:
        """Tell an optimizer that looks at backward passes by what their gradients will be multiplied."""
        if isinstance(optimizer, KFAC):
            optimizer.statistics.loss_scale = self.scale

    @phase("normalization")
    def unscale(self, parameters: Mapping[str, Tensor]) -> bool:
        """Divide the gradients of parameters by the scale; gives whether all numbers in them are finite.

        In a step that is being recorded that is not known: where they are not, a replay changes nothing. A gradient of 16 bits, of a
        weight of 16 bits, becomes one of float32: it would vanish again.
        """
        gradients = []
        for p in parameters.values():
            if p.grad is None:
                continue
            g = p.grad.data
            if backend.is_half(g.dtype):
                g = backend.wide(g)
                p._grad = make(g)
            gradients.append(g)
        if not gradients:
            return True
        recording = present()
        fine = kernels.unscale_many(gradients, 1 / self.scale if recording is None else recording.fresh(lambda: 1 / self.scale, "float32"))
        return recording is not None or bool(fine)

    def seed(self, weight: float) -> Any:
        """What to begin a backward pass with: a number, or in a step that is being recorded a place where it will stand."""
        recording = present()
        return weight * self.scale if recording is None else recording.fresh(lambda: weight * self.scale, "float32")

    def take(self, overflow: bool) -> None:
        """After a step: whether a gradient had overflowed, so that it was left out.

        NumericsError if the scale cannot be made smaller: it is 1, or was given as a number.
        """
        recording = present()
        if recording is not None:
            recording.afterwards.append(partial(self.take, False))
            return
        if not overflow:
            self.good += 1
            if self.dynamic and self.good >= PATIENCE:
                self.scale, self.good = min(self.scale * 2, LARGEST), 0
            return
        self.skipped, self.good = self.skipped + 1, 0
        if not self.dynamic:
            raise NumericsError(f"the gradient is not finite with the loss scale {self.scale:g}",
                                hint="Give a smaller one, or --loss-scale dynamic, which finds it.")
        if self.scale <= 1:
            raise NumericsError(f"the gradient is not finite, even with the loss scale {self.scale:g}",
                                hint="It is not the scale: the weights have run away, or a number is too large for float16 (65,504). "
                                     "Try a smaller learning rate, or bfloat16, which has float32's range.")
        self.scale /= 2

    def state(self) -> dict[str, Any]:
        """What a checkpoint takes of it."""
        return {"dynamic": self.dynamic, "scale": self.scale, "good": self.good, "skipped": self.skipped}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave; a scale that was given as a number stays as it is now. CheckpointError for anything else."""
        try:
            scale, self.good, self.skipped = float(state["scale"]), int(state["good"]), int(state["skipped"])
            self.scale = scale if self.dynamic and state["dynamic"] else self.scale
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"LossScale: this is not the state of a loss scale: {error}") from error

    def __repr__(self) -> str:
        return f"LossScale({'dynamic, now ' if self.dynamic else ''}{self.scale:g})"


class Unscaled:
    """In place of a LossScale where there is none: nothing is multiplied, and nothing left out."""

    scale = None

    def begin(self, optimizer: Optimizer) -> None:
        pass

    def seed(self, weight: float) -> float:
        return weight

    def unscale(self, parameters: Mapping[str, Tensor]) -> bool:
        return True

    def take(self, overflow: bool) -> None:
        pass


def loss_scale_for(dtype: Any, wanted: float | str | None = None) -> LossScale | None:
    """The loss scale of a run whose activations have this dtype; None where none is needed.

    wanted: "dynamic", a number (1 for none), or None: dynamic for float16, and none for any other.
    """
    if wanted is None:
        wanted = "dynamic" if dtype == "float16" else 1
    return None if wanted == 1 else LossScale(wanted)
