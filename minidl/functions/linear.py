"""Matrix products: matmul, einsum, the affine layer's x w + b, and its special case of one-hot rows, the embedding.

The gradient of a product by one factor is the gradient of the result times the other factor, transposed so that the shapes meet.
That sentence is all of this file, said three times.
"""

from __future__ import annotations

import math
import string
from typing import Any

from minidl import backend, kernels
from minidl.errors import ArgumentError, DtypeError, LabelError, ShapeError
from minidl.functions.activation import activation_gradient, check_activation
from minidl.functions.shape import Scatter, check_arrays, reshape
from minidl.functions.steps import affine_weights, channel_sums, product
from minidl.graph import Function
from minidl.tensor import Tensor


class MatMul(Function):
    name = "matmul"

    def forward(self, a, b):
        return kernels.matmul(a if a.dtype == b.dtype else backend.wide(a), b)

    @staticmethod
    def multiply_adds(y, a, b):
        return math.prod(y) * a[-1]

    # y = a b: ga = gy b^T, gb = a^T gy, for every matrix of a batch
    def grad_a(self, gy, b):
        return product(gy, b.swapaxes(-1, -2))

    def grad_b(self, gy, a):
        return product(a.swapaxes(-1, -2), gy)


class Affine(Function):
    def forward(self, x, w, b=None):
        return kernels.affine(x, w, b)

    @staticmethod
    def multiply_adds(y, x, w):
        return math.prod(y) * w[0]

    # y = x w + b: gx = gy w^T, gw = x^T gy, gb = the sum of gy over the batch
    def before(self, gy):
        return gy

    def grad_x(self, before, w):
        return product(before, w.T)

    def grad_w(self, before, x):
        return affine_weights(x.reshape(-1, x.shape[-1]), before.reshape(-1, before.shape[-1]))

    def grad_b(self, before):
        return channel_sums(before.reshape(-1, before.shape[-1]))


class ActivatedAffine(Affine):
    name = "affine"
    activation: str

    def forward(self, x, w, b=None):
        return kernels.affine(x, w, b, self.activation)

    # y = f(z), z = x w + b: the rules above with gz = gy f'(z), found from y
    def before(self, gy, y, *, out=None):
        return activation_gradient(gy, y, self.activation, out)


class Embedding(Function):
    def forward(self, ids, w):
        self.key, self.shape = ids, w.shape
        return w[ids]

    # a row of w gets the sum of the gradients of all its uses
    def grad_w(self, gy):
        return Scatter(self.key, self.shape)(gy)


class Einsum(Function):
    in_float32 = True
    inputs: tuple[str, ...]                                 # the letters of each operand, without an ellipsis
    output: str

    def forward(self, *xs):
        return backend.of(xs[0]).einsum(",".join(self.inputs) + "->" + self.output, *xs, optimize=len(xs) > 1)

    # An einsum again: from the output's letters and the other operands' to this operand's letters. A letter that only this operand
    # has was summed away: its gradient is repeated, by a factor of ones. One that it has twice is a diagonal: by an identity matrix.
    def grad_xs(self, gy, i, xs):
        wanted = self.inputs[i]
        others = [backend.wide(x) for k, x in enumerate(xs) if k != i]
        letters = [self.output, *(term for k, term in enumerate(self.inputs) if k != i)]
        operands = [gy, *others]
        xp = backend.of(gy.data if isinstance(gy, Tensor) else gy)
        sizes = dict(zip(wanted, xs[i].shape))
        target = ""
        for letter in wanted:
            if letter in target:
                spare = next(c for c in string.ascii_letters if c not in "".join([*letters, *self.inputs, target]))
                letters.append(letter + spare)
                operands.append(xp.eye(sizes[letter], dtype=gy.dtype))
                letter = spare
            elif not any(letter in term for term in letters):
                letters.append(letter)
                operands.append(xp.ones(sizes[letter], gy.dtype))
            target += letter
        return Einsum(tuple(letters), target)(*operands)


def matmul(a: Any, b: Any) -> Any:
    """The matrix product a @ b, over batches of matrices, which broadcast; a vector counts as one row or one column.

    a: (..., I, K) or (K,). b: (..., K, J) or (K,). ShapeError if the inner lengths differ.

    >>> matmul(np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([1.0, 1.0]))
    array([3., 7.])
    """
    check_arrays("matmul", a=a, b=b)
    shapes = a.shape, b.shape
    if not shapes[0] or not shapes[1] or shapes[0][-1] != shapes[1][-2 if len(shapes[1]) > 1 else 0]:
        raise ShapeError("matmul: the inner lengths must agree", a=f"{shapes[0]} (..., I, K)", b=f"{shapes[1]} (..., K, J)")
    if len(shapes[0]) > 1 and len(shapes[1]) > 1:
        return MatMul()(a, b)
    y = MatMul()(reshape(a, 1, -1) if len(shapes[0]) == 1 else a, reshape(b, -1, 1) if len(shapes[1]) == 1 else b)
    rows = y.shape[:-1] if len(shapes[1]) == 1 else y.shape
    if len(shapes[0]) == 1:                                 # the axis of length 1 that stood for the vector goes again
        rows = rows[:-1] if len(shapes[1]) == 1 else rows[:-2] + rows[-1:]
    return reshape(y, rows)


