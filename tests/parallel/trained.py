"""What tests of training on many ranks share: models with everything that could differ between ranks, and what training leaves of them.

`alone(case, parts)` is one process that accumulates, `together(communicator, case, ...)` is one rank of many; both give the bits of all
that a run leaves behind, by name. A case is a Case: what is learned, from what, by which optimizer.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minidl import Tensor, backend, nn, optim
from minidl import functions as F
from minidl.data import Loader
from minidl.loop import Objective, classification, fit
from minidl.nn import Parameter
from minidl.nn.streams import generators
from minidl.parallel import Team

TIMES = ("seconds", "second", "phases", "hidden", "memory")


# Models: functions of nothing, which build the same each time

def rng(seed=0):
    return np.random.default_rng(seed)


def mlp(dtype="float32"):
    g = rng()
    return nn.Sequential(nn.Affine(6, 12, activation="tanh", generator=g, dtype=dtype),
                         nn.Affine(12, 7, activation="relu", generator=g, dtype=dtype), nn.Affine(7, 3, generator=g, dtype=dtype))


def images():
    """Convolution, batch normalization, dropout, a way around: what has a state besides its weights."""
    return Pictures()


class Pictures(nn.Module):
    def __init__(self):
        g = rng()
        self.stem = nn.Conv2d(1, 3, 3, padding=1, bias=False, generator=g)
        self.norm = nn.BatchNorm(3, activation="relu")
        self.block = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1, bias=False, generator=g), nn.BatchNorm(3, momentum=None), nn.ReLU())
        self.drop = nn.Dropout(0.3, generator=g)
        self.out = nn.Affine(3 * 16, 3, generator=g)

    def forward(self, x):
        y = self.norm(self.stem(x.reshape(-1, 1, 4, 4)))
        y = F.max_pool2d(self.block(y) + y, 1)
        return self.out(F.flatten(self.drop(y)))


class Words(nn.Module):
    """An embedding of the first column, used at both ends (tied), and layer normalization."""

    def __init__(self):
        g = rng()
        self.table = nn.Embedding(3, 6, generator=g)
        self.mix = nn.Affine(6, 6, activation="tanh", generator=g)
        self.norm = nn.LayerNorm(6)
        self.again = self.mix                           # the same layer, used twice

    def forward(self, x):
        ids = (abs(array(x)[:, 0]) * 7).astype(np.int64) % 3
        y = self.table(ids) + x
        y = self.norm(self.again(self.mix(y)))
        return y @ self.table.w.T


class Odd(nn.Module):
    """Parameters of all kinds: no numbers, Fortran order, no axes, other dtypes, frozen, never used, used now and then or in some parts."""

    def __init__(self, dtype="float32"):
        g = rng()
        self.nothing = Parameter(np.zeros((0, 3), dtype))
        self.turned = Parameter(np.asfortranarray(g.standard_normal((6, 5)).astype(dtype)))
        self.strided = Parameter(np.repeat(g.standard_normal(10).astype(dtype), 2)[::2])
        self.number = Parameter(np.array(1.5, dtype))
        self.never = Parameter(np.ones(3, dtype))
        self.frozen = Parameter(g.standard_normal((5, 5)).astype(dtype), requires_grad=False)
        self.child = nn.Affine(5, 5, generator=g, dtype=dtype)
        self.wide = Parameter(g.standard_normal((5, 3)))                   # float64, whatever the others are
        self.seldom = [Parameter(g.standard_normal(3).astype(dtype)) for _ in range(4)]
        self.generator = rng(5)

    def forward(self, x):
        a = array(x)
        y = F.tanh(x.astype(self.turned.dtype) @ self.turned * self.number)
        y = y @ self.child.w.T + self.child.b + y @ self.frozen         # a child's weights, without the child
        y = y * self.strided[:5] + self.nothing.sum()
        if self.training:
            y = y + self.generator.standard_normal(y.shape).astype(y.dtype) * 0.01
        y = (y.astype("float64") @ self.wide).astype(self.turned.dtype)
        if (a[:, 1] > 0.9).any():                           # in some parts of some minibatches only
            y = y + self.seldom[0]
        if (a[:, 2] < -0.5).all():
            y = y * self.seldom[1]
        return y + self.seldom[2] * 0.0 if a.sum() > 2 else y


def array(x):
    return x.data if isinstance(x, Tensor) else x


# Cases

def numbers(count, seed=1, width=6):
    """`count` examples of `width` numbers, in three classes."""
    x = rng(seed).standard_normal((count, width)).astype(np.float32)
    return x, np.argmax(x[:, :3], axis=1)


@dataclass(frozen=True)
class Case:
    """One thing to train: 50 steps and more, unless told otherwise."""

    model: Callable[[], nn.Module] = mlp
    optimizer: Callable[[Any], optim.Optimizer] = lambda model: optim.SGD(model, lr=0.05, momentum=0.9)
    examples: int = 83
    batch: int = 10                                     # 9 minibatches an epoch, the last of 3 examples
    epochs: int = 6
    width: int = 6
    clip: float | None = None
    objective: Objective = field(default_factory=classification)

    def train(self, team=None, callbacks=(), **options):
        model = self.model()
        optimizer = self.optimizer(model)
        loader = Loader(numbers(self.examples, width=self.width), batch_size=self.batch, seed=3, prefetch=0)
        history = fit(model, loader, None, optimizer, self.epochs, callbacks, clip=self.clip, objective=self.objective, team=team,
                      **options)
        return model, optimizer, history


def left(model, optimizer, history, memory=True):
    """The bits of all that a run has left, by name."""
    found = {f"model {name}": bits(x) for name, x in model.state_dict().items()}
    if memory:
        found |= {f"optimizer {name}": bits(x) for name, x in optimizer.state_dict().items()}
    found |= {f"generator {path}": str(generator.bit_generator.state).encode() for path, generator in generators(model)}
    for metrics in history:
        found |= {f"epoch {metrics['epoch']} {name}": bits(x) for name, x in metrics.items() if x is not None and not name.endswith(TIMES)}
    return found


def bits(x):
    if isinstance(x, dict):
        return json.dumps(x, sort_keys=True).encode()
    x = backend.to_numpy(x) if backend.is_array(x) else np.asarray(x)
    return f"{x.dtype} {x.shape} ".encode() + x.tobytes()


def alone(case, parts):
    """What one process leaves that takes each minibatch in so many parts."""
    return left(*case.train(accumulate=parts))


def together(communicator, case, exchange="allreduce", accumulate=1, callbacks=(), resume=None, **options):
    """What a rank leaves; optimizer's memory only where the strategy has every rank keep it, or on rank 0."""
    team = Team(communicator, exchange, **options)
    model, optimizer, history = case.train(team, callbacks, accumulate=accumulate, resume=resume)
    return left(model, optimizer, history, memory=communicator.rank == 0 or exchange != "master-worker")


def differences(expected, found):
    """The names of what is not equal to the bit."""
    return [name for name in found if found[name] != expected.get(name)]
