# %% [markdown] title
# # 4. Training a CNN
#
# A network begins with random numbers and knows nothing. Here you write the loop that teaches it to read digits, and then look at
# everything that can go wrong with it: a step that is too long, a model that learns by heart, a digit that is taken for another.
#
# **After this you can**
# - write a training loop, and say of each line which of the seven steps it is;
# - say how large a learning rate may be in a valley of known curvature, and update a weight by momentum;
# - tell from two curves whether a model learns or memorises, and name two remedies;
# - read a confusion matrix, and the filters of a first layer.
#
# You need notebooks 2 (convolution) and 3 (backpropagation). It takes about an hour. Where you are asked for a prediction, write it in the
# place of `None` before you run what follows.

# %% [markdown] data
# ## The data
#
# 1,797 handwritten digits of 8 x 8 pixels, which come with minidl. A fifth is set aside as the *test*: the model never learns from
# these, so they say how it will do on digits that it has not seen.

# %% look-at-data
import numpy as np

import minidl
from minidl import data, models, nn, optim, pictures
from minidl import functions as F
from minidl.exercises import check, predicted
from minidl.loop import Callback, fit

train, test = data.load("digits")
print(train, test, sep="\n")

# %% show-data
x, y = train[:20]
pictures.images(x, captions=[str(label) for label in y], columns=10, size=0.6)

# %% [markdown] minibatches
# ## The seven steps
#
# A step of learning does not look at all examples, but at a *minibatch* of them: 64 images say nearly as well as 1,437 where to go, and
# cost a twentieth. A `Loader` cuts the data into minibatches, in a new order each *epoch* (one pass over all of the data).
#
# **Predict.** How many minibatches of 64 has an epoch of these 1,437 images? And which loss, the negative logarithm of the probability
# of the right class, has a model that knows nothing and gives each of the ten digits the same probability? Set both before you go on.

# %% predict-minibatches
prediction = None, None          # minibatches, loss

# %% minibatches-found
loader = data.Loader(train, batch_size=64, seed=0)
print(f"{len(loader)} minibatches, loss {-np.log(1 / 10):.3f}; {predicted(prediction)}")

# %% [markdown] seven-steps
# The last minibatch has only the 29 images that are left, but it is one more. And whoever guesses among ten has a loss of log 10, about
# 2.3. Keep that number: a loss that stays there says that nothing has been learned.
#
# This is all of training. In `minidl/loop.py` the same steps stand, with the same comments.

# %% lenet
def lenet(seed=0):
    return models.create("lenet", input_shape=train.shape, classes=10, generator=seed)

# %% by-hand
model = lenet()                                     # Step 1: initialise W.
optimizer = optim.SGD(model, lr=0.02, momentum=0.9)
losses = []
for epoch in range(4):
    for x, y in loader.epoch(epoch):                # Step 2: take a minibatch.
        optimizer.zero_grad()
        outputs = model(x)                          # Step 3: forward, from images to outputs.
        loss = F.softmax_cross_entropy(outputs, y)  # Step 4: the loss, how wrong they are.
        loss.backward()                             # Steps 5 and 6: its gradient at the
                                                    # outputs, then back to that of every W.
        optimizer.step()                            # Step 7: update W, down the gradient.
        losses.append(loss.item())

# %% by-hand-curve
pictures.curves({"loss": losses}, title="Loss of each minibatch", width=6)

# %% [markdown] fit-does-the-same
# It begins above 2.3, for random weights are not without opinion, only wrong, and falls. It is rough, since each point is another
# minibatch.
#
# `fit` is the same loop, with what a long run needs around it: it tests after every epoch, calls you back, notices a loss that is no
# number, and can be stopped and resumed.
#
# A *callback* is how you watch it. This one writes down what the loop above wrote down.

# %% by-fit
class Losses(Callback):
    def __init__(self):
        self.heard = []

    def step(self, run, loss):
        self.heard.append(loss)

