"""Pictures made of arrays: grids of images, filters, confusion matrices, mistakes, and the files that images become."""

import io
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from minidl import Tensor, nn, pictures
from minidl.errors import ShapeError
from minidl.pictures.images import cells, confused, filter_images, pixels, png

pytest.importorskip("matplotlib")


def texts(picture):
    """The words that stand in a picture."""
    return [element.text for element in ET.fromstring(picture.svg).iter("{http://www.w3.org/2000/svg}text")]


def count_images(picture):
    return picture.svg.count("<image ")


class TestImages:
    @pytest.mark.parametrize("shape", [(3, 8, 8), (3, 1, 8, 8), (3, 3, 8, 8), (1, 1, 4, 9)])
    def test_each_is_in_the_picture(self, shape):
        picture = pictures.images(np.zeros(shape))
        assert count_images(picture) == shape[0]
        assert f"{shape[-2]} x {shape[-1]}" in str(picture)

    def test_captions_stand_below_them(self):
        picture = pictures.images(Tensor(np.zeros((2, 8, 8))), ["a <7>", "a $1_2$"], title="Digits")
        assert {"a <7>", "Digits"} <= set(texts(picture)) and "a $1_2$" in texts(picture)
        assert str(picture) == "Digits: 2 images of 8 x 8. a <7>; a $1_2$."

    def test_of_none_is_a_picture_too(self):
        assert str(pictures.images(np.zeros((0, 1, 8, 8)))) == "0 images of 8 x 8."

    @pytest.mark.parametrize("shape", [(8, 8), (2, 2, 8, 8), (2, 8, 8, 3, 1)])
    def test_what_is_no_image_is_an_error(self, shape):
        with pytest.raises(ShapeError, match=r"images: these are not images of 1 or 3 channels"):
            pictures.images(np.zeros(shape))

    def test_captions_that_are_too_few(self):
        with pytest.raises(ShapeError, match="1 captions for 2 images"):
            pictures.images(np.zeros((2, 8, 8)), ["one"])

    def test_may_be_saved_as_png(self, tmp_path):
        assert pictures.images(np.zeros((2, 8, 8))).save(tmp_path / "some.png").read_bytes()[1:4] == b"PNG"


class TestPixels:
    def test_numbers_from_0_to_1(self):
        found = pixels(np.array([[[[0.0, 0.5], [1.0, 7.0]]]]), "")
        assert found.shape == (1, 2, 2, 3) and found[0, ..., 0].tolist() == [[0, 128], [255, 255]]

    def test_from_the_smallest_to_the_largest(self):
        assert pixels(np.array([[[-1.0, 3.0]]]), "", None)[0, 0, :, 1].tolist() == [0, 255]

    def test_bytes_stay_what_they_are(self):
        x = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 5), np.uint8)
        assert (pixels(x, "").transpose(0, 3, 1, 2) == x).all()

    def test_what_is_not_finite_is_shown_somehow(self):
        assert pixels(np.array([[[np.nan, np.inf]]]), "").shape == (1, 1, 2, 3)


class TestPng:
    @pytest.mark.parametrize("shape", [(7, 5), (1, 7, 5), (3, 7, 5)])
    def test_can_be_read_again(self, shape):
        image = pytest.importorskip("PIL.Image")
        x = np.random.default_rng(0).random(shape)
        read = np.asarray(image.open(io.BytesIO(png(x))))
        assert (read == pixels(x.reshape(-1, 7, 5)[None], "")[0]).all()

    def test_of_bytes(self):
        image = pytest.importorskip("PIL.Image")
        x = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
        assert (np.asarray(image.open(io.BytesIO(png(x)))) == x).all()


