# %% [markdown] title
# # 1. Measure first
#
# To train a network is to do the same arithmetic millions of billions of times. Whether that takes a day or ten years decides whether it
# is done at all, and whether it takes an hour or a day decides how many ideas you can try. There are three ways to make a program faster:
# a smaller constant factor, a better algorithm, and a library. And there is one rule that comes before all of them: measure first.
#
# **After this you can**
# - time a piece of code in a way that you can trust, and say why the fastest of several runs counts;
# - tell a better constant factor from a better algorithm in a picture of time against size, and predict times that you cannot wait for;
# - say how many operations a matrix product has, at how many GFLOP/s it runs, and why pieces of work should be large;
# - find the bottleneck of a program with a profile, and say beforehand how much there is to be gained.
#
# You need Python and a little NumPy. It takes about 50 minutes.
#
# Before you run a cell that shows a result you will often be asked for a prediction. Write it down, in the place of `None`. A wrong
# prediction teaches more than none.

# %% imports
import cProfile
import os
import pstats
from time import perf_counter

for library in ("OPENBLAS", "MKL", "OMP", "VECLIB"):    # one core is what we measure;
    os.environ[f"{library}_NUM_THREADS"] = "1"          # NumPy looks here when it is imported

import numpy as np

import minidl
from minidl import data, kernels, models, nn, optim, pictures
from minidl.exercises import check, predicted
from minidl.loop import fit

# %% [markdown] how-to-measure
# ## How to measure
#
# A timer is read before and after. Do that 300 times with the same product of two matrices: the work is exactly the same each time.
#
# **Predict:** how many times as long as the fastest run does the slowest one take?

# %% prediction-spread
slowest_over_fastest = None

# %% spread
rng = np.random.default_rng(0)
a, b = rng.normal(size=(2, 100, 100)).astype(np.float32)

def timed(f, *args):
    start = perf_counter()
    f(*args)
    return perf_counter() - start

times = [timed(np.matmul, a, b) for _ in range(300)]
print(f"{max(times) / min(times):.1f} times as long; {predicted(slowest_over_fastest)}")
microseconds = 1e6 * np.array(times)
pictures.curves({"each run": microseconds}, x="run", y="microseconds", log=False, width=8)

# %% [markdown] seen-spread
# The line has a floor and spikes. Other programs, the operating system and cold caches can make a run longer. Nothing makes it shorter
# than the work takes. The disturbances all have one sign, so a mean would mix them in, and the *smallest* of several times is nearest to
# what the code itself costs. That is what we use from here on. (If you want to know what a user will wait, you want the median, or the
# slowest one in a hundred.)

# %% best
def best(f, *args, repeat=5):
    """The least seconds that f(*args) took."""
    return min(timed(f, *args) for _ in range(repeat))

print(f"{1e6 * best(np.matmul, a, b):.1f} microseconds")
print(f"{1e6 * best(np.matmul, a, b):.1f} microseconds, measured again")

# %% [markdown] constant-factor
# ## The constant factor
#
# Bubble sort walks along a list and swaps neighbours that are in the wrong order, as many times as the list is long. In each walk the
# largest number that is left arrives at its place. So the next walk may end one place earlier: the second version does that.

# %% bubble-sort
def bubble_sort(numbers):
    numbers = list(numbers)
    for _ in range(len(numbers)):
        for j in range(len(numbers) - 1):
            if numbers[j] > numbers[j + 1]:
                numbers[j], numbers[j + 1] = numbers[j + 1], numbers[j]
    return numbers

# %% shorter-walks
def shorter_walks(numbers):
    numbers = list(numbers)
    for end in range(len(numbers) - 1, 0, -1):
        for j in range(end):
            if numbers[j] > numbers[j + 1]:
                numbers[j], numbers[j + 1] = numbers[j + 1], numbers[j]
    return numbers

# %% [markdown] task-comparisons
# **Exercise.** How often does each version compare two numbers, for a list of `n`? Give both, as functions of `n`.

# %% exercise comparisons
def comparisons(n):
    return {"bubble_sort": ..., "shorter_walks": ...}

