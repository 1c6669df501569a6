"""The loop on a device: whichever way minibatches come to it, the results are the same; and a GPU that is not the first."""

import numpy as np
import pytest

from minidl import backend, data, kernels, models, optim
from minidl.data.device import Feed
from minidl.loop import evaluate, fit

emulated = pytest.importorskip("emulated")
pytestmark = pytest.mark.skipif(bool(emulated.WHY_NOT), reason=emulated.WHY_NOT or "it is there")
AUGMENT = data.Compose(data.Shift(1), data.Normalise(0.3, 0.3))


@pytest.fixture(autouse=True)
def device_zero():
    """The thread's device is the first again."""
    yield
    emulated.xp.cuda.Device(0).use()


class NumPyOnly(data.Transform):
    """The same, told to be done on the CPU."""

    def draw(self, generator, count):
        return AUGMENT.draw(generator, count)

    def apply(self, x, drawn):
        return AUGMENT.apply(x, drawn)


def images(count, seed):
    generator = np.random.default_rng(seed)
    return data.Dataset(generator.integers(0, 256, (count, 1, 8, 8), dtype=np.uint8), generator.integers(0, 10, count))


def trained(device, transform, monkeypatch, resident):
    """The metrics and weights of two epochs."""
    monkeypatch.setattr("minidl.run.Feed", lambda where: Feed(where, resident))
    model = models.create("mlp", input_shape=(1, 8, 8), classes=10, generator=0).to(device=device)
    loader = data.Loader(images(70, 0), batch_size=32, seed=1, transform=transform)
    tests = data.Loader(images(50, 1), batch_size=20, shuffle=False, transform=data.Normalise(0.3, 0.3))
    with kernels.using("reference"):
        history = fit(model, loader, tests, optim.SGD(model, lr=0.05, momentum=0.9), epochs=2)
        assert evaluate(model, tests) == (history[-1]["test_loss"], history[-1]["test_accuracy"])
    told = [{name: row[name] for name in ("train_loss", "train_accuracy", "test_loss", "test_accuracy")} for row in history]
    return told, {path: backend.to_numpy(p.data) for path, p in model.named_parameters()}


@pytest.mark.parametrize("device", ["emulated:0", "emulated:1"])
def test_every_way_to_the_device_gives_the_same_bits(monkeypatch, device):
    runs = [trained(device, transform, monkeypatch, resident)
            for transform, resident in ((AUGMENT, None), (AUGMENT, 0), (NumPyOnly(), None))]
    for told, weights in runs[1:]:
        assert told == runs[0][0]
        for path, w in weights.items():
            np.testing.assert_array_equal(w, runs[0][1][path])


def test_as_on_the_cpu(monkeypatch):
    ours, theirs = (trained(device, AUGMENT, monkeypatch, None)[0] for device in ("emulated:0", "cpu"))
    for row, other in zip(ours, theirs):
        assert row == pytest.approx(other, rel=1e-4)


def test_what_lies_there_is_let_go(monkeypatch):
    feeds = []

    class Kept(Feed):
        def __init__(self, *args):
            super().__init__(*args)
            feeds.append(self)

        def close(self):
            assert self.bytes() == 70 * (64 + 8) + 50 * (64 + 8)
            super().close()

    monkeypatch.setattr("minidl.run.Feed", Kept)
    model = models.create("mlp", input_shape=(1, 8, 8), classes=10, generator=0).to(device="emulated:0")
    with kernels.using("reference"):
        fit(model, images(70, 0), images(50, 1), optim.SGD(model, lr=0.05), epochs=1)
    assert feeds[0].bytes() == 0
