"""The trace: a profile as a file that Perfetto and Chrome (chrome://tracing) open, in the trace event format.

A process is a rank, a thread a track: "computation" with phases, in them layers, in them operations; "exchange" with what is on its way.
The times of other ranks are brought to the first one's clock, see ranks.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from minidl.profiling.events import Event


def trace(events: Iterable[Event], about: dict[str, Any]) -> dict[str, Any]:
    """The content of the file: complete events, in microseconds, and the names of processes and threads. about: what is known besides."""
    events = list(events)
    first = min((event.start for event in events), default=0.0)                 # of whichever rank
    tracks: dict[tuple[int, str], int] = {}
    for rank, thread in sorted({(event.rank, event.thread) for event in events}, key=lambda each: (each[0], order(each[1]))):
        tracks[rank, thread] = sum(1 for other, _ in tracks if other == rank)
    told: list[dict[str, Any]] = []
    for rank in sorted({event.rank for event in events}):
        told.append({"ph": "M", "pid": rank, "name": "process_name", "args": {"name": f"rank {rank}"}})
        told.append({"ph": "M", "pid": rank, "name": "process_sort_index", "args": {"sort_index": rank}})
    for (rank, thread), number in tracks.items():
        told.append({"ph": "M", "pid": rank, "tid": number, "name": "thread_name", "args": {"name": thread}})
        told.append({"ph": "M", "pid": rank, "tid": number, "name": "thread_sort_index", "args": {"sort_index": number}})
    for event in events:
        start, end = round(1e9 * (event.start - first)), round(1e9 * (event.end - first))       # whole: what lies in another still does
        told.append({"ph": "X", "pid": event.rank, "tid": tracks[event.rank, event.thread], "name": event.name, "cat": event.category,
                     "ts": start / 1000, "dur": (end - start) / 1000, "args": arguments(event)})
    return {"traceEvents": told, "displayTimeUnit": "ms", "otherData": about}


def order(thread: str) -> tuple[int, str]:
    """The computation first, then the exchange, then others."""
    return (0 if thread == "computation" else 1 if thread.startswith("exchange") else 2), thread


def arguments(event: Event) -> dict[str, Any]:
    """What Perfetto shows of an event that is clicked at."""
    found: dict[str, Any] = {}
    if event.layer and event.category != "layer":
        found["layer"] = event.layer
    if event.bytes:
        found["bytes"] = event.bytes
    if event.flops:
        found["flops"] = event.flops
        if event.seconds > 0:
            found["GFLOP/s"] = round(event.flops / event.seconds / 1e9, 2)
    return found
