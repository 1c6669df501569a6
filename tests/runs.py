"""What tests of the commands share: a small place to train in, and a way to type a command."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from minidl import checkpoint, data, report

ROOT = Path(__file__).parents[1]

NETS = '''
import os, signal, time, warnings
import numpy as np
from minidl import nn


def all_states(input_shape, classes, generator):
    """Everything that a checkpoint must hold: weights, running statistics, dropout."""
    size = int(np.prod(input_shape))
    model = nn.Sequential(nn.Flatten(), nn.Affine(size, 8, generator=generator), nn.BatchNorm(8), nn.ReLU(),
                          nn.Dropout(0.3, generator=generator), nn.Affine(8, classes, generator=generator))
    if "SLOW" in os.environ:
        model.register_forward_hook(lambda *args: time.sleep(0.01))
    return model


class Signalled(nn.Module):
    """Gets a signal, or several, in the middle of a training pass: in pass AT."""

    def __init__(self, input_shape, classes, generator):
        self.inner = all_states(input_shape, classes, generator)
        self.passes = 0

    def forward(self, x):
        self.passes += self.training
        if self.training and self.passes == int(os.environ["AT"]):
            for name in os.environ["SIGNALS"].split():
                os.kill(os.getpid(), getattr(signal, name))
        return self.inner(x)


class Broken(nn.Module):
    """Has a fault, which shows in the third pass."""

    def __init__(self, input_shape, classes, generator):
        self.inner, self.passes = all_states(input_shape, classes, generator), 0

    def forward(self, x):
        self.passes += 1
        return self.inner(x) if self.passes < 3 else self.inner(x)[nothing]


class Endless(nn.Module):
    """Its output grows from pass to pass, until it is no longer finite."""

    def __init__(self, input_shape, classes, generator):
        self.inner, self.passes = all_states(input_shape, classes, generator), 0

    def forward(self, x):
        self.passes += self.training
        return self.inner(x) * (float("inf") if self.passes > 8 else 1.0)


class Scaled(nn.Module):
    """Has a parameter that no layer uses, which K-FAC therefore does not cover."""

    def __init__(self, input_shape, classes, generator):
        self.inner = all_states(input_shape, classes, generator)
        self.temperature = nn.Parameter(np.ones((), np.float32))

    def forward(self, x):
        if self.training:
            warnings.warn("a warning of the model's own")
        return self.inner(x) * self.temperature


def needs_more(input_shape, classes, generator, width):
    pass


def only_the_shape(input_shape):
    return nn.Sequential(nn.Flatten(), nn.Affine(int(np.prod(input_shape)), 10))


def whatever(**options):
    return all_states(**options)


def rubbish(input_shape):
    return "a model"


def wide(input_shape):
    return nn.Sequential(nn.Flatten(), nn.Affine(int(np.prod(input_shape)), 501), nn.Affine(501, 10))


def five_classes(input_shape):
    return nn.Sequential(nn.Flatten(), nn.Affine(int(np.prod(input_shape)), 5))


model = nn.Flatten()
'''


def place(tmp_path, monkeypatch):
    """A folder to be in: digits.npz, of 40 images to train on and 20 to test on, vectors.npz of the same, and nets.py. For a fixture."""
    train, test = data.load("digits")
    x, y, x_test, y_test = train.x[:40] * 15, train.y[:40], test.x[:20] * 15, test.y[:20]
    np.savez(tmp_path / "digits.npz", x_train=x, y_train=y, x_test=x_test, y_test=y_test)
    flat = {"x_train": x.reshape(40, -1), "x_test": x_test.reshape(20, -1)}
    np.savez(tmp_path / "vectors.npz", **flat, y_train=y, y_test=y_test)
    (tmp_path / "nets.py").write_text(NETS)
    monkeypatch.setattr(report, "write", lambda folder: None)           # pages take longer than such runs; they are looked at in report/
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "nets", raising=False)
    return tmp_path


def status(app, *words):
    """Type a command in this process: its exit status."""
    try:
        app([str(word) for word in words])
    except SystemExit as end:
        return end.code
    raise AssertionError("a command ends with SystemExit")


def environment():
    """For a process that is to import minidl from here, quietly and in a fixed way."""
    return os.environ | {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1", "PYTHONWARNINGS": "error", "COLUMNS": "80"}


def process(module, *words, **options):
    """Type a command in a process of its own, which is given back when it has ended."""
    return subprocess.run([sys.executable, "-m", f"minidl.{module}", *map(str, words)], capture_output=True, text=True, timeout=60,
                          **{"env": environment(), **options})


TIMES = ("second", "seconds", "phases", "hidden", "memory")         # what is another thing each time


def metrics(folder):
    """What metrics.jsonl says, but for the times."""
    lines = [json.loads(line, parse_constant=lambda name: 1 / 0) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if not name.endswith(TIMES)} for line in lines]


def last_checkpoint(folder):
    """The bytes of the last checkpoint of a run, as they would be if every epoch had taken no time."""
    found = checkpoint.Checkpoints(folder / "checkpoint").latest()
    assert not found.damaged
    found.rest["run"] |= {"seconds": 0, "phases": {}, "hidden": {}}
    for line in found.rest["run"]["history"]:
        line |= {name: 0 for name in line if name.endswith(TIMES)}
    file = folder.with_name(f"{folder.name}-timeless")
    checkpoint.save(file, found.arrays, found.rest)
    return file.read_bytes()
