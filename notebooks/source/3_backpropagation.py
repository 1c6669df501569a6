
# %% [markdown] title
# # 3. Backpropagation on a graph
#
# The *loss* says how wrong a network is, in one number. To learn, ask of each weight: if it were a little larger, how much would the loss
# change? The answers together are the *gradient*. Backpropagation finds all of them in one walk backward through the computation, and
# this notebook walks it with you.
#
# **After this you can**
# - compute the gradients of `Affine -> ReLU -> Affine` by hand, with one rule for each operation;
# - read a computation graph with values and gradients on its edges;
# - say in which order the rules must run, and show by a small example what goes wrong otherwise;
# - hold any gradient against finite differences, and find a rule that is wrong;
# - differentiate a gradient once more, and say what for.
#
# You need Python, a little NumPy, and to know what the slope of a function is; one section looks at LeNet from notebook 2. It takes about
# 60 minutes. As before: where you are asked for a prediction, write it in the place of `None` before you run what follows.
#
# Pictures of graphs are laid out by the program Graphviz (`apt install graphviz`, `brew install graphviz` or `conda install graphviz`).
# Without it they are shown as text, which says the same.

# %% imports
import numpy as np

import minidl
from minidl import Tensor, data, models, nn, pictures
from minidl import functions as F
from minidl.exercises import check, check_gradient, predicted
from minidl.testing import gradcheck, gradgradcheck

# %% [markdown] forward
# ## Forward, by hand
#
# Here is a small network that has everything. Two numbers go in. An affine layer makes two others of them, `h = x w1 + b1`. A ReLU keeps
# what is positive, `a = max(h, 0)`. A second affine layer makes one number of these, `y = a w2 + b2`. It should be 2, and the loss is the
# square of how far it is off, `(y - 2)^2`.

# %% network
x = Tensor([[1.0, 2.0]])
w1 = nn.Parameter(np.array([[1, 2], [1, -2]], np.float32))
b1 = nn.Parameter(np.array([-1, 1], np.float32))
w2 = nn.Parameter(np.array([[2], [3]], np.float32))
b2 = nn.Parameter(np.array([1], np.float32))
wanted = np.array([[2]], np.float32)

# %% [markdown] predict-forward
# **Predict.** Compute `h`, `a`, `y` and the loss on paper. All of them are small integers. `h` has two numbers, written `[0, 0]`.

# %% prediction-forward
h_by_hand = None
loss_by_hand = None

# %% forward-pass
h = F.affine(x, w1, b1)
a = F.relu(h)
y = F.affine(a, w2, b2)
loss = F.mse(y, wanted)
print(f"h: {predicted(h_by_hand)}; loss: {predicted(loss_by_hand)}")
pictures.draw(loss, values=True, names=locals())

# %% [markdown] seen-forward
# This is the *computation graph*. minidl has recorded it while the four lines above ran: each result remembers which operation made it,
# and of what. Boxes with sharp corners are operations; blue ones are parameters, which are to be learned; dashed grey ones are constants,
# for which no gradient is needed. On the edges stand the values that have flowed along them, in grey, and their shapes in brackets. `mse`
# is the mean squared error; the mean of one number is the number itself. One value was lost on its way: the second number of `h` is -1,
# and the ReLU made it 0.

# %% [markdown] rules
# ## Backward, one rule at a time
#
# The gradient of the loss *by* `y`, or with respect to `y`, has a number for each number of `y`: the slope of the loss when only that one
# changes. Write `gy` for it. An operation with the output `y` that knows its `gy` can compute the gradients by its inputs, `gx` by `x` and
# so on, and needs to know nothing else of the network. That is its *rule*. In this table `x` is the input of the operation, whatever it is
# called in the network, `t` is what was wanted, and `w^T` is `w` transposed:
#
# | operation | output | rule | why |
# |---|---|---|---|
# | squared error | `y = (x - t)^2` | `gx = gy * 2 (x - t)` | the slope of a parabola |
# | ReLU | `y = max(x, 0)` | `gx = gy` where `x > 0`, else `0` | what was cut off has no influence |
# | affine | `y = x w + b` | `gx = gy w^T` | an input acts on each output by one weight |
# | | | `gw = x^T gy` | a weight passes one input to one output |
# | | | `gb` = sum of the rows of `gy` | a bias is added in each row |
#
# Shapes say on which side to transpose: a gradient always has the shape of what it belongs to.
#
# The walk begins at the loss. The slope of the loss by itself is 1. Empty orange places wait for the gradients that are not known yet.

# %% steps
steps = pictures.backward_steps(loss, names=locals())
steps[0]

