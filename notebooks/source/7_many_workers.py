# %% [markdown] title
# # 7. Many workers
#
# Each of many processes learns from a part of every minibatch, and all go on with the same weights. Who sends what to whom, and when,
# decides how many of them are worth having.
#
# **After this you can**
# - share a minibatch out among processes, and say how exactly the result is that of one process;
# - write the exchange between a master and its workers with nothing but send and receive;
# - say how fast a wire a master needs as its workers become more, and what an all-reduce makes of that;
# - say what overlap hides, what it cannot hide, and how long a step takes with it;
# - say what it costs to send 8 bits in place of 32, or 1 % of the numbers, and what becomes of what is left out.
#
# You need notebook 4 (the seven steps of learning from minibatches). It takes about 45 minutes.
#
# As before: where you are asked for a prediction, write it in the place of `None` before you run what follows.

# %% setup
import time

import numpy as np

import minidl
from minidl import data, models, nn, optim
from minidl import functions as F
from minidl.exercises import check, predicted
from minidl.loop import fit
from minidl.parallel import EmulatedWire, Team, local
from minidl.pictures import curves, scaling, timeline
from minidl.profiler import phase

train, test = data.load("digits")

# %% [markdown] ranks
# ## Ranks
#
# Processes that work together are called **ranks**, and counted from 0. On a cluster each is a process on some machine, and they send each
# other messages over the network, by MPI, the usual library for it. Here they are threads of this notebook. To what follows that makes no
# difference: a **communicator** says who one is, and sends and receives.

# %% hello
def hello(communicator):
    return f"rank {communicator.rank} of {communicator.size}"

local.run(hello, 3)

# %% pass-on
def pass_on(communicator):
    """Send a number to the next rank, and receive one from the rank before."""
    rank, size = communicator.rank, communicator.size
    mine, arrived = np.array([10.0 * rank]), np.empty(1)
    communicator.wait([communicator.isend(mine, (rank + 1) % size),
                       communicator.irecv(arrived, (rank - 1) % size)])
    return arrived.item()

local.run(pass_on, 3)

# %% [markdown] isend-words
# `isend` and `irecv` only *begin* to send and to receive (the i is for "immediate"). `wait` comes back when that is over. Between the two a
# rank can do something else, which will turn out to be the whole art. What arrives is written into the array that was given to `irecv`.

# %% [markdown] deadlock-words
# Two ranks are polite: each waits for the other's message before it sends its own.

# %% fails deadlock
def polite(communicator):
    other, mine, arrived = 1 - communicator.rank, np.ones(4), np.empty(4)
    communicator.wait([communicator.irecv(arrived, other)])
    communicator.wait([communicator.isend(mine, other)])

local.run(polite, 2, patience=0.5)

# %% [markdown] deadlock-why
# **Why does this fail?** This is a *deadlock*: each waits for what the other will do later. On a cluster the two would wait until somebody
# ends them. Ranks that are threads of one process can be looked at from outside, so here you are told who waits for what. The mend: begin to
# receive, begin to send, and only then wait for both.

# %% [markdown] sharing
# ## Sharing a minibatch out
#
# The loss of a minibatch is a mean over its examples, and so is its gradient. Each rank takes some of the examples and finds the gradient
# of the mean over *those*. What is to be done with these gradients?

# %% [markdown] exercise-weights-words
# **Exercise.** There are as many parts as ranks, but not all of one length: of 7 examples 3 ranks take 3, 2 and 2. By what is each rank's
# gradient multiplied, so that the sum over all ranks is the gradient of the whole minibatch?

# %% exercise weights
def weights(counts):
    """counts: how many examples each rank has (P,). Gives P numbers."""
    return ...

# %% solution weights
def weights(counts):
    return [count / sum(counts) for count in counts]

# %% because weights
# A mean over a part is its sum divided by the number of *its* examples. Times that number, and divided by the number of all, it is what
# these examples add to the mean over all.

# %% wrong weights are those of equal parts
def weights(counts):
    return [1 / len(counts) for count in counts]

