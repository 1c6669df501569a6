"""What KFAC can be told: options, schedules, inner rules, closures; dtypes and devices."""

import copy
import warnings
from typing import ClassVar

import numpy as np
import pytest

import strict  # noqa: F401   makes the strict device known
from curved import LOSSES, affine, conv, gradients, mlp, numbers, plain_kfac, targets
from minidl import Tensor, backend, nn, optim
from minidl import functions as F
from minidl.errors import ArgumentError
from minidl.optim import KFAC

X, T = numbers(9, 3), numbers(9, 3, seed=1)


def train(optimizer, model, count=1, closure=None):
    for _ in range(count):
        optimizer.zero_grad()
        F.mse(model(X), T).backward()
        optimizer.step(*([closure] if closure else []))


@pytest.mark.parametrize("options, message", [
    ({"damping": -1}, "KFAC: damping is -1"), ({"damping": float("nan")}, "KFAC: damping is nan"), ({"damping": "much"}, "KFAC: damping"),
    ({"damping": lambda step: -1.0}, "KFAC: damping is -1.0"), ({"kl_clip": -0.1}, "KFAC: kl_clip is -0.1"),
    ({"factor_decay": 1}, "KFAC: factor_decay is 1"), ({"factor_decay": -0.1}, "KFAC: factor_decay is -0.1"),
    ({"fisher": "true"}, "KFAC: fisher is 'true', which is not known"), ({"fisher": "sample"}, "sampled"),
    ({"inversion": "inverse"}, "KFAC: inversion is 'inverse'"), ({"inversion": None}, "KFAC: inversion is None"),
    ({"sharing": "both"}, "KFAC: sharing is 'both'"), ({"loss": "l1"}, "KFAC: the loss 'l1' is not known"),
    ({"factor_interval": 0}, "KFAC: factor_interval is 0, and must be an int of at least 1"),
    ({"factor_interval": "often"}, 'factor_interval is \'often\''), ({"factor_interval": 2.0}, "factor_interval is 2.0"),
    ({"inverse_interval": 0}, "KFAC: inverse_interval is 0"), ({"inverse_interval": "adaptive"}, "KFAC: inverse_interval is 'adaptive'"),
    ({"warm_up": -1}, "KFAC: warm_up is -1, and must be an int of at least 0"), ({"warm_up": True}, "KFAC: warm_up is True"),
    ({"seed": -1}, "KFAC: seed is -1"), ({"seed": 0.5}, "KFAC: seed is 0.5"), ({"lr": -1}, "SGD: lr is -1"),
    ({"momentum": 1}, "SGD: momentum is 1"),
    ({"groups": {"9.*": {"lr": 1}}}, "no parameter matches"), ({"inner": "sgd"}, "KFAC: inner is 'sgd', and must be an optimizer"),
])
def test_an_option_that_makes_no_sense_is_an_error(options, message):
    with pytest.raises(ArgumentError, match=message):
        KFAC(mlp(), **options)


@pytest.mark.parametrize("option", [{"lr": 0.1}, {"momentum": 0.5}, {"weight_decay": 0.1}, {"groups": {"0.*": {"lr": 1}}}])
def test_an_option_of_the_inner_rule_beside_it_is_an_error(option):
    model = mlp()
    with pytest.raises(ArgumentError, match=f"KFAC: {next(iter(option))} beside inner"):
        KFAC(model, optim.SGD(model, 0.1), **option)


def test_an_inner_rule_of_another_model_or_another_kfac_is_an_error():
    model = mlp()
    with pytest.raises(ArgumentError, match="the inner optimizer is of other parameters"):
        KFAC(model, optim.SGD(mlp(), 0.1))
    with pytest.raises(ArgumentError, match="must be an optimizer"):
        KFAC(model, KFAC(model))


def test_a_loss_by_name_needs_the_model():
    with pytest.raises(ArgumentError, match="with loss= the model itself is needed"):
        KFAC(dict(mlp().named_parameters()), loss="mse")