# %% [markdown] predict-first-step
# **Predict.** The rule of the squared error runs first. What is the gradient of the loss by `y`?

# %% prediction-first-step
by_y = None

# %% first-step
print(predicted(by_y))
steps[1]

# %% [markdown] seen-first-step
# `y` is 5, which is 3 too large, and twice 3 is 6. Make `y` larger by 0.01, and the loss grows by about 0.06. Now the second affine layer
# has all that it needs: its `gy` is 6, and it knows its own inputs and weights.

# %% [markdown] predict-second-step
# **Predict.** What are the gradients by `w2` (two numbers), by `b2` (one) and by `a` (two)? One of the five numbers is 0. Which, and why?

# %% prediction-second-step
by_w2 = None
by_b2 = None
by_a = None

# %% second-step
print(f"w2: {predicted(by_w2)}; b2: {predicted(by_b2)}; a: {predicted(by_a)}")
steps[2]

# %% [markdown] seen-second-step
# The gradient by `w2` is the layer's input times 6. The second input is 0, so the second weight, 3, has no influence now, and its gradient
# is 0. The gradient by `a` does not depend on `a`: it is the weights times 6. Each orange arrow is one row of the table: by `x`, by `w`
# and by `b`.

# %% [markdown] predict-third-step
# **Predict.** What does the ReLU pass on?

# %% prediction-third-step
by_h = None

# %% third-step
print(predicted(by_h))
steps[3]

# %% [markdown] seen-third-step
# It lets the 12 through and stops the 18: `h` was negative there, and a little more or less of it changes nothing.

# %% [markdown] predict-last-step
# **Predict.** How many of the four numbers of the gradient by `w1` are 0? You can say so before you compute any.

# %% prediction-last-step
zeros_in_w1 = None

# %% last-step
print(predicted(zeros_in_w1))
steps[4]

# %% [markdown] seen-last-step
# Two: the second column of `w1` leads to the second number of `h`, through which nothing comes back. Each number of `h` is called a *unit*.
# As long as a unit is negative for every example, none of its weights learns. It is called a *dead* unit.
#
# All of this is one call in minidl. Afterwards each parameter has its gradient in `.grad`.

# %% backward-call
loss.backward()
for name, parameter in {"w1": w1, "b1": b1, "w2": w2, "b2": b2}.items():
    print(name, parameter.grad.numpy().tolist())

# %% [markdown] task-by-hand
# **Exercise.** The same in NumPy alone, with three units, and for a batch of five examples, one in each row. `forward` below is the
# network; its loss is the sum over the rows. Complete `gradients`, which gives the gradients by `w1`, `b1`, `w2` and `b2`. The check moves
# each weight a little and looks how much the loss changes; more of that below.

# %% forward-in-numpy
rng = np.random.default_rng(0)
batch, targets = rng.normal(size=(5, 2)), rng.normal(size=(5, 1))

def forward(w1, b1, w2, b2):
    h = batch @ w1 + b1
    a = np.maximum(h, 0)
    y = a @ w2 + b2
    return ((y - targets) ** 2).sum()

# %% exercise by-hand
def gradients(w1, b1, w2, b2):
    h = batch @ w1 + b1
    a = np.maximum(h, 0)
    y = a @ w2 + b2
    gy = 2 * (y - targets)
    gw2, gb2 = ..., ...
    gh = ...
    gw1, gb1 = ..., ...
    return gw1, gb1, gw2, gb2

# %% solution by-hand
def gradients(w1, b1, w2, b2):
    h = batch @ w1 + b1
    a = np.maximum(h, 0)
    y = a @ w2 + b2
    gy = 2 * (y - targets)
    gw2, gb2 = a.T @ gy, gy.sum(axis=0)
    gh = (gy @ w2.T) * (h > 0)
    gw1, gb1 = batch.T @ gh, gh.sum(axis=0)
    return gw1, gb1, gw2, gb2

# %% because by-hand
# Each product is one row of the table. `gy @ w2.T` is the gradient by `a`, and `* (h > 0)` is the ReLU's rule. The products `a.T @ gy` and
# `batch.T @ gh` already add up over the batch; for a bias you write the sum yourself.

# %% wrong by-hand forgets the ReLU
def gradients(w1, b1, w2, b2):
    h = batch @ w1 + b1
    a = np.maximum(h, 0)
    gy = 2 * (a @ w2 + b2 - targets)
    gh = gy @ w2.T
    return batch.T @ gh, gh.sum(axis=0), a.T @ gy, gy.sum(axis=0)

