"""Atomic file writes, tables as CSV, and checks of the paths that are written to."""

from __future__ import annotations

import csv
import errno
import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import IO

from embedding_learning.errors import UsageError

# Of Linux.
_LARGEST_PROCESS_ID = 2**22


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[str]:
    """Lets the caller write a temporary file that replaces `path` when the block ends.

    Yields the name of the temporary file, which is in the same folder. At the end of the block it
    is flushed to the disk and renamed. So after a crash or a power failure the old file or the new
    one is there, complete. If the block or the disk fails, the old file is unchanged, the
    temporary file is removed, and the exception is raised again.

    Raises OSError if the file cannot be written.
    """
    partial = _partial_name(path, os.getpid())
    try:
        yield partial
        _flush(partial)
        os.replace(partial, path)
    except BaseException:
        with suppress(OSError):
            os.remove(partial)
        raise
    # The new name has to reach the disk too. Some file systems cannot flush a folder. The file has
    # already been replaced, and an error would claim that it has not.
    with suppress(OSError):
        _flush(os.path.dirname(path) or os.curdir)


def write_bytes(
    path: str | os.PathLike[str], content: bytes, way_out: str = "name another file"
) -> None:
    """Writes a file atomically.

    Raises UsageError if it cannot be written. The message ends with `way_out`.
    """
    try:
        with atomic_write(path) as partial, open(partial, "wb") as file:
            file.write(content)
    except OSError as error:
        reason = error.strerror or error
        raise UsageError(f"{path}: cannot be written: {reason}; {way_out}") from error


def write_text(
    path: str | os.PathLike[str], content: str, way_out: str = "name another file"
) -> None:
    """Writes a UTF-8 text file atomically; see `write_bytes`.

    A character that UTF-8 does not have, such as half a surrogate pair, becomes a question mark.
    """
    write_bytes(path, content.encode("utf-8", "replace"), way_out)


def format_csv(lines: Sequence[Sequence[object]]) -> str:
    """Returns lines of values as CSV; the first line holds the titles."""
    file = io.StringIO()
    write_row = csv_row_writer(file)
    for line in lines:
        write_row(line)
    return file.getvalue()


def csv_row_writer(file: IO[str]) -> Callable[[Sequence[object]], object]:
    """Returns a function that writes a row of CSV, which ends with a line feed."""
    write_row = csv.writer(file, lineterminator="\n").writerow
    # Before Python 3.13 the first writer leaves a carriage return without quotes.
    quote_row = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL).writerow

    def write(row: Sequence[object]) -> object:
        has_return = any(isinstance(value, str) and "\r" in value for value in row)
        return (quote_row if has_return else write_row)(row)

    return write


def check_output_path(path: str, suffixes: tuple[str, ...], flag: str = "") -> None:
    """Raises UsageError if a file cannot be written there. Writes nothing.

    Parameters
    ----------
    path : str
        The file to be written. It may exist.
    suffixes : tuple of str
        The endings that its name may have, in lower case, such as ``.png``.
    flag : str
        The flag that names it. The messages begin with it.
    """
    source = f"{flag} {path}".lstrip()
    folder = os.path.dirname(path) or os.curdir
    if not path.lower().endswith(suffixes):
        raise UsageError(f"{source}: end the name in {' or '.join(suffixes)}")
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK):
        raise UsageError(
            f"{source}: the folder {folder} does not exist or cannot be written to; create it first"
        )
    if os.path.isdir(path):
        raise UsageError(f"{source}: is a folder; name a file")
    check_name_length(path, source)


def check_name_length(path: str, source: str) -> None:
    """Raises UsageError if the path is too long for the system. The message begins with `source`.

    A file is first written under a longer name, after hours perhaps.
    """
    try:
        os.lstat(_partial_name(path, _LARGEST_PROCESS_ID))
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise UsageError(
                f"{source}: is too long for the names of files; choose a shorter one"
            ) from None


def check_input_is_kept(output: str, inputs: Iterable[str], flag: str) -> None:
    """Raises UsageError if a file to be written, which `flag` names, is one of the inputs."""
    for path in inputs if os.path.exists(output) else ():
        if is_same_file(output, path):
            raise UsageError(
                f"{flag} {output}: would replace {path}, which is read; name another file"
            )


def is_same_file(first: str, second: str) -> bool:
    """Returns whether two names, through any links, are one file that exists."""
    return os.path.exists(first) and os.path.exists(second) and os.path.samefile(first, second)


def _partial_name(path: str | os.PathLike[str], process: int) -> str:
    """Returns the name under which a process writes a file until it is complete."""
    return f"{path}.{process}.partial"


def _flush(path: str) -> None:
    """Blocks until the file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
