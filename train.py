#!/usr/bin/env python3
"""Train an image embedding; `python3 train.py --help` lists the flags."""

import logging
import sys

from embedding_learning import mxnet_runtime
from embedding_learning.datasets import DataError
from embedding_learning.options import UsageError, parse


def main() -> int:
    """0 when the run is done, 2 after a mistake in a flag or in the data, 130 after Ctrl-C."""
    try:
        options = parse(sys.argv[1:])
        # Only now, since MXNet takes seconds to import and --help needs none of it.
        from embedding_learning import reporting, training

        with reporting.log_to_terminal():
            logging.info(options)
            training.run(options)
    except (UsageError, DataError) as error:
        message = str(error)
    except (ImportError, OSError) as error:
        explanation = mxnet_runtime.explain_import_error(error)
        if explanation is None:
            raise
        message = explanation
    except KeyboardInterrupt:
        print("train.py: interrupted", file=sys.stderr)
        return 130
    else:
        return 0
    print(f"train.py: error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
