"""The graph as a picture: what is in it, what is folded away, whether its numbers are the engine's, and that drawing changes nothing."""

import shutil
import time

import numpy as np
import pytest

import minidl
from minidl import Tensor, models, nn
from minidl import functions as F
from minidl.errors import ArgumentError, GraphError, MissingExtra
from minidl.pictures import backward_steps, draw
from minidl.pictures.graph_boxes import ROOM, repetition
from minidl.pictures.graph_numbers import amount

needs_dot = pytest.mark.skipif(shutil.which("dot") is None, reason="Graphviz's program dot is not installed")


@pytest.fixture
def network():
    """Affine, ReLU, Affine with numbers that one can follow, and all Tensors on the way."""
    first, second = nn.Affine(2, 2), nn.Affine(2, 1)
    first.w.data[...], first.b.data[...] = [[1, -1], [0, 2]], [1, -4]
    second.w.data[...], second.b.data[...] = [[2], [3]], [1]
    x = Tensor([[1.0, 2.0]])
    h = first(x)
    a = F.relu(h)
    y = second(a)
    loss = ((y - 3) ** 2).sum()
    return {"first": first, "second": second, "x": x, "h": h, "a": a, "y": y, "loss": loss}


def titles(picture, *kinds):
    return [box.title for box in picture.scene.boxes if not kinds or box.kind in kinds]


def box_of(picture, title):
    return next(box for box in picture.scene.boxes if box.title == title)


def line_of(picture, source, target):
    return next(line for line in picture.scene.lines if (line.source.title, line.target.title) == (source, target))


def recurrent(steps):
    h, w = Tensor(np.ones((1, 4), "f"), requires_grad=True), Tensor(np.eye(4, dtype="f") / 2, requires_grad=True)
    for _ in range(steps):
        h = F.tanh(h @ w)
    return h.sum(), w


class Cell(nn.Module):
    def __init__(self):
        self.a, self.b = nn.Affine(4, 4), nn.Affine(4, 4, bias=False)

    def forward(self, x, h):
        return F.tanh(self.a(x) + self.b(h))


class Recurrent(nn.Module):
    def __init__(self):
        self.cell, self.out = Cell(), nn.Affine(4, 2)

    def forward(self, xs):
        h = np.zeros((1, 4), "f")
        for x in xs:
            h = self.cell(x, h)
        return self.out(h)


