"""Who learns: the optimizers that compete, each with a grid of settings for each workload.

Learning rates are constant for all. Every method is given as many tries, drawn from its grid: a small grid is seen whole. What is not
in the grid is what the method is usually run with.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minidl import optim

INTERVAL = 10               # K-FAC: steps between two refreshments of its factors, and of their inverses


@dataclass(frozen=True)
class Method:
    """kind: the name of a class in minidl.optim. grids: by workload, the values of each setting; the rest is in fixed.

    usual: by workload, settings that do well, for timing steps. like: the method whose tuned settings it runs with, for a comparison.
    """

    name: str
    title: str
    kind: str
    grids: dict[str, dict[str, tuple[float, ...]]]
    usual: dict[str, dict[str, float]]
    fixed: dict[str, Any] = field(default_factory=dict)
    like: str = ""

    def make(self, model: Any, settings: dict[str, float], seed: int) -> Any:
        more = {"seed": seed} if self.kind == "KFAC" else {}
        return getattr(optim, self.kind)(model, **self.fixed, **settings, **more)

    def draw(self, workload: str, tries: int) -> list[dict[str, float]]:
        """Different settings from the grid, the same ones every time; all of them, if there are no more."""
        grid = self.grids[workload]
        points = [dict(zip(grid, values)) for values in itertools.product(*grid.values())]
        order = np.random.default_rng(0).permutation(len(points))
        return [points[i] for i in order[:tries]]


METHODS = (
    Method("sgd", "SGD", "SGD", {
        "autoencoder": {"lr": (2.5e-4, 5e-4, 1e-3, 1.5e-3, 2e-3, 2.5e-3, 3e-3, 5e-3)},
        "lenet": {"lr": (0.003, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2)},
    }, {"autoencoder": {"lr": 2e-3}, "lenet": {"lr": 0.05}}, {"momentum": 0.9}),
    Method("adam", "Adam", "Adam", {
        "autoencoder": {"lr": (5e-4, 1e-3, 1.5e-3, 2e-3, 3e-3, 4e-3, 6e-3, 1e-2)},
        "lenet": {"lr": (5e-4, 1e-3, 1.5e-3, 2e-3, 3e-3, 4e-3, 6e-3, 1e-2)},
    }, {"autoencoder": {"lr": 2e-3}, "lenet": {"lr": 4e-3}}),
    Method("kfac", "K-FAC", "KFAC", {
        # where kl_clip bounds every step, lr has no say: one value is enough for the autoencoder
        "autoencoder": {"lr": (0.1,), "damping": (0.03, 0.1, 0.3), "kl_clip": (0.03, 0.1, 0.3)},
        "lenet": {"lr": (0.03, 0.1), "damping": (0.1, 0.3), "kl_clip": (0.003, 0.01)},
    }, {"autoencoder": {"lr": 0.1, "damping": 0.1, "kl_clip": 0.03}, "lenet": {"lr": 0.05, "damping": 0.3, "kl_clip": 0.01}},
        {"momentum": 0.9, "factor_decay": 0.8, "factor_interval": INTERVAL, "inverse_interval": INTERVAL}),
    Method("kfac-1", "K-FAC, every step", "KFAC", {}, {},
           {"momentum": 0.9, "factor_decay": 0.8, "factor_interval": 1, "inverse_interval": 1}, like="kfac"),
)


def chosen(names: list[str] | None = None) -> list[Method]:
    """Methods by name, in their order here, with those that they are like; all that minidl has, unless named. ValueError for a name that is
    not known.
    """
    there = [method for method in METHODS if hasattr(optim, method.kind)]
    for name in names or ():
        if name not in (known := [method.name for method in there]):
            raise ValueError(f"{name!r} is no method; there are {', '.join(known)}")
    wanted = {*names, *(method.like for method in there if method.name in names)} if names else {method.name for method in there}
    return [method for method in there if method.name in wanted]
