"""From options to objects: what a training command is asked for, as data, a model, an objective and an optimizer.

Options that contradict each other, or would not be used, are errors here, before anything is written. Where options come from is in
config.py, and what is done with the objects in train.py.
"""

from __future__ import annotations

import importlib
import inspect
import math
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from minidl import backend, data, models, optim, parallel
from minidl.data import Dataset, Loader, Normalise
from minidl.data.catalogue import CLASSES
from minidl.data.images import border
from minidl.errors import ArgumentError, ConfigError, nearest
from minidl.loop import Objective, classification, reconstruction
from minidl.nn import BatchNorm, Module
from minidl.optim.kfac.statistics import FISHERS
from minidl.optim.scaling import loss_scale_for
from minidl.parallel import ending, mpi
from minidl.parallel.codecs import codec
from minidl.parallel.elastic import Elastic
from minidl.parallel.team import OVERLAPS
from minidl.shortage import size_of

LEARNING_RATES = {"sgd": 0.05, "adam": 0.001, "adamw": 0.001, "kfac": 0.03}
MOMENTUM = ("sgd", "kfac")              # those that have it
KFAC = {"damping": 0.1, "kl_clip": 0.001, "fisher": "sampled", "factor_interval": 10, "inverse_interval": 10}
LARGE, RARELY = 500, 100                # where a factor has more rows than these, it is inverted every so many steps: that costs most
HUGE, BRIEF = 2000, 2                   # with more rows than these, steps at first in which all is renewed: each takes seconds
DTYPES = ("float32", "float16", "bfloat16")
SCHEDULES = ("constant", "step", "cosine", "polynomial")
AUGMENTATIONS = {"none": "", "shift": "shifted by up to 1 pixel", "crop-flip": "cropped after 4 pixels of padding, and flipped"}
USUAL_EPOCHS = {"digits": 100}         # they are few and small; 10 for anything else
USUAL_AUGMENTATION = {"digits": "shift", "cifar10": "crop-flip"}
EXCHANGE = {"exchange": "allreduce", "overlap": "backward", "compress": "none", "feedback": True, "chunk_size": 256,
            "master_computes": True, "sync_batch_norm": False, "elastic": False, "spares": 0, "log_dir": None}     # of many processes
LEAST = {"epochs": 0, "batch_size": 1, "accumulate": 1, "momentum": 0, "weight_decay": 0, "warm_up": 0, "label_smoothing": 0, "threads": 1,
         "seed": 0, "profile_steps": 1, "checkpoint_every": 1, "keep": 1, "spares": 0, "chunk_size": 1,
         "damping": 0, "factor_interval": 1, "inverse_interval": 1}
# what a test has no use for
TRAINING = ("epochs", "batch_size", "accumulate", "optimizer", "lr", "momentum", "weight_decay", "schedule", "warm_up", "clip",
            "loss_scale", "capture", "augment", "seed", "out", "checkpoint_every", "keep", *KFAC,
            *(name for name in EXCHANGE if name not in ("exchange", "log_dir")))
OF_THE_COMMAND = ("config", "resume", "out", "eval_only", "typed", "filed", "asked_device", "elastic", "spares", "log_dir", "profile",
                  "profile_steps")      # not for a resumed run

Plan = list[tuple[str, str]]            # what will be done, in pairs of a word and a text


# Options


