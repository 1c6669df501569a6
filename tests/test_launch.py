"""The launch command: its words, what it starts, how it judges, and that nothing of a job is left, whatever is done to it."""

import os
import shlex
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import endings
import psutil
import pytest
import ranks
import runs
from ranks import needs_mpi

from minidl import launch as module
from minidl.errors import ConfigError, MissingExtra
from minidl.launch import app
from minidl.parallel import launch_command, launch_job, launch_sweep
from minidl.parallel.ending import MARK
from minidl.parallel.launch_command import command_line, find_mpiexec, placed

place = pytest.fixture(runs.place)
LIMIT = 180                 # seconds: only a hang takes longer


def typed(*words):
    """Type the command in this process: its exit status."""
    words = [str(word) for word in words]
    at = words.index("--") if "--" in words else len(words)
    try:
        app(words[:at], obj=words[at + 1:])
    except SystemExit as end:
        return end.code
    raise AssertionError("a command ends with SystemExit")


class TestWords:
    @pytest.fixture
    def shown(self, monkeypatch, capsys):
        """The words of the command that --dry-run shows, after those typed."""
        monkeypatch.setattr(module, "find_mpiexec", lambda named: str(named or "mpiexec"))
        for name in (*launch_command.ALLOCATIONS, "OMPI_MCA_pml"):
            monkeypatch.delenv(name, raising=False)

        def show(*words):
            at = words.index("--") if "--" in words else len(words)
            assert typed(*words[:at], "--dry-run", *words[at:]) == 0
            return capsys.readouterr().out
        return show

    @pytest.mark.parametrize("words, says", [
        ((), "-n is missing"), (("-n", 0), "-n 0"), (("-n", -1), "-n -1"), (("-n", 2, "--spares", -1), "--spares -1"),
        (("-n", 2, "--timeout", 0), "--timeout 0"), (("-n", 2, "--epochs", 3), "'--epochs' is none of its options"),
        (("-n", 2, "--hosts", "a:1"), "has room for 1 "), (("-n", 2, "--", "--spares", "x"), "--spares"),
        (("-n", 2, "--selftest", "--", "--epochs", 3), "no use for --epochs"),
        (("-n", 2, "--mpiexec", "/nowhere/mpiexec"), "there is no such program"), (("-n", 2, "--", "--config", "none.toml"), "none.toml"),
    ])
    def test_that_make_no_sense_are_told(self, place, capsys, words, says):
        assert typed(*words) == 2
        assert says in capsys.readouterr().err

    def test_that_are_misplaced_are_told_where_to_stand(self, capsys):
        assert typed("-n", 4, "--epochs", 3) == 2
        assert "come after --" in capsys.readouterr().err

    def test_of_training_are_checked_before_anything_is_started(self, place, capsys, monkeypatch):
        monkeypatch.setattr(module, "launch", None)
        assert typed("-n", 2, "--", "--epohs", 3) == 2
        assert "--epohs" in capsys.readouterr().err

    def test_become_a_command_that_can_be_typed(self, shown):
        words = shlex.split(shown("-n", 3, "--", "--out", "a folder; with $signs", "--seed", 5))
        assert words[0] == "mpiexec" and words[words.index("-n") + 1] == "3"
        start = words.index(sys.executable)
        assert words[start:start + 7] == [sys.executable, "-m", "minidl.train", "--out", "a folder; with $signs", "--seed", "5"]
        assert words[words.index("--exchange") + 1] == "allreduce" and "OPENBLAS_NUM_THREADS=1" in words and "ulfm" not in words
        assert words[words.index("--map-by") + 1] == ":OVERSUBSCRIBE"

    def test_of_training_are_not_overruled(self, place, shown):
        assert "allreduce" not in shown("-n", 2, "--", "--exchange", "master-worker")
        (place / "options.toml").write_text("exchange = 'master-worker'")
        assert "allreduce" not in shown("-n", 2, "--", "--config", "options.toml")

    @pytest.mark.parametrize("words", [("-n", 3, "--elastic"), ("-n", 3, "--", "--elastic"), ("-n", 3, "--elastic", "--", "--elastic")])
    def test_of_training_say_too_that_the_job_outlives_its_ranks(self, shown, words):
        out = shown(*words)
        assert "--with-ft ulfm" in out and " -n 3 " in out and out.count("--elastic") == 1

    def test_of_spares_make_the_job_outlive_its_ranks(self, shown):
        out = shown("-n", 3, "--spares", 2)
        assert "--with-ft ulfm" in out and " -n 5 " in out and "--elastic --spares 2" in out

    def test_of_a_log_are_passed_on(self, shown):
        assert "--log-dir 'some logs'" in shown("-n", 2, "--log-dir", "some logs")

    def test_of_the_selftest_train_nothing(self, shown):
        assert shown("-n", 2, "--selftest").endswith(" -n 2 " + shlex.join([sys.executable, "-m", "minidl.parallel.selftest"]) + "\n")

    def test_of_hosts_say_how_many_on_each(self, shown):
        out = shown("-n", 4, "--hosts", "a,b:3", "--", "--seed", 1)
        assert "--host a:1,b:3" in out and "--map-by" not in out

    def test_of_a_scheduler_s_hosts_are_its_own(self, monkeypatch):
        monkeypatch.setenv("SLURM_JOB_ID", "7")
        assert not {"--host", "--map-by"} & set(command_line("mpiexec", 2, ["true"]))

    def test_of_another_network_are_left_to_the_environment(self, monkeypatch):
        monkeypatch.setenv("OMPI_MCA_pml", "ucx")
        words = command_line("mpiexec", 2, ["true"])
        assert "ob1" not in words and "self,sm,tcp" in words


