"""How the rows of a matrix are dealt out: what rows.cuh goes by."""

from __future__ import annotations

from typing import NamedTuple

HELD = 8            # numbers of a row that a thread holds
WARP = 32
WARPS = 8           # of a block, if each has a row
MOST = 512          # threads of a block that has one row


class Rows(NamedTuple):
    """The first three are what the kernels take."""

    rows: int
    width: int
    by_block: bool          # or a warp a row
    blocks: int
    threads: int


def dealt(rows: int, width: int) -> Rows:
    """A warp a row where it can hold the row, else a block of as many threads as hold it, MOST at most."""
    if width <= WARP * HELD:
        return Rows(rows, width, False, -(-rows // WARPS), WARPS * WARP)
    return Rows(rows, width, True, rows, min(MOST, -(-width // (WARP * HELD)) * WARP))
