"""What all optimizers share: who is updated, groups, schedules, the state."""

import json

import numpy as np
import pytest

import strict  # noqa: F401   makes the strict device known
from minidl import Tensor, backend, nn, optim
from minidl.errors import ArgumentError, CheckpointError, DefinitionError, GraphError, NumericsError
from minidl.kernels import reference_updates
from minidl.optim import optimizer as module

X = np.array([[1.0, 2.0], [3.0, 5.0]], np.float32)
KINDS = [lambda model: optim.SGD(model, 0.1, momentum=0.9), optim.Adam, optim.AdamW]


def model(seed=0):
    return nn.Sequential(nn.Affine(2, 3, generator=seed), nn.ReLU(), nn.Affine(3, 1, generator=seed + 1))


def backward(net):
    net.zero_grad()
    y = net(X)
    (y * y).sum().backward()


class TestStep:
    def test_counts_and_raises_the_version(self):
        net = model()
        optimizer = optim.SGD(net, 0.1)
        backward(net)
        optimizer.step()
        assert optimizer.steps == 1
        assert [p.version for p in net.parameters()] == [1, 1, 1, 1]

    def test_a_graph_notices_that_its_weights_have_changed(self):
        net = model()
        optimizer = optim.SGD(net, 0.1)
        backward(net)
        loss = net(X).sum()
        optimizer.step()
        with pytest.raises(GraphError, match="changed between the forward and the backward pass"):
            loss.backward()

    def test_without_any_gradient_is_an_error(self):
        with pytest.raises(GraphError, match=r"SGD\.step: no parameter has a gradient") as caught:
            optim.SGD(model(), 0.1).step()
        assert "Call loss.backward() before step()" in str(caught.value)

    def test_with_everything_frozen_is_an_error(self):
        with pytest.raises(GraphError, match="every parameter is frozen"):
            optim.SGD(model().requires_grad_(False), 0.1).step()

    def test_what_is_frozen_or_has_no_gradient_is_left_alone(self):
        net = model()
        optimizer = optim.Adam(net, weight_decay=0.1)
        backward(net)
        net[0].w.requires_grad = False
        net[0].b.grad = None
        before = net.state_dict()
        optimizer.step()
        after = net.state_dict()
        assert [path for path in before if (before[path] != after[path]).any()] == ["2.w", "2.b"]
        assert optimizer.updates == {"0.w": 0, "0.b": 0, "2.w": 1, "2.b": 1}

    def test_a_parameter_that_sat_out_is_corrected_by_its_own_count(self):
        late = nn.Parameter(np.zeros(1))
        optimizer = optim.Adam({"early": nn.Parameter(np.zeros(1)), "late": late}, lr=0.5)
        optimizer.parameters["early"].grad = np.ones(1)
        for _ in range(5):
            optimizer.step()
        late.grad = np.ones(1)
        optimizer.step()
        np.testing.assert_allclose(late.data, [-0.5], rtol=1e-6)        # a first step of Adam is lr long

    def test_what_is_freed_later_is_learned_too(self):
        net = model()
        net[0].requires_grad_(False)
        optimizer = optim.SGD(net, 0.1, momentum=0.9)
        net.requires_grad_()
        backward(net)
        optimizer.step()
        assert optimizer.updates["0.w"] == 1

    def test_zero_grad_forgets_all_gradients(self):
        net = model()
        backward(net)
        optim.SGD(net, 0.1).zero_grad()
        assert all(p.grad is None for p in net.parameters())

    @pytest.mark.parametrize("make", KINDS)
    def test_the_loss_goes_down(self, make):
        net = model(2)
        optimizer = make(net)
        losses = []
        for _ in range(30):
            backward(net)
            losses.append(float((net(X).data ** 2).sum()))
            optim.clip_grad_norm(net, 1.0)
            optimizer.step()
        assert losses[-1] < losses[0]

    @pytest.mark.parametrize("make", KINDS)
    def test_the_model_may_move_to_another_device_in_between(self, make):
        net, moving = model(), model()
        optimizer, mover = make(net), make(moving)
        for device in ("cpu", "strict:0", "cpu"):
            moving.to(device)
            for parameter, twin in zip(net.parameters(), moving.parameters()):
                parameter.grad = np.ones(parameter.shape, np.float32)
                twin.grad = backend.asarray(parameter.grad.data, device)
            optimizer.step()
            mover.step()
        for parameter, twin in zip(net.parameters(), moving.parameters()):
            np.testing.assert_array_equal(twin.data, parameter.data)


