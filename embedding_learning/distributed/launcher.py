"""Starts the processes of a distributed job, on this machine or over ssh, and waits for its end.

Each process is train.py with the ``DMLC_*`` variables that give it its place in the job (see
`dmlc_environment`). Whether all of them are still there is watched by the job itself (see
`heartbeat`).
"""

from __future__ import annotations

import math
import os
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
_PORTS = range(9091, 9999)
# Variables of this machine that processes on other machines get too.
_PASSED_ON = ("OMP_NUM_THREADS", "KMP_AFFINITY", "LD_LIBRARY_PATH", "DMLC_INTERFACE")
# Between two looks at the processes, in seconds.
_PAUSE = 0.1
# Seconds for the others to end once the scheduler has; those that remain are killed.
_PARTING = 30
# What ssh itself exits with if it cannot connect.
_NO_CONNECTION = 255


class Process(NamedTuple):
    """One process of a job.

    Attributes
    ----------
    role : str
        One of `dmlc_environment.ROLES`.
    host : str, optional
        The machine that ssh starts it on; None is this one.
    command : list of str
        What runs on this machine: the process itself, or ssh.
    """

    role: str
    host: str | None
    command: list[str]


class Host(NamedTuple):
    """A machine of the job, and the port of its ssh."""

    name: str
    port: str


def read_hosts(path: str) -> list[Host]:
    """Returns the hosts that a file names, one a line: ``host`` or ``host:port``.

    What MPI's host files add (``slots=N``) is ignored. Raises UsageError without any host.
    """
    try:
        with open(path, encoding="utf-8") as file:
            lines = [line.partition("slots=")[0].strip() for line in file]
    except (OSError, ValueError) as error:
        raise UsageError(f"--hosts {path}: cannot be read ({error})") from None
    places = [line.partition(":") for line in lines if line]
    if not places:
        raise UsageError(f"--hosts {path}: names no host; put one on each line")
    return [Host(name, port or "22") for name, _, port in places]


def find_address() -> str:
    """Returns this machine's address, as other machines reach it; raises UsageError without one."""
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
            "--hosts: no address is found by which the hosts reach this machine; give --address"
        ) from None


def create_scheduler_environment(
    workers: int, servers: int, address: str | None
) -> dmlc_environment.Environment:
    """Returns where the scheduler of a new job listens; raises UsageError without a free port."""
    for port in _PORTS:
        place = dmlc_environment.Environment(
            "scheduler", address or _LOCALHOST, port, workers, servers
        )
        with suppress(OSError):
            for each in (place.port, place.heartbeat_port):
                socket.create_server(("", each)).close()
            return place
    raise UsageError(
        f"launch: no port from {_PORTS[0]} to {_PORTS[-1]} is free together with the one 1000 above"
    )


def plan_processes(
    command: list[str], scheduler: dmlc_environment.Environment, hosts: list[Host]
) -> list[Process]:
    """Returns the processes of a job: first the scheduler, then the servers, then the workers.

    Parameters
    ----------
    command : list of str
        What each process runs.
    scheduler : dmlc.Environment
    hosts : list of Host
        Servers and workers are dealt to them in turn. With none, all run on this machine.
    """

    def with_variables(variables: dict[str, str]) -> list[str]:
        return ["env", *(f"{name}={value}" for name, value in variables.items()), *command]

    processes = [Process("scheduler", None, with_variables(scheduler.variables()))]
    roles = ["server"] * scheduler.servers + ["worker"] * scheduler.workers
    for role, host in zip(roles, cycle(hosts or [None])):
        variables = scheduler._replace(role=role).variables()
        if host is None:
            processes.append(Process(role, None, with_variables(variables)))
            continue
        variables.update((name, os.environ[name]) for name in _PASSED_ON if name in os.environ)
        variables.update(_node_address(host, scheduler))
        remote = f"cd {shlex.quote(os.getcwd())} && {shlex.join(with_variables(variables))}"
        ssh = ["ssh", "-o", "StrictHostKeyChecking=no", host.name, "-p", host.port, remote]
        processes.append(Process(role, host.name, ssh))
    return processes


def run_processes(processes: list[Process], scheduler: dmlc_environment.Environment) -> int:
    """Starts the processes and waits for the end of the job; none of them is left behind.

    Ctrl-C and SIGTERM (and SIGHUP, when the terminal is closed) are passed to the job, which saves
    its state and ends; the second signal kills it.

    Returns
    -------
    int
        The exit status of the job, which is the scheduler's.
    """
    started: list[subprocess.Popen[bytes]] = []
    with _noted_signals() as signals:
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


def _node_address(host: Host, scheduler: dmlc_environment.Environment) -> dict[str, str]:
    """Returns the variable by which the others reach a process; it has to be a number.

    Without it (an alias of ssh, say) MXNet takes the first network interface of the machine.
    """
    try:
        address = socket.gethostbyname(host.name.rpartition("@")[2])
    except OSError:
        return {}
    # The name of this machine is often given to the loopback interface.
    return {"DMLC_NODE_HOST": scheduler.host if address.startswith("127.") else address}


def _start(command: list[str]) -> subprocess.Popen[bytes]:
    # In a session of its own, since Ctrl-C is for the launcher alone: it would end ssh, or be a
    # second signal for a worker that the job has asked to stop.
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)


def _wait(
    processes: list[Process],
    started: list[subprocess.Popen[bytes]],
    scheduler: dmlc_environment.Environment,
    signals: list[int],
) -> None:
    """Returns when all have ended, at the second signal, or _PARTING after the scheduler's end."""
    is_asked = is_given_up = False
    latest = math.inf
    while len(signals) < 2 and time.monotonic() < latest:
        # The first is the scheduler's. Messages that it does not get yet are repeated.
        states = [process.poll() for process in started]
        if None not in states:
            return
        if states[0] is not None:
            latest = min(latest, time.monotonic() + _PARTING)
        elif signals and not is_asked:
            is_asked = heartbeat.request_stop(scheduler, signals[0])
        elif _NO_CONNECTION in states and not is_given_up:
            host = processes[states.index(_NO_CONNECTION)].host
            reason = f"ssh does not get to {host}, or lost it"
            is_given_up = heartbeat.abort_group(scheduler, reason)
        time.sleep(_PAUSE)


@contextmanager
def _noted_signals() -> Iterator[list[int]]:
    """Within, signals that ask the job to stop are added to the list, as SIGINT or SIGTERM."""
    signals: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        signals.append(signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)
        if len(signals) == 1:
            with suppress(OSError):
                print("The job stops after its batch; another signal kills it.", file=sys.stderr)

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup has it
        numbers.append(signal.SIGHUP)
    former = [signal.signal(number, note) for number in numbers]
    try:
        yield signals
    finally:
        for number, handler in zip(numbers, former):
            signal.signal(number, handler)
