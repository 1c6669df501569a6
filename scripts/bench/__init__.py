"""What `scripts/bench_cpu` is made of: who competes, how they take turns, and what becomes of the times.

    workloads   what is timed: models and layers, with their inputs
    ours, theirs, plain     the same work by minidl, by PyTorch, and in NumPy alone
    side        what each of the three gives: passes, and numbers to compare
    worker      a process that does one side's work when it is asked to
    turns       the other end: workers that take turns, each stopped while it is not asked
    fresh       what only a fresh process shows: peak memory, and how long the first step takes
    machine     where it ran
    results     from times to ratios, and the tables;  picture: the ratios to look at
"""
