# %% [markdown] title
# # 6. Natural gradient and K-FAC
#
# Gradient descent measures a step by how far the weights move. The natural gradient measures it by how far the *predictions* move, which
# is what we care about. K-FAC is a way to afford that.
#
# **After this you can**
# - say what the Fisher matrix measures, and work it out for a coin and for a softmax;
# - say what becomes of gradient descent, and of the natural gradient, when a problem is written down in other coordinates;
# - read the Fisher matrix of a small network as a picture, and say what K-FAC keeps of it and what it leaves out;
# - divide by a Kronecker product without ever making it;
# - say what damping does, and what happens without it.
#
# You need notebook 4 (minibatches, learning rate, momentum), and what the inverse of a matrix is. It takes about 45 minutes.
#
# As before: where you are asked for a prediction, write it in the place of `None` before you run what follows.

# %% setup
import time
import warnings

import numpy as np

import minidl
from minidl import data, models, nn, optim
from minidl import functions as F
from minidl.exercises import check, predicted
from minidl.loop import fit, reconstruction
from minidl.pictures import curves, landscape, matrices, scaling

# %% [markdown] how-long
# ## How long is a step?
#
# The smallest model there is: one weight `w`, and a coin that shows heads with probability sigmoid(w) = 1 / (1 + exp(−w)). A step of `w`
# changes what the model predicts. How much?
#
# That is measured by the **Kullback-Leibler divergence**. Whoever gives something the probability q is surprised by −log q, in *nats*, when
# it is seen. (This is the loss of notebook 4.) The divergence says how much more surprise one has on average by expecting q where p is
# true. It is 0 if q = p.

# %% divergence
def sigmoid(w):
    return 1 / (1 + np.exp(-w))

def divergence(p, q):
    """Of two coins that show heads with probability p and q, in nats."""
    return p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))

# %% [markdown] predict-coin
# **Predict.** Two steps of the same length: `w` goes from 0 to 1, or from 4 to 5. How many times as far, in nats, is the first?

# %% prediction-coin
prediction = None           # for example 3

# %% kl-of-steps
first, second = divergence(sigmoid(0), sigmoid(1)), divergence(sigmoid(4), sigmoid(5))
print(f"from 0 to 1: {first:.4f} nats    from 4 to 5: {second:.4f} nats")
print(f"{first / second:.1f} times as far; {predicted(prediction)}")

# %% [markdown] fisher-is-curvature
# At 4 the coin shows heads nearly always, and at 5 it still does. So the same step of a weight can mean much or little.
#
# For a short step d from where one stands the divergence is a parabola, ½ F d². Its curvature F is called the **Fisher information**. It
# can be had without any divergence:
#
# > F = E[s²], where s is the derivative by w of log(probability of what is seen)
#
# E is the mean over what the *model itself* expects to see, here heads with probability p and tails with probability 1 − p.
# `minidl.fisher` works it out for any model. Ours is an affine layer with one weight, whose input is 1; the name of a loss says what its
# output stands for, here a coin.

# %% coin-in-minidl
one = np.ones((1, 1))

def coin(w):
    layer = nn.Affine(1, 1, bias=False, dtype="float64")
    layer.w.data[...] = w
    return layer

def information(w):
    """The Fisher information of the coin, a number."""
    return minidl.fisher(coin(w), one, "binary_cross_entropy_with_logits").item()

for w in (0, 2, 4):
    print(f"w = {w}: F = {information(w):.4f}")

# %% coin-picture
d = np.linspace(-2, 2, 81)
lines = {}
for w in (0, 4):
    lines[f"from w = {w}"] = d, divergence(sigmoid(w), sigmoid(w + d))
    lines[f"½ F d² at w = {w}"] = d, information(w) * d ** 2 / 2
curves(lines, x="step d", y="divergence", title="How far a step moves the coin, in nats")

# %% [markdown] coin-picture-words
# The same steps lead far from w = 0, and hardly anywhere from w = 4. Near d = 0 each curve lies on its parabola: the Fisher information is
# the curvature of the divergence, at the place where one stands. Farther out the parabola is only a guess. We come back to that under the
# name of *damping*.

