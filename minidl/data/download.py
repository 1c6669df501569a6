"""Where the files of a named data set lie, and how they get there: by hand, or from the web with pooch.

A file appears in its folder whole or not at all: it is downloaded beside it, its checksum is compared, and only then is it moved.
So a download that was cut off or changed is never taken for a data set later, and several processes may download at once. Files that
are already there are not compared with a checksum, since others than the published ones may be meant; their readers check what they
can. What the files mean is the catalogue's business.
"""

from __future__ import annotations

import os
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from minidl.errors import DataError, MissingExtra


@dataclass(frozen=True)
class Source:
    """A data set on the web: what it consists of, where it is, and by which checksums it is known."""

    folder: str                         # the folder of its own, inside the data folder
    files: tuple[str, ...]              # what its reader needs
    sha256: dict[str, str]              # what is downloaded: the files, gzipped (and kept so), or one tar archive of all of them
    urls: tuple[str, ...]               # the folders on the web that have these, tried in this order

    @property
    def archive(self) -> str:
        """The name of the tar archive, '' if the files are downloaded one by one."""
        return next((name for name in self.sha256 if name.endswith(".tar.gz")), "")


IDX = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
CIFAR = (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin")

# The checksums are those that TensorFlow Datasets publishes.
SOURCES = {
    "mnist": Source("mnist", IDX, {
        "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    }, ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/")),
    "fashion-mnist": Source("fashion-mnist", IDX, {
        "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
    }, ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/")),
    "cifar10": Source("cifar-10-batches-bin", CIFAR, {
        "cifar-10-binary.tar.gz": "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    }, ("https://www.cs.toronto.edu/~kriz/",)),
}


def data_folder() -> Path:
    """The folder for all data sets: the environment variable MINIDL_DATA, or else ~/.cache/minidl."""
    return Path(os.environ.get("MINIDL_DATA") or "~/.cache/minidl").expanduser()


def locate(name: str, data_dir: str | os.PathLike[str] | None = None, mirror: str | None = None) -> dict[str, Path]:
    """The files of a named data set, downloaded if they are nowhere: from their name without .gz to their path.

    name: a key of SOURCES. data_dir: looked into first, itself and its sub-folder of the data set, then data_folder(). What is missing
    is downloaded to data_dir, if one is given, else to data_folder(). mirror: a web folder that has MIRROR/NAME/FILE, used in place of
    the published addresses; by default the environment variable MINIDL_MIRROR.
    DataError, with address and reason, if a file cannot be had; MissingExtra if pooch is not there to get it.
    """
    source = SOURCES[name]
    cache = data_folder() / source.folder
    folder = cache if data_dir is None else Path(data_dir).expanduser() / source.folder
    for place in (cache,) if data_dir is None else (folder, folder.parent, cache):
        found = _present(place, source)
        if len(found) == len(source.files):
            return found
    mirror = mirror or os.environ.get("MINIDL_MIRROR")
    urls = (f"{mirror.rstrip('/')}/{name}/",) if mirror else source.urls
    missing = [file for file in source.files if file not in _present(folder, source)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=folder) as scratch:
            if source.archive:
                packed = _fetch(source.archive, source, urls, folder, Path(scratch))
                _unpack(packed, missing, folder, Path(scratch))
            else:
                for file in missing:
                    with _fetch(f"{file}.gz", source, urls, folder, Path(scratch)).open("rb") as fetched:
                        _install(fetched, folder / f"{file}.gz", Path(scratch))
    except OSError as error:
        raise DataError(f"download: {name} cannot be written to its folder", folder=folder, reason=error,
                        hint="Name another folder: --data-dir, or the environment variable MINIDL_DATA.") from None
    return _present(folder, source)


def _present(folder: Path, source: Source) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for file in source.files:
        for path in (folder / file,) if source.archive else (folder / file, folder / f"{file}.gz"):
            if path.is_file():
                found.setdefault(file, path)
    return found


def _fetch(file: str, source: Source, urls: tuple[str, ...], folder: Path, scratch: Path) -> Path:
    """A file with the right checksum, downloaded into `scratch` from the first address that has it."""
    try:
        import pooch
    except ImportError:
        raise MissingExtra("download: pooch is not installed", file=file,
                           hint=f"Install it: pip install 'minidl[data]', or {_by_hand(source, folder)}") from None
    reasons = []
    path = scratch / file
    for url in urls:
        try:
            with progress(url + file) as bar:
                # no transfer encoding: a server that gzips on the way would be unzipped on the way, and .gz files with it
                pooch.HTTPDownloader(progressbar=bar, chunk_size=1 << 16, headers={"Accept-Encoding": "identity"})(url + file, path, None)
        except (OSError, ValueError) as error:          # no connection, an HTTP error, a connection that breaks, a broken address
            reasons.append(f"{url}{file}: {error}")
            continue
        found = pooch.file_hash(path, alg="sha256")
        if found == source.sha256[file]:
            return path
        reasons.append(f"{url}{file}: damaged, or another file: its SHA-256 is {found}, not {source.sha256[file]}")
    raise DataError(f"download: {file} cannot be had", reason="; ".join(reasons),
                    hint=f"Try again later, or {_by_hand(source, folder)}")


def _by_hand(source: Source, folder: Path) -> str:
    packed = f" (out of {source.archive})" if source.archive else ", plain or with .gz"
    return f"put these files into {folder} by hand: {', '.join(source.files)}{packed}."


def _unpack(archive: Path, files: list[str], folder: Path, scratch: Path) -> None:
    missing = set(files)
    with tarfile.open(archive) as tar:
        for member in tar:
            name = PurePosixPath(member.name).name          # never the path in the archive, which could lead anywhere
            content = tar.extractfile(member) if name in missing else None
            if content is not None:
                _install(content, folder / name, scratch)
                missing.remove(name)
    if missing:
        raise DataError("download: the archive lacks files", file=archive.name, missing=", ".join(sorted(missing)))


def _install(content: IO[bytes], path: Path, scratch: Path) -> None:
    """Write a whole file first, under the permissions that files usually have here, then give it its name in one step."""
    whole = scratch / f"{path.name}.whole"
    with whole.open("wb") as file:
        shutil.copyfileobj(content, file, 1 << 20)
    os.replace(whole, path)


class Bar:
    """What pooch wants of a progress bar, drawn by rich: a total in bytes that is set, then `update` for each piece."""

    def __init__(self, drawn: Any, task: Any):
        self.drawn, self.task = drawn, task

    @property
    def total(self) -> float:
        return self.drawn.tasks[self.task].total or 0

    @total.setter
    def total(self, size: float) -> None:
        self.drawn.update(self.task, total=size or None)

    def update(self, count: int) -> None:
        self.drawn.advance(self.task, count)

    def reset(self) -> None:
        self.drawn.update(self.task, completed=0)

    def close(self) -> None:
        """Nothing: the bar is taken down where it was put up, also after an error."""


@contextmanager
def progress(url: str, stream: IO[str] | None = None) -> Iterator[Bar | bool]:
    """A progress bar for one download, with size, speed and time left; where there is no terminal, one line of text and False.

    stream: where it is written, by default the standard error.
    """
    stream = sys.stderr if stream is None else stream
    if not stream.isatty():
        print(f"Downloading {url}", file=stream, flush=True)
        yield False
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(file=stream)) as drawn:
        yield Bar(drawn, drawn.add_task(url.rpartition("/")[2], total=None))
