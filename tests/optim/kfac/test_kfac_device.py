"""K-FAC on a device: the numbers of the CPU, matrices of one size in one call, few looks at what lies there, and factors that fail."""

import numpy as np
import pytest

import strict
from curved import affine, conv, numbers, targets
from devices import DEVICES
from minidl import backend, nn
from minidl import functions as F
from minidl.optim import KFAC
from minidl.optim.kfac import inverses, moments, positive
from minidl.optim.kfac.reads import truths

DEVICE = "strict:0"
NETS = {"mlp": lambda: nn.Sequential(affine(6, 5), nn.Tanh(), affine(5, 5, seed=1), nn.LayerNorm(5, dtype="float64"), affine(5, 4, seed=2)),
        "conv": lambda: nn.Sequential(conv(2, 4, 3, padding=1), nn.BatchNorm(4, dtype="float64"), nn.ReLU(),
                                      conv(4, 4, 3, groups=2, seed=1), nn.Flatten(), affine(16, 3, seed=2)),
        "wide": lambda: nn.Sequential(affine(40, 30), nn.Tanh(), affine(30, 30, seed=1))}
INPUTS = {"mlp": (9, 6), "conv": (7, 2, 4, 4), "wide": (4, 40)}        # so few rows that they are divided in place of the gradient


def trained(net, device, steps=5, **options):
    """The weights after some steps, on the CPU."""
    model = NETS[net]().to(device=device)
    optimizer = KFAC(model, **{"lr": 0.05, "damping": 0.1, "warm_up": 2, "factor_interval": 2, "inverse_interval": 2} | options)
    for step in range(steps):
        x = numbers(*INPUTS[net], seed=step)
        t = targets("categorical", (len(x), 3), seed=step)
        optimizer.zero_grad()
        F.softmax_cross_entropy(model(backend.asarray(x, device)), backend.asarray(t, device)).backward()
        optimizer.step()
    assert not optimizer.reports
    return {path: backend.to_numpy(p.data) for path, p in model.named_parameters()}


