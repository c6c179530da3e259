"""A resumable output file: embeddings are appended as they are computed.

An interrupted run loses only seconds of work. The vectors are in FILE.npy.partial, which becomes
FILE.npy at the end. FILE.npy.partial.json contains how many of them have reached the disk, and the
identity of the model and the images.
"""

from __future__ import annotations

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
from embedding_learning.runtime.atomic_files import atomic_write, check_output_path
from embedding_learning.runtime.file_locks import open_locked

_SECONDS_BETWEEN_SAVES = 10


def check_output(path: str) -> None:
    """Raises UsageError if embeddings cannot be written to this path; writes nothing."""
    check_output_path(path, (".npy",), "--output")
    try:
        # FILE.csv may be the list of a data set.
        check_csv(csv_path(path))
    except UsageError as error:
        raise UsageError(
            f"--output {path}: would overwrite {csv_path(path)}, which is no list of embeddings; "
            "name another"
        ) from error


class ResumableOutput:
    """The partial file of an output of embeddings. One process at a time can hold it.

    Use it in a `with` statement. However the block ends, all that was appended is kept. If nothing
    was appended, no file is left.

    Parameters
    ----------
    output : str
        The final .npy file.
    identity : str
        Identity of the model and the images. Only a partial file of the same identity is resumed.
    dimension : int
        Dimension of the vectors.
    overwrite : bool
        Whether a partial file of another identity may be discarded. A finished file is always
        replaced at the end.

    Attributes
    ----------
    done : int
        Number of images that are embedded or left out.
    left_out : list of int
        The images among them that have no vector, ascending.

    Raises
    ------
    UsageError
        If `check_output` does, if other embeddings were started there, or if another process writes
        them.
    OSError
        If the disk fails or is full.
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
        self._file = self._open_locked()
        try:
            self._resume()
            # Before any vector is overwritten that the former state counts.
            self._save()
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._file:
            if self._is_finished:
                return
            if self.done:
                self._save()
            else:
                # While it is locked, no other process uses it.
                os.remove(self._path)
                os.remove(self._state_path)

    def append(self, vectors: np.ndarray, images: int, left_out: list[int]) -> None:
        """Appends the vectors of the next images.

        Parameters
        ----------
        vectors : float32 array (n, d)
            Those of the images that are not left out.
        images : int
            Number of images, including those that are left out.
        left_out : list of int
            The images that have no vector.
        """
        self._file.seek(self._expected_bytes())
        self._file.write(vectors.astype("<f4").tobytes())
        self._file.flush()
        # Only now: if this was interrupted before, the same images are written again.
        self.done, self.left_out = self.done + images, self.left_out + left_out
        if time.monotonic() - self._saved > _SECONDS_BETWEEN_SAVES:
            self._save()

    def discard(self) -> None:
        """Discards all that was appended."""
        self.done, self.left_out = 0, []

    def finish(
        self, paths: list[str], labels: list[str], model: str, groups: list[str] | None = None
    ) -> int:
        """Writes FILE.csv and FILE.npy.json, and gives FILE.npy its final name.

        Takes path, label and, if there are any, group of all images, and the digest of the model.
        Returns the number of rows.
        """
        # The saved state does not count the header, so a kill from here on loses nothing.
        self._save()
        rows = np.delete(np.arange(self.done), self.left_out)
        self._file.truncate(self._expected_bytes())
        self._file.seek(0)
        self._file.write(npy_header((len(rows), self._dimension)))
        self._file.flush()
        os.fsync(self._file.fileno())
        # So that a new file never stands next to an older one that it does not fit.
        with suppress(FileNotFoundError):
            os.remove(self._output)
        columns = [paths, labels] if groups is None else [paths, labels, groups]
        images = ([column[row] for column in columns] for row in rows)
        write_csv(csv_path(self._output), images, has_groups=groups is not None)
        write_digest(self._output, model)
        os.replace(self._path, self._output)
        self._is_finished = True
        os.remove(self._state_path)
        return len(rows)

    def _open_locked(self) -> BinaryIO:
        """Opens and locks the partial file, which is created if needed."""
        # Not through a link, which may lead to a file of another program.
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
        with suppress(BlockingIOError):
            file = os.fdopen(open_locked(self._path, flags), "r+b")
            # The process that held it may have finished it just now.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), os.stat(self._path)):
                    return file
            file.close()
        raise UsageError(f"--output {self._output}: another process is writing it; let it finish")

    def _resume(self) -> None:
        """Sets how many images of the same identity the file holds."""
        state = _read_state(self._state_path)
        if state is None:
            return
        if state["identity"] != self._identity:
            if not self._overwrite:
                raise UsageError(
                    f"{self._path}: was started with another model, other images or another "
                    "--batch-size; name another --output, or discard it with --overwrite"
                )
            return
        self.done, self.left_out = state["done"], state["left_out"]
        size = os.fstat(self._file.fileno()).st_size
        if size < self._expected_bytes() and self.done > len(self.left_out):
            logging.warning("%s is damaged: starting again.", self._path)
            self.done, self.left_out = 0, []

    def _save(self) -> None:
        """Makes all that was appended survive a kill and a loss of power."""
        os.fsync(self._file.fileno())
        state = {"identity": self._identity, "done": self.done, "left_out": self.left_out}
        with atomic_write(self._state_path) as partial:
            Path(partial).write_text(json.dumps(state), encoding="utf-8")
        self._saved = time.monotonic()

    def _expected_bytes(self) -> int:
        """Returns the size of the header and all vectors so far."""
        return HEADER_BYTES + (self.done - len(self.left_out)) * self._dimension * 4


def _read_state(path: str) -> dict[str, Any] | None:
    """Returns the state that was saved last; None if it is missing or damaged."""
    try:
        state = json.loads(Path(path).read_text(encoding="utf-8"))
        numbers = [-1, *state["left_out"], state["done"]]
        is_sound = "identity" in state and all(type(number) is int for number in numbers)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return state if is_sound and all(a < b for a, b in zip(numbers, numbers[1:])) else None
