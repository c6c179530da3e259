"""This program: the whole run of train.py, with its log, its checkpoint and its store of pixels.

    python -m tests.benchmarks.contenders.here --model resnet18_v1 --data-path FOLDER

Nothing in it is changed but that the training batches are timed when they are asked for.
"""

from __future__ import annotations

import tempfile
from contextlib import suppress

from embedding_learning.cli.train_flags import parse
from embedding_learning.data.batches import BalancedBatches
from embedding_learning.training import loop, run
from tests.benchmarks.contenders.protocol import (
    BATCH_K,
    Done,
    StepClock,
    arguments,
)

# isort: split
import mxnet as mx


def main() -> None:
    args = arguments(__doc__).parse_args()
    clock = StepClock(args.steps, mx.nd.waitall, ahead=loop._BATCHES_QUEUED)
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
