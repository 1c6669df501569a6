"""`python -m minidl.train`: train a model from the shell.

Here are the options, what a run leaves in its folder (config.json, metrics.jsonl, checkpoint/), and what happens at Ctrl-C, on resume,
and when the loss is not finite. The loop itself is in loop.py, and how it looks in display.py.
"""

from __future__ import annotations

import difflib
import importlib
import json
import os
import shlex
import signal
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import numpy as np
import typer

import minidl
from minidl import backend, data, models, optim
from minidl.checkpoint import Checkpoints, flush_folder, load
from minidl.data import Dataset, Loader
from minidl.display import Display, make_console, number, percent
from minidl.errors import ConfigError, MinidlError, MissingExtra, NumericsError
from minidl.loop import Callback, Objective, Run, classification, evaluate, fit, part, reconstruction
from minidl.nn import Module

__all__ = ["Callback", "Objective", "Run", "classification", "evaluate", "fit", "reconstruction"]

LEARNING_RATES = {"sgd": 0.05, "adam": 0.001, "adamw": 0.001}
SCHEDULES = ("constant", "step", "cosine", "polynomial")
AUGMENTATIONS = {"none": "as they are", "shift": "shifted by up to 1 pixel", "crop-flip": "cropped after 4 pixels of padding, and flipped"}
NOT_OF_THE_RUN = ("config", "resume", "out", "weights", "eval_only")      # options that a resumed run does not take over
USUAL_AUGMENTATION = {"digits": "shift", "cifar10": "crop-flip"}


# A run's folder


class Record(Callback):
    """Keeps a run's metrics.jsonl and its checkpoints: every so many steps, at the end of each epoch, and when the run stops."""

    def __init__(self, folder: Path, checkpoints: Checkpoints, every: int | None):
        self.metrics, self.checkpoints, self.every = folder / "metrics.jsonl", checkpoints, every
        self.saved_at: int | None = None

    def start(self, run: Run) -> None:
        """The metrics of a run that is resumed are cut back to where its checkpoint stands."""
        text = "".join(json.dumps(metrics) + "\n" for metrics in run.history)
        temporary = self.metrics.with_suffix(".tmp")
        temporary.write_text(text)
        os.replace(temporary, self.metrics)
        flush_folder(self.metrics.parent)
        self.saved_at = run.step if run.step else None

    def step(self, run: Run, loss: float) -> None:
        """A checkpoint where one is due within the epoch."""
        if self.every and run.step % self.every == 0 and run.minibatch < run.minibatches:
            self.save(run)

    def epoch(self, run: Run, metrics: dict[str, Any]) -> None:
        """A line of metrics, then a checkpoint that knows of it."""
        with open(self.metrics, "a") as stream:
            stream.write(json.dumps(metrics) + "\n")
        self.save(run)

    def end(self, run: Run) -> None:
        """A checkpoint of the very last update."""
        if self.saved_at != run.step:
            self.save(run)

    def save(self, run: Run) -> None:
        """Write a checkpoint, unless the weights have just become useless."""
        for name, parameter in run.model.named_parameters():
            if not bool(backend.of(parameter.data).isfinite(parameter.data).all()):
                raise NumericsError(f"{name} is no longer finite after step {run.step}", hint="Try a smaller learning rate, or --clip.")
        self.checkpoints.save(run.step, *run.state())
        self.saved_at = run.step


def new_folder(options: SimpleNamespace) -> Path:
    """The folder that was asked for, which must be empty, or the next free one under runs/."""
    try:
        if options.out is not None:
            folder = Path(options.out)
            folder.mkdir(parents=True, exist_ok=True)
            if any(folder.iterdir()):
                raise ConfigError(f"--out {folder}: the folder is not empty", hint=f"Choose another, or go on with --resume {folder}.")
            return folder
        name = f"{Path(options.data).stem}-{options.model.rpartition(':')[2]}"
        for count in range(1, 100_000):
            folder = Path("runs") / (name if count == 1 else f"{name}-{count}")
            try:
                folder.mkdir(parents=True)
                return folder
            except FileExistsError:
                continue
    except OSError as error:
        raise ConfigError(f"the run's folder cannot be made: {error}", hint="Choose another with --out.") from error
    raise ConfigError("runs/ is full", hint="Choose a folder with --out.")