class TestSmallGraph:
    def test_has_a_box_for_each_operation_and_leaf(self, network):
        picture = draw(network["loss"], names=network)
        assert titles(picture) == ["x", "first.w", "first.b", "affine", "relu", "second.w", "second.b", "affine", "subtract",
                                   "power", "sum", "loss"]
        assert titles(picture, "parameter") == ["first.w", "first.b", "second.w", "second.b"]
        assert titles(picture, "constant") == ["x"]

    def test_has_the_shape_on_each_line(self, network):
        picture = draw(network["loss"], names=network)
        assert [line.shape for line in picture.scene.lines if line.target.title == "affine"] == \
            ["(1, 2)", "(2, 2)", "(2,)", "(1, 2)", "(2, 1)", "(1,)"]
        assert line_of(picture, "first.w", "affine").argument == "w"

    def test_is_told_in_words(self, network):
        assert str(draw(network["loss"], names=network)).splitlines() == """\
6 operations, 5 leaves
 1  x  constant  (1, 2)
 2  first.w  parameter  (2, 2)
 3  first.b  parameter  (2,)
 4  affine of 1, 2, 3: first (Affine)  (1, 2)
 5  relu of 4  (1, 2)
 6  second.w  parameter  (2, 1)
 7  second.b  parameter  (1,)
 8  affine of 5, 6, 7: second (Affine)  (1, 1)
 9  subtract of 8: b: a constant  (1, 1)
10  power of 9: b = 2  (1, 1)
11  sum of 10  ()
12  loss of 11  ()""".splitlines()

    def test_is_the_same_each_time(self, network):
        once, again = (draw(network["loss"], values=True, gradients=True, names=network) for _ in range(2))
        assert once.source == again.source and once.words == again.words

    def test_says_what_an_operation_was_told(self):
        layer = nn.Conv2d(1, 2, 3, stride=2, padding=1, activation="relu")
        box = box_of(draw(layer(np.zeros((1, 1, 6, 6), "f")).sum(axis=(1, 2))), "conv2d + relu")
        assert box.facts == ["Conv2d", "kernel 3, stride 2, padding 1"]
        assert "axis (1, 2)" in str(draw(layer(np.zeros((1, 1, 6, 6), "f")).sum(axis=(1, 2))))

    def test_shows_a_number_that_is_used_twice_once(self):
        w = Tensor([1.0, 2.0], requires_grad=True)
        picture = draw((w * w).sum(), gradients=True)
        assert [line.argument for line in picture.scene.lines if line.target.title == "multiply"] == ["a", "b"]
        assert box_of(picture, "input").gradient == amount(np.array([2.0, 4.0]))

    def test_can_have_several_results(self):
        w = Tensor(3.0, requires_grad=True)
        a = w * 2
        b = a * a
        picture = draw(a, b, values=True, gradients=True, names={"a": a})
        assert titles(picture, "result") == ["a", "result 2"]
        assert box_of(picture, "input").value.text == "3"
        (slope,) = minidl.grad([a, b], w, retain_graph=True)
        assert line_of(picture, "input", "multiply").gradient.text == f"{slope.item():g}"
        assert line_of(picture, "multiply", "a").gradient.text == "1"

    def test_knows_the_second_output_of_an_operation(self):
        x = Tensor(np.ones((2, 3), "f"), requires_grad=True)
        y, mean, _ = F.batch_norm(x, np.ones(3, "f"), np.zeros(3, "f"))
        picture = draw(y.sum() + mean.sum(), values=True, gradients=True)
        assert sorted(line.shape for line in picture.scene.lines if line.source.title == "batch_norm") == ["(2, 3)", "(3,)"]

    def test_of_gradients_that_are_a_graph_themselves(self):
        x = Tensor(2.0, requires_grad=True)
        (slope,) = minidl.grad(x ** 3, x, create_graph=True)
        picture = draw(slope, values=True, gradients=True, names={"x": x})
        assert box_of(picture, "result").value.text == "12"
        gradients = [float(line.gradient.text) for line in picture.scene.lines if line.source.title == "x"]
        assert sum(gradients) == 12

    def test_marks_what_is_to_stand_out(self, network):
        picture = draw(network["loss"], names=network, highlight=[network["a"], network["x"], network["second"].w])
        assert [line.split("  ")[1] for line in picture.words.splitlines() if line.endswith("<- here")] == ["x", "relu of 4", "second.w"]


class TestNumbers:
    def test_are_the_values_of_the_forward_pass(self, network):
        picture = draw(network["loss"], values=True, names=network)
        assert line_of(picture, "affine", "relu").value.rows == (("2", "-1"),)      # not kept by any rule: computed again
        assert line_of(picture, "relu", "affine").value.rows == (("2", "0"),)
        assert line_of(picture, "affine", "subtract").value.text == "[[5]]"
        assert box_of(picture, "first.w").value.rows == (("1", "-1"), ("0", "2"))
        assert box_of(picture, "loss").value.text == "4"

    def test_are_those_of_gradients_too(self, network):
        loss, first, second, h, a, y = (network[name] for name in ("loss", "first", "second", "h", "a", "y"))
        picture = draw(loss, gradients=True, names=network)
        leaves = [first.w, first.b, second.w, second.b]
        *slopes, of_h, of_a, of_y = minidl.grad(loss, [*leaves, h, a, y])
        for name, slope in zip(("first.w", "first.b", "second.w", "second.b"), slopes):
            assert line_of(picture, name, "affine").gradient == amount(slope.data), name
        assert line_of(picture, "affine", "relu").gradient == amount(of_h.data)
        assert line_of(picture, "relu", "affine").gradient == amount(of_a.data)
        assert line_of(picture, "affine", "subtract").gradient == amount(of_y.data)
        assert line_of(picture, "sum", "loss").gradient.text == "1"

    def test_that_nobody_kept_are_left_out_unless_named(self):
        w = Tensor([1.0, 2.0], requires_grad=True)
        h = w + np.array([1.0, 1.0], "f")                   # no rule needs the other summand
        loss = (h - 1).sum()
        assert line_of(draw(loss, values=True), "add", "subtract").value is None
        assert line_of(draw(loss, values=True, names={"h": h}), "add", "subtract").value.text == "[2, 3]"

    def test_leave_no_trace(self, network):
        loss, first = network["loss"], network["first"]
        seen = []
        first.w.register_ready_hook(seen.append)
        draw(loss, values=True, gradients=True)
        backward_steps(loss)
        assert first.w.grad is None and not seen
        loss.backward()
        once = first.w.grad.numpy().copy()
        assert once.any() and len(seen) == 1
        draw(loss)
        np.testing.assert_array_equal(first.w.grad.numpy(), once)

    def test_of_large_arrays_are_a_range(self):
        x = np.linspace(-1, 2, 100)
        assert amount(x).text == "-1 to 2" and not amount(x).rows
        assert amount(np.zeros(50)).text == "all 0"
        assert amount(np.where(x > 1.9, np.nan, x)).text == "4 of 100 not finite"
        assert amount(np.zeros((0, 3))).text == "no numbers"
        assert amount(np.array([[True, False]])).text == "[[1, 0]]"
        assert amount(np.array([-0.0, 1 / 3])).text == "[0, 0.3333]"

    def test_that_have_changed_since_are_not_shown_as_if_they_had_not(self):
        w = Tensor([1.0, 2.0], requires_grad=True)
        loss = (w * w).sum()
        w.data = np.array([3.0, 4.0], "f")
        with pytest.raises(GraphError, match="changed between"):
            draw(loss, values=True)


