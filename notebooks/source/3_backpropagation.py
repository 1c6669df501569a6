
# %% [markdown] title
# # 3. Backpropagation on a graph
#
# A network learns by asking one question of each of its weights: if you were a little larger, how much would the loss change? The answers
# are the *gradient*. Backpropagation finds all of them in one walk backward through the computation, and this notebook walks it with you.
#
# **After this you can**
# - compute the gradients of `Affine -> ReLU -> Affine` by hand, with one rule for each operation;
# - read a computation graph with values and gradients on its edges;
# - say in which order the rules must run, and show by a small example what goes wrong otherwise;
# - hold any gradient against finite differences, and find a rule that is wrong;
# - differentiate a gradient once more, and say what for.
#
# You need Python, a little NumPy, and to know what the slope of a function is. It takes about 60 minutes.
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
# Here is the smallest network that has everything. Two numbers go in. An affine layer makes two others of them, `h = x w1 + b1`. A ReLU
# keeps what is positive, `a = max(h, 0)`. A second affine layer makes one number, `y = a w2 + b2`. It should be 3, and the loss is the
# square of what it is off, `(y - 3)^2`.

# %% network
x = Tensor([[1.0, 2.0]])
w1 = nn.Parameter(np.array([[1, 2], [1, -2]], np.float32))
b1 = nn.Parameter(np.array([-1, 1], np.float32))
w2 = nn.Parameter(np.array([[2], [3]], np.float32))
b2 = nn.Parameter(np.array([1], np.float32))
wanted = np.array([[3]], np.float32)

# %% [markdown] predict-forward
# **Predict.** Compute `h`, `a`, `y` and the loss on paper. All of them are small integers.

# %% prediction-forward
h_by_hand = None
loss_by_hand = None

# %% forward-pass
h = F.affine(x, w1, b1)
a = F.relu(h)
y = F.affine(a, w2, b2)
loss = F.mse(y, wanted)
print(predicted((h_by_hand, loss_by_hand)))
pictures.draw(loss, values=True, names=locals())

# %% [markdown] seen-forward
# This is the *computation graph*. minidl has recorded it while the four lines above ran: each result remembers which operation made it,
# and of what. Boxes with sharp corners are operations; blue ones are parameters, which are to be learned; dashed grey ones are constants,
# of which nobody asks for a gradient. The numbers on the edges are the values that have flowed along them. One number died on its way:
# the second entry of `h` is -1, and the ReLU made it 0.

# %% [markdown] rules
# ## Backward, one rule at a time
#
# Write `gy` for the gradient of the loss by an operation's output `y`: how much the loss changes, for each number of `y`, if that number
# is a little larger. An operation that knows its `gy` can compute the gradient by each of its inputs, and needs to know nothing else of
# the network. That is its *rule*:
#
# | operation | rule | why |
# |---|---|---|
# | `y = (x - t)^2` | `gx = gy * 2 (x - t)` | the slope of a parabola |
# | `y = max(x, 0)` | `gx = gy` where `x > 0`, else `0` | what was cut off has no influence |
# | `y = x w + b` | `gx = gy w^T` | each input reaches each output by one weight |
# | | `gw = x^T gy` | each weight sees one input, and acts on one output |
# | | `gb` = the sum of `gy` over the batch | a bias is added in each row |
#
# Shapes say on which side to transpose: a gradient always has the shape of what it belongs to.
#
# The walk begins at the loss. Its gradient by itself is 1. Empty orange places wait for the gradients that are not known yet.

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
# `y` is 5, which is 2 too large, and twice 2 is 4. Make `y` larger by 0.01, and the loss grows by about 0.04. Now the second affine layer
# has all that it needs: its `gy` is 4, and it knows its own inputs and weights.

# %% [markdown] predict-second-step
# **Predict.** What are the gradients by `w2`, by `b2` and by `a`? One of the five numbers is 0. Which, and why?

# %% prediction-second-step
by_w2, by_b2, by_a = None, None, None

# %% second-step
print(predicted((by_w2, by_b2, by_a)))
steps[2]

# %% [markdown] seen-second-step
# The gradient by `w2` is the layer's input times 4. Its second input is 0, so the second weight, 3, has no influence now, and its
# gradient is 0. The gradient by `a` does not care what `a` is: it is the weights times 4. Three rules have run, one for each input of the
# operation; each orange arrow is one of them.

# %% [markdown] predict-third-step
# **Predict.** What does the ReLU pass on?

