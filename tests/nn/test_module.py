"""What a Module finds in itself, and what it can be switched and moved to."""

import copy
import pickle

import numpy as np
import pytest

import strict  # noqa: F401   makes the strict device known
from minidl import Tensor, nn
from minidl import functions as F
from minidl.errors import DefinitionError, DeviceError, DtypeError, ShapeError, running


class Tree(nn.Module):
    """One of everything that can hold a Parameter or a Module."""

    buffers = ("count",)

    def __init__(self):
        self.scale = nn.Parameter(np.ones(2, np.float32))
        self.listed = [nn.Affine(2, 2, generator=0), [nn.ReLU(), nn.Affine(2, 2, generator=1)]]
        self.named = {"a": nn.Affine(2, 2, bias=False, generator=2)}
        self.pair = (nn.Parameter(np.zeros(2, np.float32)), 7, "text", None)
        self.direct = nn.BatchNorm(2)
        self.count = 3

    def forward(self, x):
        for layer in (self.listed[0], *self.listed[1], self.named["a"], self.direct):
            x = layer(x)
        return x * self.scale + self.pair[0]


class Block(nn.Module):
    def __init__(self):
        self.layers = nn.Sequential(nn.Affine(3, 4, generator=0), nn.ReLU())

    def forward(self, x):
        return self.layers(x)


X = np.array([[1.0, 2.0], [3.0, 5.0]], np.float32)


class TestParameter:
    def test_requires_a_gradient_unless_it_is_frozen(self):
        assert nn.Parameter(np.zeros(2)).requires_grad
        assert not nn.Parameter(np.zeros(2), requires_grad=False).requires_grad

    def test_shares_the_array(self):
        x = np.zeros(2)
        assert nn.Parameter(x).data is x

    def test_cannot_be_of_integers(self):
        with pytest.raises(DtypeError, match="int64 cannot have a gradient"):
            nn.Parameter(np.zeros(2, int))

    def test_stays_a_parameter_in_copies(self):
        parameter = nn.Parameter(np.zeros(2), requires_grad=False)
        for twin in (copy.deepcopy(parameter), pickle.loads(pickle.dumps(parameter))):
            assert type(twin) is nn.Parameter
            assert not twin.requires_grad


class TestWhatIsFound:
    def test_parameters_come_in_the_order_of_assignment_from_lists_tuples_and_dicts_too(self):
        assert [path for path, _ in Tree().named_parameters()] == [
            "scale", "listed.0.w", "listed.0.b", "listed.1.1.w", "listed.1.1.b", "named.a.w", "pair.0", "direct.gamma", "direct.beta"]

    def test_modules_come_with_the_module_itself_first(self):
        tree = Tree()
        found = dict(tree.named_modules())
        assert list(found) == ["", "listed.0", "listed.1.0", "listed.1.1", "named.a", "direct"]
        assert found[""] is tree
        assert found["listed.1.1"] is tree.listed[1][1]

    def test_children_are_those_directly_below(self):
        block = Block()
        assert block.children() == [block.layers]
        assert [name for name, _ in block.layers.named_children()] == ["0", "1"]

    def test_what_was_appended_to_a_list_later_is_found(self):
        tree = Tree()
        tree.listed.append(nn.Affine(2, 2))
        assert "listed.2.w" in dict(tree.named_parameters())

    def test_buffers_are_found_by_path(self):
        assert [path for path, _ in Tree().named_buffers()] == ["count", "direct.running_mean", "direct.running_var", "direct.steps"]

    def test_a_shared_parameter_comes_once_under_its_first_path(self):
        tied = nn.Sequential(nn.Affine(2, 2), nn.Affine(2, 2))
        tied[1].w = tied[0].w
        assert [path for path, _ in tied.named_parameters()] == ["0.w", "0.b", "1.b"]

    def test_a_shared_module_comes_once(self):
        layer = nn.Affine(2, 2)
        assert [path for path, _ in nn.Sequential(layer, nn.ReLU(), layer).named_parameters()] == ["0.w", "0.b"]

    def test_a_child_that_knows_its_parent_is_no_endless_loop(self):
        block = Block()
        block.layers.parent = block
        assert [path for path, _ in block.named_modules()] == ["", "layers", "layers.0", "layers.1"]
        assert "the same as above" in repr(block)

    def test_name_of_gives_the_path_of_a_descendant(self):
        tree = Tree()
        assert tree.name_of(tree.listed[1][0]) == "listed.1.0"
        assert tree.name_of(nn.ReLU()) == ""

    def test_two_things_of_one_path_are_an_error(self):
        tree = Tree()
        tree.named = {1: nn.ReLU(), "1": nn.ReLU()}
        with pytest.raises(DefinitionError, match=r"two things would be called named\.1"):
            tree.parameters()


