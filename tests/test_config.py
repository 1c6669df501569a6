"""Options: the command line wins over a config file, that over the run that is resumed, and that over the defaults."""

from pathlib import Path
from typing import Annotated

import pytest
import typer
from runs import status

from minidl.config import ELSEWHERE, CountOrWord, gather
from minidl.errors import ConfigError
from minidl.launch import checked
from minidl.options import EXCHANGE
from minidl.record import write
from minidl.train import main

RUN = ('{"options": {"epochs": 7, "lr": 0.7, "model": "mlp", "clip": null}, "classes": [], "input_shape": [], "normalise": null, '
       '"commands": []}')


@pytest.fixture
def options(tmp_path, monkeypatch):
    """Type words as options of a small command: what it gathers. settings.toml holds the text of `config`, runs/old is a run."""
    monkeypatch.chdir(tmp_path)
    Path("runs/old").mkdir(parents=True)
    write(Path("runs/old/config.json"), RUN.encode())
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    found = []

    @app.command()
    def command(
        context: typer.Context,
        model: str = "lenet",
        epochs: int = 1,
        batch_size: int = 32,
        lr: float | None = None,
        clip: float | None = None,
        normalise: bool = False,
        eval_only: Annotated[bool, typer.Option("--eval-only")] = False,
        weights: Path | None = None,
        resume: Path | None = None,
        interval: Annotated[CountOrWord | None, typer.Option(parser=CountOrWord)] = None,
        config: Path | None = None,
    ) -> None:
        found.append(gather(context, command))

    def typed(*words, config=None):
        if config is not None:
            Path("settings.toml").write_text(config)
            words = (*words, "--config", "settings.toml")
        assert status(app, *words) == 0
        return found.pop()

    return typed


class TestOrder:
    def test_without_anything_there_are_the_defaults(self, options):
        given = options()
        assert (given.model, given.epochs, given.lr, given.typed, given.filed) == ("lenet", 1, None, set(), set())

    def test_a_config_wins_over_the_defaults(self, options):
        given = options(config="epochs = 5\nlr = 1\n")
        assert (given.epochs, given.lr, given.filed) == (5, 1.0, {"epochs", "lr"})

    def test_the_command_line_wins_over_a_config(self, options):
        given = options("--epochs", 6, config="epochs = 5\nlr = 1\n")
        assert (given.epochs, given.typed, given.filed) == (6, {"epochs", "config"}, {"lr"})

    def test_a_run_wins_over_the_defaults_alone(self, options):
        given = options("--resume", "runs/old", "--epochs", 9, config="lr = 0.5")
        assert (given.model, given.epochs, given.lr, given.clip, given.batch_size) == ("mlp", 9, 0.5, None, 32)

    def test_a_default_that_is_typed_wins_too(self, options):
        assert options("--model", "lenet", "--resume", "runs/old").model == "lenet"

    def test_the_order_of_the_words_does_not_matter(self, options):
        Path("settings.toml").write_text("epochs = 5")
        config, resume = ("--config", "settings.toml"), ("--resume", "runs/old")
        assert options(*config, *resume).epochs == options(*resume, *config).epochs == 5

    def test_a_config_may_name_the_run(self, options):
        given = options(config='resume = "runs/old"')
        assert (given.resume, given.epochs) == (Path("runs/old"), 7)

    def test_to_test_the_weights_of_a_run_takes_its_options(self, options):
        given = options("--eval-only", "--weights", "runs/old")
        assert (given.model, given.resume, given.weights) == ("mlp", Path("runs/old"), None)


class TestSpelling:
    @pytest.mark.parametrize("key", ["batch-size", "batch_size"])
    def test_keys_have_a_stroke_or_an_underline(self, options, key):
        assert options(config=f"{key} = 4").batch_size == 4

    def test_a_key_in_both_spellings_is_an_error(self, options):
        with pytest.raises(ConfigError, match="'batch_size' is given twice"):
            options(config="batch-size = 4\nbatch_size = 5")

    @pytest.mark.parametrize("key, near", [("epoch", "epochs"), ("batchsize", "batch_size"), ("learning_rate", "lr"),
                                           ("Learning-Rate", "lr"), ("normalize", "normalise"), ("network", "model")])
    def test_an_unknown_key_names_the_nearest_known_one(self, options, key, near):
        with pytest.raises(ConfigError, match=rf"settings.toml: '{key}' is not an option \(nearest: '{near}'\)"):
            options(config=f"{key} = 1")

    def test_what_others_call_our_options_are_our_options(self):
        assert set(ELSEWHERE.values()) <= set(main.__annotations__) and not set(ELSEWHERE) & set(main.__annotations__)