# %% prediction-third-step
by_h = None

# %% third-step
print(predicted(by_h))
steps[3]

# %% [markdown] seen-third-step
# It lets the 8 through and stops the 12: `h` was negative there, a little more or less of it changes nothing.

# %% [markdown] predict-last-step
# **Predict.** How many of the four gradients by `w1` are 0? You can say so before you compute any.

# %% prediction-last-step
zeros_in_w1 = None

# %% last-step
print(predicted(zeros_in_w1))
steps[4]

# %% [markdown] seen-last-step
# Two: the second column of `w1` leads to the second hidden number, through which nothing comes back. If a unit's input is negative for
# every example, none of its weights ever learns again. That is called a *dead* unit.
#
# All of this is one call in minidl. It leaves in each leaf that asks for it a `.grad`.

# %% backward-call
loss.backward()
for name, parameter in {"w1": w1, "b1": b1, "w2": w2, "b2": b2}.items():
    print(name, parameter.grad.numpy().tolist())

# %% [markdown] task-by-hand
# **Exercise.** The same for a batch, in NumPy alone. `forward` below is the network for `x` of any number of rows; its loss is the sum
# over the rows. Write `gradients`, which gives the gradients by `w1`, `b1`, `w2` and `b2`. The check takes five rows of random numbers,
# and compares with finite differences, of which more below.

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
# Each line is one row of the table. `gy @ w2.T` is the gradient by `a`, and `* (h > 0)` is the ReLU's rule. The products with `a.T` and
# `batch.T` add up over the batch of themselves; for a bias you write the sum.

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

# %% check by-hand
shapes = (2, 3), (3,), (3, 1), (1,)
check_gradient(gradients, forward, *(rng.normal(size=shape) for shape in shapes),
               hint="Numbers 1 to 4 are those by w1, b1, w2, b2. Compare the shape of each "
                    "with what it belongs to. Where does the ReLU stop a gradient: where h is "
                    "negative, or where the gradient is?")

# %% [markdown] twice
# ## Twice?
#
# A gradient is asked for once more.

# %% fails backward-twice
loss.backward()

# %% [markdown] why-not-twice
# **Why does this fail?** A rule needs numbers of the forward pass: the affine layer its input, the ReLU what came out. They are kept in
# the graph, and in a large network they are most of the memory. So a backward pass frees them as it goes. If you need the graph again,
# say so in the first pass: `loss.backward(retain_graph=True)`. Mostly one just computes the loss anew, since the weights have changed
# meanwhile.
#
# **Predict.** The next cell runs forward and backward a second time. What is in `b2.grad` then? It was 4.

# %% prediction-accumulated
b2_grad = None

# %% accumulated
F.mse(F.affine(F.relu(F.affine(x, w1, b1)), w2, b2), wanted).backward()
print(f"{predicted(b2_grad)}; b2.grad is {b2.grad.numpy()}")

# %% [markdown] seen-accumulated
# 8: a pass *adds* to what is there. That is of use where a batch is too large for memory and is taken in parts, and it is the reason for
# `optimizer.zero_grad()` in every training loop. `minidl.grad(loss, w)` gives a gradient back instead, and leaves `.grad` alone.

# %% [markdown] swallowed
# One more way to lose a gradient. Somebody writes a ReLU with NumPy.

# %% fails numpy-on-a-tensor
np.where(h > 0, h, 0)

# %% [markdown] why-not-numpy
# **Why does this fail?** The graph is made by minidl's operations. NumPy knows nothing of it: it would take the numbers out, compute with
# them, and what came out would remember nothing, so that all weights before it would silently stop learning. minidl refuses, and names
# its own function. `F.where(h > 0, h, 0)` is recorded.

# %% [markdown] in-which-order
# ## In which order?
#
# In a chain there is only one order, from back to front. As soon as a value is used twice, there is a choice. This is the smallest case:
#
#     h = 3 s        k = 2 h        y = h + k
#
# `h` is used by `k` and by `y`. **Predict.** What is the slope of `y` by `s`?

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
# 9. Two gradients come back to `h`: 1 directly from `y`, and 2 by way of `k`. They are *added*, since a change of `h` acts along both
# ways. Only the sum, 3, may be passed on.
#
# Now the walk itself, as short as it can be. For each name, the graph says what it was computed from, and with what slope. `walk` passes
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
# **Predict.** Both orders below begin at `y`, and both come to every name. What does each give for `s`?

