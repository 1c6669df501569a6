# %% [markdown] title
# # 7. Many workers
#
# Each of many processes learns from a part of every minibatch, and all go on with the same weights. Who sends what to whom, and when,
# decides how many of them are worth having.
#
# **After this you can**
# - share a minibatch out among ranks so that the result is that of one process, to the bit;
# - write the exchange of a master and its workers with nothing but send and receive;
# - count the bytes that a master and an all-reduce put on a wire, and say what that means for the number of workers;
# - say what overlap hides, what it cannot hide, and how long a step takes with it;
# - say what it costs to send 8 bits in place of 32, or 1 % of the numbers, and why what is left out must not be forgotten.
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
# other messages over the network, by MPI. Here they are threads of this notebook. To what follows that makes no difference: a
# **communicator** says who one is, and sends and receives.

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
# `isend` and `irecv` only *begin* a message (the i is for "immediate"). `wait` comes back when it is over. Between the two a rank can do
# something else, which will turn out to be the whole art.

# %% [markdown] deadlock-words
# ### Why does this fail?
#
# Two ranks are polite: each waits for the other's message before it sends its own.

# %% fails deadlock
def polite(communicator):
    other, mine, arrived = 1 - communicator.rank, np.ones(4), np.empty(4)
    communicator.wait([communicator.irecv(arrived, other)])
    communicator.wait([communicator.isend(mine, other)])

local.run(polite, 2, patience=0.5)

# %% [markdown] deadlock-why
# This is a deadlock. On a cluster the two would wait until somebody ends them; ranks that are threads of one process can be looked at from
# outside, so here you are told who waits for what. Begin to receive, begin to send, and only then wait for both.

# %% [markdown] sharing
# ## Sharing a minibatch out
#
# The loss of a minibatch is a mean over its examples, and so is its gradient. Each rank takes some of the examples and finds the gradient
# of the mean over *those*. What is to be done with these gradients?

# %% [markdown] exercise-weights-words
# ### Exercise 1: the weights of the parts
#
# There are as many parts as ranks, but not all of one length: of 7 examples 3 ranks take 3, 2 and 2. By what is each rank's gradient
# multiplied, so that the sum over all ranks is the gradient of the whole minibatch?

# %% exercise weights
def weights(counts):
    """counts: how many examples each rank has. Gives as many weights."""
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

# %% check weights
def slopes(counts):
    """Of (w x - y)^2 at w = 0, of each example."""
    x, y = np.random.default_rng(0).standard_normal((2, sum(counts)))
    return -2 * x * y

def from_parts(*counts):
    parts, yours = np.split(slopes(counts), np.cumsum(counts)[:-1]), weights(counts)
    return yours if yours is ... else sum(w * part.mean() for w, part in zip(yours, parts))

check(from_parts, lambda *counts: slopes(counts).mean(), on=[(2, 2), (3, 2, 2), (5, 1, 1, 1)],
      hint="Every *example* counts the same, whichever rank has it.")

# %% [markdown] by-hand
# ## A master and its workers
#
# The oldest way: rank 0 is the **master**. The others send it their gradients, it adds them up, updates the weights, and sends these to
# all. That is two functions.

# %% to-master
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

# %% to-workers
def to_workers(communicator, arrays):
    """Bring rank 0's arrays to all."""
    for x in arrays:
        if communicator.rank > 0:
            communicator.wait([communicator.irecv(x, 0)])
        else:
            workers = range(1, communicator.size)
            communicator.wait([communicator.isend(x, worker) for worker in workers])

# %% [markdown] network-words
# Now a network. To see who computes and who waits we want computations of a known length, whatever machine this is. So behind each layer
# stands one that does nothing, and takes its time for it, as if the work were done elsewhere, on a graphics card: 6 ms on the way forward,
# and twice that on the way back.

# %% network
class Pause(minidl.Function):
    seconds: float

    def forward(self, x):
        time.sleep(self.seconds)
        return x.copy()

    def grad_x(self, gy):
        time.sleep(2 * self.seconds)
        return gy

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

# %% the-loop
minibatches = data.Loader(train[:128], batch_size=64)

