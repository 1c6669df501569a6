"""A timeline shows each event in the row of its rank and thread, where it was in time."""

import time

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="drawing needs the extra viz")

import minidl
from minidl import functions as F
from minidl import nn
from minidl.errors import ArgumentError
from minidl.parallel import EmulatedWire, local
from minidl.pictures import timeline

EVENTS = [(0, "computation", "forward", "phase", 10.0, 10.1), (0, "computation", "gradient exchange", "phase", 10.1, 10.2),
          (0, "sends", "to rank 1", "transfer", 10.1, 10.15), (1, "computation", "forward", "phase", 10.0, 10.2),
          (1, "exchange 2", "sum of chunk 3", "exchange", 10.05, 10.1), (1, "computation", "Affine", "operation", 10.0, 10.1)]


def drawn(picture):
    """Of each kind the boxes: (start, end, row), on the scales of the picture."""
    found = {}
    for patch in picture.figure.axes[0].patches:
        corners = patch.get_path().vertices.reshape(-1, 5, 2)
        found.setdefault(patch.get_label(), []).extend((c[0, 0], c[1, 0], c[0, 1] + 0.4) for c in corners.round(6))
    return found


class TestTimeline:
    def test_shows_what_was_when_in_milliseconds_from_the_first(self):
        found = drawn(timeline(EVENTS))
        assert set(found) == {"forward", "waits", "sends", "exchange"}
        assert found["sends"] == [pytest.approx((100, 150, 1))]
        assert sorted(found["forward"]) == [pytest.approx((0, 100, 0)), pytest.approx((0, 200, 2.5))]

    def test_has_a_row_for_each_thread_and_names_the_rank_at_the_first(self):
        labels = [tick.get_text() for tick in timeline(EVENTS).figure.axes[0].get_yticklabels()]
        assert labels == ["rank 0  computes", "sends", "rank 1  computes", "exchange 2"]

    def test_shows_a_part_of_it(self):
        found = drawn(timeline(EVENTS, since=10.12, until=10.14))
        assert found["sends"] == [pytest.approx((0, 20, 1))] and "exchange" not in found

    def test_shows_other_categories_if_asked(self):
        assert list(drawn(timeline(EVENTS, categories=["operation"]))) == ["Affine"]

    def test_says_what_is_to_be_seen(self):
        assert timeline(EVENTS, title="Two ranks").words.startswith(
            "Two ranks, from 0 to 0.2 s. rank 0, computation: forward 50 %, waits 50 %. rank 0, sends: sends 25 %.")

    def test_says_that_there_is_nothing(self):
        with pytest.raises(ArgumentError, match="no events"):
            timeline(EVENTS, since=20)

    def test_names_nothing_that_can_hardly_be_seen(self):
        many = [(0, "computation", "forward", "phase", k, k + 1.0) for k in range(30)] + [(0, "computation", "data", "phase", 5.0, 5.01)]
        (legend,) = timeline(many).figure.legends
        assert [text.get_text() for text in legend.get_texts()] == ["forward"]

    def test_shows_profiles_of_ranks_and_their_wires_on_one_clock(self):
        wire = EmulatedWire(rate=1e5)

        def work(communicator):
            began, slow, x = time.perf_counter(), wire.of(communicator), np.zeros(1000, np.uint8)
            with minidl.profile() as p:
                F.affine(minidl.Tensor(np.ones((2, 3)), requires_grad=True), nn.Affine(3, 2, dtype="float64").w).sum().backward()
                slow.wait([slow.isend(x, to=1) if slow.rank == 0 else slow.irecv(x, source=0)])
            p.gather(communicator)
            return began, p

        began, p = local.run(work, 2)[0]
        found = drawn(timeline([*p.events(), *wire.events(began)], categories=("phase", "transfer")))
        assert {"backward", "sends", "receives"} <= set(found)
        ((start, end, _),) = found["sends"]
        assert end - start == pytest.approx(10, abs=0.01) and start >= min(box[0] for box in found["backward"])
