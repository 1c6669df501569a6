"""Hosts on one machine: made, limited, taken away, and nobody else's touched; ranks on them, with every byte on the wire.

No test looks at how long something took. Those that make hosts run as root on Linux only.
"""

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import time
from importlib.machinery import SourceFileLoader
from pathlib import Path

import pytest

from exchange import network, run

SCRIPT = Path(__file__).parents[1] / "scripts" / "network"
needs_hosts = pytest.mark.skipif(bool(network.missing()), reason=f"scripts/network: {network.missing()}")
needs_mpi = pytest.mark.skipif(importlib.util.find_spec("mpi4py") is None, reason="mpi4py is missing: python -m pip install 'minidl[mpi]'")


def script():
    """The command as a module, though its name does not end in .py."""
    loader = SourceFileLoader("network_command", str(SCRIPT))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("network_command", loader))
    loader.exec_module(module)
    return module


@pytest.fixture
def nothing():
    """No hosts before and none after; tests take turns with whoever else uses them."""
    with turn():
        if network.hosts():
            pytest.skip("scripts/network: there are hosts already, which are not a test's to take away")
        yield
        network.down()
        assert not network.hosts() and not network.linked(network.BRIDGE)


@contextlib.contextmanager
def turn():
    """Hold the lock, once it is free."""
    until = time.monotonic() + 120
    while True:
        try:
            with network.lock():
                yield
                return
        except network.NetworkError:
            if time.monotonic() > until:
                pytest.skip("scripts/network: somebody else uses the network")
            time.sleep(0.5)


class TestCommand:
    def test_prints_what_it_would_run(self, capsys, monkeypatch):
        monkeypatch.setattr(run, "mpiexec", lambda: "mpiexec")
        assert script().main(["run", "3", "--mpi", "--with-ft ulfm", "--dry", "--", "python", "x.py", "--rate", "2"]) == 0
        line = capsys.readouterr().out.strip()
        assert line.startswith("mpiexec ") and line.endswith("--with-ft ulfm python x.py --rate 2")
        assert "--host 10.77.0.1,10.77.0.2,10.77.0.3 " in line and "--bind-to none" in line and "oversubscribe" not in line.lower()
        assert "btl_tcp_if_include 10.77.0.0/24" in line and "btl self,tcp" in line

    def test_says_that_it_needs_root(self, capsys, monkeypatch):
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
        assert script().main(["up", "2", "200mbit"]) == 1
        if sys.platform == "linux":
            assert "run it as root" in capsys.readouterr().err

    def test_says_what_is_missing(self, monkeypatch):
        monkeypatch.setattr(sys, "platform", "linux")
        monkeypatch.setattr(os, "geteuid", lambda: 0)
        monkeypatch.setattr(network.shutil, "which", lambda name: None if name == "tc" else name)
        assert network.missing().startswith("tc cannot be found: on Debian and Ubuntu, apt install iproute2")

    def test_run_without_a_command(self, capsys):
        assert script().main(["run", "2"]) == 1
        assert "no command; it stands behind --" in capsys.readouterr().err


@needs_hosts
class TestHosts:
    def test_up_makes_them_and_down_takes_them_away(self, nothing):
        network.up(3, "200mbit", burst="64kb", latency="20ms")
        assert network.hosts() == [0, 1, 2]
        for entry in network.status():
            assert entry["sends"]["rate"] == entry["receives"]["rate"] == 25_000_000      # bytes a second
        network.down()
        assert network.hosts() == [] and network.status() == []
        network.down()

    def test_up_again_changes_number_and_rate_and_keeps_the_hosts(self, nothing):
        network.up(3, "200mbit")
        before = Path("/run/netns/minidl0").stat().st_ino
        network.up(2, "100mbit")
        assert network.hosts() == [0, 1] and network.limits(0)["rate"] == network.limits(1, receives=True)["rate"] == 12_500_000
        network.up(2, "none")
        assert network.limits(0) == network.limits(0, receives=True) == {}
        assert Path("/run/netns/minidl0").stat().st_ino == before

    def test_half_a_host_is_made_whole(self, nothing):
        network.up(2, "none")
        network.call("ip", "link", "del", network.cable(1))
        network.up(2, "none")
        assert network.linked("eth0", "minidl1")

    def test_others_namespaces_stay(self, nothing):
        names = ["minidlx", "other-minidl0"]
        for name in names:
            network.call("ip", "netns", "add", name)
        try:
            network.up(2, "none")
            assert network.hosts() == [0, 1]
            network.down()
            assert set(names) <= set(network.listed())
        finally:
            for name in names:
                network.call("ip", "netns", "del", name)

    def test_what_fails_leaves_nothing(self, nothing):
        with pytest.raises(network.NetworkError, match=r"tc .*rate"):
            network.up(2, "quickly")
        assert not network.hosts() and not network.linked(network.BRIDGE)
        with pytest.raises(network.NetworkError, match="there can be 1 to 200"):
            network.up(0, "none")

    def test_down_ends_what_runs_there(self, nothing):
        network.up(1, "none")
        with subprocess.Popen(["ip", "netns", "exec", "minidl0", "sleep", "600"]) as process:
            until = time.monotonic() + 10
            while not network.processes(0) and time.monotonic() < until:
                time.sleep(0.01)
            assert network.processes(0) == [process.pid]
            network.down()
            assert process.wait(10) == -signal.SIGKILL

    def test_one_at_a_time(self, nothing):
        with pytest.raises(network.NetworkError, match="another process uses the network"), network.lock():
            pass

    def test_enter(self, nothing):
        network.up(2, "none")
        said = network.call(sys.executable, str(SCRIPT), "enter", "-x", "10.77.0.2", "hostname; ip -br -4 address show eth0")
        assert said.split()[0] == "minidl1" and "10.77.0.2/24" in said
        failed = subprocess.run([sys.executable, SCRIPT, "enter", "10.77.0.9", "true"], capture_output=True, text=True, timeout=60)
        assert failed.returncode == 1 and "no host has the address 10.77.0.9" in failed.stderr


