"""What layers do beside computing: weights drawn, options checked, statistics and masks kept."""

import math

import numpy as np
import pytest

import strict  # noqa: F401   makes the strict device known
from minidl import Tensor, grad, nn, no_grad
from minidl import functions as F
from minidl.errors import ArgumentError, DefinitionError, LabelError, ShapeError

LEARNED = {
    "Affine": (lambda **kw: nn.Affine(50, 40, **kw), (50, 40), 50),
    "Conv2d": (lambda **kw: nn.Conv2d(8, 6, (5, 3), groups=2, **kw), (6, 4, 5, 3), 60),
    "ConvTranspose2d": (lambda **kw: nn.ConvTranspose2d(8, 6, (5, 3), groups=2, **kw), (8, 3, 5, 3), 45),
}


@pytest.mark.parametrize("make, shape, fan_in", LEARNED.values(), ids=LEARNED)
class TestWeights:
    def test_he_normal_weights_and_zero_biases(self, make, shape, fan_in):
        layer = make(generator=0)
        assert layer.w.shape == shape
        assert layer.w.data.std() == pytest.approx(math.sqrt(2 / fan_in), rel=0.1)
        np.testing.assert_array_equal(layer.b.data, np.zeros(layer.outputs))

    def test_the_generator_decides(self, make, shape, fan_in):
        np.testing.assert_array_equal(make(generator=3).w.data, make(generator=np.random.default_rng(3)).w.data)

    def test_dtype_and_no_bias(self, make, shape, fan_in):
        layer = make(dtype="float64", bias=False)
        assert layer.w.dtype == np.float64
        assert layer.b is None
        assert list(layer.state_dict()) == ["w"]
        assert "bias=False" in repr(layer)

    def test_another_initialiser(self, make, shape, fan_in):
        np.testing.assert_array_equal(make(init=nn.init.ones).w.data, np.ones(shape))
        with pytest.raises(ArgumentError, match=r"the initialiser gave \(3,\), and was asked for"):
            make(init=lambda shape, generator, dtype: np.zeros(3))


@pytest.mark.parametrize("make, message", [
    (lambda: nn.Affine(0, 3), "Affine: inputs is 0, and must be an int of at least 1"),
    (lambda: nn.Affine(3, 2.5), "Affine: outputs is 2.5"),
    (lambda: nn.Affine(3, True), "Affine: outputs is True"),
    (lambda: nn.Affine(3, 2, activation="relu6"), "activation 'relu6'"),
    (lambda: nn.Conv2d(3, 4, 3, groups=2), "Conv2d: inputs=3 does not divide into groups=2"),
    (lambda: nn.Conv2d(4, 3, 3, groups=2), "Conv2d: outputs=3 does not divide into groups=2"),
    (lambda: nn.Conv2d(3, 4, 0), r"Conv2d: kernel is \(0, 0\), and must be at least 1"),
    (lambda: nn.Conv2d(3, 4, 3, padding=-1), r"Conv2d: padding is \(-1, -1\), and must be at least 0"),
    (lambda: nn.Conv2d(3, 4, (3, 3, 3)), "Conv2d: kernel is"),
    (lambda: nn.Conv2d(3, 4, 3, stride=1.5), "Conv2d: stride is 1.5"),
    (lambda: nn.ConvTranspose2d(3, 4, 3, stride=2, output_padding=2), "must be less than stride or dilation"),
    (lambda: nn.Embedding(5, 0), "Embedding: size is 0"),
    (lambda: nn.BatchNorm(3, momentum=1.5), "BatchNorm: momentum is 1.5"),
    (lambda: nn.BatchNorm(3, eps=-1), "BatchNorm: eps is -1"),
    (lambda: nn.BatchNorm(3, activation="softmax"), "BatchNorm: activation 'softmax' is not one that can be fused"),
    (lambda: nn.Conv2d(1, 1, 3, algorithm="winograt"), r"Conv2d: algorithm 'winograt' is not known \(nearest: 'winograd'\)"),
    (lambda: nn.ConvTranspose2d(1, 1, 3, algorithm="fast"), "ConvTranspose2d: algorithm 'fast' is not known"),
    (lambda: nn.LayerNorm(()), "LayerNorm: shape is empty"),
    (lambda: nn.LayerNorm((3, 0)), "LayerNorm: shape is 0"),
    (lambda: nn.Dropout(1), "Dropout: p is 1, and must be a number of at least 0 and less than 1"),
    (lambda: nn.Dropout(float("nan")), "Dropout: p is nan"),
    (lambda: nn.MaxPool2d(2, padding=2), r"MaxPool2d: padding \(2, 2\) is more than half of the kernel \(2, 2\)"),
    (lambda: nn.AvgPool2d(2, stride=0), r"AvgPool2d: stride is \(0, 0\)"),
    (lambda: nn.LeakyReLU(np.zeros(3)), "LeakyReLU: slope is array"),
    (lambda: nn.Softmax(1.5), "Softmax: axis is 1.5"),
])
def test_a_wrong_option_is_told_when_the_layer_is_made(make, message):
    with pytest.raises(ArgumentError, match=message):
        make()


