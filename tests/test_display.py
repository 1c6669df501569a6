"""What a run looks like: on terminals of any width, and in a pipe."""

import io
import re

import pytest
from rich.console import Console

from minidl import display as module
from minidl import nn, optim
from minidl.data import Loader
from minidl.display import Display, closing_table, duration, errors_told, number, percent
from minidl.errors import ConfigError, DataError, ShapeError
from minidl.run import Run

PLAN = [("data", "digits: 1,437 examples to train on, 360 to test on"), ("", "1 x 8 x 8 numbers each, 10 classes"),
        ("run", "/a/folder/with/a/name/that/is/longer/than/any/terminal/is/wide/" + "x" * 80)]


def metrics(epoch, accuracy=0.5, **changes):
    return {"epoch": epoch, "train_loss": 2.34567, "train_accuracy": 0.1234, "test_loss": 1.5, "test_accuracy": accuracy, "seconds": 12.345,
            "images_per_second": 12345.6} | changes


def shown(width=80, terminal=True, epochs=40, history=(), right=1):
    """What a Display writes for a run of two steps and an epoch."""
    console = Console(file=io.StringIO(), width=width, force_terminal=terminal, color_system="standard" if terminal else None)
    model = nn.Affine(1, 2, generator=0)
    run = Run(model, optim.SGD(model, 0.1), Loader(([[0.0]] * 4, [0] * 4), batch_size=2), epochs, history=list(history))
    display = Display(PLAN, console)
    display.start(run)
    for step in (1, 2):
        run.step, run.minibatch, run.seen, run.loss, run.right, run.seconds = run.step + 1, step, 2 * step, 3.0, right, 0.01
        display.step(run, 1.5)
        if display.bar is not None:
            display.bar.refresh()
    run.history.append(metrics(len(run.history) + 1, right and 0.5, train_accuracy=right and 0.1234))
    display.epoch(run, run.history[-1])
    display.summary(run)
    return console.file.getvalue()


def lines(text):
    """The lines that stand there, without what colours them or moves the cursor; each state of the bar is a line too."""
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text).replace("\r", "\n").splitlines()


class TestWords:
    @pytest.mark.parametrize("share, words", [(0.9917, "99.17 %"), (1.0, "100.00 %"), (0.0, "0.00 %"), (None, "-")])
    def test_percent(self, share, words):
        assert percent(share) == words

    @pytest.mark.parametrize("x, words", [(0.123456, "0.1235"), (123.4, "123.4000"), (1.5e9, "1.5e+09"), (-2000.0, "-2e+03"), (None, "-")])
    def test_number(self, x, words):
        assert number(x) == words

    @pytest.mark.parametrize("seconds, words", [(5.25, "5.2 s"), (75.2, "1 min 15 s"), (119.9, "2 min 0 s"), (3700, "1 h 1 min")])
    def test_duration(self, seconds, words):
        assert duration(seconds) == words


class TestOnATerminal:
    @pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
    @pytest.mark.parametrize("epochs", [1, 40, 10_000])
    def test_no_line_is_wider_than_it_but_a_path(self, width, epochs):
        for line in lines(shown(width, epochs=epochs)):
            assert len(line) <= width or "/a/folder" in line, line

    def test_a_bar_shows_epoch_loss_accuracy_and_images_per_second(self):
        bars = [line for line in lines(shown()) if "epoch 1/40" in line]
        assert any("loss 0.7500  accuracy 25.00 %  400 images/s" in line for line in bars)
        assert all("━" in line for line in bars)

    def test_without_room_for_the_bar_there_are_its_words(self):
        bars = [line for line in lines(shown(60)) if "epoch 1/40" in line]
        assert any("loss 0.7500  25.00 %  400 images/s" in line for line in bars) and not any("━" in line for line in bars)

    def test_where_there_are_no_right_answers_no_accuracy_is_shown(self):
        text = shown(right=None)
        assert "loss 0.7500  400 images/s" in text and re.search(r"2\.3457 +- +1\.5000 +-", text)

    def test_the_bar_is_gone_at_the_end(self):
        assert "epoch 1/40" not in shown().rpartition("training")[2]


class TestInAPipe:
    def test_there_are_plain_lines_only(self):
        text = shown(200, terminal=False)
        assert "\x1b" not in text and "\r" not in text and "━" not in text
        assert all(line == line.rstrip() for line in text.splitlines())

    def test_what_is_done_comes_first_then_epochs_then_the_table(self):
        text = "\n".join(shown(200, terminal=False).split("\n"))
        parts = ("data       digits: 1,437", "epoch      loss", "     1    2.3457   12.34 %", "  test        1.5000")
        plan, head, line, table = map(text.index, parts)
        assert plan < head < line < table

    def test_columns_stand_under_their_heads(self):
        above, head, line = next(text for text in zip(*(shown(200, terminal=False).splitlines()[skip:] for skip in range(3)))
                                 if text[1].startswith("  epoch"))
        ends = [match.end() for match in re.finditer(r"\S+", head)]
        cells = [match.end() for match in re.finditer(r"\S+( %)?", line)]
        assert ends == cells
        assert above.index("training") < head.index("accuracy") < above.index("test") < head.rindex("accuracy")

    def test_a_run_that_goes_on_shows_what_was_before(self):
        text = shown(200, terminal=False, history=[metrics(1), metrics(2)])
        assert [line.split()[0] for line in text.splitlines() if line.endswith(("12.35", "12.34"))] == ["1", "2", "3"]


