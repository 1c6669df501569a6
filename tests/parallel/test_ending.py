"""Ranks end together, with one voice and the right status, under a plain mpiexec; and rank 0 alone prints. Under launch: test_launch.py."""

import io
import os
import signal
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import endings
import pytest
from ranks import needs_mpi, run_mpi

from minidl.errors import ConfigError, MinidlError, ShapeError
from minidl.parallel import ending, local, quiet


def alone():
    return SimpleNamespace(rank=0, size=1)


def ended(tmp_path, word, who, *, ranks=3, **options):
    return run_mpi([endings.__file__], ranks, word, who, cwd=tmp_path, **options)


class TestEndTogether:
    """Of processes. Who hangs is ended by run_mpi after two minutes, which fails the test."""

    @needs_mpi
    @pytest.mark.parametrize("word, status, says", [
        ("raise", 1, "KeyError: 'broken'"), ("raise in a thread", 1, "ZeroDivisionError: division by zero"),
        ("raise of minidl", 1, "Error: conv2d: broken"), ("exit", 3, ""), ("stop at once", 130, "Stopped at once."),
        ("lose", 1, "Error: a process has died"),
    ])
    def test_what_goes_wrong_on_one_rank_ends_all_and_is_told_once(self, tmp_path, word, status, says):
        ran = ended(tmp_path, word, 1)
        assert (ran.status, ran.left) == (status, [])
        assert ran.errors.count(says) == 1 or not says
        assert "Traceback" not in ran.errors or ran.errors.count("Traceback") == 1
        assert ("of 3, on " in ran.errors) == (word in ("raise", "raise of minidl", "raise in a thread", "lose"))
        assert ending.MARK not in ran.errors

    @needs_mpi
    @pytest.mark.parametrize("word, status, says", [("raise", 1, "KeyError: 'broken'"), ("raise of options", 2, "Error: broken"),
                                                    ("lose", 1, "Error: a process has died"), ("stop at once", 130, "Stopped at once.")])
    def test_what_goes_wrong_on_all_ranks_is_told_once(self, tmp_path, word, status, says):
        ran = ended(tmp_path, word, -1)
        assert (ran.status, ran.errors.count(says), ran.left) == (status, 1, [])

    @needs_mpi
    def test_ranks_of_a_job_that_outlives_its_ranks_end_too(self, tmp_path):
        ran = ended(tmp_path, "raise", 1, ulfm=True)
        assert (ran.status, ran.errors.count("KeyError: 'broken'"), ran.left) == (1, 1, [])

    @needs_mpi
    def test_work_that_is_done_ends_with_0_and_without_a_word(self, tmp_path):
        ran = ended(tmp_path, "finish", 0)
        assert (ran.status, ran.out, ran.left) == (0, "rank 0 prints\n", [])
        assert "rank 0 warns" in ran.errors and "rank 1" not in ran.errors and ending.MARK not in ran.errors

    @pytest.mark.parametrize("error", [KeyError("broken"), ShapeError("broken"), KeyboardInterrupt(), SystemExit(3), SystemExit("why")])
    def test_one_rank_alone_needs_no_help(self, error, capsys):
        with pytest.raises(type(error)) as raised, ending.end_together(alone()):
            raise error
        assert raised.value is error and error.args == raised.value.args
        assert capsys.readouterr() == ("", "")

    @pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
    def test_threads_of_one_rank_alone_raise_as_always(self):
        seen, before = [], threading.excepthook
        threading.excepthook = seen.append
        try:
            with ending.end_together(alone()):
                thread = threading.Thread(target=lambda: 1 / 0)
                thread.start()
                thread.join()
            assert threading.excepthook == seen.append
        finally:
            threading.excepthook = before
        assert [failure.exc_type for failure in seen] == [ZeroDivisionError]

    @pytest.mark.parametrize("error, status", [
        (SystemExit(), 0), (SystemExit(None), 0), (SystemExit(3), 3), (SystemExit("why"), 1), (KeyboardInterrupt(), 130),
        (KeyboardInterrupt(15), 143), (ConfigError("which"), 2), (MinidlError("what"), 1), (MemoryError(), 1),
    ])
    def test_the_status_is_that_of_the_commands(self, error, status):
        assert ending.status_of(error) == status

    def test_an_error_that_tells_itself_badly_still_ends_all(self, monkeypatch):
        """The printing function raises: whatever comes of it, `abort` is reached."""
        ends = []
        monkeypatch.setattr(ending, "end_all", lambda communicator, status: ends.append(status))
        monkeypatch.setattr(sys, "stderr", io.StringIO())
        with pytest.raises(ShapeError), ending.end_together(SimpleNamespace(rank=0, size=2), lambda error: 1 / 0):
            raise ShapeError("broken")
        assert ends == [1] and "ZeroDivisionError" in sys.stderr.getvalue()