class TestPlaced:
    @pytest.mark.parametrize("hosts, count, expected", [
        ("a,b", 4, "a:2,b:2"), ("a,b", 3, "a:2,b:1"), ("a,b,c", 2, "a:1,b:1"), ("a:1,b", 4, "a:1,b:3"), ("a:3,b:2", 4, "a:3,b:2"),
        ("10.0.0.1,node-2.site", 2, "10.0.0.1:1,node-2.site:1"), (" a , b ", 2, "a:1,b:1"), ("[fe80::1]:2", 2, "[fe80::1]:2"),
    ])
    def test_each_host_gets_its_share(self, hosts, count, expected):
        assert placed(hosts, count) == expected

    @pytest.mark.parametrize("hosts", ["", "a,", "a:0", "a:b", "a,a", "a;rm", "a:1,b:1"])
    def test_what_is_no_host_is_told(self, hosts):
        with pytest.raises(ConfigError, match="--hosts"):
            placed(hosts, 3)


class TestMpiexec:
    def program(self, folder, says):
        folder.mkdir()
        file = folder / "mpiexec"
        file.write_text(f"#!/bin/sh\necho '{says}'\n")
        file.chmod(0o755)
        return file

    @pytest.fixture(autouse=True)
    def bare(self, monkeypatch, tmp_path):
        """A Python with mpi4py and nothing beside it."""
        monkeypatch.setattr(launch_command, "find_spec", lambda name: name)
        monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
        monkeypatch.setenv("PATH", str(tmp_path / "path"))

    def test_beside_python_comes_before_that_on_the_path(self, tmp_path):
        on_path = self.program(tmp_path / "path", "mpiexec (Open MPI) 5.0.11")
        assert find_mpiexec() == str(on_path)
        beside = self.program(tmp_path / "bin", "mpiexec (Open MPI) 5.0.11")
        assert find_mpiexec() == str(beside)
        assert find_mpiexec(on_path) == str(on_path)

    def test_that_is_missing_is_told_with_how_to_get_it(self):
        with pytest.raises(MissingExtra, match=r"no mpiexec(.|\n)*pip install 'minidl\[mpi\]'"):
            find_mpiexec()

    def test_without_mpi4py_is_no_use(self, monkeypatch):
        monkeypatch.setattr(launch_command, "find_spec", lambda name: None)
        with pytest.raises(MissingExtra, match=r"mpi4py(.|\n)*pip install 'minidl\[mpi\]'"):
            find_mpiexec()

    def test_of_another_mpi_is_told(self, tmp_path):
        self.program(tmp_path / "path", "HYDRA build details:")
        with pytest.raises(ConfigError, match="not Open MPI's"):
            find_mpiexec()


LINE = "-" * 74 + "\n"
KILLED = f"{LINE}prterun noticed that process rank 2 with PID 0 on node vm exited on\nsignal 9 (Killed).\n{LINE}"
ABORTED = f"{LINE}MPI_ABORT was invoked on rank 2 in communicator MPI_COMM_WORLD\n  Proc: [[45453,1],2]\n  Errorcode: 3\n\nNOTE: so\n{LINE}"
EXITED = (f"{LINE}prterun detected that one or more processes exited with non-zero status,\nthus causing the job to be terminated. The "
          f"first process to do so was:\n\n   Process name: [prterun-vm-12859@1,2]\n   Exit code:    3\n{LINE}")
