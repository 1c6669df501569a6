"""What is wrong with options is said before anything is written; what they mean stays with the run."""

import json
import re
import shutil
from types import SimpleNamespace

import pytest
import runs

from minidl import backend, data, models, parallel
from minidl.errors import ConfigError
from minidl.launch import checked
from minidl.optim.kfac.statistics import FISHERS
from minidl.options import AUGMENTATIONS, EXCHANGE, KFAC, LEARNING_RATES, SCHEDULES, check_capture, flag, settle, settle_device, unused
from minidl.parallel import Team, local, mpi
from minidl.parallel.elastic import Elastic
from minidl.parallel.team import OVERLAPS
from minidl.task import RARELY, make_task, make_team
from minidl.train import app

place = pytest.fixture(runs.place)

DIGITS = ("--data", "digits.npz")


@pytest.mark.parametrize("words, says", [
    (["--model", "lenett"], "--model lenett is not known (nearest: 'lenet')"),
    (["--optimizer", "sdg"], "--optimizer sdg is not known (nearest: 'sgd')"),
    (["--schedule", "cosin"], "--schedule cosin is not known (nearest: 'cosine')"),
    (["--augment", "flip"], "--augment flip is not known (nearest: 'crop-flip')"),
    (["--lr", "0"], "--lr is 0.0, and must be a finite number above 0"),
    (["--lr", "-0.1"], "--lr is -0.1, and must be a finite number above 0"),
    (["--lr", "nan"], "--lr is nan"),
    (["--lr", "inf"], "--lr is inf"),
    (["--clip", "0"], "--clip is 0.0"),
    (["--epochs", "-1"], "--epochs is -1, and must be at least 0"),
    (["--batch-size", "0"], "--batch-size is 0, and must be at least 1"),
    (["--accumulate", "0"], "--accumulate is 0, and must be at least 1"),
    (["--momentum", "-0.5"], "--momentum is -0.5"),
    (["--momentum", "nan"], "--momentum is nan"),
    (["--weight-decay", "-1"], "--weight-decay is -1.0"),
    (["--label-smoothing", "1.5"], "--label-smoothing is 1.5, and must be at most 1"),
    (["--threads", "0"], "--threads is 0, and must be at least 1"),
    (["--seed", "-1"], "--seed is -1"),
    (["--keep", "0"], "--keep is 0"),
    (["--checkpoint-every", "0"], "--checkpoint-every is 0"),
    (["--warm-up", "20", "--epochs", "10"], "--warm-up is 20 steps, and the whole run has 20"),
    (["--optimizer", "kfac", "--damping", "-1"], "--damping is -1.0, and must be at least 0"),
    (["--optimizer", "kfac", "--damping", "nan"], "--damping is nan"),
    (["--optimizer", "kfac", "--kl-clip", "0"], "--kl-clip is 0.0, and must be a finite number above 0"),
    (["--optimizer", "kfac", "--inverse-interval", "0"], "--inverse-interval is 0, and must be at least 1"),
    (["--optimizer", "kfac", "--factor-interval", "0"], "--factor-interval is 0, and must be at least 1"),
    (["--optimizer", "kfac", "--factor-interval", "2.5"], "--factor-interval 2.5 is not known"),
    (["--optimizer", "kfac", "--factor-interval", "adaptiv"], "--factor-interval adaptiv is not known (nearest: 'adaptive')"),
    (["--optimizer", "kfac", "--fisher", "emprical"], "--fisher emprical is not known (nearest: 'empirical')"),
    (["--optimizer", "kfak"], "--optimizer kfak is not known (nearest: 'kfac')"),
    (["--capture"], "--capture: graphs are recorded on a GPU: give --device cuda:0"),
    (["--eval-only"], "--eval-only: there is nothing to test"),
    (["--data", "vectors.npz", "--model", "mlp", "--augment", "shift"], "--augment shift: the data are vectors, not images"),
    # what would not be used
    (["--optimizer", "adam", "--momentum", "0.9"], "--momentum would not be used: adam has none"),
    (["--damping", "0.1"], "--damping would not be used: sgd is not kfac"),
    (["--optimizer", "adam", "--kl-clip", "0.1"], "--kl-clip would not be used: adam is not kfac"),
    (["--optimizer", "adamw", "--fisher", "sampled"], "--fisher would not be used"),
    (["--factor-interval", "adaptive"], "--factor-interval would not be used"),
    (["--inverse-interval", "5"], "--inverse-interval would not be used"),
    (["--eval-only", "--weights", "w.safetensors", "--optimizer", "kfac", "--damping", "1"], "would not be used: with --eval-only"),
    (["--data", "digits", "--data-dir", "here"], "--data-dir would not be used: --data digits is not downloaded"),
    (["--data-dir", "here"], "--data-dir would not be used: --data digits.npz is not downloaded"),
    (["--model", "autoencoder", "--label-smoothing", "0.1"], "--label-smoothing would not be used: autoencoder learns no labels"),
    (["--model", "autoencoder", "--normalise"], "--normalise would not be used: autoencoder learns images in [0, 1]"),
    (["--eval-only", "--weights", "w.safetensors", "--lr", "1"], "--lr would not be used: with --eval-only nothing is trained"),
    (["--eval-only", "--weights", "w.safetensors", "--out", "o"], "--out would not be used"),
    # of many processes
    (["--exchange", "alreduce"], "--exchange alreduce is not known (nearest: 'allreduce')"),
    (["--overlap", "forwards"], "--overlap forwards is not known (nearest: 'forward')"),
    (["--compress", "int9"], "--compress int9 is not known (nearest: 'int8')"),
    (["--compress", "topk:x"], "--compress topk:x: the fraction must be a number above 0"),
    (["--chunk-size", "0"], "--chunk-size is 0, and must be at least 1"),
    (["--spares", "-1"], "--spares is -1, and must be at least 0"),
    *([words, f"{words[0]} would not be used: this is one process; start several: python -m minidl.launch"] for words in (
        ["--exchange", "allreduce"], ["--exchange", "master-worker", "--no-master-computes"], ["--overlap", "none"],
        ["--overlap", "forward"], ["--compress", "int8"], ["--compress", "topk:0.01", "--no-feedback"], ["--chunk-size", "64"],
        ["--sync-batch-norm"], ["--elastic"], ["--spares", "1"], ["--log-dir", "logs"])),
    (["--no-feedback"], "--no-feedback would not be used: nothing is compressed"),
    (["--no-master-computes"], "--no-master-computes would not be used: allreduce has no master"),
    # models of one's own
    (["--model", "nets:"], "nets has no function ''"),
    (["--model", "nets:all_state"], "nets has no function 'all_state' (nearest: 'all_states')"),
    (["--model", ":all_states"], "'' is not the name of a module"),
    (["--model", ".nets:all_states"], "'.nets' is not the name of a module"),
    (["--model", "nuts:all_states"], "No module named 'nuts'"),
    (["--model", "nets.inner:all_states"], "'nets' is not a package"),
    (["--model", "nets.py:all_states"], "'nets' is not a package"),
    (["--model", "nets:model"], "model is Flatten(), and must be a function that makes a model"),
    (["--model", "nets:needs_more"], "the function asks for width"),
    (["--model", "nets:rubbish"], "the function gave 'a model', and must give a minidl.nn.Module"),
])
def test_wrong_options_are_told_before_anything_is_written(place, capsys, words, says):
    there = sorted(place.iterdir())
    assert runs.status(app, *DIGITS, *words) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("Error: --") and says in captured.err
    assert sorted(path for path in place.iterdir() if path.name != "__pycache__") == there


