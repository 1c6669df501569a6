"""A computation graph as a Picture: in Graphviz' language, laid out by its program `dot`, and as a text that needs neither."""

from __future__ import annotations

import re
import subprocess
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

from minidl.errors import GraphError, MissingExtra
from minidl.pictures.graph_boxes import LEAF, Box
from minidl.pictures.graph_lines import Line, Sketch, shape_of
from minidl.pictures.graph_numbers import Amount
from minidl.pictures.picture import BLUE, GREEN, GREY, GRID, INK, MUTED, ORANGE, PAPER, PURPLE, Picture, fitting

WIDEST = 800            # points; a notebook has 680, and shrinks what is wider
DEEPEST = 9             # boxes one after the other, beyond which they are never laid out in one row
SECONDS = 30
PALE = "22"             # how opaque a filling is, in hexadecimals
UNKNOWN = "#010203"     # the colour of numbers that keep their place and are not to be seen yet

LOOKS = {               # colour, shape and style of each kind of box, and what a legend calls it
    "operation": (INK, "box", "filled", "operation"),
    "module": (PURPLE, "box", "rounded,filled", "module"),
    "repeats": (PURPLE, "box", "rounded,filled,dashed", "repeats"),
    "parameter": (BLUE, "box", "rounded,filled", "parameter"),
    "input": (GREEN, "note", "filled", "input"),
    "constant": (GREY, "note", "filled,dashed", "constant"),
    "result": (INK, "box", "rounded,filled", ""),
}

class Scene:
    """What is drawn, and how much of it is known already."""

    def __init__(self, sketch: Sketch, caption: str = "", highlight: frozenset[Box] = frozenset(), step: int | None = None,
                 notes: tuple[str, ...] = ()):
        self.boxes, self.lines, self.paths, self.framed = sketch.boxes, sketch.lines, sketch.paths, sketch.framed
        self.caption, self.highlight, self.notes = caption, highlight, notes
        self.step = step                                # of a walk backward; None for all of it
        self.numbers = {box: number for number, box in enumerate(self.boxes, 1)}
        self.fed = {line.target for line in self.lines if line.source.kind in LEAF}

    def shows(self, thing: Box | Line) -> bool:
        """Whether a gradient is known at this step."""
        return self.step is None or thing.known <= self.step

    def fresh(self, line: Line) -> bool:
        """Whether a gradient has come with this step."""
        return self.step is not None and line.gradient is not None and line.known == self.step


class Drawing(Picture):
    """A computation graph. A notebook shows it drawn, or as text where Graphviz is not installed; `print` gives the text.

    source: for Graphviz, laid out downward. svg is made when it is first asked for.
    """

    def __init__(self, scene: Scene):
        self.scene = scene
        super().__init__(source(scene, "TB"), text(scene))

    @property
    def source(self) -> str:
        """The picture in Graphviz' language."""
        return str(self.figure)

    @cached_property
    def _svg(self) -> str:
        if longest(self.scene) <= DEEPEST:
            right = laid_out(source(self.scene, "LR"), "svg").decode()
            if width(right) <= WIDEST:
                return finished(right)
            down = laid_out(self.source, "svg").decode()
            return finished(min(right, down, key=width))
        return finished(laid_out(self.source, "svg").decode())

    @property
    def svg(self) -> str:
        """The picture as the text of an SVG file. MissingExtra where `dot` is not installed."""
        return self._svg

    def save(self, file: str | Path) -> Path:
        """Write it to a file, of a kind that its name ends with: .svg, .dot for Graphviz, or .txt. Gives the file."""
        file = Path(file)
        if file.suffix.lower() in (".dot", ".gv", ".txt"):
            file.write_text((self.words if file.suffix.lower() == ".txt" else self.source) + "\n")
            return file
        return super().save(file)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        try:
            return super()._repr_mimebundle_(include, exclude)
        except MissingExtra:
            return {"text/html": f"<pre>{escape(self.words)}</pre>", "text/plain": self.words}


# The layout