@pytest.mark.parametrize("layer, shown", [
    (nn.Conv2d(3, 16, 3, stride=(2, 1), padding=1, activation="relu"),
     "Conv2d(3, 16, kernel=3, stride=(2, 1), padding=1, activation='relu')"),
    (nn.ConvTranspose2d(16, 3, (2, 4), 2, output_padding=1), "ConvTranspose2d(16, 3, kernel=(2, 4), stride=2, output_padding=1)"),
    (nn.MaxPool2d(2), "MaxPool2d(kernel=2)"),
    (nn.AvgPool2d(3, 2, count_include_pad=False), "AvgPool2d(kernel=3, stride=2, count_include_pad=False)"),
    (nn.BatchNorm(8, momentum=None), "BatchNorm(8, momentum=None)"),
    (nn.BatchNorm(8, activation="relu"), "BatchNorm(8, activation='relu')"),
    (nn.Conv2d(1, 2, 3, algorithm="fft"), "Conv2d(1, 2, kernel=3, algorithm='fft')"),
    (nn.ConvTranspose2d(1, 2, 3, algorithm="fft"), "ConvTranspose2d(1, 2, kernel=3, algorithm='fft')"),
    (nn.LayerNorm((3, 4)), "LayerNorm((3, 4))"),
    (nn.Embedding(10, 4), "Embedding(10, 4)"),
    (nn.Dropout(0.1), "Dropout(0.1)"),
    (nn.LeakyReLU(), "LeakyReLU(0.01)"),
    (nn.GELU(), "GELU()"),
])
def test_the_repr_shows_what_is_not_usual(layer, shown):
    assert repr(layer) == shown


