"""Where the options of the command come from: the command line, a config file, the run that is resumed, and the defaults.

What stands first in this list wins. A config is a TOML file of any options, spelled with - or _; keys that are no options and values of
another kind are errors. What the options mean is train.py's business.
"""

from __future__ import annotations

import difflib
import tomllib
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from types import NoneType, SimpleNamespace
from typing import Any

import typer

from minidl.errors import ConfigError
from minidl.record import read_config


class CountOrWord(str):
    """The kind of an option that is a whole number or a word, kept as text."""


class NumberOrWord(str):
    """The kind of an option that is a number or a word, kept as text."""


KINDS: dict[Any, tuple[Any, str]] = {           # of an option: what a file may hold for it, and that in words
    int: (int, "a whole number"), float: ((int, float), "a number"), str: (str, "a text"), Path: (str, "a path, as text"),
    bool: (bool, "true or false"), CountOrWord: ((int, str), "a whole number or a word"),
    NumberOrWord: ((int, float, str), "a number or a word"),
}
ELSEWHERE = {                                   # what options are called by others, where no spelling is near
    "learning_rate": "lr", "dataset": "data", "minibatch": "batch_size", "gpu": "device", "wd": "weight_decay", "output": "out",
    "gradient_clip": "clip", "load": "weights", "test": "eval_only", "random_state": "seed", "network": "model", "strategy": "exchange",
    "bucket_size": "chunk_size", "precision": "dtype", "amp": "dtype", "grad_scale": "loss_scale",
}


def gather(context: typer.Context, function: Callable) -> SimpleNamespace:
    """The options of a command by name; in `typed` the names of those from the command line, in `filed` of those from a config file.

    function: the command, whose annotations say what kind each option is of. ConfigError for a key or a value that is wrong.
    """
    hints = {name: hint for name, hint in typing.get_type_hints(function).items() if name in context.params}
    kinds = {name: next(kind for kind in (*typing.get_args(hint), hint) if kind is not NoneType) for name, hint in hints.items()}
    values = {name: None if value is None else kinds[name](value) for name, value in context.params.items()}    # older Typers have no Path
    typed = {name for name in kinds if getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"}
    given = {name: values[name] for name in typed}
    filed = {}
    if values["config"] is not None:
        filed = checked(read_toml(values["config"]), kinds, f"--config {values['config']}")
    meant = {**values, **filed, **given}
    if meant["eval_only"] and meant["resume"] is None and meant["weights"] is not None and meant["weights"].is_dir():
        given["resume"], given["weights"] = meant["weights"], None          # to test a run takes its options, whatever it is called
    folder, of_the_run = given.get("resume", filed.get("resume")), {}
    if folder is not None:
        stored = read_config(folder)["options"]
        of_the_run = checked({name: value for name, value in stored.items() if value is not None}, kinds, f"{folder / 'config.json'}")
    return SimpleNamespace(**{**values, **of_the_run, **filed, **given}, typed=typed, filed=set(filed) - typed)


def read_toml(file: Path) -> dict[str, Any]:
    """The keys and values of a TOML file. ConfigError if it cannot be read."""
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--config {file}: {error.strerror}") from None
    except ValueError as error:                 # of TOML, or of the encoding
        raise ConfigError(f"--config {file} is not TOML: {error}", hint='A line of it looks like: epochs = 5, or: model = "mlp"') from None


def checked(values: Mapping[str, Any], kinds: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Values by the names of the options, each of the option's kind. ConfigError, with the source, for one that is not."""
    known = [name for name in kinds if name != "config"]
    options: dict[str, Any] = {}
    for key, value in values.items():
        name = key.replace("-", "_")
        if name not in known:
            near = ELSEWHERE.get(name.lower()) or difflib.get_close_matches(name.lower(), known, 1, 0)[0]
            raise ConfigError(f"{source}: {key!r} is not an option (nearest: {near!r})", hint="--help lists them all.")
        if name in options:
            raise ConfigError(f"{source}: {name!r} is given twice, with - and with _")
        kind = kinds[name]
        accepted, words = KINDS[kind]
        if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
            raise ConfigError(f"{source}: {key!r} is {value!r}, and must be {words}")
        options[name] = kind(value)
    return options
