"""The roll of a group: whoever is lost is told to all others, and nobody waits for ever."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from embedding_learning.distributed import heartbeat
from embedding_learning.distributed.dmlc_environment import Environment
from embedding_learning.distributed.heartbeat import LOST_STATUS, request_stop
from tests.helpers.paths import ROOT

# Joins the roll as train.py does, then follows the lines of its input. The times are in seconds.
SCRIPT = """
import sys, time
from embedding_learning.distributed import heartbeat
from embedding_learning.cli.exit_codes import run_command

heartbeat.HEARTBEAT_INTERVAL, heartbeat.HEARTBEAT_TIMEOUT, heartbeat.JOIN_TIMEOUT, \
    heartbeat.ABORT_DELAY = map(float, sys.argv[1:])
heartbeat.LATE_JOIN_DELAY = 2.0

def follow():
    client = heartbeat.join_group("train.py")
    print("joined", flush=True)
    for line in sys.stdin:
        command, number = line.split()
        if command == "rank":
            client.send_rank(int(number))
        elif command == "leave":
            return int(number)
        elif command == "stop":
            while client.stop_signal != int(number):
                time.sleep(0.01)
        elif command == "unasked":
            assert client.stop_signal is None, client.stop_signal
        print("done", flush=True)
    return 0

status = run_command("train.py", follow)
heartbeat.exit_group(status)
sys.exit(status)
"""
BEAT, SILENCE, GATHERING, GRACE = 0.1, 1.0, 20.0, 0.5
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

    @property
    def name(self) -> str:
        """As the others are told of it; less its number."""
        return f"({socket.gethostname()}, process {self.process.pid})"

    def told(self, line: str) -> None:
        """Waits until the process says that it has done something."""
        assert self.process.stdout
        assert select.select([self.process.stdout], [], [], 60)[0], "it hangs"
        assert self.process.stdout.readline() == f"{line}\n"

    def follow(self, command: str, number: int) -> None:
        assert self.process.stdin
        self.process.stdin.write(f"{command} {number}\n")
        self.process.stdin.flush()
        if command != "leave":
            self.told("done")

    def end(self) -> tuple[int, str]:
        """Waits for the exit status and what the error output was told."""
        status = self.process.wait(timeout=60)
        assert self.process.stderr
        return status, self.process.stderr.read()

    def close(self) -> None:
        self.process.kill()
        # Its input may hold what nobody has read.
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert stream
            with suppress(BrokenPipeError):
                stream.close()
        self.process.wait()


Start = Callable[..., list[Process]]


@pytest.fixture
def environment() -> Environment:
    """Of a group of two workers and a server, on ports nobody has."""
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
    """A function that starts processes of the group, which are killed in the end."""
    started = []
    variables = {
        "DMLC_PS_ROOT_URI": environment.host,
        "DMLC_PS_ROOT_PORT": str(environment.port),
        "DMLC_NUM_WORKER": "2",
        "DMLC_NUM_SERVER": "1",
    }

    def start(*roles: str, silence: float = SILENCE, gathering: float = GATHERING) -> list[Process]:
        times = (BEAT, silence, gathering, GRACE)
        new = [Process(role, variables, times) for role in roles]
        started.extend(new)
        return new

    yield start
    for process in started:
        process.close()


@pytest.fixture
def group(start: Start) -> list[Process]:
    """Scheduler, server and two workers; all have come, and the workers have their numbers."""
    group = start("scheduler", "server", "worker", "worker")
    for process in group:
        process.told("joined")
    for rank, worker in enumerate(group[2:]):
        worker.follow("rank", rank)
    return group


def seconds_since(began: float) -> float:
    return time.monotonic() - began


@pytest.mark.parametrize("place, lost", [(1, "server"), (2, "worker 0"), (3, "worker 1")])
def test_one_that_dies_is_told_to_all_others(group: list[Process], place: int, lost: str) -> None:
    dead = group.pop(place)
    # Its number may still be under way.
    time.sleep(2 * BEAT)
    began = time.monotonic()
    dead.process.kill()
    ended = [process.end() for process in group]
    assert seconds_since(began) < 1
    names = {1: "server", 2: "worker 0", 3: "worker 1"}
    names.pop(place)
    reason = f"{lost} {dead.name} was lost"
    assert ended[0] == (LOST_STATUS, f"train.py: scheduler: stopped: {reason}\n")
    assert ended[1:] == [
        (LOST_STATUS, f"train.py: {name}: stopped: {reason}{AFTER}") for name in names.values()
    ]


def test_a_dead_scheduler_ends_all(group: list[Process]) -> None:
    scheduler, *members = group
    began = time.monotonic()
    scheduler.process.kill()
    ended = [process.end() for process in members]
    assert seconds_since(began) < 1
    for name, (status, told) in zip(("server", "worker 0", "worker 1"), ended):
        assert status == LOST_STATUS
        assert told == f"train.py: {name}: stopped: the scheduler was lost{AFTER}"


@pytest.mark.parametrize("place, lost", [(0, "the scheduler"), (1, "server"), (3, "worker 1")])
def test_one_that_is_frozen_is_lost_after_a_time(
    group: list[Process], place: int, lost: str
) -> None:
    frozen = group.pop(place)
    began = time.monotonic()
    frozen.process.send_signal(signal.SIGSTOP)
    ended = [process.end() for process in group]
    assert SILENCE - 2 * BEAT < seconds_since(began) < SILENCE + 1
    for status, told in ended:
        assert status == LOST_STATUS
        assert f"stopped: {lost}" in told
        assert "was lost" in told
    # Should it wake up, it finds itself left.
    frozen.process.send_signal(signal.SIGCONT)
    assert frozen.end()[0] == LOST_STATUS


def test_one_that_beats_is_not_lost(group: list[Process]) -> None:
    time.sleep(2 * SILENCE)
    assert [process.process.poll() for process in group] == [None] * 4


@pytest.mark.parametrize("status", [1, 2, 143])
def test_a_worker_s_fault_is_told_to_the_others_after_a_grace(
    group: list[Process], status: int
) -> None:
    scheduler, server, worker, other = group
    began = time.monotonic()
    worker.follow("leave", status)
    assert worker.end() == (status, "")
    ended = [process.end() for process in (server, other)]
    assert GRACE / 2 < seconds_since(began) < GRACE + 1
    reason = f"worker 0 {worker.name} ended with status {status}"
    for name, process in zip(("server", "worker 1"), ended):
        assert process == (LOST_STATUS, f"train.py: {name}: stopped: {reason}{AFTER}")
    assert scheduler.end() == (status, f"train.py: scheduler: stopped: {reason}\n")


@pytest.mark.parametrize("statuses", [(0, 0), (2, 2), (0, 2), (143, 3)])
def test_once_all_workers_have_left_the_others_end(
    group: list[Process], statuses: tuple[int, int]
) -> None:
    """Servers with 0, the scheduler with the workers' greatest status."""
    scheduler, server, *workers = group
    for worker, status in zip(workers, statuses):
        worker.follow("leave", status)
    assert [worker.end() for worker in workers] == [(status, "") for status in statuses]
    assert server.end() == (0, "")
    assert scheduler.end() == (max(statuses), "")


