"""This program: a whole run of train.py with its log lines, its checkpoint and its pixel cache.

    python -m tests.benchmarks.contenders.here --model resnet18_v1 --data-path FOLDER

The program is unchanged, except that the time is taken when it asks for a training batch.
"""

from __future__ import annotations

import tempfile
from contextlib import suppress

from embedding_learning.cli.train_flags import parse
from embedding_learning.data.batches import BalancedBatches
from embedding_learning.training import run, step_reader
from tests.benchmarks.contenders.protocol import (
    BATCH_K,
    Done,
    StepClock,
    make_parser,
)

# isort: split
import mxnet as mx


def main() -> None:
    args = make_parser(__doc__).parse_args()
    clock = StepClock(args.steps, mx.nd.waitall, ahead=step_reader._STEPS_QUEUED)
    next_batch = BalancedBatches.next

    def timed(self: BalancedBatches) -> mx.io.DataBatch:
        clock.tick()
        return next_batch(self)

    BalancedBatches.next = timed
    with tempfile.TemporaryDirectory() as folder, suppress(Done):
        flags = [
            f"--data-path={args.data_path}",
            f"--model={args.model}",
            f"--batch-size={args.batch_size}",
            f"--batch-k={BATCH_K}",
            f"--save-model-prefix={folder}/model",
        ]
        run.run(parse(flags), flags)
    clock.print_result()


if __name__ == "__main__":
    main()
