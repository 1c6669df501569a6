"""What tests of pages share: folders of runs of every kind, made by hand, and a page taken apart."""

import json
import os
import platform
import time
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np

from minidl import models, optim
from minidl.data import Loader
from minidl.loop import fit
from minidl.report import Journal
from minidl.run import Run

VOID = {"meta", "link", "img", "br", "input", "path", "hr"}
OPTIONS = {"model": "cnn", "data": "photos", "optimizer": "sgd", "epochs": 3, "batch_size": 32, "lr": 0.1, "normalise": False, "clip": None}
PHASES = {"data": 0.1, "forward": 1.0, "backward": 2.0, "gradient exchange": 0.5, "update": 0.2, "evaluation": 0.3, "other": 0.01}


def make(folder, epochs=3, state="finished", classes=4, message="", steps=20, images=True, older=False, rebuilds=False, ranks=1,
         options=(), seed=0):
    """The folder of a run of so many epochs, each of so many steps, with everything in it that a run leaves; or of an older version."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(seed)
    names = classes if isinstance(classes, list) else [f"class {i}" for i in range(classes)]
    shape = [1, 6, 6] if images else [36]
    config = {"options": OPTIONS | {"epochs": max(epochs, 1)} | dict(options), "classes": names, "input_shape": shape, "normalise": None,
              "commands": ["python -m minidl.train --model cnn --out runs/one"], "minidl": "1", "numpy": "2"}
    (folder / "config.json").write_text(json.dumps(config))
    losses = 2.0 * np.exp(-np.arange(epochs * steps + 1) / 300) + 0.1 * generator.random(epochs * steps + 1)
    lines = []
    for i in range(epochs):
        right = None if rebuilds else 1 - 0.7 * 0.8 ** i
        line = {"epoch": i + 1, "train_loss": losses[i * steps], "train_accuracy": right, "test_loss": losses[i * steps] + 0.1,
                "test_accuracy": right and right - 0.01, "seconds": 3.0, "images_per_second": 200.0}
        lines.append(line if older else line | {"step": (i + 1) * steps, "phases": PHASES, "memory": 2e8,
                                                "hidden": {"gradient exchange": 0.4} if ranks > 1 else {}})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if older:
        return folder
    done = epochs * steps + (0 if state == "finished" else 5)
    rows = [f"{k + 1},{k // steps + 1},{0.1 * k:.4f},{losses[min(k, len(losses) - 1)]:.6g},{0.1 / (1 + k):.6g}\n" for k in range(done)]
    (folder / "steps.csv").write_text("step,epoch,seconds,loss,learning_rate\n" + "".join(rows))
    status = {"state": state, "message": message, "step": done, "epoch": epochs, "epochs": max(epochs, 1), "minibatches": steps,
              "ranks": ranks, "pid": os.getpid(), "host": platform.node(), "seen": time.time()}
    (folder / "status.json").write_text(json.dumps(status))
    net = models.create("autoencoder" if rebuilds else "mlp", input_shape=tuple(shape), classes=len(names), generator=0)
    x, y = generator.random((40, *shape), np.float32), np.arange(40) % len(names)
    Journal(folder, config).tidy(run := Run(net, optim.SGD(net, 0.1), Loader((x, y)), 1, step=done))
    run.team = SimpleNamespace(ranks=ranks)
    if epochs:
        keeper = Journal(folder, config)
        watch = keeper.test(run)
        watch(x, generator.random((40, 36 if rebuilds else len(names))), y)
        keeper.keep(watch, run, epochs)
    return folder


def trained(folder, **options):
    """A run that really was: as `make`, of an MLP on a few images."""
    folder.mkdir(parents=True)
    config = {"options": OPTIONS, "classes": ["a", "b", "c"], "input_shape": [1, 4, 4], "normalise": None, "commands": ["python"]}
    (folder / "config.json").write_text(json.dumps(config))
    generator = np.random.default_rng(0)
    x, y = generator.random((20, 1, 4, 4), np.float32), np.arange(20) % 3
    net, keeper = models.create("mlp", input_shape=(1, 4, 4), classes=3, generator=0), Journal(folder, config, **options)
    history = fit(net, Loader((x, y), batch_size=4), (x, y), optim.SGD(net, 0.1), 3, [keeper])
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in history))
    return keeper


class Page(HTMLParser):
    """A page taken apart: `sections` (ids), `addresses` (whatever would be fetched), `pictures` (their words), `text`."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.sections, self.addresses, self.pictures, self.words, self.attributes = [], [], [], [], [], [], {}
        self.images = 0
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"
        assert len(self.ids) == len(set(self.ids)), f"twice: {[each for each in self.ids if self.ids.count(each) > 1]}"

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if tag not in VOID or tag == "path":
            self.open.append(tag)
        if "id" in values:
            self.ids.append(values["id"])
        self.images += tag == "img"
        if tag == "section":
            self.sections.append(values["id"])
        if tag == "body":
            self.attributes = values
        if tag == "svg" and values.get("role") == "img":
            self.pictures.append(values["aria-label"])
        assert tag != "img" or values["alt"]
        self.addresses += [values[name] for name in ("src", "href", "action", "data", "srcset", "poster") if name in values]

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID or tag == "path":
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> within {self.open}"
        self.open.pop()

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)
