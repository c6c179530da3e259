"""What every command does with a mistake: one line on the error output, and an exit status."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress

from embedding_learning.errors import DataError, Interrupted, TrainingError, UsageError
from embedding_learning.runtime import mxnet_compat
from embedding_learning.runtime.signals import raise_on_signals

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def run_command(program: str, action: Callable[[], int]) -> int:
    """The action's own status, or that of what ended it.

    2: a mistake in a flag or in the data; 3: a fault in training, with the last checkpoint left;
    130, 143: Ctrl-C, SIGTERM.
    """
    try:
        with raise_on_signals():
            try:
                status = action()
            except SystemExit:  # after --help
                sys.stdout.flush()
                raise
            sys.stdout.flush()
            return status
    except BrokenPipeError:
        # Whoever read the output has seen enough.
        _discard_output()
        return 128 + signal.SIGPIPE
    except (UsageError, DataError) as error:
        message = str(error)
    except (ImportError, OSError) as error:
        explanation = mxnet_compat.explain_import_error(error)
        if isinstance(error, OSError) and error.errno in _FULL:
            # It may be the standard output, which Python would try again at its end.
            _discard_output()
            explanation = f"what is to be written finds no room: {error.strerror}"
        if explanation is None:
            raise
        message = explanation
    except TrainingError as fault:
        _tell(f"{program}: stopped: {fault}")
        return 3
    except Interrupted as interruption:
        _tell(f"{program}: {interruption}")
        return 128 + interruption.number
    _tell(f"{program}: error: {message}")
    return 2


def _discard_output() -> None:
    """Lets nothing more be written to the standard output."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _tell(text: str) -> None:
    # The status says the rest where nobody reads the error output any more.
    with suppress(OSError):
        print(text, file=sys.stderr)
