"""Faster kernels for NVIDIA GPUs, written in CUDA: twins of the reference, of the same names and signatures, for CuPy's arrays.

Beside a Python file, which decides what is launched, lies the CUDA file of the same name, where the kernels are our own.

    source.py, common.cuh       compiling for the types of a call, launching; what all CUDA files share
    ptx.cuh                     all assembly
    packs.cuh                   memory 16 bytes at a time, activations, division by what is known before the launch
    elementwise                 bias and activation, their gradients, dropout, casts
    pooling                     largest numbers and sums under a window, and their ways back
    normalization               batch normalization, sums a channel
    rows (.py, .cuh)            the rows of a matrix, a warp or a block each
    convolution                 which algorithm does a convolution: im2col, implicit, depthwise
    products, cublas            products of matrices
    layer_norm, cross_entropy   what goes by rows
    updates                     what is done to all parameters or gradients at a time
    report                      what a step tells of itself
    joining                     many arrays as one
    images                      windows of images, on their way to a model

CuPy is not imported here: the array that is given brings its library along.
"""

from collections.abc import Callable
from typing import Any

from minidl.kernels.cuda import (
    convolution,
    cross_entropy,
    elementwise,
    images,
    joining,
    layer_norm,
    normalization,
    pooling,
    products,
    report,
    updates,
)

TWINS: dict[str, Callable[..., Any]] = {kernel.__name__: kernel for kernel in (
    products.matmul, products.affine, products.affine_weights,
    convolution.conv2d, convolution.conv2d_input, convolution.conv2d_weights, convolution.conv2d_patch_moments,
    elementwise.activation, elementwise.activation_gradient, elementwise.dropout, elementwise.dropout_gradient,
    pooling.max_pool2d, pooling.max_pool2d_scatter, pooling.max_pool2d_gather, pooling.sum_pool2d, pooling.sum_pool2d_spread,
    normalization.channel_sums, normalization.batch_norm, normalization.batch_norm_gradient, normalization.batch_norm_inference,
    layer_norm.layer_norm, layer_norm.layer_norm_gradient,
    cross_entropy.softmax_cross_entropy, cross_entropy.softmax_cross_entropy_gradient,
    updates.sgd_update, updates.sgd_update_many, updates.adam_update, updates.adam_update_many, updates.clip_many,
    updates.unscale_many, updates.running_statistics, report.right_answers, report.scaled_sum,
    joining.concatenate, images.windows)}
