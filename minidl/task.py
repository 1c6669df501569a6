"""From options to objects: what a training command is asked for, as data, a model, an objective and an optimizer.

What is wrong with options themselves is said in options.py, before; here, what does not fit the data or the model. What is done with the
objects is in train.py.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from minidl import backend, data, models, optim, parallel
from minidl.data import Dataset, Loader, Normalise
from minidl.data.catalogue import CLASSES
from minidl.data.images import border
from minidl.errors import ConfigError, nearest
from minidl.loop import Objective, classification, reconstruction
from minidl.nn import BatchNorm, Module
from minidl.options import AUGMENTATIONS, KFAC, OF_THE_COMMAND, Plan, unused
from minidl.parallel.elastic import Elastic

LARGE, RARELY = 500, 100                # where a factor has more rows than these, it is inverted every so many steps: that costs most
HUGE, BRIEF = 2000, 2                   # with more rows than these, steps at first in which all is renewed: each takes seconds


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


def make_team(options: SimpleNamespace, world: parallel.Communicator) -> parallel.Team:
    """This process among those that train."""
    chosen = {"exchange": options.exchange, "overlap": options.overlap, "compress": options.compress, "feedback": options.feedback,
              "chunk": 1024 * options.chunk_size, "master_computes": options.master_computes, "sync_batch_norm": options.sync_batch_norm}
    return Elastic(world, options.spares, **chosen) if options.elastic else parallel.Team(world, **chosen)
