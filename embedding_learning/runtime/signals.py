"""Ctrl-C and SIGTERM: after the first the current batch is finished, the second stops at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType

from embedding_learning.errors import Interrupted

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass
class StopRequest:
    """Contains the number of the signal that asked the run to stop; None if there was none."""

    number: int | None = None


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Within the block, notes the first signal in the request. The second ends the process.

    In another thread than the main one nothing is noted: Python lets only the main thread handle
    signals, and what they do is for the program that started this thread to decide.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    # Python runs its handlers only between two instructions, and one that waits for a device can
    # take many seconds. The thread that watches this pipe learns of a signal at once.
    former_writing = signal.set_wakeup_fd(writing)
    former = [signal.signal(number, lambda *_: None) for number in _SIGNALS]
    watcher = threading.Thread(target=_watch, args=(reading, request), daemon=True)
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
    """Reads the numbers of the signals as they arrive, until the other end is closed."""
    while number := os.read(reading, 1):
        if number[0] not in _SIGNALS:
            continue
        if request.number is not None:
            # Files that are being written have temporary names, so no incomplete file is left.
            _print("Stopped at once.")
            os._exit(128 + number[0])
        request.number = number[0]
        _print("Stopping after this batch; another signal stops at once.")


def _print(text: str) -> None:
    # Ctrl-C ends the reader of a pipe too. The next signal must be noticed all the same.
    with suppress(OSError):
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


@contextmanager
def raise_on_signals() -> Iterator[None]:
    """Makes Ctrl-C and SIGTERM raise Interrupted within the block."""

    def interrupt(number: int, _: FrameType | None) -> None:
        raise Interrupted(number)

    former = [signal.signal(number, interrupt) for number in _SIGNALS]
    try:
        yield
    finally:
        for number, handler in zip(_SIGNALS, former):
            signal.signal(number, handler)