def test_by_name():
    optimizer = optim.create("kfac", mlp(), lr=0.2, damping=0.5)
    assert isinstance(optimizer, KFAC) and optimizer.options["lr"] == 0.2 and optimizer.damping == 0.5
    assert "kfac" in optim.names()
    with pytest.raises(ArgumentError, match="damp"):
        optim.create("kfac", mlp(), damp=0.5)


class TestInner:
    """The inner rule sees the direction where the gradient would be."""

    RULES: ClassVar = {"sgd": lambda model: optim.SGD(model, 0.1, momentum=0.9, weight_decay=0.01),
                       "adam": lambda model: optim.Adam(model, lr=0.01),
                       "adamw": lambda model: optim.AdamW(model, lr=0.01, weight_decay=0.1)}

    @pytest.mark.parametrize("rule", RULES)
    def test_updates_with_the_direction_and_no_more(self, rule):
        model, twin = mlp(), mlp()
        optimizer, alone = KFAC(model, self.RULES[rule](model), kl_clip=None, fisher="exact"), self.RULES[rule](twin)
        for _ in range(4):
            train(optimizer, model)
            F.mse(twin(X), T)
            for path, u in optimizer.directions().items():
                alone.parameters[path].grad = u * 1.5                               # the unit of a mean over 3 squares is 2 / 3
            alone.step()
        for p, q in zip(model.parameters(), twin.parameters()):
            np.testing.assert_allclose(p.data, q.data, rtol=1e-11)
        assert optimizer.steps == 4 and optimizer.last_lr == alone.last_lr

    def test_unless_given_is_sgd_with_momentum(self):
        optimizer = KFAC(mlp())
        assert type(optimizer.inner) is optim.SGD
        assert optimizer.inner.options["lr"] == 0.03 and optimizer.inner.options["momentum"] == 0.9

    def test_weight_decay_is_not_divided(self):
        found = []
        for decay in (0.0, 0.1):
            model = mlp()
            before = model[0].w.data.copy()
            train(plain_kfac(model, damping=0.1, lr=0.5, weight_decay=decay), model)
            found.append(model[0].w.data)
        np.testing.assert_allclose(found[1], found[0] - 0.5 * 0.1 * before, rtol=1e-10)


class TestSchedules:
    def test_of_all_numbers(self):
        seen = []
        rates = {"lr": lambda step: seen.append(step) or 0.1 / (step + 1), "damping": lambda step: 0.1 * (step + 1),
                 "kl_clip": lambda step: 1e-3 / (step + 1), "factor_decay": lambda step: 0.5}
        model, twin = mlp(), mlp()
        optimizer, other = plain_kfac(model, **rates), plain_kfac(twin, factor_decay=0.5)
        for step in range(4):
            train(optimizer, model)
            other.options["lr"], other.damping, other.kl_clip = 0.1 / (step + 1), 0.1 * (step + 1), 1e-3 / (step + 1)
            train(other, twin)
        assert set(seen) == {0, 1, 2, 3} and optimizer.last_lr == 0.025
        assert all((p.data == q.data).all() for p, q in zip(model.parameters(), twin.parameters()))


