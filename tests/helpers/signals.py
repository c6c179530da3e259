"""Signals that a test sends to its own process."""

from __future__ import annotations

import gc
import os
import time

from embedding_learning.runtime.signals import StopRequest
from tests.helpers.limits import HANG_LIMIT


def send_signal(number: int) -> None:
    """Sends this process a signal. Blocks until `stop_on_signals` has noted it, if it is active."""
    requests = [
        each for each in gc.get_objects() if isinstance(each, StopRequest) and each.number is None
    ]
    os.kill(os.getpid(), number)
    deadline = time.monotonic() + HANG_LIMIT
    while requests and all(request.number is None for request in requests):
        assert time.monotonic() < deadline
        time.sleep(0.005)
