"""In the picture of im2col every number of the matrix has the colour of the pixel that it came from."""

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="drawing needs the extra viz")

from matplotlib.patches import Circle

from minidl import kernels
from minidl.errors import ArgumentError, ShapeError
from minidl.pictures import im2col_matrix
from minidl.pictures.im2col import shades

X = np.arange(1, 21).reshape(4, 5)
GEOMETRY = [(3, 1, 0), ((2, 3), (2, 1), 0), (3, 2, (1, 0))]


@pytest.mark.parametrize("kernel, stride, padding", GEOMETRY)
def test_shows_the_matrix_that_im2col_makes(kernel, stride, padding):
    window = kernels.Window(*(kernels.pair("", "", value) for value in (kernel, stride, padding)))
    matrix = kernels.im2col(X[None, None], window)[0]
    picture = im2col_matrix(X, kernel, stride, padding)
    texts = [int(text.get_text()) for text in picture.figure.axes[0].texts if text.get_text().isdigit()]
    padded = np.prod(window.padded(X.shape))
    np.testing.assert_array_equal(texts[padded:], matrix.ravel())
    assert f"{len(matrix)} rows, {matrix.shape[1]} columns, {matrix.size} numbers for 20" in picture.words


def test_a_pixel_keeps_its_colour():
    axes, = im2col_matrix(X, 2).figure.axes
    numbers = {(round(text.get_position()[0] - 0.5, 6), round(text.get_position()[1] - 0.5, 6)): int(text.get_text())
               for text in axes.texts if text.get_text().isdigit()}
    colours = {}
    for cell in axes.patches:
        place = tuple(round(z, 6) for z in (cell.get_x(), cell.get_y())) if hasattr(cell, "get_x") else None
        if place in numbers and cell.get_facecolor()[3] and cell.get_width() == cell.get_height() == 1:
            colours.setdefault(numbers[place], set()).add(cell.get_facecolor())
    assert set(colours) == set(range(1, 21)) and all(len(each) == 1 for each in colours.values())
    assert len(set.union(*colours.values())) == 20


def test_frames_the_patch_in_the_image_and_in_the_matrix():
    frames = [(cell.get_width(), cell.get_height()) for cell in im2col_matrix(X, (2, 3), at=(1, 2)).figure.axes[0].patches
              if hasattr(cell, "get_width") and not cell.get_facecolor()[3]]
    assert frames == [(3, 2), (1, 6)]


@pytest.mark.parametrize("size", [(1, 1), (1, 4), (3, 1), (5, 6)])
def test_colours_are_one_for_each_pixel(size):
    assert len(set(shades(size))) == size[0] * size[1]


def test_refuses_a_patch_that_is_not_there():
    with pytest.raises(ArgumentError, match=r"no patch \(2, 0\)"):
        im2col_matrix(X, 3, at=(2, 0))


def test_refuses_several_images():
    with pytest.raises(ShapeError, match="not one image"):
        im2col_matrix(X[None], 3)


def test_rings_a_pixel_wherever_it_is():
    picture = im2col_matrix(np.arange(25).reshape(5, 5), 3, follow=(2, 2))
    axes, = picture.figure.axes
    ringed = [each.center for each in axes.patches if isinstance(each, Circle)]
    texts = {tuple(round(z, 6) for z in text.get_position()): text.get_text() for text in axes.texts}
    assert [texts[tuple(round(z, 6) for z in place)] for place in ringed] == ["12"] * 10
    assert "9 times in the matrix" in picture.words
    with pytest.raises(ArgumentError, match="there is no pixel"):
        im2col_matrix(X, 2, follow=(4, 0))
