# %% [markdown] title
# # 5. Batches, matrices and devices
#
# The loops of notebook 2 say what a convolution is. This notebook turns them into what computers are fast at: products of large
# matrices. Then it takes the same code from a CPU to another device, and shows why arrays of two devices must not be mixed.
#
# **After this you can**
# - say how many operations a product does for each byte that it moves, and why that sets its speed;
# - write a convolution as one matrix product, and say how much memory its matrix takes;
# - tell apart four ways to convolve, run each of them in minidl, and say what each one saves;
# - write a function that runs on any device, and mend a call that mixes devices.
#
# You need notebook 2 (convolution); notebook 1 (measuring) helps. It takes about 50 minutes. Where you are asked for a prediction, write
# it in the place of `None` before you run what follows.

# %% imports
from collections import Counter
from contextlib import nullcontext
from timeit import repeat

import numpy as np

import minidl
from minidl import backend, kernels, models, pictures
from minidl import functions as F
from minidl.exercises import check, predicted

# %% tools
rng = np.random.default_rng(0)

def normal(*shape):
    return rng.standard_normal(shape, dtype=np.float32)

threads = minidl.threads if kernels.compiled() else nullcontext      # which cannot say how many

def seconds(function, runs=7):
    """The shortest of several runs, for what else goes on can only make one longer.

    On one thread, which is disturbed least.
    """
    with threads(1):
        return min(repeat(function, number=1, repeat=runs))

# %% [markdown] one-or-many
# ## One image or sixty-four
#
# **Predict.** A network takes a certain time for one image. How many times as long does it take for 64 images in one batch?

# %% prediction-batch
prediction = None

# %% batch-found
model = models.create("lenet", input_shape=(1, 8, 8), classes=10, generator=0).eval()
images = normal(64, 1, 8, 8)
with minidl.no_grad():
    one, many = (seconds(lambda n=n: model(images[:n]), 30) for n in (1, 64))
print(f"{many / one:.1f} times as long for 64 times as many; {predicted(prediction)}")

# %% [markdown] two-reasons
# There are two reasons. The first is Python: each layer is a call, and a call costs the same for one image as for 64. The second
# remains however large the network is, and it is about matrices.
#
# ## A vector times a matrix, a matrix times a matrix
#
# An affine layer computes `x @ w`. For one example x is a row of numbers, and the whole matrix w must be fetched from memory to be used
# once. For a batch x is a matrix itself, and each number of w, once fetched, is used for every example. Fetching is what takes time: a
# core can do dozens of multiplications while one number comes from main memory.
#
# One measures by *operations*: a product of (n, inputs) and (inputs, outputs) has n · inputs · outputs multiplications and as many
# additions. GFLOP/s are billions of them in a second.

# %% measure-products
w = normal(3000, 5000)
sizes = [1, 4, 16, 64, 256]
rates = []
for n in sizes:
    x = normal(n, 3000)
    rates.append(2 * n * w.size / seconds(lambda x=x: x @ w, 4) / 1e9)
print(f"a matrix of {w.nbytes / 1e6:.0f} MB:", *(f"{rate:.0f}" for rate in rates), "GFLOP/s")

# %% picture-products
if_memory_decides = [(n, rates[0] * n) for n in sizes if rates[0] * n < 2 * max(rates)]
limits = {"if fetching w is all that takes time": tuple(zip(*if_memory_decides))}
measured = {"measured": (sizes, rates)}
pictures.scaling(measured, limits=limits, x="examples in the batch", y="GFLOP/s")

# %% [markdown] seen-products
# Along the dashed line a batch costs no more than one example: all that takes time is fetching w. From 4 examples on the measured rate
# rises as steeply, only later, for the library first copies w into an order that pays off with many. Then it bends and becomes level: now
# arithmetic takes the time, and more examples bring nothing more.
#
# The number that decides is the *arithmetic intensity*: operations for each byte that must be moved.

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
# A float32 has 4 bytes. For n = 1 nearly all bytes are w's, and there are 2 operations for 4 bytes: half an operation for a byte, however
# large the layer is. With n examples it is nearly n / 2, until x and y weigh as much as w.