# %% [markdown] exercise-coin-words
# **Exercise.** Work out the Fisher information of the coin. If heads is seen, s, the derivative of log p by w, is 1 − p. If tails is seen,
# s is −p. F is the mean of s² over what the coin shows.

# %% exercise coin
def fisher_of_coin(w):
    return ...

# %% solution coin
def fisher_of_coin(w):
    p = sigmoid(w)
    return p * (1 - p)

# %% because coin
# p (1 − p)² + (1 − p) p² = p (1 − p): the variance of the coin. It is largest, 1/4, at w = 0, and next to nothing where the outcome is
# nearly certain.

# %% wrong coin is in the coordinate p
def fisher_of_coin(w):
    p = sigmoid(w)
    return 1 / (p * (1 - p))

# %% wrong coin takes only heads
def fisher_of_coin(w):
    p = sigmoid(w)
    return p * (1 - p) ** 2

# %% wrong coin is the mean of s and not of its square
def fisher_of_coin(w):
    p = sigmoid(w)
    return p * (1 - p) + (1 - p) * -p

# %% wrong coin counts heads and tails alike
def fisher_of_coin(w):
    p = sigmoid(w)
    return ((1 - p) ** 2 + p ** 2) / 2

# %% wrong coin is the mean of s without its sign
def fisher_of_coin(w):
    p = sigmoid(w)
    return p * (1 - p) + (1 - p) * p

# %% check coin
check(fisher_of_coin, information, on=[0.0, 1.0, -2.0, 4.0], close=1e-4,
      hint="Square both, (1 - p) and -p, and take the mean: heads is seen with "
      "probability p, and tails with probability 1 - p.")

# %% [markdown] exercise-softmax-words
# With several weights s is a vector with an entry for each, and F is a matrix, E[s sᵀ]. Its entry (i, j), the mean of sᵢ sⱼ, says how a step
# of weight i and a step of weight j change the prediction together. For a step d in all of them the divergence is about ½ dᵀ F d.
#
# **Exercise.** Work out the Fisher matrix of a softmax, by its scores z. It gives class k the probability p[k]. If class k is seen, s is
# e − p, where e has a 1 at place k and is 0 elsewhere.

# %% exercise softmax
def fisher_of_softmax(z):
    """z: scores (K,). Gives a matrix (K, K)."""
    return ...

# %% solution softmax
def fisher_of_softmax(z):
    """z: scores (K,). Gives a matrix (K, K)."""
    p = np.exp(z) / np.exp(z).sum()
    return np.diag(p) - np.outer(p, p)

# %% because softmax
# Exactly one class is seen, so E[e eᵀ] has p on its diagonal and zeros beside it. E[e] is p. Multiplied out,
# E[(e − p)(e − p)ᵀ] = diag(p) − p pᵀ. For two classes it holds the coin's p (1 − p) four times, twice with a minus.

# %% wrong softmax treats every class as a coin of its own
def fisher_of_softmax(z):
    p = np.exp(z) / np.exp(z).sum()
    return np.diag(p * (1 - p))

# %% wrong softmax forgets the mean
def fisher_of_softmax(z):
    p = np.exp(z) / np.exp(z).sum()
    return np.diag(p)

# %% wrong softmax counts all classes alike
def fisher_of_softmax(z):
    p, n = np.exp(z) / np.exp(z).sum(), len(z)
    return sum(np.outer(e - p, e - p) for e in np.eye(n)) / n

# %% check softmax
def measured(z):
    layer = nn.Affine(1, len(z), dtype="float64")
    layer.b.data[...] = z
    return minidl.fisher(layer, np.zeros((1, 1)), parameters="b")   # input 0: the scores are b

check(fisher_of_softmax, measured, on=[np.array([0.0, 0.0]), np.array([1.0, 2.0, 0.5])],
      close=1e-4, hint="Class k is seen with probability p[k]: that is the weight of its "
      "(e - p)(e - p)^T in the mean. What stands beside the diagonal is below 0.")

