"""The original example: its three unchanged files, without the package of this program.

    python -m tests.benchmarks.contenders.original --original PATH --model resnet18_v1 \
        --data-path FOLDER

PATH is the folder example/gluon/embedding_learning of apache/mxnet 1.9.1, which needs the package
bottleneck. Its `train` runs until enough steps are timed. While it is loaded, two things are
adapted:

- numpy gets the names again that MXNet looks up and that newer versions of numpy have removed.
- Its iterator has a fixed number of 100 training classes. If a data set has at most 100 classes in
  all, the images of the first half of the classes are divided among 100 lists: several lists share
  a class, but no image. So its own code decodes as many images as ever.
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
    make_parser,
)

# Names that MXNet's import looks up in numpy; removed in 1.24 or 2.0. The example needs none.
_REMOVED = (
    "bool PZERO NZERO NINF PINF NAN NaN Inf alltrue sometrue product round_ in1d msort trapz mirr "
    "npv pmt ppmt pv rate"
)


def restore_numpy() -> None:
    """Defines the removed names again."""
    for name in _REMOVED.split():
        if name not in vars(np):
            setattr(np, name, bool if name == "bool" else None)
    if int(np.__version__.split(".")[0]) >= 2:
        # MXNet's operators receive lists of numbers as text.
        np.set_printoptions(legacy="1.25")


def load_training(folder: Path, flags: list[str], clock: StepClock) -> ModuleType:
    """Loads its train.py with an iterator that ticks the clock at every batch."""
    sys.path.insert(0, str(folder))
    import data

    class TimedIter(data.CUB200Iter):
        def __init__(self, *args, **kwargs) -> None:
            super().__init__(*args, **kwargs)
            if not self.test_image_files:
                self.train_image_files = divide_files(self.train_image_files)

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


def divide_files(files_by_class: list[list[str]]) -> list[list[str]]:
    """Returns the files of the first half of the classes, divided among as many lists as before."""
    classes = [files for files in files_by_class if files]
    classes = classes[: len(classes) // 2]
    lists_per_class = -(-len(files_by_class) // len(classes))
    return [
        classes[number % len(classes)][number // len(classes) :: lists_per_class]
        for number in range(len(files_by_class))
    ]


def main() -> None:
    parser = make_parser(__doc__)
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
