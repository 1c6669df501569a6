"""The page of a run: what is read from its folder becomes words, tables and pictures, and these a page.

How the page looks is in run.html, style.css and page.js beside this file.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from minidl.display import duration, number, percent
from minidl.errors import ConfigError, MissingExtra
from minidl.pictures import confusion, curves
from minidl.pictures.images import confused, filter_images
from minidl.report.embed import image, in_bytes, inline
from minidl.report.folder import Found, find
from minidl.report.journal import put
from minidl.report.repeat import commands

HERE = Path(__file__).parent
WORDS = {"running": "running", "finished": "finished", "stopped": "stopped", "failed": "failed", "killed": "cut off", "unknown": "ended?"}
REFRESH = 5                         # seconds after which an open page looks again, at the earliest
SIZE: dict[str, Any] = {"width": 4.1, "height": 2.8}         # inches of a picture of curves: letters can be read on a phone
ROWS = 200                          # epochs that the table shows
PROFILED = 12                       # operations of a profile that the table shows
USUAL = ("forward", "backward", "update")           # directions of an operation that go without saying


def write(folder: str | Path, out: str | Path | None = None) -> Path:
    """Make the page of a run's folder, as it stands: report.html in it, or another file. Gives the file.

    CheckpointError if it is not the folder of a run, ConfigError if the file cannot be written, MissingExtra without Matplotlib and
    Jinja2.
    """
    with quietly():
        text = page(find(Path(folder)))
    return kept(text, Path(folder) / "report.html" if out is None else Path(out))


@contextmanager
def quietly() -> Iterator[None]:
    """Within the block Matplotlib does not log that it looks for letters, which takes it some seconds the very first time."""
    logger = logging.getLogger("matplotlib")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def kept(text: str, file: Path) -> Path:
    """Write a page; gives its file. ConfigError if that cannot be."""
    try:
        put(file, text.encode("utf-8", "replace"))
    except OSError as error:
        raise ConfigError(f"report: {file} cannot be written: {error.strerror or error}", hint="Choose another file: --out FILE.") from None
    return file


def missing() -> str:
    """What must be installed for pages to be made; empty if it is there."""
    lacking = [name for name, module in (("Matplotlib", "matplotlib"), ("Jinja2", "jinja2")) if find_spec(module) is None]
    return f"{' and '.join(lacking)} {'are' if len(lacking) > 1 else 'is'} not installed" if lacking else ""


@lru_cache
def template(name: str) -> Any:
    """A template of this folder."""
    if missing():
        raise MissingExtra(f"report: {missing()}", hint="Install it: pip install 'minidl[viz]'")
    from jinja2 import Environment, FileSystemLoader

    environment = Environment(loader=FileSystemLoader(HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(percent=percent, number=number, duration=span, bytes=in_bytes)
    return environment.get_template(name)


def shared() -> dict[str, Any]:
    """What every page takes into itself."""
    return {"style": (HERE / "style.css").read_text(encoding="utf-8"), "script": (HERE / "page.js").read_text(encoding="utf-8")}


def page(found: Found) -> str:
    """The page of a run."""
    last = found.metrics[-1] if found.metrics else {}
    return template("run.html").render(
        **shared(), found=found, state=found.state, word=WORDS[found.state], refresh=REFRESH, now=clock(time.time()), told=told(found),
        tiles=tiles(found, last), commands=commands(found.config), charts=charts(found), phases=phases(found), memory=memory(found),
        matrix=matrix(found), mistakes=mistakes(found), pairs=pairs(found), filters=filters(found), tests=found.tests,
        epochs=found.metrics[-ROWS:], profile=profile(found),
        options=sorted((name, worded(value)) for name, value in found.options.items() if value is not None))


# What stands at the top


def told(found: Found) -> dict[str, Any]:
    """How the run stands, in words."""
    status = found.status
    step, per_epoch = status.get("step"), status.get("minibatches")
    total = per_epoch * found.epochs if per_epoch else None
    share = None if not total or step is None else min(step / total, 1.0)
    if share is None and found.epochs:
        share = min(len(found.metrics) / found.epochs, 1.0)
    seen = status.get("seen", 0)
    return {"step": step, "total": total, "share": share, "epoch": min(len(found.metrics) + 1, found.epochs), "epochs": found.epochs,
            "message": status.get("message", ""), "seen": seen, "when": clock(seen), "ranks": status.get("ranks", 1)}


def clock(seconds: float) -> str:
    """A moment, as date and time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def tiles(found: Found, last: dict[str, Any]) -> list[tuple[str, str, str]]:
    """The few numbers that are seen first: what, how much, and a remark."""
    shown = []
    tested = [each for each in found.metrics if each.get("test_accuracy") is not None]
    if tested:
        best = max(tested, key=lambda each: each["test_accuracy"])
        better = best["test_accuracy"] > tested[-1]["test_accuracy"]
        shown.append(("test accuracy", percent(tested[-1]["test_accuracy"]),
                      f"best: {percent(best['test_accuracy'])} in epoch {best.get('epoch')}" if better else
                      "after one epoch" if len(tested) == 1 else "the best of all epochs"))
    if last.get("test_loss") is not None:
        shown.append(("test loss", number(last["test_loss"]), f"training: {number(last.get('train_loss'))}"))
    elif last.get("train_loss") is not None:
        shown.append(("training loss", number(last["train_loss"]), ""))
    elif found.steps:
        shown.append(("training loss", number(found.steps["loss"][-1]), "of the last minibatch"))
    if found.metrics:
        trained = found.seconds()[-1]
        shown.append(("training time", span(trained), f"{last.get('images_per_second') or 0:,.0f} examples/s"))
    shown.append(("epochs", f"{len(found.metrics)}", f"of {found.epochs}" if found.epochs else ""))
    if found.model.get("parameters"):
        shown.append(("parameters", f"{found.model['parameters']:,}", found.options.get("model", "")))
    return shown