# %% [markdown] coordinates
# ## One problem, two thermometers
#
# On twelve days we note the temperature and how much ice cream was sold, and look for the line `sold = w x + b`. Two people do so. One reads
# x from a thermometer whose zero is at 20 degrees Celsius; the other's has its zero at freezing. Both count in tens of degrees. It is the same
# problem: each line that one of them can find the other can find too, with another b.

# %% ice-cream
celsius = np.linspace(5, 35, 12).reshape(-1, 1)
sold = 1.0 + 0.8 * celsius / 10 + 0.2 * np.random.default_rng(0).standard_normal((12, 1))
thermometers = {"zero at 20 degrees": (celsius - 20) / 10, "zero at freezing": celsius / 10}

# %% descend
def descend(x, optimizer_of, steps=30):
    """Learn a line from w = b = 0. Gives w and b after each step, and what is predicted."""
    line = nn.Affine(1, 1, dtype="float64")
    line.w.data[...] = line.b.data[...] = 0
    optimizer, path, lines = optimizer_of(line), [(0.0, 0.0)], []
    for _ in range(steps):
        optimizer.zero_grad()
        F.mse(line(x), sold).backward()
        optimizer.step()
        path.append((line.w.item(), line.b.item()))
        lines.append(line(x).data)
    return np.array(path), np.array(lines)

# %% [markdown] natural-gradient
# Gradient descent goes along the gradient of the loss. The **natural gradient** u is the gradient divided by the Fisher matrix:
#
# > u = F⁻¹ · gradient
#
# Directions in which the predictions change fast get short steps, directions in which they hardly change get long ones. (A line predicts
# numbers and no probabilities. With the squared error as loss, ½ dᵀ F d is half the mean square by which a step d moves these numbers.)
#
# `optim.KFAC` goes along the natural gradient. For a single affine layer it has the whole Fisher matrix. Damping and a bound on the length of
# steps come later, and are switched off here.
#
# **Predict.** All begin with the same line, w = b = 0, and have the same learning rate. Which method finds the same lines, step by step,
# whichever thermometer it reads: SGD, the natural gradient, both, or neither?

# %% prediction-thermometers
prediction = None           # for example "both"

# %% four-descents
def natural(line, damping=0.0):
    return optim.KFAC(line, lr=0.15, momentum=0, damping=damping, kl_clip=None, fisher="exact",
                      inversion="eigen")

methods = {"SGD": lambda line: optim.SGD(line, lr=0.15), "natural gradient": natural}
found = {(name, zero): descend(x, method)
         for zero, x in thermometers.items() for name, method in methods.items()}

# %% left-valley
def valley(zero, paths, x=(-3, 5), y=(-0.6, 3.4)):
    def loss(w, b):
        lines = w[..., None] * thermometers[zero].ravel() + b[..., None]
        return ((lines - sold.ravel()) ** 2).mean(axis=-1)
    return landscape(loss, paths, x=x, y=y, names=("w", "b"), title=zero)

valley("zero at 20 degrees", {name: found[name, "zero at 20 degrees"][0] for name in methods})

# %% right-valley
valley("zero at freezing", {name: found[name, "zero at freezing"][0] for name in methods})

# %% [markdown] valley-words
# With the zero at 20 degrees the valley is nearly round: gradient and natural gradient point almost the same way. With the zero at
# freezing it is long and narrow. SGD jumps from side to side and then creeps along the bottom, and with a learning rate only a
# little larger it would fly out. The natural gradient walks straight to the lowest point, in both.
#
# The two valleys have different axes, so their paths cannot be compared. The *lines* that were found after each step can:

# %% same-lines
for name in methods:
    one, other = (found[name, zero][1] for zero in thermometers)
    print(f"{name}: the lines of the two thermometers are up to "
          f"{np.abs(one - other).max():.2g} apart")
print(predicted(prediction))

# %% loss-over-steps
curves({f"{name}, {zero}": ((lines - sold) ** 2).mean(axis=(1, 2))
        for (name, zero), (_, lines) in found.items()}, width=6.5, log=True)

