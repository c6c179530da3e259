"""Progress bars, and log lines that do not break them."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

T = TypeVar("T")

# tqdm's own lock is shared with other processes, which is not needed here. From Python 3.14 on it
# starts a helper process, which complains on the error output after a run that is ended at once.
tqdm.set_lock(threading.RLock())


def progress_bar(items: Iterable[T], description: str, unit: str = "batch") -> Iterator[T]:
    """Yields the items. Shows a bar if the error output is a terminal and warnings are logged."""
    yield from tqdm(items, description, leave=False, disable=_is_hidden(), unit=unit)


def open_bar(total: int, description: str, unit: str) -> tqdm[Any]:
    """Returns a bar, shown as in `progress_bar`, for what is not done item by item. Update it."""
    return tqdm(total=total, desc=description, leave=False, disable=_is_hidden(), unit=unit)


def _is_hidden() -> bool:
    return not sys.stderr.isatty() or not logging.getLogger().isEnabledFor(logging.WARNING)


@contextmanager
def log_to_terminal() -> Iterator[None]:
    """Writes log lines to the error output within the block, above any progress bar."""
    logging.basicConfig(level=logging.INFO)
    with logging_redirect_tqdm():
        yield
