"""The training command under mpiexec: the bits of one process that accumulates, one voice, one end, a run that any number goes on with.

Starting mpiexec takes longest, so many commands are typed in one start of it.
"""

import json
import os
import re
import shutil
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import runs
from ranks import NO_MPI, run_command, run_mpi

from minidl.checkpoint import Checkpoints
from minidl.record import claimed
from minidl.train import app

pytestmark = [pytest.mark.process, pytest.mark.skipif(bool(NO_MPI), reason=NO_MPI)]

LONG = 300                  # seconds: only a hang takes longer

TYPE = """
import json, sys
from minidl.train import app

for words in json.load(open(sys.argv[1])):
    sys.argv[1:] = words
    try:
        app(words)
    except SystemExit as end:
        if end.code:
            raise
"""

NETS = '''
import os, resource, signal
from minidl import functions as F, nn
from nets import all_states

RANK = int(os.environ.get("OMPI_COMM_WORLD_RANK", 0))


class Residual(nn.Module):
    """Convolutions with batch normalization, and a way around."""

    def __init__(self, input_shape, classes, generator):
        self.stem = nn.Conv2d(1, 4, 3, stride=2, padding=1, bias=False, generator=generator)
        self.norm = nn.BatchNorm(4, activation="relu")
        self.block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, bias=False, generator=generator), nn.BatchNorm(4, momentum=None))
        self.out = nn.Affine(64, classes, generator=generator)

    def forward(self, x):
        y = self.norm(self.stem(x))
        return self.out(F.flatten(F.relu(self.block(y) + y)))


class Faulty(nn.Module):
    """Does what WHAT says in training pass AT, on rank WHO."""

    def __init__(self, input_shape, classes, generator):
        self.inner, self.passes = all_states(input_shape, classes, generator), 0

    def forward(self, x):
        y = self.inner(x)
        self.passes += self.training
        if self.training and self.passes == int(os.environ["AT"]) and RANK == int(os.environ["WHO"]):
            what = os.environ["WHAT"]
            if what == "raise":
                raise KeyError("broken")
            if what == "nan":
                y = y * float("nan")
            if what == "memory":
                raise MemoryError("Unable to allocate 1 TiB")
            if what == "full disk":
                resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
            if what.startswith("SIG"):
                os.kill(os.getpid(), getattr(signal, what))
        return y


def different(input_shape, classes, generator):
    return nn.Sequential(nn.Flatten(), nn.Affine(64, 8 + RANK, generator=generator), nn.Affine(8 + RANK, classes, generator=generator))
'''

# 40 images: the second minibatch of an epoch is of 3, fewer than 4 ranks
SMALL = ("--data", "digits.npz", "--batch-size", 37, "--epochs", 3, *(("--threads", 1) if find_spec("threadpoolctl") else ()))
STATES = ("--model", "nets:all_states", "--batch-size", 32)         # its batch normalization needs two examples a rank
CASES = {
    "lenet": ("--model", "lenet", "--clip", 0.5),
    "adam": (*STATES, "--optimizer", "adam", "--augment", "shift", "--normalise"),
    "kfac": (*STATES, "--optimizer", "kfac", "--factor-interval", 2, "--inverse-interval", 3),
    "residual": ("--model", "more:Residual", "--warm-up", 2, "--checkpoint-every", 1),
}
HOW = [("allreduce", "none", 512), ("master-worker", "forward", 1), ("allreduce", "backward", 2), ("master-worker", "none", 64),
       ("allreduce", "forward", 1), ("master-worker", "backward", 3)]
LOSSY = (*STATES, "--schedule", "constant", "--compress", "topk:0.05", "--chunk-size", 1)


def ways(count):
    """For each case the two ways in which so many ranks exchange; all cases, numbers of ranks and ways meet."""
    options = [("--exchange", exchange, "--overlap", overlap, "--chunk-size", chunk) for exchange, overlap, chunk in HOW]
    return {f"{name} {k}": (name, options[(count + i + 3 * k) % len(options)]) for i, name in enumerate(CASES) for k in (0, 1)}