# %% wrong by-hand gives the ReLU to the gradient
def gradients(w1, b1, w2, b2):
    h = batch @ w1 + b1
    a = np.maximum(h, 0)
    gy = 2 * (a @ w2 + b2 - targets)
    gh = np.maximum(gy @ w2.T, 0)
    return batch.T @ gh, gh.sum(axis=0), a.T @ gy, gy.sum(axis=0)

# %% wrong by-hand forgets the sum over the batch
def gradients(w1, b1, w2, b2):
    h = batch @ w1 + b1
    a = np.maximum(h, 0)
    gy = 2 * (a @ w2 + b2 - targets)
    gh = (gy @ w2.T) * (h > 0)
    return batch.T @ gh, gh, a.T @ gy, gy

# %% wrong by-hand takes the mean over the batch
def gradients(w1, b1, w2, b2):
    h = batch @ w1 + b1
    a = np.maximum(h, 0)
    gy = 2 * (a @ w2 + b2 - targets)
    gh = (gy @ w2.T) * (h > 0)
    return batch.T @ gh / 5, gh.mean(axis=0), a.T @ gy / 5, gy.mean(axis=0)

# %% wrong by-hand takes h where the second layer saw a
def gradients(w1, b1, w2, b2):
    h = batch @ w1 + b1
    a = np.maximum(h, 0)
    gy = 2 * (a @ w2 + b2 - targets)
    gh = (gy @ w2.T) * (h > 0)
    return batch.T @ gh, gh.sum(axis=0), h.T @ gy, gy.sum(axis=0)

# %% check by-hand
shapes = (2, 3), (3,), (3, 1), (1,)
check_gradient(gradients, forward, *(rng.normal(size=shape) for shape in shapes),
               hint="Numbers 1 to 4 are those by w1, b1, w2, b2. Compare the shape of each "
                    "with what it belongs to. Which input did the layer see? Where does the "
                    "ReLU stop a gradient: where h is negative, or where the gradient is?")

# %% [markdown] twice
# ## Twice?
#
# The same loss is asked for its gradient once more.

# %% fails backward-twice
loss.backward()

# %% [markdown] why-not-twice
# **Why does this fail?** A rule needs numbers of the forward pass: for the affine layer its input, for the ReLU its output. They are kept in
# the graph, and in a large network they take most of the memory. So a backward pass frees them as it goes. If you need the graph again,
# say so in the first pass: `loss.backward(retain_graph=True)`. Mostly you just compute the loss anew, since the weights have changed
# meanwhile.
#
# **Predict.** The next cell computes the loss anew and goes backward a second time. What is in `b2.grad` then? It was 6.

# %% prediction-accumulated
b2_grad = None

# %% accumulated
F.mse(F.affine(F.relu(F.affine(x, w1, b1)), w2, b2), wanted).backward()
print(f"{predicted(b2_grad)}; b2.grad is {b2.grad.numpy()}")

# %% [markdown] seen-accumulated
# A pass *adds* to what is there. That is of use where a batch is too large for memory and is taken in parts. It is also the reason why a
# training loop calls `optimizer.zero_grad()` in every step (notebook 4). `minidl.grad(loss, w)` returns a gradient instead, and leaves
# `.grad` alone.

# %% [markdown] swallowed
# There is one more way to lose a gradient. Somebody writes a ReLU with NumPy:

# %% fails numpy-on-a-tensor
np.where(h > 0, h, 0)

# %% [markdown] why-not-numpy
# **Why does this fail?** The graph is made by minidl's operations. NumPy knows nothing of it: it would take the numbers out and compute with
# them, and the result would not remember where it came from. All weights before it would silently stop learning. So minidl refuses, and
# names its own function: `F.where(h > 0, h, 0)` is recorded.

# %% [markdown] in-which-order
# ## In which order?
#
# In a chain there is only one order, from back to front. As soon as a value is used twice, there is a choice. This is the smallest case:
#
#     h = 3 s        k = 2 h        y = h + k
#
# `h` is used by `k` and by `y`.
#
# **Predict.** What is the slope of `y` by `s`?

# %% prediction-slope
slope_by_s = None

# %% smallest
s = Tensor(2.0, requires_grad=True)
h = s * 3
k = h * 2
y = h + k
print(predicted(slope_by_s))
pictures.draw(y, values=True, gradients=True, names=locals())

# %% [markdown] seen-smallest
# It is 9. Two gradients come back to `h`: 1 directly from `y`, and 2 by way of `k`. They are *added*, since a change of `h` acts along both
# ways. Only the sum, 3, may be passed on to `s`.
#
# Now the walk itself, as short as it can be. For each name, `graph` says from what it was computed, and with what slope. `walk` passes
# gradients on in the order that it is given.