# %% wrong weights add up to more than one
def weights(counts):
    return [count / max(counts) for count in counts]

# %% wrong weights undo the mean and leave it at that
def weights(counts):
    return [float(count) for count in counts]

# %% wrong weights give more to whoever has less
def weights(counts):
    shares = [1 / count for count in counts]
    return [share / sum(shares) for share in shares]

# %% check weights
def found_by_trying(counts):
    """What makes the means of the parts into the mean of all, for any numbers."""
    numbers = np.random.default_rng(0).standard_normal((50, sum(counts)))
    parts = np.split(numbers, np.cumsum(counts)[:-1], axis=1)
    means = np.stack([part.mean(axis=1) for part in parts], axis=1)
    return np.linalg.lstsq(means, numbers.mean(axis=1), rcond=None)[0]

cases = [2, 2], [3, 2, 2], [5, 1, 1, 1]
check(weights, found_by_trying, on=[np.array(counts) for counts in cases],
      close=1e-4, hint="Every *example* counts the same, whichever rank has it.")

# %% [markdown] by-hand
# ## A master and its workers
#
# The oldest way: rank 0 is the **master**. The others, its workers, send it their gradients. It adds them up, updates the weights, and sends
# these to all. The way back, from the master to all, is a short function:

# %% to-workers
@phase("gradient exchange")                             # what this time is counted as
def to_workers(communicator, arrays):
    """Bring rank 0's arrays to all."""
    for x in arrays:
        if communicator.rank > 0:
            communicator.wait([communicator.irecv(x, 0)])
        else:
            workers = range(1, communicator.size)
            communicator.wait([communicator.isend(x, worker) for worker in workers])

# %% [markdown] exercise-sum-words
# **Exercise.** Write the way to the master, for one array. Every rank calls it with an `x` of its own; at rank 0 it gives the sum of them all. What
# it gives at the others does not matter.

# %% exercise sum
def sum_at_master(communicator, x):
    return ...

# %% solution sum
def sum_at_master(communicator, x):
    if communicator.rank > 0:
        communicator.wait([communicator.isend(x, 0)])
        return x
    total, arrived = x.copy(), np.empty_like(x)
    for worker in range(1, communicator.size):
        communicator.wait([communicator.irecv(arrived, worker)])
        total += arrived
    return total

# %% because sum
# A worker sends once. The master receives once from each worker, and must have received an array before it can add it.

# %% wrong sum keeps what came last
def sum_at_master(communicator, x):
    if communicator.rank > 0:
        communicator.wait([communicator.isend(x, 0)])
    else:
        for worker in range(1, communicator.size):
            communicator.wait([communicator.irecv(x, worker)])
    return x

# %% wrong sum adds what has not come yet
def sum_at_master(communicator, x):
    if communicator.rank > 0:
        communicator.wait([communicator.isend(x, 0)])
        return x
    total, arrived = x.copy(), np.zeros_like(x)
    for worker in range(1, communicator.size):
        coming = communicator.irecv(arrived, worker)
        total += arrived
        communicator.wait([coming])
    return total

# %% wrong sum waits for a message of the master to itself
def sum_at_master(communicator, x):
    if communicator.rank > 0:
        communicator.wait([communicator.isend(x, 0)])
        return x
    total, arrived = np.zeros_like(x), np.empty_like(x)
    for rank in range(communicator.size):
        communicator.wait([communicator.irecv(arrived, rank)])
        total += arrived
    return total

# %% wrong sum knows of one worker only
def sum_at_master(communicator, x):
    if communicator.rank > 0:
        communicator.wait([communicator.isend(x, 0)])
        return x
    arrived = np.empty_like(x)
    communicator.wait([communicator.irecv(arrived, 1)])
    return x + arrived

# %% check sum
def everyones(ranks):
    return np.random.default_rng(ranks).standard_normal((ranks, 5))

def at_master(ranks):
    def work(communicator):
        return sum_at_master(communicator, everyones(ranks)[communicator.rank])
    return local.run(work, ranks, patience=0.5)[0]

