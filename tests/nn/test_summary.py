"""summary: rows that can be counted by hand, and a model that is left as it was."""

import numpy as np
import pytest

import strict  # noqa: F401   makes the strict device known
from minidl import backend, kernels, nn
from minidl import functions as F
from minidl.errors import ArgumentError, ShapeError


@pytest.fixture(autouse=True)
def order_of_memory():
    """Compiled kernels lay channels last, so that flattening copies; the reference keeps the order that is easily counted."""
    with kernels.using("reference"):
        yield


def model():
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1, groups=2, generator=0), nn.BatchNorm(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
                         nn.Dropout(generator=0), nn.Affine(4 * 3 * 2, 5, generator=0))


def test_rows_counted_by_hand():
    found = nn.summary(model(), (2, 6, 4))
    assert [(row.path, row.layer, row.output_shape, row.parameters, row.multiply_adds, row.activation_bytes) for row in found.rows] == [
        ("0", "Conv2d", (4, 6, 4), 4 * 1 * 9 + 4, (4 * 6 * 4) * 9, 4 * 96),
        ("1", "BatchNorm", (4, 6, 4), 8, 0, 4 * 96),
        ("2", "ReLU", (4, 6, 4), 0, 0, 4 * 96),
        ("3", "MaxPool2d", (4, 3, 2), 0, 0, 4 * 24),
        ("4", "Flatten", (24,), 0, 0, 0),
        ("5", "Dropout", (24,), 0, 0, 0),
        ("6", "Affine", (5,), 24 * 5 + 5, 24 * 5, 4 * 5),
    ]
    assert (found.parameters, found.trainable) == (40 + 8 + 125, 40 + 8 + 125)
    assert (found.multiply_adds, found.activation_bytes) == (864 + 120, 4 * (3 * 96 + 24 + 5))


def test_a_transposed_convolution_multiplies_each_input_with_a_filter():
    (row,) = nn.summary(nn.ConvTranspose2d(2, 4, 3, stride=2), (2, 5, 5)).rows
    assert row.multiply_adds == (2 * 5 * 5) * (4 * 3 * 3)
    assert row.output_shape == (4, 11, 11)


def test_the_table_is_aligned_and_names_the_batch_axis():
    lines = str(nn.summary(model(), (2, 6, 4))).splitlines()
    assert lines[0] == "Sequential on (N, 2, 6, 4)"
    assert lines[4].split() == ["0", "Conv2d", "(N,", "4,", "6,", "4)", "40", "864", "384", "B"]
    assert lines[-1].split() == ["total", "173", "984", "1.2", "KiB"]
    assert len({len(line) for line in lines[1:4]}) == 1
    assert {line.rstrip()[-1] for line in lines[4:-2]} <= {"B", "-"}


def test_the_model_is_left_as_it_was():
    net = model()
    net[1].eval()
    before, modes = net.state_dict(), [module.training for _, module in net.named_modules()]
    nn.summary(net, (2, 6, 4))
    assert [module.training for _, module in net.named_modules()] == modes
    assert all(not module._hooks for _, module in net.named_modules())
    for path, x in net.state_dict().items():
        np.testing.assert_array_equal(x, before[path])


def test_also_after_an_error_which_names_the_layer():
    net = model()
    with pytest.raises(ShapeError, match=r"in layer 6 \(Affine\)"):
        nn.summary(net, (2, 8, 8))
    assert net.training
    assert all(not module._hooks for _, module in net.named_modules())


def test_frozen_parameters_are_told_apart():
    net = model()
    net[0].requires_grad_(False)
    found = nn.summary(net, (2, 6, 4))
    assert (found.parameters, found.trainable) == (173, 133)
    assert "40 of its parameters frozen" in str(found)


def test_what_is_shared_counts_once_but_runs_twice():
    layer = nn.Affine(3, 3)
    found = nn.summary(nn.Sequential(layer, layer), (3,))
    assert [(row.parameters, row.multiply_adds) for row in found.rows] == [(12, 9), (0, 9)]
    assert found.parameters == 12


def test_parameters_of_a_module_with_layers_inside_and_layers_that_do_not_run_have_rows():
    class Scaled(nn.Module):
        def __init__(self):
            self.layer = nn.Affine(3, 2)
            self.scale = nn.Parameter(np.ones(2, np.float32))
            self.idle = nn.Affine(2, 2)

        def forward(self, x):
            return F.relu(self.layer(x)) * self.scale
    found = nn.summary(Scaled(), (3,))
    assert [(row.path, row.output_shape, row.parameters) for row in found.rows] == [("layer", (2,), 8), ("", (2,), 2), ("idle", None, 6)]
    assert found.parameters == 16
    assert "not run" in str(found)


def test_ids_and_float64_and_the_strict_device():
    assert nn.summary(nn.Embedding(5, 4), (7,), dtype="int64").rows[0].output_shape == (7, 4)
    assert nn.summary(nn.Affine(3, 2, dtype="float64"), (3,)).activation_bytes == 16
    net = model().to("strict:0")
    assert nn.summary(net, (2, 6, 4)).activation_bytes == 4 * (3 * 96 + 24 + 5)
    assert backend.device_of(net[0].w.data) == "strict:0"


@pytest.mark.parametrize("shape", [784, (3, 0, 4), None, (2.0,)])
def test_a_shape_that_is_none_is_an_error(shape):
    with pytest.raises(ArgumentError, match="without the batch axis"):
        nn.summary(model(), shape)
