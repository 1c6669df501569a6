"""Options of a training command: what was left open gets a value, and what contradicts, or would not be used, is an error.

All that is told before anything is read, made or written. Where options come from is in config.py, and what they mean as data, a model
and an optimizer in task.py.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from types import SimpleNamespace

from minidl import backend, models, parallel
from minidl.data.catalogue import CLASSES
from minidl.errors import ArgumentError, ConfigError, nearest
from minidl.optim.kfac.statistics import FISHERS
from minidl.parallel import ending, mpi
from minidl.parallel.codecs import codec
from minidl.parallel.team import OVERLAPS
from minidl.shortage import size_of

LEARNING_RATES = {"sgd": 0.05, "adam": 0.001, "adamw": 0.001, "kfac": 0.03}
MOMENTUM = ("sgd", "kfac")              # those that have it
KFAC = {"damping": 0.1, "kl_clip": 0.001, "fisher": "sampled", "factor_interval": 10, "inverse_interval": 10}
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
