"""From times to ratios, from ratios to what was promised, and all of it as tables.

A ratio is PyTorch's time over minidl's: above 1, minidl is faster. For memory it is minidl's over PyTorch's: below 1, minidl needs less.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.console import JustifyMethod
from rich.table import Table

from bench.turns import Outcome

THREADS = 2                             # the promises are for this many
# (workload, pass) to the least ratio to PyTorch eager, and to the better of its modes
MUST = {
    ("mlp", "step"): (1.4, 1.4),
    ("lenet", "step"): (1.4, 1.1),
    ("cnn", "step"): (1.4, 1.15),
    ("resnet18", "step"): (1.05, 1.0),
    ("autoencoder", "step"): (1.3, 1.3),
} | {(name, "inference"): (1.2, 1.0) for name in ("mlp", "lenet", "cnn", "resnet18", "autoencoder")}
MUST_NUMPY = {"mlp": 1.0, "lenet": 1 / 3, "cnn": 1 / 3}     # a training step without Numba, against eager
MUST_MEMORY = 0.8
MUST_FIRST = {"cold": 5.0, "warm": 0.5}                     # seconds

PASSES = {"step": "training step", "inference": "inference", "forward": "forward", "both": "forward + back"}
LEGEND = """PyTorch's time / minidl's, median of rounds (quartiles): above 1, minidl is faster.
must: against eager / the better of both. peak: minidl's share of the machine's, products counted as
the direct algorithm has them. NumPy: PyTorch eager's time / that of NumPy alone."""


def ratio(theirs: list[float], ours: list[float]) -> dict[str, Any]:
    """Of times by round: the ratio in each, their median and quartiles.

    >>> ratio([3.0, 2.0, 4.0], [1.0, 1.0, 1.0])["median"]
    3.0
    """
    rounds = [t / o for t, o in zip(theirs, ours)]
    low, high = np.percentile(rounds, [25, 75])
    return {"median": statistics.median(rounds), "low": float(low), "high": float(high), "rounds": rounds}


def row(outcome: Outcome, threads: int, peak: float) -> dict[str, Any]:
    """What is kept of an outcome. peak: GFLOP/s of this machine."""
    ours, eager = outcome.seconds["minidl"], outcome.seconds["eager"]
    ratios = {name: ratio(outcome.seconds[name], ours) for name in ("eager", "channels_last") if name in outcome.seconds}
    best = min(ratios, key=lambda name: ratios[name]["median"])
    rates = {name: outcome.flops / statistics.median(seconds) / 1e9 for name, seconds in outcome.seconds.items()}
    return {
        "workload": outcome.workload.name, "title": outcome.workload.title, "kind": outcome.workload.kind, "pass": outcome.name,
        "threads": threads, "batch": outcome.workload.batch,
        "seconds": {name: statistics.median(seconds) for name, seconds in outcome.seconds.items()},
        "ratios": ratios, "best": best,
        "numpy": ratio(eager, outcome.seconds["numpy"]) if "numpy" in outcome.seconds else None,
        "gflops": rates, "share_of_peak": {name: rate / peak for name, rate in rates.items()},
        "settings": outcome.settings, "check": outcome.check,
    }


@dataclass(frozen=True)
class Promise:
    """What was to be reached, and what was. least: whether the number must be at least `must`, or at most."""

    what: str
    must: float
    got: float
    unit: str = ""
    least: bool = True

    @property
    def kept(self) -> bool:
        return self.got >= self.must if self.least else self.got <= self.must

    @property
    def apart(self) -> bool:
        """Whether it is about something else than a row of the table."""
        return "Numba" in self.what or not self.least

    @property
    def mark(self) -> str:
        return "✓" if self.kept else f"{self.got - self.must:+.2f}"