class TestBatchNorm:
    X = np.array([[1.0, 10.0], [3.0, 10.0], [8.0, 40.0]], np.float32)

    def test_running_statistics_move_by_momentum_with_the_unbiased_variance(self):
        layer = nn.BatchNorm(2)
        layer(self.X)
        np.testing.assert_allclose(layer.running_mean, [0.4, 2.0], rtol=1e-6)               # 0.9 * 0 + 0.1 * mean
        np.testing.assert_allclose(layer.running_var, [0.9 + 1.3, 0.9 + 30], rtol=1e-6)     # 0.9 * 1 + 0.1 * (sum of squares / 2)
        assert layer.steps == 1
        assert layer.running_mean.dtype == np.float32

    def test_without_momentum_they_are_the_mean_over_all_batches(self):
        layer = nn.BatchNorm(2, momentum=None)
        for factor in (1, 2, 6):
            layer(self.X * np.float32(factor))
        np.testing.assert_allclose(layer.running_mean, [4 * 3, 20 * 3], rtol=1e-6)
        np.testing.assert_allclose(layer.running_var, np.array([13, 300]) * (1 + 4 + 36) / 3, rtol=1e-6)

    def test_evaluation_uses_them_and_leaves_them(self):
        layer = nn.BatchNorm(2, eps=0).eval()
        layer.running_mean, layer.running_var = np.array([1, 10], np.float32), np.array([4, 9], np.float32)
        np.testing.assert_allclose(layer(self.X).data, (self.X - [1, 10]) / [2, 3], rtol=1e-6)
        np.testing.assert_array_equal(layer.running_mean, [1, 10])
        assert layer.steps == 0

    def test_no_grad_in_training_still_moves_them(self):
        layer = nn.BatchNorm(2)
        with no_grad():
            layer(self.X)
        assert layer.steps == 1

    def test_images_count_every_position(self):
        layer = nn.BatchNorm(1, momentum=1)
        layer(self.X.reshape(1, 1, 2, 3))
        np.testing.assert_allclose(layer.running_var, self.X.var(ddof=1), rtol=1e-6)

    def test_one_number_a_channel_has_no_variance(self):
        with pytest.raises(ShapeError, match="one number a channel has no variance"):
            nn.BatchNorm(2)(self.X[:1])
        nn.BatchNorm(2).eval()(self.X[:1])

    def test_a_graph_of_evaluation_outlives_a_step_of_training(self):
        layer = nn.BatchNorm(2).eval()
        y = layer(self.X).sum()
        layer.train()(self.X)
        y.backward()
        np.testing.assert_allclose(layer.gamma.grad.data, self.X.sum(axis=0), rtol=1e-4)    # by the mean 0 and the variance 1 of then

    def test_other_channels_are_an_error(self):
        with pytest.raises(ShapeError, match=r"batch_norm: x has 2 channels, gamma has shape \(3,\)"):
            nn.BatchNorm(3)(self.X)


class TestDropout:
    X = np.ones((40, 25), np.float32)

    def test_zeros_a_fraction_and_scales_the_rest(self):
        y = nn.Dropout(0.2, generator=0)(self.X)
        assert set(np.unique(y)) == {np.float32(0), np.float32(1.25)}
        assert (y == 0).mean() == pytest.approx(0.2, abs=0.04)

    def test_evaluation_and_p_of_zero_do_nothing(self):
        assert nn.Dropout(0.5).eval()(self.X) is self.X
        assert nn.Dropout(0)(self.X) is self.X

    def test_each_pass_and_each_layer_drops_other_numbers(self):
        generator = np.random.default_rng(0)
        a, b = nn.Dropout(generator=generator), nn.Dropout(generator=generator)
        first, second, other = a(self.X), a(self.X), b(self.X)
        assert 0.4 < (first != second).mean() < 0.6
        assert 0.4 < (first != other).mean() < 0.6

    def test_a_resumed_run_drops_the_same_numbers(self):
        layer = nn.Dropout(generator=0)
        layer(self.X)
        resumed = nn.Dropout(generator=1)
        resumed.load_state_dict(layer.state_dict())
        np.testing.assert_array_equal(resumed(self.X), layer(self.X))

    def test_evaluation_does_not_count_as_a_pass(self):
        layer = nn.Dropout(generator=0)
        layer.eval()(self.X)
        assert layer.step == 0


class TestFused:
    @pytest.mark.parametrize("activation", ["relu", "sigmoid", "tanh"])
    def test_an_activation_inside_is_the_same_as_one_behind(self, activation):
        x = np.random.default_rng(0).standard_normal((2, 3, 5, 5)).astype(np.float32)
        fused, apart = nn.Conv2d(3, 4, 3, activation=activation, generator=0), nn.Conv2d(3, 4, 3, generator=0)
        y = getattr(F, activation)(apart(x))
        np.testing.assert_allclose(fused(x).data, y.data, rtol=1e-6)             # compiled kernels round in their own way
        fused(x).sum().backward()
        y.sum().backward()
        np.testing.assert_allclose(fused.w.grad.data, apart.w.grad.data, rtol=1e-5, atol=1e-6)


