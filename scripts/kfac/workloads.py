"""What is learned: an autoencoder, which tests an optimizer, and LeNet, which tests whether that is of use.

The images lie in memory, ready to be cut into minibatches. While settings are tuned, the last of the training images are set aside to
measure on, and the test images are not looked at; the runs that count train on all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import minidl
from minidl import functions as F
from minidl import models, no_grad

SET_ASIDE = 5000            # training images to tune on, at most a fifth of them
MEASURED = 5000             # training images that the autoencoder's loss is measured on
PIECE = 1000                # images at a time where nothing is learned

Arrays = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Workload:
    """A problem, and what counts as having solved it.

    every: steps between two measurements; None for a tenth of an epoch. targets: values to be reached, the last being the hardest.
    limit: where a run ends that does not reach them: steps, or epochs where those are what is counted. shown: how far a run goes on at
    least, for the picture.
    """

    name: str
    title: str
    batch: int
    measure: str
    falls: bool                     # whether a good value is a low one
    targets: tuple[float, ...]
    every: int | None
    counted: str                    # "steps" or "epochs"
    limit: float
    shown: float
    loss: Callable[[Any, np.ndarray, np.ndarray], Any]
    value: Callable[[Any, Arrays], float]

    def model(self, shape: tuple[int, ...], classes: int, seed: int) -> Any:
        if self.name == "autoencoder":
            return models.create("autoencoder", input_shape=shape, widths=(256, 128, 64, 30), generator=seed)
        return models.create("lenet", input_shape=shape, classes=classes, generator=seed)

    def reaches(self, value: float, target: float) -> bool:
        return value <= target if self.falls else value >= target

    def better(self, value: float, other: float) -> bool:
        return value < other if self.falls else value > other


@dataclass(frozen=True)
class Problem:
    """A workload with its images: what to train on, and what to measure on."""

    workload: Workload
    train: Arrays
    measured: Arrays
    classes: int

    @property
    def epoch(self) -> float:
        """Steps an epoch; the images that are left over at its end wait for the next."""
        return len(self.train[0]) / self.workload.batch

    def model(self, seed: int) -> Any:
        return self.workload.model(self.train[0].shape[1:], self.classes, seed)

    def steps(self, number: float) -> int:
        """What the workload counts, in steps."""
        return round(number * (self.epoch if self.workload.counted == "epochs" else 1))

    def counted(self, steps: float) -> float:
        """Steps, in what the workload counts."""
        return steps / (self.epoch if self.workload.counted == "epochs" else 1)

    def measured_at(self, k: int) -> int:
        """The step after which measurement number k is made, from 0: before any step."""
        return k * self.workload.every if self.workload.every else max(k, round(k * self.epoch / 10))

    def minibatches(self, seed: int):
        """Minibatches for ever, one order of the images after the other: the same for all methods."""
        draw = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(1,)))
        waiting = np.empty(0, np.int64)
        while True:
            while len(waiting) < self.workload.batch:
                waiting = np.concatenate([waiting, draw.permutation(len(self.train[0]))])
            now, waiting = waiting[:self.workload.batch], waiting[self.workload.batch:]
            yield self.train[0][now], self.train[1][now]


def reconstruction_loss(model: Any, x: np.ndarray, labels: np.ndarray) -> Any:
    """Nats an image: summed over the pixels, a mean over the images."""
    return F.binary_cross_entropy_with_logits(model(x), F.flatten(x), reduction="sum") * (1 / len(x))


def classification_loss(model: Any, x: np.ndarray, labels: np.ndarray) -> Any:
    return F.softmax_cross_entropy(model(x), labels)


@no_grad()
def reconstruction(model: Any, images: Arrays) -> float:
    """The mean loss of images: nats each."""
    pieces = np.split(images[0], range(PIECE, len(images[0]), PIECE))
    return sum(reconstruction_loss(model, x, x).item() * len(x) for x in pieces) / len(images[0])


@no_grad()
def accuracy(model: Any, images: Arrays) -> float:
    """The share of images whose class is found."""
    x, labels = images
    right = [np.argmax(np.asarray(model(x[i:i + PIECE])), axis=1) == labels[i:i + PIECE] for i in range(0, len(x), PIECE)]
    return float(np.concatenate(right).mean())


WORKLOADS = (
    Workload("autoencoder", "Autoencoder", 500, "training loss, nats an image", True, (243.0, 236.0), 10, "steps", 3000, 700,
             reconstruction_loss, reconstruction),
    Workload("lenet", "LeNet", 256, "test accuracy", False, (0.875,), None, "epochs", 10, 2.5,
             classification_loss, accuracy),
)
BY_NAME = {workload.name: workload for workload in WORKLOADS}


class Images:
    """A data set in memory, as both workloads want it: pixels in 0 ... 1, for LeNet less their mean and over their deviation."""

    def __init__(self, name: str = "fashion-mnist", folder: Path | None = None, most: int | None = None):
        self.name = name
        train, test = minidl.data.load(name, data_dir=folder)
        self.classes = len(train.classes)
        self.train, self.test = (_arrays(part, most) for part in (train, test))
        pixels = self.train[0]
        self.mean, self.deviation = float(pixels.mean(dtype=np.float64)), float(pixels.std(dtype=np.float64))

    def problem(self, workload: Workload, tuning: bool) -> Problem:
        """With the images set aside to measure on, or as it counts."""
        train, measured = self.train, self.test
        if tuning:
            aside = min(SET_ASIDE, len(train[0]) // 5)
            train, measured = (tuple(part[:-aside] for part in train), tuple(part[-aside:] for part in train))
        elif workload.name == "autoencoder":
            measured = tuple(part[:MEASURED] for part in train)
        if workload.name == "lenet":
            train, measured = ((self.normalised(x), labels) for x, labels in (train, measured))
        return Problem(workload, train, measured, self.classes)

    def normalised(self, x: np.ndarray) -> np.ndarray:
        return (x - np.float32(self.mean)) / np.float32(self.deviation)


def _arrays(part: Any, most: int | None) -> Arrays:
    return part[np.arange(min(len(part), most or len(part)))]
