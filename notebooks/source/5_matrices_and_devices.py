# %% [markdown] title
# # 5. Batches, matrices and devices
#
# The loops of notebook 2 say what a convolution is. This notebook turns them into what computers are fast at: products of large matrices.
# Then it takes the same code from a CPU to another device, and shows why arrays of two devices must not be mixed.
#
# **After this you can**
# - say how many operations a product does for each byte that it moves, and why that sets its speed;
# - write a convolution as one matrix product, and say how much memory its matrix takes;
# - tell apart four ways to convolve, run each of them in minidl, and say what each one saves;
# - write a function that runs on any device, and mend a call that mixes devices.
#
# You need notebook 2 (convolution); notebook 1 (measuring) helps. It takes about 50 minutes.
#
# As before: where you are asked for a prediction, write it in the place of `None` before you run what follows.

# %% imports
import os
from collections import Counter
from timeit import repeat

for library in ("OPENBLAS", "MKL", "OMP", "VECLIB"):    # one core is what we measure,
    os.environ[f"{library}_NUM_THREADS"] = "1"          # as in notebook 1

import numpy as np

import minidl
from minidl import backend, kernels, models, pictures
from minidl import functions as F
from minidl.exercises import check, predicted

# %% tools
rng = np.random.default_rng(0)

def normal(*shape):
    return rng.standard_normal(shape, dtype=np.float32)

def best(f, runs=7):
    """The least seconds that f() took."""
    return min(repeat(f, number=1, repeat=runs))

# %% [markdown] one-or-many
# ## One image or sixty-four
#
# **Predict.** A network takes a certain time for one image. How many times as long does it take for 64 images in one batch?

# %% prediction-batch
times_as_long = None

# %% batch-found
model = models.create("lenet", input_shape=(1, 8, 8), classes=10, generator=0).eval()
images = normal(64, 1, 8, 8)
with minidl.no_grad():
    one, many = (best(lambda n=n: model(images[:n]), 30) for n in (1, 64))
print(f"{many / one:.1f} times as long for 64 times as many; "
      f"{predicted(times_as_long)}")

# %% [markdown] two-reasons
# There are two reasons why it is not 64 times. The first is Python: each layer is a call, and a call has the same price for one image as
# for 64. The second remains however large the network is, and it is about matrices.
#
# ## A vector times a matrix, a matrix times a matrix
#
# An affine layer computes `x @ w`. For one example x is a row of numbers, and the whole matrix w must be fetched from memory to be used
# once. For a batch x is a matrix too, and each number of w, once fetched, is used for every example. Fetching takes time: a core can do
# dozens of multiplications while one number comes from main memory.
#
# Speed is measured in GFLOP/s again, billions of operations in a second. A product of (n, inputs) and (inputs, outputs) has n · inputs ·
# outputs multiplications and as many additions.
#
# **Predict.** How many times as many GFLOP/s does a batch of 256 examples reach as a single example?

# %% prediction-products
times_as_many = None

# %% measure-products
w = normal(2000, 4500)                          # 36 MB: more than most caches hold
sizes = [1, 4, 16, 64, 256, 1024]
rates = []
for n in sizes:
    x = normal(n, 2000)
    rates.append(2 * n * w.size / best(lambda x=x: x @ w, 3) / 1e9)
print(f"{rates[4] / rates[0]:.1f} times as many; {predicted(times_as_many)}")

# %% picture-products
shown = [n for n in sizes if n * rates[0] < 4 * max(rates)]
limits = {"if a batch took no longer than one example": (shown, [n * rates[0] for n in shown])}
measured = {"measured": (sizes, rates)}
pictures.scaling(measured, limits=limits, x="examples in the batch", y="GFLOP/s")

# %% [markdown] seen-products
# Both axes are logarithmic. The dashed line is what a batch would reach if fetching w were all that takes time: the batch would take no
# longer than one example, and do n times the work. The measured rate stays below it, but it rises too: larger batches use more of what a
# core can do. (From 1 to 4 examples often little is gained, or nothing: for several examples the library first copies w into another
# order, which pays off only with many.) In the end the line becomes level. Now the arithmetic takes the time, and more examples bring
# nothing more.
#
# What decides is the *arithmetic intensity*: how many operations there are for each byte that must be moved. The bytes that memory
# delivers in a second, times the intensity, are the most operations that a product can do in a second. Only where that is more than the
# core can do, the core itself is the limit.