class TestBackwardSteps:
    def test_make_one_more_gradient_known_at_a_time(self, network):
        steps = backward_steps(network["loss"], names=network)
        assert [step.words.splitlines()[0] for step in steps] == [
            "Step 0 of 6: the gradient of the result by itself is 1", "Step 1 of 6: sum passes the gradient on",
            "Step 2 of 6: power passes the gradient on", "Step 3 of 6: subtract passes the gradient on",
            "Step 4 of 6: affine passes the gradient on", "Step 5 of 6: relu passes the gradient on",
            "Step 6 of 6: affine passes the gradient on"]
        assert [step.words.count("not known yet") for step in steps] == [9, 8, 7, 6, 3, 2, 0]
        assert [sum(step.scene.fresh(line) for line in step.scene.lines) for step in steps] == [1, 1, 1, 1, 3, 1, 2]

    def test_know_a_sum_when_its_last_part_has_come(self):
        x = Tensor(2.0, requires_grad=True)
        h = x * 3
        steps = backward_steps(h * h + h, names={"h": h})
        sums = [next(line.strip() for line in step.words.splitlines() if "their sum" in line) for step in steps]
        assert sums == ["their sum not known yet", "their sum not known yet", "their sum 13", "their sum 13"]

    @needs_dot
    def test_keep_everything_in_its_place(self, network):
        steps = backward_steps(network["loss"], names=network)
        assert len({step.svg.split('viewBox="')[1].split('"')[0] for step in steps}) <= 2      # the caption's length may differ
        texts = [step.svg.count("<text") for step in steps]
        assert texts == sorted(texts) and texts[0] < texts[-1]              # what is not known yet is not in the file

    def test_of_modules_take_one_step_a_box(self):
        model = models.create("lenet", input_shape=(1, 8, 8), classes=10, generator=0)
        loss = F.softmax_cross_entropy(model(np.ones((2, 1, 8, 8), "f")), np.array([1, 2]))
        steps = backward_steps(loss, depth=1)
        assert [step.words.splitlines()[0].split(": ")[1] for step in steps[1:]] == [
            "softmax_cross_entropy passes the gradient on", "classifier (Sequential) passes the gradient on",
            "features (Sequential) passes the gradient on"]


