"""Whether all processes of a job are still there.

MXNet's parameter server waits for ever for a worker or server that has died. So each
worker and server keeps a connection to the scheduler. The scheduler informs all others when one is
lost: its connection breaks, or it sends nothing for HEARTBEAT_TIMEOUT seconds. Each message is one
line of JSON.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from embedding_learning.distributed import dmlc_environment
from embedding_learning.errors import UsageError

# All times are in seconds. A process that is frozen or cut off is lost after HEARTBEAT_TIMEOUT, a
# dead one at once.
HEARTBEAT_INTERVAL = 5
HEARTBEAT_TIMEOUT = 20
# For all processes to come; those of a batch system may start one after the other.
JOIN_TIMEOUT = 120
# Before the others are told that a worker has ended with a fault: they may have the same one.
ABORT_DELAY = 3
# For the processes of a job that cannot begin to hear of it.
LATE_JOIN_DELAY = 10
# Longer than any message, so that a stranger cannot fill the memory.
_LONGEST_LINE = 4096
LOST_STATUS = 3


class HeartbeatClient:
    """This process's place on the roll.

    Attributes
    ----------
    stop_signal : int, optional
        The signal by which the launcher was asked to end the job.
    servers : int
        How many the job has.
    """

    def __init__(self, program: str, environment: dmlc_environment.Environment) -> None:
        self.stop_signal: int | None = None
        self.servers = environment.servers
        self._program = program
        self._name = environment.role
        self._sending = threading.Lock()
        self._leaving = False
        self._socket = _connect(environment)
        self._send(role=environment.role, host=socket.gethostname(), pid=os.getpid())
        for loop in (self._beat, self._listen):
            threading.Thread(target=loop, daemon=True).start()

    def send_rank(self, rank: int) -> None:
        """The number that MXNet gave this worker."""
        self._name = f"worker {rank}"
        self._send(rank=rank)

    def report_exit(self, status: int) -> None:
        """Says that this process ends, and how; from then on nobody can be lost to it."""
        self._leaving = True
        with suppress(OSError):
            self._send(bye=status)

    def _send(self, **message: Any) -> None:
        with self._sending:
            self._socket.sendall(json.dumps(message).encode() + b"\n")

    def _beat(self) -> None:
        with suppress(OSError):
            while True:
                time.sleep(HEARTBEAT_INTERVAL)
                self._send()

    def _listen(self) -> None:
        lost = "the scheduler was lost"
        for message in _messages(self._socket):
            if "stop" in message:
                self.stop_signal = int(message["stop"])
            if "end" in message:
                exit_now(0)
            if "lost" in message:
                lost = str(message["lost"])
                break
        if self._leaving:
            return
        print_error(
            f"{self._program}: {self._name}: stopped: {lost}; all saved files are "
            "complete, and --resume auto continues the run"
        )
        exit_now(LOST_STATUS)


class HeartbeatServer:
    """The scheduler's list of a job's processes; ends the scheduler with the job's exit status."""

    def __init__(self, program: str, environment: dmlc_environment.Environment) -> None:
        self._program = program
        self._environment = environment
        self._lock = threading.RLock()
        # The connection and the name of each process that has come and not left.
        self._present: dict[socket.socket, dict[str, Any]] = {}
        self._workers_left: list[int] = []
        self._came = 0
        self._expected = environment.workers + environment.servers
        self._lost = ""
        self._stop: int | None = None
        address = ("", environment.heartbeat_port)
        try:
            self._listener = socket.create_server(address, reuse_port=False, backlog=1024)
        except OSError as error:
            raise UsageError(
                f"DMLC_PS_ROOT_PORT {environment.port}: port {environment.heartbeat_port}, "
                f"which is needed too, cannot be opened: {os.strerror(error.errno or 0)}"
            ) from error
        for loop in (self._accept, self._beat):
            threading.Thread(target=loop, daemon=True).start()
        timer = threading.Timer(JOIN_TIMEOUT, self._check_all_came)
        timer.daemon = True
        timer.start()

    def _accept(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            threading.Thread(target=self._attend, args=(connection,), daemon=True).start()
            del connection  # or it would stay open until the next one comes

    def _attend(self, connection: socket.socket) -> None:
        """Listens to one process until it leaves or is lost."""
        for message in _messages(connection):
            if "abort" in message:
                self._end_job(str(message["abort"]))
            with self._lock:
                if message.get("role") in dmlc_environment.ROLES:
                    self._present[connection] = message
                    self._came += 1
                    if self._lost:
                        self._tell_all(lost=self._lost)
                    if self._stop:
                        self._tell_all(stop=self._stop)
                elif message.get("stop") in (signal.SIGINT, signal.SIGTERM):
                    # Kept for those that are still on their way.
                    self._stop = int(message["stop"])
                    self._tell_all(stop=self._stop)
                elif connection not in self._present:
                    break
                elif "rank" in message:
                    self._present[connection]["rank"] = message["rank"]
                elif "bye" in message:
                    self._see_leave(self._present.pop(connection), int(message["bye"]))
                    return
        with self._lock:
            member = self._present.pop(connection, None)
        if member:
            self._end_job(f"{_name(member)} was lost")

    def _see_leave(self, member: dict[str, Any], status: int) -> None:
        is_worker = member["role"] == "worker"
        if is_worker:
            self._workers_left.append(status)
            if len(self._workers_left) == self._environment.workers:
                self._tell_all(end=True)
                exit_now(max(self._workers_left))
        # A server never leaves of itself; without it the workers would wait for ever.
        if status or not is_worker:
            text = f"{_name(member)} ended with status {status}"
            threading.Timer(ABORT_DELAY, self._end_job, args=(text, status or LOST_STATUS)).start()

    def _check_all_came(self) -> None:
        if self._came < self._expected:
            self._end_job(
                f"only {self._came} of {self._expected} processes came in {JOIN_TIMEOUT} s"
            )

    def _end_job(self, reason: str, status: int = LOST_STATUS) -> None:
        with self._lock:
            if self._lost:
                return
            self._lost = reason
            self._tell_all(lost=reason)
            print_error(f"{self._program}: scheduler: stopped: {reason}")
        if self._came < self._expected:
            # Those that are on their way are told when they come.
            time.sleep(LATE_JOIN_DELAY)
        exit_now(status)

    def _tell_all(self, **message: Any) -> None:
        line = json.dumps(message).encode() + b"\n"
        for connection in list(self._present):
            # One that cannot be told is noticed by who listens to it.
            with suppress(OSError):
                connection.sendall(line)

    def _beat(self) -> None:
        while True:
            time.sleep(HEARTBEAT_INTERVAL)
            with self._lock:
                self._tell_all()


# This process's, once it has joined a job.
_client: HeartbeatClient | HeartbeatServer | None = None


def join_group(program: str) -> HeartbeatClient | HeartbeatServer | None:
    """Puts this process on the roll of its job, if it is part of one.

    Raises UsageError if the scheduler cannot be reached.
    """
    global _client
    environment = dmlc_environment.read_environment()
    if environment:
        kind = HeartbeatServer if environment.role == "scheduler" else HeartbeatClient
        _client = kind(program, environment)
    return _client


def exit_group(status: int) -> None:
    """Ends this process if it had joined a job, with the exit status; else does nothing."""
    if isinstance(_client, HeartbeatClient):
        _client.report_exit(status)
    if _client:
        # MXNet's own way to leave waits for all others, who may be gone.
        exit_now(status)


def request_stop(environment: dmlc_environment.Environment, number: int) -> bool:
    """Asks all workers of a job to save their state and end, as if each had got the signal.

    Returns whether the scheduler was reached.
    """
    return _send_once(environment, stop=number)


def abort_group(environment: dmlc_environment.Environment, reason: str) -> bool:
    """Ends a job that cannot begin. Returns whether the scheduler was reached."""
    return _send_once(environment, abort=reason)


def _send_once(environment: dmlc_environment.Environment, **message: Any) -> bool:
    address = (environment.host, environment.heartbeat_port)
    try:
        with socket.create_connection(address, HEARTBEAT_INTERVAL) as connection:
            connection.sendall(json.dumps(message).encode() + b"\n")
    except OSError:
        return False
    return True


def exit_now(status: int) -> None:
    """Ends the process from any thread, with nothing torn down."""
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def _connect(environment: dmlc_environment.Environment) -> socket.socket:
    """Tries until the scheduler is there."""
    deadline = time.monotonic() + JOIN_TIMEOUT
    while True:
        try:
            return socket.create_connection(
                (environment.host, environment.heartbeat_port), HEARTBEAT_TIMEOUT
            )
        except OSError as error:
            if time.monotonic() > deadline:
                raise UsageError(
                    f"DMLC_PS_ROOT_URI {environment.host}: the scheduler cannot be reached at port "
                    f"{environment.heartbeat_port}: {error.strerror or error}"
                ) from error
            time.sleep(0.2)


def _messages(connection: socket.socket) -> Iterator[dict[str, Any]]:
    """What arrives, until the other end is gone, silent or talks nonsense."""
    connection.settimeout(HEARTBEAT_TIMEOUT)
    with suppress(OSError, ValueError, RecursionError), connection.makefile("rb") as lines:
        while line := lines.readline(_LONGEST_LINE):
            message = json.loads(line)
            if not isinstance(message, dict):
                return
            yield message


def print_error(text: str) -> None:
    """A line on the error output, if anyone still reads it."""
    # Whoever read the error output may be gone; the process must end all the same.
    with suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


def _name(member: dict[str, Any]) -> str:
    number = f" {member['rank']}" if "rank" in member else ""
    return f"{member['role']}{number} ({member.get('host')}, process {member.get('pid')})"
