"""Differentiable functions, a family a file. Arrays give arrays; Tensors give Tensors, and what was done is recorded.

To see how one works, open its family: forward, a line of mathematics, and a gradient rule for each argument.
"""

from minidl.functions.activation import elu, erf, gelu, leaky_relu, log_softmax, relu, sigmoid, softmax, softplus, tanh
from minidl.functions.arithmetic import abs_ as abs
from minidl.functions.arithmetic import (
    add,
    clip,
    divide,
    exp,
    log,
    maximum,
    minimum,
    multiply,
    negative,
    power,
    sqrt,
    subtract,
    where,
)
from minidl.functions.convolution import conv2d, conv_transpose2d
from minidl.functions.dropout import dropout
from minidl.functions.linear import affine, einsum, embedding, matmul
from minidl.functions.loss import Distribution, binary_cross_entropy_with_logits, distribution, mse, softmax_cross_entropy
from minidl.functions.normalization import batch_norm, batch_norm_inference, layer_norm
from minidl.functions.pooling import avg_pool2d, global_avg_pool2d, max_pool2d
from minidl.functions.reduction import argmax, cumsum, logsumexp, max, mean, min, sum, var
from minidl.functions.shape import (
    astype,
    broadcast_to,
    concatenate,
    expand_dims,
    flatten,
    flip,
    getitem,
    pad,
    reshape,
    split,
    squeeze,
    stack,
    swapaxes,
    to,
    transpose,
)

__all__ = [
    "Distribution", "abs", "add", "affine", "argmax", "astype", "avg_pool2d", "batch_norm", "batch_norm_inference",
    "binary_cross_entropy_with_logits", "broadcast_to", "clip", "concatenate", "conv2d", "conv_transpose2d", "cumsum", "distribution",
    "divide", "dropout", "einsum", "elu", "embedding", "erf", "exp", "expand_dims", "flatten", "flip", "gelu", "getitem",
    "global_avg_pool2d", "layer_norm", "leaky_relu", "log", "log_softmax", "logsumexp", "matmul", "max", "max_pool2d", "maximum",
    "mean", "min", "minimum", "mse", "multiply", "negative", "pad", "power", "relu", "reshape", "sigmoid", "softmax",
    "softmax_cross_entropy", "softplus", "split", "sqrt", "squeeze", "stack", "subtract", "sum", "swapaxes", "tanh", "to",
    "transpose", "var", "where",
]
