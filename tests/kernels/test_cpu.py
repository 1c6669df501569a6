"""Compiled kernels, each held against its reference on what a table draws for it.

The table says for a kernel what to draw, and which of its arguments it may write to. What is common is said once: its numbers, beside
those of the reference in float64, in units of rounding; the same bits on any number of threads; arguments left as they were; the memory
order of results; float64, which the reference does.
"""

import numpy as np
import pytest

import draws
from minidl import kernels, pool
from minidl.kernels import products, reference, reference_layers, reference_updates

pytest.importorskip("numba", reason="compiled kernels need Numba: pip install 'minidl[fast]'")
from minidl.kernels import cpu
from minidl.kernels.cpu import compiled

EXAMPLES = 24
EPS = np.finfo(np.float32).eps
TABLE = {}
DECLINES = ("matmul", "affine", "affine_weights")           # what is small, which the linear algebra library does as fast


def drawn(kernel, draw, units=8.0, writes=(), name=None, examples=EXAMPLES, spoilt=True):
    """Enter what `draw` draws as the arguments of a kernel into the table.

    units: by how many units of rounding of the largest number a result may be off. writes: the positions of the arguments that the
    kernel may write to. spoilt: NaN and infinities are among the numbers of some examples.
    """
    TABLE[name or kernel] = (kernel, draw, units, writes, examples, spoilt)


def arguments(entry, example, dtype=np.float32):
    """The arguments of an example, made anew. For float64 without the name of an algorithm that is compiled."""
    _, draw, _, _, _, spoilt = TABLE[entry]
    args = draw(draws.Draw(entry, example, spoilt))
    if dtype == np.float32:
        return list(args)
    args = [None if isinstance(a, str) and a in ("direct", "winograd") else a for a in args]
    return [a.astype(dtype) if isinstance(a, np.ndarray) and a.dtype == np.float32 else a for a in args]


def results(kernel, args, entry):
    """What a kernel gives, or else what it has written to, as a list of arrays."""
    found = kernel(*args)
    if found is NotImplemented and (args[0].size == 0 or TABLE[entry][0] in DECLINES):
        found = slow(TABLE[entry][0])(*args)
    assert found is not NotImplemented, "the twin has declined"
    if found is None:
        return [args[i] for i in TABLE[entry][3]]
    return list(found) if isinstance(found, tuple) else [found]


def slow(kernel):
    """The reference kernel of a name."""
    return next(getattr(module, kernel) for module in (products, reference, reference_layers, reference_updates) if hasattr(module, kernel))


def check(entry, example):
    """Hold one example against the reference."""
    kernel, _, units, _, _, _ = TABLE[entry]
    args = arguments(entry, example)
    found = results(cpu.TWINS[kernel], args, entry)
    wanted = results(slow(kernel), arguments(entry, example, np.float64), entry)
    assert len(found) == len(wanted)
    for mine, theirs in zip(found, wanted):
        assert mine.shape == theirs.shape
        if theirs.dtype.kind == "f":
            assert mine.dtype == np.float32
            largest = np.abs(theirs[np.isfinite(theirs)]).max(initial=0)
            np.testing.assert_allclose(mine, theirs, rtol=units * EPS, atol=units * EPS * largest)
        else:
            assert mine.dtype == theirs.dtype
            np.testing.assert_array_equal(mine, theirs)


# What is drawn for each kernel

drawn("conv2d", draws.conv2d, units=30, spoilt=False)
drawn("conv2d_input", draws.conv2d_input, units=30, spoilt=False)
drawn("conv2d_weights", draws.conv2d_weights, units=30, spoilt=False)
drawn("conv2d_patch_moments", draws.conv2d_patch_moments, units=30, spoilt=False)
drawn("conv2d", draws.conv2d_winograd, units=400, spoilt=False, name="conv2d by Winograd's algorithm")
drawn("conv2d_input", draws.conv2d_input_winograd, units=400, spoilt=False, name="conv2d_input by Winograd's algorithm")
drawn("conv2d_weights", draws.conv2d_weights_winograd, units=400, spoilt=False, name="conv2d_weights by Winograd's algorithm")
drawn("matmul", draws.matmul, units=64, spoilt=False)
drawn("affine", draws.affine, units=64, spoilt=False)
drawn("affine_weights", draws.affine_weights, units=64, spoilt=False)
drawn("max_pool2d", draws.max_pool2d, units=0)
drawn("max_pool2d_scatter", draws.max_pool2d_scatter)
drawn("max_pool2d_gather", draws.max_pool2d_gather)
drawn("sum_pool2d", draws.sum_pool2d)
drawn("sum_pool2d_spread", draws.sum_pool2d_spread)
drawn("activation", draws.activation, writes=(0,))
drawn("activation_gradient", draws.activation_gradient)
drawn("dropout", draws.dropout)
drawn("dropout_gradient", draws.dropout_gradient)
drawn("channel_sums", draws.channel_sums, units=20)
drawn("batch_norm", draws.batch_norm, units=400)
drawn("batch_norm_inference", draws.batch_norm_inference, units=20)
drawn("batch_norm_gradient", draws.batch_norm_gradient, units=100)
drawn("layer_norm", draws.layer_norm, units=400)
drawn("layer_norm_gradient", draws.layer_norm_gradient, units=200)
drawn("softmax_cross_entropy", draws.softmax_cross_entropy)
drawn("softmax_cross_entropy_gradient", draws.softmax_cross_entropy_gradient)
drawn("sgd_update", draws.sgd_update, writes=(0, 2))
drawn("sgd_update", draws.plain_sgd_update, writes=(0,), name="sgd_update without velocity")
drawn("adam_update", draws.adam_update, units=20, writes=(0, 2, 3))


# What holds for all


every_example = pytest.mark.parametrize(("entry", "example"), [(entry, i) for entry, row in TABLE.items() for i in range(row[4])])
a_few = pytest.mark.parametrize(("entry", "example"), [(entry, i) for entry in TABLE for i in (1, 5, 11)])


@every_example
def test_numbers(entry, example):
    check(entry, example)


@a_few
def test_bits_do_not_depend_on_the_number_of_threads(entry, example, monkeypatch):
    monkeypatch.setattr(compiled, "ALONE", -1)                     # small work too
    kernel = cpu.TWINS[TABLE[entry][0]]
    with pool.threads(1):
        alone = results(kernel, arguments(entry, example), entry)
    with pool.threads(3):
        together = results(kernel, arguments(entry, example), entry)
    for a, b in zip(alone, together):
        assert a.tobytes() == b.tobytes()


@a_few
def test_arguments_are_left_as_they_were(entry, example):
    args, before = arguments(entry, example), arguments(entry, example)
    cpu.TWINS[TABLE[entry][0]](*args)
    for i, (a, b) in enumerate(zip(args, before)):
        if isinstance(a, np.ndarray) and i not in TABLE[entry][3]:
            assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("entry", TABLE)
def test_float64_is_for_the_reference(entry):
    kernel, args, again = TABLE[entry][0], arguments(entry, 1, np.float64), arguments(entry, 1, np.float64)
    for a, b in zip(results(getattr(kernels, kernel), args, entry), results(slow(kernel), again, entry)):
        assert a.dtype == b.dtype and a.tobytes() == b.tobytes()


def test_every_twin_is_in_the_table():
    assert set(cpu.TWINS) == {row[0] for row in TABLE.values()}
    assert all(hasattr(kernels, name) for name in cpu.TWINS)
