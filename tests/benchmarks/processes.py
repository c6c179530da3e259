"""The processes of one training job, started by hand: each where the caller says, and to be killed
or timed apart from the others.
"""

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
# The job's scheduler listens here and 1000 above.
_PORT = 23456


class JobFailed(Exception):
    """A process ended too early or did not come to what was waited for; tells its output."""


class Process:
    """One of them.

    Attributes
    ----------
    role : str
    popen : Popen
    """

    def __init__(
        self, role: str, command: Sequence[str], folder: Path, environment: Mapping[str, str]
    ) -> None:
        self.role = role
        # A file rather than a pipe, which would be full some time.
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
        """All it has printed so far."""
        file = self._output.fileno()
        return os.pread(file, os.fstat(file).st_size, 0).decode(errors="replace")

    def last_line(self) -> str:
        """Of what it has printed, less what a progress bar has overwritten."""
        lines = re.split(r"[\r\n]", self.output())
        return next((line for line in reversed(lines) if line.strip()), "")

    def cpu_seconds(self) -> float:
        """Of all its threads, the kernel's work for it included."""
        after_name = Path(f"/proc/{self.popen.pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, after_name[11:13])) / _TICKS

    def kill(self) -> None:
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGKILL)
        self.popen.wait()


class Command(NamedTuple):
    """What the workers of a job run, and its scheduler and servers."""

    worker: Sequence[str]
    helper: Sequence[str]


@contextmanager
def job(
    command: Command,
    workers: int,
    servers: int,
    folder: Path,
    machines: Sequence[Machine] = (),
    environment: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[list[Process]]:
    """The scheduler, the servers and the workers, in this order; killed when the context is left.

    With machines, 1 + servers + workers of them, each has one to itself; else all talk over this
    machine's loopback. `folder` is where they run; `environment` is added to what they inherit.
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
            told = list(command.worker if role == "worker" else command.helper)
            own = {**settings, "DMLC_ROLE": role, "DMLC_NODE_HOST": address}
            if machines:
                told = machines[number].command(told)
                own["DMLC_NODE_HOST"] = machines[number].address
            processes.append(Process(role, told, folder, own))
        yield processes
    finally:
        for process in processes:
            process.kill()


def wait_for(
    text: str,
    some: Sequence[Process],
    processes: Sequence[Process],
    patience: float,
    least: int | None = None,
) -> None:
    """Waits until some of the processes, all of them or at least a number, have printed a text.

    Raises JobFailed after `patience` seconds, or once any of the processes has failed.
    """
    deadline = time.monotonic() + patience
    least = len(some) if least is None else least
    while sum(text in process.output() for process in some) < least:
        failed = [process for process in processes if process.popen.poll()]
        if failed or time.monotonic() > deadline:
            raise JobFailed(
                "\n".join(
                    f"{process.role}, exit status {process.popen.returncode}, {text!r} expected:\n"
                    f"{process.output()[-2000:]}"
                    for process in failed or some
                )
            )
        time.sleep(0.01)