def settle(options: SimpleNamespace, processes: int | None = None) -> Plan:
    """Give a value to every option that was left open; the result names those of a config file that are not used.

    processes: how many an MPI launcher has started; None if none has. ConfigError for options that are out of range, unknown, or would
    not be used.
    """
    options.factor_interval = count_or_word("factor_interval", options.factor_interval, "adaptive")
    for name, value in vars(options).items():
        if name in LEAST and value not in (None, "adaptive") and not value >= LEAST[name]:
            raise ConfigError(f"{flag(name)} is {value}, and must be at least {LEAST[name]}")
        if name in ("lr", "clip", "kl_clip") and value is not None and not 0 < value < math.inf:
            raise ConfigError(f"{flag(name)} is {value}, and must be a finite number above 0")
        if name in ("label_smoothing", "momentum") and value is not None and not value <= 1:
            raise ConfigError(f"{flag(name)} is {value}, and must be at most 1")
    if ":" not in options.model:
        known("model", options.model, models.names(), "; or give one of your own as package.module:function")
    known("optimizer", options.optimizer, LEARNING_RATES)
    known("schedule", options.schedule, SCHEDULES)
    known("dtype", options.dtype, DTYPES)
    backend.dtype_named(options.dtype)                                  # its package may be missing
    known("augment", options.augment, ["usual", *AUGMENTATIONS])
    if options.fisher is not None:
        known("fisher", options.fisher, FISHERS)

    notes: Plan = []
    if options.data == "digits" or options.data not in CLASSES:
        notes += unused(options, ["data_dir"], f"--data {options.data} is not downloaded")
    if options.optimizer not in MOMENTUM:
        notes += unused(options, ["momentum"], f"{options.optimizer} has none")
        options.momentum = None
    elif options.momentum is None:
        options.momentum = 0.9
    if options.optimizer != "kfac":
        notes += unused(options, KFAC, f"{options.optimizer} is not kfac")
    for name, value in KFAC.items():
        if options.optimizer != "kfac":
            setattr(options, name, None)
        elif getattr(options, name) is None and name != "inverse_interval":         # which depends on the model
            setattr(options, name, value)
    notes += settle_exchange(options, processes)
    if options.resume is not None:
        notes += unused(options, ["out", "weights"], "with --resume the run goes on in its folder, with its weights")
    if options.profile_steps is not None and not options.profile:
        notes += unused(options, ["profile_steps"], "it is for --profile")
    if options.eval_only:
        notes += unused(options, (*TRAINING, "profile"), "with --eval-only nothing is trained")
        if options.weights is None and options.resume is None:
            raise ConfigError("--eval-only: there is nothing to test", hint="Give --resume RUN, or --weights FILE and its --model.")
    if options.lr is None:
        options.lr = LEARNING_RATES[options.optimizer]
    if options.epochs is None:
        options.epochs = USUAL_EPOCHS.get(options.data, 10)
    if options.augment == "usual":
        options.augment = USUAL_AUGMENTATION.get(options.data, "none")
    settle_device(options, processes)
    notes += settle_memory(options)
    notes += settle_precision(options)
    if options.capture:
        check_capture(options, processes)
    return notes


def check_capture(options: SimpleNamespace, processes: int | None) -> None:
    """ConfigError for options with which a step cannot be recorded."""
    why = ("graphs are recorded on a GPU: give --device cuda:0" if options.device == "cpu" else
           "kfac decides on the host what a step does" if options.optimizer == "kfac" else
           "what several processes exchange goes by the host" if processes is not None else "")
    if why:
        raise ConfigError(f"--capture: {why}", hint="Leave it out.")


def settle_precision(options: SimpleNamespace) -> Plan:
    """The same for the options of how numbers are stored and multiplied."""
    notes: Plan = []
    if options.dtype == "float32":
        notes += unused(options, ["loss_scale"], "gradients of float32 do not vanish; it is for --dtype float16")
        options.loss_scale = None
    else:
        options.loss_scale = number_or_word("loss_scale", options.loss_scale, "dynamic")
    if backend.library_named(options.device).kernels != "cuda":
        notes += unused(options, ["tf32"], f"{options.device} has no tensor cores")
        options.tf32 = False
    elif options.dtype != "float32":
        notes += unused(options, ["tf32"], f"{options.dtype} is multiplied by tensor cores anyway")
        options.tf32 = False
    return notes


def precision(options: SimpleNamespace) -> Plan:
    """How numbers are stored, in words; nothing where it is as usual."""
    if options.dtype == "float32":
        return [("precision", "factors of products rounded to TF32")] if options.tf32 else []
    scaling = loss_scale_for(options.dtype, options.loss_scale)
    how = "dynamically" if scaling is None or scaling.dynamic else f"by {scaling.scale:g}"
    scaled = "" if scaling is None or options.eval_only else f", loss scaled {how}"
    return [("precision", f"{options.dtype}, weights float32{scaled}")]


def settle_device(options: SimpleNamespace, processes: int | None) -> None:
    """Find the device of this process. Of many, each takes a GPU of its host's, if the option names none: "cuda"."""
    options.asked_device = getattr(options, "asked_device", options.device)         # what the others, and a resumed run, are asked for
    if options.device == "cuda" and processes is not None:
        options.device = f"cuda:{ending.place_here(mpi.world()) % max(backend.gpus(), 1)}"
    options.device = backend.named_device(options.device)


def settle_memory(options: SimpleNamespace) -> Plan:
    """Set the limit of the device's memory, before anything is brought there."""
    if options.memory_limit is None:
        return []
    found = backend.memory(options.device)
    if found is None:
        notes = unused(options, ["memory_limit"], f"the memory of {options.device} has no limit of minidl's")
        options.memory_limit = None
        return notes
    try:
        backend.limit_memory(options.device, size_of(options.memory_limit, found.total))
    except ArgumentError as error:
        raise ConfigError(f"--memory-limit: {error}") from None
    return []