# %% walk
graph = {"y": [("h", 1), ("k", 1)], "k": [("h", 2)], "h": [("s", 3)]}

def walk(graph, order):
    gradient = {"y": 1}
    for name in order:
        for source, slope in graph.get(name, []):
            gradient[source] = gradient.get(source, 0) + slope * gradient[name]
    return gradient

# %% [markdown] predict-order
# **Predict.** The order `y, h, k, s` begins at `y` and comes to every name, and so does `y, k, h, s`. What gradient does each give for `s`?

# %% prediction-order
h_before_k = None
k_before_h = None

# %% two-orders
print(f"h before k: {walk(graph, ['y', 'h', 'k', 's'])}; {predicted(h_before_k)}")
print(f"k before h: {walk(graph, ['y', 'k', 'h', 's'])}; {predicted(k_before_h)}")

# %% [markdown] seen-order
# With `h` first, its rule ran when only 1 had come, and passed 3 on to `s`. The 2 from `k` came too late. There is no error, only a wrong
# gradient. So the order must be such that *a name passes its gradient on only after everything that used it has passed back*. Such an
# order is called *topological*.
#
# Could `h` not simply pass on again what came late? It could. Then `s` gets 3, and later 6 more, which is right. But look at what that
# costs in a deeper graph. Put 16 such figures one behind the other: each stage uses the one before it twice, so it is visited twice for
# each visit of the stage after it.
#
# **Predict.** How many visits are there in all, from the last of 16 stages down to the input?

# %% prediction-visits
visits_of_16 = None

# %% visits
def visits(stages):
    count, waiting = 0, [stages]
    while waiting:
        stage = waiting.pop()
        count += 1
        waiting += [stage - 1, stage - 1] if stage else []      # along both ways
    return count

print(predicted(visits_of_16))
print({stages: visits(stages) for stages in (1, 2, 4, 8, 16)})

# %% [markdown] engine-visits
# The number doubles with each stage: every *path* through the graph is walked, and with 100 stages nobody could wait for it. In a
# topological order there is one visit for each *operation*. Here is minidl on the same 16 stages, of two operations each:

# %% engine-steps
y = Tensor(1.0, requires_grad=True)
for _ in range(16):
    y = y + y * 2
pictures_of_steps = pictures.backward_steps(y)      # one for each operation, and the first
print(len(pictures_of_steps) - 1, "operations visited")

# %% [markdown] task-order
# **Exercise.** Write `order(graph)`: a list of `y` and all names from which it was computed, in a topological order, `y` first. The check
# walks several graphs in your order, and compares with the sum over all paths.

# %% exercise order
def order(graph):
    return ...

# %% solution order
def order(graph):
    found = []

    def visit(name):
        if name not in found:
            for source, _ in graph.get(name, []):
                visit(source)
            found.append(name)          # after everything that it was computed from

    visit("y")
    return found[::-1]

# %% because order
# `visit` appends a name only when everything from which it was computed has been appended. In the reversed list each name comes before
# everything from which it was computed, and so after everything that used it. minidl has it easier: it numbers operations as they run.
# The number of an operation is larger than those of its inputs, so it is enough to take the largest number first. That needs no
# recursion, for which a deep graph would be too deep.

# %% wrong order nearest first
def order(graph):
    found = ["y"]
    for name in found:
        found += [source for source, _ in graph.get(name, []) if source not in found]
    return found

# %% wrong order as they are met
def order(graph):
    found = []

    def visit(name):
        if name not in found:
            found.append(name)
            for source, _ in graph.get(name, []):
                visit(source)

    visit("y")
    return found

# %% wrong order from front to back
def order(graph):
    found = []

    def visit(name):
        if name not in found:
            for source, _ in graph.get(name, []):
                visit(source)
            found.append(name)

    visit("y")
    return found

# %% wrong order as the graph was written down
def order(graph):
    return list(graph)

# %% wrong order as the graph was written down and then the rest
def order(graph):
    rest = [source for inputs in graph.values() for source, _ in inputs]
    return list(dict.fromkeys([*graph, *rest]))

# %% wrong order by the alphabet
def order(graph):
    rest = [source for inputs in graph.values() for source, _ in inputs]
    return sorted({*graph, *rest}, reverse=True)

# %% wrong order leaves out where it begins
def order(graph):
    found = []

    def visit(name):
        if name in graph and name not in found:
            for source, _ in graph[name]:
                visit(source)
            found.append(name)

    visit("y")
    return found[::-1]

# %% check order
def over_all_paths(graph):
    names = {"y"} | {source for inputs in graph.values() for source, _ in inputs}

    def slope_by(name, target):
        if name == target:
            return 1
        return sum(slope * slope_by(source, target) for source, slope in graph.get(name, []))
    slopes = {name: slope_by("y", name) for name in sorted(names)}
    return {**slopes, "the number of names": len(names)}

