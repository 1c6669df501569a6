"""`--profile`: a run that is measured, and what it leaves in its folder of that.

    trace.json      a timeline of the steps that were written down, of all processes: for ui.perfetto.dev
    profile.json    the rows of the table, and more
    profile.txt     the table

The first step is left out: kernels may be compiled in it. From then on phases are counted until the end, and operations are written down
for so many steps, because a run may be long.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from minidl.checkpoint import write
from minidl.loop import Callback
from minidl.parallel import Team
from minidl.profiling import Profile
from minidl.profiling.table import lines
from minidl.run import Run

STEPS = 100                 # whose operations are written down, unless told otherwise
FILES = ("trace.json", "profile.json", "profile.txt")


class Measure(Callback):
    """Profiles a run. steps: whose operations are written down."""

    def __init__(self, folder: Path, steps: int = STEPS):
        self.folder, self.steps = folder, steps
        self.profile = Profile()
        self.count = 0                              # of steps so far
        self.began = time.perf_counter()

    def start(self, run: Run) -> None:
        """The beginning; or another process leads now."""
        self.began = self.began if self.count else time.perf_counter()

    def step(self, run: Run, loss: float) -> None:
        """Begin after the first step; write down no more when there is enough."""
        self.count += 1
        if self.count == 1:
            self.profile.skipped = time.perf_counter() - self.began
            team = run.team
            self.profile.facts |= {"overlap": team.overlap, "compress": team.compress} if isinstance(team, Team) else {}
            self.profile.start()
            if run.team.ranks > 1:
                self.profile.facts["cores"] //= run.team.ranks          # of which others may be elsewhere
        elif self.count == 1 + self.steps:
            self.profile.pause()
        self.profile.steps = min(self.count - 1, self.steps)

    def end(self, run: Run) -> None:
        """Bring together what all processes have measured; the first one writes it."""
        if self.count == 0:                         # one that came when all was done
            self.profile.start()
        self.profile.stop()
        if isinstance(run.team, Team):
            self.profile.gather(run.team.talk)
        if run.team.leads and self.count:
            self.folder.mkdir(parents=True, exist_ok=True)
            trace, data, table = FILES
            write(self.folder / trace, content(self.profile.traced()))
            write(self.folder / data, content(self.profile.data()))
            write(self.folder / table, (self.profile.table() + "\n").encode())

    def lines(self, width: int) -> list[tuple[str, str]]:
        """The table, each line with its style; none if nothing was measured."""
        if not self.count:
            return []
        return [("", ""), *lines(self.profile, width), ("", ""), (f"timeline: {self.folder / FILES[0]}, for ui.perfetto.dev", "")]

    def close(self) -> None:
        """Measure no more, however the run has ended."""
        if self.count:
            self.profile.stop()


def content(x: Any) -> bytes:
    """JSON."""
    return (json.dumps(x) + "\n").encode()
