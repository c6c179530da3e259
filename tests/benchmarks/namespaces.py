"""Simulates a network of machines on this machine: network namespaces, joined by a bridge.

    sudo python -m tests.benchmarks.namespaces [--machines 2] [--bandwidth 200e6] [COMMAND ...]

Runs a command in the first namespace, by default a shell; it reaches the others by the addresses
that are printed. No namespace reaches the network of the real machine. Needs Linux, root, and the
programs ip and tc of iproute2. A token bucket at both ends of each cable limits the bandwidth, so
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
# Bytes that may pass at once, more than the largest packet between namespaces; and the time that a
# packet may queue before it is dropped.
_BURST, _QUEUE = 1 << 17, "20ms"


class Unavailable(Exception):
    """Namespaces cannot be created here; the message is one line with the reason."""


class Machine(NamedTuple):
    """A network namespace.

    Attributes
    ----------
    name : str
    address : str
        The other machines reach it by this one.
    """

    name: str
    address: str

    def command(self, command: Sequence[str]) -> list[str]:
        """Returns a command that runs the given one in the namespace, as the same process."""
        return ["ip", "netns", "exec", self.name, *command]

    def unplug(self) -> None:
        """Disconnects the machine without notice, as if its cable was pulled."""
        _ip("-n", self.name, "link", "set", "eth0", "down")

    def plug(self) -> None:
        """Connects the machine again."""
        _ip("-n", self.name, "link", "set", "eth0", "up")


@contextmanager
def network(count: int, bandwidth: float | None = None) -> Iterator[list[Machine]]:
    """Creates machines for the time of the context, and kills what still runs in them at its end.

    Parameters
    ----------
    count : int
        Number of machines, 1 to 60,000.
    bandwidth : float, optional
        Bits a second that each machine can send, and also receive.

    Raises Unavailable if the machine or the user cannot create namespaces.
    """
    if not shutil.which("ip") or not shutil.which("tc"):
        raise Unavailable("the programs ip and tc are missing: apt-get install iproute2")
    if os.geteuid() != 0:
        raise Unavailable("only root can create network namespaces: run this with sudo")
    prefix = f"machines-{os.getpid()}"
    # The bridge has a namespace of its own, so that the network and the firewall of the real
    # machine do not matter.
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
        # A namespace's devices disappear with its last process.
        for name in names:
            _remove(name)


def _connect(machine: Machine, switch: str, port: str, bandwidth: float | None) -> None:
    """Connects the machine with the switch by a pair of virtual devices."""
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
    pids = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True)
    if pids.stdout.strip():
        subprocess.run(["kill", "-KILL", *pids.stdout.split()], stderr=subprocess.DEVNULL)
    subprocess.run(["ip", "netns", "delete", namespace], stderr=subprocess.DEVNULL)


def _ip(*arguments: str) -> None:
    _run("ip", *arguments)


def _run(*command: str) -> None:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise Unavailable(f"{' '.join(command)}: {result.stderr.strip() or 'failed'}")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--machines", type=int, default=2)
    parser.add_argument("--bandwidth", type=float, help="of each machine, in bits/s")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    try:
        with raise_on_signals(), network(args.machines, args.bandwidth) as machines:
            print(*(machine.address for machine in machines), flush=True)
            command = machines[0].command(args.command or ["bash"])
            return subprocess.run(command).returncode
    except Interrupted as interrupted:
        return 128 + interrupted.number
    except Unavailable as error:
        sys.exit(str(error))


if __name__ == "__main__":
    sys.exit(main())