def walked(graph):
    names = order(graph)
    if names is None or names is ...:
        return ...
    names = list(names)
    return {**walk(graph, names), "the number of names": len(names)}

graphs = [graph,
          {"h": [("s", 3)], "y": [("k", 1), ("h", 1)], "k": [("h", 2)]},
          {"b": [("a", 2), ("c", 4)], "a": [("s", 3)], "c": [("a", 1)],
           "y": [("a", 5), ("b", 1), ("c", 2)]},
          {"y": [("a", 1), ("d", 5)], "d": [("c", 1)], "c": [("b", 2)], "b": [("a", 1)],
           "a": [("s", 2)]},
          {"y": [("p", 2), ("q", 3)], "p": [("r", 1), ("q", 4)], "q": [("r", 7)],
           "r": [("t", 1), ("s", 1)], "t": [("s", 2)]}]
check(walked, over_all_paths, on=graphs,
      hint="Each name once, also those at which the graph begins. A name may come when all "
           "that use it have come. Turn that round: put a name after everything from which it "
           "was computed, and then read the list backward.")

# %% [markdown] larger
# ## A network of everyday size
#
# The graph of a convolutional network is the same thing, only larger. Here is LeNet from notebook 2. Its loss is the *cross-entropy*: minus
# the logarithm of the probability that softmax gives to the right class, as a mean over 32 images. With `depth=1` each part of the model
# is one box. The cell after it leaves `depth` out, and shows the whole.

# %% lenet
train, test = data.load("digits")
images, labels = train[:32]
model = models.create("lenet", input_shape=(1, 8, 8), classes=10, generator=0)
loss = F.softmax_cross_entropy(model(images), labels)
pictures.draw(loss, depth=1)

# %% lenet-whole
pictures.draw(loss)

# %% [markdown] seen-lenet
# Frames are the parts of the model. Each parameter has its path in the model, such as `features.0.w`: you meet that name again in saved
# models and in errors. The main stream goes down on one side, and at each layer parameters flow in. Walk it backward in your mind: at
# each box one gradient comes in from below, one goes on upward, and one goes out to each parameter.
#
# What does such a walk cost? For each product of the forward pass the backward pass has two, as the table of rules says: one for `gx` and
# one for `gw`. So it takes about as many operations as two forward passes, and gives the slopes of all 31,294 parameters.
#
# **Predict.** If you had no rules at all, and found each slope by moving one parameter and running the network, how many forward passes
# would it take?

# %% prediction-passes
forward_passes = None

# %% passes
parameters = sum(parameter.size for parameter in model.parameters())
print(f"one for each parameter, and one with nothing moved: {parameters + 1:,}; "
      f"{predicted(forward_passes)}")

# %% [markdown] differences
# ## Is the gradient right?
#
# To move one parameter at a time is too slow to learn with. But it needs no rule that could be wrong, and that makes it just right for a
# test. Move a weight a little to both sides, and divide the change of the loss by the distance between the two. This is a *finite
# difference*. Here it is for `w1` of the first network, beside what backpropagation gives.

# %% differences-of-w1
def loss_of(w):
    return F.mse(F.affine(F.relu(F.affine(x, w, b1)), w2, b2), wanted)

by_differences = np.zeros((2, 2))
for place in np.ndindex(2, 2):
    step = np.zeros((2, 2), np.float32)
    step[place] = 0.01
    higher, lower = loss_of(w1.data + step), loss_of(w1.data - step)
    by_differences[place] = (higher.item() - lower.item()) / 0.02

print("by differences     ", by_differences.round(2).tolist())
print("by backpropagation ", minidl.grad(loss_of(w1), w1)[0].numpy().tolist())

# %% [markdown] predict-step
# Why to *both* sides, and how far? Try it on a function whose slope everybody knows: `e^x` at 1, whose slope is `e`.
#
# **Predict.** Which step gives the best answer: 0.1, 0.00001 or 0.000000000000001?

# %% prediction-step
best_step = None

# %% step-size
sizes = 10.0 ** -np.arange(1, 15.5, 0.5)
one_side = (np.exp(1 + sizes) - np.exp(1)) / sizes
both_sides = (np.exp(1 + sizes) - np.exp(1 - sizes)) / (2 * sizes)
errors = {"to one side": (sizes, abs(one_side - np.e) + 1e-16),       # a logarithm takes no 0
          "to both sides": (sizes, abs(both_sides - np.e) + 1e-16)}
print(predicted(best_step))
pictures.scaling(errors, x="step", y="error of the slope")