def learn_by_hand(communicator):
    """The seven steps, shared out."""
    model = network()
    optimizer = optim.SGD(model, lr=0.1)
    for x, y in minibatches.epoch(0):
        own = np.array_split(np.arange(len(x)), communicator.size)[communicator.rank]
        optimizer.zero_grad()
        with phase("forward"):
            loss = F.softmax_cross_entropy(model(x[own]), y[own])
        loss.backward(len(own) / len(x))                # the weight of this part
        with phase("gradient exchange"):
            to_master(communicator, [p.grad.data for p in model.parameters()])
        if communicator.rank == 0:
            optimizer.step()
        with phase("gradient exchange"):
            to_workers(communicator, [p.data for p in model.parameters()])
    return model.state_dict()

# %% [markdown] phase-words
# `phase` says to whoever measures what the time goes into; `backward` and `step` say it themselves. Do all ranks end with the same
# weights, and are they those of one process?
#
# **Predict.** One process learns from the same minibatches. Are its weights the same: to the last bit, nearly, or not at all? And if it too
# takes each minibatch in three parts, one after the other, and adds up their gradients (`accumulate=3`)?

# %% prediction-bits
whole_minibatches = None            # "to the bit", "nearly", "not at all"
in_three_parts = None

# %% same-bits
def alone(accumulate):
    model = network(seconds=0)
    fit(model, minibatches, None, optim.SGD(model, lr=0.1), accumulate=accumulate)
    return model.state_dict()

def apart(one, other):
    return max(np.abs(one[name] - other[name]).max() for name in one)

states = local.run(learn_by_hand, 3)
print(f"rank 1 is apart from rank 0 by {apart(states[1], states[0]):.2g}")
print(f"one process, whole minibatches, by {apart(alone(1), states[0]):.2g};",
      predicted(whole_minibatches))
print(f"one process, in three parts, by {apart(alone(3), states[0]):.2g};",
      predicted(in_three_parts))

# %% [markdown] bits-words
# In floating-point numbers (a + b) + c is not a + (b + c). Where the same parts are added in the same order, the bits are the same. So many
# ranks can be held against one process that does their work alone, and any difference is a mistake. minidl keeps to this in every
# exchange: sums go from rank 0 on.

# %% [markdown] see-it
# ## Who computes, who sends
#
# Between threads a message is there at once. `EmulatedWire` gives each rank a wire that carries so many bytes a second out, and as many in,
# and writes down every message. `minidl.profile` writes down what is computed. Together they make a timeline.

# %% watched
def watched(work, ranks, rate=1e6, until=None, **options):
    """Do work(communicator) on each rank. rate: bytes a second. until: seconds that are shown.

    Gives a picture and a profile.
    """
    wire = EmulatedWire(rate)

    def rank(communicator):
        with minidl.profile() as p:
            work(wire.of(communicator), **options)
        p.gather(communicator)                          # everyone's, to rank 0
        return p

    with minidl.threads(1):                             # each rank is a thread already
        p = local.run(rank, ranks)[0]
    events = [*p.events(), *wire.events(since=p.begun)]
    return timeline(events, since=0, until=until, categories=("phase", "transfer")), p

# %% master-timeline
picture, _ = watched(learn_by_hand, 4)
picture

# %% [markdown] master-timeline-words
# Two steps of four ranks. The ranks compute at the same time, and then wait at the same time: for the master's wire. It *receives* from
# one worker after the other, and *sends* to one after the other, while theirs are idle most of the time. More workers make each one's
# part of the computation shorter, and this part of the picture longer.

# %% [markdown] bytes
# ## How many workers can a master have?
#
# n bytes of weights, P ranks. In each step P - 1 workers send n bytes to the master, and receive n bytes from it. So the master
# receives (P - 1) n and sends (P - 1) n.
#
# **All-reduce** has no master. Every rank owns a P-th part of the numbers: it receives that part from all others and adds it up
# (*reduce-scatter*), and then sends the sum to all others (*all-gather*). Everyone has the whole sum then, and updates its own weights.

