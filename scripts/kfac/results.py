"""From curves to figures, from figures to what was promised, and all of it as tables.

What counts is what every seed needed until the first measurement at the target: nothing is interpolated. A figure is the median over
the seeds; a ratio of times is taken within a seed, whose runs took turns.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from rich.table import Table

from bench.results import Promise, add_columns, digits, duration, spread
from kfac.tuning import said

PEER = "adam"
# (workload, target) to the most that K-FAC may need at an interval of 10: what the workload counts, and CPU time over Adam's
MUST = {("autoencoder", 243.0): (120, 0.6), ("autoencoder", 236.0): (220, 0.5), ("lenet", 0.875): (1.5, 1.0)}
MUST_STEP = {"autoencoder": 1.8, "lenet": 1.25}             # a step of K-FAC over one of SGD, at the same interval

PHASES = ("factors", "inverses", "preconditioning")
NEVER = math.inf


def numbers(w: dict[str, Any], method: str, target: int, what: str) -> list[float]:
    """Of each seed: what it "counted", or its seconds "cpu" or "wall", at a target; infinity where it was not reached."""
    return [run["reached"][target][what] if run["reached"][target] else NEVER for run in w["methods"][method]["runs"]]


def over(w: dict[str, Any], method: str, other: str, target: int, what: str) -> float | None:
    """The median ratio of one method's number to another's; None where too few seeds of either reached the target."""
    if method not in w["methods"] or other not in w["methods"]:
        return None
    pairs = zip(numbers(w, method, target, what), numbers(w, other, target, what))
    ratios = [math.nan if a == b == NEVER else a / b if b else math.nan for a, b in pairs]
    if any(math.isnan(ratio) for ratio in ratios):
        return None
    return statistics.median(ratios)


def promises(results: dict[str, Any]) -> list[Promise]:
    """Every promise that these results can tell something about."""
    found = []
    for name, w in results["workloads"].items():
        if "kfac" not in w["methods"]:
            continue
        for i, target in enumerate(w["targets"]):
            if (name, target) not in MUST:
                continue
            number, share = MUST[name, target]
            found.append(Promise(f"{w['title']}, K-FAC until {target:g}", number, median(numbers(w, "kfac", i, "counted")),
                                 f" {w['counted']}", least=False))
            ratio = over(w, "kfac", PEER, i, "cpu")
            if ratio is not None:
                found.append(Promise(f"{w['title']}, CPU time until {target:g}, K-FAC / Adam", share, ratio, least=False))
    for name, s in results["steps"].items():
        if "kfac" in s["methods"] and name in MUST_STEP:
            found.append(Promise(f"{s['title']}, a step of K-FAC / of SGD", MUST_STEP[name], s["methods"]["kfac"]["ratio"]["median"],
                                 least=False))
    return found


def with_promises(results: dict[str, Any]) -> dict[str, Any]:
    """The results, with what was promised beside what was reached: as they are written to a file, where infinity is null."""
    return results | {"promises": [asdict(promise) | {"got": promise.got if math.isfinite(promise.got) else None, "kept": promise.kept}
                                   for promise in promises(results)]}


def median(values: list[float]) -> float:
    return statistics.median(values) if values else NEVER


def among(values: list[float], show: Any) -> str:
    """Median, smallest and largest."""
    if not values or median(values) == NEVER:
        reached = sum(value < NEVER for value in values)
        return "not reached" if not reached else f"by {reached} of {len(values)}"
    middle, low, high = (show(value) if value < NEVER else "never" for value in (median(values), min(values), max(values)))
    return middle if low == high else f"{middle} ({low}-{high})"


def amount(w: dict[str, Any], value: float) -> str:
    """Steps or epochs."""
    return f"{value:.0f}" if w["counted"] == "steps" else f"{value:.1f}"


def add_rows(shown: Table, rows: list[tuple[str, ...]]) -> Table:
    for row in rows:
        shown.add_row(*row)
    return shown


def figures(w: dict[str, Any]) -> Iterator[tuple[float, list[tuple[str, ...]]]]:
    """For each target a row a method: its name, then steps or epochs, CPU seconds, seconds by the clock, each with its share of Adam's."""
    for i, target in enumerate(w["targets"]):
        rows = []
        for name, m in w["methods"].items():
            cells = [m["title"]]
            for what, show in (("counted", lambda value: amount(w, value)), ("cpu", digits), ("wall", digits)):
                ratio = over(w, name, PEER, i, what)
                cells += [among(numbers(w, name, i, what), show), "-" if ratio in (None, 0, NEVER) else f"{ratio:.2f}"]
            rows.append(tuple(cells))
        yield target, rows


def heads(w: dict[str, Any]) -> list[str]:
    return [w["counted"], "/ Adam", "CPU s", "/ Adam", "s", "/ Adam"]


def table(w: dict[str, Any]) -> Table:
    """A workload's: what each method needed until each target."""
    shown = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, title_justify="left", title_style="bold",
                  title=f"{w['title']}: {w['measure']}, minibatches of {w['batch']}")
    add_columns(shown, "", *(f">{head}" for head in heads(w)))
    for target, rows in figures(w):
        shown.add_row(f"[bold]until {target:g}[/]")
        add_rows(shown, rows)
    return shown


