"""What `scripts/network` and `scripts/bench_exchange` are made of.

    network     hosts on one machine, whose links have a set rate
    run         a program under MPI, a rank on each of them
    alexnet     what is trained: AlexNet, scaled down, asleep or in NumPy
    cells       what is measured: techniques, and the groups in which they take turns
    rank        what each rank does: trains in all ways, with one eye on the clock and one on the interface
    results     from times and bytes to ratios, promises and tables;  section: the README's;  picture: the ratios to look at
"""
