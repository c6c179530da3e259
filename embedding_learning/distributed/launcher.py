"""Starts the processes of a worker group, on this machine or over ssh, and waits for their end.

Each process is train.py with the ``DMLC_*`` variables that set its role (see `dmlc_environment`).
The processes themselves find out whether one of them is lost (see `heartbeat`).
"""

from __future__ import annotations

import math
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import cycle
from types import FrameType
from typing import NamedTuple

from embedding_learning.distributed import dmlc_environment, heartbeat
from embedding_learning.errors import UsageError

_LOCALHOST = "127.0.0.1"
# A line of a file of hosts; a name that begins with a dash would be a flag of ssh.
_HOST = re.compile(r"([^\s:\[\]-][^\s:\[\]]*)(?::([1-9][0-9]{0,4}))?")
_LARGEST_PORT = 65535
_PORTS = range(9091, 9999)
# Variables of this machine that are set on other machines too.
_FORWARDED_VARIABLES = ("OMP_NUM_THREADS", "KMP_AFFINITY", "LD_LIBRARY_PATH", "DMLC_INTERFACE")
# Seconds between two checks of the processes.
_POLL_INTERVAL = 0.1
# Seconds from the end of the scheduler until processes that still run are killed.
_EXIT_TIMEOUT = 30
# The exit status of ssh if it cannot connect.
_SSH_FAILED = 255


class Process(NamedTuple):
    """One process of a worker group.

    Attributes
    ----------
    role : str
        One of `dmlc_environment.ROLES`.
    host : str, optional
        The machine on which ssh starts it. None is this machine.
    command : list of str
        The command to run on this machine: the process itself, or ssh.
    """

    role: str
    host: str | None
    command: list[str]


class Host(NamedTuple):
    """A machine, and the port of its ssh server."""

    name: str
    port: str


def read_hosts(path: str) -> list[Host]:
    """Returns the hosts in a file, one per line: ``host`` or ``host:port``.

    ``#`` begins a comment. ``slots=N`` and ``max_slots=N``, which MPI's host files contain, are
    ignored. Raises UsageError if the file cannot be read, a line is something else, or no line
    names a host.
    """
    try:
        # Editors of other systems begin a file with a mark, which is no part of a name.
        with open(path, encoding="utf-8-sig") as file:
            lines = [line.partition("#")[0].split() for line in file]
    except (OSError, ValueError) as error:
        raise UsageError(f"--hosts {path}: cannot be read ({error})") from None
    hosts = []
    for number, words in enumerate(lines, 1):
        words = [word for word in words if not word.startswith(("slots=", "max_slots="))]
        if not words:
            continue
        match = _HOST.fullmatch(" ".join(words))
        if match is None or int(match[2] or 0) > _LARGEST_PORT:
            raise UsageError(
                f"--hosts {path}:{number}: host or host:port expected, a name or an IPv4 address, "
                f"but found {' '.join(words)[:100]!r}; correct the line"
            )
        hosts.append(Host(match[1], match[2] or "22"))
    if not hosts:
        raise UsageError(f"--hosts {path}: names no host; put one on each line")
    return hosts


def find_address() -> str:
    """Returns the address by which other machines reach this one.

    Raises UsageError if it has none.
    """
    with suppress(OSError):
        address = socket.gethostbyname(socket.getfqdn())
        if not address.startswith("127."):
            return address
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            # Nothing is sent: this only selects the network interface.
            probe.connect(("10.255.255.255", 1))
            return str(probe.getsockname()[0])
    except OSError:
        raise UsageError(
            "--hosts: found no address by which the hosts could reach this machine; give --address"
        ) from None


def create_scheduler_environment(
    workers: int, servers: int, address: str | None
) -> dmlc_environment.Environment:
    """Returns the environment of a new group's scheduler.

    Raises UsageError if no port is free.
    """
    for port in _PORTS:
        environment = dmlc_environment.Environment(
            "scheduler", address or _LOCALHOST, port, workers, servers
        )
        with suppress(OSError):
            for each in (environment.port, environment.heartbeat_port):
                socket.create_server(("", each)).close()
            return environment
    raise UsageError(
        f"launch: no port from {_PORTS[0]} to {_PORTS[-1]} is free together with the one 1000 above"
    )