@pytest.mark.parametrize("inversion", ["cholesky", "eigen", "ekfac"])
@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("device", DEVICES)
def test_the_weights_are_those_of_the_cpu(device, net, inversion):
    wanted = trained(net, "cpu", inversion=inversion)
    for path, w in trained(net, device, inversion=inversion).items():
        np.testing.assert_allclose(w, wanted[path], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("options", [{"fisher": "empirical"}, {"factor_interval": "adaptive"}, {"sharing": "reduce"}], ids=str)
def test_and_with_other_statistics(options):
    wanted = trained("conv", "cpu", **options)
    for path, w in trained("conv", DEVICE, **options).items():
        np.testing.assert_allclose(w, wanted[path], rtol=1e-7, atol=1e-9)


# As CuPy does it: where there is no factor nothing is said, and what is written is whatever it was

def left_as_it_was(m):
    """Cholesky, row by row; it ends where a pivot is not positive."""
    m = m.copy()
    for j in range(len(m)):
        pivot = m[j, j] - m[j, :j] @ m[j, :j]
        if not pivot > 0:
            break
        m[j, j] = pivot ** 0.5
        m[j + 1:, j] = (m[j + 1:, j] - m[j + 1:, :j] @ m[j, :j]) / m[j, j]
    return np.tril(m)


def filled_with_nan(m):
    try:
        return np.linalg.cholesky(m)
    except np.linalg.LinAlgError:
        return np.full_like(m, np.nan)


@pytest.fixture(params=[left_as_it_was, filled_with_nan], ids=["left as it was", "NaN"])
def calls(request, monkeypatch):
    """The shapes of all calls of Cholesky on the strict device, which behaves as CuPy's does."""
    shapes = []

    def cholesky(m):
        shapes.append(m.shape)
        return np.array([request.param(each) for each in m]) if m.ndim > 2 else request.param(m)

    monkeypatch.setattr(strict.xp.linalg.cholesky, "real", cholesky)
    use_solve(monkeypatch, lambda *arrays: backend.asarray(substituted(*map(backend.to_numpy, arrays)), DEVICE))
    return shapes


def substituted(lower, b):
    """L^-1 b, row by row; where L has a zero on its diagonal, whatever comes of it."""
    x = b.copy()
    with np.errstate(all="ignore"):
        for j in range(lower.shape[-1]):
            x[..., j, :] = (b[..., j, :] - (lower[..., j:j + 1, :j] @ x[..., :j, :])[..., 0, :]) / lower[..., j, j, None]
    return x


def use_solve(monkeypatch, solve):
    """Let the strict device have a triangular solve."""
    library = backend.library_of(backend.asarray(np.zeros(1), DEVICE))
    monkeypatch.setitem(vars(library), "solve_triangular", solve)       # a frozen one


def positive_definite(blocks, size, seed=0, dtype="float64"):
    rows = numbers(blocks, size, 3 * size, seed=seed)
    return (rows @ rows.swapaxes(-1, -2) / size).astype(dtype)


def inverted(matrices, told, extra=0.0):
    items = [(name, backend.asarray(m, DEVICE), backend.asarray(np.full((len(m), 1, 1), extra, m.dtype), DEVICE))
             for name, m in matrices.items()]
    return [None if x is None else backend.to_numpy(x) for x in inverses.inverted(items, told.append)]


def test_matrices_of_one_size_are_factored_in_one_call(calls):
    sizes = {"a": (1, 5), "b": (3, 5), "c": (1, 7), "d": (1, 5), "e": (1, positive.TOGETHER + 1), "f": (1, positive.TOGETHER + 1)}
    matrices, told = {name: positive_definite(*size, seed=k) for k, (name, size) in enumerate(sizes.items())}, []
    for m, found in zip(matrices.values(), inverted(matrices, told, 0.5)):
        np.testing.assert_allclose(found, np.linalg.inv(m + 0.5 * np.eye(m.shape[1])), atol=1e-9)
    large = positive.TOGETHER + 1
    assert sorted(calls) == [(5, 5, 5), (7, 7), (large, large), (large, large)] and not told


@pytest.mark.parametrize("size", [4, 80, 300])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_one_that_has_no_inverse_among_others_that_have(calls, size, place):
    matrices, told = {f"{k}": positive_definite(2, size, seed=k) for k in range(3)}, []
    matrices[f"{place}"][1, -1], matrices[f"{place}"][1, :, -1] = 0, 0
    found = inverted(matrices, told)
    jitter = 1e-6 * np.trace(matrices[f"{place}"][1]) / size
    assert told == [f"{place} is not positive definite: 1e-06 of its mean was added to its diagonal"]
    np.testing.assert_allclose(found[place][1, -1, -1], 1 / jitter, rtol=1e-6)
    for k in {0, 1, 2} - {place}:
        np.testing.assert_allclose(found[k], np.linalg.inv(matrices[f"{k}"]), atol=1e-8)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("size", [4, 300])
def test_one_that_is_no_number_among_others(calls, size, value):
    matrices, told = {"flawed": positive_definite(1, size), "sound": positive_definite(1, size, seed=1)}, []
    matrices["flawed"][0, 1, 1] = value
    with np.errstate(invalid="ignore"):
        found = inverted(matrices, told)
    assert found[0] is None and told == ["flawed is not finite: the inverse of before is used, or the plain gradient if there is none"]
    np.testing.assert_allclose(found[1], np.linalg.inv(matrices["sound"]), atol=1e-8)


def test_one_that_is_negative(calls):
    told = []
    assert inverted({"A": -positive_definite(1, 3)}, told) == [None] and "A is not positive definite: the inverse of before" in told[0]


def test_one_that_is_indefinite_with_a_positive_diagonal(calls):
    """What is left of it below the pivot that fails looks like a factor, and is none."""
    m, told = np.eye(6)[None], []
    m[0, 0, 1] = m[0, 1, 0] = 2.0
    assert inverted({"A": m}, told) == [None] and len(told) == 1


@pytest.mark.parametrize("flawed", [None, 3, 90])
def test_large_ones_are_cut_into_four(calls, monkeypatch, flawed):
    monkeypatch.setattr(positive, "WHOLE", 40)
    m, told = positive_definite(2, 100), []
    if flawed is not None:
        m[1, flawed], m[1, :, flawed] = 0, 0
    with np.errstate(all="ignore"):                                     # NaN goes through the products
        (found,) = inverted({"A": m}, told)
    assert len(told) == (flawed is not None) and max(shape[-1] for shape in calls) <= 40
    np.testing.assert_allclose(found[0], np.linalg.inv(m[0]), atol=1e-3 if told else 1e-9)         # a little more on its diagonal too


def test_a_library_may_have_its_own_triangular_solve(monkeypatch):
    used = []

    def solve(lower, b):
        used.append(lower.shape)
        return strict.xp.linalg.solve(lower, b)

    use_solve(monkeypatch, solve)
    m = positive_definite(3, 4)
    np.testing.assert_allclose(inverted({"A": m}, [])[0], np.linalg.inv(m), atol=1e-9)
    assert used == [(3, 4, 4)]


# Looks at the device

class TestLooks:
    @pytest.fixture(autouse=True)
    def _count(self, monkeypatch):
        self.looks = 0
        for name in ("__bool__", "__int__", "__float__", "get"):
            monkeypatch.setattr(strict.StrictArray, name, self.counted(getattr(strict.StrictArray, name)))
        library = backend.library_of(backend.asarray(np.zeros(1), DEVICE))
        monkeypatch.setitem(vars(library), "to_numpy", lambda x: x.get())

    def counted(self, real):
        def look(x):
            self.looks += 1
            return real(x)
        return look

    def by_step(self, layers, **options):
        """Looks of K-FAC's own part of each step: what it does before the backward pass, and its step."""
        model = nn.Sequential(*[affine(6, 6, seed=k) for k in range(layers)]).to(device=DEVICE)
        optimizer = KFAC(model, damping=0.1, warm_up=2, **options)
        x, t = (backend.asarray(each, DEVICE) for each in (numbers(9, 6), numbers(9, 6, seed=1)))
        found = []
        for _ in range(4):
            optimizer.zero_grad()
            loss = F.mse(model(x), t)
            self.looks = 0
            loss.backward()
            optimizer.step()
            found.append(self.looks)
        return found

    @pytest.mark.parametrize("options", [{}, {"inversion": "eigen"}, {"inversion": "ekfac"}, {"factor_interval": "adaptive"}], ids=str)
    def test_are_no_more_for_more_layers(self, options):
        assert self.by_step(2, **options) == self.by_step(5, **options)

    def test_are_one_in_a_step_that_renews_nothing_and_few_in_others(self):
        steps = self.by_step(3)
        assert steps[2:] == [1, 1] and max(steps) <= 4

    def test_flags_come_in_one(self):
        flags = [backend.asarray(np.array(k % 3 == 0), DEVICE) for k in range(7)]
        self.looks = 0
        assert truths([*flags, np.array(True)]) == [True, False, False, True, False, False, True, True] and self.looks == 1
        assert truths([]) == []


@pytest.mark.parametrize("bias", [True, False])
def test_moments_of_sixteen_bit_rows_are_added_up_in_float32(bias):
    rows = numbers(4000, 3).astype("float16")
    found = backend.to_numpy(moments.moments(backend.asarray(rows, DEVICE), bias))
    wide = np.c_[rows, np.ones((len(rows), int(bias)))].astype("float64")
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wide.T @ wide, rtol=1e-5, atol=1e-2)
