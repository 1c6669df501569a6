# %% [markdown] title
# # 2. Convolution by hand
#
# A convolution slides a small window over an image and gives one number for each place of the window. You do it on squared paper first,
# then in a loop, then with minidl, and at the end you follow an image through a trained network, layer by layer.
#
# **After this you can**
# - compute a convolution with bias, channels, stride and padding by hand, and say what shape the result has;
# - count its multiplications and its parameters;
# - say what pooling keeps and what it throws away, and measure how much a small shift of the image changes;
# - read the error that minidl raises when shapes do not fit, and mend the call;
# - follow one image through a convolutional network to the probabilities of its classes.
#
# You need Python and a little NumPy. It takes about 45 minutes.
#
# As before: where you are asked for a prediction, write it in the place of `None` before you run what follows.

# %% imports
import numpy as np

import minidl
from minidl import data, models, nn, optim, pictures
from minidl import functions as F
from minidl.exercises import check, predicted
from minidl.loop import fit

# %% [markdown] one-window
# ## One window, one image
#
# Here are an image `x` of 4 x 4 numbers and a *filter* `w` of 3 x 3, whose numbers are called *weights*. Lay the filter on the upper left
# corner of the image. Multiply each number of the image by the weight that lies on it, and add up the products: that is the first number
# of the result. Then move the filter one step to the right, and do it again. When there is no more room, begin the next row.

# %% image-and-filter
x = np.array([[1, 1, 2, 0],
              [0, 2, 1, 3],
              [2, 0, 1, 2],
              [3, 2, 0, 1]], np.float32)
w = np.array([[2, 0, 1],
              [0, 2, 1],
              [1, 0, 1]], np.float32)

# %% [markdown] predict-first
# **Predict.** What is the first number of the result? Do it on paper. And how many multiplications are needed for the whole result?

# %% prediction-first
first_number = None
multiplications_in_all = None

# %% window-picture
first = (x[:3, :3] * w).sum()
print(f"the first number is {first:.0f}; {predicted(first_number)}")
print(f"4 places with {w.size} multiplications each: {4 * w.size}; "
      f"{predicted(multiplications_in_all)}")
pictures.window(x, w)

# %% [markdown] seen-window
# Each place of the window has its colour, and so has the number that is computed there. The small numbers are the weights. The image has 4
# rows, and a window of 3 rows fits on it at 2 heights; the same holds for the columns. So the result is 2 x 2. Neighbouring windows
# overlap: most numbers of the image are used more than once. And all places use the same nine weights.

# %% [markdown] as-a-loop
# ## The same in a loop
#
# Two loops go over the places. What happens at a place is one line.

# %% loop
def convolve(x, w):
    kh, kw = w.shape
    y = np.zeros((x.shape[0] - kh + 1, x.shape[1] - kw + 1))
    for i in range(y.shape[0]):
        for j in range(y.shape[1]):
            y[i, j] = (x[i:i + kh, j:j + kw] * w).sum()
    return y

convolve(x, w)

# %% [markdown] in-minidl
# In minidl the same is `functions.conv2d`. It takes many images at once, a *batch*, and each image may have several *channels*, such as
# red, green and blue. So it expects arrays with four axes. What does it say to an image with two?

# %% fails two-axes
F.conv2d(x, w)

# %% [markdown] four-axes
# **Why does this fail?** Images are always `(N, C, H, W)`: how many images, channels, height, width. Filters are `(O, C, KH, KW)`: how many
# filters, channels, height, width. One grey image is a batch of one image with one channel. `x[None, None]` puts two axes of length 1 in
# front.

# %% in-minidl-right
y = F.conv2d(x[None, None], w[None, None])
print(y.shape)
y[0, 0]

# %% [markdown] not-flipped
# These are the numbers of the picture. In mathematics a convolution first turns the filter by half a turn, and what we do is called
# *cross-correlation*. In this field nobody turns it: the weights are learned, so the filter may as well be learned turned.

# %% [markdown] task-count
# **Exercise.** Write a function that gives the number of multiplications for an image of `height` x `width` and a filter of `kernel` x
# `kernel`. The cell below it tries your function on several sizes, and says whether it is right.

# %% exercise count
def multiplications(height, width, kernel):
    return ...

# %% solution count
def multiplications(height, width, kernel):
    places = (height - kernel + 1) * (width - kernel + 1)
    return places * kernel * kernel

