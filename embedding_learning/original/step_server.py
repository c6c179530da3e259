"""The original, step by step: `python -m embedding_learning.original.step_server SETTINGS`.

A process of its own. Its `train` runs as it is, and asks for a batch at each step: there it tells
of the step before, and waits for the next batch, which comes with the negatives to be drawn or
else with none. SETTINGS is a JSON file; batches and answers are .npz files beside it, a line on
the standard input or output tells that one is there.
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
    """No further batch will come."""


class _Stepper:
    """Stands for the original's training iterator, and draws its negatives.

    Parameters
    ----------
    folder : Path
        Where batches and answers are.
    output : text file
        Where it is told that an answer is there.
    """

    def __init__(self, folder: Path, output: Any) -> None:
        self._folder = folder
        self._output = output
        self._draw = np.random.choice
        self._given: list[np.ndarray] = []
        self._drawn: list[np.ndarray] = []
        self._losses: list[mx.nd.NDArray] = []
        self._steps = 0
        self.training: ModuleType | None = None

    def next(self) -> mx.io.DataBatch:
        """The next batch, once the step before is answered for."""
        if self._steps:
            self._answer()
        if not sys.stdin.readline():
            raise _Done
        with np.load(self._folder / BATCH, allow_pickle=False) as batch:
            data, labels = mx.nd.array(batch["data"]), mx.nd.array(batch["labels"])
            self._given = list(batch["negatives"])
            seed = int(batch["seed"])
        self._drawn, self._losses = [], []
        self._steps += 1
        # Dropout's masks are drawn from here on.
        mx.random.seed(seed)
        return mx.io.DataBatch(data=[data], label=[labels])

    def choice(self, *args: Any, **settings: Any) -> np.ndarray:
        """In place of numpy.random.choice: an anchor's negatives."""
        drawn = self._given.pop(0) if self._given else self._draw(*args, **settings)
        self._drawn.append(drawn)
        return drawn

    def seen(self, loss: Any) -> Any:
        """The original's loss class, whose values are kept."""

        def create(**settings: Any) -> Any:
            compute = loss(**settings)

            def computed(*args: Any) -> mx.nd.NDArray:
                self._losses.append(compute(*args))
                return self._losses[-1]

            return computed

        return create

    def _answer(self) -> None:
        """Tells of the step that was made."""
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
        answer["negatives"] = np.array(self._drawn)
        np.savez(self._folder / ANSWER, **answer)
        print("answered", file=self._output, flush=True)


def main() -> None:
    """Trains with the batches that come, until none does."""
    settings_file = Path(sys.argv[1])
    settings = json.loads(settings_file.read_text(encoding="utf-8"))
    # What the original prints does not belong to the conversation.
    output, sys.stdout = sys.stdout, sys.stderr
    stepper = _Stepper(settings_file.parent, output)
    numbers = source.Numbers(*settings["numbers"])
    iterators = lambda *_: (stepper, None)  # noqa: E731
    training = source.load(Path(settings["original"]), settings["flags"], numbers, iterators)
    stepper.training = training
    training.net.load_parameters(settings["parameters"], ctx=training.context)
    vars(training)["MarginLoss"] = stepper.seen(training.MarginLoss)
    vars(np.random)["choice"] = stepper.choice
    # It initializes what is there already, which Gluon leaves as it is.
    warnings.filterwarnings("ignore", ".*already initialized", UserWarning)
    with suppress(_Done):
        training.train(1, training.context)


if __name__ == "__main__":
    main()
