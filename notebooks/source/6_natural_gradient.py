# %% [markdown] title
# # 6. Natural gradient and K-FAC
#
# Gradient descent measures a step by how far the weights move. The natural gradient measures it by how far the *predictions* move, which
# is what we care about. K-FAC is a way to afford that.
#
# **After this you can**
# - say what the Fisher matrix measures, and work it out for a coin and for a softmax;
# - say why gradient descent depends on how a problem is written down, and the natural gradient does not;
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
# The smallest model there is: one weight `w`, and a coin that shows heads with probability sigmoid(w). Two steps of the same length: `w`
# goes from 0 to 1, or from 4 to 5.
#
# **Predict.** Which of them changes the coin more, and how many times as much?

# %% prediction-coin
prediction = None           # for example 3: the step from 0 to 1 changes it 3 times as much

# %% [markdown] kl
# How much a prediction has changed is measured by the Kullback-Leibler divergence: how many nats of surprise it costs, on average, to
# expect q where p is true. It is 0 if nothing has changed.

# %% kl-of-steps
def sigmoid(w):
    return 1 / (1 + np.exp(-w))

def divergence(p, q):
    """Of two coins that show heads with probability p and q, in nats."""
    return p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))

low, high = divergence(sigmoid(0), sigmoid(1)), divergence(sigmoid(4), sigmoid(5))
print(f"from 0 to 1: {low:.4f} nats    from 4 to 5: {high:.4f} nats")
print(f"{low / high:.1f} times as much; {predicted(prediction)}")

# %% [markdown] fisher-is-curvature
# A coin that nearly always shows heads hardly changes when `w` does. So the same step of a weight can mean much or little.
#
# For short steps d the divergence is a parabola, and its curvature is called the **Fisher information** F:
#
# $$\text{divergence} \approx \tfrac{1}{2} F d^2, \qquad F = E[s^2], \quad s = \frac{\partial}{\partial w} \log p(\text{what is seen})$$
#
# The expectation is over what the *model itself* expects to see: heads with probability sigmoid(w). `minidl.fisher` works it out for any
# model. Here the model is an affine layer with one weight, whose input is 1:

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
curves({"divergence": (d, divergence(sigmoid(0), sigmoid(d))),
        "F d^2 / 2 at w = 0": (d, information(0) * d ** 2 / 2)},
       x="step d", y="nats", title="What a step does to the coin")

# %% [markdown] coin-picture-words
# Near 0 the two curves lie on each other. That is all that the Fisher information is: the curvature of the divergence, at no distance at
# all. Further out the parabola is only a guess, a fact to which we come back under the name of *damping*.

# %% [markdown] exercise-coin-words
# ### Exercise 1: the Fisher information of a coin
#
# Work it out on paper. There are two things to be seen, heads with probability p and tails with probability 1 - p. Each has its
# s, the derivative of its log-probability by w (p = sigmoid(w), and dp/dw = p(1 - p)). F is the mean of the two squares.

# %% exercise coin
def fisher_of_coin(w):
    return ...

# %% solution coin
def fisher_of_coin(w):
    p = sigmoid(w)
    return p * (1 - p)

# %% because coin
# For heads s = 1 - p, for tails s = -p. The mean of the squares is p (1 - p)^2 + (1 - p) p^2 = p (1 - p): the variance of the coin.

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

# %% check coin
check(fisher_of_coin, information, on=[0.0, 1.0, -2.0, 4.0],
      hint="Heads: d log p / dw = 1 - p. Tails: d log(1 - p) / dw = -p. "
      "Square both, and take the mean with the weights p and 1 - p.")