def settle_exchange(options: SimpleNamespace, processes: int | None) -> Plan:
    """The same for the options of many processes."""
    if options.exchange is not None:
        known("exchange", options.exchange, parallel.names())
    if options.overlap is not None:
        known("overlap", options.overlap, OVERLAPS)
    if options.compress is not None:
        codec(options.compress)
    notes: Plan = []
    if processes is None:
        meant = [name for name, usual in EXCHANGE.items() if name == "exchange" or getattr(options, name) != usual]
        notes += unused(options, meant, "this is one process; start several: python -m minidl.launch -n 4 -- ..., or mpiexec")
    for name, usual in EXCHANGE.items():
        if getattr(options, name) is None:
            setattr(options, name, usual)
    given = options.typed | options.filed               # others are the resumed run's, and make way for what is given
    if options.compress == "none" and not options.feedback:
        if "feedback" in given:
            raise ConfigError("--no-feedback would not be used: nothing is compressed", hint="Leave it out, or give --compress.")
        options.feedback = True
    if options.exchange != "master-worker" and not options.master_computes:
        if "master_computes" in given:
            raise ConfigError(f"--no-master-computes would not be used: {options.exchange} has no master",
                              hint="Leave it out, or use --exchange master-worker.")
        options.master_computes = True
    if options.spares and not options.elastic:
        raise ConfigError("--spares would not be used: they are for --elastic", hint="Add it.")
    if options.elastic and options.overlap == "forward":
        raise ConfigError("--overlap forward changes weights before all have agreed on a step, which --elastic could not take back",
                          hint="Use --overlap backward.")
    if processes is not None:
        fit_processes(options, processes)
    return notes


def fit_processes(options: SimpleNamespace, processes: int) -> None:
    """ConfigError unless so many can do what the options ask."""
    more = "Start more: python -m minidl.launch -n 4 ..."
    if options.spares >= processes:
        raise ConfigError(f"--spares {options.spares}: of {processes} process{'es' * (processes > 1)} at least one must train",
                          hint=f"{more} --spares 1")
    if not options.master_computes and processes - options.spares < 2:
        raise ConfigError("--no-master-computes: there is nobody else to train", hint=more)
    if options.elastic and not mpi.tolerant():
        raise ConfigError("--elastic: this mpiexec ends all processes when one dies",
                          hint="Start them with python -m minidl.launch --elastic, or mpiexec --with-ft ulfm (Open MPI 5).")


def make_team(options: SimpleNamespace, world: parallel.Communicator) -> parallel.Team:
    """This process among those that train."""
    chosen = {"exchange": options.exchange, "overlap": options.overlap, "compress": options.compress, "feedback": options.feedback,
              "chunk": 1024 * options.chunk_size, "master_computes": options.master_computes, "sync_batch_norm": options.sync_batch_norm}
    return Elastic(world, options.spares, **chosen) if options.elastic else parallel.Team(world, **chosen)


def flag(name: str) -> str:
    """How an option is written on the command line."""
    return "--" + name.replace("_", "-")


def spelled(options: SimpleNamespace, many: bool) -> list[str]:
    """The words after the command that give all settled options, but for where things are kept; many: of several processes."""
    words: list[str] = []
    for name, value in vars(options).items():
        if name in OF_THE_COMMAND or value is None or (name in EXCHANGE and not many):
            continue
        value = options.asked_device if name == "device" else value
        if isinstance(value, bool):
            usual = EXCHANGE.get(name, False)
            words += [] if value == usual else [flag(name) if value else f"--no-{flag(name)[2:]}"]
        else:
            place = name in ("data", "data_dir", "weights") and value not in CLASSES
            words += [flag(name), os.path.abspath(os.path.expanduser(value)) if place else str(value)]
    return words


def known(name: str, value: str, names: Iterable[str], more: str = "") -> None:
    """ConfigError, with the nearest name, if the value of an option is none of the names."""
    if value not in names:
        raise ConfigError(f"{flag(name)} {value} is not known{nearest(value, names)}", hint=f"Known are {', '.join(names)}{more}.")


def count_or_word(name: str, value: str | None, word: str) -> int | str | None:
    """The value of an option that is a whole number or a word. ConfigError if it is neither."""
    if value is None or value == word:
        return value
    try:
        return int(value)
    except ValueError:
        raise ConfigError(f"{flag(name)} {value} is not known{nearest(value, [word])}", hint=f"Give a whole number, or {word}.") from None


