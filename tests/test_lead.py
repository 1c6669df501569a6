"""One process speaks for many: what the first finds counts for all, and another one goes on where it died."""

import io
import shlex
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from minidl import lead as module
from minidl import nn, optim
from minidl.data import Loader
from minidl.display import Display
from minidl.errors import RankLost
from minidl.lead import Lead, Ranks
from minidl.loop import fit
from minidl.parallel import Alone, Team, local
from minidl.parallel.ending import VARIABLE
from minidl.record import Record
from minidl.report import Journal

X, Y = np.random.default_rng(0).standard_normal((12, 4)).astype(np.float32), np.arange(12) % 2
CONFIG = {"options": {}, "classes": [], "input_shape": [], "normalise": None, "commands": []}


def options(**changes):
    return SimpleNamespace(**{"elastic": False, "spares": 0, "log_dir": None} | changes)


def ending(communicator):
    """What of an Ending counts here."""
    return SimpleNamespace(communicator=communicator)


class TestAgreed:
    def test_one_process_finds_it_itself(self):
        assert Ranks().agreed(options(), lambda: b"found") == b"found"

    @pytest.mark.parametrize("elastic", [False, True])
    def test_the_first_of_many_finds_it_for_all(self, elastic):
        def rank(communicator):
            return Ranks(communicator).agreed(options(elastic=elastic), lambda: found.append(communicator.rank) or b"runs/digits-mlp-2")

        found = []
        assert local.run(rank, 3, patience=20) == [b"runs/digits-mlp-2"] * 3 and found == [0]

    def test_if_the_first_dies_the_next_one_finds_it_and_there_is_a_spare_less(self):
        def rank(communicator):
            def find():
                if communicator.rank == 0:
                    communicator.die()
                return b"found by the second"

            asked, here = options(elastic=True, spares=1), Ranks(communicator, ending(communicator))
            found = here.agreed(asked, find)
            return found, asked.spares, here.world.size, here.first, here.ending.communicator is here.world

        results = local.run(rank, 3, patience=20)
        assert results == [None, (b"found by the second", 0, 2, True, True), (b"found by the second", 0, 2, False, True)]

    def test_a_death_that_may_not_be_is_told(self):
        def rank(communicator):
            try:
                Ranks(communicator).agreed(options(), communicator.die if communicator.rank == 0 else bytes)
            except RankLost:
                return "lost"

        assert local.run(rank, 2, patience=20) == [None, "lost"]


class TestHighest:
    def test_of_one_process_is_its_own(self):
        assert Ranks().highest(15) == 15

    def test_of_many_is_the_same_for_all(self):
        found = local.run(lambda communicator: Ranks(communicator, ending(communicator)).highest((0, 15, 2)[communicator.rank]), 3)
        assert found == [15, 15, 15]

    def test_of_those_that_live_is_at_least_its_own(self):
        def rank(communicator):
            if communicator.rank == 1:
                communicator.die()
            return Ranks(communicator, ending(communicator)).highest(2)

        assert local.run(rank, 2, patience=20) == [2, None]


class TestCommand:
    """What to type to go on with as many processes."""

    def typed(self, monkeypatch, launched, size, **changes):
        monkeypatch.setattr(module, "command", lambda name, *words: shlex.join(["python", "-m", f"minidl.{name}", *map(str, words)]))
        if launched:
            monkeypatch.setenv(VARIABLE, "a-job")
        else:
            monkeypatch.delenv(VARIABLE, raising=False)
        return Ranks(size and SimpleNamespace(size=size)).command(options(**changes), "--resume", Path("a run"))

    @pytest.mark.parametrize("launched, size, changes, words", [
        (False, None, {}, "python -m minidl.train --resume 'a run'"),
        (False, 3, {}, "mpiexec -n 3 python -m minidl.train --resume 'a run'"),
        (False, 3, {"elastic": True}, "mpiexec --with-ft ulfm -n 3 python -m minidl.train --resume 'a run' --elastic"),
        (False, 3, {"elastic": True, "spares": 1, "log_dir": Path("logs")},
         "mpiexec --with-ft ulfm -n 3 python -m minidl.train --resume 'a run' --elastic --spares 1 --log-dir logs"),
        (True, 3, {}, "python -m minidl.launch -n 3 -- --resume 'a run'"),
        (True, 3, {"elastic": True}, "python -m minidl.launch -n 3 --elastic -- --resume 'a run'"),
        (True, 3, {"elastic": True, "spares": 1, "log_dir": Path("logs")},
         "python -m minidl.launch -n 2 --spares 1 --log-dir logs -- --resume 'a run'"),
    ])
    def test_starts_as_many(self, monkeypatch, launched, size, changes, words):
        assert self.typed(monkeypatch, launched, size, **changes) == words