def promises(results: dict[str, Any]) -> list[Promise]:
    """Every promise that these results can tell something about."""
    found = []
    for r in results["rows"]:
        if r["threads"] != THREADS:
            continue
        for name, must in zip((f"{r['title']}, {PASSES[r['pass']]}: eager", f"{r['title']}, {PASSES[r['pass']]}: best of PyTorch"),
                              MUST.get((r["workload"], r["pass"]), ())):
            found.append(Promise(name, must, r["ratios"][r["best"] if "best" in name else "eager"]["median"]))
        if r["workload"] in MUST_NUMPY and r["pass"] == "step" and r["numpy"]:
            found.append(Promise(f"{r['title']}, training step without Numba: eager", MUST_NUMPY[r["workload"]], r["numpy"]["median"]))
    for m in results["memory"]:
        found.append(Promise(f"{m['workload']}, peak memory, minidl's / PyTorch's", MUST_MEMORY, m["ratio"], least=False))
    if results["first_step"]:
        for state, must in MUST_FIRST.items():
            found.append(Promise(f"first step of LeNet, {state} cache", must, results["first_step"][state], " s", least=False))
    return found


def with_promises(results: dict[str, Any]) -> dict[str, Any]:
    """The results, with what was promised beside what was reached: as they are written to a file."""
    return results | {"promises": [asdict(promise) | {"kept": promise.kept} for promise in promises(results)]}


def duration(seconds: float) -> str:
    """Three digits and a unit.

    >>> duration(0.00123), duration(2.5)
    ('1.23 ms', '2.50 s')
    """
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}" if seconds >= 100 * size else f"{f'{seconds / size:#.3g}'.rstrip('.')} {unit}"
    return f"{seconds * 1e6:.0f} µs"


def digits(number: float) -> str:
    """Enough of a ratio to compare it by."""
    return f"{number:.2f}" if number < 10 else f"{number:.1f}" if number < 100 else f"{number:.0f}"


def spread(r: dict[str, Any] | None) -> str:
    """Median and quartiles of a ratio; nothing if there is none."""
    return "" if r is None else f"{digits(r['median'])} ({digits(r['low'])}-{digits(r['high'])})"


def threads_of(number: int) -> str:
    return f"{number} thread{'s' * (number > 1)}"