@pytest.mark.parametrize("words, says", [
    (["--data", "digit"], "no data set is called 'digit' (nearest: 'digits')"),
    (["--data", "none.npz"], "there is no none.npz"),
    (["--data", "vectors.npz"], "lenet: input_shape is (64,), and must be (C, H, W)"),
    (["--device", "gpu"], "device 'gpu' is not known"),
    (["--model", "minidl.nn:Flatten"], "SGD: the model has no parameters"),
])
def test_so_is_what_cannot_be_done(place, capsys, words, says):
    assert runs.status(app, *DIGITS, *words) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("Error: ") and says in captured.err
    assert not (place / "runs").exists()


def test_a_gpu_that_is_not_there_is_told(place, capsys):
    try:
        import cupy  # noqa: F401
    except ImportError:
        assert runs.status(app, "--device", "cuda:0") == 1
        assert "cuda: CuPy cannot be imported" in capsys.readouterr().err


def test_what_a_config_file_says_in_vain_stands_with_the_plan(place, capsys):
    (place / "c.toml").write_text('momentum = 0.9\ndata-dir = "here"\nlabel-smoothing = 0.2\nnormalise = true\n')
    assert runs.status(app, *DIGITS, "--config", "c.toml", "--optimizer", "adam", "--model", "autoencoder", "--epochs", 1) == 0
    notes = re.findall(r"not used +(.*)", capsys.readouterr().out)
    assert [note.split(":")[0] for note in notes] == ["label_smoothing", "normalise", "data_dir", "momentum"]


def test_what_is_zero_or_false_is_never_said_in_vain():
    options = SimpleNamespace(momentum=0.0, normalise=False, clip=None, typed={"momentum", "normalise"}, filed={"clip"})
    assert unused(options, ["momentum", "normalise", "clip"], "for a test") == []


