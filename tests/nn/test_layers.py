"""Every layer: its numbers, its gradients, float32, the strict device, copies and state; drawn by the base class."""

import numpy as np
import pytest

from cases import LayerCase
from minidl import nn


class TestAffine(LayerCase):
    layers = ("Affine",)

    def make(self, generator):
        return nn.Affine(3, 4, generator=generator)

    def inputs(self, draw):
        return draw.array(draw.choice((2, 3), (2, 5, 3), (3,)))

    def expected(self, layer, x):
        return x @ layer.w.data + layer.b.data


class TestActivatedAffine(LayerCase):
    def make(self, generator):
        return nn.Affine(3, 2, bias=False, activation="tanh", generator=generator)

    def inputs(self, draw):
        return draw.array((4, 3))

    def expected(self, layer, x):
        return np.tanh(x @ layer.w.data)


class TestConv2d(LayerCase):
    layers = ("Conv2d",)

    def make(self, generator):
        return nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=1, groups=2, activation="sigmoid", generator=generator)

    def inputs(self, draw):
        return draw.images(2)


class TestConvTranspose2d(LayerCase):
    layers = ("ConvTranspose2d",)

    def make(self, generator):
        return nn.ConvTranspose2d(2, 4, 3, stride=2, padding=1, output_padding=1, groups=2, generator=generator)

    def inputs(self, draw):
        return draw.images(2)


class TestEmbedding(LayerCase):
    layers = ("Embedding",)

    def make(self, generator):
        return nn.Embedding(5, 3, generator=generator)

    def inputs(self, draw):
        return draw.labels(7, 5)

    def expected(self, layer, ids):
        return layer.w.data[ids]


class TestBatchNorm(LayerCase):
    layers = ("BatchNorm",)

    def make(self, generator):
        return nn.BatchNorm(3, eps=0.01)

    def inputs(self, draw):
        return draw.array(draw.choice((4, 3), (2, 3, 4, 2), (2, 3, 1, 1)))

    def expected(self, layer, x):
        y = np.empty_like(x)
        for c in range(3):
            numbers = x[:, c]
            y[:, c] = (numbers - numbers.mean()) / np.sqrt(numbers.var() + 0.01) * layer.gamma.data[c] + layer.beta.data[c]
        return y


class TestActivatedBatchNorm(TestBatchNorm):
    def make(self, generator):
        return nn.BatchNorm(3, eps=0.01, activation="tanh")

    def expected(self, layer, *inputs):
        y = super().expected(layer, *inputs)
        return None if y is None else np.tanh(y)


class TestLayerNorm(LayerCase):
    layers = ("LayerNorm",)

    def make(self, generator):
        return nn.LayerNorm((3, 4))

    def inputs(self, draw):
        return draw.array(draw.choice((2, 3, 4), (2, 5, 3, 4)))

    def expected(self, layer, x):
        mean, var = x.mean(axis=(-2, -1), keepdims=True), x.var(axis=(-2, -1), keepdims=True)
        return (x - mean) / np.sqrt(var + 1e-5) * layer.gamma.data + layer.beta.data


class TestDropout(LayerCase):
    layers = ("Dropout",)

    def make(self, generator):
        return nn.Dropout(0.4, generator=generator)

    def inputs(self, draw):
        return draw.array((6, 5))


class TestSequential(LayerCase):
    layers = ("Sequential",)

    def make(self, generator):
        return nn.Sequential(nn.Conv2d(1, 2, 3, generator=generator), nn.BatchNorm(2), nn.Tanh(), nn.Flatten(),
                             nn.Dropout(generator=generator))

    def inputs(self, draw):
        return draw.images(1)


class TestMaxPool2d(LayerCase):
    layers = ("MaxPool2d",)

    def make(self, generator):
        return nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True)

    def inputs(self, draw):
        return draw.images(distinct=True)


class TestAvgPool2d(LayerCase):
    layers = ("AvgPool2d",)

    def make(self, generator):
        return nn.AvgPool2d((3, 2), stride=2, padding=1, count_include_pad=False)

    def inputs(self, draw):
        return draw.images()


class TestGlobalAvgPool2d(LayerCase):
    layers = ("GlobalAvgPool2d",)

    def make(self, generator):
        return nn.GlobalAvgPool2d()

    def inputs(self, draw):
        return draw.images()

    def expected(self, layer, x):
        return x.mean(axis=(2, 3))


class TestFlatten(LayerCase):
    layers = ("Flatten",)

    def make(self, generator):
        return nn.Flatten()

    def inputs(self, draw):
        return draw.images()

    def expected(self, layer, x):
        return x.reshape(len(x), -1)


class Activation(LayerCase):
    """One that acts on each number, or along an axis."""

    def inputs(self, draw):
        return draw.array((3, 4), distinct=True)


class TestReLU(Activation):
    layers = ("ReLU",)

    def make(self, generator):
        return nn.ReLU()

    def expected(self, layer, x):
        return np.maximum(x, 0)


class TestLeakyReLU(Activation):
    layers = ("LeakyReLU",)

    def make(self, generator):
        return nn.LeakyReLU(0.2)

    def expected(self, layer, x):
        return np.where(x > 0, x, 0.2 * x)


class TestELU(Activation):
    layers = ("ELU",)

    def make(self, generator):
        return nn.ELU(0.5)

    def expected(self, layer, x):
        return np.where(x > 0, x, 0.5 * (np.exp(x) - 1))


class TestGELU(Activation):
    layers = ("GELU",)

    def make(self, generator):
        return nn.GELU(approximate=True)

    def expected(self, layer, x):
        return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x ** 3)))


class TestSigmoid(Activation):
    layers = ("Sigmoid",)

    def make(self, generator):
        return nn.Sigmoid()

    def expected(self, layer, x):
        return 1 / (1 + np.exp(-x))


class TestTanh(Activation):
    layers = ("Tanh",)

    def make(self, generator):
        return nn.Tanh()

    def expected(self, layer, x):
        return np.tanh(x)


class TestSoftplus(Activation):
    layers = ("Softplus",)

    def make(self, generator):
        return nn.Softplus()

    def expected(self, layer, x):
        return np.log(1 + np.exp(x))


class TestSoftmax(Activation):
    layers = ("Softmax",)

    def make(self, generator):
        return nn.Softmax(axis=0)

    def expected(self, layer, x):
        return np.exp(x) / np.exp(x).sum(axis=0)


class TestLogSoftmax(Activation):
    layers = ("LogSoftmax",)

    def make(self, generator):
        return nn.LogSoftmax()

    def expected(self, layer, x):
        return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


LAYERS = {name: thing for name, thing in vars(nn).items() if isinstance(thing, type) and issubclass(thing, nn.Module)}


@pytest.mark.parametrize("name", sorted(LAYERS.keys() - {"Module"}))
def test_every_layer_has_a_case(name):
    cases = [case for case in globals().values() if isinstance(case, type) and issubclass(case, LayerCase)]
    assert any(name in case.layers for case in cases), f'write a LayerCase with layers = ("{name}",)'
