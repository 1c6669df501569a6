"""Dividing by a damped block: against dense solves, with matrices that cannot be inverted, and with and without SciPy."""

import numpy as np
import pytest

from curved import affine, conv, flat, gradients, mlp, numbers, plain_kfac, shown
from minidl import functions as F
from minidl import nn
from minidl.optim.kfac import inverses

NETS = {"affine": lambda: (mlp(), numbers(9, 3)), "no bias": lambda: (affine(3, 2, bias=False), numbers(9, 3)),
        "few rows": lambda: (affine(30, 20), numbers(2, 30)),
        "conv": lambda: (nn.Sequential(conv(2, 4, 3, padding=1), nn.Flatten(), affine(64, 3)), numbers(5, 2, 4, 4)),
        "groups": lambda: (nn.Sequential(conv(4, 4, 3, groups=2), nn.Flatten(), affine(16, 3)), numbers(5, 4, 4, 4)),
        "no bias, groups": lambda: (nn.Sequential(conv(4, 4, 3, groups=2, bias=False), nn.Flatten(), affine(16, 3)), numbers(5, 4, 4, 4)),
        "depthwise": lambda: (nn.Sequential(conv(4, 4, 3, groups=4), nn.Flatten(), affine(16, 3)), numbers(5, 4, 4, 4))}
nets = pytest.mark.parametrize("net", NETS)
dampings = pytest.mark.parametrize("damping", [1e-2, 10.0])


def factors(block):
    """A and G of each group."""
    return list(zip(*(block.averages[name].value for name in ("A", "G"))))


def damped_product(block, damping):
    """(A + pi c I) (x) (G + c / pi I) in the order of the parameters, by what `dense` does with undamped factors."""
    before = {name: average.value for name, average in block.averages.items()}
    stacks = {"A": [], "G": []}
    for a, g in factors(block):
        pi = np.sqrt((np.trace(a) / len(a)) / (np.trace(g) / len(g)))
        stacks["A"].append(a + pi * damping ** 0.5 * np.eye(len(a)))
        stacks["G"].append(g + damping ** 0.5 / pi * np.eye(len(g)))
    for name, stack in stacks.items():
        block.averages[name].value = np.array(stack)
    whole = block.dense()
    for name, value in before.items():
        block.averages[name].value = value
    return whole


class TestDivision:
    @nets
    @dampings
    @pytest.mark.parametrize("inversion", ["eigen", "ekfac"])
    def test_eigenvectors_solve_the_block_with_damping_on_its_diagonal(self, net, damping, inversion):
        optimizer = shown(*NETS[net](), damping=damping, inversion=inversion)
        for block in optimizer.blocks.values():
            f, g = block.dense(), flat(block, gradients(optimizer))
            wanted = np.linalg.solve(f + damping * np.eye(len(f)), g)
            np.testing.assert_allclose(flat(block, optimizer.directions()), wanted, atol=1e-10 * abs(wanted).max())

    @nets
    @dampings
    def test_cholesky_solves_the_product_of_damped_factors(self, net, damping):
        optimizer = shown(*NETS[net](), damping=damping)
        for block in optimizer.blocks.values():
            wanted = np.linalg.solve(damped_product(block, damping), flat(block, gradients(optimizer)))
            np.testing.assert_allclose(flat(block, optimizer.directions()), wanted, atol=1e-9 * abs(wanted).max())

    def test_eigenvectors_take_the_damping_of_the_present(self):
        optimizer = shown(mlp(), numbers(9, 3), damping=1e-2, inversion="eigen")
        wanted = shown(mlp(), numbers(9, 3), damping=0.5, inversion="eigen").directions()
        for path, u in optimizer.directions(0.5).items():
            np.testing.assert_allclose(u, wanted[path], atol=1e-13)

    @pytest.mark.parametrize("inversion", ["cholesky", "eigen", "ekfac"])
    def test_inverting_twice_gives_the_same_inverse(self, inversion):
        """Damping does not pile up."""
        optimizer, model, found = None, mlp(), []
        optimizer = plain_kfac(model, lr=0.0, damping=0.1, inversion=inversion, inverse_interval=1)
        for _ in range(4):
            optimizer.zero_grad()
            F.mse(model(numbers(9, 3)), numbers(9, 3, seed=1)).backward()
            optimizer.step()
            found.append(optimizer.directions())
        for path, u in found[-1].items():
            np.testing.assert_allclose(u, found[0][path], rtol=1e-10)

    @nets
    def test_the_directions_are_the_same_without_scipy(self, net, monkeypatch):
        wanted = shown(*NETS[net](), damping=0.01).directions()
        monkeypatch.setattr(inverses, "lapack", lambda dtype: None)
        for path, u in shown(*NETS[net](), damping=0.01).directions().items():
            np.testing.assert_allclose(u, wanted[path], atol=1e-11 * abs(u).max())

    def test_a_gradient_that_was_changed_after_the_pass_is_divided_as_it_is(self):
        """With few rows those of the minibatch are divided in its place, unless somebody has clipped it."""
        optimizer = shown(*NETS["few rows"](), damping=0.1)
        before = optimizer.directions()
        for p in optimizer.parameters.values():
            p.grad = p.grad.data * 0.5
        for path, u in optimizer.directions().items():
            np.testing.assert_allclose(u, before[path] * 0.5, rtol=1e-10)
        optimizer.parameters["b"].grad = optimizer.parameters["b"].grad.data * 0
        for block in optimizer.blocks.values():
            wanted = np.linalg.solve(damped_product(block, 0.1), flat(block, gradients(optimizer)))
            np.testing.assert_allclose(flat(block, optimizer.directions()), wanted, atol=1e-9 * abs(wanted).max())


