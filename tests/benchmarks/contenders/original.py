"""The original example: its three files as they are, without this program's package.

    python -m tests.benchmarks.contenders.original --original PATH --model resnet18_v1 \
        --data-path FOLDER

PATH is the folder example/gluon/embedding_learning of apache/mxnet 1.9.1. Its `train` runs until
enough steps are timed. Two things are arranged around it, and no file is changed:

- numpy gets back the names that MXNet looks up and that today's numpy has removed.
- Its iterator has 100 training classes written into it. Of a data set that has no more than 100
  classes in all, the first half is taken, and their images are dealt out to the 100 places: several
  places share a class, but no image. So as many images are decoded as ever, by its own code.
"""

from __future__ import annotations

import importlib.util
import sys
from contextlib import suppress
from pathlib import Path
from types import ModuleType

import numpy as np

from tests.benchmarks.contenders.protocol import (
    BATCH_K,
    Done,
    StepClock,
    arguments,
)

# What MXNet's import looks up in numpy, removed in 1.24 or in 2.0; the example uses none of them.
_REMOVED = (
    "bool PZERO NZERO NINF PINF NAN NaN Inf alltrue sometrue product round_ in1d msort trapz mirr "
    "npv pmt ppmt pv rate"
)


def restore_numpy() -> None:
    for name in _REMOVED.split():
        if name not in vars(np):
            setattr(np, name, bool if name == "bool" else None)
    if int(np.__version__.split(".")[0]) >= 2:
        # MXNet's operators take lists of numbers as text.
        np.set_printoptions(legacy="1.25")


def load_training(folder: Path, flags: list[str], clock: StepClock) -> ModuleType:
    """Its train.py, whose iterator tells the clock of every batch."""
    sys.path.insert(0, str(folder))
    import data

    class TimedIter(data.CUB200Iter):
        def __init__(self, *args, **kwargs) -> None:
            super().__init__(*args, **kwargs)
            if not self.test_image_files:
                self.train_image_files = deal_out(self.train_image_files)

        def next(self):
            clock.tick()
            return super().next()

    def cub200_iterator(*args) -> tuple[TimedIter, TimedIter]:
        return TimedIter(*args, is_train=True), TimedIter(*args, is_train=False)

    data.cub200_iterator = cub200_iterator
    sys.argv = ["train.py", *flags]
    spec = importlib.util.spec_from_file_location("original_train", folder / "train.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def deal_out(files_by_place: list[list[str]]) -> list[list[str]]:
    """The files of the first half of the classes, dealt out to all places."""
    classes = [files for files in files_by_place if files]
    classes = classes[: len(classes) // 2]
    shares = -(-len(files_by_place) // len(classes))
    return [
        classes[place % len(classes)][place // len(classes) :: shares]
        for place in range(len(files_by_place))
    ]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--original", type=Path, required=True)
    args = parser.parse_args()
    restore_numpy()
    import mxnet as mx

    clock = StepClock(args.steps, mx.nd.waitall)
    flags = [
        f"--data-path={args.data_path}",
        f"--model={args.model}",
        f"--batch-size={args.batch_size}",
        f"--batch-k={BATCH_K}",
    ]
    training = load_training(args.original, flags, clock)
    with suppress(Done):
        training.train(training.opt.epochs, training.context)
    clock.print_result()


if __name__ == "__main__":
    main()
