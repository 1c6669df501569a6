"""How a cost grows, and how costs compare: measured points on two logarithmic scales, and bars with their numbers.

Where both scales are logarithmic a power is a straight line, and its exponent is the slope: the same thing done n times as often rises by
one decade in one decade.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from minidl.errors import ArgumentError
from minidl.pictures.curves import Line, line
from minidl.pictures.picture import BLUE, GRID, INK, MUTED, SERIES, Picture, canvas

MARKERS = ("o", "s", "^", "D", "v", "P")
NAMED = 9               # places on the scale that are named, where not more were measured


def scaling(series: Mapping[str, Any], *, x: str, y: str, limits: Mapping[str, Any] | None = None, title: str | None = None,
            log: bool | tuple[bool, bool] = True, joined: bool = True, width: float = 6.0, height: float = 3.4) -> Picture:
    """Measured points and the lines between them, on logarithmic scales.

    series: name to a pair (places, values) of rows of numbers. limits: of the same form; what the series are held against, drawn
    dashed and grey. x, y: what they are, with their unit. title: above; y unless given. log: whether the scales are logarithmic,
    both or (x, y).
    joined: whether lines join the points. width, height: in inches. ShapeError for what is no pair of rows, ArgumentError for numbers
    that a logarithmic scale does not have.
    MissingExtra without Matplotlib.

    >>> scaling({"sorting": ([10, 100], [0.1, 10.0])}, x="numbers", y="ms")
    ms over numbers. sorting: 0.1 at 10, 10 at 100.
    """
    logs = log if isinstance(log, tuple) else (log, log)
    lines = [line(name, values, SERIES[i % len(SERIES)]) for i, (name, values) in enumerate(series.items())]
    dashed = [line(name, values, MUTED) for name, values in (limits or {}).items()]
    for each in [*lines, *dashed]:
        for logarithmic, numbers in zip(logs, (each.x, each.y)):
            if logarithmic and (numbers <= 0).any():
                raise ArgumentError(f"scaling: {each.name!r} has {numbers.min():g}, which has no logarithm",
                                    hint="Leave it out, or give log=False, or log=(False, True).")
    with canvas(width, height) as (figure, axes):
        for i, each in enumerate(lines):
            axes.plot(each.x, each.y, color=each.colour, linestyle="-" if joined else "", marker=MARKERS[i % len(MARKERS)], markersize=5,
                      label=each.name, zorder=3)
        for i, each in enumerate(dashed):
            axes.plot(each.x, each.y, color=each.colour, linestyle=((0, (5, 3)), (0, (1.5, 2)))[i % 2], linewidth=1.3, label=each.name)
        axes.set_xscale("log" if logs[0] else "linear")
        axes.set_yscale("log" if logs[1] else "linear")
        axes.set(xlabel=x, title=title or y)
        if title:
            axes.set_ylabel(y)
        name_places(axes, lines, logs)
        if len(lines) + len(dashed) > 1:
            figure.legend(loc="outside upper left", ncols=columns(lines + dashed, width))
    return Picture(figure, in_words(lines, dashed, x, y, title))


def bars(values: Mapping[str, float], *, x: str, title: str | None = None, log: bool = False, width: float = 6.0) -> Picture:
    """A bar for each number, with the number at its end, from top to bottom.

    values: name to number. x: what they are, with their unit. title: above; x unless given. log: a logarithmic scale, for numbers that
    lie far apart; bars then show how many times larger one is than another by how much further right it ends. ArgumentError for numbers
    that are not finite, below 0, or 0 on a logarithmic scale. MissingExtra without Matplotlib.

    >>> bars({"loop": 120.0, "im2col": 1.5}, x="milliseconds")
    milliseconds. loop: 120, im2col: 1.5.
    """
    numbers = [float(value) for value in values.values()]
    for name, value in zip(values, numbers):
        if not math.isfinite(value) or value < 0 or (log and value == 0):
            raise ArgumentError(f"bars: {name!r} is {value:g}, which no bar can show", hint="Leave it out.")
    with canvas(width, 0.7 + 0.34 * max(len(numbers), 1)) as (figure, axes):
        places = np.arange(len(numbers))
        axes.barh(places, numbers, height=0.62, color=BLUE, log=log)
        for place, value in zip(places, numbers):
            axes.annotate(f"{value:,.3g}" if value < 1000 else f"{value:,.0f}", (value, place), xytext=(5, 0),
                          textcoords="offset points", va="center", color=INK)
        axes.set_yticks(places, list(values))
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.set(title=title or x, ylim=(max(len(numbers), 1) - 0.5, -0.5))
        if title:
            axes.set_xlabel(x)
        if numbers:
            low, high = min(numbers), max(numbers) or 1.0
            axes.set_xlim(*((low / 3, high * (high / low * 3) ** 0.14) if log else (0, high * 1.14)))
        axes.grid(axis="y", visible=False)
        axes.grid(axis="x", color=GRID)
        plain(axes.xaxis, log)
    return Picture(figure, f"{title or x}. {', '.join(f'{name}: {value:.4g}' for name, value in zip(values, numbers))}.")


def name_places(axes: Any, lines: list[Line], logs: tuple[bool, bool]) -> None:
    """Plain numbers on the scales; those that were measured, if they are few."""
    plain(axes.yaxis, logs[1])
    measured = np.unique(np.concatenate([each.x for each in lines])) if lines else np.zeros(0)
    plain(axes.xaxis, logs[0])
    if 0 < len(measured) <= NAMED:
        axes.set_xticks(measured, [told(value) for value in measured])
        axes.xaxis.minorticks_off()


def plain(axis: Any, logarithmic: bool) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: told(value)))
    if logarithmic:
        low, high = axis.get_view_interval()
        if high < 100 * low:                                            # within two decades, name 2 and 5 as well
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_minor_formatter(NullFormatter())


def told(value: float) -> str:
    return f"{value:,.6g}" if 1e-3 <= abs(value) < 1e6 or not value else f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")


def columns(lines: list[Line], width: float) -> int:
    return max(1, min(len(lines), int(12 * width / (6 + max(len(each.name) for each in lines)))))


def in_words(lines: list[Line], dashed: list[Line], x: str, y: str, title: str | None) -> str:
    """What is to be seen."""
    words = [f"{title}: {y} over {x}." if title else f"{y} over {x}."]
    for each, what in [*((each, "") for each in lines), *((each, " (dashed)") for each in dashed)]:
        ends = [f"{each.y[i]:.4g} at {each.x[i]:,.6g}" for i in ((0, -1) if len(each.x) > 1 else (0,))] if len(each.x) else ["nothing"]
        words.append(f"{each.name}{what}: {', '.join(ends)}.")
    return " ".join(words)