watch, again = Losses(), lenet()
fit(again, loader, test, optim.SGD(again, lr=0.02, momentum=0.9), epochs=4, callbacks=[watch])
print(len(losses), "losses; the same to the last bit:", watch.heard == losses)

# %% [markdown] why-the-same
# All that is random in training, the first weights and the order of the images, is drawn from a seed. So a run can be repeated to the bit,
# and two ways of doing it can be compared.
#
# **Why does this fail?** The lines of the loop in another order:

# %% fails forgotten-too-late
loss = F.softmax_cross_entropy(model(x), y)
loss.backward()
optimizer.zero_grad()
optimizer.step()

# %% [markdown] why-it-fails
# `backward` leaves a gradient in every parameter and *adds* it to one that is already there. `zero_grad` forgets them; called between
# `backward` and `step` it leaves nothing to step along, and minidl says so. Forgetting to call it at all raises no error: each step would
# then go along the sum of all gradients so far. So `zero_grad` belongs before `backward`, once for each minibatch.

# %% [markdown] a-valley
# ## Step 7, looked at closely: how long a step?
#
# A loss is a landscape over its weights, and `step` walks down it. A network has thousands of weights; two can be drawn. This valley is
# 20 times as steep across as along: its *curvature*, the second derivative, is 1 along x and 20 along y. The losses of networks have such
# narrow valleys.
#
# Gradient descent goes by w ← w − lr · gradient. Along an axis of curvature c the gradient is c · w, so each step multiplies the distance
# to the bottom by 1 − lr · c.
#
# **Predict.** From which learning rate on does a walk in this valley never come to rest?

# %% predict-rate
prediction = None

# %% valley
def valley(x, y):
    return (x ** 2 + 20 * y ** 2) / 2

def descend(steps=30, **options):
    """The places that SGD comes to."""
    place = minidl.Tensor(np.array([-9.0, 2.0]), requires_grad=True)
    optimizer, places = optim.SGD({"place": place}, **options), [place.data.copy()]
    for _ in range(steps):
        optimizer.zero_grad()
        valley(place[0], place[1]).backward()
        optimizer.step()
        places.append(place.data.copy())
    return np.array(places)

# %% three-rates
paths = {f"lr {lr}": descend(lr=lr) for lr in (0.01, 0.09, 0.102)}
pictures.landscape(valley, paths, x=(-10, 10), y=(-4, 4), together=False)

# %% rate-found
print(predicted(prediction))
for lr in (0.09, 0.098, 0.1, 0.102, 0.11):
    print(f"lr {lr:.3f}: after 100 steps |y| = {abs(descend(100, lr=lr)[-1, 1]):.3g}")

# %% [markdown] what-rates-do
# The lines join places of equal height; the ring is the start. With the small rate the path falls to the floor of the valley and then
# hardly moves along it. With the larger one it jumps from wall to wall, and gets on faster. With a rate a little larger still, each jump
# lands higher up. That is the dilemma: the steep direction forbids the rate that the flat direction needs.

# %% [markdown] task-rate
# **Exercise.** From the curvatures of a valley, one for each direction, say how large the learning rate may be. The check knows no formula:
# it walks, and halves the interval between a rate that comes to rest and one that does not.

# %% exercise rate
def largest_rate(curvatures):
    """The rate from which on gradient descent does not come to rest.

    curvatures: an array, one for each direction.
    """
    return ...

# %% solution rate
def largest_rate(curvatures):
    """The rate from which on gradient descent does not come to rest.

    curvatures: an array, one for each direction.
    """
    return 2 / max(curvatures)

# %% because rate
# A step multiplies the distance along a direction by 1 − lr · c. That shrinks as long as it lies between −1 and 1, so lr · c
# must stay below 2, in every direction: the largest curvature decides.

# %% wrong rate the step that lands at the bottom is not yet too long
def largest_rate(curvatures):
    return 1 / max(curvatures)

# %% wrong rate the flat direction does not decide
def largest_rate(curvatures):
    return 2 / min(curvatures)