def plan_processes(
    command: list[str], scheduler: dmlc_environment.Environment, hosts: list[Host]
) -> list[Process]:
    """Returns the processes of a group: first the scheduler, then the servers, then the workers.

    Parameters
    ----------
    command : list of str
        The command of each process.
    scheduler : dmlc_environment.Environment
    hosts : list of Host
        Servers and workers are distributed over them in turn. Without any, all processes run on
        this machine.
    """

    def with_variables(variables: dict[str, str]) -> list[str]:
        return ["env", *(f"{name}={value}" for name, value in variables.items()), *command]

    processes = [Process("scheduler", None, with_variables(scheduler.to_variables()))]
    roles = ["server"] * scheduler.servers + ["worker"] * scheduler.workers
    for role, host in zip(roles, cycle(hosts or [None])):
        variables = scheduler._replace(role=role).to_variables()
        if host is None:
            processes.append(Process(role, None, with_variables(variables)))
            continue
        variables.update(
            (name, os.environ[name]) for name in _FORWARDED_VARIABLES if name in os.environ
        )
        variables.update(_find_node_address(host, scheduler))
        remote = f"cd {shlex.quote(os.getcwd())} && {shlex.join(with_variables(variables))}"
        ssh = ["ssh", "-o", "StrictHostKeyChecking=no", host.name, "-p", host.port, remote]
        processes.append(Process(role, host.name, ssh))
    return processes


def run_processes(processes: list[Process], scheduler: dmlc_environment.Environment) -> int:
    """Starts the processes and blocks until all have ended. None of them is left running.

    Ctrl-C and SIGTERM (and SIGHUP, when the terminal is closed) ask the group to save its state and
    end. The second signal kills all processes.

    Returns
    -------
    int
        The exit status of the scheduler, which is that of the group.
    """
    started: list[subprocess.Popen[bytes]] = []
    with _collect_signals() as signals:
        try:
            started.extend(_start(process.command) for process in processes)
            _wait(processes, started, scheduler, signals)
        finally:
            for process in started:
                process.kill()
            for process in started:
                process.wait()
    status = started[0].returncode
    if len(signals) > 1:
        return 128 + signals[1]
    return status if status >= 0 else 128 - status


def _find_node_address(host: Host, scheduler: dmlc_environment.Environment) -> dict[str, str]:
    """Returns the variable with the numeric address by which other processes reach this one.

    If there is no address (the host may be an alias of ssh), MXNet takes the first network
    interface of that machine.
    """
    try:
        address = socket.gethostbyname(host.name.rpartition("@")[2])
    except (OSError, UnicodeError):  # UnicodeError: no name of a machine, such as node..1
        return {}
    # The name of this machine often stands for the loopback interface.
    return {"DMLC_NODE_HOST": scheduler.host if address.startswith("127.") else address}


def _start(command: list[str]) -> subprocess.Popen[bytes]:
    # In a session of its own, because Ctrl-C is for the launcher only. It would end ssh, or be the
    # second signal for a worker that has already been asked to stop.
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)


def _wait(
    processes: list[Process],
    started: list[subprocess.Popen[bytes]],
    scheduler: dmlc_environment.Environment,
    signals: list[int],
) -> None:
    """Blocks until all have ended or a second signal came.

    After the end of the scheduler it blocks for _EXIT_TIMEOUT at most.
    """
    has_requested_stop = has_aborted = False
    deadline = math.inf
    while len(signals) < 2 and time.monotonic() < deadline:
        # The first process is the scheduler. Messages that do not reach it are sent again.
        states = [process.poll() for process in started]
        if None not in states:
            return
        if states[0] is not None:
            deadline = min(deadline, time.monotonic() + _EXIT_TIMEOUT)
        elif signals and not has_requested_stop:
            has_requested_stop = heartbeat.request_stop(scheduler, signals[0])
        elif _SSH_FAILED in states and not has_aborted:
            host = processes[states.index(_SSH_FAILED)].host
            reason = f"ssh cannot reach {host}, or lost the connection"
            has_aborted = heartbeat.abort_group(scheduler, reason)
        time.sleep(_POLL_INTERVAL)


@contextmanager
def _collect_signals() -> Iterator[list[int]]:
    """Appends signals that ask the group to stop to the list, as SIGINT or SIGTERM."""
    signals: list[int] = []

    def append(number: int, _: FrameType | None) -> None:
        signals.append(signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)
        if len(signals) == 1:
            with suppress(OSError):
                print(
                    "Stopping after this batch; another signal kills all processes.",
                    file=sys.stderr,
                )

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup ignores it
        numbers.append(signal.SIGHUP)
    former = [signal.signal(number, append) for number in numbers]
    try:
        yield signals
    finally:
        for number, handler in zip(numbers, former):
            signal.signal(number, handler)
