"""Where numbers are crunched: functions from arrays to arrays, without graph and without parameters.

The files called reference are the pages to read. Operations call kernels by their names here, where a faster twin may take the call:
see twins.py. The faster ones for the CPU are in cpu/.
"""

from minidl.kernels import products, reference, reference_images, reference_layers, reference_updates
from minidl.kernels.choice import allow_tf32, tf32_allowed, using
from minidl.kernels.many import launched, many, of_all
from minidl.kernels.reference import ALGORITHMS, col2im, im2col
from minidl.kernels.reference_layers import dropout_mask, erf
from minidl.kernels.reference_updates import in_pieces
from minidl.kernels.twins import compiled, twinned
from minidl.kernels.window import Pair, Window, pair

matmul = twinned(products.matmul, product=True)
affine = twinned(products.affine, product=True)
affine_weights = twinned(products.affine_weights, rounded=0)
conv2d = twinned(reference.conv2d, product=True)
conv2d_input = twinned(reference.conv2d_input, product=True)
conv2d_weights = twinned(reference.conv2d_weights, rounded=0)
conv2d_patch_moments = twinned(reference.conv2d_patch_moments, rounded=0)
max_pool2d = twinned(reference.max_pool2d)
max_pool2d_scatter = twinned(reference.max_pool2d_scatter)
max_pool2d_gather = twinned(reference.max_pool2d_gather)
sum_pool2d = twinned(reference.sum_pool2d)
sum_pool2d_spread = twinned(reference.sum_pool2d_spread)
activation = twinned(reference_layers.activation)
activation_gradient = twinned(reference_layers.activation_gradient)
channel_sums = twinned(reference_layers.channel_sums, rounded=0)
batch_norm = twinned(reference_layers.batch_norm)
batch_norm_gradient = twinned(reference_layers.batch_norm_gradient)
batch_norm_inference = twinned(reference_layers.batch_norm_inference)
layer_norm = twinned(reference_layers.layer_norm)
layer_norm_gradient = twinned(reference_layers.layer_norm_gradient)
softmax_cross_entropy = twinned(reference_layers.softmax_cross_entropy, rounded=0)
softmax_cross_entropy_gradient = twinned(reference_layers.softmax_cross_entropy_gradient)
dropout = twinned(reference_layers.dropout)
dropout_gradient = twinned(reference_layers.dropout_gradient)
sgd_update = twinned(reference_updates.sgd_update)
adam_update = twinned(reference_updates.adam_update)
sgd_update_many = many(sgd_update)
adam_update_many = many(adam_update)
concatenate = of_all(reference_layers.concatenate)
clip_many = of_all(reference_updates.clip_many)
unscale_many = of_all(reference_updates.unscale_many)
running_statistics = twinned(reference_updates.running_statistics, rounded=2)
scaled_sum = twinned(reference_layers.scaled_sum)
right_answers = twinned(reference_layers.right_answers, rounded=0)
windows = twinned(reference_images.windows)

__all__ = [
    "ALGORITHMS", "Pair", "Window", "activation", "activation_gradient", "adam_update", "adam_update_many", "affine", "affine_weights",
    "allow_tf32", "batch_norm", "batch_norm_gradient", "batch_norm_inference", "channel_sums", "clip_many", "col2im", "compiled",
    "concatenate", "conv2d", "conv2d_input", "conv2d_patch_moments", "conv2d_weights", "dropout", "dropout_gradient", "dropout_mask",
    "erf", "im2col", "in_pieces", "launched", "layer_norm", "layer_norm_gradient", "matmul", "max_pool2d", "max_pool2d_gather",
    "max_pool2d_scatter", "pair", "right_answers", "running_statistics", "scaled_sum", "sgd_update", "sgd_update_many",
    "softmax_cross_entropy", "softmax_cross_entropy_gradient", "sum_pool2d", "sum_pool2d_spread", "tf32_allowed", "unscale_many", "using",
    "windows",
]
