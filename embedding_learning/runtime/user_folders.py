"""The folders of the user for files for which no flag names a folder."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from embedding_learning.errors import UsageError


def find_cache_folder() -> str:
    """Returns the folder for decoded and drawn images.

    It is ``embedding_learning`` in the user's cache folder. A user without a home, as in many
    containers, gets a temporary folder. Raises UsageError if that cannot be used either.
    """
    for cache in (os.environ.get("XDG_CACHE_HOME", ""), os.path.expanduser("~/.cache")):
        # The XDG standard ignores relative paths. Without a home "~" stays as it is, which would
        # be a folder in the working directory.
        if os.path.isabs(cache):
            return os.path.join(cache, "embedding_learning")
    return _temporary_folder()


def find_zoo_folder() -> str:
    """Returns the folder of MXNet's model zoo: MXNET_HOME, else ``~/.mxnet``.

    A user without a home gets a temporary folder. Raises UsageError if that cannot be used either.
    """
    # The model zoo expands a "~" too.
    folder = os.path.expanduser(os.environ.get("MXNET_HOME") or "~/.mxnet")
    return _temporary_folder() if folder.startswith("~") else folder


@contextmanager
def scratch_folder() -> Iterator[str]:
    """Yields a temporary folder, which is removed at the end of the block.

    Raises UsageError if the system has no folder for it.
    """
    try:
        folder = tempfile.TemporaryDirectory()
    except OSError as error:
        raise UsageError(
            f"no temporary folder can be created: {error.strerror}; name a folder for it in TMPDIR"
        ) from error
    with folder as path:
        yield path


def _temporary_folder() -> str:
    """Returns a folder in the system's temporary folder that only this user can write to.

    Raises UsageError if it cannot be created, or if another user owns it or can write to it.
    """
    way_out = "name a home folder in HOME"
    try:
        folder = os.path.join(tempfile.gettempdir(), f"embedding_learning-{os.getuid()}")
        with suppress(FileExistsError):
            os.mkdir(folder, 0o700)
        status = os.lstat(folder)
    except OSError as error:
        raise UsageError(f"the user has no home folder, and {error}; {way_out}") from error
    is_own = status.st_uid == os.getuid() and not status.st_mode & 0o022
    if not stat.S_ISDIR(status.st_mode) or not is_own:
        raise UsageError(f"the user has no home folder, and others can write {folder}; {way_out}")
    return folder