def test_a_worker_that_is_done_is_not_missed(group: list[Process]) -> None:
    scheduler, server, worker, other = group
    worker.follow("leave", 0)
    assert worker.end() == (0, "")
    time.sleep(SILENCE + GRACE)
    assert [process.process.poll() for process in (scheduler, server, other)] == [None] * 3
    other.follow("leave", 0)
    assert other.end() == (0, "")
    assert server.end() == scheduler.end() == (0, "")


@pytest.mark.parametrize("status", [0, 2])
def test_a_server_that_ends_first_is_missed(group: list[Process], status: int) -> None:
    """Workers would wait for its sums for ever."""
    scheduler, server, *workers = group
    server.follow("leave", status)
    assert server.end() == (status, "")
    for process in workers:
        ended, told = process.end()
        assert ended == LOST_STATUS
        assert f"stopped: server {server.name} ended with status {status}{AFTER}" in told
    assert scheduler.end()[0] == (status or LOST_STATUS)


def test_only_part_of_the_job_comes(start: Start) -> None:
    processes = start("scheduler", "server", "worker", gathering=1.0)
    reason = "only 2 of 3 processes came in 1.0 s"
    ended = [process.end() for process in processes]
    assert ended[0] == (LOST_STATUS, f"train.py: scheduler: stopped: {reason}\n")
    for role, process in zip(("server", "worker"), ended[1:]):
        assert process == (LOST_STATUS, f"train.py: {role}: stopped: {reason}{AFTER}")


