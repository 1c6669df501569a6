"""Checkpoints come back to the bit, are whole or not there at all, and damage to them is noticed."""

import errno
import io
import json
import os
import struct
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import strict  # noqa: F401   makes the strict device known
from minidl import backend, checkpoint
from minidl.checkpoint import Checkpoints, load, save, write
from minidl.errors import ArgumentError, CheckpointError

ARRAYS = {"w": np.arange(6, dtype=np.float32).reshape(2, 3).T, "steps": np.array(7)}
REST = {"epoch": 3, "history": [{"loss": 0.1}], "name": "é"}
TYPES = ["bool", "int8", "uint8", "int16", "int32", "int64", "uint64", "float16", "float32", "float64", ">f4"]


def layout(x):
    """What decides the order of operations on an array: its shape, and its axes by their step in memory."""
    long = [axis for axis in range(x.ndim) if x.shape[axis] > 1]
    return x.shape, sorted(long, key=lambda axis: -abs(x.strides[axis]))


class TestSaveAndLoad:
    @settings(derandomize=True, max_examples=80, deadline=None)
    @given(data=st.data(), dtype=st.sampled_from(TYPES), shape=st.lists(st.integers(0, 4), max_size=4))
    def test_arrays_come_back_to_the_bit_in_their_memory_order(self, tmp_path_factory, data, dtype, shape):
        x = np.random.default_rng(0).integers(0, 2 if dtype == "bool" else 100, shape).astype(dtype)
        x = x.transpose(data.draw(st.permutations(range(len(shape)))))
        file = tmp_path_factory.mktemp("roundtrip") / "a.safetensors"
        save(file, {"x": x})
        y = load(file)[0]["x"]
        assert y.dtype == x.dtype.newbyteorder("=") and y.tolist() == x.tolist()
        if x.size:
            assert layout(y) == layout(x)
        once = file.read_bytes()
        save(file, {"x": y})
        assert file.read_bytes() == once

    def test_what_is_no_array_comes_back_too(self, tmp_path):
        save(tmp_path / "a", ARRAYS, REST)
        assert load(tmp_path / "a")[1] == REST

    def test_views_are_saved_as_what_they_show(self, tmp_path):
        x = np.arange(12.0).reshape(3, 4)
        views = {"columns": x[:, ::2], "backwards": x[::-1], "broadcast": np.broadcast_to(x[0], (2, 4))}
        save(tmp_path / "a", views)
        loaded = load(tmp_path / "a")[0]
        for name, view in views.items():
            np.testing.assert_array_equal(loaded[name], view)

    def test_arrays_of_another_device_become_numpy_s(self, tmp_path):
        save(tmp_path / "a", {"x": backend.asarray(np.arange(3), "strict:0")})
        assert load(tmp_path / "a")[0]["x"].tolist() == [0, 1, 2]

    def test_the_same_content_is_the_same_file(self, tmp_path):
        for name in ("a", "b"):
            save(tmp_path / name, ARRAYS, REST)
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()

    @pytest.mark.parametrize("dtype", ["complex64", "longdouble", "U3", "O"])
    def test_numbers_that_the_format_does_not_have_are_named(self, tmp_path, dtype):
        with pytest.raises(CheckpointError, match=r"layer\.w is .*, which safetensors cannot hold"):
            save(tmp_path / "a", {"layer.w": np.zeros(2, dtype)})

    @pytest.mark.parametrize("rest", [{"loss": float("nan")}, {"x": np.zeros(2)}, {"x": {1, 2}}])
    def test_what_json_does_not_have_is_an_error(self, tmp_path, rest):
        with pytest.raises(CheckpointError, match="not what JSON can hold"):
            save(tmp_path / "a", {}, rest)
        assert not list(tmp_path.iterdir())

    def test_files_of_other_programs_give_their_arrays(self, tmp_path):
        from safetensors.numpy import save_file

        save_file({"w": np.ones(2)}, tmp_path / "a", {"format": "pt"})
        arrays, rest = load(tmp_path / "a")
        assert arrays["w"].tolist() == [1, 1] and rest == {}

    def test_bfloat16_is_read_where_its_package_is(self, tmp_path):
        pytest.importorskip("ml_dtypes", reason="bfloat16 needs ml_dtypes: pip install 'minidl[precision]'")
        header = json.dumps({"w": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}).encode()
        (tmp_path / "a").write_bytes(struct.pack("<Q", len(header)) + header + struct.pack("<2H", 0x3F80, 0xC000))
        code = "import sys; from minidl.checkpoint import load; w = load(sys.argv[1])[0]['w']; print(w.dtype, w.astype('float32').tolist())"
        said = subprocess.run([sys.executable, "-c", code, tmp_path / "a"], capture_output=True, text=True, check=True).stdout
        assert said == "bfloat16 [1.0, -2.0]\n"            # in a process that has not seen bfloat16 before

    def test_numbers_that_numpy_does_not_have_are_an_error(self, tmp_path):
        header = json.dumps({"w": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}).encode()
        (tmp_path / "a").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
        code = ("import sys; sys.modules['ml_dtypes'] = None; from minidl import checkpoint\n"
                "try:\n    checkpoint.load(sys.argv[1])\nexcept checkpoint.CheckpointError as error:\n    print(error)")
        said = subprocess.run([sys.executable, "-c", code, tmp_path / "a"], capture_output=True, text=True, check=True).stdout
        assert "numbers that NumPy does not have" in said and "minidl[precision]" in said

    def test_what_is_no_file_is_an_error(self, tmp_path):
        for path in (tmp_path / "none", tmp_path):
            with pytest.raises(CheckpointError, match="there is no file"):
                load(path)