# %% because count
# There are `kernel * kernel` multiplications at each place. The window's upper left corner can lie in `height - kernel + 1` rows: from
# row 0 to row `height - kernel`, and both count.

# %% wrong count lets the window stick out
def multiplications(height, width, kernel):
    return height * width * kernel * kernel

# %% wrong count misses the last place
def multiplications(height, width, kernel):
    return (height - kernel) * (width - kernel) * kernel * kernel

# %% wrong count counts places only
def multiplications(height, width, kernel):
    return (height - kernel + 1) * (width - kernel + 1)

# %% wrong count is right for squares only
def multiplications(height, width, kernel):
    return (height - kernel + 1) ** 2 * kernel * kernel

# %% wrong count takes a filter for a row
def multiplications(height, width, kernel):
    return (height - kernel + 1) * (width - kernel + 1) * kernel

# %% check count
def counted(height, width, kernel):
    fits = [(i, j) for i in range(height) for j in range(width)
            if i + kernel <= height and j + kernel <= width]
    return len(fits) * kernel * kernel

check(multiplications, counted, on=[(4, 4, 3), (28, 28, 5), (6, 9, 1), (3, 7, 3)],
      hint="In how many rows can the window begin and not stick out? What lies under it?")

# %% [markdown] bias
# ## Bias
#
# A filter has one more number, its *bias*, which is added at every place. It shifts the whole result. Most networks then apply a *ReLU*,
# `max(y, 0)`: it keeps what is positive and makes the rest 0. So the bias says how large a sum must be to count at all.

# %% bias-picture
print(F.conv2d(x[None, None], w[None, None], np.array([3], np.float32))[0, 0])
pictures.window(x, w, b=3, places=[(0, 0), (1, 1)])

# %% [markdown] channels
# ## Channels
#
# A colour image has three channels. Its filter has three as well: weights of its own for each channel.

# %% three-channels
image = np.array([[[1, 2, 4, 2], [0, 1, 2, 3], [3, 0, 1, 0], [2, 4, 0, 2]],
                  [[4, 0, 3, 1], [0, 1, 0, 3], [3, 0, 2, 0], [1, 3, 0, 1]],
                  x], np.float32)
filter3 = np.array([[[2, 0, 1], [0, 3, 0], [1, 0, 2]],
                    [[0, 1, 3], [0, 1, 2], [1, 0, 0]],
                    w], np.float32)
print("image", image.shape, " filter", filter3.shape)

# %% [markdown] predict-channels
# **Predict.** What is the shape of the result: `(3, 2, 2)`, `(2, 2)`, or something else?

# %% prediction-channels
shape_of_result = None

# %% channels-summed
y = F.conv2d(image[None], filter3[None])
print(f"{y[0, 0].shape}, as one image of one channel {y.shape}; {predicted(shape_of_result)}")
y[0, 0]

# %% channels-picture
pictures.window(image, filter3)

# %% [markdown] seen-channels
# Each channel is multiplied by its own part of the filter, and then *everything under the window is added up, over the channels too*. One
# filter gives one channel, however many it looks at. If you want more channels in the result, take more filters: `O` filters give `O`
# channels.

# %% [markdown] task-place
# **Exercise.** Write what happens at one place of the window, with several filters, several channels, and a bias for each filter.

# %% exercise place
def at_one_place(patch, w, b):
    """patch: (C, KH, KW), under the window. w: (O, C, KH, KW). b: (O,). Gives O numbers."""
    return ...

# %% solution place
def at_one_place(patch, w, b):
    return (patch * w).sum(axis=(1, 2, 3)) + b

# %% because place
# `patch` is broadcast over the filters, so `patch * w` has the shape of `w`. Its axes 1, 2 and 3 are channels, rows and columns, and all
# three are summed; what is left is a number for each filter. The bias is added once, after the sum.

# %% wrong place adds up the filters too
def at_one_place(patch, w, b):
    return (patch * w).sum() + b

# %% wrong place keeps the channels apart
def at_one_place(patch, w, b):
    return (patch * w).sum(axis=(2, 3)) + b[:, None]

# %% wrong place adds the bias to every product
def at_one_place(patch, w, b):
    return (patch * w + b[:, None, None, None]).sum(axis=(1, 2, 3))

