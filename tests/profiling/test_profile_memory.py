"""The peak of a device's memory, layer by layer, against what must be there at least, and at most."""

import json

import numpy as np
import pytest

import minidl
from minidl import backend, kernels, nn

emulated = pytest.importorskip("emulated")
pytestmark = pytest.mark.skipif(bool(emulated.WHY_NOT), reason=emulated.WHY_NOT or "it is there")
DEVICE = "emulated:0"


class Greedy(minidl.Function):
    """An operation that takes memory meanwhile: so many bytes forward, twice as many backward."""

    size: int

    def forward(self, x):
        xp = backend.of(x)
        xp.zeros(self.size, "uint8")
        return x + 0

    def grad_x(self, gy):
        backend.of(gy).zeros(2 * self.size, "uint8")
        return gy


class Taking(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.size = size

    def forward(self, x):
        return Greedy(self.size)(x)


def profiled(sizes):
    model = nn.Sequential(nn.Affine(4, 4, generator=0), *map(Taking, sizes)).to(device=DEVICE)
    x = backend.asarray(np.ones((8, 4), np.float32), DEVICE)
    with kernels.using("reference"):
        model(x).sum().backward()
        before = backend.memory(DEVICE).used
        with minidl.profile() as p:
            model(x).sum().backward()
    return p, before


def test_of_each_layer_with_what_was_there_before():
    sizes = (2**20, 2**22, 2**16)
    p, before = profiled(sizes)
    peaks = {layer.path: layer.peak for layer in p.layers}
    for i, size in enumerate(sizes, 1):
        peak = peaks[f"{i} (Taking)"]
        assert before + 2 * size <= peak <= before + 2 * size + 2**14
    assert 0 < peaks["0 (Affine)"] <= before + 2**14


def test_in_the_table_and_in_the_data():
    p, _ = profiled((2**20,))
    lines = str(p).splitlines()
    head = next(line for line in lines if "keeps" in line)
    assert head.rstrip().endswith("peak") and max(map(len, lines)) <= 80
    assert any("1 (Taking)" in line and line.rstrip().endswith("MiB") for line in lines[lines.index(head):])
    assert json.loads(json.dumps(p.data()))["layers"][0]["peak"] > 0


def test_pauses_are_not_looked_at_and_nothing_stays_open():
    x = backend.asarray(np.ones((8, 4), np.float32), DEVICE)
    layer, other = Taking(2**10), Taking(2**20)
    with minidl.profile() as p:
        layer(x)
        p.pause()
        other(x)
        p.resume()
        layer(x)
        assert p._recorder.watches
    assert not p._recorder.watches
    assert {row.path: row.peak for row in p.layers}["Taking"] < backend.memory(DEVICE).used + 2**19


def test_on_the_cpu_it_is_not_told():
    model, x = nn.Affine(4, 4, generator=0), np.ones((8, 4), np.float32)
    with minidl.profile() as p:
        model(x).sum().backward()
    assert [layer.peak for layer in p.layers if layer.path] == [0] and "peak" not in str(p).replace("peak memory", "")
