"""`python -m minidl.report RUN`: make the page of a run anew; of several runs, one page that compares them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from minidl.display import errors_told, make_console
from minidl.report.compare import compare
from minidl.report.page import write


def main(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs.")],
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Where the page goes.  [default: report.html in the run's folder; of "
                                             "several runs, report.html here]")] = None,
) -> None:
    """Make the page of a run anew, or one that compares several runs."""
    with errors_told():
        file = write(runs[0], out) if len(runs) == 1 else compare(runs, out or "report.html")
        make_console().print(str(file), highlight=False, markup=False, soft_wrap=True)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command(context_settings={"help_option_names": ["-h", "--help"]})(main)
    app()