# %% all-reduce
def all_reduce(communicator, numbers):
    """Everyone's numbers added up, in place, on every rank."""
    me = communicator.rank
    slices = np.array_split(numbers, communicator.size)         # views: rank k owns slice k
    others = [rank for rank in range(communicator.size) if rank != me]
    coming = {rank: np.empty_like(slices[me]) for rank in others}
    communicator.wait([communicator.irecv(coming[rank], rank) for rank in others] +
                      [communicator.isend(slices[rank], rank) for rank in others])
    for rank in others:
        slices[me] += coming[rank]
    communicator.wait([communicator.irecv(slices[rank], rank, tag=1) for rank in others] +
                      [communicator.isend(slices[me], rank, tag=1) for rank in others])
    return numbers

def hundreds(communicator):
    return all_reduce(communicator, np.arange(6.0) + 100 * communicator.rank)

local.run(hundreds, 3)

# %% [markdown] count-words
# Twice (P - 1) messages of n / P bytes: each rank sends 2 (P - 1) / P n, and receives as much.
#
# minidl has both exchanges, and counts what they send. A `Team` is a rank with its exchange, and `fit` takes it as `team=`: everything else
# about the training stays as it was.
#
# **Predict.** With 8 ranks, how many times as much as a rank in an all-reduce does the master send?

# %% prediction-master
times_as_much = None

# %% counted
def bytes_sent(exchange, ranks):
    """What each rank sends in one step, counted by minidl's own exchange."""
    def learn(communicator):
        model, team = network(seconds=0), Team(communicator, exchange)
        fit(model, data.Loader(train[:64]), None, optim.SGD(model, lr=0.1), team=team)
        return team.exchange.bytes_sent
    return max(local.run(learn, ranks))

ranks = np.array([2, 3, 4, 6, 8])
by_master = np.array([bytes_sent("master-worker", P) for P in ranks])
by_all = np.array([bytes_sent("allreduce", P) for P in ranks])
print(f"8 ranks: {by_master[-1] / by_all[-1]:.2f} times as much; {predicted(times_as_much)}")

# %% bandwidth-picture
P = np.linspace(2, 8, 25)
mbit = 8e-6 / computation           # Mbit/s of a byte that is to be sent while a step computes
scaling({"master, counted": (ranks, by_master * mbit),
         "all-reduce, counted": (ranks, by_all * mbit)},
        limits={"(P - 1) n / T": (P, (P - 1) * size * mbit),
                "2 (P - 1) / P n / T": (P, 2 * (P - 1) / P * size * mbit)},
        x="ranks", y="Mbit/s", title="What the busiest wire must carry, each way",
        log=False, joined=False)

# %% [markdown] bandwidth-words
# Points are counted, dashed lines computed: n bytes, once for each worker, or nearly twice for everyone, in the T seconds for which a step
# computes. The master needs a faster wire for each further worker. In an all-reduce no rank ever sends more than 2 n, with 8 ranks or
# with 8,000. (That a master can do well with few workers, or with the only fast wire of all, is true as well.)

# %% [markdown] exercise-ring-words
# ### Exercise 2: round a ring
#
# Another all-reduce sends only to the next rank. The numbers, n bytes, are cut into P slices. In each of P - 1 rounds every rank passes
# one slice on to the next, which adds its own numbers to it: after these each rank has the sum of one slice. In P - 1 further rounds
# these sums are passed on until all have them. How many bytes does each rank send?

# %% exercise ring
def ring_bytes(P, n):
    return ...

# %% solution ring
def ring_bytes(P, n):
    return 2 * (P - 1) * n / P

# %% because ring
# There are 2 (P - 1) rounds, and in each of them one slice of n / P bytes is sent. That is what the direct all-reduce sends, too; what
# differs is to whom, and in which order the numbers are added.

# %% wrong ring sends everything in each round
def ring_bytes(P, n):
    return 2 * (P - 1) * n

# %% wrong ring forgets the way back
def ring_bytes(P, n):
    return (P - 1) * n / P

# %% wrong ring goes all the way round
def ring_bytes(P, n):
    return 2 * n

