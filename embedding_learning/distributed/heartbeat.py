"""Heartbeat: finds out whether all processes of a worker group are still alive.

MXNet's parameter server waits forever for a worker or server that has died. So each worker and
server keeps a connection to the scheduler. The scheduler informs all others when one is lost: its
connection breaks, or it sends nothing for HEARTBEAT_TIMEOUT seconds. Each message is one line of
JSON.
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
from typing import Any, NoReturn

from embedding_learning.distributed import dmlc_environment
from embedding_learning.errors import UsageError

# All times are in seconds. A process that is frozen or disconnected is lost after
# HEARTBEAT_TIMEOUT. A dead one is lost at once.
HEARTBEAT_INTERVAL = 5
HEARTBEAT_TIMEOUT = 20
# For all processes to connect. A batch system may start them one after the other.
JOIN_TIMEOUT = 120
# From the failure of one worker to the end of the others. They may have found the same mistake.
ABORT_DELAY = 3
# How long the scheduler of a group that ended waits, so that processes that start late learn of it.
LATE_JOIN_DELAY = 10
# Longer than any message, so that an untrusted sender cannot fill the memory.
_MAX_LINE = 4096
# The exit status of a process that ends because another one was lost.
LOST_STATUS = 3


class HeartbeatClient:
    """The connection of a worker or server to the heartbeat server.

    Ends the process when the server reports that another process was lost.

    Attributes
    ----------
    stop_signal : int, optional
        The signal that asked the launcher to stop the group.
    servers : int
        The number of parameter servers in the group.
    """

    def __init__(self, program: str, environment: dmlc_environment.Environment) -> None:
        self.stop_signal: int | None = None
        self.servers = environment.servers
        self._program = program
        self._name = environment.role
        self._send_lock = threading.Lock()
        self._has_reported_exit = False
        self._socket = _connect(environment)
        self._send(role=environment.role, host=socket.gethostname(), pid=os.getpid())
        for loop in (self._send_heartbeats, self._receive):
            threading.Thread(target=loop, daemon=True).start()

    def send_rank(self, rank: int) -> None:
        """Sends the rank that MXNet gave this worker."""
        self._name = f"worker {rank}"
        self._send(rank=rank)

    def report_exit(self, status: int) -> None:
        """Reports that this process ends, with its exit status. From now on it is not missed."""
        self._has_reported_exit = True
        with suppress(OSError):
            self._send(exit_status=status)

    def _send(self, **message: Any) -> None:
        with self._send_lock:
            self._socket.sendall(json.dumps(message).encode() + b"\n")

    def _send_heartbeats(self) -> None:
        with suppress(OSError):
            while True:
                time.sleep(HEARTBEAT_INTERVAL)
                self._send()

    def _receive(self) -> None:
        lost = "the scheduler was lost"
        for message in _read_messages(self._socket):
            if "stop" in message:
                self.stop_signal = int(message["stop"])
            if "finished" in message:
                exit_now(0)
            if "lost" in message:
                lost = str(message["lost"])
                break
        if self._has_reported_exit:
            return
        print_error(
            f"{self._program}: {self._name}: stopped: {lost}; all saved files are "
            "complete, and --resume auto continues the run"
        )
        exit_now(LOST_STATUS)


class HeartbeatServer:
    """The scheduler's connections to all workers and servers of its group.

    Ends the scheduler's process with the exit status of the group.
    """

    def __init__(self, program: str, environment: dmlc_environment.Environment) -> None:
        self._program = program
        self._environment = environment
        self._lock = threading.RLock()
        # For each connected process: its connection, and its first message with role, host and pid.
        self._clients: dict[socket.socket, dict[str, Any]] = {}
        self._worker_statuses: list[int] = []
        self._joined = 0
        self._expected = environment.workers + environment.servers
        self._all_joined = threading.Event()
        self._abort_reason = ""
        self._is_finished = False
        self._stop_signal: int | None = None
        address = ("", environment.heartbeat_port)
        try:
            self._listener = socket.create_server(address, reuse_port=False, backlog=1024)
        except OSError as error:
            raise UsageError(
                f"DMLC_PS_ROOT_PORT {environment.port}: port {environment.heartbeat_port}, "
                f"which is needed too, cannot be opened: {os.strerror(error.errno or 0)}"
            ) from error
        for loop in (self._accept, self._send_heartbeats):
            threading.Thread(target=loop, daemon=True).start()
        timer = threading.Timer(JOIN_TIMEOUT, self._check_all_joined)
        timer.daemon = True
        timer.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # no file can be opened: a connection that ends makes room
                time.sleep(HEARTBEAT_INTERVAL)
                continue
            _send_at_once(connection)
            threading.Thread(target=self._serve_client, args=(connection,), daemon=True).start()
            del connection  # otherwise it stays open until the next one arrives

    def _serve_client(self, connection: socket.socket) -> None:
        """Handles the messages of one process until it ends or is lost."""
        for message in _read_messages(connection):
            if "abort" in message:
                self._abort(str(message["abort"]))
            with self._lock:
                if message.get("role") in dmlc_environment.ROLES:
                    self._clients[connection] = message
                    self._joined += 1
                    if self._abort_reason:
                        self._send_to_all(lost=self._abort_reason)
                    elif self._is_finished:
                        self._send_to_all(finished=True)
                    if self._joined >= self._expected:
                        self._all_joined.set()
                    if self._stop_signal:
                        self._send_to_all(stop=self._stop_signal)
                elif message.get("stop") in (signal.SIGINT, signal.SIGTERM):
                    # Kept for the processes that have not connected yet.
                    self._stop_signal = int(message["stop"])
                    self._send_to_all(stop=self._stop_signal)
                elif connection not in self._clients:
                    break
                elif "rank" in message:
                    self._clients[connection]["rank"] = message["rank"]
                elif "exit_status" in message:
                    client = self._clients.pop(connection)
                    self._handle_exit(client, int(message["exit_status"]))
                    return
        with self._lock:
            lost_client = self._clients.pop(connection, None)
        if lost_client:
            self._abort(f"{_format_name(lost_client)} was lost")

    def _handle_exit(self, client: dict[str, Any], status: int) -> None:
        is_worker = client["role"] == "worker"
        if is_worker:
            self._worker_statuses.append(status)
            if len(self._worker_statuses) == self._environment.workers:
                self._is_finished = True
                self._send_to_all(finished=True)
                # In a thread, since a process cannot join before this one lets go of the lock.
                highest = max(self._worker_statuses)
                threading.Thread(target=self._exit_once_joined, args=(highest,)).start()
                return
        # A server never ends before the workers. Without it they would wait forever.
        if status or not is_worker:
            reason = f"{_format_name(client)} ended with status {status}"
            arguments = (reason, status or LOST_STATUS)
            threading.Timer(ABORT_DELAY, self._abort, args=arguments).start()

    def _check_all_joined(self) -> None:
        if self._joined < self._expected:
            self._abort(
                f"only {self._joined} of {self._expected} processes connected in {JOIN_TIMEOUT} s"
            )

    def _abort(self, reason: str, status: int = LOST_STATUS) -> None:
        with self._lock:
            if self._abort_reason or self._is_finished:
                return
            self._abort_reason = reason
            self._send_to_all(lost=reason)
            print_error(f"{self._program}: scheduler: stopped: {reason}")
        self._exit_once_joined(status)

    def _exit_once_joined(self, status: int) -> None:
        """Ends the process, once the processes that connect late are informed too."""
        self._all_joined.wait(LATE_JOIN_DELAY)
        exit_now(status)

    def _send_to_all(self, **message: Any) -> None:
        line = json.dumps(message).encode() + b"\n"
        for connection in list(self._clients):
            # If a connection is broken, its `_serve_client` notices it.
            with suppress(OSError):
                connection.sendall(line)

    def _send_heartbeats(self) -> None:
        while True:
            time.sleep(HEARTBEAT_INTERVAL)
            with self._lock:
                self._send_to_all()


# The heartbeat of this process, once it has joined a group.
_heartbeat: HeartbeatClient | HeartbeatServer | None = None


def join_group(program: str) -> HeartbeatClient | HeartbeatServer | None:
    """Starts the heartbeat of this process if the DMLC variables make it part of a group.

    Returns None if they do not. Blocks until the scheduler is reached. Raises UsageError if it
    cannot be reached.
    """
    global _heartbeat
    environment = dmlc_environment.read_environment()
    if environment:
        is_scheduler = environment.role == "scheduler"
        heartbeat_class = HeartbeatServer if is_scheduler else HeartbeatClient
        _heartbeat = heartbeat_class(program, environment)
    return _heartbeat


def exit_group(status: int) -> None:
    """Reports the exit status and ends this process if it has joined a group; else does nothing."""
    if isinstance(_heartbeat, HeartbeatClient):
        _heartbeat.report_exit(status)
    if _heartbeat:
        # At a normal exit MXNet waits for all other processes, which may be dead.
        exit_now(status)


def wait_for_end() -> NoReturn:
    """Blocks until the heartbeat ends this process, with the status of its group."""
    while True:
        threading.Event().wait()


def request_stop(environment: dmlc_environment.Environment, number: int) -> bool:
    """Asks all workers of a group to save their state and end, as if each had received the signal.

    Returns whether the scheduler was reached.
    """
    return _send_once(environment, stop=number)


def abort_group(environment: dmlc_environment.Environment, reason: str) -> bool:
    """Ends all processes of a group that cannot start.

    Returns whether the scheduler was reached.
    """
    return _send_once(environment, abort=reason)


def _send_once(environment: dmlc_environment.Environment, **message: Any) -> bool:
    address = (environment.host, environment.heartbeat_port)
    try:
        with socket.create_connection(address, HEARTBEAT_INTERVAL) as connection:
            connection.sendall(json.dumps(message).encode() + b"\n")
    except (OSError, UnicodeError):  # UnicodeError: the host is no name of a machine
        return False
    return True


def exit_now(status: int) -> None:
    """Ends the process from any thread, without any cleanup."""
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def _connect(environment: dmlc_environment.Environment) -> socket.socket:
    """Connects to the scheduler. Retries for JOIN_TIMEOUT seconds, because it may start later."""
    address = (environment.host, environment.heartbeat_port)
    deadline = time.monotonic() + JOIN_TIMEOUT
    while True:
        try:
            connection = socket.create_connection(address, HEARTBEAT_TIMEOUT)
            break
        except UnicodeError as error:
            raise UsageError(
                f"DMLC_PS_ROOT_URI {environment.host}: is no address or name of a machine; correct "
                "the address"
            ) from error
        except OSError as error:
            if time.monotonic() > deadline:
                raise UsageError(
                    f"DMLC_PS_ROOT_URI {environment.host}: the scheduler cannot be reached at port "
                    f"{environment.heartbeat_port}: {error.strerror or error}"
                ) from error
            time.sleep(0.2)
    _send_at_once(connection)
    return connection


def _send_at_once(connection: socket.socket) -> None:
    """Lets every message leave when it is sent.

    Otherwise TCP holds a short one back until the one before it is acknowledged. A process that
    ends meanwhile, with heartbeats that it has not read, would never send it: the others would not
    learn why it ended.
    """
    with suppress(OSError):  # of a connection that is broken already
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _read_messages(connection: socket.socket) -> Iterator[dict[str, Any]]:
    """Yields messages until the connection breaks, times out, or carries anything else."""
    connection.settimeout(HEARTBEAT_TIMEOUT)
    with suppress(OSError, ValueError, RecursionError), connection.makefile("rb") as lines:
        while line := lines.readline(_MAX_LINE):
            message = json.loads(line)
            if not isinstance(message, dict):
                return
            yield message


def print_error(text: str) -> None:
    """Prints a line on the error output, if anyone still reads it."""
    # The reader of the error output may be dead. This process must end all the same.
    with suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


def _format_name(client: dict[str, Any]) -> str:
    rank = f" {client['rank']}" if "rank" in client else ""
    return f"{client['role']}{rank} ({client.get('host')}, process {client.get('pid')})"