def sections(results: dict[str, Any]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Rows that belong together, and what to write above them."""
    for threads in sorted({r["threads"] for r in results["rows"]}, reverse=True):
        for name, title in PASSES.items():
            rows = [r for r in results["rows"] if r["threads"] == threads and r["pass"] == name]
            if rows:
                yield f"{title}, {threads_of(threads)}", rows


def mark(r: dict[str, Any]) -> tuple[str, str]:
    """The thresholds of a row as text, and whether they are reached: a tick, or how much is missing."""
    must = MUST.get((r["workload"], r["pass"])) if r["threads"] == THREADS else None
    if must is None:
        return "", ""
    got = r["ratios"]["eager"]["median"], r["ratios"][r["best"]]["median"]
    marks = [Promise("", least, ratio).mark for least, ratio in zip(must, got)]
    text = "[green]✓[/]" if marks == ["✓", "✓"] else f"[red]{' '.join(marks)}[/]"
    return "/".join(f"{least:g}" for least in must), text


def add_columns(shown: Table, *heads: str) -> None:
    """Columns by their heads; what begins with > stands to the right."""
    for head in heads:
        justify: JustifyMethod = "right" if head.startswith(">") else "left"
        shown.add_column(head.removeprefix(">"), justify=justify, no_wrap=True)


def table(results: dict[str, Any]) -> Table:
    """The one table of ratios."""
    shown = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    add_columns(shown, "", ">minidl", ">eager", ">channels_last", ">must", "reached", ">peak", ">NumPy")
    for title, rows in sections(results):
        shown.add_row()
        shown.add_row(f"[bold]{title}[/]")
        for r in rows:
            must, reached = mark(r)
            shown.add_row(r["title"], duration(r["seconds"]["minidl"]), spread(r["ratios"]["eager"]),
                          spread(r["ratios"].get("channels_last")), must, reached, f"{r['share_of_peak']['minidl']:.0%}",
                          f"{r['numpy']['median']:.2f}" if r["numpy"] else "")
    return shown


def further(results: dict[str, Any]) -> Table:
    """What is no ratio of times against a PyTorch mode: NumPy alone, memory, the first step."""
    shown = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    add_columns(shown, "", ">measured", ">must", "reached")
    for promise in promises(results):
        if promise.apart:
            colour = "green" if promise.kept else "red"
            least = f"{'≥' if promise.least else '≤'} {promise.must:.2g}{promise.unit}"
            shown.add_row(promise.what, f"{promise.got:.2f}{promise.unit}", least, f"[{colour}]{promise.mark}[/]")
    return shown


def circumstances(results: dict[str, Any]) -> list[str]:
    """Where and with what it was measured, a line each."""
    m = results["machine"]
    lines = [f"{m['processor']}, {m['cores']} cores, {m['memory_gib']} GiB, {m['system']}; {m['date']}",
             ", ".join(f"{name} {version}" for name, version in ({"Python": m["python"]} | results["versions"]).items()) +
             (f"; minidl's commit {m['commit']}" if m["commit"] else "")]
    lines += [f"{side}: {blas}" for side, blas in results["blas"].items()]
    for threads, rates in results["peak"].items():
        lines.append(f"peak measured, {threads_of(int(threads))}: {max(rates.values()):.0f} GFLOP/s, the best of " +
                     ", ".join(f"{side} {rate:.0f}" for side, rate in rates.items()))
    lines += borrowed(results)
    return lines


def borrowed(results: dict[str, Any]) -> list[str]:
    """How often PyTorch was faster with the allocator settings that minidl makes for itself, and ran with them: a line, if ever."""
    counts = []
    for mode in ("eager", "channels_last"):
        had = [r["settings"][mode] == "tuned malloc" for r in results["rows"] if mode in r["settings"]]
        if any(had):
            counts.append(f"{mode} in {sum(had)} of {len(had)}")
    return [f"PyTorch had minidl's allocator settings where they made it faster: {', '.join(counts)}"] if counts else []


def markdown(results: dict[str, Any], picture: str = "") -> str:
    """The results as a section of a README: the picture, the networks' ratios, memory and first step, and where it was measured."""
    lines = [f"![PyTorch's time over minidl's, for each network]({picture})", ""] if picture else []
    for threads in sorted({r["threads"] for r in results["rows"] if r["kind"] == "model"}, reverse=True):
        lines += [f"| {threads_of(threads)}: PyTorch's time / minidl's | step, eager | step, channels_last "
                  "| inference, eager | inference, channels_last |", "|---|---|---|---|---|"]
        by_name = {(r["workload"], r["pass"]): r for r in results["rows"] if r["threads"] == threads and r["kind"] == "model"}
        for name in dict.fromkeys(name for name, _ in by_name):
            r = by_name[name, "step"]
            cells = [spread(by_name[name, p]["ratios"].get(mode)) or "-" for p in ("step", "inference")
                     for mode in ("eager", "channels_last")]
            lines.append(f"| {r['title']}, {r['batch']} examples | " + " | ".join(cells) + " |")
        lines.append("")
    if results["memory"]:
        lines.append("Peak memory of training above import, minidl's / PyTorch's: " +
                     ", ".join(f"{m['workload']} {m['ratio']:.2f} ({m['minidl'] / 2**20:.0f} MiB)" for m in results["memory"]) + ".")
    if results["first_step"]:
        first = results["first_step"]
        lines.append(f"LeNet's first step after import: {duration(first['cold'])} where kernels must be compiled, then "
                     f"{duration(first['warm'])}; PyTorch's {duration(first['pytorch'])}.")
    lines += ["", f"Medians of {results['rounds']} rounds, with quartiles. " + ". ".join(circumstances(results)) + "."]
    return "\n".join(lines).strip() + "\n"
