"""The launcher that MXNet ships, made to run on today's Python.

`dmlc_tracker` starts the processes of a job, here or over ssh, and tells each its place in it by
``DMLC_*`` variables. It needs mending in three places: its threads call `Thread.isAlive`, which
left Python in 3.9; a process that fails shows as a traceback with the whole environment; and
without a network it finds no address of this machine, though 127.0.0.1 would do.
"""

from __future__ import annotations

import subprocess
import threading
import time
import warnings
from argparse import Namespace
from types import SimpleNamespace
from typing import Any

from dmlc_tracker import local, ssh, tracker

from embedding_learning import dmlc, roll_call

_LOCALHOST = "127.0.0.1"
# For the workers to end once the scheduler has, in seconds.
_PARTING = 30
# What ssh itself exits with if it cannot connect.
_NO_CONNECTION = 255


class Launch:
    """One launch of a job.

    Parameters
    ----------
    command : list of str
        What each process runs.
    workers, servers : int
    hosts : str, optional
        A file of one host (or host:port, of ssh) a line, which processes are dealt to in turn; none
        runs all here.
    address : str, optional
        This machine's, as the hosts reach it; found if not given.
    """

    def __init__(
        self,
        command: list[str],
        workers: int,
        servers: int,
        hosts: str | None = None,
        address: str | None = None,
    ) -> None:
        self._hosts = hosts
        self._arguments = Namespace(
            command=[_quoted(part) for part in command],
            num_workers=workers,
            num_servers=servers,
            local_num_attempt=0,
            host_file=hosts,
            host_ip=address,
            sync_dst_dir=None,
        )
        self._tracker: Any = None
        self._status = 0

    def run(self) -> int:
        """Starts the processes and waits for their end; the job's exit status."""
        before = set(threading.enumerate())
        threading.Thread.isAlive = threading.Thread.is_alive  # type: ignore[attr-defined]
        threading.excepthook = self._see_failure
        if not self._hosts:
            tracker.get_host_ip = lambda _: _LOCALHOST
        launch = self

        class Tracker(tracker.PSTracker):
            def __init__(self, *arguments: Any, **named: Any) -> None:
                launch._tracker = self
                super().__init__(*arguments, **named)

        original, tracker.PSTracker = tracker.PSTracker, Tracker
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                (ssh if self._hosts else local).submit(self._arguments)
        finally:
            tracker.PSTracker = original
        deadline = time.monotonic() + _PARTING
        for thread in set(threading.enumerate()) - before:
            thread.join(max(0.0, deadline - time.monotonic()))
        return self._status

    def commands(self) -> list[str]:
        """What `run` would run, as lines for a shell; runs nothing."""
        lines: list[str] = []
        noted_all = threading.Event()
        processes = 1 + self._arguments.num_workers + self._arguments.num_servers

        def note(command: str, env: dict[str, str] | None = None, **_: Any) -> int:
            # Over ssh the variables are part of the command.
            told = sorted((env or {}).items())
            places = [f"{name}={value}" for name, value in told if name.startswith("DMLC_")]
            lines.append(" ".join([*places, command]))
            if len(lines) == processes:
                noted_all.set()
            # The others are started while the scheduler runs.
            if dict(told).get("DMLC_ROLE") == "scheduler":
                noted_all.wait(_PARTING)
            return 0

        modules = (local, ssh, tracker)
        try:
            for module in modules:
                module.subprocess = SimpleNamespace(call=note, check_call=note)
            self.run()
        finally:
            for module in modules:
                module.subprocess = subprocess
        return sorted(lines)

    def environment(self) -> dmlc.Environment | None:
        """Where the scheduler is, once it has been started."""
        port = getattr(self._tracker, "port", None)
        if port is None:
            return None
        host, arguments = self._tracker.hostIP, self._arguments
        sizes = arguments.num_workers, arguments.num_servers
        return dmlc.Environment("worker", host, port, *sizes)

    def _see_failure(self, failure: Any) -> None:
        """Called in the thread of a process that did not end with 0."""
        status = getattr(failure.exc_value, "returncode", None)
        if status is None:
            # A worker's; the scheduler ends with the worst of them.
            return
        environment = self.environment()
        if self._hosts and status == _NO_CONNECTION and environment:
            host = failure.exc_value.cmd.split()[3]
            roll_call.give_up(environment, f"ssh does not get to {host}, or lost it")
        if self._tracker and failure.thread is self._tracker.thread:
            self._status = status if status > 0 else 128 - status


def _quoted(part: str) -> str:
    """For a shell, without quotes: the launcher puts its own around what it hands to ssh."""
    return "".join(c if c.isalnum() or c in "@%+=:,./-_" else f"\\{c}" for c in part)
