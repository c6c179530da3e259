#!/usr/bin/env python3
"""Train an image embedding; `python3 train.py --help` lists the flags."""

import logging
import sys

from embedding_learning.entry import exit_status
from embedding_learning.options import parse


def train() -> int:
    options = parse(sys.argv[1:])
    # Only now, since MXNet takes seconds to import and --help needs none of it.
    from embedding_learning import reporting, runs

    with reporting.log_to_terminal():
        logging.info(options)
        runs.run(options, sys.argv[1:])
    return 0


def main() -> int:
    """The exit status, after a run or after the line that tells what is wrong."""
    return exit_status("train.py", train)


if __name__ == "__main__":
    sys.exit(main())