# %% wrong intensity counts multiplications only
def intensity(n, inputs, outputs):
    return n * inputs * outputs / (4 * (n * inputs + inputs * outputs + n * outputs))

# %% wrong intensity counts numbers for bytes
def intensity(n, inputs, outputs):
    return 2 * n * inputs * outputs / (n * inputs + inputs * outputs + n * outputs)

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
# A convolution is no product of matrices: windows overlap. *im2col* makes it one. It lays out every patch that the filter will see as a
# column of a matrix. The filter becomes a row, and row times matrix gives all places at once. Many filters are many rows, a matrix again.
#
# **Predict.** Padding keeps an image of 64 x 64 at its size, and the filter is 3 x 3. The matrix has how many times as many numbers as
# the image?

# %% prediction-memory
prediction = None

# %% im2col-picture
pictures.im2col_matrix(np.arange(1, 26).reshape(5, 5), kernel=3, at=(1, 1))

# %% [markdown] seen-im2col
# Each pixel keeps its colour. In the image it is there once; in the matrix it is there once for each window that covers it, the middle
# pixel nine times. The frame marks one patch and its column. Going one column to the right is going one step with the window.
#
# That it is the same convolution:

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
# What is gained in speed is paid for in memory. Here is how much larger the matrix is than the image, for filters of k x k and strides s.

# %% measure-memory
image, sides = normal(1, 1, 64, 64), (1, 3, 5, 7)

