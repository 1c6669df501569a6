# %% [markdown] title
# # 4. Training a CNN
#
# A network begins with random numbers and knows nothing. Here you follow the loop that teaches it to read digits, line by line, and then
# look at what can go wrong: steps that are too long, a model that learns by heart, a digit that is taken for another.
#
# **After this you can**
# - write a training step, and say of each line of a training loop which of the seven steps it is;
# - say how large a learning rate may be in a valley of known curvature, and update a weight by momentum;
# - tell from two curves whether a model learns or memorises, and name two remedies;
# - read a confusion matrix, and the filters of a first layer.
#
# You need notebooks 2 (convolution) and 3 (backpropagation). It takes about an hour.
#
# As before: where you are asked for a prediction, write it in the place of `None` before you run what follows.

# %% [markdown] data
# ## The data
#
# 1,797 handwritten digits of 8 x 8 pixels come with minidl. A fifth of them is set aside as the *test set*. The model never learns from
# these, so they show how well it does on digits that it has not seen.

# %% imports
import os

for library in ("OPENBLAS", "MKL", "OMP", "VECLIB"):    # products as small as these are
    os.environ[f"{library}_NUM_THREADS"] = "1"          # faster on one core

import numpy as np

import minidl
from minidl import data, models, nn, optim, pictures
from minidl import functions as F
from minidl.exercises import check, predicted
from minidl.loop import Callback, fit

# %% look-at-data
train, test = data.load("digits")
print(train, test, sep="\n")

# %% show-data
x, y = train[:20]
pictures.images(x, captions=[str(label) for label in y], columns=10, size=0.6)

# %% [markdown] minibatches
# ## The seven steps
#
# A step of learning does not look at all images, but at a *minibatch* of them. The gradient of 64 images points roughly the same way as
# that of all 1,437, and costs a twentieth of the time. A `Loader` cuts the data into minibatches. One pass over all of the data is an
# *epoch*, and each epoch has them in a new order.
#
# The loss says how wrong the model is. Softmax makes probabilities of its scores, as in notebook 2, and the loss of an image is minus the
# logarithm of the probability of the right digit: 0 if that is 1, and the larger the less probable it is. This is called *cross entropy*.
# The loss of a minibatch is the mean over its images.
#
# **Predict.** How many minibatches of 64 has an epoch of these 1,437 images? And what is the loss of a model that knows nothing, and gives
# each of the ten digits the same probability?

# %% predict-minibatches
minibatches = None
loss_of_knowing_nothing = None

# %% minibatches-found
loader = data.Loader(train, batch_size=64, seed=0)
print(f"{len(loader)} minibatches; {predicted(minibatches)}")
print(f"loss {-np.log(1 / 10):.2f}; {predicted(loss_of_knowing_nothing)}")

# %% [markdown] seven-steps
# The last minibatch has only the 29 images that are left. And the loss of knowing nothing is log 10, about 2.3. Keep that number in mind:
# as long as a loss stays there, nothing has been learned.
#
# This is all of training, in seven steps. `W` stands for all weights, and `lr` and `momentum` say how they are changed; both are explained
# below.

# %% lenet
def lenet(seed=0):
    return models.create("lenet", input_shape=train.shape, classes=10, generator=seed)

# %% by-hand
model = lenet()                                     # Step 1: initialise W.
optimizer = optim.SGD(model, lr=0.02, momentum=0.9)
losses = []
for epoch in range(3):
    for x, y in loader.epoch(epoch):                # Step 2: take a minibatch.
        optimizer.zero_grad()
        outputs = model(x)                          # Step 3: forward, from images to outputs.
        loss = F.softmax_cross_entropy(outputs, y)  # Step 4: the loss, how wrong they are.
        loss.backward()                             # Step 5: its gradient by the outputs.
                                                    # Step 6: back to the gradient by W.
        optimizer.step()                            # Step 7: update W, down the gradient.
        losses.append(loss.item())

# %% by-hand-curve
pictures.curves({"loss": losses}, title="Loss of each minibatch", width=6)