class Typed:
    """Commands that were typed in a folder, each number of ranks at once when it is first asked for."""

    def __init__(self, folder):
        self.folder, self.ran = folder, {}

    def type(self, count, commands):
        file = self.folder / f"commands-{count}.json"
        file.write_text(json.dumps([[str(word) for word in words] for words in commands]))
        env = {"COLUMNS": "100", "PYTHONPATH": f"{runs.ROOT}{os.pathsep}{self.folder}"}
        if count is None:
            self.ran[count] = run_command([sys.executable, "-c", TYPE, str(file)], cwd=self.folder, env=env, timeout=LONG)
        else:
            self.ran[count] = run_mpi(TYPE, count, file, cwd=self.folder, env=env, timeout=LONG)
        assert (self.ran[count].status, self.ran[count].left) == (0, []), self.ran[count].errors
        return self.ran[count]

    def alone(self):
        """One process, which takes each minibatch in as many parts as there are ranks elsewhere."""
        return self.ran.get(None) or self.type(None, [(*SMALL, *words, "--accumulate", count, "--out", f"one/{count} {name}")
                                                      for count in (2, 3, 4) for name, words in CASES.items()])

    def many(self, count):
        if count in self.ran:
            return self.ran[count]
        commands = [(*SMALL, *CASES[name], *how, "--out", f"many/{count} {way}") for way, (name, how) in ways(count).items()]
        if count == 3:
            commands += [(*SMALL, *LOSSY, "--epochs", epochs, "--out", out) for epochs, out in ((2, "whole"), (1, "parts"), (1, "other"))]
            commands += [("--resume", "parts", "--epochs", 2)]
        if count == 2:
            self.many(3)
            commands += [("--resume", "other", "--epochs", 2, "--exchange", "master-worker"), ("--eval-only", "--resume", "other")]
        return self.type(count, commands)


@pytest.fixture(scope="module")
def typed(tmp_path_factory):
    with pytest.MonkeyPatch.context() as monkeypatch:
        folder = runs.place(tmp_path_factory.mktemp("ranks"), monkeypatch)
        (folder / "more.py").write_text(NETS)
        yield Typed(folder)


def left(folder):
    """All that a run has left in its last checkpoint, by name, but for times and losses in the test; and these losses."""
    found = Checkpoints(folder / "checkpoint").latest()
    content = {name: f"{x.dtype} {x.shape} {x.strides}".encode() + x.tobytes() for name, x in found.arrays.items()}
    run = found.rest["run"]
    losses = [line.pop("test_loss") for line in run["history"]]
    for line in (run, *run["history"]):
        for name in [name for name in line if name.endswith(("second", "seconds", "phases", "hidden", "memory"))]:
            del line[name]
    return content | {name: json.dumps(value) for name, value in found.rest.items()}, losses


def differences(one, other):
    (first, losses), (second, others) = left(one), left(other)
    np.testing.assert_allclose(others, losses, rtol=1e-6)               # the sum over the test data is cut at other places
    return [name for name in sorted(first | second) if first.get(name) != second.get(name)]


def owed_in(folder):
    """What the exchange owes in the last checkpoint of a run."""
    found = Checkpoints(folder / "checkpoint").latest()
    return {name: x for name, x in found.arrays.items() if name.startswith("exchange.")}


class TestBits:
    @pytest.mark.parametrize("count, way", [pytest.param(count, way, id=f"{count} {way}: {' '.join(map(str, how[1::2]))}")
                                            for count in (2, 3, 4) for way, (_, how) in ways(count).items()])
    def test_are_those_of_one_process_that_accumulates(self, typed, count, way):
        typed.alone(), typed.many(count)
        name, _ = ways(count)[way]
        assert differences(typed.folder / f"one/{count} {name}", typed.folder / f"many/{count} {way}") == []

    def test_depend_on_the_number_of_parts(self, typed):
        """Or the test above would show nothing."""
        typed.alone()
        for name in CASES:
            (two, _), (four, _) = (left(typed.folder / f"one/{count} {name}") for count in (2, 4))
            assert [path for path in two if path.startswith("model.") and two[path] != four[path]]

    def test_of_a_run_that_is_interrupted_are_those_of_one_that_is_not_with_what_compression_owes(self, typed):
        typed.many(3)
        assert differences(typed.folder / "whole", typed.folder / "parts") == []
        owed = owed_in(typed.folder / "whole")
        assert owed and {len(x) for x in owed.values()} == {3} and all(x.any() for x in owed.values())


class TestVoice:
    def test_is_the_first_one_s(self, typed):
        for count in (2, 3, 4):
            ran = typed.many(count)
            commands = json.loads((typed.folder / f"commands-{count}.json").read_text())
            assert ran.errors == "" and ran.out.count("  results: ") == sum("--eval-only" not in words for words in commands)
            assert len(re.findall(rf"\n  processes  {count}, (allreduce|master-worker)", ran.out)) == ran.out.count("  results: ")

    def test_of_a_test_says_what_one_process_says(self, typed, capsys):
        out = typed.many(2).out
        said, = re.findall(r"test loss (\S+), accuracy (\S+ %)", out)
        assert "\n  processes  2\n  weights    other/checkpoint" in out
        assert runs.status(app, "--eval-only", "--resume", "other") == 0
        assert re.findall(r"test loss (\S+), accuracy (\S+ %)", capsys.readouterr().out) == [said]