def affine(x: Any, w: Any, b: Any = None, activation: str | None = None) -> Any:
    """The fully connected layer: y = f(x w + b).

    x: (N, inputs), or (..., inputs). w: (inputs, outputs). b: (outputs,) or None. Gives (N, outputs), in x's dtype: w and b may be
    float32 beside an x of 16 bits.
    activation: f, fused: "relu", "tanh" or "sigmoid"; None for none.
    ShapeError, DtypeError if x, w and b do not fit together.

    >>> affine(np.array([[1.0, 2.0]]), np.array([[1.0, 0.0], [0.0, -1.0]]), np.array([0.5, 0.5]), activation="relu")
    array([[1.5, 0. ]])
    """
    check_dtypes("affine", x=x, w=w, b=b)
    check_activation("affine", activation)
    if len(w.shape) != 2 or len(x.shape) < 1 or x.shape[-1] != w.shape[0]:
        raise ShapeError(f"affine: x has {x.shape[-1] if x.shape else 'no'} inputs, w expects {w.shape[0] if w.shape else 'none'}",
                         x=f"{x.shape} (N, inputs)", w=f"{w.shape} (inputs, outputs)",
                         hint="Images need flatten(x) first." if len(x.shape) == 4 else "")
    if b is not None and b.shape != w.shape[1:]:
        raise ShapeError(f"affine: b has shape {b.shape}, and w gives {w.shape[1]} outputs", b=f"{b.shape} (outputs,)",
                         w=f"{w.shape} (inputs, outputs)")
    vector = len(x.shape) == 1
    y = (Affine() if activation is None else ActivatedAffine(activation))(reshape(x, 1, -1) if vector else x, w, b)
    return reshape(y, -1) if vector else y


def embedding(ids: Any, w: Any) -> Any:
    """Rows of w by their numbers: the product of one-hot rows with w, without the one-hot rows.

    ids: integers of any shape. w: (count, size). Gives ids.shape + (size,). LabelError for an id outside 0 ... count - 1.

    >>> embedding(np.array([1, 1, 0]), np.array([[1.0, 2.0], [3.0, 4.0]]))
    array([[3., 4.], [3., 4.], [1., 2.]])
    """
    array = ids.data if isinstance(ids, Tensor) else ids
    if not hasattr(array, "dtype") or array.dtype.kind not in "iu":
        raise DtypeError(f"embedding: ids are {getattr(array, 'dtype', type(ids).__name__)}, and must be integers",
                         hint="Use ids.astype('int64').")
    check_arrays("embedding", w=w)
    if len(w.shape) != 2:
        raise ShapeError("embedding: w must be a table", w=f"{w.shape} (count, size)")
    if array.size and (int(array.min()) < 0 or int(array.max()) >= w.shape[0]):
        raise LabelError(f"embedding: ids run from {int(array.min())} to {int(array.max())}, and w has {w.shape[0]} rows")
    return Embedding()(ids, w)


def einsum(subscripts: str, *xs: Any) -> Any:
    """Einstein's summation: letters name axes, a letter on several operands multiplies, one that is not in the result is summed.

    subscripts: "ij,jk->ik"; without "->" the letters that occur once, in alphabetical order; "..." stands for any axes in front.

    >>> einsum("ij,j->i", np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([1.0, 1.0]))
    array([3., 7.])
    """
    left, arrow, output = subscripts.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != len(xs):
        raise ArgumentError(f"einsum: {subscripts!r} has {len(terms)} operands, and {len(xs)} are given")
    check_arrays("einsum", **{f"xs[{i}]": x for i, x in enumerate(xs)})
    used = set(subscripts)
    spare = [c for c in string.ascii_uppercase + string.ascii_lowercase if c not in used]
    hidden = [x.ndim - len(term.replace("...", "")) if "..." in term else 0 for term, x in zip(terms, xs)]
    dots = "".join(spare[:max([0, *hidden])])
    for term, x, n in zip(terms, xs, hidden):
        if n < 0 or (n == 0 and "..." not in term and len(term) != x.ndim):
            raise ShapeError(f"einsum: {term!r} does not name the axes of its operand", operand=f"{x.shape}", subscripts=subscripts)
    if not arrow:
        letters = left.replace("...", "").replace(",", "")
        output = ("..." if "..." in left else "") + "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    explicit = tuple(term.replace("...", dots[len(dots) - n:]) for term, n in zip(terms, hidden))
    return Einsum(explicit, output.replace("...", dots))(*xs)


def check_dtypes(operation: str, **arguments: Any) -> None:
    """DtypeError if the arrays of a layer are not all of one float type; beside an x of 16 bits they may be float32, as weights are in
    mixed precision: the layer then works in x's dtype, and their gradients are float32. None is passed over, but for x and w.
    """
    given = {name: x for name, x in arguments.items() if x is not None or name in ("x", "w")}
    check_arrays(operation, **given)
    dtypes = {name: x.dtype for name, x in given.items()}
    first = dtypes["x"]
    if not backend.is_float(first):
        raise DtypeError(f"{operation}: x is {first}, and must be of a float type", hint="Use x.astype('float32').")
    if any(dtype != first for dtype in dtypes.values()):
        other = next((name for name, dtype in dtypes.items() if dtype != first and not (dtype == "float32" and backend.is_half(first))), "")
        if not other:
            return
        raise DtypeError(f"{operation}: x is {first}, {other} is {dtypes[other]}",
                         hint=f"Bring one to the other: x.astype('{dtypes[other]}'), or the layer: layer.to(dtype='{first}').")


Tensor.bind(__matmul__=matmul, __rmatmul__=lambda b, a: matmul(a, b))