# %% [markdown] fit-does-the-same
# The loss begins above 2.3, since random weights do have opinions, only wrong ones. Then it falls. The curve is rough because each point
# belongs to another minibatch.
#
# `fit` is the same loop, with what a long run needs besides. It measures the model on the test set after every epoch, it stops if the loss
# is no longer a number, and a run can be interrupted and resumed. To watch it, give it a *callback*: an object whose methods `fit` calls
# as it goes. This one collects the loss of each step, as the loop above did.

# %% by-fit
class Losses(Callback):
    def __init__(self):
        self.losses = []

    def step(self, run, loss):
        self.losses.append(loss)

watch, again = Losses(), lenet()
fit(again, loader, test, optim.SGD(again, lr=0.02, momentum=0.9), epochs=3, callbacks=[watch])
print(len(losses), "losses; the same to the last bit:", watch.losses == losses)

# %% [markdown] why-the-same
# Two things are random in this training: the weights at the beginning and the order of the images. Both are drawn from a seed. So a run
# can be repeated to the last bit, and two ways to do the same thing can be compared.
#
# Now the lines of the loop in another order:

# %% fails forgotten-too-late
loss = F.softmax_cross_entropy(model(x), y)
loss.backward()
optimizer.zero_grad()
optimizer.step()

# %% [markdown] why-it-fails
# **Why does this fail?** `backward` leaves a gradient in every parameter, and `zero_grad` takes all of them away. Between `backward` and
# `step` it leaves nothing to step along, and minidl says so. If you forget `zero_grad` altogether, no error is raised: `backward` *adds*
# to what is there, as you have seen in notebook 3, and each step would go along the sum of all gradients so far. So `zero_grad` belongs
# before `backward`, once for each step.

# %% [markdown] task-parts
# **Exercise.** A minibatch may be too large for the memory. Then it is taken in parts, one after the other, and the weights are changed
# once, at the end. Write such a step. All parts have the same number of images, and the weights must come out as if the whole minibatch
# had been taken at once. (The loss of a part is the mean over *its* images.)

# %% exercise parts
def step_in_parts(model, optimizer, parts):
    """One step of learning. parts: a list of pairs (x, y), images and labels."""
    return ...

# %% solution parts
def step_in_parts(model, optimizer, parts):
    """One step of learning. parts: a list of pairs (x, y), images and labels."""
    optimizer.zero_grad()
    for x, y in parts:
        loss = F.softmax_cross_entropy(model(x), y) / len(parts)
        loss.backward()
    optimizer.step()

# %% because parts
# Gradients are added up over the parts, and that is just what is wanted: the mean over the whole minibatch is the sum of the means over
# its parts, divided by the number of parts. `zero_grad` and `step` come once, for the weights are changed once.

# %% wrong parts forgets the gradients of all parts but the last
def step_in_parts(model, optimizer, parts):
    for x, y in parts:
        optimizer.zero_grad()
        loss = F.softmax_cross_entropy(model(x), y) / len(parts)
        loss.backward()
    optimizer.step()

# %% wrong parts changes the weights after each part
def step_in_parts(model, optimizer, parts):
    for x, y in parts:
        optimizer.zero_grad()
        F.softmax_cross_entropy(model(x), y).backward()
        optimizer.step()

# %% wrong parts adds the means up and does not divide
def step_in_parts(model, optimizer, parts):
    optimizer.zero_grad()
    for x, y in parts:
        F.softmax_cross_entropy(model(x), y).backward()
    optimizer.step()

# %% wrong parts never forgets
def step_in_parts(model, optimizer, parts):
    for x, y in parts:
        loss = F.softmax_cross_entropy(model(x), y) / len(parts)
        loss.backward()
    optimizer.step()

# %% check parts
def at_once(model, optimizer, parts):
    [(x, y)] = parts
    optimizer.zero_grad()
    F.softmax_cross_entropy(model(x), y).backward()
    optimizer.step()

