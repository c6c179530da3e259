"""Environment variables that MXNet and OpenCV read when they are imported.

These libraries end the process without an explanation if they cannot read a value. So a command
checks the variables that its messages and documents name, before it imports anything.
"""

from __future__ import annotations

import os
import re

from embedding_learning.errors import UsageError

_MOST_PIXELS = "OPENCV_IO_MAX_IMAGE_PIXELS"
_OPENCV_LIMITS = (_MOST_PIXELS, "OPENCV_IO_MAX_IMAGE_WIDTH", "OPENCV_IO_MAX_IMAGE_HEIGHT")
_ONEDNN, _ROLE = "MXNET_MKLDNN_ENABLED", "DMLC_ROLE"
# OpenCV reads 64 bits; the units are its own.
_LIMIT = re.compile("[0-9]{1,19}([MK][Bb]|[mk]b)?")
_SWITCH = re.compile("|0|1|true|false", re.IGNORECASE)


def set_defaults() -> None:
    """Sets the limit of an image's pixels unless the user has; an empty variable is not set."""
    for name in (*_OPENCV_LIMITS, _ROLE):
        if os.environ.get(name) == "":
            del os.environ[name]
    # With OpenCV's own limit, 2**30 pixels, a file of a few KB could take 3 GB in each thread that
    # decodes.
    os.environ.setdefault(_MOST_PIXELS, str(2**27))


def check() -> None:
    """Raises UsageError if a variable has a value that a library cannot read."""
    for name in _OPENCV_LIMITS:
        if name in os.environ and not _LIMIT.fullmatch(os.environ[name]):
            raise UsageError(
                f"{name} {os.environ[name]}: must be a whole number; correct this environment "
                "variable, or unset it"
            )
    if not _SWITCH.fullmatch(os.environ.get(_ONEDNN, "")):
        raise UsageError(
            f"{_ONEDNN} {os.environ[_ONEDNN]}: must be 0 or 1; correct this environment variable, "
            "or unset it"
        )


def is_onednn_enabled() -> bool:
    """Returns whether MXNet may use oneDNN, as far as the user's environment says."""
    return os.environ.get(_ONEDNN, "").lower() not in ("0", "false")


def leave_group() -> None:
    """Removes DMLC_ROLE, for a command that takes part in no group of workers.

    A process that MXNet takes for a server or scheduler serves when it imports MXNet.
    """
    os.environ.pop(_ROLE, None)
