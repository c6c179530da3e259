"""`launch`: what it would run, what it refuses, and a job from its start to its end."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT

from embedding_learning.launcher import _quoted


def launch(folder, *arguments, **settings):
    environment = {name: v for name, v in os.environ.items() if not name.startswith("DMLC_")}
    environment = {**environment, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **settings}
    return subprocess.run(
        [sys.executable, "-m", "embedding_learning", "launch", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )


def flags_of(tiny_cub):
    return [
        *(f"--data-path={tiny_cub}", "--model=squeezenet1.1", "--image-size=40", "--crop-size=32"),
        *("--batch-size=4", "--batch-k=2", "--embed-dim=16", "--batch-num=3", "--cache=none"),
    ]


def test_a_dry_run_prints_every_process_and_runs_none(tmp_path):
    done = launch(tmp_path, "--workers=2", "--servers=1", "--dry-run", "--", "--epochs=1")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [re.findall("DMLC_ROLE=(\\w+)", line) for line in lines] == [
        *(["server"], ["worker"], ["worker"], ["scheduler"])
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
        *(("one", "22"), ("one", "22"), ("two", "2222"))
    ]
    for line in over_ssh:
        remote = shlex.split(line)[-1]
        assert f"cd {tmp_path}/; {sys.executable} {ROOT}/train.py" in remote
        assert remote.endswith("--epochs=1 --kvstore=dist_device_sync")
        assert "DMLC_PS_ROOT_URI=10.0.0.9" in remote


@pytest.mark.parametrize(
    "text", ["a b", "$HOME", 'a"b', "a;b", "*", "~", "ü", "#x", "a\\b", "(", "&"]
)
def test_flags_reach_the_processes_as_they_were_typed(text):
    """Through one shell as here, and through two as over ssh."""
    printing = f"printf %s {_quoted(text)}"
    for command in (printing, f"sh -c '{printing}'"):
        assert subprocess.check_output(["bash", "-c", command], text=True) == text


@pytest.mark.parametrize(
    "arguments, line",
    [
        (["--workers=2"], "the flags of train.py are missing; put them behind --"),
        (["--workers=0", "--"], "--workers 0: must be at least 1"),
        (["--servers=0", "--"], "--servers 0: must be at least 1"),
        (["--hosts=nowhere", "--"], "--hosts nowhere: cannot be read"),
        (["--", "--lr=x"], "argument --lr: invalid float value: 'x'"),
        (["--", "--kvstore=device"], "--kvstore device: this process is part of a job"),
        (["--workers=2", "--", "--total-batch-size=75"], "cannot be divided among 2 devices"),
        (["--", "--save-prefix=it's"], "cannot be handed to a shell"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_started(tmp_path, arguments, line):
    done = launch(tmp_path, *arguments)
    assert done.returncode == 2
    assert line in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_job_runs_to_its_end_and_only_the_first_worker_speaks(tmp_path, tiny_cub):
    done = launch(tmp_path, "--workers=2", "--", *flags_of(tiny_cub), "--epochs=1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Best validation Recall@1") == 1
    assert done.stderr.count("[Epoch 0] validation: Recall@1=") == 1
    assert "Traceback" not in done.stderr
    assert (tmp_path / "margin_loss_model.params").exists()


def test_a_fault_in_the_data_ends_the_job_with_its_line(tmp_path, tiny_cub):
    done = launch(tmp_path, "--workers=2", "--", *flags_of(tiny_cub), "--data-path=nowhere")
    assert done.returncode == 2
    assert "nowhere: no such folder" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_launcher_passes_on_that_it_is_to_stop(tmp_path, tiny_cub):
    """The state is saved, and the job goes on from it."""
    flags = [*flags_of(tiny_cub), "--epochs=300", "--resume=auto"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "embedding_learning", "launch", "--workers=2", "--", *flags]
    with open(tmp_path / "log", "w+") as log:
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log)
        deadline = time.monotonic() + 100
        while "training loss" not in (tmp_path / "log").read_text():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143
    assert "and --resume auto goes on with it" in (tmp_path / "log").read_text()
    epochs = [int(file.name[11:15]) for file in tmp_path.rglob("checkpoint-*")]
    done = launch(tmp_path, "--workers=2", "--", *flags, f"--epochs={max(epochs) + 1}")
    assert done.returncode == 0, done.stderr
    assert "Resuming from" in done.stderr or "The run is finished" in done.stderr