def change(step, parts):
    """What two steps, each with 60 images in so many parts, add to the weights."""
    model = nn.Sequential(nn.Flatten(), nn.Affine(64, 10, generator=0))
    optimizer, before = optim.SGD(model, lr=0.1), model[1].w.data.copy()
    for x, y in (train[:60], train[60:120]):
        if step(model, optimizer, list(zip(np.split(x, parts), np.split(y, parts)))) is ...:
            return ...
    return model[1].w.data - before

check(lambda parts: change(step_in_parts, parts), lambda parts: change(at_once, 1),
      on=[1, 2, 5], close=1e-4,
      hint="How often must zero_grad run, and how often step? And how does the mean over all "
           "images follow from the means over the parts?")

# %% [markdown] a-valley
# ## Step 7, looked at closely: how long a step?
#
# The loss depends on the weights as height depends on the place in a landscape, and `step` walks downhill. A network has thousands of
# weights; a landscape of two can be drawn. The one below is a valley: (x² + 20 y²) / 2. Its *curvature*, the second derivative, is 1 along
# x and 20 along y, so its walls are far steeper than its floor. The losses of networks have such narrow valleys.
#
# *Gradient descent* changes each weight by w ← w − lr · gradient, and lr is the *learning rate*. If w is the distance to the bottom, in a
# direction of curvature c, then the gradient is c · w, and a step multiplies the distance by 1 − lr · c.
#
# **Predict.** How large must the learning rate be, so that a walk in this valley never comes to rest at the bottom?

# %% predict-rate
no_rest_from = None

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
print(predicted(no_rest_from))
for lr in (0.09, 0.098, 0.1, 0.102, 0.11):
    print(f"lr {lr:.3f}: after 100 steps |y| = {abs(descend(100, lr=lr)[-1, 1]):.3g}")

# %% [markdown] what-rates-do
# The thin lines join places of equal height, the grey spot is the bottom, and the ring is the start. Each mark is a step. With the small
# rate the path comes down to the floor of the valley, and then hardly moves along it. With the second one it jumps from wall to wall, and
# reaches the bottom. With a rate only a little larger, each jump lands higher up than the one before. The numbers say where that begins:
# at 0.1, where 1 − lr · 20 is −1. This is the dilemma of the learning rate: the steep direction forbids what the flat direction needs.

# %% [markdown] task-rate
# **Exercise.** Now for any valley: from its curvatures, one for each direction, say how large the learning rate may be. The check uses no
# formula: it walks with many rates, and finds where they cease to come to rest.

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
# A step multiplies the distance along a direction by 1 − lr · c. That shrinks as long as it lies between −1 and 1, so lr · c must stay
# below 2, in every direction: the largest curvature decides.

# %% wrong rate the step that lands at the bottom is not yet too long
def largest_rate(curvatures):
    return 1 / max(curvatures)

# %% wrong rate the flat direction does not decide
def largest_rate(curvatures):
    return 2 / min(curvatures)

# %% wrong rate this is the rate that gets on fastest, and not yet too large
def largest_rate(curvatures):
    return 2 / (max(curvatures) + min(curvatures))

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
      hint="A walk comes to rest if 1 - lr * c lies between -1 and 1 in every direction. "
           "Which direction is the first to leave that interval, as lr grows?")

# %% [markdown] momentum
# ## Momentum
#
# A ball that rolls downhill does not stop after each step: it keeps its speed. *Momentum* m gives the walk such a memory. A step goes
# along a velocity v, in which all earlier gradients live on, the older the weaker:
#
# > v ← m · v + gradient, then w ← w − lr · v
#
# With m = 0 this is plain gradient descent.
#
# **Predict.** On a slope that is the same everywhere, steps become longer and longer, up to a limit. How many times as long as without
# momentum are they in the end, with m = 0.9?

# %% predict-momentum
times_as_long = None

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
pictures.curves(lengths, y="length of a step",
                title="Length of a step, where 1 is that without momentum", width=6)

# %% momentum-found
print(f"{step_lengths(0.9, 500)[-1]:.6f} times as long; {predicted(times_as_long)}")