# %% wrong rate nor does the mean
def largest_rate(curvatures):
    return 2 / curvatures.mean()

# %% check rate
def measured(curvatures):
    rests, grows = 0.0, 10.0
    for _ in range(40):
        lr, w = (rests + grows) / 2, np.ones(len(curvatures))
        for _ in range(60):
            w = w - lr * curvatures * w
        rests, grows = (lr, grows) if abs(w).max() < 1 else (rests, lr)
    return rests

valleys = [np.array([1.0, 20.0]), np.array([5.0, 0.2, 3.0]), np.array([0.3])]
check(largest_rate, measured, on=valleys, close=1e-3,
      hint="In which direction does 1 - lr * c leave the numbers between -1 and 1 first?")

# %% [markdown] momentum
# ## Momentum
#
# A ball does not stop at each step to look where it is steepest: it keeps its speed. With *momentum* m a step goes along a velocity v,
# which remembers the gradients before, older ones less and less:
#
# > v ← m · v + gradient, then w ← w − lr · v
#
# **Predict.** On a slope that is the same everywhere, how many times longer do the steps become with m = 0.9 than without momentum?

# %% predict-momentum
prediction = None

# %% on-a-slope
def step_lengths(momentum, steps=40):
    w = minidl.Tensor(np.array([0.0]), requires_grad=True)
    optimizer, places = optim.SGD({"w": w}, lr=1.0, momentum=momentum), [0.0]
    for _ in range(steps):
        w.grad = np.array([1.0])
        optimizer.step()
        places.append(w.data[0])
    return -np.diff(places)

lengths = {f"momentum {m}": step_lengths(m) for m in (0.0, 0.5, 0.9)}
pictures.curves(lengths, title="Length of a step on a constant slope", width=6)

# %% momentum-found
print(f"{step_lengths(0.9, 500)[-1]:.6f} times; {predicted(prediction)}")

# %% [markdown] momentum-in-the-valley
# In the end v = m · v + 1, so v = 1 / (1 − m): two times longer for 0.5, ten times for 0.9. Along the floor of a valley, where all
# gradients point the same way, steps grow. Across it they point to and fro, and cancel in v. The same learning rate, three times:

# %% momentum-paths
paths = {f"momentum {m}": descend(lr=0.04, momentum=m) for m in (0.0, 0.7, 0.95)}
pictures.landscape(valley, paths, x=(-10, 10), y=(-4, 4), together=False)

# %% [markdown] what-momentum-does
# All three made 30 steps of the same learning rate. Without momentum the path creeps along the floor; with 0.7 it has arrived; with 0.95 it
# shoots past the bottom and must come back. For the noise of minibatches 0.9 is a usual choice.

# %% [markdown] task-momentum
# **Exercise.** Write the rule of momentum for one weight, and let it walk along several gradients, one after the other. minidl's own SGD
# walks beside you.

# %% exercise momentum-rule
def walk(w, gradients, lr, momentum):
    """The weight after each update: a list, with a number for each of the gradients.

    w: the weight before them, a number.
    """
    places = ...            # the velocity before the first gradient is 0
    return places

# %% solution momentum-rule
def walk(w, gradients, lr, momentum):
    """The weight after each update: a list, with a number for each of the gradients.

    w: the weight before them, a number.
    """
    places, v = [], 0.0
    for gradient in gradients:
        v = momentum * v + gradient
        w = w - lr * v
        places.append(w)
    return places

# %% because momentum-rule
# The velocity lives on from one gradient to the next, and the weight moves along the velocity, not along the gradient.

# %% wrong momentum-rule the velocity is not a mean of gradients
def walk(w, gradients, lr, momentum):
    places, v = [], 0.0
    for gradient in gradients:
        v = momentum * v + (1 - momentum) * gradient
        w = w - lr * v
        places.append(w)
    return places

# %% wrong momentum-rule remembers only the gradient before
def walk(w, gradients, lr, momentum):
    places, before = [], 0.0
    for gradient in gradients:
        w = w - lr * (gradient + momentum * before)
        before = gradient
        places.append(w)
    return places

