"""Small files in the published formats, written byte by byte, without the readers that are under test."""

import gzip
import struct

import numpy as np

CODES = {"uint8": 0x08, "int8": 0x09, "int16": 0x0B, "int32": 0x0C, "float32": 0x0D, "float64": 0x0E}


def idx(array):
    """An array as the bytes of an IDX file."""
    array = np.asarray(array)
    header = bytes([0, 0, CODES[array.dtype.name], array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


def cifar(labels, seed=0):
    """Records of CIFAR-10 with these labels and random pixels, as bytes, and the pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (len(labels), 3, 32, 32), dtype=np.uint8)
    return b"".join(bytes([label]) + image.tobytes() for label, image in zip(labels, pixels)), pixels


def mnist_files(train=12, test=5, seed=0):
    """The four files of a very small MNIST: name to bytes, not gzipped."""
    generator = np.random.default_rng(seed)
    files = {}
    for part, count in (("train", train), ("t10k", test)):
        files[f"{part}-images-idx3-ubyte"] = idx(generator.integers(0, 256, (count, 28, 28), dtype=np.uint8))
        files[f"{part}-labels-idx1-ubyte"] = idx(generator.integers(0, 10, count, dtype=np.uint8))
    return files


def put(folder, files, zipped=False):
    """Write files (name to bytes) into a folder, gzipped if asked, and give back the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / (name + ".gz" * zipped)).write_bytes(gzip.compress(content, mtime=0) if zipped else content)
    return folder


def message(raised):
    """What a caught error says, on one line."""
    return " ".join(str(raised.value).split())
