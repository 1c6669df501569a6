"""Picture: something to look at, as SVG, and the house style in which all of ours are drawn.

What is drawn is decided in the files beside this one. Here is how it looks (colours, letters, lines) and how it gets to a notebook, a file
or a page. Figures are Matplotlib's, made without pyplot, so that drawing leaves no state behind and needs no screen.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minidl.errors import ArgumentError, MissingExtra

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# A page that shows pictures on a dark ground replaces these by colours of its own, so each stands for one meaning.
INK, MUTED, GRID, PAPER = "#1c2430", "#667085", "#dfe4ea", "#fffffe"
BLUE, ORANGE, GREEN, RED, PURPLE, GREY = SERIES = ("#2f6fde", "#dd7a1f", "#2a9d6f", "#d1495b", "#7b5cd6", "#8a94a3")

STYLE: dict[str, Any] = {
    "figure.facecolor": PAPER, "axes.facecolor": PAPER, "savefig.facecolor": PAPER,
    "text.color": INK, "axes.labelcolor": INK, "axes.titlecolor": INK, "xtick.color": MUTED, "ytick.color": MUTED,
    "axes.edgecolor": MUTED, "axes.linewidth": 0.8, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "axes.axisbelow": True, "grid.color": GRID, "grid.linewidth": 0.8,
    "axes.titlesize": 11, "axes.titlelocation": "left", "axes.titleweight": "bold", "axes.labelsize": 10, "font.size": 10,
    "xtick.labelsize": 9, "ytick.labelsize": 9, "legend.frameon": False, "legend.fontsize": 9, "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round", "image.interpolation": "nearest",
    "svg.fonttype": "none",             # letters stay letters: small, searchable, and read aloud
    "svg.hashsalt": "minidl",           # the same picture is the same file
    "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"],
}


NOTHING = dict.fromkeys(("Creator", "Date", "Format", "Type"))      # is said of an SVG beside what is to be seen


class Picture:
    """Something to look at: a notebook shows it, `save` writes it, `svg` is its text; `str` says in words what is to be seen.

    figure: of Matplotlib, or the SVG itself. words: for who cannot see it.
    """

    def __init__(self, figure: Figure | str, words: str):
        self.figure, self.words = figure, words

    @property
    def svg(self) -> str:
        """The picture as the text of an SVG file, from <svg to </svg>; where it is shown it is never wider than the page."""
        text = self.figure if isinstance(self.figure, str) else self._drawn("svg").decode()
        return fitting(text[text.index("<svg"):])

    def save(self, file: str | Path) -> Path:
        """Write it to a file, of a kind that its name ends with: .svg, or for figures also .png or .pdf. Gives the file."""
        file = Path(file)
        kind = file.suffix[1:].lower()
        if kind != "svg" and (isinstance(self.figure, str) or kind not in ("png", "pdf")):
            raise ArgumentError(f"Picture.save: {file.name} is of a kind that this picture cannot be", hint="Let its name end in .svg.")
        file.write_bytes(self.svg.encode() if kind == "svg" else self._drawn(kind))
        return file

    def _drawn(self, kind: str) -> bytes:
        assert not isinstance(self.figure, str)
        from matplotlib import rc_context

        written = io.BytesIO()
        with rc_context(STYLE), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")       # whoever shows an SVG has letters of its own
            self.figure.savefig(written, format=kind, dpi=144, metadata=NOTHING if kind == "svg" else None)
        return written.getvalue()

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"image/svg+xml": self.svg, "text/plain": self.words}

    def __repr__(self) -> str:
        return self.words


def fitting(svg: str) -> str:
    """The same SVG, never wider than the page that shows it."""
    return svg.replace("<svg ", '<svg style="max-width:100%;height:auto" role="img" ', 1)


@contextmanager
def canvas(width: float = 7.0, height: float = 3.2, rows: int = 1, columns: int = 1, **options: Any) -> Iterator[tuple[Figure, Any]]:
    """A figure of width x height inches in the house style, and its axes, as `subplots` gives them; to be drawn in the `with` block.

    options: of Matplotlib's `Figure.subplots`. MissingExtra where Matplotlib is not installed.
    """
    try:
        from cycler import cycler
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtra("pictures: Matplotlib is not installed", hint="Install it: pip install 'minidl[viz]'") from None
    with rc_context({**STYLE, "axes.prop_cycle": cycler(color=SERIES)}):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.subplots(rows, columns, **options)
