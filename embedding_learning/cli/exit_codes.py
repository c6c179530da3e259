"""Maps exceptions to one-line messages on the error output and to exit codes."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress

from embedding_learning.errors import DataError, Interrupted, TrainingError, UsageError
from embedding_learning.runtime import environment, mxnet_compat
from embedding_learning.runtime.signals import raise_on_signals

_NO_SPACE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def run_command(program: str, action: Callable[[], int]) -> int:
    """Runs a command and returns its exit code: that of `action`, or that of the exception.

    2: a mistake in a flag or in the data. 3: a fault in training; the last checkpoint is kept.
    130, 143: Ctrl-C, SIGTERM.
    """
    try:
        with raise_on_signals():
            try:
                environment.check()
                status = action()
            except SystemExit:  # after --help
                sys.stdout.flush()
                raise
            sys.stdout.flush()
            return status
    except BrokenPipeError:
        # The reader of the output has closed it.
        _discard_output()
        return 128 + signal.SIGPIPE
    except (UsageError, DataError) as error:
        message = str(error)
    except (ImportError, OSError) as error:
        explanation = mxnet_compat.explain_import_error(error)
        if isinstance(error, OSError) and error.errno in _NO_SPACE_ERRORS:
            # The full file may be the standard output, which Python would flush again at its end.
            _discard_output()
            explanation = f"there is no space for the output: {error.strerror}"
        if explanation is None:
            raise
        message = explanation
    except TrainingError as fault:
        _print_error(f"{program}: stopped: {fault}")
        return 3
    except Interrupted as interruption:
        _print_error(f"{program}: {interruption}")
        return 128 + interruption.number
    _print_error(f"{program}: error: {message}")
    return 2


def _discard_output() -> None:
    """Discards all further standard output."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print_error(text: str) -> None:
    # If nobody reads the error output any more, the exit code is enough.
    with suppress(OSError):
        print(text, file=sys.stderr)