# %% prediction-order
h_before_k, k_before_h = None, None

# %% two-orders
print(predicted((h_before_k, k_before_h)))
print("h before k:", walk(graph, ["y", "h", "k", "s"]))
print("k before h:", walk(graph, ["y", "k", "h", "s"]))

# %% [markdown] seen-order
# With `h` first, its rule ran when only 1 had come, and passed 3 on to `s`. The 2 from `k` came too late. No error, only a wrong
# gradient. So the rule: *nobody passes on before everybody who used it has passed back*. Such an order is called *topological*.
#
# Could `h` not simply pass on again what came late? It could. Then `s` gets 3, and later 6 more, which is right. But look at what it
# costs where such a figure stands behind another, each stage using the one before twice. **Predict.** How many visits are there, over
# all of 16 stages?

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
# It doubles with each stage: one visit for each *path*, and there are more paths than one could ever walk. In a topological order there
# is one for each *operation*. minidl's engine on the same 16 stages, of two operations each:

# %% engine-steps
y = Tensor(1.0, requires_grad=True)
for _ in range(16):
    y = y + y * 2
len(pictures.backward_steps(y)) - 1

# %% [markdown] task-order
# **Exercise.** Write `order(graph)`: all names that `y` was computed from, in a topological order, `y` first. The check walks several
# graphs in your order, and compares with the sum over all paths.

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
# `visit` appends a name only when all that it was computed from has been appended. Read backward, each name then comes before all that it
# was computed from, and so after all that used it. minidl has it easier: it numbers operations as they run, an operation's number is
# larger than those of its inputs, and so it is enough to take the largest number first. No recursion, which a deep graph would not
# survive.

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

# %% check order
def over_all_paths(graph):
    names = {"y"} | {source for inputs in graph.values() for source, _ in inputs}

    def slope_by(name, target):
        if name == target:
            return 1
        return sum(slope * slope_by(source, target) for source, slope in graph.get(name, []))
    return {name: slope_by("y", name) for name in names}

def walked(graph):
    names = order(graph)
    return names if names is ... else walk(graph, names)

graphs = [graph,
          {"y": [("k", 1), ("h", 1)], "k": [("h", 2)], "h": [("s", 3)]},
          {"y": [("a", 1), ("d", 5)], "d": [("c", 1)], "c": [("b", 2)], "b": [("a", 1)],
           "a": [("s", 2)]},
          {"y": [("p", 2), ("q", 3)], "p": [("r", 1), ("q", 4)], "q": [("r", 7)],
           "r": [("t", 1), ("s", 1)], "t": [("s", 2)]}]
check(walked, over_all_paths, on=graphs,
      hint="A name may come when all that use it have come. Turn that round: put a name "
           "after all that it was computed from, and then read the list backward.")

# %% [markdown] larger
# ## A network of everyday size
#
# The graph of a convolutional network is no other thing, only larger: here LeNet from notebook 2 with its loss. To see the whole of it,
# leave `depth` out; then modules are opened as far as there is room. With `depth=1` each part of the model is one box.

# %% lenet
train, test = data.load("digits")
images, labels = train[:32]
model = models.create("lenet", input_shape=(1, 8, 8), classes=10, generator=0)
loss = F.softmax_cross_entropy(model(images), labels)
pictures.draw(loss, depth=1, gradients=True)

# %% lenet-whole
pictures.draw(loss)

# %% [markdown] seen-lenet
# Frames are modules, and each parameter has its path in the model: under that name it is in a checkpoint, and in an error. The main
# stream goes down on one side, and at each layer parameters flow in. Walk it backward in your mind: at each box one gradient comes in
# from below, one goes on upward, and one goes out to each parameter.
#
# **Predict.** This network has 31,294 parameters. One backward pass gives all of their slopes, and costs about as much as two forward
# passes. If you had no rules at all, and found each slope by moving one weight and running the network, how many forward passes would it
# take?

# %% prediction-passes
forward_passes = None

# %% passes
parameters = sum(parameter.size for parameter in model.parameters())
print(predicted(forward_passes))
print(f"one for each parameter, and one with nothing moved: {parameters + 1:,}")

