"""Timeline: who did what when, a row for each thread of each rank, and a bar for everything that took time.

What is computed has strong colours, what is sent warm ones, and waiting is pale. So a wire that is busy while its rank computes lies
under a strong bar, and one that keeps its rank waiting under a pale one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from minidl.errors import ArgumentError
from minidl.pictures.picture import BLUE, GREEN, GREY, INK, ORANGE, PAPER, PURPLE, RED, SERIES, Picture, canvas

CATEGORIES = ("phase", "exchange", "transfer")
COLOURS = {"forward": BLUE, "backward": PURPLE, "update": GREEN, "normalization": "#4fb3d9", "curvature": "#b06fc4", "data": "#7f9f3f",
           "evaluation": "#a9c1ee", "saving": GREY, "sends": ORANGE, "receives": RED, "exchange": "#e8b04a", "waits": "#d9dee5",
           "other": "#eef1f4"}
WAITING = ("gradient exchange", "curvature exchange", "idle")           # phases in which a rank has nothing to compute
FIRST = ("computation", "sends", "receives", "exchange")        # rows of a rank in this order, others after them
ROW = 0.24              # inches
GAP = 0.5               # rows between two ranks
LEAST = 0.02            # share of the time that something takes at least, on all rows together, to be named
MOST = 4000             # bars that are drawn; of more, the longest


@dataclass(frozen=True)
class Bar:
    """What is drawn: an event with what it is called in the legend."""

    rank: int
    thread: str
    kind: str
    start: float
    end: float


def timeline(events: Iterable[Any], *, since: float | None = None, until: float | None = None, title: str = "",
             categories: Sequence[str] = CATEGORIES, width: float = 8.4) -> Picture:
    """A row for each thread of each rank, and on it a bar for each event.

    events: with rank, thread, name, category, start and end in seconds, as attributes (those of a profile, or of an EmulatedWire) or in
    tuples. since, until: what is shown, in seconds; from the first to the last event unless given. categories: of those that are drawn.
    Phases and operations are coloured by their name, transfers by whether they are sent or received. ArgumentError if nothing is left.

    >>> timeline([(0, "computation", "forward", "phase", 0.0, 0.1), (0, "sends", "to rank 1", "transfer", 0.1, 0.2)])
    From 0 to 0.2 s. rank 0, computation: forward 50 %. rank 0, sends: sends 50 %.
    """
    bars = [bar for event in events if (bar := bar_of(event, categories)) is not None]
    begin = min((bar.start for bar in bars), default=0.0) if since is None else since
    end = max((bar.end for bar in bars), default=0.0) if until is None else until
    bars = [Bar(bar.rank, bar.thread, bar.kind, max(bar.start, begin), min(bar.end, end)) for bar in bars
            if bar.end > begin and bar.start < end]
    if not bars:
        raise ArgumentError("timeline: no events to draw", categories=", ".join(categories),
                            hint="Were any recorded between since and until?")
    rows = sorted({(bar.rank, bar.thread) for bar in bars}, key=lambda row: (row[0], order(row[1]), row[1]))
    ranks = sorted({rank for rank, _ in rows})
    places = {row: i + GAP * ranks.index(row[0]) for i, row in enumerate(rows)}
    named = {kind for kind in {bar.kind for bar in bars}
             if sum(bar.end - bar.start for bar in bars if bar.kind == kind) > LEAST * (end - begin) or len(bars) < 20}
    unit, word = (1e-3, "milliseconds") if end - begin < 1 else (1.0, "seconds")
    height = ROW * (len(rows) + GAP * len(ranks)) + 1.0
    with canvas(width, height) as (figure, axes):
        from matplotlib.patches import PathPatch

        kinds = sorted({bar.kind for bar in bars}, key=lambda kind: (list(COLOURS).index(kind) if kind in COLOURS else 99, kind))
        drawn = sorted(bars, key=lambda bar: bar.start - bar.end)[:MOST]         # the longest first: what is within them lies over them
        for level, kind in enumerate(kinds):
            some = [bar for bar in drawn if bar.kind == kind]
            for row in rows:
                spans = [((bar.start - begin) / unit, (bar.end - begin) / unit) for bar in some if (bar.rank, bar.thread) == row]
                if spans:
                    axes.add_patch(PathPatch(boxes(spans, places[row]), facecolor=colour(kind, kinds), edgecolor=PAPER, linewidth=0.3,
                                             label=kind, zorder=2 + depth(kind) + level / 100))
        for rank in ranks[1:]:
            first = next(places[row] for row in rows if row[0] == rank)
            axes.axhline(first - 0.5 - GAP / 2, color=GREY, linewidth=0.6)
        axes.set_yticks([places[row] for row in rows], [label(row, len(ranks)) for row in rows])
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.set(xlim=(0, (end - begin) / unit), ylim=(max(places.values()) + 0.6, -0.6), xlabel=word)
        axes.grid(False, axis="y")
        if title:
            axes.set_title(title)
        handles = {name: handle for handle, name in zip(*axes.get_legend_handles_labels()) if name in named}
        figure.legend(handles.values(), handles.keys(), loc="outside upper left", ncols=min(len(handles), 7))
    return Picture(figure, in_words(bars, rows, end - begin, title))


def bar_of(event: Any, categories: Sequence[str]) -> Bar | None:
    """The bar of an event; None for one of another category."""
    rank, thread, name, category, start, end = event[:6] if isinstance(event, tuple) else \
        (event.rank, event.thread, event.name, event.category, event.start, event.end)
    if category not in categories:
        return None
    if category in ("transfer", "exchange"):
        return Bar(rank, thread, thread if category == "transfer" else "exchange", start, end)
    name = name.partition("/")[0]
    return Bar(rank, thread, "waits" if name in WAITING else name, start, end)


def boxes(spans: Sequence[tuple[float, float]], place: float) -> Any:
    """Boxes from start to end in the row at a place, as one path, which takes a tenth of the room of as many patches."""
    from matplotlib.path import Path

    corners = [corner for start, end in spans for corner in
               ((start, place - 0.4), (end, place - 0.4), (end, place + 0.4), (start, place + 0.4), (start, place - 0.4))]
    return Path(corners, [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY] * len(spans))


def order(thread: str) -> int:
    """Where a row stands among those of its rank."""
    return next((i for i, first in enumerate(FIRST) if thread.startswith(first)), len(FIRST))


def depth(kind: str) -> int:
    """What lies over what: waiting, and whatever may be a part of another phase, over the rest."""
    return 0 if kind in ("forward", "backward", "other") else 1


def colour(kind: str, kinds: Sequence[str]) -> str:
    """Of a kind of bars, the same in every picture if it is known."""
    unknown = [each for each in kinds if each not in COLOURS]
    return COLOURS[kind] if kind in COLOURS else SERIES[unknown.index(kind) % len(SERIES)]


def label(row: tuple[int, str], ranks: int) -> str:
    """What stands before a row."""
    rank, thread = row
    word = "computes" if thread == "computation" else thread
    return f"rank {rank}  {word}" if order(thread) == 0 or ranks == 1 else word


def in_words(bars: Sequence[Bar], rows: Sequence[tuple[int, str]], seconds: float, title: str) -> str:
    """What is to be seen."""
    words = [f"{title}, from" if title else "From", f"0 to {seconds:.4g} s."]
    for row in rows:
        shares: dict[str, float] = {}
        for bar in bars:
            if (bar.rank, bar.thread) == row:
                shares[bar.kind] = shares.get(bar.kind, 0.0) + (bar.end - bar.start) / seconds
        told = ", ".join(f"{kind} {100 * share:.0f} %" for kind, share in shares.items())
        words.append(f"rank {row[0]}, {row[1]}: {told}.")
    return " ".join(words)
