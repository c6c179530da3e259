"""The records of a run: what it measured, as JSON lines that other programs can read."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from embedding_learning.errors import DataError
from embedding_learning.evaluation import pair_distances
from embedding_learning.runtime.atomic_files import atomic_write
from embedding_learning.training.run_folder import RECORDS
from embedding_learning.training.tensorboard import TensorBoard

_RUN = "run.json"


class Recorder:
    """Writes what a run measures, one JSON object a line.

    Each has `kind` ("interval", "distances", "evaluation"), `epoch` (counted from 0; None for the
    evaluation before training), `batch` (batches of the epoch that are done), `seconds` (of
    training and evaluating since the run began), and what was measured.

    Parameters
    ----------
    folder : Path
        The run's folder.
    size : int
        Bytes of the file that belong to the run. The rest, written after the checkpoint that the
        run resumes from, is cut off.
    seconds : float
        Time that the run has taken so far.
    board : TensorBoard, optional
        Shows the same.
    """

    def __init__(self, folder: Path, size: int, seconds: float, board: TensorBoard | None) -> None:
        self._board = board
        self.folder = folder
        self._path = folder / RECORDS
        self._file = open(self._path, "a+b")  # noqa: SIM115
        self._cut_to(size)
        self._started = time.perf_counter() - seconds
        self.begin_interval()

    def _cut_to(self, size: int) -> None:
        """Cuts the file to so many bytes; logs if it has fewer, and then keeps its whole lines."""
        found = self._file.tell()
        if found < size:
            logging.warning(
                "%s: records are missing: it has %d bytes of the run, not %d.",
                self._path, found, size,
            )  # fmt: skip
            self._file.seek(0)
            size = self._file.read().rfind(b"\n") + 1
        self._file.truncate(size)
        self._file.seek(0, os.SEEK_END)

    @property
    def seconds(self) -> float:
        """Seconds since the run began, without the time between a stop and its resumption."""
        return time.perf_counter() - self._started

    def begin_interval(self) -> None:
        """Starts a logging interval: the waiting time and the speed count from here."""
        self._interval_started = time.perf_counter()
        self._waited = 0.0
        self._batches = 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time within as time that the trainer waits for a batch."""
        self._batches += 1
        started = time.perf_counter()
        yield
        self._waited += time.perf_counter() - started

    def interval(
        self,
        epoch: int,
        batch: int,
        step: int,
        batch_size: int,
        values: dict[str, float],
        distances: dict[str, np.ndarray],
    ) -> None:
        """Records a logging interval, with its images a second and fraction of time spent waiting.

        `distances` are those of the pairs of its last batch.
        """
        seconds = time.perf_counter() - self._interval_started
        speed = {
            "images_per_second": round(self._batches * batch_size / seconds, 2),
            "waiting_share": round(self._waited / seconds, 5),
        }
        self._write("interval", epoch, batch, step, {**values, **speed})
        if self._board:
            self._board.histograms(step, distances)
        self.begin_interval()

    def distances(
        self,
        epoch: int,
        batch: int,
        dimension: int,
        cutoffs: Sequence[float],
        distances: dict[str, np.ndarray],
    ) -> None:
        """Records histograms of the distances of the pairs of a logging interval's last batch.

        They count in 80 equal bins of [0, 2]: `negatives`, all pairs of different class, each once;
        `drawn`, the sampled ones, and `positives`, both for each anchor. The record also holds the
        embedding's `dimension` and the sampling's `cutoffs`, which may be empty.
        """
        histograms = {
            name: pair_distances.histogram(distances[source])
            for name, source in (
                ("negatives", "all_negative_distances"),
                ("drawn", "negative_distances"),
                ("positives", "positive_distances"),
            )
        }
        values = {"dimension": dimension, "cutoffs": list(cutoffs), **histograms}
        self._append("distances", epoch, batch, values)

    def evaluation(
        self, epoch: int | None, batch: int, step: int, metrics: dict[str, float]
    ) -> None:
        """Records the metrics of the test images; `epoch` is None before training."""
        self._write("evaluation", epoch, batch, step, metrics)

    def _write(
        self, kind: str, epoch: int | None, batch: int, step: int, values: dict[str, float]
    ) -> None:
        # JSON has no numbers that are not finite.
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._append(kind, epoch, batch, finite)
        if self._board:
            self._board.scalars(kind, step, values)

    def _append(self, kind: str, epoch: int | None, batch: int, values: Mapping[str, Any]) -> None:
        """Writes one line."""
        record = {"kind": kind, "epoch": epoch, "batch": batch, "seconds": round(self.seconds, 3)}
        self._file.write(json.dumps({**record, **values}).encode() + b"\n")

    def flush(self) -> int:
        """Writes everything to the disk; returns the size of the file."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def write_again(self) -> None:
        """Continues in a new file of the same name after the former one was removed."""
        self.flush()
        self._file.seek(0)
        written = self._file.read()
        self._file.close()
        self._file = open(self._path, "a+b")  # noqa: SIM115
        self._file.write(written)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        # `flush` has reported the error of a full disk already.
        with suppress(OSError):
            self._file.close()
        if self._board:
            self._board.close()


@dataclass(frozen=True)
class RunInfo:
    """The origin of a run: the content of ``run.json`` in its folder.

    Attributes
    ----------
    arguments : list of str
        The flags as they were typed.
    title : str
        The data set, and which part of each image is used.
    made_with : dict of str to str
        Versions of packages, and the number of threads.
    """

    arguments: list[str]
    title: str
    made_with: dict[str, str]

    def write(self, folder: Path) -> None:
        """Writes the file atomically; raises OSError if it cannot."""
        content = {"arguments": self.arguments, "data": self.title, "made_with": self.made_with}
        with atomic_write(folder / _RUN) as partial, open(partial, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=1)

    @classmethod
    def read(cls, folder: Path) -> RunInfo:
        """Reads the file of a run's folder. Raises DataError if it is missing or damaged."""
        file = folder / _RUN
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            info = cls(content["arguments"], content["data"], content["made_with"])
            texts = [info.title, *info.arguments, *info.made_with.values()]
            is_valid = all(isinstance(text, str) for text in texts)
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            is_valid = False
        if not is_valid:
            raise DataError(f"{file}: is missing or damaged; this is not the folder of a run")
        return info


def read(folder: Path) -> list[dict[str, Any]]:
    """Returns a run's records, in the order of writing. Raises DataError if they cannot be read.

    A last line that is cut off, since the run was killed, is left out.
    """
    file = folder / RECORDS
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"{file}: cannot be read: {reason}; name the folder of a run") from None
    except UnicodeDecodeError:
        raise DataError(f"{file}: is no text; the file was changed") from None
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if isinstance(record, dict):
            records.append(record)
        elif number < len(lines):
            raise DataError(f"{file}:{number}: is not a JSON object; the file was changed")
    return records
