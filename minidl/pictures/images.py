"""Arrays to look at: images in a grid, the filters of a layer, a confusion matrix, and what a model took for something else.

    images(x, captions=["a 7", "a 1"])              filters(model.features[0].w)
    confusion(counts, classes)                      mistakes(x, right, taken, sure, classes)

Images are (N, C, H, W), with numbers in [0, 1]: 1 channel is grey, 3 are red, green and blue. `png` makes a file of one, without a library.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from minidl.backend import to_numpy
from minidl.errors import ShapeError
from minidl.pictures.picture import BLUE, GRID, INK, ORANGE, Picture, canvas
from minidl.tensor import Tensor

NAMED = 30              # classes that are named beside a confusion matrix; of more some, by number
NUMBERED = 20           # classes whose cells have their number written in them
LONGEST = 16            # letters of a class's name that stand beside it
LINE = 0.17             # inches that a line of a caption takes


def images(x: Any, captions: Sequence[str] | None = None, *, columns: int | None = None, title: str = "", size: float = 0.9,
           span: tuple[float, float] | None = (0.0, 1.0)) -> Picture:
    """A grid of images, row by row.

    x: (N, C, H, W) or (N, H, W), C being 1 or 3. captions: a text under each, of one line or several. columns: as many as there is room
    for unless given. size: of an image, in inches. span: what is black and what is white; None: from the smallest number to the
    largest. ShapeError if these are no images. MissingExtra without Matplotlib.

    >>> images(np.zeros((5, 1, 8, 8)), title="Nothing at all")
    Nothing at all: 5 images of 8 x 8.
    """
    x = pixels(x, "images", span)
    count, height, width = x.shape[:3]
    if captions is not None and len(captions) != count:
        raise ShapeError(f"images: there are {len(captions)} captions for {count} images", hint="Give one for each, '' for none.")
    columns = min(columns or max(1, int(8 / (size * 1.08))), max(count, 1))
    rows = -(-count // columns)
    tall = size * height / width
    below = LINE * max((text.count("\n") + 1 for text in captions if text), default=0) if captions else 0.0
    across, down = size * 1.08, tall + below + size * 0.08
    with canvas(columns * across + 0.06, max(rows * down, 0.3) + 0.06 + (0.3 if title else 0)) as (figure, axes):
        axes.set_axis_off()
        axes.set(xlim=(0, columns * across), ylim=(max(rows * down, 0.3), 0), aspect="equal")
        if title:
            axes.set_title(title, parse_math=False)
        for i, image in enumerate(x):
            left, top = i % columns * across, i // columns * down
            axes.imshow(image, extent=(left, left + size, top + tall, top), interpolation="none", aspect="equal")
            if captions:
                axes.text(left + size / 2, top + tall + 0.04, captions[i], ha="center", va="top", fontsize=8, parse_math=False)
        axes.set(xlim=(0, columns * across), ylim=(max(rows * down, 0.3), 0))
    shown = f"{title}: " if title else ""
    words = f" {'; '.join(' '.join(text.split()) for text in captions)}." if captions else ""
    return Picture(figure, f"{shown}{count} image{'s' * (count != 1)} of {height} x {width}.{words}")


def filters(w: Any, *, shape: tuple[int, int, int] | None = None, columns: int | None = None, title: str = "", size: float = 0.6,
            most: int = 128) -> Picture:
    """The weights of a first layer, each filter as a picture: light is positive, dark is negative, grey is 0.

    w: of a convolution (O, C, H, W), an array or a Parameter; those of 3 channels are shown in colour, of 1 channel in grey, of other
    numbers each channel apart. With shape (C, H, W), w is (inputs, outputs) of an affine layer that looks at such images. All have one
    scale. most: are shown at most. ShapeError if w is no such thing. MissingExtra without Matplotlib.

    >>> filters(np.zeros((6, 1, 5, 5)))
    6 filters of 5 x 5.
    """
    w = filter_images(w, shape)
    found, w = len(w), w[:most]
    picture = images(w, columns=columns or max(8, math.isqrt(max(len(w) - 1, 0)) + 1), size=size, title=title)
    shown = f"the first {len(w)} of {found}" if len(w) < found else f"{found}"
    words = f"{shown} filter{'s' * (found != 1)} of {w.shape[2]} x {w.shape[3]}."
    return Picture(picture.figure, f"{title}: {words}" if title else words)


def filter_images(w: Any, shape: tuple[int, int, int] | None = None) -> np.ndarray:
    """Weights of a first layer as images (N, C, H, W) with numbers in [0, 1], C being 1 or 3, and 0 at the middle: see `filters`."""
    w = array(w).astype(float)
    if shape is not None:
        if w.ndim != 2 or len(shape) != 3 or w.shape[0] != math.prod(shape):
            raise ShapeError(f"filters: these are not the weights (inputs, outputs) of a layer that looks at images {shape}", w=w.shape)
        w = w.T.reshape(-1, *shape)
    if w.ndim != 4:
        raise ShapeError("filters: these are not the filters of a convolution", w=f"{w.shape}, and not (O, C, H, W)",
                         hint="For those of an affine layer give shape=(C, H, W), of the images that it looks at.")
    if w.shape[1] not in (1, 3):
        w = w.reshape(-1, 1, *w.shape[2:])
    largest = float(np.abs(w).max(initial=0.0)) or 1.0
    return np.asarray(0.5 + 0.5 * w / largest)


def confusion(counts: Any, classes: Sequence[str] | None = None, *, title: str = "", width: float | None = None) -> Picture:
    """How often each class was taken for each: a row for what it is, a column for what it was taken for.

    counts: (classes, classes), whole numbers. classes: their names; numbers unless given. A cell's strength is its share of its row, blue
    where right and orange where wrong; a tenth of a row is already well seen. width: in inches. ShapeError if counts is no such thing.
    MissingExtra without Matplotlib.

    >>> confusion([[9, 1], [0, 10]], ["cat", "dog"])
    Confusion matrix of 20 examples: 95 % right. Most often wrong: cat taken for dog 1 time.
    """
    counts = array(counts)
    n = len(counts) if counts.ndim else 0
    if counts.shape != (n, n):
        raise ShapeError("confusion: counts must be (classes, classes)", counts=counts.shape)
    names = [str(i) for i in range(n)] if classes is None else [str(name) for name in classes]
    if len(names) != n:
        raise ShapeError(f"confusion: there are {len(names)} names for {n} classes")
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    short = [name if len(name) <= LONGEST else name[:LONGEST - 1] + "…" for name in names]
    longest = max(map(len, short), default=0)
    width = width or max(3.2, min(6.2, 0.36 * n + 1.2))
    with canvas(width, width + (0.25 if title else 0)) as (figure, axes):
        axes.imshow(cells(shares), interpolation="none", extent=(-0.5, n - 0.5, n - 0.5, -0.5))
        axes.grid(False)
        axes.spines[:].set_color(GRID)
        axes.spines[:].set_visible(True)
        step = 1 if n <= NAMED else 10 if n <= 150 else 50 if n <= 700 else 100
        ticks = list(range(0, n, step))
        if n <= NAMED:
            axes.set_xticks(ticks, short, rotation=0 if longest * n < 40 else 90, fontsize=9 if n <= 15 else 7, parse_math=False)
            axes.set_yticks(ticks, short, fontsize=9 if n <= 15 else 7, parse_math=False)
        else:
            axes.set_xticks(ticks)
            axes.set_yticks(ticks)
        axes.tick_params(length=0)
        axes.set_xlabel("taken for" if n <= NAMED else "taken for (number of the class)")
        axes.set_ylabel("what it is" if n <= NAMED else "what it is (number of the class)")
        if title:
            axes.set_title(title, parse_math=False)
        if n <= NUMBERED:
            axes.hlines(np.arange(n - 1) + 0.5, -0.5, n - 0.5, color=GRID, linewidth=0.6)
            axes.vlines(np.arange(n - 1) + 0.5, -0.5, n - 0.5, color=GRID, linewidth=0.6)
            for i, j in zip(*np.nonzero(counts)):
                strong = i == j and strength(shares[i, j]) > 0.5            # ink is read better on any orange
                axes.text(j, i, f"{counts[i, j]:,}" if counts[i, j] < 10_000 else f"{counts[i, j]:.1e}", ha="center", va="center",
                          color="#ffffff" if strong else INK, fontsize=9 if n <= 10 else 7)
    words = f"Confusion matrix of {int(counts.sum()):,} examples: {100 * np.trace(counts) / max(counts.sum(), 1):.4g} % right."
    pairs = confused(counts)[:3]
    told = ", ".join(f"{names[i]} taken for {names[j]} {k:,} time{'s' * (k != 1)}" for i, j, k in pairs)
    return Picture(figure, f"{title}: {words}" if title else words + (f" Most often wrong: {told}." if told else ""))


def confused(counts: Any) -> list[tuple[int, int, int]]:
    """The pairs of classes that are mixed up, the most frequent first: (what it is, what it was taken for, how often)."""
    wrong = array(counts).copy()
    np.fill_diagonal(wrong, 0)
    found = [(int(i), int(j), int(wrong[i, j])) for i, j in zip(*np.nonzero(wrong))]
    return sorted(found, key=lambda pair: (-pair[2], pair[:2]))


def strength(share: Any) -> Any:
    """How strongly a cell is coloured: what is rare is to be seen as well."""
    return np.sqrt(share)


def cells(shares: np.ndarray) -> np.ndarray:
    """The colours of a confusion matrix, transparent where nothing is, so that they suit any ground: (n, n, 4) bytes."""
    rgba = np.empty((*shares.shape, 4), np.uint8)
    rgba[..., :3] = rgb(ORANGE)
    rgba[np.eye(len(shares), dtype=bool), :3] = rgb(BLUE)
    rgba[..., 3] = np.round(255 * strength(shares))
    return rgba


def rgb(colour: str) -> tuple[int, ...]:
    """The three bytes of a colour such as #2f6fde."""
    return tuple(bytes.fromhex(colour[1:]))


