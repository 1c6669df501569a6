"""Convolution and pooling as one would do them on squared paper: numbers in cells, the window over them, and what comes of each place.

Each place of the window has a colour, which its result has too. How a network's layers see an image is in feature_maps.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from minidl.errors import ArgumentError, ShapeError
from minidl.kernels import Pair, Window, pair, reference
from minidl.pictures.images import array
from minidl.pictures.picture import GREY, GRID, INK, MUTED, PAPER, SERIES, Picture, canvas

CELL = 0.4              # inches, unless a picture would get too wide
WIDEST = 8.8            # inches: a notebook's page
TINT = 0.26             # how much of a place's colour its cells have
GAP = 0.7               # cells between two places
MOST = 8                # places that one picture can show
TIMES, MINUS = "\N{MULTIPLICATION SIGN}", "\N{MINUS SIGN}"


def window(x: Any, w: Any, b: float = 0.0, stride: int | Pair = 1, padding: int | Pair = 0,
           places: Sequence[Pair] | None = None) -> Picture:
    """A filter on an image, at each place: which cells it covers, what is multiplied, and what the sum is.

    x: (H, W), or (C, H, W) for several channels. w: (KH, KW) or (C, KH, KW), one filter. b: its bias. places: the (row, column) in the
    result of those to show, at most 8; by default the first ones. ShapeError or ArgumentError if something does not fit.

    >>> print(window(np.ones((3, 3)), np.eye(2)))
    A filter of 2 x 2 on an image of 3 x 3, at 4 of 4 places, gives 2 at (0, 0), 2 at (0, 1), 2 at (1, 0), 2 at (1, 1).
    """
    x, w, sliding, y = _convolved(x, w, b, stride, padding)
    known = list(np.ndindex(y.shape))
    places = known[:MOST] if places is None else [(int(i), int(j)) for i, j in places]
    if not 0 < len(places) <= MOST or not set(places) <= set(known):
        raise ArgumentError(f"window: places are {places}",
                            hint=f"Name up to {MOST} of the {len(known)} places from (0, 0) to {known[-1]}.")
    channels, height, width = len(x), *sliding.padded(x.shape[1:])
    kh, kw = w.shape[1:]
    lines = kh if channels == 1 else 0                                      # of products, under the cells
    block = height + (1.1 if channels > 1 else 0.3)                         # a channel, and what comes of it
    across = 0.3 + max(kw, 3) + GAP + len(places) * (width + GAP) + 0.3 + y.shape[1] + 0.3
    down = 1.2 + channels * block + 0.55 * lines + 1.1
    with sheet(across, down) as axes:
        for c in range(channels):
            top = 1.2 + c * block
            cells(axes, w[c], 0.3 + max(0, 3 - kw) / 2, top + (height - kh) / 2,
                  title="filter" if channels == 1 else f"for channel {c + 1}")
        left = 0.3 + max(kw, 3) + GAP
        for place, color in zip(places, SERIES * 2):
            _at_place(axes, x, w, b, sliding, place, color, left, block)
            left += width + GAP
        fills = dict(zip(places, SERIES * 2))
        cells(axes, y, left + 0.3, 1.2 + (channels * block - y.shape[0]) / 2, fills=fills, title="result")
    of = "an image" if channels == 1 else f"{channels} channels"
    said = ", ".join(f"{number(y[place])} at {place}" for place in places)
    return Picture(axes.figure, f"A filter of {kh} x {kw} on {of} of {x.shape[1]} x {x.shape[2]}, at {len(places)} of {y.size} places, "
                                f"gives {said}.")


def _at_place(axes: Any, x: np.ndarray, w: np.ndarray, b: float, sliding: Window, place: Pair, color: str, left: float,
              block: float) -> None:
    """One place of the window: every channel with the filter's numbers on it, and the sum."""
    height, width = sliding.padded(x.shape[1:])
    kh, kw = sliding.kernel
    row, column = place[0] * sliding.stride[0], place[1] * sliding.stride[1]
    covered = {(row + i, column + j): w[:, i, j] for i in range(kh) for j in range(kw)}
    padded = reference.with_padding(x[None], sliding)[0]
    sums = [float((padded[c, row:row + kh, column:column + kw] * w[c]).sum()) for c in range(len(x))]
    for c in range(len(x)):
        top = 1.2 + c * block
        small = {at: TIMES + number(by[c]) for at, by in covered.items()}
        cells(axes, padded[c], left, top, fills=dict.fromkeys(covered, color), small=small,
              faint=sliding.padding, title=f"row {place[0]}, column {place[1]}" if c == 0 else "")
        frame(axes, left + column, top + row, kw, kh, color)
        if len(x) > 1:
            axes.text(left + width / 2, top + height + 0.42, number(sums[c]), ha="center", va="center", size=axes.letters)
    bottom, middle = 1.2 + len(x) * block, left + width / 2
    if len(x) == 1:
        for i in range(kh):
            products = " + ".join(f"{number(padded[0, row + i, column + j])}·{number(w[0, i, j])}" for j in range(kw))
            axes.text(middle, bottom + 0.35 + 0.55 * i, ("+ " if i else "") + products, ha="center", va="center", size=axes.letters * 0.8,
                      color=MUTED)
        bottom += 0.55 * kh
        added = f" + {number(b)}" if b else ""
        total = f"{number(sums[0])}{added} = {number(sums[0] + b)}" if b else f"= {number(sums[0])}"
    else:
        total = " + ".join(map(number, [*sums, *([b] if b else [])])) + f" = {number(sum(sums) + b)}"
    axes.text(middle, bottom + 0.55, total, ha="center", va="center", size=axes.letters * 1.05, color=color, weight="bold")


