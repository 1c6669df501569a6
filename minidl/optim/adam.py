"""Adam, and AdamW, which keeps weight decay out of the gradient."""

from __future__ import annotations

import math
from typing import Any

from minidl import backend, kernels
from minidl.backend import Array
from minidl.optim.optimizer import Optimizer, Parameters, State, check_numbers, register
from minidl.optim.schedule import Number


@register("adam")
class Adam(Optimizer):
    """Down the gradient's mean, each number at a speed of its own: divided by the root of the mean of its squares.

        g <- g + weight_decay w
        m <- beta1 m + (1 - beta1) g                    a mean of recent gradients
        v <- beta2 v + (1 - beta2) g^2                  and of their squares
        w <- w - lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)

    t counts the updates of the parameter: the divisors undo that m and v began at 0. lr, beta1, beta2, eps, weight_decay: numbers or
    schedules. groups: see `Optimizer`. ArgumentError for a number that makes no sense. Kingma and Ba, ICLR 2015.

    >>> w = minidl.nn.Parameter(np.array([1.0]))
    >>> w.grad = np.array([0.5])
    >>> Adam({"w": w}, lr=0.1).step(); w.data.round(6)
    array([0.9])
    """

    together = staticmethod(kernels.adam_update_many)
    elementwise = False         # the kernel cuts into pieces what it likes to
    decoupled = False           # whether weight decay is kept out of the gradient

    def __init__(self, model: Parameters, lr: Number = 0.001, beta1: Number = 0.9, beta2: Number = 0.999, eps: Number = 1e-8,
                 weight_decay: Number = 0.0, groups: Any = None):
        super().__init__(model, groups, lr=lr, beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay)

    def start(self, w: Array, **options: Any) -> State:
        xp = backend.of(w)
        return {"m": xp.zeros_like(w), "v": xp.zeros_like(w)}

    def update(self, w: Array, g: Array, state: State, t: int, **options: Any) -> None:
        kernels.adam_update(*self.arguments(w, g, state, t, **options))

    def arguments(self, w: Array, g: Array, state: State, t: int, lr: float, beta1: float, beta2: float, eps: float,
                  weight_decay: float) -> tuple:
        return w, g, state["m"], state["v"], t, lr, beta1, beta2, eps, weight_decay, self.decoupled

    def check(self, lr: Number, beta1: Number, beta2: Number, eps: Number, weight_decay: Number) -> None:
        check_numbers(type(self).__name__, lr=(lr, 0, math.inf), beta1=(beta1, 0, 1), beta2=(beta2, 0, 1), eps=(eps, 0, math.inf),
                      weight_decay=(weight_decay, 0, math.inf))


@register("adamw")
class AdamW(Adam):
    """Adam with a weight decay of its own, which is not divided by the root: first w <- w - lr weight_decay w, then as Adam without it.

    Arguments as for `Adam`. Loshchilov and Hutter, ICLR 2019.

    >>> w = minidl.nn.Parameter(np.array([1.0]))
    >>> w.grad = np.array([0.0])
    >>> AdamW({"w": w}, lr=0.1, weight_decay=0.5).step(); w.data
    array([0.95])
    """

    decoupled = True

    def __init__(self, model: Parameters, lr: Number = 0.001, beta1: Number = 0.9, beta2: Number = 0.999, eps: Number = 1e-8,
                 weight_decay: Number = 0.01, groups: Any = None):
        super().__init__(model, lr, beta1, beta2, eps, weight_decay, groups)
