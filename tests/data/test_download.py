"""Downloads from a server on this machine: whole, cut off, corrupted, refused, interrupted and repeated."""

import gzip
import hashlib
import io
import os
import sys
import tarfile
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from datafiles import cifar, message, mnist_files, put

from minidl.data import download, load
from minidl.errors import DataError, MissingExtra

TRAIN_IMAGES = "train-images-idx3-ubyte"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.asked.append(self.path)
        content, fault = self.server.files.get(self.path), self.server.faults.get(self.path, "")
        if content is None or fault.isdigit():
            self.send_error(int(fault or 404))
            return
        self.send_response(200)
        if fault == "gzip on the way" and "gzip" in self.headers.get("Accept-Encoding", ""):
            self.send_header("Content-Encoding", "gzip")
            content = gzip.compress(content)
        if fault != "ends without a length":
            self.send_header("Content-Length", str(len(content)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        if fault == "corrupted":
            content = content[:-1] + bytes([content[-1] ^ 1])
        self.wfile.write(content[:len(content) // 2] if fault in ("cut off", "ends without a length") else content)

    def log_message(self, *args):
        """Not on the screen."""


@pytest.fixture
def server(monkeypatch):
    """A web server: .files (path to bytes), .faults (path to what goes wrong with it), .asked (paths), .url."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.files, server.faults, server.asked = {}, {}, []
        server.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("MINIDL_MIRROR", server.url)
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIDL_DATA", str(tmp_path / "cache"))
    return tmp_path / "cache"


def sha256(content):
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def mnist(server, cache, monkeypatch):
    """A very small MNIST on the server, with its checksums in the place of the published ones; the folder where it should arrive."""
    packed = {f"{name}.gz": gzip.compress(content, mtime=0) for name, content in mnist_files().items()}
    server.files.update({f"/mnist/{name}": content for name, content in packed.items()})
    source = replace(download.SOURCES["mnist"], sha256={name: sha256(content) for name, content in packed.items()})
    monkeypatch.setitem(download.SOURCES, "mnist", source)
    return cache / "mnist"


@pytest.fixture
def cifar10(server, cache, monkeypatch):
    """A very small CIFAR-10, as one tar archive; the folder where it should arrive."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for k, name in enumerate(("readme.html", *download.CIFAR, "../../evil.bin")):
            content = cifar([k % 10, 1])[0] if name.endswith(".bin") else b"<html>"
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    server.files["/cifar10/cifar-10-binary.tar.gz"] = archive.getvalue()
    source = replace(download.SOURCES["cifar10"], sha256={"cifar-10-binary.tar.gz": sha256(archive.getvalue())})
    monkeypatch.setitem(download.SOURCES, "cifar10", source)
    return cache / "cifar-10-batches-bin"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_downloaded_once(server, mnist):
    train, test = load("mnist")
    assert (len(train), len(test)) == (12, 5)
    assert names(mnist) == sorted(f"{name}.gz" for name in download.IDX) and len(server.asked) == 4
    np.testing.assert_array_equal(load("mnist")[0].x, train.x)
    assert len(server.asked) == 4


def test_into_the_data_dir_and_only_what_is_missing(server, mnist, tmp_path):
    there = put(tmp_path / "mine" / "mnist", {TRAIN_IMAGES: mnist_files()[TRAIN_IMAGES]})
    load("mnist", tmp_path / "mine")
    assert TRAIN_IMAGES in names(there) and f"{TRAIN_IMAGES}.gz" not in names(there) and len(server.asked) == 3
    assert not mnist.exists()


def test_the_argument_mirror_goes_before_the_variable(server, mnist, monkeypatch):
    monkeypatch.setenv("MINIDL_MIRROR", "http://127.0.0.1:9/nothing")
    assert len(load("mnist", mirror=server.url + "/")[0]) == 12


@pytest.mark.parametrize("fault", ["cut off", "ends without a length", "corrupted", "404", "503"])
def test_a_failed_download_leaves_nothing_behind(server, mnist, fault):
    file = f"/mnist/{download.IDX[1]}.gz"
    server.faults[file] = fault
    for _ in range(2):
        with pytest.raises(DataError, match="cannot be had") as raised:
            load("mnist")
        text = message(raised)
        assert server.url + file in text and f"put these files into {mnist} by hand" in text and "t10k-labels-idx1-ubyte" in text
        assert {"404": "404", "503": "503", "corrupted": "SHA-256", "cut off": "IncompleteRead",
                "ends without a length": "SHA-256"}[fault] in text
        assert names(mnist) == [f"{TRAIN_IMAGES}.gz"]           # the one that came before is whole
    del server.faults[file]
    assert len(load("mnist")[0]) == 12
    assert server.asked.count(f"/mnist/{TRAIN_IMAGES}.gz") == 1


def test_no_connection(mnist, monkeypatch, server):
    monkeypatch.setenv("MINIDL_MIRROR", "http://127.0.0.1:9")
    with pytest.raises(DataError, match=r"http://127.0.0.1:9/mnist/train-images-idx3-ubyte.gz: .*[Rr]efused"):
        load("mnist")
    assert names(mnist) == []


def test_the_next_address_is_tried(server, mnist, monkeypatch):
    monkeypatch.delenv("MINIDL_MIRROR")
    urls = (f"{server.url}/gone/", f"{server.url}/mnist/")
    monkeypatch.setitem(download.SOURCES, "mnist", replace(download.SOURCES["mnist"], urls=urls))
    assert len(load("mnist")[0]) == 12
    assert server.asked[:2] == [f"/gone/{TRAIN_IMAGES}.gz", f"/mnist/{TRAIN_IMAGES}.gz"]


def test_a_server_that_gzips_on_the_way(server, mnist):
    server.faults = dict.fromkeys(server.files, "gzip on the way")
    assert len(load("mnist")[0]) == 12


def test_ctrl_c_leaves_nothing_behind(mnist, monkeypatch):
    import pooch

    def interrupted(self, url, output_file, pooch):
        output_file.write_bytes(b"the first half")
        raise KeyboardInterrupt

    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load("mnist")
    assert names(mnist) == []


def test_an_archive_is_unpacked(server, cifar10, tmp_path):
    train, test = load("cifar10")
    assert (len(train), len(test)) == (10, 2)
    assert names(cifar10) == sorted(download.CIFAR)         # no archive, no readme, nothing that is not asked for
    assert not list(tmp_path.rglob("evil.bin"))
    load("cifar10")
    assert len(server.asked) == 1


@pytest.mark.parametrize("fault", ["cut off", "ends without a length", "corrupted", "404"])
def test_a_failed_archive_leaves_nothing_behind(server, cifar10, fault):
    server.faults["/cifar10/cifar-10-binary.tar.gz"] = fault
    with pytest.raises(DataError, match=r"cifar-10-binary\.tar\.gz cannot be had") as raised:
        load("cifar10")
    assert "data_batch_1.bin" in message(raised) and names(cifar10) == []


def test_an_archive_that_lacks_a_file(server, cifar10, monkeypatch):
    monkeypatch.setitem(download.SOURCES, "cifar10", replace(download.SOURCES["cifar10"], files=(*download.CIFAR, "data_batch_6.bin")))
    with pytest.raises(DataError, match="lacks files") as raised:
        load("cifar10")
    assert "missing: data_batch_6.bin" in message(raised)


def test_several_processes_at_once(server, mnist):
    lengths = []
    threads = [threading.Thread(target=lambda: lengths.append(len(load("mnist")[0]))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert lengths == [12] * 4 and names(mnist) == sorted(f"{name}.gz" for name in download.IDX)


def test_files_have_the_usual_permissions(mnist, tmp_path):
    load("mnist")
    (tmp_path / "usual").write_bytes(b"")
    assert os.stat(mnist / f"{TRAIN_IMAGES}.gz").st_mode == os.stat(tmp_path / "usual").st_mode


def test_a_folder_that_cannot_be_made(mnist, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="cannot be written") as raised:
        load("mnist", tmp_path / "file")
    assert "--data-dir" in message(raised)


def test_without_pooch(mnist, monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(MissingExtra, match=r"pip install 'minidl\[data\]'"):
        load("mnist")


def test_a_bar_on_a_terminal_only(server, mnist, monkeypatch, capsys):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    load("mnist")
    assert capsys.readouterr().err.startswith(f"Downloading {server.url}/mnist/{TRAIN_IMAGES}.gz\n")
    for path in mnist.iterdir():
        path.unlink()
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    load("mnist")
    size = len(server.files[f"/mnist/{TRAIN_IMAGES}.gz"]) / 1000
    assert f"{TRAIN_IMAGES}.gz" in screen.getvalue() and f"{size:.1f}/{size:.1f} kB" in screen.getvalue()


def test_checksums_of_what_is_published():
    for source in download.SOURCES.values():
        assert all(len(digest) == 64 and set(digest) <= set("0123456789abcdef") for digest in source.sha256.values())
        assert source.archive or {f"{file}.gz" for file in source.files} == set(source.sha256)