class TestWhatIsLearned:
    def test_a_dictionary_by_path_is_as_good_as_a_model(self):
        net = model()
        assert optim.SGD(dict(net.named_parameters()), 0.1).parameters == optim.SGD(net, 0.1).parameters

    def test_plain_leaves_too(self):
        w = Tensor([1.0], requires_grad=True)
        (w * w).backward()
        optim.SGD({"w": w}, 0.25).step()
        assert w.item() == 0.5

    def test_nothing_to_learn_is_an_error(self):
        for empty in (nn.ReLU(), {}):
            with pytest.raises(ArgumentError, match="the model has no parameters"):
                optim.SGD(empty, 0.1)

    def test_a_list_of_parameters_is_an_error(self):
        with pytest.raises(ArgumentError, match="a list is no model"):
            optim.SGD(model().parameters(), 0.1)

    def test_the_result_of_an_operation_is_an_error(self):
        with pytest.raises(GraphError, match="w is a Tensor and no leaf"):
            optim.SGD({"w": nn.Parameter(np.ones(1)) * 2}, 0.1)

    def test_one_parameter_under_two_paths_is_an_error(self):
        w = nn.Parameter(np.ones(1))
        with pytest.raises(ArgumentError, match="would be updated twice"):
            optim.SGD({"a": w, "b": w}, 0.1)


class TestGroups:
    def shrunk(self, **groups):
        """How much of each parameter is left after a step with no gradient but weight decay."""
        net = nn.Sequential(nn.Affine(1, 1), nn.Affine(1, 1))
        optimizer = optim.SGD(net, lr=1.0, weight_decay=0.5, groups=groups)
        for p in net.parameters():
            p.data[...], p.grad = 1, np.zeros(p.shape)
        optimizer.step()
        return {path: p.data.item() for path, p in net.named_parameters()}

    def test_a_pattern_changes_options_where_it_matches(self):
        assert self.shrunk(**{"*.b": {"weight_decay": 0}}) == {"0.w": 0.5, "0.b": 1, "1.w": 0.5, "1.b": 1}

    def test_of_several_the_last_counts(self):
        assert self.shrunk(**{"*": {"weight_decay": 0}, "1.*": {"weight_decay": 0.25}}) == {"0.w": 1, "0.b": 1, "1.w": 0.75, "1.b": 0.75}

    def test_options_that_a_group_does_not_name_stay(self):
        assert self.shrunk(**{"0.*": {"lr": 0.5}}) == {"0.w": 0.75, "0.b": 0.75, "1.w": 0.5, "1.b": 0.5}

    def test_a_dot_in_front_stands_for_the_model_itself_too(self):
        optimizer = optim.SGD(nn.Affine(1, 1), 0.1, groups={"*.b": {"lr": 0.2}})
        assert optimizer.changes == {"w": {}, "b": {"lr": 0.2}}

    def test_an_option_assigned_later_holds_wherever_no_group_changes_it(self):
        net = nn.Affine(1, 1)
        optimizer = optim.SGD(net, lr=1.0, groups={"b": {"weight_decay": 0.1}, "w": {"lr": 0.5}})
        optimizer.options["lr"] = 0.25
        for p in net.parameters():
            p.data[...], p.grad = 0, np.ones(p.shape)
        optimizer.step()
        assert (net.w.data.item(), net.b.data.item()) == (-0.5, -0.25)

    def test_momentum_may_be_turned_on_later(self):
        net = model()
        optimizer = optim.SGD(net, lr=0.1)
        optimizer.options["momentum"] = 0.9
        backward(net)
        optimizer.step()
        np.testing.assert_array_equal(optimizer.state["0.w"]["velocity"], net[0].w.grad.data)

    def test_momentum_for_a_group_only(self):
        optimizer = optim.SGD(model(), 0.1, groups={"2.*": {"momentum": 0.9}})
        assert {path: list(state) for path, state in optimizer.state.items()} == {
            "0.w": [], "0.b": [], "2.w": ["velocity"], "2.b": ["velocity"]}

    def test_a_pattern_that_matches_nothing_is_an_error(self):
        with pytest.raises(ArgumentError, match=r"no parameter matches the group '0\.W' \(nearest: '0\.w'\)"):
            optim.SGD(model(), 0.1, groups={"0.W": {"lr": 1}})

    def test_an_unknown_option_is_an_error(self):
        with pytest.raises(ArgumentError, match=r"sets 'weight_deca', which is no option \(nearest: 'weight_decay'\)"):
            optim.SGD(model(), 0.1, groups={"*": {"weight_deca": 1}})