def test_one_that_comes_after_the_end_is_told_of_it(start: Start) -> None:
    """Its own machine may only now have started it."""
    scheduler, worker = start("scheduler", "worker")
    worker.told("joined")
    worker.follow("leave", 2)
    assert worker.end()[0] == 2
    time.sleep(GRACE)
    (late,) = start("server")
    status, told = late.end()
    assert status == LOST_STATUS
    assert f"process {worker.process.pid}) ended with status 2" in told
    assert scheduler.end()[0] == 2


def test_a_job_that_is_over_before_the_others_came_is_over(start: Start) -> None:
    """All workers have the same mistake in their flags, say, and the server is slow."""
    scheduler, *workers = start("scheduler", "worker", "worker", gathering=2.0)
    for worker in workers:
        worker.told("joined")
        worker.follow("leave", 2)
    assert [worker.end()[0] for worker in workers] == [2, 2]
    assert scheduler.end() == (2, "")


def test_a_process_may_come_before_the_scheduler(start: Start) -> None:
    workers = start("worker", "worker")
    time.sleep(0.5)
    (scheduler,) = start("scheduler")
    for process in (*workers, scheduler):
        process.told("joined")
    for worker in workers:
        worker.follow("leave", 0)
    assert [process.end() for process in (*workers, scheduler)] == [(0, "")] * 3


def test_a_scheduler_that_never_comes_is_told(start: Start, environment: Environment) -> None:
    (worker,) = start("worker", gathering=0.5)
    status, told = worker.end()
    assert status == 2
    assert told == (
        "train.py: error: DMLC_PS_ROOT_URI 127.0.0.1: the scheduler cannot be reached at port "
        f"{environment.heartbeat_port}: Connection refused\n"
    )


def test_a_port_that_is_taken_is_told(start: Start, environment: Environment) -> None:
    with socket.create_server(("", environment.heartbeat_port)):
        (scheduler,) = start("scheduler")
        status, told = scheduler.end()
    assert status == 2
    assert told.count("\n") == 1
    assert told.startswith(
        f"train.py: error: DMLC_PS_ROOT_PORT {environment.port}: port "
        f"{environment.heartbeat_port}, which is needed too, cannot be opened: Address"
    )


def test_all_workers_can_be_asked_to_stop(group: list[Process], environment: Environment) -> None:
    request_stop(environment, int(signal.SIGTERM))
    for worker in group[2:]:
        worker.follow("stop", int(signal.SIGTERM))
    # And nothing else has become of them.
    assert [process.process.poll() for process in group] == [None] * 4


def test_a_worker_that_comes_later_is_asked_to_stop_too(
    start: Start, environment: Environment
) -> None:
    (scheduler,) = start("scheduler")
    scheduler.told("joined")
    assert request_stop(environment, int(signal.SIGTERM))
    (worker,) = start("worker")
    worker.told("joined")
    worker.follow("stop", int(signal.SIGTERM))