# %% [markdown] momentum-in-the-valley
# With a gradient of 1 the velocity stops growing when v = m · v + 1, that is at v = 1 / (1 − m): twice as long for 0.5, ten times for 0.9.
# So along the floor of a valley, where all gradients point the same way, steps grow. Across it, gradients point to and fro, and cancel in
# v. Here is the valley again, with the same learning rate three times:

# %% momentum-paths
paths = {f"momentum {m}": descend(lr=0.04, momentum=m) for m in (0.0, 0.7, 0.95)}
pictures.landscape(valley, paths, x=(-10, 10), y=(-4, 4), together=False)

# %% [markdown] what-momentum-does
# All three paths have 30 steps. Without momentum the path creeps along the floor. With 0.7 it has arrived. With 0.95 it is too fast: it
# shoots past the bottom, and has to come back. For networks 0.9 is a usual choice.

# %% [markdown] task-momentum
# **Exercise.** Write the rule of momentum for one weight. It is given several gradients, one after the other, and you note where it is
# after each of them. The check compares with minidl's own SGD.

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

# %% wrong momentum-rule multiplies by the learning rate twice
def walk(w, gradients, lr, momentum):
    places, v = [], 0.0
    for gradient in gradients:
        v = momentum * v - lr * gradient
        w = w + lr * v
        places.append(w)
    return places

# %% wrong momentum-rule walks uphill
def walk(w, gradients, lr, momentum):
    places, v = [], 0.0
    for gradient in gradients:
        v = momentum * v + gradient
        w = w + lr * v
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
      hint="First the new v, from the v before and the whole gradient. Then w moves against "
           "the new v, by lr * v.")

# %% [markdown] rates-of-a-network
# ## The learning rate of a network
#
# The landscape of a network has a curvature in each of very many directions, and they change as it learns. Usually nobody computes them:
# one tries several rates. Here are three epochs with four rates, from 0.001 to 1.0.
#
# **Predict.** You have seen what a rate that is too large does in the valley. What is the loss in the end with the rate 1.0?

# %% predict-rate-of-1
loss_with_rate_1 = None

# %% rates-of-lenet
curves = {}
for lr in (0.001, 0.02, 0.1, 1.0):
    model, watch = lenet(), Losses()
    fit(model, loader, None, optim.SGD(model, lr=lr, momentum=0.9), epochs=3, callbacks=[watch])
    curves[f"lr {lr}"] = watch.losses
pictures.curves(curves, width=7)

# %% all-the-same
largest, end = max(watch.losses), np.mean(watch.losses[-10:])
print(f"lr 1.0: the largest loss is {largest:,.0f}, that of the end {end:.2f}; "
      f"{predicted(loss_with_rate_1)}")
print("scores of three images:", model.eval()(train[:3][0]).detach().numpy().round(2), sep="\n")

# %% [markdown] read-the-rates
# The smallest rate learns, but slowly. 0.02 is about right. 0.1 is restless. With 1.0 the loss shoots up in the first steps, as in the
# valley, and leaves the picture; then it comes to rest near a number that you know, log 10: this network knows nothing. The scores say
# why. They are the same for every image. The first steps have thrown the weights so far that in some layer every ReLU gives 0, whatever
# the image is. Its units are dead, as in notebook 3, and no gradient comes back through them, so they never recover. No error is raised,
# and only the curve tells. (If the loss becomes infinite or is no number at all, `fit` does stop, and says at which step.)

# %% [markdown] overfitting
# ## Learning by heart
#
# Now LeNet gets only the first 100 of the training images. It has more parameters than these have pixels, all together. What does it learn
# from so few?
#
# **Predict.** Its *accuracy*, the share of images that it recognises, from 0 to 1: after 40 epochs on those 100 training images, and on
# the test set.

# %% predict-overfitting
accuracy_in_training = None
accuracy_in_test = None

# %% learn-few
few = data.Dataset(*train[:100])
parameters = sum(parameter.size for parameter in lenet().parameters())
print(f"{parameters:,} parameters, {few.x.size:,} pixels")

