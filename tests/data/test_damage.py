"""Bytes changed at random, files cut anywhere: a reader gives arrays or a DataError, never an error that NumPy or zipfile invented."""

import gzip
import io

import numpy as np
import pytest
from datafiles import cifar, idx

from minidl.data.cifar import read_cifar
from minidl.data.idx import read_idx
from minidl.data.npz import read_npz
from minidl.errors import DataError

ARRAY = np.random.default_rng(0).integers(0, 256, (3, 4, 5), dtype=np.uint8)


def npz(save):
    file = io.BytesIO()
    save(file, x_train=ARRAY, y_train=np.arange(3), x_test=ARRAY, y_test=np.arange(3), classes=np.array(["a", "b", "c"]))
    return file.getvalue()


FILES = {
    "idx": (read_idx, idx(ARRAY)),
    "gzipped idx": (read_idx, gzip.compress(idx(ARRAY), mtime=0)),
    "cifar": (read_cifar, cifar([1, 2])[0]),
    "npz": (read_npz, npz(np.savez)),
    "compressed npz": (read_npz, npz(np.savez_compressed)),
}


@pytest.mark.parametrize("kind", FILES)
def test_only_data_errors(tmp_path, kind):
    read, whole = FILES[kind]
    generator = np.random.default_rng(1)
    refused = 0
    for _ in range(300):
        content = bytearray(whole)
        for place in generator.integers(0, generator.choice([100, len(content)]).clip(1, len(content)), generator.integers(1, 4)):
            content[place] = generator.integers(256)
        if generator.random() < 0.3:
            del content[generator.integers(len(content)):]
        path = tmp_path / "file.npz"
        path.write_bytes(content)
        try:
            read(path)
        except DataError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > 50