def test_asking_a_job_that_is_gone_does_nothing(environment: Environment) -> None:
    assert not request_stop(environment, int(signal.SIGTERM))


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
    "not on the roll": b'{"bye": 2}\n',
    "another's number": b'{"rank": 0}\n',
    "a number too long": b'{"bye": ' + b"9" * 4000 + b"}\n",
    "no signal": b'{"stop": "now"}\n',
    "no signal's number": b'{"stop": 999}\n',
    "an endless number": b'{"stop": 1e999}\n',
    "no number": b'{"stop": NaN}\n',
    "no value": b'{"stop": null}\n',
    "a list": b'{"stop": [15]}\n',
}


def test_strangers_do_no_harm(group: list[Process], environment: Environment) -> None:
    address = (environment.host, environment.heartbeat_port)
    scheduler, server, *workers = group
    silent = [socket.create_connection(address, 5) for _ in range(20)]
    for what, text in NONSENSE.items():
        # It may be shown the door before all is sent, or before it says that this was all.
        with socket.create_connection(address, 5) as stranger, suppress(OSError):
            stranger.sendall(text)
            stranger.shutdown(socket.SHUT_WR)
            while stranger.recv(4096):
                pass
        time.sleep(BEAT / 2)
        assert [process.process.poll() for process in group] == [None] * 4, what
        for worker in workers:
            worker.follow("unasked", 0)
    # All listen as before.
    request_stop(environment, int(signal.SIGINT))
    for worker in workers:
        worker.follow("stop", int(signal.SIGINT))
        worker.follow("leave", 0)
    assert [worker.end() for worker in workers] == [(0, "")] * 2
    assert server.end() == scheduler.end() == (0, "")
    for each in silent:
        each.close()


def test_strangers_who_only_listen_are_shown_the_door(
    group: list[Process], environment: Environment
) -> None:
    address = (environment.host, environment.heartbeat_port)
    with socket.create_connection(address, SILENCE + 2) as stranger:
        began = time.monotonic()
        assert stranger.recv(1) == b""
        assert seconds_since(began) < SILENCE + 1
    assert [process.process.poll() for process in group] == [None] * 4


def test_a_member_whose_error_output_is_gone_ends_all_the_same(group: list[Process]) -> None:
    """As when the launcher, which reads it, was killed."""
    scheduler, server, worker, other = group
    for process in (scheduler, worker):
        assert process.process.stderr
        process.process.stderr.close()
    other.process.kill()
    for process in (scheduler, worker):
        assert process.process.wait(timeout=60) == LOST_STATUS
    assert server.end()[0] == LOST_STATUS


def test_without_a_job_nothing_is_joined_or_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DMLC_ROLE", raising=False)
    assert heartbeat.join_group("train.py") is None
    heartbeat.exit_group(2)


def test_messages_are_read_line_by_line() -> None:
    """However they are cut on their way, up to the first that is none."""
    here, there = socket.socketpair()
    with here, there:
        there.sendall(b'{"a": 1}\n{"b"')
        messages = heartbeat._messages(here)
        assert next(messages) == {"a": 1}
        there.sendall(b": [2]}\n" + json.dumps({"c": "\u00e9"}).encode() + b"\n{}\nno\n{}\n")
        assert list(messages) == [{"b": [2]}, {"c": "\u00e9"}, {}]


def test_nothing_is_left_open(group: list[Process], environment: Environment) -> None:
    """A scheduler runs for days; strangers must not use up its files."""
    files = Path(f"/proc/{group[0].process.pid}/fd")
    if not files.is_dir():
        pytest.skip("needs /proc")
    before = len(list(files.iterdir()))
    for text in (b"", b"no\n", b"[" * 4000 + b"\n") * 10:
        address = (environment.host, environment.heartbeat_port)
        with socket.create_connection(address, 5) as stranger:
            stranger.sendall(text)
    deadline = time.monotonic() + 5
    while len(list(files.iterdir())) > before:
        assert time.monotonic() < deadline
        time.sleep(0.05)