class TestReports:
    @pytest.fixture
    def heard(self, monkeypatch):
        """What is written to stderr itself."""
        pieces = []
        monkeypatch.setattr(ending.os, "write", lambda number, content: pieces.append((number, content)))
        return pieces

    def test_go_to_launch_alone(self, heard, monkeypatch):
        monkeypatch.delenv(ending.VARIABLE, raising=False)
        ending.report("finished", 0, 0)
        assert heard == []
        monkeypatch.setenv(ending.VARIABLE, "a-job")
        ending.report("failed", 3, 1)
        assert heard == [(2, b"\x1eminidl failed 3 1\n")]

    @pytest.mark.parametrize("rank, code, said, left_with", [
        (0, None, b"\x1eminidl finished 0 0\n", None), (1, None, None, None), (0, 143, b"\x1eminidl finished 0 143\n", 0),
        (1, 143, None, 0),
    ])
    def test_of_a_rank_that_ends_by_itself(self, heard, monkeypatch, rank, code, said, left_with):
        monkeypatch.setenv(ending.VARIABLE, "a-job")
        monkeypatch.setattr(ending, "die_with_parent", lambda: None)
        before = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGUSR2)}
        try:
            with pytest.raises(SystemExit) as raised, ending.end_together(SimpleNamespace(rank=rank, size=2)):
                sys.exit(code)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        assert raised.value.code == left_with and heard == [(2, said)] * (said is not None)


