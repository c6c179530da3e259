"""The heartbeat: the loss of a process ends all others, and no process waits forever."""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from embedding_learning.distributed import heartbeat
from embedding_learning.distributed.dmlc_environment import Environment
from embedding_learning.distributed.heartbeat import LOST_STATUS, request_stop
from embedding_learning.errors import UsageError
from tests.helpers.limits import HANG_LIMIT, NEVER
from tests.helpers.paths import ROOT

# Joins the group as train.py does, then follows the lines of its input. The times are in seconds.
SCRIPT = """
import resource, socket, sys, time
from weakref import WeakKeyDictionary
from embedding_learning.distributed import heartbeat
from embedding_learning.cli.exit_codes import run_command

heartbeat.HEARTBEAT_INTERVAL = 0.1
heartbeat.HEARTBEAT_TIMEOUT, heartbeat.JOIN_TIMEOUT, heartbeat.ABORT_DELAY, \\
    heartbeat.LATE_JOIN_DELAY = map(float, sys.argv[1:])
connect = socket.create_connection

def connect_or_print(*arguments):
    try:
        return connect(*arguments)
    except ConnectionRefusedError:
        print("refused", flush=True)
        socket.create_connection = connect  # once is enough
        raise

read, received = heartbeat._read_messages, WeakKeyDictionary()

def read_and_count(connection):
    for message in read(connection):
        received[connection] = received.get(connection, 0) + 1
        yield message

def time_out(connection):
    # The receiving call that runs now keeps the old timeout. The one after it has the new one.
    number = received.setdefault(connection, 0)
    connection.settimeout(1)
    wait_until(lambda: received[connection] > number + 1)

def wait_until(condition):
    while not condition():
        time.sleep(0.01)

def follow():
    joined = heartbeat.join_group("train.py")
    print("joined", flush=True)
    for line in sys.stdin:
        command, number = line.split()[0], int(line.split()[1])
        # Commands for workers and servers.
        if command == "rank":
            joined.send_rank(number)
        elif command == "exit":
            return number
        elif command == "stop":
            wait_until(lambda: joined.stop_signal == number)
        elif command == "not_stopped":
            assert joined.stop_signal is None, joined.stop_signal
        elif command == "time_out_scheduler":
            time_out(joined._socket)
        elif command == "sends_at_once":
            connections = getattr(joined, "_clients", None) or [joined._socket]
            options = socket.IPPROTO_TCP, socket.TCP_NODELAY
            assert all(connection.getsockopt(*options) for connection in connections)
        # Commands for the scheduler.
        elif command == "joined":
            wait_until(lambda: joined._joined == number)
        elif command == "ranks":
            wait_until(lambda: sum("rank" in c for c in joined._clients.values()) == number)
        elif command == "exits":
            wait_until(lambda: len(joined._worker_statuses) == number)
        elif command == "time_out_process":
            clients = joined._clients.items()
            time_out(next(c for c, message in clients if message["pid"] == number))
        elif command == "time_out_new":
            heartbeat.HEARTBEAT_TIMEOUT = number
        elif command == "most_files":
            highest = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
            resource.setrlimit(resource.RLIMIT_NOFILE, (number, highest))
        elif command == "join_timeout":
            joined._check_all_joined()
        print("done", flush=True)
    return 0

socket.create_connection = connect_or_print
heartbeat._read_messages = read_and_count
status = run_command("train.py", follow)
heartbeat.exit_group(status)
sys.exit(status)
"""
# Seconds for what should happen soon in a test. What must not happen in it is set to NEVER.
SOON = 0.1
AFTER = "; all saved files are complete, and --resume auto continues the run\n"