def trained(folder, communicator):
    """A rank's run, shown and saved by a Lead: what it shows."""
    model = nn.Sequential(nn.Affine(4, 4, generator=0), nn.Affine(4, 2, generator=1))
    team = Alone() if communicator is None else Team(communicator)
    here = Ranks() if communicator is None else Ranks(communicator, ending(communicator))
    display = Display([("data", "numbers")], Console(file=io.StringIO(), width=200))
    lead = Lead(team, here, lambda: None, Record(folder, CONFIG), display, Journal(folder, CONFIG))
    fit(model, Loader((X, Y), batch_size=4), (X, Y), optim.SGD(model, 0.1), 2, [lead], team=team)
    return display.console.file.getvalue()


class TestLead:
    def test_of_one_process_shows_and_saves(self, tmp_path):
        shown = trained(tmp_path / "run", None)
        assert shown.count("numbers") == 1 and len(list((tmp_path / "run" / "checkpoint").iterdir())) == 2

    def test_of_many_is_the_first_alone(self, tmp_path):
        shown = local.run(lambda communicator: trained(tmp_path / f"{communicator.rank}", communicator), 3, patience=20)
        assert shown[0].count("numbers") == 1 and shown[1:] == ["", ""]
        assert [path.name for path in tmp_path.iterdir()] == ["0"]

    def test_whoever_trained_last_ends_together(self):
        def rank(communicator):
            team, here = Team(communicator), Ranks(communicator, ending(communicator))
            team.communicator = smaller = communicator.duplicate()
            Lead(team, here, None, SimpleNamespace(end=len), None, None).end([])
            return here.ending.communicator is smaller

        assert local.run(rank, 2) == [True, True]

    def test_that_takes_over_speaks_claims_saves_and_goes_on_below(self, tmp_path, monkeypatch):
        done = []
        console = Console(file=io.StringIO(), width=200)
        monkeypatch.setattr("minidl.display.make_console", lambda: console)
        team = SimpleNamespace(leads=False, state=dict, news=[])
        here = Ranks(SimpleNamespace(rank=1, size=2), None, lambda: done.append("speaks"))
        record = SimpleNamespace(start=lambda run: done.append("saves"), step=lambda run, loss: None)
        display = Display([("data", "numbers")], Console(file=io.StringIO()))
        journal = SimpleNamespace(start=lambda run: done.append("notes"), step=lambda run, loss: None)
        lead = Lead(team, here, lambda: done.append("claims"), record, display, journal)
        run = SimpleNamespace(step=0, epoch=0, epochs=2, finished=False, history=[], loader=[0] * 3)
        lead.start(run)
        assert done == ["saves", "notes"] and console.file.getvalue() == display.console.file.getvalue() == ""
        team.leads, run.step = True, 2
        team.news.append("process 0 has died")
        lead.start(run)
        lead.step(run, 0.5)
        lead.step(run, 0.5)
        assert done == ["saves", "notes", "speaks", "claims", "saves", "notes"] and display.began_at == 0
        assert console.file.getvalue().split("\n") == ["  process 0 has died", ""]