class TestManyProcesses:
    """Their options, where a launcher has started some."""

    @pytest.fixture
    def settled(self, place):
        def settled(*words, processes=3):
            options = checked([*DIGITS, *words])
            return options, settle(options, processes)

        return settled

    def test_all_have_a_default(self, settled):
        options, notes = settled()
        assert {name: getattr(options, name) for name in EXCHANGE} == EXCHANGE and notes == []

    def test_are_what_the_team_is_made_of(self, settled):
        options, _ = settled("--exchange", "master-worker", "--overlap", "forward", "--compress", "int8", "--no-feedback",
                             "--chunk-size", 3, "--no-master-computes", "--sync-batch-norm")
        team = local.run(lambda communicator: make_team(options, communicator), 3)[1]
        assert (team.rank, team.ranks, type(team)) == (1, 3, Team)
        assert (team.strategy, team.overlap, team.compress, team.feedback) == ("master-worker", "forward", "int8", False)
        assert (team.chunk, team.master_computes, team.sync_batch_norm) == (3072, False, True)

    def test_make_a_team_that_outlives_its_ranks(self, settled, monkeypatch):
        monkeypatch.setenv("OMPI_MCA_mpi_ft_enable", "1")
        options, _ = settled("--elastic", "--spares", 1)
        teams = local.run(lambda communicator: make_team(options, communicator), 3)
        assert {type(team) for team in teams} == {Elastic} and [team.stands_by for team in teams] == [False, False, True]

    @pytest.mark.parametrize("words, processes, says", [
        (["--spares", "1"], 3, "--spares would not be used: they are for --elastic"),
        (["--elastic", "--overlap", "forward"], 3, "--elastic could not take back"),
        (["--elastic", "--spares", "3"], 3, "--spares 3: of 3 processes at least one must train"),
        (["--elastic", "--spares", "1"], 1, "--spares 1: of 1 process at least one must train"),
        (["--no-feedback"], 3, "--no-feedback would not be used: nothing is compressed"),
        (["--no-master-computes"], 3, "--no-master-computes would not be used: allreduce has no master"),
        (["--exchange", "master-worker", "--no-master-computes"], 1, "there is nobody else to train"),
        (["--elastic"], 3, "--elastic: this mpiexec ends all processes when one dies"),
        (["--eval-only", "--weights", "w", "--overlap", "none"], 3, "--overlap would not be used: with --eval-only"),
        (["--eval-only", "--weights", "w", "--elastic", "--spares", "1"], 3, "would not be used: with --eval-only"),
    ])
    def test_that_make_no_sense_are_told(self, settled, monkeypatch, words, processes, says):
        monkeypatch.setenv("OMPI_MCA_mpi_ft_enable", "" if words == ["--elastic"] else "1")
        with pytest.raises(ConfigError, match=re.escape(says)):
            settled(*words, processes=processes)

    def test_a_spare_cannot_be_a_master_s_only_worker(self, settled, monkeypatch):
        monkeypatch.setenv("OMPI_MCA_mpi_ft_enable", "1")
        words = ("--exchange", "master-worker", "--no-master-computes", "--elastic", "--spares", 1)
        with pytest.raises(ConfigError, match="there is nobody else to train"):
            settled(*words, processes=2)
        settled(*words, processes=3)

    def test_of_a_run_that_is_resumed_make_way_for_those_that_are_given(self, settled):
        for words in ([], ["--exchange", "allreduce", "--compress", "none"]):
            options = checked([*DIGITS, *words])
            options.feedback = options.master_computes = False              # as the run had them
            assert settle(options, 3) == [] and options.feedback and options.master_computes

    def test_of_a_config_file_that_one_process_does_not_use_stand_with_the_plan(self, place, capsys):
        (place / "c.toml").write_text("exchange = 'allreduce'\noverlap = 'backward'\nchunk-size = 64\nspares = 0\n")
        assert runs.status(app, *DIGITS, "--config", "c.toml", "--epochs", 0) == 0
        assert re.search(r"not used +exchange, chunk_size: this is one process", capsys.readouterr().out)

    def test_of_a_run_that_one_process_goes_on_with_are_no_error(self, settled, place):
        options = checked(list(DIGITS))
        options.exchange, options.compress = "master-worker", "int8"
        assert settle(options, None) == [] and options.compress == "int8"           # for whoever resumes it with many again

    def test_are_kept_with_the_run_but_for_those_of_the_moment(self, settled, monkeypatch):
        monkeypatch.setenv("OMPI_MCA_mpi_ft_enable", "1")
        options, _ = settled("--elastic", "--spares", 1, "--compress", "fp16", "--log-dir", "logs")
        kept = make_task(options).config(options)["options"]
        assert kept["compress"] == "fp16" and not {"elastic", "spares", "log_dir"} & set(kept)

    @pytest.mark.parametrize("model, kept", [("nets:all_states", True), ("mlp", False)])
    def test_batch_normalization_over_all_needs_some(self, settled, place, model, kept):
        (place / "c.toml").write_text("sync-batch-norm = true")
        options, _ = settled("--model", model, "--config", "c.toml")
        notes = make_task(options).notes
        assert options.sync_batch_norm == kept
        assert notes == ([] if kept else [("not used", "sync_batch_norm: mlp has no batch normalization")])
        if not kept:
            options, _ = settled("--model", model, "--sync-batch-norm")
            with pytest.raises(ConfigError, match="--sync-batch-norm would not be used: mlp has no batch normalization"):
                make_task(options)


