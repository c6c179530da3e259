"""What every command does with a mistake: one line on the error output, and an exit status."""

from __future__ import annotations

import sys
from collections.abc import Callable

from embedding_learning import mxnet_runtime
from embedding_learning.datasets import DataError
from embedding_learning.options import UsageError


def exit_status(program: str, action: Callable[[], int]) -> int:
    """The action's own status; 2 after a mistake in a flag or in the data, 130 after Ctrl-C."""
    try:
        return action()
    except (UsageError, DataError) as error:
        message = str(error)
    except (ImportError, OSError) as error:
        explanation = mxnet_runtime.explain_import_error(error)
        if explanation is None:
            raise
        message = explanation
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return 130
    print(f"{program}: error: {message}", file=sys.stderr)
    return 2