# %% [markdown] seen-step
# Read it from right to left. First the error falls with the step. A step ten times smaller makes the error to one side ten times smaller,
# and to both sides a hundred times, since the function bends in the same way on both sides, and that cancels. Then the error rises again:
# two numbers that are nearly equal are subtracted, and what is left is mostly their rounding. The best step is in the middle. That is why
# such tests use float64 and steps of about 0.00001.

# %% [markdown] wrong-rule
# ## A rule that is nearly right
#
# Whoever adds an operation writes its rule by hand. In minidl an operation is a class: `forward` gives the output, and `grad_x` the gradient
# by the input `x`. A rule asks for what it needs by the names of its arguments: `gy`, the input `x`, or the output `y`. Below is the
# hyperbolic tangent, whose slope is `1 - y^2`. One of the two classes has `|y|` where the square belongs.

# %% two-tanhs
class Tanh(minidl.Function):
    def forward(self, x):
        return np.tanh(x)

    def grad_x(self, gy, y):
        return gy * (1 - y * y)

class NearlyTanh(Tanh):
    def grad_x(self, gy, y):
        return gy * (1 - abs(y))

# %% [markdown] predict-nearly
# **Predict.** A network with the right rule brings its loss from 2.6 to 0.3 in 80 steps. What is the loss with the wrong rule then?

# %% prediction-nearly
loss_with_wrong_rule = None

# %% train-both
def train_with(activation, steps=80):
    first, second = nn.Affine(64, 32, generator=0), nn.Affine(32, 10, generator=1)
    weights = [*first.parameters(), *second.parameters()]
    inputs, labels = train[:500]
    inputs, losses = inputs.reshape(500, 64), []
    for _ in range(steps):
        loss = F.softmax_cross_entropy(second(activation(first(inputs))), labels)
        losses.append(loss.item())
        for w, slope in zip(weights, minidl.grad(loss, weights)):
            w.data = w.data - 0.3 * slope.data
    return losses

# %% two-runs
runs = {"right rule": train_with(Tanh()), "wrong rule": train_with(NearlyTanh())}
print(f"right rule {runs['right rule'][-1]:.2f}, wrong rule {runs['wrong rule'][-1]:.2f}; "
      f"{predicted(loss_with_wrong_rule)}")
pictures.curves(runs, x="step", y="loss", log=False)

# %% [markdown] seen-nearly
# It comes nearly as far. If you had only the orange curve, nothing in it would tell you. The wrong gradient still points downhill, and
# learning is forgiving. So nobody finds such an error by training, and it may make every run a little worse for years. `gradcheck` finds
# it: it compares every rule with differences to both sides, in float64.

# %% right-rule-checked
gradcheck(Tanh(), [np.array([-2.0, 0.3, 1.0])])

# %% fails wrong-rule-caught
gradcheck(NearlyTanh(), [np.array([-2.0, 0.3, 1.0])])

# %% [markdown] why-caught
# **Why does this fail?** Read the error from the top: which operation, which argument, at which element, what the rule says (*analytic*)
# and what the differences say (*numeric*). It names the element at which they differ most. Compute your formula there by hand, compare it
# with both, and you often see what is missing.

# %% [markdown] task-softsign
# **Exercise.** `y = x / (1 + |x|)` is called *softsign*. Its slope is `1 / (1 + |x|)^2`. Write the rule for it so that it needs only `gy`
# and `y`: then `x` need not be kept for the backward pass. (What is `1 - |y|`?) The check compares it with finite differences.

# %% exercise softsign
class Softsign(minidl.Function):
    def forward(self, x):
        return x / (1 + abs(x))

    def grad_x(self, gy, y):
        return ...

# %% solution softsign
class Softsign(minidl.Function):
    def forward(self, x):
        return x / (1 + abs(x))

    def grad_x(self, gy, y):
        return gy * (1 - abs(y)) ** 2

# %% because softsign
# `1 - |y| = 1 - |x| / (1 + |x|) = 1 / (1 + |x|)`, and the slope is its square. A rule that needs only `y` saves memory wherever `y` is kept
# anyway, because the next layer needs it.

# %% wrong softsign takes y for x
class Softsign(minidl.Function):
    def forward(self, x):
        return x / (1 + abs(x))

    def grad_x(self, gy, y):
        return gy / (1 + abs(y)) ** 2

# %% wrong softsign forgets the square
class Softsign(minidl.Function):
    def forward(self, x):
        return x / (1 + abs(x))

    def grad_x(self, gy, y):
        return gy * (1 - abs(y))

