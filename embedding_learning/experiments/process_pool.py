"""Runs several processes of train.py at the same time, one in each slot."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from queue import SimpleQueue
from threading import Lock

from embedding_learning.errors import UsageError
from embedding_learning.runtime.signals import StopRequest
from embedding_learning.runtime.startup import train_command

# Seconds between two checks whether to stop.
_PAUSE = 0.1

# Runs train.py with these flags, adds what it prints to the log, and returns its exit status.
TrainFunction = Callable[[Sequence[str], Path], int]
# Calls the function that it receives once or several times, one call after the other.
Task = Callable[[TrainFunction], None]


class _Stopped(Exception):
    """Ends a task whose process was stopped or must not start."""


def run_all(
    tasks: Sequence[Task], slots: Sequence[Sequence[str]], threads: int | None, stop: StopRequest
) -> None:
    """Runs tasks in their order, one thread per slot. Blocks until all end or a stop is requested.

    When a stop is requested or a task raises an exception, the processes are asked to save their
    state and end, their tasks end too, and no other task begins. Then the exception is raised.

    Parameters
    ----------
    tasks : sequence of Task
    slots : sequence of sequence of str
        Flags for the processes of each slot, such as its GPU.
    threads : int, optional
        OMP_NUM_THREADS of each process; None leaves it unchanged.
    stop : StopRequest
        Checked several times a second.
    """
    environment = dict(os.environ)
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    free: SimpleQueue[Sequence[str]] = SimpleQueue()
    for slot in slots:
        free.put(slot)
    lock = Lock()
    running: set[subprocess.Popen[bytes]] = set()
    is_stopping = False

    def train(flags: Sequence[str], log: Path) -> int:
        slot = free.get()
        try:
            with lock:
                if is_stopping:
                    raise _Stopped
                process = _start([*flags, *slot], log, environment)
                running.add(process)
            status = process.wait()
            with lock:
                running.remove(process)
                if is_stopping:
                    raise _Stopped
            return status
        finally:
            free.put(slot)

    def work(task: Task) -> None:
        try:
            if not is_stopping:
                task(train)
        except _Stopped:
            pass
        except BaseException:
            stop_all()
            raise

    def stop_all() -> None:
        nonlocal is_stopping
        with lock:
            is_stopping = True
            for process in running:
                process.terminate()

    with ThreadPoolExecutor(len(slots)) as pool:
        futures = [pool.submit(work, task) for task in tasks]
        try:
            while stop.number is None and wait(futures, _PAUSE).not_done:
                pass
        finally:
            stop_all()
    for future in futures:
        future.result()


def _start(flags: list[str], log: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """Starts train.py with its output in the log. Raises UsageError if it cannot be written."""
    try:
        file = open(log, "ab")  # noqa: SIM115
    except OSError as error:
        raise UsageError(f"{log}: cannot be written: {error.strerror}") from error
    with file:
        # In its own session the process does not receive Ctrl-C. That would be a second signal in
        # addition to the one that `stop_all` sends, and a second signal ends a run at once.
        return subprocess.Popen(
            [*train_command(), *flags],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env=environment,
            start_new_session=True,
        )
