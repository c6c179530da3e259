"""What every command does with a mistake: one line on the error output, and an exit status."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable

from embedding_learning import mxnet_runtime
from embedding_learning.flags import UsageError

try:
    from embedding_learning.datasets import DataError
    from embedding_learning.monitoring import TrainingFault
    from embedding_learning.stopping import Interrupted, interrupted_by_signals
except ImportError as error:
    # Without numpy, exit_status cannot even be defined.
    explanation = mxnet_runtime.explain_import_error(error)
    if explanation is None:
        raise
    print(f"error: {explanation}", file=sys.stderr)
    sys.exit(2)


def exit_status(program: str, action: Callable[[], int]) -> int:
    """The action's own status, or that of what ended it.

    2: a mistake in a flag or in the data; 3: a fault in training, with the last checkpoint left;
    130, 143: Ctrl-C, SIGTERM.
    """
    try:
        with interrupted_by_signals():
            status = action()
            sys.stdout.flush()
            return status
    except BrokenPipeError:
        # Whoever read the output has seen enough; nothing more can be written to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (UsageError, DataError) as error:
        message = str(error)
    except (ImportError, OSError) as error:
        explanation = mxnet_runtime.explain_import_error(error)
        if explanation is None:
            raise
        message = explanation
    except TrainingFault as fault:
        print(f"{program}: stopped: {fault}", file=sys.stderr)
        return 3
    except Interrupted as interruption:
        print(f"{program}: {interruption}", file=sys.stderr)
        return 128 + interruption.number
    print(f"{program}: error: {message}", file=sys.stderr)
    return 2