def positive(*shape, seed=0):
    rows = numbers(*shape[:-1], 3 * shape[-1], seed=seed)
    return rows @ rows.swapaxes(-1, -2) / rows.shape[-1]


@pytest.mark.parametrize("scipy", [True, False])
class TestInverted:
    @pytest.fixture(autouse=True)
    def _with_or_without(self, scipy, monkeypatch):
        if not scipy:
            monkeypatch.setattr(inverses, "lapack", lambda dtype: None)

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    @pytest.mark.parametrize("size", [1, 2, 65, 260])
    def test_is_the_inverse_and_leaves_its_argument_alone(self, size, dtype):
        m, extra, told = positive(2, size, size).astype(dtype), np.full((2, 1, 1), 0.5, dtype), []
        before = m.copy()
        (found,) = inverses.inverted([("A", m, extra)], told.append)
        assert (m == before).all() and found.dtype == dtype and not told
        for each, one in zip(m.astype("float64"), found):
            np.testing.assert_allclose(one @ (each + 0.5 * np.eye(size)), np.eye(size), atol=1e-3 if dtype == "float32" else 1e-10)
            np.testing.assert_allclose(one, one.T, atol=1e-6 if dtype == "float32" else 1e-14)

    def test_several_of_several_sizes_at_once(self):
        items = [(f"{k}", positive(blocks, size, size, seed=k), np.full((blocks, 1, 1), 0.1 * k))
                 for k, (blocks, size) in enumerate([(1, 3), (2, 3), (1, 5), (1, 70), (1, 3), (2, 70)], 1)]
        for (_, m, extra), found in zip(items, inverses.inverted(items, pytest.fail)):
            np.testing.assert_allclose(found, np.linalg.inv(m + extra * np.eye(m.shape[1])), atol=1e-8)

    @pytest.mark.parametrize("size", [4, 80, 260])
    def test_one_that_is_not_positive_definite_gets_a_little_more_and_its_neighbours_do_not(self, size):
        flawed, sound, told = np.zeros((1, size, size)), positive(1, size, size), []
        flawed[0, :-1, :-1] = positive(size - 1, size - 1)
        found = inverses.inverted([("flawed", flawed, np.zeros((1, 1, 1))), ("sound", sound, np.zeros((1, 1, 1)))], told.append)
        assert len(told) == 1 and told[0].startswith("flawed is not positive definite: 1e-06 of its mean")
        jitter = 1e-6 * np.trace(flawed[0]) / size
        np.testing.assert_allclose(found[0][0, -1, -1], 1 / jitter, rtol=1e-6)
        np.testing.assert_allclose(found[1], np.linalg.inv(sound), atol=1e-8)

    @pytest.mark.parametrize("size", [4, 80, 260])
    def test_none_for_one_that_is_not_a_number(self, size):
        flawed, sound, told = positive(1, size, size), positive(1, size, size), []
        flawed[0, 1, 1] = np.nan
        found = inverses.inverted([("flawed", flawed, np.zeros((1, 1, 1))), ("sound", sound, np.zeros((1, 1, 1)))], told.append)
        assert found[0] is None and len(told) == 1 and "flawed is not finite" in told[0]
        np.testing.assert_allclose(found[1], np.linalg.inv(sound), atol=1e-8)

    def test_none_for_one_that_is_negative(self):
        told = []
        (found,) = inverses.inverted([("A", -positive(1, 3, 3), np.zeros((1, 1, 1)))], told.append)
        assert found is None and "not positive definite: the inverse of before" in told[0]


