"""Profile: what profiler.py has written down, put in order: phases, layers, operations, what costs most, a table and a trace.

    measured.py     profile(), the block around what is to be measured, and the Profile that it gives
    events.py       from what was written down to events: who was in whom, which layer, how many operations and bytes
    rows.py         from events to rows: phases, layers, operations, and the bottleneck
    table.py        rows as text;  trace.py: events as a file for Perfetto
    ranks.py        many processes as one: their clocks aligned
"""

from minidl.profiling.measured import Profile, profile

__all__ = ["Profile", "profile"]