# %% [markdown] invariance-words
# With the natural gradient both thermometers lead to the same lines, but for the last digits: their two curves cover each other. SGD makes
# two different journeys. *Steepest* depends on the coordinates, because it is asked per unit of weight. Asked per unit of change in the
# predictions, it does not. And in a deep network every layer reads from a thermometer that nobody has set.
#
# That SGD is faster at first is a matter of the learning rate, which was chosen to be nearly as large as SGD can bear. The natural gradient
# can bear more. Try `lr=1` in `natural`: on this loss, a parabola, it arrives with its first step.

# %% [markdown] whole
# ## The Fisher matrix of a network, in full
#
# A network small enough to look at: 200 digits made coarser, 4 x 4 pixels, four hidden units, ten classes. Its Fisher matrix is the mean of
# those of the 200 images.

# %% small-network
train, test = data.load("digits")
x, y = train[:200]
x = F.avg_pool2d(minidl.Tensor(x), 2).numpy().reshape(200, 16).astype("float64")
net = nn.Sequential(nn.Affine(16, 4, generator=0, dtype="float64"), nn.Tanh(),
                    nn.Affine(4, 10, generator=1, dtype="float64"))
print({path: p.shape for path, p in net.named_parameters()})

# %% whole-matrix
whole = minidl.fisher(net, x)
sizes = {"layer 1": 16 * 4 + 4, "layer 2": 4 * 10 + 10}
matrices({"the Fisher matrix": whole}, blocks=sizes, root=True, bar="nats", height=3.8)

# %% [markdown] whole-words
# A row and a column for each of the 118 weights, biases included. Orange is above 0, blue is below, white is 0. The black lines divide the
# two layers. There is order in it: the same small pattern comes again and again, stronger or paler. It looks like a multiplication table
# whose entries are small matrices, and that is nearly what it is.

# %% [markdown] lenet-words
# If it is so easily done for 118 weights, why not for LeNet?

# %% fails too-large
lenet = models.create("lenet", input_shape=(1, 8, 8), classes=10)
minidl.fisher(lenet, train[:200][0])

# %% [markdown] lenet-why
# **Why does this fail?** The matrix has the *square* of the number of weights. Even this LeNet, a small one for small images, would need
# gigabytes for it, and the time to divide by it grows with the third power. Something has to be left out.

# %% [markdown] kronecker
# ## What K-FAC keeps
#
# Two things are left out. The first is what stands between different layers: a block for each layer remains.
#
# The second is something within a block. Take one example. The gradient of the weight that leads from input i to output o is a product,
# a[i] · g[o]: of the layer's input a (with a 1 at its end, for the bias) and of the gradient g at the layer's output. So a number of the
# block, for two weights, is the mean of four such factors, E[a[i] a[j] · g[o] g[p]]. K-FAC multiplies two means instead,
# E[a[i] a[j]] · E[g[o] g[p]]. These stand in two small matrices:
#
# > A = E[a aᵀ], of the inputs, and G = E[g gᵀ], of the gradients at the output
#
# What is made of them is the **Kronecker product** A ⊗ G, in NumPy `np.kron(A, G)`: each number of A is replaced by the whole of G, times that
# number. A small example:

# %% kronecker-in-the-small
small_A, small_G = np.array([[4, 1], [1, 2]]), np.array([[3, -1], [-1, 1]])
matrices({"A": small_A, "G": small_G, "kron(A, G)": np.kron(small_A, small_G)}, height=2)

# %% [markdown] predict-kronecker
# **Predict.** How far is the Kronecker product from the block of layer 1, in percent of the block? (0: it is the same. 100: zeros would do as
# well.)

# %% prediction-kronecker
prediction = None           # for example 50

# %% two-factors
a = np.concatenate([x, np.ones((200, 1))], axis=1)      # the inputs, and a 1 for the bias
A = a.T @ a / 200
G = minidl.fisher(net, x, parameters="0.b")             # of the biases, whose gradient is g
matrices({"A, of the inputs": A, "G, of the gradients": G}, shared=False)

# %% [markdown] factors-words
# A has a row for each of the 16 pixels, and a last one for the bias; pixels that are dark in most images leave it pale. G has a row for
# each hidden unit.

# %% exact-beside-kronecker
def apart(matrix, truth):
    return np.linalg.norm(matrix - truth) / np.linalg.norm(truth)

