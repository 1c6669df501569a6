"""What the tests of kernels give them: arguments drawn at random, for every kernel of the reference.

Arrays are float32, in several memory orders; some have NaN and infinities among their numbers. The tests of the CPU's twins and of the
GPU's draw from here.
"""

import zlib

import numpy as np

import cases
from minidl.kernels import Window, reference, reference_layers

SIZES = (1, 2, 3, 5, 6, 7, 10, 16, 17, 31, 48, 64, 100)      # of what makes vectors: less than one, whole ones, a rest


class Draw:
    """What is random about an example: the same every time."""

    def __init__(self, entry, example, spoilt):
        self.random = np.random.default_rng([zlib.crc32(entry.encode()), example])
        self.large = example % 6 == 5               # several pieces of work
        self.spoilt = spoilt and example % 4 == 3
        self.order = self.choice("as it is", "as it is", *(order.__name__ for order in cases.ORDERS), "channels_last", "channels_last")

    def choice(self, *options):
        return options[self.random.integers(len(options))]

    def integer(self, low, high):
        return int(self.random.integers(low, high + 1))

    def size(self):
        return self.choice(*SIZES)

    def array(self, *shape, order=None, spoil=False):
        """Normal numbers as float32."""
        x = self.random.standard_normal(shape).astype(np.float32)
        if spoil and self.spoilt and x.size:
            for value in (np.nan, np.inf, -np.inf, np.nan):
                x.reshape(-1)[self.integer(0, x.size - 1)] = value
        order = order or self.order
        return x if order == "as it is" else getattr(cases, order)(x)

    def batch(self):
        """How many images there are, channels, and height and width."""
        size = (self.integer(8, 20), self.integer(8, 20)) if self.large else (self.integer(1, 7), self.integer(1, 7))
        n = self.integer(4, 9) if self.large else self.choice(0, 1, 1, 2, 3)
        return n, self.size(), size

    def window(self, size, pooling=False):
        """A window that fits into an image of this size."""
        while True:
            kernel, stride, dilation = ((self.integer(1, 3), self.integer(1, 3)) for _ in range(3))
            if self.integer(0, 1):
                stride, dilation = self.choice(kernel, (2, 2)), (1, 1)
            most = [k // 2 for k in kernel] if pooling else (2, 2)
            window = Window(kernel, stride, tuple(self.integer(0, p) for p in most), dilation, pooling and bool(self.integer(0, 1)))
            if min(window.out(size)) > 0:
                return window


def convolution(draw):
    n, c, size = draw.batch()
    window = draw.window(size)
    groups = draw.choice(1, 1, 2, 3)
    inputs, outputs = (c, draw.size()) if groups == 1 else (draw.choice(1, 2, 5), draw.choice(1, 1, 3))
    if draw.integer(0, 4) == 0:                                  # depthwise
        groups, inputs, outputs = c, 1, 1
    x = draw.array(n, inputs * groups, *size)
    w = draw.array(outputs * groups, inputs, *window.kernel, order=draw.choice("as it is", "channels_last", "backwards"))
    gy = draw.array(n, outputs * groups, *window.out(size), order=draw.choice(draw.order, "channels_last"))
    return x, w, gy, size, window, groups


def conv2d(draw):
    x, w, _, _, window, groups = convolution(draw)
    b = draw.choice(None, draw.array(len(w), order="as it is"))
    return x, w, window, groups, b, draw.choice(None, "relu", "tanh"), draw.choice(None, "direct")


def conv2d_input(draw):
    _, w, gy, size, window, groups = convolution(draw)
    b = draw.choice(None, draw.array(w.shape[1] * groups, order="as it is"))
    return gy, w, size, window, groups, b, draw.choice(None, "direct")


def conv2d_weights(draw):
    x, _, gy, _, window, groups = convolution(draw)
    return x, gy, window, groups, draw.choice(None, "direct")


def conv2d_patch_moments(draw):
    x, _, _, _, window, groups = convolution(draw)
    return x, window, groups, bool(draw.integer(0, 1))


def winograd(draw):
    n, c, size = draw.batch()
    window = Window((3, 3), padding=(draw.integer(0, 2), draw.integer(0, 2)))
    n, size = max(n, 1), tuple(max(length, 3) for length in size)
    outputs = draw.size()
    return draw.array(n, c, *size), draw.array(outputs, c, 3, 3, order="as it is"), draw.array(n, outputs, *window.out(size)), size, window


def conv2d_winograd(draw):
    x, w, _, _, window = winograd(draw)
    b = draw.choice(None, draw.array(len(w), order="as it is"))
    return x, w, window, 1, b, draw.choice(None, "relu"), "winograd"


def conv2d_input_winograd(draw):
    _, w, gy, size, window = winograd(draw)
    return gy, w, size, window, 1, None, "winograd"


def conv2d_weights_winograd(draw):
    x, _, gy, _, window = winograd(draw)
    return x, gy, window, 1, "winograd"


def factors(draw):
    """Two matrices large enough for the compiled product; more than one packed block deep in some examples."""
    rows, columns = draw.choice(6, 13, 70, 128), draw.choice(1, 10, 16, 33, 100)
    depth = -(-2**20 // (rows * columns))
    orders = draw.choice("as it is", "fortran"), draw.choice("as it is", "fortran")
    return draw.array(rows, depth, order=orders[0]), draw.array(depth, columns, order=orders[1])


def matmul(draw):
    return factors(draw)


def affine(draw):
    x, w = factors(draw)
    return x, w, draw.choice(None, draw.array(w.shape[1])), draw.choice(None, "relu")


def affine_weights(draw):
    a, b = factors(draw)
    return a.T, b


def pooling(draw):
    n, c, size = draw.batch()
    return n, c, size, draw.window(size, pooling=True)


def max_pool2d(draw):
    n, c, size, window = pooling(draw)
    x = draw.array(n, c, *size, spoil=True)
    return np.round(x) if draw.integer(0, 1) else x, window         # rounded: several are the largest


def placed(draw):
    n, c, size, window = pooling(draw)
    _, place = reference.max_pool2d(draw.array(n, c, *size, order="as it is"), window)
    return n, c, size, window, getattr(cases, draw.choice("fortran", "channels_last", "channels_last", "backwards"))(place)


def max_pool2d_scatter(draw):
    _, _, size, window, place = placed(draw)
    return draw.array(*place.shape, spoil=True), place, size, window


def max_pool2d_gather(draw):
    n, c, size, window, place = placed(draw)
    return draw.array(n, c, *size, spoil=True), place, window


def sum_pool2d(draw):
    n, c, size, window = pooling(draw)
    return draw.array(n, c, *size, spoil=True), window


def sum_pool2d_spread(draw):
    n, c, size, window = pooling(draw)
    return draw.array(n, c, *window.out(size), spoil=True), size, window


def shape(draw):
    """Of any array: of images, of a batch of rows, of something else."""
    n, c, size = draw.batch()
    return draw.choice((n, c, *size), (n, c, *size), (n * 7, c * 11), (size[0] * 2000,) if draw.large else (c,), (n, c, 3), ())


def activation(draw):
    return draw.array(*shape(draw), spoil=True), draw.choice("relu", "tanh", "sigmoid")


def activation_gradient(draw):
    dims = shape(draw)
    y = draw.array(*dims, order=draw.choice("as it is", "channels_last"))
    return draw.array(*dims, spoil=True), y, draw.choice("relu", "tanh", "sigmoid")


def dropout(draw):
    x = draw.array(*shape(draw), spoil=True)
    p, seed, first = draw.choice(0.0, 0.1, 0.5, 0.999), draw.choice(0, 1, 2**40 + 5), draw.choice(0, 17, 2**31)
    return x, p, seed, draw.integer(0, 2**20), draw.integer(0, 9), first


def dropout_gradient(draw):
    gy = draw.array(*shape(draw), spoil=True)
    return gy, draw.array(*gy.shape, order=draw.choice("as it is", "channels_last")) > 0, 1.25


def columns(draw):
    n, c, size = draw.batch()
    return draw.choice((n, c, *size), (n, c, *size), (n * 7, c), (n, c, 3))


def channel_sums(draw):
    n, c, size = draw.batch()
    return (draw.array(*draw.choice((n, c, *size), (n, c, *size), (2000, 67), (n, c, 3)), spoil=True),)


def normalized(draw):
    """x with a mean a channel that is large beside the deviation, and three numbers a channel."""
    dims = columns(draw)
    dims = (max(dims[0], 1), *dims[1:])
    wide = (-1, *[1] * (len(dims) - 2))
    x = draw.array(*dims, spoil=True)
    x += (draw.choice(0, 0, 100) * draw.array(dims[1], order="as it is")).reshape(wide)
    return x, *(draw.array(dims[1], order=draw.choice("as it is", "every_second")) for _ in range(3))


def batch_norm(draw):
    x, gamma, beta, _ = normalized(draw)
    return x, gamma, beta, draw.choice(1e-5, 0.1), draw.choice(None, "relu", "tanh")


def batch_norm_inference(draw):
    x, gamma, beta, mean = normalized(draw)
    return x, gamma, beta, mean, np.abs(beta) + np.float32(0.1), 1e-5, draw.choice(None, "relu", "sigmoid")


def batch_norm_gradient(draw):
    x, gamma, a, b = normalized(draw)
    over, _ = reference_layers.channels_of(x)
    mean, var = x.mean(axis=over).astype(np.float32), (x.var(axis=over) + 0.5).astype(np.float32)
    gmean, gvar = draw.choice((None, None), (None, a), (b, None), (a, b))
    return draw.array(*x.shape, order=draw.choice("as it is", "channels_last")), x, gamma, mean, var, 1e-5, gmean, gvar


def rows(draw):
    """x with a mean that may be large, and how many of its axes are normalized over; arrays of the shape of these, or None."""
    n, c, size = draw.batch()
    dims = draw.choice((max(n, 1), c), (max(n, 1), 3, c), (max(n, 1) * 7, 4 * c), (max(n, 1), c, *size))
    axes = draw.integer(1, len(dims) - (dims[0] > 1))
    gamma, beta = (draw.choice(None, draw.array(*dims[-axes:], order="as it is")) for _ in range(2))
    return draw.array(*dims, spoil=True) + np.float32(draw.choice(0, 0, 50)), gamma, beta, axes


def layer_norm(draw):
    x, gamma, beta, axes = rows(draw)
    return x, gamma, beta, axes, draw.choice(1e-5, 0.1)


def layer_norm_gradient(draw):
    x, gamma, _, axes = rows(draw)
    over = tuple(range(x.ndim - axes, x.ndim))
    mean, var = x.mean(axis=over).astype(np.float32), (x.var(axis=over) + 0.5).astype(np.float32)
    gmean, gvar = (draw.choice(None, draw.array(*mean.shape, order="as it is")) for _ in range(2))
    return draw.array(*x.shape), x, gamma, mean, var, axes, 1e-5, gmean, gvar


def logits(draw):
    n, c = (draw.integer(30, 200), draw.choice(10, 100, 1000)) if draw.large else (draw.choice(0, 1, 2, 5), draw.size())
    x = draw.array(n, c)
    x *= draw.choice(1, 30)
    if draw.spoilt and n:
        x[draw.integer(0, n - 1), draw.integer(0, c - 1)] = draw.choice(np.nan, np.inf, -np.inf)
        x[draw.integer(0, n - 1)] = -np.inf                         # no class is left
    return x, draw.random.integers(0, c, n).astype(draw.choice(np.int64, np.int32, np.uint8)), draw.choice(0.0, 0.0, 0.1, 1.0)


def softmax_cross_entropy(draw):
    return logits(draw)


def softmax_cross_entropy_gradient(draw):
    x, labels, smoothing = logits(draw)
    each = draw.choice(draw.array(len(x)), np.broadcast_to(np.float32(0.25), len(x)))
    return x, labels, smoothing, each


def parameters(draw, count):
    dims = draw.choice((40000,), (200, 333)) if draw.large else draw.choice((4096,), (130, 37), (20, 30, 3, 3))
    return [draw.array(*dims, order="as it is", spoil=True) for _ in range(count)]


def sgd_update(draw):
    w, g, v = parameters(draw, 3)
    return w, g, v, 0.1, draw.choice(0.0, 0.9), bool(draw.integer(0, 1)), draw.choice(0.0, 0.01)


def plain_sgd_update(draw):
    w, g = parameters(draw, 2)
    return w, g, None, 0.1, 0.0, False, draw.choice(0.0, 0.01)


def adam_update(draw):
    w, g, m, v = parameters(draw, 4)
    t, eps, decay, decoupled = draw.choice(1, 2, 1000), draw.choice(1e-8, 1e-3), draw.choice(0.0, 0.01), draw.choice(False, True)
    return w, g, m, np.abs(v), t, 0.1, 0.9, 0.999, eps, decay, decoupled


def windows(draw):
    n, c, (h, w) = draw.batch()
    padding, size = draw.integer(0, 3), (draw.integer(1, h), draw.integer(1, w))
    last = np.array((h, w)) + 2 * padding - size
    corners = draw.random.integers(0, last, (n, 2), endpoint=True)
    return draw.array(n, c, h, w, spoil=True), corners, size, padding, draw.choice(0.0, 0.25)


def gradients(draw):
    """Arrays of several sizes, of one piece of work and of more."""
    return [draw.array(draw.choice(1, 5, 300, 4096, 4097, 9000), order="as it is", spoil=i == 1) for i in range(draw.integer(1, 5))]


def beside(draw, g):
    return draw.array(*g.shape, order="as it is")


def sgd_updates(draw):
    momentum, nesterov = draw.choice(0.0, 0.9), draw.choice(False, True)
    return [[(beside(draw, g), g, beside(draw, g) if momentum else None, 0.1, momentum, nesterov and momentum > 0, draw.choice(0.0, 0.01))
             for g in gradients(draw)]]


def adam_updates(draw):
    return [[(beside(draw, g), g, beside(draw, g), abs(beside(draw, g)), draw.integer(1, 50), 0.01, 0.9, 0.999, 1e-8, draw.choice(0.0, 0.1),
              draw.choice(False, True)) for g in gradients(draw)]]


def clip_many(draw):
    return [gradients(draw), draw.choice(0.5, 1e4)]


def unscale_many(draw):
    return [gradients(draw), 2.0 ** -draw.integer(0, 4)]


def concatenate(draw):
    n, m, axis = draw.integer(1, 4), draw.integer(1, 4), draw.integer(0, 1)
    lengths = [draw.integer(0, 5) for _ in range(draw.choice(9, 17, 70))]
    return [[draw.array(n, length, m) if axis else draw.array(length, n, m) for length in lengths], axis]


def running_statistics(draw):
    channels = draw.size()
    mean, var, x_mean, x_var = (draw.array(channels, order="as it is") for _ in range(4))
    return [mean, abs(var), x_mean, abs(x_var), draw.choice(0.1, 1.0, 0.25), draw.integer(2, 100)]


def right_answers(draw):
    rows, classes = draw.choice(1, 7, 64, 100), draw.choice(1, 2, 10, 33, 100)
    x = draw.array(rows, classes, spoil=True).round()           # with ties
    return [x, draw.random.integers(0, classes, rows)]


def scaled_sum(draw):
    return [draw.array(draw.choice(1, 16, 1000, 5000)), draw.choice(1.0, 1 / 128)]