class TestSequential:
    def layers(self):
        return nn.Affine(2, 3, generator=0), nn.ReLU(), nn.Affine(3, 1, generator=1)

    def test_is_indexed_counted_and_gone_through_like_a_list(self):
        a, b, c = self.layers()
        model = nn.Sequential(a, b, c)
        assert len(model) == 3
        assert list(model) == [a, b, c]
        assert (model[0], model[-1]) == (a, c)

    def test_a_slice_shares_the_layers(self):
        a, b, c = self.layers()
        head = nn.Sequential(a, b, c)[1:]
        assert list(head) == [b, c]
        assert [path for path, _ in head.named_parameters()] == ["1.w", "1.b"]

    def test_layers_are_appended_and_replaced(self):
        a, b, c = self.layers()
        model = nn.Sequential(a).append(b)
        model[-1] = c
        assert list(model) == [a, c]

    def test_order_holds_beyond_ten(self):
        layers = [nn.ReLU() for _ in range(12)]
        assert list(nn.Sequential(*layers)) == layers

    def test_empty_gives_its_input(self):
        x = np.ones(2)
        assert nn.Sequential()(x) is x

    def test_an_index_that_is_not_there_is_an_error(self):
        model = nn.Sequential(*self.layers())
        for i in (3, -4):
            with pytest.raises(LabelError, match=f"there is no layer {i}, there are 3"):
                model[i]

    @pytest.mark.parametrize("wrong, hint", [
        (F.relu, r"nn\.ReLU\(\) for functions\.relu"), (nn.ReLU, r"an object of the class: ReLU\(\)"),
        ([nn.ReLU()], r"Sequential\(\*layers\)"), (None, "NoneType is no Module")])
    def test_what_is_no_module_is_an_error(self, wrong, hint):
        with pytest.raises(DefinitionError, match=hint):
            nn.Sequential(wrong)

    @pytest.mark.parametrize("activation", [nn.ReLU, nn.Sigmoid, nn.Tanh])
    @pytest.mark.parametrize("layer", [lambda: nn.Affine(5, 4, generator=0), lambda: nn.BatchNorm(5)])
    def test_an_activation_is_done_by_the_layer_before_it_and_gives_the_same(self, layer, activation, monkeypatch):
        x = Tensor(np.random.default_rng(0).standard_normal((6, 5)), requires_grad=True)
        first, calls = layer().to(dtype="float64"), []
        monkeypatch.setattr(activation, "forward", lambda self, x, forward=activation.forward: calls.append(1) or forward(self, x))
        apart, together = activation()(first(x)), nn.Sequential(first, activation())(x)
        assert len(calls) == 1
        np.testing.assert_allclose(together.data, apart.data, rtol=1e-14)
        np.testing.assert_allclose(*(grad((y * y).sum(), x)[0].data for y in (together, apart)), rtol=1e-12)

    def test_a_hook_sees_what_lies_between_a_layer_and_its_activation(self):
        x, seen = np.ones((2, 3)), []
        for i in (0, 1):
            model = nn.Sequential(nn.Affine(3, 3, init=lambda shape, *_, **__: -np.ones(shape), dtype="float64"), nn.ReLU())
            model[i].register_forward_hook(lambda layer, inputs, y: seen.append((inputs[0].data.max(), y.data.max())))
            model(Tensor(x))
        assert seen == [(1, -3), (-3, 0)]

    def test_a_layer_of_the_users_own_gets_its_input_alone(self):
        class Mine(nn.Affine):
            def forward(self, x):
                return super().forward(x)

        assert nn.Sequential(Mine(2, 2, dtype="float64"), nn.ReLU())(np.ones((1, 2))).data.min() >= 0
