"""Faster kernels for the CPU, compiled by Numba: twins of the reference, of the same names and signatures, for float32 arrays.

    vector.py           what Python cannot say: vectors, and the register tile that everything that multiplies is made of
    compiled.py         compiling, keeping the result on disk, running on the pool
    products.py         products of matrices, and the affine layer
    convolution.py      convolution and its two gradients: which algorithm does what
    direct.py           straight from the image; winograd.py and winograd_weights.py, with a quarter of the multiplications
    plans.py            where everything lies; strips.py, how it gets there
    moments.py          second moments of patches
    lanes.py            vectors as values, for loops over numbers; exponential.py, e^x of them
    pooling.py, normalization.py, layer_norm.py, elementwise.py, cross_entropy.py, updates.py: what layers, losses, optimizers do beside
"""

from collections.abc import Callable
from typing import Any

from minidl.kernels.cpu import convolution, cross_entropy, elementwise, layer_norm, moments, normalization, pooling, products, updates

TWINS: dict[str, Callable[..., Any]] = {kernel.__name__: kernel for kernel in (
    products.matmul, products.affine, products.affine_weights,
    convolution.conv2d, convolution.conv2d_input, convolution.conv2d_weights, moments.conv2d_patch_moments,
    pooling.max_pool2d, pooling.max_pool2d_scatter, pooling.max_pool2d_gather, pooling.sum_pool2d, pooling.sum_pool2d_spread,
    elementwise.activation, elementwise.activation_gradient, elementwise.dropout, elementwise.dropout_gradient,
    normalization.channel_sums, normalization.batch_norm, normalization.batch_norm_gradient, normalization.batch_norm_inference,
    layer_norm.layer_norm, layer_norm.layer_norm_gradient,
    cross_entropy.softmax_cross_entropy, cross_entropy.softmax_cross_entropy_gradient,
    updates.sgd_update, updates.adam_update,
)}
