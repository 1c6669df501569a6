"""The catalogue: which data sets are known by name, and what else a name may mean.

    digits          1,797 images, 1 x 8 x 8, shipped with minidl        E. Alpaydin and C. Kaynak, 1998
    mnist           70,000 images, 1 x 28 x 28                          LeCun, Cortes and Burges, 1998
    fashion-mnist   70,000 images, 1 x 28 x 28                          Xiao, Rasul and Vollgraf, 2017
    cifar10         60,000 images, 3 x 32 x 32                          Krizhevsky, 2009
    FILE.npz        your own arrays                                     npz.py
    FOLDER          your own images                                     folder.py

How each format is read, and how files are downloaded, is written in the files beside this one.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from minidl.data.cifar import read_cifar
from minidl.data.dataset import Dataset
from minidl.data.download import CIFAR, locate
from minidl.data.folder import read_folder
from minidl.data.idx import read_images, read_labels
from minidl.data.npz import read_npz
from minidl.errors import ArgumentError, DataError, nearest

CLASSES = {
    "digits": tuple("0123456789"),
    "mnist": tuple("0123456789"),
    "fashion-mnist": ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    "cifar10": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
}


def load(name: str | os.PathLike[str] = "digits", data_dir: str | os.PathLike[str] | None = None, *,
         mirror: str | None = None, size: int | tuple[int, int] | None = None) -> tuple[Dataset, Dataset]:
    """A data set by its name: its training and its test part.

    name: "digits", "mnist", "fashion-mnist", "cifar10", the path of an .npz file, or a folder with a sub-folder of images for each class.
    data_dir: where the files of a named data set are looked for, before the cache folder, and where they are downloaded to.
    By default the environment variable MINIDL_DATA, or else ~/.cache/minidl. mirror: see `locate` in download.py.
    size: only for a folder of images: height and width to which all are stretched.
    DataError for an unknown name, for files that are damaged, and for a download that fails.

    >>> train, test = load("digits")
    >>> train, test
    (Dataset(digits: 1,437 samples of shape (1, 8, 8), 10 classes), Dataset(digits: 360 samples of shape (1, 8, 8), 10 classes))
    """
    path = Path(name).expanduser()
    if size is not None and (str(name) in CLASSES or not path.is_dir()):
        raise ArgumentError(f"load: size is for a folder of images, {str(name)!r} is none", size=size)
    match str(name):
        case "digits":
            return _digits()
        case "mnist" | "fashion-mnist":
            return _idx(str(name), locate(str(name), data_dir, mirror))
        case "cifar10":
            return _cifar(locate("cifar10", data_dir, mirror))
    if path.is_dir():
        return read_folder(path, None if size is None else _sides(size))
    if path.suffix.lower() == ".npz" and path.is_file():
        return read_npz(path)
    raise _unknown(str(name), path)


def _digits() -> tuple[Dataset, Dataset]:
    with np.load(Path(__file__).parent / "digits" / "digits.npz", allow_pickle=False) as archive:
        images, labels, test = archive["images"][:, None], archive["labels"], archive["test"]
    train = np.delete(np.arange(len(labels)), test)
    return _both("digits", (images[train], labels[train]), (images[test], labels[test]), peak=16)


def _idx(name: str, files: dict[str, Path]) -> tuple[Dataset, Dataset]:
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    for part in ("train", "t10k"):
        image_file, label_file = files[f"{part}-images-idx3-ubyte"], files[f"{part}-labels-idx1-ubyte"]
        images, labels = read_images(image_file), read_labels(label_file, len(CLASSES[name]))
        if len(images) != len(labels):
            raise DataError(f"{name}: the images and the labels are not of one set", file=label_file, offset=4,
                            expected=f"{len(images)} labels, as {image_file} has images", found=f"{len(labels)} labels",
                            hint="Delete both and get them again.")
        parts.append((images[:, None], labels))
    return _both(name, parts[0], parts[1])


def _cifar(files: dict[str, Path]) -> tuple[Dataset, Dataset]:
    batches = [read_cifar(files[file]) for file in CIFAR]
    images, labels = (np.concatenate(arrays) for arrays in zip(*batches[:-1]))
    return _both("cifar10", (images, labels), batches[-1])


def _both(name: str, train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray],
          peak: float = 255) -> tuple[Dataset, Dataset]:
    return Dataset(*train, CLASSES[name], name, peak), Dataset(*test, CLASSES[name], name, peak)


def _sides(size: int | tuple[int, int]) -> tuple[int, int]:
    sides = np.ravel(size).tolist()
    if len(sides) > 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise ArgumentError(f"load: size is {size}", hint="Give a whole number of pixels, or a pair of them: height and width.")
    return sides[0], sides[-1]


def _unknown(name: str, path: Path) -> DataError:
    others = f"Known are {', '.join(CLASSES)}; your own data can be an .npz file or a folder with a sub-folder of images for each class."
    if path.is_file():
        return DataError(f"load: {name} is neither an .npz file nor a folder", hint=others)
    if path.suffix.lower() == ".npz" or len(path.parts) > 1:
        return DataError(f"load: there is no {name}", hint=others)
    return DataError(f"load: no data set is called {name!r}{nearest(name.lower(), CLASSES)}", hint=others)
