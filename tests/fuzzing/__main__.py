"""The table of all kinds: see the package."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.fuzzing.kinds import KINDS
from tests.fuzzing.workers import run


def main(arguments: list[str]) -> int:
    """Prints a line a kind and each failure; 1 if there is any."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzzing")
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {', '.join(KINDS)}")
    parser.add_argument("--mutations", type=int, default=2000, help="of each kind (%(default)s)")
    parser.add_argument("--first", type=int, default=0, help="number of the first (%(default)s)")
    parser.add_argument("--seed", default="0", help="of all that is drawn (%(default)s)")
    options = parser.parse_args(arguments)
    unknown = set(options.kinds) - KINDS.keys()
    if unknown:
        parser.error(f"{min(unknown)}: choose of {', '.join(KINDS)}")

    print(f"{'kind':15} mutations  accepted  refused  crashes  hangs  memory    time", flush=True)
    failed = False
    for name in options.kinds or KINDS:
        kind = KINDS[name]
        tenth = -(-options.mutations // 10)
        numbers = range(options.first, options.first + options.mutations)
        if kind.starts_programs:
            numbers = numbers[:tenth]
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as root:
            result = run(kind, numbers, f"{options.seed} {name}", Path(root))
        hangs = sum(failure.hang for failure in result.failures)
        print(
            f"{name:15} {len(numbers):9} {result.accepted:9} {result.refused:8} "
            f"{len(result.failures) - hangs:8} {hangs:6} {result.peak / 2**20:4.0f} MB "
            f"{time.monotonic() - start:5.0f} s",
            flush=True,
        )
        for failure in result.failures:
            print(
                f"  python -m tests.fuzzing {name} --seed {options.seed} "
                f"--first {failure.number} --mutations 1: {failure.told}"
            )
        failed = failed or bool(result.failures)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
