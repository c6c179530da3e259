"""What every contender of against_others is told and prints; knows neither MXNet nor PyTorch.

A contender is a program of its own: it trains with random initial weights until enough steps are
timed, and prints one line of JSON as the last of its standard output.
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
# Steps before the timed ones. The clock waits after the first; by the third all goes on evenly.
_WARMUP = 2
# The test images of CUB-200-2011, and their classes.
TEST_IMAGES, TEST_CLASSES = 5924, 100


def arguments(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--data-path", required=True)
    parser.add_argument("--batch-size", type=int, default=70)
    parser.add_argument("--steps", type=int, default=3, help="steps that are timed")
    return parser


class Done(Exception):
    """Enough steps are timed."""


class StepClock:
    """Times the steps of a training loop from where it asks for its next batch.

    A step lasts from one such moment to the next: in a loop that goes on evenly that is a whole
    step, whatever of it overlaps with the next one. A delay shifts time from one step to another;
    the mean stays.

    Parameters
    ----------
    steps : int
        How many are timed.
    wait : function
        Returns when all is computed that was begun; called once, for the end of the first step.
    ahead : int
        How many batches the loop asks for before the step of the one it has is computed.
    """

    def __init__(self, steps: int, wait: Callable[[], object], ahead: int = 0) -> None:
        self._warmup = _WARMUP + ahead
        self._steps = steps
        self._wait = wait
        self._stamps: list[float] = []
        self._result: dict[str, object] = {}

    def tick(self) -> None:
        """The loop asks for a batch; raises Done if enough steps are timed."""
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
        """Seconds of each step, the time of day when the first ended, peak memory in MB."""
        print(json.dumps({**self._result, **more}), flush=True)


def _peak_memory(process: str) -> float:
    """Of a process, in MB: pages of mapped files included."""
    status = Path(f"/proc/{process}/status").read_text(encoding="ascii")
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1e3


def embeddings(n: int) -> np.ndarray:
    """Unit rows (n, DIMENSION) whose distances spread to both sides of 1.4, as in training."""
    rng = np.random.default_rng(0)
    rows = 0.5 * rng.normal(size=DIMENSION) + rng.normal(size=(n, DIMENSION))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