block, product = whole[:68, :68], np.kron(A, G)
print(f"apart by {apart(product, block):.1%} of the block; {predicted(prediction)}")
matrices({"the block of layer 1": block, "kron(A, G)": product,
          "their difference": product - block}, root=True, bar="nats")

# %% [markdown] optimizer-words
# Now the whole network. `optim.KFAC` keeps A and G of each layer, and shows on demand the block that they stand for.

# %% kfac-blocks
optimizer = optim.KFAC(net, lr=0.1, fisher="exact")
F.softmax_cross_entropy(net(x), y).backward()
optimizer.prepare()                         # take in what the pass has shown, without a step
first, second = (optimizer.blocks[name].dense() for name in ("0.w", "2.w"))
print("the same as by hand:", np.allclose(first, product))

# %% whole-beside-kfac
blocks, kfac = np.zeros_like(whole), np.zeros_like(whole)
blocks[:68, :68], blocks[68:, 68:] = whole[:68, :68], whole[68:, 68:]
kfac[:68, :68], kfac[68:, 68:] = first, second
print(f"left out between the layers: {apart(blocks, whole):.0%} of the whole")
print(f"wrong within the blocks: {np.linalg.norm(kfac - blocks) / np.linalg.norm(whole):.0%}")
matrices({"the Fisher matrix": whole, "its blocks": blocks, "K-FAC": kfac,
          "K-FAC - blocks": kfac - blocks}, blocks=sizes, root=True, bar="nats")

# %% [markdown] kfac-words
# From left to right: the truth, what is left when layers are looked at one by one, and what K-FAC makes of it. The last picture is what
# the Kronecker products get wrong: much less than what was left out between the layers. It is not white where the inputs of an example have
# something to do with its gradients, for there the product of the means is not the mean of the products.

# %% [markdown] exercise-memory-words
# **Exercise.** An affine layer has m inputs, n outputs, and biases. How many numbers has its block of the Fisher matrix, and how many have A
# and G together?

# %% exercise memory
def numbers(m, n):
    return ..., ...             # of the block, of A and G

# %% solution memory
def numbers(m, n):
    return ((m + 1) * n) ** 2, (m + 1) ** 2 + n ** 2

# %% because memory
# There are (m + 1) n weights, and the block has the square of that. A has a row for each input and one for the bias, G one for each
# output.

# %% wrong memory forgets the biases
def numbers(m, n):
    return (m * n) ** 2, m ** 2 + n ** 2

# %% wrong memory multiplies what is only added
def numbers(m, n):
    return ((m + 1) * n) ** 2, (m + 1) ** 2 * n ** 2

# %% wrong memory has one row for each weight and no columns
def numbers(m, n):
    return (m + 1) * n, (m + 1) + n

# %% wrong memory has a bias on both sides
def numbers(m, n):
    return ((m + 1) * (n + 1)) ** 2, (m + 1) ** 2 + (n + 1) ** 2

# %% check memory
def kept(m, n):
    layer = nn.Affine(m, n)
    optimizer = optim.KFAC(layer, fisher="exact")
    F.softmax_cross_entropy(layer(np.ones((1, m), "float32")), np.zeros(1, int)).backward()
    optimizer.prepare()
    block = optimizer.blocks["w"]
    return block.dense().size, sum(block.averages[name].value.size for name in "AG")

check(numbers, kept, on=[(2, 3), (16, 4), (4, 10)],
      hint="The biases are the weights of one more input, so how many weights are there? "
      "All three matrices are square. A and G are kept one beside the other.")

# %% memory-picture
widths = np.array([16, 64, 256, 1024, 4096])
block_bytes = 4 * ((widths + 1.0) * widths) ** 2
factor_bytes = 4 * ((widths + 1.0) ** 2 + widths ** 2)
scaling({"the block": (widths, block_bytes / 1e9), "A and G": (widths, factor_bytes / 1e9)},
        x="inputs and outputs of a layer", y="gigabytes", title="What is kept, in float32")

# %% [markdown] memory-words
# Each line of the grid upward is a hundred times as much. For a layer with 1,024 inputs and outputs the block needs 4,400 gigabytes, and A and
# G together 0.008.