class TestValues:
    @pytest.mark.parametrize("line, name, value", [
        ("lr = 1", "lr", 1.0), ("lr = 1e-3", "lr", 0.001), ("normalise = true", "normalise", True), ('weights = "w"', "weights", Path("w")),
    ])
    def test_of_the_kind_of_the_option(self, options, line, name, value):
        found = getattr(options(config=line), name)
        assert found == value and isinstance(found, type(value))

    @pytest.mark.parametrize("value", [10, "adaptive"])
    def test_a_whole_number_or_a_word_is_kept_as_text(self, options, value):
        typed, filed = options("--interval", value).interval, options(config=f"interval = {value!r}").interval
        assert typed == filed == str(value) and type(typed) is type(filed) is CountOrWord

    @pytest.mark.parametrize("line, says", [
        ("interval = 2.5", "'interval' is 2.5, and must be a whole number or a word"), ("interval = true", "is True, and must be"),
        ("epochs = 2.5", "'epochs' is 2.5, and must be a whole number"), ("epochs = true", "is True, and must be a whole number"),
        ('epochs = "ten"', "is 'ten', and must be a whole number"), ('lr = "fast"', "must be a number"), ("lr = false", "must be a number"),
        ("model = 3", "must be a text"), ("normalise = 1", "must be true or false"), ("weights = 1", "must be a path, as text"),
        ("[model]\nname = 1", "is {'name': 1}, and must be a text"), ("epochs = [1, 2]", "must be a whole number"),
        ("epochs = 2026-01-01", "must be a whole number"), ('config = "other.toml"', "'config' is not an option"),
    ])
    def test_of_another_kind_are_errors(self, options, line, says):
        with pytest.raises(ConfigError) as error:
            options(config=line)
        assert says in str(error.value) and "settings.toml" in str(error.value)

    def test_in_a_run_that_was_edited_are_errors_too(self, options):
        Path("runs/old/config.json").write_text(RUN.replace("0.7", '"much"'))
        with pytest.raises(ConfigError, match=r"runs/old/config\.json: 'lr' is 'much'"):
            options("--resume", "runs/old")


def test_of_many_processes_may_stand_in_a_file(tmp_path):
    """All options of the training command, with their kinds."""
    (tmp_path / "many.toml").write_text('exchange = "master-worker"\noverlap = "none"\ncompress = "topk:0.01"\nfeedback = false\n'
                                        'chunk-size = 64\nmaster-computes = false\nsync-batch-norm = true\nelastic = true\nspares = 1\n'
                                        'log-dir = "logs"\n')
    given = checked(["--config", str(tmp_path / "many.toml"), "--overlap", "backward"])
    assert {name: getattr(given, name) for name in EXCHANGE} == {
        "exchange": "master-worker", "overlap": "backward", "compress": "topk:0.01", "feedback": False, "chunk_size": 64,
        "master_computes": False, "sync_batch_norm": True, "elastic": True, "spares": 1, "log_dir": Path("logs")}
    assert given.filed == set(EXCHANGE) - {"overlap"}


@pytest.mark.parametrize("line, says", [
    ("compression = 'fp16'", r"'compression' is not an option \(nearest: 'compress'\)"), ("strategy = 'allreduce'", "nearest: 'exchange'"),
    ("bucket-size = 64", "nearest: 'chunk_size'"), ("chunk-size = '64'", "'chunk-size' is '64', and must be a whole number"),
    ("spares = true", "must be a whole number"), ("feedback = 'no'", "must be true or false"), ("elastic = 1", "must be true or false"),
])
def test_of_many_processes_that_are_wrong_are_told(tmp_path, line, says):
    (tmp_path / "many.toml").write_text(line)
    with pytest.raises(ConfigError, match=says):
        checked(["--config", str(tmp_path / "many.toml")])


class TestFiles:
    @pytest.mark.parametrize("content", [b"epochs = \n", b"epochs 3", b"\xff\xfe", b"epochs = 1\nepochs = 2\n", b"[[["])
    def test_what_is_no_toml_is_an_error_with_an_example(self, options, tmp_path, content):
        (tmp_path / "broken.toml").write_bytes(content)
        with pytest.raises(ConfigError, match=r"(?s)broken.toml is not TOML: .* looks like: epochs = 5"):
            options("--config", "broken.toml")

    @pytest.mark.parametrize("path, says", [("none.toml", "No such file"), ("runs", "Is a directory")])
    def test_what_cannot_be_opened_is_an_error(self, options, path, says):
        with pytest.raises(ConfigError, match=f"--config {path}: {says}"):
            options("--config", path)

    def test_an_empty_file_changes_nothing(self, options):
        assert options(config="").epochs == 1