class Process:
    """One of the processes of a group."""

    def __init__(self, role: str, variables: dict[str, str], times: tuple[float, ...]) -> None:
        self.role = role
        self.process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, *map(str, times)],
            env={**os.environ, **variables, "DMLC_ROLE": role, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read_lines)
        self._reader.start()

    def _read_lines(self) -> None:
        """Puts the lines of the output into the queue, then an empty text."""
        assert self.process.stdout
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put("")

    @property
    def name(self) -> str:
        """How messages name the process, without its rank."""
        return f"({socket.gethostname()}, process {self.process.pid})"

    def wait_for(self, line: str) -> None:
        """Waits until the process prints that it has done something."""
        read = self._lines.get(timeout=HANG_LIMIT)
        if read == "refused\n" and line != "refused":
            read = self._lines.get(timeout=HANG_LIMIT)
        assert read == f"{line}\n"

    def follow(self, command: str, number: int) -> None:
        assert self.process.stdin
        self.process.stdin.write(f"{command} {number}\n")
        self.process.stdin.flush()
        if command.startswith("time_out_"):
            # On a machine that stalls now, the process may end for lack of heartbeats.
            self._lines.get(timeout=HANG_LIMIT)
        elif command not in ("exit", "join_timeout"):
            self.wait_for("done")

    def end(self) -> tuple[int, str]:
        """Waits for the exit status and the text on the error output."""
        status = self.process.wait(timeout=HANG_LIMIT)
        assert self.process.stderr
        return status, self.process.stderr.read()

    def close(self) -> None:
        self.process.kill()
        self._reader.join()
        # Its input may contain lines that it has not read.
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert stream
            with suppress(BrokenPipeError):
                stream.close()
        self.process.wait()


Start = Callable[..., list[Process]]


@pytest.fixture
def environment() -> Environment:
    """The environment of a group of two workers and a server, on free ports."""
    for port in range(20000 + os.getpid() % 5000, 30000):
        try:
            for each in (port, port + 1000):
                socket.create_server(("", each)).close()
        except OSError:
            continue
        return Environment("scheduler", "127.0.0.1", port, workers=2, servers=1)
    raise AssertionError("no port is free")


@pytest.fixture
def start(environment: Environment) -> Iterator[Start]:
    """A function that starts processes of the group. They are killed at the end."""
    started = []
    variables = {
        "DMLC_PS_ROOT_URI": environment.host,
        "DMLC_PS_ROOT_PORT": str(environment.port),
        "DMLC_NUM_WORKER": "2",
        "DMLC_NUM_SERVER": "1",
    }

    def start(
        *roles: str,
        join_timeout: float = NEVER,
        abort_delay: float = NEVER,
        late_join_delay: float = SOON,
    ) -> list[Process]:
        times = (NEVER, join_timeout, abort_delay, late_join_delay)
        new = [Process(role, variables, times) for role in roles]
        started.extend(new)
        return new

    yield start
    for process in started:
        process.close()


def start_group(start: Start, abort_delay: float) -> list[Process]:
    """Scheduler, server and two workers: all have joined, and the workers have their ranks."""
    group = start("scheduler", "server", "worker", "worker", abort_delay=abort_delay)
    for process in group:
        process.wait_for("joined")
    for rank, worker in enumerate(group[2:]):
        worker.follow("rank", rank)
    group[0].follow("joined", 3)
    group[0].follow("ranks", 2)
    return group


@pytest.fixture
def group(start: Start) -> list[Process]:
    """A group in which the failure of a worker ends the others soon."""
    return start_group(start, SOON)


@pytest.fixture
def patient_group(start: Start) -> list[Process]:
    """A group in which the failure of a worker does not end the others."""
    return start_group(start, NEVER)


def is_running(*processes: Process) -> bool:
    return [process.process.poll() for process in processes] == [None] * len(processes)


@pytest.mark.slow
@pytest.mark.parametrize("index, lost", [(1, "server"), (2, "worker 0"), (3, "worker 1")])
def test_a_dead_process_ends_all_others(group: list[Process], index: int, lost: str) -> None:
    """By its broken connection: the heartbeats of all have NEVER to be missed."""
    dead = group.pop(index)
    dead.process.kill()
    ended = [process.end() for process in group]
    names = {1: "server", 2: "worker 0", 3: "worker 1"}
    names.pop(index)
    reason = f"{lost} {dead.name} was lost"
    assert ended[0] == (LOST_STATUS, f"train.py: scheduler: stopped: {reason}\n")
    assert ended[1:] == [
        (LOST_STATUS, f"train.py: {name}: stopped: {reason}{AFTER}") for name in names.values()
    ]