class TestDevice:
    @pytest.fixture
    def place_on(self, monkeypatch):
        """The device of a process on a host with two GPUs."""
        monkeypatch.setattr(backend, "gpus", lambda: 2)
        monkeypatch.setattr(backend, "named_device", lambda name: name)
        monkeypatch.setattr(mpi, "world", lambda: None)

        def found(asked, processes, place=0):
            monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_RANK", str(place))
            options = SimpleNamespace(device=asked)
            settle_device(options, processes)
            assert options.asked_device == asked
            return options.device
        return found

    def test_each_process_of_a_host_has_the_next_gpu(self, place_on):
        assert [place_on("cuda", 3, place) for place in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]

    def test_but_where_one_is_named_or_there_is_one_process(self, place_on):
        assert place_on("cuda:1", 3, 0) == "cuda:1" and place_on("cpu", 3, 1) == "cpu" and place_on("cuda", None, 1) == "cuda"


class TestKFAC:
    """Its options, as a run keeps them."""

    def kept(self, place, *words):
        assert runs.status(app, *DIGITS, "--optimizer", "kfac", "--epochs", 0, "--out", "out", *words) == 0
        return json.loads((place / "out" / "config.json").read_text())["options"]

    def test_all_have_a_default(self, place):
        options = self.kept(place)
        assert {name: options[name] for name in KFAC} == KFAC
        assert (options["lr"], options["momentum"]) == (LEARNING_RATES["kfac"], 0.9)

    def test_the_factors_may_be_looked_at_when_they_change(self, place):
        assert self.kept(place, "--factor-interval", "adaptive")["factor_interval"] == "adaptive"

    @pytest.mark.parametrize("text, value", [("7", 7), ('"7"', 7), ('"adaptive"', "adaptive")])
    def test_a_config_file_may_hold_the_interval_as_a_number_or_a_word(self, place, text, value):
        (place / "c.toml").write_text(f"factor-interval = {text}\nfisher = 'empirical'\n")
        options = self.kept(place, "--config", "c.toml")
        assert (options["factor_interval"], options["fisher"]) == (value, "empirical")

    def test_those_of_a_config_file_that_another_optimizer_does_not_use_stand_with_the_plan(self, place, capsys):
        (place / "c.toml").write_text("damping = 0.1\nkl-clip = 0.1\n")
        assert runs.status(app, *DIGITS, "--config", "c.toml", "--epochs", 0) == 0
        assert re.search(r"not used +damping, kl_clip: sgd is not kfac\n", capsys.readouterr().out)

    def test_large_factors_are_inverted_rarely_unless_it_is_asked_for(self, place):
        assert self.kept(place, "--model", "nets:wide")["inverse_interval"] == RARELY
        shutil.rmtree("out")
        assert self.kept(place, "--model", "nets:wide", "--inverse-interval", 20)["inverse_interval"] == 20


def test_the_help_names_all_that_is_known(capsys):
    assert runs.status(app, "--help") == 0
    text = re.sub(r"\s+", " ", capsys.readouterr().out)
    for name in (*models.names(), *LEARNING_RATES, *FISHERS, *SCHEDULES, *AUGMENTATIONS, *data.catalogue.CLASSES, *parallel.names(),
                 *OVERLAPS, "none, fp16, int8, topk:"):
        assert name in text, name
    for name in ("model", "data_dir", "checkpoint_every", "eval_only", "label_smoothing", *EXCHANGE):
        assert flag(name) in text


@pytest.mark.parametrize(("optimizer", "processes", "words"), [("kfac", None, "kfac decides on the host"), ("sgd", 2, "several processes")])
def test_what_cannot_be_recorded_on_a_gpu_either(optimizer, processes, words):
    with pytest.raises(ConfigError, match=f"--capture: .*{words}"):
        check_capture(SimpleNamespace(device="cuda:0", optimizer=optimizer), processes)
    check_capture(SimpleNamespace(device="cuda:0", optimizer="adam"), None)