CUT_OFF = (f"{LINE}PRTE has lost communication with a remote daemon.\n\n  HNP daemon   : [prterun-vm-1@0,0] on node vm\n  Remote daemon: "
           f"[prterun-vm-1@0,1] on node far\n\nThis is usually due to\n{LINE}")
UNKNOWN = f"{LINE}There are not enough slots available in the system\n{LINE}"


class TestErrors:
    """What is read on stderr, however it is cut."""

    def read(self, text, size):
        errors, content = launch_job.Errors(), text.encode()
        shown = b"".join(errors.take(content[at:at + size]) for at in range(0, len(content), size)) + errors.take(b"", last=True)
        return errors, shown.decode()

    @pytest.mark.parametrize("size", [1, 7, 10_000])
    @pytest.mark.parametrize("text, shown", [
        ("as it was\nthis too", "as it was\nthis too"),
        (f"before{MARK}finished 0 0\nafter", "beforeafter"),
        (f"a\n{KILLED}b\n", "a\nb\n"), (f"{ABORTED}\0b\n", "b\n"), (f"{EXITED}{EXITED}", ""), (f"a\n{UNKNOWN}b\n", f"a\n{UNKNOWN}b\n"),
        ("[warn] Epoll MOD(1) on fd 25 failed.  Bad file descriptor\nb\n", "b\n"), ("[warn] of another\n", "[warn] of another\n"),
        ("[vm:19530] plm:ssh: Warning: setpgid(19547,19547) failed in parent with errno=Permission denied(13)\nb\n", "b\n"),
        (f"{LINE}a table\n", f"{LINE}a table\n"), ("---\n", "---\n"), ("\x1e not for launch\n", "\x1e not for launch\n"),
        (f"told\n{MARK}failed 1 1\ntold again\n{MARK}failed 2 1\nand again\n", "told\n"),
    ])
    def test_only_what_is_for_others_is_shown(self, text, shown, size):
        assert self.read(text, size)[1] == shown

    @pytest.mark.parametrize("size", [1, 7, 10_000])
    def test_what_is_for_launch_is_kept(self, size):
        errors, _ = self.read(f"a{MARK}failed 3 2\n{MARK}failed 1 1\n{MARK}finished 0 143\n{KILLED}{EXITED}{CUT_OFF}", size)
        assert errors.failed == [(3, 2), (1, 1)] and errors.finished == 143
        assert errors.lost == [("Rank 2 on vm was ended by signal 9 (SIGKILL)", 137),
                               ("Rank 2 has ended with status 3 before the work was done", 3), ("The connection to far is lost", 1)]

    def test_a_line_of_dashes_holds_nothing_back_for_ever(self):
        errors = launch_job.Errors()
        text = (LINE + "a line of a long table\n" * 300).encode()
        assert errors.take(text) == text


class Started:
    """A launch that goes on, in a folder of its own."""

    def __init__(self, folder, *words, count=2):
        self.folder, self.token, self.count = folder, uuid.uuid4().hex, count
        self.out, self.errors = folder / "out", folder / "errors"
        with open(self.out, "w") as out, open(self.errors, "w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, endings.__file__, "launch", str(count), *map(str, words)], stdin=subprocess.DEVNULL, stdout=out,
                stderr=errors, cwd=folder, start_new_session=True, env={**runs.environment(), "PYTHONWARNINGS": "default",
                                                                        ranks.TOKEN: self.token})

    def begun(self):
        """The process ids of the ranks, once all have begun."""
        return wait_for(lambda: self.process.poll() is None and [int(text) for text in (
            file.read_text() for file in (self.folder / f"{rank}.pid" for rank in range(self.count)) if file.exists()) if text],
            lambda found: len(found or []) == self.count, self)

    def mpiexec(self):
        return next(child for child in psutil.Process(self.process.pid).children() if "launch_sweep" not in " ".join(child.cmdline()))

    def ended(self):
        """The exit status, what was printed, and what is left of the job, processes and folders, after a moment."""
        status = self.process.wait(timeout=LIMIT)
        left = wait_for(self.left, lambda found: not found, seconds=20)
        return status, self.out.read_text(), self.errors.read_text(), left

    def left(self):
        """Processes and folders of the job."""
        files = [str(file) for file in (self.folder / "memory").iterdir()]
        return files + [" ".join(one.info["cmdline"] or []) for one in ranks.alive(self.token)]