class TestSchedules:
    def test_the_first_step_is_step_0(self):
        w = nn.Parameter(np.zeros(1))
        optimizer = optim.SGD({"w": w}, lambda step: 1.0 + step)
        assert optimizer.last_lr is None
        for lr in (1, 2, 3):
            w.grad = np.ones(1)
            optimizer.step()
            assert optimizer.last_lr == lr
        assert w.data == [-6]

    def test_stand_wherever_a_number_does_and_are_asked_once_a_step(self):
        asked = []

        def momentum(step):
            asked.append(step)
            return 0.0 if step == 0 else 0.5
        net = model()
        optimizer = optim.SGD(net, 0.1, momentum=momentum)
        asked.clear()
        for _ in range(3):
            backward(net)
            optimizer.step()
        assert asked == [0, 1, 2]
        assert optimizer.state["0.w"]["velocity"].any()

    def test_one_that_gives_no_finite_number_is_an_error(self):
        net = model()
        optimizer = optim.SGD(net, lambda step: 0.1 if step == 0 else float("nan"))
        backward(net)
        optimizer.step()
        with pytest.raises(NumericsError, match="is nan at step 1"):
            optimizer.step()


@pytest.mark.parametrize("make", KINDS)
class TestState:
    def trained(self, make, steps, net=None, optimizer=None):
        net = model() if net is None else net
        optimizer = optimizer or make(net)
        for _ in range(steps):
            backward(net)
            optimizer.step()
        return net, optimizer

    def test_a_resumed_run_goes_on_as_if_nothing_had_happened(self, make):
        through, _ = self.trained(make, 6)
        net, optimizer = self.trained(make, 3)
        resumed = model(5)
        resumed.load_state_dict(net.state_dict())
        fresh = make(resumed)
        fresh.load_state_dict(optimizer.state_dict())
        assert fresh.steps == 3
        self.trained(make, 3, resumed, fresh)
        for path, x in through.state_dict().items():
            np.testing.assert_array_equal(resumed.state_dict()[path], x)

    def test_is_arrays_by_path_and_numbers_for_json(self, make):
        net, optimizer = self.trained(make, 2)
        state = optimizer.state_dict()
        numbers = {path: x for path, x in state.items() if not isinstance(x, np.ndarray)}
        assert numbers == {"steps": 2, **{f"{path}.updates": 2 for path, _ in net.named_parameters()}}
        make(net).load_state_dict(state | json.loads(json.dumps(numbers)))

    def test_is_a_snapshot_and_shares_nothing(self, make):
        net, optimizer = self.trained(make, 1)
        state = optimizer.state_dict()
        before = {path: np.copy(x) for path, x in state.items()}
        optimizer.load_state_dict(state)
        self.trained(make, 1, net, optimizer)
        for path, x in state.items():
            np.testing.assert_array_equal(x, before[path])

    def test_comes_to_the_parameters_device_and_dtype(self, make):
        _, optimizer = self.trained(make, 1)
        there = make(model().to("strict:0", "float64"))
        there.load_state_dict(optimizer.state_dict())
        arrays = [x for state in there.state.values() for x in state.values()]
        assert {(x.dtype.name, backend.device_of(x)) for x in arrays} == {("float64", "strict:0")}

    def test_another_models_or_optimizers_state_is_refused_and_nothing_changes(self, make):
        _, optimizer = self.trained(make, 1)
        before = optimizer.state_dict()
        other = optim.SGD(nn.Affine(2, 2), 0.1, momentum=0.9)
        wrong_shape = {**before, next(path for path, x in before.items() if isinstance(x, np.ndarray)): np.zeros(7)}
        for state in (other.state_dict(), optim.SGD(model(), 0.1).state_dict(), wrong_shape, {**before, "extra": 1}, {}):
            with pytest.raises(CheckpointError, match="and the state do not fit together"):
                optimizer.load_state_dict(state)
        for path, x in optimizer.state_dict().items():
            np.testing.assert_array_equal(x, before[path])

    def test_a_parameter_that_is_frozen_now_keeps_its_memory(self, make):
        _, optimizer = self.trained(make, 1)
        frozen = model()
        frozen[0].requires_grad_(False)
        resumed = make(frozen)
        resumed.load_state_dict(optimizer.state_dict())
        for name, x in optimizer.state["0.w"].items():
            np.testing.assert_array_equal(resumed.state["0.w"][name], x)