check(at_master, lambda ranks: sum(everyones(ranks)), on=[2, 3, 5], close=1e-4,
      hint="Rank 0 does not send to itself. From every other rank: receive into an array of "
      "its own, wait, and only then add.")

# %% to-master
@phase("gradient exchange")
def to_master(communicator, arrays):
    """Add up everyone's arrays at rank 0, in the order of the ranks."""
    for x in arrays:
        if communicator.rank > 0:
            communicator.wait([communicator.isend(x, 0)])
            continue
        for worker in range(1, communicator.size):
            arrived = np.empty_like(x)
            communicator.wait([communicator.irecv(arrived, worker)])
            x += arrived

# %% [markdown] network-words
# Now a network. To see who computes and who waits we want computations of a known length, whatever machine this is. So behind each layer
# stands one that does nothing but take time, 6 ms on the way forward, and twice that on the way back, as if the work were done elsewhere, on a
# graphics card.

# %% pause
class Pause(minidl.Function):
    seconds: float

    def forward(self, x):
        time.sleep(self.seconds)
        return x.copy()

    def grad_x(self, gy):
        time.sleep(2 * self.seconds)
        return gy

# %% busy
class Busy(nn.Module):
    def __init__(self, seconds):
        self.pause = Pause(seconds)

    def forward(self, x):
        return self.pause(x)

# %% network-built
def network(seconds=0.006):
    layers, widths = [nn.Flatten()], (64, 16, 16, 16, 256, 10)
    for k in range(5):
        layers += [nn.Affine(widths[k], widths[k + 1], generator=k), Busy(seconds), nn.ReLU()]
    return nn.Sequential(*layers[:-1])

size = sum(p.size for p in network().parameters()) * 4
computation = 5 * 0.006 * 3
print(f"n = {size:,} bytes of weights, T = {1000 * computation:.0f} ms of computation a step")

# %% [markdown] loop-words
# And the seven steps of notebook 4, shared out. (`phase` tells whoever measures what the time goes into; `backward` and `step` tell it
# themselves.)

# %% the-loop
minibatches = data.Loader(train[:128], batch_size=64)

def learn_by_hand(communicator):
    model = network()
    optimizer = optim.SGD(model, lr=0.1)
    for x, y in minibatches.epoch(0):
        own = np.array_split(np.arange(len(x)), communicator.size)[communicator.rank]
        optimizer.zero_grad()
        with phase("forward"):
            loss = F.softmax_cross_entropy(model(x[own]), y[own])
        loss.backward(len(own) / len(x))                # the weight of this part
        to_master(communicator, [p.grad.data for p in model.parameters()])
        if communicator.rank == 0:
            optimizer.step()
        to_workers(communicator, [p.data for p in model.parameters()])
    return model.state_dict()

# %% [markdown] phase-words
# Do all ranks end with the same weights, and are they those of one process?
#
# **Predict.** One process learns from the same minibatches. Are its weights the same as those of three ranks: to the last bit, nearly, or not
# at all? And if it too takes each minibatch in three parts, one after the other, and adds up their gradients (`accumulate=3`)?

# %% prediction-bits
whole_minibatches = None            # "to the bit", "nearly", "not at all"
in_three_parts = None

# %% alone
def alone(accumulate):
    model = network(seconds=0)
    fit(model, minibatches, None, optim.SGD(model, lr=0.1), accumulate=accumulate)
    return model.state_dict()

def apart(one, other):
    return max(np.abs(one[name] - other[name]).max() for name in one)

# %% same-bits
states = local.run(learn_by_hand, 3)
print(f"rank 1 is apart from rank 0 by {apart(states[1], states[0]):.2g}")
print(f"one process, whole minibatches, by {apart(alone(1), states[0]):.2g};",
      predicted(whole_minibatches))
print(f"one process, in three parts, by {apart(alone(3), states[0]):.2g};",
      predicted(in_three_parts))

