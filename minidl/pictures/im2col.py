"""im2col as a picture: where each pixel of an image goes in the matrix of its patches.

A pixel has a colour of its own, which it keeps wherever it is copied to. That patches overlap is then seen as a colour that comes again.
The same laid out beside a filter, as a product of numbers, is `patches` in convolution.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minidl.errors import ArgumentError, ShapeError
from minidl.kernels import Pair, Window, pair, reference
from minidl.pictures.convolution import frame, number, rectangle, ruled, sheet
from minidl.pictures.images import array, rgb
from minidl.pictures.picture import BLUE, GREEN, INK, MUTED, ORANGE, PURPLE, Picture

CORNERS = ((BLUE, GREEN), (PURPLE, ORANGE))         # of the image; what lies between has a colour between
LIGHT = 0.5             # how much white is in them, so that numbers can be read


def im2col_matrix(x: Any, kernel: int | Pair, stride: int | Pair = 1, padding: int | Pair = 0, at: Pair = (0, 0),
                  follow: Pair | None = None) -> Picture:
    """An image, and the matrix that im2col makes of it: a patch in each column, each pixel in its own colour.

    x: (H, W), with few numbers. kernel: size of the filter. stride, padding: of the convolution. at: (row, column) of the patch that is
    framed, in the image and in the matrix. follow: (row, column) of a pixel that has a ring wherever it is. ShapeError or ArgumentError
    if something does not fit. MissingExtra without Matplotlib.

    >>> im2col_matrix(np.arange(9).reshape(3, 3), kernel=2)
    An image of 3 x 3 and the matrix of its 4 patches of 2 x 2: 4 rows, 4 columns, 16 numbers for 9. One patch is framed, 0, 1, 3, 4.
    """
    x = array(x)
    if x.ndim != 2:
        raise ShapeError("im2col_matrix: x is not one image of one channel", x=x.shape, hint="Give (H, W), such as x[0, 0] of a batch.")
    window = Window(pair("im2col_matrix", "kernel", kernel), pair("im2col_matrix", "stride", stride),
                    pair("im2col_matrix", "padding", padding))
    window.check("im2col_matrix", x.shape)
    height, width = window.out(x.shape)
    if not (0 <= at[0] < height and 0 <= at[1] < width):
        raise ArgumentError(f"im2col_matrix: there is no patch {tuple(at)}", hint=f"There are {height} rows and {width} columns of them.")
    if follow is not None and not (0 <= follow[0] < x.shape[0] and 0 <= follow[1] < x.shape[1]):
        raise ArgumentError(f"im2col_matrix: there is no pixel {tuple(follow)}", hint=f"The image is {x.shape[0]} x {x.shape[1]}.")
    image = reference.with_padding(x[None, None], window)[0, 0]
    matrix = reference.im2col(x[None, None], window)[0]
    # the same done to the numbers of the pixels says where each came from; those of the padding came from nowhere
    origin = np.arange(x.size).reshape(1, 1, *x.shape) + 1
    colours, ringed = ["", *shades(x.shape)], follow[0] * x.shape[1] + follow[1] + 1 if follow else -1
    tall, chosen = max(len(image), len(matrix)), at[0] * width + at[1]
    with sheet(image.shape[1] + matrix.shape[1] + 2.4, tall + 1.4) as axes:
        left, top = 0.3, 1.1 + (tall - len(image)) / 2
        coloured(axes, image, reference.with_padding(origin, window)[0, 0], colours, left, top, "image", ringed)
        frame(axes, left + at[1] * window.stride[1], top + at[0] * window.stride[0], *window.kernel[::-1], INK)
        axes.text(left + image.shape[1] + 0.8, 1.1 + tall / 2, "→", ha="center", va="center", size=axes.letters * 1.5)
        left, top = left + image.shape[1] + 1.6, 1.1 + (tall - len(matrix)) / 2
        coloured(axes, matrix, reference.im2col(origin, window)[0], colours, left, top, "a column for each patch", ringed)
        frame(axes, left + chosen, top, 1, len(matrix), INK)
    words = (f"An image of {x.shape[0]} x {x.shape[1]} and the matrix of its {matrix.shape[1]} patches of {window.kernel[0]} x "
             f"{window.kernel[1]}: {len(matrix)} rows, {matrix.shape[1]} columns, {matrix.size} numbers for {x.size}. One patch is framed, "
             f"{', '.join(map(number, matrix[:, chosen]))}.")
    if follow is not None:
        times = int((reference.im2col(origin, window) == ringed).sum())
        words += f" The pixel in row {follow[0]}, column {follow[1]} is ringed: {times} times in the matrix."
    return Picture(axes.figure, words)


def shades(size: tuple[int, ...]) -> list[str]:
    """A colour for each pixel, row by row: near each other for pixels that are near each other."""
    corners = np.array([[rgb(colour) for colour in row] for row in CORNERS], float)
    down, across = (np.linspace(0, 1, n)[:, None] if n > 1 else np.zeros((1, 1)) for n in size)
    upper, lower = (row[0] * (1 - across) + row[1] * across for row in corners)         # (W, 3) each
    mixed = upper * (1 - down[:, None]) + lower * down[:, None]                          # (H, W, 3)
    light = (255 * LIGHT + mixed * (1 - LIGHT)).round().astype(int)
    return ["#{:02x}{:02x}{:02x}".format(*colour) for colour in light.reshape(-1, 3)]


def coloured(axes: Any, values: np.ndarray, origin: np.ndarray, colours: list[str], left: float, top: float, title: str,
             ringed: int = -1) -> None:
    """Numbers in cells of the colour of the pixel that they came from; 0 in origin is padding, which has none."""
    from matplotlib.patches import Circle

    height, width = values.shape
    for i, j in np.ndindex(height, width):
        if origin[i, j]:
            rectangle(axes, left + j, top + i, 1, 1, facecolor=colours[origin[i, j]])
        axes.text(left + j + 0.5, top + i + 0.5, number(values[i, j]), ha="center", va="center", size=axes.letters,
                  color=INK if origin[i, j] else MUTED)
        if origin[i, j] == ringed:
            axes.add_patch(Circle((left + j + 0.5, top + i + 0.5), 0.4, fill=False, edgecolor=INK, linewidth=1.6))
    ruled(axes, left, top, width, height)
    axes.text(left + width / 2, top - 0.4, title, ha="center", va="center", size=axes.letters * 0.85, color=MUTED)
