"""Files that are there whole or as they were before, whatever happens while they are written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[str]:
    """Lets the caller write a file under another name, which takes the place of `path` at the end.

    Yields the name to write to, in the same folder. What stands there when the block ends is
    brought to the disk and renamed, so that a crash or a loss of power leaves the former file or
    the new one. If the block or the disk fails, with whatever exception, the former file is
    untouched, nothing else remains, and the exception goes on as it is.

    Raises OSError if the file cannot be written.
    """
    partial = f"{path}.{os.getpid()}.partial"
    try:
        yield partial
        _flush(partial)
        os.replace(partial, path)
    except BaseException:
        with suppress(OSError):
            os.remove(partial)
        raise
    # The new name has to reach the disk too. Some file systems cannot flush a folder; by now the
    # file has been replaced, and an error would say that it has not.
    with suppress(OSError):
        _flush(os.path.dirname(path) or os.curdir)


def _flush(path: str) -> None:
    """Waits until the file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
