"""The folder of a run on disk: who may write to it, which files it keeps, and what is found there.

It holds the latest checkpoints, the best networks that belong to them, and the records.
"""

from __future__ import annotations

import glob
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

from embedding_learning.errors import TrainingError, UsageError
from embedding_learning.runtime.atomic_files import atomic_write
from embedding_learning.runtime.file_locks import locked, open_locked
from embedding_learning.training import checkpoint_file
from embedding_learning.training.checkpoint_file import Checkpoint, DamagedError

# The records of a run, in its folder.
RECORDS = "metrics.jsonl"
_NAME = re.compile(r"checkpoint-(\d{4,})-(\d{6,})\.safetensors")
_BEST_NAME = re.compile(r"best-(\d{4,})\.params")


class RunFolder:
    """The folder ``PREFIX.run``: the checkpoints of one run, held by one process at a time.

    Use it in a `with` statement. Next to each checkpoint lies the network that was the best when it
    was written, so that the folder alone is enough to resume the run.

    Parameters
    ----------
    prefix : str
        The path that the names of the run's files begin with.
    keep : int
        The number of checkpoints to keep: the latest ones.
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

    def begin(self, checkpoint: Checkpoint | None, best_epoch: int | None) -> None:
        """Prepares the folder for a new run, or for the run that `checkpoint` is resumed from.

        Only a run that resumes from the newest checkpoint here keeps the folder. Any other gets an
        empty one, and the former folder is renamed. `best_epoch` is the epoch of the best network
        up to the checkpoint.
        """
        self._remove_partial_files()
        source = checkpoint.path.parent if checkpoint else self.path
        files = _newest_first(self.path)
        # Another run may have removed the checkpoint meanwhile, so the names are compared.
        is_newest = checkpoint and files and checkpoint.path.resolve() == files[0].resolve()
        if not is_newest and any(_position(file) > (0, 0) for file in files):
            former = next(
                path for n in range(1, 10**6) if not (path := Path(f"{self.path}.{n}")).exists()
            )
            if source.samefile(self.path):
                source = former
            self.path.rename(former)
            logging.info("The former run of this prefix is kept in %s.", former)
            self._claim()
        if is_newest:
            # A network that was the best after the checkpoint may not be so in the resumed run.
            for epoch in self._best_epochs():
                if epoch >= _position(files[0])[0]:
                    self.best(epoch).unlink()
        if checkpoint:
            self._copy_run(source, best_epoch)

    def _remove_partial_files(self) -> None:
        """Removes the files that a killed run had not written completely."""
        folder, name = os.path.split(self._prefix)
        networks = Path(folder).glob(f"{glob.escape(name)}.params.*.partial")
        for file in [*self.path.glob("*.partial"), *networks]:
            file.unlink(missing_ok=True)

    def _copy_run(self, source: Path, best_epoch: int | None) -> None:
        """Copies the records and the best network of the resumed run from its folder."""
        self._copy(source / RECORDS)
        if best_epoch is not None:
            self._publish_from(source, best_epoch)

    def publish_if_missing(self, checkpoint: Checkpoint, best_epoch: int | None) -> None:
        """Makes the best network of a finished run the result, ``PREFIX.params``, if there is none.

        `best_epoch` is the epoch of the best network up to the last checkpoint.
        """
        if best_epoch is not None and not self._result.exists():
            self._publish_from(checkpoint.path.parent, best_epoch)

    def _publish_from(self, source: Path, best_epoch: int) -> None:
        """Publishes the best network in a run's folder; logs if it is missing or damaged."""
        best = source / self.best(best_epoch).name
        fault = _find_fault(best)
        if fault:
            logging.warning("%s %s; %s.params is left as it is.", best, fault, self._prefix)
            return
        self._copy(best)
        self.publish(best_epoch)

    def _copy(self, file: Path) -> None:
        """Copies a file, if it exists, into the folder, unless it lies there."""
        if file.exists() and not file.parent.samefile(self.path):
            with atomic_write(self.path / file.name) as partial:
                shutil.copyfile(file, partial)

    def best(self, epoch: int) -> Path:
        """Returns the path of the network that was the best after an epoch."""
        return self.path / f"best-{epoch:04d}.params"

    def publish(self, epoch: int) -> None:
        """Copies the best network to the run's result, ``PREFIX.params``."""
        if self._network:
            self._network.close()
        self._network = open(self.best(epoch), "rb")  # noqa: SIM115
        self._write_network(self._result)

    def restore_network(self, epoch: int) -> None:
        """Writes the last published network again if its files were removed.

        `epoch` is the one it was saved after.
        """
        if self._network:
            for path in (self.best(epoch), self._result):
                if not path.exists():
                    logging.warning(
                        "%s was removed while the run trains; it is written again.", path
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
        """Writes a checkpoint, then removes the oldest ones beyond the number to keep.

        Raises OSError if it cannot be written; the former checkpoints are left as they are.
        """
        self.recreate_if_removed()
        file = self.path / f"checkpoint-{epoch:04d}-{batch:06d}.safetensors"
        checkpoint_file.write(file, arrays, state)
        files = _newest_first(self.path)
        for file in files[self._keep :]:
            file.unlink(missing_ok=True)
        # The checkpoints that are left need the best networks after the oldest of them, and the
        # last one before it.
        oldest, _ = _position(files[: self._keep][-1])
        former = sorted(best for best in self._best_epochs() if best < oldest)
        for best in former[:-1]:
            self.best(best).unlink(missing_ok=True)

    def _best_epochs(self) -> list[int]:
        """Returns the epochs whose best networks are kept."""
        matches = (_BEST_NAME.fullmatch(file.name) for file in self.path.iterdir())
        return [int(match[1]) for match in matches if match]

    def recreate_if_removed(self) -> bool:
        """Creates the folder again if it was removed; returns whether it was."""
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
        The epoch of its latest checkpoint, which is also the number of finished epochs.
    batch : int
        Batches of that epoch that are done.
    is_running : bool
        Whether a process trains it now.
    """

    epoch: int
    batch: int
    is_running: bool


def state_of(prefix: str) -> RunState | None:
    """Returns how far a run has come, or None if its folder holds no checkpoint.

    Raises OSError if the folder cannot be read.
    """
    folder = Path(f"{prefix}.run")
    files = _newest_first(folder)
    if not files:
        return None
    try:
        with locked(folder, is_shared=True):
            is_running = False
    except BlockingIOError:
        is_running = True
    return RunState(*_position(files[0]), is_running)


def find(resume: str, prefix: str) -> Checkpoint | None:
    """Returns the checkpoint that --resume names.

    Parameters
    ----------
    resume : str
        A checkpoint file; or a run's folder or prefix, for its newest undamaged checkpoint; or
        ``auto`` for that of `prefix`.
    prefix : str

    Returns
    -------
    Checkpoint or None
        None if ``auto`` finds no checkpoint.

    Raises
    ------
    UsageError
        If what it names does not exist or is damaged.
    """
    path = Path(f"{prefix}.run" if resume == "auto" else resume)
    if not os.path.exists(path) and os.path.isdir(f"{resume}.run"):
        path = Path(f"{resume}.run")
    if not os.path.isdir(path):  # unlike Path's it raises nothing
        if resume == "auto":
            return None
        try:
            return checkpoint_file.read(path)
        except (DamagedError, OSError) as error:
            raise UsageError(f"--resume {resume}: {_reason(error)}") from None
    try:
        files = _newest_first(path)
    except OSError as error:
        raise UsageError(f"--resume {resume}: {_reason(error)}") from None
    for file in files:
        try:
            return checkpoint_file.read(file)
        except (DamagedError, OSError) as error:
            logging.warning("%s: %s; the one before it is used.", file, _reason(error))
    if resume == "auto" and not files:
        return None
    fault = "all its checkpoints are damaged" if files else "holds no checkpoint"
    raise UsageError(f"--resume {resume}: {fault}; leave --resume out to start from scratch")


def _find_fault(network: Path) -> str | None:
    """Returns what is wrong with the file of a network, if anything."""
    # Imported here, since it imports MXNet, which commands that only read records do without.
    from embedding_learning.model.weights.params_file import read_description

    if not network.exists():
        return "does not exist"
    try:
        read_description(str(network), "--resume")  # Its checksum is that of the whole file.
    except UsageError:
        return "is damaged or cannot be read"
    return None


def _reason(error: Exception) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)


def _newest_first(folder: Path) -> list[Path]:
    files = [file for file in folder.iterdir() if _NAME.fullmatch(file.name)]
    return sorted(files, key=_position, reverse=True)


def _position(file: Path) -> tuple[int, int]:
    """Returns the epoch and the batch in the name of a checkpoint."""
    match = _NAME.fullmatch(file.name)
    assert match
    return int(match[1]), int(match[2])


@contextmanager
def disk_faults(folder: Path) -> Iterator[None]:
    """Raises a TrainingError for an error within that comes from writing to a run's folder."""
    try:
        yield
    except (OSError, UsageError) as error:
        raise TrainingError(
            f"{folder}: cannot be written to: {getattr(error, 'strerror', None) or error}; what "
            "was written before is complete: remove the cause and continue with --resume auto"
        ) from error