def test_any_number_goes_on_with_a_run(typed, capsys):
    typed.many(2)
    config = json.loads((typed.folder / "other" / "config.json").read_text())
    assert [words.split()[:3] for words in config["commands"]] == [["mpiexec", "-n", "3"], ["mpiexec", "-n", "2"]]
    assert (config["options"]["exchange"], config["options"]["compress"]) == ("master-worker", "topk:0.05")
    assert {len(x) for x in owed_in(typed.folder / "other").values()} == {2}
    shutil.copytree("other", "of-one")
    assert runs.status(app, "--resume", "of-one", "--epochs", 3) == 0
    assert "what compression had not sent yet is dropped" in capsys.readouterr().out
    assert [line["epoch"] for line in runs.metrics(typed.folder / "of-one")] == [1, 2, 3] and owed_in(typed.folder / "of-one") == {}


class TestEnd:
    """Of all ranks, when something happens to one."""

    @pytest.fixture
    def train(self, typed, tmp_path):
        def train(what, *words, model="more:Faulty", count=2, who=1, at=7, ulfm=False):
            out = tmp_path / "out"
            words = (*SMALL, "--batch-size", 8, "--model", model, "--out", out, *words)
            env = {"WHAT": what, "WHO": str(who), "AT": str(at), "PYTHONPATH": f"{runs.ROOT}{os.pathsep}{typed.folder}"}
            ran = run_mpi(["-m", "minidl.train", *map(str, words)], count, ulfm=ulfm, env=env, timeout=LONG)
            assert ran.left == []
            return ran, out

        return train

    @pytest.mark.parametrize("what, says", [
        ("raise", "KeyError: 'broken'"), ("nan", "the loss is nan at step 7 (epoch 2, minibatch 2)"),
        ("memory", "out of memory: Unable to allocate 1 TiB, cpu has no such piece\n"),
    ])
    def test_says_once_what_was_wrong_and_how_to_go_on(self, train, what, says):
        ran, out = train(what)
        assert ran.status == 1 and ran.errors.count(says) == 1 and "results" not in ran.out
        assert ran.errors.count("Traceback") == (what == "raise") and ran.errors.count("The last good checkpoint is of step 5.") == 1
        assert ran.errors.count("mpiexec -n 2 ") == 1
        assert f"--resume {out}" + (" --lr 0.005" if what == "nan" else "") + "\n" in ran.errors
        assert list(Checkpoints(out / "checkpoint").files()) == [0, 5]

    def test_comes_when_the_first_can_save_no_more(self, train):
        ran, out = train("full disk", who=0)
        assert ran.status == 1 and ran.errors.count("could not be written") == 1 and ran.errors.count("--resume") == 1
        assert list(Checkpoints(out / "checkpoint").files()) == [0, 5] and not list(out.rglob("*.tmp"))

    @pytest.mark.parametrize("name, status, who", [("SIGINT", 130, 0), ("SIGTERM", 143, 1)])
    def test_is_that_of_all_when_one_is_asked_to_stop(self, train, name, status, who):
        ran, out = train(name, who=who)
        assert ran.status == status and "Traceback" not in ran.errors
        words = r"  Stopped after step [78], in epoch 2. All is saved; to go on:\n  mpiexec -n 2 \S+ -m minidl.train --resume "
        assert len(re.findall(words, ran.out)) == 1
        assert list(Checkpoints(out / "checkpoint").files()) in ([5, 7], [5, 8])

    def test_comes_before_the_beginning_if_the_ranks_differ(self, train):
        ran, out = train("", model="more:different")
        assert ran.status == 1 and ran.errors.count("rank 1 trains another model than rank 0") == 1 and not out.exists()

    def test_comes_before_the_beginning_if_another_run_is_in_the_folder(self, train, tmp_path):
        (tmp_path / "out").mkdir()
        with claimed(tmp_path / "out"):
            ran, out = train("")
        assert ran.status == 2 and ran.errors.count("another process is training in this folder") == 1 and list(out.iterdir()) == []

    def test_does_not_come_if_a_spare_stands_in_for_the_first(self, train, monkeypatch):
        ran, out = train("SIGKILL", "--batch-size", 16, "--elastic", "--spares", 1, count=3, who=0, at=4, ulfm=True)
        assert ran.out.count("takes its place") == ran.out.count("  results: ") == 1 and ran.out.count("  epoch  ") == 1
        undisturbed = (*SMALL, "--batch-size", 16, "--model", "more:Faulty", "--accumulate", 2, "--out", out.with_name("one"))
        monkeypatch.setenv("AT", "-1")
        assert runs.status(app, *undisturbed) == 0
        assert differences(out.with_name("one"), out) == []