# %% wrong momentum-rule steps before the velocity is renewed
def walk(w, gradients, lr, momentum):
    places, v = [], 0.0
    for gradient in gradients:
        w = w - lr * v
        v = momentum * v + gradient
        places.append(w)
    return places

# %% check momentum-rule
def by_minidl(w, gradients, lr, momentum):
    parameter, places = nn.Parameter(np.array([w])), []
    optimizer = optim.SGD({"w": parameter}, lr=lr, momentum=momentum)
    for gradient in gradients:
        parameter.grad = np.array([gradient])
        optimizer.step()
        places.append(parameter.data[0])
    return places

walks = [(1.0, [0.5, 0.5, 0.5], 0.1, 0.9), (-2.0, [3.0, -1.0, 0.0, 2.0], 0.5, 0.5),
         (0.0, [1.0, 2.0], 0.1, 0.0)]
check(walk, by_minidl, on=walks,
      hint="Renew v from the v before and the gradient as it is; then move w along v.")

# %% [markdown] rates-of-a-network
# ## The learning rate of a network
#
# A network's landscape has many curvatures, they change as it learns, and nobody computes them: one tries. Four epochs with four rates:

# %% rates-of-lenet
curves = {}
for lr in (0.001, 0.02, 0.1, 1.0):
    model, watch = lenet(), Losses()
    fit(model, loader, None, optim.SGD(model, lr=lr, momentum=0.9), epochs=4, callbacks=[watch])
    curves[f"lr {lr}"] = watch.heard
pictures.curves(curves, width=7)

# %% all-the-same
print(f"loss at the end {np.mean(watch.heard[-10:]):.2f}")
print("the outputs for three images, of the model with the largest rate:")
print(model.eval()(x[:3]).detach().numpy().round(2))

# %% [markdown] read-the-rates
# The smallest rate learns, but slowly. 0.02 is about right; 0.1 is restless. The largest throws the weights away in its first steps and
# then stays near the loss that you know, log 10. Its outputs are the same for every image: in some layer every ReLU is 0, whatever the
# image, and where a ReLU is 0 no gradient comes back. Such a network is dead. No error is raised: look at your curves. (Only where the
# loss becomes infinite or no number at all does `fit` stop, and names the step.)

# %% [markdown] overfitting
# ## Learning by heart
#
# LeNet has more numbers to set than 100 images have pixels. What does it learn from so few?
#
# **Predict.** Its accuracy, from 0 to 1, on those 100 training images after 60 epochs; and on the test images.

# %% predict-overfitting
prediction = None, None          # training, test

# %% learn-few
few = data.Dataset(*train[:100])
numbers = sum(p.size for _, p in lenet().named_parameters())
print("numbers to set:", numbers, " pixels:", few.x.size)

def learn(transform=None, **options):
    model = lenet(seed=1)
    batches = data.Loader(few, batch_size=20, seed=1, transform=transform)
    optimizer = optim.SGD(model, lr=0.02, momentum=0.9, **options)
    return model, fit(model, batches, test, optimizer, epochs=60)

# %% by-heart
by_heart, history = learn()
accuracies = [round(history[-1][f"{part}_accuracy"], 3) for part in ("train", "test")]
print(f"training and test: {accuracies}; {predicted(prediction)}")

# %% overfitting-curves
pictures.learning_curves(history)

# %% [markdown] see-overfitting
# The curves part. On what it learned from the model becomes perfect, and surer and surer; on the test it stopped getting better long ago.
# It has learned its 100 images by heart. This is *overfitting*, and only the test shows it: the training loss looks like success.
#
# More data is the best remedy. Without more, two others. *Augmentation* makes new images of the old ones, here by shifting each one by up
# to a pixel, differently each time that it is seen. *Weight decay* pulls every weight towards 0 at each step, so that a weight stays
# large only if the data keep asking for it: what is added to its gradient is weight_decay · w.