# Pictures


def charts(found: Found) -> dict[str, list[tuple[str, str]]]:
    """The curves, drawn over each of what they can be drawn over: (words, SVG) of each."""
    if not found.metrics and not found.steps:
        return {}
    known = bool(found.steps) or not np.isnan(found.last_steps()).any()
    drawn: dict[str, list[tuple[str, str]]] = {}
    for over in ("step", "seconds") if known else ("epoch", "seconds"):
        noted = found.steps and over != "epoch"
        losses: dict[str, Any] = {}
        if noted:
            losses["training"] = found.steps[over], found.steps["loss"]
        else:
            losses["training"] = found.series("train_loss", over)
        losses["test"] = found.series("test_loss", over)
        accuracies = {word: found.series(key, over) for word, key in (("training", "train_accuracy"), ("test", "test_accuracy"))}
        pictures = [("loss", losses, False)]
        if any(value is not None for _, values in accuracies.values() for value in values):
            pictures.append(("accuracy", accuracies, True))
        if noted:
            pictures.append(("learning rate", {"learning rate": (found.steps[over], found.steps["learning_rate"])}, False))
        for word, series, shares in pictures:
            series = {name: values for name, values in series.items() if any(value is not None for value in values[1])}
            picture = curves(series, x=over, y=word, percent=shares, log=False if word == "learning rate" else None, **SIZE)
            drawn.setdefault(over, []).append((word, inline(picture, f"{over}-{word.replace(' ', '-')}")))
    return drawn


def matrix(found: Found) -> dict[str, Any] | None:
    """The confusion matrix, and the pairs of classes that are mixed up most."""
    counts, classes = found.tests.get("counts"), found.config["classes"]
    if counts is None or len(counts) != len(classes):
        return None
    width = min(max(3.2, 0.3 * len(classes) + 1.1), 4.6)
    return {"picture": inline(confusion(counts, classes, width=width), "confusion"), "examples": int(counts.sum()),
            "pairs": [(classes[i], classes[j], count, count / max(counts[i].sum(), 1)) for i, j, count in confused(counts)[:8]],
            "wide": len(classes) > 12}


