"""What was measured as one plain table, and what was promised beside it. Nothing is needed but Python: a bare machine prints it too."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gpu import machine, networks

SIDES = ("minidl", "captured", "eager", "graphed")


def lines(results: dict[str, Any]) -> Iterator[str]:
    """The whole table."""
    yield machine.line(results["machine"])
    if results.get("rehearsal"):
        yield "A rehearsal, without a GPU: it shows that everything runs, and no time in it says anything."
    if "ceilings" in results:
        ceilings = results["ceilings"]
        products = ", ".join(f"{name} {rate / 1e12:.1f}" for name, rate in ceilings["products"].items())
        yield f"ceilings of this device: copy {ceilings['copy'] / 1e9:.0f} GB/s; products {products} TFLOP/s"
    for title, section in SECTIONS.items():
        found = list(section(results))
        if found:
            yield ""
            yield title
            yield from (f"  {line}" for line in found)


def equal(results: dict[str, Any]) -> Iterator[str]:
    found = results.get("equal")
    if found:
        yield f"{found['cases']} comparisons of functions and layers, forward and gradients; {len(found['failed'])} failed"
        for dtype, pairs in found["worst"].items():
            yield f"{dtype:9} off by at most, in eps: " + ", ".join(f"{name} {off:g}" for off, name in pairs)
        yield from (f"FAILED {failed}" for failed in found["failed"][:20])
        if found["left out"]:
            yield f"no time was left for {len(found['left out'])}: {', '.join(found['left out'][:8])}"


def failed(results: dict[str, Any]) -> Iterator[str]:
    yield from results.get("kernels", ())


def trained(results: dict[str, Any]) -> Iterator[str]:
    for row in results.get("steps", ()):
        yield (f"{row['network']:9} loss after 20 steps {row['device']:.7g}, on the CPU {row['cpu']:.7g}: off by {row['off at most']:.1e} "
               f"at most, {'within' if row['within'] else 'NOT within'} 1e-4")
    for row in results.get("digits", ()):
        kind = "captured" if row["captured"] else "ordinary"
        done = "" if "error" in row else f"accuracy {row['accuracy']:.3f} in {row['seconds']:.1f} s, {row['images a second']:.0f} images/s"
        yield f"digits, LeNet, {kind}: {row.get('error', done)}"


def moved(results: dict[str, Any]) -> Iterator[str]:
    rows = results.get("bandwidth", ())
    if rows:
        yield row_of("", "", "time", "GB/s", "of a copy", first=24)
    for row in rows:
        yield row_of(row["kernel"], row["dtype"], duration(row["seconds"]), number(row["bytes a second"] / 1e9), f"{row['share']:.0%}",
                     first=24) if "error" not in row else f"{row['kernel']}, {row['dtype']}: {row['error']}"


def steps(results: dict[str, Any]) -> Iterator[str]:
    rows = results.get("networks", ())
    if rows:
        yield row_of("", "", *SIDES, "eager/ours", "captured", "TFLOP/s", "ceiling")
    for row in rows:
        ratios = row.get("ratios", {})
        yield row_of(f"{row['network']}, {row['batch']}", row["precision"], *(duration(row["seconds"].get(side)) for side in SIDES),
                     *(number(ratios.get(side)) for side in ("minidl", "captured")), number(row["tflops"]), f"{row['share']:.0%}")
        yield from (f"    {side}: {error}" for side, error in row["errors"].items())


def convolutions(results: dict[str, Any]) -> Iterator[str]:
    rows = results.get("layers", ())
    sides = [side for side in ("minidl", "im2col", "implicit", "eager") if any(side in row["seconds"] for row in rows)]
    if rows:
        yield row_of("", "", *sides, "eager/ours", "TFLOP/s", "ceiling", "GB/s", first=32)
    for row in rows:
        yield row_of(row["layer"], row["precision"], *(duration(row["seconds"].get(side)) for side in sides), number(row.get("ratio")),
                     number(row.get("tflops")), f"{row.get('share', 0):.0%}", number(row.get("bytes a second", 0) / 1e9), first=32)
        yield from (f"    {side}: {error}" for side, error in row["errors"].items())


def tests(results: dict[str, Any]) -> Iterator[str]:
    found = results.get("tests")
    if found:
        yield found["summary"] if found["ended"] else "did not come to their end in the time that was left"
        yield from found["failed"][:20]
        yield from found["end of the output"]


def left_out(results: dict[str, Any]) -> Iterator[str]:
    yield from results.get("left out", ())


def promises(results: dict[str, Any]) -> Iterator[tuple[str, float, float | None]]:
    """What must be reached: in words, at least, and what was measured; None where it was not."""
    if not results.get("networks"):
        return
    rows = {(row["network"], row["precision"]): row for row in results.get("networks", ())}
    for (name, precision, side), must in networks.MUST.items():
        yield f"{name}, {precision}, {side}: PyTorch eager's time / ours", must, \
            rows.get((name, precision), {}).get("ratios", {}).get(side)
    single, half = (rows.get(("cnn", precision), {}).get("seconds", {}).get("minidl") for precision in ("float32", "float16"))
    yield "cnn: our float32 / our float16", networks.MUST_HALF, single / half if single and half else None
    for row in results.get("layers", ()):
        if row["precision"] == "tf32":
            yield f"{row['layer']}, tf32: PyTorch eager's time / ours", row["must"], row.get("ratio")


def promised(results: dict[str, Any]) -> Iterator[str]:
    for what, must, got in promises(results):
        mark = "not measured" if got is None else f"{got:.2f}" + (" ✓" if got >= must else " ✗")
        yield f"{what}, at least {must:g}: {mark}"


def row_of(name: str, precision: str, *numbers: str, first: int = 16) -> str:
    return f"{name:{first}} {precision:9}" + "".join(f"{text:>12}" for text in numbers)


def duration(seconds: float | None) -> str:
    """In milliseconds or microseconds.

    >>> duration(0.00123), duration(2e-5), duration(None)
    ('1.23 ms', '20.0 us', '')
    """
    if seconds is None:
        return ""
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.1f} us"


def number(x: float | None) -> str:
    return "" if x is None else f"{x:.2f}" if x < 100 else f"{x:.0f}"


SECTIONS = {"NumPy and the device": equal, "what did not run": failed, "training, against the CPU": trained,
            "kernels that only move numbers": moved, "training steps": steps, "convolutions, forward and gradients": convolutions,
            "tests": tests, "left out": left_out, "must reach": promised}