# %% [markdown] bits-words
# In floating-point numbers (a + b) + c is not quite a + (b + c). Where the same parts are added in the same order, the bits are the same. So
# the work of many ranks can be held against that of one process which does it alone, and any difference is a mistake. minidl keeps to this in
# every exchange: sums go from rank 0 on.

# %% [markdown] see-it
# ## Who computes, who sends
#
# Between threads a message is there at once. `EmulatedWire` gives each rank a wire that carries so many bytes a second out, and as many in
# at the same time, and it writes down every message. `minidl.profile` writes down what is computed. Together they make a timeline.

# %% profiled
def profiled(work, ranks, wire, **options):
    """Do work(communicator) on each rank, over the wire. Gives the profile of all."""
    def rank(communicator):
        with minidl.profile() as p:
            work(wire.of(communicator), **options)
        p.gather(communicator)                          # everyone's, to rank 0
        return p
    with minidl.threads(1):                             # each rank is a thread already
        return local.run(rank, ranks)[0]

# %% watched
def watched(work, ranks, rate, until=None, title="", **options):
    """A picture and a profile. rate: bytes a second. until: milliseconds that are shown."""
    wire = EmulatedWire(rate)
    p = profiled(work, ranks, wire, **options)
    events = [*p.events(), *wire.events(since=p.begun)]
    return timeline(events, since=0, until=until and until / 1000, title=title,
                    categories=("phase", "transfer")), p

# %% master-timeline
picture, _ = watched(learn_by_hand, 4, rate=1e6)
picture

# %% [markdown] master-timeline-words
# Two steps of four ranks. All compute at the same time (blue, violet), and then all wait at the same time (grey), for the master's wire: it
# *receives* from one worker after the other, and then *sends* to one after the other. The workers' wires are idle most of the time. Every
# further worker makes this part of the picture longer.

# %% [markdown] bytes
# ## How many workers can a master have?
#
# Let the weights have n bytes, and as many their gradients. There are P ranks, one of which is the master. In each step all gradients go in to
# the master, and after that all weights go out from it.
#
# **Exercise.** A step computes for T seconds. How many Mbit/s must the master's wire carry each way, so that the exchange takes no longer than
# that? (1 Mbit is a million bits, and a byte has 8.)

# %% exercise wire
def master_needs(P, n, T):
    """Mbit/s, each way."""
    return ...

# %% solution wire
def master_needs(P, n, T):
    """Mbit/s, each way."""
    return 2 * (P - 1) * n * 8 / T / 1e6

# %% because wire
# P − 1 gradients of n bytes come in, and after that P − 1 times the weights go out: 2 (P − 1) n bytes in T seconds. It grows with
# every worker. And where T becomes shorter, because each has less to compute, it grows once more.

# %% wrong wire forgets the way back
def master_needs(P, n, T):
    return (P - 1) * n * 8 / T / 1e6

# %% wrong wire counts the master as a worker
def master_needs(P, n, T):
    return 2 * P * n * 8 / T / 1e6

# %% wrong wire takes bytes for bits
def master_needs(P, n, T):
    return 2 * (P - 1) * n / T / 1e6

# %% wrong wire takes workers to come in all at once
def master_needs(P, n, T):
    return 2 * n * 8 / T / 1e6

# %% check wire
def exchange_takes(P, n, mbits):
    """Seconds: one message after the other is on the master's wire."""
    messages = [worker for way in ("in", "out") for worker in range(1, P)]
    return sum(n * 8 / (mbits * 1e6) for _ in messages)

def by_halving(P, n, T):
    low, high = 1e-6, 1e6
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if exchange_takes(P, n, middle) > T else (low, middle)
    return high

check(master_needs, by_halving, on=[(2, 1e6, 0.1), (3, 5e6, 0.25), (9, 34024, 0.09)],
      close=1e-4, hint="How many bytes come in, and how many go out after that? "
      "One of the P ranks is the master itself.")

