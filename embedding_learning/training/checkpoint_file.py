"""The checkpoint file: the state of a run, written atomically and with a checksum.

It is a safetensors file: arrays by name, and in its header the rest of the state as JSON with a
SHA-256 of everything. Nothing in it can run code, and a cut off or altered file is noticed.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from embedding_learning.runtime.atomic_files import atomic_write

# Goes up when an older program could not resume from what is written.
FORMAT = 2
# The formats that can be read. Format 1 does not hold `Progress.to_beat`.
_READABLE = (1, FORMAT)

# More than any run needs: the largest backbones have some 1,500 arrays, an optimizer a few for
# each.
_MOST_ARRAYS = 100_000
_LONGEST_NAME = 1000  # characters
_LONGEST_STATE = 2**20  # characters


class DamagedError(Exception):
    """A file is not a complete checkpoint; the message says why."""


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint.

    Attributes
    ----------
    path : Path
    arrays : dict of str to ndarray
    state : dict
        As read from JSON and not checked. It was written together with the arrays, but the file may
        come from an untrusted source.
    """

    path: Path
    arrays: dict[str, np.ndarray]
    state: dict[str, Any]


def write(path: Path, arrays: dict[str, np.ndarray], state: dict[str, Any]) -> None:
    """Writes a checkpoint. If it cannot, it raises OSError and leaves the former content."""
    text = json.dumps(state)
    metadata = {"state": text, "sha256": _digest(arrays, text)}
    with atomic_write(path) as partial:
        try:
            save_file(arrays, partial, metadata=metadata)
        except SafetensorError as error:
            raise OSError(str(error)) from error


def read(path: Path) -> Checkpoint:
    """Reads a checkpoint.

    Raises DamagedError if it is damaged or of another format, OSError if it cannot be read.
    """
    if path.exists() and not path.is_file():  # Opening a pipe would wait for a writer.
        raise DamagedError("it is no file")
    with open(path, "rb"):  # Python's own OSError says why it cannot be read.
        pass
    try:
        with safe_open(path, framework="numpy") as file:
            names, metadata = file.keys(), file.metadata() or {}
            text = metadata.get("state", "")
            _check_sizes(names, text)
            arrays = {name: file.get_tensor(name) for name in names}
        digest = _digest(arrays, text)
    # AttributeError: a number type that numpy lacks. If a package such as ml_dtypes has added the
    # type, the digest cannot be computed.
    except (SafetensorError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise DamagedError("it is cut off, damaged or no checkpoint") from error
    if "sha256" not in metadata:
        raise DamagedError("it is no checkpoint of this program")
    if metadata["sha256"] != digest:
        raise DamagedError("its checksum does not fit its content")
    try:
        state = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DamagedError("its state cannot be read") from error
    if not isinstance(state, dict) or state.get("format") not in _READABLE:
        raise DamagedError("it is of another version of this program")
    return Checkpoint(path, arrays, state)


def _check_sizes(names: list[str], state: str) -> None:
    """Raises DamagedError for more than a run writes, and for names that a message cannot show."""
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