def test_a_dead_scheduler_ends_all(group: list[Process]) -> None:
    scheduler, *others = group
    scheduler.process.kill()
    ended = [process.end() for process in others]
    for name, (status, text) in zip(("server", "worker 0", "worker 1"), ended):
        assert status == LOST_STATUS
        assert text == f"train.py: {name}: stopped: the scheduler was lost{AFTER}"


@pytest.mark.slow
@pytest.mark.parametrize("index, lost", [(1, "server"), (3, "worker 1")])
def test_a_frozen_process_is_lost_after_a_timeout(
    group: list[Process], index: int, lost: str
) -> None:
    frozen = group.pop(index)
    group[0].follow("time_out_process", frozen.process.pid)
    frozen.process.send_signal(signal.SIGSTOP)
    for status, text in [process.end() for process in group]:
        assert status == LOST_STATUS
        assert f"stopped: {lost} {frozen.name} was lost" in text
    # When it wakes up, it finds out that the others are gone.
    frozen.process.send_signal(signal.SIGCONT)
    assert frozen.end()[0] == LOST_STATUS


def test_a_frozen_scheduler_is_lost_after_a_timeout(group: list[Process]) -> None:
    scheduler, *others = group
    others[0].follow("time_out_scheduler", 0)
    scheduler.process.send_signal(signal.SIGSTOP)
    assert others[0].end() == (
        LOST_STATUS,
        f"train.py: server: stopped: the scheduler was lost{AFTER}",
    )
    scheduler.process.send_signal(signal.SIGCONT)
    for process in (scheduler, *others[1:]):
        status, text = process.end()
        assert status == LOST_STATUS
        assert f"stopped: server {others[0].name} was lost" in text


def test_both_sides_send_heartbeats(start: Start, environment: Environment) -> None:
    assert 2 * heartbeat.HEARTBEAT_INTERVAL <= heartbeat.HEARTBEAT_TIMEOUT
    address = (environment.host, environment.heartbeat_port)
    with socket.create_server(address) as server:
        server.settimeout(HANG_LIMIT)
        (worker,) = start("worker")
        connection, _ = server.accept()
    connection.settimeout(HANG_LIMIT)
    with connection, connection.makefile("r") as lines:
        first, *others = [json.loads(next(lines)) for _ in range(4)]
    assert first == {"role": "worker", "host": socket.gethostname(), "pid": worker.process.pid}
    assert others == [{}] * 3
    (scheduler,) = start("scheduler")
    scheduler.wait_for("joined")
    with socket.create_connection(address, HANG_LIMIT) as client, client.makefile("r") as lines:
        client.sendall(b'{"role": "worker"}\n')
        assert [json.loads(next(lines)) for _ in range(3)] == [{}] * 3


@pytest.mark.slow
@pytest.mark.parametrize("status", [1, 2, 143])
def test_a_failed_worker_ends_the_others(group: list[Process], status: int) -> None:
    scheduler, server, worker, other = group
    worker.follow("exit", status)
    assert worker.end() == (status, "")
    ended = [process.end() for process in (server, other)]
    reason = f"worker 0 {worker.name} ended with status {status}"
    for name, process in zip(("server", "worker 1"), ended):
        assert process == (LOST_STATUS, f"train.py: {name}: stopped: {reason}{AFTER}")
    assert scheduler.end() == (status, f"train.py: scheduler: stopped: {reason}\n")