class TestClosure:
    """Levenberg and Marquardt, every 5 steps."""

    def closure(self, model):
        return lambda: F.mse(model(X), T)

    def test_on_a_parabola_the_damping_falls(self):
        model, found = affine(3, 3), []
        optimizer = plain_kfac(model, lr=0.5, damping=0.1)
        for _ in range(11):
            train(optimizer, model, 1, self.closure(model))
            found.append(optimizer.present_damping())
        factor = 0.95 ** 5
        np.testing.assert_allclose(found, [0.1 * factor] * 5 + [0.1 * factor ** 2] * 5 + [0.1 * factor ** 3], rtol=1e-12)

    @pytest.mark.parametrize("reduction", ["mean", "sum"])
    def test_the_fall_on_a_parabola_is_foretold(self, reduction):
        """Whatever the reduction, the loss falls by what the quadratic model says, but for the damping in it."""
        model = affine(3, 3)
        optimizer = plain_kfac(model, lr=0.4 if reduction == "mean" else 0.4 / 9, damping=1e-9)
        F.mse(model(X), T, reduction=reduction).backward()
        before, slope = {path: p.data.copy() for path, p in optimizer.parameters.items()}, gradients(optimizer)
        start = F.mse(model(X), T, reduction=reduction).item()
        optimizer.step(lambda: F.mse(model(X), T, reduction=reduction))
        moved = {path: p.data - before[path] for path, p in optimizer.parameters.items()}
        foretold = sum(np.vdot(slope[path], d) for path, d in moved.items()) + optimizer.statistics.weight / 2 * sum(
            float(block.bend({role: moved[path] for role, path in block.paths.items()})) for block in optimizer.blocks.values())
        np.testing.assert_allclose(F.mse(model(X), T, reduction=reduction).item() - start, foretold, rtol=1e-6)
        assert optimizer.damping_scale < 1

    def test_after_steps_that_are_far_too_long_it_rises(self):
        model = affine(3, 3)
        optimizer = plain_kfac(model, lr=30.0, damping=0.1)
        train(optimizer, model, 1, self.closure(model))
        np.testing.assert_allclose(optimizer.present_damping(), 0.1 / 0.95 ** 5)

    def test_a_loss_that_is_infinite_raises_it(self):
        model, values = affine(3, 3), iter([1.0, float("inf")])
        optimizer = plain_kfac(model, damping=0.1)
        train(optimizer, model, 1, lambda: next(values))
        assert optimizer.present_damping() > 0.1

    @pytest.mark.parametrize("kind", [lambda loss: loss, lambda loss: loss.item(), lambda loss: loss.data, lambda loss: loss.data[()]])
    def test_may_give_a_tensor_or_a_number(self, kind):
        model = affine(3, 3)
        optimizer = plain_kfac(model, lr=0.5, damping=0.1)
        train(optimizer, model, 1, lambda: kind(F.mse(model(X), T)))
        assert optimizer.damping_scale == 0.95 ** 5

    @pytest.mark.parametrize("given", [None, "low", np.ones(3)])
    def test_that_gives_no_number_is_an_error(self, given):
        model = affine(3, 3)
        before = model.w.data.copy()
        with pytest.raises(ArgumentError, match=r"KFAC\.step: the closure gave"):
            train(plain_kfac(model, damping=0.1), model, 1, lambda: given)
        assert (model.w.data == before).all()

    def test_changes_no_step_by_itself(self):
        model, twin = affine(3, 3), affine(3, 3)
        train(plain_kfac(model, lr=0.5, damping=0.1), model, 1, self.closure(model))
        train(plain_kfac(twin, lr=0.5, damping=0.1), twin)
        assert (model.w.data == twin.w.data).all()


NETS = {"mlp": lambda: (mlp(), numbers(9, 3)),
        "conv": lambda: (nn.Sequential(conv(2, 4, 3, stride=2, padding=1, groups=2), nn.ReLU(), nn.Flatten(), affine(16, 3)),
                         numbers(9, 2, 4, 4)),
        "batch norm": lambda: (nn.Sequential(conv(2, 4, 3), nn.BatchNorm(4, dtype="float64"), nn.Tanh(), nn.Flatten(), affine(16, 3)),
                               numbers(9, 2, 4, 4)),
        "layer norm": lambda: (nn.Sequential(affine(3, 4), nn.LayerNorm(4, dtype="float64"), nn.Tanh(), affine(4, 3)), numbers(9, 3)),
        "embedding": lambda: (nn.Sequential(nn.Embedding(5, 4, generator=0, dtype="float64"), nn.Tanh(), affine(4, 3)), np.arange(9) % 4)}