# %% [markdown] two-inverses
# ## Dividing by a product that is never made
#
# A and G can be kept. But u = F⁻¹ · gradient asks for the inverse of the block. Two properties of the Kronecker product help. Its inverse is
# made of the two inverses:
#
# > (A ⊗ G)⁻¹ = A⁻¹ ⊗ G⁻¹
#
# And it can be multiplied with a matrix M that has been flattened row by row, without being made:
#
# > (A ⊗ G) · flat(M) = flat(A M Gᵀ)
#
# Here M is the gradient of a layer as a matrix, (inputs + 1, outputs).

# %% [markdown] exercise-divide-words
# **Exercise.** Divide M by the Kronecker product of A and G, and give what comes out as a matrix, without making the product. A is (m, m), G
# is (n, n), M is (m, n); A and G are symmetric.

# %% exercise divide
def divided(A, G, M):
    return ...

# %% solution divide
def divided(A, G, M):
    return np.linalg.solve(A, M) @ np.linalg.inv(G)

# %% because divide
# Put the two together, and flat(A⁻¹ M G⁻¹) comes out. A mixes the rows of M and G its columns, and each is undone on its own side. So two
# small inverses do the work of one that has as many rows as M has numbers.

# %% wrong divide swaps the factors
def divided(A, G, M):
    return np.linalg.inv(G) @ M @ np.linalg.inv(A)

# %% wrong divide inverts one factor only
def divided(A, G, M):
    return np.linalg.inv(A) @ M @ G

# %% wrong divide works number by number
def divided(A, G, M):
    return M / np.outer(np.diag(A), np.diag(G))

# %% wrong divide multiplies
def divided(A, G, M):
    return A @ M @ G

# %% wrong divide turns the result
def divided(A, G, M):
    return (np.linalg.inv(A) @ M @ np.linalg.inv(G)).T

# %% check divide
def random_problem(m, n, seed):
    draw = np.random.default_rng(seed)
    a, g, M = (draw.standard_normal(shape) for shape in ((m, m), (n, n), (m, n)))
    return a @ a.T + np.eye(m), g @ g.T + np.eye(n), M

def in_full(A, G, M):
    return np.linalg.solve(np.kron(A, G), M.ravel()).reshape(M.shape)

check(divided, in_full, on=[random_problem(3, 2, 0), random_problem(4, 4, 1)],
      close=1e-4, hint="A stands on the left of M and G on its right: look at the shapes. "
      "Put the inverses in the place of both.")

# %% [markdown] faster-words
# How much work is spared? For a layer with 60 rows in A and 30 in G, once with the whole block and once with the two inverses:

# %% how-much-faster
def two_inverses(A, G, M):
    return np.linalg.inv(A), np.linalg.inv(G)

problem = random_problem(60, 30, 2)
for way in in_full, two_inverses:
    started = time.perf_counter()
    way(*problem)
    print(f"{way.__name__:12} {1e3 * (time.perf_counter() - started):7.2f} ms")

# %% [markdown] why-damping
# ## Damping
#
# The digits as they are have 64 pixels. Here is A for a layer that reads them, and its inverse.

# %% fails singular
images = train[:200][0].reshape(200, 64)
A = images.T @ images / 200
np.linalg.inv(A)

# %% [markdown] singular-why
# **Why does this fail?** This time it is NumPy that complains. Some pixels are black in every image. Weights that read them change nothing,
# so the Fisher matrix has zeros there, and by zero one cannot divide. Nearly black pixels are worse, since nothing complains: their weights
# get enormous steps, in a direction of which next to nothing is known. So a number λ is added to the diagonal first, the **damping**:
#
# > u = (F + λ I)⁻¹ · gradient, where I is the identity, with ones on its diagonal and zeros beside it
#
# If you ask `optim.KFAC` to go without, it does not give up. It adds the little that it needs, warns, and keeps the words in
# `optimizer.reports`:

# %% undamped-kfac
layer = nn.Affine(64, 10, generator=0)
undamped = optim.KFAC(layer, damping=0)
F.softmax_cross_entropy(layer(images), train[:200][1]).backward()
with warnings.catch_warnings():
    warnings.simplefilter("ignore")                     # the same words would come as warnings
    undamped.step()