# %% wrong softsign forgets what came from behind
class Softsign(minidl.Function):
    def forward(self, x):
        return x / (1 + abs(x))

    def grad_x(self, gy, y):
        return (1 - abs(y)) ** 2

# %% wrong softsign has the sign of y
class Softsign(minidl.Function):
    def forward(self, x):
        return x / (1 + abs(x))

    def grad_x(self, gy, y):
        return gy * (1 - y) ** 2

# %% wrong softsign takes the square of each
class Softsign(minidl.Function):
    def forward(self, x):
        return x / (1 + abs(x))

    def grad_x(self, gy, y):
        return gy * (1 - y ** 2)

# %% check softsign
points, weights = np.array([-3.0, -0.5, 0.2, 1.0, 4.0]), np.array([1.0, -2.0, 3.0, 0.5, -1.0])
check_gradient(lambda x: Softsign().grad_x(gy=weights, y=Softsign()(x)),
               lambda x: (weights * x / (1 + abs(x))).sum(), points,
               hint="Express the slope by y, also where y is negative, and multiply it by gy. "
                    "grad_x takes gy and y, and no x.")

# %% [markdown] second
# ## The slope of the slope
#
# A rule is itself a small computation, with operations that have rules. So minidl can record the backward pass too, with
# `create_graph=True`, and the gradient is then a Tensor with a graph of its own. Take `z^3` at 3: the slope is `3 z^2 = 27`.

# %% [markdown] predict-second
# **Predict.** What are the second and the third derivative of `z^3` at 3?

# %% prediction-second
second_by_hand = None
third_by_hand = None

# %% derivatives
z = Tensor(3.0, requires_grad=True)
(slope,) = minidl.grad(z ** 3, z, create_graph=True)
(second,) = minidl.grad(slope, z, create_graph=True)
(third,) = minidl.grad(second, z)
print(f"slope {slope.item():g}")
print(f"second derivative {second.item():g}; {predicted(second_by_hand)}")
print(f"third derivative {third.item():g}; {predicted(third_by_hand)}")

# %% slope-graph
(slope,) = minidl.grad(z ** 3, z, create_graph=True)
pictures.draw(slope, values=True, gradients=True, names={"z": z, "slope": slope})

# %% [markdown] seen-slope-graph
# This is the graph of the *slope*: the rule of the power, `gy * (3 z^2)`, recorded while it ran. The constant in the dashed box is `gy`,
# and the last multiplication, by 1, changes nothing. The orange number on the edge that leaves `z` is the second derivative.
#
# What is it good for? The slope says which way is down, but not how far away the bottom of the valley is. The second derivative says how
# fast the slope changes, and so where it will be 0: after a step of `-slope / second`. That is *Newton's method*. On a parabola it arrives
# with one step; elsewhere it needs several.

# %% [markdown] task-newton
# **Exercise.** Write `newton(function, start)`, which gives the place after one such step from `start`, a number. `function` takes a Tensor
# and gives one. Use `minidl.grad` twice.

# %% exercise newton
def newton(function, start):
    x = Tensor(np.array(start), requires_grad=True)
    y = function(x)
    return ...

# %% solution newton
def newton(function, start):
    x = Tensor(np.array(start), requires_grad=True)
    y = function(x)
    (slope,) = minidl.grad(y, x, create_graph=True)
    (second,) = minidl.grad(slope, x)
    return start - slope.item() / second.item()

# %% because newton
# The first call must record what its rules do. Without `create_graph=True` the slope is a number that does not know where it came from, and
# minidl says so when it is to be differentiated.

# %% wrong newton does not record the first pass
def newton(function, start):
    x = Tensor(np.array(start), requires_grad=True)
    y = function(x)
    (slope,) = minidl.grad(y, x)
    (second,) = minidl.grad(slope, x)
    return start - slope.item() / second.item()

# %% wrong newton looks for a zero of the function
def newton(function, start):
    x = Tensor(np.array(start), requires_grad=True)
    y = function(x)
    (slope,) = minidl.grad(y, x)
    return start - y.item() / slope.item()

# %% wrong newton squares the slope
def newton(function, start):
    x = Tensor(np.array(start), requires_grad=True)
    y = function(x)
    (slope,) = minidl.grad(y, x)
    return start - slope.item() / slope.item() ** 2

# %% wrong newton goes uphill
def newton(function, start):
    x = Tensor(np.array(start), requires_grad=True)
    y = function(x)
    (slope,) = minidl.grad(y, x, create_graph=True)
    (second,) = minidl.grad(slope, x)
    return start + slope.item() / second.item()

