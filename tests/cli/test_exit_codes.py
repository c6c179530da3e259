"""The exit status of a program and its one-line message, for every way it can end."""

from __future__ import annotations

import os
import signal
import time

import pytest

from embedding_learning.cli.exit_codes import run_command
from embedding_learning.errors import DataError, Interrupted, TrainingError, UsageError
from embedding_learning.runtime.install_commands import format_install_command


def status_of(error: BaseException | None) -> int:
    def act() -> int:
        if error:
            raise error
        return 7

    return run_command("prog", act)


def test_what_ends_well_has_its_own_status(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(None) == 7
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    "error, status, line",
    [
        (UsageError("--lr: too much"), 2, "prog: error: --lr: too much"),
        (DataError("a.jpg: is torn"), 2, "prog: error: a.jpg: is torn"),
        (
            ModuleNotFoundError("No module named 'mxnet'", name="mxnet"),
            2,
            "prog: error: The Python package mxnet is missing: run " + format_install_command(),
        ),
        (TrainingError("the disk is full"), 3, "prog: stopped: the disk is full"),
        (Interrupted(signal.SIGINT), 130, "prog: interrupted"),
        (Interrupted(signal.SIGTERM, "stopped by SIGTERM"), 143, "prog: stopped by SIGTERM"),
    ],
)
def test_each_end_has_its_status_and_its_line(
    capsys: pytest.CaptureFixture[str], error: BaseException, status: int, line: str
) -> None:
    assert status_of(error) == status
    assert capsys.readouterr() == ("", f"{line}\n")


@pytest.mark.parametrize(
    "error", [ValueError("a bug"), OSError(2, "gone"), ImportError("x"), SystemExit(0)]
)
def test_a_mistake_of_the_program_is_not_hidden(error: BaseException) -> None:
    with pytest.raises(type(error)) as raised:
        status_of(error)
    assert raised.value is error


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_what_runs(
    capsys: pytest.CaptureFixture[str], number: int, status: int
) -> None:
    former = [signal.getsignal(some) for some in (signal.SIGINT, signal.SIGTERM)]

    def act() -> int:
        os.kill(os.getpid(), number)
        time.sleep(10)
        return 0

    assert run_command("prog", act) == status
    assert capsys.readouterr().err == "prog: interrupted\n"
    assert [signal.getsignal(some) for some in (signal.SIGINT, signal.SIGTERM)] == former