# %% shifted
x, y = few[[3] * 10]
shifted = data.Shift(1)(x, np.random.default_rng(0))
pictures.images(shifted, columns=10, size=0.6, title="One image as it is seen in ten epochs")

# %% remedies
_, decayed = learn(weight_decay=0.01)
_, both = learn(weight_decay=0.01, transform=data.Shift(1))
runs = {"by heart": history, "weight decay": decayed, "weight decay and shifts": both}
for name, run in runs.items():
    loss, accuracy = run[-1]["train_loss"], run[-1]["test_accuracy"]
    print(f"{name:24} training loss {loss:.4f}   test accuracy {accuracy:.3f}")

# %% remedies-curves
test_losses = {name: [epoch["test_loss"] for epoch in run] for name, run in runs.items()}
pictures.curves(test_losses, x="epoch", y="test loss", width=7)

# %% [markdown] see-remedies
# Both hold the model back: its training loss ends higher, and its test loss lower. That is the mark of a remedy for overfitting, and each
# costs a word. (Whoever tries many remedies and keeps the one with the best test has learned from the test, too. For such choices set
# aside a third part of the data.)

# %% [markdown] task-decay
# **Exercise.** What does weight decay alone do? Say what is left of a weight after several steps in which the loss does not care for it.

# %% exercise decay
def decayed_weight(w, lr, weight_decay, steps):
    """What so many steps of SGD, without momentum, leave of a weight w.

    The loss does not depend on it: its gradient is 0.
    """
    return ...

# %% solution decay
def decayed_weight(w, lr, weight_decay, steps):
    """What so many steps of SGD, without momentum, leave of a weight w.

    The loss does not depend on it: its gradient is 0.
    """
    return w * (1 - lr * weight_decay) ** steps

# %% because decay
# The gradient is weight_decay · w alone, so a step takes w to w − lr · weight_decay · w: a constant share is lost, as in radioactive
# decay. The rate of it is the product of both numbers: whoever lowers the learning rate lowers the decay too.

# %% wrong decay without the learning rate
def decayed_weight(w, lr, weight_decay, steps):
    return w * (1 - weight_decay) ** steps

# %% wrong decay the same amount at each step
def decayed_weight(w, lr, weight_decay, steps):
    return w - steps * lr * weight_decay * w

# %% wrong decay an amount that does not depend on w
def decayed_weight(w, lr, weight_decay, steps):
    return w - steps * lr * weight_decay

# %% check decay
def by_minidl(w, lr, weight_decay, steps):
    parameter = nn.Parameter(np.array([w]))
    optimizer = optim.SGD({"w": parameter}, lr=lr, weight_decay=weight_decay)
    for _ in range(steps):
        parameter.grad = np.array([0.0])
        optimizer.step()
    return parameter.data[0]

weights = [(1.0, 0.1, 0.1, 1), (2.0, 0.1, 0.5, 10), (-3.0, 0.5, 0.2, 4)]
check(decayed_weight, by_minidl, on=weights,
      hint="Write one step down: the gradient is weight_decay * w, and it is multiplied by lr. "
           "What share of w is left?")

# %% [markdown] look-inside
# ## What has it learned?
#
# Now all 1,437 images, and a small network whose first layer has filters of 5 x 5, large enough to be looked at. Its learning rate
# falls to 0 along a cosine: long steps first, then ever finer ones.

# %% small-network
rng = np.random.default_rng(0)
model = nn.Sequential(
    nn.Conv2d(1, 8, 5, padding=2, activation="relu", generator=rng), nn.MaxPool2d(2),
    nn.Conv2d(8, 16, 3, padding=1, activation="relu", generator=rng), nn.MaxPool2d(2),
    nn.Flatten(), nn.Affine(64, 10, generator=rng))
before = model[0].w.data.copy()
falling = optim.cosine(0.1, steps=30 * len(loader))
optimizer = optim.SGD(model, lr=falling, momentum=0.9, weight_decay=0.01)
history = fit(model, loader, test, optimizer, epochs=30)
print(f"test accuracy {history[-1]['test_accuracy']:.3f}")

