"""Reads binary files from untrusted sources: every size is checked before it is used.

A number in such a file may say anything. No reader here reserves memory, moves in the file or
loops as a number says, unless the file is at least that long or the number is below a limit.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from embedding_learning.errors import UsageError

LONGEST_NAME = 1000  # bytes
MOST_DIMENSIONS = 32  # of an array; numpy 1 has no more


class BinaryReader:
    """A file, and checks of its content that raise ValueError.

    Parameters
    ----------
    file : BinaryIO
        Opened for reading. The reader and the caller may both move in it.
    fault : str
        The message of the ValueErrors.
    """

    def __init__(self, file: BinaryIO, fault: str) -> None:
        self.file = file
        self._fault = fault
        position = file.tell()
        self.size = file.seek(0, os.SEEK_END)
        file.seek(position)

    def require(self, condition: bool) -> None:
        """Raises ValueError unless the condition holds."""
        require(condition, self._fault)

    def read(self, length: int) -> bytes:
        """Returns the next bytes. Raises ValueError if the file has fewer."""
        self.require(0 <= length <= self.count_left())
        data = self.file.read(length)
        self.require(len(data) == length)
        return data

    def read_integers(self, layout: str) -> tuple[int, ...]:
        """Returns the next integers: little-endian, `layout` as in `struct`."""
        return struct.unpack(f"<{layout}", self.read(struct.calcsize(f"<{layout}")))

    def skip(self, length: int) -> None:
        """Moves forward. Raises ValueError if the file has fewer bytes."""
        self.require(0 <= length <= self.count_left())
        self.file.seek(length, os.SEEK_CUR)

    def count_left(self) -> int:
        """Returns the number of bytes from here to the end of the file."""
        return self.size - self.file.tell()


def require(condition: bool, fault: str) -> None:
    """Raises ValueError with the message `fault` unless the condition holds."""
    if not condition:
        raise ValueError(fault)


@contextmanager
def open_untrusted(
    path: str, flag: str, file_format: str = "Gluon parameter file"
) -> Iterator[BinaryIO]:
    """Opens a file for reading; OSError and ValueError within the block become UsageError.

    The message names the flag, the file and the format that was expected.
    """
    if os.path.isdir(path):
        raise UsageError(f"{flag} {path}: is a folder; name a file in it")
    try:
        # Opening a pipe would wait for a writer.
        if not os.path.isfile(path):
            raise FileNotFoundError(path)
        with open(path, "rb") as file:
            yield file
    except OSError as error:
        raise UsageError(f"{flag} {path}: no such file, or it cannot be read") from error
    except ValueError as error:
        raise UsageError(f"{flag} {path}: is damaged or not a {file_format}") from error