class TestTrouble:
    def backward(self, model, x):
        F.mse(model(x), np.ones((len(x), 2))).backward()

    def test_fewer_examples_than_inputs_and_no_damping_is_reported_and_works(self):
        model, x = affine(4, 2), np.zeros((3, 4))
        x[:, 0] = 1, 2, 3                                   # the other inputs are never there
        optimizer = plain_kfac(model)
        self.backward(model, x)
        with pytest.warns(UserWarning, match="factor A of w is not positive definite: 1e-06 of its mean was added"):
            optimizer.step()
        assert optimizer.reports[0].startswith("factor A of w is not positive definite")
        wanted = np.linalg.lstsq(np.c_[x[:, :1], np.ones(3)], np.ones((3, 2)), rcond=None)[0]
        np.testing.assert_allclose(model.w.data[0], wanted[0], atol=1e-3)

    def nan(self, optimizer, name):
        for block in optimizer.blocks.values():
            block.sums[name][0, 0, 0] = np.nan

    @pytest.mark.parametrize("inversion", ["cholesky", "eigen"])
    @pytest.mark.parametrize("name", ["A", "G"])
    def test_a_minibatch_that_is_no_number_is_left_out(self, inversion, name):
        model, x = affine(3, 2), numbers(9, 3)
        optimizer = plain_kfac(model, damping=0.1, lr=0.0, inversion=inversion)
        self.backward(model, x)
        optimizer.step()
        wanted = optimizer.directions()
        optimizer.zero_grad()
        self.backward(model, x)
        self.nan(optimizer, name)
        with pytest.warns(UserWarning, match=f"factor {name} of w is not finite: it is left out"):
            optimizer.step()
        other = {path: abs(u - wanted[path]).max() / abs(u).max() for path, u in optimizer.directions().items()}
        assert set(other) == {"w", "b"} and max(other.values()) < (1e-12 if inversion == "eigen" else np.inf)
        assert all(np.isfinite(u).all() for u in optimizer.directions().values())

    @pytest.mark.parametrize("inversion", ["cholesky", "eigen", "ekfac"])
    @pytest.mark.parametrize("name", ["A", "G"])
    def test_without_one_of_before_the_gradient_is_taken(self, inversion, name):
        model, x = affine(3, 2), numbers(9, 3)
        optimizer = plain_kfac(model, damping=0.1, lr=0.5, inversion=inversion)
        self.backward(model, x)
        self.nan(optimizer, name)
        before = model.w.data.copy()
        with pytest.warns(UserWarning, match=f"factor {name} of w is not finite"):
            optimizer.step()
        np.testing.assert_allclose(model.w.data, before - 0.5 * model.w.grad.data, rtol=1e-12)
        assert not optimizer.directions()

    def test_a_gradient_that_is_no_number_is_an_error_that_names_the_parameter(self):
        from minidl.errors import NumericsError

        model, x = mlp(sizes=(3, 4, 2)), numbers(9, 3)
        optimizer = plain_kfac(model, damping=0.1)
        self.backward(model, x)
        model[2].w.grad.data[0, 0] = np.nan
        before = model[0].w.data.copy()
        with pytest.raises(NumericsError, match="direction of a step is not finite") as caught:
            optimizer.step()
        assert "parameters: 2.w, 2.b" in str(caught.value) and (model[0].w.data == before).all()


def test_lapack_is_loaded_before_threads_share_it(monkeypatch):
    seen = []

    def each(work, pieces):
        seen.append(inverses.lapack.cache_info().currsize)
        for piece in pieces:
            work(piece)

    inverses.lapack.cache_clear()
    monkeypatch.setattr(inverses.pool, "each", each)
    inverses.inverted([("A", positive(1, 100, 100), np.zeros((1, 1, 1)))], print)
    assert seen == [1]