def _convolved(x: Any, w: Any, b: float, stride: int | Pair, padding: int | Pair) -> tuple[np.ndarray, np.ndarray, Window, np.ndarray]:
    """The image and the filter with an axis of channels, how the one slides over the other, and the result."""
    x, w = array(x), array(w)
    x, w = (a[None] if a.ndim == 2 else a for a in (x, w))
    if x.ndim != 3 or w.ndim != 3 or len(x) != len(w):
        raise ShapeError("pictures: an image and one filter must have the same channels", x=f"{x.shape} (C, H, W)",
                         w=f"{w.shape} (C, KH, KW)", hint="Of a batch take one image, x[0], and of many filters one, w[0].")
    sliding = Window(w.shape[1:], pair("window", "stride", stride), pair("window", "padding", padding))
    sliding.check("window", x.shape[1:])
    return x, w, sliding, reference.conv2d(x[None], w[None], sliding)[0, 0] + b


def patches(x: Any, w: Any, stride: int | Pair = 1, padding: int | Pair = 0) -> Picture:
    """im2col: every patch of an image as a row of a matrix, times the filter as a column.

    x: (H, W) or (C, H, W). w: (KH, KW) or (C, KH, KW). Meant for few numbers. ShapeError if something does not fit.

    >>> print(patches(np.array([[2, 0, 1], [0, 2, 3], [1, 3, 1]]), np.array([[1, 0], [0, 2]])))
    The 4 patches of an image of 3 x 3 as rows of a matrix of 4 x 4, times the filter as a column: 6, 6, 6, 4.
    """
    x, w, sliding, y = _convolved(x, w, 0.0, stride, padding)
    rows = reference.im2col(x[None], sliding)[0].T
    height, width = sliding.padded(x.shape[1:])
    kh, kw = sliding.kernel
    tall = max(len(x) * (height + 0.6) - 0.6, rows.shape[1], len(rows))
    colors = [SERIES[k % len(SERIES)] for k in range(len(rows))]
    with sheet(width + rows.shape[1] + y.shape[1] + 7.9, tall + 1.8) as axes:
        def middle(rows_: float) -> float:
            return 1.3 + (tall - rows_) / 2

        padded, left = reference.with_padding(x[None], sliding)[0], 0.3
        for c, channel in enumerate(padded):
            top = middle(len(x) * (height + 0.6) - 0.6) + c * (height + 0.6)
            cells(axes, channel, left, top, faint=sliding.padding, title="image" if c == 0 else "")
            for k, (i, j) in enumerate(np.ndindex(y.shape)):
                inset = 0.05 + 0.05 * (k % 4)
                frame(axes, left + j * sliding.stride[1] + inset, top + i * sliding.stride[0] + inset, kw - 2 * inset, kh - 2 * inset,
                      colors[k])
        left += width + 1.4
        axes.text(left - 0.7, middle(0), "→", ha="center", va="center", size=axes.letters * 1.5)
        cells(axes, rows, left, middle(len(rows)), title="a patch in each row",
              fills={(k, j): colors[k] for k in range(len(rows)) for j in range(rows.shape[1])})
        left += rows.shape[1] + 1.3
        axes.text(left - 0.65, middle(0), "·", ha="center", va="center", size=axes.letters * 1.5)
        cells(axes, w.reshape(-1, 1), left, middle(w.size), title="filter")
        left += 2.3
        axes.text(left - 0.65, middle(0), "=", ha="center", va="center", size=axes.letters * 1.5)
        cells(axes, y.reshape(-1, 1), left, middle(y.size), fills={(k, 0): colors[k] for k in range(y.size)})
        left += 2.3
        axes.text(left - 0.65, middle(0), "→", ha="center", va="center", size=axes.letters * 1.5)
        cells(axes, y, left, middle(len(y)), title="result", fills={at: colors[k] for k, at in enumerate(np.ndindex(y.shape))})
    return Picture(axes.figure, f"The {len(rows)} patches of an image of {x.shape[1]} x {x.shape[2]} as rows of a matrix of {len(rows)} x "
                                f"{rows.shape[1]}, times the filter as a column: {', '.join(map(number, y.ravel()))}.")


