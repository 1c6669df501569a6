"""The update rules against their formulas, written out in NumPy."""

import numpy as np
import pytest

import strict  # noqa: F401   makes the strict device known
from minidl import backend, nn, optim
from minidl.errors import ArgumentError
from minidl.kernels import reference_updates

STEPS = 20


def sgd(w, gradients, lr, momentum=0.0, nesterov=False, weight_decay=0.0):
    v = np.zeros_like(w)
    for g in gradients:
        g = g + weight_decay * w
        v = momentum * v + g
        w = w - lr * (g + momentum * v if nesterov else v)
    return w


def adam(w, gradients, lr=0.001, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0):
    m = v = np.zeros_like(w)
    for t, g in enumerate(gradients, 1):
        g = g + weight_decay * w
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g ** 2
        w = w - lr * (m / (1 - beta1 ** t)) / (np.sqrt(v / (1 - beta2 ** t)) + eps)
    return w


def adamw(w, gradients, lr=0.001, weight_decay=0.01, **options):
    gradients = list(gradients)
    for last in range(len(gradients)):                      # each update is Adam's, on a weight that has shrunk before it
        before, after = (adam(np.zeros_like(w), gradients[:n], lr, **options) for n in (last, last + 1))
        w = w * (1 - lr * weight_decay) + (after - before)
    return w


RULES = [
    (optim.SGD, sgd, {"lr": 0.1}),
    (optim.SGD, sgd, {"lr": 0.1, "weight_decay": 0.1}),
    (optim.SGD, sgd, {"lr": 0.1, "momentum": 0.9}),
    (optim.SGD, sgd, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}),
    (optim.SGD, sgd, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    (optim.Adam, adam, {}),
    (optim.Adam, adam, {"lr": 0.1, "beta1": 0.8, "beta2": 0.9, "eps": 0.01, "weight_decay": 0.1}),
    (optim.AdamW, adamw, {}),
    (optim.AdamW, adamw, {"lr": 0.1, "beta1": 0.8, "beta2": 0.9, "eps": 0.01, "weight_decay": 0.1}),
]
NAMES = [f"{kind.__name__} {' '.join(options)}" for kind, _, options in RULES]


@pytest.mark.parametrize("kind, formula, options", RULES, ids=NAMES)
class TestRule:
    def run(self, kind, options, dtype="float64", device="cpu", size=6):
        random = np.random.default_rng(0)
        w, gradients = random.standard_normal(size), random.standard_normal((STEPS, size))
        parameter = nn.Parameter(backend.asarray(w.astype(dtype), device))
        optimizer = kind({"w": parameter}, **options)
        data = parameter.data
        for g in gradients:
            parameter.grad = backend.asarray(g.astype(dtype), device)
            optimizer.step()
        assert parameter.data is data, "an update happens in place"
        return backend.to_numpy(parameter.data), w, gradients

    def test_is_its_formula(self, kind, formula, options):
        found, w, gradients = self.run(kind, options)
        np.testing.assert_allclose(found, formula(w, gradients, **options), rtol=1e-12)

    def test_float32_stays_float32(self, kind, formula, options):
        found, w, gradients = self.run(kind, {name: np.float64(x) if isinstance(x, float) else x for name, x in options.items()}, "float32")
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, formula(w, gradients, **options), rtol=1e-4, atol=1e-5)

    def test_runs_on_the_strict_device(self, kind, formula, options):
        found, w, gradients = self.run(kind, options, device="strict:0")
        np.testing.assert_allclose(found, formula(w, gradients, **options), rtol=1e-12)

    def test_a_large_array_in_pieces_is_the_same_to_the_bit(self, kind, formula, options, monkeypatch):
        whole, _, _ = self.run(kind, options, "float32", size=1000)
        monkeypatch.setattr(reference_updates, "PIECE", 64)
        pieces, _, _ = self.run(kind, options, "float32", size=1000)
        np.testing.assert_array_equal(pieces, whole)

    def test_the_gradient_is_not_written_to(self, kind, formula, options):
        parameter, g = nn.Parameter(np.ones(3)), np.array([1.0, 2.0, 3.0])
        optimizer = kind({"w": parameter}, **options)
        parameter.grad = g
        optimizer.step()
        np.testing.assert_array_equal(g, [1, 2, 3])

    def test_weights_in_another_memory_order_and_single_numbers(self, kind, formula, options):
        for w in (np.asfortranarray(np.arange(6.0).reshape(2, 3)), np.array(2.0)):
            parameter = nn.Parameter(w.copy(order="K"))
            optimizer = kind({"w": parameter}, **options)
            parameter.grad = np.ones(w.shape)
            optimizer.step()
            np.testing.assert_allclose(parameter.data, formula(w, [np.ones(w.shape)], **options), rtol=1e-12)


@pytest.mark.parametrize("make, message", [
    (lambda model: optim.SGD(model, -1), "SGD: lr is -1, and must be a number of at least 0"),
    (lambda model: optim.SGD(model, None), "SGD: lr is None"),
    (lambda model: optim.SGD(model, 0.1, momentum=1), "SGD: momentum is 1, and must be a number of at least 0 and less than 1"),
    (lambda model: optim.SGD(model, 0.1, weight_decay=-0.1), "SGD: weight_decay is -0.1"),
    (lambda model: optim.SGD(model, 0.1, nesterov=True), "nesterov means nothing without momentum"),
    (lambda model: optim.SGD(model, lambda step: -1.0), "SGD: lr is -1.0"),
    (lambda model: optim.Adam(model, beta2=1.0), "Adam: beta2 is 1.0"),
    (lambda model: optim.AdamW(model, eps=float("nan")), "AdamW: eps is nan"),
    (lambda model: optim.SGD(model, 0.1, groups={"w": {"momentum": 2}}), "SGD: momentum is 2"),
])
def test_an_option_that_makes_no_sense_is_an_error(make, message):
    with pytest.raises(ArgumentError, match=message):
        make(nn.Affine(2, 2))
