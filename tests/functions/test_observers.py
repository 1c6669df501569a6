"""What K-FAC stands on: second moments of the inputs and output gradients of affine and convolution layers, from an observer alone."""

import numpy as np
import pytest

import minidl
from minidl import Tensor
from minidl import functions as F
from minidl.autograd import observe
from minidl.kernels import im2col

X = np.random.default_rng(0).standard_normal((4, 2, 5, 5))
LABELS = np.array([0, 2, 1, 1])


class Moments:
    """Sums of x^T x and of gy^T gy over examples and positions, by the name of a layer's weights.

    draw: gives the gradient by the logits for targets drawn from the distribution that they predict. With it, a pass of its own comes
    before the ordinary one, and the sums of that pass are in `sampled`.
    """

    def __init__(self, weights, draw=None):
        self.weights, self.draw, self.sums, self.calls = weights, draw, {}, []
        for w in weights.values():
            w.register_observer(self)

    def wants(self):
        return True

    def before_backward(self, loss, seed):
        if self.draw is not None:
            told = F.distribution(loss)
            self.seed = self.draw(told)
            observe(told.logits, self.seed, [self])
            self.sampled, self.sums = self.sums, {}

    def see(self, x, gy, op):
        name = next(name for name, w in self.weights.items() if w is op.argument("w"))
        if x.ndim == 4:
            x = im2col(x, op.function.window).swapaxes(1, 2).reshape(-1, op.argument("w").data[0].size)
            gy = np.moveaxis(gy, 1, -1).reshape(-1, gy.shape[1])
        self.calls.append(name)
        before = self.sums.get(name, (0, 0))
        self.sums[name] = before[0] + x.T @ x, before[1] + gy.T @ gy


def draw_classes(told):
    """softmax - one-hot rows that are drawn from it."""
    assert told.kind == "categorical"
    p = F.softmax(told.logits.data, 1)
    return p - np.eye(p.shape[1])[(p.cumsum(1) < np.random.default_rng(1).random((len(p), 1))).sum(1)]


def draw_normal(told):
    """A target is the output and normal noise, so the gradient is the noise."""
    assert told.kind == "gaussian"
    return np.random.default_rng(3).standard_normal(told.logits.shape)


@pytest.fixture
def weights():
    random = np.random.default_rng(2)
    shapes = {"filters": (2, 2, 3, 3), "channels": (2,), "hidden": (50, 50), "last": (50, 3), "b": (3,)}
    return {name: Tensor(random.standard_normal(shape) * 0.3, requires_grad=True) for name, shape in shapes.items()}


def network(x, weights):
    """Two convolutions by the same filters, two affine layers by the same weights, and a last one."""
    for _ in range(2):
        x = F.conv2d(x, weights["filters"], weights["channels"], padding=1, activation="relu")
    x = F.flatten(x)
    for _ in range(2):
        x = F.affine(x, weights["hidden"], activation="relu")
    return F.affine(x, weights["last"], weights["b"])


def moments_one_example_after_another(x, weights, seeds):
    """The same sums from a network whose activations are not fused, so that every output before its activation can be asked for."""
    sums = {"filters": [0, 0], "hidden": [0, 0], "last": [0, 0]}
    for n in range(len(x)):
        layers, h = [], Tensor(x[n:n + 1])
        for name in ("filters", "filters", "hidden", "hidden", "last"):
            h = F.flatten(h) if name == "hidden" else h
            if name == "filters":
                z = F.conv2d(h, weights["filters"], weights["channels"], padding=1)
            else:
                z = F.affine(h, weights[name], weights["b"] if name == "last" else None)
            layers.append((name, h.data, z))
            h = F.relu(z)
        gradients = minidl.grad(z, [z for *_, z in layers], seeds[n:n + 1])
        for (name, inputs, _), g in zip(layers, gradients):
            if name == "filters":
                wide = np.pad(inputs[0], ((0, 0), (1, 1), (1, 1)))
                pairs = [(wide[:, i:i + 3, j:j + 3].ravel(), g.data[0, :, i, j]) for i in range(5) for j in range(5)]
            else:
                pairs = [(inputs[0], g.data[0])]
            for a, gy in pairs:
                sums[name][0] += np.outer(a, a)
                sums[name][1] += np.outer(gy, gy)
    return sums


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for name in wanted:
        for mine, theirs in zip(found[name], wanted[name]):
            np.testing.assert_allclose(mine, theirs, rtol=1e-9, atol=1e-12)


def moments_of(weights, draw=None):
    return Moments({name: weights[name] for name in ("filters", "hidden", "last")}, draw)


def test_moments_are_those_of_one_example_after_another(weights):
    observer = moments_of(weights)
    logits = network(X, weights)
    F.softmax_cross_entropy(logits, LABELS).backward()
    seeds = (F.softmax(logits.data, 1) - np.eye(3)[LABELS]) / len(X)
    assert_same(observer.sums, moments_one_example_after_another(X, weights, seeds))
    assert observer.calls == ["last", "hidden", "hidden", "filters", "filters"]


@pytest.mark.parametrize(("loss", "target", "draw"), [(F.softmax_cross_entropy, LABELS, draw_classes),
                                                      (F.mse, np.zeros((4, 3)), draw_normal)])
def test_targets_drawn_at_the_logits_before_the_pass(weights, loss, target, draw):
    """The mean over the batch plays no part in them, and the gradients stay those of the targets given."""
    loss(network(X, weights), target).backward()
    wanted = {name: w.grad.data for name, w in weights.items()}
    for w in weights.values():
        w.grad = None

    observer = moments_of(weights, draw)
    loss(network(X, weights), target).backward()
    assert_same(observer.sampled, moments_one_example_after_another(X, weights, observer.seed))
    assert len(observer.calls) == 2 * 5
    for name, w in weights.items():
        np.testing.assert_array_equal(w.grad.data, wanted[name])


def test_two_forward_passes_under_one_loss(weights):
    observer = moments_of(weights)
    first, second = network(X[:1], weights), network(X[1:], weights)
    (first.sum() + second.sum()).backward()
    assert_same(observer.sums, moments_one_example_after_another(X, weights, np.ones((4, 3))))
    assert len(observer.calls) == 2 * 5