# %% wrong place turns the filter
def at_one_place(patch, w, b):
    return (patch * w[:, :, ::-1, ::-1]).sum(axis=(1, 2, 3)) + b

# %% wrong place forgets the bias
def at_one_place(patch, w, b):
    return (patch * w).sum(axis=(1, 2, 3))

# %% wrong place exchanges rows and columns
def at_one_place(patch, w, b):
    return (patch * w.swapaxes(2, 3)).sum(axis=(1, 2, 3)) + b

# %% wrong place takes the mean
def at_one_place(patch, w, b):
    return (patch * w).mean(axis=(1, 2, 3)) + b

# %% check place
rng = np.random.default_rng(0)
cases = [(rng.normal(size=(c, k, k)), rng.normal(size=(o, c, k, k)), rng.normal(size=o))
         for o, c, k in [(2, 3, 3), (5, 1, 2), (4, 4, 1)]]
check(at_one_place, lambda patch, w, b: F.conv2d(patch[None], w, b)[0, :, 0, 0], on=cases,
      close=1e-5, hint="One number for each filter: the sum of its products over "
                       "channels, rows and columns; then its bias, once.")

# %% [markdown] ask-wrong-channels
# What happens if the channels do not fit? Here the image has three channels and the filter has one.

# %% fails wrong-channels
F.conv2d(image[None], w[None, None])

# %% [markdown] why-wrong-channels
# **Why does this fail?** Two of the image's channels would have nothing to be multiplied by. NumPy's `image * w` would silently use the
# same weights for all three. minidl looks at the shapes before it computes anything. The error names the axes, and says what you can do:
# give the filter three channels, or select one of the image's. (With `groups`, which you do not need here, a filter sees only a part of
# the channels.)

# %% [markdown] what-filters-find
# ## What a filter finds
#
# The result is large where bright pixels lie under large weights. So a filter is a question that is asked at every place. The two filters
# below ask: is it brighter below than above? Is it brighter on the right than on the left? The image is a handwritten digit, and a ReLU
# keeps only the places where the answer is yes. `padding=1` puts a frame of zeros around the image; the next section says what for.
#
# **Predict.** The digit is a 0. Which parts of its ring does the first filter find: the upper, lower, left or right edges of the strokes?

# %% prediction-edges
first_filter_finds = None

# %% edges
train, test = data.load("digits")
digit, label = test[5:6]
below = np.array([[-1, -1, -1], [0, 0, 0], [1, 1, 1]], np.float32)
two_filters = np.stack([below, below.T])[:, None]               # (2, 1, 3, 3)
edges = F.relu(F.conv2d(digit, two_filters, padding=1))
print(predicted(first_filter_finds))
pictures.images([digit[0, 0], *edges[0] / edges.max()],
                ["image", "brighter below", "brighter on the right"], size=1.9)

# %% [markdown] seen-edges
# White stands for large numbers, black for 0. The first filter answers at the upper edges of the strokes, where it is dark above and
# bright below, the second at the left edges. A result of this kind is called a *feature map*. Nobody chooses the filters of a network: it
# learns them, as you will see in notebooks 3 and 4.

# %% [markdown] stride-padding
# ## Stride and padding
#
# Two more numbers say how the window moves. The *stride* is the length of its step, in both directions. *Padding* puts so many rows and
# columns of zeros on each side of the image, so that the window can also lie across the edge.
#
# **Predict.** The image is 4 x 4 and the filter 3 x 3. What is the shape of the result with padding 1? And with padding 1 and stride 2?

# %% prediction-stride
with_padding_1 = None
and_stride_2 = None

# %% stride
padded = F.conv2d(x[None, None], w[None, None], padding=1)
strided = F.conv2d(x[None, None], w[None, None], padding=1, stride=2)
print(f"padding 1: {padded[0, 0].shape}; {predicted(with_padding_1)}")
print(f"and stride 2: {strided[0, 0].shape}; {predicted(and_stride_2)}")
pictures.window(x, w, padding=1, stride=2, places=[(0, 0), (0, 1), (1, 0)])

# %% [markdown] seen-stride
# The picture shows padding 1 and stride 2, and three of the four places; the dotted cells are padding. With padding 1 and stride 1 a 3 x 3
# window has as many places as the image has cells: the size is kept, and that is why 3 x 3 with padding 1 is what you meet most often.
# Stride 2 leaves out every second place in both directions: a quarter of the numbers, and a quarter of the work.

