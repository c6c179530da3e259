"""Starts each process of a worker group by itself, so that it can be killed or timed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from types import MappingProxyType
from typing import NamedTuple

from tests.benchmarks.namespaces import Machine

ROOT = Path(__file__).resolve().parents[2]
_TICKS = os.sysconf("SC_CLK_TCK")
# The scheduler listens on this port; the heartbeat server on one that is 1000 higher.
_PORT = 23456


class GroupFailed(Exception):
    """A process ended too early, or did not print what was expected. The message has its output."""


class Process:
    """A process of a worker group.

    Attributes
    ----------
    role : str
        Worker, server or scheduler, or another title.
    popen : Popen
    """

    def __init__(
        self, role: str, command: Sequence[str], folder: Path, environment: Mapping[str, str]
    ) -> None:
        self.role = role
        # A file and not a pipe: a pipe that nobody reads blocks its writer once it is full.
        self._output = TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115
        self.popen = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **environment},
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
        )

    def output(self) -> str:
        """Returns all that the process has printed so far."""
        file = self._output.fileno()
        return os.pread(file, os.fstat(file).st_size, 0).decode(errors="replace")

    def last_line(self) -> str:
        """Returns the last line that the process has printed, or state of its progress bar."""
        lines = re.split(r"[\r\n]", self.output())
        return next((line for line in reversed(lines) if line.strip()), "")

    def cpu_seconds(self) -> float:
        """Returns the processor time of all its threads, in user and kernel mode."""
        after_name = Path(f"/proc/{self.popen.pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, after_name[11:13])) / _TICKS

    def kill(self) -> None:
        """Kills the process if it still runs, and waits for its end."""
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGKILL)
        self.popen.wait()


class Commands(NamedTuple):
    """The command of the workers, and that of the scheduler and the servers."""

    worker: Sequence[str]
    non_worker: Sequence[str]


@contextmanager
def start_group(
    commands: Commands,
    workers: int,
    servers: int,
    folder: Path,
    machines: Sequence[Machine] = (),
    environment: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[list[Process]]:
    """Starts the scheduler, the servers and the workers, listed in this order; kills them at exit.

    Parameters
    ----------
    commands : Commands
    workers, servers : int
    folder : Path
        The current folder of the processes.
    machines : sequence of Machine, optional
        One for each process, 1 + servers + workers. Without them all processes use the loopback
        interface of this machine.
    environment : mapping, optional
        Further environment variables of the processes.
    """
    address = machines[0].address if machines else "127.0.0.1"
    settings = {
        **environment,
        "DMLC_PS_ROOT_URI": address,
        "DMLC_PS_ROOT_PORT": str(_PORT),
        "DMLC_NUM_WORKER": str(workers),
        "DMLC_NUM_SERVER": str(servers),
    }
    processes: list[Process] = []
    try:
        for number, role in enumerate(["scheduler"] + ["server"] * servers + ["worker"] * workers):
            command = list(commands.worker if role == "worker" else commands.non_worker)
            own = {**settings, "DMLC_ROLE": role, "DMLC_NODE_HOST": address}
            if machines:
                command = machines[number].command(command)
                own["DMLC_NODE_HOST"] = machines[number].address
            processes.append(Process(role, command, folder, own))
        yield processes
    finally:
        for process in processes:
            process.kill()


def wait_for(
    text: str,
    printing: Sequence[Process],
    processes: Sequence[Process],
    timeout: float,
    at_least: int | None = None,
) -> None:
    """Blocks until processes have printed a text.

    Parameters
    ----------
    text : str
    printing : sequence of Process
        The processes that print it.
    processes : sequence of Process
        All processes of the group.
    timeout : float
        In seconds.
    at_least : int, optional
        Wait for so many of them (default: all).

    Raises GroupFailed after the timeout, or once any of `processes` has failed.
    """
    deadline = time.monotonic() + timeout
    at_least = len(printing) if at_least is None else at_least
    while sum(text in process.output() for process in printing) < at_least:
        failed = [process for process in processes if process.popen.poll()]
        if failed or time.monotonic() > deadline:
            raise GroupFailed(
                "\n".join(
                    f"{process.role}, exit status {process.popen.returncode}, {text!r} expected:\n"
                    f"{process.output()[-2000:]}"
                    for process in failed or printing
                )
            )
        time.sleep(0.01)
