#!/usr/bin/env python3
"""Train an image embedding; `python3 train.py --help` lists the flags."""

import signal
import sys

if __name__ == "__main__":
    # The imports below take half a second. Ctrl-C ends them without a traceback: at first by the
    # system's own hand, and once `begin` has run with a line.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from embedding_learning.runtime import startup

    startup.begin("train.py")

import traceback

from embedding_learning.cli.exit_codes import exit_status
from embedding_learning.cli.train_flags import parse
from embedding_learning.distributed import dmlc_environment, heartbeat


def train() -> int:
    options = parse(sys.argv[1:])
    member = heartbeat.join("train.py")
    if dmlc_environment.is_helper():
        with dmlc_environment.hidden_role():
            from embedding_learning.distributed import server
        server.serve()
    # Only now, since MXNet takes seconds to import and --help needs none of it.
    from embedding_learning.training import log_lines, run

    with log_lines.log_to_terminal():
        run.run(options, sys.argv[1:], member)
    return 0


def main() -> int:
    """The exit status, after a run or after the line that tells what is wrong."""
    try:
        status = exit_status("train.py", train)
    except Exception:
        # Left to Python, the process would wait for the others of its job, and they for it.
        traceback.print_exc()
        status = 1
    heartbeat.leave(status)
    return status


if __name__ == "__main__":
    sys.exit(main())
