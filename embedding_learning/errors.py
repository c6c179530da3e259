"""What ends a command with one line for the user; `cli.exit_codes` prints it."""

from __future__ import annotations

_LONGEST_MESSAGE = 1000  # characters


class UsageError(Exception):
    """A flag cannot be followed; the message names the flag and the way out."""


class DataError(Exception):
    """The data is not as it should be; the message names the file and the way out.

    It quotes what stands in files, and that may be anything. So characters that a terminal would
    obey, line ends among them, become escapes, and the middle of a long message is left out.
    """

    def __init__(self, message: str) -> None:
        if len(message) > _LONGEST_MESSAGE:
            half = _LONGEST_MESSAGE // 2
            message = f"{message[:half]} … {message[-half:]}"
        super().__init__(
            "".join(
                char if char.isprintable() else char.encode("unicode_escape").decode()
                for char in message
            )
        )


class TrainingError(Exception):
    """Training cannot go on; the message says why and what to do."""


class Interrupted(BaseException):
    """A signal ended the program; like KeyboardInterrupt it is no error to be handled.

    Parameters
    ----------
    number : int
        The signal's.
    message : str
        What the user is told.
    """

    def __init__(self, number: int, message: str = "interrupted") -> None:
        super().__init__(message)
        self.number = number
