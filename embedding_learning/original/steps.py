"""Compares this program with the original, step by step, with the same weights and batches."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import mxnet as mx
import numpy as np
from mxnet import gluon

from embedding_learning.config import TrainConfig
from embedding_learning.data.build import open_data, read_split
from embedding_learning.model.sampling import DistanceWeightedSampling
from embedding_learning.model.weights.params_file import save_parameters
from embedding_learning.original import processes
from embedding_learning.original.compare_arrays import (
    ArrayDifference,
    find_largest_difference,
    gradient_norm,
    read_values,
    relative_difference,
)
from embedding_learning.original.step_server import ANSWER, BATCH
from embedding_learning.runtime.devices import find_devices
from embedding_learning.training.build import build, build_network
from embedding_learning.training.learner import Learner
from embedding_learning.training.schedule import set_learning_rates


class State(NamedTuple):
    """The state of a program after a step.

    Attributes
    ----------
    loss : float
        The loss of the step.
    gradient_norm : float
        The norm of the network's gradients, not divided by the batch size.
    network : dict of ndarray
        The parameters and running statistics by name, after the step.
    beta : dict of ndarray
        The values of beta; empty if beta is a constant.
    """

    loss: float
    gradient_norm: float
    network: Mapping[str, np.ndarray]
    beta: Mapping[str, np.ndarray]


class Difference(NamedTuple):
    """The differences between two programs after a step, relative to the first program."""

    loss: float
    gradient_norm: float
    network: ArrayDifference
    beta: float


class Step(NamedTuple):
    """A step of both programs. `control` is the difference of the original to its second run."""

    number: int
    original: State
    here: State
    difference: Difference
    control: Difference | None


class GivenNegatives(DistanceWeightedSampling):
    """Replaces the sampling by negatives that are given.

    Parameters
    ----------
    batch_k : int
    count : int
        The number of negatives in a per-device batch.
    """

    def __init__(self, batch_k: int, count: int) -> None:
        super().__init__(batch_k)
        with self.name_scope():
            self.given = self.params.get("given", shape=(count,), init="zeros", grad_req="null")

    def give(self, rows: np.ndarray) -> None:
        """Sets the negatives of the next step, (devices * count,): rows of the per-device batch."""
        devices = self.given.list_data()
        for data, part in zip(devices, np.split(rows.astype(np.float32), len(devices))):
            data[:] = part

    def hybrid_forward(self, F: Any, x: Any, given: Any = None) -> tuple[Any, ...]:
        row, row_class = self._rows(F, x)
        anchor_rows = F.repeat(row, repeats=self._batch_k - 1)
        positive_rows = F.reshape(self._positive_rows(F, row, row_class), (-1,))
        triplets = (F.take(x, rows) for rows in (anchor_rows, positive_rows, given))
        return (anchor_rows, *triplets, x)


class _Original:
    """The process of the original, and the folder of its batches and answers."""

    def __init__(self, name: str, folder: Path, process: subprocess.Popen[str]) -> None:
        self._name = name
        self._folder = folder
        self._process = process

    def step(
        self, number: int, data: np.ndarray, labels: np.ndarray, seed: int, negatives: np.ndarray
    ) -> tuple[State, np.ndarray]:
        """Runs a step. Returns the state after it and the sampled negatives (n, batch_k - 1).

        Blocks. Raises TrainingError if the process ends.
        """
        np.savez(self._folder / BATCH, data=data, labels=labels, seed=seed, negatives=negatives)
        try:
            print("step", file=self._process.stdin, flush=True)
            answered = bool(self._process.stdout and self._process.stdout.readline())
        except BrokenPipeError:
            answered = False
        if not answered:
            self._process.wait()
            output = (self._folder / "errors").read_text(encoding="utf-8", errors="replace")
            raise processes.create_error(self._name, f"at step {number}", output)
        with np.load(self._folder / ANSWER, allow_pickle=False) as answer:
            arrays = dict(answer)
        network = {name[8:]: a for name, a in arrays.items() if name.startswith("network/")}
        beta = {"beta": arrays["beta"]} if "beta" in arrays else {}
        loss, norm = arrays["scalars"].tolist()
        state = State(loss, norm, network, beta)
        return state, arrays["negatives"]


def compare(config: TrainConfig, path: Path, steps: int, with_control: bool) -> Iterator[Step]:
    """Runs both programs and yields each step when both have computed it.

    The first weights of the network and the batches are this program's: the original receives the
    pixels as this program's network normalizes them. The negatives are those that the original
    samples. With a control the original runs a second time, with another number of threads.

    Raises
    ------
    UsageError, DataError
        If flags and data do not fit.
    TrainingError
        If the original fails.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="compare-original-")))
        devices = find_devices(config.devices.gpus, config.devices.cpu_contexts)
        split = read_split(config)
        mx.random.seed(config.run.seed)
        net = build_network(config, devices)
        assert net.preprocess
        save_parameters(net, str(folder / "first.params"))
        data = open_data(split, config)
        stack.callback(data.close)
        # Queued operations still read the memory of the batches.
        stack.callback(mx.nd.waitall)
        learner = build(config, data.beta_terms, net, devices)
        count = config.batch.total // len(devices) * (config.batch.batch_k - 1)
        given = learner.sampling = GivenNegatives(config.batch.batch_k, count)
        given.given.initialize(ctx=devices)
        given.hybridize(static_alloc=True, static_shape=True)
        learner.start()
        set_learning_rates(config, learner, 0)

        def start(name: str, environment: Mapping[str, str]) -> _Original:
            own_folder = folder / name.replace(" ", "_")
            own_folder.mkdir()
            settings = processes.write_settings(
                own_folder / "settings.json",
                original=str(path),
                flags=processes.flags(config, own_folder, own_folder / "model"),
                # One batch more than there will be, so that its first epoch does not end.
                numbers=processes.numbers(config.data, len(data.beta_terms), steps + 1),
                parameters=str(folder / "first.params"),
            )
            errors = stack.enter_context(open(own_folder / "errors", "w", encoding="utf-8"))
            pipes: dict[str, Any] = {
                "stdin": subprocess.PIPE,
                "stdout": subprocess.PIPE,
                "stderr": errors,
            }
            process = processes.start_process("step_server", settings, environment, **pipes)
            return _Original(name, own_folder, stack.enter_context(process))

        original = start("the original", {})
        second = start("the original again", _other_threads()) if with_control else None
        for number in range(1, steps + 1):
            batch = data.train.next()
            seed = step_seed(config.run.seed, number)
            inputs = (
                net.preprocess(batch.data[0].as_in_context(devices[0])).asnumpy(),
                batch.label[0].asnumpy(),
                seed,
            )
            theirs, negatives = original.step(number, *inputs, np.empty((0, 0), np.int64))
            again = second.step(number, *inputs, negatives)[0] if second else None
            given.give(negatives.ravel())
            mx.random.seed(seed)
            ours = _step(learner, batch)
            control = compute_difference(theirs, again) if again else None
            yield Step(number, theirs, ours, compute_difference(theirs, ours), control)


