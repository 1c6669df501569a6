"""Several hosts on one machine: network namespaces joined by a bridge, whose links have a set rate.

Host i is the namespace minidl<i> with the address 10.77.0.<i+1>. It has one link, eth0, to a bridge named minidl, and a token bucket (tc
tbf) at either end of that link: it sends and receives at most at the rate, at once. Only things of these names are ever touched. What
runs on these hosts is run.py's business. Linux, and root.
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

BRIDGE = "minidl"
SUBNET = ipaddress.ip_network("10.77.0.0/24")
OUTSIDE = SUBNET[254]           # this machine itself, from which ranks are started
MOST = 200                      # hosts
LOCK = Path("/run/lock/minidl-network") if Path("/run/lock").is_dir() else Path("/tmp/minidl-network.lock")
BURST, LATENCY = "64kb", "20ms"         # what passes at once after a pause; how long a packet may wait before it is dropped


class NetworkError(Exception):
    """It cannot be done here, or has failed; the text says why and what to do."""


def missing() -> str:
    """Why this machine cannot have such a network; nothing if it can."""
    if sys.platform != "linux":
        return "network namespaces are Linux's"
    if os.geteuid() != 0:
        return "root alone may make network namespaces: run it as root"
    absent = [name for name in ("ip", "tc", "unshare") if shutil.which(name) is None]
    if absent:
        return f"{' and '.join(absent)} cannot be found: on Debian and Ubuntu, apt install iproute2 util-linux"
    if tried("unshare", "--net", "--mount", "true") is None:
        return "this kernel, or the container around it, lets nobody make network namespaces"
    return ""


def host(i: int) -> str:
    """The address of host i."""
    return str(SUBNET[i + 1])


def namespace(i: int) -> str:
    """What `ip netns` calls host i."""
    return f"{BRIDGE}{i}"


def cable(i: int) -> str:
    """The end of a host's link that is plugged into the bridge."""
    return f"{BRIDGE}-{i}"


def hosts() -> list[int]:
    """The hosts that are there."""
    return sorted(int(found[1]) for entry in listed() if (found := re.fullmatch(BRIDGE + r"(\d+)", entry)))


def listed() -> list[str]:
    """All namespaces of this machine that have a name, whosever they are."""
    return [line.split()[0] for line in call("ip", "netns", "list").splitlines() if line.strip()]


def up(count: int, rate: str, burst: str = BURST, latency: str = LATENCY) -> None:
    """Let there be so many hosts, of this rate: what is there already stays, and what is too many goes.

    rate: as tc writes it, such as 200mbit or 1gbit; "none" for no limit. burst: bytes that may pass at once, such as 64kb. latency: how
    long a packet may wait, such as 20ms. NetworkError if it cannot be done; then nothing is left.
    """
    if not 1 <= count <= MOST:
        raise NetworkError(f"{count} hosts: there can be 1 to {MOST}")
    if why := missing():
        raise NetworkError(why)
    for link in json.loads(call("ip", "-j", "-4", "address", "show")):
        addresses = [ipaddress.ip_address(entry["local"]) for entry in link.get("addr_info", ()) if "local" in entry]
        if link.get("ifname") != BRIDGE and any(address in SUBNET for address in addresses):
            raise NetworkError(f"{link['ifname']} has an address of {SUBNET}, which is needed here: take that link away first")
    try:
        for i in hosts():
            if i >= count:
                remove(i)
        if not linked(BRIDGE):
            call("ip", "link", "add", BRIDGE, "type", "bridge")
        call("ip", "address", "replace", f"{OUTSIDE}/{SUBNET.prefixlen}", "dev", BRIDGE)
        call("ip", "link", "set", BRIDGE, "up")
        for i in range(count):
            plug(i)
            limit(["tc", "-n", namespace(i)], "eth0", rate, burst, latency)          # what it sends
            limit(["tc"], cable(i), rate, burst, latency)                            # what it receives
    except BaseException:
        down()
        raise


