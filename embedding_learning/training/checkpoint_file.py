"""A run's folder on disk: its latest checkpoints, each written whole or not at all.

A checkpoint is a safetensors file: arrays by name, and in its header the rest of the state as JSON
with a SHA-256 of everything. Nothing in it can run code, and a torn or altered one is told from a
whole one.
"""

from __future__ import annotations

import glob
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from embedding_learning.errors import TrainingError, UsageError
from embedding_learning.runtime.atomic_files import atomic_write
from embedding_learning.runtime.file_locks import locked, open_locked

# Goes up when an older program could not go on from what is written.
FORMAT = 2
# Those that can be read. Format 1 does not hold `Progress.to_beat`.
_READABLE = (1, FORMAT)
# The records of a run, in its folder.
RECORDS = "metrics.jsonl"
_NAME = re.compile(r"checkpoint-(\d{4,})-(\d{6,})\.safetensors")
_BEST_NAME = re.compile(r"best-(\d{4,})\.params")

# What no run comes near: the largest backbones have some 1,500 arrays, an optimizer a few for each.
_MOST_ARRAYS = 100_000
_LONGEST_NAME = 1000  # characters
_LONGEST_STATE = 2**20  # characters


class DamagedError(Exception):
    """A file is no whole checkpoint; the message says why."""


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds.

    Attributes
    ----------
    path : Path
    arrays : dict of str to ndarray
    state : dict
        As JSON gives it: nothing in it is vouched for but that it was written by whoever wrote the
        arrays.
    """

    path: Path
    arrays: dict[str, np.ndarray]
    state: dict[str, Any]


def write(path: Path, arrays: dict[str, np.ndarray], state: dict[str, Any]) -> None:
    """Writes a checkpoint; raises OSError if it cannot, and leaves the former content then."""
    text = json.dumps(state)
    metadata = {"state": text, "sha256": _digest(arrays, text)}
    with atomic_write(path) as partial:
        try:
            save_file(arrays, partial, metadata=metadata)
        except SafetensorError as error:
            raise OSError(str(error)) from error


def read(path: Path) -> Checkpoint:
    """Reads a checkpoint.

    Raises DamagedError if it is not whole or of another format, OSError if it cannot be read.
    """
    if path.exists() and not path.is_file():  # Opening a pipe would wait for a writer.
        raise DamagedError("it is no file")
    with open(path, "rb"):  # An OSError of Python's own says why it cannot be read.
        pass
    try:
        with safe_open(path, framework="numpy") as file:
            names, metadata = file.keys(), file.metadata() or {}
            text = metadata.get("state", "")
            _check_sizes(names, text)
            arrays = {name: file.get_tensor(name) for name in names}
        digest = _digest(arrays, text)
    # An AttributeError is a type of numbers that numpy lacks; if a package has added it, such as
    # ml_dtypes, the digest cannot be computed.
    except (SafetensorError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise DamagedError("it is cut off, damaged or no checkpoint") from error
    if metadata.get("sha256") != digest:
        raise DamagedError("its checksum does not fit its content")
    try:
        state = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DamagedError("its state cannot be read") from error
    if not isinstance(state, dict) or state.get("format") not in _READABLE:
        raise DamagedError("it is of another version of this program")
    return Checkpoint(path, arrays, state)


def _check_sizes(names: list[str], state: str) -> None:
    """Raises DamagedError for what no run writes, or a message of one line could not tell."""
    if (
        len(names) > _MOST_ARRAYS
        or len(state) > _LONGEST_STATE
        or not all(name.isprintable() and len(name) <= _LONGEST_NAME for name in names)
    ):
        raise DamagedError("it is no checkpoint of this program")


def _digest(arrays: dict[str, np.ndarray], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.data)
    return digest.hexdigest()


class RunFolder:
    """The folder ``PREFIX.run``: the checkpoints of one run, held by one process at a time.

    Use it in a `with` statement. Beside the checkpoints lie the networks that were the best when
    these were written, so that the folder alone is enough to go on from.

    Parameters
    ----------
    prefix : str
        What the names of the run's files begin with.
    keep : int
        How many checkpoints are kept, the latest.
    """

    def __init__(self, prefix: str, keep: int) -> None:
        self._prefix = prefix
        self._keep = keep
        self._lock = -1
        # The saved network's file, open: its content stays readable if the file is removed.
        self._network: BinaryIO | None = None
        self.path = Path(f"{prefix}.run")

    def __enter__(self) -> RunFolder:
        self._claim()
        return self

    def __exit__(self, *_: object) -> None:
        if self._network:
            self._network.close()
        os.close(self._lock)
        with suppress(OSError):  # It holds a run.
            self.path.rmdir()

    def _claim(self) -> None:
        """Creates the folder if it does not exist, and locks it."""
        try:
            self.path.mkdir(exist_ok=True)
            lock = open_locked(self.path)
        except BlockingIOError:
            raise UsageError(
                f"--save-model-prefix {self._prefix}: another run is writing to {self.path}; wait "
                "for it, or choose another prefix"
            ) from None
        except OSError as error:
            raise UsageError(
                f"--save-model-prefix {self._prefix}: cannot use the folder {self.path} "
                f"({error.strerror}); choose another prefix"
            ) from None
        if self._lock >= 0:
            os.close(self._lock)
        self._lock = lock

    def begin(self, continued: Checkpoint | None, best_epoch: int | None) -> None:
        """Makes room for a run, or for the rest of the one that `continued` belongs to.

        A run that does not go on from the newest checkpoint here gets an empty folder; what lies
        in this one is moved aside. `best_epoch` is the epoch of the best network up to there.
        """
        self._sweep()
        source = continued.path.parent if continued else self.path
        files = _newest_first(self.path)
        # Another run may have removed the checkpoint meanwhile, so the names are compared.
        goes_on = continued and files and continued.path.resolve() == files[0].resolve()
        if not goes_on and any(_position(file) > (0, 0) for file in files):
            aside = next(
                path for n in range(1, 10**6) if not (path := Path(f"{self.path}.{n}")).exists()
            )
            if source.samefile(self.path):
                source = aside
            self.path.rename(aside)
            logging.info("The former run of this prefix is kept in %s.", aside)
            self._claim()
        if goes_on:
            # What was the best after the checkpoint may not be so when the run comes there again.
            for number in self._best_epochs():
                if number >= _position(files[0])[0]:
                    self.best(number).unlink()
        if continued:
            self._take_over(source, best_epoch)

    def _sweep(self) -> None:
        """Removes what a run that was killed had begun to write."""
        folder, name = os.path.split(self._prefix)
        beside = Path(folder).glob(f"{glob.escape(name)}.params.*.partial")
        for file in [*self.path.glob("*.partial"), *beside]:
            file.unlink(missing_ok=True)

    def _take_over(self, source: Path, best_epoch: int | None) -> None:
        """Makes the records and the best network of a run up to a checkpoint this run's own."""
        self._take(source / RECORDS)
        if best_epoch is None:
            return
        best = source / self.best(best_epoch).name
        if self._take(best):
            self.publish(best_epoch)
        else:
            logging.warning("%s is not there; %s.params is left as it is.", best, self._prefix)

    def _take(self, file: Path) -> bool:
        """Copies a file into the folder, unless it is there; whether there is one."""
        if file.exists() and not file.parent.samefile(self.path):
            with atomic_write(self.path / file.name) as partial:
                shutil.copyfile(file, partial)
        return file.exists()

    def best(self, epoch: int) -> Path:
        """Where the network is kept that was the best after an epoch."""
        return self.path / f"best-{epoch:04d}.params"

    def publish(self, epoch: int) -> None:
        """Copies the best network to the run's result, ``PREFIX.params``."""
        if self._network:
            self._network.close()
        self._network = open(self.best(epoch), "rb")  # noqa: SIM115
        self._write_network(self._result)

    def restore_network(self, epoch: int) -> None:
        """Writes the network that was last published again where its files have been removed.

        `epoch` is the one it was saved after.
        """
        if self._network:
            for path in (self.best(epoch), self._result):
                if not path.exists():
                    logging.warning(
                        "%s was removed while the run went on; it is written again.", path
                    )
                    self._write_network(path)

    @property
    def _result(self) -> Path:
        return Path(f"{self._prefix}.params")

    def _write_network(self, path: Path) -> None:
        assert self._network
        self._network.seek(0)
        with atomic_write(path) as partial, open(partial, "wb") as file:
            shutil.copyfileobj(self._network, file)

    def save(
        self, epoch: int, batch: int, arrays: dict[str, np.ndarray], state: dict[str, Any]
    ) -> None:
        """Writes a checkpoint, then removes those beyond the number to keep.

        Raises OSError if it cannot be written; the former ones are left as they are.
        """
        self.recreate_if_removed()
        write(self.path / f"checkpoint-{epoch:04d}-{batch:06d}.safetensors", arrays, state)
        files = _newest_first(self.path)
        for file in files[self._keep :]:
            file.unlink(missing_ok=True)
        # Only later best networks, and the last before it, can be those of a checkpoint.
        oldest, _ = _position(files[: self._keep][-1])
        former = sorted(number for number in self._best_epochs() if number < oldest)
        for number in former[:-1]:
            self.best(number).unlink(missing_ok=True)

    def _best_epochs(self) -> list[int]:
        """The epochs whose best networks are kept."""
        matches = (_BEST_NAME.fullmatch(file.name) for file in self.path.iterdir())
        return [int(match[1]) for match in matches if match]

    def recreate_if_removed(self) -> bool:
        """Creates the folder again if it was removed meanwhile; returns whether it was."""
        if self.path.exists() and os.path.samestat(os.fstat(self._lock), self.path.stat()):
            return False
        logging.warning("%s was removed while the run trains; it is created again.", self.path)
        self._claim()
        return True