PINGPONG = """
import socket, sys, time
import numpy as np
from mpi4py import MPI
comm, x = MPI.COMM_WORLD, np.full(4_000_000, MPI.COMM_WORLD.rank + 1, np.uint8)
y = np.empty_like(x)
comm.Barrier()
begun = time.perf_counter()
for _ in range(2):
    comm.Send(x, 1) if comm.rank == 0 else comm.Recv(y, 0)
    comm.Recv(y, 1) if comm.rank == 0 else comm.Send(x, 0)
seconds = time.perf_counter() - begun
print(comm.rank, comm.size, socket.gethostname(), int(y[0]), seconds, flush=True)
"""


@needs_hosts
@needs_mpi
@pytest.mark.process
class TestRuns:
    def test_bytes_go_over_the_wire_at_its_rate(self, nothing, capfd):
        network.up(2, "200mbit")
        before = [network.moved(i) for i in range(2)]
        assert run.run(2, [sys.executable, "-m", "mpi4py", "-c", PINGPONG], seconds=120) == 0
        told = sorted(line.split() for line in capfd.readouterr().out.splitlines() if "minidl" in line)
        assert [words[:4] for words in told] == [["0", "2", "minidl0", "2"], ["1", "2", "minidl1", "1"]]
        for i, (sent, received) in enumerate(before):
            now = network.moved(i)
            for moved in (now[0] - sent, now[1] - received):
                assert 8_000_000 < moved < 9_000_000                    # and not much for headers, acknowledgements and the start
        # 16 MB one after the other can be no faster than the rate allows, and are slower on a busy machine
        assert float(told[0][4]) > 16e6 * 8 / 200e6 * 0.8

    def test_too_few_hosts(self, nothing):
        network.up(1, "none")
        with pytest.raises(network.NetworkError, match="2 ranks need 2 hosts, and there are 1: scripts/network up 2 RATE"):
            run.run(2, ["true"])

    @pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
    def test_stopped_from_outside_it_cleans_up(self, nothing, name, tmp_path):
        network.up(2, "none")
        program = f"from pathlib import Path; import os, time; Path({str(tmp_path)!r}, str(os.getpid())).touch(); time.sleep(600)"
        starter = ["import signal, sys", "from exchange import run", "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))",
                   f"run.run(2, [sys.executable, '-c', {program!r}])"]
        process = subprocess.Popen([sys.executable, "-c", "\n".join(starter)], env=os.environ | {"PYTHONPATH": str(SCRIPT.parent)},
                                   stderr=subprocess.DEVNULL, start_new_session=True)
        try:
            until = time.monotonic() + 60
            while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < until:
                time.sleep(0.05)
            ranks = [int(file.name) for file in tmp_path.iterdir()]
            assert len(ranks) == 2
            if name == "SIGINT":
                os.killpg(process.pid, signal.SIGINT)                   # as a terminal does
            else:
                process.terminate()
            assert process.wait(60) != 0
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        assert not network.processes(0) and not network.processes(1)

    def test_hosts_for_one_run_alone(self, tmp_path):
        with turn():
            there = network.hosts()
        if there:
            pytest.skip("scripts/network: there are hosts already, which are not a test's to take away")
        words = [sys.executable, SCRIPT, "run", "2", "--rate", "200mbit", "--", "hostname"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert network.hosts() == []
        assert sorted(done.stdout.split()) == ["minidl0", "minidl1"]
