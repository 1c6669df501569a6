"""What the tests of all functions and layers have in common, said once.

A FunctionCase says what is special about a function: which inputs to draw, the call, and the answer worked out in the plainest way:

    class TestSigmoid(FunctionCase):
        functions = ("sigmoid",)

        def inputs(self, draw):
            return draw.array()

        def forward(self, x):
            return F.sigmoid(x)

        def expected(self, x):
            return 1 / (1 + np.exp(-x))

The base class makes of it, over several drawn examples, tests of the numbers, in float32 and float64, on arrays and on Tensors; of
other memory orders; of other devices; of the gradient, and of the gradient of the gradient. Example 0 is always the plainest, so
the lowest number that fails says most. A LayerCase does the same for a Module.
"""

import copy
import math
import pickle
import re
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import ClassVar

import numpy as np
import pytest

from devices import DEVICES, examples_on
from minidl import backend
from minidl.tensor import Tensor
from minidl.testing import gradcheck, gradgradcheck

# What is drawn


@dataclass(frozen=True)
class Window:
    """A sliding window: (height, width) of the kernel, of its stride, padding and dilation; and the groups of a convolution."""

    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    def places(self, shape, ceil_mode=False):
        """The (rows, columns) under each output position, left to right and top to bottom: lists that count from the padding's corner."""
        rows, columns = (self._under(axis, shape[2 + axis], ceil_mode) for axis in (0, 1))
        return [(r, c) for r in rows for c in columns]

    def patches(self, x, fill=0.0, ceil_mode=False):
        """The numbers under each output position: a list of (N, C, KH, KW). The padding holds `fill`; what only ceil_mode reaches, NaN."""
        around = [(0, 0), (0, 0), *((p, p) for p in self.padding)]
        beyond = [(0, 0), (0, 0), *((0, s) for s in self.stride)]
        wide = np.pad(np.pad(x, around, constant_values=fill), beyond, constant_values=np.nan)
        return [wide[:, :, rows][:, :, :, columns] for rows, columns in self.places(x.shape, ceil_mode)]

    def output(self, shape, ceil_mode=False):
        """(OH, OW): how many output positions there are."""
        return tuple(len(self._under(axis, shape[2 + axis], ceil_mode)) for axis in (0, 1))

    def _under(self, axis, size, ceil_mode):
        k, s, p, d = self.kernel[axis], self.stride[axis], self.padding[axis], self.dilation[axis]
        last = size + 2 * p - d * (k - 1) - 1                   # the last start from which the window lies wholly inside
        starts = [start for start in range(0, size + 2 * p, s)
                  if start <= last or (ceil_mode and start - s < last and start < size + p)]
        return [[start + d * i for i in range(k)] for start in starts]


WINDOWS = (                                                     # all of them are good for pooling: padding up to half the kernel
    Window((2, 2)),
    Window((3, 3), stride=(2, 2), padding=(1, 1)),
    Window((3, 2), stride=(2, 1), padding=(1, 0)),
    Window((2, 3), stride=(3, 2), padding=(0, 1), dilation=(2, 1)),
    Window((1, 4), stride=(2, 2), padding=(0, 2)),
    Window((3, 3), stride=(1, 2), padding=(1, 1), dilation=(1, 2)),
)
CONVOLUTIONS = (
    Window((3, 3)),
    Window((3, 3), padding=(1, 1)),
    Window((1, 1), groups=2),
    Window((3, 2), stride=(2, 1), padding=(1, 0), groups=2),
    Window((2, 3), stride=(3, 2), padding=(2, 1), dilation=(2, 1)),
    Window((1, 4), stride=(2, 3), padding=(1, 2), groups=3),
    Window((3, 3), stride=(1, 2), padding=(2, 0), dilation=(1, 2), groups=3),
    Window((1, 1), stride=(2, 2), padding=(1, 1)),
)
PAIRS = (((2, 3), (2, 3)), ((2, 3), (3,)), ((2, 1, 3), (4, 1)), ((), (2, 3)), ((2, 3), ()), ((4, 1), (1, 3)), ((1,), (5,)), ((), ()))
SHAPES = ((3,), (2, 3), (4, 1, 3), (), (2, 3, 4, 2), (1, 5))


