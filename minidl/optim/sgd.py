"""Stochastic gradient descent."""

from __future__ import annotations

import math
from typing import Any

from minidl import backend, kernels
from minidl.backend import Array
from minidl.errors import ArgumentError
from minidl.optim.optimizer import Optimizer, Parameters, State, check_numbers, register
from minidl.optim.schedule import Number


@register("sgd")
class SGD(Optimizer):
    """Down the gradient, with momentum if wanted.

        g <- g + weight_decay w
        v <- momentum v + g
        w <- w - lr v                       or, with nesterov,  w - lr (g + momentum v)

    lr, momentum, weight_decay: numbers or schedules. groups: see `Optimizer`. ArgumentError for a number that makes no sense.
    Polyak, 1964; Nesterov, 1983; in the form of Sutskever et al., ICML 2013, with v not yet multiplied by lr, as in PyTorch.

    >>> w = minidl.nn.Parameter(np.array([1.0]))
    >>> w.grad = np.array([0.5])
    >>> SGD({"w": w}, lr=0.1).step(); w.data
    array([0.95])
    """

    together = staticmethod(kernels.sgd_update_many)
    elementwise = False         # the kernel cuts into pieces what it likes to

    def __init__(self, model: Parameters, lr: Number, momentum: Number = 0.0, nesterov: bool = False, weight_decay: Number = 0.0,
                 groups: Any = None):
        super().__init__(model, groups, lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)

    def start(self, w: Array, momentum: Number, **options: Any) -> State:
        return {"velocity": backend.of(w).zeros_like(w)} if momentum else {}

    def update(self, w: Array, g: Array, state: State, t: int, **options: Any) -> None:
        kernels.sgd_update(*self.arguments(w, g, state, t, **options))

    def arguments(self, w: Array, g: Array, state: State, t: int, lr: float, momentum: float, nesterov: bool,
                  weight_decay: float) -> tuple:
        return w, g, state["velocity"] if momentum else None, lr, momentum, nesterov, weight_decay

    def check(self, lr: Number, momentum: Number, nesterov: bool, weight_decay: Number) -> None:
        check_numbers("SGD", lr=(lr, 0, math.inf), momentum=(momentum, 0, 1), weight_decay=(weight_decay, 0, math.inf))
        if nesterov and not momentum:
            raise ArgumentError("SGD: nesterov means nothing without momentum", hint="Give momentum=0.9, or leave out nesterov.")