# %% [markdown] task-intensity
# **Exercise.** Write the arithmetic intensity of `y = x @ w` in float32, where x is (n, inputs) and w is (inputs, outputs). Count
# multiplications and additions as operations; x and w are read once, y is written once.

# %% exercise intensity
def intensity(n, inputs, outputs):
    """Operations for each byte."""
    return ...

# %% solution intensity
def intensity(n, inputs, outputs):
    """Operations for each byte."""
    operations = 2 * n * inputs * outputs
    return operations / (4 * (n * inputs + inputs * outputs + n * outputs))

# %% because intensity
# A float32 has 4 bytes. For n = 1 nearly all bytes are those of w, and there are 2 operations for 4 bytes: half an operation for a byte,
# however large the layer is. With n examples it is nearly n / 2, as long as x and y are small beside w.

# %% wrong intensity counts multiplications only
def intensity(n, inputs, outputs):
    return n * inputs * outputs / (4 * (n * inputs + inputs * outputs + n * outputs))

# %% wrong intensity counts numbers for bytes
def intensity(n, inputs, outputs):
    return 2 * n * inputs * outputs / (n * inputs + inputs * outputs + n * outputs)

# %% wrong intensity forgets what is written
def intensity(n, inputs, outputs):
    return 2 * n * inputs * outputs / (4 * (n * inputs + inputs * outputs))

# %% wrong intensity float64 for float32
def intensity(n, inputs, outputs):
    return 2 * n * inputs * outputs / (8 * (n * inputs + inputs * outputs + n * outputs))

# %% wrong intensity bytes for each operation
def intensity(n, inputs, outputs):
    return 4 * (n * inputs + inputs * outputs + n * outputs) / (2 * n * inputs * outputs)

# %% wrong intensity fetches w anew for each example
def intensity(n, inputs, outputs):
    return 2 * n * inputs * outputs / (4 * n * (inputs + inputs * outputs + outputs))

# %% check intensity
def counted(n, inputs, outputs):
    x, w = np.ones((n, inputs), np.float32), np.ones((inputs, outputs), np.float32)
    operations = 0
    for _row in range(n):
        for _column in range(outputs):
            for _k in range(inputs):
                operations += 2
    return operations / (x.nbytes + w.nbytes + (x @ w).nbytes)

check(intensity, counted, on=[(1, 30, 20), (16, 30, 20), (64, 8, 8)],
      hint="An addition is an operation, too. How many bytes has a float32? "
           "And how often is each of the three arrays moved?")

# %% [markdown] im2col
# ## A convolution as a product
#
# Products of matrices are what libraries compute fastest. A convolution is no such product, but *im2col* (image to columns) makes it one.
# It copies every patch that the filter will see into a column of a matrix. The filter is written as a row. Then row times matrix gives the
# results at all places at once. Several filters are several rows, which is a matrix again.

# %% im2col-picture
pictures.im2col_matrix(np.arange(1, 26).reshape(5, 5), kernel=3, at=(1, 1), follow=(2, 2))

# %% [markdown] seen-im2col
# Each pixel has a colour of its own and keeps it. The frame marks one patch, and the column that it becomes. The next column on the right
# is the next place of the window. In the image each pixel is there once. In the matrix it is there once for each window that covers it:
# the ringed pixel in the middle is there nine times.
#
# The product gives the same numbers as `conv2d`, here for 8 filters on an image of 3 channels:

# %% im2col-is-convolution
x, w = normal(1, 3, 12, 12), normal(8, 3, 5, 5)
window = kernels.Window((5, 5))
columns = kernels.im2col(x, window)
y = w.reshape(8, -1) @ columns[0]
print("filters", w.reshape(8, -1).shape, "times columns", columns[0].shape, "gives", y.shape)
print("as conv2d does:", np.allclose(y.reshape(8, 8, 8), F.conv2d(x, w)[0], atol=1e-4))