def write_config(folder: Path, config: dict[str, Any]) -> None:
    """A run's config.json."""
    (folder / "config.json").write_text(json.dumps(config, indent=2, default=str) + "\n")


def read_config(folder: Path) -> dict[str, Any]:
    """A run's config.json."""
    file = folder / "config.json"
    try:
        return json.loads(file.read_text())
    except FileNotFoundError:
        raise ConfigError(f"{folder} is not the folder of a run: it has no config.json") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from None


# From options to objects


def make_model(name: str, input_shape: tuple[int, ...], classes: int, generator: Any) -> Module:
    """A model by its name, or by 'package.module:function', which is called with the same three arguments by name."""
    if ":" not in name:
        return models.create(name, input_shape=input_shape, classes=classes, generator=generator)
    module, _, function = name.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        make = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"--model {name}: {error}", hint="Give package.module:function, importable from here.") from error
    finally:
        sys.path.remove(os.getcwd())
    model = make(input_shape=input_shape, classes=classes, generator=generator)
    if not isinstance(model, Module):
        raise ConfigError(f"--model {name}: the function gave a {type(model).__name__}, and must give a minidl.nn.Module")
    return model


def learning_rate(options: SimpleNamespace) -> float:
    """The learning rate that was given, or the optimizer's usual one."""
    if options.optimizer not in LEARNING_RATES:
        raise ConfigError(f"--optimizer {options.optimizer} is not known", hint=f"Known are {', '.join(LEARNING_RATES)}.")
    return LEARNING_RATES[options.optimizer] if options.lr is None else options.lr