def laid_out(source: str, kind: str) -> bytes:
    """What the program `dot` makes of a source."""
    try:
        done = subprocess.run(["dot", f"-T{kind}"], input=source.encode(), capture_output=True, timeout=SECONDS)
    except FileNotFoundError:
        raise MissingExtra("draw: Graphviz is not installed: its program `dot` is not found",
                           hint="Install it: apt install graphviz, brew install graphviz, or conda install graphviz. "
                                "Without it, print(picture) shows the graph as text.") from None
    except subprocess.TimeoutExpired:
        raise GraphError(f"draw: Graphviz has not laid this graph out in {SECONDS} s", hint="Show less of it: depth=0.") from None
    if done.returncode:
        raise GraphError(f"draw: Graphviz has failed: {done.stderr.decode(errors='replace').strip()[:500]}")
    return done.stdout


def width(svg: str) -> float:
    found = re.search(r'<svg width="([\d.]+)pt"', svg)
    return float(found[1]) if found else 0.0


def finished(svg: str) -> str:
    """Without what is not to be seen yet, as wide as there is room, and free of what differs between installations."""
    svg = svg[svg.index("<svg"):]
    svg = re.sub(rf'<text [^>]*fill="{UNKNOWN}"[^>]*>[^<]*</text>\n?', "", svg)
    svg = re.sub(r"<!--.*?-->\n?", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<title>.*?</title>\n?", "", svg, flags=re.DOTALL)
    return fitting(svg)


def longest(scene: Scene) -> int:
    """How many boxes follow one another on the longest way."""
    before: dict[Box, list[Box]] = {}
    for line in scene.lines:
        before.setdefault(line.target, []).append(line.source)
    length: dict[Box, int] = {}
    for box in scene.boxes:                             # each after those it comes from
        length[box] = 1 + max((length.get(other, 0) for other in before.get(box, ())), default=0)
    return max(length.values(), default=0)


# Graphviz' language


def source(scene: Scene, direction: str) -> str:
    """The scene in Graphviz' language. direction: "LR", to the right, or "TB", downward."""
    lines = [
        "digraph {",
        f'  graph [rankdir={direction} bgcolor="{PAPER}" pad=0.15 nodesep=0.22 ranksep={"0.35" if direction == "LR" else "0.3"} '
        f'fontname="DejaVu Sans" fontsize=10 fontcolor="{INK}" labelloc=t labeljust=l label=<{head(scene)}>]',
        f'  node [fontname="DejaVu Sans" fontsize=10 fontcolor="{INK}" margin="0.09,0.05" height=0.3 width=0.3 penwidth=1.2]',
        f'  edge [fontname="DejaVu Sans" fontsize=8.5 fontcolor="{MUTED}" color="{MUTED}" arrowsize=0.6]',
    ]
    lines += inside(scene, (), scene.boxes, 1)
    lines += [f"  {arrow(scene, line)}" for line in scene.lines]
    return "\n".join([*lines, "}"])


def inside(scene: Scene, calls: tuple[Any, ...], boxes: list[Box], indent: int) -> list[str]:
    """The boxes in a call, with a frame around those of each further call that has several."""
    level, space = len(calls), "  " * indent
    written: list[str] = []
    groups: dict[int, list[Box]] = {}
    for box in boxes:
        if len(box.calls) > level:
            groups.setdefault(id(box.calls[level]), []).append(box)
    started: set[int] = set()
    for box in boxes:
        if len(box.calls) == level:
            written.append(f"{space}{node(scene, box)}")
            continue
        key = id(box.calls[level])
        if key in started:
            continue
        started.add(key)
        group, call = groups[key], box.calls[level]
        body = inside(scene, (*calls, call), group, indent + 1)
        if key in scene.framed:
            name = escape(scene.paths.module(call[0]))
            body = [f'{space}subgraph "cluster {len(scene.numbers)} {min(scene.numbers[other] for other in group)} {level}" {{',
                    f'{space}  graph [style="rounded" color="{GRID}" penwidth=1.4 margin=9 labeljust=l labelloc=t '
                    f'label=<<FONT COLOR="{MUTED}" POINT-SIZE="9">{name}</FONT>>]', *body, f"{space}}}"]
        written += body
    return written


def node(scene: Scene, box: Box) -> str:
    colour, shape, style, _ = LOOKS[box.kind]
    rows = [f"<B>{escape(box.title)}</B>" if box.kind != "result" else escape(box.title)]
    rows += [f'<FONT COLOR="{MUTED}" POINT-SIZE="8.5">{escape(fact)}</FONT>' for fact in box.facts]
    rows += [table(box.value, GREY, True)] if box.value else []
    if box.gradient is not None:
        rows.append(f'<FONT COLOR="{MUTED}" POINT-SIZE="8.5">sum of gradients</FONT>')
        rows.append(table(box.gradient, ORANGE, scene.shows(box)))
    lit = box in scene.highlight
    filling = ORANGE + "44" if lit else PAPER if box.kind in ("operation", "result") else colour + PALE
    look = f'shape={shape} style="{style}" color="{ORANGE if lit else colour}" fillcolor="{filling}"' + (" penwidth=2.6" if lit else "")
    look += " peripheries=2" if box.kind == "result" else ""
    return f"{scene.numbers[box]} [{look} label=<{stack(rows)}>]"


def arrow(scene: Scene, line: Line) -> str:
    place = line.places[0]
    named = scene.paths.given.get(place, "") if type(place) is tuple and line.target.kind != "result" else ""
    said = f'<FONT COLOR="{INK}">{escape(named)}</FONT>&#160; ' if named else f"{escape(line.argument)}: " if line.argument else ""
    rows = [f'<FONT COLOR="{MUTED}">{said}{escape(line.shape)}</FONT>']
    rows += [table(line.value, GREY, True)] if line.value else []
    rows += [table(line.gradient, ORANGE, scene.shows(line))] if line.gradient else []
    look = f' color="{ORANGE}" penwidth=2.2 dir=back' if scene.fresh(line) else ""
    look += "" if line.source.kind in LEAF else " weight=8"           # what is computed lies in one row
    if line.source.kind not in LEAF and line.target in scene.fed and frames(scene, line.target) - frames(scene, line.source):
        look += " minlen=2"                                             # so that the frame can begin with its leaves
    look += ' style="dashed"' if line.source.kind == "constant" else ""
    return f"{scene.numbers[line.source]} -> {scene.numbers[line.target]} [label=<{stack(rows, 4)}>{look}]"


def frames(scene: Scene, box: Box) -> set[int]:
    return scene.framed & {id(call) for call in box.calls}


def stack(rows: list[str], aside: int = 0) -> str:
    """One row under the other, so many points to the right of the line beside which they stand."""
    space = f'<TD ROWSPAN="{len(rows)}" WIDTH="{aside}"></TD>' if aside else ""
    cells = "".join(f"<TR>{space if not number else ''}<TD>{row}</TD></TR>" for number, row in enumerate(rows))
    return f'<TABLE BORDER="0" CELLBORDER="0" CELLSPACING="0" CELLPADDING="1">{cells}</TABLE>'


def table(shown: Amount, colour: str, known: bool) -> str:
    """Numbers on a ground of their colour; without the numbers where they are not known yet."""
    ink = INK if known else UNKNOWN
    ground = colour + ("2e" if known else "14")
    rows = shown.rows or ((shown.text,),)
    cells = "".join("<TR>" + "".join(f'<TD><FONT COLOR="{ink}" POINT-SIZE="9.5">{escape(cell)}</FONT></TD>' for cell in row) + "</TR>"
                    for row in rows)
    return f'<TABLE BORDER="0" CELLBORDER="0" CELLSPACING="0" CELLPADDING="2" BGCOLOR="{ground}" STYLE="ROUNDED">{cells}</TABLE>'


def head(scene: Scene) -> str:
    """The caption, and what the colours mean."""
    rows = [f'<FONT POINT-SIZE="11"><B>{escape(scene.caption)}</B></FONT>'] if scene.caption else []
    kinds = {box.kind for box in scene.boxes}
    words = [f'<FONT COLOR="{look[0]}">&#9632;</FONT>&#160;{look[3]}'
             for kind, look in LOOKS.items() if kind in kinds and look[3]]
    things: list[Box | Line] = [*scene.boxes, *scene.lines]
    if any(thing.value for thing in things):
        words.append(f'<FONT COLOR="{GREY}">&#9646;</FONT>&#160;value')
    if any(thing.gradient for thing in things):
        words.append(f'<FONT COLOR="{ORANGE}">&#9646;</FONT>&#160;gradient')
    rows.append(f'<FONT COLOR="{MUTED}" POINT-SIZE="9">' + "&#160;&#160; ".join(words) + "</FONT>")
    rows += [f'<FONT COLOR="{MUTED}" POINT-SIZE="9">{escape(note)}</FONT>' for note in scene.notes]
    cells = "".join(f'<TR><TD ALIGN="LEFT">{row}</TD></TR>' for row in rows)
    return f'<TABLE BORDER="0" CELLBORDER="0" CELLSPACING="0" CELLPADDING="2">{cells}</TABLE>'


# The text


def text(scene: Scene) -> str:
    """The scene in words: a line for each box, by number, in the order of computation, and under it what it is made of."""
    written = [scene.caption] if scene.caption else []
    operations = sum(len(box.nodes) for box in scene.boxes)
    leaves = sum(1 + max(0, len(box.held) - 1) for box in scene.boxes if box.kind in LEAF)
    written.append(f"{operations:,} operation{'s' * (operations != 1)}, {leaves:,} lea{'f' if leaves == 1 else 'ves'}"
                   + (f", in {len(scene.boxes)} boxes" if any(box.merged for box in scene.boxes) else ""))
    written += scene.notes
    arriving: dict[Box, list[Line]] = {}
    leaving: dict[Box, list[Line]] = {}
    for line in scene.lines:
        arriving.setdefault(line.target, []).append(line)
        leaving.setdefault(line.source, []).append(line)
    calls: tuple[Any, ...] = ()
    digits = len(str(len(scene.boxes)))
    for box in scene.boxes:
        around = tuple(call for call in box.calls if id(call) in scene.framed)
        for level, call in enumerate(around):
            if [id(each) for each in around[:level + 1]] != [id(each) for each in calls[:level + 1]]:
                written.append(f"{' ' * digits}  {'  ' * level}{scene.paths.module(call[0])}:")
        calls = around
        start = f"{scene.numbers[box]:>{digits}}  {'  ' * len(calls)}"
        more = " " * len(start)
        written.append(start + sentence(scene, box, arriving.get(box, []), leaving.get(box, [])))
        values = [shown.text for shown in (box.value, *(line.value for line in leaving.get(box, []))) if shown]
        written += [f"{more}  value {shown}" for shown in dict.fromkeys(values)]
        gradients = [line for line in leaving.get(box, []) if line.gradient]
        for line in gradients:
            used = f" ({line.argument})" if line.argument else ""
            whence = f" from {scene.numbers[line.target]}{used}" if len(gradients) > 1 else ""
            told = line.gradient.text if line.gradient and scene.shows(line) else "not known yet"
            written.append(f"{more}  gradient{whence} {told}")
        if box.gradient is not None:
            written.append(f"{more}  their sum {box.gradient.text if scene.shows(box) else 'not known yet'}")
    return "\n".join(written)


def sentence(scene: Scene, box: Box, arriving: list[Line], leaving: list[Line]) -> str:
    """What a box is, of what, and what shape it gives."""
    if box.kind in LEAF:
        named = "" if box.title == box.kind else f"{box.title}  "
        words = named + box.kind
        shape = str(shape_of(box.place)) if box.place is not None else leaving[0].shape if leaving else ""
    else:
        of = ", ".join(str(scene.numbers[line.source]) for line in arriving)
        words = f"{box.title} of {of}" if of else box.title
        words += f": {'; '.join(box.facts)}" if box.facts else ""
        shape = ", ".join(dict.fromkeys(line.shape for line in leaving)) if box.kind != "result" else str(shape_of(box.place))
    mark = "  <- here" if box in scene.highlight else ""
    return f"{words}  {shape}".rstrip() + mark
