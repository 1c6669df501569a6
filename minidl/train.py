"""`python -m minidl.train`: train a model from the shell.

Here are the options, and what happens around the loop: Ctrl-C, resume, a loss that is no longer finite, a full disk. The loop itself is
in loop.py. Where options come from is in config.py, what is wrong with them in options.py, what they come to in task.py, and in words in
announce.py; what a run leaves in its folder in record.py and report/; how it looks in display.py. Where there are many processes, lead.py
says what the first one does for all.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import numpy as np
import typer

import minidl
from minidl import data, kernels, parallel, pool, report
from minidl.announce import announced, precision
from minidl.checkpoint import Checkpoints, load
from minidl.config import CountOrWord, NumberOrWord, gather
from minidl.data.catalogue import CLASSES
from minidl.display import Display, errors_told, memory_told, number, percent, tell
from minidl.errors import CheckpointError, NumericsError
from minidl.lead import Lead, Ranks
from minidl.loop import Callback, Objective, classification, evaluate, fit, reconstruction
from minidl.measure import STEPS, Measure
from minidl.options import settle, spelled
from minidl.parallel import ending, mpi
from minidl.parallel.quiet import quiet
from minidl.record import Record, claimed, command, new_folder, read_config
from minidl.run import Run, part
from minidl.task import Task, make_optimizer, make_task, make_team

MOST = 16               # threads that are used without being asked for: the work of a step has about so many pieces

__all__ = ["Callback", "Objective", "Run", "classification", "evaluate", "fit", "reconstruction"]


def begin(context: typer.Context) -> int:
    """The command, in this process alone or in one of many; gives the exit status."""
    if not mpi.launched():
        return train(gather(context, main), Ranks())
    ending.begin()
    world = mpi.world()
    try:
        with ending.end_together(world, tell) as end:
            options = gather(context, main)
            with quiet(world, options.log_dir) as speak, memory_told():
                status = train(options, Ranks(world, end, speak))
            if status:
                raise SystemExit(status)            # all ranks come to it
    except SystemExit as error:
        status = ending.status_of(error)
    mpi.leave(status)
    return status


def train(options: SimpleNamespace, ranks: Ranks) -> int:
    """Do what the options say; gives the exit status."""
    notes = settle(options, None if ranks.world is None else ranks.world.size)
    config = None if options.resume is None else read_config(options.resume)
    if ranks.world is not None and options.data in CLASSES:
        ranks.agreed(options, partial(fetched, options))        # by one process, while the others wait
    task = make_task(options, config)
    with at_work(options.threads) as count, np.errstate(over="ignore", invalid="ignore", divide="ignore"):      # the loss is watched
        threads = f", {count} thread{'s' * (count != 1)}" + (" a process" if ranks.world is not None else "")
        limit = f", {options.memory_limit} of its memory" if options.memory_limit is not None else ""
        task.plan += [("device", options.device + (threads if options.device == "cpu" else limit)), *precision(options)]
        if options.device == "cpu" and not kernels.compiled():
            notes.append(("kernels", "the reference in NumPy; several times faster with pip install 'minidl[fast]'"))
            warnings.filterwarnings("ignore", "minidl would be several times faster")       # it has just been said
        task.notes += notes
        with kernels.allow_tf32(options.tf32):
            return only_test(options, task, ranks) if options.eval_only else run(options, task, config, ranks)


def fetched(options: SimpleNamespace) -> bytes:
    """The data are here now, if they had to be downloaded."""
    data.load(options.data, data_dir=options.data_dir)
    return b""


@contextmanager
def at_work(count: int | None) -> Iterator[int]:
    """Run a block on so many threads, on one a core (but no more than MOST) unless told otherwise; gives how many.

    The cores of a host are divided among the processes on it.
    """
    if count is None and find_spec("threadpoolctl") is None:
        yield 1
    else:
        with pool.threads(count or min(max(pool.cores() // ending.ranks_here(), 1), MOST)) as found:
            yield found


def only_test(options: SimpleNamespace, task: Task, ranks: Ranks) -> int:
    """`--eval-only`: the loss and accuracy of weights on the test data."""
    file, weights = weights_of(options.resume or options.weights)
    task.model.load_state_dict(weights)
    processes = [] if ranks.world is None else [("processes", f"{ranks.world.size}")]
    display = Display([*task.plan, *processes, ("weights", str(file)), *task.notes])
    display.show_plan()
    team = None if ranks.world is None else parallel.Team(ranks.world)
    loss, accuracy = evaluate(task.model, task.tests, task.objective, team, dtype=options.dtype)
    display.say(f"test loss {number(loss)}" + ("" if accuracy is None else f", accuracy {percent(accuracy)}"))
    return 0


def run(options: SimpleNamespace, task: Task, config: dict[str, Any] | None, ranks: Ranks) -> int:
    """Train in a folder: a new one, or that of the run that is resumed, whose config this is."""
    optimizer = make_optimizer(options, task.model, options.epochs * len(task.loader))
    new = config is None
    name = f"{Path(options.data).resolve().stem}-{options.model.rpartition(':')[2]}"
    folder = Path(os.fsdecode(ranks.agreed(options, lambda: os.fsencode(new_folder(options.out, name) if new else options.resume))))
    kept = task.config(options) | {"commands": [*(config or {"commands": []})["commands"], typed(ranks, sys.argv[1:])],
                                   "repeat": typed(ranks, spelled(options, ranks.world is not None)),
                                   "minidl": minidl.__version__, "numpy": np.__version__}
    record = Record(folder, kept, options.keep, options.checkpoint_every)
    display = Display(task.plan)
    journal = report.Journal(folder, kept, None if report.missing() else report.write, display.remark)
    team = parallel.Alone() if ranks.world is None else make_team(options, ranks.world)
    signals = StopOnSignal(display.stopping, lambda: getattr(team, "stands_by", False))
    measures = [Measure(folder, options.profile_steps or STEPS)] if options.profile else []
    with ExitStack() as open_until_the_end:
        for measure in measures:
            open_until_the_end.callback(measure.close)
        lead = Lead(team, ranks, partial(open_until_the_end.enter_context, claimed(folder)), record, display, journal)
        if ranks.first:
            open_until_the_end.enter_context(claimed(folder, empty=new))
        try:
            with signals, remarks(display):
                found = record.checkpoints.latest()
                if options.weights is not None and found is None:
                    task.model.load_state_dict(weights_of(options.weights)[1])
                task.plan += [*announced(options, optimizer, task, folder, found, ranks.world), *task.notes]
                fit(task.model, task.loader, task.tests, optimizer, options.epochs, [signals, lead, *measures], objective=task.objective,
                    accumulate=options.accumulate, clip=options.clip, capture=options.capture, dtype=options.dtype,
                    loss_scale=options.loss_scale, resume=found and (found.arrays, found.rest), team=team)
        except BaseException as error:
            display.stop()
            if new and ranks.first and not (signals.begun and signals.run.step):
                journal.discard()
                record.discard()                    # nothing was learned
            elif signals.begun:
                say_how_to_go_on(error, record.saved(signals.run), options, folder, ranks)
                page = journal.close(error)
                if page is not None:
                    error.add_note(f"Report: {page}")
            raise
        return closed(signals, display, options, task, folder, ranks, journal, measures) if signals.begun else 0


def typed(ranks: Ranks, words: Sequence[str]) -> str:
    """The command with these words as it is typed, but for what a launcher was told besides the number of processes."""
    if ending.launched():
        return shlex.join(["python", "-m", "minidl.launch", "-n", str(mpi.world().size), "--", *words])
    launcher = [] if ranks.world is None else ["mpiexec", "-n", str(ranks.world.size)]
    return shlex.join([*launcher, "python", "-m", "minidl.train", *words])


def say_how_to_go_on(error: BaseException, saved: int | None, options: SimpleNamespace, folder: Path, ranks: Ranks) -> None:
    """Add to an error that has ended a run at which step it was saved last, and what to type."""
    slower = f"{options.lr / 10:g}"
    if saved == 0 and isinstance(error, NumericsError):
        error.add_note(f"Nothing was learned before it. Start again, for example with --lr {slower}.")
    elif saved is not None:
        retry = ("--lr", slower) if isinstance(error, NumericsError) else ()
        error.add_note(f"The last good checkpoint is of step {saved:,}. To go on from there:\n"
                       + ranks.command(options, "--resume", folder, *retry))


def weights_of(place: Path) -> tuple[Path, dict[str, Any]]:
    """The weights in a safetensors file or in the last checkpoint of a run's folder, and which file that is."""
    if not place.is_dir():
        arrays = load(place)[0]
        return place, part(arrays, "model.") or arrays
    found = Checkpoints(place / "checkpoint").latest()
    if found is None:
        raise CheckpointError(f"{place}: there is no checkpoint in it", hint="Give a safetensors file, or the folder of a run.")
    for damaged in found.damaged:
        tell(text=f"{damaged} is damaged, {found.file.name} is taken instead.")
    return found.file, part(found.arrays, "model.")


