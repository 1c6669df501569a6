"""Whole runs on the device against the CPU's: the loss of twenty steps, and the digits, until they are known."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from minidl import backend, data, models, optim
from minidl import functions as F
from minidl.loop import fit

STEPS, WITHIN = 20, 1e-4    # the loss after so many steps may differ by so much, relative to the CPU's
NETWORKS = {"mlp": ((1, 28, 28), 64), "lenet": ((1, 28, 28), 64), "cnn": ((3, 32, 32), 32)}         # shape of an example, minibatch
ACCURACY = 0.95             # of a digits run of EPOCHS epochs
EPOCHS = 15


def steps(device: str, small: bool = False) -> list[dict[str, Any]]:
    """The losses of the same steps on the CPU and on the device, in float32 without TF32 and without dropout. small: of one network."""
    rows = []
    for name in ["mlp"] if small else NETWORKS:
        here, there = losses(name, "cpu", small), losses(name, device, small)
        off = max(abs(a - b) / abs(a) for a, b in zip(here, there))
        rows.append({"network": name, "cpu": here[-1], "device": there[-1], "off at most": off, "within": bool(off <= WITHIN)})
    return rows


def losses(name: str, device: str, small: bool = False) -> list[float]:
    """The loss of every step, on random images that are always the same."""
    shape, batch = ((1, 8, 8), 4) if small else NETWORKS[name]
    draw = np.random.default_rng(3)
    x, labels = draw.standard_normal((4 * batch, *shape), np.float32), draw.integers(10, size=4 * batch)
    net = models.create(name, input_shape=shape, classes=10, generator=0).to(device)
    optimizer = optim.SGD(net, lr=0.01, momentum=0.9)
    found = []
    for step in range(STEPS):
        rows = slice(step % 4 * batch, (step % 4 + 1) * batch)
        optimizer.zero_grad()
        loss = F.softmax_cross_entropy(net(backend.asarray(x[rows], device)), backend.asarray(labels[rows], device))
        loss.backward()
        optimizer.step()
        found.append(float(loss))
    return found


def digits(device: str, epochs: int = EPOCHS) -> list[dict[str, Any]]:
    """A run of LeNet on the digits, as one would start it, and the same one captured."""
    rows = []
    train, test = data.load("digits")
    for captured in (False, True):
        row: dict[str, Any] = {"captured": captured}
        try:
            net = models.create("lenet", input_shape=(1, 8, 8), classes=10, generator=0).to(device)
            started = time.perf_counter()
            history = fit(net, train, test, optim.SGD(net, lr=0.05, momentum=0.9), epochs=epochs, capture=captured)
            row |= {"seconds": time.perf_counter() - started, "accuracy": history[-1]["test_accuracy"],
                    "images a second": history[-1]["images_per_second"], "good": history[-1]["test_accuracy"] >= ACCURACY}
        except Exception as trouble:                        # told in the row
            row["error"] = f"{type(trouble).__name__}: {trouble}"[:300]
        rows.append(row)
    return rows
