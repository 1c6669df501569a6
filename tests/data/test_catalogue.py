"""load: the digits, the published sets from small files in their formats, and names that mean nothing."""

from importlib.resources import files

import numpy as np
import pytest
from datafiles import cifar, idx, message, mnist_files, put

from minidl.data import load
from minidl.data.dataset import stratified
from minidl.data.download import CIFAR
from minidl.errors import ArgumentError, DataError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache folder, and no way to the internet."""
    monkeypatch.setenv("MINIDL_DATA", str(tmp_path / "cache"))
    monkeypatch.setenv("MINIDL_MIRROR", "http://127.0.0.1:9/nothing-listens-here")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return tmp_path / "cache"


def test_digits():
    train, test = load()
    assert (train.x.shape, test.x.shape) == ((1437, 1, 8, 8), (360, 1, 8, 8))
    assert train.classes == tuple("0123456789") and np.bincount(test.y).tolist() == [36, 37, 35, 37, 36, 36, 36, 36, 35, 36]
    x = train[:][0]
    assert x.dtype == np.float32 and x.min() == 0 and x.max() == 1
    # the sums over all 1,797, so that a changed file is noticed
    assert train.x.sum(dtype=int) + test.x.sum(dtype=int) == 561_718 and train.y.sum() + test.y.sum() == 8070


def test_digits_split_is_the_one_that_its_readme_describes():
    train, test = load("digits")
    with np.load(files("minidl.data") / "digits" / "digits.npz") as archive:
        labels, chosen = archive["labels"], archive["test"]
    np.testing.assert_array_equal(np.flatnonzero(stratified(labels, 360, seed=4)), chosen)
    np.testing.assert_array_equal(test.y, labels[chosen])
    assert len(np.unique(np.concatenate([train.x, test.x]).reshape(1797, -1), axis=0)) == 1797      # no image twice, so none on both sides


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("where", ["data_dir/name", "data_dir", "cache"])
def test_idx_sets(tmp_path, cache, name, zipped, where):
    folder = {"data_dir/name": tmp_path / "mine" / name, "data_dir": tmp_path / "mine", "cache": cache / name}[where]
    contents = mnist_files()
    put(folder, contents, zipped)
    train, test = load(name, data_dir=None if where == "cache" else tmp_path / "mine")
    assert (train.shape, len(train), len(test), len(train.classes)) == ((1, 28, 28), 12, 5, 10)
    np.testing.assert_array_equal(train.x.tobytes(), contents["train-images-idx3-ubyte"][16:])
    assert bytes(test.y.astype(np.uint8)) == contents["t10k-labels-idx1-ubyte"][8:]
    assert train.classes[9] == {"mnist": "9", "fashion-mnist": "Ankle boot"}[name]


def test_the_data_dir_goes_before_the_cache(tmp_path, cache):
    put(cache / "mnist", mnist_files(train=3))
    put(tmp_path / "mine" / "mnist", mnist_files(train=4))
    assert len(load("mnist", tmp_path / "mine")[0]) == 4
    assert len(load("mnist", tmp_path / "other")[0]) == 3 and not (tmp_path / "other").exists()


def test_images_and_labels_of_different_sets(cache):
    contents = mnist_files()
    put(cache / "mnist", {**contents, "t10k-labels-idx1-ubyte": idx(np.zeros(6, np.uint8))})
    with pytest.raises(DataError, match="not of one set") as raised:
        load("mnist")
    text = message(raised)
    assert f"file: {cache / 'mnist' / 't10k-labels-idx1-ubyte'}" in text and "offset: 4" in text
    assert "expected: 5 labels" in text and "found: 6 labels" in text


def test_images_where_labels_should_be(cache):
    contents = mnist_files()
    put(cache / "mnist", {**contents, "train-labels-idx1-ubyte": contents["train-images-idx3-ubyte"]})
    with pytest.raises(DataError, match="wrong magic number"):
        load("mnist")


def test_cifar10(cache):
    contents = [cifar([k, 9 - k], seed=k) for k in range(6)]
    put(cache / "cifar-10-batches-bin", {file: content for file, (content, _) in zip(CIFAR, contents)})
    train, test = load("cifar10")
    assert (train.x.shape, test.x.shape, train.classes[3]) == ((10, 3, 32, 32), (2, 3, 32, 32), "cat")
    np.testing.assert_array_equal(train.x, np.concatenate([pixels for _, pixels in contents[:5]]))
    assert train.y.tolist() == [0, 9, 1, 8, 2, 7, 3, 6, 4, 5] and test.y.tolist() == [5, 4]


def test_gzipped_cifar10_is_not_taken_for_plain(cache):
    put(cache / "cifar-10-batches-bin", dict.fromkeys(CIFAR, b""), zipped=True)
    with pytest.raises(DataError, match="cannot be had"):
        load("cifar10")


@pytest.mark.parametrize(("name", "near"), [
    ("mnits", "mnist"), ("MNIST", "mnist"), ("fashion_mnist", "fashion-mnist"), ("cifar-10", "cifar10"), ("digit", "digits")])
def test_a_name_that_is_nearly_known(name, near):
    with pytest.raises(DataError, match=f"nearest: '{near}'") as raised:
        load(name)
    assert "Known are digits, mnist, fashion-mnist, cifar10; your own data can be an .npz file or a folder" in message(raised)


def test_other_names(tmp_path):
    with pytest.raises(DataError, match="no data set is called 'zebra'") as raised:
        load("zebra")
    assert "nearest" not in message(raised)
    for name in ("missing.npz", "some/folder", tmp_path / "nothing"):
        with pytest.raises(DataError, match="there is no"):
            load(name)
    (tmp_path / "table.csv").write_text("1,2")
    with pytest.raises(DataError, match=r"neither an \.npz file nor a folder"):
        load(tmp_path / "table.csv")


def test_size_is_for_folders_only(tmp_path):
    for name in ("digits", "mnist", tmp_path / "x.npz"):
        with pytest.raises(ArgumentError, match="size is for a folder"):
            load(name, size=8)
    for size in (0, 2.5, (1, 2, 3), (4, -1)):
        with pytest.raises(ArgumentError, match="size is"):
            load(tmp_path, size=size)