class TestRegistry:
    def test_creates_by_name(self):
        assert optim.names() == ["adam", "adamw", "kfac", "sgd"]
        for name, kind in (("sgd", optim.SGD), ("adam", optim.Adam), ("adamw", optim.AdamW)):
            assert type(optim.create(name, model(), lr=0.1)) is kind

    def test_an_unknown_name_or_option_is_an_error_with_the_nearest(self):
        with pytest.raises(ArgumentError, match=r"no optimizer 'adamm' \(nearest: 'adam"):
            optim.create("adamm", model())
        with pytest.raises(ArgumentError, match=r"sgd has no option 'momentun' \(nearest: 'momentum'\)"):
            optim.create("sgd", model(), lr=0.1, momentun=0.9)

    def test_an_own_optimizer_is_two_methods(self, monkeypatch):
        monkeypatch.setattr(module._kinds, "known", dict(module._kinds.known))

        @optim.register("sign")
        class Sign(optim.Optimizer):
            def __init__(self, model, lr):
                super().__init__(model, lr=lr)

            def update(self, w, g, state, t, lr):
                w -= lr * backend.of(g).sign(g)
        w = nn.Parameter(np.zeros(2))
        w.grad = np.array([3.0, -0.1])
        optim.create("sign", {"w": w}, lr=0.5).step()
        assert w.data.tolist() == [-0.5, 0.5]
        with pytest.raises(DefinitionError, match="an optimizer 'sign' already"):
            optim.register("sign")(optim.SGD)

    def test_an_own_rule_is_given_large_arrays_in_pieces_unless_it_says_no(self, monkeypatch):
        monkeypatch.setattr(reference_updates, "PIECE", 4)

        class Mean(optim.Optimizer):
            def start(self, w, lr):
                return {"sum": np.zeros_like(w)}

            def update(self, w, g, state, t, lr):
                shapes.append((w.shape, g.shape, state["sum"].shape))
                state["sum"] += g
                w -= lr / t * state["sum"]

        class Whole(Mean):
            elementwise = False
        for kind, wanted in ((Mean, [((4,),) * 3, ((2,),) * 3]), (Whole, [((2, 3),) * 3])):
            shapes = []
            w = nn.Parameter(np.zeros((2, 3)))
            w.grad = np.arange(6.0).reshape(2, 3)
            optimizer = kind({"w": w}, lr=1.0)
            optimizer.step()
            assert shapes == wanted and (w.data == -w.grad.data).all() and (optimizer.state["w"]["sum"] == w.grad.data).all()

    def test_one_without_a_rule_says_so(self):
        net = model()
        backward(net)
        with pytest.raises(DefinitionError, match="Optimizer has no update"):
            optim.Optimizer(net, lr=0.1).step()


def test_an_array_that_cannot_be_written_to_is_refused_at_once():
    w = np.ones(2, np.float32)
    w.flags.writeable = False
    with pytest.raises(ArgumentError, match="the array of w cannot be written to"):
        optim.SGD({"w": nn.Parameter(w)}, lr=0.1)