# %% [markdown] exercise-softmax-words
# ### Exercise 2: the Fisher matrix of a softmax
#
# With several weights F is a matrix, E[s s^T]: its entry (i, j) says how a step along weight i and one along weight j change the
# prediction together. Of a softmax with scores z, class k has probability p_k, and if it is seen then s = (1 at place k) - p.

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
# E[e e^T] is diag(p), since exactly one class is seen, and E[e] = p, so that E[(e - p)(e - p)^T] = diag(p) - p p^T. For two
# classes it holds the coin's p (1 - p) four times, twice with a minus.

# %% wrong softmax treats every class as a coin of its own
def fisher_of_softmax(z):
    p = np.exp(z) / np.exp(z).sum()
    return np.diag(p * (1 - p))

# %% wrong softmax forgets the mean
def fisher_of_softmax(z):
    p = np.exp(z) / np.exp(z).sum()
    return np.diag(p)

# %% check softmax
def measured(z):
    layer = nn.Affine(1, len(z), dtype="float64")
    layer.b.data[...] = z
    return minidl.fisher(layer, np.zeros((1, 1)), parameters="b")   # input 0: the scores are b

check(fisher_of_softmax, measured, on=[np.array([0.0, 0.0]), np.array([1.0, 2.0, 0.5])],
      hint="If one class becomes more probable, the others become less so: "
      "what stands beside the diagonal is below 0.")

# %% [markdown] coordinates
# ## One problem, two thermometers
#
# On twelve days we note the temperature and how much ice cream was sold. A line is to say the second from the first: `sold = w x + b`.
# One of us reads x from a thermometer with its zero at 20 degrees Celsius, the other from one with its zero at freezing; both count in tens
# of degrees. It is the same problem, and every line that one of them can find the other can find too.

# %% ice-cream
celsius = np.linspace(5, 35, 12).reshape(-1, 1)
sold = 1.0 + 0.8 * celsius / 10 + 0.2 * np.random.default_rng(0).standard_normal((12, 1))
thermometers = {"zero at 20 degrees": (celsius - 20) / 10, "zero at freezing": celsius / 10}

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
# Gradient descent goes along the gradient g of the loss. The **natural gradient** is g divided by the Fisher matrix:
#
# $$u = F^{-1} g$$
#
# Directions in which the predictions change fast get short steps, directions in which they hardly change get long ones. That is what
# `optim.KFAC` does. For a single affine layer it has the Fisher matrix exactly; damping and the bound on the length of steps come later,
# and are switched off here.
#
# **Predict.** Both methods go down from the same place with the same learning rate. Which of them finds the same lines, step by step,
# whatever thermometer it reads: SGD, the natural gradient, both, or neither?

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
def valley(zero, paths):
    def loss(w, b):
        lines = w[..., None] * thermometers[zero].ravel() + b[..., None]
        return ((lines - sold.ravel()) ** 2).mean(axis=-1)
    return landscape(loss, paths, x=(-3, 5), y=(-0.6, 3.4), names=("w", "b"), title=zero)

valley("zero at 20 degrees", {name: found[name, "zero at 20 degrees"][0] for name in methods})

# %% right-valley
valley("zero at freezing", {name: found[name, "zero at freezing"][0] for name in methods})

# %% [markdown] valley-words
# Where the zero lies at 20 degrees the valley is nearly round: gradient and natural gradient point almost the same way. With the zero at
# freezing the valley is long and narrow. SGD jumps from side to side and then creeps along the bottom, and with a learning rate only a
# little larger it would fly out. The natural gradient walks straight to the lowest point, in both.
#
# A picture of weights may deceive. What matters is the *line* that each of them has found after each step:

# %% same-lines
for name in methods:
    one, other = (found[name, zero][1] for zero in thermometers)
    print(f"{name}: what the two predict differs by up to {np.abs(one - other).max():.2g}")
print(predicted(prediction))

# %% loss-over-steps
curves({f"{name}, {zero}": ((lines - sold) ** 2).mean(axis=(1, 2))
        for (name, zero), (_, lines) in found.items()}, width=6.5, log=True)

