"""Runs the original step by step: `python -m embedding_learning.original.step_server SETTINGS`.

The original's `train` runs unchanged. When it asks its iterator for a batch, this process writes
the answer about the step before, and waits for the next batch. With a batch may come the negatives
to use; without them the original samples its own. SETTINGS is a JSON file. Batches and answers are
.npz files next to it. A line on the standard input says that a batch has been written, a line on
the standard output that an answer has.
"""

from __future__ import annotations

import json
import sys
import warnings
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import mxnet as mx
import numpy as np

from embedding_learning.original import source
from embedding_learning.original.compare_arrays import gradient_norm, read_values

BATCH, ANSWER = "batch.npz", "answer.npz"


class _Done(Exception):
    """Ends the training: there is no further batch."""


class _Stepper:
    """Replaces the original's training iterator and its sampling of negatives.

    Parameters
    ----------
    folder : Path
        The folder of batches and answers.
    output : text file
        Receives a line for each answer.
    """

    def __init__(self, folder: Path, output: Any) -> None:
        self._folder = folder
        self._output = output
        self._sample = np.random.choice
        self._given: list[np.ndarray] = []
        self._sampled: list[np.ndarray] = []
        self._losses: list[mx.nd.NDArray] = []
        self._steps = 0
        self.training: ModuleType | None = None

    def next(self) -> mx.io.DataBatch:
        """Answers for the step before, then returns the next batch. Blocks until it is there."""
        if self._steps:
            self._answer()
        if not sys.stdin.readline():
            raise _Done
        with np.load(self._folder / BATCH, allow_pickle=False) as batch:
            data, labels = mx.nd.array(batch["data"]), mx.nd.array(batch["labels"])
            self._given = list(batch["negatives"])
            seed = int(batch["seed"])
        self._sampled, self._losses = [], []
        self._steps += 1
        # For the masks of dropout.
        mx.random.seed(seed)
        return mx.io.DataBatch(data=[data], label=[labels])

    def choice(self, *args: Any, **settings: Any) -> np.ndarray:
        """Replaces numpy.random.choice: returns the negatives of the next anchor."""
        negatives = self._given.pop(0) if self._given else self._sample(*args, **settings)
        self._sampled.append(negatives)
        return negatives

    def record(self, loss: Any) -> Any:
        """Returns the original's loss class, with all computed losses recorded."""

        def create(**settings: Any) -> Any:
            compute = loss(**settings)

            def compute_and_record(*args: Any) -> mx.nd.NDArray:
                self._losses.append(compute(*args))
                return self._losses[-1]

            return compute_and_record

        return create

    def _answer(self) -> None:
        """Writes the answer about the step that was computed."""
        assert self.training
        mx.nd.waitall()
        net, beta = self.training.net, self.training.beta
        parameters = net._collect_params_with_prefix()
        answer: dict[str, Any] = {
            f"network/{name}": array for name, array in read_values(parameters).items()
        }
        if self.training.opt.lr_beta > 0:
            answer["beta"] = read_values({"beta": beta})["beta"]
        loss = sum(float(loss.mean().asscalar()) for loss in self._losses)
        answer["scalars"] = np.array([loss, gradient_norm(parameters.values())])
        answer["negatives"] = np.array(self._sampled)
        np.savez(self._folder / ANSWER, **answer)
        print("answered", file=self._output, flush=True)


def main() -> None:
    """Trains with the batches that arrive, until there are no more."""
    settings_file = Path(sys.argv[1])
    settings = json.loads(settings_file.read_text(encoding="utf-8"))
    # The standard output is for answers only, so the original prints to the error output.
    output, sys.stdout = sys.stdout, sys.stderr
    stepper = _Stepper(settings_file.parent, output)
    numbers = source.Numbers(*settings["numbers"])
    iterators = lambda *_: (stepper, None)  # noqa: E731
    training = source.load(Path(settings["original"]), settings["flags"], numbers, iterators)
    stepper.training = training
    training.net.load_parameters(settings["parameters"], ctx=training.context)
    vars(training)["MarginLoss"] = stepper.record(training.MarginLoss)
    vars(np.random)["choice"] = stepper.choice
    # It initializes parameters that have values. Gluon warns of that and keeps the values.
    warnings.filterwarnings("ignore", ".*already initialized", UserWarning)
    with suppress(_Done):
        training.train(1, training.context)


if __name__ == "__main__":
    main()
