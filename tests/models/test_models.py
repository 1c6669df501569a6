"""Models: parameters counted by hand, every input size, learning, the registry."""

import copy
from itertools import pairwise

import numpy as np
import pytest

import strict  # noqa: F401   makes the strict device known
from minidl import backend, kernels, models, nn
from minidl import functions as F
from minidl.errors import ArgumentError, DefinitionError, ShapeError
from minidl.models import registry

SHAPES = ((1, 28, 28), (1, 8, 8), (3, 32, 32))


def images(shape, n=3):
    return np.random.default_rng(0).random((n, *shape)).astype(np.float32)


def affine(*widths):
    return sum(inputs * outputs + outputs for inputs, outputs in pairwise(widths))


def filters(*channels, kernel):
    return sum(inputs * outputs * kernel ** 2 + outputs for inputs, outputs in pairwise(channels))


@pytest.mark.parametrize("name, shape, parameters", [
    ("mlp", (1, 28, 28), affine(784, 512, 256, 10)),
    ("mlp", (1, 8, 8), affine(64, 512, 256, 10)),
    ("lenet", (1, 28, 28), 61_706),
    ("lenet", (1, 28, 28), filters(1, 6, 16, kernel=5) + affine(16 * 5 * 5, 120, 84, 10)),
    ("lenet", (3, 32, 32), filters(3, 6, 16, kernel=5) + affine(16 * 6 * 6, 120, 84, 10)),
    ("lenet", (1, 8, 8), filters(1, 16, 32, kernel=3) + affine(32 * 2 * 2, 120, 84, 10)),
    ("cnn", (3, 32, 32), filters(3, 32, 32, 64, 64, kernel=3) + affine(64 * 8 * 8, 256, 10)),
    ("cnn", (1, 8, 8), filters(1, 32, 32, 64, 64, kernel=3) + affine(64 * 2 * 2, 256, 10)),
    ("resnet18", (3, 32, 32), 11_173_962),          # what others count for this form
    ("autoencoder", (1, 28, 28), affine(784, 1000, 500, 250, 30, 250, 500, 1000, 784)),
])
def test_parameters(name, shape, parameters):
    model = models.create(name, input_shape=shape, classes=10, generator=0)
    assert sum(p.size for p in model.parameters()) == parameters


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", ["mlp", "lenet", "cnn", "resnet18"])
class TestClassifiers:
    def test_gives_a_number_a_class(self, name, shape):
        y = models.create(name, input_shape=shape, classes=7, generator=0)(images(shape))
        assert (y.shape, y.dtype) == ((3, 7), np.float32)
        assert np.isfinite(y.data).all()

    def test_every_parameter_gets_a_gradient(self, name, shape):
        model = models.create(name, input_shape=shape, classes=4, generator=0)
        F.softmax_cross_entropy(model(images(shape)), np.array([0, 1, 3])).backward()
        assert [path for path, p in model.named_parameters() if p.grad is None or not p.grad.data.any()] == []


@pytest.mark.parametrize("name", models.names())
class TestEvery:
    def make(self, name, **options):
        return models.create(name, input_shape=(1, 8, 8), classes=10, **options)

    def test_the_seed_decides_the_weights(self, name):
        a, b, c = (self.make(name, generator=seed).state_dict() for seed in (0, 0, 1))
        assert all((a[path] == b[path]).all() for path in a)
        assert any((a[path] != c[path]).any() for path in a)

    def test_layers_do_not_get_the_same_numbers(self, name):
        weights = [p.data.ravel()[:5].tolist() for path, p in self.make(name, generator=0).named_parameters() if path.endswith("w")]
        assert len({tuple(numbers) for numbers in weights}) == len(weights)

    def test_float64_throughout(self, name):
        model = self.make(name, generator=0, dtype="float64")
        assert {p.dtype for p in model.parameters()} == {np.dtype("float64")}
        assert model(images((1, 8, 8)).astype(np.float64)).dtype == np.float64

    def test_runs_on_the_strict_device(self, name):
        model = self.make(name, generator=0)
        there = copy.deepcopy(model).to("strict:0")
        x = images((1, 8, 8))
        y = there(backend.asarray(x, "strict:0"))
        assert y.device == "strict:0"
        with kernels.using("reference"):                        # the same kernels on both, or rounding would differ
            np.testing.assert_allclose(y.data.get(), model(x).data, rtol=1e-4, atol=1e-5)
        (y * y).sum().backward()
        assert {p.grad.device for p in there.parameters()} == {"strict:0"}

    def test_the_summary_counts_every_parameter(self, name):
        model = self.make(name, generator=0)
        found = nn.summary(model, (1, 8, 8))
        assert sum(row.parameters for row in found.rows) == found.parameters == sum(p.size for p in model.parameters())

    def test_a_shape_that_is_none_is_an_error(self, name):
        for shape in (64, (1, 0, 8), "mnist"):
            with pytest.raises(ArgumentError, match=f"{name}: input_shape is {shape!r}".replace("(", r"\(").replace(")", r"\)")):
                models.create(name, input_shape=shape, classes=10)


