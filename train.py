#!/usr/bin/env python3
"""Train an image embedding; `python3 train.py --help` lists the flags."""

import signal
import sys

if __name__ == "__main__":
    # The imports below take half a second. Ctrl-C ends them without a traceback: at first by the
    # system's own hand, and once `prepare_process` has run with a line.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from embedding_learning.runtime import startup

    startup.prepare_process("train.py")
    from embedding_learning.cli.train import main

    sys.exit(main())