# %% [markdown] invariance-words
# The two descents of the natural gradient are one and the same, but for the last digits: their curves cover each other. SGD makes
# two different journeys. *Steepest* depends on the coordinates, because it is asked per unit of weight. Asked per unit of change in the
# predictions, it does not. In a deep network every layer reads from a thermometer that nobody has set.

# %% [markdown] whole
# ## The Fisher matrix of a network, in full
#
# A network small enough to look at: digits made coarser, 4 x 4 pixels, four hidden units, ten classes.

# %% small-network
train, test = data.load("digits")
x, y = train[:200]
x = F.avg_pool2d(minidl.Tensor(x), 2).numpy().reshape(200, 16).astype("float64")
net = nn.Sequential(nn.Affine(16, 4, generator=0, dtype="float64"), nn.Tanh(),
                    nn.Affine(4, 10, generator=1, dtype="float64"))
print({path: p.shape for path, p in net.named_parameters()})

whole = minidl.fisher(net, x)
sizes = {"layer 1": 16 * 4 + 4, "layer 2": 4 * 10 + 10}
matrices({"the Fisher matrix": whole}, blocks=sizes, root=True, bar="nats", height=3.8)

# %% [markdown] whole-words
# A row and a column for each of the 118 weights. Lines divide the two layers. There is order in it: the same small pattern comes again and
# again, larger or smaller. It looks like a multiplication table whose entries are matrices, and that is nearly what it is.

# %% [markdown] lenet-words
# ### Why does this fail?
#
# If 118 weights are so easily done, why not LeNet?

# %% fails too-large
lenet = models.create("lenet", input_shape=(1, 8, 8), classes=10)
minidl.fisher(lenet, train[:200][0])

# %% [markdown] lenet-why
# The matrix has the *square* of the number of weights. Even this LeNet, a small one for small images, would need gigabytes for it, and
# dividing by it takes the third power in time. Something has to be left out.

# %% [markdown] kronecker
# ## What K-FAC keeps
#
# Two things are left out. First: what stands between different layers. Second: in the block of a layer, an example's gradient is its
# input (with a 1 for the bias) times the gradient at its output, $a\,g^T$. The block is the mean of $a a^T \otimes g g^T$, where
# $\otimes$ is the Kronecker product: a multiplication table of two matrices. K-FAC puts the product of the means in place of the mean
# of the products:
#
# $$E[a a^T \otimes g g^T] \;\approx\; A \otimes G, \qquad A = E[a a^T], \quad G = E[g g^T]$$
#
# **Predict.** How far is that from the block, in percent of the block?

# %% prediction-kronecker
prediction = None           # for example 50

# %% kfac-statistics
optimizer = optim.KFAC(net, lr=0.1, fisher="exact")
F.softmax_cross_entropy(net(x), y).backward()
optimizer.prepare()                         # take in what the pass has shown, without a step
first = optimizer.blocks["0.w"]
A, G = (first.averages[name].value[0] for name in "AG")
matrices({"A, of the inputs": A, "G, of the gradients": G}, shared=False)

# %% [markdown] factors-words
# A has a row for each of the 16 pixels, and a last one for the bias; pixels that are dark in all images leave it pale. G has a row for
# each hidden unit. Neither is a mystery. You can make both:

# %% factors-by-hand
a = np.concatenate([x, np.ones((200, 1))], axis=1)
of_biases = minidl.fisher(net, x, parameters="0.b")
print("A is the mean of a a^T:                      ", np.allclose(A, a.T @ a / 200))
print("G is the Fisher matrix of the layer's biases:", np.allclose(G, of_biases))

# %% exact-beside-kronecker
block = whole[:68, :68]
product = np.kron(A, G)
apart = np.linalg.norm(product - block) / np.linalg.norm(block)
print(f"apart by {apart:.1%} of the block; {predicted(prediction)}")
matrices({"the block of layer 1": block, "kron(A, G)": product,
          "their difference": product - block}, root=True, bar="nats")