# %% check ring
def ring(communicator, numbers):
    """The ring itself."""
    size, rank = communicator.size, communicator.rank
    slices, arrived = np.split(numbers, size), np.empty(len(numbers) // size)
    for k in range(2 * size - 2):
        out, into = slices[(rank - k) % size], slices[(rank - k - 1) % size]
        communicator.wait([communicator.isend(out, (rank + 1) % size, k),
                           communicator.irecv(arrived, (rank - 1) % size, k)])
        into[...] = into + arrived if k < size - 1 else arrived
    return numbers

def counted_ring(P, n):
    wire = EmulatedWire(rate=1e12)
    numbers = np.random.default_rng(0).standard_normal((P, n // 8))
    sums = local.run(lambda each: ring(wire.of(each), numbers[each.rank].copy()), P)
    return wire.bytes_sent[0] if np.allclose(sums, numbers.sum(axis=0)) else None

check(ring_bytes, counted_ring, on=[(2, 960), (3, 960), (5, 1600)],
      hint="Rounds, times the bytes of one slice. There are two ways: P - 1 rounds until "
      "somebody has each sum, and P - 1 more until all have it.")

# %% [markdown] overlap
# ## What overlap hides
#
# The backward pass goes from the last layer to the first. The last layer's gradient is final long before the pass is over: why not send it
# while the others are being computed? And the first layer's new weights are all that the next forward pass needs to begin: why wait for
# the rest? A `Team` can do both, if it is told to.

# %% learn-in-a-team
three_steps = data.Loader(train[:192], batch_size=64, prefetch=0)

def learn_in_a_team(communicator, exchange="allreduce", overlap="none"):
    model = network()
    team = Team(communicator, exchange, overlap=overlap, chunk=4096)    # bytes sent as one
    fit(model, three_steps, None, optim.SGD(model, lr=0.1), team=team)
    return model.state_dict()

# %% [markdown] overlap-prediction-words
# **Predict.** Computation and exchange take about equally long here. How many times as many steps a second can overlap give at most?

# %% prediction-overlap
at_most = None

# %% no-overlap
profiles, slow = {}, {"rate": 5e5, "until": 0.6}
picture, profiles["none"] = watched(learn_in_a_team, 3, **slow, overlap="none")
picture

# %% overlap-backward
picture, profiles["backward"] = watched(learn_in_a_team, 3, **slow, overlap="backward")
picture

# %% overlap-forward
picture, profiles["forward"] = watched(learn_in_a_team, 3, **slow, overlap="forward")
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
print(predicted(at_most))

# %% same-bits-again
def learned(exchange, overlap):
    return local.run(lambda each: learn_in_a_team(each, exchange, overlap), 3)[1]

first = learned("allreduce", "none")
for exchange, overlap in (("allreduce", "forward"), ("master-worker", "none"),
                          ("master-worker", "forward")):
    found = apart(learned(exchange, overlap), first)
    print(f"{exchange}, overlap={overlap}: {found:.2g} apart from all-reduce without overlap")

# %% [markdown] overlap-words
# Three steps each, on the same scale. Without overlap, wires are idle while ranks compute, and ranks are idle while wires are busy. With
# `overlap="backward"` gradients leave under the backward pass. What remains is the end: the first layer's gradient comes last, and
# nothing is left to be computed meanwhile. With `overlap="forward"` the next forward pass begins as soon as the weights of the first
# layers are there. Nothing is computed otherwise: whichever way it is exchanged, the bits are the same.
#
# Nothing of this makes a message shorter. If computation and exchange take equally long, the best that can happen is that one of them is
# hidden entirely: twice as many steps. If the exchange takes ten times as long, there is next to nothing to hide it behind.

# %% [markdown] exercise-step-words
# ### Exercise 3: the length of a step
#
# Forward pass, backward pass and exchange take f, b and e seconds. How long does a step take without overlap? How long does it take if the
# exchange can begin at any moment of the backward pass and go on through the next forward pass, so that nothing but its own length
# limits it? (Many steps, each like the last: the mean.)

# %% exercise step
def step_seconds(f, b, e):
    return ..., ...             # without overlap, with as much of it as can be

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
      on=[(1.0, 2.0, 3.0), (1.0, 2.0, 0.5), (1.0, 2.0, 9.0)], close=0.002,
      hint="With overlap two things go on at the same time. Which of them is over last?")

# %% [markdown] compression
# ## Fewer bytes
#
# Where the wire is what limits, send less. A gradient need not be exact: the minibatch was drawn by chance anyway.
#
# - `int8`: 8 bits in place of 32, with a scale for each 256 numbers.
# - `topk:0.01`: only the largest 1 % of the numbers, with their places.
#
# With 1 % of the numbers, most of the gradient is never sent. Unless a rank remembers what it has left out, and adds it to the next
# gradient: **error feedback**. Then a small gradient comes late, and not never.

# %% [markdown] exercise-feedback-words
# ### Exercise 4: error feedback
#
# Of each gradient, with all that was left out before added to it, only the number of the largest magnitude is sent. The rest is remembered.

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

# %% check feedback
def by_accounts(gradients):
    """What is owed is everything so far, less everything that was sent."""
    out = np.zeros_like(gradients)
    for step in range(len(gradients)):
        owed = gradients[:step + 1].sum(axis=0) - out[:step].sum(axis=0)
        out[step] = np.where(np.arange(len(owed)) == np.abs(owed).argmax(), owed, 0)
    return out

check(sent, by_accounts,
      on=[np.array([[3.0, 2.0, 1.0]] * 5), np.random.default_rng(0).standard_normal((12, 4))],
      hint="total = gradient + left. Send the largest of total, "
      "and what is left is total less what was sent.")

# %% [markdown] compression-prediction-words
# Now the real thing: a network on the digits, three ranks, five epochs, sent whole, in 8 bits, and 1 % of it with and without feedback.
#
# **Predict.** Put the four in the order of their accuracy.

# %% prediction-compression
from_best_to_worst = None

# %% compressed
def learn_compressed(communicator, compress, feedback=True):
    model = models.create("mlp", input_shape=(1, 8, 8), classes=10, widths=(128, 64),
                          generator=0)
    team = Team(communicator, compress=compress, feedback=feedback)
    history = fit(model, train, test, optim.SGD(model, lr=0.2), epochs=5, team=team)
    return [each["test_accuracy"] for each in history], team.exchange.bytes_sent

ways = {"whole": ("none",), "int8": ("int8",), "1 %": ("topk:0.01",),
        "1 %, no feedback": ("topk:0.01", False)}
runs = {}
with minidl.threads(1):
    for name, way in ways.items():
        runs[name] = local.run(lambda each, way=way: learn_compressed(each, *way), 3)[0]

# %% compression-picture
for name, (accuracy, number) in runs.items():
    print(f"{name:17} {accuracy[-1]:.1%} of the test images, "
          f"{number / runs['whole'][1]:.3f} of the bytes")
print(predicted(from_best_to_worst))
curves({name: accuracy for name, (accuracy, _) in runs.items()}, x="epoch", y="accuracy",
       percent=True, title="Test images that are recognised")

# %% [markdown] compression-words
# A quarter of the bytes costs next to nothing. One number in a hundred, with its place, is a small part of them, and with feedback the
# network learns no slower here than with all of them. Without it the same bytes teach less: weights whose gradients are always small never
# hear of them. (With momentum, which remembers too, it takes some epochs until feedback pays.)

# %% [markdown] seen
# ## What you have seen
#
# Ranks share a minibatch out, add up gradients with the weights of their parts, and go on alike, with the bits of one process that does
# their work alone. A master is simple, and its wire is what limits it; an all-reduce spreads the same sum over all wires. Overlap hides
# what can be done at the same time, and no more. Compression makes less of it, and is honest only if what is left out is remembered.
#
# ## Where it stands in the code
#
# - `minidl/parallel/__init__.py`: the order of reading; `master_worker.py` and `allreduce.py` are the two exchanges, each on a page
# - `minidl/parallel/team.py`, `engine.py`: when what is sent; `compression.py`, `codecs.py`: 8 bits, and 1 %
# - `docs/own_exchange.md`: a third exchange, in one file; `docs/many_processes.md`: what was measured on real wires
#
# ## Next
#
# This is the end of the course. With the extra `mpi`, two processes on this machine train as one with one command, and on a cluster it is
# the same: `python -m minidl.launch -n 2 -- --data digits`. What to read next is up to you: the README says which file shows what.