# %% [markdown] differences
# ## Is the gradient right?
#
# Too slow to learn with, but without any rule that could be wrong: that is just what is needed for a test. Move a weight a little to both
# sides, and divide what the loss has changed by how far the weight was moved. This is a *finite difference*. Here it is for `w1` of the
# first network, beside what backpropagation gave.

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
steps = 10.0 ** -np.arange(1, 15.5, 0.5)
one_side = (np.exp(1 + steps) - np.exp(1)) / steps
both_sides = (np.exp(1 + steps) - np.exp(1 - steps)) / (2 * steps)
errors = {"to one side": (steps, abs(one_side - np.e) + 1e-16),       # a logarithm takes no 0
          "to both sides": (steps, abs(both_sides - np.e) + 1e-16)}
print(predicted(best_step))
pictures.scaling(errors, x="step", y="error of the slope")

# %% [markdown] seen-step
# Read it from right to left. First the error falls with the step: to one side by a tenth for each tenth, to both sides by a hundredth,
# since there the function's bend acts on both sides alike, and cancels. Then it rises again: two numbers that are nearly equal are
# subtracted, and what is left is their rounding. The best is in the middle, and it is the reason why such tests are run in float64 with
# steps of about 0.00001.

# %% [markdown] wrong-rule
# ## A rule that is nearly right
#
# Who writes an operation of their own writes its rule by hand. With minidl that is a class: `forward` gives the output, and `grad_x` the
# gradient by the input `x`. A rule may name what it needs: `gy`, an input, or the output `y`. Below is the hyperbolic tangent, whose
# slope is `1 - y^2`. One of the two classes has `|y|` where the square belongs.

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
# **Predict.** A network with the right rule brings its loss from 2.6 below 0.5 in 80 steps. How far does one with the wrong rule come?

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

print(predicted(loss_with_wrong_rule))
runs = {"right rule": train_with(Tanh()), "wrong rule": train_with(NearlyTanh())}
pictures.curves(runs, x="step", y="loss", log=False)

# %% [markdown] seen-nearly
# Nearly as far. If you had only the orange curve, nothing in it would tell you. The wrong gradient still points downhill, and learning is
# forgiving; so nobody finds such errors by training, and they cost a little of every run, for years. `gradcheck` finds them: it holds
# every rule against differences to both sides, in float64, along random directions.

# %% right-rule-checked
gradcheck(Tanh(), [np.array([-2.0, 0.3, 1.0])])

# %% fails wrong-rule-caught
gradcheck(NearlyTanh(), [np.array([-2.0, 0.3, 1.0])])

# %% [markdown] why-caught
# **Why does this fail?** Read the error from the top: which operation, which argument, at which element, what the rule said (*analytic*)
# and what the differences say (*numeric*). At the place where they part most, compare both with your formula, and you often see what is
# missing.

# %% [markdown] task-softsign
# **Exercise.** `y = x / (1 + |x|)` is called *softsign*. Its slope is `1 / (1 + |x|)^2`. Write the rule for it, but so that it needs only
# `gy` and `y`: then the engine need not keep `x`. (What is `1 - |y|`?) The check holds it against finite differences.

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
# `1 - |y| = 1 - |x| / (1 + |x|) = 1 / (1 + |x|)`, and the slope is its square. A rule that can say it by `y` saves memory wherever `y` is
# kept anyway, because the next layer needs it.

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

# %% check softsign
points, weights = np.array([-3.0, -0.5, 0.2, 1.0, 4.0]), np.array([1.0, -2.0, 3.0, 0.5, -1.0])
check_gradient(lambda x: Softsign().grad_x(weights, Softsign()(x)),
               lambda x: (weights * x / (1 + abs(x))).sum(), points,
               hint="Express the slope by y, and multiply it by what has come from behind, gy.")

# %% [markdown] second
# ## The slope of the slope
#
# A rule is itself a small computation, with operations that have rules. So minidl can record the backward pass too, with
# `create_graph=True`, and the gradient is then a Tensor with a graph of its own. Take `z^3` at 2: the slope is `3 z^2 = 12`.

# %% [markdown] predict-second
# **Predict.** What are the second and the third derivative of `z^3` at 2?

# %% prediction-second
second_by_hand, third_by_hand = None, None

# %% derivatives
z = Tensor(2.0, requires_grad=True)
(slope,) = minidl.grad(z ** 3, z, create_graph=True)
(second,) = minidl.grad(slope, z, create_graph=True)
(third,) = minidl.grad(second, z)
print(predicted((second_by_hand, third_by_hand)))
print(slope.item(), second.item(), third.item())

# %% slope-graph
(slope,) = minidl.grad(z ** 3, z, create_graph=True)
pictures.draw(slope, values=True, gradients=True, names={"z": z, "slope": slope})

