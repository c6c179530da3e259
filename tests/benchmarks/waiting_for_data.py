"""How long training waits for its next batch, in a real run of train.py.

    python -m tests.benchmarks.waiting_for_data --data-path FOLDER --model squeezenet1.1 --epochs 1

Takes the flags of train.py. Prints the seconds of waiting and of the whole run.
"""

from __future__ import annotations

import sys
import time

from embedding_learning.cli import train
from embedding_learning.data.batches import BalancedBatches


def main() -> int:
    waited: list[float] = []
    next_batch = BalancedBatches.next

    def timed(self: BalancedBatches):
        started = time.perf_counter()
        batch = next_batch(self)
        waited.append(time.perf_counter() - started)
        return batch

    BalancedBatches.next = timed
    started = time.perf_counter()
    status = train.main()
    if waited:
        print(
            f"{len(waited)} batches: waited {sum(waited):.2f} s in all, at most {max(waited):.2f} "
            f"s for a batch, {sum(waited[1:]):.2f} s without the first; the run took "
            f"{time.perf_counter() - started:.1f} s"
        )
    return status


if __name__ == "__main__":
    sys.exit(main())
