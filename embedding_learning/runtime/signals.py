"""Ctrl-C and SIGTERM: the first lets the batch in hand end, the second stops at once."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from threading import Thread
from types import FrameType

from embedding_learning.errors import Interrupted

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass
class StopRequest:
    """Whether a signal has asked the run to stop, and which."""

    number: int | None = None


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Within, the first signal is noted for the run to follow, the second ends the process."""
    request = StopRequest()
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    # Python's own handlers run only between two of its instructions, and one that waits for a
    # device can take many seconds: a thread that is told of signals at once does not wait.
    former_writing = signal.set_wakeup_fd(writing)
    former = [signal.signal(number, lambda *_: None) for number in _SIGNALS]
    watcher = Thread(target=_watch, args=(reading, request), daemon=True)
    watcher.start()
    try:
        yield request
    finally:
        for number, handler in zip(_SIGNALS, former):
            signal.signal(number, handler)
        signal.set_wakeup_fd(former_writing)
        os.close(writing)
        watcher.join()
        os.close(reading)


def _watch(reading: int, request: StopRequest) -> None:
    """Reads the numbers of the signals as they come, until the other end is closed."""
    while number := os.read(reading, 1):
        if number[0] not in _SIGNALS:
            continue
        if request.number is not None:
            # What is being written has a temporary name: nothing is left half done.
            _tell("Stopped at once.")
            os._exit(128 + number[0])
        request.number = number[0]
        _tell("Stopping after the batch in hand; another signal stops at once.")


def _tell(text: str) -> None:
    # Ctrl-C ends the reader of a pipe too; the next signal must be seen all the same.
    with suppress(OSError):
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


@contextmanager
def raise_on_signals() -> Iterator[None]:
    """Within, Ctrl-C and SIGTERM raise Interrupted."""

    def interrupt(number: int, _: FrameType | None) -> None:
        raise Interrupted(number)

    former = [signal.signal(number, interrupt) for number in _SIGNALS]
    try:
        yield
    finally:
        for number, handler in zip(_SIGNALS, former):
            signal.signal(number, handler)
