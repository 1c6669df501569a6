"""Curves: numbers that change while a model learns, over steps, epochs or seconds.

    curves({"training": losses, "test": (steps, test_losses)})          # any numbers, a line each
    learning_curves(fit(...))                                           # loss and accuracy of a run
    learning_curves({"sgd": one, "kfac": other}, over="seconds")        # or of several

A curve may have any number of points: beyond some hundred, neighbours are drawn as their mean, on a pale band from the smallest of them
to the largest, so that the picture stays small and the noise is still seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np

from minidl.backend import to_numpy
from minidl.errors import ArgumentError, ShapeError
from minidl.pictures.picture import SERIES, Picture, canvas
from minidl.tensor import Tensor

POINTS = 160                # of a curve that are drawn; more would hide one another
SPAN = 100.0                # values that lie further apart than this, as a ratio, are drawn on a logarithmic scale
RUNAWAY = 100.0             # a curve that rises so many times as high as most of the others is cut off
OVERS = ("epoch", "step", "seconds")
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))       # when all colours have been used


@dataclass(frozen=True)
class Line:
    """A curve to be drawn: its finite points, in the order in which they came."""

    name: str
    x: np.ndarray
    y: np.ndarray
    colour: str
    dash: Any = "-"
    pale: bool = False


def curves(series: Mapping[str, Any], *, x: str = "step", y: str = "loss", title: str | None = None, log: bool | None = None,
           percent: bool = False, legend: bool = True, width: float = 4.6, height: float = 3.1) -> Picture:
    """Lines in one picture, each with its name.

    series: name to values (n,), which then stand at 1, 2, ..., or to a pair (places, values) of such; None and what is not finite is left
    out. x, y: what they are; places in "seconds" are shown as minutes or hours where there are many. title: above; y unless given.
    log: whether the vertical scale is logarithmic; where values lie far apart unless given. percent: values are shares of 1.
    legend: whether several are named in the picture. width, height: in inches. ShapeError if a curve is no such thing. MissingExtra
    without Matplotlib.

    >>> curves({"training": [2.3, 0.9, 0.4], "test": ([1, 3], [1.2, 0.5])}, x="epoch")
    Loss over epochs. training: 3 values, from 2.3 at 1 to 0.4 at 3. test: 2 values, from 1.2 at 1 to 0.5 at 3.
    """
    lines = [line(name, values, *look(i)) for i, (name, values) in enumerate(series.items())]
    with canvas(width, height) as (figure, axes):
        draw(axes, lines, x, title or y[:1].upper() + y[1:], log, percent)
        if legend and len(lines) > 1:
            name_lines(figure, axes, lines, width)
    return Picture(figure, in_words(lines, x, y, percent))


def learning_curves(history: Any, over: str = "epoch", *, width: float = 8.4, height: float = 3.1) -> Picture:
    """Loss and accuracy in training and test, of a run or of several.

    history: what `fit` gave (a list of metrics, one of each epoch), or a name for each of several such. over: "epoch", "step" (where the
    metrics say it) or "seconds". ArgumentError if it is none of these. MissingExtra without Matplotlib.

    >>> learning_curves([{"epoch": 1, "train_loss": 2.0, "test_loss": 1.5, "train_accuracy": None, "test_accuracy": None, "seconds": 3.0}])
    Loss over epochs. training: 1 value, 2 at 1. test: 1 value, 1.5 at 1.
    """
    if over not in OVERS:
        raise ArgumentError(f"learning_curves: over is {over!r}, and must be one of {', '.join(OVERS)}")
    runs = history if isinstance(history, Mapping) else {"": history}
    panels: list[tuple[str, list[Line]]] = []
    for word in ("loss", "accuracy"):
        lines = []
        for i, (name, metrics) in enumerate(runs.items()):
            for part, key in (("training", f"train_{word}"), ("test", f"test_{word}")):
                found = line(f"{name}, {part}" if name else part, (places(metrics, over), [each.get(key) for each in metrics]),
                             SERIES[(i if name else part == "test") % len(SERIES)], DASHES[1] if name and part == "training" else "-",
                             pale=bool(name) and part == "training")
                lines += [found] if len(found.y) else []
        if lines or word == "loss":
            panels.append((word, lines))
    with canvas(width if len(panels) > 1 else width / 2, height, 1, len(panels), squeeze=False) as (figure, axes):
        for (word, lines), each in zip(panels, axes[0]):
            draw(each, lines, over, word.capitalize(), None, word == "accuracy")
        if len(panels[0][1]) > 1:
            name_lines(figure, axes[0, 0], panels[0][1], width)
    return Picture(figure, " ".join(in_words(lines, over, word, word == "accuracy") for word, lines in panels))


def places(metrics: Sequence[Mapping[str, Any]], over: str) -> list[float]:
    """Where each epoch's metrics stand: its number, its last step, or the seconds of training until then."""
    if over == "seconds":
        return list(accumulate(each["seconds"] for each in metrics))
    return [each.get(over, np.nan) for each in metrics]


