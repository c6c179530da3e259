"""The processes of one training job, started by hand: what `launch` does, but where the caller
says, and each to be killed or timed apart."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import NamedTuple

from tests.benchmarks.namespaces import Machine

ROOT = Path(__file__).resolve().parents[2]
_TICKS = os.sysconf("SC_CLK_TCK")
# The job's scheduler listens here and 1000 above.
_PORT = 23456


class Process:
    """One of them.

    Attributes
    ----------
    role : str
    popen : Popen
    """

    def __init__(self, role: str, command: Sequence[str], folder: Path, environment: dict) -> None:
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

    def lines(self) -> list[str]:
        """The same, without what a progress bar has overwritten."""
        return [line.rpartition("\r")[2] for line in self.output().split("\n")]

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
) -> Iterator[list[Process]]:
    """The scheduler, the servers and the workers, in this order; killed when the context is left.

    With machines, 1 + servers + workers of them, each has one to itself; else all talk over this
    machine's loopback. `folder` is where they run.
    """
    address = machines[0].address if machines else "127.0.0.1"
    job_environment = {
        "DMLC_PS_ROOT_URI": address,
        "DMLC_PS_ROOT_PORT": str(_PORT),
        "DMLC_NUM_WORKER": str(workers),
        "DMLC_NUM_SERVER": str(servers),
    }
    processes: list[Process] = []
    try:
        for number, role in enumerate(["scheduler"] + ["server"] * servers + ["worker"] * workers):
            told = list(command.worker if role == "worker" else command.helper)
            environment = {**job_environment, "DMLC_ROLE": role, "DMLC_NODE_HOST": address}
            if machines:
                told = machines[number].command(told)
                environment["DMLC_NODE_HOST"] = machines[number].address
            processes.append(Process(role, told, folder, environment))
        yield processes
    finally:
        for process in processes:
            process.kill()