def mistakes(x: Any, right: Any, taken: Any, sure: Any, classes: Sequence[str] | None = None, *, most: int = 16,
             columns: int | None = None, title: str = "") -> Picture:
    """The images of which a model was most sure, and wrong; the surest first.

    x: images as for `images`. right, taken: (N,) class ids, what they are and what the model takes them for. sure: (N,) the probability
    that it gave. Those that were right are left out. classes: names. ShapeError if these do not fit together.

    >>> mistakes(np.zeros((2, 1, 8, 8)), [3, 1], [5, 1], [0.9, 0.8])
    1 mistake: 3 taken for 5, 90 %.
    """
    x, right, taken, sure = array(x), array(right), array(taken), array(sure)
    if not len(x) == len(right) == len(taken) == len(sure):
        raise ShapeError("mistakes: these are not as many as each other", x=x.shape, right=right.shape, taken=taken.shape, sure=sure.shape)
    wrong = np.flatnonzero(right != taken)
    wrong = wrong[np.argsort(-sure[wrong], kind="stable")][:most]

    def name(k: int) -> str:
        return str(k) if classes is None else str(classes[k])

    captions = [f"is {name(int(right[i]))}\ntaken for {name(int(taken[i]))}\n{100 * sure[i]:.0f} %" for i in wrong]
    picture = images(x[wrong], captions, columns=columns, title=title)
    told = "; ".join(f"{name(int(right[i]))} taken for {name(int(taken[i]))}, {100 * sure[i]:.0f} %" for i in wrong) or "none"
    return Picture(picture.figure, f"{title + ': ' if title else ''}{len(wrong)} mistake{'s' * (len(wrong) != 1)}: {told}.")


