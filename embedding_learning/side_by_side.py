"""Runs of train.py as processes, some at a time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import NamedTuple

from embedding_learning.flags import UsageError
from embedding_learning.stopping import StopRequest

_TRAIN = Path(__file__).resolve().parents[1] / "train.py"
# Between two looks at the processes, in seconds.
_PAUSE = 0.1


class Process(NamedTuple):
    """A run of train.py.

    Attributes
    ----------
    flags : list of str
    log : Path
        What it prints is added to this file.
    """

    flags: list[str]
    log: Path


# Yields what is to be run next, and is sent the status it ended with.
Job = Generator[Process, int, None]


def run_all(
    jobs: Sequence[Job], slots: Sequence[Sequence[str]], threads: int | None, stop: StopRequest
) -> None:
    """Runs the jobs in their order, one in each slot at a time, until all end or `stop` is asked.

    Parameters
    ----------
    jobs : sequence of Job
        Each runs one process after another.
    slots : sequence of sequence of str
        Flags for whatever runs in that slot, such as its GPU.
    threads : int, optional
        What OMP_NUM_THREADS is for each; if None it stays as it is.
    stop : StopRequest
        Once it is asked, the processes are asked to save their state, and none is begun any more.
    """
    waiting = list(jobs)
    free = list(range(len(slots)))
    running: dict[int, tuple[Job, subprocess.Popen[bytes]]] = {}
    environment = dict(os.environ)
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)

    def go_on(slot: int, job: Job, status: int | None) -> None:
        try:
            process = next(job) if status is None else job.send(status)
        except StopIteration:
            free.append(slot)
        else:
            running[slot] = job, _start(process, slots[slot], environment)

    try:
        while (waiting or running) and stop.number is None:
            while waiting and free and stop.number is None:
                go_on(free.pop(0), waiting.pop(0), None)
            time.sleep(_PAUSE)
            for slot, (job, process) in list(running.items()):
                status = process.poll()
                if status is not None:
                    del running[slot]
                    go_on(slot, job, status)
    finally:
        # Asked to stop, or kept from writing the tables, say: nothing goes on unseen.
        for _, process in running.values():
            process.send_signal(signal.SIGTERM)
        for _, process in running.values():
            process.wait()


def _start(
    process: Process, slot_flags: Sequence[str], environment: dict[str, str]
) -> subprocess.Popen[bytes]:
    """Raises UsageError if its log cannot be written."""
    command = [sys.executable, str(_TRAIN), *process.flags, *slot_flags]
    try:
        log = open(process.log, "ab")  # noqa: SIM115
    except OSError as error:
        raise UsageError(f"{process.log}: cannot be written: {error.strerror}") from error
    with log:
        # In a session of its own Ctrl-C does not reach it: it would be a second signal, which stops
        # a run at once, beside the one that it is told below.
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
        )