class TestWhatIsRefused:
    def test_a_tensor_that_requires_a_gradient_must_be_a_parameter(self):
        with pytest.raises(DefinitionError, match=r"w is a Tensor that requires a gradient and is no Parameter") as caught:
            Block().w = Tensor(np.zeros(2), requires_grad=True)
        assert "minidl.nn.Parameter" in str(caught.value)

    def test_also_in_a_list_that_is_filled_later(self):
        tree = Tree()
        tree.listed.append(Tensor(np.zeros(2), requires_grad=True))
        with pytest.raises(DefinitionError, match=r"listed\.2"):
            tree.state_dict()

    def test_constants_and_results_may_be_held(self):
        block = Block()
        block.constant = Tensor(np.zeros(2))
        block.shown = nn.Parameter(np.zeros(2)) * 2
        assert len(block.parameters()) == 2

    def test_a_set_of_modules_has_no_order(self):
        with pytest.raises(DefinitionError, match="a set, which has no order"):
            Block().layers = {nn.ReLU()}

    def test_a_module_without_forward_says_so(self):
        class Empty(nn.Module):
            pass
        with pytest.raises(DefinitionError, match="Empty has no forward"):
            Empty()(X)

    def test_a_layer_of_the_class_would_be_shared(self):
        with pytest.raises(DefinitionError, match=r"Shared\.layer belongs to the class"):
            class Shared(nn.Module):
                layer = nn.ReLU()

    @pytest.mark.parametrize("name", ["parameters", "children", "to", "train", "buffers", "state_dict"])
    def test_a_name_that_every_module_has_cannot_be_assigned(self, name):
        with pytest.raises(DefinitionError, match=f"Block.{name} is something that every Module has"):
            setattr(Block(), name, [])

    def test_buffers_are_a_tuple(self):
        with pytest.raises(DefinitionError, match=r'Write buffers = \("mean",\)'):
            class Wrong(nn.Module):
                buffers = ("mean")

    def test_a_buffer_that_is_not_there_is_told(self):
        class Forgetful(nn.Module):
            buffers = ("mean",)
        with pytest.raises(DefinitionError, match=r"Forgetful\.mean is named in buffers"):
            Forgetful().state_dict()

    def test_a_subclass_keeps_the_buffers_of_its_base(self):
        class Counting(nn.BatchNorm):
            buffers = ("calls",)
            calls = 0
        assert list(Counting(1).state_dict()) == ["gamma", "beta", "running_mean", "running_var", "steps", "calls"]


class TestCall:
    def test_pushes_itself_and_pops(self):
        seen = []

        class Look(nn.Module):
            def forward(self, x):
                seen.append(running.get())
                return x
        inner = Look()
        outer = nn.Sequential(inner)
        outer(X)
        assert seen == [(inner, (outer, None))]
        assert running.get() is None

    def test_pops_after_an_error_too(self):
        with pytest.raises(ShapeError):
            Block()(X)
        assert running.get() is None

    def test_an_error_names_the_layer(self):
        with pytest.raises(ShapeError, match=r"in layer layers\.0 \(Affine\)"):
            Block()(X)

    def test_weights_on_another_device_are_an_error(self):
        with pytest.raises(DeviceError, match=r"x is on cpu, w is on strict:0"):
            nn.Affine(2, 2).to("strict:0")(X)

    def test_input_of_another_dtype_is_an_error(self):
        with pytest.raises(DtypeError, match="x is float64, w is float32"):
            nn.Affine(2, 2)(X.astype(np.float64))

    def test_arrays_and_tensors_both_go_in(self):
        layer = nn.Affine(2, 2, generator=0)
        np.testing.assert_array_equal(layer(X).data, layer(Tensor(X)).data)


class TestHooks:
    def test_sees_module_inputs_and_output(self):
        calls = []
        layer = nn.ReLU()
        layer.register_forward_hook(lambda *call: calls.append(call))
        y = layer(X)
        ((module, inputs, output),) = calls
        assert module is layer
        assert len(inputs) == 1 and inputs[0] is X
        assert output is y

    def test_may_give_another_output_which_the_next_hook_sees(self):
        layer = nn.ReLU()
        layer.register_forward_hook(lambda module, inputs, y: y + 1)
        layer.register_forward_hook(lambda module, inputs, y: y * 10)
        np.testing.assert_array_equal(layer(X), (X + 1) * 10)

    def test_is_gone_after_remove(self):
        layer = nn.ReLU()
        handle = layer.register_forward_hook(lambda module, inputs, y: y + 1)
        handle.remove()
        handle.remove()
        np.testing.assert_array_equal(layer(X), X)

    def test_may_be_a_module_and_is_then_no_part_of_the_model(self):
        class Look(nn.Module):
            def forward(self, module, inputs, y):
                return None
        layer = nn.ReLU()
        layer.register_forward_hook(Look())
        layer(X)
        assert len(list(layer.named_modules())) == 1
        assert repr(layer) == "ReLU()"