class Draw:
    """The inputs of one example: the same every time. What is listed above is taken in turn, from its beginning."""

    def __init__(self, example):
        self.example = example
        self.random = np.random.default_rng([2026, example])

    def choice(self, *options):
        """One of the options: the first in example 0, the second in example 1, and so on, round and round."""
        return options[self.example % len(options)]

    def integer(self, low, high):
        """A number from low to high, both possible; low in example 0."""
        return int(self.random.integers(low, high + 1)) if self.example else low

    def array(self, shape=None, *, low=None, high=None, distinct=False):
        """Normal numbers, or evenly spread ones from low to high.

        shape: another one in each example if it is not given. distinct: no two numbers are nearer to each other than 0.05.
        """
        shape = self.choice(*SHAPES) if shape is None else shape
        if distinct:
            count = int(np.prod(shape))
            return np.asarray((self.random.permutation(count).reshape(shape) - count / 2) * 0.05)
        return np.asarray(self.random.standard_normal(shape) if low is None else self.random.uniform(low, high, shape))

    def pair(self, **kwargs):
        """Two arrays whose shapes are equal or broadcast, with the options of `array`."""
        a, b = self.choice(*PAIRS)
        return self.array(a, **kwargs), self.array(b, **kwargs)

    def axes(self, ndim):
        """Which axes of an array with ndim of them: all, one, or several."""
        return self.choice(None, 0, -1, (0, -1) if ndim > 1 else (0,), tuple(range(ndim))) if ndim else None

    def labels(self, count, classes):
        """Integer class ids."""
        return self.random.integers(0, classes, count)

    def mask(self, shape):
        """Booleans."""
        return self.random.random(shape) < 0.5

    def images(self, channels=None, *, distinct=False):
        """(N, C, H, W), with H and W from 5 to 8 and different from one another, but for example 0."""
        n, c, h = self.integer(1, 3), channels or self.integer(1, 3), self.integer(5, 7)
        return self.array((n, c, h, h + (self.example > 0)), distinct=distinct)

    def window(self):
        """A pooling window, unequal in height and width from example 2 on."""
        return self.choice(*WINDOWS)

    def convolution(self, transposed=False):
        """x, w, b and window of a convolution; b is None in every second example.

        w is (O, C / groups, KH, KW), and of a transposed convolution (C, O / groups, KH, KW).
        """
        window = self.choice(*CONVOLUTIONS)
        c, o = (window.groups * self.integer(1, 2) for _ in range(2))
        first, second = (c, o) if transposed else (o, c)
        w = self.array((first, second // window.groups, *window.kernel))
        return self.images(c), w, self.choice(self.array(o), None), window


# What is tested


class FunctionCase:
    """The base of every function's test; see the top of this file."""

    functions: tuple[str, ...] = ()             # the names in minidl.functions that this case covers
    differentiable = True                       # False: only the numbers are tested
    twice = True                                # False: the gradient is not differentiated again
    sums = False                                # True: the result is float32 for arguments of 16 bits
    constants: tuple[int, ...] = ()             # positions of float arguments that have no gradient
    dtypes: tuple[str, ...] = ("float64", "float32")
    examples = 6
    tolerance: ClassVar = {"float64": 1e-10, "float32": 2e-5}   # relative to the number, or to the largest one if that is more than 1
    rounding: ClassVar = {"float16": 2 ** -10, "bfloat16": 2 ** -7}     # the same for what is stored in 16 bits: from 1 to the next number

    def inputs(self, draw):
        """The arguments, a tuple or a single one. Float arrays are drawn in float64, and are what is differentiated."""
        raise NotImplementedError

    def forward(self, *inputs):
        """The function's result for these arguments: arrays, or Tensors in place of the float arrays."""
        raise NotImplementedError

    def expected(self, *inputs):
        """The same in float64, by NumPy. A tuple for several outputs; a list has an entry an output position, such as (N, C)."""
        raise NotImplementedError

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if not cls.differentiable:
            cls.test_gradient = cls.test_gradient_in_float32 = None
        if not cls.differentiable or not cls.twice:
            cls.test_second_gradient = cls.test_gradient_that_is_recorded = None

    def pytest_generate_tests(self, metafunc):
        parametrize(metafunc, self.examples, dtype=self.dtypes, half=self.rounding)

    def test_value(self, example, dtype):
        inputs = self.drawn(example, dtype)
        before = copy.deepcopy(inputs)
        results = listed(self.forward(*inputs))
        wanted = listed(self.expected(*(x.astype(np.float64) if is_float(x) else x for x in before)))
        assert_close(results, wanted, self.tolerance[dtype])
        for y in results:
            assert isinstance(y, np.ndarray | np.generic), f"arrays in, {type(y).__name__} out"
            assert y.dtype == dtype or y.dtype.kind != "f", f"{dtype} in, {y.dtype} out"
        for mine, theirs in zip(inputs, before):
            if isinstance(mine, np.ndarray):
                np.testing.assert_array_equal(mine, theirs, "an argument was written to")

    def test_tensors(self, example, dtype):
        inputs = self.drawn(example, dtype)
        wanted = listed(self.forward(*inputs))
        for requires_grad in (False, self.differentiable):
            results = listed(self.forward(*self.with_tensors(inputs, requires_grad)))
            for y in results:
                assert isinstance(y, Tensor) or y.dtype.kind != "f", f"Tensors in, {type(y).__name__} out"
            assert_close([plain(y) for y in results], wanted, 0)

    def test_memory_orders(self, example, dtype):
        inputs = self.drawn(example, dtype)
        wanted = self.values_and_gradients(inputs)
        for order in ORDERS:
            found = self.values_and_gradients([order(x) if isinstance(x, np.ndarray) else x for x in inputs])
            assert_close(found, wanted, self.tolerance[dtype], order.__name__)

    def test_device(self, example, dtype, device):
        inputs = self.drawn(example, dtype)
        there = [backend.asarray(x, device) if isinstance(x, np.ndarray) else x for x in inputs]
        for y in listed(self.forward(*there)):
            assert backend.device_of(y) == device, f"arrays on {device} in, {type(y).__name__} out"
        assert_close(self.values_and_gradients(there), self.values_and_gradients(inputs), self.tolerance[dtype])

    def test_gradient(self, example):
        assert gradcheck(*self.of_what_is_free(example))

    def test_second_gradient(self, example):
        assert gradgradcheck(*self.of_what_is_free(example), directions=2)

    def test_gradient_that_is_recorded(self, example, dtype):
        """Rules are called with Tensors then, and kernels give way to formulas."""
        inputs = self.drawn(example, dtype)
        assert_close(self.values_and_gradients(inputs, create_graph=True), self.values_and_gradients(inputs), self.tolerance[dtype])

    def test_gradient_in_float32(self, example):
        inputs = self.drawn(example, "float32")
        found = self.values_and_gradients(inputs)
        for y in found:
            assert y.dtype == np.float32 or y.dtype.kind != "f", f"float32 in, {y.dtype} out of the backward pass"
        assert_close(found, self.values_and_gradients([x.astype(np.float64) if is_float(x) else x for x in inputs]),
                     10 * self.tolerance["float32"])

    def test_sixteen_bits(self, example, half):
        """The numbers that float32 gives, rounded once or twice; so are the gradients, which may be sums of such numbers."""
        if half == "bfloat16":
            pytest.importorskip("ml_dtypes")
        inputs = self.drawn(example, backend.dtype_named(half))
        wanted = self.values_and_gradients([backend.wide(x) for x in inputs])
        for create_graph in (False, True) if self.differentiable and self.twice else (False,):
            found = self.values_and_gradients(inputs, create_graph)
            for y in found:
                assert not is_float(y) or y.dtype == half or (self.sums and y.dtype == "float32"), f"{half} in, {y.dtype} out"
            assert_close([backend.wide(y) for y in found], wanted, 4 * self.rounding[half])
        there = [backend.asarray(x, "strict:0") if isinstance(x, np.ndarray) else x for x in inputs]
        assert [y.dtype for y in self.values_and_gradients(there)] == [y.dtype for y in self.values_and_gradients(inputs)]

    # Steps of these tests

    def drawn(self, example, dtype="float64"):
        """The arguments of an example."""
        inputs = self.inputs(Draw(example))
        return [x.astype(dtype) if is_float(x) else x for x in (inputs if isinstance(inputs, tuple) else (inputs,))]

    def free(self, inputs):
        """The positions of the arguments that have a gradient."""
        return [i for i, x in enumerate(inputs) if is_float(x) and i not in self.constants]

    def with_tensors(self, inputs, requires_grad=True):
        """The arguments with Tensors in place of those that have a gradient."""
        free = self.free(inputs)
        return [Tensor(x, requires_grad) if i in free else x for i, x in enumerate(inputs)]

    def of_what_is_free(self, example):
        """A function of the arguments that have a gradient, and these arguments, for gradcheck."""
        inputs = self.drawn(example)
        free = self.free(inputs)

        @wraps(self.forward)
        def forward(*xs):
            given = dict(zip(free, xs))
            return self.forward(*(given.get(i, x) for i, x in enumerate(inputs)))
        return forward, [inputs[i] for i in free]

    def values_and_gradients(self, inputs, create_graph=False):
        """The outputs and then, if there is one, the gradient by each argument."""
        inputs = self.with_tensors(inputs, self.differentiable)
        results = listed(self.forward(*inputs))
        values = [plain(y) for y in results]
        if not self.differentiable:
            return values
        recorded = [y for y in results if isinstance(y, Tensor) and y.requires_grad]
        seeds = [backward_seed(y) for y in recorded]
        before = copy.deepcopy(seeds)
        for y, gy in zip(recorded, seeds):
            y.backward(gy, create_graph, retain_graph=y is not recorded[-1])
        assert_close(seeds, before, 0, "a rule wrote to the gradient it was given")
        return values + [x.grad.data for x in inputs if isinstance(x, Tensor) and x.grad is not None]


class ElementwiseCase(FunctionCase):
    """A function of each number of an array, or of the pairs of two that broadcast. `at` is the same function of Python numbers."""

    at: ClassVar = None

    def inputs(self, draw):
        return draw.array()

    def expected(self, *xs):
        return each(self.at, *xs)


class LayerCase:
    """The base of every layer's test: a Module, made anew for each example, and an input. Its weights are replaced by normal numbers."""

    layers: tuple[str, ...] = ()                # the names in minidl.nn that this case covers
    examples = 3
    tolerance: ClassVar = FunctionCase.tolerance

    def make(self, generator):
        """The layer, in float32, with what it draws drawn from generator."""
        raise NotImplementedError

    def inputs(self, draw):
        """The arguments of the layer, a tuple or a single one; float arrays are drawn in float64."""
        raise NotImplementedError

    def expected(self, layer, *inputs):
        """What the layer gives while it trains, in float64, by NumPy; None where the functions' tests say enough."""

    def pytest_generate_tests(self, metafunc):
        parametrize(metafunc, self.examples, mode=("train", "eval"), half=FunctionCase.rounding, weights=("wide", "narrow"))

    def test_value(self, example):
        layer, inputs = self.drawn(example)
        wanted = self.expected(copy.deepcopy(layer), *inputs)
        if wanted is not None:
            assert_close([plain(y) for y in listed(layer(*inputs))], listed(wanted), self.tolerance["float64"])

    def test_gradient(self, example, mode):
        layer, inputs = self.drawn(example, mode=mode)
        names = [name for name, _ in layer.named_parameters()]
        state = layer.state_dict()

        def forward(*values):
            layer.load_state_dict(state)        # running statistics and counters as they were
            with parameters_replaced(layer, dict(zip(names, values[len(inputs):]))):
                return layer(*values[:len(inputs)])
        values = [*inputs, *(state[name] for name in names)]
        assert not any(is_float(x) for x in values) or gradcheck(forward, values)

    def test_float32(self, example):
        layer, inputs = self.drawn(example, "float32")
        for y in self.values_and_gradients(layer, inputs):
            assert y.dtype == np.float32 or y.dtype.kind != "f", f"float32 in, {y.dtype} out"

    def test_device(self, example, mode, device):
        layer, inputs = self.drawn(example, mode=mode)
        there = copy.deepcopy(layer).to(device)
        found = self.values_and_gradients(there, [backend.asarray(x, device) if isinstance(x, np.ndarray) else x for x in inputs])
        assert {backend.device_of(y) for y in found} <= {device}
        assert_close(found, self.values_and_gradients(layer, inputs), self.tolerance["float64"])
        assert_close(list(there.state_dict().values()), list(layer.state_dict().values()), self.tolerance["float64"], "the state")

    def test_sixteen_bits(self, example, mode, half, weights):
        """As in float32, but for the rounding of what is stored. Beside float32 weights the gradients by these are float32."""
        if half == "bfloat16":
            pytest.importorskip("ml_dtypes")
        layer, inputs = self.drawn(example, "float32", mode)
        narrow = backend.dtype_named(half)
        layer.to(dtype=narrow).to(dtype="float32")              # weights that 16 bits can hold
        inputs = [x.astype(narrow) if is_float(x) else x for x in inputs]
        wanted = self.values_and_gradients(copy.deepcopy(layer), [backend.wide(x) for x in inputs])
        if weights == "narrow":
            layer.to(dtype=half)
        found = self.values_and_gradients(layer, inputs)
        assert_close([backend.wide(y) for y in found], wanted, 8 * FunctionCase.rounding[half])
        for y in found[:len(found) - len(layer.parameters())]:
            assert not is_float(y) or y.dtype == half or not any(map(is_float, inputs)), f"{half} in, {y.dtype} out"
        assert all(p.dtype == (half if weights == "narrow" else "float32") for p in layer.state_dict().values() if is_float(p))

    def test_state(self, example):
        layer, inputs = self.drawn(example)
        layer(*inputs)                                          # so that there are running statistics
        other, _ = self.drawn(example + 1)
        other.load_state_dict(layer.state_dict())
        for twin in (other, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert_close([plain(y) for y in listed(twin.eval()(*inputs))], [plain(y) for y in listed(layer.eval()(*inputs))], 0)

    def drawn(self, example, dtype="float64", mode="train"):
        """A layer with weights of its own, and the arguments of an example."""
        layer = self.make(np.random.default_rng([2027, example])).to(dtype=dtype).train(mode == "train")
        draw = Draw(example)
        for parameter in layer.parameters():
            parameter.data = draw.array(parameter.shape).astype(dtype)
        inputs = self.inputs(draw)
        return layer, [x.astype(dtype) if is_float(x) else x for x in (inputs if isinstance(inputs, tuple) else (inputs,))]

    def values_and_gradients(self, layer, inputs):
        """The outputs, and then the gradients by the inputs and by the parameters."""
        inputs = [Tensor(x, requires_grad=True) if is_float(x) else x for x in inputs]
        results = listed(layer(*inputs))
        sum((y * backward_seed(y)).sum() for y in results if y.requires_grad).backward()
        leaves = [x for x in inputs if isinstance(x, Tensor)] + layer.parameters()
        return [plain(y) for y in results] + [x.grad.data for x in leaves]


def parametrize(metafunc, examples, **values):
    """Let a test run for each example, on each device, and for each of the values that it asks for by name."""
    named = metafunc.fixturenames
    if "device" in named:
        metafunc.parametrize(("device", "example"), [(device, i) for device in DEVICES for i in examples_on(device, examples)])
    elif "example" in named:
        metafunc.parametrize("example", range(examples))
    for name, options in values.items():
        if name in named:
            metafunc.parametrize(name, options)


@contextmanager
def parameters_replaced(layer, values):
    """Run a block with Tensors in the place of a layer's parameters, by path, so that gradients go to the Tensors."""
    modules = dict(layer.named_modules())
    before = dict(layer.named_parameters())

    def put(tensors):
        for path, tensor in tensors.items():
            owner, _, name = path.rpartition(".")
            vars(modules[owner])[name] = tensor
    put(values)
    try:
        yield
    finally:
        put(before)


# The plainest answers

# What a layer can do to its own output, for one number
ACTIVATIONS = {None: lambda y: y, "relu": lambda y: max(y, 0), "tanh": math.tanh, "sigmoid": lambda y: 1 / (1 + math.exp(-y))}


def each(f, *xs):
    """f of the numbers at every place of arrays that broadcast, one place after another."""
    xs = np.broadcast_arrays(*xs)
    y = np.empty(xs[0].shape)
    for place in np.ndindex(y.shape):
        y[place] = f(*(x[place].item() for x in xs))
    return y


def along(f, x, axis=None, keepdims=False):
    """f of the list of the numbers along the axes (None: all), for each place of the others."""
    axes = {a % x.ndim for a in (range(x.ndim) if axis is None else axis if isinstance(axis, tuple) else (axis,))}
    y = np.empty([1 if a in axes else n for a, n in enumerate(x.shape)])
    for place in np.ndindex(y.shape):
        y[place] = f(x[tuple(slice(None) if a in axes else i for a, i in enumerate(place))].ravel().tolist())
    return y if keepdims else y.reshape([n for a, n in enumerate(x.shape) if a not in axes])


# The same numbers in other memory orders


def fortran(x):
    """The first axis is the one that runs fastest."""
    return np.asarray(x, order="F")


def channels_last(x):
    """Images stored as (N, H, W, C)."""
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2) if x.ndim == 4 else x


def every_second(x):
    """With other numbers between them along each axis."""
    wide = np.zeros([2 * n for n in x.shape], x.dtype)
    view = wide[(..., *(slice(None, None, 2),) * x.ndim)]
    view[...] = x
    return view


def backwards(x):
    """Stored from the last to the first: all strides are negative."""
    return np.asarray(np.flip(np.flip(x).copy()))


ORDERS = (fortran, channels_last, every_second, backwards)


def backward_seed(y):
    """A gradient for an output: normal numbers, on its device and in its dtype; of few digits, so that they are the same in any."""
    numbers = (np.random.default_rng(0).standard_normal(y.shape) * 16).round() / 16
    numbers = np.asarray(numbers).astype(y.dtype)
    return backend.asarray(np.asarray(numbers), y.device)


def is_float(x):
    return backend.is_array(x) and backend.is_float(x.dtype)


def listed(results):
    """One output or several, as a list. A list is one output: its entries are output positions, which come last."""
    if isinstance(results, tuple):
        return [part for result in results for part in listed(result)]
    return [np.stack(results, axis=-1)] if isinstance(results, list) else [results]


def says(*words):
    """A pattern for pytest.raises: a text that begins with the first of the words, and has the others in this order."""
    return "(?s)^" + ".*".join(re.escape(word) for word in words)


def plain(y):
    return y.data if isinstance(y, Tensor) else y


def assert_close(found, wanted, tolerance, what=""):
    """Every array like the one that is wanted, which may have its output positions on one axis."""
    assert len(found) == len(wanted), f"{len(found)} results, and {len(wanted)} were wanted"
    for mine, theirs in zip(found, wanted):
        mine, theirs = backend.to_numpy(mine), backend.to_numpy(theirs)
        if theirs.ndim == 3 and mine.ndim == 4 and (*theirs.shape[:2], theirs.size) == (*mine.shape[:2], mine.size):
            theirs = theirs.reshape(mine.shape)             # (N, C, positions)
        assert mine.shape == theirs.shape, f"{what}: shape {mine.shape}, and {theirs.shape} was wanted"
        largest = np.abs(theirs).max(initial=1) if theirs.dtype.kind == "f" else 1
        np.testing.assert_allclose(mine, theirs, rtol=tolerance, atol=tolerance * largest, err_msg=what)
