"""The table: a profile as lines of text, that fit a terminal, each with a style."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minidl.profiling.rows import COMPUTING, FIRST, few

if TYPE_CHECKING:
    from minidl.profiling.measured import Profile

MOST = 20                   # rows of operations; what is left over is one row
LAYERS = 10                 # rows of layers

Line = tuple[str, str]      # a text, and a style of Rich's


def lines(profile: Profile, width: int = 80, most: int = MOST) -> list[Line]:
    """The bottleneck, the phases, and the operations, what costs most first."""
    found = profile.bottleneck_found()
    text: list[Line] = [(str(found), "bold")]
    if found.hint:
        text.append((f"Try: {found.hint}", ""))
    text += [("", ""), (recorded(profile), "dim"), ("", ""), *phase_lines(profile)]
    if profile.operations:
        text += [("", ""), *operation_lines(profile, width, most), ("", ""), *layer_lines(profile, width)]
    return [(cut.rstrip(), style) for line, style in text for cut in wrapped(line, width)]


def recorded(profile: Profile) -> str:
    """What was looked at."""
    words = f"{clear(profile.seconds)} measured"
    if profile.recorded < 0.995 * profile.seconds:
        full = profile.found.full
        words += f"; operations of {profile.steps} steps" if profile.steps and not full else "; operations"
        words += f" for {clear(profile.recorded)} of it" + (", then there were too many to write down" if full else "")
    if profile.skipped:
        words += f"; not the first step, {clear(profile.skipped)}, in which kernels may be compiled"
    return words + (f"; {profile.ranks} processes, of which this is the first" if profile.ranks > 1 else "")


def phase_lines(profile: Profile) -> list[Line]:
    """The phases, with those of hidden communication below."""
    rows: list[Line] = [(f"  {'phase':<30}{'share':>9}{'seconds':>11}{'peak memory':>15}", "bold")]
    for phase in profile.phases:
        peak = size(phase.peak) if phase.peak and not phase.hidden else ""
        name = f"{phase.name}, hidden" if phase.hidden else phase.name
        share = "beside" if phase.hidden else percent(phase.share)
        rows.append((f"  {name:<30}{share:>9}{phase.seconds:>11.3f}{peak:>15}".rstrip(), "dim" if phase.hidden else ""))
        for part, seconds in sorted(phase.parts.items(), key=lambda item: -item[1]):
            rows.append((f"    {part:<28}{percent(seconds / profile.seconds):>9}{seconds:>11.3f}", "dim"))
    rows.append((f"  {'together':<30}{percent(1.0):>9}{profile.seconds:>11.3f}", "bold"))
    return rows


def operation_lines(profile: Profile, width: int, most: int) -> list[Line]:
    """The operations, and what lies between them."""
    found = profile.operations
    shown = [(row, row.name if row.direction in ("forward", "backward", "update") else f"{row.name} ({row.direction[:4]}.)")
             for row in found[:most]]
    room = max(12, min(max(len(row.layer) for row, _ in shown) + 1, width - 52))
    wide = max(12, min(max(len(name) for _, name in shown) + 1, width - 38 - room))
    rows: list[Line] = [(f"  {'layer':<{room}}{'operation':<{wide}}{'share':>7}{'calls':>7}{'ms/call':>8}{'GFLOP/s':>8}{'GB/s':>6}",
                         "bold")]
    for row, name in shown:
        left = f"  {fitted(row.layer or '-', room - 1):<{room}}{shortened(name, wide - 1):<{wide}}{percent(row.share):>7}"
        rows.append((f"{left}{row.calls:>7}{1e3 * row.seconds / row.calls:>8.3f}{few(row.gflops):>8}{few(row.gbytes):>6}".rstrip(), ""))
    rest = found[most:]
    if rest:
        rows.append((f"  {f'and {len(rest)} more':<{room + wide}}{percent(sum(row.share for row in rest)):>7}", "dim"))
    first = sum(row.first for row in found)
    if first:
        rows.append((f"  {FIRST:<{room + wide}}{percent(first / profile.recorded):>7}", "dim"))
    between = sum(seconds for name, seconds in profile.gaps.items() if name in COMPUTING)
    for words, seconds in (("Python between operations", between), ("phases without operations", sum(profile.gaps.values()) - between)):
        if profile.recorded:
            rows.append((f"  {words:<{room + wide}}{percent(seconds / profile.recorded):>7}", "dim"))
    return rows


def layer_lines(profile: Profile, width: int) -> list[Line]:
    """The layers, with their memory."""
    found = [layer for layer in profile.layers if layer.path]
    told = any(layer.peak for layer in found)           # of a GPU
    room = max(16, min(max((len(layer.path) for layer in found), default=0) + 2, width - (60 if told else 50)))
    rows: list[Line] = [(f"  {'layer':<{room}}{'share':>7}{'forward s':>11}{'backward s':>11}{'keeps':>9}{'makes':>9}"
                         + (f"{'peak':>10}" if told else ""), "bold")]
    for layer in found[:LAYERS]:
        rows.append((f"  {fitted(layer.path, room - 1):<{room}}{percent(layer.share):>7}{layer.forward:>11.3f}{layer.backward:>11.3f}"
                     f"{brief(layer.kept):>9}{brief(layer.made):>9}" + (f"{brief(layer.peak):>10}" if told else ""), ""))
    if len(found) > LAYERS:
        rest = found[LAYERS:]
        rows.append((f"  {f'and {len(rest)} more':<{room}}{percent(sum(layer.share for layer in rest)):>7}"
                     f"{sum(layer.forward for layer in rest):>11.3f}{sum(layer.backward for layer in rest):>11.3f}"
                     f"{brief(sum(layer.kept for layer in rest)):>9}{brief(sum(layer.made for layer in rest)):>9}", "dim"))
    return rows if found else []


def shortened(name: str, room: int) -> str:
    """An operation's name in so many letters; of one that is too long its rule is left, and the beginning of the first word."""
    first, blank, rest = name.partition(" ")
    return name if len(name) <= room else f"{first[:max(room - len(blank + rest) - 1, 1)]}…{blank}{rest}"


def percent(share: float) -> str:
    """0.312 as '31.2 %'."""
    return f"{100 * share:.1f} %"


def clear(seconds: float) -> str:
    """Seconds in words."""
    return f"{seconds:.1f} s" if seconds >= 10 else f"{seconds:.3f} s"


def size(count: int) -> str:
    """Bytes in words."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def brief(count: int) -> str:
    """Bytes in few letters; nothing for none."""
    if not count:
        return ""
    return f"{count} B" if count < 1000 else f"{count / 2**10:.0f} KiB" if count < 1000 * 2**10 else f"{count / 2**20:.1f} MiB"


def fitted(text: str, room: int) -> str:
    """A text in so many letters; of one that is too long the end is left, which tells layers apart."""
    return text if len(text) <= room else "…" + text[len(text) - room + 1:]


def wrapped(line: str, width: int) -> list[str]:
    """A sentence in lines that fit; what stands in columns is left as it is."""
    if line.startswith("  ") or len(line) <= width:
        return [line]
    import textwrap

    return textwrap.wrap(line, width, subsequent_indent="  ", break_on_hyphens=False)