# %% solution comparisons
def comparisons(n):
    return {"bubble_sort": n * (n - 1), "shorter_walks": n * (n - 1) // 2}

# %% because comparisons
# The first makes `n` walks of `n - 1` comparisons. The second makes walks of `n - 1`, `n - 2`, ... 1, and the sum of these is `n * (n -
# 1) / 2`. Half the work, at every length: that is a constant factor.

# %% wrong comparisons compares each number with itself
def comparisons(n):
    return {"bubble_sort": n * n, "shorter_walks": n * n // 2}

# %% wrong comparisons adds one walk too many
def comparisons(n):
    return {"bubble_sort": n * (n - 1), "shorter_walks": n * (n + 1) // 2}

# %% wrong comparisons counts walks
def comparisons(n):
    return {"bubble_sort": n, "shorter_walks": n - 1}

# %% check comparisons
class Counted(float):
    """A number that counts how often it is asked whether it is the larger one."""
    asked = 0

    def __gt__(self, other):
        Counted.asked += 1
        return float(self) > float(other)

def counted(n):
    found = {}
    for sort in (bubble_sort, shorter_walks):
        Counted.asked = 0
        sort([Counted(k) for k in range(n)])
        found[sort.__name__] = Counted.asked
    return found

check(comparisons, counted, on=[2, 5, 10, 31],
      hint="How many walks are there, and how many comparisons has each? "
           "A list of n numbers has n - 1 pairs of neighbours.")

# %% [markdown] algorithm
# ## The algorithm
#
# Quicksort picks one number and cuts the list in two: the smaller ones and the larger ones. Each half is sorted in the same way. It is
# not a faster way to do the comparisons of bubble sort. It needs fewer of them.

# %% quicksort
def quicksort(numbers):
    if len(numbers) < 2:
        return list(numbers)
    middle = numbers[len(numbers) // 2]
    return (quicksort([x for x in numbers if x < middle])
            + [x for x in numbers if x == middle]
            + quicksort([x for x in numbers if x > middle]))

# %% [markdown] first-right
# What is fast and wrong is of no use. So compare first, and then measure. The fourth is the library's: `np.sort`, compiled code that many
# people have worked on.
#
# **Predict:** if the list is twice as long, how many times as long does bubble sort take? And quicksort?

# %% prediction-doubling
doubling = {"bubble sort": None, "quicksort": None}

# %% measure-sorts
sorts = {"bubble sort": (bubble_sort, 800), "shorter walks": (shorter_walks, 800),
         "quicksort": (quicksort, 12_800), "np.sort": (np.sort, 204_800)}
seconds = {}
for name, (sort, largest) in sorts.items():
    ns = [n for n in 100 * 2 ** np.arange(13) if n <= largest]
    lists = [rng.normal(size=n) if sort is np.sort else rng.normal(size=n).tolist() for n in ns]
    print(f"{name:13} sorts rightly:", list(sort(lists[0])) == sorted(lists[0]))
    seconds[name] = np.array(ns), np.array([best(sort, numbers, repeat=9) for numbers in lists])

# %% slopes
for name, (ns, ts) in seconds.items():
    power = np.polyfit(np.log(ns[-4:]), np.log(ts[-4:]), 1)[0]
    print(f"{name:13} grows as n to the power {power:.2f}: "
          f"{2 ** power:.1f} times as long for twice the numbers")
print(predicted(doubling))
pictures.scaling(seconds, x="n, numbers in the list", y="seconds", width=8)

# %% [markdown] seen-sorts
# Both axes are logarithmic: each mark is ten times the one before. Then a power of n is a straight line, and the power is its slope. The
# two bubble sorts are parallel lines. A *constant factor* shifts a line down and leaves its slope. Their power is near 2, since they make
# about n² comparisons. Quicksort's line is flatter: it makes about n log n, which is a power little above 1. A better *algorithm* changes
# the slope, so it gains more the longer the list is. Where it has enough to do, NumPy's sort runs parallel to quicksort and far below:
# the algorithm is of the same kind, and compiled code makes the constant factor small.

# %% [markdown] task-extrapolate
# **Exercise.** You cannot wait for bubble sort on a million numbers, but you can say how long you would wait. Two sizes have been
# measured, and time grows as a power of n. Write the seconds for any other n.

# %% exercise extrapolate
def seconds_at(n, n1, t1, n2, t2):
    """n1 numbers took t1 seconds, n2 took t2. How long do n take?"""
    return ...

# %% solution extrapolate
def seconds_at(n, n1, t1, n2, t2):
    power = np.log(t2 / t1) / np.log(n2 / n1)
    return t2 * (n / n2) ** power

# %% because extrapolate
# If `t = c * n ** p`, then `t2 / t1 = (n2 / n1) ** p`, and the logarithm of that gives `p`. From there `t / t2 = (n / n2) ** p`; `c` is
# not needed.

# %% wrong extrapolate takes the time to be proportional to n
def seconds_at(n, n1, t1, n2, t2):
    return t2 * n / n2

# %% wrong extrapolate draws a straight line through both
def seconds_at(n, n1, t1, n2, t2):
    return t1 + (t2 - t1) * (n - n1) / (n2 - n1)

# %% wrong extrapolate takes every sort for a square
def seconds_at(n, n1, t1, n2, t2):
    return t2 * (n / n2) ** 2

# %% check extrapolate
def by_doubling(n, n1, t1, n2, t2):
    """With n2 = 2 n1, and n some doublings away: each multiplies the time by t2 / t1."""
    while n2 < n:
        n2, t2, t1 = 2 * n2, t2 * t2 / t1, t2
    return t2

cases = [(1600, 400, 0.1, 800, 0.4), (64_000, 1000, 0.5, 2000, 1.1), (3200, 100, 1, 200, 9)]
check(seconds_at, by_doubling, on=cases,
      hint="First find the power p: where n grows by n2 / n1, time grows by (n2 / n1) ** p.")

# %% million
ns, ts = seconds["bubble sort"]
power = np.polyfit(np.log(ns), np.log(ts), 1)[0]
million = rng.normal(size=1_000_000)
hours = ts[-1] * (1e6 / ns[-1]) ** power / 3600
print(f"a million numbers: bubble sort about {hours:.0f} hours, "
      f"NumPy {1000 * best(np.sort, million, repeat=3):.0f} milliseconds")

# %% [markdown] library-loses
# ## When the library loses
#
# A call into a library has a price that does not depend on how much there is to do: arguments are looked at, memory is found, a result is
# wrapped. For little work this price is all there is. Here a Python loop adds up n numbers of a list, and NumPy those of an array.

# %% sum-crossing
def loop_sum(numbers):
    total = 0.0
    for x in numbers:
        total += x
    return total

def many(f, numbers):
    """Seconds of one call, from 50 in a row: one alone is too short for the timer."""
    return best(lambda: [f(numbers) for _ in range(50)], repeat=7) / 50

ns = 2 ** np.arange(13)
sums = {"loop": (ns, [many(loop_sum, [1.0] * n) for n in ns]),
        "NumPy": (ns, [many(np.sum, np.ones(n)) for n in ns])}
pictures.scaling(sums, x="n, numbers to be added", y="seconds", width=8)

# %% [markdown] seen-crossing
# NumPy's line is flat for a long way: there it pays for the call, not for the numbers. The lines cross at some tens or hundreds of
# numbers. A GPU behaves in the same way, with a dearer call and a crossing much further to the right.

# %% [markdown] task-crossing
# **Exercise.** A loop takes `each` seconds for every number. The library takes `call` seconds for the call and then `less` seconds for
# every number, with `less` < `each`. From which whole n on is the library faster?

# %% exercise crossing
def crossing(each, call, less):
    return ...

# %% solution crossing
def crossing(each, call, less):
    return int(call / (each - less)) + 1

# %% because crossing
# They are equal where each · n = call + less · n, that is at n = call / (each - less): each number saves `each - less`, and the savings
# have to pay for the call. The next whole number after that is the first at which the library is faster.

# %% wrong crossing forgets that the library's numbers cost too
def crossing(each, call, less):
    return int(call / each) + 1

# %% wrong crossing stops just before
def crossing(each, call, less):
    return int(call / (each - less))

# %% wrong crossing adds what must be subtracted
def crossing(each, call, less):
    return int(call / (each + less)) + 1

# %% check crossing
def tried(each, call, less):
    n = 0
    while call + less * n >= each * n:
        n += 1
    return n

check(crossing, tried, on=[(40.0, 1000.0, 10.0), (30.0, 2500.0, 1.0), (5.0, 7.0, 4.5)],
      hint="Each number saves (each - less) seconds. After how many is the call paid for?")

# %% [markdown] product
# ## The product of two matrices
#
# This is the operation on which neural networks spend nearly all their time. To multiply two n x n matrices, each of the n² results needs
# n multiplications and n additions: 2 n³ operations. Divide by the seconds and you have the speed, in *GFLOP/s*: billions of operations
# (floating point) a second. That makes products of any size comparable.
#
# **Predict:** how many operations has a product of two 1024 x 1024 matrices? And how many GFLOP/s does a loop in Python reach?

# %% prediction-flops
operations = None
python_gflops = None

# %% loop-product
def loop_product(a, b):
    y = [[0.0] * len(b[0]) for _ in a]
    for i in range(len(a)):
        for j in range(len(b[0])):
            for k in range(len(b)):
                y[i][j] += a[i][k] * b[k][j]
    return y

def gflops(product, n, repeat=5):
    a, b = rng.normal(size=(2, n, n)).astype(np.float32)
    if product is loop_product:
        a, b = a.tolist(), b.tolist()           # lists: a loop over arrays is slower still
    return 2 * n ** 3 / best(product, a, b, repeat=repeat) / 1e9

# %% loop-and-library
speeds = {"loop": gflops(loop_product, 96, repeat=3), "BLAS": gflops(np.matmul, 1024)}
print(f"{2 * 1024 ** 3:,} operations; {predicted(operations)}")
print(f"the loop has {speeds['loop']:.3f} GFLOP/s; {predicted(python_gflops)}")
print(f"NumPy's matmul has {speeds['BLAS']:.0f} GFLOP/s")

# %% [markdown] blas
# The loop and the library do the same operations. NumPy hands the product to *BLAS*, a library for linear algebra, and that is how it
# comes near what the machine can do. Where does the difference come from? Take it apart: a product can be cut into blocks. A block of the
# result is a sum of products of blocks, just as a number of the result is a sum of products of numbers.

# %% [markdown] task-blocked
# **Exercise.** Write the blocked product. `s` is the side of a block; at the edges blocks may be smaller, and slices take care of that.

# %% exercise blocked
def blocked_product(a, b, s):
    """a: (n, m). b: (m, p). Gives (n, p). Three loops over blocks; use slices and @."""
    return ...

# %% solution blocked
def blocked_product(a, b, s):
    y = np.zeros((a.shape[0], b.shape[1]), a.dtype)
    for i in range(0, a.shape[0], s):
        for j in range(0, b.shape[1], s):
            for k in range(0, a.shape[1], s):
                y[i:i + s, j:j + s] += a[i:i + s, k:k + s] @ b[k:k + s, j:j + s]
    return y

# %% because blocked
# It is the loop product with slices in the place of numbers: block (i, j) of the result is the sum over k of block (i, k) of a times
# block (k, j) of b. The sum is why it says `+=`.

# %% wrong blocked keeps only the last product
def blocked_product(a, b, s):
    y = np.zeros((a.shape[0], b.shape[1]), a.dtype)
    for i in range(0, a.shape[0], s):
        for j in range(0, b.shape[1], s):
            for k in range(0, a.shape[1], s):
                y[i:i + s, j:j + s] = a[i:i + s, k:k + s] @ b[k:k + s, j:j + s]
    return y

# %% wrong blocked multiplies number by number
def blocked_product(a, b, s):
    y = np.zeros((a.shape[0], b.shape[1]), a.dtype)
    for i in range(0, a.shape[0], s):
        for j in range(0, b.shape[1], s):
            for k in range(0, a.shape[1], s):
                y[i:i + s, j:j + s] += a[i:i + s, k:k + s] * b[k:k + s, j:j + s]
    return y

# %% wrong blocked takes the wrong block of b
def blocked_product(a, b, s):
    y = np.zeros((a.shape[0], b.shape[1]), a.dtype)
    for i in range(0, a.shape[0], s):
        for j in range(0, b.shape[1], s):
            for k in range(0, a.shape[1], s):
                y[i:i + s, j:j + s] += a[i:i + s, k:k + s] @ b[j:j + s, k:k + s]
    return y

# %% check blocked
drawn = np.random.default_rng(1)
cases = [(drawn.normal(size=(n, m)), drawn.normal(size=(m, p)), s)
         for n, m, p, s in [(4, 4, 4, 2), (6, 6, 6, 6), (5, 7, 3, 2)]]
check(blocked_product, lambda a, b, s: np.einsum("ik,kj->ij", a, b), on=cases,
      hint="Block (i, j) is a sum over k: block (i, k) of a @ block (k, j) of b.")

# %% [markdown] block-size
# Now the same 2 n³ operations, in smaller or larger blocks. The sum over k is left to the block here, which makes one loop less.
#
# **Predict:** n is 256. How many times as fast are blocks of 256 as blocks of 4?

# %% prediction-blocks
times_as_fast = None

# %% block-speeds
def in_blocks(a, b, s):
    y = np.empty((len(a), b.shape[1]), a.dtype)
    for i in range(0, len(a), s):
        for j in range(0, b.shape[1], s):
            np.matmul(a[i:i + s], b[:, j:j + s], out=y[i:i + s, j:j + s])
    return y

n, sides = 256, [2, 4, 8, 16, 32, 64, 128, 256]
blocks = [gflops(lambda a, b, s=s: in_blocks(a, b, s), n, repeat=3) for s in sides]
print(f"{blocks[-1] / blocks[1]:.0f} times as fast; {predicted(times_as_fast)}")
limits = {f"{name}: {speed:.3g}": (sides, [speed] * 8) for name, speed in speeds.items()}
pictures.scaling({"in blocks": (sides, blocks)}, x="side of a block", y="GFLOP/s",
                 limits=limits, width=8)

# %% [markdown] seen-blocks
# Small blocks are slow for two reasons. Each call has its price, as above. And a block of side s makes use of each number that it fetches
# s times: s² results, each a sum of n products, from 2 s n numbers. With s = 1 a number is fetched for every operation, and fetching
# takes longer than multiplying. With large blocks it is fetched once and used often, and the arithmetic becomes the limit. BLAS goes on
# in the same way inside: blocks that fit into each of the caches, the smallest into the registers, and instructions that multiply 4 to 16
# numbers at once. Cut your work into large pieces: you will meet this rule again in minibatches (notebook 5) and in messages between
# machines (notebook 7).
#
# How near is BLAS to the machine's peak? Makers state it as cores x clock x operations in a clock tick. Python cannot see these, so take
# the largest product of this notebook as what the machine can do.

# %% peak
peak = max(gflops(np.matmul, 1536, repeat=3), speeds["BLAS"], *blocks)
in_turn = {**speeds, **{f"blocks of {s}": speed for s, speed in zip(sides, blocks)}}
for name, speed in in_turn.items():
    print(f"{name:14} {speed:10.2f} GFLOP/s {speed / peak:10.2%} of the largest seen")

# %% [markdown] predict-training
# What does that mean for training? ResNet-18 is a middling network, and CIFAR-10 a small data set: 50,000 images of 32 x 32. Going
# backward takes about twice the operations of going forward (notebook 3 says why), and you would go through the images some 100 times.
#
# **Predict:** how long does that take at the speed of the Python loop? And at the speed of the large product?

# %% prediction-training
with_the_loop = None
with_the_library = None

# %% training-time
resnet = models.create("resnet18", input_shape=(3, 32, 32), classes=10, generator=0)
forward = 2 * nn.summary(resnet, (3, 32, 32)).multiply_adds         # operations for one image
training = 3 * forward * 50_000 * 100
years = training / (1e9 * speeds["loop"]) / (3600 * 24 * 365)
hours = training / (1e9 * peak) / 3600
print(f"{training:.1e} operations")
print(f"at the speed of the loop {years:.0f} years; {predicted(with_the_loop)}")
print(f"at the speed of the large product {hours:.0f} hours; {predicted(with_the_library)}")

# %% [markdown] bottleneck
# ## Find the bottleneck
#
# Three ways to be faster; but where? Here is a small program. It learns to tell the ten digits apart by *softmax regression*: scores are
# a matrix product `x @ w`, and their gradient is another one. Read it, and then guess.

# %% program
train, test = data.load("digits")
classes = np.eye(10)

def one_hot(labels):
    return classes[labels]

def gradient(w, x, labels):
    scores = np.exp(x @ w)
    return x.T @ (scores / scores.sum(axis=1, keepdims=True) - one_hot(labels)) / len(x)

def minibatches(x, labels, size):
    order = np.random.default_rng(0).permutation(len(x))
    for start in range(0, len(x), size):
        yield x[order][start:start + size], labels[order][start:start + size]

def learn(minibatches, epochs=20):
    x, labels = train[:]
    x, w = x.reshape(len(x), -1).astype(float), np.zeros((64, 10))
    for _ in range(epochs):
        for part, which in minibatches(x, labels, 16):
            w -= 0.5 * gradient(w, part, which)
    return w

w = learn(minibatches)
x_test, y_test = test[:]
right = np.mean((x_test.reshape(len(x_test), -1) @ w).argmax(axis=1) == y_test)
print(f"{right:.0%} of the test images are recognised")

# %% [markdown] predict-bottleneck
# **Predict:** in which function is most of the time spent, not counting the functions that it calls: `learn`, `gradient`, `one_hot` or
# `minibatches`? And what part of the whole is it?

# %% prediction-bottleneck
bottleneck = {"function": None, "part": None}

# %% profile
def own_time(f, *args):
    """What part of the time each function took itself, in the fastest of 3 profiled runs."""
    runs = []
    for _ in range(3):
        with cProfile.Profile() as profile:
            f(*args)
        runs.append(pstats.Stats(profile).get_stats_profile())
    functions = min(runs, key=lambda run: run.total_tt).func_profiles
    total = sum(row.tottime for row in functions.values())
    for name, row in sorted(functions.items(), key=lambda item: -item[1].tottime)[:5]:
        print(f"{name[:45]:45} {row.ncalls:>6} calls {row.tottime / total:6.0%}")
    return {name: row.tottime / total for name, row in functions.items()}

shares = own_time(learn, minibatches)
print(predicted(bottleneck))

# %% [markdown] seen-profile
# The arithmetic is not the bottleneck. `x[order]` puts *all* images into a new order, which copies them, and of the copy 16 are taken;
# and then the same again for the next 16. The mistake is one pair of brackets, it gives right results, and nobody sees it by reading.
#
# Before you mend it, ask what it can bring.

# %% [markdown] task-amdahl
# **Exercise.** A part of a program takes the share `part` of its time (0.5 for half). You make that part `factor` times faster, and leave
# the rest as it is. How many times faster does the whole program become?

# %% exercise amdahl
def whole(part, factor):
    return ...

# %% solution amdahl
def whole(part, factor):
    return 1 / (1 - part + part / factor)

# %% because amdahl
# Of a time of 1 the rest keeps its 1 - part, and the part shrinks to part / factor. The old time over the new one is the answer. It is
# called Amdahl's law.

# %% wrong amdahl gives the time that is left
def whole(part, factor):
    return 1 - part + part / factor

# %% wrong amdahl forgets the rest
def whole(part, factor):
    return factor * part

# %% wrong amdahl averages the factors
def whole(part, factor):
    return (1 - part) * 1 + part * factor

# %% check amdahl
def played(part, factor):
    steps = 1000                                # of a program that takes one second for each
    before = sum(1.0 for _ in range(steps))
    after = sum(1.0 / factor if k < part * steps else 1.0 for k in range(steps))
    return before / after

check(whole, played, on=[(0.5, 2.0), (0.9, 10.0), (0.25, 100.0), (1.0, 3.0)],
      hint="Let the program take 1 second. How long do the rest and the part take afterwards?")

# %% amdahl-picture
factors = np.linspace(1, 50, 100)
lines = {f"{part:.0%} of the time": (factors, 1 / (1 - part + part / factors))
         for part in (0.98, 0.9, 0.75, 0.5)}
pictures.curves(lines, x="how many times faster the part becomes",
                y="how many times faster the whole becomes", log=False, width=8)

# %% [markdown] seen-amdahl
# However fast the part becomes, the whole becomes at most 1 / (1 - part) times faster. A tenfold gain in a function that takes half of
# the time makes the program less than twice as fast. That is why a profile comes first: it says what there is to be gained.

# %% mended
def mended(x, labels, size):
    order = np.random.default_rng(0).permutation(len(x))
    for start in range(0, len(x), size):
        yield x[order[start:start + size]], labels[order[start:start + size]]

slow, fast = best(learn, minibatches), best(learn, mended)
print("the same weights:", np.array_equal(learn(minibatches), learn(mended)))
limit = 1 / (1 - shares["minibatches"])
print(f"by the profile, if this function cost nothing at all, {limit:.1f} times faster")
print(f"by the timer, as it is now, {slow / fast:.1f} times faster")

# %% profile-again
shares = own_time(learn, mended)

# %% [markdown] seen-mended
# Now the arithmetic leads. The profile and the timer need not agree. A profiler that looks at every call makes functions with many calls
# look dearer than they are, and here these are the others: it promises less than there is to be gained. So a profile says *where*, and
# the timer says *how much*.

# %% [markdown] minidl-profile
# ## The profile of a network
#
# Python's profiler counts functions. Of a network you would rather know which layer takes the time, in which part of a training step, and
# how near it comes to what the machine can do. `minidl.profile` measures that. A first epoch goes before: what is done for the first time
# (loading, compiling) is not what you want to measure.
#
# **Predict:** a training step of LeNet gets its minibatch (data), computes scores (forward), then gradients (backward), and changes the
# weights (update). Put the four into their order, the longest first.

# %% prediction-phases
order_of_phases = None

# %% minidl-profile-of-lenet
model = models.create("lenet", input_shape=(1, 8, 8), classes=10, generator=0)
optimizer = optim.SGD(model, lr=0.05, momentum=0.9)
fit(model, train, None, optimizer, epochs=1)
with minidl.profile() as p:
    fit(model, train, None, optimizer, epochs=5)
print(predicted(order_of_phases))
print(p.table(most=8))

# %% [markdown] seen-minidl-profile
# The first line answers the question. Below it the phases add up to all of the time, and the operations of layers follow, the dearest
# first, with their GFLOP/s. `grad_w` and `grad_x` are the two products of a layer in the backward pass, of which a forward pass has one.
# Compare the GFLOP/s with the products above: the images are small, so the pieces of work are small, and most operations stay far below
# the peak. What is in no operation is the price of the calls.
#
# The operations can be computed by other kernels: by those that are written to be read, for example. `kernels.using` says which may run.

# %% fails kernels-by-name
with kernels.using("slow"):
    fit(model, train, None, optimizer, epochs=1)

# %% [markdown] why-kernels-by-name
# **Why does this fail?** There is no such choice, and a name that is not known is never ignored: you would measure the wrong thing and
# not notice. The error says what there is.

# %% kernels
def in_layers(which):
    """Seconds of forward and backward passes in two epochs with these kernels."""
    with kernels.using(which), minidl.profile() as p:
        fit(model, train, None, optimizer, epochs=2)
    return sum(phase.seconds for phase in p.phases if phase.name in ("forward", "backward"))

spent = {which: min(in_layers(which) for _ in range(3)) for which in ("reference", "fastest")}
print({which: f"{1000 * least:.0f} ms" for which, least in spent.items()})

# %% [markdown] seen-kernels
# The same network, the same algorithm of learning, the same results but for rounding. The compiled kernels come with the extra `fast`;
# without it both numbers are measurements of the same.

# %% [markdown] together
# ## All factors together
#
# These are the factors of this run.

# %% factors
at = {name: dict(zip(*pair))[800] for name, pair in seconds.items()}
gained = {
    "constant: shorter walks, n = 800": at["bubble sort"] / at["shorter walks"],
    "algorithm: quicksort, n = 800": at["shorter walks"] / at["quicksort"],
    "library: np.sort, n = 800": at["quicksort"] / at["np.sort"],
    "library: products in blocks of 32": blocks[sides.index(32)] / speeds["loop"],
    "library: the whole product": speeds["BLAS"] / blocks[sides.index(32)],
    "profile: a pair of brackets": slow / fast,
    "library: minidl's fastest kernels": spent["reference"] / spent["fastest"],
}
pictures.bars(gained, x="times faster than before", log=True, width=8)

# %% [markdown] end
# ## What you have seen
#
# The least of several times is what code costs. A constant factor moves a line in the log-log picture, an algorithm changes its slope,
# and a library comes near what the machine can do, if its pieces of work are large. Which of them is worth your while is said by a
# profile and by Amdahl's law, before you touch anything.
#
# **Where it stands in the code.** `minidl/kernels/reference.py`: kernels written to be read. `minidl/kernels/cpu/`: the same, compiled
# and cut into blocks. `minidl/profiling/`: the profile. `scripts/bench_cpu`: how minidl itself is measured, by turns with PyTorch, each
# at its best.
#
# **Next.** [2. Convolution by hand](2_convolution.ipynb): what it is that must be so fast.
