"""What `scripts/bench_kfac` is made of: two problems, the methods that compete on them, and what becomes of the curves.

    workloads   what is learned: the data, the network, the loss, what is measured and the targets
    methods     who learns: optimizers with the grids that their settings are drawn from
    runs        one training, in pieces from one measurement to the next, so that several can take turns
    tuning      the settings tried for a method, by one rule for all
    steps       how long a step takes, by turns, and where its time goes;  flops: what it must compute at least
    results     from curves to figures, promises and tables;  section: the README's;  picture: the curves to look at
"""
