"""Writes what a run measures for TensorBoard."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from embedding_learning.data.preprocessing import Pixels, center_square
from embedding_learning.errors import UsageError

# The projector's thumbnails are parts of one image of at most 8192 pixels a side, which a browser
# has to load.
_MOST_PROJECTED = 2000
_THUMBNAIL = 64  # pixels
_PROJECTION = "test_images"


class TensorBoard:
    """Writes scalars, histograms and a projection into a folder that TensorBoard reads.

    Parameters
    ----------
    folder : str
    step : int
        The step that the run starts or resumes from; TensorBoard no longer shows later ones.

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
            event_file_writer.EventsWriter = self._make_robust(library_events)
            self._writer = SummaryWriter(folder, purge_step=step + 1)
        except OSError as error:
            raise UsageError(f"--tensorboard {folder}: {error.strerror or error}") from None
        finally:
            event_file_writer.EventsWriter = library_events

    def scalars(self, group: str, step: int, values: Mapping[str, float]) -> None:
        """Adds a point to the curve of each name; `group` is the kind of record it comes from."""
        for name, value in values.items():
            # TensorBoard allows no @ in a name.
            self._writer.add_scalar(f"{group}/{name.replace('@', '_')}", value, step)

    def histograms(self, step: int, values: Mapping[str, np.ndarray]) -> None:
        """Adds a histogram for each name that has values."""
        for name, array in values.items():
            if not array.size:
                continue
            self._writer.add_histogram(name, array.astype(np.float32), step)

    def project(
        self,
        step: int,
        embeddings: np.ndarray,
        labels: np.ndarray,
        class_names: Sequence[str],
        pixels: Pixels,
    ) -> None:
        """Adds a projection of embeddings (n, d) with their classes and thumbnails.

        Of more than 2000 it shows a random choice. `labels` (n,) are indices into `class_names`.
        """
        # A resumed run repeats steps; tensorboardX would print a warning about the former folder.
        shutil.rmtree(Path(self._folder, f"{step:05d}", _PROJECTION), ignore_errors=True)
        count = len(embeddings)
        rows = np.random.default_rng(0).permutation(count)[:_MOST_PROJECTED]
        size = (_THUMBNAIL, _THUMBNAIL)
        images = [
            cv2.resize(center_square(pixels[row]), size, interpolation=cv2.INTER_AREA)
            for row in rows
        ]
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

    def _make_robust(self, events_writer: Any) -> type:
        """Returns a subclass of the library's event writer that survives a full disk.

        The library calls it in its own thread and at the end of the program. An error there would
        print a traceback, and the next call would wait for the dead thread forever.
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
        """Calls a function that writes, unless writing has failed before. Logs that failure."""
        if self._has_failed:
            return
        try:
            function(*args, **kwargs)
        except OSError as error:
            self._has_failed = True
            logging.warning(
                "--tensorboard %s: cannot be written to: %s; the run continues without it.",
                self._folder, error.strerror or error,
            )  # fmt: skip


def _one_line(name: str) -> str:
    """Returns the name of a class as one line of a table."""
    return "".join(char if char.isprintable() else " " for char in name)