@pytest.mark.slow
@pytest.mark.parametrize("statuses", [(0, 0), (2, 2), (0, 2), (143, 3)])
def test_until_the_delay_is_over_the_other_workers_end_by_themselves(
    patient_group: list[Process], statuses: tuple[int, int]
) -> None:
    """Then servers end with 0, the scheduler with the greatest status of the workers."""
    scheduler, server, *workers = patient_group
    for number, (worker, status) in enumerate(zip(workers, statuses)):
        assert is_running(scheduler, server, worker)
        worker.follow("exit", status)
        if number == 0:
            scheduler.follow("exits", 1)
    assert [worker.end() for worker in workers] == [(status, "") for status in statuses]
    assert server.end() == (0, "")
    assert scheduler.end() == (max(statuses), "")


def test_a_worker_that_has_finished_is_not_missed(group: list[Process]) -> None:
    scheduler, server, worker, other = group
    worker.follow("exit", 0)
    assert worker.end() == (0, "")
    scheduler.follow("exits", 1)
    time.sleep(5 * SOON)
    assert is_running(scheduler, server, other)
    other.follow("exit", 0)
    assert other.end() == (0, "")
    assert server.end() == scheduler.end() == (0, "")


@pytest.mark.slow
@pytest.mark.parametrize("status", [0, 2])
def test_a_server_that_ends_first_is_missed(group: list[Process], status: int) -> None:
    """Workers would wait forever for its sums."""
    scheduler, server, *workers = group
    server.follow("exit", status)
    assert server.end() == (status, "")
    for process in workers:
        ended, text = process.end()
        assert ended == LOST_STATUS
        assert f"stopped: server {server.name} ended with status {status}{AFTER}" in text
    assert scheduler.end()[0] == (status or LOST_STATUS)


def test_only_some_processes_join(start: Start) -> None:
    scheduler, *others = start("scheduler", "server", "worker")
    for process in (scheduler, *others):
        process.wait_for("joined")
    scheduler.follow("joined", 2)
    scheduler.follow("join_timeout", 0)
    reason = f"only 2 of 3 processes connected in {float(NEVER)} s"
    assert scheduler.end() == (LOST_STATUS, f"train.py: scheduler: stopped: {reason}\n")
    for role, process in zip(("server", "worker"), others):
        assert process.end() == (LOST_STATUS, f"train.py: {role}: stopped: {reason}{AFTER}")


def test_no_process_joins(start: Start) -> None:
    (scheduler,) = start("scheduler", join_timeout=SOON)
    reason = f"only 0 of 3 processes connected in {SOON} s"
    assert scheduler.end() == (LOST_STATUS, f"train.py: scheduler: stopped: {reason}\n")


def test_a_process_that_joins_after_the_end_is_informed(start: Start) -> None:
    """Its own machine may only now have started it."""
    scheduler, worker = start("scheduler", "worker", abort_delay=SOON, late_join_delay=NEVER)
    worker.wait_for("joined")
    worker.follow("exit", 2)
    assert worker.end()[0] == 2
    assert scheduler.process.stderr
    reason = f"process {worker.process.pid}) ended with status 2"
    assert reason in scheduler.process.stderr.readline()
    (late,) = start("server")
    status, text = late.end()
    assert status == LOST_STATUS
    assert reason in text


def test_a_scheduler_waits_for_late_processes_and_ends(start: Start) -> None:
    scheduler, worker = start("scheduler", "worker", abort_delay=SOON)
    worker.wait_for("joined")
    worker.follow("exit", 2)
    assert worker.end()[0] == scheduler.end()[0] == 2


def test_a_group_whose_workers_ended_before_the_server_joined_ends(start: Start) -> None:
    """All workers may have the same mistake in their flags, and the server is slow."""
    scheduler, *workers = start("scheduler", "worker", "worker")
    for worker in workers:
        worker.wait_for("joined")
        worker.follow("exit", 2)
    assert [worker.end()[0] for worker in workers] == [2, 2]
    assert scheduler.end() == (2, "")


def test_a_server_that_joins_after_the_workers_ended_ends_without_a_message(start: Start) -> None:
    scheduler, *workers = start("scheduler", "worker", "worker", late_join_delay=NEVER)
    for worker in workers:
        worker.wait_for("joined")
        worker.follow("exit", 2)
    assert [worker.end()[0] for worker in workers] == [2, 2]
    (late,) = start("server")
    assert late.end() == (0, "")
    assert scheduler.end() == (2, "")


