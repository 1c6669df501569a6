"""What `scripts/network` and `scripts/bench_exchange` are made of.

    network     hosts on one machine, whose links have a set rate
    run         a program under MPI, a rank on each of them
"""
