"""Trains a network: `train.py`, or `python -m embedding_learning train`."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from typing import Any

from embedding_learning.cli.exit_codes import run_command
from embedding_learning.distributed import dmlc_environment, heartbeat


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains with the given flags, or those of the command line; returns the exit status."""
    flags = sys.argv[1:] if arguments is None else list(arguments)
    try:
        status = run_command("train.py", lambda: _train(flags))
    except Exception:
        # Left to Python, the process would wait for the other workers, and they for it.
        traceback.print_exc()
        status = 1
    heartbeat.exit_group(status)
    return status


def _train(flags: list[str]) -> int:
    # Imported within `run_command`, which explains a missing package.
    from embedding_learning.cli.train_flags import parse, unused_earlier_flags
    from embedding_learning.runtime.progress import log_to_terminal

    config = parse(flags)
    client: Any = heartbeat.join_group("train.py")
    if dmlc_environment.is_non_worker():
        with dmlc_environment.hide_role():
            from embedding_learning.distributed import server
        # It returns early if the workers end before all have connected: of a mistake in the data,
        # for example.
        server.run_server()
        heartbeat.wait_for_end()
    # Imported only now: MXNet takes seconds to import, and --help does not need it.
    from embedding_learning.training import run

    with log_to_terminal():
        run.run(config, flags, client, unused_earlier_flags(flags, config))
    return 0