def test_a_process_may_start_before_the_scheduler(start: Start) -> None:
    workers = start("worker", "worker")
    for worker in workers:
        worker.wait_for("refused")
    (scheduler,) = start("scheduler")
    for process in (*workers, scheduler):
        process.wait_for("joined")
    for worker in workers:
        worker.follow("exit", 0)
    assert [process.end() for process in (*workers, scheduler)] == [(0, "")] * 3


def test_a_scheduler_that_never_starts_is_reported(start: Start, environment: Environment) -> None:
    (worker,) = start("worker", join_timeout=SOON)
    status, text = worker.end()
    assert status == 2
    assert text == (
        "train.py: error: DMLC_PS_ROOT_URI 127.0.0.1: the scheduler cannot be reached at port "
        f"{environment.heartbeat_port}: Connection refused\n"
    )


def test_a_port_that_is_taken_is_reported(start: Start, environment: Environment) -> None:
    with socket.create_server(("", environment.heartbeat_port)):
        (scheduler,) = start("scheduler")
        status, text = scheduler.end()
    assert status == 2
    assert text.count("\n") == 1
    assert text.startswith(
        f"train.py: error: DMLC_PS_ROOT_PORT {environment.port}: port "
        f"{environment.heartbeat_port}, which is needed too, cannot be opened: Address"
    )


def test_all_workers_can_be_asked_to_stop(group: list[Process], environment: Environment) -> None:
    assert request_stop(environment, int(signal.SIGTERM))
    for worker in group[2:]:
        worker.follow("stop", int(signal.SIGTERM))
    assert is_running(*group)


def test_a_worker_that_joins_later_is_asked_to_stop_too(
    start: Start, environment: Environment
) -> None:
    (scheduler,) = start("scheduler")
    scheduler.wait_for("joined")
    assert request_stop(environment, int(signal.SIGTERM))
    (worker,) = start("worker")
    worker.wait_for("joined")
    worker.follow("stop", int(signal.SIGTERM))


def test_a_group_that_has_ended_is_not_reached(environment: Environment) -> None:
    assert not request_stop(environment, int(signal.SIGTERM))


def test_an_address_that_cannot_be_one_is_reported_at_once(environment: Environment) -> None:
    """Python raises UnicodeError for it, not an error of the network."""
    wrong = environment._replace(host="10.0..1", role="worker")
    assert not request_stop(wrong, int(signal.SIGTERM))
    with pytest.raises(UsageError, match=r"DMLC_PS_ROOT_URI 10\.0\.\.1: is no address or name"):
        heartbeat.HeartbeatClient("train.py", wrong)


NONSENSE = {
    "text": b"GET / HTTP/1.1\r\nHost: here\r\n\r\n",
    "bytes": bytes(range(256)) * 8,
    "no object": b"[1, 2]\n17\nnull\n",
    "an endless line": b"x" * 10**6,
    "an endless string": b'"' + b"x" * 10**6,
    "deep": b"[" * 4000 + b"\n",
    "deep objects": b'{"a":' * 800 + b"\n",
    "no role": b"{}\n" * 100,
    "an unknown role": b'{"role": "king"}\n{"role": ["worker"]}\n{"role": {}}\n',
    "not a client": b'{"exit_status": 2}\n',
    "another's number": b'{"rank": 0}\n',
    "a number too long": b'{"exit_status": ' + b"9" * 4000 + b"}\n",
    "no signal": b'{"stop": "now"}\n',
    "no signal's number": b'{"stop": 999}\n',
    "an endless number": b'{"stop": 1e999}\n',
    "no number": b'{"stop": NaN}\n',
    "no value": b'{"stop": null}\n',
    "a list": b'{"stop": [15]}\n',
}


