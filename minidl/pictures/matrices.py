"""Matrices as heat maps, side by side: where the large numbers stand, and of which sign they are.

Orange is above zero, blue below, paper is zero, and the same colour is the same number in all of them. Small numbers of a matrix are often
what is to be seen, so colours can follow the root of the numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from minidl.backend import to_numpy
from minidl.errors import ArgumentError, ShapeError
from minidl.pictures.picture import BLUE, INK, MUTED, ORANGE, PAPER, Picture, canvas
from minidl.tensor import Tensor

PAGE = 8.4              # inches, how wide a picture is at most
LARGEST = 2.5           # inches, how high a matrix is at most, unless somebody wants it higher
BAR, MARGIN = 0.75, 0.4     # inches, for a scale of colours and for the names of blocks
WRITTEN = 8             # matrices of up to so many rows and columns have their numbers written in


def matrices(named: Mapping[str, Any], *, blocks: Mapping[str, int] | Sequence[int] = (), root: bool = False, shared: bool = True,
             bar: str = "", columns: int = 4, height: float | None = None) -> Picture:
    """Matrices beside each other, with one scale of colours for all.

    named: two-dimensional arrays or Tensors, by what is written over them. blocks: how many rows and columns each block on the diagonal
    has, by its name or without; lines are drawn between them in every matrix that has so many rows and columns. root: colours follow the
    root of a number, so that small ones are seen too. shared: False gives each matrix its own scale. bar: what the numbers are, with their
    unit, beside the scale. columns: how many stand in a row. height: of each, in inches; as much as a page has room for unless given.
    Numbers of up to 8 x 8 are written in.
    ShapeError for what is no matrix, ArgumentError for none.

    >>> matrices({"A": np.eye(3), "its double": 2 * np.eye(3)})
    A: 3 x 3, from 0 to 1. its double: 3 x 3, from 0 to 2.
    """
    arrays = {name: np.asarray(to_numpy(m.data if isinstance(m, Tensor) else m), np.float64) for name, m in named.items()}
    if not arrays:
        raise ArgumentError("matrices: there are none to draw")
    for name, m in arrays.items():
        if m.ndim != 2 or not m.size:
            raise ShapeError(f"matrices: {name} is no matrix", shape=m.shape, hint="Give it two axes, for example m.reshape(1, -1).")
    sizes = list(blocks.values() if isinstance(blocks, Mapping) else blocks)
    columns = min(columns, len(arrays))
    rows = -(-len(arrays) // columns)
    largest = {name: float(np.nanmax(np.abs(m), initial=0)) or 1.0 for name, m in arrays.items()}
    # the wide ones get more room
    widths = [max([_shape(m) for m in list(arrays.values())[i::columns]]) for i in range(columns)]
    bars = BAR * (1 if shared else columns)
    height = height or min(LARGEST, (PAGE - MARGIN - bars) / sum(widths))
    with canvas(sum(widths) * height + bars + MARGIN, (height + 0.6) * rows, rows, columns, squeeze=False,
                width_ratios=widths) as (figure, axes):
        for i, (name, m) in enumerate(arrays.items()):
            ax = axes[i // columns][i % columns]
            image = _heat(ax, m, max(largest.values()) if shared else largest[name], root)
            ax.set_title(name)
            if sum(sizes) == m.shape[0] == m.shape[1]:
                _lines(ax, sizes, list(blocks) if isinstance(blocks, Mapping) else [], i % columns == 0)
            if not shared:
                _bar(figure, image, [ax], bar)
        for ax in axes.ravel()[len(arrays):]:
            ax.set_axis_off()
        if shared:
            _bar(figure, image, list(axes.ravel()), bar)
    return Picture(figure, " ".join(f"{name}: {m.shape[0]} x {m.shape[1]}, from {m.min():.3g} to {m.max():.3g}."
                                    for name, m in arrays.items()))


def _shape(m: np.ndarray) -> float:
    """How many times as wide as high it is drawn: between half and twice."""
    return min(max(m.shape[1] / m.shape[0], 0.5), 2)


def _heat(ax: Any, m: np.ndarray, limit: float, root: bool) -> Any:
    """The matrix itself, every number between -limit and limit."""
    from matplotlib.colors import FuncNorm, LinearSegmentedColormap, Normalize

    colours = LinearSegmentedColormap.from_list("signed", [INK, BLUE, PAPER, ORANGE, "#6b2f00"])
    norm = FuncNorm((lambda x: np.sign(x) * np.abs(x) ** 0.5, lambda x: np.sign(x) * x ** 2), -limit, limit) if root \
        else Normalize(-limit, limit)
    image = ax.imshow(m, cmap=colours, norm=norm, interpolation="none")       # as many pixels as numbers: whoever shows it enlarges them
    ax.grid(False)
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(True)
        spine.set_color(MUTED)
    ax.set_xlabel(f"{m.shape[0]} x {m.shape[1]}", color=MUTED)
    if max(m.shape) <= WRITTEN:
        for place, x in np.ndenumerate(m):
            ax.text(place[1], place[0], f"{x:.2g}", ha="center", va="center", fontsize=8,
                    color=PAPER if abs(norm(x) - 0.5) > 0.33 else INK)
    return image


def _lines(ax: Any, sizes: list[int], names: list[str], named: bool) -> None:
    """Lines between the blocks, and at the first matrix of a row what they are."""
    borders = np.cumsum([0, *sizes])
    for border in borders[1:-1]:
        ax.axhline(border - 0.5, color=INK, linewidth=0.7)
        ax.axvline(border - 0.5, color=INK, linewidth=0.7)
    if names and named:
        ax.set_yticks((borders[:-1] + borders[1:] - 1) / 2, names)
        ax.tick_params(axis="y", length=0)


def _bar(figure: Any, image: Any, axes: list[Any], label: str) -> None:
    bar = figure.colorbar(image, ax=axes, shrink=0.8, aspect=25)
    bar.outline.set_visible(False)
    limit = image.norm.vmax
    bar.set_ticks([-limit, -limit / 4, 0, limit / 4, limit], labels=[f"{k * limit:.2g}" for k in (-1, -0.25, 0, 0.25, 1)])
    if label:
        bar.set_label(label)
