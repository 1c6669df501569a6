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
# Before a cell shows a result you will often be asked for a prediction. Write it in the place of `None`, and then run the next cell. A
# wrong prediction teaches more than none.

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
# Read a clock, run the code, read the clock again. Do that 300 times with the same product of two matrices: the work is exactly the same
# each time.
#
# **Predict.** How many times as long as the fastest run does the slowest one take?

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
pictures.curves({"each run": microseconds}, x="run", y="microseconds", log=True, width=8)

# %% [markdown] seen-spread
# The line has a floor and spikes. (The vertical axis is logarithmic: each mark is ten times the one below it.) Other programs and the
# operating system can make a run longer, and so does what happens only in the first run, when the library starts up and the numbers are
# not yet in the caches, the small fast memories beside each core. Nothing makes a run shorter than the work takes. All disturbances go in
# one direction: a mean would mix them in, and the *smallest* of several times is nearest to what the code itself costs. That is what we
# use from here on. (If you want to know how long a user will wait, take the median, or the slowest one in a hundred.)

# %% best
def best(f, *args, repeat=5):
    """The least seconds that f(*args) took."""
    return min(timed(f, *args) for _ in range(repeat))

print(f"{1e6 * best(np.matmul, a, b):.1f} microseconds")
print(f"{1e6 * best(np.matmul, a, b):.1f} microseconds, measured again")

# %% [markdown] constant-factor
# ## The constant factor
#
# Bubble sort walks along a list and swaps neighbours that are in the wrong order. It makes as many walks as the list has numbers. Each
# walk carries the largest number that is left to its place. So the next walk may end one place earlier: the second version does that.

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
# The first makes `n` walks of `n - 1` comparisons. The second makes walks of `n - 1`, `n - 2`, and so on down to 1, which add up to
# `n * (n - 1) / 2`. Half the comparisons, at every length: that is a constant factor.

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
# Quicksort picks one number and cuts the list in two: the smaller ones and the larger ones. Each part is sorted in the same way. One
# round of such cuts looks at each number a few times, whatever the length of the parts. And since each cut makes the parts about half as
# long, about log2 n rounds are enough until only single numbers are left. Quicksort does not compare faster than bubble sort. It needs
# fewer comparisons.