def closed(signals: StopOnSignal, display: Display, options: SimpleNamespace, task: Task, folder: Path, ranks: Ranks,
           journal: report.Journal, measures: Sequence[Measure] = ()) -> int:
    """The last words after the loop; gives the exit status."""
    run = signals.run
    stopped = run.ended and not run.finished
    if run.team.leads:
        display.stop()
        if not stopped:
            display.summary(run)
        for line, style in (line for measure in measures for line in measure.lines(min(display.console.width, 100) - 2)):
            display.console.print() if not line else display.say(line, style)
        if stopped:
            show_report(journal, display)
            display.say(f"Stopped after step {run.step:,}, in epoch {run.epoch + 1}. All is saved; to go on:", "bold")
            display.say(ranks.command(options, "--resume", folder))
        else:
            display.say(f"results: {folder}")
            if run.epoch and run.step == display.began_at:
                more = ranks.command(options, "--resume", folder, "--epochs", f"{2 * run.epoch}")
                display.say(f"This run has finished its {run.epoch} epochs. To train on: {more}")
            elif task.objective.right is not None and len(task.train.shape) == 3:
                display.say(f"classify images: {command('predict', folder, 'IMAGE...')}")
        if not stopped:
            show_report(journal, display)
    return 128 + ranks.highest(signals.number) if stopped else 0            # the signal may have come to another process only


