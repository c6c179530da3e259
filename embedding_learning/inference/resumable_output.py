"""Embeddings that are being computed: on the disk as they come, so that a kill costs seconds.

The vectors stand in FILE.npy.partial, which becomes FILE.npy in the end. FILE.npy.partial.json
tells how many of them have reached the disk, and of which model and images they are.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

from embedding_learning.errors import UsageError
from embedding_learning.inference.embedding_file import (
    HEADER_BYTES,
    check_csv,
    csv_path,
    npy_header,
    write_csv,
    write_digest,
)
from embedding_learning.runtime.atomic_files import atomic_write

_SECONDS_BETWEEN_SAVES = 10


def check_output(path: str) -> None:
    """Raises UsageError if embeddings cannot be written there; nothing is written."""
    folder = os.path.dirname(path) or os.curdir
    if not path.endswith(".npy"):
        raise UsageError(f"--output {path}: end the name in .npy")
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK):
        raise UsageError(
            f"--output {path}: the folder {folder} is not there or cannot be written to; create it "
            "first"
        )
    if os.path.isdir(path):
        raise UsageError(f"--output {path}: is a folder; name a file")
    try:
        # It may be the list of a data set.
        check_csv(csv_path(path))
    except UsageError as error:
        raise UsageError(
            f"--output {path}: {csv_path(path)} would be overwritten, which is no list of "
            "embeddings; name another"
        ) from error


class ResumableOutput:
    """The unfinished file of some embeddings, held by one process at a time.

    Use it in a `with` statement. What was appended is kept, whatever ends the block; if that is
    nothing, no file is left.

    Parameters
    ----------
    output : str
        The .npy file that it becomes.
    identity : str
        Of the model and the images. What was begun with another one is not gone on with.
    dimension : int
    overwrite : bool
        Whether unfinished embeddings of another identity may be given up. Finished ones are
        replaced in the end.

    Attributes
    ----------
    done : int
        Images that are embedded or left out.
    left_out : list of int
        Which of these have no vector, ascending.

    Raises
    ------
    UsageError
        If `check_output` does, other embeddings were begun there, or another process writes them.
    OSError
        If the disk does not do what it should.
    """

    def __init__(self, output: str, identity: str, dimension: int, overwrite: bool) -> None:
        check_output(output)
        self._output = output
        self._path, self._state_path = f"{output}.partial", f"{output}.partial.json"
        self._identity, self._dimension = identity, dimension
        self._overwrite = overwrite
        self.done = 0
        self.left_out: list[int] = []
        self._is_finished = False

    def __enter__(self) -> ResumableOutput:
        self._file = self._locked()
        try:
            self._resume()
            # Before anything is written over what another state speaks of.
            self._save()
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._file:
            if self._is_finished:
                return
            if self.done:
                self._save()
            else:
                # While it is locked: nobody else's.
                os.remove(self._path)
                os.remove(self._state_path)

    def append(self, vectors: np.ndarray, images: int, left_out: list[int]) -> None:
        """The vectors of the next images, but for those that are left out: float32 (n, d)."""
        self._file.seek(self._bytes())
        self._file.write(vectors.astype("<f4").tobytes())
        self._file.flush()
        # Only now: what is cut off before is written again.
        self.done, self.left_out = self.done + images, self.left_out + left_out
        if time.monotonic() - self._saved > _SECONDS_BETWEEN_SAVES:
            self._save()

    def discard(self) -> None:
        """What was appended is of no use."""
        self.done, self.left_out = 0, []

    def finish(self, paths: list[str], labels: list[str], model: str) -> int:
        """All files take their places, with path and label of all images and the model's digest.

        Returns the number of rows.
        """
        # The header is no part of what is saved: a kill from here on leaves all that is needed.
        self._save()
        rows = np.delete(np.arange(self.done), self.left_out)
        self._file.truncate(self._bytes())
        self._file.seek(0)
        self._file.write(npy_header((len(rows), self._dimension)))
        self._file.flush()
        os.fsync(self._file.fileno())
        # At no time does one file stand beside an older one that it does not fit.
        with suppress(FileNotFoundError):
            os.remove(self._output)
        write_csv(csv_path(self._output), ((paths[row], labels[row]) for row in rows))
        write_digest(self._output, model)
        os.replace(self._path, self._output)
        self._is_finished = True
        os.remove(self._state_path)
        return len(rows)

    def _locked(self) -> BinaryIO:
        """The file, empty if it was not there, for this process alone."""
        # Not through a link, which may lead to a file that is none of ours.
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
        file = os.fdopen(os.open(self._path, flags, 0o666), "r+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever held it may have finished it just now.
            if os.path.samestat(os.fstat(file.fileno()), os.stat(self._path)):
                return file
        except (BlockingIOError, FileNotFoundError):
            pass
        file.close()
        raise UsageError(f"--output {self._output}: another process is writing it; let it finish")

    def _resume(self) -> None:
        """Finds out what the file holds of these embeddings."""
        state = _state(self._state_path)
        if state is None:
            return
        if state["identity"] != self._identity:
            if not self._overwrite:
                raise UsageError(
                    f"{self._path}: was begun with another model, other images or another "
                    "--batch-size; name another --output, or give it up with --overwrite"
                )
            return
        self.done, self.left_out = state["done"], state["left_out"]
        there = os.fstat(self._file.fileno()).st_size
        if there < self._bytes() and self.done > len(self.left_out):
            logging.warning("%s is damaged: it is begun anew.", self._path)
            self.done, self.left_out = 0, []

    def _save(self) -> None:
        """What was appended survives from now on, also a loss of power."""
        os.fsync(self._file.fileno())
        state = {"identity": self._identity, "done": self.done, "left_out": self.left_out}
        with atomic_write(self._state_path) as partial:
            Path(partial).write_text(json.dumps(state), encoding="utf-8")
        self._saved = time.monotonic()

    def _bytes(self) -> int:
        """Of the header and all vectors so far."""
        return HEADER_BYTES + (self.done - len(self.left_out)) * self._dimension * 4


def _state(path: str) -> dict[str, Any] | None:
    """What was saved last; None if that is not there, or not as it was saved."""
    try:
        state = json.loads(Path(path).read_text(encoding="utf-8"))
        numbers = [-1, *state["left_out"], state["done"]]
        is_sound = "identity" in state and all(type(number) is int for number in numbers)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return state if is_sound and all(a < b for a, b in zip(numbers, numbers[1:])) else None