# %% filters-before
pictures.filters(before, title="The first layer's filters before")

# %% filters-after
pictures.filters(model[0].w, title="... and after")

# %% [markdown] see-filters
# Light is positive, dark is negative, grey is 0. What began as noise has become strokes: bars and slopes, light on one side and dark on the
# other, which answer to edges of that direction. A filter that has turned grey was not needed, and weight decay has put it out.
#
# For the mistakes, first the model that learned 100 images by heart: it makes more of them. `counts[i, j]` says how often an image of i was
# taken for j.

# %% confusion
def classify(model, x):
    """What a model takes images for, and the probability that it gives to that."""
    with minidl.no_grad():
        p = F.softmax(model.eval()(x), axis=1).numpy()
    return p.argmax(axis=1), p.max(axis=1)

def confusion_matrix(y, taken):
    counts = np.zeros((10, 10), int)
    np.add.at(counts, (y, taken), 1)
    return counts

# %% confusion-picture
x, y = test[:]
counts = confusion_matrix(y, classify(by_heart, x)[0])
pictures.confusion(counts)

# %% [markdown] see-confusion
# A row for each digit, a column for what it was taken for. What is right stands on the diagonal. Orange cells are habits: this model does
# not fail at random, it takes certain digits for certain others. Accuracy, one number, hides that.
#
# **Exercise.** The *recall* of a class is the share of its images that are recognised. Compute it for every class.

# %% exercise recall
def recall(counts):
    """The recall of every class, an array. counts: a confusion matrix as above."""
    return ...

# %% solution recall
def recall(counts):
    """The recall of every class, an array. counts: a confusion matrix as above."""
    return counts.diagonal() / counts.sum(axis=1)

# %% because recall
# A row holds all images of a class, so its sum is how many there are, and the diagonal how many of them are right. Divided by the sum of
# the column it would be the *precision*: the share of what was taken for a class that belongs to it.

# %% wrong recall this is the precision
def recall(counts):
    return counts.diagonal() / counts.sum(axis=0)

# %% wrong recall the share of all images
def recall(counts):
    return counts.diagonal() / counts.sum()

# %% wrong recall one number, the accuracy
def recall(counts):
    return counts.diagonal().sum() / counts.sum()

# %% check recall
def counted(y, taken):
    return np.array([np.mean(taken[y == digit] == digit) for digit in range(10)])

answers = [(y, classify(by_heart, x)[0]), (y, classify(model, x)[0]),
           (np.arange(100) % 10, np.arange(100) // 3 % 10)]
check(lambda y, taken: recall(confusion_matrix(y, taken)), counted, on=answers,
      hint="Of all images of one digit, which share is right? They all stand in one row.")

# %% [markdown] mistakes
# And this is what the small network, which learned from all images, still gets wrong, the surest mistakes first:

# %% show-mistakes
taken, sure = classify(model, x)
pictures.mistakes(x, y, taken, sure, most=8, columns=8)

# %% [markdown] end
# Look at them before you blame the model. Some would divide people too. Where one is plain, ask what the model has seen that was like it.
#
# ## What you have seen
#
# Training is seven steps, over and over, and `fit` is no more than that. The learning rate is bounded by the steepest curvature and
# wanted by the flattest; momentum helps both. A model with more numbers than its data can pin down learns by heart, and the
# test tells; shifts and weight decay push back. A confusion matrix and a few pictures say more than an accuracy.
#
# **Where it stands in the code:** the seven steps in `minidl/loop.py`; SGD in `minidl/optim/sgd.py`, with its arithmetic in
# `minidl/kernels/reference_updates.py`; minibatches in `minidl/data/loader.py`, shifts in `transforms.py`. At the shell
# `python -m minidl.train` is all of this.
#
# **Next:** 5. *Batches, matrices and devices*: why 64 images take hardly longer than one, and how a convolution becomes a product.
