"""Updates of all parameters in one launch, on the emulated GPU and on a real one: what they give, and that nothing else has changed."""

import numpy as np
import pytest

import emulated
from devices import GPUS
from minidl import backend, nn, optim
from minidl.profiling import Profile

KINDS = {
    "sgd": lambda model: optim.SGD(model, lr=optim.cosine(0.1, 5), momentum=0.9, nesterov=True, weight_decay=0.1,
                                   groups={"*.b": {"weight_decay": 0.0}, "1.*": {"momentum": 0.0, "nesterov": False}}),
    "adam": lambda model: optim.Adam(model, lr=0.1, weight_decay=0.1),
    "adamw": lambda model: optim.AdamW(model, lr=0.1, groups={"0.w": {"weight_decay": 0.5}}),
}

pytestmark = pytest.mark.parametrize("device", GPUS or [pytest.param("", marks=pytest.mark.skip(reason=emulated.WHY_NOT))])


def model_on(device):
    model = nn.Sequential(nn.Affine(70, 80, generator=0), nn.Affine(80, 3, generator=1)).to(device=device)
    model[1].b.requires_grad = False
    return model


def give_gradients(model, step, device):
    rng = np.random.default_rng(step)
    for p in model.parameters():
        g = rng.normal(size=p.shape).astype(p.dtype)
        p.grad = backend.asarray(g, device) if p.requires_grad else None
    model[0].w.grad = backend.asarray(rng.normal(size=(80, 70)).astype("float32"), device).T       # not stored in order


def state(model, optimizer):
    return {name: backend.to_numpy(x) for name, x in {**model.state_dict(), **optimizer.state_dict()}.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_as_on_the_cpu(kind, device):
    found = []
    for where in ("cpu", device):
        model = model_on(where)
        optimizer = KINDS[kind](model)
        for step in range(4):
            give_gradients(model, step, where)
            optimizer.step()
        found.append(state(model, optimizer))
    for name, x in found[0].items():
        np.testing.assert_allclose(x, found[1][name], rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_as_one_after_the_other(kind, device):
    found = []
    for together in (True, False):
        model = model_on(device)
        optimizer, versions = KINDS[kind](model), [p.version for p in model.parameters()]
        for step in range(2):
            give_gradients(model, step, device)
            before = emulated.launches() if not emulated.WHY_NOT else 0
            if together:
                optimizer.step()
                assert not device.startswith("emulated") or emulated.launches() == before + 1
            else:
                options = optimizer.begin()
                for path, p in optimizer.parameters.items():
                    if p.grad is not None:
                        optimizer.update_one(path, p.grad.data, options)
        found.append(state(model, optimizer))
        assert [p.version - before for p, before in zip(model.parameters(), versions)] == [2, 2, 2, 0]
    for name, x in found[0].items():
        np.testing.assert_array_equal(x, found[1][name], err_msg=name)


def test_a_rule_of_ones_own_updates_one_after_the_other(device):
    class Signs(optim.SGD):
        def update(self, w, g, state, t, **options):
            w -= options["lr"] * backend.of(g).sign(g)

    model = model_on(device)
    before = backend.to_numpy(model[1].w.data).copy()
    give_gradients(model, 0, device)
    Signs(model, lr=0.5).step()
    np.testing.assert_allclose(abs(backend.to_numpy(model[1].w.data) - before), 0.5, rtol=1e-5)


def test_one_row_of_a_profile(device):
    model = model_on(device)
    optimizer = optim.SGD(model, lr=0.1, momentum=0.9)
    give_gradients(model, 0, device)
    with Profile() as profile:
        optimizer.step()
    (row,) = [event for event in profile.events() if event.category == "update"]
    assert row.bytes == 5 * 4 * (70 * 80 + 80 + 80 * 3)         # w, g and v are read, w and v written


def test_the_norm_of_all_gradients_is_read_once(device, monkeypatch):
    model, reads = model_on(device), []
    give_gradients(model, 0, device)
    wanted = np.sqrt(sum((backend.to_numpy(p.grad.data).astype(float) ** 2).sum() for p in model.parameters() if p.grad is not None))
    real = backend.to_numpy
    monkeypatch.setattr(backend, "to_numpy", lambda x: reads.append(x) or real(x))
    assert optim.clip_grad_norm(model, 0.5) == pytest.approx(wanted, rel=1e-6)
    assert len(reads) == 1
    assert np.sqrt(sum((real(p.grad.data) ** 2).sum() for p in model.parameters() if p.grad is not None)) == pytest.approx(0.5, rel=1e-4)
