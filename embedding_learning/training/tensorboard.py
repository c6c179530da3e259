"""What a run measures, as TensorBoard shows it."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from embedding_learning.data.preprocessing import Pixels
from embedding_learning.errors import UsageError

# The projector's photographs are parts of one picture of at most 8192 pixels a side, which a
# browser has to hold.
_MOST_PROJECTED = 2000
_THUMBNAIL = 64  # pixels
_PROJECTION = "test_images"


class TensorBoard:
    """Writes scalars, histograms and a projection into a folder that TensorBoard reads.

    Parameters
    ----------
    folder : str
    step : int
        Where the run goes on; what the folder holds of later steps is no longer shown.

    Raises UsageError if the package is missing or the folder cannot be written to.
    """

    def __init__(self, folder: str, step: int) -> None:
        try:
            from tensorboardX import SummaryWriter, event_file_writer
        except ImportError:
            raise UsageError(
                f"--tensorboard {folder}: needs another package; pip install tensorboardX==2.6.5"
            ) from None
        self._folder = folder
        self._has_failed = False
        library_events = event_file_writer.EventsWriter
        try:
            event_file_writer.EventsWriter = self._lasting(library_events)
            self._writer = SummaryWriter(folder, purge_step=step + 1)
        except OSError as error:
            raise UsageError(f"--tensorboard {folder}: {error.strerror or error}") from None
        finally:
            event_file_writer.EventsWriter = library_events

    def scalars(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """A curve for each name, under the kind of record they come from."""
        for name, value in values.items():
            # An @ is no letter of a name there.
            self._writer.add_scalar(f"{kind}/{name.replace('@', '_')}", value, step)

    def histograms(self, step: int, values: Mapping[str, np.ndarray]) -> None:
        """A histogram for each name."""
        for name, array in values.items():
            self._writer.add_histogram(name, array.astype(np.float32), step)

    def project(
        self,
        step: int,
        embeddings: np.ndarray,
        labels: np.ndarray,
        class_names: Sequence[str],
        pixels: Pixels,
    ) -> None:
        """Embeddings (n, d) with their classes and thumbnails; of very many, some at random.

        `labels` (n,) are rows of `class_names`.
        """
        # A run that was killed comes to a step again; tensorboardX prints a warning if it is there.
        shutil.rmtree(Path(self._folder, f"{step:05d}", _PROJECTION), ignore_errors=True)
        count = len(embeddings)
        rows = np.random.default_rng(0).permutation(count)[:_MOST_PROJECTED]
        size = (_THUMBNAIL, _THUMBNAIL)
        images = [cv2.resize(pixels[row], size, interpolation=cv2.INTER_AREA) for row in rows]
        # (n, size, size, 3) -> (n, 3, size, size), from 0 to 1
        thumbnails = np.stack(images).transpose(0, 3, 1, 2).astype(np.float32) / 255
        self._write(
            self._writer.add_embedding,
            embeddings[rows],
            metadata=[_one_line(class_names[int(label)]) for label in labels[rows]],
            label_img=thumbnails,
            global_step=step,
            tag=_PROJECTION,
        )

    def close(self) -> None:
        self._writer.close()

    def _lasting(self, events_writer: Any) -> type:
        """The library's writer of events, which now outlives a disk that is full.

        The library calls it in a thread of its own, and at the end of the program: an error there
        would be a traceback, and what is given to a dead thread waits for ever.
        """
        write = self._write

        class Events(events_writer):
            def write_event(self, event: Any) -> None:
                write(super().write_event, event)

            def flush(self) -> None:
                write(super().flush)

            def close(self) -> None:
                write(super().close)

        return Events

    def _write(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """Calls what writes, unless writing has failed before; says so once when it does."""
        if self._has_failed:
            return
        try:
            function(*args, **kwargs)
        except OSError as error:
            self._has_failed = True
            logging.warning(
                "--tensorboard %s: cannot be written to any more: %s; the run goes on without it.",
                self._folder, error.strerror or error,
            )  # fmt: skip


def _one_line(name: str) -> str:
    """A class's name as it can stand in a table of one line each."""
    return "".join(char if char.isprintable() else " " for char in name)
