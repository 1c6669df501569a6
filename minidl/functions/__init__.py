"""Differentiable functions, a family a file. Arrays give arrays; Tensors give Tensors, and what was done is recorded.

To see how one works, open its family: forward, a line of mathematics, and a gradient rule for each argument.
"""

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
    "abs", "add", "argmax", "astype", "broadcast_to", "clip", "concatenate", "cumsum", "divide", "exp", "expand_dims", "flatten", "flip",
    "getitem", "log", "logsumexp", "max", "maximum", "mean", "min", "minimum", "multiply", "negative", "pad", "power", "reshape", "split",
    "sqrt", "squeeze", "stack", "subtract", "sum", "swapaxes", "to", "transpose", "var", "where",
]
