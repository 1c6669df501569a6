"""The table says what costs most in its first line, fits its width, and shows the numbers that it is given."""

from dataclasses import replace

import pytest

import minidl
from minidl.profiling import Profile, rows
from minidl.profiling.events import Event, Kept
from minidl.profiling.measured import Found


def event(name, start, end, category="operation", layer="", phase="forward", **more):
    return Event(0, "computation", name, category, start, end, layer, phase, **more)


CONV, LONG = "features.0 (Conv2d)", "encoder.blocks.11.attention.projection (Affine)"
EVENTS = [
    event("forward", 0.0, 0.3, "phase", phase=""),
    event("conv2d", 0.0, 0.2, layer=CONV, flops=10**9, bytes=4 * 10**8, made=100),
    event("affine", 0.2, 0.25, layer=LONG, flops=5 * 10**8, bytes=10**8),
    event("backward", 0.3, 0.8, "phase", phase=""),
    event("conv2d grad_w", 0.3, 0.5, "rule", CONV, "backward", flops=10**9),
    event("conv2d grad_x", 0.5, 0.7, "rule", CONV, "backward", flops=10**9),
    event("softmax_cross_entropy_with_a_long_name grad_x", 0.7, 0.75, "rule", "", "backward"),
]


def profile(events=EVENTS, seconds=1.0, recorded=1.0, phases=None, hidden=None, **facts):
    p = Profile()
    phases = {"forward": 0.3, "backward": 0.5, "update": 0.15, "other": 0.05} if phases is None else phases
    p._found = Found(0, seconds, recorded, phases, hidden or {}, {"forward": (2**30, 2**20)},
                     [replace(each) for each in events], [Kept(CONV, "conv2d", 640)])
    p.facts |= facts
    return p


class TestBottleneck:
    def test_a_layer_in_one_direction(self):
        found = profile()
        assert found.bottleneck() == "Bottleneck: backward of features.0 (Conv2d), 40 % of the time, at 5.0 GFLOP/s"
        assert found.table().splitlines()[0] == found.bottleneck()

    @pytest.mark.parametrize("name, words, hint", [
        ("data", "waiting for data, 60 % of the time", "--augment none"),
        ("gradient exchange", "waiting for the exchange of gradients", "larger minibatches"),
        ("idle", "waiting for slower processes", "evenly"),
        ("step", "replayed steps", "without --capture"),
        ("curvature", "curvature (factors, inverses, preconditioning)", "--inverse-interval"),
        ("curvature exchange", "the exchange of curvature", "--factor-interval"),
        ("update", "the update of the weights", "larger minibatches"),
        ("saving", "saving, and other callbacks", "--checkpoint-every"),
        ("my own", "my own", ""),
    ])
    def test_a_phase(self, name, words, hint):
        found = profile(phases={name: 0.6, "forward": 0.4}).bottleneck_found()
        assert str(found).startswith(f"Bottleneck: {words}") and hint in found.hint and found.share == 0.6

    def test_a_phase_that_costs_more_than_any_layer_but_not_than_all(self):
        found = profile(phases={"data": 0.42, "forward": 0.3, "backward": 0.28})
        assert found.bottleneck() == "Bottleneck: waiting for data, 42 % of the time; forward and backward together 58 %"

    def test_hidden_communication_is_none(self):
        found = profile(phases={"forward": 0.6, "backward": 0.4}, hidden={"gradient exchange": 0.9})
        assert "backward of features.0" in found.bottleneck()

    def test_python_between_operations(self):
        found = profile(events=EVENTS[:2], phases={"forward": 1.0}, seconds=1.0)
        found._found.events[0].end = 1.0
        assert found.bottleneck() == "Bottleneck: forward pass, in Python between operations, 80 % of the time"

    def test_of_an_operation_in_no_layer(self):
        found = profile([event("tanh grad_x", 0.0, 0.4, "rule", "", "backward"), event("tanh before", 0.4, 0.8, "rule", "", "backward")])
        assert found.bottleneck() == "Bottleneck: backward of tanh, 80 % of the time"

    def test_with_no_operations_known(self):
        assert profile(events=[], recorded=0.0).bottleneck() == "Bottleneck: backward pass, 50 % of the time"

    @pytest.mark.parametrize("facts, hint", [
        ({"compiled": False, "threads": 1, "cores": 8}, "minidl[fast]"), ({"compiled": True, "threads": 1, "cores": 8}, "--threads 8"),
        ({"compiled": True, "threads": 8, "cores": 8}, ""),
    ])
    def test_what_can_be_tried_with_a_layer(self, facts, hint):
        found = profile(**facts).bottleneck_found().hint
        assert hint in found and bool(hint) == bool(found)

    @pytest.mark.parametrize("facts, hint", [
        ({"overlap": "none", "compress": "none"},
         "--overlap backward hides it; --compress fp16 makes it less, and so do larger minibatches"),
        ({"overlap": "backward", "compress": "fp16"}, "--overlap forward hides more; it is less with larger minibatches"),
        ({"overlap": "forward", "compress": "none"}, "--compress fp16 makes it less, and so do larger minibatches"),
    ])
    def test_what_can_be_tried_with_the_exchange(self, facts, hint):
        assert profile(phases={"gradient exchange": 1.0}, **facts).bottleneck_found().hint == hint