@dataclass(frozen=True)
class RunState:
    """How far the run of a prefix has come, as its folder shows.

    Attributes
    ----------
    epoch : int
        The one of its latest checkpoint, so that many are done.
    batch : int
        Batches of that epoch that are done.
    is_going_on : bool
        Whether a process trains it now.
    """

    epoch: int
    batch: int
    is_going_on: bool


def state_of(prefix: str) -> RunState | None:
    """How far a run has come; None if its folder holds no checkpoint. Raises OSError."""
    folder = Path(f"{prefix}.run")
    files = _newest_first(folder)
    if not files:
        return None
    try:
        with locked(folder, is_shared=True):
            is_going_on = False
    except BlockingIOError:
        is_going_on = True
    return RunState(*_position(files[0]), is_going_on)


def find(resume: str, prefix: str) -> Checkpoint | None:
    """The checkpoint that --resume means: a file, the newest whole one of a run's folder, which
    its prefix names too, or with `auto` that of `prefix`; None if `auto` finds none.

    Raises UsageError if what it names is not there or damaged.
    """
    path = Path(f"{prefix}.run" if resume == "auto" else resume)
    if not os.path.exists(path) and os.path.isdir(f"{resume}.run"):
        path = Path(f"{resume}.run")
    if not os.path.isdir(path):  # unlike Path's it raises nothing
        if resume == "auto":
            return None
        try:
            return read(path)
        except (DamagedError, OSError) as error:
            raise UsageError(f"--resume {resume}: {_reason(error)}") from None
    try:
        files = _newest_first(path)
    except OSError as error:
        raise UsageError(f"--resume {resume}: {_reason(error)}") from None
    for file in files:
        try:
            return read(file)
        except (DamagedError, OSError) as error:
            logging.warning("%s: %s; the one before it is used.", file, _reason(error))
    if resume == "auto" and not files:
        return None
    what = "no checkpoint of it is whole" if files else "holds no checkpoint"
    raise UsageError(f"--resume {resume}: {what}; leave --resume out to start anew")


def _reason(error: Exception) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)


def _newest_first(folder: Path) -> list[Path]:
    files = [file for file in folder.iterdir() if _NAME.fullmatch(file.name)]
    return sorted(files, key=_position, reverse=True)


def _position(file: Path) -> tuple[int, int]:
    """The epoch and the batch that a checkpoint's name tells."""
    match = _NAME.fullmatch(file.name)
    assert match
    return int(match[1]), int(match[2])


@contextmanager
def disk_faults(folder: Path) -> Iterator[None]:
    """Within, an error in writing to a run's folder is a TrainingError."""
    try:
        yield
    except (OSError, UsageError) as error:
        raise TrainingError(
            f"{folder}: cannot be written to: {getattr(error, 'strerror', None) or error}; what "
            "was written before is complete: remove the cause and continue with --resume auto"
        ) from error