def settings(w: dict[str, Any]) -> list[str]:
    """What each method ran with, and what came of its tries: a line each."""
    lines = []
    for m in w["methods"].values():
        line = f"{m['title']}: {said(m['settings'] | m['fixed'])}"
        ends = [t["end"] for t in m["tries"]]
        if m["tries"]:
            others = [f"{ends.count(end)} {end}" for end in ("cut off", "failed") if end in ends]
            line += f"; the best of {len(ends)}" + (f" ({', '.join(others)})" if others else "")
        lines.append(line)
    return lines


def verdicts(w: dict[str, Any]) -> list[str]:
    """Who wins, as a sentence a target."""
    if not {"kfac", PEER} <= set(w["methods"]):
        return []
    sentences = []
    for i, target in enumerate(w["targets"]):
        what = f"{w['measure'].split(',')[0]} {target:g}"
        ratios = {name: over(w, "kfac", PEER, i, key)
                  for name, key in ((w["counted"], "counted"), ("CPU time", "cpu"), ("time by the clock", "wall"))}
        known = [ratio for ratio in ratios.values() if ratio is not None]
        ours = median(numbers(w, "kfac", i, "counted"))
        if ours == NEVER:
            sentences.append(f"K-FAC did not reach {what} within {w['limit']:g} {w['counted']}.")
        elif len(known) < len(ratios) or not max(known):
            alone = ", which Adam did not with every seed" if NEVER in numbers(w, PEER, i, "counted") else ""
            sentences.append(f"K-FAC reaches {what} after {amount(w, ours)} {w['counted']}{alone}.")
        else:
            end = "it wins" if max(known) < 1 else "it does not win here" if min(known) >= 1 else "it does not win in all of them"
            shares = ", ".join(f"{ratio:.2f} of Adam's {name}" for name, ratio in ratios.items())
            sentences.append(f"K-FAC reaches {what} in {shares}: {end}.")
    return sentences


STEP_HEADS = ("a step", "/ SGD's", "CPU / SGD's", "factors", "inverses", "precond.", "rest")


def step_rows(s: dict[str, Any]) -> list[tuple[str, ...]]:
    """A row a method: its step, that over SGD's by the clock and in CPU time, K-FAC's phases, and what else its step takes over SGD's."""
    rows = []
    for name, m in s["methods"].items():
        phases = [m["phases"][phase] for phase in PHASES if phase in m["phases"]]
        rest = m["wall"] - sum(phases) - s["methods"]["sgd"]["wall"] if phases else 0.0
        rows.append((m["title"], duration(m["wall"]), spread(m["ratio"]) if name != "sgd" else "1",
                     digits(m["cpu_ratio"]["median"]) if name != "sgd" else "1",
                     *([f"{seconds * 1e3:.2f} ms" for seconds in (*phases, rest)] if phases else ["-"] * 4)))
    return rows


def step_table(results: dict[str, Any]) -> Table:
    interval = next(iter(results["steps"].values()))["interval"]
    shown = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, title_justify="left", title_style="bold",
                  title=f"A step, K-FAC's factors and inverses renewed every {interval}")
    add_columns(shown, "", *(f">{head}" for head in STEP_HEADS))
    for s in results["steps"].values():
        shown.add_row(f"[bold]{s['title']}[/]")
        add_rows(shown, step_rows(s))
    return shown


LAYER_HEADS = ("in", "out", "rows", "SGD", "precond.", "factors", "backward", "inverses", "/ SGD")


def layer_rows(s: dict[str, Any]) -> list[tuple[str, ...]]:
    """A row a layer: its shape, millions of multiply-adds of a step of SGD, what K-FAC adds, and the ratio that comes of it."""
    rows = []
    for layer in s["layers"]:
        shape = [f"{layer[key]:,}" if key in layer else "" for key in ("inputs", "outputs", "rows")]
        parts = [layer[key] for key in ("sgd", "preconditioning", "factors", "backward", "inverses")]
        rows.append((layer["path"], *shape, *(f"{part / 1e6:.1f}" for part in parts), f"{sum(parts) / parts[0]:.2f}"))
    return rows


def layer_table(s: dict[str, Any]) -> Table:
    shown = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, title_justify="left", title_style="bold",
                  title=f"{s['title']}: millions of multiply-adds a step, and least ratio to SGD by them")
    add_columns(shown, "", *(f">{head}" for head in LAYER_HEADS))
    return add_rows(shown, layer_rows(s))


def promise_table(results: dict[str, Any]) -> Table:
    shown = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    add_columns(shown, "", ">measured", ">must", "reached")
    for promise in promises(results):
        got = digits(promise.got) + promise.unit if promise.got < NEVER else "not reached"
        text = ("✓" if promise.kept else "no" if promise.got == NEVER else f"{promise.got - promise.must:+.2f}")
        shown.add_row(promise.what, got, f"≤ {promise.must:g}{promise.unit}", f"[{'green' if promise.kept else 'red'}]{text}[/]")
    return shown


def circumstances(results: dict[str, Any]) -> list[str]:
    """Where, with what and how it was measured, a line each."""
    m, n = results["machine"], len(results["seeds"])
    versions = {"Python": m["python"]} | results["versions"]
    return [f"{m['processor']}, {m['cores']} cores, {m['memory_gib']} GiB, {m['system']}; {m['date']}",
            ", ".join(f"{name} {version}" for name, version in versions.items()) + f"; {results['blas']}" +
            (f"; minidl's commit {m['commit']}" if m["commit"] else ""),
            f"{results['data']['name']}, {results['data']['images']:,} images; {n} seed{'s' * (n > 1)}; {results['tries']} tries a method; "
            f"threads: {results['threads']}"]