# %% [markdown] task-size
# **Exercise.** Write a function for the length of one side of the result, where `n` is the length of that side of the image. Be careful
# where the last step does not fit any more: it is not taken, and the last rows are not looked at.

# %% exercise size
def output_size(n, kernel, stride, padding):
    return ...

# %% solution size
def output_size(n, kernel, stride, padding):
    return (n + 2 * padding - kernel) // stride + 1

# %% because size
# With padding on both sides there are `n + 2 * padding` cells. From its first place the window can move by `n + 2 * padding - kernel`
# cells. Divided by the stride and rounded down, that is the number of steps; and the first place counts as well.

# %% wrong size pads one side only
def output_size(n, kernel, stride, padding):
    return (n + padding - kernel) // stride + 1

# %% wrong size rounds up
def output_size(n, kernel, stride, padding):
    return -((n + 2 * padding - kernel) // -stride) + 1

# %% wrong size counts steps and not places
def output_size(n, kernel, stride, padding):
    return (n + 2 * padding - kernel) // stride

# %% wrong size divides the number of places by the stride
def output_size(n, kernel, stride, padding):
    return (n + 2 * padding - kernel + 1) // stride

# %% wrong size gives a fraction of a place
def output_size(n, kernel, stride, padding):
    return (n + 2 * padding - kernel) / stride + 1

# %% check size
def size_of_result(n, kernel, stride, padding):
    x, w = np.zeros((1, 1, n, n)), np.zeros((1, 1, kernel, kernel))
    return F.conv2d(x, w, stride=stride, padding=padding).shape[2]

cases = [(4, 3, 1, 0), (4, 3, 1, 1), (8, 3, 2, 0), (9, 3, 2, 0), (28, 5, 1, 2),
         (10, 4, 3, 1), (12, 5, 3, 1), (7, 7, 1, 0)]
check(output_size, size_of_result, on=cases,
      hint="How far can the window move? How many whole steps are that? And the first place?")

# %% [markdown] ask-too-large
# And if the window has no place at all?

# %% fails too-large
F.conv2d(x[None, None], np.ones((1, 1, 7, 7), np.float32), padding=1)

# %% [markdown] why-too-large
# **Why does this fail?** With padding 1 the image is 6 x 6, and a window of 7 x 7 does not fit on it even once. This happens in deep
# networks, where the images become smaller from layer to layer, until there is no place left for the next filter. Use a smaller filter
# (the side of a filter is called its *kernel* size), more padding, or larger images.

# %% [markdown] pooling
# ## Pooling
#
# *Max pooling* also slides a window, but it keeps the largest number under it. It has no weights. Usually its stride is the side of its
# window, so that windows do not overlap: 2 x 2 makes an image half as high and half as wide.

# %% pooling-picture
pictures.pooling(image, titles=["channel 1", "channel 2", "channel 3"])

# %% pooling-minidl
F.max_pool2d(image[None], 2)[0]

# %% [markdown] seen-pooling
# Channels are pooled one by one: three go in, three come out. A number in a feature map says how clearly the filter has found something
# at that place. Pooling keeps how clearly it was found *somewhere in the window*, and forgets where.

# %% [markdown] task-pool
# **Exercise.** Write max pooling for one channel, with a loop.

# %% exercise pool
def max_pool(x, kernel):
    """x: (H, W). The stride is the kernel; what fills no window at the edge is left out."""
    return ...

# %% solution pool
def max_pool(x, kernel):
    y = np.zeros((x.shape[0] // kernel, x.shape[1] // kernel))
    for i in range(y.shape[0]):
        for j in range(y.shape[1]):
            y[i, j] = x[i * kernel:(i + 1) * kernel, j * kernel:(j + 1) * kernel].max()
    return y

# %% because pool
# The window at place `(i, j)` begins at row `i * kernel` and column `j * kernel`. Its largest number may well be negative: the search
# must not begin at 0.

# %% wrong pool begins at zero
def max_pool(x, kernel):
    y = np.zeros((x.shape[0] // kernel, x.shape[1] // kernel))
    for i in range(y.shape[0] * kernel):
        for j in range(y.shape[1] * kernel):
            y[i // kernel, j // kernel] = max(y[i // kernel, j // kernel], x[i, j])
    return y

# %% wrong pool moves by one cell
def max_pool(x, kernel):
    y = np.zeros((x.shape[0] // kernel, x.shape[1] // kernel))
    for i in range(y.shape[0]):
        for j in range(y.shape[1]):
            y[i, j] = x[i:i + kernel, j:j + kernel].max()
    return y

# %% wrong pool takes the mean
def max_pool(x, kernel):
    y = np.zeros((x.shape[0] // kernel, x.shape[1] // kernel))
    for i in range(y.shape[0]):
        for j in range(y.shape[1]):
            y[i, j] = x[i * kernel:(i + 1) * kernel, j * kernel:(j + 1) * kernel].mean()
    return y

# %% wrong pool lets windows overlap by a row
def max_pool(x, kernel):
    y = np.zeros((x.shape[0] // kernel, x.shape[1] // kernel))
    for i in range(y.shape[0]):
        for j in range(y.shape[1]):
            y[i, j] = x[i * kernel:(i + 1) * kernel + 1, j * kernel:(j + 1) * kernel + 1].max()
    return y

# %% wrong pool keeps what fills no window
def max_pool(x, kernel):
    y = np.zeros((-(-x.shape[0] // kernel), -(-x.shape[1] // kernel)))
    for i in range(y.shape[0]):
        for j in range(y.shape[1]):
            y[i, j] = x[i * kernel:(i + 1) * kernel, j * kernel:(j + 1) * kernel].max()
    return y

# %% check pool
rng = np.random.default_rng(1)
cases = [(rng.normal(size=(8, 10)), 2), (rng.normal(size=(6, 9)), 3),
         (-np.arange(1.0, 26.0).reshape(5, 5), 2)]
check(max_pool, lambda x, kernel: F.max_pool2d(x[None, None], kernel)[0, 0], on=cases,
      hint="Where does the window at (i, j) begin, and where does it end? "
           "How many whole windows are there? And what if all numbers are negative?")

# %% [markdown] shifts
# ## What a small shift changes
#
# Pooling is said to make a network tolerant of small shifts. Look first. Three images of 6 columns, 0 to 5, show the same bright spot: in
# column 2, in column 3 and in column 4.

# %% spots
spot = np.zeros((3, 4, 6), np.float32)
for step in range(3):
    spot[step, 1:3, 2 + step] = 5, 3
print(spot)

# %% [markdown] predict-shift
# **Predict.** They are pooled with a window of 2 x 2. Which of the three pooled images are equal?

# %% prediction-shift
equal_ones = None

# %% shift-picture
print(predicted(equal_ones))
pictures.pooling(spot, titles=["spot in column 2", "in column 3", "in column 4"])

# %% shift-result
pooled = F.max_pool2d(spot[None], 2)[0]
for i, j in ((0, 1), (1, 2)):
    equal = (pooled[i] == pooled[j]).all()
    print(f"spot in column {2 + i} and in column {2 + j}: {'equal' if equal else 'different'}")

# %% [markdown] seen-shift
# The first step stays inside a window, and the result stays the same. The second crosses into the next window, and the result changes. So
# pooling is tolerant of *some* shifts by one cell. How much is that worth on real images? Shift all digits of the test set by one column,
# and measure how much their feature maps for the two filters above change, relative to their size: first the whole maps, then pooled
# ones. Smaller maps might change less for the only reason that they are smaller. So, to be fair, also measure maps made smaller without
# pooling, by taking the first number of each window instead of the largest.
#
# **Predict.** 0 means that nothing changes, 1 that the change is as large as the maps. What is it for maps pooled with 4 x 4?

# %% prediction-change
change_of_pooled = None

# %% shift-measured
def changed(before, after):
    return np.linalg.norm(after - before) / np.linalg.norm(before)

digits, labels = test[:]
shifted = np.pad(digits[..., :-1], ((0, 0), (0, 0), (0, 0), (1, 0)))
before, after = (F.relu(F.conv2d(x, two_filters, padding=1)) for x in (digits, shifted))
print(f"the whole maps           {changed(before, after):.2f}")
for k in (2, 4):
    largest = changed(F.max_pool2d(before, k), F.max_pool2d(after, k))
    single = changed(before[..., ::k, ::k], after[..., ::k, ::k])
    print(f"largest of each {k} x {k}    {largest:.2f}")
    print(f"first of each {k} x {k}      {single:.2f}")
print(predicted(change_of_pooled))

# %% [markdown] seen-measured
# On images of 8 x 8 one column is much, and the whole maps change a lot. Pooling takes a part of the change away, and larger windows take
# more. It is the pooling that does it, and not that the maps are smaller. But the change is far from 0: pooling softens a shift, it does
# not undo it.

# %% [markdown] inference
# ## An image on its way through a network
#
# You know nearly all the parts of LeNet, the network that read cheques in the nineties. It is convolution, ReLU and pooling, twice, and
# then *affine* layers: `y = x w + b`, in which every number of the result depends on every number that goes in. Train a small one; how
# that works is the subject of notebooks 3 and 4.

# %% train
model = models.create("lenet", input_shape=(1, 8, 8), classes=10, generator=0)
history = fit(model, train, test, optim.SGD(model, lr=0.05, momentum=0.9), epochs=3)
print(f"{history[-1]['test_accuracy']:.0%} of the test images are recognised")
model

# %% [markdown] predict-shapes
# Above you see the layers. `Conv2d(1, 16, ...)` takes 1 channel and gives 16, and applies its ReLU itself. Layers are functions, and you
# can call them one after the other.
#
# **Predict.** One image goes in, of shape `(1, 1, 8, 8)`. What is the shape after each of the first four layers?

# %% prediction-shapes
shapes = None

# %% layer-by-layer
digit, label = test[12:13]
outputs, h = {"image": digit}, digit
with minidl.no_grad():                          # nothing is to be learned here
    for number, layer in enumerate([*model.features, *model.classifier], 1):
        h = layer(h)
        outputs[f"{number} {type(layer).__name__}"] = h

for name, y in outputs.items():
    print(f"{name:12} {y.shape}")
print(predicted(shapes))

# %% [markdown] softmax
# The last layer gives a score for each of the ten classes. *Softmax* makes probabilities of scores: take the exponential of each, and
# divide by their sum.

# %% feature-maps
scores = outputs["8 Affine"].numpy()
powers = np.exp(scores - scores.max())          # minus the largest, so that none overflows
outputs["softmax"] = powers / powers.sum()
print(f"the label says {test.classes[label[0]]}")
pictures.feature_maps(outputs, classes=test.classes)

# %% [markdown] seen-maps
# Read it from top to bottom. Black is 0 or less, white is the largest number of the row. The first maps still look like the digit: each
# shows where one filter found something. Pooling makes them coarser. Each filter of the second convolution looks at all 16 maps at once,
# and its answers are sparse: many filters find nothing in this image. After the last pooling nothing looks like a digit any more. What is
# left is a list of features, with a rough note where each was found. The affine layers weigh these against each other, and the bars are
# the probabilities. Look at the second tallest bar too: could the image be that digit?

# %% [markdown] by-hand
# ## No secret
#
# Nothing happens in there that you have not seen. The first map of the first layer is the double loop from the beginning, with padding,
# bias and ReLU:

# %% first-map
weights = model.state_dict()
w0, b0 = weights["features.0.w"], weights["features.0.b"]
by_hand = np.maximum(convolve(np.pad(digit[0, 0], 1), w0[0, 0]) + b0[0], 0)
difference = np.abs(by_hand - outputs["1 Conv2d"].numpy()[0, 0]).max()
print(f"largest difference from the layer's: {difference:.0e}")

# %% [markdown] six-lines
# And the whole network is six lines. `F` has the functions without the layers around them:

# %% whole-network
w0, b0, w2, b2, *affine = weights.values()
h = F.max_pool2d(F.relu(F.conv2d(digit, w0, b0, padding=1)), 2)
h = F.max_pool2d(F.relu(F.conv2d(h, w2, b2, padding=1)), 2)
h = F.flatten(h)
h = F.relu(F.affine(h, affine[0], affine[1]))
h = F.relu(F.affine(h, affine[2], affine[3]))
h = F.affine(h, affine[4], affine[5])
print(f"largest difference of scores: {np.abs(h - scores).max():.0e}")
print(f"class: {test.classes[int(h.argmax())]}")

# %% [markdown] cost
# ## What it costs
#
# The numbers that a layer learns, its weights and biases, are called *parameters*.
#
# **Predict.** Which of the eight layers has the most parameters? Which needs the most multiplications? Give their numbers, 1 to 8.

# %% prediction-cost
most_parameters = None
most_multiplications = None

# %% [markdown] task-cost
# **Exercise.** Work it out for the second convolution, layer 3 in the table of shapes. 16 channels of 4 x 4 go in, and it has 32 filters
# of 3 x 3, with padding 1. How many parameters does it have? How many multiplications does it need for one image?

# %% exercise layer-cost
cost = {"parameters": ..., "multiplications": ...}

# %% solution layer-cost
cost = {"parameters": 32 * 16 * 3 * 3 + 32, "multiplications": 32 * 4 * 4 * (16 * 3 * 3)}

# %% because layer-cost
# Each of the 32 filters has 16 channels of 3 x 3 weights, and a bias. The result has 32 channels of 4 x 4 numbers, and each of them takes
# as many multiplications as a filter has weights.

# %% wrong layer-cost forgets the biases
cost = {"parameters": 32 * 16 * 3 * 3, "multiplications": 32 * 4 * 4 * (16 * 3 * 3)}

# %% wrong layer-cost forgets the channels that go in
cost = {"parameters": 32 * 3 * 3 + 32, "multiplications": 32 * 4 * 4 * 3 * 3}

# %% wrong layer-cost computes each weight once
cost = {"parameters": 32 * 16 * 3 * 3 + 32, "multiplications": 32 * 16 * 3 * 3}

# %% wrong layer-cost gives every weight a bias
cost = {"parameters": 2 * 32 * 16 * 3 * 3, "multiplications": 32 * 4 * 4 * (16 * 3 * 3)}

# %% wrong layer-cost forgets the padding
cost = {"parameters": 32 * 16 * 3 * 3 + 32, "multiplications": 32 * 2 * 2 * (16 * 3 * 3)}

# %% check layer-cost
row = next(row for row in nn.summary(model, (1, 8, 8)).rows if row.path == "features.2")
check(cost, {"parameters": row.parameters, "multiplications": row.multiply_adds},
      hint="A filter has weights for every channel that goes in, and one bias. "
           "All its weights are used for every number that comes out. How many come out?")

# %% summary
print(f"most parameters: {predicted(most_parameters)}")
print(f"most multiplications: {predicted(most_multiplications)}")
print(nn.summary(model, (1, 8, 8)))

# %% [markdown] seen-cost
# A *multiply-add* is a multiplication and the addition of its product. `features.2` is layer 3, which does most of the work, and
# `classifier.0` is layer 6, which has the most parameters. A convolution has few parameters and uses each of them at every place. An
# affine layer uses each of its parameters once for an image. So most of the time goes to convolutions; how they are made fast is the
# subject of notebook 5.

# %% [markdown] shifted-network
# ## The network and a shift
#
# One claim is left to be tested. Two poolings should make this network tolerant of a shift by one column.
#
# **Predict.** What part of the test images does it recognise, from 0 to 1, when all of them are shifted by one column?

# %% prediction-tolerance
part_recognised = None

# %% tolerance
with minidl.no_grad():
    for name, batch in (("as they are", digits), ("shifted", shifted)):
        print(f"{name:12} {np.mean(model(batch).numpy().argmax(axis=1) == labels):.0%}")
print(predicted(part_recognised))

# %% [markdown] seen-tolerance
# It suffers clearly. One column is an eighth of the width of these images, and all digits that it has learned from were centred. But it
# does far better than guessing, which would be right for one image in ten. If a network is to accept shifts, train it with shifted images
# as well: that is *augmentation*, and minidl's `data.transforms` has it.

# %% [markdown] end
# ## What you have seen
#
# A convolution multiplies every patch of an image by a filter and adds up, over channels too; stride and padding say which patches there
# are. The shape of the result follows from counting places. Pooling keeps the largest number in each window and softens small shifts. A
# convolutional network alternates the two until a short list of features is left, from which affine layers make a score for each class.
#
# **Where it stands in the code.** `minidl/functions/convolution.py`: the function and its checks. `minidl/kernels/reference.py`: how it
# is computed, to be read. `minidl/kernels/window.py`: the geometry of the window. `minidl/models/lenet.py`: the network.
#
# **Next.** [3. Backpropagation on a graph](3_backpropagation.ipynb): where the weights come from.