# %% [markdown] memory
# ## The memory it eats
#
# What is gained in speed is paid for in memory.
#
# **Predict.** An image has 64 x 64 pixels, the filter is 3 x 3, and padding 1 keeps the size. How many times as many numbers as the image
# has the matrix? And with stride 2?

# %% prediction-memory
times_with_stride_1 = None
times_with_stride_2 = None

# %% measure-memory
image, sides = normal(1, 1, 64, 64), (1, 3, 5, 7)

def larger(k, stride):
    """How many times larger than the image its matrix is."""
    window = kernels.Window((k, k), (stride, stride), padding=(k // 2, k // 2))
    return kernels.im2col(image, window).nbytes / image.nbytes

print(f"stride 1: {larger(3, 1):.2f} times; {predicted(times_with_stride_1)}")
print(f"stride 2: {larger(3, 2):.2f} times; {predicted(times_with_stride_2)}")

# %% picture-memory
curves = {f"stride {s}": (sides, [larger(k, s) for k in sides]) for s in (1, 2, 3)}
pictures.scaling(curves, x="k, for filters of k x k",
                 y="numbers in the matrix for each pixel", log=False)

# %% [markdown] seen-memory
# With stride 1 a pixel lies under k² windows, but for the pixels at the edge. With stride s only every s-th window is there, in both
# directions, so it is about k² / s². What does that mean for a layer of everyday size? The second convolution of VGG-16, a well-known
# network, gets 64 channels of 224 x 224. With a batch of 64 images:

# %% vgg-memory
count, channels, side, k = 64, 64, 224, 3
input_bytes = 4 * count * channels * side ** 2
print(f"input {input_bytes / 1e9:.2f} GB, matrix {input_bytes * k * k / 1e9:.2f} GB")

# %% [markdown] pieces
# Nobody makes that matrix as a whole. minidl makes it in pieces that fit into a cache, uses each piece for a product, and then overwrites
# it with the next: see `conv2d` in `minidl/kernels/reference.py`.

# %% [markdown] task-columns
# **Exercise.** Write the shape of the matrix that im2col makes of one image: its rows and its columns. All windows and images here are
# square.

# %% exercise columns-shape
def columns_shape(channels, side, k, stride, padding):
    """(rows, columns) of the matrix, for an image (channels, side, side), filters of k x k."""
    return ...

# %% solution columns-shape
def columns_shape(channels, side, k, stride, padding):
    """(rows, columns) of the matrix, for an image (channels, side, side), filters of k x k."""
    places = (side + 2 * padding - k) // stride + 1
    return channels * k * k, places * places

# %% because columns-shape
# A column is a patch: k · k numbers of each channel. There is a column for each place of the window, and the places of one direction are
# those of notebook 2: the room that the window has in the padded image, in steps of the stride, plus one.

# %% wrong columns-shape forgets the channels
def columns_shape(channels, side, k, stride, padding):
    places = (side + 2 * padding - k) // stride + 1
    return k * k, places * places

# %% wrong columns-shape pads one side only
def columns_shape(channels, side, k, stride, padding):
    places = (side + padding - k) // stride + 1
    return channels * k * k, places * places

# %% wrong columns-shape counts steps and not places
def columns_shape(channels, side, k, stride, padding):
    places = (side + 2 * padding - k) // stride
    return channels * k * k, places * places

# %% wrong columns-shape a row of the image for all of it
def columns_shape(channels, side, k, stride, padding):
    places = (side + 2 * padding - k) // stride + 1
    return channels * k * k, places

# %% wrong columns-shape a column for each pixel
def columns_shape(channels, side, k, stride, padding):
    return channels * k * k, side * side

# %% wrong columns-shape rows and columns changed about
def columns_shape(channels, side, k, stride, padding):
    places = (side + 2 * padding - k) // stride + 1
    return places * places, channels * k * k

# %% check columns-shape
def made(channels, side, k, stride, padding):
    window = kernels.Window((k, k), (stride, stride), (padding, padding))
    return kernels.im2col(np.zeros((1, channels, side, side)), window)[0].shape

layers = [(1, 5, 3, 1, 0), (3, 8, 3, 1, 1), (2, 9, 4, 2, 1), (4, 12, 5, 3, 2)]
check(columns_shape, made, on=layers,
      hint="A row for each number under the filter, in all channels; a column for each place. "
           "Padding comes on both sides.")

# %% [markdown] four-ways
# ## Four ways to convolve
#
# The matrix need not be made at all. Beside im2col minidl has two compiled kernels that do without it, if the extra `fast` is installed:
#
# | way | how | multiplications |
# |---|---|---|
# | a loop | five loops in Python, number by number | all |
# | `im2col` | copies patches, then one product of matrices | all |
# | `direct` | reads patches where they are, and keeps the sums inside the core | all |
# | `winograd` | transforms tiles of 6 x 6 pixels, and multiplies those | a quarter, for 3 x 3 filters |
#
# `F.conv2d` looks at the shapes and chooses one of them; with `algorithm=` you choose. (There is also `fft`, for large filters: see
# `docs/cpu.md`.) First the loop, for one image and one filter:

# %% by-loop
def by_loop(x, w):
    """One image (C, H, W) and one filter (C, K, K)."""
    size = w.shape[-1]
    y = np.zeros((x.shape[1] - size + 1, x.shape[2] - size + 1))
    for i in range(y.shape[0]):
        for j in range(y.shape[1]):
            for c in range(len(x)):
                for row in range(size):
                    for column in range(size):
                        y[i, j] += x[c, i + row, j + column] * w[c, row, column]
    return y

# %% the-others
x, w = normal(8, 32, 66, 66), normal(32, 32, 3, 3)
ways = ["im2col", "direct", "winograd"] if kernels.compiled() else ["im2col"]
if not kernels.compiled():
    print("only im2col is here; pip install 'minidl[fast]' brings the others")
truth = by_loop(x[0, :, :10, :10], w[0])
for way in ways:
    y = F.conv2d(x, w, algorithm=way)
    away = abs(y[0, 0, :8, :8] - truth).max() / abs(truth).max()
    print(f"{way:9} {y.shape}, away from the loop by {away:.0e} of its largest number")

# %% [markdown] predict-ways
# All agree but for rounding. As a rule Winograd's errors are the largest, since it adds and subtracts numbers before it multiplies them.
#
# **Predict.** How many times faster than the loop is the fastest of them, for the same work?

# %% prediction-ways
times_faster = None

# %% measure-ways
time = best(lambda: by_loop(x[0, :, :10, :10], w[0]), 3)
costs = {"loop": 1e9 * time / (8 * 8 * w[0].size)}
for way in ways:
    time = best(lambda way=way: F.conv2d(x, w, algorithm=way), 25)
    costs[way] = 1e9 * time / (8 * 64 * 64 * w.size)
print(f"{costs['loop'] / min(costs.values()):,.0f} times faster; {predicted(times_faster)}")
pictures.bars(costs, x="nanoseconds for each multiplication of the loop", log=True)

# %% [markdown] seen-ways
# The scale is logarithmic: each mark is ten times the one before it. The loop ran on a small piece of the work only, so all times are
# given for one multiplication of the loop. From the loop to im2col, the library makes the difference. The direct way copies no patches.
# Winograd makes fewer multiplications, but it does not gain a factor of four by that, since its transforms cost time too.
#
# `algorithm=` is for one call. For everything inside a `with` block there is `kernels.using`, as in notebook 1: `"reference"` takes the
# kernels that are written to be read, with im2col, `"direct"` the compiled ones without Winograd, and `"fastest"` those that run anyway.

# %% using
for which in ("reference", "direct", "fastest"):
    with kernels.using(which):
        print(f"{which:10} {1000 * best(lambda: F.conv2d(x, w), 25):6.1f} ms")

# %% [markdown] task-winograd
# How can a result be right with fewer multiplications? Here is Winograd's idea in the small. A filter g of 3 numbers lies on 4 numbers d,
# at two places, and gives two outputs:
#
#     d[0] g[0] + d[1] g[1] + d[2] g[2]        d[1] g[0] + d[2] g[1] + d[3] g[2]
#
# That takes 6 multiplications. But the four products m1 to m4 below are enough. (The sums of g, and their halves, are computed once for a
# filter and used for the whole image, so they do not count.)
#
# **Exercise.** Make the two outputs from m1 to m4, with additions and subtractions only.

# %% exercise winograd
def two_outputs(d, g):
    """Both outputs, in an array. d: 4 numbers. g: a filter of 3."""
    m1, m2 = (d[0] - d[2]) * g[0], (d[1] + d[2]) * (g[0] + g[1] + g[2]) / 2
    m3, m4 = (d[2] - d[1]) * (g[0] - g[1] + g[2]) / 2, (d[1] - d[3]) * g[2]
    return ...

# %% solution winograd
def two_outputs(d, g):
    """Both outputs, in an array. d: 4 numbers. g: a filter of 3."""
    m1, m2 = (d[0] - d[2]) * g[0], (d[1] + d[2]) * (g[0] + g[1] + g[2]) / 2
    m3, m4 = (d[2] - d[1]) * (g[0] - g[1] + g[2]) / 2, (d[1] - d[3]) * g[2]
    return np.array([m1 + m2 + m3, m2 - m3 - m4])

# %% because winograd
# m2 + m3 = d1 g1 + d2 (g0 + g2), and m2 − m3 = d1 (g0 + g2) + d2 g1. The first lacks d0 g0 and has d2 g0 too much: add m1. The second
# lacks d3 g2 and has d1 g2 too much: subtract m4. In an image, which has two directions, 4 · 4 products do the work of 6 · 6. With tiles
# of 6 x 6 pixels, which give 4 x 4 outputs, 36 do the work of 144: that is the quarter in the table.

# %% wrong winograd a sign
def two_outputs(d, g):
    m1, m2 = (d[0] - d[2]) * g[0], (d[1] + d[2]) * (g[0] + g[1] + g[2]) / 2
    m3, m4 = (d[2] - d[1]) * (g[0] - g[1] + g[2]) / 2, (d[1] - d[3]) * g[2]
    return np.array([m1 + m2 + m3, m2 - m3 + m4])

# %% wrong winograd the same combination twice
def two_outputs(d, g):
    m1, m2 = (d[0] - d[2]) * g[0], (d[1] + d[2]) * (g[0] + g[1] + g[2]) / 2
    m3, m4 = (d[2] - d[1]) * (g[0] - g[1] + g[2]) / 2, (d[1] - d[3]) * g[2]
    return np.array([m1 + m2 + m3, m2 + m3 - m4])

# %% wrong winograd the outputs exchanged
def two_outputs(d, g):
    m1, m2 = (d[0] - d[2]) * g[0], (d[1] + d[2]) * (g[0] + g[1] + g[2]) / 2
    m3, m4 = (d[2] - d[1]) * (g[0] - g[1] + g[2]) / 2, (d[1] - d[3]) * g[2]
    return np.array([m2 - m3 - m4, m1 + m2 + m3])

# %% wrong winograd all four for each output
def two_outputs(d, g):
    m1, m2 = (d[0] - d[2]) * g[0], (d[1] + d[2]) * (g[0] + g[1] + g[2]) / 2
    m3, m4 = (d[2] - d[1]) * (g[0] - g[1] + g[2]) / 2, (d[1] - d[3]) * g[2]
    return np.array([m1 + m2 + m3 + m4, m1 + m2 - m3 - m4])

# %% wrong winograd half the products for each output
def two_outputs(d, g):
    m1, m2 = (d[0] - d[2]) * g[0], (d[1] + d[2]) * (g[0] + g[1] + g[2]) / 2
    m3, m4 = (d[2] - d[1]) * (g[0] - g[1] + g[2]) / 2, (d[1] - d[3]) * g[2]
    return np.array([m1 + m2, m3 + m4])

# %% check winograd
def written_out(d, g):
    return np.array([sum(d[place + k] * g[k] for k in range(3)) for place in range(2)])

numbers = [(np.array([1, 2, 3, 4]), np.array([1, 0, 0])),
           (np.array([3, -1, 0, 5]), np.array([2, 1, -1])),
           (np.array([0, 1, 0, -2]), np.array([0, 0, 1]))]
check(two_outputs, written_out, on=numbers,
      hint="Expand m2 + m3 and m2 - m3. What is missing for each output, and what is too much? "
           "One of m1 and m4 mends it.")

# %% [markdown] devices
# ## The same code on another device
#
# A *device* is what has a memory of its own and computes with what lies there: the CPU is one, a GPU is another. For GPUs there is the
# library CuPy, whose arrays behave like NumPy's. minidl has no switch between the two. **The array decides**: each function asks its
# argument which library made it, and calls that one.

# %% array-decides
x = normal(2, 3)
print("made by", backend.of(x).__name__, "- lies on", backend.device_of(x))

def softmax(x):
    xp = backend.of(x)                          # NumPy or CuPy: the one that made x
    e = xp.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)

softmax(x).sum(axis=-1).round(6)

# %% [markdown] to-a-gpu
# To bring an array to a GPU you name the device: "cuda:0" is the first GPU. What happens on this machine?

# %% fails to-a-gpu-without
y = softmax(backend.asarray(x, "cuda:0"))
print("it ran on", backend.device_of(y))

# %% [markdown] a-far-device
# **Why does this fail?** If it does, there is no CuPy here, or no GPU. The error says which, and what to do. And nothing was computed on
# the CPU instead: you asked for a device, and you are told that you cannot have it.
#
# What follows needs a second device, so here is one for every machine. Its arrays are NumPy's, but they say that they lie far away, on
# "far:0". Its library is NumPy under another name, and it writes down what it is asked to do. `backend.register` makes it known to minidl;
# CuPy is made known by the same call. You need not understand these two cells to go on. (A real GPU is stricter, since NumPy cannot read
# its arrays. minidl's own tests use an imitation that is as strict, in `tests/strict.py`.)

# %% far-device
class FarArray(np.ndarray):
    """An array that says it lies on the device far:0."""

class FarLibrary:
    """NumPy under another name, which writes down what it is asked, and of what."""
    __name__, asked, copied = "far", [], []

    def __getattr__(self, name):
        found = getattr(np, name)
        def call(*args, **options):
            self.asked.append(name)
            self.copied.extend(a for a in args if type(a) is np.ndarray)    # from the CPU
            y = found(*args, **options)
            return y.view(FarArray) if isinstance(y, np.ndarray) else y
        return call if callable(found) and not isinstance(found, type) else found

# %% register-far
far = FarLibrary()
backend.register(backend.Library(
    "far", far, FarArray, device_of=lambda x: "far:0", to_numpy=lambda x: np.array(x),
    asarray=lambda x, device: np.array(x).view(FarArray), synchronize=lambda: None))

# %% softmax-far
x_far = backend.asarray(x, "far:0")
y_far = softmax(x_far)
print("made by", backend.of(y_far).__name__, "- lies on", backend.device_of(y_far))
print("asked of its library:", far.asked)

# %% [markdown] train-far
# `softmax` was not changed, and it ran on the far device. (`max` and `sum` are methods of the array itself, so the library was asked for
# `exp` only.) The same holds for a model: `to` moves its weights, and from then on every layer asks the far library. Here is a pass
# forward and backward, on both devices, with the same weights and images. Both use the reference kernels, since the compiled ones are for
# the CPU only and round differently.

# %% far-model
def lenet_on(device):
    model = models.create("lenet", input_shape=(1, 8, 8), classes=10, generator=0)
    return model.to(device=device)

def loss_and_gradient(device):
    model = lenet_on(device)
    outputs = model(backend.asarray(four, device))
    loss = F.softmax_cross_entropy(outputs, backend.asarray(np.arange(4), device))
    loss.backward()
    return loss.item(), model.features[0].w.grad

four = normal(4, 1, 8, 8)

# %% far-step
with kernels.using("reference"):
    loss, gradient = loss_and_gradient("cpu")
    loss_far, gradient_far = loss_and_gradient("far:0")
print("losses:", loss, loss_far, "  gradients on:", gradient.device, gradient_far.device)
same = np.array_equal(backend.to_numpy(gradient.data), backend.to_numpy(gradient_far.data))
print("the same gradient to the bit:", same)
print("asked most often:", Counter(far.asked).most_common(5))

# %% [markdown] mixing
# And if the model lies far away, and the images do not?

# %% fails mixing-devices
model = lenet_on("far:0")
model(normal(4, 1, 8, 8))

# %% [markdown] why-not-mixed
# **Why does this fail?** minidl could copy the images for you. It refuses, for two reasons. A copy between devices is among the slowest
# things that a program can do, and one that nobody sees is made again at every step. And on which of the two devices the result should lie
# is for you to say, not for the library. So the error is raised at once, before anything is computed. It names the layer, where each
# argument lies, and a call that brings one to the other. You choose which: here the images go to the model.

# %% mended
model(backend.asarray(normal(4, 1, 8, 8), "far:0")).device

# %% [markdown] task-one-hot
# **Exercise.** This function makes its array on the CPU, wherever the labels lie. Write it so that it computes on the device of the
# labels, and nothing is copied between devices.
#
# ```python
# def one_hot(labels, classes):
#     return np.eye(classes, dtype=np.float32)[labels]
# ```

# %% exercise one-hot
def one_hot(labels, classes):
    """For each label a row of zeros with a 1 at its place: (N,) to (N, classes) float32."""
    return ...

# %% solution one-hot
def one_hot(labels, classes):
    """For each label a row of zeros with a 1 at its place: (N,) to (N, classes) float32."""
    return backend.of(labels).eye(classes, dtype=np.float32)[labels]

# %% because one-hot
# Arithmetic with an array stays on the device of that array without your doing anything. Only what *makes* an array must be asked of the
# right library: `eye`, `zeros`, `arange`. A dtype such as `np.float32` is only a name, and both libraries take it.

# %% wrong one-hot made by NumPy, wherever the labels lie
def one_hot(labels, classes):
    return np.eye(classes, dtype=np.float32)[labels]

# %% wrong one-hot made by NumPy, and copied by the labels' library
def one_hot(labels, classes):
    return backend.of(labels).asarray(np.eye(classes, dtype=np.float32))[labels]

# %% wrong one-hot always far away
def one_hot(labels, classes):
    return far.eye(classes, dtype=np.float32)[labels]

# %% wrong one-hot of another dtype
def one_hot(labels, classes):
    return backend.of(labels).eye(classes)[labels]

# %% wrong one-hot right, but by way of the CPU
def one_hot(labels, classes):
    near = np.eye(classes, dtype=np.float32)[backend.to_numpy(labels)]
    return backend.asarray(near, backend.device_of(labels))

# %% wrong one-hot brings the result to the CPU
def one_hot(labels, classes):
    return backend.to_numpy(backend.of(labels).eye(classes, dtype=np.float32)[labels])

# %% check one-hot
def facts(y, made_far, copied):
    return {"its numbers": y, "its dtype": str(y.dtype), "its device": backend.device_of(y),
            "whether the far library made it": made_far, "whether it was copied": copied}

def found(labels, classes):
    far.asked.clear(), far.copied.clear()
    y = one_hot(labels, classes)
    return y if y is ... else facts(y, bool(far.asked), bool(far.copied))

def wanted(labels, classes):
    rows = [[float(k == label) for k in range(classes)] for label in backend.to_numpy(labels)]
    device = backend.device_of(labels)
    y = backend.asarray(np.array(rows, np.float32), device)
    return facts(y, device == "far:0", False)

near = np.array([2, 0, 1, 2])
check(found, wanted, on=[(near, 3), (backend.asarray(near, "far:0"), 5)],
      hint="Which library made the labels? Let that one make the array too, from nothing, "
           "in float32.")

# %% [markdown] end
# ## What you have seen
#
# A batch makes a product of two matrices out of a vector times a matrix. Weights are fetched once and used many times, until arithmetic
# and not memory sets the pace. im2col makes such a product of a convolution, for about k² / s² times the memory. Compiled kernels do
# without the matrix, and Winograd's also with fewer multiplications. None of this changes what is computed, but for rounding. Nor does the
# device: the array decides where its numbers are computed, and two devices are never mixed behind your back.
#
# **Where it stands in the code.** `minidl/kernels/reference.py`: im2col. `minidl/kernels/cpu/`: the compiled kernels (`vector.py` first,
# then `direct.py` and `winograd.py`), and `docs/cpu.md` on all of them. `minidl/backend.py`: devices.
#
# **Next.** [6. Natural gradient and K-FAC](6_natural_gradient.ipynb): a step that knows how the valley is shaped.
