"""`python -m minidl.launch -n 4 -- OPTIONS`: train with many processes, on this host or on many.

It checks the options, starts `python -m minidl.train OPTIONS` on each rank, and answers for how they end. How it does that is in
parallel/launch_command.py and parallel/launch_job.py; without launch, `mpiexec -n 4 python -m minidl.train --exchange allreduce` works too.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, cast

import typer

from minidl import train as training
from minidl.config import gather
from minidl.display import errors_told, tell
from minidl.errors import ConfigError
from minidl.parallel.launch_command import command_line, find_mpiexec, placed
from minidl.parallel.launch_job import launch

TRAIN, SELFTEST = "minidl.train", "minidl.parallel.selftest"
LIKE = "It looks like: python -m minidl.launch -n 4 -- --epochs 5"


def checked(words: list[str]) -> SimpleNamespace:
    """The options of the training command that these words come to. What is wrong with them is said here, once."""
    command = typer.main.get_command(training.app)
    with command.make_context(f"python -m {TRAIN}", list(words)) as context:
        return gather(cast(typer.Context, context), training.main)


def completed(words: list[str], options: SimpleNamespace, elastic: bool, spares: int, log_dir: Path | None) -> list[str]:
    """The words for the training command, with what it is to know of launch's options."""
    more: list[str] = []
    if options.exchange is None:
        more += ["--exchange", "allreduce"]
    if elastic and not options.elastic:
        more += ["--elastic"]
    if spares:
        more += ["--spares", str(spares)]
    if log_dir is not None:
        more += ["--log-dir", str(log_dir)]
    return [*words, *more]


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command(context_settings={"help_option_names": ["-h", "--help"], "ignore_unknown_options": True},
             options_metavar="-n N [OPTIONS] -- [OPTIONS OF minidl.train]")
def main(
    context: typer.Context,
    misplaced: Annotated[list[str] | None, typer.Argument(hidden=True)] = None,
    ranks: Annotated[int | None, typer.Option("-n", metavar="N", help="How many processes train.")] = None,
    hosts: Annotated[str | None, typer.Option(metavar="A,B:4", help="Where, if not on this host or those of a job scheduler; after a : the "
                                              "number of processes there.")] = None,
    elastic: Annotated[bool, typer.Option("--elastic", help="Go on when a process dies, with those that are left.")] = False,
    spares: Annotated[int, typer.Option(metavar="S", help="Further processes that take the place of those that die; implies "
                                        "--elastic.")] = 0,
    log_dir: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Where each rank keeps a log of its own.")] = None,
    timeout: Annotated[float | None, typer.Option(metavar="SECONDS", help="End everything after that time.")] = None,
    mpiexec: Annotated[Path | None, typer.Option(metavar="FILE", help="Open MPI's, if not that beside Python or on the PATH.")] = None,
    selftest: Annotated[bool, typer.Option("--selftest", help="Instead of training: test and measure what is between the "
                                           "processes.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show the command that would be run.")] = False,
) -> None:
    """Train with many processes. What stands after -- are options of python -m minidl.train.

    Ctrl-C lets them finish their minibatch and save; a second one ends them at once. No process is left behind.
    """
    with errors_told():
        words = list(context.obj or [])
        if misplaced:
            raise ConfigError(f"launch: {misplaced[0]!r} is none of its options",
                              hint=f"Options of the training command come after --. {LIKE}")
        if ranks is None or ranks < 1 or spares < 0:
            what = "-n is missing: how many processes?" if ranks is None else f"-n {ranks}" if ranks < 1 else f"--spares {spares}"
            raise ConfigError(f"launch: {what}", hint=LIKE)
        if timeout is not None and timeout <= 0:
            raise ConfigError(f"launch: --timeout {timeout:g}")
        if selftest and words:
            raise ConfigError(f"launch: --selftest trains nothing, and has no use for {words[0]}")
        where = None if hosts is None else placed(hosts, ranks + spares)
        program, elastic = [SELFTEST], elastic or spares > 0
        if not selftest:
            options = checked(words)
            program = [TRAIN, *completed(words, options, elastic, spares, log_dir)]
            elastic = elastic or bool(options.elastic)
        command = command_line(find_mpiexec(mpiexec), ranks + spares, [sys.executable, "-m", *program], where, elastic)
        if dry_run:
            print(shlex.join(command))
            raise SystemExit(0)
        outcome = launch(command, hosts is None, timeout, elastic)
        if outcome.words:
            tell(text=outcome.words)
        raise SystemExit(outcome.status)


def command() -> None:
    """The command line, cut in two at the first --."""
    words = sys.argv[1:]
    at = words.index("--") if "--" in words else len(words)
    app(words[:at], obj=words[at + 1:])


if __name__ == "__main__":
    command()
