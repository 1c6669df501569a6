"""The course runs from top to bottom as a learner finds it, and its exercises tell right answers from wrong ones."""

import pytest

nbformat = pytest.importorskip("nbformat", reason="the notebooks need the extra notebooks")
pytest.importorskip("nbclient", reason="the notebooks need the extra notebooks")
pytest.importorskip("matplotlib", reason="the notebooks need the extra viz")

import course  # noqa: E402
from nbformat.v4 import new_code_cell  # noqa: E402

SMALL = """# %% [markdown] first
# # Words

# %% [markdown] first [de]
# # Wörter

# %% hello
print("hello")

# %% exercise sum
answer = ...

# %% solution sum
answer = 3

# %% [markdown] after
# More.

# %% because sum
# One and two.

# %% wrong sum off by one
answer = 2

# %% check sum
answer
"""


@pytest.fixture
def small(tmp_path):
    def written(text=SMALL):
        (tmp_path / "small.py").write_text(text)
        return course.read(tmp_path / "small.py")
    return written


class TestSource:
    def test_is_what_learners_get_without_solutions(self, small):
        notebook = course.learners(small())
        assert [cell.id for cell in notebook.cells] == ["first", "hello", "sum", "after", "check-sum"]
        assert [cell.source for cell in notebook.cells[:3]] == ["# Words", 'print("hello")', "answer = ..."]
        nbformat.validate(notebook)

    def test_is_solved_with_the_reason(self, small):
        notebook = course.solved(small())
        assert [cell.id for cell in notebook.cells] == ["first", "hello", "solution-sum", "after", "because-sum", "check-sum"]
        nbformat.validate(notebook)

    def test_has_one_code_and_words_in_several_languages(self, small):
        notebook = course.learners(small(), "de")
        assert [cell.source for cell in notebook.cells[:2]] == ["# Wörter", 'print("hello")']
        assert notebook.cells[3].source == "More."
        assert notebook.metadata.language == "de"

    @pytest.mark.parametrize("old, new, said", [
        ("# %% hello", "# %% first", "two cells are called first"),
        ("# %% hello", "# %% Hello!", "begins no cell"),
        ("# %% wrong sum off by one\nanswer = 2\n", "", "sum: an exercise or its wrong is missing"),
        ("# %% check sum", "# %% check product", "product, sum: an exercise or its check is missing"),
        ("# %% [markdown] after", "# %% [markdown] after [de]", "after has words in de and none in English"),
        ("# %% [markdown] first\n", "print()\n# %% [markdown] first\n", "before the first cell"),
        ('print("hello")', f'print("hello{"o" * 90}")', "hello has a line of more than 96 characters"),
    ])
    def test_that_breaks_a_rule_is_refused(self, small, old, new, said):
        with pytest.raises(course.SourceError, match=said):
            small(SMALL.replace(old, new, 1))


@pytest.mark.parametrize("source", course.SOURCES, ids=lambda source: source.stem)
class TestCourse:
    def test_is_made_from_its_source(self, source):
        """`scripts/notebooks` was run after the last change."""
        cells = course.read(source)
        for made, file in ((course.learners(cells), course.NOTEBOOKS / source.with_suffix(".ipynb").name),
                           (course.solved(cells), course.NOTEBOOKS / "solutions" / source.with_suffix(".ipynb").name)):
            written = nbformat.read(file, as_version=4)
            assert [(cell.id, cell.cell_type, cell.source) for cell in written.cells] == \
                   [(cell.id, cell.cell_type, cell.source) for cell in made.cells], file

    def test_runs_and_its_exercises_find_out_what_is_wrong(self, source):
        """In one kernel: each exercise as it is found, then every wrong answer, the solution, and as it was again."""
        cells = course.read(source)
        notebook = course.learners(cells)
        answers = {cell.name: [other for other in cells if other.name == cell.name and other.kind in ("wrong", "solution")]
                   for cell in cells if cell.kind == "exercise"}
        client = course.client(notebook)
        with client.setup_kernel():
            def said(text, name="answer"):
                cell = new_code_cell(text, id=name)
                notebook.cells.append(cell)
                client.execute_cell(cell, len(notebook.cells) - 1)
                return course.shown(notebook.cells.pop())

            for index, cell in enumerate(list(notebook.cells)):
                client.execute_cell(cell, index)
                if not cell.id.startswith("check-"):
                    continue
                name = cell.id.removeprefix("check-")
                assert "○ Yours to do." in course.shown(cell) and "✘" not in course.shown(cell), name
                for answer in answers[name]:
                    said(answer.text)
                    verdict = said(cell.source)
                    if answer.kind == "wrong":
                        assert "✘ Not yet." in verdict, f"{name}: {answer.rest}: {verdict}"
                    else:
                        assert "✔ Right." in verdict and "✘" not in verdict and "○" not in verdict, f"{name}: {verdict}"
                said(next(other.text for other in cells if other.kind == "exercise" and other.name == name))
