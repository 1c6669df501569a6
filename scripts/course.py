"""The notebooks: read from their source, written for learners and for who wants to see them solved, and run.

A notebook is written in notebooks/source/NAME.py, in cells. Each begins with a line that says what it is and what it is called:

    # %% [markdown] outcomes            words, as comments; the same name again with [de] at the end is the German of them
    # %% first-look                     code
    # %% fails mixing-devices           code that is to raise an error, and shows it
    # %% exercise count                 what the learner finds, with ... for what is missing
    # %% solution count                 what would be right instead; the words of `# %% because count` say why
    # %% wrong count forgets the bias   what would be wrong, and must be found out by the check
    # %% check count                    says which it is

From it are made notebooks/NAME.ipynb, without outputs, since it asks for predictions, and notebooks/solutions/NAME.ipynb, solved and run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
SOURCES = sorted((NOTEBOOKS / "source").glob("*.py"))
HEAD = re.compile(r"# %%(?P<kind> (?:\[markdown\]|fails|exercise|solution|because|wrong|check))? (?P<name>[a-z0-9-]+)(?P<rest> .*)?")
WIDEST = 96                 # characters of a line of code
OF_EXERCISES = ("solution", "because", "wrong", "check")


class SourceError(Exception):
    """A source that breaks the rules above."""


@dataclass
class Cell:
    kind: str           # "markdown", "code", "fails", "exercise", "solution", "because", "wrong" or "check"
    name: str
    rest: str           # what else stands in its first line: a language, or what is wrong
    text: str

    @property
    def language(self) -> str:
        return self.rest[1:-1] if self.kind in ("markdown", "because") and self.rest else "en"


def read(source: Path) -> list[Cell]:
    """The cells of a source, which is held against the rules."""
    cells: list[Cell] = []
    for number, line in enumerate(source.read_text().splitlines(), 1):
        if line.startswith("# %%"):
            head = HEAD.fullmatch(line)
            if head is None:
                raise SourceError(f"{source.name}:{number}: {line!r} begins no cell")
            kind = (head["kind"] or "code").strip(" []")
            cells.append(Cell(kind, head["name"], (head["rest"] or "").strip(), ""))
        elif cells:
            cells[-1].text += line + "\n"
        elif line:
            raise SourceError(f"{source.name}:{number}: something stands before the first cell")
    for cell in cells:
        words = cell.kind in ("markdown", "because")
        cell.text = re.sub(r"^# ?", "", cell.text.strip("\n"), flags=re.MULTILINE) if words else cell.text.strip("\n")
    hold(source, cells)
    return cells


def hold(source: Path, cells: list[Cell]) -> None:
    """SourceError unless names are unique and each exercise has all that belongs to it."""
    shown = [(cell.name, cell.language) for cell in cells if cell.kind not in OF_EXERCISES]
    for name, language in shown:
        if shown.count((name, language)) > 1:
            raise SourceError(f"{source.name}: two cells are called {name}")
        if (name, "en") not in shown:
            raise SourceError(f"{source.name}: {name} has words in {language} and none in English")
    for cell in cells:
        if cell.kind not in ("markdown", "because") and any(len(line) > WIDEST for line in cell.text.splitlines()):
            raise SourceError(f"{source.name}: {cell.name} has a line of more than {WIDEST} characters, of which a page would show a part")
    exercises = {cell.name for cell in cells if cell.kind == "exercise"}
    for kind in OF_EXERCISES:
        there = {cell.name for cell in cells if cell.kind == kind}
        if there != exercises:
            raise SourceError(f"{source.name}: {', '.join(sorted(there ^ exercises))}: an exercise or its {kind} is missing")


def learners(cells: list[Cell], language: str = "en") -> Any:
    """The notebook as a learner gets it. Where there are no words in the language, they are English."""
    made = []
    for cell in spoken(cells, language):
        if cell.kind == "markdown":
            made.append(new_markdown_cell(cell.text, id=cell.name))
        elif cell.kind in ("code", "fails", "exercise", "check"):
            made.append(code(cell))
    return bound(made, language)


def solved(cells: list[Cell], language: str = "en") -> Any:
    """The notebook with a solution after each exercise, and why."""
    made = []
    for cell in spoken(cells, language):
        if cell.kind == "markdown":
            made.append(new_markdown_cell(cell.text, id=cell.name))
        elif cell.kind == "because":
            made.append(new_markdown_cell(f"**Solution.** {cell.text}", id=f"because-{cell.name}"))
        elif cell.kind in ("code", "fails", "solution", "check"):
            made.append(code(cell))
    return bound(made, language)


def spoken(cells: list[Cell], language: str) -> Iterator[Cell]:
    """The cells, with words in one language."""
    there = {(cell.kind, cell.name) for cell in cells if cell.language == language}
    for cell in cells:
        if cell.kind not in ("markdown", "because") or cell.language == (language if (cell.kind, cell.name) in there else "en"):
            yield cell


def code(cell: Cell) -> Any:
    name = f"{cell.kind}-{cell.name}" if cell.kind in ("check", "solution") else cell.name
    return new_code_cell(cell.text, id=name, metadata={"tags": ["raises-exception"]} if cell.kind == "fails" else {})


def bound(cells: list[Any], language: str) -> Any:
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return new_notebook(cells=cells, metadata={"kernelspec": kernel, "language_info": {"name": "python"}, "language": language})


def write(notebook: Any, file: Path) -> None:
    """To a file, with nothing in it that differs from one time to the next without reason."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    file.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, file)


def client(notebook: Any, seconds: int = 120) -> NotebookClient:
    """What runs a notebook's cells, where a learner would, for so long each at most."""
    return NotebookClient(notebook, timeout=seconds, kernel_name="python3", resources={"metadata": {"path": str(NOTEBOOKS)}},
                          extra_arguments=["--IPKernelApp.log_level=ERROR"])


def run(notebook: Any) -> Any:
    """The notebook with what its cells have shown. nbclient's CellExecutionError for an error that was not meant."""
    client(notebook).execute()
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                # the error itself, and its notes; the lines of code before it hold paths of this machine
                own = [i for i, part in enumerate(output.traceback) if re.sub(r"\x1b\[[\d;]*m", "", part).startswith(f"{output.ename}:")]
                output.traceback = output.traceback[own[-1] if own else -1:]
    return notebook


def shown(cell: Any) -> str:
    """What a cell has shown, as plain text."""
    parts = []
    for output in cell.get("outputs", []):
        parts.append(output.get("text", "") or output.get("data", {}).get("text/plain", "") or "\n".join(output.get("traceback", [])))
    return "\n".join(parts)
