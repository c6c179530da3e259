"""The first steps of a program: repair the standard streams, and handle Ctrl-C while it loads.

Imports almost nothing, because Ctrl-C can come while the other modules are being imported.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress

# The console script of pyproject.toml.
CONSOLE_SCRIPT = "embedding-learning"


def train_command() -> list[str]:
    """Returns the command that trains, without its flags.

    In a checkout it is train.py, which finds this package from every folder. An installed package
    comes without train.py.
    """
    checkout = find_checkout()
    if checkout:
        return [sys.executable, os.path.join(checkout, "train.py")]
    return [sys.executable, "-m", "embedding_learning", "train"]


def find_checkout() -> str | None:
    """Returns the folder of the checkout that this package is in; None if it is installed."""
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    return root if os.path.isfile(os.path.join(root, "pyproject.toml")) else None


def prepare_process(program: str) -> None:
    """Repairs the standard streams, and makes Ctrl-C end the process with a line and status 130."""
    repair_streams()

    def interrupt(number: int, _: object) -> None:
        with suppress(OSError):
            os.write(2, f"{program}: interrupted\n".encode())
        # No exception: raised during an import, it could turn into another one.
        os._exit(128 + number)

    signal.signal(signal.SIGINT, interrupt)


def repair_streams() -> None:
    """Opens closed standard streams on /dev/null, and makes all of them write any character.

    Otherwise the next file that is opened would get the number of a closed stream, and libraries
    would print into it.
    """
    for number, mode in ((0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            # The system takes the lowest free number, which is this one.
            os.open(os.devnull, mode)
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False)
    for stream in (sys.stdout, sys.stderr):
        # File names may contain characters that the encoding of the terminal does not have.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
