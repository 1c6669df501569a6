"""Where numbers are crunched: functions from arrays to arrays, without graph and without parameters.

reference.py is the page to read. Operations call kernels by their names here, so that a faster twin can take a name's place.
"""

from minidl.kernels.reference import (
    ALGORITHMS,
    col2im,
    conv2d,
    conv2d_input,
    conv2d_patch_moments,
    conv2d_weights,
    im2col,
    max_pool2d,
    max_pool2d_gather,
    max_pool2d_scatter,
    sum_pool2d,
    sum_pool2d_spread,
)
from minidl.kernels.reference_layers import activation, activation_gradient, channel_sums, dropout_mask, erf, matmul
from minidl.kernels.window import Pair, Window, pair

__all__ = [
    "ALGORITHMS", "Pair", "Window", "activation", "activation_gradient", "channel_sums", "col2im", "conv2d", "conv2d_input",
    "conv2d_patch_moments", "conv2d_weights", "dropout_mask", "erf", "im2col", "matmul", "max_pool2d", "max_pool2d_gather",
    "max_pool2d_scatter", "pair", "sum_pool2d", "sum_pool2d_spread",
]
