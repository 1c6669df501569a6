"""Image files and folders of them: shapes, colours, transparency, orientation, and files that are broken."""

import io

import numpy as np
import pytest
from datafiles import message
from PIL import Image

from minidl.data import load, read_image
from minidl.data.images import read_bytes
from minidl.errors import ArgumentError, DataError, MissingExtra

COLOUR = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)


def png(array, mode=None):
    file = io.BytesIO()
    Image.fromarray(np.asarray(array), mode).save(file, "PNG")
    return file.getvalue()


def grey(level, size=(4, 6)):
    return png(np.full(size, level, np.uint8))


@pytest.fixture
def folder(tmp_path):
    """A function that writes {path: bytes} below a folder, and gives back the folder."""
    def write(files):
        for name, content in files.items():
            path = tmp_path / "pets" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return tmp_path / "pets"
    return write


def pets(count=5, **others):
    files = {f"{name}/{i}.png": grey(100 * k + i) for k, name in enumerate(("cat", "dog")) for i in range(count)}
    return {**files, **{name.replace("__", "/").replace("_png", ".png"): content for name, content in others.items()}}


class TestReadImage:
    def test_colour_and_grey(self, tmp_path):
        path = tmp_path / "a.png"
        path.write_bytes(png(COLOUR))
        x = read_image(path, (3, 6, 5))
        assert x.dtype == np.float32 and x.flags.c_contiguous
        np.testing.assert_array_equal(x, COLOUR.transpose(2, 0, 1) / np.float32(255))
        luma = COLOUR @ [0.299, 0.587, 0.114] / 255
        np.testing.assert_allclose(read_image(path, (1, 6, 5))[0], luma, atol=1 / 255)

    def test_grey_to_colour(self, tmp_path):
        (tmp_path / "a.png").write_bytes(grey(51))
        np.testing.assert_allclose(read_image(tmp_path / "a.png", (3, 4, 6)), 0.2, rtol=1e-6)

    def test_resized(self, tmp_path):
        (tmp_path / "a.png").write_bytes(png(np.repeat(np.array([[0, 255]], np.uint8), 8, 0).repeat(8, 1)))
        x = read_image(tmp_path / "a.png", (1, 2, 4))
        assert x.shape == (1, 2, 4) and x[0, 0, 0] < 0.1 and x[0, 0, 3] > 0.9

    def test_transparent_pixels_are_paper(self, tmp_path):
        ink = np.zeros((4, 4, 4), np.uint8)
        ink[1, 1, 3] = 255                      # one black pixel, the rest transparent black
        (tmp_path / "a.png").write_bytes(png(ink))
        x = read_image(tmp_path / "a.png", (1, 4, 4))[0]
        assert x[1, 1] == 0 and x.sum() == 15

    def test_sixteen_bits(self, tmp_path):
        (tmp_path / "a.png").write_bytes(png(np.array([[0, 257 * 100, 65535]], np.uint16)))
        np.testing.assert_array_equal(read_image(tmp_path / "a.png", (1, 1, 3))[0, 0] * 255, [0, 100, 255])

    def test_real_pixels_are_refused(self, tmp_path):
        Image.fromarray(np.ones((2, 2), np.float32)).save(tmp_path / "a.tiff")
        with pytest.raises(DataError, match="which of them is white is not known"):
            read_image(tmp_path / "a.tiff", (1, 2, 2))

    def test_photographs_are_turned_upright(self, tmp_path):
        exif = Image.Exif()
        exif[0x0112] = 6                        # lies on its side
        Image.fromarray(np.full((4, 8, 3), 9, np.uint8)).save(tmp_path / "a.jpg", exif=exif)
        assert read_bytes(tmp_path / "a.jpg").shape == (3, 8, 4)

    @pytest.mark.parametrize("kind", ["png", "jpg", "bmp", "gif"])
    def test_broken_files_are_named(self, tmp_path, kind):
        path = tmp_path / f"a.{kind}"
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(path)
        whole = path.read_bytes()
        for content in (b"", b"hello", whole[:10], whole[:len(whole) // 2]):
            path.write_bytes(content)
            with pytest.raises(DataError, match="cannot be read as an image") as raised:
                read_image(path, (3, 40, 40))
            assert f"file: {path}" in message(raised)

    def test_missing(self, tmp_path):
        with pytest.raises(DataError, match="the file is not there"):
            read_image(tmp_path / "a.png", (1, 2, 2))

    @pytest.mark.parametrize("shape", [(2, 4, 4), (4, 4), (64,), (3, 0, 4)])
    def test_shapes_that_are_no_image(self, tmp_path, shape):
        with pytest.raises(ArgumentError, match="cannot be made to fit"):
            read_image(tmp_path / "a.png", shape)

    def test_without_pillow(self, tmp_path, monkeypatch):
        monkeypatch.setitem(__import__("sys").modules, "PIL", None)
        with pytest.raises(MissingExtra, match=r"pip install 'minidl\[data\]'"):
            read_image(tmp_path / "a.png", (1, 2, 2))


class TestFolder:
    def test_one_folder_a_class(self, folder):
        train, test = load(folder(pets()))
        assert train.x.shape == (8, 1, 4, 6) and test.x.shape == (2, 1, 4, 6) and train.x.dtype == np.uint8
        assert train.classes == test.classes == ("cat", "dog") and train.name == "pets"
        levels = np.concatenate([train.x, test.x])[:, 0, 0, 0]
        labels = np.concatenate([train.y, test.y])
        assert sorted(levels) == [*range(5), *range(100, 105)] and (labels == (levels >= 100)).all() and test.y.tolist() == [0, 1]

    def test_train_and_test(self, folder):
        files = {f"train/{name}": content for name, content in pets().items()} | {"test/dog/a.png": grey(7)}
        train, test = load(folder(files))
        assert len(train) == 10 and test.y.tolist() == [1] and test.x[0, 0, 0, 0] == 7 and test.classes == ("cat", "dog")

    def test_one_colour_image_makes_all_colour(self, folder):
        for part in load(folder(pets(dog__z_png=png(COLOUR[:4].repeat(2, 1)[:, :6])))):
            assert part.shape == (3, 4, 6)

    def test_hidden_files_are_left_out(self, folder):
        assert len(load(folder({**pets(), "cat/.DS_Store": b"", "dog/Thumbs.db": b"", ".git/x": b"", "README.txt": b""}))[0]) == 8

    def test_size(self, folder):
        files = pets(dog__z_png=grey(3, size=(9, 9)))
        assert load(folder(files), size=3)[0].shape == (1, 3, 3)
        assert load(folder(files), size=(3, 5))[0].shape == (1, 3, 5)

    def test_unequal_sizes(self, folder):
        root = folder(pets(dog__2_png=grey(3, size=(4, 7)), dog__3_png=grey(3, size=(9, 9))))
        with pytest.raises(DataError, match="not all of one size") as raised:
            load(root)
        text = message(raised)
        assert f"file: {root / 'dog' / '2.png'}" in text and "found: 4 x 7" in text and "expected: 4 x 6" in text and "size=(4, 6)" in text

    @pytest.mark.parametrize("content", [b"", b"not an image", grey(3)[:-30]])
    def test_a_bad_image(self, folder, content):
        root = folder(pets(cat__3_png=content))
        with pytest.raises(DataError, match="cannot be read as an image") as raised:
            load(root)
        assert f"file: {root / 'cat' / '3.png'}" in message(raised)

    def test_an_empty_class(self, folder):
        root = folder(pets())
        (root / "newt").mkdir()
        with pytest.raises(DataError, match="class 'newt' has no images"):
            load(root)

    def test_no_classes(self, folder):
        with pytest.raises(DataError, match="there are no classes"):
            load(folder({"1.png": grey(1)}))

    def test_train_without_test(self, folder):
        with pytest.raises(DataError, match="no sub-folder 'test'"):
            load(folder({f"train/{name}": content for name, content in pets().items()}))

    def test_a_class_that_training_does_not_know(self, folder):
        with pytest.raises(DataError, match="the test has a class 'Dog', training has not"):
            load(folder({f"train/{name}": content for name, content in pets().items()} | {"test/Dog/a.png": grey(7)}))

    def test_folders_where_none_belong(self, folder):
        with pytest.raises(DataError, match="class 'cat' holds a folder"):
            load(folder({**pets(), "cat/more/1.png": grey(1)}))
        with pytest.raises(DataError, match="more sub-folders than train and test"):
            load(folder({"train/cat/1.png": grey(1), "test/cat/1.png": grey(1)}))

    def test_too_few_to_split(self, folder):
        with pytest.raises(DataError, match="too few"):
            load(folder({"cat/1.png": grey(1), "dog/1.png": grey(1)}))