def larger(k, stride):
    """How many times larger than the image its matrix is."""
    window = kernels.Window((k, k), (stride, stride), padding=(k // 2, k // 2))
    return kernels.im2col(image, window).nbytes / image.nbytes

print(f"3 x 3, stride 1: {larger(3, 1):.2f} times; {predicted(prediction)}")

# %% picture-memory
curves = {f"stride {s}": (sides, [larger(k, s) for k in sides]) for s in (1, 2, 3)}
pictures.scaling(curves, x="filter size k", y="size of the matrix, in images", log=False)

# %% [markdown] seen-memory
# A pixel is under k · k windows if the stride is 1. With stride s only every s-th window is there in each direction, so it is k · k / (s
# · s). What that means for a real layer, the second of VGG-16, with 64 images:

# %% vgg-memory
count, channels, side, k = 64, 64, 224, 3
image_bytes = 4 * count * channels * side ** 2
print(f"images: {image_bytes / 1e9:.2f} GB   matrix: {image_bytes * k * k / 1e9:.2f} GB")

# %% [markdown] pieces
# Nobody makes that matrix as a whole. minidl makes it in pieces that fit into a cache, uses each for a product, and throws it away:
# see `conv2d` in `minidl/kernels/reference.py`.

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
# The matrix need not be made at all. minidl knows, beside im2col, two ways that are compiled (with the extra `fast`):
#
# | way | how | multiplications |
# |---|---|---|
# | a loop | five loops in Python, number by number | all |
# | `im2col` | copies patches, then one product of matrices | all |
# | `direct` | reads patches where they are, and keeps sums in registers | all |
# | `winograd` | transforms tiles of 6 x 6 pixels, and multiplies those | a quarter, for 3 x 3 filters |
#
# Which one runs is decided by the shape; `algorithm=` asks for one of them. First the loop, for one image and one filter:

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
    print("there is only im2col here; pip install 'minidl[fast]' brings the others (Numba)")
truth = by_loop(x[0, :, :10, :10], w[0])
for way in ways:
    y = F.conv2d(x, w, algorithm=way)
    away = abs(y[0, 0, :8, :8] - truth).max() / abs(truth).max()
    print(f"{way:9} {y.shape}, at most {away:.0e} away from the loop's result")

# %% [markdown] predict-ways
# All agree, but for rounding. Winograd's errors are the largest, as a rule: its transforms add and subtract numbers before they are
# multiplied.
#
# **Predict.** How many times faster than the loop is the fastest of them, for the same number of multiplications?

# %% prediction-ways
prediction = None

# %% measure-ways
time = seconds(lambda: by_loop(x[0, :, :10, :10], w[0]), 3)
costs = {"loop": 1e9 * time / (8 * 8 * w[0].size)}
for way in ways:
    time = seconds(lambda way=way: F.conv2d(x, w, algorithm=way), 25)
    costs[way] = 1e9 * time / (8 * 64 * 64 * w.size)
print(f"{costs['loop'] / min(costs.values()):,.0f} times faster; {predicted(prediction)}")
pictures.bars(costs, x="nanoseconds for each multiplication of the loop", log=True)

# %% [markdown] seen-ways
# The scale is logarithmic: each line is ten times the one before. From the loop to im2col it is the library that makes the difference. From
# im2col to direct it is that no patch is copied, and from there to Winograd that fewer multiplications are left. The last gain is less than
# a quarter promises, for the transforms cost too.
#
# To choose for all that is called, and not for one call, there is a `with` block: `kernels.using("reference")` takes the pages to read,
# `"direct"` the compiled ones without Winograd, `"fastest"` is what runs anyway.

# %% using
for which in ("reference", "direct", "fastest"):
    with kernels.using(which):
        print(f"{which:10} {1000 * seconds(lambda: F.conv2d(x, w), 25):6.1f} ms")

# %% [markdown] task-winograd
# **Exercise.** Winograd in the small: a filter of 3 numbers on 4 numbers gives 2 outputs. Written out that takes 6 multiplications. Four
# products are enough (the sums of g are made once for a filter, and used for the whole image). Say how the two outputs follow from them,
# with additions and subtractions only.

# %% exercise winograd
def two_outputs(d, g):
    """d[0] g[0] + d[1] g[1] + d[2] g[2] and d[1] g[0] + d[2] g[1] + d[3] g[2], in an array."""
    m1, m2 = (d[0] - d[2]) * g[0], (d[1] + d[2]) * (g[0] + g[1] + g[2]) / 2
    m3, m4 = (d[2] - d[1]) * (g[0] - g[1] + g[2]) / 2, (d[1] - d[3]) * g[2]
    return ...

# %% solution winograd
def two_outputs(d, g):
    """d[0] g[0] + d[1] g[1] + d[2] g[2] and d[1] g[0] + d[2] g[1] + d[3] g[2], in an array."""
    m1, m2 = (d[0] - d[2]) * g[0], (d[1] + d[2]) * (g[0] + g[1] + g[2]) / 2
    m3, m4 = (d[2] - d[1]) * (g[0] - g[1] + g[2]) / 2, (d[1] - d[3]) * g[2]
    return np.array([m1 + m2 + m3, m2 - m3 - m4])

# %% because winograd
# m2 + m3 = d1 g1 + d2 (g0 + g2), and m2 − m3 = d1 (g0 + g2) + d2 g1. The first lacks d0 g0 and has d2 g0 too much, which is m1; the second
# lacks d3 g2 and has d1 g2 too much, which is −m4. In two directions 4 · 4 products stand for 6 · 6; with tiles of 6, 36 stand for 144.

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
# A GPU has its own memory and its own library: CuPy, whose arrays look like NumPy's. minidl has no switch for it. **The array decides**:
# each function asks its argument which library made it, and calls that one.

# %% array-decides
x = normal(2, 3)
print("made by", backend.of(x).__name__, "- lies on", backend.device_of(x))

def softmax(x):
    xp = backend.of(x)                          # NumPy or CuPy: the one that made x
    e = xp.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)

softmax(x).sum(axis=-1).round(6)

# %% [markdown] to-a-gpu
# To bring an array to a GPU you name the device. What happens on this machine?

# %% fails to-a-gpu-without
y = softmax(backend.asarray(x, "cuda:0"))
print("it ran on", backend.device_of(y))

# %% [markdown] a-far-device
# **Why does this fail?** If it does: there is no CuPy here, or no GPU, and the error says which and what to do. Nothing was computed on
# the CPU instead: you asked for a device, and you are told that you cannot have it.
#
# The rest needs a second device, so here is one that every machine has. Its arrays are NumPy's, but they say that they lie far away, and
# its library notes what is asked of it. With `backend.register` minidl knows it; CuPy is made known by the same call. (It is kinder than
# a GPU, since NumPy can read its arrays. minidl's own tests run on one that is as strict: `tests/strict.py`.)

# %% far-device
class FarArray(np.ndarray):
    """An array that says it lies on the device far:0."""

class FarLibrary:
    """NumPy under another name, which writes down what is asked of it."""
    __name__, asked = "far", []

    def __getattr__(self, name):
        found = getattr(np, name)
        def call(*args, **options):
            self.asked.append(name)
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
# `softmax` was not changed. Neither is a model: `to` moves its weights, and from then on every layer asks the far library. A step
# forward and backward, on both devices:

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
# **Why does this fail?** The model lies far away, and the images do not.

# %% fails mixing-devices
model = lenet_on("far:0")
model(normal(4, 1, 8, 8))

# %% [markdown] why-not-mixed
# minidl could copy the images for you. It refuses, for three reasons. A copy between devices is among the slowest things that a program
# can do, and one that nobody sees is made again at every step. To which of the two devices the result belongs is your decision, not the
# library's. And on a real GPU NumPy cannot read the array at all. So the error is raised where it arises, before anything is computed. It
# names the layer, where each argument lies, and the call that mends it. The mended line:

# %% mended
model(backend.asarray(normal(4, 1, 8, 8), "far:0")).device

# %% [markdown] task-one-hot
# **Exercise.** This function runs on the CPU only. Write it so that it runs where its labels lie, and makes what it needs there.
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
# Arithmetic with what is there stays on its device by itself. What must be asked for is whatever *makes* an array: `eye`, `zeros`,
# `arange`. A dtype such as `np.float32` is only a name, and both libraries take it.

# %% wrong one-hot made by NumPy, wherever the labels lie
def one_hot(labels, classes):
    return np.eye(classes, dtype=np.float32)[labels]

# %% wrong one-hot right, but by way of the CPU
def one_hot(labels, classes):
    near = np.eye(classes, dtype=np.float32)[backend.to_numpy(labels)]
    return backend.asarray(near, backend.device_of(labels))

# %% wrong one-hot brings the result to the CPU
def one_hot(labels, classes):
    return backend.to_numpy(backend.of(labels).eye(classes, dtype=np.float32)[labels])

# %% check one-hot
def outcome(labels, classes):
    far.asked.clear()
    y = one_hot(labels, classes)
    where = "on the far device" if far.asked else "on the CPU"
    if y is ...:
        return y
    return {"its device": backend.device_of(y), "its numbers": y, "where it was made": where}

def expected(labels, classes):
    device, rows = backend.device_of(labels), backend.to_numpy(labels)
    numbers = np.array([[float(k == label) for k in range(classes)] for label in rows])
    where = "on the CPU" if device == "cpu" else "on the far device"
    return {"its device": device, "its numbers": numbers, "where it was made": where}

near = np.array([2, 0, 1, 2])
check(outcome, expected, on=[(near, 3), (backend.asarray(near, "far:0"), 5)],
      hint="Which library made the labels? Let that one make the array too.")

# %% [markdown] end
# ## What you have seen
#
# A batch turns vector times matrix into matrix times matrix: weights are fetched once and used many times, until arithmetic and not memory
# sets the pace. im2col makes a convolution such a product, for k · k / (s · s) times the memory; compiled kernels do without the
# matrix, and Winograd's with fewer multiplications. None of this changes what is computed. Nor does the device: the array decides where
# its numbers are crunched, and two devices are never mixed behind your back.
#
# **Where it stands in the code:** im2col in `minidl/kernels/reference.py`; the compiled ones in `minidl/kernels/cpu/` (`vector.py` first,
# then `direct.py` and `winograd.py`), and `docs/cpu.md` on all of them; devices in `minidl/backend.py`.
#
# **Next:** 6. *Natural gradient and K-FAC*: a step that knows how the valley is shaped.
