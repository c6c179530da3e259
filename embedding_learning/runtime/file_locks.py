"""Locks that one process at a time holds on a file or folder.

The system frees the lock when the descriptor is closed, so also when the process is killed.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def open_locked(
    path: str | os.PathLike[str],
    flags: int = os.O_RDONLY,
    is_shared: bool = False,
    on_wait: Callable[[], None] | None = None,
) -> int:
    """Opens a file or folder, locks it and returns its descriptor; closing that frees the lock.

    Parameters
    ----------
    path : path
    flags : int
        As `os.open` takes them.
    is_shared : bool
        Whether other processes may hold a shared lock at the same time.
    on_wait : callable, optional
        If the lock is not free: called once, then the function blocks until it is.

    Raises
    ------
    BlockingIOError
        If another process holds the lock and `on_wait` is not given.
    OSError
        If it cannot be opened, or the file system has no locks.
    """
    descriptor = os.open(path, flags, 0o666)
    try:
        operation = fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX
        try:
            fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
        except BlockingIOError:
            if on_wait is None:
                raise
            on_wait()
            fcntl.flock(descriptor, operation)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


@contextmanager
def locked(
    path: str | os.PathLike[str],
    flags: int = os.O_RDONLY,
    is_shared: bool = False,
    on_wait: Callable[[], None] | None = None,
) -> Iterator[None]:
    """Holds the lock within the block. Parameters and errors are those of `open_locked`."""
    descriptor = open_locked(path, flags, is_shared, on_wait)
    try:
        yield
    finally:
        os.close(descriptor)
