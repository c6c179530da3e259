"""Exceptions that end a command with one line for the user. `cli.exit_codes` prints it."""

from __future__ import annotations

_LONGEST_MESSAGE = 1000  # characters


class _OneLineError(Exception):
    """Its message may name any file, so control characters, such as line ends, are escaped."""

    def __init__(self, message: str) -> None:
        super().__init__(
            "".join(
                char if char.isprintable() else char.encode("unicode_escape").decode()
                for char in message
            )
        )


class UsageError(_OneLineError):
    """A flag or argument cannot be used. The message names it and the way out."""


class DataError(_OneLineError):
    """The data is invalid. The message names the file and the way out.

    The message may quote the content of untrusted files. So the middle of a long one is left out.
    """

    def __init__(self, message: str) -> None:
        if len(message) > _LONGEST_MESSAGE:
            half = _LONGEST_MESSAGE // 2
            message = f"{message[:half]} … {message[-half:]}"
        super().__init__(message)


class TrainingError(_OneLineError):
    """Training cannot continue. The message says why and what to do."""


class Interrupted(BaseException):
    """A signal ended the program. Like KeyboardInterrupt it is not caught as an error.

    Parameters
    ----------
    number : int
        The number of the signal.
    message : str
        The text for the user.
    """

    def __init__(self, number: int, message: str = "interrupted") -> None:
        super().__init__(message)
        self.number = number
