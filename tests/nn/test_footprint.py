"""The memory of a training step: predicted, and then measured."""

import tracemalloc

import numpy as np
import pytest

import strict  # noqa: F401   makes the strict device known
from minidl import backend, kernels, models, nn, optim
from minidl import functions as F
from minidl.errors import ArgumentError


def cross_entropy(outputs, x):
    return F.softmax_cross_entropy(outputs, np.zeros(len(x), np.int64))


def reconstruction(outputs, x):
    return F.binary_cross_entropy_with_logits(outputs, F.flatten(x))


def momentum(model):
    return optim.SGD(model, lr=0.01, momentum=0.9)


def measured(make, shape, batch, optimizer, loss):
    """The most bytes in the second of two training steps, the model and the minibatch among them."""
    def step(model, optimizer, x):
        optimizer.zero_grad()
        outputs = model(x)
        loss(outputs, x).backward()
        optimizer.step()

    def run():
        model = make()
        made = optimizer(model)
        x = np.zeros((batch, *shape), np.float32)
        step(model, made, x)
        tracemalloc.reset_peak()
        step(model, made, x)
        return tracemalloc.get_traced_memory()[1]
    run()                                       # compiles, where there is something to compile
    tracemalloc.start()
    try:
        return run()
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("name", "shape", "batch", "optimizer"), [
    ("mlp", (1, 28, 28), 128, momentum), ("lenet", (1, 28, 28), 128, optim.Adam), ("cnn", (3, 32, 32), 96, optim.Adam),
    ("resnet18", (3, 32, 32), 10, momentum), ("autoencoder", (1, 28, 28), 500, momentum)])
def test_is_predicted_within_a_tenth(name, shape, batch, optimizer):
    options = {} if name == "autoencoder" else {"classes": 10}
    loss = reconstruction if name == "autoencoder" else cross_entropy

    def make():
        return models.create(name, input_shape=shape, generator=0, **options)
    real = measured(make, shape, batch, optimizer, loss)
    found = nn.summary(make(), shape, batch=batch, optimizer=optimizer, loss=loss).step
    assert found.peak == pytest.approx(real, rel=0.1)
    assert found.minibatch == batch * 4 * np.prod(shape)


def test_counts_parameters_with_buffers_and_what_the_optimizer_remembers():
    model = nn.Sequential(nn.Affine(300, 1000, generator=0), nn.BatchNorm(1000))
    plain, adam = (nn.summary(model, (300,), batch=4, optimizer=kind).step for kind in (None, optim.Adam))
    learned = 4 * (300_000 + 1000 + 2000)
    assert plain.parameters == adam.parameters == learned + 4 * 2000 + 8
    assert plain.state == 0
    assert adam.state == pytest.approx(2 * learned, rel=0.01)
    assert adam.peak > plain.peak > plain.parameters + learned


def test_grows_with_the_batch():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, generator=0), nn.ReLU())
    peaks = [nn.summary(model, (3, 16, 16), batch=n).step.peak for n in (1, 100, 10_000)]
    assert peaks[2] - peaks[1] > 9000 * 2 * 4 * 8 * 14 * 14             # what the two layers give


def test_the_line_below_the_table():
    text = str(nn.summary(nn.Affine(1000, 1000, generator=0), (1000,), batch=1, optimizer=optim.Adam))
    assert text.splitlines()[-1].startswith("a training step of 1: about ")
    assert text.splitlines()[-1].endswith("at its peak, with 3.8 MiB of parameters, 7.6 MiB of optimizer, 3.9 KiB of minibatch")
    assert "training step" not in str(nn.summary(nn.Affine(4, 4), (4,)))


def test_the_model_is_left_as_it_was():
    model = nn.Sequential(nn.Affine(4, 4, generator=0), nn.BatchNorm(4), nn.Dropout(generator=0))
    seen = []
    model[0].register_forward_hook(lambda *_: seen.append(1))
    state = model.state_dict()
    nn.summary(model, (4,), batch=8, optimizer=momentum)
    assert len(seen) == 1                                               # by the table
    assert all(p.grad is None for p in model.parameters())
    for path, x in model.state_dict().items():
        np.testing.assert_array_equal(x, state[path])


def test_tracing_goes_on_where_it_was_on():
    tracemalloc.start()
    try:
        nn.summary(nn.Affine(4, 4), (4,), batch=8)
        assert tracemalloc.is_tracing()
    finally:
        tracemalloc.stop()
    nn.summary(nn.Affine(4, 4), (4,), batch=8)
    assert not tracemalloc.is_tracing()


def test_other_models():
    ids = nn.Embedding(100, 8, generator=0)
    assert nn.summary(ids, (5,), dtype="int64", batch=4).step.peak > ids.w.data.nbytes
    frozen = nn.Affine(4, 4).requires_grad_(False)
    assert nn.summary(frozen, (4,), batch=4).step.peak > 0
    assert nn.summary(nn.ReLU(), (4,), batch=4).step.parameters == 0
    elsewhere = nn.Affine(4, 4).to("strict:0")
    assert nn.summary(elsewhere, (4,), batch=4).step.peak > 0
    assert elsewhere.w.device == "strict:0"


@pytest.mark.parametrize("batch", [0, -1, 2.5, True])
def test_a_batch_that_makes_no_sense(batch):
    with pytest.raises(ArgumentError, match="batch"):
        nn.summary(nn.Affine(4, 4), (4,), batch=batch)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(("name", "shape", "batch", "optimizer"), [
    ("mlp", (1, 8, 8), 500, momentum), ("lenet", (1, 8, 8), 200, optim.Adam), ("cnn", (3, 8, 8), 30, momentum)])
def test_on_a_device_it_is_the_device_s_memory(name, shape, batch, optimizer, dtype):
    """Also of 16 bits, where weights are float32: what is copied in float32 on a CPU is not counted."""
    emulated = pytest.importorskip("emulated")
    if emulated.WHY_NOT:
        pytest.skip(emulated.WHY_NOT)
    device = "emulated:0"

    def make():
        return models.create(name, input_shape=shape, classes=10, generator=0).to(device=device)

    def loss(outputs, x):
        return F.softmax_cross_entropy(outputs, backend.asarray(np.zeros(len(x), np.int64), device))

    with kernels.using("reference"):                    # which is quicker here; what is counted is what it takes
        with backend.watched(device) as now:
            model = make()
            made = optimizer(model)
            x = backend.asarray(np.zeros((batch, *shape), dtype), device)
            for _ in range(2):
                made.zero_grad()
                outputs = model(x)
                now(most=True)
                loss(outputs, x).backward()
                del outputs
                made.step()
            real = now(most=True)
        found = nn.summary(model, shape, dtype, batch=batch, optimizer=optimizer, loss=loss).step
    assert found.peak == pytest.approx(real, rel=0.15)
    assert found.parameters == sum(p.data.nbytes for p in model.parameters())
    assert found.minibatch == x.nbytes
    assert batch - 1 <= found.most(found.peak) <= batch + 1 and found.most(found.parameters) == 0