class TestFirstCalls:
    def test_one_that_compiles_is_told_apart(self):
        events = [event("conv2d", 0.0, 0.5, layer=CONV), *(event("conv2d", 0.5 + 0.01 * k, 0.501 + 0.01 * k, layer=CONV) for k in range(9))]
        row, = rows.operations(events, [], 1.0)
        assert (row.calls, row.first) == (9, 0.5) and row.seconds == pytest.approx(0.009)
        found = profile(events)
        assert "first calls, which compile or load" in found.table()
        assert found.bottleneck() == "Bottleneck: first calls, which compile or load something, 50 % of the time"
        assert "let a first pass go before" in found.bottleneck_found().hint

    def test_one_that_is_like_the_others_is_not(self):
        row, = rows.operations([event("conv2d", k, k + 0.5) for k in range(3)], [], 1.0)
        assert (row.calls, row.first) == (3, 0.0)


class TestTable:
    def test_the_numbers(self):
        lines = profile(hidden={"gradient exchange": 0.125}).table().splitlines()
        assert "  backward                         50.0 %      0.500" in lines
        assert "  forward                          30.0 %      0.300       1.00 GiB" in lines
        assert "  gradient exchange, hidden        beside      0.125" in lines
        assert "  together                        100.0 %      1.000" in lines
        row = next(line for line in lines if "conv2d  " in line)
        assert row.split()[-5:] == ["%", "1", "200.000", "5.0", "2.0"] and "20.0 %" in row
        place = next(k for k, line in enumerate(lines) if "Python between" in line)
        assert lines[place].split() == ["Python", "between", "operations", "10.0", "%"]
        assert lines[place + 1].split() == ["phases", "without", "operations", "20.0", "%"]
        layer = next(line for line in lines[place:] if CONV in line)
        assert layer.split()[2:] == ["60.0", "%", "0.200", "0.400", "640", "B", "100", "B"]

    @pytest.mark.parametrize("width", [72, 80, 120])
    def test_fits(self, width):
        found = profile(phases={"gradient exchange": 1.0}, overlap="none", compress="none")
        assert max(map(len, found.table(width).splitlines())) <= width

    def test_names_that_are_too_long_keep_what_tells_them_apart(self):
        text = profile().table(80)
        assert "projection (Affine)" in text and "softm… grad_x" in text

    def test_what_is_left_over_is_one_row(self):
        lines = profile().table(most=2).splitlines()
        assert ["and", "3", "more", "30.0", "%"] in [line.split() for line in lines]

    def test_of_many_layers_the_rest_is_one_row(self):
        many = [event("relu", 0.01 * k, 0.01 * k + 0.005, layer=f"{k} (ReLU)", made=2**20) for k in range(14)]
        assert profile(many).table().splitlines()[-1].split() == ["and", "4", "more", "2.0", "%", "0.020", "0.000", "4.0", "MiB"]

    def test_parts_of_a_phase_stand_below_it(self):
        lines = profile(phases={"curvature": 0.8, "curvature/inverses": 0.6, "other": 0.2}).table().splitlines()
        place = next(k for k, line in enumerate(lines) if line.startswith("  curvature"))
        assert lines[place + 1].split() == ["inverses", "60.0", "%", "0.600"]

    def test_no_codes_for_colours(self):
        assert "\x1b" not in profile().table() and print(profile()) is None

    @pytest.mark.parametrize("x, words", [(0, ""), (0.034, "0.03"), (3.21, "3.2"), (321.4, "321"), (51234.0, "51234")])
    def test_numbers_in_few_digits(self, x, words):
        assert rows.few(x) == words


def test_a_layer_has_what_its_operations_have():
    layer = profile().layers[0]
    assert (layer.path, layer.kept, layer.made) == (CONV, 640, 100)
    assert (layer.forward, layer.backward, layer.seconds) == pytest.approx((0.2, 0.4, 0.6))


def test_the_profile_of_minidl_is_this_one():
    assert isinstance(minidl.profile(), Profile)
