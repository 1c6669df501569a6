"""Does a model still learn when what its ranks send is compressed? And how fast are the codecs?

LeNet learns a data set on ranks that are threads of one process, with each compression in turn: the bits are those of as many processes
under MPI. Every seed has its own weights and order of images, the same for all compressions. What is counted is test accuracy after each
epoch and the bytes that the ranks sent; nothing is timed. The speed of a codec is that of one thread, by its own clock, best of many calls.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minidl import data, models, optim, pool
from minidl.loop import classification, fit
from minidl.parallel import local
from minidl.parallel.codecs import codec
from minidl.parallel.compression import Feedback
from minidl.parallel.team import Team

WITHIN = 0.005          # of uncompressed accuracy: what error feedback promises
RATIOS = {"fp16": 0.501, "int8": 0.26, "topk:0.01": 0.025}          # bytes, over those of float32, that must not be passed


@dataclass(frozen=True)
class Method:
    """What is sent, and whether what was left out is kept."""

    compress: str
    feedback: bool = True

    @property
    def name(self) -> str:
        return self.compress if self.feedback else f"{self.compress}, no feedback"


METHODS = (Method("none"), Method("fp16"), Method("int8"), Method("topk:0.01"), Method("topk:0.01", feedback=False))


@dataclass(frozen=True)
class Setting:
    """How all methods learn: as `python -m minidl.train` does by default, but for the size of a minibatch."""

    data: str = "fashion-mnist"
    folder: Path | None = None
    exchange: str = "master-worker"
    ranks: int = 4
    batch: int = 128
    epochs: int = 5
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 0.001
    label_smoothing: float = 0.1

    def learned(self, method: Method, seed: int) -> dict[str, Any]:
        """Test accuracy after each epoch, bytes sent by all ranks, and seconds."""
        train, test = data.load(self.data, data_dir=self.folder)

        def rank(communicator: Any) -> tuple[list[float], int]:
            model = models.create("lenet", input_shape=train.shape, classes=len(train.classes), generator=seed)
            loader = data.Loader(train, batch_size=self.batch, seed=seed)
            optimizer = optim.SGD(model, lr=optim.cosine(self.lr, self.epochs * len(loader)), momentum=self.momentum,
                                  weight_decay=self.weight_decay, groups={"*.b": {"weight_decay": 0.0}})
            team = Team(communicator, self.exchange, compress=method.compress, feedback=method.feedback)
            history = fit(model, loader, test, optimizer, self.epochs, objective=classification(self.label_smoothing), team=team)
            return [epoch["test_accuracy"] for epoch in history], team.exchange.bytes_sent

        started = time.perf_counter()
        with pool.threads(1):
            found = local.run(rank, self.ranks)
        return {"seed": seed, "accuracy": found[0][0], "bytes": sum(sent for _, sent in found), "seconds": time.perf_counter() - started}


def last(runs: list[dict[str, Any]]) -> list[float]:
    """Test accuracy at the end, of each seed."""
    return [run["accuracy"][-1] for run in runs]


def accuracy_rows(runs: dict[str, list[dict[str, Any]]]) -> list[tuple[str, ...]]:
    """Of each method: accuracy of the seeds, their mean, how far it is from uncompressed, and its bytes over those."""
    plain = runs.get("none")
    rows = []
    for name, own in runs.items():
        seeds = [run["seed"] for run in own]
        like = [run for run in plain or [] if run["seed"] in seeds]
        lost = mean(own) - mean(like) if like else None
        ratio = sum(run["bytes"] for run in own) / sum(run["bytes"] for run in like) if like else None
        rows.append((name, " ".join(f"{100 * value:.2f}" for value in last(own)), f"{100 * mean(own):.2f}",
                     "" if lost is None or own is plain else f"{100 * lost:+.2f}", "" if ratio is None else f"{ratio:.4f}"))
    return rows


def mean(runs: list[dict[str, Any]]) -> float:
    return statistics.mean(last(runs))


ACCURACY_HEADS = ("compression", "test accuracy of each seed, %", "mean", "points lost or won", "bytes over uncompressed")
SPEED_HEADS = ("codec", "KiB", "bytes over float32's", "encode", "decode", "both", "with feedback")


def broken(runs: dict[str, list[dict[str, Any]]], speed: list[dict[str, Any]]) -> list[str]:
    """What was promised and is not so."""
    told = []
    if "none" in runs:
        for method in METHODS[1:]:
            if method.name in runs and (mean(runs["none"]) - mean(runs[method.name]) <= WITHIN) != method.feedback:
                meant = "within" if method.feedback else "further away than"
                told.append(f"{method.name} was meant to be {meant} {100 * WITHIN:g} points of none")
    told += [f"{row['codec']} takes {row['ratio']:.4f} of float32's bytes" for row in speed if row["ratio"] > RATIOS.get(row["codec"], 1)]
    return told


# How fast


def codec_speed(sizes: tuple[int, ...] = (64 << 10, 256 << 10, 1 << 20), calls: int = 60) -> list[dict[str, Any]]:
    """GB/s of float32 numbers through each codec, on one thread: seconds of its own time, the least of many calls."""
    rows = []
    for size in sizes:
        x = (np.random.default_rng(0).standard_normal(size // 4) * 1e-3).astype(np.float32)
        for name in RATIOS:
            by, out = codec(name), np.empty_like(x)
            parcel, memory = by.encode(x), Feedback(len(x))

            def remembered(by=by, x=x, parcel=parcel, memory=memory):
                memory.encode(by, x, slice(0, len(x)), parcel)
                memory.commit()

            seconds = {"encode": least(lambda by=by, x=x, parcel=parcel: by.encode(x, parcel), calls),
                       "decode": least(lambda by=by, out=out, parcel=parcel: by.decode(parcel, out), calls)}
            seconds |= {"both": sum(seconds.values()), "feedback": least(remembered, calls)}
            rows.append({"codec": name, "bytes": size, "ratio": len(parcel) / size,
                         "gb_per_s": {part: size / second / 1e9 for part, second in seconds.items()}})
    return rows


def least(call: Callable[[], Any], calls: int) -> float:
    """Seconds of this thread that a call takes at best."""
    found = []
    for _ in range(calls):
        started = time.thread_time()
        call()
        found.append(time.thread_time() - started)
    return min(found)


def speed_rows(speed: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    return [(row["codec"], f"{row['bytes'] >> 10}", f"{row['ratio']:.4f}", *(f"{value:.2f}" for value in row["gb_per_s"].values()))
            for row in speed]