class TestFilters:
    def test_of_a_layer(self):
        picture = pictures.filters(nn.Conv2d(3, 6, 5, generator=np.random.default_rng(0)).w, title="First")
        assert count_images(picture) == 6 and str(picture) == "First: 6 filters of 5 x 5."

    def test_zero_is_grey_and_all_have_one_scale(self):
        shown = filter_images(np.array([0.0, 1.0, -2.0]).reshape(3, 1, 1, 1))
        assert shown.ravel().tolist() == [0.5, 0.75, 0.0]

    def test_channels_that_are_no_colours_are_shown_apart(self):
        assert filter_images(np.zeros((4, 2, 3, 3))).shape == (8, 1, 3, 3)

    def test_of_an_affine_layer_over_images(self):
        w = np.random.default_rng(0).random((12, 5))
        shown = filter_images(w, (3, 2, 2))
        assert shown.shape == (5, 3, 2, 2)
        np.testing.assert_allclose(shown[1].ravel(), 0.5 + 0.5 * w[:, 1] / w.max())

    def test_no_more_than_asked_for(self):
        picture = pictures.filters(np.zeros((200, 1, 3, 3)), most=10)
        assert count_images(picture) == 10 and str(picture) == "the first 10 of 200 filters of 3 x 3."

    @pytest.mark.parametrize("w, shape", [(np.zeros((4, 4)), None), (np.zeros((5, 4)), (1, 2, 2)), (np.zeros((1, 2, 2, 1)), (1, 2, 2))])
    def test_anything_else_is_an_error(self, w, shape):
        with pytest.raises(ShapeError, match="filters: these are not"):
            pictures.filters(w, shape=shape)


class TestConfusion:
    COUNTS = np.array([[8, 2, 0], [0, 10, 0], [1, 3, 6]])

    def test_says_how_often(self):
        picture = pictures.confusion(self.COUNTS, ["cat", "dog", "<b>"])
        assert {"cat", "dog", "<b>", "8", "2", "10", "1", "3", "6"} <= set(texts(picture)) and "0" not in texts(picture)
        assert str(picture) == ("Confusion matrix of 30 examples: 80 % right. "
                                "Most often wrong: <b> taken for dog 3 times, cat taken for dog 2 times, <b> taken for cat 1 time.")

    def test_of_a_hundred_classes_names_some(self):
        picture = pictures.confusion(np.eye(100, dtype=int))
        assert [text for text in texts(picture) if text.isdecimal()] == [str(i) for i in range(0, 100, 10)] * 2
        assert len(picture.svg) < 30_000

    def test_long_names_are_cut_and_strange_letters_stay(self):
        picture = pictures.confusion(np.eye(3, dtype=int), ["Donaudampfschifffahrt", "猫", "🐕"])
        assert {"Donaudampfschif…", "猫", "🐕"} <= set(texts(picture))

    def test_of_nothing(self):
        assert "0 examples" in str(pictures.confusion(np.zeros((2, 2), int)))

    def test_rows_are_what_it_is(self):
        shown = cells(np.array([[1.0, 0.25], [0.0, 0.0]]))
        assert shown[..., 3].tolist() == [[255, 128], [0, 0]] and (shown[0, 0, :3] != shown[0, 1, :3]).any()

    def test_confused(self):
        assert confused(self.COUNTS) == [(2, 1, 3), (0, 1, 2), (2, 0, 1)]
        assert self.COUNTS[0, 0] == 8               # and has not changed them

    @pytest.mark.parametrize("counts, classes", [(np.zeros((2, 3)), None), (np.zeros(4), None), (np.zeros((2, 2)), ["one"])])
    def test_anything_else_is_an_error(self, counts, classes):
        with pytest.raises(ShapeError, match="confusion: "):
            pictures.confusion(counts, classes)


class TestMistakes:
    def test_the_surest_comes_first_and_what_is_right_is_left_out(self):
        picture = pictures.mistakes(np.zeros((4, 1, 8, 8)), [0, 1, 2, 1], [1, 1, 0, 0], [0.6, 1.0, 0.9, 0.7], ["a", "b", "c"], most=2)
        assert count_images(picture) == 2 and str(picture) == "2 mistakes: c taken for a, 90 %; b taken for a, 70 %."

    def test_there_may_be_none(self):
        assert str(pictures.mistakes(np.zeros((1, 1, 8, 8)), [1], [1], [0.9])) == "0 mistakes: none."

    def test_as_many_of_each(self):
        with pytest.raises(ShapeError, match="mistakes: these are not as many as each other"):
            pictures.mistakes(np.zeros((2, 1, 8, 8)), [1], [1], [0.9])