def pixels(x: Any, where: str, span: tuple[float, float] | None = (0.0, 1.0)) -> np.ndarray:
    """Images as bytes of red, green and blue (N, H, W, 3). ShapeError if they are none."""
    x = array(x)
    x = x[:, None] if x.ndim == 3 else x
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise ShapeError(f"{where}: these are not images of 1 or 3 channels", x=f"{x.shape}, and not (N, C, H, W)",
                         hint="Of a single image make one of many: x[None].")
    if x.dtype == np.uint8:
        shown = x
    else:
        x = np.nan_to_num(x.astype(float))
        low, high = span or (float(x.min(initial=0.0)), float(x.max(initial=0.0)))
        shown = np.round(255 * np.clip((x - low) / ((high - low) or 1.0), 0, 1)).astype(np.uint8)
    shown = shown.transpose(0, 2, 3, 1)
    return np.ascontiguousarray(np.broadcast_to(shown, (*shown.shape[:3], 3)))


def array(x: Any) -> np.ndarray:
    """An array, a Tensor or a sequence, as a NumPy array."""
    return np.asarray(to_numpy(x.data if isinstance(x, Tensor) else x))


def png(image: Any) -> bytes:
    """One image (C, H, W), (H, W) or, as bytes, (H, W, 3) as a PNG file. ShapeError if it is none.

    >>> png(np.zeros((8, 8)))[:4]
    b'\\x89PNG'
    """
    image = array(image)
    if not (image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3):
        image = pixels(image[None], "png")[0]
    height, width = image.shape[:2]
    rows = np.concatenate([np.zeros((height, 1), np.uint8), image.reshape(height, -1)], axis=1)         # 0: a row is stored as it is

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)                # 8 bits each of red, green and blue
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows.tobytes())) + chunk(b"IEND", b"")
