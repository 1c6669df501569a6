"""The IDX reader against files that are whole, cut off at every place, too long, mislabelled or changed."""

import gzip

import numpy as np
import pytest
from datafiles import CODES, idx, message
from hypothesis import given, settings
from hypothesis import strategies as st

from minidl.data.idx import read_idx, read_images, read_labels
from minidl.errors import DataError

IMAGES = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)


@pytest.fixture
def write(tmp_path):
    def write(content):
        path = tmp_path / "file-ubyte"
        path.write_bytes(content)
        return path
    return write


@pytest.mark.parametrize("dtype", CODES)
@pytest.mark.parametrize("zipped", [False, True])
def test_every_number_type_comes_back(write, dtype, zipped):
    array = (np.arange(24).reshape(2, 3, 4) - 5 * (dtype != "uint8")).astype(dtype)
    content = idx(array)
    read = read_idx(write(gzip.compress(content) if zipped else content))
    assert read.dtype == dtype and read.dtype.isnative
    np.testing.assert_array_equal(read, array)
    read[0] = 1         # the caller's own, not a read-only view


@settings(derandomize=True, max_examples=25, deadline=None)
@given(shape=st.lists(st.integers(0, 5), min_size=1, max_size=4))
def test_any_shape_comes_back(tmp_path_factory, shape):
    path = tmp_path_factory.mktemp("idx") / "file"
    array = np.arange(int(np.prod(shape)), dtype=np.uint8).reshape(shape)
    path.write_bytes(idx(array))
    np.testing.assert_array_equal(read_idx(path), array)


@pytest.mark.parametrize("length", range(len(idx(IMAGES))))
def test_cut_off_anywhere(write, length):
    path = write(idx(IMAGES)[:length])
    with pytest.raises(DataError) as raised:
        read_images(path)
    text = message(raised)
    assert f"file: {path}" in text and f"offset: {length}" in text and "expected:" in text and "found:" in text


@pytest.mark.parametrize("length", range(2, len(gzip.compress(idx(IMAGES), mtime=0))))
def test_gzip_cut_off_anywhere(write, length):
    path = write(gzip.compress(idx(IMAGES), mtime=0)[:length])
    with pytest.raises(DataError, match=r"ends too early|damaged") as raised:
        read_images(path)
    text = message(raised)
    assert f"file: {path}" in text and "offset:" in text and "expected:" in text and "found:" in text


def test_gzip_cut_off_says_how_far_it_came(write):
    noise = np.random.default_rng(0).integers(0, 256, (100, 28, 28), dtype=np.uint8)
    path = write(gzip.compress(idx(noise), mtime=0)[:40_000])
    with pytest.raises(DataError, match="ended before the end-of-stream marker") as raised:
        read_images(path)
    assert "expected: 78,400 bytes from offset 16" in message(raised)


def test_gzip_with_a_changed_byte(write):
    content = bytearray(gzip.compress(idx(IMAGES), mtime=0))
    content[-6] ^= 1                # in the check sum at the end
    with pytest.raises(DataError, match="CRC check failed") as raised:
        read_images(write(content))
    assert "offset: 40" in message(raised)


def test_too_long(write):
    with pytest.raises(DataError, match="goes on after its last number") as raised:
        read_images(write(idx(IMAGES) + b"\0"))
    assert "offset: 40" in message(raised) and "found: more bytes" in message(raised)


def test_labels_under_the_name_of_images(write):
    with pytest.raises(DataError, match="wrong magic number") as raised:
        read_images(write(idx(np.array([3, 1], np.uint8))))
    text = message(raised)
    assert "offset: 0" in text and "expected: 00 00 08 03 (uint8 images)" in text and "found: 00 00 08 01 (uint8 labels)" in text


def test_images_under_the_name_of_labels(write):
    with pytest.raises(DataError, match="wrong magic number"):
        read_labels(write(idx(IMAGES)), 10)


@pytest.mark.parametrize("content", [b"<!DOCTYPE html>", b"PK\3\4 and more", b"\1\0\x08\3" + bytes(40), b"\0\0\x0a\1\0\0\0\0"])
def test_other_files(write, content):
    with pytest.raises(DataError, match="wrong magic number") as raised:
        read_idx(write(content))
    assert f"found: {content[:4].hex(' ')}" in message(raised)


def test_a_web_page_is_shown_as_text(write):
    with pytest.raises(DataError, match=r"\('<!DO'\)"):
        read_images(write(b"<!DOCTYPE html>"))


@pytest.mark.parametrize("zipped", [False, True])
def test_absurd_lengths_cost_no_memory(write, zipped):
    content = bytes([0, 0, 8, 3]) + b"\xff" * 12 + bytes(50)
    with pytest.raises(DataError, match="ends too early"):
        read_images(write(gzip.compress(content) if zipped else content))


@pytest.mark.parametrize("header", [bytes([0, 0, 8, 255]) + b"\0\0\0\1" * 255 + b"a", bytes([0, 0, 8, 4]) + bytes(4) + b"\xff" * 12])
def test_shapes_that_no_array_has(write, header):
    with pytest.raises(DataError, match="no array has this shape") as raised:
        read_idx(write(header))
    assert "offset: 3" in message(raised)


def test_label_out_of_range(write):
    with pytest.raises(DataError, match="no class") as raised:
        read_labels(write(idx(np.array([0, 9, 10, 11], np.uint8))), 10)
    text = message(raised)
    assert "offset: 10" in text and "expected: 0 to 9" in text and "found: 10" in text


def test_missing_and_folder(tmp_path):
    with pytest.raises(DataError, match="No such file"):
        read_idx(tmp_path / "nowhere")
    with pytest.raises(DataError, match="cannot be read"):
        read_idx(tmp_path)