class TestDamage:
    @pytest.fixture
    def file(self, tmp_path):
        save(tmp_path / "a", {"x": np.arange(4, dtype=np.float32), "y": np.ones((2, 2), np.float32).T}, {"step": 1})
        return tmp_path / "a"

    def test_a_file_cut_off_anywhere(self, file):
        content = file.read_bytes()
        for length in range(len(content)):
            file.write_bytes(content[:length])
            with pytest.raises(CheckpointError, match="cannot be read"):
                load(file)

    def test_any_byte_that_is_another_one_is_noticed_or_has_no_meaning(self, file):
        content = file.read_bytes()
        right = load(file)
        noticed = 0
        for place in range(len(content)):
            for bit in (1, 64):
                file.write_bytes(content[:place] + bytes([content[place] ^ bit]) + content[place + 1:])
                try:
                    arrays, rest = load(file)
                except CheckpointError:
                    noticed += 1
                else:                   # a space in the header, or the name of the metadata
                    assert rest == right[1] and all((arrays[name] == right[0][name]).all() for name in right[0])
        assert noticed > 1.8 * len(content)

    @pytest.mark.parametrize("lie", [
        {"x": {"dtype": "I32", "shape": [4], "data_offsets": [0, 16]}},
        {"x": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}},
        {"x": {"dtype": "F32", "shape": [4], "data_offsets": [16, 32]}, "y": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}},
        {"x": {"dtype": "F32", "shape": [4], "data_offsets": [0, 1 << 60]}},
        {"x": {"dtype": "F32", "shape": [1 << 62], "data_offsets": [0, 16]}},
        {"x": {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}},
        {"__metadata__": {"minidl": "[]"}},
        {"__metadata__": {"minidl": '{"checksum": 5}'}},
        {"__metadata__": {"minidl": '{"checksum": "00000000", "orders": {"z": [1]}, "rest": {}}'}},
    ])
    def test_a_header_that_lies(self, file, lie):
        content = file.read_bytes()
        length, = struct.unpack("<Q", content[:8])
        header = json.dumps(json.loads(content[8:8 + length]) | lie).encode()
        file.write_bytes(struct.pack("<Q", len(header)) + header + content[8 + length:])
        with pytest.raises(CheckpointError, match=r"cannot be read|is damaged"):
            load(file)

    def test_other_files_under_the_name(self, file):
        for content in (b"", b"hello", bytes(100), b"\xff" * 100, b"PK\x03\x04" + bytes(50)):
            file.write_bytes(content)
            with pytest.raises(CheckpointError, match="cannot be read"):
                load(file)


