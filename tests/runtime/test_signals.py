"""Signals: the first is noted at any time, the second ends the program at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from embedding_learning.errors import Interrupted
from embedding_learning.runtime.signals import raise_on_signals, stop_on_signals
from tests.helpers.limits import HANG_LIMIT
from tests.helpers.paths import ROOT

SIGNALS = [signal.SIGINT, signal.SIGTERM]
STOPPING = "Stopping after this batch; another signal stops at once.\n"
AT_ONCE = "Stopped at once.\n"


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    """Handlers, threads and files are afterwards as before."""

    def state() -> tuple[object, ...]:
        handlers = [signal.getsignal(number) for number in SIGNALS]
        wakeup = signal.set_wakeup_fd(-1)
        signal.set_wakeup_fd(wakeup)
        return handlers, wakeup, threading.active_count(), sorted(os.listdir("/proc/self/fd"))

    before = state()
    yield
    assert state() == before


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + HANG_LIMIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


# The first signal


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_is_noted_and_reported(
    number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    with stop_on_signals() as request:
        assert request.number is None
        os.kill(os.getpid(), number)
        until(lambda: request.number is not None)
        assert request.number == number
    assert capsys.readouterr().err == STOPPING


def test_a_signal_does_not_disturb_what_goes_on() -> None:
    with stop_on_signals() as request:
        start = time.monotonic()
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
        time.sleep(0.3)
        assert time.monotonic() - start >= 0.3
        until(lambda: request.number)


def test_what_ends_the_block_comes_through() -> None:
    for error in (KeyError, Interrupted):
        with pytest.raises(error), stop_on_signals():
            raise error(1)


def test_it_can_be_used_again_and_knows_nothing_of_before() -> None:
    for _ in range(3):
        with stop_on_signals() as request:
            assert request.number is None
            os.kill(os.getpid(), signal.SIGTERM)
            until(lambda: request.number)


def test_other_signals_are_no_reason_to_stop() -> None:
    seen: list[int] = []
    former = signal.signal(signal.SIGUSR1, lambda number, _: seen.append(number))
    try:
        with stop_on_signals() as request:
            for _ in range(3):
                os.kill(os.getpid(), signal.SIGUSR1)
                time.sleep(0.05)
            assert request.number is None
    finally:
        signal.signal(signal.SIGUSR1, former)
    assert seen == [signal.SIGUSR1] * 3


def test_another_wakeup_is_given_back() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    former = signal.set_wakeup_fd(writing)
    try:
        with stop_on_signals():
            pass
        assert signal.set_wakeup_fd(former) == writing
    finally:
        os.close(reading)
        os.close(writing)


def test_another_thread_leaves_signals_alone(capsys: pytest.CaptureFixture[str]) -> None:
    """Python would raise ValueError: a run that a program starts in a thread could not begin."""
    noted: list[int | None] = []
    inside, outside = threading.Event(), threading.Event()

    def work() -> None:
        with stop_on_signals() as request:
            inside.set()
            assert outside.wait(HANG_LIMIT)
            noted.append(request.number)

    thread = threading.Thread(target=work)
    thread.start()
    assert inside.wait(HANG_LIMIT)
    with pytest.raises(Interrupted), raise_on_signals():
        signal.raise_signal(signal.SIGTERM)
    outside.set()
    thread.join()
    assert noted == [None]
    assert capsys.readouterr().err == ""


# A process that is deep in a library: in a lock of C's it waits, and no signal wakes it. Only its
# other threads continue.

IN_C = """
import ctypes, signal, sys, threading, time
from embedding_learning.runtime.signals import stop_on_signals

library, lock = ctypes.CDLL(None), ctypes.create_string_buffer(128)
library.pthread_mutex_lock(lock)

def unlock():
    while request.number is None:
        time.sleep(0.005)
    library.pthread_mutex_unlock(lock)

with stop_on_signals() as request:
    if sys.argv[1] == "unlock":
        threading.Thread(target=unlock).start()
    print("waits", flush=True)
    library.pthread_mutex_lock(lock)
    print("noted", request.number, flush=True)
"""


@pytest.fixture
def in_c() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """A function that starts a process, and gives it once it waits."""
    started = []

    def start(mode: str, stderr: int = subprocess.PIPE) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", IN_C, mode],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
        started.append(process)
        assert process.stdout
        assert process.stdout.readline() == "waits\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_is_noted_while_a_library_computes(
    in_c: Callable[..., subprocess.Popen[str]], number: signal.Signals
) -> None:
    process = in_c("unlock")
    process.send_signal(number)
    out, err = process.communicate(timeout=HANG_LIMIT)
    assert (out, err, process.returncode) == (f"noted {int(number)}\n", STOPPING, 0)


@pytest.mark.parametrize("first", SIGNALS)
@pytest.mark.parametrize("second", SIGNALS)
def test_the_second_signal_ends_a_process_that_a_library_keeps(
    in_c: Callable[..., subprocess.Popen[str]], first: signal.Signals, second: signal.Signals
) -> None:
    process = in_c("wait")
    assert process.stderr
    process.send_signal(first)
    assert process.stderr.readline() == STOPPING
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.1)
    process.send_signal(second)
    out, err = process.communicate(timeout=HANG_LIMIT)
    assert (out, err, process.returncode) == ("", AT_ONCE, 128 + second)


def test_signals_are_seen_where_nobody_reads_the_lines(
    in_c: Callable[..., subprocess.Popen[str]],
) -> None:
    """Ctrl-C ends the `tee` that the output goes to as well."""
    reading, writing = os.pipe()
    process = in_c("wait", writing)
    os.close(writing)
    os.close(reading)
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.2)
    # Again until it ends: on a busy machine the system may deliver two signals as one.
    while process.poll() is None:
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    assert process.returncode == 130


# Outside of the loop


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_interrupts_at_once_outside_of_training(number: signal.Signals) -> None:
    with pytest.raises(Interrupted) as interruption, raise_on_signals():
        os.kill(os.getpid(), number)
        time.sleep(10)
    assert interruption.value.number == number
    assert str(interruption.value) == "interrupted"


def test_nobody_takes_an_interruption_for_an_error() -> None:
    assert not issubclass(Interrupted, Exception)


def test_training_s_own_handling_goes_before_the_program_s() -> None:
    with raise_on_signals():
        with stop_on_signals() as request:
            os.kill(os.getpid(), signal.SIGINT)
            until(lambda: request.number)
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(10)