def wait_for(look, enough, started=None, seconds=LIMIT):
    until = time.monotonic() + seconds
    while not enough(found := look()) and time.monotonic() < until:
        if started and started.process.poll() is not None:
            pytest.fail(f"ended before it had begun: {started.errors.read_text()}")
        time.sleep(0.05)
    return found


@pytest.fixture
def started(tmp_path):
    """Start a launch: started(words..., count=2)."""
    all_of_them = []

    def start(*words, **options):
        all_of_them.append(Started(tmp_path, *words, **options))
        return all_of_them[-1]

    yield start
    for one in all_of_them:
        ranks.kill(one.token)
        one.process.wait()


@needs_mpi
class TestJob:
    def test_that_is_done_ends_with_0(self, started):
        status, out, errors, left = started("finish", 0).ended()
        assert (status, out, left) == (0, "rank 0 prints\n", [])
        assert MARK not in errors and "rank 1" not in errors and "mpi" not in errors

    @pytest.mark.parametrize("word, who, status, says", [
        ("raise", 1, 1, "KeyError: 'broken'"), ("raise", -1, 1, "KeyError: 'broken'"), ("raise in a thread", 1, 1, "ZeroDivisionError"),
        ("raise of options", -1, 2, "Error: broken"), ("exit", 1, 3, ""), ("die", 1, 137, "Rank 1 on"),
    ])
    def test_that_fails_on_a_rank_ends_with_its_status_and_one_message(self, started, word, who, status, says):
        found, _, errors, left = started(word, who).ended()
        assert (found, left) == (status, []), errors
        assert errors.count(says) == 1 or not says
        assert errors.count("Traceback") == ("raise" in word and "options" not in word)
        assert MARK not in errors and "prterun" not in errors and "----" not in errors

    def test_that_outlives_its_ranks_ends_all_the_same_when_one_raises(self, started):
        status, _, errors, left = started("ulfm", "raise", 1).ended()
        assert (status, errors.count("KeyError: 'broken'"), left) == (1, 1, [])

    def test_that_outlives_its_ranks_is_rid_of_one_that_stands_still(self, started):
        job = started("ulfm", "stand still", 1)
        first, second = job.begun()
        wait_for(lambda: psutil.pid_exists(second), lambda found: not found)
        assert psutil.pid_exists(first) and not psutil.pid_exists(second) and job.process.poll() is None

    def test_whose_rank_hangs_at_the_end_is_done(self, started):
        status, _, errors, left = started("hang at the end", 1).ended()
        assert (status, left) == (0, []), errors

    def test_that_takes_too_long_is_ended(self, started):
        status, _, errors, left = started("timeout=0.2", "ignore", -1).ended()
        assert (status, left) == (124, []) and "after 0.2 s" in errors

    @pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
    def test_stops_gracefully(self, started, number, status):
        job = started("stop gracefully", -1)
        job.begun()
        job.process.send_signal(number)
        assert job.ended()[::3] == (status, [])
        assert job.out.read_text().endswith("all is saved\n")

    def test_is_ended_at_once_by_a_second_signal(self, started):
        job = started("ignore", -1)
        job.begun()
        job.process.send_signal(signal.SIGINT)
        wait_for(lambda: signal.SIGINT in pending(job.process.pid), lambda found: not found)
        time.sleep(0.5)                             # so that they do not count as one
        assert job.process.poll() is None
        job.process.send_signal(signal.SIGINT)
        status, _, errors, left = job.ended()
        assert (status, left) == (130, []) and "Stopped at once." in errors

    @pytest.mark.parametrize("word", ["wait", "ignore", "stand still"])
    def test_is_gone_when_launch_is_killed(self, started, word):
        job = started(word, 1)
        job.begun()
        job.process.kill()
        assert job.ended()[::3] == (-signal.SIGKILL, [])

    @pytest.mark.parametrize("word", ["ignore", "stand still"])
    def test_is_gone_when_mpiexec_is_killed(self, started, word):
        job = started(word, 1)
        job.begun()
        job.mpiexec().kill()
        status, _, errors, left = job.ended()
        assert (status, left) == (137, []) and "mpiexec was ended by signal 9" in errors

    def test_keeps_logs(self, started, tmp_path):
        assert started("finish", 0, tmp_path / "logs").ended()[::3] == (0, [])
        for rank in range(2):
            text = (tmp_path / "logs" / f"rank-{rank}.log").read_text()
            assert text.startswith(f"rank {rank} prints\n") and f"rank {rank} warns" in text