def learn(transform=None, **options):
    model = lenet(seed=1)
    batches = data.Loader(few, batch_size=20, seed=1, transform=transform)
    optimizer = optim.SGD(model, lr=0.02, momentum=0.9, **options)
    return model, fit(model, batches, test, optimizer, epochs=40)

# %% by-heart
by_heart, history = learn()
print(f"training {history[-1]['train_accuracy']:.2f}; {predicted(accuracy_in_training)}")
print(f"test {history[-1]['test_accuracy']:.2f}; {predicted(accuracy_in_test)}")

# %% overfitting-curves
pictures.learning_curves(history)

# %% [markdown] see-overfitting
# The two curves part. The model soon recognises all of its training images, and becomes surer and surer of them: its training loss falls
# and falls. On the test set it stopped getting better long ago. It has learned its 100 images by heart. This is *overfitting*, and only
# the test set shows it: the training loss alone looks like success.
#
# More data is the best remedy. If there is none, there are two others. *Augmentation* makes new images from those that there are; here
# each one is shifted by up to a pixel, differently each time that it is seen. *Weight decay* adds `weight_decay * w` to the gradient of
# every weight. That pulls all weights toward 0, and a weight stays large only if the data keep asking for it.

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
# With weight decay, and with both remedies, the model learns its training images less well: the training loss ends higher. And the test
# loss ends lower. That is the mark of a remedy for overfitting. (If you try many remedies and keep the one that does best in the test, you
# have learned from the test set as well. For such choices set aside a third part of the data.)

# %% [markdown] task-decay
# **Exercise.** What does weight decay do alone? Say what is left of a weight after several steps, if the loss does not depend on it.

# %% exercise decay
def decayed_weight(w, lr, weight_decay, steps):
    """What so many steps, without momentum, leave of a weight w.

    The gradient of the loss by w is 0.
    """
    return ...

# %% solution decay
def decayed_weight(w, lr, weight_decay, steps):
    """What so many steps, without momentum, leave of a weight w.

    The gradient of the loss by w is 0.
    """
    return w * (1 - lr * weight_decay) ** steps

# %% because decay
# Only weight_decay · w is left of the gradient, so a step takes w to w − lr · weight_decay · w. Each step takes away the same *share* of
# what is there, as in radioactive decay. That share is a product: if you lower the learning rate, you lower the decay too.

# %% wrong decay without the learning rate
def decayed_weight(w, lr, weight_decay, steps):
    return w * (1 - weight_decay) ** steps

# %% wrong decay the same amount at each step
def decayed_weight(w, lr, weight_decay, steps):
    return w - steps * lr * weight_decay * w

# %% wrong decay as if steps were infinitely small
def decayed_weight(w, lr, weight_decay, steps):
    return w * np.exp(-lr * weight_decay * steps)

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
# Now all 1,437 images, and a small network whose first layer has filters of 5 x 5, large enough to be looked at. Its learning rate falls
# from 0.1 to 0, along half a wave of a cosine: long steps first, then ever finer ones.

# %% small-network
rng = np.random.default_rng(0)
model = nn.Sequential(
    nn.Conv2d(1, 8, 5, padding=2, activation="relu", generator=rng), nn.MaxPool2d(2),
    nn.Conv2d(8, 16, 3, padding=1, activation="relu", generator=rng), nn.MaxPool2d(2),
    nn.Flatten(), nn.Affine(64, 10, generator=rng))
before = model[0].w.data.copy()
falling = optim.cosine(0.1, steps=20 * len(loader))
optimizer = optim.SGD(model, lr=falling, momentum=0.9, weight_decay=0.02)
history = fit(model, loader, test, optimizer, epochs=20)
print(f"test accuracy {history[-1]['test_accuracy']:.3f}")

# %% filters-before-and-after
both = np.concatenate([before, model[0].w.data])
pictures.filters(both, columns=8, size=0.8,
                 title="The eight filters: before (above) and after (below)")