def number_or_word(name: str, value: str | float | None, word: str) -> float | str | None:
    """The value of an option that is a number above 0 or a word. ConfigError if it is neither."""
    if value is None or value == word:
        return value
    try:
        number = float(value)
    except ValueError:
        raise ConfigError(f"{flag(name)} {value} is not known{nearest(str(value), [word])}", hint=f"Give a number, or {word}.") from None
    if not 0 < number < math.inf:
        raise ConfigError(f"{flag(name)} is {value}, and must be a finite number above 0, or {word}")
    return number


def unused(options: SimpleNamespace, names: Iterable[str], why: str) -> Plan:
    """ConfigError for an option that was typed in vain; those that stand in a config file, for the plan."""
    meant = [name for name in names if getattr(options, name)]          # 0 and false change nothing
    for name in meant:
        if name in options.typed:
            raise ConfigError(f"{flag(name)} would not be used: {why}", hint="Leave it out.")
    filed = [name for name in meant if name in options.filed]
    return [("not used", f"{', '.join(filed)}: {why}")] if filed else []


# Objects


@dataclass
class Task:
    """What the options come to, before anything is written."""

    model: Module
    train: Dataset
    loader: Loader                      # of the training data
    tests: Loader
    objective: Objective
    normalise: Normalise | None
    plan: Plan
    notes: Plan                         # on options of a config file that are not used

    def config(self, options: SimpleNamespace) -> dict[str, Any]:
        """What a run's folder keeps, to be resumed and asked for predictions."""
        kept = {name: str(value) if isinstance(value, os.PathLike) else value
                for name, value in vars(options).items() if name not in OF_THE_COMMAND}
        kept["device"] = options.asked_device
        for name in ("data", "data_dir", "weights"):
            if kept[name] is not None and kept[name] not in CLASSES:            # a place: the run may be resumed from another folder
                kept[name] = os.path.abspath(os.path.expanduser(kept[name]))
        numbers = self.normalise and {name: np.ravel(getattr(self.normalise, name)).tolist() for name in ("mean", "std")}
        ground = border(self.train[:1000][0]) if len(self.train.shape) == 3 else None       # predict tells if an image is on another
        return {"options": kept, "classes": list(self.train.classes), "input_shape": list(self.train.shape), "normalise": numbers,
                "ground": ground}


def make_task(options: SimpleNamespace, config: dict[str, Any] | None = None) -> Task:
    """Data, model and objective. config: of the run that is resumed; the normalisation stays what it was."""
    train, test = data.load(options.data, data_dir=options.data_dir)
    model = make_model(options.model, train.shape, len(train.classes), backend.generator(options.seed)).to(device=options.device)
    plan = [("data", f"{options.data}: {len(train):,} examples to train on, {len(test):,} to test on"),
            ("", f"{' x '.join(map(str, train.shape))} numbers each, {len(train.classes)} classes"),
            ("model", f"{options.model}, {sum(p.size for p in model.parameters()):,} parameters")]
    notes: Plan = []
    rebuilds = bool(getattr(model, "reconstructs", False))
    if rebuilds:
        notes += unused(options, ["label_smoothing"], f"{options.model} learns no labels")
        options.label_smoothing = 0.0
        notes += unused(options, ["normalise"], f"{options.model} learns images in [0, 1]")
        options.normalise = False
    if options.sync_batch_norm and not any(isinstance(module, BatchNorm) for _, module in model.named_modules()):
        notes += unused(options, ["sync_batch_norm"], f"{options.model} has no batch normalization")
        options.sync_batch_norm = False
    if options.optimizer == "kfac" and options.inverse_interval is None:
        options.inverse_interval = RARELY if largest_factor(model) > LARGE else KFAC["inverse_interval"]
    normalise = Normalise.of(train) if options.normalise else None
    if config is not None:
        normalise = Normalise(**config["normalise"]) if config["normalise"] else None
        if (normalise is not None) != options.normalise:
            raise ConfigError("--normalise cannot be changed when a run is resumed", hint="Leave it out.")
    changes = ", ".join(filter(None, [AUGMENTATIONS[options.augment], "normalised" if normalise else ""]))
    if changes and not options.eval_only:
        plan.insert(2, ("", f"in training {changes}"))
    loader = Loader(train, batch_size=options.batch_size, seed=options.seed, transform=make_transform(options, train, normalise))
    return Task(model, train, loader, Loader(test, batch_size=256, shuffle=False, transform=normalise),
                reconstruction() if rebuilds else classification(options.label_smoothing), normalise, plan, notes)