SMALL = ("--data", "digits.npz", "--model", "mlp", "--batch-size", 10)          # four minibatches an epoch


@needs_mpi
class TestTraining:
    def launch(self, *words):
        return subprocess.run([sys.executable, "-m", "minidl.launch", "-n", "2", "--", *map(str, words)], capture_output=True, text=True,
                              timeout=LIMIT, env={**runs.environment(), "PYTHONWARNINGS": "default"})

    def test_on_many_processes_is_shown_once_and_leaves_a_run(self, place):
        ran = self.launch(*SMALL, "--epochs", 2, "--out", "out")
        assert (ran.returncode, ran.stderr) == (0, "")
        assert ran.stdout.count("results: out") == 1 and "2, allreduce" in ran.stdout
        assert [line["epoch"] for line in runs.metrics(place / "out")] == [1, 2]

    def test_that_breaks_says_why_once(self, place):
        ran = self.launch("--data", "digits.npz", "--model", "nets:Broken", "--batch-size", 10, "--out", "out")
        assert ran.returncode == 1 and ran.stderr.count("NameError: name 'nothing' is not defined") == 1

    def test_with_options_that_do_not_fit_is_told_once(self, place):
        ran = self.launch(*SMALL, "--resume", "nowhere")
        assert ran.returncode == 1 and ran.stderr.count("nowhere") == 1

    def test_stops_and_goes_on(self, place):
        process = subprocess.Popen([sys.executable, "-m", "minidl.launch", "-n", "2", "--", *map(str, SMALL), "--model", "nets:all_states",
                                    "--epochs", "1000", "--out", "out"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                   env={**runs.environment(), "SLOW": "1"})
        try:
            wait_for(lambda: process.poll() is not None or (place / "out" / "metrics.jsonl").exists(), bool)
            process.send_signal(signal.SIGINT)
            out, errors = process.communicate(timeout=LIMIT)
        finally:
            process.kill()
        assert (process.returncode, errors) == (130, "") and out.count("--resume out") == 1
        done = len(runs.metrics(place / "out"))
        assert self.launch("--resume", "out", "--epochs", done + 2).returncode == 0
        assert len(runs.metrics(place / "out")) == done + 2


def pending(number):
    """The signals that a process has not seen yet."""
    with open(f"/proc/{number}/status") as file:
        mask = next(int(line.split()[1], 16) for line in file if line.startswith("ShdPnd"))
    return [one for one in (signal.SIGINT, signal.SIGTERM) if mask >> (one - 1) & 1]


@pytest.mark.process
class TestSweep:
    @pytest.fixture
    def sleeper(self):
        """A process of the job "a-job"."""
        process = subprocess.Popen([sys.executable, "-c", "import time; print(flush=True); time.sleep(60)"], stdout=subprocess.PIPE,
                                   env={**os.environ, launch_sweep.VARIABLE: "a-job"})
        process.stdout.readline()
        yield process
        process.kill()
        process.communicate()

    @pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are found in /proc")
    def test_ends_the_processes_of_one_job_and_removes_its_folder(self, sleeper, tmp_path):
        (tmp_path / "folder").mkdir()
        launch_sweep.sweep("another-job", str(tmp_path / "none"))
        assert sleeper.poll() is None and launch_sweep.processes("a-job") == [sleeper.pid]
        launch_sweep.sweep("a-job", str(tmp_path / "folder"))
        assert sleeper.wait(timeout=LIMIT) == -signal.SIGKILL and not (tmp_path / "folder").exists()

    @pytest.mark.parametrize("word, kept", [(b"well", True), (b"", False)])
    def test_is_done_by_the_keeper_unless_all_is_well(self, tmp_path, word, kept):
        (tmp_path / "folder").mkdir()
        subprocess.run([sys.executable, "-I", "-S", launch_sweep.__file__, "a-third-job", str(tmp_path / "folder")], input=word,
                       timeout=LIMIT, check=True)
        assert (tmp_path / "folder").exists() == kept