# %% quicksort
def quicksort(numbers):
    if len(numbers) < 2:
        return list(numbers)
    middle = numbers[len(numbers) // 2]
    return (quicksort([x for x in numbers if x < middle])
            + [x for x in numbers if x == middle]
            + quicksort([x for x in numbers if x > middle]))

# %% [markdown] first-right
# What is fast and wrong is of no use. So each sort is first compared with Python's own `sorted`, and then measured. A fourth one joins:
# the library's `np.sort`, compiled code that many people have worked on.
#
# **Predict.** If the list is twice as long, how many times as long does bubble sort take? And quicksort?

# %% prediction-doubling
bubble_sort_times = None
quicksort_times = None

# %% measure-sorts
sorts = {"bubble sort": (bubble_sort, 400), "shorter walks": (shorter_walks, 400),
         "quicksort": (quicksort, 6400), "np.sort": (np.sort, 204_800)}
seconds = {}
for name, (sort, largest) in sorts.items():
    ns = [n for n in 50 * 2 ** np.arange(13) if n <= largest]
    lists = [rng.normal(size=n) if sort is np.sort else rng.normal(size=n).tolist() for n in ns]
    print(f"{name:13} sorts rightly:", list(sort(lists[0])) == sorted(lists[0]))
    rounds = [[best(sort, numbers, repeat=3) for numbers in lists] for _ in range(8)]
    seconds[name] = np.array(ns), np.min(rounds, axis=0)        # of each length the fastest run

# %% slopes
for name, (ns, ts) in seconds.items():
    power = np.polyfit(np.log(ns[-4:]), np.log(ts[-4:]), 1)[0]
    print(f"{name:13} grows as n to the power {power:.2f}: "
          f"{2 ** power:.1f} times as long for twice the numbers")
print(f"bubble sort: {predicted(bubble_sort_times)}; quicksort: {predicted(quicksort_times)}")
pictures.scaling(seconds, x="n, numbers in the list", y="seconds", width=8)

# %% [markdown] seen-sorts
# Both axes are logarithmic here. On such axes a power of n is a straight line, and the power is its slope. The two bubble sorts are
# parallel lines: a *constant factor* shifts a line down and leaves its slope. Their power is near 2, since the number of their
# comparisons grows as n². Quicksort's line is flatter: its comparisons grow as n log n, which is nearly a straight line with a slope
# little above 1. A better *algorithm* changes the slope, so it gains more the longer the list is. NumPy's sort is flat at first (the
# next section says why), and then runs nearly parallel to quicksort and far below: the algorithm is of the same kind, and compiled code
# makes the constant factor small.

# %% [markdown] task-extrapolate
# **Exercise.** You cannot wait for bubble sort on a million numbers, but you can say how long you would wait. Two sizes have been
# measured, n1 and n2, and time grows as some power of n. How many seconds does another n take?

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

# %% wrong extrapolate is right only if n2 is twice n1
def seconds_at(n, n1, t1, n2, t2):
    return t2 * (n / n2) ** np.log2(t2 / t1)

# %% wrong extrapolate divides the ratios and not their logarithms
def seconds_at(n, n1, t1, n2, t2):
    return t2 * (n / n2) ** ((t2 / t1) / (n2 / n1))

# %% check extrapolate
def step_by_step(n, n1, t1, n2, t2):
    """From n2 in steps as large as that from n1: each multiplies the time by t2 / t1."""
    larger, longer = n2 // n1, t2 / t1
    while n2 < n:
        n2, t2 = n2 * larger, t2 * longer
    return t2

cases = [(1600, 400, 0.1, 800, 0.4), (64_000, 1000, 0.5, 2000, 1.1), (3200, 100, 1, 200, 9),
         (8100, 100, 0.2, 300, 2.5), (80_000, 10, 0.1, 200, 0.3)]
check(seconds_at, step_by_step, on=cases,
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
# wrapped. For little work this price is all there is. Below, a Python loop adds up the n numbers of a list, and NumPy those of an array.
#
# **Predict.** How many numbers must there be before NumPy is faster?

# %% prediction-crossing
numpy_faster_from = None

# %% sum-in-a-loop
def loop_sum(numbers):
    total = 0.0
    for x in numbers:
        total += x
    return total

def one_call(f, numbers):
    """Seconds of one call, from 50 in a row: one alone is too short for the timer."""
    return best(lambda: [f(numbers) for _ in range(50)], repeat=7) / 50

# %% sum-crossing
ns = 2 ** np.arange(13)
by_loop = np.array([one_call(loop_sum, [1.0] * n) for n in ns])
by_numpy = np.array([one_call(np.sum, np.ones(n)) for n in ns])
print(f"NumPy is faster from {ns[by_numpy < by_loop].min()} on, of the sizes measured; "
      f"{predicted(numpy_faster_from)}")
sums = {"loop": (ns, by_loop), "NumPy": (ns, by_numpy)}
pictures.scaling(sums, x="n, numbers to be added", y="seconds", width=8)

# %% [markdown] seen-crossing
# NumPy's line is flat for a long way: there it pays for the call, not for the numbers. The lines cross at some tens or hundreds of
# numbers. A GPU behaves in the same way, with a more expensive call and a crossing much further to the right.

# %% [markdown] task-crossing
# **Exercise.** A loop takes `each` seconds for every number. The library takes `call` seconds for the call and then `less` seconds for
# every number, with `less` < `each`. What is the smallest whole n for which the library is faster?

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

# %% wrong crossing takes equal for faster
def crossing(each, call, less):
    return int(np.ceil(call / (each - less)))

# %% wrong crossing does not give a whole number
def crossing(each, call, less):
    return call / (each - less)

# %% check crossing
def tried(each, call, less):
    n = 0
    while call + less * n >= each * n:
        n += 1
    return n

check(crossing, tried, on=[(40.0, 1000.0, 10.0), (30.0, 2500.0, 1.0), (5.0, 7.0, 4.5)],
      hint="Each number saves (each - less) seconds. After how many is the call paid for, "
           "and more than paid for? If both take equally long, the library is not yet faster.")

# %% [markdown] product
# ## The product of two matrices
#
# This is the operation on which large neural networks spend most of their time. When two n x n matrices are multiplied, each of the n²
# results needs n multiplications and n additions: 2 n³ operations. Divide by the seconds and you have the speed, in *GFLOP/s*: billions of
# floating point operations a second. That makes products of any size comparable.
#
# **Predict.** How many operations does the product of two 512 x 512 matrices take? And how many GFLOP/s does a loop in Python reach?

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
speeds = {"loop": gflops(loop_product, 64), "BLAS": gflops(np.matmul, 512, repeat=30)}
print(f"{2 * 512 ** 3:,} operations; {predicted(operations)}")
print(f"the loop has {speeds['loop']:.3f} GFLOP/s; {predicted(python_gflops)}")
print(f"NumPy's matmul has {speeds['BLAS']:.0f} GFLOP/s")

# %% [markdown] blas
# The loop and the library do the same operations. NumPy hands the product to *BLAS*, a library for linear algebra. Where does the
# difference come from? To find out we need something between the two. A product can be cut into blocks: cut both matrices into squares,
# and a block of the result is a sum of products of blocks, just as a number of the result is a sum of products of numbers.

# %% [markdown] task-blocked
# **Exercise.** Write the blocked product. `s` is the side of a block. Blocks at the edge may be smaller; a slice that goes beyond the end
# of an array stops at the end, so nothing needs to be done about them.

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

# %% wrong blocked leaves out the blocks at the edge
def blocked_product(a, b, s):
    y = np.zeros((a.shape[0], b.shape[1]), a.dtype)
    for i in range(a.shape[0] // s):
        for j in range(b.shape[1] // s):
            for k in range(a.shape[1] // s):
                y[i * s:i * s + s, j * s:j * s + s] += (
                    a[i * s:i * s + s, k * s:k * s + s] @ b[k * s:k * s + s, j * s:j * s + s])
    return y

# %% wrong blocked moves by one
def blocked_product(a, b, s):
    y = np.zeros((a.shape[0], b.shape[1]), a.dtype)
    for i in range(a.shape[0]):
        for j in range(b.shape[1]):
            for k in range(a.shape[1]):
                y[i:i + s, j:j + s] += a[i:i + s, k:k + s] @ b[k:k + s, j:j + s]
    return y

# %% check blocked
drawn = np.random.default_rng(1)
cases = [(drawn.normal(size=(n, m)), drawn.normal(size=(m, p)), s)
         for n, m, p, s in [(4, 4, 4, 2), (6, 6, 6, 6), (5, 7, 3, 2)]]
check(blocked_product, lambda a, b, s: np.einsum("ik,kj->ij", a, b), on=cases,
      hint="Block (i, j) is a sum over k: block (i, k) of a @ block (k, j) of b. "
           "i, j and k go in steps of s, to the end of the matrix.")

# %% [markdown] block-size
# Now measure: the same 2 n³ operations, for n = 256, in smaller or larger blocks of the result. To have one loop less, each call
# multiplies s whole rows of `a` by s whole columns of `b`, which gives a block of s x s results.
#
# **Predict.** A block of 256 is the whole product. How many times as fast is it as blocks of 4?

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
# Small blocks are slow for two reasons. Each call has its price, as above. And numbers must be fetched from memory, which takes longer
# than multiplying them. A block of side s fetches 2 s n numbers and makes s² results of them, each a sum of n products: it uses each
# number s times. With s = 1 every number is used once. With large blocks it is fetched once and used often, and the arithmetic becomes the
# limit. BLAS does the same again inside, with blocks that fit into each of the caches, and with instructions that multiply several
# numbers at once. So cut your work into large pieces. You will meet this rule again with minibatches (notebook 5) and with messages
# between machines (notebook 7).
#
# How near does this come to what the machine can do, its *peak*? Makers compute that as cores x clock x operations in a clock tick.
# Python cannot see these numbers, so the fastest product of this notebook stands for the peak.

# %% peak
peak = max(gflops(np.matmul, 1024, repeat=9), speeds["BLAS"], *blocks)
in_turn = {**speeds, **{f"blocks of {s}": speed for s, speed in zip(sides, blocks)}}
for name, speed in in_turn.items():
    print(f"{name:14} {speed:10.2f} GFLOP/s {speed / peak:10.2%} of the largest seen")

# %% [markdown] predict-training
# What does that mean for training? ResNet-18 is a network of middle size. How many operations does it take for one image of 32 x 32?

# %% one-image
resnet = models.create("resnet18", input_shape=(3, 32, 32), classes=10, generator=0)
one_image = 2 * nn.summary(resnet, (3, 32, 32)).multiply_adds       # a multiply-add is two
print(f"{one_image / 1e9:.1f} billion operations")

# %% [markdown] predict-training-time
# That is the way forward, from the image to the scores of its classes. Training also goes backward, which takes about twice as many
# operations (notebook 3 says why): three times the number above for each image. CIFAR-10 is a small data set with 50,000 images, and
# training goes through all of them some 100 times.
#
# **Predict.** How many years does that take at the speed of the Python loop? And how many hours at the speed of the fastest product?

# %% prediction-training
years_with_the_loop = None
hours_with_the_library = None

# %% training-time
training = 3 * one_image * 50_000 * 100
years = training / (1e9 * speeds["loop"]) / (3600 * 24 * 365)
hours = training / (1e9 * peak) / 3600
print(f"{training:.1e} operations in all")
print(f"at the speed of the loop {years:.1f} years; {predicted(years_with_the_loop)}")
print(f"of the fastest product {hours:.1f} hours; {predicted(hours_with_the_library)}")

# %% [markdown] bottleneck
# ## Find the bottleneck
#
# A constant factor, an algorithm, a library: three ways to be faster. But where in the program? Here is a small one. It learns to
# recognise handwritten digits. For an image it computes ten scores, one for each digit, by a matrix product `x @ w`. Then `gradient` says
# how to change the weights `w` so that the right digit gets a higher score, and that takes another matrix product. The images are taken in
# random order, 16 at a time, a *minibatch*. Once through all of them is an *epoch*. How such learning works is for notebooks 3 and 4 to
# say. Here ask only where the time goes: read the program, and then guess.

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

# %% learning
def learn(minibatches, epochs=20):
    x, labels = train[:]
    x, w = x.reshape(len(x), -1).astype(float), np.zeros((64, 10))
    for _ in range(epochs):
        for part, which in minibatches(x, labels, 16):
            w -= 0.5 * gradient(w, part, which)
    return w

# %% learned
w = learn(minibatches)
x_test, y_test = test[:]
right = np.mean((x_test.reshape(len(x_test), -1) @ w).argmax(axis=1) == y_test)
print(f"{right:.0%} of the test images are recognised")

# %% [markdown] predict-bottleneck
# **Predict.** In which function is most of the time spent: `learn`, `gradient`, `one_hot` or `minibatches`? Do not count the functions
# that it calls. And what part of the whole is it, from 0 to 1?

# %% prediction-bottleneck
bottleneck = None
its_part = None

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
print(f"function: {predicted(bottleneck)}; part: {predicted(its_part)}")

# %% [markdown] seen-profile
# The arithmetic is not the bottleneck. `x[order]` puts *all* images into a new order, which copies them, and then 16 of the copy are
# taken; and the same again for the next 16. The mistake is one pair of brackets. The results are right, and it is easily overlooked.
#
# Before you mend it, ask how much that can bring.

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
# Let the program take 1 second. The rest keeps its `1 - part`, and the part shrinks to `part / factor`. The answer is the old time divided
# by the new one. It is called *Amdahl's law*.

# %% wrong amdahl gives the time that is left
def whole(part, factor):
    return 1 - part + part / factor

# %% wrong amdahl forgets the rest
def whole(part, factor):
    return factor * part

# %% wrong amdahl averages the factors
def whole(part, factor):
    return (1 - part) * 1 + part * factor

# %% wrong amdahl makes the rest faster
def whole(part, factor):
    return 1 / (part + (1 - part) / factor)

# %% wrong amdahl gives the time that is saved
def whole(part, factor):
    return part - part / factor

# %% check amdahl
def played(part, factor):
    steps = 1000                                # of a program that takes one second for each
    before = sum(1.0 for _ in range(steps))
    after = sum(1.0 / factor if k < part * steps else 1.0 for k in range(steps))
    return before / after

check(whole, played, on=[(0.5, 2.0), (0.9, 10.0), (0.25, 100.0), (1.0, 3.0)],
      hint="Let the program take 1 second. How long do the rest and the part take afterwards? "
           "How many times does the new time go into the old one?")

# %% amdahl-picture
factors = np.linspace(1, 50, 100)
lines = {f"{part:.0%} of the time": (factors, 1 / (1 - part + part / factors))
         for part in (0.98, 0.9, 0.75, 0.5)}
pictures.curves(lines, x="how many times faster the part becomes",
                y="how many times faster the whole becomes", log=False, width=8)

# %% [markdown] seen-amdahl
# Each line belongs to a part that takes so much of the time. All lines but the uppermost soon become flat: however fast the part becomes,
# the whole becomes at most 1 / (1 - part) times faster. A function that takes half of the time may become ten times faster, and the
# program is still less than twice as fast. That is why a profile comes first: it says how much there is to be gained.

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
# Now the arithmetic leads. And the two answers to the question how much there was to be gained need not agree. A profiler that looks at
# every call adds a little time to each, so functions that make many short calls look more expensive than they are, and the others less
# so. A profile says *where*, and the timer says *how much*.

# %% [markdown] minidl-profile
# ## The profile of a network
#
# Python's profiler counts functions. Of a network you would rather know which layer takes the time, in which part of a training step, and
# how near it comes to what the machine can do. `minidl.profile` measures that, here for LeNet, a small network that you will follow from
# layer to layer in notebook 2. An epoch goes before it that is not measured: what happens only the first time, such as loading and
# compiling, would spoil the picture.
#
# **Predict.** A training step gets its minibatch (data), computes scores (forward), then gradients (backward), and changes the weights
# (update). Put the four in their order, the longest first.

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
# The first line names the bottleneck. Then come the phases, which add up to all of the time, and then the operations of each layer, the
# most expensive first, with their GFLOP/s. Where the forward pass of a layer makes one product, `conv2d` or `affine`, its backward pass
# makes two, `grad_w` and `grad_x`. Compare the GFLOP/s with the products above: the images are small, so the pieces of work are small,
# and most operations stay far below the peak. `Python between operations` is the price of all the calls, which you have met above. The
# last table adds up the operations of each layer, and has its memory: what it keeps for the backward pass, and what it makes.
#
# The code that computes one operation is called a *kernel*. minidl has several for the same operation: some are written to be read, and
# some to be fast. `kernels.using` says which of them may run.

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
# The same network, the same learning, the same results but for rounding; only the kernels differ. The compiled ones come with
# `pip install 'minidl[fast]'`. Without them both numbers measure the same code.

# %% [markdown] together
# ## All factors together
#
# These are the factors of this run: how many times faster each step was than the one before it.

# %% factors
at = {name: dict(zip(*pair))[400] for name, pair in seconds.items()}
gained = {
    "constant: shorter walks, n = 400": at["bubble sort"] / at["shorter walks"],
    "algorithm: quicksort, n = 400": at["shorter walks"] / at["quicksort"],
    "library: np.sort, n = 400": at["quicksort"] / at["np.sort"],
    "library: products in blocks of 32": blocks[sides.index(32)] / speeds["loop"],
    "library: the fastest product": peak / blocks[sides.index(32)],
    "profile: a pair of brackets": slow / fast,
    "library: minidl's fastest kernels": spent["reference"] / spent["fastest"],
}
pictures.bars(gained, x="times faster than before", log=True, width=8)

# %% [markdown] seen-factors
# The axis is logarithmic, since the factors are so different. Factors of the same work multiply: the first three lead from bubble sort to
# `np.sort`, and the next two from the Python loop to BLAS. And no factor can be had everywhere: the better algorithm gains the more the
# longer the list is, the library needs large pieces of work, and the pair of brackets was found only because somebody measured.

# %% [markdown] end
# ## What you have seen
#
# The smallest of several times is nearest to what code costs. Where both axes are logarithmic, a constant factor moves a line and an
# algorithm changes its slope. A library comes near what the machine can do, if its pieces of work are large. A profile and Amdahl's law
# say where it is worth your while, before you touch anything.
#
# **Where it stands in the code.** `minidl/kernels/reference.py`: kernels written to be read. `minidl/kernels/cpu/`: the same, compiled
# and cut into blocks. `minidl/profiling/`: the profile. `scripts/bench_cpu`: how minidl itself is measured, by turns with PyTorch, each
# at its best.
#
# **Next.** [2. Convolution by hand](2_convolution.ipynb): what it is that must be so fast.