def pooling(images: Any, kernel: int | Pair = 2, stride: int | Pair | None = None, titles: Sequence[str] = ()) -> Picture:
    """Max pooling: the windows in their colours, the largest number in each, and the smaller image that they make.

    images: (H, W), or (N, H, W) for several side by side. titles: one for each.

    >>> print(pooling(np.arange(16).reshape(4, 4)))
    Max pooling 2 x 2: 4 x 4 numbers become 2 x 2: 5, 7, 13, 15.
    """
    x = array(images)
    x = x[None] if x.ndim == 2 else x
    if x.ndim != 3:
        raise ShapeError("pooling: images are drawn side by side", images=f"{x.shape} (N, H, W)", hint="Of a batch of channels take x[0].")
    kernel = pair("pooling", "kernel", kernel)
    sliding = Window(kernel, kernel if stride is None else pair("pooling", "stride", stride))
    sliding.check("pooling", x.shape[1:])
    y, place = (a[0] for a in reference.max_pool2d(x[None].astype(float), sliding))
    height, width, step = *x.shape[1:], x.shape[2] + 1 + y.shape[2] + 1
    with sheet(len(x) * step - 0.4, height + 1.6) as axes:
        for n, left in enumerate(np.arange(len(x)) * step + 0.3):
            cells(axes, x[n], left, 1.2, title=titles[n] if titles else "")
            fills = {}
            for k, (i, j) in enumerate(np.ndindex(y.shape[1:])):
                color = fills[i, j] = SERIES[k % len(SERIES)]
                row, column = i * sliding.stride[0], j * sliding.stride[1]
                rectangle(axes, left + column, 1.2 + row, kernel[1], kernel[0], facecolor=color, alpha=0.16)
                if np.ptp(x[n, row:row + kernel[0], column:column + kernel[1]]):        # else none is larger than the others
                    at = divmod(int(place[n, i, j]), kernel[1])
                    rectangle(axes, left + column + at[1], 1.2 + row + at[0], 1, 1, facecolor=color, alpha=0.45)
                frame(axes, left + column + 0.04, 1.24 + row, kernel[1] - 0.08, kernel[0] - 0.08, color)
            axes.text(left + width + 0.5, 1.2 + height / 2, "→", ha="center", va="center", size=axes.letters * 1.5)
            cells(axes, y[n], left + width + 1, 1.2 + (height - y.shape[1]) / 2, fills=fills)
    made = "; ".join(", ".join(map(number, each.ravel())) for each in y)
    return Picture(axes.figure, f"Max pooling {kernel[0]} x {kernel[1]}: {height} x {width} numbers become {y.shape[1]} x "
                                f"{y.shape[2]}: {made}.")