class TestModules:
    @pytest.fixture
    def lenet(self):
        model = models.create("lenet", input_shape=(1, 8, 8), classes=10, generator=0)
        return F.softmax_cross_entropy(model(np.ones((2, 1, 8, 8), "f")), np.array([1, 2]))

    def test_that_there_is_room_for_are_open_and_framed(self, lenet):
        picture = draw(lenet)
        assert titles(picture, "operation") == ["conv2d + relu", "max_pool2d", "conv2d + relu", "max_pool2d", "reshape", "affine + relu",
                                                "affine + relu", "affine", "softmax_cross_entropy"]
        assert "features.0.w" in titles(picture, "parameter") and len(titles(picture, "parameter")) == 10
        assert picture.source.count("subgraph") == 3
        assert "   LeNet:\n      features (Sequential):\n" in picture.words

    def test_collapse_to_a_depth(self, lenet):
        assert titles(draw(lenet, depth=0)) == ["x", "LeNet", "softmax_cross_entropy", "result"]
        one = draw(lenet, depth=1)
        assert titles(one, "module") == ["features (Sequential)", "classifier (Sequential)"]
        assert box_of(one, "features (Sequential)").facts == ["5 operations", "4,800 parameters"]
        assert len(draw(lenet, depth=2).scene.boxes) == 11

    def test_carry_gradients_when_collapsed(self, lenet):
        picture = draw(lenet, depth=1, gradients=True, values=True)
        whole = draw(lenet, gradients=True, values=True)
        line = line_of(picture, "features (Sequential)", "classifier (Sequential)")
        same = line_of(whole, "reshape", "affine + relu")
        assert (line.gradient, line.value) == (same.gradient, same.value) and line.gradient is not None

    def test_that_are_called_twice_are_two_boxes_with_one_weight(self):
        layer = nn.Affine(2, 2)
        loss = layer(layer(Tensor([[1.0, 2.0]]))).sum()
        picture = draw(loss, gradients=True)
        assert titles(picture, "operation") == ["affine", "affine", "sum"] and titles(picture, "parameter") == ["w", "b"]
        assert box_of(picture, "w").gradient == amount(minidl.grad(loss, layer.w, retain_graph=True)[0].data)
        assert titles(draw(loss, depth=0), "module") == ["Affine", "Affine"]

    def test_with_the_same_name_are_told_apart(self):
        one, other = nn.Affine(2, 2), nn.Affine(2, 2)
        loss = other(one(Tensor([[1.0, 2.0]]))).sum()
        assert titles(draw(loss), "parameter") == ["Affine.w", "Affine.b", "Affine 2.w", "Affine 2.b"]
        assert titles(draw(loss, names={"one": one}), "parameter") == ["one.w", "one.b", "Affine 2.w", "Affine 2.b"]

    def test_that_share_a_weight_show_it(self):
        one, other = nn.Affine(2, 2), nn.Affine(2, 2)
        other.w = one.w
        model = nn.Sequential(one, nn.ReLU(), other)
        picture = draw(model(Tensor([[1.0, 2.0]])).sum(), depth=1)
        assert titles(picture, "parameter") == ["0.w"]
        assert len([line for line in picture.scene.lines if line.source.title == "0.w"]) == 2

    def test_need_no_text_that_graphviz_would_misread(self):
        layer = nn.Affine(2, 2)
        picture = draw(layer(Tensor([[1.0, 2.0]])).sum(), names={'<a & "b">': layer})
        assert "&lt;a &amp; &quot;b&quot;&gt;.w" in picture.source
        if shutil.which("dot"):
            assert "&lt;a &amp; &quot;b&quot;&gt;.w" in picture.svg


class TestLargeGraph:
    def drawn(self, *tensors, seconds=5, **options):
        started = time.perf_counter()
        picture = draw(*tensors, **options)
        if shutil.which("dot"):
            assert len(picture.svg) < 150_000
        assert time.perf_counter() - started < seconds
        assert len(picture.scene.boxes) <= ROOM + 10 and len(picture.words) < 10_000
        return picture

    def test_of_many_modules_opens_what_there_is_room_for(self):
        model = models.create("resnet18", input_shape=(3, 8, 8), classes=10, generator=0)
        loss = F.softmax_cross_entropy(model(np.ones((2, 3, 8, 8), "f")), np.array([1, 2]))
        picture = self.drawn(loss, values=True, gradients=True)
        assert titles(picture, "module")[:2] == ["stages.0.0 (Block)", "stages.0.1 (Block)"]
        assert len(draw(loss, depth=9).scene.boxes) > 100                   # all of it, for who asks

    def test_that_repeats_itself_is_folded(self):
        loss, w = recurrent(1000)
        picture = self.drawn(loss, gradients=True, names={"w": w})
        assert titles(picture) == ["input", "w", "matmul", "tanh", "998 times more", "matmul", "tanh", "sum", "result"]
        assert box_of(picture, "998 times more").facts == ["matmul, tanh"]
        assert line_of(picture, "w", "998 times more").shape == "(4, 4)"
        assert box_of(picture, "w").gradient == amount(minidl.grad(loss, w, retain_graph=True)[0].data)

    def test_that_repeats_a_module_is_folded_too(self):
        picture = self.drawn(Recurrent()(np.ones((1000, 1, 4), "f")).sum())
        assert titles(picture, "repeats") == ["998 times more"]
        assert titles(picture, "parameter") == ["cell.a.w", "cell.a.b", "cell.b.w", "out.w", "out.b"]

    def test_as_one_box_has_not_all_its_inputs(self):
        picture = self.drawn(Recurrent()(np.ones((100, 1, 4), "f")).sum(), depth=0)
        assert titles(picture)[-4:] == ["94 more", "Recurrent", "sum", "result"]

    def test_without_order_has_its_middle_cut_out(self):
        kinds = np.random.default_rng(0).integers(3, size=300)
        x = Tensor([0.5], requires_grad=True)
        for kind in kinds:
            x = (F.tanh, F.exp, F.sigmoid)[kind](x)
        picture = self.drawn(x)
        assert titles(picture, "repeats")[-1] == "277 operations"
        assert "tanh" in picture.words.split("277 operations")[1]

    def test_of_fifty_thousand_operations_does_not_recurse(self):
        x = w = Tensor([1.0], requires_grad=True)
        for _ in range(25_000):
            x = x * 1.0 + w
        assert titles(self.drawn(x, seconds=20), "repeats") == ["24,998 times more"]

    def test_with_many_leaves_counts_them(self):
        leaves = [Tensor([float(i)], requires_grad=True) for i in range(100)]
        picture = self.drawn(F.concatenate(leaves).sum(), values=True, gradients=True)
        assert line_of(picture, "93 more", "concatenate").shape == "93 x (1,)"

    def test_is_folded_where_that_saves_most(self):
        assert repetition(list("abcdefg")) is None
        assert repetition(list("xabababababy")) == (1, 2, 5)
        assert repetition(list("aaaaaaaabcbcbcbc")) == (0, 1, 8)