# %% [markdown] see-filters
# Light is positive, dark is negative, grey is 0, and all filters have the same scale. What began as noise has order now. In several
# filters light and dark lie beside each other in bars or corners: such a filter answers to strokes and edges of one direction. A filter
# that has turned grey was of little use, and weight decay has faded it out.
#
# And what does a network get wrong? First the model that has learned 100 images by heart, since it makes more mistakes. In a *confusion
# matrix*, `counts[i, j]` says how many images of the digit i were taken for j.

# %% confusion
def classify(model, x):
    """The most probable class of each image, and its probability."""
    with minidl.no_grad():
        p = F.softmax(model.eval()(x), axis=1).numpy()
    return p.argmax(axis=1), p.max(axis=1)

def confusion_matrix(y, taken):
    counts = np.zeros((10, 10), int)
    np.add.at(counts, (y, taken), 1)            # adds 1 at (i, j) for each image
    return counts

# %% confusion-picture
x, y = test[:]
counts = confusion_matrix(y, classify(by_heart, x)[0])
pictures.confusion(counts)

# %% [markdown] see-confusion
# A row for each digit, and a column for what it was taken for. What was recognised stands on the diagonal, in blue; mistakes are orange,
# the more frequent the darker. They are not spread at random: the model takes certain digits for certain others. The accuracy, a single
# number, hides that.
#
# **Exercise.** The *recall* of a class is the share of its images that are recognised. Compute it for every class.

# %% exercise recall
def recall(counts):
    """The recall of every class, an array of 10. counts: a confusion matrix as above."""
    return ...

# %% solution recall
def recall(counts):
    """The recall of every class, an array of 10. counts: a confusion matrix as above."""
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

# %% wrong recall right only if all classes have the same number of images
def recall(counts):
    return counts.diagonal() / counts.sum(axis=1).mean()

# %% wrong recall how much was taken for the class, right or wrong
def recall(counts):
    return counts.sum(axis=0) / counts.sum(axis=1)

# %% wrong recall one number, the accuracy
def recall(counts):
    return counts.diagonal().sum() / counts.sum()

# %% check recall
def one_by_one(counts):
    shares = []
    for digit in range(10):
        taken = [j for j in range(10) for _ in range(counts[digit, j])]     # image by image
        shares.append(taken.count(digit) / len(taken))
    return np.array(shares)

matrices = [counts, confusion_matrix(y, classify(model, x)[0]),
            confusion_matrix(np.arange(100) % 10, np.arange(100) // 3 % 10)]
check(recall, one_by_one, on=matrices,
      hint="Of all images of one digit, which share is right? They all stand in one row.")

# %% [markdown] mistakes
# And this is what the small network, which has learned from all images, still gets wrong. Under each image stand the digit that it is,
# what it was taken for, and how sure the network was. The surest mistakes come first.

# %% show-mistakes
taken, sure = classify(model, x)
pictures.mistakes(x, y, taken, sure, most=8, columns=8)

# %% [markdown] end
# Look at them before you blame the model: about some of them people would not agree either. Where a digit is plain to you, ask what the
# model has seen in training that was like it.
#
# ## What you have seen
#
# Training is seven steps, over and over again. The steepest direction limits the learning rate, the flattest needs a large one, and
# momentum helps with both. A model that has many parameters and few data learns by heart, and only the test set shows it; weight decay and
# shifted images work against it. A confusion matrix and a few pictures say more than an accuracy.
#
# **Where it stands in the code.** `minidl/loop.py`: the seven steps, with the same comments. `minidl/optim/sgd.py`: SGD, with its
# arithmetic in `minidl/kernels/reference_updates.py`. `minidl/data/loader.py`: minibatches. `minidl/data/transforms.py`: shifts. At the
# shell, `python -m minidl.train` does all of this.
#
# **Next.** [5. Batches, matrices and devices](5_matrices_and_devices.ipynb): why 64 images in one batch take far less than 64 times as
# long as one, and how a convolution becomes a product.