def step_seed(seed: int, number: int) -> int:
    """Returns the seed of MXNet's random numbers in a step: the masks of dropout."""
    return int(np.random.SeedSequence((seed, number)).generate_state(1)[0] >> 1)


def compute_difference(first: State, second: State) -> Difference:
    """Returns the differences of the second state to the first."""
    return Difference(
        relative_difference(first.loss, second.loss),
        relative_difference(first.gradient_norm, second.gradient_norm),
        find_largest_difference(first.network, second.network),
        find_largest_difference(first.beta, second.beta).value if first.beta else 0.0,
    )


def _step(learner: Learner, batch: mx.io.DataBatch) -> State:
    """Runs a step of this program. Returns the state after it."""
    step = learner.step(batch)
    mx.nd.waitall()
    parameters = learner.net._collect_params_with_prefix()
    learned = isinstance(learner.parameter, gluon.Parameter)
    return State(
        step.loss,
        gradient_norm(parameters.values()),
        read_values(parameters),
        read_values({"beta": learner.parameter}) if learned else {},
    )


def _other_threads() -> dict[str, str]:
    """Returns variables for another number of threads, which adds up numbers in another order."""
    return {"OMP_NUM_THREADS": "2" if os.environ.get("OMP_NUM_THREADS") == "1" else "1"}