# %% whole-beside-kfac
blocks = np.zeros_like(whole)
blocks[:68, :68], blocks[68:, 68:] = whole[:68, :68], whole[68:, 68:]
kfac = np.zeros_like(whole)
kfac[:68, :68], kfac[68:, 68:] = first.dense(), optimizer.blocks["2.w"].dense()
left_out = np.linalg.norm(whole - blocks) / np.linalg.norm(whole)
print(f"left out between the layers: {left_out:.0%} of the whole")
matrices({"the Fisher matrix": whole, "its blocks": blocks, "K-FAC": kfac,
          "K-FAC - blocks": kfac - blocks}, blocks=sizes, root=True, bar="nats")

# %% [markdown] kfac-words
# From left to right: the truth, what is left when layers are looked at one by one, and what K-FAC makes of it. The last picture is what
# the Kronecker product gets wrong: much less than what was left out between the layers. Where inputs and gradients of an example have
# to do with each other, the product of the means is not the mean of the products, and there the difference is not white.

# %% [markdown] exercise-memory-words
# ### Exercise 3: numbers to be kept
#
# An affine layer has m inputs, n outputs, and biases. How many numbers has its block of the Fisher matrix, and how many have A and G
# together?

# %% exercise memory
def numbers(m, n):
    return ..., ...             # of the block, of A and G

# %% solution memory
def numbers(m, n):
    return ((m + 1) * n) ** 2, (m + 1) ** 2 + n ** 2

# %% because memory
# There are (m + 1) n weights, and the block has the square of that. A has a row for each input and one for the bias, G one for each output.

# %% wrong memory forgets the biases
def numbers(m, n):
    return (m * n) ** 2, m ** 2 + n ** 2

# %% wrong memory multiplies what is only added
def numbers(m, n):
    return ((m + 1) * n) ** 2, (m + 1) ** 2 * n ** 2

# %% check memory
def kept(m, n):
    layer = nn.Affine(m, n)
    optimizer = optim.KFAC(layer, fisher="exact")
    F.softmax_cross_entropy(layer(np.ones((1, m), "float32")), np.zeros(1, int)).backward()
    optimizer.prepare()
    block = optimizer.blocks["w"]
    return block.dense().size, sum(block.averages[name].value.size for name in "AG")

check(numbers, kept, on=[(2, 3), (16, 4), (4, 10)],
      hint="The biases are the weights of one more input. "
      "The Kronecker product is never made.")

# %% memory-picture
widths = np.array([16, 64, 256, 1024, 4096])
block_bytes = 4 * ((widths + 1.0) * widths) ** 2
factor_bytes = 4 * ((widths + 1.0) ** 2 + widths ** 2)
scaling({"the block": (widths, block_bytes / 1e9), "A and G": (widths, factor_bytes / 1e9)},
        x="inputs and outputs of a layer", y="gigabytes", title="What is kept, in float32")

# %% [markdown] two-inverses
# ## Dividing by a product that is never made
#
# A Kronecker product has two properties that spare much work. Its inverse is the product of the inverses, and it can be
# multiplied with a matrix, flattened row by row, without being made:
#
# $$(A \otimes G)^{-1} = A^{-1} \otimes G^{-1}, \qquad (A \otimes G)\,\text{vec}(M) = \text{vec}(A\, M\, G^T)$$
#
# Let M be the gradient of a layer as a matrix, (inputs + 1, outputs).

# %% [markdown] exercise-divide-words
# ### Exercise 4: divide
#
# Divide M by the Kronecker product of A and G, and give what comes out as a matrix, without making the product. A is (m, m), G is (n, n),
# M is (m, n); both factors are symmetric.

# %% exercise divide
def divided(A, G, M):
    return ...

# %% solution divide
def divided(A, G, M):
    return np.linalg.solve(A, M) @ np.linalg.inv(G)