class TestWithoutAGraph:
    def test_a_leaf_is_one_box(self):
        assert draw(Tensor([1.0], requires_grad=True)).words.splitlines() == \
            ["0 operations, 1 leaf", "a leaf: nothing was computed to get it", "1  input  (1,)"]
        assert "no operation was recorded" in draw(Tensor([1.0]) * 2).words

    def test_a_freed_graph_can_still_be_drawn(self, network):
        network["loss"].backward()
        picture = draw(network["loss"], values=True, names=network)
        assert "a backward pass has freed what the operations kept" in picture.words
        assert titles(picture, "operation") == ["affine", "relu", "affine", "subtract", "power", "sum"]
        assert line_of(picture, "affine", "relu").value.text == "[[2, -1]]"          # named
        with pytest.raises(GraphError, match="freed"):
            draw(network["loss"], gradients=True)

    @pytest.mark.parametrize("what, said", [((), "nothing to draw"), ((np.ones(2),), "a ndarray has no graph")])
    def test_there_is_nothing_to_draw(self, what, said):
        with pytest.raises(GraphError, match=said):
            draw(*what)

    def test_there_are_no_gradients(self):
        w = Tensor([1.0, 2.0], requires_grad=True)
        with pytest.raises(GraphError, match=r"shape \(2,\) is not one number"):
            draw(w * 2, gradients=True)
        with pytest.raises(GraphError, match="requires no gradient"):
            backward_steps(Tensor(1.0))


class TestPicture:
    @needs_dot
    def test_is_svg_for_a_notebook_and_a_file(self, network, tmp_path):
        picture = draw(network["loss"], values=True, gradients=True, names=network)
        shown = picture._repr_mimebundle_()
        assert shown["image/svg+xml"].startswith("<svg") and shown["text/plain"] == str(picture)
        assert picture.save(tmp_path / "graph.svg").read_text() == picture.svg
        assert "relu" in picture.svg and "(1, 2)" in picture.svg
        with pytest.raises(ArgumentError, match=r"graph\.png"):
            picture.save(tmp_path / "graph.png")

    def test_is_text_without_graphviz(self, network, tmp_path, monkeypatch):
        monkeypatch.setenv("PATH", str(tmp_path))
        picture = draw(network["loss"], names={'<b>"bold"</b>': network["x"]})
        shown = picture._repr_mimebundle_()
        assert set(shown) == {"text/html", "text/plain"}
        assert shown["text/html"].startswith("<pre>6 operations") and "&lt;b&gt;" in shown["text/html"]
        with pytest.raises(MissingExtra, match="apt install graphviz"):
            picture.save(tmp_path / "graph.svg")
        assert picture.save(tmp_path / "graph.txt").read_text() == picture.words + "\n"
        assert picture.save(tmp_path / "graph.dot").read_text().startswith("digraph")
