"""The folders of the user that files are kept in when no flag names one."""

from __future__ import annotations

import os
import stat
import tempfile
from contextlib import suppress

from embedding_learning.errors import UsageError


def find_cache_folder() -> str:
    """Return the folder for decoded and drawn images.

    It is ``embedding_learning`` below the user's cache folder, or the temporary folder of a user
    without a home, as in many containers. Raises UsageError if there is not even that.
    """
    for cache in (os.environ.get("XDG_CACHE_HOME", ""), os.path.expanduser("~/.cache")):
        # The XDG standard ignores relative paths. Without a home "~" stays as it is, which would
        # be a folder in the working directory.
        if os.path.isabs(cache):
            return os.path.join(cache, "embedding_learning")
    return _temporary_folder()


def find_zoo_folder() -> str:
    """Return the folder of MXNet's model zoo: MXNET_HOME, else ``~/.mxnet``.

    A user without a home gets the temporary folder. Raises UsageError if there is none.
    """
    # The model zoo expands a "~" too.
    folder = os.path.expanduser(os.environ.get("MXNET_HOME") or "~/.mxnet")
    return _temporary_folder() if folder.startswith("~") else folder


def _temporary_folder() -> str:
    """Return a folder that only this user can write to, below the system's temporary folder.

    Raises UsageError if it cannot be made, or if it belongs to somebody else, who could have put
    other files there.
    """
    way_out = "name a home folder in HOME"
    try:
        folder = os.path.join(tempfile.gettempdir(), f"embedding_learning-{os.getuid()}")
        with suppress(FileExistsError):
            os.mkdir(folder, 0o700)
        found = os.lstat(folder)
    except OSError as error:
        raise UsageError(f"the user has no home folder, and {error}; {way_out}") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise UsageError(f"the user has no home folder, and others can write {folder}; {way_out}")
    return folder
