"""Clipping of gradients."""

import numpy as np
import pytest

import strict  # noqa: F401   makes the strict device known
from minidl import backend, nn, optim
from minidl.errors import ArgumentError, GraphError, NumericsError


def leaves(device="cpu"):
    """Two parameters whose gradients have the norm 13 together: 3, 4, 12."""
    a, b = (nn.Parameter(backend.asarray(np.zeros(n, np.float32), device)) for n in (2, 1))
    a.grad, b.grad = (backend.asarray(np.array(g, np.float32), device) for g in ([3, 4], [-12]))
    return {"a": a, "b": b}


def gradients(parameters):
    return np.concatenate([backend.to_numpy(p.grad.data) for p in parameters.values()])


@pytest.mark.parametrize("device", ["cpu", "strict:0"])
class TestNorm:
    def test_a_larger_norm_is_brought_to_the_largest_allowed_and_given_back(self, device):
        parameters = leaves(device)
        assert optim.clip_grad_norm(parameters, 6.5) == 13
        np.testing.assert_allclose(gradients(parameters), [1.5, 2, -6], rtol=1e-6)
        assert parameters["a"].grad.dtype == np.float32

    def test_a_smaller_one_is_left_alone(self, device):
        parameters = leaves(device)
        assert optim.clip_grad_norm(parameters, 20) == 13
        np.testing.assert_array_equal(gradients(parameters), [3, 4, -12])

    def test_a_norm_that_is_not_finite_is_an_error_that_names_the_parameter(self, device):
        parameters = leaves(device)
        parameters["b"].grad.data[...] = float("nan")
        with pytest.raises(NumericsError, match="norm is nan\n  parameters: b\n"):
            optim.clip_grad_norm(parameters, 1)
        assert gradients(parameters)[0] == 3


def test_values_are_brought_into_the_range():
    for device in ("cpu", "strict:0"):
        parameters = leaves(device)
        optim.clip_grad_value(parameters, 3.5)
        np.testing.assert_array_equal(gradients(parameters), [3, 3.5, -3.5])


def test_what_is_frozen_or_has_no_gradient_does_not_count():
    parameters = leaves()
    parameters["b"].requires_grad = False
    parameters["c"] = nn.Parameter(np.zeros(1))
    assert optim.clip_grad_norm(parameters, 100) == 5


def test_a_model_is_as_good_as_a_dictionary():
    layer = nn.Affine(2, 2, generator=0)
    layer(np.ones((3, 2), np.float32)).sum().backward()
    assert optim.clip_grad_norm(layer, 100) == pytest.approx(np.sqrt(6 * 9), rel=1e-6)      # every one of six numbers is 3


def test_large_gradients_do_not_overflow():
    w = nn.Parameter(np.zeros(2, np.float32))
    w.grad = np.array([3e25, 4e25], np.float32)
    assert optim.clip_grad_norm({"w": w}, 1.0) == pytest.approx(5e25, rel=1e-6)
    np.testing.assert_allclose(w.grad.data, [0.6, 0.8], rtol=1e-5)


@pytest.mark.parametrize("clip", [optim.clip_grad_norm, optim.clip_grad_value])
class TestErrors:
    def test_no_gradient(self, clip):
        with pytest.raises(GraphError, match="no parameter has a gradient"):
            clip(nn.Affine(2, 2), 1.0)

    @pytest.mark.parametrize("limit", [0, -1.0, float("nan")])
    def test_a_limit_that_is_not_positive(self, clip, limit):
        with pytest.raises(ArgumentError, match="must be more than 0"):
            clip(leaves(), limit)

    def test_a_gradient_with_a_graph(self, clip):
        w = nn.Parameter(np.ones(2))
        (w * w * w).sum().backward(create_graph=True)
        with pytest.raises(GraphError, match="the gradient of w is part of a graph"):
            clip({"w": w}, 1.0)
        np.testing.assert_array_equal(w.grad.data, [3, 3])