@pytest.mark.parametrize("variables, count", [
    ({}, 1), ({"OMPI_COMM_WORLD_LOCAL_SIZE": "3"}, 3), ({"SLURM_STEP_TASKS_PER_NODE": "4(x2),3"}, 4),
    ({"SLURM_STEP_TASKS_PER_NODE": "2"}, 2),
])
def test_ranks_on_this_host_are_counted_by_whoever_started_them(monkeypatch, variables, count):
    for name in ("OMPI_COMM_WORLD_LOCAL_SIZE", "SLURM_STEP_TASKS_PER_NODE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert ending.ranks_here() == count


LOCAL_RANKS = ("OMPI_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID", "MPI_LOCALRANKID", "PMI_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_RANK")


def test_the_place_of_a_rank_on_its_host_is_what_the_launcher_says(monkeypatch):
    for name in LOCAL_RANKS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_LOCALID", "3")
    assert ending.place_here(None) == 3


def test_or_is_found_by_the_names_of_the_hosts(monkeypatch):
    for name in LOCAL_RANKS:
        monkeypatch.delenv(name, raising=False)
    hosts = ["a", "b", "a", "a", "b"]
    monkeypatch.setattr(ending.socket, "gethostname", lambda: hosts[int(threading.current_thread().name.split()[1])])
    assert local.run(ending.place_here, 5) == [0, 0, 1, 2, 1]


class TestQuiet:
    def print_and_warn(self, rank, log_dir=None):
        with quiet.quiet(SimpleNamespace(rank=rank, size=2), log_dir):
            print("printed")
            print("warned", file=sys.stderr)            # where Python's warnings go, if pytest does not catch them

    def test_rank_0_prints(self, capsys):
        self.print_and_warn(0)
        out, errors = capsys.readouterr()
        assert out == "printed\n" and "warned" in errors

    def test_others_do_not(self, capsys):
        self.print_and_warn(1)
        assert capsys.readouterr() == ("", "")

    def test_another_one_takes_over(self, capsys, monkeypatch):
        monkeypatch.setenv(quiet.COLUMNS, "70")
        with quiet.quiet(SimpleNamespace(rank=1, size=2)) as speak:
            print("unheard")
            speak()
            print("printed")
            assert sys.stdout.isatty() and os.environ["COLUMNS"] == "70"
        assert capsys.readouterr() == ("printed\n", "")

    @pytest.mark.parametrize("rank", [0, 1])
    def test_each_keeps_a_log(self, capsys, tmp_path, rank):
        for _ in range(2):
            self.print_and_warn(rank, tmp_path / "some" / "logs")
        log = (tmp_path / "some" / "logs" / f"rank-{rank}.log").read_text()
        assert log == "printed\nwarned\n" * 2
        out, errors = capsys.readouterr()
        assert ("printed" in out, "warned" in errors) == (rank == 0, rank == 0)

    def test_a_log_keeps_the_traceback(self, tmp_path):
        with pytest.raises(KeyError), quiet.quiet(SimpleNamespace(rank=1, size=2), tmp_path):
            raise KeyError("broken")
        assert (tmp_path / "rank-1.log").read_text().endswith("KeyError: 'broken'\n")

    def test_a_folder_that_cannot_be_made_is_an_error_of_the_option(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(ConfigError, match=r"--log-dir .*file"), quiet.quiet(SimpleNamespace(rank=1, size=2), tmp_path / "file"):
            pass

    def test_everything_is_as_before_afterwards(self, tmp_path, monkeypatch):
        monkeypatch.setenv(quiet.COLUMNS, "70")
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.delenv("COLUMNS", raising=False)
        before = sys.stdout, sys.stderr, dict(os.environ)
        for rank in (0, 1):
            with quiet.quiet(SimpleNamespace(rank=rank, size=2), tmp_path):
                assert os.environ.get("COLUMNS") == (None if rank else "70") and ("FORCE_COLOR" in os.environ) == (rank == 0)
                assert sys.stdout.isatty() == (rank == 0)
            assert (sys.stdout, sys.stderr, dict(os.environ)) == before

    @pytest.mark.parametrize("terminal", ["0", "70"])
    def test_stdout_is_a_terminal_if_launch_has_one(self, monkeypatch, terminal):
        monkeypatch.setenv(quiet.COLUMNS, terminal)
        monkeypatch.setattr(sys, "stdout", SimpleNamespace(write=print, isatty=lambda: True, flush=lambda: None))       # as under mpiexec
        with quiet.quiet(alone()):
            assert sys.stdout.isatty() == (terminal != "0")


class TestLog:
    def log(self, tmp_path, *pieces):
        with open(tmp_path / "log", "w") as file:
            log = quiet.Log(file, sys.stderr)
            for piece in pieces:
                log.write(piece)
            log.finish()
        return Path(tmp_path / "log").read_text()

    @pytest.mark.parametrize("pieces, kept", [
        (["one\n", "t", "wo\n", "three"], "one\ntwo\nthree\n"),
        (["one\r\ntwo\r\n"], "one\ntwo\n"),
        (["\x1b[1;31mred\x1b[0m\n"], "red\n"),
        (["bar 1", "\rbar 2", "\rbar 3", "\r"], "bar 3\n"),
        (["\x1b[?25l\r\x1b[2Kbar 1", "\r\x1b[2Kbar 2", "\r\x1b[2Kepoch 1\nbar 3", "\r\x1b[2Kbar 4\n", "\x1b[?25h\r\x1b[1A\x1b[2K",
          "the end\n"], "epoch 1\nthe end\n"),
        (["\r\x1b[2Kbar 1", "\n", "\r\x1b[1A\x1b[2K", "the end\n"], "the end\n"),
    ], ids=["lines", "returns", "colours", "a bar", "a bar between lines", "a bar that is taken away"])
    def test_keeps_what_a_terminal_would_show_in_the_end(self, tmp_path, pieces, kept):
        assert self.log(tmp_path, *pieces) == kept

    def test_of_rich_has_the_lines_and_no_bar(self, tmp_path):
        from rich.console import Console
        from rich.progress import Progress

        with open(tmp_path / "log", "w") as file:
            log = quiet.Log(file, sys.stderr)
            console = Console(file=log, force_terminal=True, width=60)
            with Progress(console=console, transient=True) as progress:
                task = progress.add_task("epoch", total=4)
                for k in range(4):
                    progress.update(task, advance=1, refresh=True)
                    console.print(f"[bold]line {k}[/]")
            console.print("the end")
            log.finish()
        assert (tmp_path / "log").read_text() == "line 0\nline 1\nline 2\nline 3\nthe end\n"
