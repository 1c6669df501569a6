"""state_dict and load_state_dict."""

import numpy as np
import pytest

import strict  # noqa: F401   makes the strict device known
from minidl import Tensor, backend, nn
from minidl.errors import CheckpointError, GraphError

X = np.array([[1.0, 2.0], [3.0, 5.0]], np.float32)


def model(seed=0):
    return nn.Sequential(nn.Affine(2, 3, generator=seed), nn.BatchNorm(3), nn.Dropout(generator=seed))


def test_parameters_come_first_and_then_buffers():
    assert list(model().state_dict()) == [
        "0.w", "0.b", "1.gamma", "1.beta", "1.running_mean", "1.running_var", "1.steps", "2.seed", "2.step"]


def test_a_state_is_a_snapshot():
    net = model()
    state = net.state_dict()
    net[0].w.data += 1
    net(X)
    net.load_state_dict(state)
    for path, x in model().state_dict().items():
        np.testing.assert_array_equal(net.state_dict()[path], x)


def test_another_model_computes_the_same_afterwards():
    trained, fresh = model(0), model(1)
    trained(X)
    assert fresh.load_state_dict(trained.state_dict()) == ([], [])
    np.testing.assert_array_equal(fresh(X).data, trained(X).data)
    assert type(fresh[1].steps) is int
    assert (fresh[1].steps, fresh[2].step) == (2, 2)


def test_the_model_keeps_its_dtype_device_and_memory():
    net = model().to("strict:0", "float64")
    data = net[0].w.data
    state = model(1).state_dict()
    net.load_state_dict(state)
    assert net[0].w.data is data
    assert (net[0].w.dtype, net[0].w.device, net[1].running_var.dtype) == (np.float64, "strict:0", np.float64)
    np.testing.assert_array_equal(backend.to_numpy(net[0].w.data), state["0.w"])


def test_arrays_of_another_device_and_tensors_go_in():
    net, other = model(0), model(1)
    state = {path: Tensor(x) if path == "0.w" else x for path, x in other.to("strict:0").state_dict().items()}
    net.load_state_dict(state)
    np.testing.assert_array_equal(net[0].w.data, backend.to_numpy(other[0].w.data))


def test_nothing_is_shared_with_the_state():
    net, state = model(), model(1).state_dict()
    net.load_state_dict(state)
    state["0.w"][...] = 0
    state["1.running_mean"][...] = 9
    assert net[0].w.data.any()
    assert (net[1].running_mean == 0).all()


def test_a_graph_notices_that_its_weights_were_loaded_over():
    net = nn.Sequential(nn.Affine(2, 2), nn.Affine(2, 2))
    loss = net(X).sum()
    net.load_state_dict(net.state_dict())
    with pytest.raises(GraphError, match="changed between the forward and the backward pass"):
        loss.backward()


def test_everything_that_does_not_fit_is_told_at_once_and_nothing_is_written():
    net, state = model(), model(1).state_dict()
    before = net.state_dict()
    state["0.W"] = state.pop("0.w")
    state["0.b"] = np.zeros(4, np.float32)
    state["extra"] = np.zeros(1)
    with pytest.raises(CheckpointError) as caught:
        net.load_state_dict(state)
    assert str(caught.value) == """\
load_state_dict: this Sequential and the state do not fit together
  missing: 0.w
  mis-shaped: 0.b wants (3,), the state has (4,) float32
  unexpected: 0.W (nearest: '0.w'), extra
  Nothing was loaded. Is it the state of the same model, made with the same options?"""
    for path, x in net.state_dict().items():
        np.testing.assert_array_equal(x, before[path])


def test_not_strict_loads_what_fits_and_says_what_did_not():
    net, state = model(), model(1).state_dict()
    w = state["0.w"]
    del state["0.b"]
    state["extra"] = np.zeros(1)
    assert net.load_state_dict(state, strict=False) == (["0.b"], ["extra"])
    np.testing.assert_array_equal(net[0].w.data, w)


@pytest.mark.parametrize("state", [{}, {"elsewhere": np.zeros(2)}, {"0.w": np.zeros((3, 3))}, {"0.w": np.array([["a"]])}])
def test_not_strict_still_refuses_wrong_shapes_and_a_state_of_which_nothing_fits(state):
    with pytest.raises(CheckpointError):
        model().load_state_dict(state, strict=False)


def test_a_model_without_state_takes_an_empty_one():
    assert nn.ReLU().load_state_dict({}) == ([], [])


def test_of_very_many_names_the_first_are_shown():
    net = nn.Sequential(*(nn.Affine(1, 1) for _ in range(10)))
    with pytest.raises(CheckpointError, match=r"0\.w, 0\.b, .* and 8 more"):
        net.load_state_dict({})