def look(number: int) -> tuple[str, Any]:
    """The colour and the dashes of the first, second, ... of several curves."""
    return SERIES[number % len(SERIES)], DASHES[number // len(SERIES) % len(DASHES)]


def line(name: str, values: Any, colour: str, dash: Any = "-", pale: bool = False) -> Line:
    """The points of a curve that can be drawn. ShapeError unless they are numbers in a row, or two rows as long as each other."""
    pair = isinstance(values, tuple) and len(values) == 2 and all(np.ndim(numbers(each)) for each in values)
    y = numbers(values[1] if pair else values)
    x = numbers(values[0]) if pair else np.arange(1, len(y) + 1, dtype=float) if y.ndim == 1 else y
    if y.ndim != 1 or x.shape != y.shape:
        raise ShapeError(f"curves: {name!r} is not a row of numbers, or two of the same length", x=x.shape, y=y.shape,
                         hint="Give values (n,), or a pair (places, values) of such.")
    drawn = np.isfinite(x) & np.isfinite(y)
    return Line(name, x[drawn], y[drawn], colour, dash, pale)


def numbers(values: Any) -> np.ndarray:
    """An array, Tensor or sequence as float64; None as NaN."""
    if isinstance(values, list | tuple | range):
        return np.array([np.nan if each is None else each for each in values], dtype=float)
    return np.asarray(to_numpy(values.data if isinstance(values, Tensor) else values), dtype=float)


def draw(axes: Any, lines: Sequence[Line], x: str, title: str, log: bool | None, percent: bool) -> None:
    """The lines of a panel, with its scales."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    longest = max((float(each.x.max()) for each in lines if len(each.x)), default=0.0)
    unit, word = time_unit(longest) if x == "seconds" else (1.0, x)
    for each in lines:
        places, mean, least, most = thinned(each.x / unit, each.y)
        if len(places) < len(each.x):
            axes.fill_between(places, least, most, color=each.colour, alpha=0.16, linewidth=0)
        axes.plot(places, mean, color=each.colour, linestyle=each.dash, alpha=0.6 if each.pale else 1,
                  linewidth=1.3 if each.pale else 1.8, marker="o" if len(places) <= 12 else None, markersize=4)
    axes.set_title(title, parse_math=False)
    axes.set_xlabel(word, parse_math=False)
    values = np.concatenate([each.y for each in lines]) if lines else np.zeros(0)
    tops = [float(each.y.max()) for each in lines if len(each.y)]
    usual = float(np.quantile(tops, 0.5, method="lower")) if tops else 0.0
    if 0 < RUNAWAY * usual < max(tops, default=0.0):            # one that has run away leaves the picture, so that the others can be seen
        values = values[values <= usual]
        axes.set_ylim(values.min() - 0.05 * np.ptp(values), usual + 0.05 * np.ptp(values))
    if log or (log is None and not percent and far_apart(values)):
        axes.set_yscale("log")
        if axes.get_ylim()[0] <= 0:
            axes.set_ylim(bottom=values.min() / 1.3)
    elif not percent:
        axes.ticklabel_format(axis="y", useOffset=False)
    else:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.6g} %"))
    if not len(values):
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, "nothing yet", transform=axes.transAxes, ha="center", va="center")
        return
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=x in ("step", "epoch")))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda place, _: f"{place:,.6g}" if abs(place) < 1e6 else f"{place:.3g}"))
    if np.ptp(np.concatenate([each.x for each in lines])) == 0:             # a single point: no place for fractions of a step
        only = float(next(each.x[0] for each in lines if len(each.x))) / unit
        axes.set_xlim(only - 1, only + 1)
        axes.set_xticks([only])


def far_apart(values: np.ndarray) -> bool:
    """Whether the values, all above 0, are too far apart to be told from one another otherwise."""
    return bool(len(values)) and float(values.min()) > 0 and float(values.max()) > SPAN * float(np.quantile(values, 0.05, method="lower"))


def thinned(x: np.ndarray, y: np.ndarray, points: int = POINTS) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """At most so many points: places, and of the values near each of them the mean, the smallest and the largest."""
    if len(x) <= points:
        return x, y, y, y
    starts = np.linspace(0, len(x), points, endpoint=False).astype(int)
    counts = np.diff([*starts, len(x)])
    return (np.add.reduceat(x, starts) / counts, np.add.reduceat(y, starts) / counts,
            np.minimum.reduceat(y, starts), np.maximum.reduceat(y, starts))


def time_unit(seconds: float) -> tuple[float, str]:
    """In what so long a time is told: how many seconds it has, and its name."""
    return (1.0, "seconds") if seconds < 180 else (60.0, "minutes") if seconds < 10800 else (3600.0, "hours")


def name_lines(figure: Any, axes: Any, lines: Sequence[Line], width: float) -> None:
    """The names: beside the title if there is room, otherwise above the picture in as many columns as fit."""
    handles, names = axes.get_lines(), [str(i) for i in range(len(lines))]
    if len(figure.axes) == 1 and sum(len(each.name) + 6 for each in lines) + len(axes.get_title(loc="left")) < 10 * width:
        drawn = axes.legend(handles, names, loc="lower right", bbox_to_anchor=(1, 1), ncols=len(lines), borderaxespad=0, columnspacing=1.2,
                            handlelength=1.6)
    else:
        columns = max(1, min(len(lines), int(12 * width / (6 + max(len(each.name) for each in lines)))))
        drawn = figure.legend(handles, names, loc="outside upper left", ncols=columns)
    for text, each in zip(drawn.get_texts(), lines):        # whatever the name is: Matplotlib would hide _one, and typeset $one$
        text.set_parse_math(False)
        text.set_text(each.name)


def in_words(lines: Sequence[Line], x: str, y: str, percent: bool) -> str:
    """What is to be seen."""
    def told(value: float) -> str:
        return f"{100 * value:.4g} %" if percent else f"{value:.4g}"

    words = [f"{y[:1].upper()}{y[1:]} over {x + 's' if x in ('epoch', 'step') else x}{'' if lines else ': nothing yet'}."]
    for each in lines:
        name = f"{each.name}: " if each.name else ""
        if not len(each.y):
            words.append(f"{name}nothing yet.")
        elif len(each.y) == 1:
            words.append(f"{name}1 value, {told(each.y[0])} at {each.x[0]:.6g}.")
        else:
            words.append(f"{name}{len(each.y):,} values, from {told(each.y[0])} at {each.x[0]:.6g} to {told(each.y[-1])} at "
                         f"{each.x[-1]:.6g}.")
    return " ".join(words)
