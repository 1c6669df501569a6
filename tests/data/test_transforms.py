"""Transforms against the plainest loops, and the promises they make to the loader."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minidl import backend, kernels
from minidl.data import Compose, Dataset, HorizontalFlip, Normalise, RandomCrop, Shift, Transform
from minidl.data.transforms import rows
from minidl.errors import ArgumentError, DefinitionError, DtypeError, ShapeError

ALL = [Shift(2), Shift(0), RandomCrop(3), RandomCrop(0, size=3), RandomCrop(1, size=(9, 4), fill=0.5), HorizontalFlip(),
       Normalise(0.2, 0.5), Normalise([0.1, 0.2, 0.3], [1, 2, 3]), Compose(), Compose(RandomCrop(2), HorizontalFlip(), Normalise(0.5, 0.5))]
REPR = {"ids": repr}


def images(count=6, seed=0):
    return np.random.default_rng(seed).random((count, 3, 8, 7), dtype=np.float32)


@pytest.mark.parametrize("transform", ALL, **REPR)
def test_keeps_its_promises(transform):
    x = images()
    kept = x.copy()
    y = transform(x, np.random.default_rng(1))
    np.testing.assert_array_equal(x, kept)
    assert y.dtype == np.float32 and len(y) == len(x) and y.flags.c_contiguous
    np.testing.assert_array_equal(y, transform(x, np.random.default_rng(1)))
    assert eval(repr(transform)).__class__ is transform.__class__


@pytest.mark.parametrize("transform", ALL, **REPR)
@pytest.mark.parametrize("part", [slice(0, 2), slice(2, 6), slice(6, 6)])
def test_a_part_is_transformed_as_in_the_whole(transform, part):
    x = images()
    drawn = transform.draw(np.random.default_rng(2), len(x))
    np.testing.assert_array_equal(transform.apply(x[part], rows(drawn, part)), transform.apply(x, drawn)[part])


@pytest.mark.parametrize("transform", [t for t in ALL if not isinstance(t, Compose) or t.transforms], **REPR)
def test_the_result_is_not_the_argument(transform):
    x = images()
    assert not np.may_share_memory(transform(x, np.random.default_rng(0)), x)


@settings(derandomize=True, max_examples=30, deadline=None)
@given(pixels=st.integers(0, 9), height=st.integers(1, 6), width=st.integers(1, 6), fill=st.sampled_from([0.0, 0.25]),
       seed=st.integers(0, 99))
def test_shift_pixel_by_pixel(pixels, height, width, fill, seed):
    generator = np.random.default_rng(seed)
    x = generator.random((4, 2, height, width), dtype=np.float32)
    shift = Shift(pixels, fill)
    drawn = shift.draw(generator, 4)
    y = shift.apply(x, drawn)
    for n, c, i, j in np.ndindex(x.shape):
        down, right = drawn[n]
        inside = 0 <= i - down < height and 0 <= j - right < width
        assert y[n, c, i, j] == (x[n, c, i - down, j - right] if inside else fill)


def test_shift_goes_everywhere_equally_often():
    drawn = Shift(1).draw(np.random.default_rng(0), 9000)
    places, counts = np.unique(drawn, axis=0, return_counts=True)
    assert len(places) == 9 and drawn.min() == -1 and drawn.max() == 1
    assert counts.min() > 900 and counts.max() < 1100


@settings(derandomize=True, max_examples=30, deadline=None)
@given(padding=st.integers(0, 3), size=st.none() | st.integers(1, 5), seed=st.integers(0, 99))
def test_crop_is_a_window_of_the_padded_image(padding, size, seed):
    x = np.random.default_rng(seed).random((3, 2, 5, 6), dtype=np.float32)
    padded = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)), constant_values=0.5)
    y = RandomCrop(padding, size, fill=0.5)(x, np.random.default_rng(seed))
    height, width = (5, 6) if size is None else (size, size)
    assert y.shape == (3, 2, height, width)
    for image, whole in zip(y, padded):
        found = [(whole[:, i:i + height, j:j + width] == image).all()
                 for i in range(5 + 2 * padding - height + 1) for j in range(6 + 2 * padding - width + 1)]
        assert any(found)


def test_crop_reaches_every_corner():
    x = np.arange(9, dtype=np.float32).reshape(1, 1, 3, 3).repeat(2000, 0)
    corners = RandomCrop(0, size=2)(x, np.random.default_rng(0))[:, 0, 0, 0]
    assert np.unique(corners).tolist() == [0, 1, 3, 4]
    edge = np.array([[0.0, 0.0], [np.nextafter(1, 0), np.nextafter(1, 0)]])      # the least and the largest that can be drawn
    assert RandomCrop(0, size=2).apply(x[:2], edge)[:, 0, 0, 0].tolist() == [0, 4]


@pytest.mark.parametrize(("p", "expected"), [(0, 0), (1, 1), (0.25, 0.25)])
def test_flip(p, expected):
    x = images(400)
    y = HorizontalFlip(p)(x, np.random.default_rng(0))
    turned = np.array([(a == b[:, :, ::-1]).all() for a, b in zip(x, y)])
    same = np.array([(a == b).all() for a, b in zip(x, y)])
    assert (turned ^ same).all() and abs(turned.mean() - expected) < 0.06


@pytest.mark.parametrize("shape", [(50, 3, 4, 5), (2500, 1, 2, 2), (30, 4)])
def test_normalise_of_a_data_set(shape):
    x = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    data = Dataset(x, np.zeros(len(x), int))
    normalise = Normalise.of(data)
    axes = (0, *range(2, x.ndim))
    np.testing.assert_allclose(normalise.mean, (x / 255).mean(axes), atol=1e-6)
    np.testing.assert_allclose(normalise.std, (x / 255).std(axes), atol=1e-6)
    y = normalise(data[:][0], np.random.default_rng(0))
    assert y.dtype == np.float32
    np.testing.assert_allclose(y.mean(axes), 0, atol=1e-4)
    np.testing.assert_allclose(y.std(axes), 1, atol=1e-4)


def test_normalise_leaves_a_constant_channel_finite():
    data = Dataset(np.full((5, 2), 7, np.uint8), np.zeros(5, int))
    np.testing.assert_allclose(Normalise.of(data)(data[:][0], np.random.default_rng(0)), 0, atol=1e-6)


@pytest.mark.parametrize("wrong", [
    lambda: Shift(-1), lambda: Shift(1.5), lambda: Shift(True), lambda: RandomCrop(-1), lambda: RandomCrop(1, size=0),
    lambda: RandomCrop(1, size=(1, 2, 3)), lambda: HorizontalFlip(1.5), lambda: HorizontalFlip(-0.1), lambda: HorizontalFlip(float("nan")),
    lambda: Normalise(0, 0), lambda: Normalise(0, [1, -1]), lambda: Normalise(float("nan"), 1), lambda: Normalise([], 1),
    lambda: RandomCrop(1, size=11)(images(), np.random.default_rng(0)),
])
def test_wrong_arguments(wrong):
    with pytest.raises(ArgumentError):
        wrong()


def test_wrong_images():
    vectors = np.zeros((2, 5), np.float32)
    for transform in (Shift(1), RandomCrop(1), HorizontalFlip()):
        with pytest.raises(ShapeError, match=type(transform).__name__):
            transform(vectors, np.random.default_rng(0))
    with pytest.raises(ShapeError, match="x has 3 channels, mean has 2"):
        Normalise([0, 1], 1)(images(), np.random.default_rng(0))
    with pytest.raises(DtypeError, match="uint8"):
        Normalise(0.5, 1)(np.zeros((1, 1, 2, 2), np.uint8), np.random.default_rng(0))


def test_a_transform_without_apply_says_so():
    class Forgetful(Transform):
        pass

    with pytest.raises(DefinitionError, match="Forgetful has no method apply"):
        Forgetful()(images(), np.random.default_rng(0))


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("padding, size", [(0, (8, 7)), (3, (8, 7)), (2, (12, 11)), (1, (3, 9)), (0, (1, 1))])
def test_windows_by_a_cuda_kernel(padding, size, dtype):
    emulated = pytest.importorskip("emulated")
    if emulated.WHY_NOT:
        pytest.skip(emulated.WHY_NOT)
    generator = np.random.default_rng(0)
    x = images().astype(dtype)
    corners = generator.integers(0, np.array(x.shape[2:]) + 2 * padding - size, (len(x), 2), endpoint=True)
    before = emulated.launches()
    y = kernels.windows(backend.asarray(x, "emulated:0"), backend.asarray(corners, "emulated:0"), size, padding, 0.3)
    assert emulated.launches() == before + 1
    np.testing.assert_array_equal(y.get(), kernels.windows(x, corners, size, padding, 0.3))