# %% because divide
# Put the two together, and vec(A^-1 M G^-1) comes out. A mixes the rows of M and G its columns, and each is undone on its own side. So two
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

# %% check divide
def random_problem(m, n, seed):
    draw = np.random.default_rng(seed)
    a, g, M = (draw.standard_normal(shape) for shape in ((m, m), (n, n), (m, n)))
    return a @ a.T + np.eye(m), g @ g.T + np.eye(n), M

def in_full(A, G, M):
    return np.linalg.solve(np.kron(A, G), M.ravel()).reshape(M.shape)

check(divided, in_full, on=[random_problem(3, 2, 0), random_problem(4, 4, 1)],
      hint="A stands on the left of M, G on the right. Look at the shapes.")

# %% how-much-faster
def inverses(A, G, M):
    return np.linalg.inv(A), np.linalg.inv(G)

for way in in_full, inverses:
    started = time.perf_counter()
    way(*random_problem(60, 30, 2))
    print(f"{way.__name__:8} {1e3 * (time.perf_counter() - started):7.2f} ms")

# %% [markdown] why-damping
# ## Damping
#
# ### Why does this fail?
#
# The digits as they are have 64 pixels. Here is A for a layer that reads them, and its inverse.

# %% fails singular
images = train[:200][0].reshape(200, 64)
A = images.T @ images / 200
np.linalg.inv(A)

# %% [markdown] singular-why
# This time it is NumPy that complains. Some pixels are black in every image. Weights that read them change nothing, so the Fisher matrix
# has zeros there, and by zero one cannot divide. Nearly black pixels are worse, since nothing complains: their weights get enormous
# steps, in a direction of which next to nothing is known. So a number is added to the diagonal first, the **damping**:
#
# $$u = (F + \lambda I)^{-1} g$$
#
# If you ask `optim.KFAC` to go without, it does not fall. It says what it had to do, and keeps it in `optimizer.reports`:

# %% undamped-kfac
layer = nn.Affine(64, 10, generator=0)
undamped = optim.KFAC(layer, damping=0)
F.softmax_cross_entropy(layer(images), train[:200][1]).backward()
with warnings.catch_warnings():
    warnings.simplefilter("ignore")                     # the same words would come as warnings
    undamped.step()
print(*undamped.reports, sep="\n")

# %% [markdown] exercise-damping-words
# ### Exercise 5: the damped step
#
# Write it for any F, g and damping.

# %% exercise damping
def damped(fisher, g, damping):
    return ...

# %% solution damping
def damped(fisher, g, damping):
    return np.linalg.solve(fisher + damping * np.eye(len(g)), g)

# %% because damping
# The identity has ones on its diagonal only. Each eigenvalue of F grows by the damping; those much larger than it hardly notice.

# %% wrong damping adds to every entry
def damped(fisher, g, damping):
    return np.linalg.solve(fisher + damping, g)

# %% wrong damping is added after the inversion
def damped(fisher, g, damping):
    return (np.linalg.inv(fisher) + damping * np.eye(len(g))) @ g

# %% wrong damping shortens the step only
def damped(fisher, g, damping):
    return np.linalg.solve(fisher, g) / (1 + damping)

# %% check damping
def plainly(fisher, g, damping):
    values, vectors = np.linalg.eigh(fisher)
    return sum(v * (v @ g) / (value + damping) for value, v in zip(values, vectors.T))

check(damped, plainly,
      on=[(np.diag([4.0, 1.0]), np.array([1.0, 1.0]), 0.5),
          (np.array([[2.0, 1.0], [1.0, 3.0]]), np.array([1.0, -1.0]), 2.0)],
      hint="Only the diagonal grows, and before the inversion. "
      "`fisher + number` adds to every entry.")