print(*undamped.reports, sep="\n")

# %% [markdown] exercise-damping-words
# **Exercise.** Write the damped step for any Fisher matrix, gradient and damping.

# %% exercise damping
def damped(fisher, gradient, damping):
    return ...

# %% solution damping
def damped(fisher, gradient, damping):
    return np.linalg.solve(fisher + damping * np.eye(len(gradient)), gradient)

# %% because damping
# The identity has ones on its diagonal only. Each eigenvalue of F (its curvature along one of its own directions) grows by the damping; those
# much larger than it hardly notice.

# %% wrong damping adds to every entry
def damped(fisher, gradient, damping):
    return np.linalg.solve(fisher + damping, gradient)

# %% wrong damping is added after the inversion
def damped(fisher, gradient, damping):
    return (np.linalg.inv(fisher) + damping * np.eye(len(gradient))) @ gradient

# %% wrong damping shortens the step only
def damped(fisher, gradient, damping):
    return np.linalg.solve(fisher, gradient) / (1 + damping)

# %% wrong damping divides number by number
def damped(fisher, gradient, damping):
    return gradient / (np.diag(fisher) + damping)

# %% wrong damping makes the diagonal larger by a factor
def damped(fisher, gradient, damping):
    return np.linalg.solve(fisher * (1 + damping * np.eye(len(gradient))), gradient)

# %% check damping
def plainly(fisher, gradient, damping):
    values, vectors = np.linalg.eigh(fisher)
    return sum(v * (v @ gradient) / (value + damping) for value, v in zip(values, vectors.T))

check(damped, plainly, close=1e-4,
      on=[(np.diag([4.0, 1.0]), np.array([1.0, 1.0]), 0.5),
          (np.array([[2.0, 1.0], [1.0, 3.0]]), np.array([1.0, -1.0]), 2.0),
          (np.diag([4.0, 0.0]), np.array([1.0, 1.0]), 0.1)],
      hint="Only the diagonal grows, and before the inversion. "
      "`fisher + number` adds to every entry.")

# %% [markdown] effect-question
# What does damping do to the direction of a step? At w = b = 0, with the thermometer whose zero is at freezing:

# %% at-the-start
freezing = thermometers["zero at freezing"]
line = nn.Affine(1, 1, dtype="float64")
line.w.data[...] = line.b.data[...] = 0
F.mse(line(freezing), sold).backward()
gradient = np.array([line.w.grad.item(), line.b.grad.item()])
fisher = minidl.fisher(line, freezing, "mse")

# %% effect-of-damping
for damping in (0, 0.01, 0.1, 1, 10, 100):
    step = np.linalg.solve(fisher + damping * np.eye(2), gradient)
    length = np.linalg.norm(step)
    cosine = step @ gradient / length / np.linalg.norm(gradient)
    angle = np.degrees(np.arccos(min(cosine, 1)))
    print(f"damping {damping:6g}: {angle:5.1f} degrees off the gradient, {length:.4f} long")

# %% damped-paths
def damped_path(damping):
    return descend(freezing, lambda line: natural(line, damping))[0]

paths = {f"damping {each}": damped_path(each) for each in (0, 1, 10)}
valley("zero at freezing", paths, x=(-0.6, 1.8), y=(-0.1, 1.3))         # from nearer

# %% [markdown] effect-words
# Without damping it is the natural gradient. With much damping it is a short piece of the gradient itself: that path goes straight down
# the side of the valley, and has not arrived after 30 steps. In between, the step is hardly shortened along the steep direction, and
# held back along the flat one, of which F knows little: the path comes to the bottom first, and then turns along it. Damping says how
# far you trust the parabola from the beginning of this notebook.

# %% [markdown] race
# ## Over epochs, over seconds
#
# K-FAC, SGD with momentum, and Adam (a variant of SGD that fits the length of its steps to each weight), on a problem that is hard for
# gradient descent: an autoencoder. It squeezes a digit through 16 numbers and draws it again from these. It has eight layers, and its valleys
# are long and narrow.
#
# The settings are the best of a few that were tried for each method. `kl_clip` bounds how far a single step may move the predictions. K-FAC
# renews its factors and inverses only every ten steps once it is warm, since they change slowly.
#
# **Predict.** How many epochs does K-FAC need to come as far as SGD in 20?

