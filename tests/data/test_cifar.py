"""The CIFAR-10 reader against records that are whole, cut off and mislabelled."""

import numpy as np
import pytest
from datafiles import cifar, message

from minidl.data.cifar import RECORD, read_cifar
from minidl.errors import DataError


@pytest.fixture
def path(tmp_path):
    return tmp_path / "data_batch_1.bin"


@pytest.mark.parametrize("count", [1, 7])
def test_any_number_of_records(path, count):
    labels = list(range(count))
    content, pixels = cifar(labels)
    path.write_bytes(content)
    images, read = read_cifar(path)
    np.testing.assert_array_equal(images, pixels)
    assert read.tolist() == labels and images.dtype == read.dtype == np.uint8
    images[0] = 0           # the caller's own


@pytest.mark.parametrize("length", [0, 1, RECORD - 1, RECORD + 1, 2 * RECORD - 1])
def test_cut_off(path, length):
    path.write_bytes(cifar([1, 2])[0][:length])
    with pytest.raises(DataError, match="whole record") as raised:
        read_cifar(path)
    text = message(raised)
    whole = length // RECORD * RECORD
    assert f"file: {path}" in text and f"offset: {whole}" in text
    assert "expected: 3073 bytes" in text and f"found: {length - whole} bytes" in text


def test_mislabelled(path):
    path.write_bytes(cifar([9, 0, 10, 255])[0])
    with pytest.raises(DataError, match="no class") as raised:
        read_cifar(path)
    text = message(raised)
    assert f"file: {path}" in text and f"offset: {2 * RECORD}" in text and "expected: 0 to 9" in text and "found: 10" in text


def test_one_byte_too_many_at_the_start(path):
    path.write_bytes(b"\xff" + cifar([9, 0])[0][:-1])
    with pytest.raises(DataError, match="no class"):
        read_cifar(path)


def test_missing(path):
    with pytest.raises(DataError, match="No such file"):
        read_cifar(path)