# Squared paper: everything is measured in cells, downwards from the upper left corner


@contextmanager
def sheet(width: float, height: float) -> Iterator[Any]:
    """Axes of so many cells, without frame or scale. `axes.letters` is the size of letters, in points, that fits into a cell."""
    cell = min(CELL, WIDEST / width)
    with canvas(width * cell, height * cell) as (figure, axes):
        figure.set_layout_engine("none")
        axes.set_position([0, 0, 1, 1])
        axes.set(xlim=(0, width), ylim=(height, 0))
        axes.axis("off")
        axes.letters = 28 * cell
        yield axes


def cells(axes: Any, values: np.ndarray, left: float, top: float, *, fills: dict[Pair, str] | None = None,
          small: dict[Pair, str] | None = None, faint: Pair = (0, 0), title: str = "") -> None:
    """Numbers in cells. fills: colours of some; small: what stands beside the number in some; faint: rows and columns of padding around."""
    fills, small = fills or {}, small or {}
    (height, width), (above, before) = values.shape, faint
    rectangle(axes, left, top, width, height, facecolor=PAPER)
    if any(faint):
        ruled(axes, left, top, width, height, edgecolor=GREY, linestyle=":")
        rectangle(axes, left + before, top + above, width - 2 * before, height - 2 * above, facecolor=PAPER)
    ruled(axes, left + before, top + above, width - 2 * before, height - 2 * above)
    for at, color in fills.items():
        rectangle(axes, left + at[1], top + at[0], 1, 1, facecolor=color, alpha=TINT)
    for at in np.ndindex(values.shape):
        inside = above <= at[0] < height - above and before <= at[1] < width - before
        beside = small.get(at, "")
        axes.text(left + at[1] + (0.34 if beside else 0.5), top + at[0] + (0.42 if beside else 0.5), number(values[at]), ha="center",
                  va="center", size=axes.letters, color=INK if inside else MUTED)
        if beside:
            axes.text(left + at[1] + 0.94, top + at[0] + 0.76, beside, ha="right", va="center", size=axes.letters * 0.66,
                      color=fills.get(at, INK), weight="bold")
    if title:
        axes.text(left + width / 2, top - 0.4, title, ha="center", va="center", size=axes.letters * 0.85, color=MUTED)


def ruled(axes: Any, left: float, top: float, width: int, height: int, **look: Any) -> None:
    """The lines between cells and around them, as one shape."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    ends = [((left, top + i), (left + width, top + i)) for i in range(height + 1)]
    ends += [((left + j, top), (left + j, top + height)) for j in range(width + 1)]
    path = Path([point for end in ends for point in end], [Path.MOVETO, Path.LINETO] * len(ends))
    axes.add_patch(PathPatch(path, facecolor="none", **{"edgecolor": GRID, "linewidth": 0.8, **look}))


def rectangle(axes: Any, left: float, top: float, width: float, height: float, **look: Any) -> None:
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle((left, top), width, height, **{"linewidth": 0, **look}))


def frame(axes: Any, left: float, top: float, width: float, height: float, color: str) -> None:
    rectangle(axes, left, top, width, height, facecolor="none", edgecolor=color, linewidth=1.8)


def number(value: Any) -> str:
    """As short as it can be in a cell: 3, -1, 0.25."""
    return f"{value:.3g}".replace("-", MINUS)
