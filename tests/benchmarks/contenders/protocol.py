"""What every contender of against_others receives and prints. Imports neither MXNet nor PyTorch.

A contender is a program. It trains from random weights until enough steps are timed, and prints one
line of JSON as the last line of its standard output.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

BATCH_K, DIMENSION, CROP = 5, 128, 224
# Steps before the timed ones. The clock waits after the first step; from the third step on, the
# loop runs evenly.
_WARMUP = 2
# The numbers of test images and of their classes in CUB-200-2011.
TEST_IMAGES, TEST_CLASSES = 5924, 100


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """Returns a parser of the flags that every contender has."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--data-path", required=True)
    parser.add_argument("--batch-size", type=int, default=70)
    parser.add_argument("--steps", type=int, default=3, help="timed steps")
    return parser


class Done(Exception):
    """Enough steps are timed."""


class StepClock:
    """Times the steps of a training loop, each from one request of a batch to the next request.

    In a loop that runs evenly this is the time of a whole step, even if steps overlap. A delay
    moves time from one step to another, but does not change the mean.

    Parameters
    ----------
    steps : int
        The number of timed steps.
    wait : function
        Blocks until all queued computations are done. Called once, to find the end of the first
        step.
    ahead : int
        How many batches the loop requests before it has computed the step of the current one.
    """

    def __init__(self, steps: int, wait: Callable[[], object], ahead: int = 0) -> None:
        self._warmup = _WARMUP + ahead
        self._steps = steps
        self._wait = wait
        self._stamps: list[float] = []
        self._result: dict[str, object] = {}

    def tick(self) -> None:
        """Notes that the loop requests a batch. Raises Done if enough steps are timed."""
        if len(self._stamps) == 1:
            self._wait()
            self._result["first_step_at"] = time.time()
        self._stamps.append(time.perf_counter())
        if len(self._stamps) <= self._warmup + self._steps:
            return
        timed = self._stamps[self._warmup :]
        self._result["seconds"] = [end - start for start, end in zip(timed, timed[1:])]
        self._result["peak_mb"] = _peak_memory("self")
        # Pages that a process shares with its parent count in both.
        workers = multiprocessing.active_children()
        self._result["workers_mb"] = sum(_peak_memory(str(worker.pid)) for worker in workers)
        raise Done

    def print_result(self, **more: object) -> None:
        """Prints the seconds of each step, the time of the first step's end, and memory in MB."""
        print(json.dumps({**self._result, **more}), flush=True)


def _peak_memory(process: str) -> float:
    """Returns the peak memory of a process in MB, pages of mapped files included."""
    status = Path(f"/proc/{process}/status").read_text(encoding="ascii")
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1e3


def embeddings(n: int) -> np.ndarray:
    """Returns unit rows (n, DIMENSION) with distances below and above 1.4, as in training."""
    rng = np.random.default_rng(0)
    rows = 0.5 * rng.normal(size=DIMENSION) + rng.normal(size=(n, DIMENSION))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