class TestArrays:
    def run(self, net, dtype="float64", device="cpu", kind="categorical", **options):
        """The weights after 3 steps, and the directions after each."""
        model, x = NETS[net]()
        model.to(device=device, dtype=dtype)
        x = backend.asarray(x.astype(dtype) if x.dtype.kind == "f" else x, device)
        y = backend.asarray(targets(kind, (9, 3)), device)
        optimizer, found = KFAC(model, **{"lr": 0.1, "damping": 0.05} | options), {}
        for step in range(3):
            optimizer.zero_grad()
            LOSSES[kind](model(x), y if y.dtype.kind == "i" else y.astype(dtype)).backward()
            optimizer.step()
            found |= {f"{step} {path}": backend.to_numpy(u) for path, u in optimizer.directions().items()}
        assert not optimizer.reports
        return found | {path: backend.to_numpy(p.data) for path, p in optimizer.parameters.items()}, optimizer

    @pytest.mark.parametrize("options", [{}, {"fisher": "exact"}, {"fisher": "empirical"}, {"sharing": "reduce"},
                                         {"factor_interval": "adaptive", "warm_up": 0}],
                             ids=lambda options: " ".join(map(str, options.values())) or "usual")
    @pytest.mark.parametrize("inversion", ["cholesky", "eigen", "ekfac"])
    @pytest.mark.parametrize("net", NETS)
    def test_the_strict_device_gives_what_numpy_gives(self, net, inversion, options):
        wanted, _ = self.run(net, inversion=inversion, **options)
        found, optimizer = self.run(net, device="strict:0", inversion=inversion, **options)
        assert found.keys() == wanted.keys()
        for name, x in found.items():
            np.testing.assert_allclose(x, wanted[name], atol=1e-8 * abs(wanted[name]).max())
        assert all(backend.device_of(x) == "strict:0" for name, x in optimizer.state_dict().items() if backend.is_array(x))

    @pytest.mark.parametrize("inversion", ["cholesky", "eigen", "ekfac"])
    @pytest.mark.parametrize("net", NETS)
    def test_float32_stays_float32(self, net, inversion):
        wanted, _ = self.run(net, inversion=inversion, fisher="exact")
        found, optimizer = self.run(net, "float32", inversion=inversion, fisher="exact")
        for name, x in found.items():
            assert x.dtype == np.float32
            np.testing.assert_allclose(x, wanted[name], atol=2e-3 * abs(wanted[name]).max())
        assert {x.dtype for x in optimizer.state_dict().values() if backend.is_array(x)} == {np.dtype("float32")}

    @pytest.mark.parametrize("net", ["mlp", "conv"])
    def test_moments_of_float16_do_not_overflow(self, net):
        model, x = NETS[net]()
        model.to(dtype="float16")
        optimizer = KFAC(model, lr=0.01, damping=0.1)
        x = (x * 300).astype("float16")                                             # a square of these is more than float16 can hold
        F.softmax_cross_entropy(model(x), targets("categorical", (9, 3))).backward()
        optimizer.step()
        for block in optimizer.blocks.values():
            assert all(average.value.dtype == np.float32 and np.isfinite(average.value).all() for average in block.averages.values())
        assert all(p.dtype == np.float16 and np.isfinite(p.data).all() for p in model.parameters())

    def test_the_model_may_move_in_between(self):
        model, x = NETS["mlp"]()
        twin, options = mlp(), {"lr": 0.1, "fisher": "exact", "inversion": "eigen"}
        optimizer, other = KFAC(model, **options), KFAC(twin, **options)
        for device in ("cpu", "strict:0", "cpu"):
            model.to(device)
            for each, its, where in ((optimizer, model, device), (other, twin, "cpu")):
                each.zero_grad()
                F.mse(its(backend.asarray(x, where)), backend.asarray(T, where)).backward()
                each.step()
        for p, q in zip(model.parameters(), twin.parameters()):
            np.testing.assert_allclose(p.data, q.data, rtol=1e-10)

    def test_a_copy_of_the_model_has_an_optimizer_of_its_own(self):
        model = mlp()
        optimizer = KFAC(model, lr=0.1, fisher="exact")
        train(optimizer, model)
        twin = copy.deepcopy(model)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            train(optim.SGD(twin, 0.1), twin)
        assert optimizer.steps == 1 and isinstance(twin[0].w, Tensor)
