"""What `scripts/bench_precision` is made of: problems, how numbers are stored, and what becomes of the runs.

    runs        what is learned, in which numbers, and one training of it
    results     from runs to figures, as a table and as a section for docs
"""