# %% effect-of-damping
freezing = thermometers["zero at freezing"]
line = nn.Affine(1, 1, dtype="float64")
line.w.data[...] = line.b.data[...] = 0
F.mse(line(freezing), sold).backward()
gradient = np.array([line.w.grad.item(), line.b.grad.item()])
fisher = minidl.fisher(line, freezing, "mse")
for damping in (0, 0.01, 0.1, 1, 10, 100):
    step = np.linalg.solve(fisher + damping * np.eye(2), gradient)
    length = np.linalg.norm(step)
    cosine = step @ gradient / length / np.linalg.norm(gradient)
    angle = np.degrees(np.arccos(min(cosine, 1)))
    print(f"damping {damping:6g}: {angle:5.1f} degrees from the gradient, {length:.4f} long")

# %% damped-paths
def damped_path(damping):
    return descend(freezing, lambda line: natural(line, damping))[0]

valley("zero at freezing", {f"damping {each}": damped_path(each) for each in (0, 1, 10)})

# %% [markdown] effect-words
# With no damping, the natural gradient. With much, the gradient itself, and a short step of it: that path goes down to the bottom of the
# valley and stays behind there. In between, only the directions of which F knows little are held back. Damping says how far you trust the
# parabola from the beginning of this notebook.

# %% [markdown] race
# ## Over epochs, over seconds
#
# K-FAC, SGD with momentum, and Adam, on a problem that is hard for gradient descent: an autoencoder, which squeezes a digit through 16
# numbers and draws it again from these. It has eight layers, and its valleys are long and narrow. The settings are the
# best of a few that were tried for each method. K-FAC renews its factors and inverses only every ten steps once it is warm, since they
# change slowly.
#
# **Predict.** How many epochs does K-FAC take for what takes SGD 20?

# %% prediction-race
prediction = None           # for example 10

# %% the-race
contestants = {"K-FAC": lambda model: optim.KFAC(model, lr=0.1, damping=0.1, kl_clip=0.1),
               "SGD": lambda model: optim.SGD(model, lr=2.0, momentum=0.9),
               "Adam": lambda model: optim.Adam(model, lr=0.005)}

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
# Over epochs K-FAC is far ahead: where the others linger for some epochs before they find the way on, it goes down
# from the beginning. Over seconds its curve is drawn out to the right, since a step costs more, most of all at the beginning, when
# everything is renewed at every step. How much of the lead is left depends on your machine, on what else it does, and on the network. Where
# minibatches are large and layers not too wide, a dearer step is soon paid for. `docs/kfac.md` has such cases, measured with more care,
# and one in which nothing is gained.

# %% damping-race
def losses_with(damping):
    def kfac(model):
        return optim.KFAC(model, lr=0.1, damping=damping, kl_clip=0.1)
    return learn(kfac, epochs=8)[0]

curves({f"damping {damping:g}": losses_with(damping) for damping in (0.003, 0.1, 30)},
       x="epoch", title=title)

# %% [markdown] damping-race-words
# Too little, and steps are taken that the parabola does not bear out: after a good beginning it goes no further. Too much, and it is
# gradient descent with short steps. Damping is the number to try first.

# %% [markdown] seen
# ## What you have seen
#
# The Fisher matrix measures how far a step of the weights moves the predictions. Divided by it, the gradient no longer depends on how
# the problem was written down. The matrix is far too large for a network, and its blocks come close to Kronecker products of two small
# matrices, which can be kept, and inverted, one by one. Damping holds back the directions of which little is known. What you get is
# fewer steps, each of them dearer.
#
# ## Where it stands in the code
#
# - `minidl/curvature.py`: the Fisher matrix in full, and its product with a vector where it does not fit into memory
# - `minidl/optim/kfac/kronecker.py`: A and G; `division.py`: three ways to divide by them; `kfac.py`: a step from beginning to end
# - `docs/kfac.md`: all that K-FAC can be told, and where to begin
#
# ## Next
#
# One machine has done all the work so far. In *7. Many workers*, several share it out.