@pytest.mark.parametrize("width", [40, 60, 80])
def test_a_remark_is_wrapped_and_leaves_the_bar_below_it(width):
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system="standard")
    model = nn.Affine(1, 2, generator=0)
    display = Display(PLAN, console)
    display.start(Run(model, optim.SGD(model, 0.1), Loader(([[0.0]] * 4, [0] * 4), batch_size=2), 3))
    before = len(console.file.getvalue())
    display.remark("KFAC: these parameters take the plain gradient: [b]temperature (used by Mul), inner.scale (used by Mul)")
    display.bar.refresh()
    said = [line for line in lines(console.file.getvalue()[before:]) if line.strip()]
    display.stop()
    assert all(len(line) <= width for line in said) and "epoch 1/3" in said[-1]
    assert [line[:2] for line in said[:2]] == ["  "] * 2 and "[b]temperature" in "".join(said)


def test_a_display_that_takes_over_shows_the_bar_and_no_head(monkeypatch):
    console = Console(file=io.StringIO(), width=80, force_terminal=True)
    monkeypatch.setattr(module, "make_console", lambda: console)
    model = nn.Affine(1, 2, generator=0)
    run = Run(model, optim.SGD(model, 0.1), Loader(([[0.0]] * 4, [0] * 4), batch_size=2), 3, history=[metrics(1)])
    display = Display(PLAN, Console(file=io.StringIO()))
    display.begin(run)
    run.step, run.epoch = 3, 1
    display.take_over(run)
    run.step, run.history = 6, [metrics(1), metrics(2)]
    display.epoch(run, run.history[-1])
    display.summary(run)
    text = "\n".join(lines(console.file.getvalue()))
    assert "epoch 2/3" in text and "digits" not in text and "accuracy   images" not in text
    assert re.search(r"^ +2 +2\.3457", text, re.MULTILINE) and not re.search(r"^ +1 +2\.3457", text, re.MULTILINE)
    assert "6 updates in" in text


class TestClosingTable:
    def cells(self, *history):
        return [" ".join(cells).strip() for cells, _ in closing_table(history)]

    def test_has_the_last_epoch(self):
        assert self.cells(metrics(1), metrics(2, 0.75)) == ["loss accuracy", "training 2.3457 12.34 %", "test 1.5000 75.00 %"]

    def test_names_the_best_where_it_was_another(self):
        assert self.cells(metrics(1, 0.9), metrics(2, 0.75))[-1] == "test 1.5000 75.00 % (best: 90.00 % in epoch 1)"

    def test_says_nothing_of_another_that_was_as_good(self):
        assert self.cells(metrics(1, 0.75), metrics(2, 0.75))[-1] == "test 1.5000 75.00 %"

    def test_without_a_test_has_no_line_for_it(self):
        assert self.cells(metrics(1, None, test_loss=None)) == ["loss accuracy", "training 2.3457 12.34 %"]

    def test_without_accuracies_has_none(self):
        assert self.cells(metrics(1, None))[-1] == "test 1.5000 -"


class TestErrors:
    def told(self, capsys, error):
        with pytest.raises(SystemExit) as end, errors_told():
            raise error
        captured = capsys.readouterr()
        assert captured.out == ""
        return end.value.code, captured.err

    def test_an_error_of_minidl_s_is_told_in_its_words(self, capsys):
        assert self.told(capsys, DataError("npz: it is broken", file="[b]a.npz", hint="Mend it.")) == (
            1, "Error: npz: it is broken\n  file: [b]a.npz\n  Mend it.\n")

    def test_a_wrong_option_has_a_status_of_its_own(self, capsys):
        assert self.told(capsys, ConfigError("--lr is 0")) == (2, "Error: --lr is 0\n")

    def test_notes_come_last(self, capsys):
        error = ShapeError("add: wrong")
        error.add_note("The last one:\nis here")
        assert self.told(capsys, error) == (1, "Error: add: wrong\n  The last one:\n  is here\n")

    def test_a_long_line_stays_one(self, capsys):
        assert self.told(capsys, DataError("x" * 500))[1] == "Error: " + "x" * 500 + "\n"

    def test_too_little_memory_says_what_to_do(self, capsys):
        status, text = self.told(capsys, MemoryError("Unable to allocate 1 TiB"))
        assert status == 1 and text.startswith("Error: Out of memory: Unable to allocate 1 TiB\n  Use a smaller --batch-size")

    def test_too_little_memory_keeps_its_notes(self, capsys):
        error = MemoryError("Unable to allocate 1 TiB")
        error.add_note("The last one:\nis here")
        assert self.told(capsys, error)[1].endswith("--accumulate 4.\n  The last one:\n  is here\n")

    def test_words_are_told_as_they_are(self, capsys):
        assert self.told(capsys, DataError(":x: is [b]broken[/b]"))[1] == "Error: :x: is [b]broken[/b]\n"

    @pytest.mark.parametrize("error, status", [(KeyboardInterrupt(), 130), (KeyboardInterrupt(15), 143)])
    def test_a_signal_has_its_status(self, capsys, error, status):
        assert self.told(capsys, error) == (status, "Stopped at once.\n")

    def test_a_fault_in_a_program_is_let_through(self):
        with pytest.raises(ZeroDivisionError), errors_told():
            _ = 1 / 0
