"""New weights that a master makes and sends while the backward pass goes on: that they go early, and that nothing changes by it.

That the bits are those of one process is in test_equalities.py, for all there is; here they are those of a team that hides nothing.
"""

import threading

import numpy as np
import pytest

from minidl import functions as F
from minidl import optim
from minidl.autograd import Function
from minidl.errors import ArgumentError
from minidl.nn import Module, Parameter
from minidl.parallel import local
from minidl.parallel.alone import Facts
from minidl.parallel.team import Team

STEPS = 4


class Hold(Function):
    """y = x; its gradient waits until it is let go."""

    go: object = None

    def forward(self, x):
        return x.copy()

    def grad_x(self, gy):
        if self.go is not None:
            self.go()
        return gy


class Chain(Module):
    """Products by `last`, `middle`, and `first`, whose gradient comes at the end; `odd` is used by one rank only."""

    def __init__(self):
        draw = np.random.default_rng(0)
        self.first, self.middle, self.last, self.odd = (Parameter(draw.standard_normal((6, 6)).astype("float32")) for _ in range(4))
        self.unused = Parameter(np.ones(3, np.float32))

    def forward(self, x, odd=False, go=None):
        y = Hold(go)(x @ self.first) @ self.middle
        return y @ (self.last * self.odd if odd else self.last)


def train(communicator, overlap, optimizer=lambda model: optim.Adam(model, lr=0.01), clip=lambda step: None, watch=None, **options):
    """The weights and the optimizer's memory after some steps, of whoever updates."""
    model = Chain()
    made = optimizer(model)
    team = Team(communicator, "master-worker", overlap=overlap, chunk=64, **options)
    team.bind(model, made)
    for step in range(STEPS):
        draw = np.random.default_rng((step, communicator.rank))
        x = draw.standard_normal((5, 6)).astype("float32")
        made.zero_grad()
        loss = F.mean(model(x, odd=step % 2 == communicator.rank, go=None if watch is None else lambda: watch(team)) ** 2)
        team.listen(clip(step))
        loss.backward(0.5)
        team.update(Facts(loss.item(), 0, 5), [], clip(step))
    team.leave()
    weights = {path: p.data.copy() for path, p in model.named_parameters()}
    return weights, made.state_dict() if communicator.rank == 0 else None


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.mark.parametrize("overlap", ["backward", "forward"])
@pytest.mark.parametrize("optimizer", [lambda model: optim.SGD(model, lr=0.1, momentum=0.9), lambda model: optim.Adam(model, lr=0.01)],
                         ids=["sgd", "adam"])
@pytest.mark.parametrize("ranks", [2, 3])
def test_the_bits_are_those_of_a_team_that_hides_nothing(overlap, optimizer, ranks):
    plain = local.run(lambda communicator: train(communicator, "none", optimizer), ranks)
    hidden = local.run(lambda communicator: train(communicator, overlap, optimizer), ranks)
    for (weights, state), (found, found_state) in zip(plain, hidden):
        same(weights, found)
        assert (state is None) == (found_state is None)
        if state is not None:
            same(state, found_state)


def test_new_weights_are_with_the_workers_before_the_backward_pass_is_over():
    met, seen = threading.Barrier(2, timeout=20), []

    def watch(team):
        """In the middle of the pass: wait until the weights of the last layer have come."""
        chunks = team.layout.holding["last"]
        team.engine.wait([2 + 2 * chunk.index for chunk in chunks])
        if team.rank == 1:
            seen.append(team.spread.known.far["last"].copy())
            assert not np.array_equal(team.spread.known.far["last"], team.learned["last"]._data)        # which are in use still
        met.wait()

    weights = local.run(lambda communicator: train(communicator, "backward", watch=watch), 2)[1][0]
    assert len(seen) == STEPS
    np.testing.assert_array_equal(seen[-1], weights["last"])


def test_what_is_made_ahead_changes_nothing_until_it_is_accepted():
    model = Chain()
    optimizer = optim.Adam(model, lr=0.01)
    g = np.ones((6, 6), np.float32)
    before, options = model.first.data.copy(), optimizer.begin()
    w, accept = optimizer.update_copy("first", g, options)
    np.testing.assert_array_equal(model.first.data, before)
    assert not any(x.any() for x in optimizer.state["first"].values()) and optimizer.updates["first"] == 0
    accept()
    np.testing.assert_array_equal(model.first.data, w)

    other = Chain()
    alike = optim.Adam(other, lr=0.01)
    alike.update_one("first", g, alike.begin())
    np.testing.assert_array_equal(other.first.data, w)
    same(alike.state_dict(), optimizer.state_dict())


@pytest.mark.parametrize("overlap", ["backward", "forward"])
def test_where_gradients_are_clipped_now_and_then_nothing_is_made_ahead_then(overlap):
    def clip(step):
        return 0.1 if step % 2 else None

    plain = local.run(lambda communicator: train(communicator, "none", clip=clip), 2)
    hidden = local.run(lambda communicator: train(communicator, overlap, clip=clip), 2)
    for (weights, _), (found, _) in zip(plain, hidden):
        same(weights, found)


def test_clipping_that_comes_as_a_surprise_is_an_error():
    def surprise(communicator):
        model = Chain()
        optimizer = optim.SGD(model, lr=0.1)
        team = Team(communicator, "master-worker", overlap="backward")
        team.bind(model, optimizer)
        team.listen()
        F.mean(model(np.ones((2, 6), np.float32))).backward()
        team.engine.wait()
        if communicator.rank == 0:
            with pytest.raises(ArgumentError, match=r"Call listen\(clip\)"):
                team.update(Facts(0.0, 0, 2), [], clip=1.0)
            assert optimizer.steps == 1
        communicator.barrier()
        team.abandon()
        assert optimizer.steps == 0                     # the step was never made

    local.run(surprise, 2)