# %% [markdown] seen-slope-graph
# This is the graph of the *slope*: the rule of the power, `gy * (3 z^2)`, written down while it ran. The constant is `gy`, and the last
# multiplication, by 1, makes a copy. The gradient beside the edge that leaves `z` is the second derivative.
#
# What for? The gradient says which way is down, and not how far the valley is. The second derivative says how fast the slope changes, and
# so where it will be 0: after a step of `-slope / second`. That is *Newton's method*. On a parabola it arrives with one step; elsewhere
# it needs a few.

# %% [markdown] task-newton
# **Exercise.** Write `newton(function, start)`: the place after one such step toward a minimum. `function` takes a Tensor and gives one;
# `start` is a number. Use `minidl.grad` twice.

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
# The first call must record what its rules do; without `create_graph=True` the slope is a number without a past, and minidl says so when
# it is to be differentiated.

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

# %% check newton
bowls = [(lambda x: (x - 3) ** 2 + 1, 10.0), (lambda x: x ** 4 + x ** 2, 1.0),
         (lambda x: (x * 0.5).exp() - x, 0.5)]

def by_differences_only(function, start, step=1e-4):
    values = [function(Tensor(np.array(start + k * step))).item() for k in (-1, 0, 1)]
    return start - step * (values[2] - values[0]) / 2 / (values[2] - 2 * values[1] + values[0])

check(newton, by_differences_only, on=bowls, close=1e-4,
      hint="minidl.grad(y, x, create_graph=True) gives a tuple of one Tensor, which can be "
           "differentiated again.")

# %% [markdown] hessian
# A network has not one second derivative but one for each *pair* of weights, together the *Hessian*: for the 31,294 weights of LeNet
# nearly a billion numbers. It need not be written down. `minidl.hvp(loss, weights, vectors)` gives its product with a vector, at the
# price of one more pass. Here for the loss of the small network, by the four numbers of `w1`, along the first of them. That is the first
# column of a Hessian of 4 x 4.
#
# **Predict.** The loss is a parabola in `w1[0, 0]`. How many of the four numbers are 0?

# %% prediction-column
zeros_in_column = None

# %% hessian-column
first = np.array([[1, 0], [0, 0]], np.float32)
(column,) = minidl.hvp(loss_of(w1), w1, first)
print(predicted(zeros_in_column))
print("first column of the Hessian", column.numpy().ravel().tolist())

def slope_at(numbers):
    w = nn.Parameter(numbers)
    return minidl.grad(loss_of(w), w)[0].numpy()

by_differences = (slope_at(w1.data + first / 100) - slope_at(w1.data - first / 100)) / 0.02
print("by differences of slopes   ", by_differences.round(2).ravel().tolist())

# %% [markdown] seen-column
# Two, once more the weights of the unit that is off. The others follow from `loss = (2 w1[0, 0] + 4 w1[1, 0] + ...)^2`: twice 2 times 2,
# and twice 2 times 4. (The gradient has the same numbers, by chance: `y` is off by 2.) What such numbers are good for in training is the
# subject of notebook 6.

# %% [markdown] second-rules
# Second derivatives test rules in a way of their own. A rule can give the right slope and still hide from the engine that this slope
# depends on `x`. Below, the slope was computed in the forward pass and put on `self`, where the engine takes it for a constant.

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
# **Why does this fail?** The second derivative of `x^2` is 2. Here it would be 0, since nothing in the rule leads back to `x`. The mend
# is to name `x` in the signature, `def grad_x(self, gy, x): return gy * 2 * x`; then minidl keeps it, and knows what the rule has used.

# %% [markdown] end
# ## What you have seen
#
# A computation leaves a graph behind. Backward, each operation turns the gradient by its output into those by its inputs, by a rule that
# knows nothing of the rest. Where a value was used twice gradients are added, and so an operation's turn comes only after all that used
# it. Rules are written by hand and can be wrong without anybody noticing, so they are held against finite differences. And because a
# backward pass is a computation as well, it can be differentiated itself.
#
# **Where it stands in the code.** `minidl/graph.py`: what an operation is, and what stays of one call of it. `minidl/walk.py`: the walk
# backward. `minidl/functions/`: the rules, each under its forward. `minidl/testing.py`: `gradcheck`. `docs/own_operation.md`: how to add
# an operation.
#
# **Next.** [4. Training a CNN](4_training_a_cnn.ipynb): what is done with the gradient.