# %% wrong newton gives the step and not the place
def newton(function, start):
    x = Tensor(np.array(start), requires_grad=True)
    y = function(x)
    (slope,) = minidl.grad(y, x, create_graph=True)
    (second,) = minidl.grad(slope, x)
    return -slope.item() / second.item()

# %% wrong newton knows only parabolas with the second derivative 2
def newton(function, start):
    x = Tensor(np.array(start), requires_grad=True)
    y = function(x)
    (slope,) = minidl.grad(y, x)
    return start - slope.item() / 2

# %% check newton
bowls = [(lambda x: (x - 3) ** 2 + 1, 10.0), (lambda x: x ** 4 + x ** 2, 1.0),
         (lambda x: (x * 0.5).exp() - x, 0.5)]

def by_differences_only(function, start, step=1e-4):
    values = [function(Tensor(np.array(start + k * step))).item() for k in (-1, 0, 1)]
    return start - step * (values[2] - values[0]) / 2 / (values[2] - 2 * values[1] + values[0])

check(newton, by_differences_only, on=bowls, close=1e-4,
      hint="minidl.grad(y, x, create_graph=True) gives a tuple of one Tensor, which can be "
           "differentiated again. The new place is start - slope / second.")

# %% [markdown] hessian
# A network has not one second derivative but one for each *pair* of parameters: how fast does the slope by the one change when the other
# is moved? Together they are a matrix, the *Hessian*. For the 31,294 parameters of LeNet it has nearly a billion numbers. It need not be
# written down: `minidl.hvp(loss, weights, vectors)` gives its product with a vector, for about the price of one more backward pass.
#
# Take the loss of the small network and only the four numbers of `w1`. Their Hessian is 4 x 4, and its product with `(1, 0, 0, 0)` is its
# first column: how the four slopes change when `w1[0, 0]` is moved.
#
# **Predict.** How many of the four numbers in this column are 0?

# %% prediction-column
zeros_in_column = None

# %% hessian-column
first = np.array([[1, 0], [0, 0]], np.float32)
(column,) = minidl.hvp(loss_of(w1), w1, first)
print("first column of the Hessian", column.numpy().ravel().tolist())
print(predicted(zeros_in_column))

# %% hessian-by-differences
def slope_at(numbers):
    w = nn.Parameter(numbers)
    return minidl.grad(loss_of(w), w)[0].numpy()

by_differences = (slope_at(w1.data + first / 100) - slope_at(w1.data - first / 100)) / 0.02
print("by differences of slopes   ", by_differences.round(2).ravel().tolist())

# %% [markdown] seen-column
# Two are 0: once more those of the unit that the ReLU switches off. The others follow from the loss, which is a parabola here,
# `(2 w1[0, 0] + 4 w1[1, 0] + ...)^2`: they are twice 2 times 2, and twice 2 times 4. What such numbers are good for in training is the
# subject of notebook 6.

# %% [markdown] second-rules
# Second derivatives also show errors that first derivatives do not show. A rule can give the right slope and still hide that this slope
# depends on `x`. Below, the slope is computed in the forward pass and put on `self`, where minidl takes it for a constant.

# %% hidden-slope
class HidingSquare(minidl.Function):
    def forward(self, x):
        self.slope = 2 * x
        return x * x

    def grad_x(self, gy):
        return gy * self.slope

gradcheck(HidingSquare(), [np.array([1.0, 2.0])])

# %% fails hidden-slope-caught
gradgradcheck(HidingSquare(), [np.array([1.0, 2.0])])

# %% [markdown] why-hidden
# **Why does this fail?** The second derivative of `x^2` is 2. Here it would be 0, since nothing in the rule leads back to `x`. (The error
# does not show the 2 itself, since the test takes random numbers for `gy`.) To mend it, let the rule name `x` among its arguments:
# `def grad_x(self, gy, x): return gy * 2 * x`. Then minidl keeps `x`, and knows that the rule has used it.

# %% [markdown] end
# ## What you have seen
#
# A computation leaves a graph behind. On the way back, each operation turns the gradient by its output into the gradients by its inputs, by
# a rule that knows nothing of the rest. Where a value was used twice, gradients are added, and so the turn of an operation comes only
# after all that used its result. Rules are written by hand and can be wrong without anybody noticing, so they are compared with finite
# differences. And because a backward pass is a computation as well, it can be differentiated itself.
#
# **Where it stands in the code.** `minidl/graph.py`: what an operation is, and what stays of one call of it. `minidl/walk.py`: the walk
# backward. `minidl/functions/`: the rules, each under its forward. `minidl/testing.py`: `gradcheck`. `docs/own_operation.md`: how to add
# an operation.
#
# **Next.** [4. Training a CNN](4_training_a_cnn.ipynb): what is done with the gradient.
