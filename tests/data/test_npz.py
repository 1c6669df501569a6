""".npz files: what is taken, and everything that can be wrong with them."""

import zipfile

import numpy as np
import pytest
from datafiles import message

from minidl.data import load
from minidl.errors import DataError

X, Y = np.arange(10 * 4 * 5, dtype=np.uint8).reshape(10, 4, 5), np.arange(10) % 3


@pytest.fixture
def save(tmp_path):
    def save(**arrays):
        np.savez(tmp_path / "pets.npz", **arrays)
        return tmp_path / "pets.npz"
    return save


def whole(**changes):
    arrays = {"x_train": X, "y_train": Y, "x_test": X[:3], "y_test": Y[:3], **changes}
    return {key: value for key, value in arrays.items() if value is not None}


def test_four_arrays(save):
    train, test = load(save(**whole()))
    assert train.x.shape == (10, 1, 4, 5) and test.x.shape == (3, 1, 4, 5)
    assert train.name == "pets" and train.classes == ("0", "1", "2") and train.peak == 255
    np.testing.assert_array_equal(train.x[:, 0], X)
    assert train.y.tolist() == Y.tolist() and train.y.dtype == np.int64


@pytest.mark.parametrize("shape", [(10, 3, 4, 5), (10, 20)])
def test_images_with_channels_and_vectors(save, shape):
    x = np.zeros(shape)
    train, _ = load(save(**whole(x_train=x, x_test=x[:3])))
    assert train.x.shape == shape and train.peak == 1


def test_class_names_are_kept(save):
    names = np.array(["cat", "dog", "newt", "owl"])
    train, test = load(save(**whole(classes=names)))
    assert train.classes == test.classes == ("cat", "dog", "newt", "owl")


def test_two_arrays_are_split(save):
    path = save(x=X, y=Y)
    train, test = load(path)
    assert (len(train), len(test)) == (8, 2)
    assert sorted([*train.x[:, 0, 0, 0], *test.x[:, 0, 0, 0]]) == sorted(X[:, 0, 0])
    np.testing.assert_array_equal(load(path)[1].x, test.x)


def test_other_keys_are_not_even_read(save):
    objects = np.array([{"a": 1}], dtype=object)
    assert len(load(save(**whole(notes=objects)))[0]) == 10


@pytest.mark.parametrize("key", ["x_train", "y_test", "classes"])
def test_objects_are_never_unpickled(tmp_path, save, key):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "exploded"), "w"))

    bombs = np.array([Bomb()] * 10, dtype=object)
    with pytest.raises(DataError, match=f"key: {key}") as raised:
        load(save(**whole(**{key: bombs})))
    assert "Python objects are not read" in message(raised) and not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("missing", ["x_train", "y_train", "x_test", "y_test"])
def test_missing_keys(save, missing):
    with pytest.raises(DataError, match="keys are not those") as raised:
        load(save(**whole(**{missing: None})))
    assert "expected: x_train, y_train, x_test, y_test; or x, y" in message(raised)


def test_half_of_each_kind_is_refused(save):
    with pytest.raises(DataError, match="keys are not those"):
        load(save(x=X, y=Y, x_test=X, y_test=Y))


@pytest.mark.parametrize(("changes", "says"), [
    ({"y_train": Y[:9]}, "x_train has 10 samples, y_train has 9"),
    ({"x_test": X[:3, :2]}, "do not go together"),
    ({"x_test": X[:3] / 255}, "do not go together"),
    ({"x_train": X[:, None, None]}, "x_train has a shape"),
    ({"x_train": X[0, 0]}, "x_train has a shape"),
    ({"x_test": X[:0], "y_test": Y[:0]}, "x_test has a shape"),
    ({"x_train": X.astype(complex)}, "x_train does not hold real numbers found: complex128"),
    ({"x_train": np.full(X.shape, "a")}, "x_train does not hold real numbers"),
    ({"x_train": np.zeros((10, 8, 8, 3))}, "channels last"),
    ({"x_train": np.where(np.arange(10)[:, None] == 4, np.nan, 0.5)}, "not finite file: FILE index: (4, 0) found: nan"),
    ({"y_train": Y.astype(float)}, "y_train does not hold class ids found: float64"),
    ({"y_train": np.eye(10)}, "y_train does not hold class ids"),
    ({"y_train": np.eye(10, dtype=int)}, "one-hot"),
    ({"y_train": Y[:, None]}, "y.ravel()"),
    ({"y_train": Y - 1}, "y_train has a label that is no class file: FILE index: 0 found: -1"),
    ({"y_test": Y[:3] + 1}, "y_test has a label that is no class file: FILE index: 2 found: 3 expected: 0 to 2"),
    ({"y_train": Y + 10**9}, "y_train has a label that is no class"),
    ({"classes": np.array(["cat", "dog"])}, "found: 2 expected: 0 to 1"),
    ({"classes": np.array([1, 2, 3])}, "classes does not hold names"),
])
def test_arrays_that_do_not_fit(save, changes, says):
    path = save(**whole(**changes))
    with pytest.raises(DataError) as raised:
        load(path)
    text = message(raised).replace(f"file: {path} ", "").replace(str(path), "FILE")
    assert says.replace("file: FILE ", "") in text


def test_damaged_files(tmp_path, save):
    content = save(**whole()).read_bytes()
    path = tmp_path / "damaged.npz"
    for length in (0, 1, 4, 30, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(DataError, match="cannot be read") as raised:
            load(path)
        assert f"file: {path}" in message(raised)
    at = content.index(X.tobytes())
    path.write_bytes(content[:at] + b"\xff" + content[at + 1:])
    with pytest.raises(DataError, match=r"Bad CRC-32"):
        load(path)


def test_a_member_that_is_no_array(tmp_path, save):
    with zipfile.ZipFile(save(**whole(x_test=None)), "a") as archive:
        archive.writestr("x_test.npy", b"just bytes")
    with pytest.raises(DataError, match="key: x_test"):
        load(tmp_path / "pets.npz")


def test_other_files_under_the_name(tmp_path):
    path = tmp_path / "one.npz"
    with path.open("wb") as file:
        np.save(file, X)
    with pytest.raises(DataError, match="one array, not an archive"):
        load(path)
    path.write_text("hello")
    with pytest.raises(DataError, match="cannot be read"):
        load(path)
