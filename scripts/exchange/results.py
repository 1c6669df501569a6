"""From the times and bytes of cells to ratios, from these to what was promised, and all of it as tables.

A ratio is the time of a step where nothing is hidden over the time of one in the cell's way, in the same round: above 1 it is faster. The
limit is what hiding all of the shorter behind the longer would give. Bytes are those that the interfaces have counted, headers and
acknowledgements among them.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

from rich.table import Table

from bench.results import Promise, add_columns, digits, duration
from exchange.cells import TECHNIQUES

# (kind, ratio, technique) to the least ratio to serial
MUST = {("overlap", 1.0, "backward"): 1.35, ("overlap", 1.0, "both"): 1.45, ("overlap", 0.59, "both"): 1.4}
MUST_BYTES = {"fp16": 0.505, "int8": 0.26, "topk:0.01": 0.025}      # at most, of float32's
KINDS = {"overlap": "computation asleep", "stages": "computation asleep on a device behind a bus", "numpy": "NumPy computes"}
HEADS = ("step", "/ serial", "hidden", "up, MB", "down, MB", "of float32", "sums")


def spread(numbers: list[float]) -> dict[str, float]:
    """Median, least and greatest."""
    return {"median": statistics.median(numbers), "low": min(numbers), "high": max(numbers)}


def rounds(runs: list[dict[str, Any]]) -> list[float]:
    """Seconds of a step in each round."""
    return [statistics.median(run["seconds"]) for run in runs]


def with_figures(group: dict[str, Any]) -> dict[str, Any]:
    """A group as a rank wrote it, with what its numbers come to."""
    first = group["cells"][0]
    alone, serial = statistics.median(rounds(group["alone"])), statistics.median(rounds(first["runs"]))
    found = [figures(cell, group, alone) for cell in group["cells"]]
    plain = {figure["technique"]: figure["up"] + figure["down"] for figure in found if figure["compress"] == "none"}
    for figure in found:
        figure["of_float32"] = (figure["up"] + figure["down"]) / plain[figure["technique"]]
    measured = (serial - alone) / alone
    return {**group, "computation": spread(rounds(group["alone"])), "measured_ratio": measured,
            "limit": (1 + measured) / max(1, measured), "cells": [cell | figure for cell, figure in zip(group["cells"], found)]}


def figures(cell: dict[str, Any], group: dict[str, Any], alone: float) -> dict[str, Any]:
    """What a cell's numbers come to. alone: seconds of a step's computation.

    hidden: the share of what communication adds to a serial step of the same compression. up, down: bytes a step that the last rank, a
    worker, has sent and received. sums: bytes of gradients that were added up in a second.
    """
    seconds, serial = rounds(cell["runs"]), rounds(group["cells"][0]["runs"])
    same = next((rounds(other["runs"]) for other in group["cells"]
                 if (other["technique"], other["compress"]) == (group["cells"][0]["technique"], cell["compress"])), serial)
    added = statistics.median(same) - alone
    spent = [rank for run in cell["runs"] for rank in run["spent"]]
    summing = sum(rank["sums"] for rank in spent)
    return {"technique": cell["technique"], "compress": cell["compress"], "step": spread(seconds),
            "ratio": spread([before / now for before, now in zip(serial, seconds)]),
            "hidden": (statistics.median(same) - statistics.median(seconds)) / added if added > 0 else None,
            "up": statistics.median(run["sent"][-1] for run in cell["runs"]),
            "down": statistics.median(run["received"][-1] for run in cell["runs"]),
            "sums": sum(rank["summed"] for rank in spent) / summing if summing else None}


def promises(results: dict[str, Any]) -> list[Promise]:
    """Every promise that these results can tell something about."""
    found = []
    for group in results["groups"]:
        for cell in group["cells"]:
            what = f"{group['exchange']}, {group['ratio']:g}: {name(cell)}"
            must = MUST.get((group["kind"], group["ratio"], cell["technique"]))
            if must is not None and cell["compress"] == "none":
                found.append(Promise(what, must, cell["ratio"]["median"], " x"))
            if cell["compress"] in MUST_BYTES and cell["technique"] == "both":
                found.append(Promise(f"{what}, bytes / float32's", MUST_BYTES[cell["compress"]], cell["of_float32"], least=False))
    return found


def with_promises(results: dict[str, Any]) -> dict[str, Any]:
    """The results, with what was promised beside what was reached: as they are written to a file."""
    return results | {"promises": [asdict(promise) | {"kept": promise.kept} for promise in promises(results)]}


def name(cell: dict[str, Any]) -> str:
    """What a cell is called in a table."""
    return TECHNIQUES[cell["technique"]].title + (f", {cell['compress']}" if cell["compress"] != "none" else "")


def title(group: dict[str, Any]) -> str:
    """What stands above a group."""
    return (f"{group['exchange']}, {KINDS[group['kind']]}: communication / computation {group['measured_ratio']:.2f}, "
            f"{group['bytes'] / 1e6:.1f} MB of gradients, {duration(group['computation']['median'])} of computation" +
            (f"; limit {group['limit']:.2f}" if group["kind"] != "stages" else ""))         # where copies and sums can be hidden too


def among(values: dict[str, float], show: Callable[[float], str]) -> str:
    """Median and range."""
    middle, low, high = (show(values[key]) for key in ("median", "low", "high"))
    return middle if low == high else f"{middle} ({low}-{high})"


def rows(group: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """A row a cell: its name and what HEADS say."""
    for cell in group["cells"]:
        hidden = "" if cell["hidden"] is None or TECHNIQUES[cell["technique"]].serial else f"{cell['hidden']:.0%}"
        yield (name(cell), duration(cell["step"]["median"]), among(cell["ratio"], digits), hidden, f"{cell['up'] / 1e6:.2f}",
               f"{cell['down'] / 1e6:.2f}", f"{cell['of_float32']:.3f}" if cell["compress"] != "none" else "",
               f"{cell['sums'] / 1e9:.2g} GB/s" if cell["sums"] else "")


def table(group: dict[str, Any]) -> Table:
    """A group to read."""
    shown = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    add_columns(shown, "", *(f">{head}" for head in HEADS))
    for row in rows(group):
        shown.add_row(*row)
    return shown


def promise_table(results: dict[str, Any]) -> Table:
    """What was promised, and what became of it."""
    shown = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    add_columns(shown, "", ">measured", ">must", "reached")
    for promise in promises(results):
        sign = "≥" if promise.least else "≤"
        got = f"{promise.got:.3f}" if not promise.least else f"{promise.got:.2f}"
        mark = "✓" if promise.kept else f"{promise.got - promise.must:+.3f}"
        shown.add_row(promise.what, got + promise.unit, f"{sign} {promise.must:g}{promise.unit}",
                      f"[{'green' if promise.kept else 'red'}]{mark}[/]")
    return shown


def circumstances(results: dict[str, Any]) -> list[str]:
    """Where, with what and how it was measured, a line each."""
    m, net = results["machine"], results["network"]
    versions = {"Python": m["python"]} | results["versions"]
    return [f"{m['processor']}, {m['cores']} cores, {m['memory_gib']} GiB, {m['system']}; {m['date']}",
            ", ".join(f"{key} {value}" for key, value in versions.items()) + (f"; minidl's commit {m['commit']}" if m["commit"] else ""),
            f"{net['ranks']} hosts of {net['rate']} both ways (burst {net['burst']}, queue {net['latency']}); {results['rounds']} rounds "
            f"of {results['steps']} steps, in chunks of {results['chunk'] >> 10} KiB" +
            (f", {results['window']} under way at a time" if results["window"] else "")]


def notes(results: dict[str, Any]) -> list[str]:
    """What else there is to say, a line each."""
    wire, first = results["wire"], results["wire"]["ranks"][0]
    rates = ", ".join(f"{entry['ranks']} ranks {entry['way']} {entry['rate'] / 1e9:.2g}" for entry in results["sums"])
    return [f"On the wire: {first['bytes'] / 1e6:.2f} MB sent, {first['sent'] / 1e6:.2f} MB counted by the interface, "
            f"{wire['rate'] * 8e-6:.0f} Mbit/s of content each way.",
            f"The sum alone, in cache, GB/s of gradients: {rates}.", *results["notes"]]