class TestModes:
    def test_train_and_eval_reach_every_module(self):
        tree = Tree()
        assert tree.eval() is tree
        assert not any(module.training for _, module in tree.named_modules())
        tree.train()
        assert all(module.training for _, module in tree.named_modules())

    def test_to_changes_the_dtype_of_floats_only(self):
        tree = Tree().to(dtype="float64")
        assert {p.dtype for p in tree.parameters()} == {np.dtype(np.float64)}
        assert tree.direct.running_mean.dtype == np.float64
        assert tree.count == 3
        assert tree(X.astype(np.float64)).dtype == np.float64

    def test_to_moves_in_place_and_there_and_back_changes_nothing(self):
        tree = Tree()
        parameters, before = tree.parameters(), tree.state_dict()
        tree.to("strict:0")
        assert {p.device for p in tree.parameters()} == {"strict:0"}
        assert all(mine is theirs for mine, theirs in zip(parameters, tree.parameters()))
        for path, x in tree.to("cpu").state_dict().items():
            np.testing.assert_array_equal(x, before[path])

    def test_to_where_it_is_keeps_arrays_and_gradients(self):
        layer = nn.Affine(2, 2)
        layer(X).sum().backward()
        data, grad, version = layer.w.data, layer.w.grad, layer.w.version
        layer.to("cpu", "float32")
        assert layer.w.data is data
        assert layer.w.grad is grad
        assert layer.w.version == version

    def test_to_drops_gradients_of_another_dtype(self):
        layer = nn.Affine(2, 2)
        layer(X).sum().backward()
        assert layer.to(dtype="float64").w.grad is None

    def test_to_refuses_what_is_no_float_type(self):
        for dtype in ("int32", "nonsense"):
            with pytest.raises(DtypeError, match="is not a float type"):
                Tree().to(dtype=dtype)

    def test_frozen_parameters_get_no_gradient(self):
        block = nn.Sequential(nn.Affine(2, 3), nn.Affine(3, 1))
        block[0].requires_grad_(False)
        block(X).sum().backward()
        assert block[0].w.grad is None
        assert block[1].w.grad is not None
        assert block.requires_grad_() is block
        assert all(p.requires_grad for p in block.parameters())

    def test_zero_grad_forgets_all_gradients(self):
        layer = nn.Affine(2, 2)
        layer(X).sum().backward()
        layer.zero_grad()
        assert layer.w.grad is None


class TestCopies:
    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
    class TestOf:
        def test_a_copy_computes_the_same_and_shares_nothing(self, copied):
            tree = Tree().eval()
            twin = copied(tree)
            np.testing.assert_array_equal(twin(X).data, tree(X).data)
            twin.scale.data[...] = 0
            assert (tree.scale.data == 1).all()

        def test_what_was_shared_stays_shared(self, copied):
            tied = nn.Sequential(nn.Affine(2, 2), nn.Affine(2, 2))
            tied[1].w = tied[0].w
            twin = copied(tied)
            assert twin[0].w is twin[1].w
            assert twin[0].w is not tied[0].w

        def test_frozen_stays_frozen_and_modes_stay(self, copied):
            twin = copied(Block().requires_grad_(False).eval())
            assert not any(p.requires_grad for p in twin.parameters())
            assert not twin.training

        def test_hooks_are_left_out(self, copied):
            layer = nn.ReLU()
            layer.register_forward_hook(lambda module, inputs, y: y + 1)
            np.testing.assert_array_equal(copied(layer)(X), X)
            np.testing.assert_array_equal(layer(X), X + 1)


def test_the_repr_shows_the_tree():
    assert repr(Tree()) == """\
Tree(
  scale: Parameter (2,) float32
  listed.0: Affine(2, 2)
  listed.1.0: ReLU()
  listed.1.1: Affine(2, 2)
  named.a: Affine(2, 2, bias=False)
  pair.0: Parameter (2,) float32
  direct: BatchNorm(2)
)"""


def test_functions_may_be_used_beside_layers():
    class Residual(nn.Module):
        def __init__(self):
            self.layer = nn.Affine(2, 2, generator=0)

        def forward(self, x):
            return F.relu(x + self.layer(x))
    model = Residual()
    np.testing.assert_allclose(model(X).data, np.maximum(X + X @ model.layer.w.data, 0), rtol=1e-6)