def mistakes(found: Found) -> list[dict[str, Any]]:
    """The surest mistakes; with pictures if they were kept."""
    tests, classes = found.tests, found.config["classes"]
    if "mistakes_sure" not in tests:
        return []
    images = tests.get("mistakes", [None] * len(tests["mistakes_sure"]))
    return [{"image": None if each is None else image(each), "right": classes[right], "taken": classes[taken], "sure": float(sure)}
            for each, right, taken, sure in zip(images, tests["mistakes_right"], tests["mistakes_taken"], tests["mistakes_sure"])]


def pairs(found: Found) -> list[tuple[str, str]]:
    """Inputs and what an autoencoder makes of them."""
    return [(image(x), image(y)) for x, y in zip(found.tests.get("inputs", ()), found.tests.get("reconstructions", ()))]


def filters(found: Found) -> dict[str, Any] | None:
    """The first layer's filters."""
    w = found.tests.get("filters")
    if w is None or w.ndim != 4:
        return None
    shown = filter_images(w)
    return {"images": [image(each) for each in shown], "of": str(found.tests["filters_of"]), "all": int(found.tests["filters_all"]),
            "count": len(w), "size": f"{w.shape[2]} x {w.shape[3]}"}


# Time and memory


def memory(found: Found) -> float:
    """The most bytes of all epochs; 0 if that was not measured."""
    return max((each.get("memory") or 0 for each in found.metrics), default=0)


def phases(found: Found) -> dict[str, Any] | None:
    """The seconds of each phase over all epochs that have measured them, and of what went on beside."""
    total: dict[str, float] = {}
    hidden: dict[str, float] = {}
    for each in found.metrics:
        for sums, key in ((total, "phases"), (hidden, "hidden")):
            for name, seconds in (each.get(key) or {}).items():
                if isinstance(seconds, int | float) and math.isfinite(seconds):
                    sums[name] = sums.get(name, 0.0) + seconds
    whole = sum(total.values())
    if not whole:
        return None
    most = max(total.values())
    return {"rows": [(name, seconds, seconds / whole, seconds / most) for name, seconds in total.items() if seconds > 0],
            "hidden": [(name, seconds, min(seconds / most, 1.0)) for name, seconds in hidden.items() if seconds > 0],
            "whole": whole, "epochs": sum(bool(each.get("phases")) for each in found.metrics)}


def profile(found: Found) -> dict[str, Any] | None:
    """What cost most of the steps that were profiled, if there is a profile; of one that is none of ours nothing."""
    try:
        rows = [(row["layer"] or "-", row["name"] + ("" if row["direction"] in USUAL else f" ({row['direction']})"),
                 f"{100 * row['share']:.1f} %", f"{row['calls']:,}", f"{1000 * row['seconds'] / max(row['calls'], 1):.3f}",
                 f"{row['gflops']:.3g}" if row["gflops"] else "-", f"{row['gbytes']:.3g}" if row["gbytes"] else "-")
                for row in found.profile["operations"][:PROFILED]]
        said = [each[:1].upper() + each[1:] for each in (found.profile["bottleneck"], found.profile["hint"]) if each]
        return {"rows": rows, "words": ". ".join(said), "steps": found.profile["steps"]} if rows else None
    except (KeyError, TypeError, ValueError):
        return None


def worded(value: Any) -> str:
    """An option's value, as one reads it."""
    return {True: "yes", False: "no", None: "-"}[value] if value is None or isinstance(value, bool) else f"{value}"


def span(seconds: float) -> str:
    """A time in words: 0.0823 as '82 ms'."""
    return duration(seconds) if seconds >= 1 else f"{1000 * seconds:.0f} ms" if seconds >= 0.001 else "< 1 ms"
