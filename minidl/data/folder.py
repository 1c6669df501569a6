"""A folder of images as a data set: one sub-folder a class, whose name is the name of the class.

    pets/cat/1.png                  pets/train/cat/1.png
    pets/cat/2.png          or      pets/train/dog/1.png
    pets/dog/1.png                  pets/test/cat/2.png

On the left the test is drawn here, always the same one; on the right it is what the folder says. Classes and files are taken in the
order of their names. How one image is read is in images.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from minidl.data.dataset import Dataset, set_aside
from minidl.data.images import read_bytes
from minidl.errors import DataError

LAYOUT = "Lay it out as FOLDER/CLASS/IMAGE.png, or as FOLDER/train/CLASS/IMAGE.png and FOLDER/test/CLASS/IMAGE.png."


def read_folder(folder: Path, size: tuple[int, int] | None = None) -> tuple[Dataset, Dataset]:
    """The training and test data of a folder of images: uint8 (N, C, H, W), C being 1 if every image is grey, else 3.

    size: height and width to which every image is stretched; None asks that they are all of one size already.
    Without sub-folders train and test, a fifth of the images is the test, each class having its share.
    Names that begin with a dot, Thumbs.db, and files beside the class folders are left out. DataError, with the path, for an image that
    cannot be read or has another size, a class without images, train without test, a class of the test that training does not know.
    """
    tops = {path.name: path for path in _folders(folder)}
    if not {"train", "test"} & set(tops):
        images, labels, classes = _classes(folder)
        x = _read(images, size)
        return set_aside(Dataset(x, labels, classes, folder.name))
    for name in ("train", "test"):
        if name not in tops:
            raise DataError(f"folder: there is no sub-folder {name!r}", folder=folder, found=", ".join(tops), hint=LAYOUT)
    if len(tops) > 2:
        raise DataError("folder: there are more sub-folders than train and test", folder=folder, found=", ".join(tops),
                        hint="Move the others elsewhere, or into one of the two.")
    images, labels, classes = _classes(tops["train"])
    test_images, test_labels, test_classes = _classes(tops["test"])
    for name in test_classes:
        if name not in classes:
            raise DataError(f"folder: the test has a class {name!r}, training has not", folder=tops["test"] / name,
                            expected=", ".join(classes), hint="Are the two names spelled alike?")
    test_labels = np.array([classes.index(name) for name in test_classes])[test_labels]
    x = _read(images + test_images, size)
    return (Dataset(x[:len(images)], labels, classes, folder.name),
            Dataset(x[len(images):], test_labels, classes, folder.name))


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in _visible(folder) if path.is_dir())


def _visible(folder: Path) -> Iterable[Path]:
    return (path for path in folder.iterdir() if not path.name.startswith(".") and path.name != "Thumbs.db")


def _classes(folder: Path) -> tuple[list[Path], np.ndarray, tuple[str, ...]]:
    """The image files of a folder of class folders, their class ids and the names of the classes."""
    classes = _folders(folder)
    if not classes:
        raise DataError("folder: there is no sub-folder, so there are no classes", folder=folder, hint=LAYOUT)
    images: list[Path] = []
    labels: list[int] = []
    for k, each in enumerate(classes):
        files = sorted(_visible(each))
        if not files:
            raise DataError(f"folder: the class {each.name!r} has no images", folder=each, hint="Add some, or remove the folder.")
        for file in files:
            if file.is_dir():
                raise DataError(f"folder: the class {each.name!r} holds a folder", folder=file, hint=LAYOUT)
        images += files
        labels += [k] * len(files)
    return images, np.array(labels), tuple(each.name for each in classes)


def _read(files: list[Path], size: tuple[int, int] | None) -> np.ndarray:
    images = [read_bytes(files[0], size=size)]
    height, width = images[0].shape[1:]
    for file in files[1:]:
        images.append(read_bytes(file, size=size))
        found = images[-1].shape[1:]
        if found != (height, width):
            raise DataError("folder: the images are not all of one size", file=file, found=f"{found[0]} x {found[1]}",
                            expected=f"{height} x {width}, as {files[0]}",
                            hint=f"Have them all stretched to one size: size=({height}, {width}).")
    x = np.empty((len(images), max(len(image) for image in images), height, width), np.uint8)
    for place, image in zip(x, images):
        place[...] = image              # a grey image among coloured ones is repeated in each channel
    return x