def plug(i: int) -> None:
    """Make a host and join it to the bridge, unless it is there."""
    if namespace(i) in listed() and linked(cable(i)) and linked("eth0", namespace(i)):
        return
    remove(i)
    call("ip", "netns", "add", namespace(i))
    call("ip", "link", "add", cable(i), "type", "veth", "peer", "name", "eth0", "netns", namespace(i))
    call("ip", "link", "set", cable(i), "master", BRIDGE, "up")
    call("ip", "-n", namespace(i), "address", "add", f"{host(i)}/{SUBNET.prefixlen}", "dev", "eth0")
    for link in ("lo", "eth0"):
        call("ip", "-n", namespace(i), "link", "set", link, "up")


def limit(tc: list[str], link: str, rate: str, burst: str, latency: str) -> None:
    """Let what leaves by a link keep to a rate."""
    tried(*tc, "qdisc", "del", "dev", link, "root")
    if rate != "none":
        call(*tc, "qdisc", "add", "dev", link, "root", "tbf", "rate", rate, "burst", burst, "latency", latency)


def down() -> None:
    """Take it all away, with the processes that run on these hosts. If there is nothing, nothing happens."""
    for i in hosts():
        remove(i)
    if linked(BRIDGE):
        call("ip", "link", "del", BRIDGE)


def remove(i: int) -> None:
    """Take a host away, or what there is of it."""
    end_processes(i)
    if linked(cable(i)):
        call("ip", "link", "del", cable(i))                 # first: a namespace gives its links back only later
    if namespace(i) in listed():
        call("ip", "netns", "del", namespace(i))


def end_processes(i: int, patience: float = 5.0) -> list[int]:
    """End what runs on a host, and give the numbers of the processes there were. NetworkError if one does not go in so many seconds."""
    found = processes(i)
    until = time.monotonic() + patience
    while left := processes(i):
        for process in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        if time.monotonic() > until:
            raise NetworkError(f"processes {left} on host {i} do not end")
        time.sleep(0.02)
    return found


def processes(i: int) -> list[int]:
    """The numbers of the processes that run on a host."""
    return [int(number) for number in (tried("ip", "netns", "pids", namespace(i)) or "").split()]


def status() -> list[dict[str, object]]:
    """Of each host: its number, address, processes, limits (as tc tells them), and the bytes that it has sent and received."""
    return [{"host": i, "address": host(i), "processes": processes(i), "sends": limits(i), "receives": limits(i, receives=True),
             **dict(zip(("sent", "received"), moved(i)))} for i in hosts()]


def limits(i: int, receives: bool = False) -> dict[str, int]:
    """The limit of a host's link: rate (bytes/s), burst (bytes), lat (microseconds). Empty if it has none."""
    where = ["tc"] if receives else ["tc", "-n", namespace(i)]
    kinds = json.loads(call(*where, "-j", "qdisc", "show", "dev", cable(i) if receives else "eth0", "root") or "[]")
    return next((kind.get("options", {}) for kind in kinds if kind.get("kind") == "tbf"), {})


def moved(i: int) -> tuple[int, int]:
    """Bytes that a host has sent and received since it was made, headers and acknowledgements among them."""
    counters = json.loads(call("ip", "-n", namespace(i), "-s", "-j", "link", "show", "eth0"))[0]["stats64"]
    return counters["tx"]["bytes"], counters["rx"]["bytes"]


@contextlib.contextmanager
def lock() -> Iterator[None]:
    """One at a time builds, uses or takes away the network. NetworkError if another one does."""
    with LOCK.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise NetworkError(f"another process uses the network at the moment (it holds {LOCK})") from None
        yield


def linked(link: str, inside: str = "") -> bool:
    """Whether a link is there, in a namespace or outside."""
    return tried("ip", *(["-n", inside] if inside else []), "link", "show", "dev", link) is not None


def call(*command: str) -> str:
    """What a command prints. NetworkError, with what it complains of, if it fails."""
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        raise NetworkError(f"{' '.join(command)}: {run.stderr.strip() or f'ended with {run.returncode}'}")
    return run.stdout


def tried(*command: str) -> str | None:
    """What a command prints; None if it fails."""
    run = subprocess.run(command, capture_output=True, text=True)
    return None if run.returncode else run.stdout