def show_report(journal: report.Journal, display: Display) -> None:
    """Have the last page of a run written, and say where it is."""
    page = journal.close()
    if page is not None:
        display.say(f"report: {page}")


@contextmanager
def remarks(display: Display) -> Iterator[None]:
    """Within the block what K-FAC warns of stands between the display's lines, each thing once; other warnings come as they do."""
    said: set[str] = set()

    def show(message: Warning | str, *where: Any, **options: Any) -> None:
        text = str(message)
        if not text.startswith("KFAC: "):
            before(message, *where, **options)
        elif text not in said:
            said.add(text)
            display.remark(text)

    with warnings.catch_warnings():
        warnings.filterwarnings("always", "KFAC: ")             # also where warnings are errors, or nothing
        before, warnings.showwarning = warnings.showwarning, show
        yield


class StopOnSignal(Callback):
    """Ctrl-C, a job scheduler's SIGTERM or the end of the terminal ask the loop to stop after its minibatch; a second time stops at once.

    stopping: called when the loop is asked. spare: whether this process only stands by, and ends when the others do.
    """

    run: Run                                    # once it has begun

    def __init__(self, stopping: Callable[[], None], spare: Callable[[], bool] = lambda: False):
        self.stopping, self.spare = stopping, spare
        self.begun = False
        self.number = 0                         # of the signal, once there is one
        self.before: dict[int, Any] = {}

    def start(self, run: Run) -> None:
        """From now on there is a loop to stop."""
        self.run, self.begun = run, True
        run.stop = run.stop or self.number > 0

    def __enter__(self) -> None:
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            which = getattr(signal, name, None)                                         # Windows has fewer
            if which is not None and (name != "SIGHUP" or signal.getsignal(which) != signal.SIG_IGN):           # as nohup wants it
                self.before[which] = signal.signal(which, self.received)

    def __exit__(self, *error: Any) -> None:
        for which, handler in self.before.items():
            signal.signal(which, signal.SIG_DFL if handler is None else handler)        # None: it was not Python that set it

    def received(self, number: int, frame: Any) -> None:
        """The signal handler."""
        again, self.number = self.number > 0, number
        if again or not (self.begun or self.spare()):
            raise KeyboardInterrupt(number)
        if self.begun:
            self.run.stop = True
            self.stopping()


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command(context_settings={"help_option_names": ["-h", "--help"]})
def main(
    context: typer.Context,
    model: Annotated[str, typer.Option(metavar="NAME", help="A name (mlp, lenet, cnn, resnet18, autoencoder), or package.module:function.")]
    = "lenet",
    data: Annotated[str, typer.Option(metavar="NAME", help="A name (digits, mnist, fashion-mnist, cifar10), FILE.npz, or a folder with a "
                                      "sub-folder of images for each class.")] = "digits",
    data_dir: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Where named data sets lie, or are downloaded to.")] = None,
    normalise: Annotated[bool, typer.Option(help="Bring each channel to mean 0 and deviation 1 first.")] = False,
    augment: Annotated[str, typer.Option(metavar="NAME", help="none, shift, crop-flip; or usual: what the data set is used to.")] = "usual",
    epochs: Annotated[int | None, typer.Option(metavar="N", help="Passes over the training data, in all. A schedule is stretched over "
                                               "them, also where a run is resumed with more.  [default: 100 for digits, else 10]")] = None,
    batch_size: Annotated[int, typer.Option(metavar="N", help="Examples in a minibatch.")] = 32,
    accumulate: Annotated[int, typer.Option(metavar="N", help="Parts in which a minibatch goes through the model, to save memory.")] = 1,
    optimizer: Annotated[str, typer.Option(metavar="NAME", help="sgd, adam, adamw, or kfac: the natural gradient.")] = "sgd",
    lr: Annotated[float | None, typer.Option(help="Learning rate.  [default: 0.05 for sgd, 0.03 for kfac, else 0.001]")] = None,
    momentum: Annotated[float | None, typer.Option(help="Momentum of sgd and kfac.  [default: 0.9]")] = None,
    damping: Annotated[float | None, typer.Option(help="Of kfac: added to the Fisher matrix; the more, the nearer to the plain gradient."
                                                  "  [default: 0.1]")] = None,
    kl_clip: Annotated[float | None, typer.Option(metavar="NATS", help="Of kfac: how far a step may move the prediction, as twice a KL "
                                                  "divergence.  [default: 0.001]")] = None,
    fisher: Annotated[str | None, typer.Option(metavar="NAME", help="Of kfac: sampled (from the prediction), empirical (at the labels: "
                                               "cheaper), or exact (slow).  [default: sampled]")] = None,
    factor_interval: Annotated[CountOrWord | None, typer.Option(parser=CountOrWord, metavar="STEPS", help="Of kfac: from one look at the "
                                                                "layers to the next, or adaptive.  [default: 10]")] = None,
    inverse_interval: Annotated[int | None, typer.Option(metavar="STEPS", help="Of kfac: from one inversion of the Kronecker factors to "
                                                         "the next.  [default: 10; 100 if one has over 500 rows]")] = None,
    weight_decay: Annotated[float, typer.Option(help="Weight decay, of weights alone: not of b, gamma and beta.")] = 0.001,
    schedule: Annotated[str, typer.Option(metavar="NAME", help="Of the learning rate: constant, step, cosine, polynomial.")] = "cosine",
    warm_up: Annotated[int, typer.Option(metavar="STEPS", help="Steps in which the learning rate rises first.")] = 0,
    clip: Annotated[float | None, typer.Option(metavar="NORM", help="The largest norm that the gradient may have.")] = None,
    label_smoothing: Annotated[float, typer.Option(help="The part of a label that is spread over all classes.")] = 0.1,
    dtype: Annotated[str, typer.Option(metavar="NAME", help="What activations are stored in: float32, or float16, bfloat16 beside float32 "
                                       "weights.")] = "float32",
    loss_scale: Annotated[NumberOrWord | None, typer.Option(parser=NumberOrWord, metavar="SCALE", help="What the loss is multiplied by, so "
                                                            "that gradients of 16 bits do not vanish: dynamic, or a number.  [default: "
                                                            "dynamic for float16, else 1]")] = None,
    tf32: Annotated[bool, typer.Option("--tf32", help="On a GPU, round the factors of float32 products to TF32: faster.")] = False,
    device: Annotated[str, typer.Option(metavar="NAME", help="cpu, cuda:0, ...; cuda: of many processes, a GPU each.")] = "cpu",
    memory_limit: Annotated[str | None, typer.Option(metavar="SIZE", help="Of a GPU's memory: 8GiB, 500MB, 50%.  [default: all]")] = None,
    threads: Annotated[int | None, typer.Option(metavar="N", help="Threads that kernels work on.  [default: one a core]")] = None,
    capture: Annotated[bool, typer.Option("--capture", help="On a GPU, record training steps once and replay them: small networks gain.")]
    = False,
    exchange: Annotated[str | None, typer.Option(metavar="NAME", help="Of many processes (minidl.launch, or mpiexec): allreduce or "
                                                 "master-worker.  [default: allreduce]")] = None,
    overlap: Annotated[str | None, typer.Option(metavar="NAME", help="What goes on during the exchange: none (nothing), backward (that "
                                                "pass), or forward (the next one too).  [default: backward]")] = None,
    compress: Annotated[str | None, typer.Option(metavar="NAME", help="What is exchanged: none, fp16, int8, topk:0.01.  [default: none]")]
    = None,
    feedback: Annotated[bool | None, typer.Option("--feedback/--no-feedback", help="Send later what compression leaves out.  "
                                                  "[default: feedback]")] = None,
    chunk_size: Annotated[int | None, typer.Option(metavar="KB", help="What is sent as one.  [default: 256]")] = None,
    master_computes: Annotated[bool | None, typer.Option("--master-computes/--no-master-computes", help="Whether the master trains as the "
                                                         "workers do.  [default: master-computes]")] = None,
    sync_batch_norm: Annotated[bool | None, typer.Option("--sync-batch-norm", help="Batch normalization over the whole minibatch, and not "
                                                         "over each process's part.")] = None,
    elastic: Annotated[bool | None, typer.Option("--elastic", help="Go on when processes die (Open MPI 5, mpiexec --with-ft ulfm).")]
    = None,
    spares: Annotated[int | None, typer.Option(metavar="S", help="Processes that stand by for --elastic.  [default: 0]")] = None,
    log_dir: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Where each process keeps a log.")] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Of the weights, the order, the augmentation and kfac's samples.")] = 0,
    weights: Annotated[Path | None, typer.Option(metavar="FILE", help="Start from these: a safetensors file, or a run's folder.")] = None,
    eval_only: Annotated[bool, typer.Option("--eval-only", help="Only test, with --weights or --resume.")] = False,
    out: Annotated[Path | None, typer.Option(metavar="FOLDER", help="The run's folder.  [default: the next free one under runs/]")] = None,
    checkpoint_every: Annotated[int | None, typer.Option(metavar="STEPS", help="Checkpoints within an epoch too.")] = None,
    keep: Annotated[int, typer.Option(metavar="K", help="Checkpoints to keep.")] = 2,
    profile: Annotated[bool, typer.Option("--profile", help="Say where time and memory go: a table, and trace.json for Perfetto.")] = False,
    profile_steps: Annotated[int | None, typer.Option(metavar="N", help="Steps in that whose operations are written down.  "
                                                      "[default: 100]")] = None,
    resume: Annotated[Path | None, typer.Option(metavar="RUN", help="Go on with the run in this folder, with its options.")] = None,
    config: Annotated[Path | None, typer.Option(metavar="FILE.toml", help="Any of these options; the command line wins.")] = None,
) -> None:
    """Train a model. Without any option: LeNet on handwritten digits.

    Ctrl-C saves, and says how to go on.
    """
    with errors_told():
        raise SystemExit(begin(context))


if __name__ == "__main__":
    app()
