"""What each layer of a network makes of one image, drawn from the image down to the classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from minidl.errors import ShapeError
from minidl.pictures.convolution import TIMES
from minidl.pictures.images import array
from minidl.pictures.picture import BLUE, GREY, INK, MUTED, Picture, canvas

SIDE, NAMES, WIDTH, GAP = 0.42, 1.85, 8.9, 0.14       # inches: of a map, of the column of names, of the picture, between rows


def feature_maps(outputs: Mapping[str, Any], classes: Sequence[str] = (), most: int = 16) -> Picture:
    """The outputs of layers for one image, a row for each: maps as images, vectors as strips, and scores of classes as bars.

    outputs: by name, (C, H, W), (D,), or those with a batch axis of 1. Black is 0 or less, and white the largest number of the row.
    classes: names; a last row of as many numbers becomes bars. most: how many maps of a row are shown. ShapeError for other shapes.

    >>> print(feature_maps({"image": np.zeros((1, 8, 8)), "after conv": np.ones((20, 6, 6)), "flat": np.ones(720)}))
    image: 1 map of 8 x 8. after conv: 20 maps of 6 x 6, 16 shown. flat: 720 numbers.
    """
    rows = {name: _of_one_image(name, y) for name, y in outputs.items()}
    if not rows:
        raise ShapeError("feature_maps: there are no outputs", hint="Give a dict: {'conv': conv(x), ...}.")
    last = list(rows)[-1]
    bars = last if classes and rows[last].shape == (len(classes),) else ""
    heights = [1.0 if name == bars else SIDE if y.ndim == 3 else 0.3 for name, y in rows.items()]
    high = sum(heights) + GAP * (len(rows) + 1) + (0.42 if bars else 0)
    with canvas(WIDTH, high) as (figure, axes):
        figure.set_layout_engine("none")
        axes.axis("off")
        top = GAP
        for (name, y), height in zip(rows.items(), heights):
            middle = 1 - (top + height / 2) / high
            figure.text(0.01, middle + 0.09 / high, name, va="center", size=9.5, color=INK, weight="bold")
            figure.text(0.01, middle - 0.09 / high, "probabilities" if name == bars and _probable(y) else _shape(y, most),
                        va="center", size=8.5, color=MUTED)

            axes = figure.add_axes((NAMES / WIDTH, 1 - (top + height) / high, (WIDTH - NAMES - 0.05) / WIDTH, height / high))
            if name == bars:
                _bars(axes, y, classes)
            elif y.ndim == 3:
                _images(axes, y[:most], (WIDTH - NAMES - 0.02) / most - 0.03, float(y.max()))
            else:
                _images(axes, y[None, None], WIDTH - NAMES - 0.05, float(y.max()))
            top += height + GAP
    told = ". ".join(f"{name}: {_shape(y, most).replace(TIMES, 'x')}" for name, y in rows.items())
    if bars:
        told += f"; the largest, {rows[bars].max():.2g}, is that of {classes[int(rows[bars].argmax())]}"
    return Picture(figure, told + ".")


def _of_one_image(name: str, y: Any) -> np.ndarray:
    y = array(y)
    found = y.shape
    if y.ndim in (2, 4) and len(y) == 1:
        y = y[0]
    if y.ndim not in (1, 3):
        raise ShapeError("feature_maps: outputs must be those of one image", **{name: found}, hint="Take one of the batch: y[:1].")
    return y


def _shape(y: np.ndarray, most: int) -> str:
    if y.ndim == 1:
        return f"{len(y)} numbers"
    shown = f", {most} shown" if len(y) > most else ""
    return f"{len(y)} map{'s' if len(y) > 1 else ''} of {y.shape[1]} {TIMES} {y.shape[2]}{shown}"


def _probable(y: np.ndarray) -> bool:
    return bool(y.min() >= 0 and abs(y.sum() - 1) < 1e-3)


def _images(axes: Any, ys: np.ndarray, width: float, peak: float) -> None:
    """Images side by side, each so many inches wide, and lines around them."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    corners = []
    for k, y in enumerate(ys):
        left, right = k * (width + 0.03), k * (width + 0.03) + width
        axes.imshow(y, cmap="gray", vmin=0, vmax=max(peak, 1e-30), extent=(left, right, 0, 1), aspect="auto")
        corners += [(left, 0), (left, 1), (right, 1), (right, 0), (left, 0)]
    codes = [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY] * len(ys)
    axes.add_patch(PathPatch(Path(corners, codes), facecolor="none", edgecolor=GREY, linewidth=0.6, clip_on=False))
    axes.set(xlim=(0, WIDTH - NAMES - 0.05), ylim=(0, 1))
    axes.axis("off")


def _bars(axes: Any, y: np.ndarray, classes: Sequence[str]) -> None:
    best = int(y.argmax())
    axes.bar(range(len(y)), y, color=[BLUE if k == best else GREY for k in range(len(y))], width=0.7)
    axes.set_xticks(range(len(y)), [str(c) for c in classes])
    axes.set_xlim(-0.5, len(y) - 0.5)
    axes.set_ylim(min(0.0, float(y.min())), max(1.0, float(y.max())))
    if _probable(y):
        axes.set_yticks([0, 0.5, 1])
    axes.grid(False, axis="x")
    axes.tick_params(length=0)