def make_model(name: str, input_shape: tuple[int, ...], classes: int, generator: Any) -> Module:
    """A model by its name, or by 'package.module:function', which is called by name with those of the three other arguments it takes."""
    if ":" not in name:
        return models.create(name, input_shape=input_shape, classes=classes, generator=generator)
    make = imported(name)
    offered = {"input_shape": input_shape, "classes": classes, "generator": generator}
    takes = inspect.signature(make).parameters.values()
    lacking = [p.name for p in takes if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
               and (p.name not in offered or p.kind is p.POSITIONAL_ONLY)]
    if lacking:
        raise ConfigError(f"--model {name}: the function asks for {', '.join(lacking)}",
                          hint="It is called with input_shape, classes and generator, by name; whatever else it takes needs a default.")
    everything = any(p.kind is p.VAR_KEYWORD for p in takes)
    model = make(**{key: value for key, value in offered.items() if everything or key in [p.name for p in takes]})
    if not isinstance(model, Module):
        raise ConfigError(f"--model {name}: the function gave {model!r:.60}, and must give a minidl.nn.Module")
    return model


def imported(name: str) -> Any:
    """The function that 'package.module:function' names. ConfigError if there is none; errors inside the module are its own."""
    place, _, function = name.partition(":")
    hint = f"Give package.module:function, for a package.module that Python can import in {os.getcwd()}."
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(place)
    except (ValueError, TypeError) as error:                    # an empty or a relative name
        raise ConfigError(f"--model {name}: {place!r} is not the name of a module", hint=hint) from error
    except ModuleNotFoundError as error:
        if not f"{place}.".startswith(f"{error.name}."):
            raise                                               # the module is there, and lacks another one
        raise ConfigError(f"--model {name}: {error}", hint=hint) from error
    make = getattr(module, function, None)
    if make is None:
        near = nearest(function, [other for other, value in vars(module).items() if callable(value)])
        raise ConfigError(f"--model {name}: {place} has no function {function!r}{near}", hint=hint)
    if not callable(make) or isinstance(make, Module):
        raise ConfigError(f"--model {name}: {function} is {make!r:.60}, and must be a function that makes a model")
    return make


def largest_factor(model: Module) -> int:
    """How many rows the largest Kronecker factor of a model's weights has, b left aside."""
    return max((max(p.shape[0], p.size // p.shape[0]) for p in model.parameters() if p.ndim > 1), default=0)


def make_optimizer(options: SimpleNamespace, model: Module, steps: int) -> optim.Optimizer:
    """The optimizer, with its learning rate's schedule over so many steps in all."""
    if steps and options.warm_up >= steps:
        raise ConfigError(f"--warm-up is {options.warm_up} steps, and the whole run has {steps}")
    lr, rest = options.lr, max(steps - options.warm_up, 1)
    schedule: Any = {"constant": lambda: optim.constant(lr), "step": lambda: optim.step_decay(lr, every=-(-rest // 3), factor=0.1),
                     "cosine": lambda: optim.cosine(lr, rest), "polynomial": lambda: optim.polynomial(lr, rest)}[options.schedule]()
    if options.warm_up:
        schedule = optim.warm_up(options.warm_up, schedule)
    # what shifts and scales is not decayed: that would not make the function any simpler
    plain = {f"*.{name}": {"weight_decay": 0.0} for name in ("b", "gamma", "beta")
             if any(f".{path}".endswith(f".{name}") for path, _ in model.named_parameters())}
    own = {name: getattr(options, name) for name in ("momentum", *KFAC) if getattr(options, name) is not None}
    if options.optimizer == "kfac":
        own |= {"seed": options.seed, **({"warm_up": BRIEF} if largest_factor(model) > HUGE else {})}
    return optim.create(options.optimizer, model, lr=schedule, weight_decay=options.weight_decay, groups=plain, **own)


def make_transform(options: SimpleNamespace, train: Dataset, normalise: Normalise | None) -> data.Transform:
    """What happens to a training minibatch."""
    choices: dict[str, list[data.Transform]] = {"none": [], "shift": [data.Shift(1)],
                                                "crop-flip": [data.RandomCrop(4), data.HorizontalFlip()]}
    before = choices[options.augment]
    if before and len(train.shape) != 3:
        raise ConfigError(f"--augment {options.augment}: the data are vectors, not images", hint="Use --augment none.")
    return data.Compose(*before, *([normalise] if normalise else []))