# %% prediction-race
prediction = None           # for example 10

# %% contestants
contestants = {"K-FAC": lambda model: optim.KFAC(model, lr=0.1, damping=0.1, kl_clip=0.1),
               "SGD": lambda model: optim.SGD(model, lr=2.0, momentum=0.9),
               "Adam": lambda model: optim.Adam(model, lr=0.005)}

# %% learn
def learn(optimizer_of, epochs=20):
    """The loss after each epoch, in nats an image, and the seconds until then."""
    model = models.create("autoencoder", input_shape=(1, 8, 8), widths=(256, 128, 64, 16),
                          generator=0)
    loader = data.Loader(train, batch_size=250)
    with minidl.threads(1):                 # so that other programs on this machine matter less
        history = fit(model, loader, None, optimizer_of(model), epochs,
                      objective=reconstruction())
    losses, seconds = ([each[key] for each in history] for key in ("train_loss", "seconds"))
    return 64 * np.array(losses), np.cumsum(seconds)

# %% the-race
for method in contestants.values():
    learn(method, epochs=1)                 # what is loaded at the first use shall not count
races = {name: learn(method) for name, method in contestants.items()}

# %% over-epochs
title = "Training loss, nats an image"
curves({name: losses for name, (losses, _) in races.items()}, x="epoch", title=title)

# %% how-many-epochs
goal = races["SGD"][0][-1]
reached = 1 + np.argmax(races["K-FAC"][0] <= goal)
print(f"K-FAC is as far after {reached} epochs as SGD after 20; {predicted(prediction)}")

# %% over-seconds
for name, (losses, seconds) in races.items():
    print(f"{name:6} {seconds[-1]:.2f} s, of which {seconds[0]:.2f} s were the first epoch; "
          f"in the end {losses[-1]:.1f} nats an image")
curves({name: (seconds, losses) for name, (losses, seconds) in races.items()},
       x="seconds", title=title)

# %% [markdown] race-words
# Over epochs K-FAC is far ahead. Over seconds its curve is drawn out to the right, since each of its steps costs more, most of all at the
# beginning, when everything is renewed at every step. How much of the lead is left depends on your machine, on what else it does, and on the
# network. Where minibatches are large and layers not too wide, the dearer step is soon paid for. `docs/kfac.md` has such cases, measured with
# more care, and one in which nothing is gained.
#
# And how much damping? Eight epochs with too little, with what was chosen above, and with too much:

# %% damping-race
def losses_with(damping):
    def kfac(model):
        return optim.KFAC(model, lr=0.1, damping=damping, kl_clip=0.1)
    return learn(kfac, epochs=8)[0]

curves({"damping 0.003": losses_with(0.003), "damping 0.1": races["K-FAC"][0][:8],
        "damping 30": losses_with(30)}, x="epoch", title=title)

# %% [markdown] damping-race-words
# With too little, a step goes farther than the parabola can be trusted: after a good beginning there is no more progress. With too much, it is
# gradient descent with short steps. Damping is the number to try first.

# %% [markdown] seen
# ## What you have seen
#
# The Fisher matrix measures how far a step of the weights moves the predictions. Divided by it, the gradient no longer depends on how
# the problem was written down. The matrix is far too large for a network, but the blocks of its layers come close to Kronecker products of
# two small matrices, which can be kept, and inverted, one by one. Damping holds back the directions of which little is known. What you get is
# fewer steps, each of them dearer.
#
# **Where it stands in the code.** `minidl/curvature.py`: the Fisher matrix in full, and its product with a vector where it does not fit into
# memory. `minidl/optim/kfac/kronecker.py`: A and G; `division.py`: three ways to divide by them; `kfac.py`: a step from beginning to end.
# `docs/kfac.md`: all that K-FAC can be told, and where to begin.
#
# **Next.** [7. Many workers](7_many_workers.ipynb): one machine has done all the work so far; now several share it out.
