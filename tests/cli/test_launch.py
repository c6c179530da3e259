"""`launch`: what it would run, what it refuses, and a job from its start to its end."""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from embedding_learning.cli import launch as cli_launch
from embedding_learning.distributed import dmlc_environment, launcher
from embedding_learning.errors import UsageError
from tests.distributed.test_synchronous import free_ports
from tests.helpers.limits import HANG_LIMIT, NEVER
from tests.helpers.paths import ROOT
from tests.helpers.tiny_backbone import PYTHONPATH


def launch(folder, *arguments, **settings):
    environment = {name: v for name, v in os.environ.items() if not name.startswith("DMLC_")}
    environment = {**environment, "PYTHONPATH": PYTHONPATH, "OMP_NUM_THREADS": "1", **settings}
    return subprocess.run(
        [sys.executable, "-m", "embedding_learning", "launch", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=HANG_LIMIT,
    )


def flags_of(tiny_cub):
    return [
        *(f"--data-path={tiny_cub}", "--model=tiny", "--image-size=40", "--crop-size=32"),
        *("--batch-size=4", "--batch-k=2", "--embed-dim=16", "--batch-num=3", "--cache=none"),
    ]


def test_a_dry_run_prints_every_process_and_runs_none(tmp_path):
    done = launch(tmp_path, "--workers=2", "--servers=1", "--dry-run", "--", "--epochs=1")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [re.findall("DMLC_ROLE=(\\w+)", line) for line in lines] == [
        *(["scheduler"], ["server"], ["worker"], ["worker"])
    ]
    command = f"{sys.executable} {ROOT}/train.py --epochs=1 --kvstore=dist_sync"
    for line in lines:
        assert line.endswith(command)
        assert "DMLC_NUM_WORKER=2" in line and "DMLC_PS_ROOT_URI=127.0.0.1" in line
    assert list(tmp_path.iterdir()) == []


def test_hosts_are_reached_by_ssh_in_turn(tmp_path):
    (tmp_path / "hosts").write_text("one\ntwo:2222\n")
    stand_in = tmp_path / "bin/ssh"
    stand_in.parent.mkdir()
    stand_in.write_text("#!/bin/sh\n")
    stand_in.chmod(0o755)
    done = launch(
        *(tmp_path, "--workers=2", "--servers=1", "--hosts=hosts", "--address=10.0.0.9"),
        *("--dry-run", "--", "--epochs=1", "--kvstore=dist_device_sync"),
        PATH=f"{stand_in.parent}:{os.environ['PATH']}",
    )
    assert done.returncode == 0, done.stderr
    over_ssh = [line for line in done.stdout.splitlines() if line.startswith("ssh ")]
    assert [re.search(r"no (\w+) -p (\d+)", line).groups() for line in over_ssh] == [
        *(("one", "22"), ("two", "2222"), ("one", "22"))
    ]
    for line in over_ssh:
        remote = shlex.split(line)[-1]
        assert remote.startswith(f"cd {tmp_path} && env ")
        assert f" {sys.executable} {ROOT}/train.py " in remote
        assert remote.endswith("--epochs=1 --kvstore=dist_device_sync")
        assert "DMLC_PS_ROOT_URI=10.0.0.9" in remote


HERE = dmlc_environment.Environment("scheduler", "127.0.0.1", 9091, workers=1, servers=1)
ODD = ["a b", "$HOME", 'a"b', "it's", "a;b", "*", "~", "ü", "#x", "a\\b", "(", "&", "a\nb", ""]


def test_flags_reach_the_processes_as_they_were_typed():
    """As the program is started here, and through the shell at the other end of ssh."""
    command = ["printf", "%s|", *ODD]
    typed = "".join(f"{text}|" for text in ODD)
    for process in launcher.plan_processes(command, HERE, []):
        assert subprocess.check_output(process.command, text=True) == typed
    for process in launcher.plan_processes(command, HERE, [launcher.Host("one", "22")])[1:]:
        remote = process.command[-1]
        assert subprocess.check_output(["sh", "-c", remote], text=True) == typed


def test_hosts_are_named_one_on_a_line(tmp_path):
    lines = [
        "\ufeffone",
        "",
        "# the fast ones",
        "  two:2222  # of room 3",
        "me@three:65535 slots=4",
    ]
    lines += ["10.0.0.7 slots=2 max_slots=4\r", "one"]
    (tmp_path / "hosts").write_text("\n".join(lines), encoding="utf-8")
    assert launcher.read_hosts(str(tmp_path / "hosts")) == [
        *(("one", "22"), ("two", "2222"), ("me@three", "65535"), ("10.0.0.7", "22"), ("one", "22"))
    ]
    for empty in ("\n", "# one\n"):
        (tmp_path / "hosts").write_text(empty)
        with pytest.raises(UsageError, match="names no host; put one on each line"):
            launcher.read_hosts(str(tmp_path / "hosts"))


@pytest.mark.parametrize(
    "line",
    ["one two", "two:ssh", "two:0", "two:65536", "two:", ":22", "fe80::1", "[::1]:22", "-oUser=a"],
)
def test_a_line_that_names_no_host_is_reported(tmp_path, line):
    (tmp_path / "hosts").write_text(f"# these\none\n{line}\n")
    expected = f"hosts:3: host or host:port expected, .* but found {re.escape(repr(line))}; correct"
    with pytest.raises(UsageError, match=expected):
        launcher.read_hosts(str(tmp_path / "hosts"))


def test_an_address_without_hosts_is_refused():
    with pytest.raises(UsageError, match="--address: has no effect: it is for --hosts"):
        cli_launch.main(["--address=10.0.0.9", "--", "--epochs=1"])


@pytest.mark.parametrize(
    "name, resolved, expected",
    [
        ("me@one", "10.0.0.5", "10.0.0.5"),
        # So is the name of this machine resolved on many.
        ("one", "127.0.1.1", "10.0.0.9"),
        # An alias of ssh.
        ("one", None, None),
    ],
)
def test_a_process_on_another_host_gets_its_own_address(monkeypatch, name, resolved, expected):
    """A name would not do: MXNet cannot listen at it."""

    def resolve(host):
        assert host == "one"
        if resolved is None:
            raise socket.gaierror
        return resolved

    monkeypatch.setattr(socket, "gethostbyname", resolve)
    scheduler = HERE._replace(host="10.0.0.9")
    _, *processes = launcher.plan_processes(["true"], scheduler, [launcher.Host(name, "22")])
    for process in processes:
        found = re.search(r"DMLC_NODE_HOST=(\S+)", process.command[-1])
        assert (found and found[1]) == expected


@pytest.mark.parametrize("name", ["me@node..1", "a" * 64])
def test_a_host_that_cannot_be_a_name_is_left_to_ssh(name: str) -> None:
    """Python raises UnicodeError for it, not an error of the network."""
    _, *processes = launcher.plan_processes(["true"], HERE, [launcher.Host(name, "22")])
    assert all(name in process.command for process in processes)
    assert not any("DMLC_NODE_HOST" in process.command[-1] for process in processes)


def test_a_port_is_taken_only_if_the_one_1000_above_is_free_too(monkeypatch):
    first, second = free_ports(2)
    monkeypatch.setattr(launcher, "_PORTS", [first, second])
    with socket.create_server(("", first + 1000)):
        assert launcher.create_scheduler_environment(2, 1, None) == dmlc_environment.Environment(
            "scheduler", "127.0.0.1", second, 2, 1
        )
        with socket.create_server(("", second)), pytest.raises(UsageError, match="no port from"):
            launcher.create_scheduler_environment(2, 1, None)


# Replaces the processes of a group. They write down their number and how they were stopped.
WAITING = """
import pathlib, signal, sys, time
def note(number, _):
    pathlib.Path(f"{sys.argv[1]}-got-{number}").touch()
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, note)
pathlib.Path(sys.argv[1]).touch()
while sys.argv[2] == "until asked" and not pathlib.Path("end").exists():
    time.sleep(0.01)
time.sleep(float(sys.argv[2].replace("until asked", "0")))
sys.exit(int(sys.argv[3]))
"""


def stand_in(number, seconds, status=0, host=None):
    command = [sys.executable, "-c", WAITING, str(number), str(seconds), str(status)]
    return launcher.Process("worker" if number else "scheduler", host, command)


def wait_for(condition):
    deadline = time.monotonic() + HANG_LIMIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """What the scheduler is asked; it hears it the second time only. Runs in `tmp_path`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launcher, "_POLL_INTERVAL", 0.01)
    asked = []

    def ask(scheduler, message):
        assert scheduler == HERE
        asked.append(message)
        if len(asked) > 1:
            (tmp_path / "end").touch()
        return len(asked) > 1

    monkeypatch.setattr(launcher.heartbeat, "request_stop", ask)
    monkeypatch.setattr(launcher.heartbeat, "abort_group", ask)
    return asked


def test_the_status_is_the_schedulers_and_what_outlives_it_is_killed(asked, monkeypatch):
    monkeypatch.setattr(launcher, "_EXIT_TIMEOUT", 0.2)
    processes = [stand_in(0, 0.5, 3), stand_in(1, 0, 1), stand_in(2, NEVER)]
    assert launcher.run_processes(processes, HERE) == 3
    assert asked == []
    dead = launcher.Process("scheduler", None, ["sh", "-c", "kill -9 $$"])
    assert launcher.run_processes([dead], HERE) == 137


def test_a_signal_is_passed_on_once_the_scheduler_hears_and_the_second_kills(
    asked, tmp_path, capsys
):
    """Processes of the job get neither from the terminal."""

    def send_signals():
        wait_for(lambda: (tmp_path / "0").exists() and (tmp_path / "1").exists())
        os.kill(os.getpid(), signal.SIGTERM)
        wait_for(lambda: len(asked) == 2)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=send_signals)
    thread.start()
    assert launcher.run_processes([stand_in(0, NEVER), stand_in(1, NEVER)], HERE) == 143
    thread.join()
    assert asked == [signal.SIGTERM] * 2
    assert not list(tmp_path.glob("*got*"))
    assert capsys.readouterr().err.count("another signal kills all processes") == 1


def test_nothing_is_left_when_a_process_cannot_be_started(asked, tmp_path, monkeypatch):
    started = []

    class Recorded(subprocess.Popen):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            started.append(self)

    monkeypatch.setattr(launcher.subprocess, "Popen", Recorded)
    (tmp_path / "none").touch(0o644)
    wrong = launcher.Process("server", None, [str(tmp_path / "none")])
    with pytest.raises(OSError):
        launcher.run_processes([stand_in(0, NEVER), wrong], HERE)
    # The process has ended, and was waited for.
    assert [process.returncode is not None for process in started] == [True]


def test_a_host_that_ssh_does_not_reach_ends_the_job(asked):
    """The status 255 is of ssh itself."""
    processes = [stand_in(0, "until asked", 3), stand_in(1, 0, host="one")]
    processes.append(stand_in(2, 0, 255, host="two"))
    assert launcher.run_processes(processes, HERE) == 3
    assert asked == ["ssh cannot reach two, or lost the connection"] * 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments, line",
    [
        (["--workers=2"], "the flags of train.py are missing; put them after --"),
        (["--workers=0", "--"], "--workers 0: must be at least 1"),
        (["--servers=0", "--"], "--servers 0: must be at least 1"),
        (["--hosts=nowhere", "--"], "--hosts nowhere: cannot be read"),
        (["--", "--lr=x"], "argument --lr: invalid float value: 'x'"),
        (["--", "--kvstore=device"], "--kvstore device: this process is one of several workers"),
        (["--workers=2", "--", "--total-batch-size=75"], "cannot be divided among 2 devices"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_started(tmp_path, arguments, line):
    done = launch(tmp_path, *arguments)
    assert done.returncode == 2
    assert line in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


class Job(NamedTuple):
    """A job that was stopped in its first epochs, and the same one, resumed for one epoch more."""

    folder: Path
    status: int
    log: str  # of the job that was stopped
    last_epoch: int
    resumed: subprocess.CompletedProcess


@pytest.fixture(scope="module")
def job(tmp_path_factory, tiny_cub):
    folder = tmp_path_factory.mktemp("job")
    flags = [*flags_of(tiny_cub), "--epochs=300", "--resume=auto"]
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH, "OMP_NUM_THREADS": "1"}
    workers = ["--workers=2", "--servers=1"]
    command = [sys.executable, "-m", "embedding_learning", "launch", *workers, "--", *flags]
    with open(folder / "log", "w+") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
        deadline = time.monotonic() + HANG_LIMIT
        while "training loss" not in (folder / "log").read_text():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        status = process.wait(HANG_LIMIT)
    last = max(int(file.name[11:15]) for file in folder.rglob("checkpoint-*"))
    resumed = launch(folder, *workers, "--", *flags, f"--epochs={last + 1}")
    return Job(folder, status, (folder / "log").read_text(), last, resumed)


@pytest.mark.slow
def test_the_launcher_passes_on_that_it_is_to_stop(job):
    """The state is saved, and the job goes on from it."""
    assert job.status == 143
    assert "--resume auto continues from it" in job.log
    assert job.resumed.returncode == 0, job.resumed.stderr
    assert "Resuming from" in job.resumed.stderr or "The run is finished" in job.resumed.stderr


@pytest.mark.slow
def test_a_job_runs_to_its_end_and_only_the_first_worker_speaks(job):
    done = job.resumed
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Best validation Recall@1") == 1
    assert done.stderr.count(f"[Epoch {job.last_epoch}] validation: Recall@1=") == 1
    assert "Traceback" not in done.stderr
    assert (job.folder / "margin_loss_model.params").exists()


@pytest.mark.slow
def test_a_fault_in_the_data_ends_the_job_with_its_line(tmp_path, tiny_cub):
    done = launch(tmp_path, "--workers=2", "--", *flags_of(tiny_cub), "--data-path=nowhere")
    assert done.returncode == 2
    assert "nowhere: no such folder" in done.stderr
    assert "Traceback" not in done.stderr
