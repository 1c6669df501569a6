"""The layers' kernels on a GPU where the table of cuda_cases.py does not reach: many pieces of a channel, wide rows, hashes beyond 32 bits,
what is called beside the twins, and what is asked for amiss."""

import numpy as np
import pytest

from minidl import backend
from minidl.kernels import Window, reference, reference_layers
from minidl.kernels.cuda import TWINS, elementwise, layer_norm, normalization, source
from test_cuda import every_device

pytestmark = every_device
SHAPES = [(1, 1, 1, 2), (33, 7), (1023, 40), (5, 4, 7, 7), (3, 5, 8, 8), (4, 1, 64, 65), (7, 3, 16), (64, 33, 3, 3), (600, 3)]
TOLERANCE = {"float64": 1e-13, "float32": 2e-6, "float16": 2.0**-10, "bfloat16": 2.0**-7}
every_dtype = pytest.mark.parametrize("dtype", TOLERANCE)


def numbers(*shape, dtype="float32", seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(backend.dtype_named(dtype))


def called(name, device, *args):
    """What a twin gives for NumPy arrays, as NumPy arrays."""
    found = TWINS[name](*(backend.asarray(x, device) if isinstance(x, np.ndarray) else x for x in args))
    assert found is not NotImplemented
    return [backend.to_numpy(y) for y in found] if isinstance(found, tuple) else backend.to_numpy(found)


def wide(*args):
    return [x.astype("float64") if isinstance(x, np.ndarray) else x for x in args]


def close(found, wanted, dtype):
    """Within a few roundings of the largest number."""
    wanted = wanted.astype("float64")
    np.testing.assert_allclose(found.astype("float64"), wanted, rtol=TOLERANCE[dtype], atol=20 * TOLERANCE[dtype] * np.abs(wanted).max())


@pytest.fixture
def many_pieces(monkeypatch):
    monkeypatch.setattr(normalization, "NUMBERS", 90)
    monkeypatch.setattr(normalization, "ROWS", 20)
    monkeypatch.setattr(layer_norm, "ROWS", 3)
    normalization.cut.cache_clear()
    yield
    normalization.cut.cache_clear()


@pytest.mark.usefixtures("many_pieces")
@every_dtype
@pytest.mark.parametrize("shape", SHAPES, ids=str)
class TestManyPieces:
    def test_batch_norm(self, shape, dtype, device):
        x, c, own = numbers(*shape, dtype=dtype), shape[1], "float64" if dtype == "float64" else "float32"
        gamma, beta, gmean, gvar = numbers(4, c, dtype=own, seed=1)
        found, wanted = called("batch_norm", device, x, gamma, beta, 0.1), reference_layers.batch_norm(*wide(x, gamma, beta), 0.1)
        for mine, theirs, kind in zip(found, wanted, (dtype, own, own)):
            assert mine.dtype == kind
            close(mine, theirs, kind)
        _, mean, var = found
        gy = numbers(*shape, dtype=dtype, seed=2)
        found = called("batch_norm_gradient", device, gy, x, gamma, mean, var, 0.1, gmean, gvar)
        wanted = reference_layers.batch_norm_gradient(*wide(gy, x, gamma, mean, var), 0.1, *wide(gmean, gvar))
        for mine, theirs, kind in zip(found, wanted, (dtype, own, own)):
            close(mine, theirs, kind)

    def test_channel_sums(self, shape, dtype, device):
        x = numbers(*shape, dtype=dtype)
        close(called("channel_sums", device, x), reference_layers.channel_sums(*wide(x)), "float64" if dtype == "float64" else "float32")

    def test_layer_norm_gradient(self, shape, dtype, device):
        x, gy, gamma = numbers(*shape, dtype=dtype), numbers(*shape, dtype=dtype, seed=1), numbers(shape[-1], seed=2)
        own = "float64" if dtype == "float64" else "float32"
        mean, var = x.astype(own).mean(axis=-1), x.astype(own).var(axis=-1)
        args = gy, x, gamma.astype(own), mean, var, 1, 0.1
        for mine, theirs, kind in zip(called("layer_norm_gradient", device, *args), reference_layers.layer_norm_gradient(*wide(*args)),
                                      (dtype, own, own)):
            close(mine, theirs, kind)


@every_dtype
@pytest.mark.parametrize("width", [512, 516, 4096, 9001])
def test_layer_norm_of_wide_rows(width, dtype, device):
    x, own = numbers(3, width, dtype=dtype), "float64" if dtype == "float64" else "float32"
    gamma, beta = numbers(2, width, dtype=own, seed=1)
    for mine, theirs, kind in zip(called("layer_norm", device, x, gamma, beta, 1, 1e-5),
                                  reference_layers.layer_norm(*wide(x, gamma, beta), 1, 1e-5), (dtype, own, own)):
        close(mine, theirs, kind)


def test_a_large_mean_does_not_swallow_the_variance(device):
    x = numbers(40, 3, 9, 9) + np.float32(3000)
    _, _, var = called("batch_norm", device, x, np.ones(3, "float32"), np.zeros(3, "float32"), 1e-5)
    np.testing.assert_allclose(var, x.astype("float64").var(axis=(0, 2, 3)), rtol=1e-6)


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("place", [0, 40])
def test_a_number_that_is_not_finite_spoils_its_channel_as_in_the_reference(place, bad, device):
    x = numbers(20, 2, 5)
    x[place // 5, 1, place % 5] = bad
    args = x, np.ones(2, "float32"), np.zeros(2, "float32"), 1e-5, "relu"
    with np.errstate(invalid="ignore"):
        wanted = reference_layers.batch_norm(*args)
    for mine, theirs in zip(called("batch_norm", device, *args), wanted):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)


@every_dtype
@pytest.mark.parametrize("classes", [512, 516, 1003, 20000])
def test_softmax_cross_entropy_of_many_classes(classes, dtype, device):
    x, labels = numbers(3, classes, dtype=dtype) * 3, np.array([0, classes - 1, 7])
    close(called("softmax_cross_entropy", device, x, labels, 0.1), reference_layers.softmax_cross_entropy(*wide(x), labels, 0.1),
          "float64" if dtype == "float64" else "float32")
    each = numbers(3, dtype="float64" if dtype == "float64" else "float32")
    close(called("softmax_cross_entropy_gradient", device, x, labels, 0.1, each),
          reference_layers.softmax_cross_entropy_gradient(*wide(x), labels, 0.1, *wide(each)), dtype)


@pytest.mark.parametrize("label", [-1, 5, 2**32])
def test_a_label_that_is_no_class_gives_nan(label, device):
    x, labels = numbers(3, 5), np.array([1, label, 4])
    losses = called("softmax_cross_entropy", device, x, labels, 0.0)
    gx = called("softmax_cross_entropy_gradient", device, x, labels, 0.0, np.ones(3, "float32"))
    np.testing.assert_array_equal(np.isnan(losses), [False, True, False])
    np.testing.assert_array_equal(np.isnan(gx), [[row == 1] * 5 for row in range(3)])


@pytest.mark.parametrize("window", [Window((17, 16), (3, 2), (8, 8)), Window((3, 3), (2, 2), (1, 1), (2, 2)),
                                    Window((5, 4), (1, 2), (2, 2))], ids=["more than 256", "gaps", "overlapping"])
@pytest.mark.parametrize("size", [(12, 16), (13, 15)], ids=str)
def test_pooling_with_other_windows(size, window, device):
    x = np.round(numbers(2, 3, *size))
    y, place = called("max_pool2d", device, x, window)
    for mine, theirs in zip((y, place), reference.max_pool2d(x, window)):
        assert mine.dtype == theirs.dtype
        np.testing.assert_array_equal(mine, theirs)
    gy = numbers(*y.shape)
    for name, *args in (("max_pool2d_scatter", gy, place, size, window), ("sum_pool2d_spread", gy, size, window),
                        ("max_pool2d_gather", x, place, window), ("sum_pool2d", x, window)):
        close(called(name, device, *args), getattr(reference, name)(*args), "float32")


@pytest.mark.parametrize("first", [0, 2**32 - 9, 2**32, 2**40 + 3])
def test_dropout_drops_the_same_as_on_a_cpu(first, device):
    x = numbers(3, 1000)
    y, mask = called("dropout", device, x, 0.3, 2**40 + 3, 2**33 + 12, 5, first)
    wanted, its_mask = reference_layers.dropout(x, 0.3, 2**40 + 3, 2**33 + 12, 5, first)
    np.testing.assert_array_equal(mask, its_mask)
    np.testing.assert_array_equal(y, wanted)


@pytest.mark.parametrize("dtype", ["uint32", "int32", "int64", "uint64"])
@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_step_of_dropout_may_lie_on_the_device(dtype, shape, device):
    mask = called("dropout", device, numbers(1000), 0.3, 7, np.full(shape, 99, dtype), 2)[1]
    np.testing.assert_array_equal(mask, reference_layers.dropout_mask(np, (1000,), 0.3, 7, 99, 2))
    np.testing.assert_array_equal(mask, reference_layers.dropout_mask(np, (1000,), 0.3, 7, np.full(shape, 99, dtype), 2))


@every_dtype
@pytest.mark.parametrize(("shape", "axis"), [((3, 5, 7, 3), 1), ((2, 8, 4, 4), 1), ((33, 7), 1), ((2, 3, 6), -1), ((5, 4097), -1)], ids=str)
def test_bias_and_activation(shape, axis, dtype, device):
    y, b = numbers(*shape, dtype=dtype), numbers(shape[axis], seed=1)
    wanted = y.astype("float64") + b.reshape([-1 if i == axis % len(shape) else 1 for i in range(len(shape))])
    there = backend.asarray(y, device)
    assert elementwise.bias_activation(there, backend.asarray(b, device), "sigmoid", axis) is there
    close(backend.to_numpy(there), reference_layers.activation(wanted, "sigmoid"), dtype)


@every_dtype
@pytest.mark.parametrize("to", TOLERANCE)
def test_cast(dtype, to, device):
    x = numbers(5001, dtype=dtype) * 3
    y = backend.to_numpy(elementwise.cast(backend.asarray(x, device), backend.dtype_named(to)))
    assert y.dtype == to
    close(y, x, "float32" if TOLERANCE[to] <= TOLERANCE[dtype] else to)


def test_numbers_that_begin_at_any_place(device):
    x = numbers(9000)
    for start in (0, 1, 3, 4):
        part = backend.asarray(x, device)[start:]
        np.testing.assert_allclose(backend.to_numpy(TWINS["activation"](part, "relu")), np.maximum(x[start:], 0))


def test_a_divisor_divides(device):
    random = np.random.default_rng(0)
    for d in (1, 2, 3, 7, 641, 2**30 + 1, 2**31 - 1, *random.integers(1, 2**31, 200).tolist()):
        _, m, s = source.divisor(d)
        for i in (0, d - 1, d, min(2 * d - 1, 2**31 - 1), 2**31 - 1, (2**31 - 1) // d * d, (2**31 - 1) // d * d - 1):
            assert i * int(m) >> (31 + s) == i // d
