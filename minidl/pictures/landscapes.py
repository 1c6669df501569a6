"""Landscapes: a function of two numbers as a map, and the ways that optimizers took down it.

The lines of the map join places of equal height. Heights stand on a scale that is finer near the lowest place, as valleys are looked at
for their bottom: neighbouring lines differ by the same factor, not by the same amount.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from minidl.backend import to_numpy
from minidl.errors import ShapeError
from minidl.pictures.picture import GRID, INK, MUTED, PAPER, SERIES, Picture, canvas

GRAIN = 101                 # places along each axis where the function is asked
LEVELS = 12                 # lines of the map
NARROW = 0.002              # the lowest line is so far up from the lowest place, as a share of the way to the highest
MARKERS = ("o", "s", "^", "D", "v", "P")        # so that paths differ in more than colour

Range = tuple[float, float]


def landscape(function: Callable[[np.ndarray, np.ndarray], Any], paths: Mapping[str, Any], x: Range, y: Range,
              names: tuple[str, str] = ("x", "y"), *, title: str = "", together: bool = True) -> Picture:
    """A map of a function of two numbers, and paths on it.

    function: from two arrays of one shape to an array of that shape. paths: name to places (steps + 1, 2), from the start on; one that
    leaves the map and does not come back ends at its edge. x, y: from where to where the map goes. names: of the two numbers.
    together: all paths on one map, or a map for each. ShapeError for paths or a function of other shapes. MissingExtra without
    Matplotlib.

    >>> landscape(lambda x, y: x * x + y * y, {"down": np.array([[3, 0], [1, 0], [0, 0]])}, x=(-4, 4), y=(-2, 2))
    A map with contour lines over x and y. down: 2 steps, from (3, 0) at height 9 to (0, 0) at height 0.
    """
    ways = {name: places_of(name, path) for name, path in paths.items()}
    lost = {name: step for name, way in ways.items() if (step := gone(way, x, y)) is not None}
    across, along = np.meshgrid(np.linspace(*x, GRAIN), np.linspace(*y, GRAIN))
    heights = heights_of(function, across, along)
    groups = [ways] if together or not ways else [{name: way} for name, way in ways.items()]
    count, looks = len(groups), {name: (SERIES[i % len(SERIES)], MARKERS[i % len(MARKERS)]) for i, name in enumerate(ways)}
    with canvas(6.2 if count == 1 else 2.75 * count, 3.2, 1, count, squeeze=False, sharey=True) as (figure, panels):
        for group, axes in zip(groups, panels[0]):
            draw_map(axes, across, along, heights)
            for name, way in group.items():
                away = f"off the map at step {lost[name]}" if name in lost else ""
                draw_path(axes, f"{name}, {away}" if away else name, way[:lost.get(name, len(way)) + 1], *looks[name])
            if count > 1 and away:
                axes.text(0.97, 0.04, away.replace("map ", "map\n"), transform=axes.transAxes, ha="right", fontsize=9, zorder=5,
                          bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 2})
            axes.set(xlim=x, ylim=y, xlabel=names[0], title=next(iter(group)) if count > 1 else title)
            axes.grid(False)
        panels[0, 0].set_ylabel(names[1])
        if count == 1 and ways:
            figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside upper left", ncols=min(3, len(ways)))
        if title and count > 1:
            figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
    return Picture(figure, in_words(function, ways, lost, names, title))


def places_of(name: str, path: Any) -> np.ndarray:
    """A path as float64 (steps + 1, 2). ShapeError if it is none."""
    places = np.array([to_numpy(getattr(place, "data", place)) for place in path] if isinstance(path, list | tuple) else
                      to_numpy(path), dtype=np.float64)
    if places.ndim != 2 or places.shape[1] != 2 or not len(places):
        raise ShapeError(f"landscape: the path {name!r} has shape {places.shape}", expected="(steps + 1, 2)",
                         hint="Give one place a row, and its two numbers in the row.")
    return places


def heights_of(function: Callable[[np.ndarray, np.ndarray], Any], across: np.ndarray, along: np.ndarray) -> np.ndarray:
    """The function at many places. ShapeError if it gives something of another shape."""
    found = function(across, along)
    heights = np.asarray(to_numpy(getattr(found, "data", found) if hasattr(found, "requires_grad") else found), np.float64)
    if heights.shape != across.shape:
        raise ShapeError(f"landscape: the function gives shape {heights.shape} for two arrays of shape {across.shape}",
                         hint="Write it with operators that work number by number.")
    return heights


def draw_map(axes: Any, across: np.ndarray, along: np.ndarray, heights: np.ndarray) -> None:
    low, high = np.nanmin(heights), np.nanmax(heights)
    if not high > low:
        return                                                          # a plain has no lines
    levels = low + (high - low) * np.geomspace(NARROW, 0.9, LEVELS)
    axes.contour(across, along, heights, levels=levels, colors=[MUTED], linewidths=0.7, alpha=0.55)
    axes.contourf(across, along, heights, levels=[low, levels[0]], colors=[GRID])


def draw_path(axes: Any, name: str, way: np.ndarray, colour: str, marker: str) -> None:
    small = len(way) > 40
    axes.plot(*way.T, color=colour, marker=marker, markersize=2.5 if small else 3.5, linewidth=1.2 if small else 1.5, label=name, zorder=3)
    axes.plot(*way[0], color=INK, marker="o", markersize=7, fillstyle="none", zorder=4)         # where it began


def gone(way: np.ndarray, x: Range, y: Range) -> int | None:
    """The step with which a path leaves the map and does not come back; None if its end is on the map."""
    inside = (way[:, 0] >= x[0]) & (way[:, 0] <= x[1]) & (way[:, 1] >= y[0]) & (way[:, 1] <= y[1])
    return None if inside[-1] else len(way) - int(np.argmax(inside[::-1])) if inside.any() else 0


def in_words(function: Callable[[np.ndarray, np.ndarray], Any], ways: Mapping[str, np.ndarray], lost: Mapping[str, int],
             names: tuple[str, str], title: str) -> str:
    """What is to be seen."""
    words = [f"{title}: a" if title else "A", f"map with contour lines over {names[0]} and {names[1]}."]
    for name, way in ways.items():
        ends = [f"({place[0]:.3g}, {place[1]:.3g}) at height {float(height):.3g}"
                for place, height in zip(way[[0, -1]], heights_of(function, way[[0, -1], 0], way[[0, -1], 1]))]
        words.append(f"{name}: {len(way) - 1} steps, from {ends[0]} to {ends[1]}"
                     f"{f', off the map at step {lost[name]}' if name in lost else ''}.")
    return " ".join(words)
