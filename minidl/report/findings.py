"""What is kept of a test, to be looked at: who was taken for whom, the surest mistakes, a few reconstructions, the first layer's filters.

It is gathered minibatch by minibatch while the loop tests, of this process's part of the examples. Images are kept as bytes, as they were
before they were normalised.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from minidl.backend import Array, to_numpy
from minidl.nn import Module

MISTAKES = 24               # the surest, which are shown as pictures
PAIRS = 12                  # inputs beside their reconstructions
FILTERS = 64                # of the first layer
CLASSES = 300               # a confusion matrix of more could not be seen


class Findings:
    """What a test has shown; to be called with each of its minibatches: (x, outputs, y).

    shape: of an example. classes: how many there are. normalise: what was done to images, as in config.json. rebuilds: the outputs are
    logits of the inputs, and there are no classes.
    """

    def __init__(self, shape: tuple[int, ...], classes: int, normalise: Mapping[str, Any] | None, rebuilds: bool = False):
        self.shape, self.classes, self.normalise, self.rebuilds = shape, classes, normalise, rebuilds
        self.counts = np.zeros((classes, classes) if 0 < classes <= CLASSES and not rebuilds else (0, 0), np.int64)
        self.mistakes: list[tuple[float, int, int, np.ndarray | None]] = []     # sure, right, taken, image; the surest first
        self.pairs: tuple[np.ndarray, np.ndarray] | None = None
        self.seen = 0

    def __call__(self, x: Array, outputs: Array, y: Array) -> None:
        """Look at a minibatch. What is no classification of that many classes, or no image, is passed over."""
        self.seen += len(x)
        if self.rebuilds:
            if self.pairs is None and is_image(self.shape) and math.prod(outputs.shape[1:]) == math.prod(self.shape):
                given, made = to_numpy(x[:PAIRS]), to_numpy(outputs[:PAIRS]).astype(float)
                self.pairs = in_bytes(given), in_bytes(0.5 * np.tanh(0.5 * made) + 0.5).reshape(-1, *self.shape)    # the logistic function
            return
        if outputs.ndim != 2 or y.ndim != 1 or outputs.shape[1] != self.classes:
            return
        outputs, y = to_numpy(outputs).astype(float), to_numpy(y)
        taken = outputs.argmax(axis=1)
        if len(self.counts):
            np.add.at(self.counts, (y, taken), 1)
        wrong = np.flatnonzero(taken != y)
        if len(wrong):
            z = outputs[wrong]
            sure = 1 / np.exp(z - z.max(axis=1, keepdims=True)).sum(axis=1)
            wrong, sure = (each[np.argsort(-sure, kind="stable")[:MISTAKES]] for each in (wrong, sure))
            images = self.images(to_numpy(x)[wrong]) if is_image(self.shape) else [None] * len(wrong)
            self.mistakes += [(float(p), int(y[i]), int(taken[i]), image) for p, i, image in zip(sure, wrong, images)]
            self.mistakes = sorted(self.mistakes, key=lambda mistake: -mistake[0])[:MISTAKES]

    def images(self, x: np.ndarray) -> np.ndarray:
        """Images as bytes, as they were before they were normalised."""
        x = x.astype(float)
        if self.normalise is not None:
            mean, std = (np.asarray(self.normalise[name], float).reshape(-1, 1, 1) for name in ("mean", "std"))
            x = x * std + mean
        return in_bytes(x)

    def arrays(self, model: Module) -> dict[str, np.ndarray]:
        """What is kept, by name: of images only where there are such."""
        kept = {"seen": np.array(self.seen)}
        if len(self.counts):
            kept["counts"] = self.counts
        if self.mistakes:
            sure, right, taken, images = zip(*self.mistakes)
            kept |= {"mistakes_sure": np.array(sure), "mistakes_right": np.array(right), "mistakes_taken": np.array(taken)}
            if is_image(self.shape):
                kept["mistakes"] = np.stack(images)
        if self.pairs is not None:
            kept["inputs"], kept["reconstructions"] = self.pairs
        name, w = first_weights(model, self.shape)
        if w is not None:
            kept |= {"filters": to_numpy(w[:FILTERS]).astype(np.float32), "filters_of": np.array(name), "filters_all": np.array(len(w))}
        return kept


def is_image(shape: tuple[int, ...]) -> bool:
    """Whether examples of this shape can be looked at."""
    return len(shape) == 3 and shape[0] in (1, 3)


def in_bytes(x: np.ndarray) -> np.ndarray:
    """Numbers in [0, 1] as bytes."""
    return np.round(255 * np.clip(np.nan_to_num(x), 0, 1)).astype(np.uint8)


def first_weights(model: Module, shape: tuple[int, ...]) -> tuple[str, Array | None]:
    """The weights that look at the examples, as images (filters, C, H, W), and their path; None if they cannot be seen as such."""
    for path, parameter in model.named_parameters():
        if parameter.ndim == 4:
            return path, parameter.data
        if parameter.ndim == 2:
            return path, parameter.data.T.reshape(-1, *shape) if is_image(shape) and len(parameter.data) == math.prod(shape) else None
    return "", None