# %% [markdown] all-reduce-words
# **All-reduce** has no master. The numbers are cut into P slices, and every rank owns one. It receives its slice from all others and adds it
# up (*reduce-scatter*), and then sends the sum to all others (*all-gather*). Everyone has the whole sum then, and updates its own weights.

# %% all-reduce
def all_reduce(communicator, numbers):
    """Everyone's numbers added up, in place, on every rank."""
    me = communicator.rank
    slices = np.array_split(numbers, communicator.size)         # views: rank k owns slice k
    others = [rank for rank in range(communicator.size) if rank != me]
    coming = {rank: np.empty_like(slices[me]) for rank in others}
    communicator.wait([communicator.irecv(coming[rank], rank) for rank in others] +
                      [communicator.isend(slices[rank], rank) for rank in others])
    slices[me] += sum(coming.values())
    communicator.wait([communicator.irecv(slices[rank], rank, tag=1) for rank in others] +
                      [communicator.isend(slices[me], rank, tag=1) for rank in others])

# %% all-reduced
def hundreds(communicator):
    numbers = np.arange(6.0) + 100 * communicator.rank
    all_reduce(communicator, numbers)
    return numbers

local.run(hundreds, 3)

# %% [markdown] predict-wire
# **Predict.** Of 8 ranks, how many times as fast a wire does a master need as each of the ranks in an all-reduce, if the exchange is to take
# the same time?

# %% prediction-master
times_as_fast = None

# %% exchanges-measured
def by_master(communicator, numbers):
    to_master(communicator, [numbers])
    to_workers(communicator, [numbers])