class TestSmallImages:
    @pytest.mark.parametrize("name, smallest", [("lenet", 4), ("cnn", 4), ("resnet18", 1)])
    def test_work_down_to_a_size_below_which_it_is_told(self, name, smallest):
        model = models.create(name, input_shape=(1, smallest, smallest), classes=2, generator=0)
        assert model(images((1, smallest, smallest))).shape == (3, 2)
        if smallest > 1:
            with pytest.raises(ArgumentError, match=f"{name}: images of 3 x 5 are too small"):
                models.create(name, input_shape=(1, 3, 5), classes=2)

    def test_images_that_are_not_square(self):
        for name in ("lenet", "cnn", "resnet18"):
            for shape in ((1, 28, 33), (2, 7, 10)):
                assert models.create(name, input_shape=shape, classes=2, generator=0)(images(shape)).shape == (3, 2)

    def test_another_shape_than_it_was_made_for_is_an_error(self):
        with pytest.raises(ShapeError, match=r"in layer classifier\.0 \(Affine\)"):
            models.create("lenet", input_shape=(1, 28, 28), classes=10)(images((1, 32, 32)))


class TestAutoencoder:
    def test_gives_the_flattened_input_back_as_logits(self):
        model = models.create("autoencoder", input_shape=(1, 8, 8), widths=(20, 5), generator=0)
        x = images((1, 8, 8))
        y = model(x)
        assert y.shape == (3, 64)
        F.binary_cross_entropy_with_logits(y, x.reshape(3, 64)).backward()
        assert all(p.grad is not None for p in model.parameters())

    def test_the_code_is_linear_and_so_is_the_output(self):
        model = models.create("autoencoder", input_shape=(6,), widths=(4, 2), generator=0)
        activations = [layer.activation for layer in [*model.encoder][1:] + [*model.decoder]]
        assert activations == ["tanh", None, "tanh", None]
        assert model.encoder(np.zeros((3, 6), np.float32)).shape == (3, 2)

    def test_widths_must_be_numbers_of_units(self):
        for widths in ((), (3, 0), 5, (2.5,)):
            with pytest.raises(ArgumentError, match="autoencoder: widths is"):
                models.create("autoencoder", input_shape=(6,), widths=widths)


class TestRegistry:
    def test_names(self):
        assert models.names() == ["autoencoder", "cnn", "lenet", "mlp", "resnet18"]

    def test_an_unknown_name_is_an_error_with_the_nearest(self):
        with pytest.raises(ArgumentError, match=r"no model 'resnet' \(nearest: 'resnet18'\)"):
            models.create("resnet", input_shape=(1, 8, 8), classes=10)

    def test_an_unknown_option_is_an_error_with_the_nearest(self):
        with pytest.raises(ArgumentError, match=r"mlp has no option 'width' \(nearest: 'widths'\)"):
            models.create("mlp", input_shape=(1, 8, 8), classes=10, width=3)

    def test_a_classifier_must_be_told_its_classes(self):
        with pytest.raises(ArgumentError, match="cnn is a classifier"):
            models.create("cnn", input_shape=(1, 8, 8))
        with pytest.raises(ArgumentError, match="outputs is 0"):
            models.create("cnn", input_shape=(1, 8, 8), classes=0)

    def test_own_models_can_be_registered(self, monkeypatch):
        monkeypatch.setattr(registry._models, "known", dict(registry._models.known))

        @models.register("tiny")
        def tiny(input_shape, generator, width=2):
            return nn.Affine(input_shape[0], width, generator=generator)
        assert repr(models.create("tiny", input_shape=(3,), classes=10, width=4)) == "Affine(3, 4)"
        with pytest.raises(DefinitionError, match="a model 'tiny' already"):
            models.register("tiny")(nn.Affine)
