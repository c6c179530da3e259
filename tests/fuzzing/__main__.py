"""Fuzzes each target and prints a table; see the package's docstring."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.fuzzing.targets import TARGETS
from tests.fuzzing.workers import run


def main(arguments: list[str]) -> int:
    """Prints a line per target and each failure. Returns 1 if there is a failure, else 0."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzzing",
        description="Mutates valid files and checks that the program reads or refuses each.",
    )
    targets_help = f"what to fuzz (default: all): {', '.join(TARGETS)}"
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=targets_help)
    parser.add_argument(
        "--mutations", type=int, default=2000,
        help="mutations of each target; a tenth where programs are started (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--first", type=int, default=0, help="number of the first mutation (default: %(default)s)"
    )
    parser.add_argument("--seed", default="0", help="random seed (default: %(default)s)")
    args = parser.parse_args(arguments)
    unknown = set(args.targets) - TARGETS.keys()
    if unknown:
        parser.error(f"{min(unknown)}: unknown; choose from {', '.join(TARGETS)}")

    print(f"{'target':18} mutations  accepted  refused  crashes  hangs  memory    time", flush=True)
    has_failed = False
    for name in args.targets or TARGETS:
        target = TARGETS[name]
        tenth = -(-args.mutations // 10)
        numbers = range(args.first, args.first + args.mutations)
        if target.starts_programs:
            numbers = numbers[:tenth]
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as root:
            result = run(target, numbers, f"{args.seed} {name}", Path(root))
        hangs = sum(failure.is_hang for failure in result.failures)
        print(
            f"{name:18} {len(numbers):9} {result.accepted:9} {result.refused:8} "
            f"{len(result.failures) - hangs:8} {hangs:6} {result.peak / 2**20:4.0f} MB "
            f"{time.monotonic() - started:5.0f} s",
            flush=True,
        )
        for failure in result.failures:
            print(
                f"  python -m tests.fuzzing {name} --seed {args.seed} "
                f"--first {failure.number} --mutations 1: {failure.message}"
            )
        has_failed = has_failed or bool(result.failures)
    return int(has_failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