def needed(exchange, ranks, rate=2e6):
    """Mbit/s with which the exchange would take T seconds, from what it takes at a rate."""
    wire, gradients = EmulatedWire(rate), np.zeros((ranks, size // 4), "float32")
    local.run(lambda each: exchange(wire.of(each), gradients[each.rank]), ranks)
    messages = wire.events()
    took = max(each.end for each in messages) - min(each.start for each in messages)
    return 8e-6 * rate * took / computation

# %% needed
ranks = np.array([2, 3, 4, 6, 8])
master = np.array([needed(by_master, P) for P in ranks])
everyone = np.array([needed(all_reduce, P, rate=4e5) for P in ranks])
print(f"8 ranks: {master[-1] / everyone[-1]:.1f} times as fast; {predicted(times_as_fast)}")

# %% bandwidth-picture
P, mbit = np.linspace(2, 8, 25), 8e-6 / computation
scaling({"master, measured": (ranks, master), "all-reduce, measured": (ranks, everyone)},
        limits={"2 (P - 1) n / T": (P, 2 * (P - 1) * size * mbit),
                "2 (P - 1) n / (P T)": (P, 2 * (P - 1) / P * size * mbit)},
        x="ranks P", y="Mbit/s", title="What the busiest wire must carry, each way",
        log=False, joined=False)

# %% [markdown] bandwidth-words
# The master needs a faster wire for each further worker. In an all-reduce each rank sends P − 1 slices of n / P bytes, twice, and receives as
# much at the same time, so its wire never needs more than 2 n bytes in a step, with 8 ranks or with 8,000. All ranks together send as much as
# before, but no wire is idle. The measured points lie a little above the lines, since it also takes time to notice a message.
#
# (A master can do well with few workers, or if it alone has a fast wire. And there are other ways to all-reduce: round a *ring* each rank sends
# to the next one only, the same bytes, in more rounds.)

# %% [markdown] overlap
# ## What overlap hides
#
# The backward pass goes from the last layer to the first. The last layer's gradient is final long before the pass is over: why not send it
# while the others are being computed? And the first layer's new weights are all that the next forward pass needs to begin: why wait for
# the rest?
#
# minidl has both exchanges. A `Team` is a rank with its exchange; `fit` takes it as `team=`, and everything else about training stays as it
# was. `overlap=` says what may be done at the same time.

# %% learn-in-a-team
three_steps = data.Loader(train[:192], batch_size=64, prefetch=0)

def learn_in_a_team(communicator, exchange="allreduce", overlap="none", seconds=0.006):
    model = network(seconds)
    team = Team(communicator, exchange, overlap=overlap, chunk=4096)    # bytes sent as one
    fit(model, three_steps, None, optim.SGD(model, lr=0.1), team=team)
    return model.state_dict()

# %% [markdown] overlap-prediction-words
# **Predict.** Computation and exchange take about equally long here. How many times as many steps a second can overlap give at most?

# %% prediction-overlap
at_most = None

# %% no-overlap
profiles, shown = {}, {"rate": 5e5, "until": 700}
picture, profiles["none"] = watched(learn_in_a_team, 3, **shown, overlap="none",
                                    title="Without overlap")
picture

# %% overlap-backward
picture, profiles["backward"] = watched(learn_in_a_team, 3, **shown, overlap="backward",
                                        title="Gradients leave during the backward pass")
picture

# %% overlap-forward
picture, profiles["forward"] = watched(learn_in_a_team, 3, **shown, overlap="forward",
                                       title="Weights arrive during the next forward pass, too")
picture

# %% overlap-times
def step_length(p):
    """Seconds from one backward pass of rank 0 to the next, the shortest of them."""
    own = [event for event in p.events() if event.rank == 0 and event.category == "phase"]
    return np.diff([event.start for event in own if event.name == "backward"]).min()

for overlap, p in profiles.items():
    seconds = step_length(p)
    more = step_length(profiles["none"]) / seconds
    print(f"overlap={overlap:9} {1000 * seconds:.0f} ms a step, {more:.2f} times as many")
print(f"at most 2 times, if one of the two were hidden altogether; {predicted(at_most)}")

# %% [markdown] overlap-words
# Three steps each, on the same scale of time. Without overlap, wires are idle while ranks compute, and ranks wait while wires are busy.
#
# With `overlap="backward"` gradients leave while the backward pass goes on. What is left over is its end: the first layer's gradient comes
# last, and nothing remains to be computed meanwhile. With `overlap="forward"` the next forward pass begins as soon as the weights of the first
# layers are there. Nothing else is computed, only at other times: whichever way it is exchanged, the bits are the same.
#
# Nothing of this makes a message shorter. If computation and exchange take equally long, the best that can happen is that one of them is
# hidden entirely: twice as many steps. If the exchange takes ten times as long, there is next to nothing to hide it behind.

# %% same-bits-again
def learned(exchange, overlap):
    return local.run(lambda each: learn_in_a_team(each, exchange, overlap, 0), 3)[1]

first = learned("allreduce", "none")
for exchange, overlap in (("allreduce", "forward"), ("master-worker", "none"),
                          ("master-worker", "forward")):
    found = apart(learned(exchange, overlap), first)
    print(f"{exchange}, overlap={overlap}: {found:.2g} apart from all-reduce without overlap")

# %% [markdown] exercise-step-words
# **Exercise.** The forward pass takes f seconds, the backward pass b, the exchange e. How long is a step without overlap? And how long with the
# best overlap that can be thought of: the exchange may begin when the backward pass begins, and may last until the next backward pass begins?
# (The mean of many such steps.)

# %% exercise step
def step_seconds(f, b, e):
    return ..., ...             # without overlap, with the best overlap

# %% solution step
def step_seconds(f, b, e):
    return f + b + e, max(f + b, e)

# %% because step
# Two things that are done beside each other take as long as the longer one. So overlap gains most, a factor of two, where both are
# equally long, and where the exchange is longer only a shorter exchange helps.

# %% wrong step hides the exchange whatever its length
def step_seconds(f, b, e):
    return f + b + e, f + b

# %% wrong step hides it behind the backward pass only
def step_seconds(f, b, e):
    return f + b + e, f + max(b, e)

# %% wrong step takes half in any case
def step_seconds(f, b, e):
    return f + b + e, (f + b + e) / 2

# %% wrong step lets the three go on at the same time
def step_seconds(f, b, e):
    return f + b + e, max(f, b, e)

# %% wrong step hides it behind the forward pass only
def step_seconds(f, b, e):
    return f + b + e, b + max(f, e)

# %% check step
def simulated(f, b, e, overlap, steps=1000):
    """A wire and a computation, each of which has one thing to do at a time."""
    computes = sends = 0.0
    for _ in range(steps):
        start = computes if overlap else max(computes, sends)
        computes = max(start + f + b, sends)    # one exchange is over before the next begins
        sends = computes + e
    return max(computes, sends) / steps

check(step_seconds, lambda f, b, e: (simulated(f, b, e, False), simulated(f, b, e, True)),
      on=[(1.0, 2.0, 3.0), (1.0, 2.0, 0.5), (1.0, 2.0, 9.0), (1.0, 2.0, 2.5)], close=0.002,
      hint="Without overlap: one after the other. With it, a rank computes and its wire is "
      "busy at the same time. Which of the two is over last?")

# %% [markdown] compression
# ## Fewer bytes
#
# Where the wire is what limits, send less. A gradient need not be exact: the minibatch was drawn by chance anyway. Two ways:
#
# - `int8`: each number as one of 255 steps, in 8 bits in place of 32. The size of a step is sent too, for each 256 numbers anew.
# - `topk:0.01`: only the 1 % of the numbers that are largest in magnitude, with their places.
#
# With 1 % of the numbers, most of the gradient is never sent, unless a rank remembers what it has left out, and adds it to the next
# gradient. That is called **error feedback**: what is small comes late, but it comes.

# %% [markdown] exercise-feedback-words
# **Exercise.** Write error feedback for one rank. To each gradient everything is added that has been left out so far. Of this sum only one
# number is sent, the one that is largest in magnitude. The rest is remembered.

# %% exercise feedback
def sent(gradients):
    """gradients: (steps, n). Gives what is sent in each step, with zeros for what is not."""
    return ...

# %% solution feedback
def sent(gradients):
    left, out = np.zeros(gradients.shape[1]), np.zeros_like(gradients)
    for step, gradient in enumerate(gradients):
        total = gradient + left
        k = np.abs(total).argmax()
        out[step, k] = total[k]
        left = total - out[step]
    return out

# %% because feedback
# What is remembered is the whole of what has not been sent, of all steps. So after any number of steps what was sent and what is left add
# up to the sum of all gradients: nothing is lost.

# %% wrong feedback forgets
def sent(gradients):
    out = np.zeros_like(gradients)
    for step, gradient in enumerate(gradients):
        k = np.abs(gradient).argmax()
        out[step, k] = gradient[k]
    return out

# %% wrong feedback remembers the last step only
def sent(gradients):
    left, out = np.zeros(gradients.shape[1]), np.zeros_like(gradients)
    for step, gradient in enumerate(gradients):
        total = gradient + left
        k = np.abs(total).argmax()
        out[step, k] = total[k]
        left = gradient - out[step]
        left[k] = 0
    return out

# %% wrong feedback chooses by what is owed and sends the gradient
def sent(gradients):
    left, out = np.zeros(gradients.shape[1]), np.zeros_like(gradients)
    for step, gradient in enumerate(gradients):
        total = gradient + left
        k = np.abs(total).argmax()
        out[step, k] = gradient[k]
        left = total - out[step]
    return out

# %% wrong feedback chooses by the gradient and sends what is owed
def sent(gradients):
    left, out = np.zeros(gradients.shape[1]), np.zeros_like(gradients)
    for step, gradient in enumerate(gradients):
        total = gradient + left
        k = np.abs(gradient).argmax()
        out[step, k] = total[k]
        left = total - out[step]
    return out

# %% wrong feedback does not forget what was sent
def sent(gradients):
    total, out = np.zeros(gradients.shape[1]), np.zeros_like(gradients)
    for step, gradient in enumerate(gradients):
        total = total + gradient
        k = np.abs(total).argmax()
        out[step, k] = total[k]
    return out

# %% wrong feedback takes the largest and not the largest in magnitude
def sent(gradients):
    left, out = np.zeros(gradients.shape[1]), np.zeros_like(gradients)
    for step, gradient in enumerate(gradients):
        total = gradient + left
        k = total.argmax()
        out[step, k] = total[k]
        left = total - out[step]
    return out

# %% check feedback
def by_accounts(gradients):
    """What is owed is everything so far, less everything that was sent."""
    out = np.zeros_like(gradients)
    for step in range(len(gradients)):
        owed = gradients[:step + 1].sum(axis=0) - out[:step].sum(axis=0)
        out[step] = np.where(np.arange(len(owed)) == np.abs(owed).argmax(), owed, 0)
    return out

check(sent, by_accounts,
      on=[np.array([[3.0, 1.9, 0.7]] * 6), np.random.default_rng(0).standard_normal((12, 4))],
      close=1e-4, hint="total = gradient + left. Send the largest of total, "
      "and what is left is total less what was sent.")

# %% [markdown] compression-prediction-words
# Now in earnest: a network learns the digits on two ranks, for four epochs. Gradients are sent whole, in 8 bits, and 1 % of them, with
# and without feedback.
#
# **Predict.** Put the four in the order of their accuracy.

# %% prediction-compression
from_best_to_worst = None       # a list of "whole", "int8", "1 %", "1 %, no feedback"

# %% learn-compressed
def learn_compressed(communicator, compress, feedback=True):
    model = models.create("mlp", input_shape=(1, 8, 8), classes=10, widths=(128, 64),
                          generator=0)
    team = Team(communicator, compress=compress, feedback=feedback)
    history = fit(model, train, test, optim.SGD(model, lr=0.2), epochs=4, team=team)
    return [each["test_accuracy"] for each in history], team.exchange.bytes_sent

# %% compressed
ways = {"whole": ("none",), "int8": ("int8",), "1 %": ("topk:0.01",),
        "1 %, no feedback": ("topk:0.01", False)}
runs = {}
with minidl.threads(1):
    for name, way in ways.items():
        runs[name] = local.run(lambda each, way=way: learn_compressed(each, *way), 2)[0]

# %% compression-picture
for name, (accuracy, number) in runs.items():
    print(f"{name:17} {accuracy[-1]:.1%} of the test images, "
          f"{number / runs['whole'][1]:.1%} of the bytes")
print(predicted(from_best_to_worst))
curves({name: accuracy for name, (accuracy, _) in runs.items()}, x="epoch", y="accuracy",
       percent=True, title="Test images that are recognised")

# %% [markdown] compression-words
# A quarter of the bytes costs next to nothing: the curves of `whole` and `int8` nearly cover each other. One number in a hundred, with its
# place, is between one and two hundredths of the bytes, and with feedback the network soon learns as well as with all of them. Without it the same
# bytes teach less: weights whose gradients are always small never hear of them. (A percent or two more or less is chance: there are 360 test
# images. And with momentum, which remembers too, it takes some epochs until feedback pays.)

# %% [markdown] seen
# ## What you have seen
#
# Ranks share a minibatch out, add up gradients with the weights of their parts, and go on alike, with the bits of one process that does
# their work alone. A master is simple, and its wire is what limits it; an all-reduce spreads the same sum over all wires. Overlap hides
# what can be done at the same time, and no more. Compression leaves less to be sent, and what it leaves out must be remembered.
#
# **Where it stands in the code.** `minidl/parallel/__init__.py`: the order of reading. `master_worker.py` and `allreduce.py`: the two
# exchanges, each on a page. `team.py`, `engine.py`: when what is sent. `compression.py`, `codecs.py`: 8 bits, and 1 %. `docs/own_exchange.md`: a
# third exchange, in one file. `docs/many_processes.md`: what was measured on real wires.
#
# **Next.** This is the end of the course. With the extra `mpi`, two processes on this machine train as one with one command, and on a cluster
# it is the same: `python -m minidl.launch -n 2 -- --data digits`. What to read next is up to you: the README says which file shows what.