def make_optimizer(options: SimpleNamespace, model: Module, steps: int) -> optim.Optimizer:
    """The optimizer with its learning rate's schedule over so many steps."""
    lr, steps = learning_rate(options), max(steps, 1)
    if options.schedule not in SCHEDULES:
        raise ConfigError(f"--schedule {options.schedule} is not known", hint=f"Known are {', '.join(SCHEDULES)}.")
    schedule: Any = {"constant": lambda: optim.constant(lr), "step": lambda: optim.step_decay(lr, every=max(steps // 3, 1), factor=0.1),
                     "cosine": lambda: optim.cosine(lr, steps), "polynomial": lambda: optim.polynomial(lr, steps)}[options.schedule]()
    if options.warm_up:
        schedule = optim.warm_up(options.warm_up, schedule)
    extra = {"weight_decay": options.weight_decay}
    if options.optimizer == "sgd":
        extra["momentum"] = 0.9 if options.momentum is None else options.momentum
    elif options.momentum is not None:
        raise ConfigError(f"--momentum has no meaning with --optimizer {options.optimizer}", hint="Leave it out, or use --optimizer sgd.")
    # what shifts and scales is not decayed: that would not make the function any simpler
    plain = {f"*.{name}": {"weight_decay": 0.0} for name in ("b", "gamma", "beta")
             if any(f".{path}".endswith(f".{name}") for path, _ in model.named_parameters())}
    return optim.create(options.optimizer, model, lr=schedule, groups=plain, **extra)


def make_transform(options: SimpleNamespace, train: Dataset, normalise: Any) -> tuple[Any, str]:
    """What happens to a training minibatch, and the name of its augmentation."""
    name = USUAL_AUGMENTATION.get(options.data, "none") if options.augment == "usual" else options.augment
    if name not in AUGMENTATIONS:
        raise ConfigError(f"--augment {name} is not known", hint=f"Known are usual, {', '.join(AUGMENTATIONS)}.")
    before: list[Any] = []
    if name == "shift":
        before = [data.Shift(1)]
    elif name == "crop-flip":
        before = [data.RandomCrop(4), data.HorizontalFlip()]
    if before and train.x.ndim != 4:
        raise ConfigError(f"--augment {name}: the data are vectors, not images", hint="Use --augment none.")
    return data.Compose(*before, *([normalise] if normalise else [])), name


@contextmanager
def threads(count: int | None) -> Iterator[int]:
    """Run a block with so many threads in the linear algebra; gives how many there are."""
    try:
        from threadpoolctl import threadpool_info, threadpool_limits
    except ImportError:
        if count is not None:
            raise MissingExtra("--threads needs threadpoolctl", hint="Install it: pip install 'minidl[fast]'") from None
        yield len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return
    if count is not None and count < 1:
        raise ConfigError(f"--threads is {count}, and must be at least 1")
    with threadpool_limits(count) if count is not None else nullcontext():
        yield max((pool["num_threads"] for pool in threadpool_info()), default=1)


def weights_of(file: Path) -> dict[str, Any]:
    """The arrays of a weight file, or of the last checkpoint of a run's folder."""
    arrays = Checkpoints(file / "checkpoint").latest()[1] if file.is_dir() else load(file)[0]
    return part(arrays, "model.") or arrays


# The run


@dataclass
class Task:
    """What the options come to, before anything is written."""

    model: Module
    train: Dataset
    loader: Loader                      # of the training data
    tests: Loader
    objective: Objective
    normalise: Any
    plan: list[tuple[str, str]]         # what will be done, in words

    def config(self, options: SimpleNamespace, command: str) -> dict[str, Any]:
        """What a run's folder keeps, to be repeated, resumed and asked for predictions."""
        numbers = {name: np.ravel(getattr(self.normalise, name)).tolist() for name in ("mean", "std")} if self.normalise else None
        return {"options": {name: value for name, value in vars(options).items() if name not in NOT_OF_THE_RUN},
                "classes": list(self.train.classes), "input_shape": list(self.train.shape), "normalise": numbers,
                "command": command, "minidl": minidl.__version__, "numpy": np.__version__}


def prepare(options: SimpleNamespace) -> Task:
    """Data, model and objective."""
    device = backend.named_device(options.device)
    train, test = data.load(options.data, data_dir=options.data_dir)
    model = make_model(options.model, train.shape, len(train.classes), backend.generator(options.seed)).to(device=device)
    rebuilding = bool(getattr(model, "reconstructs", False))
    normalise = data.Normalise.of(train) if options.normalise and not rebuilding and len(train.shape) == 3 else None
    transform, augmentation = make_transform(options, train, normalise)
    plan = [
        ("data", f"{options.data}: {len(train):,} examples to train on, {len(test):,} to test on; "
                 f"{' x '.join(map(str, train.shape))}, {len(train.classes)} classes"),
        ("images", AUGMENTATIONS[augmentation] + (", normalised" if normalise else "")),
        ("model", f"{options.model}, {sum(p.size for p in model.parameters()):,} parameters"),
        ("optimizer", f"{options.optimizer}, learning rate {learning_rate(options):g} ({options.schedule}), minibatches of "
                      f"{options.batch_size}, {options.epochs} epochs"),
    ]
    return Task(model, train, Loader(train, batch_size=options.batch_size, seed=options.seed, transform=transform),
                Loader(test, batch_size=256, shuffle=False, transform=normalise),
                reconstruction() if rebuilding else classification(options.label_smoothing), normalise, plan)


def run_training(options: SimpleNamespace, command: str) -> int:
    """Do what the options say; gives the exit status."""
    folder = None if options.resume is None else Path(options.resume)
    task = prepare(options)
    weights = options.weights or (folder if options.eval_only else None)
    if weights is not None:
        task.model.load_state_dict(weights_of(Path(weights)))
    with threads(options.threads) as count:
        task.plan.append(("device", f"{options.device}, {count} thread{'s' * (count != 1)}"))
        if options.eval_only:
            loss, accuracy = evaluate(task.model, task.tests, task.objective)
            make_console().print(f"test loss {number(loss)}, accuracy {percent(accuracy)}, on {len(task.tests.data):,} examples",
                                 highlight=False)
            return 0
        optimizer = make_optimizer(options, task.model, options.epochs * len(task.loader))
        resume = None
        if folder is None:
            folder = new_folder(options)
            write_config(folder, task.config(options, command))
            task.plan.append(("run", str(folder)))
        else:
            file, *resume = Checkpoints(folder / "checkpoint").latest()
            task.plan.append(("run", f"{folder}, resumed from {file.name}"))
        return train(options, task, optimizer, folder, resume)


def train(options: SimpleNamespace, task: Task, optimizer: optim.Optimizer, folder: Path, resume: Any) -> int:
    """The loop, with everything around it that a run in a folder has."""
    checkpoints = Checkpoints(folder / "checkpoint", options.keep)
    display = Display(task.plan, str(folder))
    signals = StopOnSignal()
    callbacks = [signals, Record(folder, checkpoints, options.checkpoint_every), display]
    try:
        with signals:
            fit(task.model, task.loader, task.tests, optimizer, options.epochs, callbacks, objective=task.objective,
                accumulate=options.accumulate, clip=options.clip, resume=resume)
    except NumericsError as error:
        last = checkpoints.files()[-1:]
        raise NumericsError(str(error), hint=f"The last good checkpoint is {last[0]}." if last else "There is no checkpoint yet.") from error
    finally:
        display.stop()
    if signals.run is None or signals.run.finished:
        display.close()
        return 0
    display.say(f"Stopped after step {signals.run.step:,}. All is saved; to go on:", "bold")
    display.say(f"python -m minidl.train --resume {shlex.quote(str(folder))}")
    return 130


class StopOnSignal(Callback):
    """Ctrl-C, or a job scheduler's SIGTERM, asks the loop to stop after the present minibatch; a second one stops at once."""

    def __init__(self) -> None:
        self.run: Run | None = None
        self.before: dict[int, Any] = {}

    def start(self, run: Run) -> None:
        """From now on there is a loop to stop."""
        self.run = run

    def __enter__(self) -> None:
        for signal_number in (signal.SIGINT, signal.SIGTERM):
            self.before[signal_number] = signal.signal(signal_number, self.stop)

    def __exit__(self, *error: Any) -> None:
        for signal_number, handler in self.before.items():
            signal.signal(signal_number, handler)

    def stop(self, signal_number: int, frame: Any) -> None:
        """The signal handler."""
        if self.run is None or self.run.stop:
            raise KeyboardInterrupt
        self.run.stop = True


# The command line


def _defaults_from(context: typer.Context, values: dict[str, Any], source: str) -> None:
    """Let values stand for options that the command line does not give; an unknown one is an error that names the nearest."""
    known = {parameter.name for parameter in context.command.params} - {"config", "resume", "help"}
    for key in values:
        if key.replace("-", "_") not in known:
            near = difflib.get_close_matches(key.replace("-", "_"), sorted(k for k in known if k), 1, 0)
            raise ConfigError(f"{source}: the key {key!r} is not an option", hint=f"Did you mean {near[0]!r}?")
    context.default_map = {**(context.default_map or {}), **{key.replace("-", "_"): value for key, value in values.items()}}


def _read_config_option(context: typer.Context, file: Path | None) -> Path | None:
    if file is not None:
        try:
            values = tomllib.loads(file.read_text())
        except OSError as error:
            fail(ConfigError(f"--config {file}: {error.strerror}"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            fail(ConfigError(f"--config {file}: {error}"))
        _orfail(lambda: _defaults_from(context, values, f"--config {file}"))
    return file


def _read_resume_option(context: typer.Context, folder: Path | None) -> Path | None:
    if folder is not None:
        def read() -> None:
            options = read_config(folder)["options"]
            _defaults_from(context, {name: value for name, value in options.items() if value is not None}, f"{folder}/config.json")
        _orfail(read)
    return folder


def _orfail(action: Any) -> None:
    try:
        action()
    except MinidlError as error:
        fail(error)


def fail(error: MinidlError) -> None:
    """Say an error in its own words, without a traceback, and end."""
    make_console(stderr=True).print(f"{type(error).__name__}: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
    raise typer.Exit(1)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    context: typer.Context,
    model: Annotated[str, typer.Option(help="A name (mlp, lenet, cnn, resnet18, autoencoder), or package.module:function.")] = "lenet",
    data: Annotated[str, typer.Option(help="A name (digits, mnist, fashion-mnist, cifar10), FILE.npz, or a folder of classes.")] = "digits",
    data_dir: Annotated[Path | None, typer.Option(help="Where the named data sets lie, or are downloaded to.")] = None,
    epochs: Annotated[int, typer.Option(min=0, help="Passes over the training data.")] = 80,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples in a minibatch.")] = 32,
    accumulate: Annotated[int, typer.Option(min=1, help="Parts in which a minibatch goes through the model, to save memory.")] = 1,
    optimizer: Annotated[str, typer.Option(help="sgd, adam or adamw.")] = "sgd",
    lr: Annotated[float | None, typer.Option(help="Learning rate [default: 0.05 for sgd, 0.001 for the others].")] = None,
    momentum: Annotated[float | None, typer.Option(help="Momentum of sgd [default: 0.9].")] = None,
    weight_decay: Annotated[float, typer.Option(min=0, help="Weight decay, of weights alone: not of b, gamma and beta.")] = 0.001,
    schedule: Annotated[str, typer.Option(help="How the learning rate goes: constant, step, cosine or polynomial.")] = "cosine",
    warm_up: Annotated[int, typer.Option(min=0, help="Steps in which the learning rate rises from 0 first.")] = 0,
    clip: Annotated[float | None, typer.Option(help="The largest norm that the gradient may have.")] = None,
    label_smoothing: Annotated[float, typer.Option(min=0, max=1, help="The part of a label spread over all classes.")] = 0.1,
    normalise: Annotated[bool, typer.Option(help="Bring the images to mean 0 and deviation 1 first.")] = False,
    augment: Annotated[str, typer.Option(help="none, shift, crop-flip; usual: what the data set is used to.")] = "usual",
    device: Annotated[str, typer.Option(help="cpu, cuda:0, ...")] = "cpu",
    threads: Annotated[int | None, typer.Option(help="Threads of the linear algebra [default: as many as it likes].")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the weights, the order and the augmentation.")] = 0,
    weights: Annotated[Path | None, typer.Option(help="Start from these: a safetensors file, or a run's folder.")] = None,
    eval_only: Annotated[bool, typer.Option("--eval-only", help="Only test, with --weights or --resume.")] = False,
    out: Annotated[Path | None, typer.Option(help="The run's folder [default: the next free one under runs/].")] = None,
    checkpoint_every: Annotated[int | None, typer.Option(min=1, help="Checkpoints within an epoch too, every so many steps.")] = None,
    keep: Annotated[int, typer.Option(min=1, help="Checkpoints to keep.")] = 2,
    resume: Annotated[Path | None, typer.Option(callback=_read_resume_option, is_eager=True, help="Go on with a run: its folder.")] = None,
    config: Annotated[Path | None, typer.Option(callback=_read_config_option, is_eager=True, help="A TOML file of any options.")] = None,
) -> None:
    """Train a model. Without any option: LeNet on handwritten digits."""
    try:
        status = run_training(SimpleNamespace(**context.params), shlex.join(["python", "-m", "minidl.train", *sys.argv[1:]]))
    except MinidlError as error:
        fail(error)
    except KeyboardInterrupt:
        make_console(stderr=True).print("Stopped.", style="red")
        raise typer.Exit(130) from None
    raise typer.Exit(status)


if __name__ == "__main__":
    app()
