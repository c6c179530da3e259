"""Machines of a network within this machine: network namespaces, joined by a bridge.

    sudo python -m tests.benchmarks.namespaces [--machines 2] [--bandwidth 200e6] [COMMAND ...]

Runs a command in the first of them, a shell unless told otherwise; the others are there to be
reached. Each has its own address and, of the machine's network, nothing else. Needs Linux, root and
the program ip of iproute2. Bandwidth is limited by a token bucket at both ends of each cable, so
that sending and receiving each have all of it, as in a switched network.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from embedding_learning.errors import Interrupted
from embedding_learning.runtime.signals import raise_on_signals

_ADDRESS = "10.77.{}.{}"
# Bytes that may pass at once, more than the largest packet between namespaces; how long packets
# may queue before one is dropped.
_BURST, _QUEUE = 1 << 17, "20ms"


class Unavailable(Exception):
    """Namespaces cannot be made here; the message says in one line why."""


class Machine(NamedTuple):
    """A network namespace.

    Attributes
    ----------
    name : str
    address : str
        By which the others reach it.
    """

    name: str
    address: str

    def command(self, command: Sequence[str]) -> list[str]:
        """What runs the command in it; the process that is started is the command's own."""
        return ["ip", "netns", "exec", self.name, *command]

    def unplug(self) -> None:
        """Takes its cable out: nothing reaches it any more, and nobody is told."""
        _ip("-n", self.name, "link", "set", "eth0", "down")

    def plug(self) -> None:
        """Puts it back."""
        _ip("-n", self.name, "link", "set", "eth0", "up")


@contextmanager
def network(count: int, bandwidth: float | None = None) -> Iterator[list[Machine]]:
    """Some machines for as long as the context lasts; what still runs in them is killed then.

    Parameters
    ----------
    count : int
        How many, 1 to 60,000.
    bandwidth : float, optional
        Bits a second that each can send, and as many it can receive.

    Raises Unavailable.
    """
    if not shutil.which("ip") or not shutil.which("tc"):
        raise Unavailable("the programs ip and tc are missing: apt-get install iproute2")
    if os.geteuid() != 0:
        raise Unavailable("network namespaces are made by root only: run this with sudo")
    prefix = f"machines-{os.getpid()}"
    # The bridge lies in a namespace of its own: nothing of this machine's network is touched, and
    # its firewall has no say.
    switch = f"{prefix}-switch"
    machines = [
        Machine(f"{prefix}-{n}", _ADDRESS.format(*divmod(n, 250))) for n in range(1, count + 1)
    ]
    names = [switch, *(machine.name for machine in machines)]
    try:
        for name in names:
            _ip("netns", "add", name)
        _ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", switch, "link", "set", "bridge", "up")
        for number, machine in enumerate(machines):
            _connect(machine, switch, f"port{number}", bandwidth)
        yield machines
    finally:
        # With the last process of a namespace its devices go too.
        for name in names:
            _remove(name)


def _connect(machine: Machine, switch: str, port: str, bandwidth: float | None) -> None:
    """Lays a cable from the machine to the switch."""
    _ip("-n", machine.name, "link", "set", "lo", "up")
    cable = ("type", "veth", "peer", "name", port, "netns", switch)
    _ip("-n", machine.name, "link", "add", "eth0", *cable)
    _ip("-n", machine.name, "address", "add", f"{machine.address}/16", "dev", "eth0")
    _ip("-n", switch, "link", "set", port, "master", "bridge")
    for namespace, device in ((machine.name, "eth0"), (switch, port)):
        _ip("-n", namespace, "link", "set", device, "up")
        if bandwidth:
            bucket = ("rate", f"{bandwidth:.0f}bit", "burst", f"{_BURST}b", "latency", _QUEUE)
            _run("tc", "-n", namespace, "qdisc", "add", "dev", device, "root", "tbf", *bucket)


def _remove(namespace: str) -> None:
    told = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True)
    if told.stdout.strip():
        subprocess.run(["kill", "-KILL", *told.stdout.split()], stderr=subprocess.DEVNULL)
    subprocess.run(["ip", "netns", "delete", namespace], stderr=subprocess.DEVNULL)


def _ip(*arguments: str) -> None:
    _run("ip", *arguments)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise Unavailable(f"{' '.join(command)}: {done.stderr.strip() or 'failed'}")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--machines", type=int, default=2)
    parser.add_argument("--bandwidth", type=float, help="bits a second")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    try:
        with raise_on_signals(), network(arguments.machines, arguments.bandwidth) as machines:
            print(*(machine.address for machine in machines), flush=True)
            command = machines[0].command(arguments.command or ["bash"])
            return subprocess.run(command).returncode
    except Interrupted as interrupted:
        return 128 + interrupted.number
    except Unavailable as error:
        sys.exit(str(error))


if __name__ == "__main__":
    sys.exit(main())