def test_untrusted_senders_do_no_harm(group: list[Process], environment: Environment) -> None:
    address = (environment.host, environment.heartbeat_port)
    scheduler, server, *workers = group
    silent = [socket.create_connection(address, HANG_LIMIT) for _ in range(20)]
    for case, text in NONSENSE.items():
        # The scheduler may close the connection before it has received all. To shut down what it
        # has reset is no ConnectionError.
        with socket.create_connection(address, HANG_LIMIT) as sender, suppress(OSError):
            sender.sendall(text)
            sender.shutdown(socket.SHUT_WR)
            while sender.recv(4096):
                pass
        assert is_running(*group), case
        for worker in workers:
            worker.follow("not_stopped", 0)
    # All listen as before.
    request_stop(environment, int(signal.SIGINT))
    for worker in workers:
        worker.follow("stop", int(signal.SIGINT))
        worker.follow("exit", 0)
    assert [worker.end() for worker in workers] == [(0, "")] * 2
    assert server.end() == scheduler.end() == (0, "")
    for each in silent:
        each.close()


def test_a_scheduler_that_has_no_file_left_accepts_later(
    group: list[Process], environment: Environment
) -> None:
    scheduler, _, *workers = group
    # The limit does not touch the connections that are open.
    scheduler.follow("most_files", 3)
    address = (environment.host, environment.heartbeat_port)
    with socket.create_connection(address, HANG_LIMIT) as sender:
        # The scheduler tries to accept it, some times.
        time.sleep(5 * SOON)
        scheduler.follow("most_files", 1024)
        sender.sendall(json.dumps({"stop": int(signal.SIGINT)}).encode() + b"\n")
        for worker in workers:
            worker.follow("stop", int(signal.SIGINT))
    assert is_running(*group)


def test_connections_that_send_nothing_are_closed(
    group: list[Process], environment: Environment
) -> None:
    group[0].follow("time_out_new", 1)
    address = (environment.host, environment.heartbeat_port)
    with socket.create_connection(address, HANG_LIMIT) as silent:
        assert silent.recv(1) == b""
    assert is_running(*group)


def test_a_process_whose_error_output_is_closed_ends_all_the_same(group: list[Process]) -> None:
    """As when the launcher, which reads it, was killed."""
    scheduler, server, worker, other = group
    for process in (scheduler, worker):
        assert process.process.stderr
        process.process.stderr.close()
    other.process.kill()
    for process in (scheduler, worker):
        assert process.process.wait(timeout=HANG_LIMIT) == LOST_STATUS
    assert server.end()[0] == LOST_STATUS


def test_no_message_waits_for_the_one_before_it(group: list[Process]) -> None:
    """The last one of a process that ends at once would be lost."""
    for process in group:
        process.follow("sends_at_once", 0)


def test_without_a_group_nothing_is_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DMLC_ROLE", raising=False)
    assert heartbeat.join_group("train.py") is None
    heartbeat.exit_group(2)


def test_messages_are_read_line_by_line() -> None:
    """Wherever they are cut on their way, up to the first that is none."""
    here, there = socket.socketpair()
    with here, there:
        there.sendall(b'{"a": 1}\n{"b"')
        messages = heartbeat._read_messages(here)
        assert next(messages) == {"a": 1}
        there.sendall(b": [2]}\n" + json.dumps({"c": "\u00e9"}).encode() + b"\n{}\nno\n{}\n")
        assert list(messages) == [{"b": [2]}, {"c": "\u00e9"}, {}]


def test_no_connection_is_left_open(group: list[Process], environment: Environment) -> None:
    """A scheduler runs for days. Untrusted senders must not use up its file descriptors."""
    files = Path(f"/proc/{group[0].process.pid}/fd")
    if not files.is_dir():
        pytest.skip("needs /proc")
    before = len(list(files.iterdir()))
    for text in (b"", b"no\n", b"[" * 4000 + b"\n") * 10:
        address = (environment.host, environment.heartbeat_port)
        with socket.create_connection(address, HANG_LIMIT) as sender:
            sender.sendall(text)
    deadline = time.monotonic() + HANG_LIMIT
    while len(list(files.iterdir())) > before:
        assert time.monotonic() < deadline
        time.sleep(0.05)
