"""How things get into a page: pictures as SVG in its own colours, images as data, seconds and bytes in words.

A page fetches nothing, so all of it is written into the page itself.
"""

from __future__ import annotations

import base64
import html
import re
from typing import Any

from minidl.pictures import Picture
from minidl.pictures import picture as style
from minidl.pictures.images import png

COLOURS = {getattr(style, name): f"var(--{name.lower()})"
           for name in ("INK", "MUTED", "GRID", "PAPER", "BLUE", "ORANGE", "GREEN", "RED", "PURPLE", "GREY")}       # see style.css


def inline(picture: Picture, key: str) -> str:
    """A picture as an <svg> that takes its colours and its size from the page. key: another one for each picture of a page."""
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", picture.svg, flags=re.DOTALL)
    head, _, body = svg.partition(">")
    box = re.search(r'viewBox="([^"]*)"', head)
    body = re.sub(r' d="([^"]*)"', lambda found: f' d="{short(found[1])}"', body).replace("xlink:href", "href")
    body = re.sub(r'\b(id="|href="#|url\(#)', rf"\g<1>{key}-", body)
    for colour, variable in COLOURS.items():
        body = body.replace(colour, variable)
    return f'<svg viewBox="{box[1] if box else "0 0 1 1"}" role="img" aria-label="{html.escape(picture.words)}">{body}'


def short(path: str) -> str:
    """An SVG path whose numbers have two digits after the point, in few lines."""
    return " ".join(re.sub(r"(\.\d\d)\d+", r"\1", path).split())


def image(x: Any) -> str:
    """An image (C, H, W) as the address of an <img>."""
    return "data:image/png;base64," + base64.b64encode(png(x)).decode()


def in_bytes(count: float | None) -> str:
    """1536 as '1.5 KiB'; '-' for None."""
    if not count:
        return "-"
    units = ["B", "KiB", "MiB", "GiB", "TiB"]
    while count >= 1024 and len(units) > 1:
        count, units = count / 1024, units[1:]
    return f"{count:.0f} B" if units[0] == "B" else f"{count:.3g} {units[0]}" if count < 1000 else f"{count:.0f} {units[0]}"