def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class FullDisk(io.FileIO):
    """A file that takes half of what it is given."""

    def write(self, content):
        super().write(content[:len(content) // 2])
        full()


class TestWrite:
    @pytest.mark.parametrize("point", ["open", "fsync", "replace"])
    def test_a_disk_that_is_full_leaves_what_was_there_and_nothing_else(self, tmp_path, monkeypatch, point):
        write(tmp_path / "a", b"before")
        if point == "open":
            monkeypatch.setattr(checkpoint, "open", FullDisk, raising=False)
        else:
            monkeypatch.setattr(os, point, full)
        with pytest.raises(CheckpointError, match="a could not be written: No space left on device"):
            write(tmp_path / "a", b"after, and longer")
        assert [file.name for file in tmp_path.iterdir()] == ["a"] and (tmp_path / "a").read_bytes() == b"before"

    def test_ctrl_c_leaves_what_was_there_and_nothing_else(self, tmp_path, monkeypatch):
        def interrupted(handle):
            raise KeyboardInterrupt

        write(tmp_path / "a", b"before")
        monkeypatch.setattr(os, "fsync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / "a", b"after")
        assert [file.name for file in tmp_path.iterdir()] == ["a"] and (tmp_path / "a").read_bytes() == b"before"

    def test_everything_is_on_the_disk_before_the_name_and_the_name_before_the_end(self, tmp_path, monkeypatch):
        events = []
        fsync, replace = os.fsync, os.replace
        monkeypatch.setattr(os, "fsync", lambda handle: (events.append(os.path.isdir(f"/proc/self/fd/{handle}")), fsync(handle)))
        monkeypatch.setattr(os, "replace", lambda old, new: (events.append(os.path.basename(new)), replace(old, new)))
        write(tmp_path / "a", b"content")
        assert events == [False, "a", True]             # the file, its name, the folder

    def test_a_folder_that_is_not_there_is_an_error(self, tmp_path):
        with pytest.raises(CheckpointError, match="No such file or directory"):
            write(tmp_path / "none" / "a", b"")

    def test_a_disk_that_is_really_full(self, tmp_path):
        mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path]
        if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
            pytest.skip("a small disk to fill needs root, and permission to mount")
        try:
            save(tmp_path / "a", {"x": np.zeros(1000)})
            before = (tmp_path / "a").read_bytes()
            with pytest.raises(CheckpointError, match="No space left on device"):
                save(tmp_path / "a", {"x": np.zeros(100_000)})
            assert [file.name for file in tmp_path.iterdir()] == ["a"] and (tmp_path / "a").read_bytes() == before
        finally:
            subprocess.run(["umount", tmp_path], check=True)


class TestCheckpoints:
    def names(self, checkpoints):
        return [file.name for file in checkpoints.files().values()]

    @pytest.mark.parametrize("keep", [1, 2, 3])
    def test_the_newest_are_kept(self, tmp_path, keep):
        checkpoints = Checkpoints(tmp_path / "new" / "folder", keep)
        for step in (5, 10, 15, 20):
            checkpoints.save(step, ARRAYS, REST)
        assert list(checkpoints.files()) == [5, 10, 15, 20][-keep:]
        assert checkpoints.latest().file.name == "step-000000020.safetensors"

    def test_steps_of_more_digits_are_newer(self, tmp_path):
        checkpoints = Checkpoints(tmp_path)
        for step in (999_999_998, 999_999_999, 1_000_000_000, 10_000_000_000):
            checkpoints.save(step, {}, REST)
        assert list(checkpoints.files()) == [1_000_000_000, 10_000_000_000]

    def test_where_the_newest_is_damaged_the_one_before_is_taken(self, tmp_path):
        checkpoints = Checkpoints(tmp_path, keep=3)
        for step in (1, 2, 3):
            checkpoints.save(step, ARRAYS, {"step": step})
        for step in (2, 3):
            os.truncate(checkpoints.files()[step], 100)
        found = checkpoints.latest()
        assert found.rest == {"step": 1}
        assert [file.name for file in found.damaged] == ["step-000000003.safetensors", "step-000000002.safetensors"]

    def test_what_is_newer_than_the_one_that_is_written_goes(self, tmp_path):
        checkpoints = Checkpoints(tmp_path, keep=2)
        for step in (10, 20, 15):           # the run fell back to 10, since 20 was damaged
            checkpoints.save(step, {}, {})
        assert list(checkpoints.files()) == [10, 15]

    def test_files_of_another_kind_are_not_looked_at(self, tmp_path):
        for name in (".step-000000001.safetensors.77.tmp", "step-x.safetensors", "step-1.txt", "weights.safetensors"):
            (tmp_path / name).write_bytes(b"?")
        assert Checkpoints(tmp_path).latest() is None

    def test_no_folder_is_no_checkpoint(self, tmp_path):
        assert Checkpoints(tmp_path / "none").latest() is None

    def test_if_none_can_be_read_each_is_named(self, tmp_path):
        checkpoints = Checkpoints(tmp_path)
        for step in (1, 2):
            checkpoints.save(step, ARRAYS, REST)
            os.truncate(checkpoints.files()[step], step)
        with pytest.raises(CheckpointError, match=r"(?s)none of those .*step-000000002.*size: 2 bytes.*step-000000001"):
            checkpoints.latest()

    def test_a_place_where_no_folder_can_be_is_an_error(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(CheckpointError, match="could not be made"):
            Checkpoints(tmp_path / "file" / "folder").save(1, {}, {})

    def test_none_cannot_be_kept(self, tmp_path):
        with pytest.raises(ArgumentError, match="keep is 0"):
            Checkpoints(tmp_path, keep=0)
